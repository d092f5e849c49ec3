//! The topology as its service had it at an earlier revision, read on demand. Must never keep what it has read, nor ask
//! servers that the mount does not ask for the global topology.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::{Cell, Cells};
use crate::alive;
use crate::backend::{Backend, BackendError, Failure, Location, Node, Revision, Role};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, TopoPath};

/// How many cells are read, each in at least one call: anybody who can write CellInfo records decides how many there
/// were.
const MOST_CELLS: usize = 1_000;
/// What a record costs beside its path and value: its place in the map, and the allocations. Measured with 100,000
/// small records.
const RECORD_COST: usize = 512;

/// A topology at one moment.
#[derive(Debug, Clone, Default)]
pub struct Earlier {
    /// The cells that are known. What is as it is now shares the memory of the mirrors.
    pub cells: BTreeMap<CellName, Arc<Snapshot>>,
    /// Other cells that there were, with the reasons why they are missing.
    pub missing: BTreeMap<String, String>,
    /// What it holds in memory besides the mirrors, in bytes.
    pub bytes: usize,
}

impl Cells {
    /// The topology at a revision of the service of the global topology. Cells in other services are missing. Fails
    /// with [`Kind::NotKept`] if the service does not keep the revision, and with [`Kind::NoSpace`] if so much has
    /// changed since that it takes more than `most` bytes of memory.
    pub async fn at_revision(&self, revision: Revision, most: usize) -> Result<Earlier> {
        self.global.refuse_if_down()?;
        let mut room = Room { most, used: 0 };
        let global = CellName::global();
        let first = Arc::new(self.read_at(&global, &self.options.global, revision, &mut room).await?);
        let (known, mut missing) = self.cells_in(&first, self.options.only.as_deref());
        let mut read = HashMap::from([(self.options.global.clean_root(), first.clone())]);
        let mut cells = BTreeMap::from([(global, first)]);
        for (name, location) in known {
            if !location.is_same_service(&self.options.global) {
                missing.insert(name.to_string(), format!("kept by another service: {location}"));
                continue;
            }
            let root = location.clean_root();
            if let Some(same) = read.get(&root) {
                cells.insert(name, same.clone());
                continue;
            }
            if read.len() >= MOST_CELLS {
                missing.insert(name.to_string(), format!("no more than {MOST_CELLS} cells are read"));
                continue;
            }
            match self.read_at(&name, &location, revision, &mut room).await.map(Arc::new) {
                Ok(snapshot) => {
                    read.insert(root, snapshot.clone());
                    cells.insert(name, snapshot);
                }
                Err(error) if error.kind == Kind::Denied => drop(missing.insert(name.to_string(), error.reason)),
                // The service does not answer, or keeps the revision no longer. A part would look like the whole.
                Err(error) => return Err(error),
            }
        }
        Ok(Earlier { cells, missing, bytes: room.used })
    }

    /// The topology at a time, as far as this mount has seen it: each cell as its mirror remembers it. Fails with
    /// [`Kind::NotKept`] if no cell is known, and with [`Kind::NoSpace`] as [`Cells::at_revision`] does.
    pub async fn at_time(&self, time: SystemTime, most: usize) -> Result<Earlier> {
        // A moment ago is known as soon as the watches have told that there was nothing more.
        let all = self.all();
        futures::future::join_all(all.iter().map(|cell| cell.mirror.has_told(time))).await;
        let (mut room, mut earlier) = (Room { most, used: 0 }, Earlier::default());
        let global = self.remembered(&self.global, time, &mut room);
        let (known, hidden) = match &global {
            Ok(global) => self.cells_in(global, self.options.only.as_deref()),
            // Which cells there were, nobody knows: these are there now.
            Err(_) => {
                let local = self.local.load();
                (local.iter().map(|(name, cell)| (name.clone(), cell.location.clone())).collect(), BTreeMap::new())
            }
        };
        earlier.missing = hidden;
        let local = known.into_iter().map(|(name, location)| {
            let live = self.get(&name).filter(|cell| cell.location == location);
            let unknown = || Error::new(Kind::NotKept, format!("this mount no longer shows the cell at {location}"));
            let records = live.ok_or_else(unknown).and_then(|cell| self.remembered(&cell, time, &mut room));
            (name, records)
        });
        let global = (CellName::global(), global);
        for (name, records) in std::iter::once(global).chain(local.collect::<Vec<_>>()) {
            match records {
                Ok(records) => drop(earlier.cells.insert(name, Arc::new(records))),
                Err(error) if error.kind == Kind::NoSpace => return Err(error),
                Err(error) => drop(earlier.missing.insert(name.to_string(), error.reason)),
            }
        }
        if earlier.cells.is_empty() {
            let why = earlier.missing.remove(CellName::GLOBAL).unwrap_or_default();
            return Err(Error::new(Kind::NotKept, format!("no cell is known at that time: {why}")));
        }
        earlier.bytes = room.used;
        Ok(earlier)
    }

    fn remembered(&self, cell: &Cell, time: SystemTime, room: &mut Room) -> Result<Snapshot> {
        let (now, then) = (cell.mirror.snapshot(), cell.at(time)?);
        for changed in now.records.diff(&then.records) {
            let (path, bytes) = match changed {
                DiffItem::Add(path, record) | DiffItem::Update { new: (path, record), .. } => {
                    (path, record.value.len())
                }
                DiffItem::Remove(path, _) => (path, 0),
            };
            room.charge(RECORD_COST + path.as_str().len() + bytes).map_err(|error| cell.explain(error))?;
        }
        Ok(then)
    }

    /// How often the history of the service of the global topology has gone back.
    pub fn restorations(&self) -> u64 {
        self.global.mirror.counters.restorations.load(Ordering::Relaxed)
    }

    async fn read_at(
        &self,
        name: &CellName,
        location: &Location,
        revision: Revision,
        room: &mut Room,
    ) -> Result<Snapshot> {
        let live = self.get(name).filter(|cell| cell.location.is_same_place(location));
        let base = live.as_ref().map(|cell| cell.mirror.snapshot()).unwrap_or_default();
        let mut merged = Merged::new(base);
        let read = async {
            let mut take = |node| merged.take(node, room);
            self.reader(name, location, live.as_deref())?.list_at(&TopoPath::root(), revision, &mut take).await?;
            merged.finish(revision, room)
        };
        let read = alive::guarded(format!("a look at revision {} of cell {name}", revision.0), read).await;
        let read = read.unwrap_or_else(|panic| Err(BackendError::new(Failure::Other, panic.to_string())));
        read.map_err(|error| {
            let mut error = Error::from(error);
            error.reason = format!("revision {} of cell {name} ({location}): {}", revision.0, error.reason);
            error
        })
    }

    /// Reads a cell of the service of the global topology, and by the addresses of that one: an old record may name
    /// others.
    fn reader(
        &self,
        name: &CellName,
        location: &Location,
        live: Option<&Cell>,
    ) -> std::result::Result<Arc<dyn Backend>, BackendError> {
        let server = &self.options.global.server;
        match live.filter(|cell| cell.location.server == *server) {
            Some(cell) => Ok(cell.backend.clone()),
            None => {
                let location = Location { server: server.clone(), ..location.clone() };
                crate::backend::open(name, &location, &self.options.connect)
            }
        }
    }
}

/// What may be held in memory besides the mirrors.
struct Room {
    most: usize,
    used: usize,
}

impl Room {
    fn charge(&mut self, bytes: usize) -> std::result::Result<(), BackendError> {
        self.used = self.used.saturating_add(bytes);
        if self.used > self.most {
            let message = format!("more than {} bytes differ from what the mount has in memory", self.most);
            return Err(BackendError::new(Failure::NoSpace, message));
        }
        Ok(())
    }
}

/// The records of a mirror, as they become those of an earlier revision.
struct Merged {
    base: Arc<Snapshot>,
    records: OrdMap<TopoPath, Record>,
    seen: HashSet<TopoPath>,
}

impl Merged {
    fn new(base: Arc<Snapshot>) -> Self {
        Self { records: base.records.clone(), base, seen: HashSet::new() }
    }

    /// Merges one node. The version alone does not tell what it is: the service may have been restored meanwhile.
    fn take(&mut self, node: Node, room: &mut Room) -> std::result::Result<(), BackendError> {
        if node.role != Role::Record {
            return Ok(());
        }
        let Node { path, value, version, modified, .. } = node;
        if let Some((path, record)) = self.base.records.get_key_value(&path) {
            self.seen.insert(path.clone());
            if record.version == version && record.value == value {
                return Ok(());
            }
        }
        room.charge(RECORD_COST + path.as_str().len() + value.len())?;
        // When this version was written, nobody knows; certainly before those that this mount has seen.
        let modified = modified.unwrap_or(SystemTime::UNIX_EPOCH);
        self.records.insert(path, Record { value, version, modified });
        Ok(())
    }

    fn finish(mut self, at: Revision, room: &mut Room) -> std::result::Result<Snapshot, BackendError> {
        for (path, _) in self.base.records.iter().filter(|(path, _)| !self.seen.contains(*path)) {
            room.charge(RECORD_COST)?;
            self.records.remove(path);
        }
        Ok(Snapshot { records: self.records, at, ..Snapshot::default() })
    }
}
