//! Decides what the kernel may keep without asking again. A reply that others may see differently must never last.
//!
//! The kernel keeps names, attributes and listings for as long as a reply says, and pages until they are invalidated. A
//! reply lasts only if everybody sees it alike and the mirror will hear of any change. That is so for stored records,
//! while the watch of their cell is delivering and nothing about them is in flight. For everything else (drafts,
//! scratch files, names that one process has removed) the kernel asks every time.

use std::time::SystemTime;

use super::Kernel;
use crate::tree::file::{Attr, Entry, FileId};
use crate::tree::namespace::Keep;

impl Kernel {
    /// The answer to a question about a file, and whether it lasts. `is_settled` is asked after the last look at the
    /// watch.
    pub fn answer(
        &self,
        (file, ino): (&FileId, u64),
        mut attr: Attr,
        keep: Keep,
        is_settled: impl FnOnce(&Attr) -> bool,
    ) -> Entry {
        let can_invalidate =
            || self.caches.get().is_some_and(|caches| !caches.invalidations.is_pending(ino)) && !self.dir_is_held(file);
        let lasting = match keep {
            Keep::Never => false,
            Keep::Always => can_invalidate(),
            // Counted before the last look at the watch: if the watch fails later, the count shows that there is
            // something to invalidate.
            Keep::WhileWatched(cell) => {
                can_invalidate()
                    && !self.outbox.is_coming(file)
                    && self.count_lasting(&cell)
                    && cell.mirror.is_fresh()
                    && is_settled(&attr)
            }
        };
        // While a directory is held, the kernel cannot be made to forget its listing. A new time of the directory makes
        // the kernel ask for a new listing.
        if file.is_dir() && self.is_held(ino) {
            attr.modified = SystemTime::now();
        }
        Entry { ino, attr, lasting }
    }

    /// Whether the kernel uses its caches at all.
    pub fn has_caches(&self) -> bool {
        self.caches.get().is_some()
    }

    /// Whether somebody keeps the kernel from invalidating the directory of a file.
    fn dir_is_held(&self, file: &FileId) -> bool {
        let parent = match file {
            FileId::Dir(at) if at.path.is_root() => Some(FileId::Root),
            FileId::Dir(at) | FileId::Record(at, _) => at.parent().map(FileId::Dir),
            FileId::Lock(dir) => Some(FileId::Dir(dir.clone())),
            // No reply about these lasts.
            FileId::Links(..) | FileId::Link(_) => None,
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => None,
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => None,
        };
        let any_pending = self.caches.get().is_some_and(|caches| caches.invalidations.any_pending());
        any_pending && parent.and_then(|parent| self.inodes.known(&parent)).is_some_and(|ino| self.is_held(ino))
    }
}
