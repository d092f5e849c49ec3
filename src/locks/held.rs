//! The locks of the topology that this mount holds, its places in line, and how it releases both.
//!
//! [`Locks`] is here, because all other files of this folder use it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bounds::{Bound, PLACES, Share, WAITERS};
use super::names::{lock_path, process_of_here};
use super::patience::Patience;
use super::save_turns::SaveTurns;
use super::staying::Staying;
use super::table::{Range, Table};
use super::times_left::TimesLeft;
use crate::alive;
use crate::backend::Node;
use crate::cells::lock_text::shown;
use crate::cells::{Cell, KnownLocks, LockPlace};
use crate::control::{Control, LockCounts};
use crate::error::{Error, Kind, Result};
use crate::in_flight::InFlight;
use crate::name::{CellName, TopoPath};

/// Pause between attempts to release a lock.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);
/// Attempts to release a lock. After these, only the end of its lease or session releases it.
const LEAVES: usize = 60;

/// A place whose waiter was interrupted.
#[derive(Debug)]
pub(super) struct Parked {
    pub number: u64,
    pub place: Arc<LockPlace>,
    pub thread: u32,
}

/// A place of this mount in a line.
#[derive(Debug)]
pub(super) struct Standing {
    pub place: Arc<LockPlace>,
    /// For whom.
    pub pid: u32,
    /// Whether it is for one save, which ends soon.
    pub for_save: bool,
    pub _share: Option<Share>,
}

/// A place that a request is taking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entering {
    pub contents: Bytes,
    pub pid: u32,
    pub for_save: bool,
}

/// The locks of a mount.
#[derive(Debug)]
pub struct Locks {
    pub(super) table: Mutex<Table>,
    /// Counts the changes after which a waiter may go on.
    pub(super) changes: watch::Sender<u64>,
    pub(super) held: Mutex<Vec<Arc<Held>>>,
    /// File and owner of each request that waits for the topology.
    pub(super) acquiring: Mutex<HashSet<(u64, u64)>>,
    /// Places of waiters that a signal has interrupted: most waiters come again at once.
    pub(super) parked: Mutex<HashMap<(u64, u64), Parked>>,
    /// All places, so that the mount leaves none behind.
    pub(super) places: Mutex<HashMap<u64, Standing>>,
    /// Places that requests are taking: the mirror may hear of a place before its request does.
    pub(super) entering: Mutex<Vec<Entering>>,
    pub(super) waiters: Arc<Bound>,
    pub(super) standing: Arc<Bound>,
    pub(super) save_turns: SaveTurns,
    pub(super) staying: Staying,
    pub(super) times_left: TimesLeft,
    /// Locks of files whose release is in flight.
    pub(super) leaving: InFlight<u64>,
    pub(super) last: AtomicU64,
    /// Set when the mount ends: nobody waits any more.
    pub(super) closing: CancellationToken,
    pub(super) patience: Patience,
    pub(super) control: Arc<Control>,
    /// The cells whose locks have events, and what the last events said.
    pub(super) followed: Mutex<HashMap<CellName, (Weak<Cell>, KnownLocks)>>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// A lock that this mount holds.
#[derive(Debug)]
pub(super) struct Held {
    pub place: Arc<LockPlace>,
    /// What the lock looks like.
    pub node: Node,
    pub number: u64,
    since: Instant,
    /// The `.lock` file; 0 for a lock that is taken for one save.
    ino: u64,
    /// Its owners: several if one process, or one open file, has locked it with both flock(2) and fcntl(2).
    owners: Mutex<Vec<u64>>,
    /// The process that locked it first; 0 if unseen.
    pub pid: u32,
    /// Why it is lost.
    pub lost: OnceLock<String>,
    /// It is given back.
    pub released: CancellationToken,
}

impl Held {
    pub fn is(&self, cell: &Cell, dir: &TopoPath) -> bool {
        self.place.cell().is_same_place(cell) && self.place.dir() == dir
    }

    pub fn is_for_save(&self) -> bool {
        self.ino == 0
    }

    pub fn is_owned_by(&self, (ino, owner): (u64, u64)) -> bool {
        self.ino == ino && self.owners.lock().contains(&owner)
    }

    /// Whether a request comes from the process, or the open file, that holds this lock, but with the other call. On a
    /// local file the two calls do not see each other, so neither may wait for the other here.
    pub fn is_shared_with(&self, table: &Table, ino: u64, wanted: &Range) -> bool {
        let owners = self.owners.lock();
        let same = |range: &Range| {
            let is_same = range.handle == wanted.handle || (range.pid == wanted.pid && wanted.pid != 0);
            is_same && owners.contains(&range.owner)
        };
        self.ino == ino
            && self.lost.get().is_none()
            && wanted.by.is_some()
            && table.conflict(self.ino, &wanted.whole()).is_none()
            && table.ranges(self.ino).iter().any(same)
    }

    /// Adds an owner that has locked it with the other call.
    pub fn add_owner(&self, owner: u64) {
        let mut owners = self.owners.lock();
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }

    /// The error of a call that needs this lock; `None` while it is held.
    pub fn error(&self) -> Option<Error> {
        let reason = self.lost.get()?;
        let (cell, dir) = (&self.place.cell().name, self.place.dir());
        Some(Error::new(
            Kind::LockLost,
            format!("the lock of {cell}/{dir} that process {} held was lost: {reason}", self.pid),
        ))
    }
}

impl Locks {
    /// No locks yet.
    pub fn new(control: Arc<Control>, patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            changes: watch::Sender::new(0),
            held: Mutex::default(),
            acquiring: Mutex::default(),
            parked: Mutex::default(),
            places: Mutex::default(),
            entering: Mutex::default(),
            waiters: Bound::new("waiters for locks", WAITERS),
            standing: Bound::new("locks that are held or waited for", PLACES),
            save_turns: SaveTurns::default(),
            staying: Staying::default(),
            times_left: TimesLeft::default(),
            leaving: InFlight::default(),
            last: AtomicU64::new(0),
            closing: CancellationToken::new(),
            patience,
            control,
            followed: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    pub(super) fn note(
        self: &Arc<Self>,
        place: Arc<LockPlace>,
        (ino, owner, pid): (u64, u64, u32),
    ) -> Result<Arc<Held>> {
        let node = place.node().ok_or_else(|| Error::new(Kind::Io, "the lock has no node"))?;
        let held = Arc::new(Held {
            place,
            node,
            number: self.number(),
            since: Instant::now(),
            ino,
            owners: Mutex::new(vec![owner]),
            pid,
            lost: OnceLock::new(),
            released: CancellationToken::new(),
        });
        self.held.lock().push(held.clone());
        self.tasks.spawn(self.clone().watch_over(held.clone()));
        Ok(held)
    }

    /// Notices when a lock is lost: its lease or session has ended, or somebody has removed its node. After a panic
    /// nobody would notice the loss, so the lock then counts as lost.
    async fn watch_over(self: Arc<Self>, held: Arc<Held>) {
        let reason = match alive::guarded("the watch over a lock", self.why_lost(&held)).await {
            Ok(None) => return,
            Ok(Some(reason)) => reason,
            Err(panic) => panic.to_string(),
        };
        if held.released.is_cancelled() {
            return;
        }
        let _ = held.lost.set(reason.clone());
        self.tell_lost(&held, &reason);
        self.notify();
        // The remains of the lock must not block others.
        self.leave(&held.place).await;
    }

    /// Waits until a lock is lost, and returns the reason; `None` if it is released first.
    async fn why_lost(&self, held: &Held) -> Option<String> {
        let cell = held.place.cell();
        let mut changes = cell.mirror.lock_changes();
        let mut seen = false;
        loop {
            changes.mark_unchanged();
            let snapshot = cell.mirror.snapshot();
            let there = snapshot.locks.get(&held.node.path);
            let same = there.is_some_and(|node| {
                node.owner() == held.node.owner() && node.version.created == held.node.version.created
            });
            match (seen, same) {
                (_, true) => seen = true,
                (true, false) => return Some("somebody took it away".to_owned()),
                (false, false) => {}
            }
            tokio::select! {
                () = held.released.cancelled() => return None,
                () = self.stop.cancelled() => return None,
                error = held.place.lost() => return Some(error.reason),
                // The mirror lives as long as its cell.
                _ = changes.changed() => {}
            }
        }
    }

    /// Releases the locks of a file that have no owner left.
    pub(super) async fn give_back_unused(self: &Arc<Self>, ino: u64) {
        let unused: Vec<Arc<Held>> = {
            let table = self.table.lock();
            let mut held = self.held.lock();
            let is_unused = |held: &mut Arc<Held>| {
                let mut owners = held.owners.lock();
                owners.retain(|owner| held.ino != ino || table.holds(ino, *owner));
                owners.is_empty()
            };
            held.extract_if(.., is_unused).collect()
        };
        self.notify();
        for held in unused {
            held.released.cancel();
            self.give_back(ino, held.place.clone()).await;
        }
    }

    /// Leaves a place, and waits for that up to the time limit of a call.
    pub(super) async fn give_back(self: &Arc<Self>, ino: u64, place: Arc<LockPlace>) {
        let in_flight = self.leaving.begin(ino);
        let (tell, told) = oneshot::channel::<()>();
        let locks = self.clone();
        self.tasks.spawn(async move {
            let left = try_to_leave(&place).await;
            drop(in_flight);
            drop(tell);
            match left {
                Ok(()) => drop(locks.places.lock().remove(&(Arc::as_ptr(&place) as u64))),
                Err(error) => {
                    tracing::warn!(%error, "cannot release a lock now");
                    locks.leave(&place).await;
                }
            }
        });
        // Nobody sends; it is only dropped.
        let _ = told.await;
    }

    /// Leaves a place, and tries until it is gone.
    pub(super) async fn leave(&self, place: &Arc<LockPlace>) {
        for _ in 0..LEAVES {
            let Err(error) = try_to_leave(place).await else { break };
            tracing::debug!(%error, "cannot release a lock now");
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LEAVE_PAUSE) => {}
            }
        }
        self.places.lock().remove(&(Arc::as_ptr(place) as u64));
    }

    /// Fails if this open file has lost a lock.
    pub fn refuse_if_lost(&self, ino: u64, handle: u64) -> Result<()> {
        let held = self.held.lock().clone();
        let table = self.table.lock();
        let through = |held: &&Arc<Held>| {
            let owners = held.owners.lock();
            held.ino == ino && owners.iter().any(|owner| table.holds_through(ino, *owner, handle))
        };
        match held.iter().filter(through).find_map(|held| held.error()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The process of this mount that holds a lock, and its owners.
    pub fn holder_here(&self, cell: &Cell, dir: &TopoPath, owner: u64) -> Option<(bool, u32)> {
        let held = self.held.lock();
        let here = held.iter().find(|held| held.lost.get().is_none() && !held.is_for_save() && held.is(cell, dir))?;
        Some((here.owners.lock().contains(&owner), here.pid))
    }

    /// Whether a process on this mount (not a save) holds a lock.
    pub(super) fn holds(&self, cell: &Cell, dir: &TopoPath) -> bool {
        let held = self.held.lock();
        held.iter().any(|held| held.lost.get().is_none() && !held.is_for_save() && held.is(cell, dir))
    }

    /// The process of this mount whose place a node is.
    pub(super) fn pid_of(&self, node: &Node) -> Option<u32> {
        self.of_this_mount(node).map(|(pid, _)| pid)
    }

    /// The same, and whether the place is for one save.
    pub(super) fn of_this_mount(&self, node: &Node) -> Option<(u32, bool)> {
        let places = self.places.lock();
        let known = places.values().find(|standing| standing.place.is(node));
        if let Some(Standing { pid, for_save, .. }) = known {
            return Some((*pid, *for_save));
        }
        let entering = self.entering.lock();
        let known = entering.iter().find(|entering| entering.contents == node.value);
        known.map(|entering| (entering.pid, entering.for_save))
    }

    fn tell_lost(&self, held: &Held, reason: &str) {
        let (cell, dir) = (held.place.cell(), held.place.dir());
        tracing::error!(cell = %cell.name, %dir, pid = held.pid, reason, "a lock is lost");
        let by = process_of_here(held.pid);
        self.tell(
            cell,
            dir,
            "lock-lost",
            &[("holder", shown(&held.node.value)), ("reason", json!(reason)), ("by", by)],
        );
    }

    pub(super) fn tell(&self, cell: &Cell, dir: &TopoPath, kind: &str, more: &[(&str, Value)]) {
        let path = lock_path(dir);
        self.control.events.record(&cell.name, &path, kind, more);
    }

    /// Ends all waits: the mount is ending.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Releases everything, within a time limit.
    pub async fn shutdown(self: &Arc<Self>, patience: Duration) {
        self.close();
        self.stop.cancel();
        self.held.lock().clear();
        let places: Vec<Arc<LockPlace>> = self.places.lock().values().map(|standing| standing.place.clone()).collect();
        let leaving = places.into_iter().map(|place| async move {
            if let Err(error) = try_to_leave(&place).await {
                tracing::warn!(%error, "cannot release a lock; it ends with its lease or session");
            }
        });
        self.tasks.close();
        let all = async {
            futures::future::join_all(leaving).await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("could not release all locks in time; the rest end with their leases or sessions");
        }
    }

    /// How many locks are held, waited for and lost.
    pub fn counts(&self) -> LockCounts {
        let places = self.places.lock().len();
        let all = self.held.lock();
        let held = || all.iter().filter(|held| held.lost.get().is_none());
        let longest = held().map(|held| held.since.elapsed()).max().unwrap_or_default();
        let count = held().count();
        LockCounts { held: count, waiting: places.saturating_sub(count), lost: all.len() - count, longest }
    }

    pub(super) fn notify(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub(super) fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed)
    }
}

pub(super) fn ending() -> Error {
    Error::new(Kind::Io, "the mount is ending")
}

/// Waits until a place is the first. A panic counts as a failure: the caller leaves the place.
pub(super) async fn try_to_hold(place: &LockPlace) -> Result<()> {
    alive::guarded("waiting in line", place.hold()).await.unwrap_or_else(|panic| Err(panic.into()))
}

/// Leaves a place. A panic counts as a failure: the caller tries again, and in the end the lease or session ends.
pub(super) async fn try_to_leave(place: &LockPlace) -> Result<()> {
    alive::guarded("leaving a line", place.leave()).await.unwrap_or_else(|panic| Err(panic.into()))
}
