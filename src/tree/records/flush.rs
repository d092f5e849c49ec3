//! Owns open drafts: takes writes, and decides what the close of a descriptor means. Must never store what a killed
//! program left unfinished.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::RecordFiles;
use super::draft::{Draft, Occasion};
use super::memory::Reading;
use crate::error::{Error, Kind, Result};
use crate::process::{Closing, Ending, Life, closing, is_being_killed, writers_of};
use crate::record::layout::Key;
use crate::topology::cells::refuse_overlap;
use crate::tree::caller::Caller;
use crate::tree::namespace::{At, OpenFile, Part, Rest};

/// An open file of a draft. A draft may have several.
#[derive(Debug)]
pub(crate) struct OpenDraft {
    files: Arc<RecordFiles>,
    pub draft: Arc<Draft>,
}

impl OpenDraft {
    /// Opens a draft.
    pub fn new(files: &Arc<RecordFiles>, draft: Arc<Draft>) -> Arc<Self> {
        Arc::new(Self { files: files.clone(), draft })
    }
}

#[async_trait]
impl OpenFile for OpenDraft {
    async fn read(&self, caller: &Caller, _: At, part: Part) -> Result<Bytes> {
        let Draft { cell, path, .. } = &*self.draft;
        if let Some(version) = self.draft.version() {
            self.files.memory.read(caller.process(), (cell, path), version, Reading::ToWrite);
        }
        Ok(self.draft.read(part.offset, part.size))
    }

    /// Refuses content that nothing can make valid. That must happen here, since shells ignore the errors of close.
    fn write(&self, _: At, offset: usize, data: &[u8]) -> Result<Rest> {
        self.files.write_draft(&self.draft, offset, data).map(|()| None)
    }

    async fn flush(&self, caller: &Caller, at: At) -> Result<()> {
        self.files.flush_draft(caller, at.handle, &self.draft).await
    }

    async fn sync(&self, _: At) -> Result<()> {
        self.files.save(&self.draft, Occasion::Sync).await
    }

    /// The draft stays visible to its writer until it is saved.
    async fn release(&self) -> Result<()> {
        self.files.save_released(&self.draft).await
    }

    async fn closed(&self) {
        self.files.put_back(&self.draft).await;
    }

    fn is_draft(&self) -> bool {
        true
    }
}

impl RecordFiles {
    pub(super) fn write_draft(&self, draft: &Draft, offset: usize, data: &[u8]) -> Result<()> {
        let check = |content: &[u8]| {
            self.codec.refuse_early(&draft.cell, &draft.path, draft.form, content)?;
            self.refuse_alias_early(draft, content)
        };
        draft.write(offset, data, check).inspect_err(|_| self.memory.not_saved(draft.opener, &draft.file()))
    }

    /// Refuses an alias whose cells are in another one already: more bytes can only add cells.
    fn refuse_alias_early(&self, draft: &Draft, content: &[u8]) -> Result<()> {
        let Draft { cell, path, form, .. } = draft;
        let Some(Key::CellsAlias(alias)) = Key::in_global(path) else { return Ok(()) };
        let Ok(shown) = self.store(cell) else { return Ok(()) };
        // What cannot be parsed is not complete yet.
        let Ok(Some(value)) = self.codec.store(cell, path, *form, &Bytes::copy_from_slice(content), None) else {
            return Ok(());
        };
        // In a stage, the whole set counts, at its commit.
        let holds_global = shown.connected().is_some_and(|connected| connected.holds_global());
        match holds_global && !value.is_empty() {
            true => refuse_overlap(&shown.known(), alias, &value),
            false => Ok(()),
        }
    }

    /// A descriptor is closed: saves what its process has written.
    async fn flush_draft(&self, caller: &Caller, handle: u64, draft: &Draft) -> Result<()> {
        let Some(opener) = draft.opener else {
            // Nothing is known of its opener: it is saved when the last descriptor is closed.
            return self.rehearse(draft).await;
        };
        // Not `caller.process()`: the caller may be in execve(2), which closes files.
        let Closing { process, ending } = closing(caller.thread);
        let own = process == Some(opener.pid);
        // Every child that inherited the descriptor flushes, too, when it ends. The record is complete when its opener
        // flushes.
        if !own && opener.life() != Life::Ended {
            return Ok(());
        }
        match ending {
            Ending::Own => {}
            // An interrupted program has not written all that it wanted to: half a record is worse than none.
            Ending::Killed => {
                draft.abandon();
                return Ok(());
            }
            Ending::Unknown => {
                let reason = "whether the program has ended by itself or was killed cannot be told: nothing is stored";
                draft.refuse(Error::new(Kind::NotPermitted, reason));
                return self.save(draft, Occasion::Flush).await;
            }
        }
        match self.has_duplicate(draft, handle) {
            // A shell that redirects within a redirected block closes one of two descriptors: more will come.
            Some(true) if own => Ok(()),
            // More may come, or the program may be about to end.
            duplicate if own && (duplicate.is_none() || is_being_killed(caller.thread) != Some(false)) => {
                self.rehearse(draft).await
            }
            _ => {
                let outcome = self.save(draft, Occasion::Flush).await;
                if outcome.is_err() {
                    self.put_back(draft).await;
                }
                outcome
            }
        }
    }

    /// Whether the process that has opened a draft holds another descriptor of the same open file: it has more
    /// descriptors than its other open files explain. `None` if that is unknown.
    fn has_duplicate(&self, draft: &Draft, handle: u64) -> Option<bool> {
        let opener = draft.opener?;
        let ino = self.handles.inode(handle).ok()?;
        let others = self.handles.drafts::<OpenDraft>(ino);
        let others = others.iter().filter(|(other, open)| *other != handle && open.draft.opener == Some(opener));
        let others = others.count();
        if !draft.wrote() {
            return Some(false);
        }
        Some(writers_of(opener.pid, ino)? > others)
    }
}
