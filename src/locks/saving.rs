//! What a save needs of the topology's locks: the locks of this mount above it go along as guards, and the one that it
//! must have is taken for its moment.
//!
//! A lock of a moment is waited for, whoever's it is, and never reported as somebody's. Another topofs's is known by
//! what it says. Anybody can say so, and gains nothing: it is waited for a little longer, and then is a lock like any
//! other.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use super::held::{Held, Locks};
use super::line::{Before, MOMENT, Taken, Who, same_lock};
use super::staying::GRACE;
use super::users::user_name;
use crate::backend::{Change, Node};
use crate::cells::Cell;
use crate::cells::lock_text::{Reason, contents, in_words, save_below};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;
use crate::process::{Actor, descends_from};

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

impl Who {
    fn saves(saver: Actor) -> Self {
        Self { ino: 0, pid: saver.process, uid: None }
    }
}

impl Locks {
    /// What a change of a record carries along: every lock of this mount on a directory above, of saves only those that
    /// were taken for it. Fails with EIO if one of them is lost, unless whoever saves descends from a process that
    /// holds one now.
    pub fn fences(&self, cell: &Cell, path: &TopoPath, saver: Actor, taken: &[Temporary]) -> Result<Vec<Fence>> {
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
    pub async fn for_save(self: &Arc<Self>, cell: &Arc<Cell>, dir: &TopoPath, saver: Actor) -> Result<Temporary> {
        let turn = self.save_turns.of((cell.name.clone(), dir.clone())).lock_owned();
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

fn busy(cell: &Cell, dir: &TopoPath, who: &str) -> Error {
    Error::new(Kind::Busy, format!("{}/{dir} is locked by {who}", cell.name))
}

fn busy_with(cell: &Cell, dir: &TopoPath, holder: Option<&Node>) -> Error {
    busy(cell, dir, &holder.map_or_else(|| "another".to_owned(), |node| in_words(&node.value)))
}
