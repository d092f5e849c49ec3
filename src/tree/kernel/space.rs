//! The kernel, for the files of one tree of records. Trees beside the live one have files of the same names, so each
//! tree numbers files of its own. Must never raise events for another tree than the live one: nobody else changes it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Kernel;
use super::invalidation::Asked;
use super::outbox::Announcement;
use super::shown::Reply;
use crate::cells::Cell;
use crate::mirror::Record;
use crate::name::TopoPath;
use crate::tree::file::{Caching, FileId, SpaceId};

/// What the kernel knows of one tree.
#[derive(Debug, Clone)]
pub(crate) struct SpaceKernel {
    kernel: Arc<Kernel>,
    space: Option<SpaceId>,
}

impl SpaceKernel {
    /// What the kernel knows of the live tree.
    pub fn live(kernel: Arc<Kernel>) -> Self {
        Self { kernel, space: None }
    }

    /// What it knows of a tree beside it.
    pub fn of(&self, space: SpaceId) -> Self {
        Self { kernel: self.kernel.clone(), space: Some(space) }
    }

    /// The file as the whole mount knows it.
    fn file<'a>(&self, file: &'a FileId) -> Cow<'a, FileId> {
        match &self.space {
            None => Cow::Borrowed(file),
            Some(space) => Cow::Owned(space.file(file.clone())),
        }
    }

    /// The number of a file, whether or not the kernel knows it.
    pub fn number(&self, file: &FileId) -> u64 {
        self.kernel.inodes.number(&self.file(file))
    }

    /// The number of a file that the kernel knows.
    pub fn known(&self, file: &FileId) -> Option<u64> {
        self.kernel.inodes.known(&self.file(file))
    }

    /// See [`super::inodes::Inodes::retire`].
    pub fn retire(&self, file: &FileId) {
        self.kernel.inodes.retire(&self.file(file));
    }

    /// See [`super::inodes::Inodes::renamed`].
    pub fn renamed(&self, from: &FileId, to: &FileId) {
        self.kernel.inodes.renamed(&self.file(from), &self.file(to));
    }

    /// How many files of all trees the kernel knows.
    pub fn count(&self) -> usize {
        self.kernel.inodes.count()
    }

    /// What the kernel was shown last of a file.
    pub fn reply(&self, ino: u64) -> Option<Reply> {
        self.kernel.inodes.reply(ino)
    }

    /// Raises an event, or makes the kernel forget a name.
    pub fn announce(&self, announcement: Announcement) {
        if self.space.is_none() {
            self.kernel.outbox.push(announcement);
        }
    }

    /// Whether an announcement about a file is on its way.
    pub fn is_coming(&self, file: &FileId) -> bool {
        self.space.is_none() && self.kernel.outbox.is_coming(file)
    }

    /// See [`Kernel::forget_name`].
    pub fn forget_name(&self, dir: &FileId, name: &str) -> Option<Asked> {
        self.kernel.forget_name(&self.file(dir), name)
    }

    /// See [`Kernel::invalidate`].
    pub fn invalidate(&self, files: Vec<u64>, dirs: Vec<u64>) -> Option<(Asked, Asked)> {
        self.kernel.invalidate(files, dirs)
    }

    /// See [`Kernel::is_held`].
    pub fn is_held(&self, ino: u64) -> bool {
        self.kernel.is_held(ino)
    }

    /// See [`Kernel::opens_unasked`].
    pub fn opens_unasked(&self) -> bool {
        self.kernel.opens_unasked()
    }

    /// See [`Kernel::through_cache`].
    pub fn through_cache(
        &self,
        inode: (u64, bool),
        place: (&Arc<Cell>, &TopoPath),
        record: &Record,
        content: &Bytes,
    ) -> Caching {
        self.kernel.through_cache(inode, place, record, content)
    }

    /// See [`Kernel::keeps_up`].
    pub async fn keeps_up(&self, cell: &Arc<Cell>) {
        self.kernel.keeps_up(cell).await;
    }

    /// See [`Kernel::count_lasting`].
    pub fn count_lasting(&self, cell: &Arc<Cell>) -> bool {
        self.kernel.count_lasting(cell)
    }

    /// How many announcements were lost.
    pub fn lost(&self) -> u64 {
        self.kernel.lost.load(Ordering::Relaxed)
    }
}
