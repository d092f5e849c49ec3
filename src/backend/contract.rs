//! The contract: what topofs needs from a topology service. It does not name any service, and says nothing about files.
//!
//! A backend is one cell: the keys below one root of one service. tests/conformance checks this contract:
//!
//! - Every call ends within the operation timeout given at construction. For a list, each of its requests does, or, if
//!   it is a single one, no pause in its answer is longer.
//! - [`Backend::list`] shows one consistent point, [`Listing::at`]. [`Backend::follow`] goes on from such a point and
//!   misses nothing.
//! - [`Backend::apply`] applies all changes or none.
//! - Revisions have a total order within one backend: a later event has a greater revision.
//! - If the service hides a key because we may not read it, the key is not gone: the list, or the watch, fails with
//!   [`Failure::Denied`].
//! - Keys that are not valid file names are skipped and counted, never shown under another name.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use imbl::OrdMap;

use super::loading::Loading;
use super::mark::Mark;
use crate::error::UNCERTAIN;
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
    /// When the record was created. If numbers restart, this tells a record from its successor of the same name.
    pub created: Revision,
}

/// What a stored node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A record that people see as a file.
    Record,
    /// A lock or an election candidate, with its lease or session.
    Lock(Owner),
}

/// A stored node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its path below the root of the cell.
    pub path: TopoPath,
    /// The stored bytes.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// Record or lock.
    pub role: Role,
    /// When it was last written, if the service knows.
    pub modified: Option<SystemTime>,
}

impl Node {
    /// The lease or session of a lock; nobody for a record.
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
    /// Number of skipped keys, which cannot be file names.
    pub skipped: u64,
    /// How many of them could be, but end with a session and are no locks.
    pub ephemeral: u64,
    /// For [`Backend::compare`]: whoever has all that this shows is equal to the service at this point.
    pub mark: Mark,
}

/// What somebody shows of a cell, at one moment.
pub trait Shown: Send + Sync {
    /// The version of a node, record or lock; `None` if it is not shown.
    fn version(&self, path: &TopoPath) -> Option<Version>;

    /// Number of nodes.
    fn count(&self) -> usize;

    /// The newest revision that was seen, or that of the newest node.
    fn at(&self) -> Revision {
        let mut newest = Revision::default();
        self.each(&mut |_, version| newest = newest.max(version.written));
        newest
    }

    /// Tells all nodes, in no particular order.
    fn each(&self, tell: &mut dyn FnMut(&TopoPath, Version));
}

impl Listing {
    /// Whether a node was written before the version that is shown, and so is of another history: in one history, no
    /// node becomes older.
    pub(crate) fn contradicts(&self, shown: &dyn Shown) -> bool {
        let is_older =
            |node: &Node| shown.version(&node.path).is_some_and(|version| version.written > node.version.written);
        self.nodes.iter().any(is_older)
    }
}

/// How a service differs from what is shown.
#[derive(Debug, Clone)]
pub enum Compared {
    /// Everything that the service has: the caller compares.
    Whole(Listing),
    /// Only what differs.
    Differences {
        /// All nodes that are not shown, or have another version. Everything else is as in a whole list.
        changed: Listing,
        /// Shown nodes that the service did not have at that point.
        gone: Vec<TopoPath>,
    },
}

impl Compared {
    /// The point of the comparison, with the nodes that it has brought.
    pub fn listing(&self) -> &Listing {
        match self {
            Compared::Whole(listing) | Compared::Differences { changed: listing, .. } => listing,
        }
    }
}

/// One node, and the point at which it was read.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The node, if there is one.
    pub node: Option<Node>,
    /// When this was true.
    pub at: Revision,
}

/// One earlier state of a record.
#[derive(Debug, Clone)]
pub struct EarlierState {
    /// When the record came to be so.
    pub at: Revision,
    /// The record; `None` if it was deleted.
    pub node: Option<Node>,
}

/// The states of a record that a service still has.
#[derive(Debug, Clone, Default)]
pub struct Earlier {
    /// The states, the oldest first; the last is the present one.
    pub states: Vec<EarlierState>,
    /// False if there may be more of them, which were not read: there are too many.
    pub is_whole: bool,
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
    /// The node is a lock that must still be held with this proof. Only with [`Action::Check`].
    Held(Holding),
}

/// What happens to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create it or replace its value.
    Put(Bytes),
    /// Remove it.
    Delete,
    /// Nothing; only the guard counts.
    Check,
}

/// One guarded change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub path: TopoPath,
    /// Its condition.
    pub guard: Guard,
    /// What to do with it.
    pub action: Action,
}

impl Change {
    /// Fails if the guard is not met by the version of the record that is there, or of the lock.
    pub(crate) fn require(&self, record: Option<Version>, lock: Option<Version>) -> Result<(), BackendError> {
        let is_met = match self.guard {
            Guard::Any => self.action != Action::Delete || record.is_some(),
            Guard::Absent => record.is_none(),
            Guard::Version(version) => record == Some(version),
            Guard::Held(holding) => lock == Some(holding.version),
        };
        if is_met { Ok(()) } else { Err(BackendError::unmet(self.guard, &self.path, record)) }
    }

    /// The size of the new value, in bytes.
    pub(crate) fn value_len(&self) -> usize {
        match &self.action {
            Action::Put(value) => value.len(),
            Action::Delete | Action::Check => 0,
        }
    }
}

/// The result of applied changes.
#[derive(Debug, Clone)]
pub struct Applied {
    /// When.
    pub at: Revision,
    /// The new version of each node; `None` if it was deleted or only checked.
    pub versions: Vec<Option<Version>>,
}

/// The changes to one cell, as a part of a transaction over cells of one service.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The cell itself.
    pub cell: &'a dyn Backend,
    /// Its root, as its location spells it.
    pub root: &'a str,
    /// The changes.
    pub changes: &'a [Change],
}

/// What must follow changes that the connection of another cell makes. If it is dropped, nobody knows the outcome.
#[async_trait]
pub trait Along: Send {
    /// The changes were made, or not.
    async fn end(self: Box<Self>, outcome: Result<&Applied, &BackendError>);
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

/// Events in the order in which they happened. A batch without events is a sign of life.
#[derive(Debug, Clone, Default)]
pub struct WatchBatch {
    /// The events.
    pub events: Vec<WatchEvent>,
    /// The service has delivered everything up to here; [`Revision::default`] if unknown.
    pub at: Revision,
    /// Number of skipped events, for keys that cannot be file names.
    pub skipped: u64,
}

/// Longest time between two signs of life of a watch over a network, while nothing happens.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Ends with an error when the watch breaks, even if it breaks silently (the backend must notice within seconds).
pub type WatchStream = BoxStream<'static, Result<WatchBatch, BackendError>>;

/// The limits of a service.
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
    /// The value is larger than the service accepts.
    TooLarge,
    /// More changes than one transaction can contain.
    TooMany,
    /// The service has no room left.
    NoSpace,
    /// A lock that must be held is no longer held, or a place in its line is gone.
    LockLost,
    /// Somebody else holds a lock that the call needs.
    Locked,
    /// The wanted point of history is gone.
    Compacted,
    /// The service keeps no such point of history: none at all, or it has not come yet.
    NotKept,
    /// Anything else.
    Other,
}

/// A failed call. The text names the cause and never a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// The class of the failure.
    pub failure: Failure,
    /// The words of the service or the client.
    pub message: String,
}

impl BackendError {
    /// An error with its text.
    pub fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into() }
    }

    /// The same error. If the outcome is uncertain, its text says once that the change may have been carried out.
    pub fn uncertain_if(mut self, uncertain: bool) -> Self {
        if uncertain && !self.is_uncertain() {
            self.message.push_str(UNCERTAIN);
        }
        self
    }

    /// Whether the change may have been carried out although it failed.
    pub fn is_uncertain(&self) -> bool {
        self.message.ends_with(UNCERTAIN)
    }

    /// The error of an unmet guard.
    pub fn unmet(guard: Guard, path: &TopoPath, found: Option<Version>) -> Self {
        match (guard, found) {
            (Guard::Held(_), _) => Self::new(Failure::LockLost, format!("the lock {path} is no longer held")),
            (Guard::Absent, _) => Self::new(Failure::NodeExists, format!("node already exists: {path}")),
            (_, None) => Self::new(Failure::NoNode, format!("node doesn't exist: {path}")),
            (Guard::Version(wanted), Some(found)) => Self::new(
                Failure::BadVersion,
                format!("bad node version: {path} has version {}, expected {}", found.number, wanted.number),
            ),
            (Guard::Any, Some(_)) => Self::new(Failure::Other, format!("the change of {path} was refused")),
        }
    }
}

/// The lease or session that a lock lives with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u128);

impl Owner {
    /// Nobody: a key that a lock on Consul has left behind. It blocks nobody.
    pub const NOBODY: Owner = Owner(0);
    /// Neither a lease nor a session: a lock on etcd or ZooKeeper that was copied or restored. It does not end by
    /// itself, so it blocks everybody until somebody removes it. No lease or session has this number.
    pub const UNBOUND: Owner = Owner(u128::MAX);
}

/// Proof that a lock is held, for the guard of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// The version of the lock's node.
    pub version: Version,
    /// Its lease or session.
    pub owner: Owner,
}

/// Takes nodes one by one, and ends the list with its first error.
pub type Take<'a> = dyn FnMut(Node) -> Result<(), BackendError> + Send + 'a;

/// A place in the line for a lock.
#[async_trait]
pub trait Place: Send + Sync + std::fmt::Debug {
    /// The node of this place; `None` if the service has no queue and the lock is not held yet.
    fn node(&self) -> Option<Node>;

    /// Asks the service whether this place is the first, and takes the lock if the service has no queue. Fails with
    /// [`Failure::LockLost`] if the place is gone.
    async fn try_hold(&self) -> Result<Option<Node>, BackendError>;

    /// Waits until the place is lost, and says why: the lease or session has ended, or may have.
    async fn lost(&self) -> BackendError;

    /// Leaves the line, or releases the lock. It is not an error if the place is already gone. Nothing keeps the place
    /// alive any more, even if this fails: the caller tries again until the place is lost.
    async fn leave(&self) -> Result<Revision, BackendError>;
}

/// A shared place.
pub type SharedPlace = Arc<dyn Place>;

/// One cell of a topology service. See the module's contract.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// What the service takes.
    fn limits(&self) -> Limits;

    /// Whether a quiet watch gives a sign of life every [`SIGN_OF_LIFE`]. A service in this process need not do so.
    fn gives_signs_of_life(&self) -> bool {
        true
    }

    /// Whether the service says when each node was written.
    fn keeps_times(&self) -> bool {
        false
    }

    /// Everything below `dir` at one point. An empty listing is not an error.
    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError>;

    /// Everything below `dir` as it was at an earlier point, in no particular order; keeps none of it. Fails with
    /// [`Failure::Compacted`] if that point is gone, also while it is being read, and with [`Failure::NotKept`] if
    /// there is no such point.
    async fn list_at(&self, dir: &TopoPath, at: Revision, take: &mut Take<'_>) -> Result<(), BackendError> {
        let _ = (dir, at, take);
        Err(BackendError::new(Failure::NotKept, "this kind of service keeps no earlier revisions"))
    }

    /// How the cell differs from what is shown now. `mark` is that of the last list or comparison that the shower has
    /// merged. The differences are exact, whatever the shower has missed since then; a service that cannot know them
    /// for certain answers with the whole list. Fails with [`Failure::Compacted`] if the history is certainly another
    /// one. If it has only gone back, the point of the answer may tell: it is before something that is shown. A service
    /// for which this is much work spreads it over the given time; with none, the caller waits.
    async fn compare(&self, shown: &dyn Shown, mark: &Mark, time: Duration) -> Result<Compared, BackendError> {
        let _ = (shown, mark, time);
        self.list(&TopoPath::root()).await.map(Compared::Whole)
    }

    /// One node, as the service has it now (linearizable if the service offers that).
    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError>;

    /// All states of a record that the service still has, also of earlier lives, the oldest first; `None` if the
    /// service keeps only the present one. Bounded in number, bytes and time.
    async fn earlier(&self, path: &TopoPath) -> Result<Option<Earlier>, BackendError> {
        let _ = path;
        Ok(None)
    }

    /// When records were deleted, as far as the service still has that; `None` if it does not keep that.
    async fn deleted(&self) -> Result<Option<OrdMap<TopoPath, Vec<Revision>>>, BackendError> {
        Ok(None)
    }

    /// Why this service cannot hold such a record, as far as it can be known without asking. `holds_others` says
    /// whether there are records below the path.
    fn cannot_hold(&self, path: &TopoPath, value: &[u8], holds_others: bool) -> Option<String> {
        let _ = holds_others;
        let is_lock = || self.locked_dir(path).map(|dir| format!("it would be taken for a lock of {dir}"));
        too_large(value.len(), self.limits()).or_else(is_lock)
    }

    /// Names of what this kind of service knows about a node beside its version.
    fn attributes(&self) -> &'static [&'static str] {
        &[]
    }

    /// One of [`Backend::attributes`], as the service has it now.
    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        let _ = (path, name);
        Ok(None)
    }

    /// Applies all changes or none. An unmet guard is [`Failure::NodeExists`], [`Failure::NoNode`] or
    /// [`Failure::BadVersion`] ([`Failure::LockLost`] for [`Guard::Held`]). Fails with [`Failure::TooLarge`] or
    /// [`Failure::TooMany`] before it sends anything. [`Action::Delete`] of a missing node is [`Failure::NoNode`].
    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError>;

    /// Fails with [`Failure::TooMany`] or [`Failure::TooLarge`] if the service certainly takes no such transaction.
    /// Asks nobody.
    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        let _ = parts;
        Ok(())
    }

    /// Applies the changes of all parts or none, through this cell's connection, whatever the roots. Everything else is
    /// as for [`Backend::apply`], but the limits are those of [`Backend::refuse_parts`]. Only
    /// [`super::together::apply_together`] calls it, which does what must follow in each cell.
    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        let _ = parts;
        Err(BackendError::new(Failure::Other, "this service changes one cell at a time"))
    }

    /// Begins what must follow changes to this cell that the connection of any cell is about to make.
    fn along(&self, changes: &[Change]) -> Option<Box<dyn Along>> {
        let _ = changes;
        None
    }

    /// As whom requests are made, if cells of one service may be different users. Equal numbers mean the same.
    fn identity(&self) -> Option<u64> {
        None
    }

    /// How far the list of [`Backend::follow`] has come. A service that answers at once need not say so.
    fn loading(&self) -> Loading {
        Loading::default()
    }

    /// Everything below the root at one point, and everything that happens there afterwards.
    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError>;

    /// The same after an absence, with the differences from what is shown if they can be known, as for
    /// [`Backend::compare`]. If the history may be another one, the answer is a whole list.
    async fn follow_again(&self, shown: &dyn Shown, mark: &Mark) -> Result<(Compared, WatchStream), BackendError> {
        let _ = (shown, mark);
        let (listing, stream) = self.follow().await?;
        Ok((Compared::Whole(listing), stream))
    }

    /// The directory to whose lock a lock node belongs; `None` if Vitess keeps no locks at that path.
    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath>;

    /// Whether the service has a queue of waiters for a lock, in the order of [`Version::written`].
    fn has_queue(&self) -> bool {
        true
    }

    /// Stands in line for the lock of a directory. Fails with [`Failure::NoNode`] if nothing is stored there, unless
    /// [`crate::record::layout::needs_no_records`].
    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError>;

    /// Removes a lock node, whoever holds it, if it is still the same node.
    async fn break_lock(&self, node: &Node) -> Result<(), BackendError>;

    /// Removes what a service keeps for the locks of a directory while nobody holds or wants one. Returns the removed
    /// keys.
    async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        let _ = dir;
        Ok(None)
    }

    /// Reloads passwords and other secrets from their files, for the next connection. A backend also does so by itself
    /// when its service refuses them.
    async fn reread_secrets(&self) {}

    /// How long a lease or session lasts without renewal; `None` if the service does not say.
    async fn time_left(&self, owner: Owner) -> Result<Option<Duration>, BackendError> {
        let _ = owner;
        Ok(None)
    }
}

/// Why a value of this size is refused.
pub(crate) fn too_large(bytes: usize, limits: Limits) -> Option<String> {
    (bytes > limits.value).then(|| format!("{bytes} bytes, but the service accepts {}", limits.value))
}

/// Refuses what the service would refuse, before sending anything.
pub(crate) fn check_limits(changes: &[Change], limits: Limits) -> Result<(), BackendError> {
    check_most("changes", changes.len(), limits.changes)?;
    check_values(changes, limits)
}

/// Refuses a transaction with more of something than the service accepts.
pub(crate) fn check_most(what: &str, found: usize, most: usize) -> Result<(), BackendError> {
    if found <= most {
        return Ok(());
    }
    let message = format!("{found} {what}, but the service accepts {most} in one transaction");
    Err(BackendError::new(Failure::TooMany, message))
}

/// Refuses values that are too large.
pub(crate) fn check_values(changes: &[Change], limits: Limits) -> Result<(), BackendError> {
    for change in changes {
        if let Action::Put(value) = &change.action
            && let Some(reason) = too_large(value.len(), limits)
        {
            return Err(BackendError::new(Failure::TooLarge, format!("{}: {reason}", change.path)));
        }
    }
    Ok(())
}
