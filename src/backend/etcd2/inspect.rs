//! Looks at etcd from outside. A right to write is tried by a transaction whose condition is never met: etcd checks the
//! rights for both of its branches before it looks at the condition.

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};

use super::{Etcd, connection};
use crate::backend::contract::{BackendError, Failure};
use crate::backend::inspect::{FoundRoot, Inspect, May, NEVER_MADE, WritePlace, roots_of};

/// Most keys to look at in search of topologies.
const SEARCHED: i64 = 10_000;

#[async_trait]
impl Inspect for Etcd {
    async fn about(&self) -> Result<String, BackendError> {
        let status = self.connection.read(|client| async move { client.maintenance_client().status().await }).await?;
        let leader = match status.leader() {
            0 => "no leader".to_owned(),
            leader => format!("leader {leader:x}"),
        };
        let errors = status.errors();
        let errors = if errors.is_empty() { String::new() } else { format!(", errors: {}", errors.join(", ")) };
        Ok(format!("etcd {}, {leader}{errors}", status.version()))
    }

    async fn may_write(&self, place: &WritePlace) -> May {
        let key = match place {
            WritePlace::Below(dir) => format!("{}{NEVER_MADE}", self.keys.dir_prefix(dir)),
            WritePlace::At(path) => self.keys.key(path),
        };
        let never = Compare::create_revision(key.clone(), CompareOp::Less, 0);
        let txn = Txn::new().when(vec![never]).and_then(vec![TxnOp::put(key, "", None)]);
        let answer = self.connection.write(|client| {
            let txn = txn.clone();
            async move { connection::kv(&client).txn(txn).await }
        });
        let unmet = || BackendError::new(Failure::BadVersion, "the condition is not met");
        let refused = answer.await.and_then(|(answer, _)| if answer.succeeded() { Ok(()) } else { Err(unmet()) });
        May::of_refused(refused, &[Failure::BadVersion])
    }

    async fn roots(&self) -> Result<Vec<FoundRoot>, BackendError> {
        let all = GetOptions::new().with_from_key().with_keys_only().with_limit(SEARCHED);
        let found = self.connection.range(vec![0], all).await?;
        let keys: Vec<&str> = found.kvs().iter().filter_map(|kv| kv.key_str().ok()).collect();
        Ok(roots_of(keys.iter().copied()))
    }
}
