//! Owns the cells whose changes are followed. The kernel must never keep anything of another cell, since nobody would
//! invalidate it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Kernel;
use super::invalidation::LONGEST;
use crate::cells::Cell;
use crate::name::TopoPath;

/// How many changed records are remembered for a cell.
const CHANGED: usize = 10_000;

/// A cell whose changes are followed.
#[derive(Debug)]
pub(crate) struct Followed {
    cell: Weak<Cell>,
    /// How many replies the kernel may keep until they are invalidated.
    lasting: AtomicU64,
    /// The number of the last batch that has been invalidated.
    invalidated: watch::Sender<u64>,
    /// Records that have changed, and when.
    changed: quick_cache::sync::Cache<TopoPath, Instant>,
}

impl Followed {
    /// A record has changed.
    pub fn note_change(&self, path: &TopoPath) {
        self.changed.insert(path.clone(), Instant::now());
    }

    /// Whether a record changed a moment ago, and may soon change again.
    pub fn is_changing(&self, path: &TopoPath) -> bool {
        const MOMENT: Duration = Duration::from_secs(1);
        !self.changed.is_empty() && self.changed.get(path).is_some_and(|when| when.elapsed() < MOMENT)
    }

    /// The kernel has been made to ask again about a batch and all batches before it.
    pub fn has_invalidated(&self, batch: u64) {
        self.invalidated.send_if_modified(|known| std::mem::replace(known, batch.max(*known)) < batch);
    }

    /// Waits until what the kernel keeps is no older than a batch.
    async fn wait_until_invalidated(&self, batch: u64) {
        if *self.invalidated.borrow() < batch {
            let mut known = self.invalidated.subscribe();
            let _ = tokio::time::timeout(LONGEST, known.wait_for(|known| *known >= batch)).await;
        }
    }

    /// How many lasting replies there have been so far.
    pub fn lasting(&self) -> u64 {
        self.lasting.load(Ordering::SeqCst)
    }
}

impl Kernel {
    /// Follows a cell from now on; `None` if it is followed already. The kernel keeps nothing that contradicts what was
    /// published before.
    pub fn follow(&self, cell: &Arc<Cell>) -> Option<Arc<Followed>> {
        let mut all = self.followed.lock();
        if all.get(&cell.name).is_some_and(|known| known.cell.as_ptr() == Arc::as_ptr(cell)) {
            return None;
        }
        let followed = Arc::new(Followed {
            cell: Arc::downgrade(cell),
            lasting: AtomicU64::new(0),
            invalidated: watch::Sender::new(cell.mirror.published()),
            changed: quick_cache::sync::Cache::new(CHANGED),
        });
        all.insert(cell.name.clone(), followed.clone());
        Some(followed)
    }

    /// Follows a cell no longer: no reply about it lasts.
    pub fn unfollow(&self, cell: &Arc<Cell>) {
        let mut all = self.followed.lock();
        if all.get(&cell.name).is_some_and(|known| known.cell.as_ptr() == Arc::as_ptr(cell)) {
            all.remove(&cell.name);
        }
    }

    /// What is known of a followed cell. `None` if another cell is followed under its name.
    pub fn followed(&self, cell: &Arc<Cell>) -> Option<Arc<Followed>> {
        let followed = self.followed.lock().get(&cell.name).cloned()?;
        (followed.cell.as_ptr() == Arc::as_ptr(cell)).then_some(followed)
    }

    /// Counts a lasting reply about a cell. False if nobody would invalidate the reply.
    pub fn count_lasting(&self, cell: &Arc<Cell>) -> bool {
        self.followed(cell).is_some_and(|followed| {
            followed.lasting.fetch_add(1, Ordering::SeqCst);
            true
        })
    }

    /// Waits until what the kernel keeps of a cell is no older than what was published last. An answer from that state,
    /// and the next read through the kernel's cache, must not contradict each other.
    pub async fn keeps_up(&self, cell: &Arc<Cell>) {
        if let Some(followed) = self.followed(cell).filter(|_| self.caches.get().is_some()) {
            followed.wait_until_invalidated(cell.mirror.published()).await;
        }
    }
}
