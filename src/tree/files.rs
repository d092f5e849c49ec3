//! Opening, reading, writing and closing files.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::caller::{Reading, Removal};
use super::claim::{Claim, Claimed};
use super::draft::{Base, Draft, Start};
use super::handles::{Handle, OpenControl, OpenScratch, Reader};
use super::jobs::Happened;
use super::overlay::Scratch;
use super::{Attr, Caller, ControlFile, FileId, Tree, new_name};
use crate::backend::Version;
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::record::Form;

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenMode {
    /// O_RDONLY or O_RDWR.
    pub read: bool,
    /// O_WRONLY or O_RDWR.
    pub write: bool,
    /// O_APPEND.
    pub append: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_EXCL.
    pub exclusive: bool,
    /// O_DIRECT: read from the backend.
    pub direct: bool,
}

/// An open file.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// Whether it is read through the kernel's page cache.
    pub cached: bool,
    /// Whether the kernel may go on with the pages that it has.
    pub kept: bool,
    /// Whether closing a descriptor is to be told.
    pub flushed: bool,
}

impl Opened {
    /// Without a handle yet, read and written past the page cache.
    pub(super) fn direct() -> Self {
        Self { handle: 0, cached: false, kept: false, flushed: true }
    }

    /// Without a handle yet, only read, through the page cache.
    pub(super) fn cached(kept: bool) -> Self {
        Self { handle: 0, cached: true, kept, flushed: false }
    }
}

impl Tree {
    /// Opens a file.
    pub async fn open(&self, caller: &Caller, ino: u64, mode: OpenMode) -> Result<Opened> {
        if self.echo.is_from(caller) {
            return Ok(self.echo_open());
        }
        let node = self.node(ino)?;
        if mode.write {
            self.refuse_if_read_only()?;
        }
        match &node {
            FileId::Root | FileId::Control | FileId::Dir(..) => Err(Error::new(Kind::IsDirectory, "is a directory")),
            FileId::ControlFile(file) => self.open_control(caller, ino, *file, mode).await,
            FileId::Lock(CellPath { cell, path: dir }) => self.open_lock(caller, ino, cell, dir, mode).await,
            FileId::Scratch(id) => {
                let file = self.overlay.file(*id).ok_or_else(Error::not_found)?;
                self.open_scratch(caller, ino, file, mode)
            }
            FileId::Record(CellPath { cell, path }, form) => {
                self.save_under_way(cell, path).await;
                if mode.write {
                    self.open_to_write(caller, ino, (cell, path, *form), mode).await
                } else {
                    self.open_reader(caller, ino, (cell, path, *form), mode.direct).await
                }
            }
        }
    }

    async fn open_to_write(
        &self,
        caller: &Caller,
        ino: u64,
        (cell, path, form): (&CellName, &TopoPath, Form),
        mode: OpenMode,
    ) -> Result<Opened> {
        let node = FileId::Record(CellPath::new(cell, path), form);
        if let Some(error) = self.recent.repeated(caller, &node) {
            return Err(error);
        }
        self.refuse_unseen(caller)?;
        self.refuse_early(caller.into(), cell, path).await?;
        let base = self.fetch_base(cell, path).await?;
        if base.is_none() && self.recent.removal(caller, &node).is_none() && self.own_draft(caller, ino).is_none() {
            return Err(Error::not_found());
        }
        self.refuse_outdated_open(caller, &node, base.as_ref(), mode)?;
        self.open_draft(caller, ino, (cell, path, form), base, None, mode)
    }

    /// Who cannot be seen cannot be told from others, nor can it be told whether it was killed: half a record might be stored.
    pub(super) fn refuse_unseen(&self, caller: &Caller) -> Result<()> {
        if self.options.allow_unseen_writers || caller.process().is_some() {
            return Ok(());
        }
        let reason = "the process that writes cannot be seen from here, as from a container with process numbers of its own: let the \
                      mount share its pid namespace, or mount with --allow-unseen-writers";
        Err(Error::new(Kind::NotPermitted, reason))
    }

    /// Fails once, with ESTALE, if the caller's process has read a record, at least so, that somebody else has changed since. The kernel's
    /// repetition is to be told the same.
    pub(super) fn refuse_outdated(
        &self,
        caller: &Caller,
        node: &FileId,
        found: Version,
        reading: Reading,
    ) -> Result<()> {
        let FileId::Record(CellPath { cell, path }, _) = node else { return Ok(()) };
        let known = self.recent.last_read(caller, cell, path, reading);
        let Some(known) = known.filter(|known| *known != found) else { return Ok(()) };
        // It knows now.
        self.recent.forget_read(caller, cell, path);
        let error = moved_on(cell, path, known.number, found.number);
        self.recent.refused(caller, node, &error);
        Err(error)
    }

    /// The same for opening a record. A program that reads and writes through one descriptor reads again when it opens the next one, and
    /// where the record has gone nothing is overwritten.
    fn refuse_outdated_open(&self, caller: &Caller, node: &FileId, base: Option<&Base>, mode: OpenMode) -> Result<()> {
        let reading = if mode.read && !mode.truncate { Reading::Apart } else { Reading::ToWrite };
        base.map_or(Ok(()), |base| self.refuse_outdated(caller, node, base.version, reading))
    }

    async fn open_control(&self, caller: &Caller, ino: u64, file: ControlFile, mode: OpenMode) -> Result<Opened> {
        if mode.write && file != ControlFile::Control {
            return Err(Error::new(Kind::NotPermitted, format!("{} cannot be written", file.name())));
        }
        if file == ControlFile::Events {
            self.own_commits_told().await;
            let handle = self.handles.add(caller.uid, ino, Handle::Events(Arc::default()))?;
            return Ok(Opened { handle, ..Opened::direct() });
        }
        let content = self.control_content(file).await;
        let mut room = self.room.charge(caller.uid);
        room.resize(content.len())?;
        let open = OpenControl { file, content: Mutex::new((content, room)) };
        Ok(Opened { handle: self.handles.add(caller.uid, ino, Handle::Control(Arc::new(open)))?, ..Opened::direct() })
    }

    pub(super) async fn control_content(&self, file: ControlFile) -> Bytes {
        match file {
            ControlFile::Locks => self.locks.report(&self.cells).await,
            _ => self.control.read(file, &self.cells, || self.counts()),
        }
    }

    fn open_scratch(&self, caller: &Caller, ino: u64, file: Arc<Scratch>, mode: OpenMode) -> Result<Opened> {
        if mode.write && mode.truncate {
            self.overlay.edit(&file, |_| 0, Vec::clear)?;
            file.renew(self.cell(&file.cell)?.mirror.snapshot());
        }
        let opener = (caller.process(), caller.uid);
        let open = OpenScratch { file: file.clone(), append: mode.append, writes: mode.write, opener };
        let handle = self.handles.add(caller.uid, ino, Handle::Scratch(Arc::new(open)))?;
        self.overlay.opened(&file);
        Ok(Opened { handle, cached: true, kept: false, flushed: true })
    }

    /// What the calling process writes to a file: the draft that it has opened or edited last. One that it has closed may
    /// still be there.
    pub(super) fn own_draft(&self, caller: &Caller, ino: u64) -> Option<Arc<Draft>> {
        let drafts = self.handles.drafts(ino);
        // Who cannot be seen shares with nobody.
        let process = if drafts.is_empty() { None } else { Some(caller.process()?) };
        drafts.into_iter().filter(|draft| draft.opener == process).max_by_key(|draft| draft.changed())
    }

    /// Everything that the calling process writes to a file.
    pub(super) fn own_drafts(&self, caller: &Caller, node: &FileId) -> Vec<Arc<Draft>> {
        let Some(process) = caller.process() else { return Vec::new() };
        let mut drafts = self.handles.drafts(self.inodes.number(node));
        drafts.retain(|draft| draft.opener == Some(process));
        drafts
    }

    async fn open_reader(
        &self,
        caller: &Caller,
        ino: u64,
        (cell, path, form): (&CellName, &TopoPath, Form),
        direct: bool,
    ) -> Result<Opened> {
        let (shown, record) = match self.shown(caller, cell, path, form, direct).await {
            Err(error) if error.kind == Kind::NotFound => {
                let node = FileId::Record(CellPath::new(cell, path), form);
                let draft = self.own_draft(caller, ino).map(|draft| draft.content());
                let ghost = || self.ghost_content(caller, &node).map(|(content, _)| content);
                (draft.or_else(ghost).ok_or(error)?, None)
            }
            shown => shown?,
        };
        let opened = match &record {
            Some(record) if self.handles.drafts(ino).is_empty() => {
                self.through_cache(ino, (cell, path), record, &shown)
            }
            _ => Opened { flushed: false, ..Opened::direct() },
        };
        let modified = record.map_or_else(SystemTime::now, |record| record.modified);
        let mut reader = Reader::new(cell, path, form, Bytes::new());
        reader.direct = direct;
        reader.cached = opened.cached;
        *reader.shown.lock() = (shown, modified);
        Ok(Opened { handle: self.handles.add(caller.uid, ino, Handle::Reader(Arc::new(reader)))?, ..opened })
    }

    /// One form of a record as it is now, and the state of the mirror that it is of.
    pub(super) async fn shown(
        &self,
        caller: &Caller,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        direct: bool,
    ) -> Result<(Bytes, Option<Record>)> {
        let connected = self.cell(cell)?;
        if direct {
            let node = connected.fetch(path).await?.node.ok_or_else(Error::not_found)?;
            self.recent.read(caller.process(), (cell, path), node.version, Reading::Apart);
            return Ok((self.records.show(cell, path, &node.value, form)?, None));
        }
        let snapshot = connected.snapshot().await?;
        let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
        let shown = self.records.show(cell, path, &record.value, form)?;
        if !self.options.read_only {
            self.recent.read(caller.process(), (cell, path), record.version, Reading::Apart);
        }
        self.kernel_keeps_up(cell).await;
        Ok((shown, Some(record.clone())))
    }

    fn open_draft(
        &self,
        caller: &Caller,
        ino: u64,
        (cell, path, form): (&CellName, &TopoPath, Form),
        base: Option<Base>,
        claim: Option<Claim>,
        mode: OpenMode,
    ) -> Result<Opened> {
        let content = match &base {
            Some(base) if !mode.truncate => self.records.show(cell, path, &base.value, form)?.to_vec(),
            _ => Vec::new(),
        };
        let start = Start {
            content,
            // An empty file that is truncated is not changed.
            dirty: mode.truncate || base.is_none(),
            base,
            append: mode.append,
            claim,
            value_limit: self.cell(cell)?.limits().value,
            room: self.room.charge(caller.uid),
        };
        let draft = Draft::new((cell.clone(), path.clone(), form), (caller.process(), caller.uid), start)?;
        Ok(Opened { handle: self.handles.add(caller.uid, ino, Handle::Draft(Arc::new(draft)))?, ..Opened::direct() })
    }

    /// Makes a file and opens it. What is no record's name becomes a scratch file.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Attr, Opened)> {
        if self.echo.is_from(caller) {
            return Ok((self.echo_done(parent, new_name(name)?, Happened::Created)?, self.echo_open()));
        }
        let CellPath { cell, path: dir } = self.writable_dir(parent)?;
        let name = new_name(name)?;
        if name == LOCK_FILE {
            return self.create_lock(caller, CellPath { cell, path: dir }, mode).await;
        }
        let connected = self.cell(&cell)?;
        let snapshot = connected.snapshot().await?;
        let node = match self.record_of_name(&cell, &snapshot, &dir, name) {
            Ok(node) => node,
            Err(_) => {
                self.refuse_hidden_form(&cell, &snapshot, &dir, name)?;
                let place = CellPath { cell, path: dir.join(name)? };
                return self.create_scratch(caller, place, snapshot, permissions, mode);
            }
        };
        let FileId::Record(CellPath { path, .. }, form) = &node else { return Err(Error::not_found()) };
        if let Some(error) = self.recent.repeated(caller, &node) {
            return Err(error);
        }
        self.refuse_unseen(caller)?;
        self.save_under_way(&cell, path).await;
        let base = self.fetch_base(&cell, path).await?;
        let removal = self.recent.removal(caller, &node);
        let made = self.recent.made_by(caller, &cell, path);
        // Made under another name by the same process, which makes all names one after the other, or at once.
        let is_own = |base: &Base| made.is_some_and(|made| base.version == made.version && made.form != *form);
        let making = self.claims.is_of(&CellPath::new(&cell, path), caller.process(), *form);
        let own = base.as_ref().is_some_and(|base| making || is_own(base));
        let mut mode = mode;
        let mut claim = None;
        match (&base, removal) {
            (Some(base), Some(Removal::MovedAway(_, version))) => {
                // The backup that an editor has made is of this version: this is a save, not a new record.
                if base.version != version {
                    let error = moved_on(&cell, path, version.number, base.version.number);
                    self.recent.refused(caller, &node, &error);
                    self.recent.moved_away(caller, &node, base.version);
                    return Err(error);
                }
                mode.truncate = true;
                mode.exclusive = false;
            }
            (Some(_), removal) if own && (mode.exclusive || matches!(removal, Some(Removal::Freed(_)))) => {
                mode.truncate = true;
                mode.exclusive = false;
            }
            (None, _) if mode.exclusive => {
                let exists = || Error::new(Kind::Exists, "somebody else is making the record");
                match self.claims.take(CellPath::new(&cell, path), caller.process(), *form) {
                    Claimed::Now(taken) => claim = Some(taken),
                    // It makes all forms at once.
                    Claimed::BySelf => mode.exclusive = false,
                    Claimed::ByAnother => return Err(exists()),
                }
            }
            (Some(_), _) if mode.exclusive => return Err(Error::new(Kind::Exists, "the record exists already")),
            _ => self.refuse_outdated_open(caller, &node, base.as_ref(), mode)?,
        }
        // Not before: the kernel repeats what fails with ESTALE, and must find things as they were.
        if self.recent.is_freed_for(caller, &node) {
            self.recent.made_again(caller, &cell, path);
        }
        self.recent.settle(caller, &node);
        let ino = self.inodes.told(&node);
        let opened = self
            .open_draft(caller, ino, (&cell, path, *form), base, claim, mode)
            .inspect_err(|_| self.inodes.forget(ino, 1))?;
        let size = self.handles.draft(opened.handle).map_or(0, |draft| draft.len());
        Ok((Attr { ino, ..self.file_attr(size, SystemTime::now()) }, opened))
    }

    fn create_scratch(
        &self,
        caller: &Caller,
        place: CellPath,
        seen: Arc<Snapshot>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Attr, Opened)> {
        let owner = (caller.uid, caller.gid, permissions);
        let file = self.overlay.open_or_create(place, seen, owner, mode.exclusive)?;
        let node = FileId::Scratch(file.id);
        let ino = self.inodes.told(&node);
        let opened = self.open_scratch(caller, ino, file.clone(), mode).inspect_err(|_| self.inodes.forget(ino, 1))?;
        let attr = self.scratch_attr(&file.state.lock());
        Ok((Attr { ino, ..attr }, opened))
    }
}

/// The error of a save over a version that is not the one it was made from.
pub(super) fn moved_on(cell: &CellName, path: &TopoPath, known: u64, found: u64) -> Error {
    let reason =
        format!("someone else changed the record meanwhile: {cell}/{path} has version {found}, expected {known}");
    Error::new(Kind::Conflict, reason)
}
