//! The locks at the target that a copy respects: those that the save of a file in a mount needs. Must never take one:
//! after a crash, it would be in everybody's way.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::place::{Contents, Place};
use super::plan::Plan;
use crate::backend::lock::holder;
use crate::backend::{Action, Change};
use crate::cells::lock_text::in_words;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::layout::{keyspace_dir, lock_of_save};

/// Locks that are looked at at the same time.
const IN_FLIGHT: usize = 8;
/// A lock may be on its way out: the save of a mount has one for a moment. As long as a save waits for others.
const GRACE: Duration = Duration::from_secs(1);

/// The directories whose locks protect what is to be changed, by the paths of the records.
#[derive(Debug, Default)]
pub(super) struct Locks(HashMap<TopoPath, TopoPath>);

impl Locks {
    /// The locks for the changes of a cell.
    pub fn of(cell: &CellName, plan: &Plan, target: &Contents) -> Self {
        // Only the global topology has them.
        let steps = plan.steps.iter().filter(|_| cell.is_global());
        let locks = steps.filter_map(|step| {
            let Change { path, action, .. } = &step.change;
            // The holder of a keyspace's lock may be working on anything below it.
            let above = || keyspace_dir(path).filter(|_| *action == Action::Delete);
            let dir = lock_of_save(path).or_else(above)?;
            // Nobody can lock a directory that does not exist.
            let exists =
                target.locked.contains(&dir) || target.nodes.range(dir.clone()..dir.after_subtree()).next().is_some();
            exists.then(|| (path.clone(), dir))
        });
        Self(locks.collect())
    }

    /// Why records of these changes are not stored now, by their paths: somebody holds their locks.
    pub async fn in_the_way(
        &self,
        place: &Place,
        changes: &[Change],
        stop: &CancellationToken,
    ) -> HashMap<TopoPath, String> {
        if !place.cell.is_global() {
            return HashMap::new();
        }
        let dirs = changes.iter().filter_map(|change| self.0.get(&change.path)).cloned().collect();
        let mut held = look(place, dirs).await;
        if !held.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(GRACE) => held = look(place, held.into_keys().collect()).await,
                () = stop.cancelled() => {}
            }
        }
        let reason = |change: &Change| Some((change.path.clone(), held.get(self.0.get(&change.path)?)?.clone()));
        changes.iter().filter_map(reason).collect()
    }
}

/// Which of some locks are held, and by whom. A lock that cannot be looked at counts as held.
async fn look(place: &Place, dirs: BTreeSet<TopoPath>) -> HashMap<TopoPath, String> {
    let looked = futures::stream::iter(dirs).map(async |dir| {
        let name = CellPath::new(&place.cell, &dir);
        let reason = match holder(&*place.backend, &dir).await {
            Ok(None) => None,
            Ok(Some(node)) => Some(format!("{name} is locked by {} at the target", in_words(&node.value))),
            Err(error) => Some(format!("nobody knows whether {name} is locked at the target: {error}")),
        };
        (dir, reason)
    });
    let looked: Vec<_> = looked.buffer_unordered(IN_FLIGHT).collect().await;
    looked.into_iter().filter_map(|(dir, reason)| Some((dir, reason?))).collect()
}
