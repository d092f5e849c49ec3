//! Follows the mirrors of all cells: invalidates what has changed, and a whole cell as soon as its watch is silent.
//! Must never let anything last that nobody would invalidate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::batches::{Updates, next};
use crate::alive;
use crate::cells::{Cell, Cells, KnownLocks};
use crate::control::Control;
use crate::mirror::{Snapshot, Update};
use crate::name::CellName;
use crate::tree::Tree;
use crate::tree::kernel::Kernel;
use crate::tree::kernel::followed::Followed;
use crate::tree::records::RecordFiles;

/// The records of a cell that its watchers have been shown, wherever the cell was then; `None` if they were never shown
/// any. It outlives the cell. Only one task holds it, the one that announces the cell's changes.
pub(super) type Shown = Arc<tokio::sync::Mutex<Option<Snapshot>>>;

/// Follows the cells of a tree, and those that will appear.
#[derive(Debug)]
pub(super) struct Follower {
    pub records: Arc<RecordFiles>,
    pub cells: Arc<Cells>,
    pub kernel: Arc<Kernel>,
    pub control: Arc<Control>,
    /// What was announced last for the cells of each name: records, and who holds locks.
    pub announced: Mutex<BTreeMap<CellName, (Shown, KnownLocks)>>,
}

/// Follows the cells of a tree from now on, and those that appear.
pub fn follow(tree: &Tree) {
    let follower = Arc::new(Follower {
        records: tree.records().clone(),
        cells: tree.cells().clone(),
        kernel: tree.kernel().clone(),
        control: tree.control().clone(),
        announced: Mutex::default(),
    });
    for cell in follower.cells.all() {
        follower.follow(&cell);
    }
}

impl Follower {
    /// Announces what happens in a cell from now on. If the cell was elsewhere before, or was not shown for a while,
    /// its watchers get events for the differences.
    ///
    /// After a panic nobody would invalidate what becomes old. So the kernel keeps nothing of the cell until it is
    /// followed again; then watchers get events for the differences. Meanwhile every answer comes from the mirror,
    /// which is current.
    pub fn follow(self: &Arc<Self>, cell: &Arc<Cell>) {
        self.follow_after(cell, alive::Pauses::default());
    }

    fn follow_after(self: &Arc<Self>, cell: &Arc<Cell>, mut panics: alive::Pauses) {
        // Subscribed before anything lasting is replied.
        let (first, updates) = (cell.mirror.subscribe(), cell.mirror.subscribe());
        let Some(followed) = self.kernel.follow(cell) else { return };
        let (records, locks) = self.announced.lock().entry(cell.name.clone()).or_default().clone();
        self.records.locks.follow(cell);
        let (all, cell) = (self.clone(), cell.clone());
        let background = self.records.background.clone();
        let (follower, followed_cell) = (self.clone(), cell.clone());
        let task = async move {
            // If the cell is another place now, the kernel has been shown records of the old place.
            all.kernel.invalidate_cell(&cell.name).await;
            let mut shown = None;
            tokio::select! {
                () = background.stop.cancelled() => return,
                () = cell.replaced() => {}
                () = all.invalidate_batches(&cell, &followed, first) => {}
                () = all.announce(&cell, updates, &records, &mut shown) => {}
                () = all.announce_locks(&cell, &locks) => {}
                () = all.guard_freshness(&cell, &followed) => {}
            }
            all.kernel.invalidate_cell(&cell.name).await;
            if let Some(shown) = shown.filter(|_| all.cells.get(&cell.name).is_none()) {
                all.announce_end(&cell, shown).await;
            }
        };
        let stop = self.records.background.stop.clone();
        self.records.background.tasks.spawn(async move {
            let (all, cell) = (follower, followed_cell);
            if alive::guarded(format!("the follower of {}", cell.name), task).await.is_ok() {
                return;
            }
            all.kernel.unfollow(&cell);
            all.kernel.invalidate_cell(&cell.name).await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = cell.replaced() => {}
                () = tokio::time::sleep(panics.pause()) => all.follow_after(&cell, panics),
            }
        });
    }

    /// Makes the kernel ask again about everything as soon as a cell's watch is not delivering: what the kernel keeps
    /// may be old by then, and must be gone when the cell is no longer shown.
    async fn guard_freshness(&self, cell: &Cell, followed: &Followed) {
        /// How often to look at the watch.
        const LOOK: Duration = Duration::from_millis(250);
        let (mut invalidated, mut was_known) = (0, true);
        loop {
            // Links to what is in a cell depend on whether it is known.
            let is_known = cell.mirror.is_loaded() && !cell.mirror.is_denied();
            if std::mem::replace(&mut was_known, is_known) != is_known {
                self.records.announce_all_links();
            }
            if !cell.mirror.is_fresh() {
                let lasting = followed.lasting();
                if lasting != invalidated {
                    cell.mirror.counters.silences.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(cell = %cell.name, "the watch is silent: the kernel keeps nothing of the cell");
                    self.kernel.invalidate_cell(&cell.name).await;
                    invalidated = lasting;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes the kernel ask again about what has changed, at once. The announcement may come later: it may have to wait
    /// for a commit of this mount.
    async fn invalidate_batches(&self, cell: &Cell, followed: &Followed, mut updates: Updates) {
        cell.mirror.loaded().await;
        let mut seen = Snapshot::clone(&cell.mirror.snapshot());
        while let Some(batch) = next(cell, &mut updates, &seen).await {
            // The first list is no change, and neither is what `seen` has already.
            let changes = batch.updates.iter().filter(|update| seen.records.get(&update.path) != update.new.as_ref());
            changes.for_each(|update| followed.note_change(&update.path));
            batch.updates.iter().for_each(|update| self.records.pin_last(&cell.name, update));
            self.invalidate_updates(cell, &batch.updates).await;
            followed.has_invalidated(batch.number);
            batch.updates.iter().for_each(|update| update.apply(&mut seen));
        }
    }

    /// Waits for the files only: listings of directories are invalidated again when the event is raised.
    async fn invalidate_updates(&self, cell: &Cell, updates: &[Update]) {
        let relists = |update: &Update| update.old.is_none() || update.new.is_none();
        let concerned = updates.iter().map(|update| (&update.path, relists(update)));
        if let Some((files, _)) = self.records.invalidate(&cell.name, concerned) {
            files.done().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::faulty::{Call, Fault, Faulty};
    use crate::backend::{Action, Change, ConnectOptions, Guard, Wrap};
    use crate::name::TopoPath;
    use crate::tree::conformance;

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_panics_leaves_nothing_lasting_and_follows_again() {
        alive::note_panics();
        let made: Arc<Mutex<Option<Faulty>>> = Arc::default();
        let maker = made.clone();
        let wrap = Wrap::new(move |_, backend| {
            let faulty = Faulty::new(backend, Duration::from_secs(5));
            *maker.lock() = Some(faulty.clone());
            Arc::new(faulty)
        });
        let connect = ConnectOptions { wrap, ..ConnectOptions::default() };
        let (tree, service) = conformance::tree_over(connect, false).await;
        let faulty = made.lock().take().unwrap();
        follow(&tree);
        let cell = tree.cells().all().remove(0);
        let kernel = tree.kernel();
        assert!(kernel.count_lasting(&cell));
        // Whoever looks at the locks panics: this follower, and that of the locks of files.
        for nth in 1..=4 {
            let _ = faulty.clone().on(Call::LockedDir, faulty.count(Call::LockedDir) + nth, Fault::Panic);
        }
        let dir = TopoPath::parse("keyspaces/commerce").unwrap();
        let place = service.enter(&dir, &"{}".into()).await.unwrap();
        let until = async |what: &dyn Fn() -> bool| {
            let wait = async {
                while !what() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(300), wait).await.expect("it happens");
        };
        until(&|| !kernel.count_lasting(&cell)).await;
        let panics = alive::panics();
        let known = panics.known().find(|panic| panic.task == "the follower of global").expect("it is remembered");
        assert!(known.at.contains("faulty.rs") && known.message.contains("LockedDir"), "{known:?}");
        // It is begun again, and what has changed meanwhile is announced.
        let path = TopoPath::parse("metadata/later").unwrap();
        let change = Change { path, guard: Guard::Any, action: Action::Put("x".into()) };
        service.apply(&[change]).await.unwrap();
        let events = || String::from_utf8(tree.control().events.read_at(0, usize::MAX).to_vec()).unwrap();
        until(&|| kernel.count_lasting(&cell) && events().contains("metadata/later")).await;
        place.leave().await.unwrap();
        tree.shutdown().await;
    }
}
