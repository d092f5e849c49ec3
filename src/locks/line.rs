//! Stands in the line for a lock of the topology, and knows who is before us there.
//!
//! Every waiter stands in the line of the service, so all hosts are served in the order in which they came. If a
//! service has no line (Consul), only one waiter of this mount tries at a time (see [`crate::cells::LockPlace`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::held::try_to_hold;
use super::held::{Entering, Locks, Standing, ending};
use super::patience::SECOND_LOOK;
use super::staying::GRACE;
use crate::alive;
use crate::backend::Node;
use crate::cells::lock_text::says_save;
use crate::cells::{Cell, LockPlace};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;

/// How long a save waits for other saves. A request that does not wait for locks still waits so long for saves.
pub(super) const MOMENT: Duration = Duration::from_secs(10);

/// Who takes a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    /// The `.lock` file; 0 for a save.
    pub ino: u64,
    pub pid: u32,
    /// The owner of the place; a save's place has no owner, because it ends soon.
    pub uid: Option<u32>,
}

impl Who {
    pub fn is_save(&self) -> bool {
        self.ino == 0
    }
}

/// The outcome of taking a lock.
pub(super) enum Taken {
    Place(Arc<LockPlace>),
    /// Somebody else on this mount has it.
    Ours,
    /// Somebody elsewhere has it; who, as far as known.
    Other(Option<Node>),
}

/// Who is before a new request, as far as the mirror knows.
pub(super) enum Before {
    /// A save.
    Save(Node),
    /// Somebody on this mount.
    Ours,
    Other(Node),
}

impl Locks {
    /// Takes a place in line. If the caller gives up, this goes on by itself, and leaves the place again.
    pub(super) async fn stand(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        who: Who,
        text: Bytes,
    ) -> Result<Arc<LockPlace>> {
        // When the mount ends, saves that are under way may still need a place.
        if self.stop.is_cancelled() {
            return Err(ending());
        }
        // Saves have their own order.
        if !who.is_save() {
            self.leaving.wait(&who.ino).await;
        }
        let share = who.uid.map(|uid| self.standing.take(uid)).transpose()?;
        let (tell, told) = oneshot::channel();
        let (locks, cell, dir) = (self.clone(), cell.clone(), dir.clone());
        self.tasks.spawn(async move {
            let Who { pid, .. } = who;
            let entering = Entering { contents: text, pid, for_save: who.is_save() };
            locks.entering.lock().push(entering.clone());
            // A panic is the answer to the caller. A place that exists by then ends with its lease or session.
            let stood = alive::guarded("standing in line", cell.stand_in_line(&dir, &entering.contents)).await;
            let place = stood.unwrap_or_else(|panic| Err(panic.into())).map(Arc::new);
            if let Ok(place) = &place {
                let standing = Standing { place: place.clone(), pid, for_save: who.is_save(), _share: share };
                locks.places.lock().insert(Arc::as_ptr(place) as u64, standing);
                place.announce();
            }
            locks.entered(&entering);
            if let Err(Ok(place)) = tell.send(place) {
                locks.leave(&place).await;
            }
        });
        told.await.map_err(|_| ending())?
    }

    fn entered(&self, known: &Entering) {
        let mut entering = self.entering.lock();
        if let Some(index) = entering.iter().position(|entry| entry == known) {
            entering.swap_remove(index);
        }
    }

    /// Takes a lock if it is free, or if only saves stand before us. Anybody else has the time `grace` to go away.
    pub(super) async fn take(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        who: Who,
        text: Bytes,
        grace: Duration,
    ) -> Result<Taken> {
        cell.snapshot().await?;
        let is_quick = grace.is_zero() && !matches!(self.before(cell, dir, None), Some(Before::Save(_)));
        let end = Instant::now() + self.patience.at_most(MOMENT);
        let holder = || cell.holder(&cell.mirror.snapshot(), dir);
        // A needless place in line would tell others that the directory is locked.
        match timeout_at(end, self.in_the_way(cell, dir, grace, None)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(taken))) => return Ok(taken),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(Taken::Other(holder())),
        }
        let place = self.stand(cell, dir, who, text).await?;
        // If nobody can take the lock for another reason (Consul's delay), such a request does not wait either. A
        // service that is slow has not said so.
        let nobody_can = async {
            place.refused().cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        let outcome = tokio::select! {
            biased;
            held = try_to_hold(&place) => held.map(|()| None),
            found = self.in_the_way(cell, dir, grace, Some(&place)) => found,
            () = nobody_can, if is_quick => Ok(Some(Taken::Other(holder()))),
            () = tokio::time::sleep_until(end) => match holder() {
                None if !place.refused().is_cancelled() => Err(unanswered(cell, dir)),
                holder => Ok(Some(Taken::Other(holder))),
            },
        };
        match outcome {
            Ok(None) => Ok(Taken::Place(place)),
            outcome => {
                self.give_back(who.ino, place).await;
                outcome.map(|taken| taken.unwrap_or(Taken::Other(None)))
            }
        }
    }

    pub(super) fn before(&self, cell: &Cell, dir: &TopoPath, own: Option<&LockPlace>) -> Option<Before> {
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

    /// Returns who is in the way for longer than the grace time. Without a place of its own (`own`), the caller learns
    /// at once that nobody is in the way; with one, it goes on looking.
    pub(super) async fn in_the_way(
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
                // A save waits for a process of this mount that is about to get the lock, and then goes on beside it.
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
                || self.staying.contains(&cell.name, &node);
            // The service knows better. The mirror then learns its answer, too.
            if (seen.is_none() || is_over) && !cell.still_locked(&node).await? {
                tokio::time::sleep(SECOND_LOOK).await;
                continue;
            }
            if is_over {
                if !grace.is_zero() {
                    self.staying.note(&cell.name, &node);
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
}

fn unanswered(cell: &Cell, dir: &TopoPath) -> Error {
    Error::new(Kind::Unreachable, format!("{}/{dir}: the service has not said whether the lock is free", cell.name))
}

pub(super) fn same_lock(one: &Node, other: &Node) -> bool {
    one.path == other.path && one.version.created == other.version.created
}
