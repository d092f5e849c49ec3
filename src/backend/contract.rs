//! The contract: what topofs needs of a topology service. It names no service, and nothing about files.
//!
//! A backend is one cell: the keys below one root of one service. Contract, checked by tests/conformance:
//!
//! - Every call ends within the operation time-out given at construction (a list: each of its requests).
//! - [`Backend::list`] shows one consistent point, named by [`Listing::at`]; [`Backend::follow`] goes on from such a point and
//!   misses nothing.
//! - [`Backend::apply`] applies all changes or none.
//! - Revisions are totally ordered within one backend: what happened later has the greater revision.
//! - What the service leaves out because it may not be read is not gone: the list, or the watch, fails with [`Failure::Denied`].
//! - Keys that are not valid file names are skipped and counted, never shown under another name.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::name::TopoPath;

/// A point in the history of one service. Greater is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// The version of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// What Vitess's tools print: ModRevision, Stat.version or ModifyIndex.
    pub number: u64,
    /// When this version was written.
    pub written: Revision,
    /// When the record was created: tells a record from its successor of the same name where numbers restart.
    pub created: Revision,
}

/// What a stored node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A record that people see as a file.
    Record,
    /// A lock or an election candidate, and what it lives with.
    Lock(Owner),
}

/// A stored node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is, relative to the cell's root.
    pub path: TopoPath,
    /// The stored bytes.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// Record or lock.
    pub role: Role,
    /// When it was last written, where the service knows.
    pub modified: Option<SystemTime>,
}

impl Node {
    /// What a lock lives with; nobody for a record.
    pub fn owner(&self) -> Owner {
        match self.role {
            Role::Lock(owner) => owner,
            Role::Record => Owner::NOBODY,
        }
    }
}

/// A whole subtree at one point.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All nodes, in no particular order.
    pub nodes: Vec<Node>,
    /// The point that the nodes show.
    pub at: Revision,
    /// Keys that cannot be file names and were left out.
    pub skipped: u64,
}

/// One node, and the point at which it was read.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The node, if there is one.
    pub node: Option<Node>,
    /// When this was true.
    pub at: Revision,
}

/// The condition of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// None.
    Any,
    /// The node must not exist.
    Absent,
    /// The node must have this version.
    Version(Version),
    /// The node is a lock that must still be held so. Goes with [`Action::Check`].
    Held(Holding),
}

/// What happens to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create it or replace its value.
    Put(Bytes),
    /// Remove it.
    Delete,
    /// Nothing: only the guard counts.
    Check,
}

/// One guarded change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub path: TopoPath,
    /// Its condition.
    pub guard: Guard,
    /// What is done to it.
    pub action: Action,
}

/// A list of changes that was applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// When.
    pub at: Revision,
    /// The new version of each change's node; `None` where there is none (deleted or only checked).
    pub versions: Vec<Option<Version>>,
}

/// A node that changed.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// Which.
    pub path: TopoPath,
    /// The node now; `None` if it was deleted.
    pub node: Option<Node>,
    /// When.
    pub at: Revision,
}

/// Events in the order in which they happened. Without events: a sign of life.
#[derive(Debug, Clone, Default)]
pub struct WatchBatch {
    /// The events.
    pub events: Vec<WatchEvent>,
    /// The service has delivered everything up to here; [`Revision::default`] if it does not say.
    pub at: Revision,
    /// Events of keys that cannot be file names.
    pub skipped: u64,
}

/// How often a watch over a network gives a sign of life, at least, while nothing happens.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Ends with an error when the watch breaks, also when it breaks silently (the backend must notice within seconds).
pub type WatchStream = BoxStream<'static, Result<WatchBatch, BackendError>>;

/// What a service takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest value, in bytes.
    pub value: usize,
    /// Most changes in one [`Backend::apply`].
    pub changes: usize,
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A guarded node does not exist.
    NoNode,
    /// A node that must be absent exists.
    NodeExists,
    /// A guarded node has another version.
    BadVersion,
    /// No answer in time, or no connection.
    Unreachable,
    /// The service refused the credentials or the access.
    Denied,
    /// The value is larger than the service takes.
    TooLarge,
    /// More changes than one transaction takes.
    TooMany,
    /// The service has no room left.
    NoSpace,
    /// A lock that must be held is not held any more, or a place in its line is gone.
    LockLost,
    /// The wanted point of history is gone.
    Compacted,
    /// Anything else.
    Other,
}

/// What the error of a change says at its end if no answer has told whether it was carried out.
const UNCERTAIN: &str = " (it may have been carried out)";

/// A failed call. The text names the cause and never a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// The class of the failure.
    pub failure: Failure,
    /// What the service or the client said.
    pub message: String,
}

impl BackendError {
    /// An error with its text.
    pub fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into() }
    }

    /// The same error, which says if needed that the change may have been carried out all the same. It says so once.
    pub fn uncertain_if(mut self, uncertain: bool) -> Self {
        if uncertain && !self.is_uncertain() {
            self.message.push_str(UNCERTAIN);
        }
        self
    }

    /// Whether the change may have been carried out all the same.
    pub fn is_uncertain(&self) -> bool {
        self.message.ends_with(UNCERTAIN)
    }

    /// The error of an unmet guard.
    pub fn unmet(guard: Guard, path: &TopoPath, found: Option<Version>) -> Self {
        match (guard, found) {
            (Guard::Held(_), _) => Self::new(Failure::LockLost, format!("the lock {path} is not held any more")),
            (Guard::Absent, _) => Self::new(Failure::NodeExists, format!("node already exists: {path}")),
            (_, None) => Self::new(Failure::NoNode, format!("node doesn't exist: {path}")),
            (Guard::Version(wanted), Some(found)) => Self::new(
                Failure::BadVersion,
                format!("bad node version: {path} has version {}, expected {}", found.number, wanted.number),
            ),
            (Guard::Any, Some(_)) => Self::new(Failure::Other, format!("change of {path} was refused")),
        }
    }
}

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

/// A place that somebody may share.
pub type SharedPlace = Arc<dyn Place>;

/// One cell of a topology service. See the module's contract.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// What the service takes.
    fn limits(&self) -> Limits;

    /// Whether a quiet watch gives a sign of life every [`SIGN_OF_LIFE`]. A service in this process need not.
    fn gives_signs_of_life(&self) -> bool {
        true
    }

    /// Everything below `dir` at one point. An empty listing is not an error.
    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError>;

    /// One node, as the service has it now (linearizable where the service offers it).
    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError>;

    /// Names of what this kind of service can tell of a node beside its version.
    fn attributes(&self) -> &'static [&'static str] {
        &[]
    }

    /// One of [`Backend::attributes`], as the service has it now.
    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        let _ = (path, name);
        Ok(None)
    }

    /// Applies all changes or none. Fails with [`Failure::NodeExists`], [`Failure::NoNode`] or [`Failure::BadVersion`] for
    /// an unmet guard ([`Failure::LockLost`] for [`Guard::Held`]), [`Failure::TooLarge`] and [`Failure::TooMany`] before anything is sent. [`Action::Delete`] of a missing
    /// node is [`Failure::NoNode`].
    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError>;

    /// Everything below the root at one point, and everything that happens there afterwards.
    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError>;

    /// The directory whose lock a lock node is; `None` if it is not where Vitess keeps locks.
    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath>;

    /// Whether those who wait for a lock stand in a queue of the service, in the order of [`Version::written`].
    fn has_queue(&self) -> bool {
        true
    }

    /// Stands in line for the lock of a directory. Fails with [`Failure::NoNode`] if nothing is stored there, unless
    /// [`crate::record::layout::needs_no_records`].
    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError>;

    /// Takes a lock node away, whoever holds it, if it is still the same one.
    async fn break_lock(&self, node: &Node) -> Result<(), BackendError>;

    /// Takes away what a service keeps of a directory's locks although nobody holds or wants one. Returns what was removed.
    async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        let _ = dir;
        Ok(None)
    }

    /// Reads passwords and the like again from their files, for the next connection. A service that refuses them is a reason, too.
    async fn reread_secrets(&self) {}

    /// How long a lease or session has left unless it is renewed; `None` if the service does not tell.
    async fn time_left(&self, owner: Owner) -> Result<Option<Duration>, BackendError> {
        let _ = owner;
        Ok(None)
    }
}

/// Refuses what the service would refuse, before anything is sent.
pub(crate) fn check_limits(changes: &[Change], limits: Limits) -> Result<(), BackendError> {
    if changes.len() > limits.changes {
        return Err(BackendError::new(
            Failure::TooMany,
            format!("{} changes, the service takes {} in one transaction", changes.len(), limits.changes),
        ));
    }
    for change in changes {
        if let Action::Put(value) = &change.action
            && value.len() > limits.value
        {
            return Err(BackendError::new(
                Failure::TooLarge,
                format!("{}: {} bytes, the service takes {}", change.path, value.len(), limits.value),
            ));
        }
    }
    Ok(())
}
