//! The topology's locks that this mount holds or waits for.
//!
//! Every waiter stands in the service's line itself, so that hosts are served in the order in which they came, whoever they
//! are; where a service has no line (Consul), one waiter of this mount tries at a time (see [`crate::cells::LockPlace`]).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::saving::{Taken, Who};
use super::table::Table;
use super::{Ended, Entering, Locks, Parked, Request, SECOND_LOOK, Standing, ending, interrupted, would_block};
use crate::backend::Node;
use crate::cells::{Cell, LockPlace};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;
use crate::process::has_ended;

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
    pub(super) number: u64,
    /// The `.lock` file; 0 for a lock that is taken for one save.
    ino: u64,
    /// Who has locked it; several if one process, or one open file, has locked it by flock(2) and by fcntl(2).
    owners: Mutex<Vec<u64>>,
    /// The process that has locked it first; 0 if it cannot be seen.
    pub pid: u32,
    /// Why it is lost.
    pub lost: OnceLock<String>,
    /// It is given back.
    pub(super) released: CancellationToken,
}

impl Held {
    pub(super) fn is(&self, cell: &Cell, dir: &TopoPath) -> bool {
        self.place.cell().is_same_place(cell) && self.place.dir() == dir
    }

    pub(super) fn is_for_save(&self) -> bool {
        self.ino == 0
    }

    fn is_owned_by(&self, (ino, owner): (u64, u64)) -> bool {
        self.ino == ino && self.owners.lock().contains(&owner)
    }

    /// Whether a request is of the same process, or through the same open file, as what is held here, but by the other call.
    /// On a local file these do not see each other, so neither may wait for the other here.
    fn is_shared_with(&self, table: &Table, request: &Request) -> bool {
        let wanted = &request.range;
        let owners = self.owners.lock();
        let same = |range: &super::Range| {
            let is_same = range.handle == wanted.handle || (range.pid == wanted.pid && wanted.pid != 0);
            is_same && owners.contains(&range.owner)
        };
        self.ino == request.ino
            && self.lost.get().is_none()
            && wanted.by.is_some()
            && table.conflict(self.ino, &wanted.whole()).is_none()
            && table.ranges(self.ino).iter().any(same)
    }

    pub(super) fn error(&self) -> Option<Error> {
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
        let _counted = self.waiters.take(request.range.uid)?;
        loop {
            changes.mark_unchanged();
            match self.find(key, request)? {
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
                    place = self.stand(cell, dir, Who::asks(request), text.clone()) => place?,
                    () = self.closing.cancelled() => return Err(ending()),
                    why = &mut ended => return Err(interrupted(why)),
                },
            };
            tokio::select! {
                held = place.hold() => match held {
                    Ok(()) => return self.keep(place, request).await,
                    Err(error) => {
                        self.give_back(request.ino, place).await;
                        if error.kind != Kind::LockLost {
                            return Err(error);
                        }
                    }
                },
                shared = self.shared(request, &mut changes) => {
                    self.give_back(request.ino, place).await;
                    return shared;
                }
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

    /// Waits until the other call of the same process, or through the same open file, has got what is asked for.
    async fn shared(&self, request: &Request, changes: &mut watch::Receiver<u64>) -> Result<()> {
        loop {
            if self.share(request)?.is_some() {
                return Ok(());
            }
            // They live as long as the mount.
            let _ = changes.changed().await;
        }
    }

    /// Locks a directory if that is possible at once.
    async fn try_dir(self: &Arc<Self>, cell: &Arc<Cell>, dir: &TopoPath, request: &Request, text: Bytes) -> Result<()> {
        self.settled(cell, dir, request.ino).await;
        match self.take(cell, dir, Who::asks(request), text, Duration::ZERO).await? {
            Taken::Place(place) => self.keep(place, request).await,
            Taken::Ours | Taken::Other(_) => Err(would_block()),
        }
    }

    /// Waits for what has been let go of here and may still be on its way: the kernel does not wait for it, and can pass on the
    /// end of one process and the beginning of the next at the same time.
    pub async fn settled(&self, cell: &Cell, dir: &TopoPath, ino: u64) {
        let abandoned = || {
            let holder = cell.holder(&cell.mirror.snapshot(), dir);
            holder.and_then(|node| self.pid_of(&node)).is_some_and(|pid| pid != 0 && has_ended(pid))
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

    fn find(&self, key: (u64, u64), request: &Request) -> Result<Found> {
        let mut acquiring = self.acquiring.lock();
        if let Some(held) = self.share(request)? {
            return Ok(Found::Mine(held));
        }
        Ok(if acquiring.insert(key) { Found::Nothing } else { Found::Coming })
    }

    /// What is held already for whoever asks: by the same owner, or by the other call.
    fn share(&self, request: &Request) -> Result<Option<Arc<Held>>> {
        let key = (request.ino, request.range.owner);
        let mut table = self.table.lock();
        let held = self.held.lock();
        let own = held.iter().find(|held| held.is_owned_by(key));
        let Some(mine) = own.or_else(|| held.iter().find(|held| held.is_shared_with(&table, request))) else {
            return Ok(None);
        };
        if mine.lost.get().is_none() {
            table.set(request.ino, request.range.clone())?;
            let mut owners = mine.owners.lock();
            if !owners.contains(&key.1) {
                owners.push(key.1);
            }
        }
        Ok(Some(mine.clone()))
    }

    /// Stands in line. Goes on by itself when the caller gives up, and leaves the place again then.
    pub(super) async fn stand(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        dir: &TopoPath,
        who: Who,
        text: Bytes,
    ) -> Result<Arc<LockPlace>> {
        // Saves that are under way may still need one while nobody waits any more.
        if self.stop.is_cancelled() {
            return Err(ending());
        }
        // Those of saves have an order of their own.
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
            let place = cell.stand_in_line(&dir, &entering.contents).await.map(Arc::new);
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

    /// Waits for the places of waiters that have ended to be left.
    pub(super) async fn tidied(&self) {
        for _ in 0..LOOKS {
            if !self.parked.lock().values().any(|parked| has_ended(parked.thread)) {
                break;
            }
            tokio::time::sleep(SECOND_LOOK).await;
        }
    }

    fn entered(&self, known: &Entering) {
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

    async fn keep(self: &Arc<Self>, place: Arc<LockPlace>, request: &Request) -> Result<()> {
        let noted = self.table.lock().set(request.ino, request.range.clone());
        if let Err(error) = noted {
            self.give_back(request.ino, place).await;
            return Err(error);
        }
        self.note(place, (request.ino, request.range.owner, request.range.pid)).map(drop)
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

    /// Leaves a place, and waits for that as long as a call may take.
    pub(super) async fn give_back(self: &Arc<Self>, ino: u64, place: Arc<LockPlace>) {
        let in_flight = self.leaving.begin(ino);
        let (tell, told) = oneshot::channel::<()>();
        let locks = self.clone();
        self.tasks.spawn(async move {
            let left = place.leave().await;
            drop(in_flight);
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
        let through = |held: &&Arc<Held>| {
            let owners = held.owners.lock();
            held.ino == ino && owners.iter().any(|owner| table.holds_through(ino, *owner, handle))
        };
        match held.iter().filter(through).find_map(|held| held.error()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The process of this mount that holds a lock, and who of an owner and others it is for.
    pub fn holder_here(&self, cell: &Cell, dir: &TopoPath, owner: u64) -> Option<(bool, u32)> {
        let held = self.held.lock();
        let here = held.iter().find(|held| held.lost.get().is_none() && !held.is_for_save() && held.is(cell, dir))?;
        Some((here.owners.lock().contains(&owner), here.pid))
    }
}
