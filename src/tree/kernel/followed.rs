//! The cells whose changes are followed: of these only may the kernel keep anything, since somebody tells it when that is old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Kernel;
use super::invalidation::LONGEST;
use crate::cells::Cell;
use crate::name::TopoPath;

/// Changed records remembered of a cell.
const CHANGED: usize = 10_000;

/// A cell whose changes are followed.
#[derive(Debug)]
pub(crate) struct Followed {
    cell: Weak<Cell>,
    /// Answers that the kernel may keep until it is told otherwise.
    lasting: AtomicU64,
    /// The number of the last batch that the kernel has been made to ask again about.
    invalidated: watch::Sender<u64>,
    /// Records that have changed, and when.
    changed: quick_cache::sync::Cache<TopoPath, Instant>,
}

impl Followed {
    /// A record has changed.
    pub fn note_change(&self, path: &TopoPath) {
        self.changed.insert(path.clone(), Instant::now());
    }

    /// Whether a record has changed a moment ago, and may be about to change again.
    pub fn is_changing(&self, path: &TopoPath) -> bool {
        const MOMENT: Duration = Duration::from_secs(1);
        !self.changed.is_empty() && self.changed.get(path).is_some_and(|when| when.elapsed() < MOMENT)
    }

    /// The kernel has been made to ask again about a batch and all before it.
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

    /// How many answers the kernel may keep so far.
    pub fn lasting(&self) -> u64 {
        self.lasting.load(Ordering::SeqCst)
    }
}

impl Kernel {
    /// A cell is followed from now on; `None` if it is already. What was published before is nothing that the kernel was told
    /// otherwise.
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

    /// Nobody follows a cell any more: nothing that the kernel is given of it lasts.
    pub fn unfollow(&self, cell: &Arc<Cell>) {
        let mut all = self.followed.lock();
        if all.get(&cell.name).is_some_and(|known| known.cell.as_ptr() == Arc::as_ptr(cell)) {
            all.remove(&cell.name);
        }
    }

    /// What is followed under the name of a cell, if it is still the same cell.
    pub fn followed(&self, cell: &Arc<Cell>) -> Option<Arc<Followed>> {
        let followed = self.followed.lock().get(&cell.name).cloned()?;
        (followed.cell.as_ptr() == Arc::as_ptr(cell)).then_some(followed)
    }

    /// Notes that the kernel is given something of a cell that it keeps until it is told. False if nobody would tell it.
    pub fn gives_lasting(&self, cell: &Arc<Cell>) -> bool {
        self.followed(cell).is_some_and(|followed| {
            followed.lasting.fetch_add(1, Ordering::SeqCst);
            true
        })
    }

    /// Waits until what the kernel keeps of a cell is no older than the last snapshot that was taken: what is answered from that,
    /// and what is read through the kernel's cache next, must not contradict each other.
    pub async fn keeps_up(&self, cell: &Arc<Cell>) {
        if let Some(followed) = self.followed(cell).filter(|_| self.caches.get().is_some()) {
            followed.wait_until_invalidated(cell.mirror.published()).await;
        }
    }
}
