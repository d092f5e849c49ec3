//! Reading, writing, saving and closing what is open.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;

use super::caller::Reading;
use super::draft::{Draft, Occasion};
use super::echo::ECHO;
use super::handles::{Handle, OpenScratch, Reader};
use super::{Caller, ControlFile, Tree};
use crate::control::BreakLock;
use crate::error::{Error, Kind, Result};
use crate::process::{Ending, Life, ending, is_being_killed, pid_of, writers_of};

impl Tree {
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
            Handle::Control(open) => {
                let mut shown = open.content.lock();
                let (content, room) = &mut *shown;
                // `tail -f` reads on at the end.
                if open.file == ControlFile::Errors && offset >= content.len() {
                    *content = self.control.read(open.file, &self.cells, || self.counts());
                    room.resize(content.len())?;
                }
                Ok(slice(content))
            }
            Handle::Events(reader) => Ok(self.control.events.read(&mut reader.lock(), offset as u64, size)),
            Handle::Draft(draft) => {
                if let Some(version) = draft.version() {
                    self.recent.read(caller.process(), (&draft.cell, &draft.path), version, Reading::ToWrite);
                }
                Ok(draft.read(offset, size))
            }
            Handle::Scratch(open) => {
                let state = open.file.state.lock();
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
            Handle::Draft(draft) => self.write_draft(&draft, offset, data),
            Handle::Scratch(open) => self.write_scratch(&open, offset, data),
            Handle::Reader(_) | Handle::Events(_) => Err(Error::new(Kind::BadDescriptor, "not open for writing")),
        }
        .map(|()| Vec::new())
    }

    fn write_draft(&self, draft: &Draft, offset: usize, data: &[u8]) -> Result<()> {
        let check = |content: &[u8]| self.records.refuse_early(&draft.cell, &draft.path, draft.form, content);
        draft.write(offset, data, check).inspect_err(|_| self.recent.not_saved(draft.opener, &draft.node()))
    }

    fn write_scratch(&self, open: &OpenScratch, offset: usize, data: &[u8]) -> Result<()> {
        let place = move |length: usize| if open.append { length } else { offset };
        let length = |length: usize| length.max(place(length).saturating_add(data.len()));
        let adopted = self.overlay.edit(&open.file, length, |content| {
            let (start, end) = (place(content.len()), place(content.len()).saturating_add(data.len()));
            if content.len() < end {
                content.resize(end, 0);
            }
            if let Some(place) = content.get_mut(start..end) {
                place.copy_from_slice(data);
            }
        })?;
        // It was renamed over a record while this write was on its way.
        adopted.map_or(Ok(()), |draft| self.write_draft(&draft, offset, data))
    }

    /// Does what a write to `control` asks for and cannot do itself.
    pub async fn break_locks(&self, caller: &Caller, orders: Vec<BreakLock>) -> Result<()> {
        for BreakLock { path, key } in orders {
            self.locks.break_lock(&self.cells, &path, &key, caller.into()).await?;
        }
        Ok(())
    }

    /// A descriptor is closed: saves what its process has written, and unlocks what `owner`, the process, has locked.
    pub async fn flush(&self, caller: &Caller, handle: u64, owner: u64) -> Result<()> {
        self.locks.closed(self.handles.inode(handle)?, owner).await;
        let Handle::Draft(draft) = self.handles.get(handle)? else { return Ok(()) };
        let Some(opener) = draft.opener else {
            // Nothing can be told of its opener: it is saved when the last descriptor is gone.
            return self.rehearse(&draft).await;
        };
        // Not `caller.process()`: it may be in execve(2), which closes files.
        let own = pid_of(caller.thread) == Some(opener.pid);
        // Every child that inherited the descriptor flushes, too, when it ends; the record is complete when its opener says so.
        if !own && opener.life() != Life::Ended {
            return Ok(());
        }
        match ending(caller.thread) {
            Ending::Own => {}
            // Who was interrupted has not written all that it wanted to: half a record is worse than none.
            Ending::Killed => {
                draft.abandon();
                return Ok(());
            }
            Ending::Unknown => {
                let reason = "whether the program has ended by itself or was killed cannot be told: nothing is stored";
                draft.refuse(Error::new(Kind::NotPermitted, reason));
                return self.save(&draft, Occasion::Flush).await;
            }
        }
        match self.has_duplicate(&draft, handle) {
            // A shell that redirects within a redirected block closes one of two descriptors: more is to come.
            Some(true) if own => Ok(()),
            // More may be to come, or the end of all.
            duplicate if own && (duplicate.is_none() || is_being_killed(caller.thread) != Some(false)) => {
                self.rehearse(&draft).await
            }
            _ => {
                let outcome = self.save(&draft, Occasion::Flush).await;
                if outcome.is_err() {
                    self.put_back(&draft).await;
                }
                outcome
            }
        }
    }

    /// Whether the process that has opened a draft holds another descriptor of the same open file: more than its other
    /// open files account for. `None` if that cannot be told.
    fn has_duplicate(&self, draft: &Draft, handle: u64) -> Option<bool> {
        let (ino, others) = self.handles.other_drafts(handle, draft.opener?)?;
        if !draft.wrote() {
            return Some(false);
        }
        Some(writers_of(draft.opener?.pid, ino)? > others)
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
            Handle::Scratch(open) => {
                // It may have become a record's between.
                if let Handle::Scratch(_) = self.handles.remove(handle)? {
                    self.overlay.closed(&open.file);
                }
                Ok(())
            }
            Handle::Reader(_) | Handle::Control(..) | Handle::Lock(_) | Handle::Events(_) => {
                self.handles.remove(handle).map(drop)
            }
        }
    }
}
