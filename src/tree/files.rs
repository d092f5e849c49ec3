//! Opening, reading, writing and closing files.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::caller::Removal;
use super::claim::Claim;
use super::draft::{Base, Draft, Occasion, Start};
use super::echo::ECHO;
use super::handles::{Handle, Reader};
use super::jobs::Happened;
use super::lockfile::LOCK;
use super::overlay::Scratch;
use super::{Attr, Caller, ControlFile, Node, Tree, new_name};
use crate::control::BreakLock;
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::process::{has_ended, was_killed, writers_of};
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
            Node::Root | Node::Control | Node::Dir(..) => Err(Error::new(Kind::IsDirectory, "is a directory")),
            Node::ControlFile(file) => self.open_control(ino, *file, mode).await,
            Node::Lock(cell, dir) => self.open_lock(ino, cell, dir).await,
            Node::Scratch(id) => {
                let file = self.overlay.file(*id).ok_or_else(Error::not_found)?;
                self.open_scratch(ino, file, mode)
            }
            Node::Record(cell, path, form) => {
                self.save_under_way(cell, path).await;
                if mode.write {
                    self.refuse_early(caller, cell, path).await?;
                    let base = self.fetch_base(cell, path).await?;
                    if base.is_none()
                        && self.recent.removal(caller, &node).is_none()
                        && self.own_draft(caller, ino).is_none()
                    {
                        return Err(Error::not_found());
                    }
                    self.open_draft(caller, ino, (cell, path, *form), base, None, mode)
                } else {
                    self.open_reader(caller, ino, (cell, path, *form), mode.direct).await
                }
            }
        }
    }

    async fn open_control(&self, ino: u64, file: ControlFile, mode: OpenMode) -> Result<Opened> {
        if mode.write && file != ControlFile::Control {
            return Err(Error::new(Kind::NotPermitted, format!("{} cannot be written", file.name())));
        }
        if file == ControlFile::Events {
            self.own_commits_told().await;
            let handle = self.handles.add(ino, Handle::Events(Arc::default()));
            return Ok(Opened { handle, ..Opened::direct() });
        }
        let content = self.control_content(file).await;
        Ok(Opened {
            handle: self.handles.add(ino, Handle::Control(file, Arc::new(Mutex::new(content)))),
            ..Opened::direct()
        })
    }

    pub(super) async fn control_content(&self, file: ControlFile) -> Bytes {
        match file {
            ControlFile::Locks => self.locks.report(&self.cells).await,
            _ => self.control.read(file, &self.cells, &self.counts()),
        }
    }

    fn open_scratch(&self, ino: u64, file: Arc<Scratch>, mode: OpenMode) -> Result<Opened> {
        if mode.write && mode.truncate {
            self.overlay.edit(&file, |_| 0, Vec::clear)?;
        }
        self.overlay.opened(&file);
        Ok(Opened {
            handle: self.handles.add(ino, Handle::Scratch { file, append: mode.append }),
            cached: true,
            kept: false,
            flushed: true,
        })
    }

    /// What the calling process writes to a file: the draft that it has opened or edited last. One that it has closed may
    /// still be there.
    pub(super) fn own_draft(&self, caller: &Caller, ino: u64) -> Option<Arc<Draft>> {
        let drafts = self.handles.drafts(ino).into_iter();
        drafts.filter(|draft| draft.opener == caller.process()).max_by_key(|draft| draft.changed())
    }

    async fn open_reader(
        &self,
        caller: &Caller,
        ino: u64,
        (cell, path, form): (&CellName, &TopoPath, Form),
        direct: bool,
    ) -> Result<Opened> {
        let (shown, record) = match self.shown(caller, cell, path, form, direct).await {
            Err(error) if error.kind == Kind::NotFound => match self.own_draft(caller, ino) {
                Some(draft) => (draft.content(), None),
                None => return Err(error),
            },
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
        Ok(Opened { handle: self.handles.add(ino, Handle::Reader(Arc::new(reader))), ..opened })
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
            self.recent.read(caller.thread, cell, path, node.version);
            return Ok((self.records.show(cell, path, &node.value, form)?, None));
        }
        let snapshot = connected.snapshot().await?;
        let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
        let shown = self.records.show(cell, path, &record.value, form)?;
        self.recent.read(caller.thread, cell, path, record.version);
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
            Some(base) if !mode.truncate => {
                self.recent.read(caller.thread, cell, path, base.version);
                self.records.show(cell, path, &base.value, form)?.to_vec()
            }
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
        };
        let draft = Draft::new((cell.clone(), path.clone(), form), caller, start);
        Ok(Opened { handle: self.handles.add(ino, Handle::Draft(Arc::new(draft))), ..Opened::direct() })
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
        let (cell, dir) = self.writable_dir(parent)?;
        let name = new_name(name)?;
        if name == LOCK {
            return self.create_lock(caller, (cell, dir), mode).await;
        }
        let connected = self.cell(&cell)?;
        let snapshot = connected.snapshot().await?;
        let node = match self.record_of_name(&cell, &snapshot, &dir, name) {
            Ok(node) => node,
            Err(_) => {
                let place = (cell, dir.join(name)?);
                return self.create_scratch(caller, place, snapshot, permissions, mode);
            }
        };
        let Node::Record(_, path, form) = &node else { return Err(Error::not_found()) };
        self.save_under_way(&cell, path).await;
        let base = self.fetch_base(&cell, path).await?;
        let removal = self.recent.removal(caller, &node);
        let mut mode = mode;
        let mut claim = None;
        match (&base, removal) {
            (Some(base), Some(Removal::MovedAway(_, version))) => {
                // The backup that an editor has made is of this version: this is a save, not a new record.
                if base.version != version {
                    return Err(moved_on(&cell, path, version.number, base.version.number));
                }
                mode.truncate = true;
                mode.exclusive = false;
            }
            (Some(_), Some(Removal::Appeared(_))) => {
                mode.truncate = true;
                mode.exclusive = false;
            }
            (None, _) if mode.exclusive => {
                let exists = || Error::new(Kind::Exists, "somebody else is making the record");
                claim = Some(self.claims.take((cell.clone(), path.clone())).ok_or_else(exists)?);
                for other in self.forms(&cell, path).filter(|other| other != form) {
                    let name = Node::Record(cell.clone(), path.clone(), other);
                    self.recent.removed(caller, name, Removal::Appeared(std::time::Instant::now()));
                }
            }
            (Some(_), _) if mode.exclusive => return Err(Error::new(Kind::Exists, "the record exists already")),
            _ => {}
        }
        // Not before: the kernel repeats what fails with ESTALE, and must find things as they were.
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
        place: super::overlay::Place,
        seen: Arc<Snapshot>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Attr, Opened)> {
        let owner = (caller.uid, caller.gid, permissions);
        let file = self.overlay.open_or_create(place, seen, owner, mode.exclusive)?;
        let node = Node::Scratch(file.id);
        let ino = self.inodes.told(&node);
        let opened = self.open_scratch(ino, file.clone(), mode)?;
        let attr = self.scratch_attr(&file.state.lock());
        Ok((Attr { ino, ..attr }, opened))
    }

    /// Reads from an open file; fewer bytes than asked for mean its end.
    pub async fn read(&self, caller: &Caller, handle: u64, offset: u64, size: u32) -> Result<Bytes> {
        let (offset, size) = (usize::try_from(offset).unwrap_or(usize::MAX), size as usize);
        let slice = |content: &Bytes| {
            let end = offset.saturating_add(size).min(content.len());
            content.slice(offset.min(end)..end)
        };
        match self.handles.get(handle)? {
            Handle::Lock(file) => {
                self.refuse_if_lost(handle)?;
                Ok(slice(&self.read_lock(&file, offset).await?))
            }
            Handle::Control(file, content) => {
                let mut content = content.lock();
                // `tail -f` reads on at the end.
                if file == ControlFile::Errors && offset >= content.len() {
                    *content = self.control.read(file, &self.cells, &self.counts());
                }
                Ok(slice(&content))
            }
            Handle::Events(reader) => Ok(self.control.events.read(&mut reader.lock(), offset as u64, size)),
            Handle::Draft(draft) => Ok(draft.read(offset, size)),
            Handle::Scratch { file, .. } => {
                let state = file.state.lock();
                let end = offset.saturating_add(size).min(state.content.len());
                Ok(Bytes::copy_from_slice(state.content.get(offset..end).unwrap_or_default()))
            }
            // Never waits: the page is locked meanwhile.
            Handle::Reader(reader) if reader.cached => {
                let content = self.page_content(caller, self.handles.inode(handle)?, &reader)?;
                // An open file outlives its name.
                Ok(slice(&content.unwrap_or_else(|| reader.shown.lock().0.clone())))
            }
            Handle::Reader(reader) => {
                // From the beginning: what there is now. Further on: the rest of the same state, to its end. Who asks again after
                // that waits for more (`tail -f`).
                let at_end = offset > 0 && offset >= reader.shown.lock().0.len();
                let waits = reader.ended.swap(at_end, Ordering::Relaxed) && at_end;
                if offset == 0 || waits {
                    let Reader { cell, path, form, direct, .. } = &*reader;
                    self.save_under_way(cell, path).await;
                    match self.shown(caller, cell, path, *form, *direct).await {
                        Ok((shown, record)) => {
                            let modified = record.map_or_else(SystemTime::now, |record| record.modified);
                            *reader.shown.lock() = (shown, modified);
                        }
                        // An open file outlives its name.
                        Err(error) if error.kind == Kind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(slice(&reader.shown.lock().0))
            }
        }
    }

    /// Writes to an open file. Content that nothing could make valid is refused here, since shells ignore the errors of close.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<Vec<BreakLock>> {
        let offset = usize::try_from(offset).map_err(|_| Error::new(Kind::TooLarge, "offset too large"))?;
        match self.handles.get(handle)? {
            Handle::Control(..) => return self.control.command(data, &self.cells),
            Handle::Lock(file) => {
                self.refuse_if_lost(handle)?;
                file.write(data)
            }
            Handle::Draft(draft) => draft.write(offset, data, |content| {
                self.records.refuse_early(&draft.cell, &draft.path, draft.form, content)
            }),
            Handle::Scratch { file, append } => {
                let place = move |length: usize| if append { length } else { offset };
                let length = |length: usize| length.max(place(length).saturating_add(data.len()));
                self.overlay.edit(&file, length, |content| {
                    let (start, end) = (place(content.len()), place(content.len()).saturating_add(data.len()));
                    if content.len() < end {
                        content.resize(end, 0);
                    }
                    if let Some(place) = content.get_mut(start..end) {
                        place.copy_from_slice(data);
                    }
                })
            }
            Handle::Reader(_) | Handle::Events(_) => Err(Error::new(Kind::BadDescriptor, "not open for writing")),
        }
        .map(|()| Vec::new())
    }

    /// Does what a write to `control` asks for and cannot do itself.
    pub async fn break_locks(&self, orders: Vec<BreakLock>) -> Result<()> {
        for BreakLock { path, key } in orders {
            self.locks.break_lock(&self.cells, &path, &key).await?;
        }
        Ok(())
    }

    /// A descriptor is closed: saves what its process has written, and unlocks what `owner`, the process, has locked.
    pub async fn flush(&self, caller: &Caller, handle: u64, owner: u64) -> Result<()> {
        self.locks.closed(self.handles.inode(handle)?, owner).await;
        let Handle::Draft(draft) = self.handles.get(handle)? else { return Ok(()) };
        let own = draft.opener == caller.process();
        if own && was_killed(caller.thread) {
            // Who was interrupted has not written all that it wanted to: half a record is worse than none.
            draft.abandon();
            return Ok(());
        }
        // Every child that inherited the descriptor flushes, too, when it ends; the record is complete when its opener says so.
        if !own && !has_ended(draft.opener) {
            return Ok(());
        }
        // A shell that redirects within a redirected block closes one of two descriptors: more is to come.
        if own && self.has_duplicate(&draft, handle) {
            return Ok(());
        }
        let outcome = self.save(&draft, Occasion::Flush).await;
        if outcome.is_err() {
            self.put_back(&draft).await;
        }
        outcome
    }

    /// Whether the process that has opened a draft holds another descriptor of the same open file: more than its other
    /// open files account for.
    fn has_duplicate(&self, draft: &Draft, handle: u64) -> bool {
        let Some((ino, others)) = self.handles.other_drafts(handle, draft.opener) else { return false };
        draft.wrote() && writers_of(draft.opener, ino).is_some_and(|count| count > others)
    }

    /// Whether reading from an open file gives something now. Only `.topofs/events` is waited for.
    pub fn is_readable(&self, handle: u64) -> bool {
        match self.handles.get(handle) {
            Ok(Handle::Events(reader)) => self.control.events.has_more(&reader.lock()),
            _ => true,
        }
    }

    /// fsync(2): saves now.
    pub async fn fsync(&self, handle: u64) -> Result<()> {
        match self.handles.get(handle)? {
            Handle::Lock(_) => self.refuse_if_lost(handle),
            Handle::Draft(draft) => self.save(&draft, Occasion::Sync).await,
            _ => Ok(()),
        }
    }

    /// The last descriptor is gone: saves what was only truncated or made, and unlocks what was locked through it.
    pub async fn release(&self, handle: u64, owner: Option<u64>) -> Result<()> {
        if handle == ECHO {
            return Ok(());
        }
        let ino = self.handles.inode(handle)?;
        let (saved, ()) = futures::join!(self.close(handle), self.locks.released(ino, handle, owner));
        saved
    }

    /// Forgets an open file or directory.
    pub async fn close(&self, handle: u64) -> Result<()> {
        match self.handles.get(handle)? {
            Handle::Draft(draft) => {
                // The draft stays visible to its writer until it is saved.
                let outcome = self.save_released(&draft).await;
                self.handles.remove(handle)?;
                self.put_back(&draft).await;
                outcome
            }
            Handle::Scratch { file, .. } => {
                self.handles.remove(handle)?;
                self.overlay.closed(&file);
                Ok(())
            }
            Handle::Reader(_) | Handle::Control(..) | Handle::Lock(_) | Handle::Events(_) => {
                self.handles.remove(handle).map(drop)
            }
        }
    }
}

/// The error of a save over a version that is not the one it was made from.
pub(super) fn moved_on(cell: &CellName, path: &TopoPath, known: u64, found: u64) -> Error {
    let reason =
        format!("someone else changed the record meanwhile: {cell}/{path} has version {found}, expected {known}");
    Error::new(Kind::Conflict, reason)
}
