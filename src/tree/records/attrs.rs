//! Decides the attributes of records, directories, locks and scratch files, as a caller sees them.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::RecordFiles;
use super::draft::Draft;
use super::flush::OpenDraft;
use super::memory::Exception;
use super::reader::OpenReader;
use super::scratch::ScratchState;
use super::views::link_attr;
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::{Attr, FileId, SetAttr};
use crate::tree::handles::as_kind;
use crate::tree::namespace::{Inode, OpenFile};

impl RecordFiles {
    /// The attributes of a file that the kernel knows.
    pub(super) async fn attr(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        match &inode.file {
            FileId::Record(at, form) => return self.record_attr(caller, inode.ino, at, *form, true).await,
            FileId::Dir(_) if self.memory.has_tombstone(caller, &inode.file) => return Ok(self.defaults.dir()),
            FileId::Dir(CellPath { cell, path }) => self.require_dir(cell, path).await?,
            FileId::Lock(CellPath { cell, .. }) => drop(self.store(cell)?.snapshot().await?),
            FileId::Links(CellPath { cell, path }, _) => self.require_dir(cell, path).await?,
            FileId::Root | FileId::Link(_) | FileId::Scratch(_) => {}
            FileId::Control | FileId::ControlFile(_) => {}
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => {}
        }
        self.attr_now(&inode.file)
    }

    /// The same without waiting: its cell must be loaded, and a directory must be known to exist.
    pub(crate) fn attr_now(&self, file: &FileId) -> Result<Attr> {
        match file {
            FileId::Root | FileId::Dir(..) => Ok(self.defaults.dir()),
            FileId::Record(CellPath { cell, path }, form) => {
                let snapshot = self.store(cell)?.snapshot_now()?;
                let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
                Ok(self.shown_attr(cell, path, *form, record))
            }
            FileId::Lock(CellPath { cell, path: dir }) => self.lock_attr(cell, dir),
            FileId::Links(of, view) => Ok(self.links_attr(of, *view)),
            FileId::Link(link) => Ok(link_attr(&self.defaults, link)),
            FileId::Scratch(id) => {
                let scratch = self.scratch.file(*id).ok_or_else(Error::not_found)?;
                let state = scratch.state.lock();
                Ok(self.scratch_attr(&state))
            }
            FileId::Control | FileId::ControlFile(_) => Err(Error::not_found()),
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Err(Error::not_found()),
        }
    }

    /// Fails unless the directory exists. A cell itself exists even if it cannot be reached.
    pub(crate) async fn require_dir(&self, cell: &CellName, path: &TopoPath) -> Result<()> {
        let store = self.store(cell)?;
        if path.is_root() || self.is_virtual(cell, path) || self.scratch.has_dir(&CellPath::new(cell, path)) {
            return Ok(());
        }
        if store.snapshot().await?.has_children(path) { Ok(()) } else { Err(Error::not_found()) }
    }

    /// The attributes of a file that was found by name: a stored record, one that this caller is making, or one that it
    /// has just removed.
    pub(super) async fn attr_of_name(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        match &inode.file {
            FileId::Record(at, form) => self.record_attr(caller, inode.ino, at, *form, false).await,
            _ => self.attr(caller, inode).await,
        }
    }

    /// The attributes of a record as a caller sees it: its writer sees what it has written. With `of_open`, whatever is
    /// open outlives its name.
    async fn record_attr(&self, caller: &Caller, ino: u64, at: &CellPath, form: Form, of_open: bool) -> Result<Attr> {
        let CellPath { cell, path } = at;
        self.wait_for_saves(cell, path).await;
        let snapshot = self.store(cell)?.snapshot().await?;
        if let Some(draft) = self.own_draft(caller, ino) {
            return Ok(self.draft_attr(&draft, &snapshot));
        }
        if let Some(record) = snapshot.records.get(path) {
            return Ok(self.shown_attr(cell, path, form, record));
        }
        if let Some(attr) = of_open.then(|| self.attr_of_open(ino, &snapshot)).flatten() {
            return Ok(attr);
        }
        self.tombstone_attr(caller, &FileId::Record(at.clone(), form)).ok_or_else(Error::not_found)
    }

    /// The attributes of what is open of a record that has gone.
    fn attr_of_open(&self, ino: u64, snapshot: &Snapshot) -> Option<Attr> {
        if let Some((_, open)) = self.handles.drafts::<OpenDraft>(ino).first() {
            return Some(self.draft_attr(&open.draft, snapshot));
        }
        let (size, modified) = self.handles.of_inode::<OpenReader>(ino).first()?.1.pinned();
        Some(Attr { links: 0, ..self.defaults.file(size, modified) })
    }

    /// The attributes of a name that still answers to the process that has removed the record by another name.
    fn tombstone_attr(&self, caller: &Caller, file: &FileId) -> Option<Attr> {
        let exception = self.memory.exception(caller, file)?;
        let shown = self.tombstone_content(caller, file).filter(|_| !matches!(exception, Exception::MovedAway(..)));
        let (size, modified) =
            shown.map_or((0, self.defaults.mounted), |(content, modified)| (content.len(), modified));
        Some(self.defaults.file(size, modified))
    }

    /// The content of such a name.
    pub(super) fn tombstone_content(&self, caller: &Caller, file: &FileId) -> Option<(Bytes, SystemTime)> {
        let FileId::Record(CellPath { cell, path }, form) = file else { return None };
        let deleted = self.memory.behind_tombstone(caller, file)?;
        Some((self.codec.show(cell, path, &deleted.value, *form).ok()?, deleted.modified))
    }

    /// The attributes of a stored record. Its size is 0 if it cannot be decoded.
    fn shown_attr(&self, cell: &CellName, path: &TopoPath, form: Form, record: &Record) -> Attr {
        let shown = self.codec.show(cell, path, &record.value, form);
        let attr = self.defaults.file(shown.map_or(0, |shown| shown.len()), record.modified);
        Attr { record: Some(record.clone()), ..attr }
    }

    /// The attributes of what is being written to a record. If that is stored already, they have the time of the
    /// record.
    fn draft_attr(&self, draft: &Draft, snapshot: &Snapshot) -> Attr {
        let record = snapshot.records.get(&draft.path).filter(|record| draft.unchanged() == Some(record.version));
        self.defaults.file(draft.len(), record.map_or_else(|| draft.changed(), |record| record.modified))
    }

    pub(super) fn scratch_attr(&self, state: &ScratchState) -> Attr {
        Attr {
            mode: state.mode,
            uid: state.uid,
            gid: state.gid,
            links: u32::from(!state.unlinked),
            accessed: state.accessed,
            changed: state.changed,
            ..self.defaults.file(state.content.len(), state.modified)
        }
    }

    /// Whether everybody sees an answer alike, and nothing about the file is in flight.
    pub(super) fn is_settled(&self, inode: &Inode, attr: &Attr) -> bool {
        if self.memory.is_disputed(&inode.file) {
            return false;
        }
        let is_stored = |at: &CellPath| {
            at.path.is_root() || self.stores.get(&at.cell).is_some_and(|store| store.known().has_children(&at.path))
        };
        match &inode.file {
            FileId::Record(at, _) => {
                attr.record.is_some() && !self.committing.contains(at) && !self.handles.has_drafts(inode.ino)
            }
            FileId::Dir(at) => is_stored(at) && !self.scratch.has_dir(at),
            FileId::Lock(at) => is_stored(at),
            FileId::Links(..) | FileId::Link(_) => false,
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => true,
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => false,
        }
    }

    /// Changes attributes. Of a stored record only the size can change; everything else succeeds and does nothing,
    /// because `cp -a`, `rsync -a`, `tar x` and editors need that.
    pub(super) async fn set_attr(
        &self,
        caller: &Caller,
        inode: &Inode,
        open: Option<Arc<dyn OpenFile>>,
        set: &SetAttr,
    ) -> Result<()> {
        let size = set.size.map(|size| usize::try_from(size).map_err(|_| too_large())).transpose()?;
        match (&inode.file, size) {
            (FileId::Scratch(id), size) => {
                let scratch = self.scratch.file(*id).ok_or_else(Error::not_found)?;
                if let Some(size) = size
                    && let Some(draft) = self.scratch.edit(&scratch, |_| size, |content| content.resize(size, 0))?
                {
                    draft.truncate(size)?;
                }
                let mut state = scratch.state.lock();
                state.mode = set.mode.map_or(state.mode, |mode| mode & 0o7777);
                state.uid = set.uid.unwrap_or(state.uid);
                state.gid = set.gid.unwrap_or(state.gid);
                state.accessed = set.accessed.unwrap_or(state.accessed);
                state.modified = set.modified.unwrap_or(state.modified);
                state.changed = SystemTime::now();
                Ok(())
            }
            (FileId::Record(CellPath { cell, path }, form), Some(size)) => match open.and_then(as_kind::<OpenDraft>) {
                Some(open) => open.draft.truncate(size),
                None => self.truncate(caller, cell, path, *form, size).await,
            },
            _ => Ok(()),
        }
    }
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge, "larger than any file can be")
}
