//! Locks of the directories of a cell: standing in line and waiting.
//!
//! The service says whose turn it is. The mirror says when to ask: it hears of every lock that comes and goes, so
//! hundreds of waiters cost the service only their places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cell::Cell;
use crate::backend::lock::{first, guard};
use crate::backend::{Action, Change, Failure, Fetched, Node, Owner, SharedPlace};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Health, Snapshot};
use crate::name::TopoPath;

/// How long to believe the mirror that somebody is before us.
const TRUST: Duration = Duration::from_secs(10);
/// First and longest pause before asking the service again, if the mirror thinks that it is our turn.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A place in the line for the lock of a directory.
#[derive(Debug)]
pub struct LockPlace {
    cell: Arc<Cell>,
    dir: TopoPath,
    place: SharedPlace,
    /// Needed if the service has no queue.
    ticket: Option<u64>,
    held: Mutex<Option<Node>>,
    refused: CancellationToken,
}

/// The holders of a cell's locks at the last report, at whatever location the cell had then; `None` if it was never
/// loaded.
pub type KnownLocks = Arc<tokio::sync::Mutex<Option<BTreeMap<TopoPath, Node>>>>;

/// Follows who holds the locks of a cell.
#[derive(Debug)]
pub struct Holders {
    cell: Arc<Cell>,
    changes: tokio::sync::watch::Receiver<u64>,
    /// Held while reporting, so nobody else reports the same locks.
    known: tokio::sync::OwnedMutexGuard<Option<BTreeMap<TopoPath, Node>>>,
}

/// A lock with a new holder.
#[derive(Debug)]
pub struct HolderChange {
    /// The directory that is locked.
    pub dir: TopoPath,
    /// The holder before.
    pub before: Option<Node>,
    /// The holder now.
    pub now: Option<Node>,
}

impl Holders {
    /// Starts with the first list of the cell, without asking for it. The locks in that list are not new, unless the
    /// cell had another location before.
    pub async fn of(cell: Arc<Cell>, known: &KnownLocks) -> Self {
        let mut known = known.clone().lock_owned().await;
        cell.mirror.loaded().await;
        let mut changes = cell.mirror.lock_changes();
        match &*known {
            None => *known = Some(cell.holders(&cell.mirror.snapshot())),
            Some(_) => changes.mark_changed(),
        }
        Self { cell, changes, known }
    }

    /// Waits until locks may have new holders, and returns those that have. The caller may give up at any moment.
    pub async fn changed(&mut self) -> Vec<HolderChange> {
        // The mirror lives as long as its cell, so waiting cannot fail.
        let _ = self.changes.changed().await;
        let mut now = self.cell.holders(&self.cell.mirror.snapshot());
        let mut before = self.known.replace(now.clone()).unwrap_or_default();
        let dirs: BTreeSet<TopoPath> = before.keys().chain(now.keys()).cloned().collect();
        let changes = dirs.into_iter().map(|dir| {
            let (before, now) = (before.remove(&dir), now.remove(&dir));
            HolderChange { dir, before, now }
        });
        let holder = |node: &Option<Node>| node.as_ref().map(|node| (node.version, node.value.clone()));
        changes.filter(|change| holder(&change.before) != holder(&change.now)).collect()
    }
}

impl Cell {
    /// The nodes of a directory's lock: first the holder, then the next ones.
    pub fn line(&self, snapshot: &Snapshot, dir: &TopoPath) -> Vec<Node> {
        let below = snapshot.locks.range(dir.clone()..).take_while(|(path, _)| path.below(dir).is_some());
        let mut line: Vec<Node> = below
            .filter(|(path, _)| self.backend.locked_dir(path).as_ref() == Some(dir))
            .map(|(_, node)| node.clone())
            .collect();
        line.sort_by_key(|node| node.version.written);
        line
    }

    /// Who holds the lock of a directory, as far as the mirror knows.
    pub fn holder(&self, snapshot: &Snapshot, dir: &TopoPath) -> Option<Node> {
        self.line(snapshot, dir).into_iter().find(|node| node.owner() != Owner::NOBODY)
    }

    /// Who holds the lock of a directory, as the service has it now.
    pub async fn holder_now(&self, dir: &TopoPath) -> Result<Option<Node>> {
        let listing = self.ending.answer(false, self.backend.list(dir)).await.map_err(|error| self.explain(error))?;
        Ok(first(&*self.backend, dir, listing.nodes))
    }

    /// All holders of locks, by directory.
    fn holders(&self, snapshot: &Snapshot) -> BTreeMap<TopoPath, Node> {
        let dirs = self.locked_dirs(snapshot);
        dirs.into_iter().filter_map(|dir| self.holder(snapshot, &dir).map(|node| (dir, node))).collect()
    }

    /// The directories with a lock that somebody holds or waits for.
    pub fn locked_dirs(&self, snapshot: &Snapshot) -> Vec<TopoPath> {
        let mut dirs: Vec<TopoPath> = snapshot.locks.keys().filter_map(|path| self.backend.locked_dir(path)).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// The directory to whose lock a node belongs.
    pub fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        self.backend.locked_dir(node)
    }

    /// Whether the service still has a lock node as the mirror shows it. If not, this updates the mirror: another lock
    /// may have the same name by now, even one of the same session.
    pub async fn still_locked(&self, node: &Node) -> Result<bool> {
        let fetched = self.fetch(&node.path).await?;
        let same = |now: Node| now.owner() == node.owner() && now.version.created == node.version.created;
        Ok(fetched.node.is_some_and(same))
    }

    /// Stands in line for the lock of a directory. Fails with ENOENT if nothing is stored there.
    pub async fn stand_in_line(self: &Arc<Self>, dir: &TopoPath, contents: &Bytes) -> Result<LockPlace> {
        self.refuse_if_down()?;
        let place =
            self.ending.answer(true, self.backend.enter(dir, contents)).await.map_err(|error| self.explain(error))?;
        let ticket = (!self.backend.has_queue()).then(|| self.turns.take(dir));
        let (held, refused) = (Mutex::default(), CancellationToken::new());
        Ok(LockPlace { cell: self.clone(), dir: dir.clone(), place, ticket, held, refused })
    }

    /// Takes a lock away from its holder, if it is still the same lock.
    pub async fn break_lock(&self, node: &Node) -> Result<()> {
        self.ending.answer(true, self.backend.break_lock(node)).await.map_err(|error| self.explain(error))?;
        self.fetch(&node.path).await.map(drop)
    }

    /// Removes what is left of the locks of a directory while nobody holds or wants one.
    pub async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>> {
        self.ending.answer(true, self.backend.sweep_locks(dir)).await.map_err(|error| self.explain(error))
    }

    /// How long a lock lasts if nothing keeps it alive; `None` if unknown.
    pub async fn time_left(&self, owner: Owner) -> Option<Duration> {
        self.backend.time_left(owner).await.ok().flatten()
    }
}

impl LockPlace {
    /// The cell of the lock.
    pub fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// The directory that is locked.
    pub fn dir(&self) -> &TopoPath {
        &self.dir
    }

    /// Whether a node stands for this place.
    pub fn is(&self, node: &Node) -> bool {
        self.place.node().is_some_and(|own| own.path == node.path && own.version.created == node.version.created)
    }

    /// Tells the mirror of the place.
    pub fn announce(&self) {
        if let Some(node) = self.place.node() {
            self.cell.mirror.observe(&node.path, &Fetched { at: node.version.written, node: Some(node.clone()) });
        }
    }

    /// The lock's node, once it is held.
    pub fn node(&self) -> Option<Node> {
        self.held.lock().clone()
    }

    /// The guard of a change that needs the lock.
    pub fn fence(&self) -> Option<Change> {
        let node = self.node()?;
        Some(Change { path: node.path.clone(), guard: guard(&node), action: Action::Check })
    }

    /// Takes the lock if it is free. Returns whether it is held now.
    pub async fn try_hold(&self) -> Result<bool> {
        let held =
            self.cell.ending.answer(true, self.place.try_hold()).await.map_err(|error| self.cell.explain(error))?;
        let Some(node) = held else {
            self.refused.cancel();
            return Ok(false);
        };
        *self.held.lock() = Some(node);
        self.announce();
        Ok(true)
    }

    /// Cancelled when the service has said once that this place does not get the lock yet.
    pub fn refused(&self) -> &CancellationToken {
        &self.refused
    }

    /// Waits for the lock. The caller may give up at any moment, and the place stays. Fails with EIO if the place is
    /// lost.
    pub async fn hold(&self) -> Result<()> {
        let mut changes = self.cell.mirror.lock_changes();
        let mut turns = self.cell.turns.changes();
        let mut pause = PAUSES.0;
        let mut trusted = Instant::now();
        loop {
            changes.mark_unchanged();
            turns.mark_unchanged();
            let waits = self.somebody_is_before() && trusted.elapsed() < TRUST;
            if !waits {
                trusted = Instant::now();
                match self.try_hold().await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    // The service may come back while the place is alive.
                    Err(error) if error.kind == Kind::Unreachable => tracing::debug!(%error, "waiting on"),
                    Err(error) => return Err(error),
                }
            }
            let longest = if waits { TRUST.saturating_sub(trusted.elapsed()) } else { pause };
            tokio::select! {
                error = self.lost() => return Err(error),
                _ = changes.changed() => pause = PAUSES.0,
                _ = turns.changed() => pause = PAUSES.0,
                () = tokio::time::sleep(longest) => pause = (pause * 2).min(PAUSES.1),
            }
        }
    }

    /// As far as this mount knows.
    fn somebody_is_before(&self) -> bool {
        if let Some(ticket) = self.ticket
            && !self.cell.turns.is_next(&self.dir, ticket)
        {
            return true;
        }
        if self.cell.mirror.health() != Health::Live {
            return false;
        }
        let snapshot = self.cell.mirror.snapshot();
        match self.place.node() {
            Some(own) => {
                let first = self.cell.holder(&snapshot, &self.dir);
                first.is_some_and(|first| first.version.written < own.version.written)
            }
            None => self.cell.holder(&snapshot, &self.dir).is_some(),
        }
    }

    /// Waits until the place, or the lock, is lost.
    pub async fn lost(&self) -> Error {
        let gone = async {
            match (self.node(), &self.cell.second) {
                (Some(node), Some(second)) => second.lock_gone(&node).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.place.lost() => self.cell.explain(error),
            error = gone => self.cell.explain(error),
        }
    }

    /// Leaves the line, or releases the lock. If this fails, the caller must try again until the place is lost.
    pub async fn leave(&self) -> Result<()> {
        let outcome = self.cell.ending.answer(true, self.place.leave()).await;
        let path = self.node().or_else(|| self.place.node()).map(|node| node.path);
        let outcome = match (outcome, path) {
            (Ok(at), Some(path)) => {
                self.cell.mirror.released(&path, at);
                Ok(())
            }
            (Ok(_), None) => Ok(()),
            (Err(error), _) if error.failure == Failure::LockLost => Ok(()),
            (Err(error), _) => Err(self.cell.explain(error)),
        };
        // The next waiter may try, even if the service does not know of it yet.
        if let Some(ticket) = self.ticket {
            self.cell.turns.give_up(&self.dir, ticket);
        }
        outcome
    }
}
