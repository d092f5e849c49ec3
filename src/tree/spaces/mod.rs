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
use crate::cells::Cells;
use crate::control::{Control, SpaceCount};
use crate::error::{Error, Kind, Result};
use crate::journal::Op;
use crate::mirror::Snapshot;
use crate::name::CellName;
use crate::store::{FrozenCells, LiveCells, Stores};

mod about;
mod commands;
mod inside;
mod moments;
mod stages;

use about::{Missing, Tells};
pub use commands::HELP as STAGE_COMMANDS;
use inside::Inside;
pub(super) use inside::Space;
use moments::{MomentSpaces, refuse_claim};
use stages::{OfStage, Shared};

/// How many trees of each kind there may be, and how many one user may have: each keeps records in memory that are gone
/// elsewhere.
const IN_ALL: usize = 1_000;
const PER_USER: usize = 100;
/// The permission bits for writing.
const WRITE_MODE: u32 = 0o222;
/// The permission bits of others than the owner.
const FOREIGN_MODE: u32 = 0o077;

/// The cells now, and why some of them are missing.
struct Present {
    /// The records of each cell.
    cells: BTreeMap<CellName, Arc<Snapshot>>,
    /// Why cells are missing.
    missing: Vec<Missing>,
}

/// The trees beside the live one.
#[derive(Debug)]
pub(crate) struct Spaces {
    records: Arc<RecordFiles>,
    cells: Arc<Cells>,
    /// What all stages share.
    stages: Arc<Shared>,
    table: Mutex<Table>,
    moments: MomentSpaces,
    journal: Arc<Control>,
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
    pub fn new(
        records: Arc<RecordFiles>,
        (cells, live): (Arc<Cells>, Arc<LiveCells>),
        journal: Arc<Control>,
    ) -> Arc<Self> {
        let stages = Shared { cells: cells.clone(), live, records: records.clone(), checked: Default::default() };
        let moments = MomentSpaces::new(cells.clone());
        Arc::new(Self { records, cells, stages: Arc::new(stages), table: Mutex::default(), moments, journal })
    }

    /// The tree of a file; `None` if it has been removed.
    pub fn get(&self, id: &SpaceId) -> Option<Arc<Inside>> {
        self.named(id.kind, &id.name).filter(|space| space.id == *id).or_else(|| self.moments.get(id))
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

    /// Stages with changes that are not committed: name, and how many.
    pub fn uncommitted(&self) -> Vec<(String, usize)> {
        let stages = self.of_kind(SpaceKind::Stage);
        let changed = stages.iter().map(|stage| (stage.id.name.to_string(), stage.uncommitted()));
        changed.filter(|(_, changes)| *changes > 0).collect()
    }

    /// What the status shows of them.
    pub fn counts(&self) -> Vec<SpaceCount> {
        let all: Vec<Arc<Inside>> = self.table.lock().spaces.values().cloned().collect();
        all.iter().map(|space| space.count()).collect()
    }

    /// All cells now. A cell that nobody has asked for yet is loaded; one that does not answer is missing.
    async fn now(&self) -> Present {
        let all = self.cells.all();
        all.iter().for_each(|cell| cell.mirror.wake());
        // Each waits no longer than a call may take.
        drop(join_all(all.iter().map(|cell| cell.snapshot())).await);
        // All at once: what was loaded first is not older than what was loaded last.
        let now: Vec<_> = all.iter().map(|cell| (cell, cell.snapshot_now())).collect();
        let hidden = self.cells.hidden();
        let mut present = Present { cells: BTreeMap::new(), missing: Vec::new() };
        for (cell, records) in now {
            match records {
                Ok(records) => drop(present.cells.insert(cell.name.clone(), records)),
                Err(_) => {
                    let since = cell.mirror.trouble().and_then(|(_, since)| SystemTime::now().checked_sub(since));
                    let (cell, why) = (cell.name.to_string(), cell.not_answering().reason);
                    present.missing.push(Missing { cell, since, why });
                }
            }
        }
        let hidden = hidden.iter().map(|(cell, why)| Missing { cell: cell.clone(), since: None, why: why.clone() });
        present.missing.extend(hidden);
        present
    }

    async fn make(&self, caller: &Caller, kind: SpaceKind, name: &str) -> Result<Arc<Inside>> {
        self.table.lock().refuse((kind, name), caller.uid)?;
        let Present { cells, missing } = self.now().await;
        if cells.is_empty() {
            let why = missing.into_iter().next().map_or_else(String::new, |missing| missing.why);
            return Err(Error::new(Kind::Unreachable, why));
        }
        let live = self.records.defaults;
        let mut table = self.table.lock();
        table.refuse((kind, name), caller.uid)?;
        table.made += 1;
        let id = SpaceId { kind, name: name.into(), serial: table.made };
        let (stores, tells): (Arc<dyn Stores>, Arc<dyn Tells>) = match kind {
            SpaceKind::At => (Arc::new(FrozenCells::new(cells)), Arc::new(about::OfSnapshot::new(missing))),
            SpaceKind::Stage => {
                let stage = OfStage::new(id.clone(), caller.uid, (cells, missing), self.stages.clone());
                (stage.stage().clone(), Arc::new(stage))
            }
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
        tells.shown_by(&files);
        let space = Arc::new(Inside::new((id, caller.uid), files, tells));
        table.spaces.insert((kind, name.into()), space.clone());
        Ok(space)
    }

    fn explain(&self, caller: &Caller, at: Name<'_>, error: &Error) {
        self.journal.errors.explain(Op::Mkdir, &format!("{}/{}", at.dir, at.name), caller.into(), error);
    }
}

/// Refuses a name that a terminal would obey, or that would be read as another name.
fn refuse_unprintable(name: &str) -> Result<()> {
    let is_bad = |letter: char| {
        // Marks that turn the direction of a text, separators of lines, and the mark of byte order, which nobody sees.
        let turns =
            matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        letter.is_control() || turns || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}')
    };
    match name.chars().find(|letter| is_bad(*letter)) {
        None => Ok(()),
        Some(letter) => {
            let letter = letter.escape_unicode();
            Err(Error::new(
                Kind::Invalid,
                format!("the name has the character {letter}, which nobody sees: leave it out"),
            ))
        }
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
    async fn lookup(&self, caller: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        let kind = kind_of(dir)?;
        let found = match self.named(kind, name) {
            None if kind == SpaceKind::At => self.moments.find(caller, name, &self.records).await?,
            found => found,
        };
        Ok(found.ok_or_else(Error::not_found)?.root())
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
        let kind = kind_of(at.dir)?;
        refuse_unprintable(at.name).inspect_err(|error| self.explain(caller, at, error))?;
        if kind == SpaceKind::At {
            refuse_claim(at.name).inspect_err(|error| self.explain(caller, at, error))?;
        }
        let space = self.make(caller, kind, at.name).await?;
        let root = space.root();
        let attr = space.attr_of_entry(&root)?;
        Ok((root, attr))
    }

    async fn rmdir(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        let kind = kind_of(at.dir)?;
        let Some(space) = self.named(kind, at.name) else {
            let is_moment = kind == SpaceKind::At && refuse_claim(at.name).is_err();
            let reason = "a moment of the past is not made, so it cannot be removed";
            return Err(if is_moment { Error::new(Kind::NotPermitted, reason) } else { Error::not_found() });
        };
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
        space.removed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_be_read_as_another_is_refused() {
        for name in ["a\nb", "\u{1b}[2J", "a\u{7f}", "\u{9b}2J", "a\u{202e}b", "\u{2066}a", "a\u{2028}", "\u{feff}a"] {
            let error = refuse_unprintable(name).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{name:?}");
            assert!(error.reason.is_ascii() && !error.reason.contains(char::is_control), "{error}");
        }
        for name in ["before move", "\u{fc}ber", "\u{5d0}\u{5d1}", "\u{6f22}", "a~2", "\u{1f600}"] {
            refuse_unprintable(name).unwrap();
        }
    }
}
