//! What a change set means for the cells that it concerns. Sends nothing.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{FindLive, cell_of};
use crate::backend::{Action, Change};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath};
use crate::record::Records;
use crate::record::messages::topodata::CellInfo;
use crate::store::change_set::{ChangeSet, Staged};
use crate::store::contract::global_first;
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
    /// Fails with EBADMSG if a record does not decode, with ENOENT if a cell is not connected, and with EINVAL if a
    /// cell moves and its records change, too: they would be changed where it was.
    pub fn new(live: FindLive<'_>, records: &Records, set: &'a ChangeSet) -> Result<Self> {
        let mut all: Vec<(&Staged, Change)> =
            set.changes.iter().filter_map(|staged| Some((staged, staged.change()?))).filter(is_change).collect();
        all.sort_by(|(one, _), (other, _)| order(&one.at, &other.at));
        let mut plan = Self { name: set.name.clone(), lives: Vec::new(), staged: Vec::new(), changes: Vec::new() };
        for (staged, change) in all {
            let at = &staged.at;
            if let Action::Put(value) = &change.action {
                let named = |error: Error| Error { reason: format!("{at}: {}", error.reason), ..error };
                records.check(&at.cell, &at.path, value).map_err(named)?;
            }
            if plan.lives.last().is_none_or(|live| live.at.cell.name != at.cell) {
                plan.lives.push(live(&at.cell).ok_or_else(|| not_connected(staged))?);
                plan.staged.push(Vec::new());
                plan.changes.push(Vec::new());
            }
            plan.staged.last_mut().into_iter().for_each(|cell| cell.push(staged));
            plan.changes.last_mut().into_iter().for_each(|cell| cell.push(change.clone()));
        }
        match plan.staged.iter().flatten().filter_map(|staged| moved(staged)).find(|cell| plan.concerns(cell)) {
            Some(cell) => {
                let reason = format!("{cell} moves with its CellInfo record: commit that by itself first");
                Err(Error::new(Kind::Invalid, reason))
            }
            None => Ok(plan),
        }
    }

    /// Whether records of a cell change.
    fn concerns(&self, cell: &str) -> bool {
        self.lives.iter().any(|live| live.at.cell.name.as_str() == cell)
    }

    pub fn parts(&self) -> Vec<Part<'_>> {
        self.lives.iter().zip(&self.changes).map(|(live, changes)| Part { at: &live.at, changes }).collect()
    }
}

/// A record that would be stored as it is makes no version.
fn is_change((staged, _): &(&Staged, Change)) -> bool {
    staged.base.as_ref().map(|base| &base.value) != staged.now.as_ref()
}

fn order(one: &CellPath, other: &CellPath) -> Ordering {
    global_first(&one.cell, &other.cell).then_with(|| one.path.cmp(&other.path))
}

/// The cell that another place is staged for.
fn moved(staged: &Staged) -> Option<&str> {
    let cell = cell_of(staged)?;
    let place = |value: &Bytes| CellInfo::decode(value.clone()).ok().map(|info| (info.server_address, info.root));
    let (base, now) = (staged.base.as_ref()?, staged.now.as_ref()?);
    (place(&base.value) != place(now)).then_some(cell)
}

fn not_connected(staged: &Staged) -> Error {
    let Staged { at, .. } = staged;
    let cell: &CellName = &at.cell;
    let reason = format!(
        "{at}: the cell {cell} is not connected: its record global/cells/{cell}/CellInfo must be committed first"
    );
    Error::new(Kind::NotFound, reason)
}
