//! What a save needs of the topology's locks: the locks of this mount above it go along as guards, and the one that it must
//! have is taken for its moment.
//!
//! A lock of a moment is waited for, whoever's it is, and never reported as somebody's. Another topofs's is known by what it
//! says. Anybody can say so, and gains nothing: it is waited for a little longer, and then is a lock like any other.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use super::contents::{Reason, contents, in_words, save_below, says_save};
use super::held::Held;
use super::{Locks, Request, SECOND_LOOK, user_name};
use crate::backend::{Change, Node, Revision};
use crate::cells::{Cell, LockPlace};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::process::descends_from;

/// How long a save waits for others' saves, and a lock that nobody would wait for, for saves.
const MOMENT: Duration = Duration::from_secs(10);
/// How long a save waits for any other lock: it may be on its way out. A process that ends, its lock, and what others hear of
/// it are not one step.
const GRACE: Duration = Duration::from_secs(1);
/// Locks remembered that were found to stay: they are not waited for again at once (`rm -r`).
const STAYING: usize = 256;

/// Who saves.
#[derive(Debug, Clone, Copy)]
pub struct Saver {
    /// The user.
    pub uid: u32,
    /// The process; 0 if it cannot be seen.
    pub process: u32,
}

/// A lock that is taken for one save.
#[derive(Debug, Default)]
#[must_use]
pub struct Temporary {
    held: Option<Arc<Held>>,
    /// The next save of this mount that needs the same lock waits for this one.
    _turn: Option<OwnedMutexGuard<()>>,
}

/// A lock that a change carries along as a guard.
#[derive(Debug, Clone)]
pub struct Fence {
    held: Arc<Held>,
    /// The guard.
    pub change: Change,
}

impl Fence {
    /// Whether the lock was given back, which is no loss: the change may be tried again without it.
    pub fn was_let_go(&self) -> bool {
        self.held.released.is_cancelled() || self.held.is_for_save()
    }
}

/// Whose turn it is to save under one lock.
type Turn = tokio::sync::Mutex<()>;

/// The order of this mount's own saves that need a lock, and what they have found.
#[derive(Debug, Default)]
pub(super) struct Saves {
    turns: Mutex<HashMap<(CellName, TopoPath), Weak<Turn>>>,
    staying: Mutex<Vec<(CellName, TopoPath, Revision, Instant)>>,
}

impl Saves {
    fn turn(&self, cell: &Cell, dir: &TopoPath) -> Arc<Turn> {
        let mut turns = self.turns.lock();
        turns.retain(|_, turn| turn.strong_count() > 0);
        let key = (cell.name.clone(), dir.clone());
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }

    /// Whether a lock has been found to stay a moment ago.
    fn is_staying(&self, cell: &Cell, node: &Node) -> bool {
        let mut staying = self.staying.lock();
        staying.retain(|(.., when)| when.elapsed() < GRACE);
        let same = |(name, path, created, _): &(CellName, TopoPath, Revision, Instant)| {
            *name == cell.name && *path == node.path && *created == node.version.created
        };
        staying.iter().any(same)
    }

    fn note_staying(&self, cell: &Cell, node: &Node) {
        let mut staying = self.staying.lock();
        staying.retain(|(name, path, ..)| *name != cell.name || *path != node.path);
        if staying.len() < STAYING {
            staying.push((cell.name.clone(), node.path.clone(), node.version.created, Instant::now()));
        }
    }
}

/// Who takes a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    /// The `.lock` file; 0 for a save.
    pub ino: u64,
    pub pid: u32,
    /// Whose place it counts as; a save's counts as nobody's, because it is over soon.
    pub uid: Option<u32>,
}

impl Who {
    pub fn asks(request: &Request) -> Self {
        Self { ino: request.ino, pid: request.range.pid, uid: Some(request.range.uid) }
    }

    fn saves(saver: Saver) -> Self {
        Self { ino: 0, pid: saver.process, uid: None }
    }

    pub fn is_save(&self) -> bool {
        self.ino == 0
    }
}

/// What comes of taking a lock.
pub(super) enum Taken {
    Place(Arc<LockPlace>),
    /// Somebody else on this mount has it.
    Ours,
    /// Somebody elsewhere has it, as far as known.
    Other(Option<Node>),
}

/// Who is before whoever comes now, as far as the mirror knows.
enum Before {
    /// A save.
    Save(Node),
    /// Somebody on this mount.
    Ours,
    Other(Node),
}

impl Locks {
    /// A lock if it is free, or has only to do with saves. Somebody else's is given `grace` to go away.
    pub(super) async fn take(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        who: Who,
        text: Bytes,
        grace: Duration,
    ) -> Result<Taken> {
        cell.snapshot().await?;
        // Nobody would wait for a lock that is not to be had for another reason (Consul's delay).
        let is_quick = grace.is_zero() && !matches!(self.before(cell, dir, None), Some(Before::Save(_)));
        let end = Instant::now() + self.patience.at_most(if is_quick { GRACE } else { MOMENT });
        // Standing in line without need would make others believe that it is locked.
        match timeout_at(end, self.in_the_way(cell, dir, grace, None)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(taken))) => return Ok(taken),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(Taken::Other(cell.holder(&cell.mirror.snapshot(), dir))),
        }
        let place = self.stand(cell, dir, who, text).await?;
        let outcome = tokio::select! {
            biased;
            held = place.hold() => held.map(|()| None),
            found = self.in_the_way(cell, dir, grace, Some(&place)) => found,
            () = tokio::time::sleep_until(end) => Ok(Some(Taken::Other(cell.holder(&cell.mirror.snapshot(), dir)))),
        };
        match outcome {
            Ok(None) => Ok(Taken::Place(place)),
            outcome => {
                self.give_back(who.ino, place).await;
                outcome.map(|taken| taken.unwrap_or(Taken::Other(None)))
            }
        }
    }

    fn before(&self, cell: &Cell, dir: &TopoPath, own: Option<&LockPlace>) -> Option<Before> {
        if self.holds(cell, dir) {
            return Some(Before::Ours);
        }
        let node = cell.holder(&cell.mirror.snapshot(), dir).filter(|node| own.is_none_or(|own| !own.is(node)))?;
        Some(match self.of_this_mount(&node) {
            Some((_, true)) => Before::Save(node),
            Some((_, false)) => Before::Ours,
            None if says_save(&node.value) => Before::Save(node),
            None => Before::Other(node),
        })
    }

    /// Whether somebody on this mount, and no save, holds a lock.
    fn holds(&self, cell: &Cell, dir: &TopoPath) -> bool {
        let held = self.held.lock();
        held.iter().any(|held| held.lost.get().is_none() && !held.is_for_save() && held.is(cell, dir))
    }

    /// Who is in the way and does not go away within the time of grace. Whoever does not stand in line yet (`own`) hears that
    /// nobody is; who does, goes on looking.
    async fn in_the_way(
        &self,
        cell: &Cell,
        dir: &TopoPath,
        grace: Duration,
        own: Option<&LockPlace>,
    ) -> Result<Option<Taken>> {
        let mut changes = cell.mirror.lock_changes();
        let mut here = self.changes.subscribe();
        let mut since: Option<(Node, Instant)> = None;
        loop {
            changes.mark_unchanged();
            here.mark_unchanged();
            let other = match self.before(cell, dir, own) {
                // Who is about to get it is waited for by a save, which then goes on beside it.
                Some(Before::Ours) if grace.is_zero() || self.holds(cell, dir) => return Ok(Some(Taken::Ours)),
                Some(Before::Other(node)) => Some(node),
                None | Some(Before::Save(_)) if own.is_none() => return Ok(None),
                None | Some(Before::Save(_) | Before::Ours) => None,
            };
            let Some(node) = other else {
                since = None;
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = here.changed() => {}
                }
                continue;
            };
            let seen = since.take().filter(|(known, _)| same_lock(known, &node)).map(|(_, when)| when);
            let is_over = seen.is_some_and(|when| when.elapsed() >= grace)
                || grace.is_zero()
                || self.saves.is_staying(cell, &node);
            // The service knows better. What it says, the mirror knows then, too.
            if (seen.is_none() || is_over) && !cell.still_locked(&node).await? {
                tokio::time::sleep(SECOND_LOOK).await;
                continue;
            }
            if is_over {
                if !grace.is_zero() {
                    self.saves.note_staying(cell, &node);
                }
                return Ok(Some(Taken::Other(Some(node))));
            }
            let when = seen.unwrap_or_else(Instant::now);
            since = Some((node, when));
            tokio::select! {
                _ = changes.changed() => {}
                _ = here.changed() => {}
                () = tokio::time::sleep_until(when + grace) => {}
            }
        }
    }

    /// What a change of a record carries along: every lock of this mount on a directory above, of saves only those that were
    /// taken for it. Fails with EIO if one of them is lost, unless whoever saves descends from a process that holds one now.
    pub fn fences(&self, cell: &Cell, path: &TopoPath, saver: Saver, taken: &[Temporary]) -> Result<Vec<Fence>> {
        let held: Vec<Arc<Held>> = {
            let held = self.held.lock();
            let above = |held: &&Arc<Held>| {
                held.place.cell().is_same_place(cell)
                    && path.below(held.place.dir()).is_some_and(|rest| !rest.is_empty())
            };
            held.iter().filter(above).filter(|held| !held.is_for_save()).cloned().collect()
        };
        let (lost, good): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.lost.get().is_some());
        // A process that cannot be seen is nobody's ancestor.
        let has_one = |held: &Arc<Held>| held.pid != 0 && descends_from(saver.process, held.pid);
        if let Some(error) = lost.first().and_then(|held| held.error())
            && !good.iter().any(has_one)
        {
            return Err(error);
        }
        let own = taken.iter().filter_map(|temporary| temporary.held.clone());
        let fence = |held: Arc<Held>| Some(Fence { change: held.place.fence()?, held });
        Ok(good.into_iter().chain(own).filter_map(fence).collect())
    }

    /// Takes a directory's lock for one save, unless this mount has it. Fails with EBUSY if somebody else has.
    pub async fn for_save(self: &Arc<Self>, cell: &Arc<Cell>, dir: &TopoPath, saver: Saver) -> Result<Temporary> {
        let turn = self.saves.turn(cell, dir).lock_owned();
        let Ok(turn) = tokio::time::timeout(self.patience.at_most(MOMENT), turn).await else {
            return Err(busy(cell, dir, "another save through this mount, which takes too long"));
        };
        if self.held.lock().iter().any(|held| !held.is_for_save() && held.is(cell, dir)) {
            return Ok(Temporary::default());
        }
        let reason = Reason { action: save_below(&cell.name, dir), user: user_name(saver.uid).await };
        match self.take(cell, dir, Who::saves(saver), contents(&reason), GRACE).await {
            Ok(Taken::Place(place)) => {
                let held = self.note(place, (0, 0, saver.process))?;
                Ok(Temporary { held: Some(held), _turn: Some(turn) })
            }
            Ok(Taken::Ours) => Ok(Temporary::default()),
            Ok(Taken::Other(holder)) => Err(busy_with(cell, dir, holder.as_ref())),
            // Nothing is there that anybody could have locked.
            Err(error) if error.kind == Kind::NotFound => Ok(Temporary::default()),
            // Where the service has no room for a lock, nobody else gets one either; and only a removal can succeed.
            Err(error) if error.kind == Kind::NoSpace => match cell.holder_now(dir).await? {
                None => Ok(Temporary::default()),
                Some(holder) => Err(busy_with(cell, dir, Some(&holder))),
            },
            Err(error) => Err(error),
        }
    }

    /// Fails with EBUSY if somebody else holds the lock of a directory.
    pub async fn refuse_if_foreign(&self, cell: &Cell, dir: &TopoPath) -> Result<()> {
        cell.snapshot().await?;
        let end = Instant::now() + self.patience.at_most(MOMENT);
        let mut changes = cell.mirror.lock_changes();
        let mut first = None;
        loop {
            changes.mark_unchanged();
            match timeout_at(end, self.in_the_way(cell, dir, GRACE, None)).await {
                Ok(Ok(Some(Taken::Other(holder)))) => return Err(busy_with(cell, dir, holder.as_ref())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(busy_with(cell, dir, cell.holder(&cell.mirror.snapshot(), dir).as_ref())),
            }
            // A save is waited for, not a row of them.
            let Some(Before::Save(node)) = self.before(cell, dir, None) else { return Ok(()) };
            if !same_lock(first.get_or_insert_with(|| node.clone()), &node) {
                return Ok(());
            }
            let over = timeout_at(end, changes.changed()).await.is_err();
            if over && cell.still_locked(&node).await? {
                return Err(busy_with(cell, dir, Some(&node)));
            }
        }
    }

    /// Gives back what was taken for a save.
    pub async fn end_save(self: &Arc<Self>, temporary: Temporary) {
        let Temporary { held: Some(held), _turn } = temporary else { return };
        held.released.cancel();
        self.held.lock().retain(|other| other.number != held.number);
        self.give_back(0, held.place.clone()).await;
    }
}

fn same_lock(one: &Node, other: &Node) -> bool {
    one.path == other.path && one.version.created == other.version.created
}

fn busy(cell: &Cell, dir: &TopoPath, who: &str) -> Error {
    Error::new(Kind::Busy, format!("{}/{dir} is locked by {who}", cell.name))
}

fn busy_with(cell: &Cell, dir: &TopoPath, holder: Option<&Node>) -> Error {
    busy(cell, dir, &holder.map_or_else(|| "another".to_owned(), |node| in_words(&node.value)))
}
