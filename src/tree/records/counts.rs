//! Counts what the tree holds, for `.topofs/status`. Must never spend more than a small part of the time on that.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::RecordFiles;
use crate::control::{ControlFile, NAMED_SCRATCH, TreeCounts};
use crate::mirror::Snapshot;
use crate::name::CellName;
use crate::store::Store;

/// Counting all records takes at most one part in so many of the time, however often somebody looks: a count is used
/// for so many times as long as the counting took.
const SHARE: u32 = 20;

/// Stored keys that have the name of a decoded form, by cell. They are counted once for each state that somebody looks
/// at.
#[derive(Debug, Default)]
pub(crate) struct Shadowed(Mutex<HashMap<CellName, Counted>>);

#[derive(Debug)]
struct Counted {
    of: Weak<Snapshot>,
    count: usize,
    /// They are not counted again before this.
    until: Instant,
}

impl Shadowed {
    fn count(&self, cell: &CellName, snapshot: &Arc<Snapshot>, shadows: impl Fn(&Snapshot) -> usize) -> usize {
        let state = Arc::downgrade(snapshot);
        let known = |counted: &Counted| counted.of.ptr_eq(&state) || Instant::now() < counted.until;
        if let Some(counted) = self.0.lock().get(cell).filter(|counted| known(counted)) {
            return counted.count;
        }
        let began = Instant::now();
        let count = shadows(snapshot);
        let until = Instant::now() + began.elapsed().saturating_mul(SHARE).min(Duration::from_secs(1));
        self.0.lock().insert(cell.clone(), Counted { of: state, count, until });
        count
    }
}

impl RecordFiles {
    /// What a file of `.topofs` shows of the tree. What takes long to count is left out if the file does not show it.
    pub(crate) fn counts(&self, file: ControlFile) -> TreeCounts {
        let (scratch, local_directories) = self.scratch.survey();
        let (quota, used) = self.scratch.usage();
        TreeCounts {
            inodes: self.kernel.count(),
            handles: self.handles.count(),
            scratch_files: scratch.len(),
            scratch: scratch.iter().take(NAMED_SCRATCH).map(ToString::to_string).collect(),
            scratch_bytes: (used, quota),
            spaces: Vec::new(),
            local_directories,
            shadowed_forms: if file == ControlFile::Status { self.shadowed_forms() } else { 0 },
            locks: self.locks.counts(),
            caches: vec![("forms", self.codec.cache()), ("links", self.views.cache()), ("reads", self.memory.cache())],
            events_lost: self.kernel.lost(),
            request_timeout: self.options.request_timeout,
        }
    }

    fn shadowed_forms(&self) -> usize {
        let in_cell = |store: &dyn Store| {
            let cell = store.cell();
            self.shadowed.count(cell, &store.known(), |snapshot| {
                snapshot.records.keys().filter(|path| self.shadows(cell, snapshot, path)).count()
            })
        };
        self.stores.all().iter().map(|store| in_cell(&**store)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_records_are_counted_once_for_a_state() {
        let (shadowed, cell) = (Shadowed::default(), CellName::global());
        let counted = std::cell::Cell::new(0);
        let count = |snapshot: &Arc<Snapshot>| {
            shadowed.count(&cell, snapshot, |_| {
                counted.set(counted.get() + 1);
                counted.get()
            })
        };
        let (first, second) = (Arc::new(Snapshot::default()), Arc::new(Snapshot::default()));
        assert_eq!((count(&first), count(&first), count(&first)), (1, 1, 1));
        // Counting took almost no time. Another state is counted as soon as the count is too old.
        while count(&second) == 1 {
            std::thread::yield_now();
        }
        assert_eq!((count(&second), counted.get()), (2, 2));
    }
}
