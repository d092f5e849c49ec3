//! Looks at Consul from outside. A right to write is tried by a change of an index that no key has: Consul checks the
//! rights before it carries out a transaction.

use async_trait::async_trait;

use super::Consul;
use super::client::{KvOperation, Operation, Transacted};
use crate::backend::contract::{BackendError, Failure};
use crate::backend::inspect::{FoundRoot, Inspect, May, NEVER_MADE, WritePlace, roots_of};

/// An index that no key ever has.
const NEVER: u64 = i64::MAX.cast_unsigned();

#[async_trait]
impl Inspect for Consul {
    async fn about(&self) -> Result<String, BackendError> {
        Ok(format!("Consul, leader {}", self.client.leader().await?))
    }

    async fn may_write(&self, place: &WritePlace) -> May {
        let key = match place {
            WritePlace::Below(dir) => format!("{}{NEVER_MADE}", self.keys.dir_prefix(dir)),
            WritePlace::At(path) => self.keys.key(path),
        };
        let kv = KvOperation { verb: "cas", key, value: Some(String::new()), index: Some(NEVER), session: None };
        let refused = match self.client.transact(&[Operation { kv }]).await {
            Ok(Transacted::Refused(words)) => Err(BackendError::new(Failure::BadVersion, words)),
            Ok(Transacted::Done(_)) => Ok(()),
            Err(error) => Err(error),
        };
        May::of_refused(refused, &[Failure::BadVersion])
    }

    async fn roots(&self) -> Result<Vec<FoundRoot>, BackendError> {
        let keys = self.client.keys("").await?.value;
        Ok(roots_of(keys.iter().map(String::as_str)))
    }
}
