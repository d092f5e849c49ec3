//! Opens and makes records. Must never let a caller overwrite a change that it has not seen.

use std::sync::Arc;
use std::time::SystemTime;

use super::RecordFiles;
use super::draft::{Base, Draft, Start};
use super::exclusive::{ExclusiveRight, Taken};
use super::flush::OpenDraft;
use super::memory::{Exception, Reading};
use crate::backend::Version;
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::{Caching, FileId, OpenMode};
use crate::tree::namespace::{Created, Inode, Name, Open};

impl RecordFiles {
    /// Opens a file.
    pub(super) async fn open(self: &Arc<Self>, caller: &Caller, inode: &Inode, mode: OpenMode) -> Result<Open> {
        match &inode.file {
            FileId::Lock(CellPath { cell, path: dir }) => self.open_lock(caller, inode.ino, cell, dir, mode).await,
            FileId::Scratch(id) => {
                let file = self.scratch.file(*id).ok_or_else(Error::not_found)?;
                self.open_scratch(caller, file, mode)
            }
            FileId::Record(CellPath { cell, path }, form) => {
                self.wait_for_saves(cell, path).await;
                if mode.write {
                    self.open_to_write(caller, inode.ino, (cell, path, *form), mode).await
                } else {
                    self.open_reader(caller, inode.ino, (cell, path, *form), mode.direct).await
                }
            }
            FileId::Link(_) => Err(Error::new(Kind::Invalid, "a symbolic link cannot be opened")),
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Dir(..) | FileId::Links(..) => {
                Err(Error::new(Kind::IsDirectory, "is a directory"))
            }
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Err(Error::not_found()),
        }
    }

    async fn open_to_write(
        self: &Arc<Self>,
        caller: &Caller,
        ino: u64,
        (cell, path, form): (&CellName, &TopoPath, Form),
        mode: OpenMode,
    ) -> Result<Open> {
        let file = FileId::Record(CellPath::new(cell, path), form);
        if let Some(error) = self.memory.repeated(caller, &file) {
            return Err(error);
        }
        self.refuse_unseen(caller)?;
        self.refuse_early(caller.into(), cell, path).await?;
        let base = self.fetch_base(cell, path).await?;
        if base.is_none() && self.memory.exception(caller, &file).is_none() && self.own_draft(caller, ino).is_none() {
            return Err(Error::not_found());
        }
        self.refuse_outdated_open(caller, &file, base.as_ref(), mode)?;
        self.open_draft(caller, (cell, path, form), base, None, mode).map(|(open, _)| open)
    }

    /// Refuses unseen processes. One cannot be distinguished from another, and nobody knows whether it was killed: half
    /// a record might be stored.
    pub(crate) fn refuse_unseen(&self, caller: &Caller) -> Result<()> {
        if self.options.allow_unseen_writers || caller.process().is_some() {
            return Ok(());
        }
        let reason = "the process that writes cannot be seen from here, as from a container with process numbers of \
                      its own: let the mount share its pid namespace, or mount with --allow-unseen-writers";
        Err(Error::new(Kind::NotPermitted, reason))
    }

    /// Fails once, with ESTALE, if the caller's process has read a record, at least in the way of `reading`, that
    /// somebody else has changed since. The kernel repeats the call, and must get the same answer.
    pub(crate) fn refuse_outdated(
        &self,
        caller: &Caller,
        file: &FileId,
        found: Version,
        reading: Reading,
    ) -> Result<()> {
        let FileId::Record(CellPath { cell, path }, _) = file else { return Ok(()) };
        let known = self.memory.last_read(caller, cell, path, reading);
        let Some(known) = known.filter(|known| *known != found) else { return Ok(()) };
        // The process knows now.
        self.memory.forget_read(caller, cell, path);
        let error = moved_on(cell, path, known.number, found.number);
        self.memory.refused(caller, file, &error);
        Err(error)
    }

    /// The same for opening a record. A program that reads and writes through one descriptor reads again when it opens
    /// the next one. If the record is gone, nothing is overwritten.
    fn refuse_outdated_open(&self, caller: &Caller, file: &FileId, base: Option<&Base>, mode: OpenMode) -> Result<()> {
        let reading = if mode.read && !mode.truncate { Reading::Apart } else { Reading::ToWrite };
        base.map_or(Ok(()), |base| self.refuse_outdated(caller, file, base.version, reading))
    }

    /// What the calling process writes to a file: the draft that it has opened or edited last. A draft that it has
    /// closed may still be there.
    pub(crate) fn own_draft(&self, caller: &Caller, ino: u64) -> Option<Arc<Draft>> {
        let drafts = self.handles.drafts::<OpenDraft>(ino);
        // An unseen process shares nothing with others.
        let process = if drafts.is_empty() { None } else { Some(caller.process()?) };
        let drafts = drafts.into_iter().map(|(_, open)| open.draft.clone());
        drafts.filter(|draft| draft.opener == process).max_by_key(|draft| draft.changed())
    }

    /// Everything that the calling process writes to a file.
    pub(crate) fn own_drafts(&self, caller: &Caller, file: &FileId) -> Vec<Arc<Draft>> {
        let Some(process) = caller.process() else { return Vec::new() };
        let drafts = self.handles.drafts::<OpenDraft>(self.kernel.number(file)).into_iter();
        drafts.map(|(_, open)| open.draft.clone()).filter(|draft| draft.opener == Some(process)).collect()
    }

    fn open_draft(
        self: &Arc<Self>,
        caller: &Caller,
        (cell, path, form): (&CellName, &TopoPath, Form),
        base: Option<Base>,
        exclusive: Option<ExclusiveRight>,
        mode: OpenMode,
    ) -> Result<(Open, Arc<Draft>)> {
        let content = match &base {
            Some(base) if !mode.truncate => self.codec.show(cell, path, &base.value, form)?.to_vec(),
            _ => Vec::new(),
        };
        let start = Start {
            content,
            // If an empty file is truncated, its save makes no new version.
            dirty: mode.truncate || base.is_none(),
            base,
            append: mode.append,
            exclusive,
            value_limit: self.store(cell)?.limits().value,
            room: self.room.charge(caller.uid),
        };
        let draft = Draft::new((cell.clone(), path.clone(), form), (caller.process(), caller.uid), start)?;
        let draft = Arc::new(draft);
        Ok((Open { file: Some(OpenDraft::new(self, draft.clone())), caching: Caching::DIRECT }, draft))
    }

    /// Makes a file and opens it. A name that cannot be a record's becomes a scratch file.
    pub(super) async fn create(
        self: &Arc<Self>,
        caller: &Caller,
        at: Name<'_>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<Created> {
        let CellPath { cell, path: dir } = self.writable_dir(at.dir)?;
        let name = at.name;
        if name == LOCK_FILE {
            return self.create_lock(caller, CellPath { cell, path: dir }, mode).await;
        }
        let snapshot = self.store(&cell)?.snapshot().await?;
        let file = match self.record_of_name(&cell, &snapshot, &dir, name) {
            Ok(file) => file,
            Err(_) => {
                self.refuse_hidden_form(&cell, &snapshot, &dir, name)?;
                let place = CellPath { cell, path: dir.join(name)? };
                return self.create_scratch(caller, place, snapshot, permissions, mode);
            }
        };
        let FileId::Record(CellPath { path, .. }, form) = &file.clone() else { return Err(Error::not_found()) };
        if let Some(error) = self.memory.repeated(caller, &file) {
            return Err(error);
        }
        self.refuse_unseen(caller)?;
        self.wait_for_saves(&cell, path).await;
        let base = self.fetch_base(&cell, path).await?;
        let exception = self.memory.exception(caller, &file);
        let made = self.memory.made_by(caller, &cell, path);
        // The same process has made the record under another name. It makes all names one after the other, or at once.
        let is_own = |base: &Base| made.is_some_and(|made| base.version == made.version && made.form != *form);
        let making = self.exclusive.is_of(&CellPath::new(&cell, path), caller.process(), *form);
        let own = base.as_ref().is_some_and(|base| making || is_own(base));
        let mut mode = mode;
        let mut exclusive = None;
        match (&base, exception) {
            (Some(base), Some(Exception::MovedAway(_, version))) => {
                // The backup that an editor has made is of this version, so this is a save, not a new record.
                if base.version != version {
                    let error = moved_on(&cell, path, version.number, base.version.number);
                    self.memory.refused(caller, &file, &error);
                    self.memory.moved_away(caller, &file, base.version);
                    return Err(error);
                }
                mode.truncate = true;
                mode.exclusive = false;
            }
            (Some(_), exception) if own && (mode.exclusive || matches!(exception, Some(Exception::Freed(_)))) => {
                mode.truncate = true;
                mode.exclusive = false;
            }
            (None, _) if mode.exclusive => {
                let exists = || Error::new(Kind::Exists, "somebody else is making the record");
                match self.exclusive.take(CellPath::new(&cell, path), caller.process(), *form) {
                    Taken::Now(right) => exclusive = Some(right),
                    // The process makes all forms at once.
                    Taken::BySelf => mode.exclusive = false,
                    Taken::ByAnother => return Err(exists()),
                }
            }
            (Some(_), _) if mode.exclusive => return Err(Error::new(Kind::Exists, "the record exists already")),
            _ => self.refuse_outdated_open(caller, &file, base.as_ref(), mode)?,
        }
        // Not earlier: the kernel repeats what fails with ESTALE, and the repetition must find things as they were.
        if self.memory.is_freed_for(caller, &file) {
            self.memory.made_again(caller, &cell, path);
        }
        self.memory.end_exception(caller, &file);
        let (open, draft) = self.open_draft(caller, (&cell, path, *form), base, exclusive, mode)?;
        Ok(Created { file, attr: self.defaults.file(draft.len(), SystemTime::now()), open })
    }
}

/// The error of a save that would replace a version other than the one that it was made from.
pub(crate) fn moved_on(cell: &CellName, path: &TopoPath, known: u64, found: u64) -> Error {
    let reason =
        format!("someone else changed the record meanwhile: {cell}/{path} has version {found}, expected {known}");
    Error::new(Kind::Conflict, reason)
}
