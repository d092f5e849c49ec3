//! Locks for which a save has waited in vain. Their holders keep them for longer, so the next save need not wait again.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::backend::{Node, Revision};
use crate::name::{CellName, TopoPath};

/// How long a save waits for a lock that no save has taken, because the lock may be about to go: a process ends, its
/// lock goes, and others hear of it, in three steps.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Number of locks to remember: one program may remove the records below many of them (`rm -r`). For any further lock,
/// each save waits.
const REMEMBERED: usize = 256;

/// The locks that have outlasted a wait less than [`GRACE`] ago.
#[derive(Debug, Default)]
pub(super) struct Staying(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    cell: CellName,
    path: TopoPath,
    created: Revision,
    found: Instant,
}

impl Staying {
    /// Whether a save has just waited for this lock in vain.
    pub fn contains(&self, cell: &CellName, node: &Node) -> bool {
        let mut known = self.0.lock();
        known.retain(|lock| lock.found.elapsed() < GRACE);
        known.iter().any(|lock| lock.cell == *cell && lock.path == node.path && lock.created == node.version.created)
    }

    /// A save has waited for this lock in vain.
    pub fn note(&self, cell: &CellName, node: &Node) {
        let mut known = self.0.lock();
        known.retain(|lock| lock.cell != *cell || lock.path != node.path);
        if known.len() < REMEMBERED {
            let (path, created) = (node.path.clone(), node.version.created);
            known.push(Known { cell: cell.clone(), path, created, found: Instant::now() });
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::backend::{Role, Version};

    fn lock(path: &str, created: u64) -> Node {
        let version = Version { number: 1, written: Revision(created), created: Revision(created) };
        let path = TopoPath::parse(path).unwrap();
        Node { path, value: Bytes::new(), version, role: Role::Record, modified: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_stays_is_remembered_for_a_moment_and_its_successor_is_another() {
        let (staying, global) = (Staying::default(), CellName::global());
        staying.note(&global, &lock("a", 1));
        assert!(staying.contains(&global, &lock("a", 1)));
        assert!(!staying.contains(&CellName::new("zone1").unwrap(), &lock("a", 1)), "another cell");
        assert!(!staying.contains(&global, &lock("b", 1)), "another lock");
        assert!(!staying.contains(&global, &lock("a", 2)), "the same name, taken anew");
        staying.note(&global, &lock("a", 2));
        assert!(!staying.contains(&global, &lock("a", 1)) && staying.contains(&global, &lock("a", 2)));
        tokio::time::advance(GRACE).await;
        assert!(!staying.contains(&global, &lock("a", 2)), "it may be on its way out by now");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_remembered() {
        let (staying, global) = (Staying::default(), CellName::global());
        for number in 0..=REMEMBERED {
            staying.note(&global, &lock(&number.to_string(), 1));
        }
        assert!(staying.contains(&global, &lock(&(REMEMBERED - 1).to_string(), 1)));
        assert!(!staying.contains(&global, &lock(&REMEMBERED.to_string(), 1)), "a save waits for it again");
        assert_eq!(staying.0.lock().len(), REMEMBERED);
    }
}
