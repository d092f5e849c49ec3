//! Scratch files that are open. Must never write to a scratch file that has become a record.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::RecordFiles;
use super::scratch::Scratch;
use crate::error::Result;
use crate::name::CellPath;
use crate::process::Process;
use crate::tree::caller::Caller;
use crate::tree::file::{Caching, FileId, OpenMode};
use crate::tree::namespace::{At, Created, Open, OpenFile, Part, Rest};

/// A scratch file that is open. It counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenScratch {
    files: Arc<RecordFiles>,
    pub file: Arc<Scratch>,
    /// O_APPEND.
    pub append: bool,
    /// O_WRONLY or O_RDWR.
    pub writes: bool,
    /// The process and the user that have opened it.
    pub opener: (Option<Process>, u32),
}

#[async_trait]
impl OpenFile for OpenScratch {
    async fn read(&self, _: &Caller, _: At, part: Part) -> Result<Bytes> {
        Ok(part.copied(&self.file.state.lock().content))
    }

    fn write(&self, _: At, offset: usize, data: &[u8]) -> Result<Rest> {
        let place = |length: usize| if self.append { length } else { offset };
        let length = |length: usize| length.max(place(length).saturating_add(data.len()));
        let adopted = self.files.scratch.edit(&self.file, length, |content| {
            let (start, end) = (place(content.len()), place(content.len()).saturating_add(data.len()));
            if content.len() < end {
                content.resize(end, 0);
            }
            if let Some(place) = content.get_mut(start..end) {
                place.copy_from_slice(data);
            }
        })?;
        // The file was renamed over a record while this write was on its way.
        adopted.map_or(Ok(()), |draft| self.files.write_draft(&draft, offset, data)).map(|()| None)
    }
}

impl Drop for OpenScratch {
    fn drop(&mut self) {
        self.files.scratch.closed(&self.file);
    }
}

impl RecordFiles {
    pub(super) fn open_scratch(self: &Arc<Self>, caller: &Caller, file: Arc<Scratch>, mode: OpenMode) -> Result<Open> {
        // Counted first: from now on the file stays, even if its name is removed.
        self.scratch.opened(&file)?;
        let opener = (caller.process(), caller.uid);
        let open = OpenScratch { files: self.clone(), file, append: mode.append, writes: mode.write, opener };
        if mode.write && mode.truncate {
            self.scratch.edit(&open.file, |_| 0, Vec::clear)?;
            open.file.renew(self.store(&open.file.cell)?.known());
        }
        Ok(Open { file: Some(Arc::new(open)), caching: Caching { cached: true, kept: false, flushed: true } })
    }

    pub(super) fn create_scratch(
        self: &Arc<Self>,
        caller: &Caller,
        at: CellPath,
        seen: Arc<crate::mirror::Snapshot>,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<Created> {
        let owner = (caller.uid, caller.gid, permissions);
        let scratch = self.scratch.open_or_create(at, seen, owner, mode.exclusive)?;
        let open = self.open_scratch(caller, scratch.clone(), mode)?;
        let attr = self.scratch_attr(&scratch.state.lock());
        Ok(Created { file: FileId::Scratch(scratch.id), attr, open })
    }
}
