//! Owns records that are open for reading. Each shows one state of its record until it is read from the beginning
//! again, and must never mix two states.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::RecordFiles;
use super::memory::Reading;
use crate::backend::Version;
use crate::error::{Error, Kind, Result};
use crate::mirror::Record;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::{Caching, FileId};
use crate::tree::namespace::{At, Inode, Open, OpenFile, Part};
use crate::tree::room::Charge;

/// A record that is open for reading.
#[derive(Debug)]
pub(crate) struct OpenReader {
    files: Arc<RecordFiles>,
    at: CellPath,
    form: Form,
    /// O_DIRECT: each read from the beginning asks the backend.
    direct: bool,
    shown: Mutex<(Bytes, SystemTime)>,
    /// It shows the state that it was opened with to the end.
    held: Option<Held>,
    /// Reads go through the kernel's page cache, which has one state for everybody.
    cached: bool,
    /// The end has been read.
    ended: AtomicBool,
}

/// A state that an open file shows whatever changes meanwhile.
#[derive(Debug)]
struct Held {
    /// What it takes is charged to the user who has opened it.
    _charge: Charge,
    /// `None` for what is no version of the record: a draft of the same program.
    version: Option<Version>,
}

impl OpenReader {
    /// A reader through the kernel's page cache. It shows `content` when the record is gone.
    pub fn cached(files: &Arc<RecordFiles>, at: &CellPath, form: Form, content: Bytes) -> Self {
        let (files, at, shown) = (files.clone(), at.clone(), Mutex::new((content, SystemTime::now())));
        Self { files, at, form, direct: false, shown, held: None, cached: true, ended: AtomicBool::new(false) }
    }

    /// The record is gone. The reader continues to show its last state, of which the kernel may have had pages.
    pub fn pin(&self, content: &Bytes, modified: SystemTime) {
        if self.cached {
            *self.shown.lock() = (content.clone(), modified);
        }
    }

    /// What a program reads from the beginning counts when it writes, also if it has looked at a newer state before.
    fn note_reading(&self, caller: &Caller, held: &Held) {
        let CellPath { cell, path } = &self.at;
        let Some(version) = held.version.filter(|_| !self.files.options.read_only) else { return };
        let known = self.files.store(cell).and_then(|store| store.snapshot_now());
        // The open has noted it. Nobody has seen another one as long as this is the newest.
        if known.is_ok_and(|known| known.records.get(path).is_none_or(|record| record.version != version)) {
            self.files.memory.read(caller.process(), (cell, path), version, Reading::Apart);
        }
    }

    /// Size and time of what it still shows.
    pub fn pinned(&self) -> (usize, SystemTime) {
        let shown = self.shown.lock();
        (shown.0.len(), shown.1)
    }
}

#[async_trait]
impl OpenFile for OpenReader {
    async fn read(&self, caller: &Caller, at: At, part: Part) -> Result<Bytes> {
        let CellPath { cell, path } = &self.at;
        if self.cached {
            // Must not wait: the page is locked meanwhile.
            let content = self.files.page_content(caller, at.ino, &self.at, self.form)?;
            // An open file outlives its name.
            return Ok(part.of(&content.unwrap_or_else(|| self.shown.lock().0.clone())));
        }
        if let Some(held) = &self.held {
            if part.offset == 0 {
                self.note_reading(caller, held);
            }
            return Ok(part.of(&self.shown.lock().0));
        }
        // A read from the beginning shows what there is now. A read further on shows the rest of the same state, to its
        // end. A reader that asks again after that waits for more (`tail -f`).
        let at_end = part.offset > 0 && part.offset >= self.shown.lock().0.len();
        let waits = self.ended.swap(at_end, Ordering::Relaxed) && at_end;
        if part.offset == 0 || waits {
            self.files.wait_for_saves(cell, path).await;
            match self.files.shown(caller, cell, path, self.form, self.direct).await {
                Ok((shown, record)) => {
                    let modified = record.map_or_else(SystemTime::now, |record| record.modified);
                    *self.shown.lock() = (shown, modified);
                }
                // An open file outlives its name.
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(part.of(&self.shown.lock().0))
    }
}

impl RecordFiles {
    pub(super) async fn open_reader(
        self: &Arc<Self>,
        caller: &Caller,
        ino: u64,
        (cell, path, form): (&CellName, &TopoPath, Form),
        direct: bool,
    ) -> Result<Open> {
        let (shown, record) = match self.shown(caller, cell, path, form, direct).await {
            Err(error) if error.kind == Kind::NotFound => {
                let file = FileId::Record(CellPath::new(cell, path), form);
                let draft = self.own_draft(caller, ino).map(|draft| draft.content());
                let removed = || self.tombstone_content(caller, &file).map(|(content, _)| content);
                (draft.or_else(removed).ok_or(error)?, None)
            }
            shown => shown?,
        };
        let held = self.hold(caller, cell, (&shown, record.as_ref()))?;
        let caching = match &record {
            Some(record) if held.is_none() && !self.handles.has_drafts(ino) => {
                let store = self.store(cell)?;
                let is_open = self.handles.is_open(ino);
                match store.connected() {
                    Some(connected) => self.kernel.through_cache((ino, is_open), (connected, path), record, &shown),
                    None if store.is_frozen() => Caching::reading(true),
                    None => Caching { flushed: false, ..Caching::DIRECT },
                }
            }
            _ => Caching { flushed: false, ..Caching::DIRECT },
        };
        let modified = record.map_or_else(SystemTime::now, |record| record.modified);
        let reader = OpenReader {
            files: self.clone(),
            at: CellPath::new(cell, path),
            form,
            direct,
            shown: Mutex::new((shown, modified)),
            held,
            cached: caching.cached,
            ended: AtomicBool::new(false),
        };
        Ok(Open { file: Some(Arc::new(reader)), caching })
    }

    /// Holds a state for an open file that shows it to its end; `None` if it need not, or its record never changes.
    /// Open files of one state share it, but each is charged: the next one to be closed may be the one that holds it.
    fn hold(
        &self,
        caller: &Caller,
        cell: &CellName,
        (shown, record): (&Bytes, Option<&Record>),
    ) -> Result<Option<Held>> {
        if !self.options.direct_io || self.store(cell)?.is_frozen() {
            return Ok(None);
        }
        let mut charge = self.room.charge(caller.uid);
        charge.resize(shown.len())?;
        Ok(Some(Held { _charge: charge, version: record.map(|record| record.version) }))
    }

    /// One form of a record as it is now, and the record of the mirror that it was made from.
    pub(super) async fn shown(
        &self,
        caller: &Caller,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        direct: bool,
    ) -> Result<(Bytes, Option<Record>)> {
        let store = self.store(cell)?;
        if direct {
            let node = store.fetch(path).await?.node.ok_or_else(Error::not_found)?;
            self.memory.read(caller.process(), (cell, path), node.version, Reading::Apart);
            return Ok((self.codec.show(cell, path, &node.value, form)?, None));
        }
        let snapshot = store.snapshot().await?;
        let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
        let shown = self.codec.show(cell, path, &record.value, form)?;
        if !self.options.read_only {
            self.memory.read(caller.process(), (cell, path), record.version, Reading::Apart);
        }
        if let Some(connected) = store.connected() {
            self.kernel.keeps_up(connected).await;
        }
        Ok((shown, Some(record.clone())))
    }

    /// The content of a record for the kernel's pages. It is of the state whose attributes the kernel was shown last,
    /// since the kernel cuts off what is longer than the size that it knows, and fills up what is shorter. If those
    /// attributes have been invalidated, a read(2) has just asked for new ones. Whoever looks into mapped memory has
    /// not, and sees what there is now. `None` if the record is gone.
    fn page_content(&self, caller: &Caller, ino: u64, at: &CellPath, form: Form) -> Result<Option<Bytes>> {
        let CellPath { cell, path } = at;
        let snapshot = self.store(cell)?.snapshot_now()?;
        let reply = self.kernel.reply(ino).filter(|reply| !reply.invalidated || caller.reads());
        let value = reply.map(|reply| reply.value).or_else(|| Some(snapshot.records.get(path)?.value.clone()));
        value.map(|value| self.codec.show(cell, path, &value, form)).transpose()
    }

    /// The content of a file that the kernel has opened without asking.
    pub(super) async fn read_unopened(
        &self,
        caller: &Caller,
        inode: &Inode,
        part: Part,
        direct: bool,
    ) -> Result<Bytes> {
        let content = match &inode.file {
            FileId::Lock(CellPath { cell, path: dir }) => self.lock_content(cell, dir).await?,
            FileId::Record(CellPath { cell, path }, form) if direct => {
                self.shown(caller, cell, path, *form, true).await?.0
            }
            FileId::Record(at, form) => {
                self.page_content(caller, inode.ino, at, *form)?.ok_or_else(Error::not_found)?
            }
            FileId::Scratch(_) => return Err(Error::new(Kind::ReadOnly, "the mount is read-only")),
            FileId::Link(_) => return Err(Error::new(Kind::Invalid, "a symbolic link cannot be opened")),
            FileId::Root
            | FileId::Control
            | FileId::ControlFile(_)
            | FileId::Dir(..)
            | FileId::Links(..)
            | FileId::Past(_) => {
                return Err(Error::new(Kind::IsDirectory, "is a directory"));
            }
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) => return Err(Error::not_found()),
        };
        Ok(part.of(&content))
    }
}
