//! The locks that a save needs: this mount's locks on the directories above become guards, and the save takes a lock
//! that it must have for a moment.
//!
//! A save waits for a momentary lock of any other save, and never reports it as somebody's lock. The text of a lock
//! says that another topofs took it for a save. A false text gains nothing: the save waits a little longer, and then
//! treats it as any other lock.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use super::held::{Held, Locks};
use super::line::{Before, MOMENT, Taken, Who, same_lock};
use super::staying::GRACE;
use crate::backend::{Change, Node};
use crate::cells::Cell;
use crate::cells::lock_text::{Reason, contents, in_words, save_below};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;
use crate::process::{Actor, descends_from};
use crate::users::user_name;

/// A lock that is taken for one save.
#[derive(Debug, Default)]
#[must_use]
pub struct Temporary {
    held: Option<Arc<Held>>,
    /// The turn: the next save of this mount that needs the same lock waits for it.
    _turn: Option<OwnedMutexGuard<()>>,
}

/// A lock that guards a change.
#[derive(Debug, Clone)]
pub struct Fence {
    held: Arc<Held>,
    /// The guard.
    pub change: Change,
}

impl Fence {
    /// Whether the lock was released. That is not a loss: the change may be tried again without it.
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
    /// The guards of a change: every lock of this mount on a directory above, but locks of saves only if this save took
    /// them. Fails with EIO if one of them is lost, unless the saving process descends from a process that holds one
    /// now.
    pub fn fences(&self, cell: &Cell, path: &TopoPath, saver: Actor, taken: &[&Temporary]) -> Result<Vec<Fence>> {
        let held: Vec<Arc<Held>> = {
            let held = self.held.lock();
            let above = |held: &&Arc<Held>| {
                held.place.cell().is_same_place(cell)
                    && path.below(held.place.dir()).is_some_and(|rest| !rest.is_empty())
            };
            held.iter().filter(above).filter(|held| !held.is_for_save()).cloned().collect()
        };
        let (lost, good): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.lost.get().is_some());
        // An unseen process is nobody's ancestor.
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

    /// Takes the lock of a directory for one save, unless this mount has it. Fails with EBUSY if somebody else has it.
    pub async fn for_save(self: &Arc<Self>, cell: &Arc<Cell>, dir: &TopoPath, saver: Actor) -> Result<Temporary> {
        let turn = self.save_turns.of((cell.name.clone(), dir.clone())).lock_owned();
        let Ok(turn) = tokio::time::timeout(self.patience.at_most(MOMENT), turn).await else {
            return Err(busy(cell, dir, "another save through this mount, which is taking too long"));
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
            // The directory does not exist, so nobody can have locked it.
            Err(error) if error.kind == Kind::NotFound => Ok(Temporary::default()),
            // If the service has no room for a lock, nobody else gets one either, and only a removal can succeed.
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
        self.refuse_if_foreign_at_secondary(cell, dir).await?;
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
            // Wait for one save, not for a row of them.
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

    /// The same for a holder that has the lock at the second place only. It has the same time to go away.
    async fn refuse_if_foreign_at_secondary(&self, cell: &Cell, dir: &TopoPath) -> Result<()> {
        let Some(first) = cell.foreign_holder_at_secondary(dir).await else { return Ok(()) };
        tokio::time::sleep(GRACE).await;
        match cell.foreign_holder_at_secondary(dir).await {
            Some(still) if same_lock(&first, &still) => {
                Err(busy(cell, dir, &format!("{} at the secondary", in_words(&still.value))))
            }
            _ => Ok(()),
        }
    }

    /// Releases the locks that a save took.
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
