//! Decides what the kernel must ask again about when records change.

use std::sync::Arc;
use std::time::Duration;

use super::RecordFiles;
use super::names::ancestors;
use super::reader::OpenReader;
use crate::mirror::Update;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::layout::Key;
use crate::tree::file::FileId;
use crate::tree::kernel::invalidation::Asked;
use crate::tree::kernel::outbox::{Announcement, Happened};

impl RecordFiles {
    /// Makes the kernel ask again about what changes concern. Each change says whether it makes or removes names.
    /// Returns what to wait for: first the files, then the directories.
    pub(crate) fn invalidate<'a>(
        &self,
        cell: &CellName,
        changes: impl Iterator<Item = (&'a TopoPath, bool)>,
    ) -> Option<(Asked, Asked)> {
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for (path, relists) in changes {
            let forms = self.forms(cell, path).map(|form| FileId::Record(CellPath::new(cell, path), form));
            files.extend(forms.filter_map(|file| self.kernel.known(&file)));
            if self.relists_views(cell, path) {
                let dir = path.parent().map(|dir| FileId::Dir(CellPath { cell: cell.clone(), path: dir }));
                dirs.extend(dir.and_then(|dir| self.kernel.known(&dir)));
            }
            if let Some(Key::CellInfo(_)) = Key::of(cell, path) {
                // It decides which cells the root lists.
                dirs.extend(self.kernel.known(&FileId::Root));
            }
            if relists {
                let above = std::iter::successors(path.parent(), TopoPath::parent);
                let above = std::iter::once(path.clone()).chain(above);
                let above = above.map(|path| FileId::Dir(CellPath { cell: cell.clone(), path }));
                dirs.extend(above.filter_map(|dir| self.kernel.known(&dir)));
            }
        }
        self.kernel.invalidate(files, dirs)
    }

    /// Makes the kernel forget the names of the directories above a record that are gone with it. When this returns,
    /// they are gone for everybody: a process that may still see one must look up its name. `busy` is the directory,
    /// besides the record's own, in which the kernel works for the caller. It is free only after the caller has its
    /// reply, so it is not waited for.
    pub(super) async fn forget_gone_dirs(&self, cell: &CellName, path: &TopoPath, busy: Option<&TopoPath>) {
        let Some(store) = self.stores.get(cell) else { return };
        let snapshot = store.known();
        for dir in ancestors(path).take_while(|dir| !snapshot.has_children(dir)) {
            let Some(above) = dir.parent() else { return };
            let asked = self.kernel.forget_name(&FileId::Dir(CellPath::new(cell, &above)), dir.name());
            if let Some(asked) = asked.filter(|_| busy != Some(&above)) {
                asked.done().await;
            }
        }
    }

    /// Whoever has a record open that is gone continues with its last state.
    pub(crate) fn pin_last(&self, cell: &CellName, update: &Update) {
        let Update { path, old: Some(last), new: None, .. } = update else { return };
        for form in self.forms(cell, path) {
            if let Some(ino) = self.kernel.known(&FileId::Record(CellPath::new(cell, path), form))
                && let Ok(content) = self.codec.show(cell, path, &last.value, form)
            {
                let readers = self.handles.of_inode::<OpenReader>(ino);
                readers.iter().for_each(|(_, reader)| reader.pin(&content, last.modified));
            }
        }
    }

    /// Whether a directory exists, as far as is known without waiting.
    pub(crate) fn is_dir_now(&self, file: &FileId) -> bool {
        let (FileId::Dir(at) | FileId::Links(at, _)) = file else { return false };
        let Some(store) = self.stores.get(&at.cell) else { return false };
        at.path.is_root() || store.known().has_children(&at.path) || self.scratch.has_dir(at)
    }

    /// Makes a directory of this mount disappear from the listing above it, after a time.
    pub(super) fn forget_dir_after(self: &Arc<Self>, dir: CellPath, time: Duration) {
        let files = self.clone();
        self.background.tasks.spawn(async move {
            tokio::select! {
                () = files.background.stop.cancelled() => {}
                () = tokio::time::sleep(time) => {
                    let announcement = Announcement::of_dir(&dir.cell, &dir.path, Happened::InvalidateOnly);
                    files.kernel.announce(announcement);
                }
            }
        });
    }
}
