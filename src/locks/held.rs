//! The topology's locks that this mount holds or waits for.
//!
//! Every waiter stands in the service's line itself, so that hosts are served in the order in which they came, whoever they
//! are; where a service has no line (Consul), one waiter of this mount tries at a time (see [`crate::cells::LockPlace`]).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::contents::{Reason, contents, in_words};
use super::{Ended, Locks, Parked, Range, Request, SECOND_LOOK, ending, interrupted, would_block};
use crate::backend::{Change, Node};
use crate::cells::{Cell, LockPlace};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;
use crate::process::{descends_from, has_ended};

/// How long the place of an interrupted waiter is kept: a handled signal restarts its call at once.
const PARKED: Duration = Duration::from_secs(1);
/// Looks at most at a lock whose process has ended, until it is given back.
const LOOKS: usize = 10;
/// Pause between attempts to give a lock back.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);
/// Attempts to give a lock back before it is left to its lease or session.
const LEAVES: usize = 60;
/// Places that one request may lose while it waits (its lease ends while the service is away) before it fails.
const PLACES: usize = 2;

/// A lock that this mount holds.
#[derive(Debug)]
pub(super) struct Held {
    pub place: Arc<LockPlace>,
    /// What the lock looks like.
    pub node: Node,
    number: u64,
    /// The `.lock` file, and who has locked it; 0 for a lock that is taken for one save.
    ino: u64,
    owner: u64,
    /// The process that has locked it.
    pub pid: u32,
    /// Why it is lost.
    pub lost: OnceLock<String>,
    released: CancellationToken,
}

/// Who saves.
#[derive(Debug, Clone, Copy)]
pub struct Saver {
    /// The user.
    pub uid: u32,
    /// The process.
    pub process: u32,
}

/// A lock that is taken for one save.
#[derive(Debug)]
#[must_use]
pub struct Temporary(Option<Arc<Held>>);

impl Held {
    fn is(&self, cell: &Cell, dir: &TopoPath) -> bool {
        self.place.cell().name == cell.name && self.place.dir() == dir
    }

    fn error(&self) -> Option<Error> {
        let reason = self.lost.get()?;
        let (cell, dir) = (&self.place.cell().name, self.place.dir());
        Some(Error::new(
            Kind::LockLost,
            format!("the lock of {cell}/{dir} that process {} held was lost: {reason}", self.pid),
        ))
    }
}

/// What a request finds.
enum Found {
    /// Its owner has the lock already.
    Mine(Arc<Held>),
    /// Another thread of its owner is waiting for it.
    Coming,
    /// Nothing; it is noted as waiting.
    Nothing,
}

impl Locks {
    /// Locks a directory of a topology. The range of the request counts for unlocking only: there is one lock.
    pub async fn lock_dir(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        request: &Request,
        text: Bytes,
    ) -> Result<()> {
        let key = (request.ino, request.range.owner);
        let ended = self.patience.ended(request.thread);
        tokio::pin!(ended);
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            match self.find(key, request) {
                Found::Mine(held) => {
                    return held.error().map_or(Ok(()), Err);
                }
                Found::Coming if !request.wait => return Err(would_block()),
                Found::Coming => {
                    tokio::select! {
                        _ = changes.changed() => {}
                        () = self.closing.cancelled() => return Err(ending()),
                        why = &mut ended => return Err(interrupted(why)),
                    }
                }
                Found::Nothing => break,
            }
        }
        let _acquiring = scopeguard::guard((), |()| {
            self.acquiring.lock().remove(&key);
            self.notify();
        });
        if !request.wait {
            return self.try_dir(cell, dir, request, text).await;
        }
        for _ in 0..PLACES {
            let parked = self.parked.lock().remove(&key);
            let place = match parked {
                Some(Parked { place, .. }) => place,
                None => tokio::select! {
                    biased;
                    place = self.stand(cell, dir, (request.ino, request.range.pid), text.clone()) => place?,
                    () = self.closing.cancelled() => return Err(ending()),
                    why = &mut ended => return Err(interrupted(why)),
                },
            };
            tokio::select! {
                held = place.hold() => match held {
                    Ok(()) => return self.keep(place, request),
                    Err(error) => {
                        self.give_back(request.ino, place).await;
                        if error.kind != Kind::LockLost {
                            return Err(error);
                        }
                    }
                },
                () = self.closing.cancelled() => {
                    self.give_back(request.ino, place).await;
                    return Err(ending());
                }
                why = &mut ended => {
                    self.park(key, request.thread, place, why);
                    return Err(interrupted(why));
                }
            }
        }
        Err(Error::new(Kind::Unreachable, format!("{cell}: the place in the line for {dir} could not be kept")))
    }

    /// Locks a directory if that is possible at once.
    async fn try_dir(self: &Arc<Self>, cell: &Arc<Cell>, dir: &TopoPath, request: &Request, text: Bytes) -> Result<()> {
        match self.take_if_free(cell, dir, (request.ino, request.range.pid), text).await? {
            Ok(place) => self.keep(place, request),
            Err(_) => Err(would_block()),
        }
    }

    /// A lock if it is free, else who has it, as far as known.
    async fn take_if_free(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        (ino, pid): (u64, u32),
        text: Bytes,
    ) -> Result<std::result::Result<Arc<LockPlace>, Option<Node>>> {
        self.settled(cell, dir, ino).await;
        // Standing in line without need would make others believe that it is locked.
        let snapshot = cell.snapshot().await?;
        if let Some(holder) = cell.holder(&snapshot, dir)
            && cell.still_locked(&holder).await?
        {
            return Ok(Err(Some(holder)));
        }
        let place = self.stand(cell, dir, (ino, pid), text).await?;
        match place.try_hold().await {
            Ok(true) => Ok(Ok(place)),
            Ok(false) => {
                self.give_back(ino, place).await;
                Ok(Err(cell.holder(&cell.mirror.snapshot(), dir)))
            }
            Err(error) => {
                self.give_back(ino, place).await;
                Err(error)
            }
        }
    }

    /// Waits for what has been let go of here and may still be on its way: the kernel does not wait for it, and can pass on the
    /// end of one process and the beginning of the next at the same time.
    pub async fn settled(&self, cell: &Cell, dir: &TopoPath, ino: u64) {
        let abandoned = || {
            let holder = cell.holder(&cell.mirror.snapshot(), dir);
            holder.and_then(|node| self.pid_of(&node)).is_some_and(has_ended)
        };
        for _ in 0..LOOKS {
            self.leaving.wait(&ino).await;
            // Its descriptor may also live on in another process.
            if !abandoned() {
                break;
            }
            tokio::time::sleep(SECOND_LOOK).await;
        }
    }

    fn find(&self, key: (u64, u64), request: &Request) -> Found {
        let mut acquiring = self.acquiring.lock();
        let mut table = self.table.lock();
        let mine = self.held.lock().iter().find(|held| (held.ino, held.owner) == key).cloned();
        match mine {
            Some(held) => {
                if held.lost.get().is_none() {
                    table.set(request.ino, request.range.clone());
                }
                Found::Mine(held)
            }
            None if acquiring.insert(key) => Found::Nothing,
            None => Found::Coming,
        }
    }

    /// Stands in line. Goes on by itself when the caller gives up, and leaves the place again then.
    async fn stand(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        (ino, pid): (u64, u32),
        text: Bytes,
    ) -> Result<Arc<LockPlace>> {
        // Saves that are under way may still need one while nobody waits any more.
        if self.stop.is_cancelled() {
            return Err(ending());
        }
        self.leaving.wait(&ino).await;
        let (tell, told) = oneshot::channel();
        let (locks, cell, dir) = (self.clone(), cell.clone(), dir.clone());
        self.tasks.spawn(async move {
            locks.entering.lock().push((text.clone(), pid));
            let place = cell.stand_in_line(&dir, &text).await.map(Arc::new);
            if let Ok(place) = &place {
                locks.places.lock().insert(Arc::as_ptr(place) as u64, (place.clone(), pid));
                place.announce();
            }
            locks.entered(&(text, pid));
            if let Err(Ok(place)) = tell.send(place) {
                locks.leave(&place).await;
            }
        });
        told.await.map_err(|_| ending())?
    }

    /// Waits for the places of waiters that have ended to be left.
    pub(super) async fn tidied(&self) {
        for _ in 0..LOOKS {
            if !self.parked.lock().values().any(|parked| has_ended(parked.thread)) {
                break;
            }
            tokio::time::sleep(SECOND_LOOK).await;
        }
    }

    fn entered(&self, known: &(Bytes, u32)) {
        let mut entering = self.entering.lock();
        if let Some(index) = entering.iter().position(|entry| entry == known) {
            entering.swap_remove(index);
        }
    }

    /// Keeps the place of somebody who is probably coming again.
    fn park(self: &Arc<Self>, key: (u64, u64), thread: u32, place: Arc<LockPlace>, why: Ended) {
        let (locks, number) = (self.clone(), self.number());
        if why != Ended::Gone {
            self.parked.lock().insert(key, Parked { number, place: place.clone(), thread });
        }
        self.tasks.spawn(async move {
            if why != Ended::Gone {
                // Whoever has ended does not come again.
                let until = Instant::now() + PARKED;
                while Instant::now() < until && !has_ended(thread) {
                    tokio::time::sleep(SECOND_LOOK).await;
                }
                let mut parked = locks.parked.lock();
                // It may have been taken up, and parked again since.
                if parked.get(&key).is_none_or(|parked| parked.number != number) {
                    return;
                }
                parked.remove(&key);
            }
            locks.leave(&place).await;
        });
    }

    fn keep(self: &Arc<Self>, place: Arc<LockPlace>, request: &Request) -> Result<()> {
        let Range { owner, pid, .. } = request.range;
        self.table.lock().set(request.ino, request.range.clone());
        self.note(place, (request.ino, owner, pid)).map(drop)
    }

    fn note(self: &Arc<Self>, place: Arc<LockPlace>, (ino, owner, pid): (u64, u64, u32)) -> Result<Arc<Held>> {
        let node = place.node().ok_or_else(|| Error::new(Kind::Io, "the lock has no node"))?;
        let held = Arc::new(Held {
            place,
            node,
            number: self.number(),
            ino,
            owner,
            pid,
            lost: OnceLock::new(),
            released: CancellationToken::new(),
        });
        self.held.lock().push(held.clone());
        self.tasks.spawn(self.clone().watch_over(held.clone()));
        Ok(held)
    }

    /// Notices when a lock is lost: its lease or session has ended, or somebody has taken its node away.
    async fn watch_over(self: Arc<Self>, held: Arc<Held>) {
        let cell = held.place.cell();
        let mut changes = cell.mirror.lock_changes();
        let mut seen = false;
        let reason = loop {
            changes.mark_unchanged();
            let snapshot = cell.mirror.snapshot();
            let there = snapshot.locks.get(&held.node.path);
            let same = there.is_some_and(|node| {
                node.owner() == held.node.owner() && node.version.created == held.node.version.created
            });
            match (seen, same) {
                (_, true) => seen = true,
                (true, false) => break "somebody has taken it away".to_owned(),
                (false, false) => {}
            }
            tokio::select! {
                () = held.released.cancelled() => return,
                () = self.stop.cancelled() => return,
                error = held.place.lost() => break error.reason,
                // The mirror lives as long as its cell.
                _ = changes.changed() => {}
            }
        };
        if held.released.is_cancelled() {
            return;
        }
        let _ = held.lost.set(reason.clone());
        self.tell_lost(&held, &reason);
        self.notify();
        // What is left of it must not keep others waiting.
        self.leave(&held.place).await;
    }

    /// Gives back the locks of a file that nobody has locked any more.
    pub(super) async fn give_back_unused(self: &Arc<Self>, ino: u64) {
        let unused: Vec<Arc<Held>> = {
            let table = self.table.lock();
            let mut held = self.held.lock();
            held.extract_if(.., |held| held.ino == ino && !table.holds(ino, held.owner)).collect()
        };
        self.notify();
        for held in unused {
            held.released.cancel();
            self.give_back(ino, held.place.clone()).await;
        }
    }

    /// Leaves a place, and waits for that as long as a call may take.
    async fn give_back(self: &Arc<Self>, ino: u64, place: Arc<LockPlace>) {
        self.leaving.begin(ino);
        let (tell, told) = oneshot::channel::<()>();
        let locks = self.clone();
        self.tasks.spawn(async move {
            let left = place.leave().await;
            locks.leaving.end(&ino);
            drop(tell);
            match left {
                Ok(()) => drop(locks.places.lock().remove(&(Arc::as_ptr(&place) as u64))),
                Err(error) => {
                    tracing::warn!(%error, "a lock cannot be given back now");
                    locks.leave(&place).await;
                }
            }
        });
        // It is only ever dropped.
        let _ = told.await;
    }

    /// Leaves a place for good.
    async fn leave(&self, place: &Arc<LockPlace>) {
        for _ in 0..LEAVES {
            let Err(error) = place.leave().await else { break };
            tracing::debug!(%error, "a lock cannot be given back now");
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LEAVE_PAUSE) => {}
            }
        }
        self.places.lock().remove(&(Arc::as_ptr(place) as u64));
    }

    /// Fails if a lock that was taken through this open file is lost.
    pub fn refuse_if_lost(&self, ino: u64, handle: u64) -> Result<()> {
        let held = self.held.lock().clone();
        let table = self.table.lock();
        let through = |held: &&Arc<Held>| held.ino == ino && table.holds_through(ino, held.owner, handle);
        match held.iter().filter(through).find_map(|held| held.error()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The process of this mount that holds a lock.
    pub fn holder_here(&self, cell: &Cell, dir: &TopoPath) -> Option<(u64, u32)> {
        let held = self.held.lock();
        held.iter().find(|held| held.lost.get().is_none() && held.is(cell, dir)).map(|held| (held.owner, held.pid))
    }

    /// What a change of a record carries along: every lock of this mount on a directory above. Fails with EIO if one of them is
    /// lost, unless whoever saves descends from a process that holds one now.
    pub fn fences(&self, cell: &Cell, path: &TopoPath, saver: Saver) -> Result<Vec<Change>> {
        let held: Vec<Arc<Held>> = {
            let held = self.held.lock();
            let above = |held: &&Arc<Held>| {
                held.place.cell().name == cell.name && path.below(held.place.dir()).is_some_and(|rest| !rest.is_empty())
            };
            held.iter().filter(above).cloned().collect()
        };
        let (lost, good): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.lost.get().is_some());
        if let Some(error) = lost.first().and_then(|held| held.error())
            && !good.iter().any(|held| descends_from(saver.process, held.pid))
        {
            return Err(error);
        }
        Ok(good.iter().filter_map(|held| held.place.fence()).collect())
    }

    /// Takes a directory's lock for one save, unless this mount has it. Fails with EBUSY if somebody else has.
    pub async fn for_save(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        reason: &Reason,
        saver: Saver,
    ) -> Result<Temporary> {
        if self.held.lock().iter().any(|held| held.is(cell, dir)) {
            return Ok(Temporary(None));
        }
        let taken = match self.take_if_free(cell, dir, (0, saver.process), contents(reason)).await {
            // Nothing is there that anybody could have locked.
            Err(error) if error.kind == Kind::NotFound => return Ok(Temporary(None)),
            // Where the service has no room for a lock, nobody else gets one either; and only a removal can succeed.
            Err(error) if error.kind == Kind::NoSpace => {
                return match cell.holder_now(dir).await? {
                    None => Ok(Temporary(None)),
                    Some(holder) => Err(busy(cell, dir, Some(&holder))),
                };
            }
            taken => taken?,
        };
        match taken {
            Ok(place) => Ok(Temporary(Some(self.note(place, (0, self.number(), saver.process))?))),
            Err(holder) => Err(busy(cell, dir, holder.as_ref())),
        }
    }

    /// Fails with EBUSY if somebody else holds the lock of a directory.
    pub async fn refuse_if_foreign(&self, cell: &Cell, dir: &TopoPath) -> Result<()> {
        let snapshot = cell.snapshot().await?;
        match cell.holder(&snapshot, dir) {
            Some(holder) if self.pid_of(&holder).is_none() && cell.still_locked(&holder).await? => {
                Err(busy(cell, dir, Some(&holder)))
            }
            _ => Ok(()),
        }
    }

    /// Gives back what was taken for a save.
    pub async fn end_save(self: &Arc<Self>, temporary: Temporary) {
        let Temporary(Some(held)) = temporary else { return };
        held.released.cancel();
        self.held.lock().retain(|other| other.number != held.number);
        self.give_back(0, held.place.clone()).await;
    }
}

fn busy(cell: &Cell, dir: &TopoPath, holder: Option<&Node>) -> Error {
    let who = holder.map_or_else(|| "another".to_owned(), |node| in_words(&node.value));
    Error::new(Kind::Busy, format!("{}/{dir} is locked by {who}", cell.name))
}
