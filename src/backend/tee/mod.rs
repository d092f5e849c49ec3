//! Two services as one: every update goes to both. The primary decides everything that a caller sees, so all errors are
//! its own; the secondary follows. Must never fail or delay a caller because of the secondary for longer than
//! [`PATIENCE`], and never change anything at the primary because of the secondary.
//!
//! `bring` brings records at the secondary to what the primary has, `notes` knows which could not be brought, `repair`
//! compares everything, `lock` takes a lock at both, `away` says how long to wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::contract::{
    Action, Along, Applied, Backend, BackendError, Change, Compared, Earlier, Fetched, Guard, Limits, Listing, Node,
    Owner, Part, Revision, Role, SharedPlace, Shown, Take, Version, WatchStream, check_limits,
};
use super::loading::Loading;
use super::lock::guard;
use super::mark::Mark;
use crate::name::TopoPath;
use crate::record::layout::Key;

mod away;
mod bring;
mod lock;
mod notes;
mod repair;

pub use away::Answers;
pub use notes::{Failed, Failures};
use notes::{Notes, Work};
pub use repair::Repaired;

/// Longest time that a caller waits for the secondary. While the secondary does not answer, nobody waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// How two services are put together.
#[derive(Debug, Clone)]
pub struct TeeSettings {
    /// Where the secondary is, for people.
    pub secondary: String,
    /// Time limit for one call, the same as that of both services.
    pub timeout: Duration,
    /// Take locks at the secondary first.
    pub reverse_lock_order: bool,
    /// Whether the content of a lock says that it is for one save only. If the secondary cannot give such a lock, the
    /// primary's is enough: the save changes only the primary then.
    pub is_for_save: fn(&[u8]) -> bool,
    /// The content of a lock in a few words, for an error.
    pub in_words: fn(&[u8]) -> String,
    /// Who hears of the secondary.
    pub hears: Option<Arc<dyn Hears>>,
}

/// Hears what a tee has written at the secondary, and whether the secondary is there.
pub trait Hears: Send + Sync + std::fmt::Debug {
    /// These changes were applied.
    fn wrote(&self, changes: &[Change], applied: &Applied);

    /// Whether the secondary answers.
    fn answers(&self) -> Answers;
}

/// Two services as one. Clones are the same tee.
#[derive(Debug, Clone)]
pub struct Tee(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    primary: Arc<dyn Backend>,
    secondary: Arc<dyn Backend>,
    settings: TeeSettings,
    notes: Notes,
    /// For each lock that is held at both: its node at the primary, and the guard at the secondary.
    held: Mutex<HashMap<(TopoPath, Version), Change>>,
    repairing: tokio::sync::Semaphore,
}

/// Whether the secondary gets a record as the primary has it. A CellInfo record says where a cell is, which differs.
pub fn is_mirrored(path: &TopoPath) -> bool {
    !matches!(Key::in_global(path), Some(Key::CellInfo(_)))
}

/// A record; locks are none.
fn record(fetched: Option<Node>) -> Option<Node> {
    fetched.filter(|node| node.role == Role::Record)
}

impl Tee {
    /// Puts two services together.
    pub fn new(primary: Arc<dyn Backend>, secondary: Arc<dyn Backend>, settings: TeeSettings) -> Self {
        Self(Arc::new(Shared {
            primary,
            secondary,
            settings,
            notes: Notes::default(),
            held: Mutex::default(),
            repairing: tokio::sync::Semaphore::new(1),
        }))
    }

    /// Updates that did not reach the secondary, as far as known.
    pub fn failures(&self) -> Failures {
        self.0.notes.failures()
    }

    /// Since when the secondary does not answer our updates, and the last reason.
    pub fn away(&self) -> Option<(SystemTime, Arc<str>)> {
        self.0.notes.away_since()
    }

    /// Whether updates are known that did not reach the secondary.
    pub fn has_failures(&self) -> bool {
        self.0.notes.has_failures()
    }

    /// Whether an update of a record is on its way to the secondary.
    pub fn is_under_way(&self, path: &TopoPath) -> bool {
        self.0.notes.is_under_way(path)
    }

    /// The record is the same at both, whatever has failed before.
    pub fn note_same(&self, path: &TopoPath) {
        self.0.notes.forget(std::slice::from_ref(path), self.0.notes.now());
    }

    /// Waits until the updates that are under way have reached the secondary, or failed.
    pub async fn settle(&self, patience: Duration) {
        self.0.notes.settle(patience).await;
    }

    /// An error of the secondary, which says so.
    fn explain(&self, mut error: BackendError) -> BackendError {
        error.message = format!("the secondary ({}): {}", self.0.settings.secondary, error.message);
        error
    }

    /// The guards at the secondary for the locks that guard a change at the primary.
    fn fences(&self, changes: &[Change]) -> Vec<Change> {
        let held = self.0.held.lock();
        let fence = |change: &Change| match change.guard {
            Guard::Held(holding) => held.get(&(change.path.clone(), holding.version)).cloned(),
            _ => None,
        };
        changes.iter().filter_map(fence).collect()
    }

    /// Begins an update of records that the secondary gets, too; `None` if there is none among the changes.
    fn begin(&self, changes: &[Change]) -> Option<Bringing> {
        let paths: Vec<TopoPath> =
            changes.iter().filter(|change| is_update(change)).map(|change| change.path.clone()).collect();
        (!paths.is_empty()).then(|| {
            let work = Work { fences: self.fences(changes), _under_way: self.0.notes.begin(&paths), paths };
            Bringing { tee: self.clone(), begun: Instant::now(), changes: changes.to_vec(), work: Some(work) }
        })
    }

    /// A lock is held at both.
    fn note_held(&self, primary: &Node, secondary: &Node) {
        let fence = Change { path: secondary.path.clone(), guard: guard(secondary), action: Action::Check };
        self.0.held.lock().insert((primary.path.clone(), primary.version), fence);
    }

    /// The guard at the secondary for a lock that is held at both, by its node at the primary.
    pub fn fence_at_secondary(&self, primary: &Node) -> Option<Change> {
        self.0.held.lock().get(&(primary.path.clone(), primary.version)).cloned()
    }

    /// Whether a lock at the secondary is held by this tee, together with the one at the primary.
    pub fn holds_at_secondary(&self, node: &Node) -> bool {
        let fence = Change { path: node.path.clone(), guard: guard(node), action: Action::Check };
        self.0.held.lock().values().any(|held| *held == fence)
    }

    fn note_left(&self, primary: &Node) {
        self.0.held.lock().remove(&(primary.path.clone(), primary.version));
    }

    /// Waits for an update of the secondary that began in a call of this age, but not for long.
    async fn wait_for(&self, work: Option<tokio::sync::oneshot::Receiver<()>>, begun: Instant) {
        let Some(work) = work.filter(|_| !self.0.notes.is_away()) else { return };
        let patience = PATIENCE.min(self.0.settings.timeout.saturating_sub(begun.elapsed()));
        if tokio::time::timeout(patience, work).await.is_err() {
            self.0.notes.away();
            tracing::warn!(secondary = self.0.settings.secondary, "the secondary is slow: nobody waits for it");
        }
    }
}

/// An update of the primary that is under way. If it is dropped, nobody knows what the primary has, and the secondary
/// is brought to that.
struct Bringing {
    tee: Tee,
    begun: Instant,
    changes: Vec<Change>,
    work: Option<Work>,
}

impl Bringing {
    /// The primary has answered.
    async fn end(mut self, outcome: Result<&Applied, &BackendError>) {
        let Some(work) = self.work.take() else { return };
        match outcome {
            Ok(applied) => {
                let told = self.tee.bring_later(work, Some(results(&self.changes, applied)));
                self.tee.wait_for(told, self.begun).await;
            }
            Err(error) if error.is_uncertain() => drop(self.tee.bring_later(work, None)),
            Err(_) => {}
        }
    }
}

impl Drop for Bringing {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            drop(self.tee.bring_later(work, None));
        }
    }
}

/// The same, if the connection of another cell updates the primary.
struct Update {
    at_primary: Option<Box<dyn Along>>,
    at_secondary: Option<Bringing>,
}

#[async_trait]
impl Along for Update {
    async fn end(self: Box<Self>, outcome: Result<&Applied, &BackendError>) {
        if let Some(along) = self.at_primary {
            along.end(outcome).await;
        }
        if let Some(bringing) = self.at_secondary {
            bringing.end(outcome).await;
        }
    }
}

/// What the primary has after a change that was applied.
fn results(changes: &[Change], applied: &Applied) -> Vec<Option<Node>> {
    let changed = changes.iter().zip(&applied.versions).filter(|(change, _)| is_update(change));
    changed
        .map(|(change, version)| match (&change.action, version) {
            (Action::Put(value), Some(version)) => Some(Node {
                path: change.path.clone(),
                value: value.clone(),
                version: *version,
                role: Role::Record,
                modified: None,
            }),
            _ => None,
        })
        .collect()
}

fn is_update(change: &Change) -> bool {
    change.action != Action::Check && is_mirrored(&change.path)
}

#[async_trait]
impl Backend for Tee {
    fn limits(&self) -> Limits {
        let (one, other) = (self.0.primary.limits(), self.0.secondary.limits());
        Limits { value: one.value.min(other.value), changes: one.changes.min(other.changes) }
    }

    fn gives_signs_of_life(&self) -> bool {
        self.0.primary.gives_signs_of_life()
    }

    fn keeps_times(&self) -> bool {
        self.0.primary.keeps_times()
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        self.0.primary.list(dir).await
    }

    async fn compare(&self, shown: &dyn Shown, mark: &Mark, time: Duration) -> Result<Compared, BackendError> {
        self.0.primary.compare(shown, mark, time).await
    }

    /// Revisions are those of the primary.
    async fn list_at(&self, dir: &TopoPath, at: Revision, take: &mut Take<'_>) -> Result<(), BackendError> {
        self.0.primary.list_at(dir, at, take).await
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        self.0.primary.get(path).await
    }

    async fn earlier(&self, path: &TopoPath) -> Result<Option<Earlier>, BackendError> {
        self.0.primary.earlier(path).await
    }

    async fn deleted(&self) -> Result<Option<OrdMap<TopoPath, Vec<Revision>>>, BackendError> {
        self.0.primary.deleted().await
    }

    fn cannot_hold(&self, path: &TopoPath, value: &[u8], holds_others: bool) -> Option<String> {
        let at_primary = self.0.primary.cannot_hold(path, value, holds_others);
        at_primary.or_else(|| self.0.secondary.cannot_hold(path, value, holds_others))
    }

    fn attributes(&self) -> &'static [&'static str] {
        self.0.primary.attributes()
    }

    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        self.0.primary.attribute(path, name).await
    }

    /// The primary applies all changes or none. Then the secondary is brought to the same state. A caller that gives up
    /// in between does not end that.
    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        check_limits(changes, self.limits())?;
        let update = self.begin(changes);
        let outcome = self.0.primary.apply(changes).await;
        if let Some(update) = update {
            update.end(outcome.as_ref()).await;
        }
        outcome
    }

    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        self.0.primary.refuse_parts(parts)?;
        self.0.secondary.refuse_parts(parts)
    }

    /// At the primary. Each cell brings its own secondary along.
    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.0.primary.apply_parts(parts).await
    }

    fn along(&self, changes: &[Change]) -> Option<Box<dyn Along>> {
        let at_primary = self.0.primary.along(changes);
        Some(Box::new(Update { at_primary, at_secondary: self.begin(changes) }))
    }

    fn identity(&self) -> Option<u64> {
        self.0.primary.identity()
    }

    fn loading(&self) -> Loading {
        self.0.primary.loading()
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        self.0.primary.follow().await
    }

    async fn follow_again(&self, shown: &dyn Shown, mark: &Mark) -> Result<(Compared, WatchStream), BackendError> {
        self.0.primary.follow_again(shown, mark).await
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        self.0.primary.locked_dir(node)
    }

    /// The line of the service at which locks are taken first is the one that counts.
    fn has_queue(&self) -> bool {
        if self.0.settings.reverse_lock_order { self.0.secondary.has_queue() } else { self.0.primary.has_queue() }
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        lock::enter(self, dir, contents).await
    }

    /// A tee takes both locks with the same content, so both are taken away.
    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        self.0.primary.break_lock(node).await?;
        let Some(dir) = self.0.primary.locked_dir(&node.path) else { return Ok(()) };
        if let Err(error) = self.break_at_secondary(&dir, node).await {
            tracing::warn!(%error, %dir, "the lock at the secondary is not taken away");
        }
        Ok(())
    }

    async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        let swept = self.0.primary.sweep_locks(dir).await?;
        match self.0.secondary.sweep_locks(dir).await {
            Ok(there) => Ok(swept.or(there)),
            Err(error) => {
                tracing::warn!(%error, %dir, "what is left of locks at the secondary cannot be removed");
                Ok(swept)
            }
        }
    }

    async fn reread_secrets(&self) {
        self.0.primary.reread_secrets().await;
        self.0.secondary.reread_secrets().await;
    }

    async fn time_left(&self, owner: Owner) -> Result<Option<Duration>, BackendError> {
        self.0.primary.time_left(owner).await
    }
}
