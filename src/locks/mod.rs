//! Locks of files: those of `.lock` files are the topology's own, all others are this mount's affair.
//!
//! `table` knows who of this mount holds what, `held` the topology's locks that this mount holds or waits for, `saving` what a
//! save needs of them, `patience` how long a caller waits, `bounds` how many of them, `contents` and `users` what stands in a
//! lock, `report` shows them all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cells::LockPlace;
use crate::control::Control;
use crate::error::{Error, Kind, Result};
use crate::in_flight::InFlight;

mod bounds;
mod contents;
mod held;
mod news;
mod patience;
mod report;
mod saving;
mod table;
mod users;

pub use contents::{Reason, contents, host_name};
pub use patience::{Ended, Patience};
pub use saving::{Fence, Saver, Temporary};
pub use table::Range;
pub use users::user_name;

use bounds::{Bound, PLACES, Share, WAITERS};
use held::Held;
use table::Table;

/// Pause after which a lock that nobody would wait for is looked at again: the kernel passes on the end of one process and the
/// beginning of the next at the same time.
const SECOND_LOOK: Duration = Duration::from_millis(10);

/// A lock that is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The file.
    pub ino: u64,
    /// Which bytes, for whom.
    pub range: Range,
    /// The thread that waits.
    pub thread: u32,
    /// Wait until it is free.
    pub wait: bool,
}

/// A place whose waiter was interrupted.
#[derive(Debug)]
struct Parked {
    number: u64,
    place: Arc<LockPlace>,
    thread: u32,
}

/// A place that this mount stands at in a line.
#[derive(Debug)]
struct Standing {
    place: Arc<LockPlace>,
    /// For whom.
    pid: u32,
    /// For one save, which is over soon.
    for_save: bool,
    _share: Option<Share>,
}

/// A place that is being taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entering {
    contents: Bytes,
    pid: u32,
    for_save: bool,
}

/// The locks of a mount.
#[derive(Debug)]
pub struct Locks {
    table: Mutex<Table>,
    /// Counts what may let somebody go on.
    changes: watch::Sender<u64>,
    held: Mutex<Vec<Arc<Held>>>,
    /// File and owner of those who are waiting for the topology.
    acquiring: Mutex<HashSet<(u64, u64)>>,
    /// Places of waiters that a signal has interrupted: most of them come again at once.
    parked: Mutex<HashMap<(u64, u64), Parked>>,
    /// All places, so that none is left behind.
    places: Mutex<HashMap<u64, Standing>>,
    /// Places that are being taken: the mirror may hear of them first.
    entering: Mutex<Vec<Entering>>,
    waiters: Arc<Bound>,
    standing: Arc<Bound>,
    saves: saving::Saves,
    times_left: report::TimesLeft,
    /// Locks of files that are being given back.
    leaving: InFlight<u64>,
    last: AtomicU64,
    /// Nobody waits any more.
    closing: CancellationToken,
    patience: Patience,
    control: Arc<Control>,
    /// The cells whose locks are told of, and what was told of them last.
    followed: Mutex<HashMap<crate::name::CellName, (std::sync::Weak<crate::cells::Cell>, crate::cells::KnownLocks)>>,
    tasks: TaskTracker,
    stop: CancellationToken,
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
            saves: saving::Saves::default(),
            times_left: report::TimesLeft::default(),
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

    /// Locks bytes of a file that is this mount's affair.
    pub async fn lock_file(&self, request: &Request) -> Result<()> {
        let Request { ino, range, thread, wait } = request;
        let mut changes = self.changes.subscribe();
        let mut looked = false;
        let mut counted = None;
        let _waiting = scopeguard::guard((), |()| self.table.lock().stop_waiting(range.owner));
        let ended = self.patience.ended(*thread);
        tokio::pin!(ended);
        loop {
            changes.mark_unchanged();
            match self.try_lock(*ino, range, *wait)? {
                true => return Ok(()),
                false if *wait => {}
                false if looked => return Err(would_block()),
                false => {
                    looked = true;
                    tokio::time::sleep(SECOND_LOOK).await;
                    continue;
                }
            }
            if counted.is_none() {
                counted = Some(self.waiters.take(range.uid)?);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = self.closing.cancelled() => return Err(ending()),
                why = &mut ended => return Err(interrupted(why)),
            }
        }
    }

    fn try_lock(&self, ino: u64, range: &Range, wait: bool) -> Result<bool> {
        let mut table = self.table.lock();
        match table.conflict(ino, range).map(|other| other.owner) {
            None => {
                table.set(ino, range.clone())?;
                drop(table);
                // An exclusive lock may have become a shared one.
                self.notify();
                Ok(true)
            }
            Some(holder) if wait && !table.wait_for(range.owner, holder) => {
                Err(Error::new(Kind::Deadlock, "those who wait would wait for each other"))
            }
            Some(_) => Ok(false),
        }
    }

    /// A lock of somebody else on this mount that is in the way.
    pub fn conflict(&self, ino: u64, range: &Range) -> Option<Range> {
        self.table.lock().conflict(ino, range).cloned()
    }

    /// Unlocks what the owner of a range has locked there by the same call.
    pub async fn unlock(self: &Arc<Self>, ino: u64, range: &Range) -> Result<()> {
        self.table.lock().unset(ino, range.owner, range.by, range.start, range.end)?;
        self.give_back_unused(ino).await;
        Ok(())
    }

    /// A process has closed a descriptor of a file: POSIX locks end with the first, whichever it is.
    pub async fn closed(self: &Arc<Self>, ino: u64, owner: u64) {
        {
            let mut table = self.table.lock();
            if !table.holds(ino, owner) {
                return;
            }
            table.clear(ino, owner);
        }
        self.give_back_unused(ino).await;
    }

    /// The last descriptor of an open file is gone: all that was taken through it ends. `owner` is that of its flock(2) locks.
    pub async fn released(self: &Arc<Self>, ino: u64, handle: u64, owner: Option<u64>) {
        {
            let mut table = self.table.lock();
            if table.is_empty() {
                return;
            }
            table.drop_handle(ino, handle);
            if let Some(owner) = owner {
                table.clear(ino, owner);
            }
        }
        self.give_back_unused(ino).await;
    }

    /// Ends all waits: the mount is ending.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Gives everything back, within a time.
    pub async fn shutdown(self: &Arc<Self>, patience: Duration) {
        self.close();
        self.stop.cancel();
        self.held.lock().clear();
        let places: Vec<Arc<LockPlace>> = self.places.lock().values().map(|standing| standing.place.clone()).collect();
        let leaving = places.into_iter().map(|place| async move {
            if let Err(error) = place.leave().await {
                tracing::warn!(%error, "a lock cannot be given back; it ends with its lease or session");
            }
        });
        self.tasks.close();
        let all = async {
            futures::future::join_all(leaving).await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("not all locks could be given back in time; they end with their leases or sessions");
        }
    }

    /// Locks that are held, places that are waited in, locks that are lost.
    pub fn counts(&self) -> (usize, usize, usize) {
        let (places, held) = (self.places.lock().len(), self.held.lock());
        let lost = held.iter().filter(|held| held.lost.get().is_some()).count();
        let holds = held.len() - lost;
        (holds, places.saturating_sub(holds), lost)
    }

    fn notify(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed)
    }
}

fn ending() -> Error {
    Error::new(Kind::Io, "the mount is ending")
}

fn would_block() -> Error {
    Error::new(Kind::WouldBlock, "locked by another")
}

fn interrupted(why: Ended) -> Error {
    match why {
        Ended::Signal | Ended::Gone => Error::new(Kind::Interrupted, "interrupted by a signal"),
        Ended::Limit => Error::new(
            Kind::Unreachable,
            "the lock was not free for as long as a request may wait here (fs.fuse.default_request_timeout and \
             max_request_timeout, or a caller in another pid namespace)",
        ),
    }
}
