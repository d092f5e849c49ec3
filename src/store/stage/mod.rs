//! A change set in the making: the records of all cells, each over a snapshot, with private changes. Only compares and
//! computes. Must never ask a service, or change anything but itself.
//!
//! `cell` is one cell as a [`Store`], and `ledger` what all cells of a stage have in common. `meet` decides what
//! becomes of a staged record that others have changed, and `conflict` tells it. `diff` shows changes of records as
//! changes of files, in the format of `git`.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::change_set::ChangeSet;
use super::contract::{Store, Stores, global_first};
use super::quota::Quota;
use crate::backend::Limits;
use crate::error::{Error, Kind, Result};
use crate::mirror::{Snapshot, Update};
use crate::name::{CellName, CellPath};
use crate::record::Records;

mod cell;
mod conflict;
mod diff;
mod git;
mod ledger;
mod meet;

pub use cell::StagedCell;
pub use conflict::{Conflict, Outcome, What, lines};
use diff::CellChange;
use ledger::{Ledger, Phase};

/// The records of a cell as they are now, or why they are not known, with the limits of its service.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which cell.
    pub cell: CellName,
    /// Its records.
    pub records: Result<Arc<Snapshot>>,
    /// What its service takes.
    pub limits: Limits,
}

/// How many cells of a stage may be there before they exist: each costs memory that is charged to nobody.
const MADE_CELLS: usize = 100;

/// What a rebase has done.
#[derive(Debug, Default)]
pub struct Rebased {
    /// What has changed in the stage.
    pub updates: Vec<(CellName, Update)>,
    /// What it has left to a person.
    pub left: Vec<Conflict>,
}

/// A change set in the making.
#[derive(Debug)]
pub struct Stage {
    name: Arc<str>,
    records: Arc<Records>,
    ledger: Arc<Ledger>,
    /// The global topology first.
    cells: RwLock<Vec<Arc<StagedCell>>>,
}

impl Stage {
    /// A stage over the cells that are known. A user is charged with what is staged.
    pub fn new(name: &str, records: Arc<Records>, seen: &[Seen], (quota, uid): (Quota, u32)) -> Self {
        let ledger = Arc::new(Ledger::new(quota, uid));
        let stage = Self { name: name.into(), records, ledger, cells: RwLock::default() };
        seen.iter().for_each(|seen| stage.add(seen));
        stage
    }

    /// Adds a cell, if it is known.
    fn add(&self, seen: &Seen) {
        let Ok(base) = &seen.records else { return };
        let cell =
            StagedCell::new(seen.cell.clone(), seen.limits, base.clone(), self.records.clone(), self.ledger.clone());
        let mut cells = self.cells.write();
        cells.push(Arc::new(cell));
        self.ledger.changed();
        cells.sort_by(|one, other| global_first(one.cell(), other.cell()));
    }

    /// Adds a cell that does not exist yet: its records can be prepared before its CellInfo record is committed. Fails
    /// if the stage has the cell, or too many that do not exist.
    pub fn make_cell(&self, cell: CellName, limits: Limits) -> Result<()> {
        self.refuse_change()?;
        if self.staged_cell(&cell).is_some() {
            return Err(Error::new(Kind::Exists, "exists already"));
        }
        if self.staged_cells().iter().filter(|cell| cell.is_made()).count() >= MADE_CELLS {
            let reason = format!("a stage holds at most {MADE_CELLS} cells that do not exist");
            return Err(Error::new(Kind::NoSpace, reason));
        }
        self.add(&Seen { cell, records: Ok(Arc::default()), limits });
        Ok(())
    }

    /// Removes such a cell, if nothing is staged in it. Fails for every other.
    pub fn remove_cell(&self, cell: &CellName) -> Result<()> {
        self.refuse_change()?;
        let found = self.staged_cell(cell).ok_or_else(Error::not_found)?;
        if !found.is_made() {
            return Err(Error::new(Kind::NotPermitted, "a cell goes with its CellInfo record"));
        }
        if found.count() > 0 {
            return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
        }
        self.cells.write().retain(|known| !Arc::ptr_eq(known, &found));
        self.ledger.changed();
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its cells, the global topology first.
    pub fn staged_cells(&self) -> Vec<Arc<StagedCell>> {
        self.cells.read().clone()
    }

    /// One of its cells.
    pub fn staged_cell(&self, cell: &CellName) -> Option<Arc<StagedCell>> {
        self.cells.read().iter().find(|known| known.cell() == cell).cloned()
    }

    /// What its user is charged with, in bytes.
    pub fn bytes(&self) -> u64 {
        self.ledger.charged()
    }

    /// The number of staged records.
    pub fn count(&self) -> usize {
        self.staged_cells().iter().map(|cell| cell.count()).sum()
    }

    /// How often it has changed: what was computed of it is true for as long as this is the same.
    pub fn generation(&self) -> u64 {
        self.ledger.counts().0
    }

    /// How many saves and removals there were.
    pub fn saves(&self) -> u64 {
        self.ledger.counts().1
    }

    /// Fails if nothing can be changed any more.
    pub fn refuse_change(&self) -> Result<()> {
        if self.is_committed() { Err(Phase::read_only()) } else { Ok(()) }
    }

    /// Whether it is committed, and can only be read.
    pub fn is_committed(&self) -> bool {
        *self.ledger.phase.read() == Phase::Committed
    }

    /// Whether a commit of it is under way.
    pub fn is_committing(&self) -> bool {
        *self.ledger.phase.read() == Phase::Committing
    }

    /// What is to be committed.
    pub fn change_set(&self) -> ChangeSet {
        // Nobody saves meanwhile: this is one moment of all cells.
        let _saves = self.ledger.phase.write();
        let changes = self.staged_cells().iter().flat_map(|cell| cell.staged()).collect();
        ChangeSet { name: self.name.clone(), changes }
    }

    /// Begins a commit: until it ends, saves fail with EBUSY. Fails if there is one already.
    pub fn begin_commit(self: &Arc<Self>) -> Result<Committing> {
        let mut phase = self.ledger.phase.write();
        phase.refuse_save()?;
        *phase = Phase::Committing;
        Ok(Committing(self.clone()))
    }

    fn changes(&self) -> Vec<CellChange> {
        let _saves = self.ledger.phase.write();
        self.staged_cells().iter().map(|cell| cell.change()).collect()
    }

    /// The changes as a patch of files. Computes for a while if much is staged.
    pub fn diff(&self) -> Bytes {
        diff::patch(&self.records, &self.changes())
    }

    /// The patch that makes it as it was before the commit, over the state after it. `None` if it is not committed.
    pub fn undo(&self) -> Option<Bytes> {
        let undone: Vec<CellChange> = self.changes().into_iter().map(CellChange::undone).collect();
        self.is_committed().then(|| diff::patch(&self.records, &undone))
    }

    /// What others have changed underneath. A committed stage has no conflicts. Computes for a while if much is staged.
    pub fn conflicts(&self, seen: &[Seen]) -> Vec<Conflict> {
        if self.is_committed() {
            return Vec::new();
        }
        let mut conflicts = Vec::new();
        for cell in self.staged_cells() {
            match seen.iter().find(|seen| seen.cell == *cell.cell()).map(|seen| &seen.records) {
                Some(Ok(live)) => conflicts.extend(cell.overtaken(live).into_iter().filter_map(Conflict::of)),
                _ if cell.count() == 0 => {}
                Some(Err(error)) => conflicts.push(Conflict::unknown(cell.cell(), error)),
                None => conflicts.push(Conflict::unknown(cell.cell(), &gone(cell.cell()))),
            }
        }
        conflicts
    }

    /// Takes in what others have changed meanwhile, and adds cells that were not known before. What it cannot decide
    /// stays as it is.
    pub fn rebase(&self, seen: &[Seen]) -> Result<Rebased> {
        self.ledger.phase.read().refuse_save()?;
        let mut rebased = Rebased::default();
        for live in seen {
            match (self.staged_cell(&live.cell), &live.records) {
                (None, _) => self.add(live),
                (Some(cell), Ok(records)) => {
                    let (updates, clashes) = cell.rebase(records)?;
                    rebased.updates.extend(updates.into_iter().map(|update| (live.cell.clone(), update)));
                    rebased.left.extend(clashes.into_iter().filter_map(Conflict::of));
                }
                (Some(_), Err(error)) => rebased.left.push(Conflict::unknown(&live.cell, error)),
            }
        }
        let is_seen = |cell: &Arc<StagedCell>| seen.iter().any(|seen| seen.cell == *cell.cell());
        // A cell that is gone takes with it what was not staged.
        self.cells.write().retain(|cell| is_seen(cell) || cell.count() > 0);
        self.ledger.changed();
        let left = self.staged_cells().into_iter().filter(|cell| !is_seen(cell));
        rebased.left.extend(left.map(|cell| Conflict::unknown(cell.cell(), &gone(cell.cell()))));
        Ok(rebased)
    }

    /// Decides about one staged record: keeps what is staged, whatever others have made of it, or gives it up.
    pub fn settle(&self, at: &CellPath, seen: &[Seen], keep: bool) -> Result<()> {
        let cell = self.staged_cell(&at.cell).ok_or_else(Error::not_found)?;
        let live = seen.iter().find(|seen| seen.cell == at.cell).ok_or_else(|| gone(&at.cell))?;
        cell.settle(&at.path, live.records.as_ref().map_err(Clone::clone)?, keep)
    }
}

impl Stores for Stage {
    fn cells(&self) -> Vec<CellName> {
        self.staged_cells().iter().map(|cell| cell.cell().clone()).collect()
    }

    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>> {
        Some(self.staged_cell(cell)?)
    }
}

/// The error of a cell that has no CellInfo record any more.
fn gone(cell: &CellName) -> Error {
    Error::new(Kind::NotFound, format!("there is no cell {cell} any more"))
}

/// A commit of a stage that is under way. If it is dropped, the stage can be changed again.
#[derive(Debug)]
pub struct Committing(Arc<Stage>);

impl Committing {
    /// What is to be committed.
    pub fn change_set(&self) -> ChangeSet {
        self.0.change_set()
    }

    /// Everything is stored: from now on, the stage can only be read.
    pub fn committed(self) {
        *self.0.ledger.phase.write() = Phase::Committed;
        self.0.ledger.changed();
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        let mut phase = self.0.ledger.phase.write();
        if *phase == Phase::Committing {
            *phase = Phase::Open;
        }
    }
}

#[cfg(test)]
mod tests;
