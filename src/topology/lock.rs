//! A lock of the topology for one piece of work. Must always give it back: also when the work fails, when the lock is
//! lost, and when the user interrupts it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::backend::Change;
use crate::cells::lock_text::{Reason, contents, in_words};
use crate::cells::{Cell, LockPlace};
use crate::error::{Error, Kind, Result};
use crate::name::TopoPath;
use crate::users::user_name;

/// Attempts to give a lock back. After these, only the end of its lease or session does.
const LEAVES: usize = 3;
/// Pause between them.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

/// How to wait for a lock, and when to give up.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How long to wait.
    pub timeout: Duration,
    /// Cancelled if the user interrupts the work.
    pub stop: CancellationToken,
}

/// A lock that is held.
#[derive(Debug)]
pub struct TopologyLock<'a>(&'a LockPlace);

impl TopologyLock<'_> {
    /// The guard of a change that needs the lock.
    pub fn guard(&self) -> Result<Change> {
        self.0.fence().ok_or_else(|| Error::new(Kind::LockLost, "the lock has no node"))
    }
}

/// The error of work that the user has interrupted.
pub fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted")
}

/// Does a piece of work while holding the lock of a directory, in the text that Vitess writes. Fails with EBUSY, naming
/// the holder, if the lock does not become free in time, and with ENOENT if nothing is stored in the directory.
pub async fn under_lock<T>(
    cell: &Arc<Cell>,
    dir: &TopoPath,
    action: &str,
    patience: &Patience,
    work: impl AsyncFnOnce(&TopologyLock<'_>) -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + patience.timeout;
    let user = user_name(nix::unistd::geteuid().as_raw()).await;
    let text = contents(&Reason { action: action.to_owned(), user });
    // Not given up halfway, because the place would stay until its lease ends. The service has its own time limit.
    let place = cell.stand_in_line(dir, &text).await?;
    place.announce();
    let held = tokio::select! {
        biased;
        () = patience.stop.cancelled() => Err(interrupted()),
        held = timeout_at(end, place.hold()) => held.unwrap_or_else(|_| Err(Error::new(Kind::WouldBlock, "time out"))),
    };
    let lock = TopologyLock(&place);
    let outcome = match held {
        Ok(()) => tokio::select! {
            biased;
            () = patience.stop.cancelled() => Err(interrupted()),
            lost = place.lost() => Err(lost),
            outcome = work(&lock) => outcome,
        },
        Err(error) if error.kind == Kind::WouldBlock => Err(busy(cell, dir, patience.timeout).await),
        Err(error) => Err(error),
    };
    give_back(&place).await;
    outcome
}

async fn busy(cell: &Cell, dir: &TopoPath, waited: Duration) -> Error {
    let holder = cell.holder_now(dir).await.ok().flatten();
    let holder = holder.map_or_else(|| "another".to_owned(), |node| in_words(&node.value));
    let waited = humantime::format_duration(waited);
    Error::new(
        Kind::Busy,
        format!("{}/{dir} is locked by {holder}: it did not become free in {waited} (--lock-timeout)", cell.name),
    )
}

async fn give_back(place: &LockPlace) {
    for attempt in 1.. {
        let Err(error) = place.leave().await else { return };
        if attempt == LEAVES {
            tracing::warn!(%error, dir = %place.dir(), "the lock is not given back: it ends with its lease or session");
            return;
        }
        sleep(LEAVE_PAUSE).await;
    }
}
