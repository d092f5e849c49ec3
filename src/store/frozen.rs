//! Records as they were at one moment. Must never change.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::commits::Commits;
use super::contract::{Store, Stores};
use crate::backend::{Applied, Change, Fetched, Limits, Node, Role};
use crate::error::{Error, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::process::Actor;

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

    async fn commit(&self, _: Actor, _: &[Change], _: &dyn Commits) -> Result<Applied> {
        Err(Error::read_only())
    }

    async fn refuse_early(&self, _: Actor, _: &TopoPath) -> Result<()> {
        Err(Error::read_only())
    }

    fn limits(&self) -> Limits {
        Limits { value: 0, changes: 0 }
    }
}

/// All cells at one moment each.
#[derive(Debug, Clone, Default)]
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
        cells.sort_by_key(|cell| !cell.is_global());
        cells
    }

    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Frozen::new(cell.clone(), self.0.get(cell)?.clone())))
    }
}
