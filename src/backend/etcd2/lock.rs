//! The line for a lock on etcd: each waiter has a key, bound to a lease and named after it. The key with the lowest
//! ModRevision holds the lock.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use tokio::time::Instant;

use super::connection::{self, Connection};
use super::key::{header_revision, lease_of, node, owner, version};
use crate::backend::contract::{BackendError, Failure, Node, Owner, Place, Revision, Role};
use crate::backend::keys::KeySpace;
use crate::backend::lock::{self, Keeper};
use crate::name::TopoPath;
use crate::record::layout::LOCKS;

/// A place in the line.
#[derive(Debug)]
pub(super) struct Waiting {
    connection: Arc<Connection>,
    keys: KeySpace,
    lease: i64,
    node: Node,
    /// The prefix of all places.
    line: String,
    keeper: Keeper,
}

/// Stands in line with its own lease.
pub(super) async fn enter(
    connection: &Arc<Connection>,
    keys: &KeySpace,
    dir: &TopoPath,
    contents: &Bytes,
    ttl: Duration,
) -> Result<Waiting, BackendError> {
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
    let begun = Instant::now();
    let (granted, _) =
        connection.write(|client| async move { client.lease_client().grant(seconds, None).await }).await?;
    let (lease, ttl) = (granted.id(), Duration::from_secs(granted.ttl().unsigned_abs().max(1)));
    let keeper = {
        let connection = connection.clone();
        Keeper::start(format!("the lease of the lock of {dir}"), ttl, begun, move || {
            let connection = connection.clone();
            async move { renew(&connection, lease).await }
        })
    };
    let outcome = put(connection, keys, dir, contents, lease).await;
    match outcome {
        Ok(node) => {
            let line = format!("{}{LOCKS}/", keys.dir_prefix(dir));
            Ok(Waiting { connection: connection.clone(), keys: keys.clone(), lease, node, line, keeper })
        }
        Err(error) => {
            // The key may have been put although the call failed. If this fails, too, the lease ends by itself.
            let connection = connection.clone();
            tokio::spawn(async move { revoke(&connection, lease).await });
            Err(error)
        }
    }
}

async fn put(
    connection: &Connection,
    keys: &KeySpace,
    dir: &TopoPath,
    contents: &Bytes,
    lease: i64,
) -> Result<Node, BackendError> {
    let path = lock::queued_path(dir, lease)?;
    let key = keys.key(&path);
    let (mut response, _) = connection
        .write(|client| {
            let absent = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
            let put = TxnOp::put(key.clone(), contents.to_vec(), Some(PutOptions::new().with_lease(lease)));
            let get = || TxnOp::get(key.clone(), None);
            // A key from an earlier attempt is also ours, even if its answer was lost: nobody else has this lease.
            let txn = Txn::new().when([absent]).and_then([put, get()]).or_else([get()]);
            async move { connection::kv(&client).txn(txn).await }
        })
        .await?;
    let at = header_revision(response.take_header().as_ref())?;
    let kv = response.op_responses().into_iter().find_map(|op| match op {
        etcd_client::TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
        _ => None,
    });
    let kv = kv.ok_or_else(|| BackendError::new(Failure::Other, format!("{path}: gone at revision {}", at.0)))?;
    Ok(Node { path, value: contents.clone(), version: version(&kv), role: Role::Lock(owner(lease)), modified: None })
}

/// `Ok(false)`: there is no such lease.
async fn renew(connection: &Connection, lease: i64) -> Result<bool, BackendError> {
    let answer = connection
        .read(|client| async move {
            // Use a new stream each time: a stream that has lost its server is dead for ever.
            let (mut keeper, mut stream) = client.lease_client().keep_alive(lease).await?;
            keeper.keep_alive().await?;
            stream.message().await
        })
        .await;
    match answer {
        Ok(Some(answer)) => Ok(answer.ttl() > 0),
        Ok(None) => Err(BackendError::new(Failure::Unreachable, "etcd closed the stream")),
        Err(error) if error.failure == Failure::NoNode => Ok(false),
        Err(error) => Err(error),
    }
}

/// It is not an error if the lease is already gone.
async fn revoke(connection: &Connection, lease: i64) -> Result<Revision, BackendError> {
    let revoked = connection.write(|client| async move { client.lease_client().revoke(lease).await }).await;
    match revoked {
        Ok((mut response, _)) => header_revision(response.take_header().as_ref()),
        Err(error) if error.failure == Failure::NoNode => Ok(Revision::default()),
        Err(error) => Err(error),
    }
}

/// Takes a lock away from its holder: ends its lease, so that the holder can notice.
pub(super) async fn break_lease(connection: &Connection, holder: Owner) -> Result<(), BackendError> {
    revoke(connection, lease_of(holder)).await.map(drop)
}

/// How long a lease has left.
pub(super) async fn time_left(connection: &Connection, holder: Owner) -> Result<Option<Duration>, BackendError> {
    let lease = lease_of(holder);
    let answer = connection.read(|client| async move { client.lease_client().time_to_live(lease, None).await }).await?;
    Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
}

#[async_trait]
impl Place for Waiting {
    fn node(&self) -> Option<Node> {
        Some(self.node.clone())
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        let ours = self.node.version.written.0.cast_signed();
        let options = GetOptions::new()
            .with_prefix()
            .with_max_mod_revision(ours)
            .with_sort(SortTarget::Mod, SortOrder::Ascend)
            .with_limit(1);
        let line = self.line.clone();
        let mut response = self
            .connection
            .read(|client| {
                let (line, options) = (line.clone(), options.clone());
                async move { connection::kv(&client).get(line, Some(options)).await }
            })
            .await?;
        let Some(first) = response.take_kvs().into_iter().next() else { return Err(lock::gone(&self.node.path)) };
        if first.key() == self.keys.key(&self.node.path).as_bytes() {
            return Ok(Some(self.node.clone()));
        }
        // A key that is not a file name is shown nowhere, and we would wait for it silently.
        let shown = String::from_utf8_lossy(first.key()).escape_debug().to_string();
        match node(&self.keys, first) {
            Some(_) => Ok(None),
            None => Err(BackendError::new(
                Failure::Other,
                format!(
                    "the key {shown} stands in the line for {}, but is not the name of a lock: remove it with \
                     etcdctl del",
                    self.node.path
                ),
            )),
        }
    }

    async fn lost(&self) -> BackendError {
        self.keeper.lost().await
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        self.keeper.stop();
        revoke(&self.connection, self.lease).await
    }
}
