//! Locks a directory of the topology for a program: finds what the program already has, stands in line, waits, gives
//! up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::held::try_to_hold;
use super::held::{Held, Locks, Parked, ending};
use super::line::{Taken, Who};
use super::patience::{Ended, SECOND_LOOK, interrupted};
use super::table::Range;
use crate::cells::{Cell, LockPlace};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;
use crate::process::has_ended;

/// How long to keep the place of an interrupted waiter: after a handled signal, its call restarts at once.
const PARKED: Duration = Duration::from_secs(1);
/// How often to look at a lock whose process has ended, until it is released.
const LOOKS: usize = 10;
/// How many places a waiting request may lose before it fails. (It loses one if its lease ends while the service is
/// away.)
const PLACES: usize = 2;

/// A request for a lock.
#[derive(Debug, Clone)]
pub struct Request {
    /// The file.
    pub ino: u64,
    /// Which bytes, and for whom.
    pub range: Range,
    /// The thread that waits.
    pub thread: u32,
    /// Whether to wait until it is free.
    pub wait: bool,
}

impl Who {
    pub fn asks(request: &Request) -> Self {
        Self { ino: request.ino, pid: request.range.pid, uid: Some(request.range.uid) }
    }
}

/// What a request finds.
enum Found {
    /// Its owner has the lock already.
    Mine(Arc<Held>),
    /// Another thread of its owner is waiting for it.
    Coming,
    /// Nothing. The table now has it as waiting.
    Nothing,
}

impl Locks {
    /// Locks a directory of a topology. The range of the request matters only for unlocking: there is only one lock.
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
                held = try_to_hold(&place) => match held {
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

    /// Waits until the other call, of the same process or through the same open file, has the lock that this request
    /// wants.
    async fn shared(&self, request: &Request, changes: &mut watch::Receiver<u64>) -> Result<()> {
        loop {
            if self.share(request)?.is_some() {
                return Ok(());
            }
            // These live as long as the mount.
            let _ = changes.changed().await;
        }
    }

    /// Locks a directory if it is free now.
    async fn try_dir(self: &Arc<Self>, cell: &Arc<Cell>, dir: &TopoPath, request: &Request, text: Bytes) -> Result<()> {
        self.settled(cell, dir, request.ino).await;
        match self.take(cell, dir, Who::asks(request), text, Duration::ZERO).await? {
            Taken::Place(place) => self.keep(place, request).await,
            Taken::Ours | Taken::Other(_) => Err(would_block()),
        }
    }

    /// Waits for releases of this mount that are still in flight. The kernel does not wait for them, and can report the
    /// end of one process and the start of the next at the same time.
    pub async fn settled(&self, cell: &Cell, dir: &TopoPath, ino: u64) {
        let abandoned = || {
            let holder = cell.holder(&cell.mirror.snapshot(), dir);
            holder.and_then(|node| self.pid_of(&node)).is_some_and(|pid| pid != 0 && has_ended(pid))
        };
        for _ in 0..LOOKS {
            self.leaving.wait(&ino).await;
            // Its descriptor may still be open in another process.
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

    /// What the caller already has: by the same owner, or by the other call.
    fn share(&self, request: &Request) -> Result<Option<Arc<Held>>> {
        let key = (request.ino, request.range.owner);
        let mut table = self.table.lock();
        let held = self.held.lock();
        let own = held.iter().find(|held| held.is_owned_by(key));
        let Some(mine) =
            own.or_else(|| held.iter().find(|held| held.is_shared_with(&table, request.ino, &request.range)))
        else {
            return Ok(None);
        };
        if mine.lost.get().is_none() {
            table.set(request.ino, request.range.clone())?;
            mine.add_owner(key.1);
        }
        Ok(Some(mine.clone()))
    }

    /// Waits until the places of ended waiters are left.
    pub(super) async fn tidied(&self) {
        for _ in 0..LOOKS {
            if !self.parked.lock().values().any(|parked| has_ended(parked.thread)) {
                break;
            }
            tokio::time::sleep(SECOND_LOOK).await;
        }
    }

    /// Keeps the place of a waiter that probably comes again.
    fn park(self: &Arc<Self>, key: (u64, u64), thread: u32, place: Arc<LockPlace>, why: Ended) {
        let (locks, number) = (self.clone(), self.number());
        if why != Ended::Gone {
            self.parked.lock().insert(key, Parked { number, place: place.clone(), thread });
        }
        self.tasks.spawn(async move {
            if why != Ended::Gone {
                // A process that has ended does not come again.
                let until = Instant::now() + PARKED;
                while Instant::now() < until && !has_ended(thread) {
                    tokio::time::sleep(SECOND_LOOK).await;
                }
                let mut parked = locks.parked.lock();
                // Meanwhile, its waiter may have taken it up and parked it again.
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
}

pub(super) fn would_block() -> Error {
    Error::new(Kind::WouldBlock, "somebody else holds the lock")
}
