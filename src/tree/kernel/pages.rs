//! Decides which files the kernel reads through its page cache. The kernel cuts a page to the size that it knows, so a
//! page must never be of another state than the attributes that it was shown last (`shown.rs`).

use std::sync::Arc;

use bytes::Bytes;

use super::Kernel;
use super::shown::Fingerprint;
use crate::cells::Cell;
use crate::mirror::Record;
use crate::name::TopoPath;
use crate::tree::file::Caching;

/// Largest content that goes through the kernel's page cache, in bytes: one page. A page is of one state, whoever reads
/// it and in whatever steps. A larger file is read past the cache, from one state to its end.
const CACHED_LIMIT: usize = 4096;

impl Kernel {
    /// How the kernel may read a record that is opened for reading: whether through its page cache, and whether it may
    /// keep the pages that it has. At the first opening the content is stored there right away, unless somebody has the
    /// file open: that reader might hold the page.
    pub fn through_cache(
        &self,
        (ino, is_open): (u64, bool),
        (cell, path): (&Arc<Cell>, &TopoPath),
        record: &Record,
        content: &Bytes,
    ) -> Caching {
        // While a record changes, the kernel may cut its new content to the old size.
        let quiet = self.followed(cell).is_some_and(|followed| cell.mirror.is_fresh() && !followed.is_changing(path));
        let caches = self
            .caches
            .get()
            .filter(|caches| quiet && content.len() <= CACHED_LIMIT && !caches.invalidations.is_pending(ino));
        let Some(caches) = caches else { return Caching::DIRECT };
        let state = Fingerprint::of(record);
        if !is_open && self.inodes.begin_storing(ino, state, caches.store_at_once) {
            let done = scopeguard::guard((), |()| self.inodes.end_storing(ino));
            caches.kernel.store_pages(ino, content);
            drop(done);
            return Caching::reading(true);
        }
        Caching::reading(self.inodes.open_pages(ino, state))
    }
}
