//! Records as they were at one moment. Must never change.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::contract::{Store, Stores, global_first};
use crate::backend::{Fetched, Node, Role};
use crate::error::Result;
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};

/// The records of one cell at one moment.
#[derive(Debug, Clone)]
pub struct Frozen {
    cell: CellName,
    records: Arc<Snapshot>,
}

impl Frozen {
    /// A cell as it was.
    pub fn new(cell: CellName, records: Arc<Snapshot>) -> Self {
        Self { cell, records }
    }
}

/// A record as a service would return it.
pub(super) fn fetched(records: &Snapshot, path: &TopoPath) -> Fetched {
    let node = records.records.get(path).map(|record| Node {
        path: path.clone(),
        value: record.value.clone(),
        version: record.version,
        role: Role::Record,
        modified: Some(record.modified),
    });
    Fetched { node, at: records.at }
}

#[async_trait]
impl Store for Frozen {
    fn cell(&self) -> &CellName {
        &self.cell
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        Ok(self.known())
    }

    fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        Ok(self.known())
    }

    fn known(&self) -> Arc<Snapshot> {
        self.records.clone()
    }

    fn is_frozen(&self) -> bool {
        true
    }

    async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        Ok(fetched(&self.records, path))
    }
}

/// All cells at one moment each.
#[derive(Debug, Clone)]
pub struct FrozenCells(BTreeMap<CellName, Arc<Snapshot>>);

impl FrozenCells {
    /// These cells, as they were.
    pub fn new(cells: BTreeMap<CellName, Arc<Snapshot>>) -> Self {
        Self(cells)
    }
}

impl Stores for FrozenCells {
    fn cells(&self) -> Vec<CellName> {
        let mut cells: Vec<CellName> = self.0.keys().cloned().collect();
        cells.sort_by(global_first);
        cells
    }

    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Frozen::new(cell.clone(), self.0.get(cell)?.clone())))
    }
}
