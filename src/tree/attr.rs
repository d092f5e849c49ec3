//! Attributes of nodes.

use std::time::SystemTime;

use bytes::Bytes;

use super::caller::Removal;
use super::draft::Draft;
use super::lockfile::is_virtual;
use super::overlay::ScratchState;
use super::{Caller, ControlFile, FileId, Tree};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::Form;

/// Attributes of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// A directory, or a regular file.
    pub is_dir: bool,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links: 0 for a file that has lost its name.
    pub links: u32,
    /// Time of the last read, as far as it is kept.
    pub accessed: SystemTime,
    /// Time of the last write.
    pub modified: SystemTime,
    /// Time of the last change.
    pub changed: SystemTime,
    /// Whether the kernel may keep name and attributes until it is told otherwise.
    pub lasting: bool,
    /// The state of the record that these are of, if they are of one.
    pub(super) record: Option<Record>,
}

/// Attributes to set.
#[derive(Debug, Default)]
pub struct SetAttr {
    /// New size.
    pub size: Option<u64>,
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New time of the last read.
    pub accessed: Option<SystemTime>,
    /// New time of the last write.
    pub modified: Option<SystemTime>,
}

/// Permission bits of files and directories before the umask.
const FILE_MODE: u32 = 0o666;
const DIR_MODE: u32 = 0o777;

impl Tree {
    /// Attributes of an inode.
    pub async fn getattr(&self, caller: &Caller, ino: u64) -> Result<Attr> {
        if self.echo.is_from(caller) {
            return self.echo_getattr(ino);
        }
        let node = self.node(ino)?;
        let attr = match &node {
            FileId::Record(CellPath { cell, path }, form) => self.record_attr(caller, ino, cell, path, *form).await?,
            FileId::Dir(..) if self.recent.is_ghost(caller, &node) => self.dir_attr(),
            FileId::ControlFile(file) if self.opens_unasked() && *file != ControlFile::Events => {
                let (content, when) = self.rendered(*file).await;
                self.file_attr_of(*file, content.len(), when)
            }
            _ => self.attr(&node).await?,
        };
        Ok(self.answered(&node, ino, attr))
    }

    /// Attributes of a node without a number.
    pub(super) async fn attr(&self, node: &FileId) -> Result<Attr> {
        match node {
            FileId::Dir(CellPath { cell, path }) => self.require_dir(cell, path).await?,
            FileId::Record(CellPath { cell, .. }, _) | FileId::Lock(CellPath { cell, .. }) => {
                drop(self.cell(cell)?.snapshot().await?)
            }
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => {}
        }
        self.attr_now(node)
    }

    /// The same, of a cell that is loaded, and of a directory that is there.
    pub(super) fn attr_now(&self, node: &FileId) -> Result<Attr> {
        match node {
            FileId::Root | FileId::Control | FileId::Dir(..) => Ok(self.dir_attr()),
            FileId::ControlFile(file) => {
                let size = self.control.size(*file, &self.cells);
                Ok(self.file_attr_of(*file, size, SystemTime::now()))
            }
            FileId::Record(CellPath { cell, path }, form) => {
                let snapshot = self.cell(cell)?.snapshot_now()?;
                let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
                Ok(self.shown_attr(cell, path, *form, record))
            }
            FileId::Lock(CellPath { cell, path: dir }) => self.lock_attr(cell, dir),
            FileId::Scratch(id) => {
                let file = self.overlay.file(*id).ok_or_else(Error::not_found)?;
                let state = file.state.lock();
                Ok(self.scratch_attr(&state))
            }
        }
    }

    /// Fails unless the directory exists. A cell itself exists without being reachable.
    pub(super) async fn require_dir(&self, cell: &CellName, path: &TopoPath) -> Result<()> {
        let connected = self.cell(cell)?;
        if path.is_root() || is_virtual(cell, path) || self.overlay.has_dir(&CellPath::new(cell, path)) {
            return Ok(());
        }
        if connected.snapshot().await?.has_children(path) { Ok(()) } else { Err(Error::not_found()) }
    }

    /// A record as its callers see it: its writer sees what it has written, an open file outlives its name.
    async fn record_attr(
        &self,
        caller: &Caller,
        ino: u64,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
    ) -> Result<Attr> {
        self.save_under_way(cell, path).await;
        let snapshot = self.cell(cell)?.snapshot().await?;
        if let Some(draft) = self.own_draft(caller, ino) {
            return Ok(self.draft_attr(&draft, &snapshot));
        }
        if let Some(record) = snapshot.records.get(path) {
            return Ok(self.shown_attr(cell, path, form, record));
        }
        if let Some(draft) = self.handles.drafts(ino).first() {
            return Ok(self.draft_attr(draft, &snapshot));
        }
        if let Some((size, modified)) = self.handles.pinned(ino) {
            return Ok(Attr { links: 0, ..self.file_attr(size, modified) });
        }
        self.ghost_attr(caller, &FileId::Record(CellPath::new(cell, path), form)).ok_or_else(Error::not_found)
    }

    /// The attributes of a name that only answers to whoever has removed the record by another one.
    pub(super) fn ghost_attr(&self, caller: &Caller, node: &FileId) -> Option<Attr> {
        let removal = self.recent.removal(caller, node)?;
        let shown = self.ghost_content(caller, node).filter(|_| !matches!(removal, Removal::MovedAway(..)));
        let (size, modified) = shown.map_or((0, self.mounted), |(content, modified)| (content.len(), modified));
        Some(self.file_attr(size, modified))
    }

    /// The content of such a name.
    pub(super) fn ghost_content(&self, caller: &Caller, node: &FileId) -> Option<(Bytes, SystemTime)> {
        let FileId::Record(CellPath { cell, path }, form) = node else { return None };
        let deleted = self.recent.ghost_of(caller, node)?;
        Some((self.records.show(cell, path, &deleted.value, *form).ok()?, deleted.modified))
    }

    /// The attributes of a stored record. What does not decode has no size.
    pub(super) fn shown_attr(&self, cell: &CellName, path: &TopoPath, form: Form, record: &Record) -> Attr {
        let shown = self.records.show(cell, path, &record.value, form);
        let attr = self.file_attr(shown.map_or(0, |shown| shown.len()), record.modified);
        Attr { record: Some(record.clone()), ..attr }
    }

    /// The attributes of what is being written to a record. What is stored already has the time of the record.
    pub(super) fn draft_attr(&self, draft: &Draft, snapshot: &Snapshot) -> Attr {
        let record = snapshot.records.get(&draft.path).filter(|record| draft.unchanged() == Some(record.version));
        self.file_attr(draft.len(), record.map_or_else(|| draft.changed(), |record| record.modified))
    }

    pub(super) fn dir_attr(&self) -> Attr {
        Attr { is_dir: true, mode: DIR_MODE & !self.options.umask, ..self.file_attr(0, self.mounted) }
    }

    fn file_attr_of(&self, file: ControlFile, size: usize, modified: SystemTime) -> Attr {
        let mode = if file == ControlFile::Control { FILE_MODE } else { FILE_MODE & 0o444 };
        Attr { mode: mode & !self.options.umask, ..self.file_attr(size, modified) }
    }

    pub(super) fn file_attr(&self, size: usize, modified: SystemTime) -> Attr {
        Attr {
            ino: 0,
            is_dir: false,
            size: size as u64,
            mode: FILE_MODE & !self.options.umask,
            uid: self.options.uid,
            gid: self.options.gid,
            links: 1,
            accessed: modified,
            modified,
            changed: modified,
            lasting: false,
            record: None,
        }
    }

    pub(super) fn scratch_attr(&self, state: &ScratchState) -> Attr {
        Attr {
            mode: state.mode,
            uid: state.uid,
            gid: state.gid,
            links: u32::from(!state.unlinked),
            accessed: state.accessed,
            changed: state.changed,
            ..self.file_attr(state.content.len(), state.modified)
        }
    }

    /// Changes attributes. Of a stored record only the size can change; the rest succeeds and does nothing, because
    /// `cp -a`, `rsync -a`, `tar x` and editors need it so.
    pub async fn setattr(&self, caller: &Caller, ino: u64, handle: Option<u64>, set: SetAttr) -> Result<Attr> {
        if self.echo.is_from(caller) {
            return self.echo_getattr(ino);
        }
        let node = self.node(ino)?;
        self.refuse_if_read_only()?;
        match &node {
            FileId::Scratch(id) => {
                let file = self.overlay.file(*id).ok_or_else(Error::not_found)?;
                if let Some(size) = set.size {
                    let size = usize::try_from(size).map_err(|_| too_large())?;
                    if let Some(draft) = self.overlay.edit(&file, |_| size, |content| content.resize(size, 0))? {
                        draft.truncate(size)?;
                    }
                }
                let mut state = file.state.lock();
                let now = SystemTime::now();
                state.mode = set.mode.map_or(state.mode, |mode| mode & 0o7777);
                state.uid = set.uid.unwrap_or(state.uid);
                state.gid = set.gid.unwrap_or(state.gid);
                state.accessed = set.accessed.unwrap_or(state.accessed);
                state.modified = set.modified.unwrap_or(state.modified);
                state.changed = now;
                return Ok(Attr { ino, ..self.scratch_attr(&state) });
            }
            FileId::Record(CellPath { cell, path }, form) => {
                if let Some(size) = set.size {
                    let size = usize::try_from(size).map_err(|_| too_large())?;
                    match handle.and_then(|handle| self.handles.draft(handle)) {
                        Some(draft) => draft.truncate(size)?,
                        None => self.truncate(caller, cell, path, *form, size).await?,
                    }
                }
            }
            FileId::ControlFile(_) | FileId::Root | FileId::Control | FileId::Dir(..) | FileId::Lock(..) => {}
        }
        self.getattr(caller, ino).await
    }
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge, "larger than any file can be")
}
