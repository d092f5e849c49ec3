//! What a change set means for the cells that it concerns. Sends nothing.

use std::sync::Arc;

use super::FindLive;
use crate::backend::{Action, Change};
use crate::error::{Error, Kind, Result};
use crate::record::Records;
use crate::store::change_set::{ChangeSet, Staged};
use crate::store::live::Live;
use crate::store::moment::Part;

/// The changes of a set by cell, the global topology first.
pub(super) struct Plan<'a> {
    /// The name of the set.
    pub name: Arc<str>,
    pub lives: Vec<Live>,
    /// For each cell: what is staged there.
    pub staged: Vec<Vec<&'a Staged>>,
    /// For each cell: the changes, in the same order.
    pub changes: Vec<Vec<Change>>,
}

impl<'a> Plan<'a> {
    /// Fails with EBADMSG if a record does not decode, and if a cell is not shown any more.
    pub fn new(live: FindLive<'_>, records: &Records, set: &'a ChangeSet) -> Result<Self> {
        let mut all: Vec<(&Staged, Change)> =
            set.changes.iter().filter_map(|staged| Some((staged, staged.change()?))).filter(is_change).collect();
        all.sort_by(|(one, _), (other, _)| order(one).cmp(&order(other)));
        let mut plan = Self { name: set.name.clone(), lives: Vec::new(), staged: Vec::new(), changes: Vec::new() };
        for (staged, change) in all {
            let at = &staged.at;
            if let Action::Put(value) = &change.action {
                let named = |error: Error| Error { reason: format!("{at}: {}", error.reason), ..error };
                records.check(&at.cell, &at.path, value).map_err(named)?;
            }
            if plan.lives.last().is_none_or(|live| live.cell.name != at.cell) {
                let gone = || Error::new(Kind::NotFound, format!("{at}: there is no such cell any more"));
                plan.lives.push(live(&at.cell).ok_or_else(gone)?);
                plan.staged.push(Vec::new());
                plan.changes.push(Vec::new());
            }
            plan.staged.last_mut().into_iter().for_each(|cell| cell.push(staged));
            plan.changes.last_mut().into_iter().for_each(|cell| cell.push(change.clone()));
        }
        Ok(plan)
    }

    pub fn parts(&self) -> Vec<Part<'_>> {
        self.lives.iter().zip(&self.changes).map(|(live, changes)| Part { live, changes }).collect()
    }
}

/// A record that would be stored as it is makes no version.
fn is_change((staged, _): &(&Staged, Change)) -> bool {
    staged.base.as_ref().map(|base| &base.value) != staged.now.as_ref()
}

fn order(staged: &Staged) -> (bool, &crate::name::CellPath) {
    (!staged.at.cell.is_global(), &staged.at)
}
