//! The records of the global topology and of all its cells, read by meaning. Must never ask a service by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use prost::Message;

use crate::cells::Cells;
use crate::error::{Error, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::layout::{self, Key};
use crate::record::messages::topodata;

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
    /// Loads every cell, all at once, and waits for each no longer than a call may take. Fails if the global topology
    /// does not answer.
    pub async fn load(cells: &Cells) -> Result<Self> {
        let loaded = join_all(cells.all().into_iter().map(|cell| async move {
            let records = cell.snapshot().await;
            (cell.name.clone(), records)
        }));
        Self::of(loaded.await)
    }

    /// What the mirrors have, without asking a service for anything. Cells that nobody has used are not known.
    pub fn at_hand(cells: &Cells) -> Result<Self> {
        Self::of(cells.all().into_iter().map(|cell| (cell.name.clone(), cell.snapshot_now())))
    }

    fn of(all: impl IntoIterator<Item = (CellName, CellRecords)>) -> Result<Self> {
        let mut cells: BTreeMap<CellName, CellRecords> = all.into_iter().collect();
        let global = cells.remove(&CellName::global()).ok_or_else(Error::not_found)??;
        Ok(Self { global, cells })
    }

    /// The names of all keyspaces: of every directory where Vitess looks for keyspaces, as Vitess does.
    pub fn keyspaces(&self) -> Vec<String> {
        names_in(&self.global, layout::KEYSPACES)
    }

    /// The shards of a keyspace, by name. Directories without a Shard record are no shards, as in Vitess.
    pub fn shards(&self, keyspace: &str) -> Vec<(String, Result<topodata::Shard>)> {
        let Ok(dir) = layout::shards_dir(keyspace) else { return Vec::new() };
        let entries = self.global.entries(&dir).into_iter();
        entries
            .filter_map(|shard| Some((shard.name.clone(), self.global(Key::Shard(keyspace, &shard.name))?)))
            .collect()
    }

    /// A record of the global topology; `None` if it does not exist.
    pub fn global<M: Message + Default>(&self, key: Key<'_>) -> Option<Result<M>> {
        read(&self.global, key)
    }

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
            .map_err(|error| Error::new(crate::error::Kind::BadMessage, format!("{path} cannot be decoded: {error}"))),
    )
}

/// The names in a directory that has other directories.
pub(crate) fn names_in(snapshot: &Snapshot, dir: &str) -> Vec<String> {
    let Ok(dir) = TopoPath::parse(dir) else { return Vec::new() };
    let entries = snapshot.entries(&dir).into_iter();
    entries.filter(|entry| entry.is_directory).map(|entry| entry.name).collect()
}
