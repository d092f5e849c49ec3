//! `.topofs/history`: the earlier states of records, as files that nobody can change. Must never show what the service
//! denies now, and never answer for a cell that cannot be read now.
//!
//! `states` finds out which states of a record are known and what their files are called, `log` says in words what
//! happened, `effort` bounds what that costs. A name leads to a directory if a record is, or was, at it or below it.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use imbl::OrdMap;

use super::caller::Caller;
use super::file::{Attr, Caching, Defaults, DirEntry, FileId, OpenMode, PastFile, SetAttr};
use super::namespace::{At, Created, Inode, Keep, Name, Namespace, Open, OpenFile, Part};
use super::room::{Charge, Room};
use crate::backend::Revision;
use crate::cells::{Cell, Cells};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Snapshot, has_below, names_below};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Form, Records};

mod effort;
mod log;
mod names;
mod states;

use effort::{Found, Turns};
use states::{DELETED, Recent, State, States};

/// The name of the file that says what happened to a record.
const LOG: &str = ".log";

const VERSION: &str = "user.topo.version";
const TYPE: &str = "user.topo.type";
const PATH: &str = "user.topo.path";
const CELL: &str = "user.topo.cell";
const BY: &str = "user.topo.by";
const CHANGE_SET: &str = "user.topo.change-set";

/// The files of `.topofs/history`.
#[derive(Debug)]
pub(crate) struct PastFiles {
    cells: Arc<Cells>,
    codec: Arc<Records>,
    /// The forms that exist, and those that listings show.
    forms: (Vec<Form>, Vec<Form>),
    defaults: Defaults,
    room: Room,
    recent: Recent,
    turns: Turns,
    found: Arc<Found>,
}

/// What is known of the records of a cell, by their paths: those that are stored, those that this mount has seen going,
/// and those whose deletion the service remembers.
struct Known {
    cell: Arc<Cell>,
    snapshot: Arc<Snapshot>,
    gone: OrdMap<TopoPath, ()>,
    deleted: Option<OrdMap<TopoPath, Vec<Revision>>>,
}

impl Known {
    /// Whether a record is or was at a path.
    fn is_record(&self, path: &TopoPath) -> bool {
        self.snapshot.records.contains_key(path)
            || self.gone.contains_key(path)
            || self.deleted.as_ref().is_some_and(|deleted| deleted.contains_key(path))
    }

    /// The names of what is or was in a directory.
    fn names(&self, dir: &TopoPath) -> Vec<String> {
        let mut names = names_below(&self.snapshot.records, dir);
        names.extend(names_below(&self.gone, dir));
        names.extend(self.deleted.iter().flat_map(|deleted| names_below(deleted, dir)));
        names.sort();
        names.dedup();
        names
    }

    /// Whether something is or was at a path or below it.
    fn is_dir(&self, path: &TopoPath) -> bool {
        let is_below = || {
            has_below(&self.snapshot.records, path)
                || has_below(&self.gone, path)
                || self.deleted.as_ref().is_some_and(|deleted| has_below(deleted, path))
        };
        path.is_root() || self.is_record(path) || is_below()
    }
}

impl PastFiles {
    /// The files of a mount's cells. Their open contents are charged to `room`.
    pub fn new(
        (cells, codec): (Arc<Cells>, Arc<Records>),
        forms: (Vec<Form>, Vec<Form>),
        defaults: Defaults,
        room: Room,
    ) -> Arc<Self> {
        Arc::new(Self {
            cells,
            codec,
            forms,
            defaults,
            room,
            recent: Recent::default(),
            turns: Turns::default(),
            found: Arc::default(),
        })
    }

    /// What is known of a cell without asking the service about deletions.
    async fn known(&self, cell: &CellName) -> Result<Known> {
        let cell = self.cells.get(cell).ok_or_else(Error::not_found)?;
        let snapshot = cell.snapshot().await?;
        let gone = cell.mirror.gone();
        Ok(Known { cell, snapshot, gone, deleted: None })
    }

    /// The same with what the service remembers. Of a service that is down, old records may be shown; its past stays
    /// what this mount remembers.
    async fn known_deleted(&self, known: Known) -> Result<Known> {
        let deleted = match known.cell.deleted().await {
            Err(_) if known.cell.serves_stale() => None,
            deleted => deleted?,
        };
        Ok(Known { deleted, ..known })
    }

    /// The states of a record; it may have none.
    async fn states(&self, known: &Known, at: &CellPath) -> Result<States> {
        let present = known.snapshot.records.get(&at.path).map(|record| record.version);
        let earlier = match self.recent.earlier(&known.cell, &at.path, present).await {
            Err(_) if known.cell.serves_stale() => None,
            earlier => earlier?,
        };
        let children = known.names(&at.path);
        Ok(States::new(known.cell.mirror.past(&at.path), earlier.as_deref(), &children))
    }

    /// The states of a record that must have some.
    async fn states_of(&self, at: &CellPath) -> Result<States> {
        let known = self.known(&at.cell).await?;
        let states = self.states(&known, at).await?;
        if states.all.is_empty() { Err(Error::not_found()) } else { Ok(states) }
    }

    async fn state(&self, at: &CellPath, name: &str) -> Result<State> {
        let states = self.states_of(at).await?;
        states.find(name).cloned().ok_or_else(|| names::unknown(at, &states, name))
    }

    /// The forms in which the states of a record exist.
    fn forms(&self, at: &CellPath) -> Vec<Form> {
        match self.codec.message(&at.cell, &at.path) {
            Some(_) => self.forms.0.clone(),
            None => vec![Form::Raw],
        }
    }

    fn listed_forms(&self, at: &CellPath) -> Vec<Form> {
        let forms = self.forms(at);
        let listed: Vec<Form> = forms.iter().copied().filter(|form| self.forms.1.contains(form)).collect();
        if listed.is_empty() { forms } else { listed }
    }

    /// What a name of a record's directory stands for, among its states.
    fn named(&self, at: &CellPath, states: &States, name: &str) -> Option<PastFile> {
        if name.ends_with(DELETED) {
            states.find(name).filter(|state| state.record.is_none())?;
            return Some(PastFile::Deleted(at.clone(), name.into()));
        }
        let (base, form) = Form::of_name(name).unwrap_or((name, Form::Raw));
        states.find(base).filter(|state| state.record.is_some())?;
        self.forms(at).contains(&form).then(|| PastFile::State(at.clone(), base.into(), form))
    }

    async fn find(&self, dir: &PastFile, name: &str) -> Result<PastFile> {
        let at = match dir {
            PastFile::Top => {
                let cell = CellName::new(name).map_err(|_| Error::not_found())?;
                self.cells.get(&cell).ok_or_else(Error::not_found)?;
                return Ok(PastFile::Dir(CellPath { cell, path: TopoPath::root() }));
            }
            PastFile::Dir(at) => at,
            _ => return Err(Error::new(Kind::NotDirectory, "not a directory")),
        };
        let mut known = self.known(&at.cell).await?;
        let child = at.path.join(name)?;
        let inside = |path: TopoPath| PastFile::Dir(CellPath { cell: at.cell.clone(), path });
        // The files of the record itself win; a key of that name has another one.
        if name.starts_with(LOG) {
            if name != LOG || !known.is_record(&at.path) {
                known = self.known_deleted(known).await?;
            }
            if known.is_record(&at.path) {
                if name == LOG {
                    return Ok(PastFile::Log(at.clone()));
                }
                if names::beside_log(&known.names(&at.path)).as_deref() == Some(name) {
                    return Ok(inside(at.path.join(LOG)?));
                }
            }
        }
        if known.is_dir(&child) {
            return Ok(inside(child));
        }
        let was_known = known.is_record(&at.path);
        if was_known && let Some(file) = self.named(at, &self.states(&known, at).await?, name) {
            return Ok(file);
        }
        known = self.known_deleted(known).await?;
        if known.is_dir(&child) {
            return Ok(inside(child));
        }
        if !was_known
            && known.is_record(&at.path)
            && let Some(file) = self.named(at, &self.states(&known, at).await?, name)
        {
            return Ok(file);
        }
        if known.is_record(&at.path) && names::is_of_state(name) {
            return Err(names::unknown(at, &self.states(&known, at).await?, name));
        }
        Err(Error::not_found())
    }

    async fn entries(&self, dir: &PastFile) -> Result<Vec<(String, PastFile)>> {
        let at = match dir {
            PastFile::Top => {
                let dir = |cell: &Arc<Cell>| {
                    let at = CellPath { cell: cell.name.clone(), path: TopoPath::root() };
                    (cell.name.to_string(), PastFile::Dir(at))
                };
                return Ok(self.cells.all().iter().map(dir).collect());
            }
            PastFile::Dir(at) => at,
            _ => return Err(Error::new(Kind::NotDirectory, "not a directory")),
        };
        let known = self.known_deleted(self.known(&at.cell).await?).await?;
        if !known.is_dir(&at.path) {
            return Err(Error::not_found());
        }
        let mut entries = Vec::new();
        let children = known.names(&at.path);
        let beside_log = names::beside_log(&children).filter(|_| known.is_record(&at.path));
        for name in children {
            if let Ok(path) = at.path.join(&name) {
                let name = beside_log.clone().filter(|_| name == LOG).unwrap_or(name);
                entries.push((name, PastFile::Dir(CellPath { cell: at.cell.clone(), path })));
            }
        }
        if known.is_record(&at.path) {
            let states = self.states(&known, at).await?;
            let forms = self.listed_forms(at);
            for state in &states.all {
                match state.record {
                    None => entries.push((state.name.to_string(), PastFile::Deleted(at.clone(), state.name.clone()))),
                    Some(_) => entries.extend(forms.iter().map(|form| {
                        let file = PastFile::State(at.clone(), state.name.clone(), *form);
                        (format!("{}{}", state.name, form.suffix()), file)
                    })),
                }
            }
            entries.push((LOG.to_owned(), PastFile::Log(at.clone())));
        }
        Ok(entries)
    }

    /// The attributes of a directory. The kernel keeps a listing as long as the directory has the same time, and nobody
    /// would tell it that a state has come, or was compacted. The other time stays, since tar compares it.
    fn dir(&self) -> Attr {
        Attr { modified: SystemTime::now(), ..self.defaults.dir() }
    }

    /// The content of a file, and its time.
    async fn content(&self, caller: &Caller, file: &PastFile) -> Result<(Bytes, SystemTime)> {
        match file {
            PastFile::State(at, name, form) => {
                let State { record, time, .. } = self.state(at, name).await?;
                let (value, _) = record.ok_or_else(Error::not_found)?;
                let (codec, at, form) = (self.codec.clone(), at.clone(), *form);
                let show = move || codec.show_once(&at.cell, &at.path, &value, form);
                Ok((self.turns.work(caller.uid, "an old version", show).await??, time))
            }
            PastFile::Deleted(at, name) => Ok((Bytes::new(), self.state(at, name).await?.time)),
            PastFile::Log(at) => {
                let states = self.states_of(at).await?;
                let time = states.all.last().map_or(self.defaults.mounted, |state| state.time);
                let makers = log::makers(&states).await;
                let (codec, found, at) = (self.codec.clone(), self.found.clone(), at.clone());
                let lines = move || {
                    let words = |old: Option<&Bytes>, new: &Bytes| found.words(&codec, &at, old, new);
                    log::lines(&words, &states, &makers)
                };
                Ok((self.turns.work(caller.uid, "the log of a record", lines).await?.into(), time))
            }
            PastFile::Top | PastFile::Dir(_) => Err(Error::new(Kind::IsDirectory, "is a directory")),
        }
    }
}

fn past(file: &FileId) -> Result<&PastFile> {
    match file {
        FileId::Past(file) => Ok(file),
        _ => Err(Error::not_found()),
    }
}

fn unchangeable() -> Error {
    Error::new(Kind::ReadOnly, "the past cannot be changed")
}

#[async_trait]
impl Namespace for Arc<PastFiles> {
    async fn lookup(&self, _: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        self.find(past(dir)?, name).await.map(FileId::Past)
    }

    async fn attr(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        let file = past(&inode.file)?;
        match file {
            PastFile::Top => Ok(self.dir()),
            PastFile::Dir(at) => {
                let known = self.known(&at.cell).await?;
                let is_dir = known.is_dir(&at.path) || self.known_deleted(known).await?.is_dir(&at.path);
                if is_dir { Ok(self.dir()) } else { Err(Error::not_found()) }
            }
            PastFile::State(at, name, form) => {
                let state = self.state(at, name).await?;
                let (value, _) = state.record.ok_or_else(Error::not_found)?;
                let (codec, found, at, form) = (self.codec.clone(), self.found.clone(), at.clone(), *form);
                let size = move || found.size(&codec, &at, &value, form);
                let size = self.turns.work(caller.uid, "the size of an old version", size).await?;
                Ok(self.defaults.read_only_file(size, state.time))
            }
            PastFile::Deleted(..) | PastFile::Log(_) => {
                let (content, time) = self.content(caller, file).await?;
                Ok(self.defaults.read_only_file(content.len(), time))
            }
        }
    }

    /// Without a size: finding it out may need the service. The kernel asks again, since this does not last.
    fn attr_of_entry(&self, file: &FileId) -> Result<Attr> {
        match file.is_dir() {
            true => Ok(self.dir()),
            false => Ok(self.defaults.read_only_file(0, self.defaults.mounted)),
        }
    }

    async fn set_attr(&self, _: &Caller, _: &Inode, _: Option<Arc<dyn OpenFile>>, _: &SetAttr) -> Result<()> {
        Err(unchangeable())
    }

    fn keep(&self, _: &FileId) -> Keep {
        Keep::Never
    }

    async fn list(&self, _: &Caller, dir: &FileId) -> Result<Vec<DirEntry>> {
        let entries = self.entries(past(dir)?).await?;
        Ok(entries.into_iter().map(|(name, file)| DirEntry { name, file: FileId::Past(file) }).collect())
    }

    async fn open(&self, caller: &Caller, inode: &Inode, mode: OpenMode) -> Result<Open> {
        let file = past(&inode.file)?;
        if mode.write && !inode.file.is_dir() {
            return Err(unchangeable());
        }
        let (content, _) = self.content(caller, file).await?;
        let mut charge = self.room.charge(caller.uid);
        charge.resize(content.len())?;
        Ok(Open { file: Some(Arc::new(OpenPast { content, _charge: charge })), caching: Caching::DIRECT })
    }

    async fn read_unopened(&self, caller: &Caller, inode: &Inode, part: Part, _: bool) -> Result<Bytes> {
        Ok(part.of(&self.content(caller, past(&inode.file)?).await?.0))
    }

    async fn create(&self, _: &Caller, _: Name<'_>, _: u32, _: OpenMode) -> Result<Created> {
        Err(unchangeable())
    }

    async fn mkdir(&self, _: &Caller, _: Name<'_>) -> Result<(FileId, Attr)> {
        Err(unchangeable())
    }

    async fn rmdir(&self, _: &Caller, _: Name<'_>) -> Result<()> {
        Err(unchangeable())
    }

    async fn unlink(&self, _: &Caller, _: Name<'_>) -> Result<()> {
        Err(unchangeable())
    }

    async fn symlink(&self, _: &Caller, _: Name<'_>) -> Result<(FileId, Attr)> {
        Err(unchangeable())
    }

    async fn rename(&self, _: &Caller, _: Name<'_>, _: Name<'_>, _: bool) -> Result<()> {
        Err(unchangeable())
    }

    async fn xattr(&self, file: &FileId, name: &str) -> Result<Vec<u8>> {
        let found = self.xattrs(past(file)?).await?.into_iter().find(|(known, _)| *known == name);
        let found = found.ok_or_else(|| Error::new(Kind::NoAttribute, "no such attribute"))?;
        Ok(found.1.into_bytes())
    }

    async fn xattr_names(&self, file: &FileId) -> Result<Vec<String>> {
        Ok(self.xattrs(past(file)?).await?.into_iter().map(|(name, _)| name.to_owned()).collect())
    }
}

impl PastFiles {
    async fn xattrs(&self, file: &PastFile) -> Result<Vec<(&'static str, String)>> {
        let (at, name) = match file {
            PastFile::Top => return Ok(Vec::new()),
            PastFile::Dir(at) | PastFile::Log(at) => (at, None),
            PastFile::State(at, name, _) | PastFile::Deleted(at, name) => (at, Some(name)),
        };
        let mut all = vec![(CELL, at.cell.to_string()), (PATH, at.path.to_string())];
        if let Some(name) = name {
            let state = self.state(at, name).await?;
            all.extend(state.record.map(|(_, version)| (VERSION, version.number.to_string())));
            all.extend(self.codec.message(&at.cell, &at.path).map(|message| (TYPE, message.to_owned())));
            if let Some(by) = state.by {
                all.push((BY, log::who(&by).await));
                all.extend(by.change_set.map(|set| (CHANGE_SET, log::plain(&set))));
            }
        }
        Ok(all)
    }
}

/// An open file: it shows one state.
#[derive(Debug)]
struct OpenPast {
    content: Bytes,
    _charge: Charge,
}

#[async_trait]
impl OpenFile for OpenPast {
    async fn read(&self, _: &Caller, _: At, part: Part) -> Result<Bytes> {
        Ok(part.of(&self.content))
    }
}
