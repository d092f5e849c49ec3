//! Locks and elections: what a service keeps of them, in the layout that Vitess gives it.
//!
//! A lock of a directory is taken by standing in line: [`super::Backend::enter`] returns a place, and who has no place before
//! it holds the lock. A place lives as long as its lease or session, which is kept alive here until the place is left. Once
//! lost, a place is never taken again by itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Action, BackendError, Change, Failure, Guard, Node, Revision, Version};
use crate::name::TopoPath;

/// Leader elections are below here, one directory each.
pub const ELECTIONS: &str = "elections";
/// Locks of names that stand for no records are below here.
pub const NAMED_LOCKS: &str = "internal/named_locks";
/// The directory of the locks of a directory, on etcd and ZooKeeper.
pub(crate) const LOCKS: &str = "locks";
/// The key of the lock of a directory, on Consul.
pub(crate) const LOCK: &str = "Lock";

/// The lease or session that a lock lives with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u128);

impl Owner {
    /// Nobody: what a lock of Consul's leaves behind. It keeps nobody waiting.
    pub const NOBODY: Owner = Owner(0);
    /// Neither a lease nor a session: a lock of etcd's or ZooKeeper's that was copied or restored. It keeps everybody waiting until
    /// it is taken away, for it does not end by itself. No lease and no session has this number.
    pub const UNBOUND: Owner = Owner(u128::MAX);
}

/// Proof that a lock is held: what a guarded change carries along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// The version of the lock's node.
    pub version: Version,
    /// The lease or session that it lives with.
    pub owner: Owner,
}

/// A place in the line for a lock.
#[async_trait]
pub trait Place: Send + Sync + std::fmt::Debug {
    /// The node that stands for this place; `None` before the lock is held where the service has no queue.
    fn node(&self) -> Option<Node>;

    /// Asks the service whether this place is the first, and takes the lock if the service has no queue. Fails with
    /// [`Failure::LockLost`] if the place is gone.
    async fn try_hold(&self) -> Result<Option<Node>, BackendError>;

    /// Waits until the place is lost, and says why: the lease or session has ended, or may have.
    async fn lost(&self) -> BackendError;

    /// Leaves the line, or gives the lock back. A place that is gone already is no error. Keeping it alive ends here, also when
    /// this fails: it is to be tried again until the place is lost.
    async fn leave(&self) -> Result<Revision, BackendError>;
}

/// Whether a directory stands for an election.
pub fn is_election(dir: &TopoPath) -> bool {
    dir.parent().is_some_and(|parent| parent.as_str() == ELECTIONS)
}

/// Whether a directory can be locked although nothing is stored there.
pub fn needs_no_records(dir: &TopoPath) -> bool {
    let below = |above: &str| dir.as_str().strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    is_election(dir) || below(NAMED_LOCKS)
}

/// The directory of a lock of etcd's, and of the embedded service's: `DIR/locks/ID`.
pub(crate) fn dir_of_queued(node: &TopoPath) -> Option<TopoPath> {
    node.parent().filter(|parent| parent.name() == LOCKS)?.parent()
}

/// Where such a lock stands.
pub(crate) fn queued_path(dir: &TopoPath, id: impl std::fmt::Display) -> Result<TopoPath, BackendError> {
    let path = dir.join(LOCKS).and_then(|line| line.join(&id.to_string()));
    path.map_err(|error| BackendError::new(Failure::Other, error.to_string()))
}

/// The error of a place that is not there any more.
pub(crate) fn gone(what: impl std::fmt::Display) -> BackendError {
    BackendError::new(Failure::LockLost, format!("{what} is gone"))
}

/// Keeps a lease or session alive from a task of its own, and tells when it is lost.
#[derive(Debug)]
pub(crate) struct Keeper {
    task: tokio::task::JoinHandle<()>,
    lost: watch::Receiver<Option<BackendError>>,
}

/// Part of the time to live after which it is renewed.
const RENEWALS: u32 = 3;
/// Pause after a renewal that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

impl Keeper {
    /// Renews until the renewal says that there is nothing left to renew (`Ok(false)`), or none was confirmed for the time to
    /// live. `begun` is when the last confirmed request was sent.
    pub fn start<F>(
        what: String,
        time_to_live: Duration,
        begun: Instant,
        renew: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<bool, BackendError>> + Send,
    {
        let (tell, lost) = watch::channel(None);
        let task = tokio::spawn(async move {
            let error = keep(&what, time_to_live, begun, renew).await;
            // Nobody listening is not an error.
            let _ = tell.send(Some(error));
        });
        Self { task, lost }
    }

    /// Stops renewing. From then on it counts as lost when its time is over.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// Waits until it is lost.
    pub async fn lost(&self) -> BackendError {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or_else(|| gone("the lock")),
            Err(_) => gone("the lock"),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep<F>(
    what: &str,
    time_to_live: Duration,
    begun: Instant,
    renew: impl Fn() -> F + Send + Sync,
) -> BackendError
where
    F: Future<Output = Result<bool, BackendError>> + Send,
{
    let mut deadline = begun + time_to_live;
    let mut pause = time_to_live / RENEWALS;
    loop {
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        let sent = Instant::now();
        match tokio::time::timeout_at(deadline, renew()).await {
            Ok(Ok(true)) => {
                deadline = sent + time_to_live;
                pause = time_to_live / RENEWALS;
            }
            Ok(Ok(false)) => return gone(what),
            Ok(Err(error)) if Instant::now() < deadline => {
                tracing::warn!(%error, "{what} cannot be renewed now");
                pause = RETRY_PAUSE;
            }
            Ok(Err(_)) | Err(_) => {
                let waited = humantime::format_duration(time_to_live);
                return BackendError::new(Failure::LockLost, format!("{what} could not be renewed for {waited}"));
            }
        }
    }
}

/// The removal of a lock node, if it is still the same.
pub(crate) fn removal(node: &Node) -> Change {
    Change { path: node.path.clone(), guard: Guard::Version(node.version), action: Action::Delete }
}

/// The guard of a change that needs a lock held.
pub(crate) fn guard(node: &Node) -> Guard {
    Guard::Held(Holding { version: node.version, owner: node.owner() })
}

/// A place that somebody may share.
pub type SharedPlace = Arc<dyn Place>;
