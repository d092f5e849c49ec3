//! Locks of files. The locks of `.lock` files are the topology's own; the locks of all other files concern this mount
//! only.
//!
//! Each file knows only the files before it in this list:
//!
//! - `table` knows who of this mount holds which bytes; `patience` knows how long a caller waits; `bounds` limits how
//!   many wait; `cells/lock_text` writes what stands in a lock; `names` names locks and processes in events;
//! - `save_turns`, `staying` and `times_left` remember things for the saves and the report;
//! - `held` has the locks that this mount holds, and releases them;
//! - `line` stands in a service's line; `acquire` locks a directory for a program; `saving` has the locks that a save
//!   needs;
//! - `events` writes events for locks that come and go; `report` shows all of them and breaks them.
//!
//! # The order of locks
//!
//! **Our own mutexes.** A thread may take a mutex while it holds those before it in one of these rows. No other two are
//! held together, and none is held across an await:
//!
//! - `acquiring`, `table`, `held`, then the owners of one [`held::Held`];
//! - `places`, then `entering`, or the counts of a [`bounds::Bound`], or the state that a backend keeps of one place.
//!
//! **The locks of the service.** A save that needs several takes them in the order of their paths, and gives them back
//! in the opposite order, so two saves never wait for each other. Before a save stands in a service's line, it waits
//! for its turn among this mount's own saves (`save_turns`), lock by lock in the same order. A turn is the only thing
//! here that is held across an await. A program chooses the order of its own locks: two programs may wait for each
//! other until one is interrupted. A save waits ten seconds at most for each lock.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};

mod acquire;
mod bounds;
mod events;
mod held;
mod line;
mod names;
mod patience;
mod report;
mod save_turns;
mod saving;
mod staying;
mod table;
mod times_left;

pub use crate::cells::lock_text::{Reason, contents, host_name};
pub use crate::users::user_name;
pub use acquire::Request;
pub use held::Locks;
pub use patience::{Ended, Patience};
pub use saving::{Fence, Temporary};
pub use table::Range;

use acquire::would_block;
use held::ending;
use patience::{SECOND_LOOK, interrupted};

impl Locks {
    /// The watch over threads that wait.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Locks bytes of a file that concerns only this mount.
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
                Err(Error::new(Kind::Deadlock, "the waiting processes would wait for each other"))
            }
            Some(_) => Ok(false),
        }
    }

    /// A conflicting lock of somebody else on this mount.
    pub fn conflict(&self, ino: u64, range: &Range) -> Option<Range> {
        self.table.lock().conflict(ino, range).cloned()
    }

    /// Removes the locks that the owner of a range has there by the same call.
    pub async fn unlock(self: &Arc<Self>, ino: u64, range: &Range) -> Result<()> {
        self.table.lock().unset(ino, range.owner, range.by, range.start, range.end)?;
        self.give_back_unused(ino).await;
        Ok(())
    }

    /// A process has closed a descriptor of a file: its POSIX locks end with the first closed descriptor, whichever it
    /// is.
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

    /// The last descriptor of an open file is gone, so all locks through it end. `owner` is the owner of its flock(2)
    /// locks.
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
}
