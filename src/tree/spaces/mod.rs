//! Trees beside the live one: snapshots in `.topofs/at`, stages in `.topofs/stage`. Owns which of them there are. Must
//! never decide what a file in them is: `tree/records` does that, over the records of the tree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;

use super::caller::Caller;
use super::file::{Attr, Defaults, DirEntry, FileId, OpenMode, SpaceId, SpaceKind};
use super::namespace::{Inode, Keep, Name, Namespace, Open, Part};
use super::records::RecordFiles;
use crate::cells::{Cell, Cells};
use crate::control::SpaceCount;
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::CellName;
use crate::store::{FrozenCells, LiveCells, Plain, PlainCells, Stores};

mod about;
mod inside;

use inside::Inside;
pub(super) use inside::Space;

/// How many trees of each kind there may be, and how many one user may have: each keeps records in memory that are gone
/// elsewhere.
const IN_ALL: usize = 1_000;
const PER_USER: usize = 100;
/// The permission bits for writing.
const WRITE_MODE: u32 = 0o222;
/// The permission bits of others than the owner.
const FOREIGN_MODE: u32 = 0o077;

/// The cells at one moment, and why some of them are missing.
pub(crate) struct Moment {
    /// The records of each cell.
    pub cells: BTreeMap<CellName, Arc<Snapshot>>,
    /// Why a cell is missing.
    pub missing: BTreeMap<CellName, Error>,
}

/// The trees beside the live one.
#[derive(Debug)]
pub(crate) struct Spaces {
    records: Arc<RecordFiles>,
    cells: Arc<Cells>,
    /// The same cells, for commits.
    live: Arc<LiveCells>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    spaces: BTreeMap<(SpaceKind, Arc<str>), Arc<Inside>>,
    made: u64,
}

impl Table {
    /// Fails if there is such a tree, or if there are too many.
    fn refuse(&self, (kind, name): (SpaceKind, &str), uid: u32) -> Result<()> {
        if self.spaces.contains_key(&(kind, name.into())) {
            return Err(Error::new(Kind::Exists, "exists already"));
        }
        let of_kind = || self.spaces.values().filter(|space| space.id.kind == kind);
        let own = of_kind().filter(|space| space.owner == uid).count();
        if of_kind().count() >= IN_ALL || own >= PER_USER {
            let (all, kind) = (of_kind().count(), kind.name());
            let reason = format!(
                ".topofs/{kind} holds {all} trees, {own} of this user: there may be {IN_ALL}, and {PER_USER} of a user"
            );
            return Err(Error::new(Kind::NoSpace, reason));
        }
        Ok(())
    }
}

impl Spaces {
    /// No trees yet beside the live one.
    pub fn new(records: Arc<RecordFiles>, cells: Arc<Cells>, live: Arc<LiveCells>) -> Arc<Self> {
        Arc::new(Self { records, cells, live, table: Mutex::default() })
    }

    /// The tree of a file; `None` if it has been removed.
    pub fn get(&self, id: &SpaceId) -> Option<Arc<Inside>> {
        self.named(id.kind, &id.name).filter(|space| space.id == *id)
    }

    fn named(&self, kind: SpaceKind, name: &str) -> Option<Arc<Inside>> {
        self.table.lock().spaces.get(&(kind, name.into())).cloned()
    }

    fn of_kind(&self, kind: SpaceKind) -> Vec<Arc<Inside>> {
        let table = self.table.lock();
        table.spaces.values().filter(|space| space.id.kind == kind).cloned().collect()
    }

    /// Paths of all scratch files in them.
    pub fn scratch_files(&self) -> Vec<String> {
        let all: Vec<Arc<Inside>> = self.table.lock().spaces.values().cloned().collect();
        all.iter().flat_map(|space| space.scratch_files()).collect()
    }

    /// What the status shows of them.
    pub fn counts(&self) -> Vec<SpaceCount> {
        let all: Vec<Arc<Inside>> = self.table.lock().spaces.values().cloned().collect();
        all.iter().map(|space| space.count()).collect()
    }

    /// All cells now. A cell that nobody has asked for yet is loaded; one that does not answer is missing.
    async fn now(&self) -> Moment {
        let all = self.cells.all();
        all.iter().for_each(|cell| cell.mirror.wake());
        // Each waits no longer than a call may take.
        drop(join_all(all.iter().map(|cell| cell.snapshot())).await);
        let mut moment = Moment { cells: BTreeMap::new(), missing: BTreeMap::new() };
        // All at once: what was loaded first is not older than what was loaded last.
        let now = |cell: &Arc<Cell>| (cell.name.clone(), cell.snapshot_now());
        for (name, records) in all.iter().map(now) {
            match records {
                Ok(records) => drop(moment.cells.insert(name, records)),
                Err(error) => drop(moment.missing.insert(name, error)),
            }
        }
        moment
    }

    async fn make(&self, caller: &Caller, kind: SpaceKind, name: &str) -> Result<Arc<Inside>> {
        self.table.lock().refuse((kind, name), caller.uid)?;
        let Moment { cells, missing } = self.now().await;
        if cells.is_empty() {
            return Err(missing.into_values().next().unwrap_or_else(Error::not_found));
        }
        let live = self.records.defaults;
        let mut table = self.table.lock();
        table.refuse((kind, name), caller.uid)?;
        table.made += 1;
        let id = SpaceId { kind, name: name.into(), serial: table.made };
        let stores: Arc<dyn Stores> = match kind {
            SpaceKind::At => Arc::new(FrozenCells::new(cells)),
            SpaceKind::Stage => Arc::new(self.stage(cells)),
        };
        let defaults = match kind {
            SpaceKind::At => Defaults { umask: live.umask | WRITE_MODE, mounted: SystemTime::now(), ..live },
            SpaceKind::Stage => Defaults {
                uid: caller.uid,
                gid: caller.gid,
                umask: live.umask | FOREIGN_MODE,
                mounted: SystemTime::now(),
            },
        };
        let files = self.records.beside(id.clone(), stores, defaults);
        let tells = Arc::new(about::OfSnapshot { missing });
        let space = Arc::new(Inside::new((id, caller.uid), files, tells));
        table.spaces.insert((kind, name.into()), space.clone());
        Ok(space)
    }

    fn stage(&self, cells: BTreeMap<CellName, Arc<Snapshot>>) -> PlainCells {
        let limits = |cell: &CellName| self.records.store(cell).map(|store| store.limits());
        let plain = |(cell, records): (CellName, Arc<Snapshot>)| {
            Some((cell.clone(), Arc::new(Plain::new(cell.clone(), limits(&cell).ok()?, Snapshot::clone(&records)))))
        };
        PlainCells::new(cells.into_iter().filter_map(plain).collect())
    }
}

/// The kind of tree that a directory holds.
fn kind_of(dir: &FileId) -> Result<SpaceKind> {
    match dir {
        FileId::Spaces(kind) => Ok(*kind),
        _ => Err(Error::new(Kind::NotDirectory, "not a directory")),
    }
}

#[async_trait]
impl Namespace for Arc<Spaces> {
    async fn lookup(&self, _: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        Ok(self.named(kind_of(dir)?, name).ok_or_else(Error::not_found)?.root())
    }

    async fn attr(&self, _: &Caller, inode: &Inode) -> Result<Attr> {
        self.attr_of_entry(&inode.file)
    }

    fn attr_of_entry(&self, file: &FileId) -> Result<Attr> {
        match file {
            FileId::Spaces(_) => Ok(self.records.defaults.dir()),
            FileId::Inside(id, _) => self.get(id).ok_or_else(Error::not_found)?.attr_of_entry(file),
            _ => Err(Error::not_found()),
        }
    }

    fn keep(&self, _: &FileId) -> Keep {
        Keep::Never
    }

    async fn list(&self, _: &Caller, dir: &FileId) -> Result<Vec<DirEntry>> {
        let entry = |space: &Arc<Inside>| DirEntry { name: space.id.name.to_string(), file: space.root() };
        Ok(self.of_kind(kind_of(dir)?).iter().map(entry).collect())
    }

    async fn open(&self, _: &Caller, _: &Inode, _: OpenMode) -> Result<Open> {
        Err(Error::new(Kind::IsDirectory, "is a directory"))
    }

    async fn read_unopened(&self, _: &Caller, _: &Inode, _: Part, _: bool) -> Result<Bytes> {
        Err(Error::new(Kind::IsDirectory, "is a directory"))
    }

    async fn mkdir(&self, caller: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        let space = self.make(caller, kind_of(at.dir)?, at.name).await?;
        let root = space.root();
        let attr = space.attr_of_entry(&root)?;
        Ok((root, attr))
    }

    async fn rmdir(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        let kind = kind_of(at.dir)?;
        let space = self.named(kind, at.name).ok_or_else(Error::not_found)?;
        if ![0, space.owner].contains(&caller.uid) {
            let reason = format!("it belongs to the user {}", space.owner);
            return Err(Error::new(Kind::NotPermitted, reason));
        }
        let mut table = self.table.lock();
        let key = (kind, space.id.name.clone());
        if table.spaces.get(&key).is_some_and(|known| known.id == space.id) {
            table.spaces.remove(&key);
        }
        drop(table);
        Ok(())
    }
}
