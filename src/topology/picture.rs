//! The records of the global topology and of all its cells, read by meaning. Must never ask a service by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;

use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::layout::Key;

/// The records of one cell, or why they are not known.
pub type CellRecords = Result<Arc<Snapshot>>;

/// The records of the global topology and of its cells, each cell at one point.
#[derive(Debug)]
pub struct Topology {
    /// The global topology.
    pub global: Arc<Snapshot>,
    /// Every cell that has a CellInfo record and can be shown.
    pub cells: BTreeMap<CellName, CellRecords>,
}

impl Topology {
    /// A record of a cell; `None` if it does not exist, or the cell is not known.
    pub fn in_cell<M: Message + Default>(&self, cell: &CellName, key: Key<'_>) -> Option<Result<M>> {
        read(self.cells.get(cell)?.as_ref().ok()?, key)
    }
}

/// A record of a cell as a message; `None` if it does not exist.
pub(crate) fn read<M: Message + Default>(snapshot: &Snapshot, key: Key<'_>) -> Option<Result<M>> {
    let path = key.path().ok()?;
    let record = snapshot.records.get(&path)?;
    Some(
        M::decode(record.value.clone())
            .map_err(|error| Error::new(Kind::BadMessage, format!("{path} cannot be decoded: {error}"))),
    )
}

/// The names in a directory that has other directories.
pub(crate) fn names_in(snapshot: &Snapshot, dir: &str) -> Vec<String> {
    let Ok(dir) = TopoPath::parse(dir) else { return Vec::new() };
    let entries = snapshot.entries(&dir).into_iter();
    entries.filter(|entry| entry.is_directory).map(|entry| entry.name).collect()
}
