//! Decides which events a change is: for the record's forms, for the directories that appear and disappear with it, for
//! cells and for locks. Must never make a call: it only fills the outbox.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::OwnedMutexGuard;

use super::batches::{Updates, differences, next};
use super::follow::{Follower, Shown};
use crate::cells::{Cell, HolderChange, Holders, KnownLocks};
use crate::mirror::{Record, Snapshot, Update};
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::record::Form;
use crate::record::layout::Key;
use crate::store::own::OwnCommit;
use crate::topology::links::{self, Link, View};
use crate::tree::file::FileId;
use crate::tree::kernel::invalidation::LONGEST;
use crate::tree::kernel::outbox::{Announcement, Happened};
use crate::tree::options::Views;
use crate::tree::records::lockfile::is_virtual;
use crate::tree::records::names::{ancestors, name_of};

impl Follower {
    /// Announces what happens in a cell. While this task runs, it alone holds what the cell's watchers were shown last.
    pub(super) async fn announce(
        self: &Arc<Self>,
        cell: &Cell,
        mut updates: Updates,
        shared: &Shown,
        own: &mut Option<OwnedMutexGuard<Option<Snapshot>>>,
    ) {
        // By then, the task that announced the cell when it was another place has ended.
        let shown = own.insert(shared.clone().lock_owned().await);
        if shown.is_some() {
            // The cell is watched: somebody has looked into it. Perhaps nobody looks again before something happens
            // there, so it is loaded now.
            cell.mirror.load().await;
        }
        cell.mirror.loaded().await;
        // What came in between is in this snapshot already, and is skipped.
        let now = Snapshot::clone(&cell.mirror.snapshot());
        let shown = match shown.as_mut() {
            None => shown.insert(now),
            Some(shown) => {
                self.announce_differences(cell, shown, &now).await;
                shown
            }
        };
        // Links to what is in it may be new.
        self.records.announce_all_links();
        while let Some(batch) = next(cell, &mut updates, shown).await {
            for update in &batch.updates {
                self.announce_update(cell, update, shown).await;
            }
        }
    }

    /// A cell is no longer shown: all that was in it is gone.
    pub(super) async fn announce_end(self: &Arc<Self>, cell: &Cell, mut shown: OwnedMutexGuard<Option<Snapshot>>) {
        if let Some(shown) = shown.as_mut() {
            self.announce_differences(cell, shown, &Snapshot::default()).await;
        }
        self.records.announce_all_links();
    }

    /// Announces the differences if a cell is another place than before. Times and numbers of the two places cannot be
    /// compared, so values are.
    async fn announce_differences(self: &Arc<Self>, cell: &Cell, shown: &mut Snapshot, now: &Snapshot) {
        for update in differences(shown, now) {
            let old = shown.records.get(&update.path).cloned();
            let same = matches!((&old, &update.new), (Some(old), Some(new)) if old.value == new.value);
            if same {
                update.apply(shown);
            } else {
                self.announce_change(cell, (&update, old), None, shown).await;
            }
        }
    }

    async fn announce_update(self: &Arc<Self>, cell: &Cell, update: &Update, shown: &mut Snapshot) {
        let Update { path, new, .. } = update;
        let old = match new {
            Some(record) => {
                shown.records.get(path).cloned().filter(|old| old.version.created == record.version.created)
            }
            None => shown.records.get(path).cloned(),
        };
        let place = CellPath::new(&cell.name, path);
        // Whether this is our own commit is known only when that commit has returned.
        self.records.committing.wait(&place).await;
        let revision = new.as_ref().or(old.as_ref()).map(|record| record.version.written);
        let own = revision.and_then(|revision| self.records.own.find(&place, revision));
        match (&old, new) {
            (Some(old), Some(new)) if old.version == new.version => update.apply(shown),
            _ => self.announce_change(cell, (update, old), own.as_ref(), shown).await,
        }
        // Only now: the change must be among the events first.
        revision.iter().for_each(|revision| self.records.own.is_announced(&place, *revision));
    }

    async fn announce_change(
        self: &Arc<Self>,
        cell: &Cell,
        (update, old): (&Update, Option<Record>),
        own: Option<&OwnCommit>,
        shown: &mut Snapshot,
    ) {
        let Update { path, new, .. } = update;
        self.record(cell, path, (old.as_ref(), new.as_ref()), own);
        // A change set goes through no form: nothing was raised yet.
        let own = own.and_then(|commit| commit.form);
        let before = shown.clone();
        update.apply(shown);
        // What is gone is gone before its directory.
        if new.is_none() {
            self.announce_links(cell, path, (&before, shown));
        }
        match (&old, new) {
            (Some(_), Some(_)) => {
                self.announce_forms(cell, shown, path, own, Happened::Changed);
                // A cell may be another place now.
                self.announce_cell(cell, path, Happened::Changed).await;
            }
            (None, Some(_)) => {
                if own.is_none() {
                    let new_dirs = ancestors(path).filter(|dir| !before.has_children(dir));
                    for dir in new_dirs.collect::<Vec<_>>().into_iter().rev() {
                        self.announce_dir(cell, &dir, Happened::DirMade);
                    }
                }
                self.announce_forms(cell, shown, path, own, Happened::Created);
                self.announce_cell(cell, path, Happened::DirMade).await;
                // A record that has become a directory has other names now.
                let ancestor = path.parent().filter(|dir| shown.records.contains_key(dir) && !before.has_children(dir));
                ancestor.iter().for_each(|dir| self.forget_forms(cell, dir));
            }
            (Some(_), None) => {
                self.announce_forms(cell, &before, path, own, Happened::Deleted);
                if own.is_none() {
                    for dir in ancestors(path).filter(|dir| !shown.has_children(dir)) {
                        // A directory that was still shown for an `rm -r` here is gone now, too.
                        let place = CellPath::new(&cell.name, &dir);
                        self.records.scratch.end_linger(&place);
                        self.records.scratch.linger_if_used(&place, self.records.options.uid);
                        self.announce_dir(cell, &dir, Happened::DirRemoved);
                    }
                }
                self.announce_cell(cell, path, Happened::DirRemoved).await;
                let ancestor = path.parent().filter(|dir| shown.records.contains_key(dir) && !shown.has_children(dir));
                ancestor.iter().for_each(|dir| self.forget_forms(cell, dir));
            }
            (None, None) => {}
        }
        if new.is_some() {
            self.announce_links(cell, path, (&before, shown));
        }
    }

    /// Links that come, go, or point elsewhere with a record.
    fn announce_links(&self, cell: &Cell, path: &TopoPath, (before, now): (&Snapshot, &Snapshot)) {
        if self.records.options.views == Views::Off {
            return;
        }
        if let Some(dir) = path.parent().filter(|_| matches!(Key::of(&cell.name, path), Some(Key::Shard(..)))) {
            let (was, is) = (links::primary(before, &dir), links::primary(now, &dir));
            let changes = [(&was, &is, Happened::Deleted), (&is, &was, Happened::Linked)];
            for (to, _, happened) in changes.into_iter().filter(|(to, other, _)| to != other) {
                let of = CellPath::new(&cell.name, &dir);
                let link = to.clone().map(|to| Link { of, view: View::Primary, to });
                link.into_iter().for_each(|link| self.kernel.outbox.push(Announcement::of_link(link, happened)));
            }
        }
        for (dir, view) in links::concerned(&cell.name, path) {
            self.records.announce_links(&dir, view);
        }
    }

    /// Adds a line to `.topofs/events`.
    fn record(
        &self,
        cell: &Cell,
        path: &TopoPath,
        (old, new): (Option<&Record>, Option<&Record>),
        own: Option<&OwnCommit>,
    ) {
        let kind = match (old, new) {
            (None, None) => return,
            (None, Some(_)) => "created",
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "deleted",
        };
        let number = |record: Option<&Record>| json!(record.map(|record| record.version.number));
        let by = own.map_or_else(
            || json!("remote"),
            |own| json!({ "uid": own.saver.uid, "pid": own.saver.process, "command": own.command }),
        );
        let mut more = vec![("version", number(new)), ("old_version", number(old)), ("by", by)];
        more.extend(own.and_then(|own| own.set.as_ref()).map(|set| ("change_set", json!(**set))));
        self.control.events.record(&cell.name, path.as_str(), kind, &more);
    }

    fn announce_forms(&self, cell: &Cell, shown: &Snapshot, path: &TopoPath, own: Option<Form>, happened: Happened) {
        for form in self.records.forms(&cell.name, path) {
            // If the change was made through this form here, the kernel has raised the event already. Only a reader who
            // was listing at that moment may have an old list.
            let happened = match (Some(form) == own, happened) {
                (false, happened) => happened,
                (true, Happened::Changed) => continue,
                (true, _) => Happened::InvalidateOnly,
            };
            let (Some(dir), name) = name_of(shown, path, form) else { continue };
            let file = FileId::Record(CellPath::new(&cell.name, path), form);
            // A stored key may have that name: then the name stands for the key, and nobody has seen this form.
            let named = self.records.named(&cell.name, shown, &dir, &name);
            if named.is_ok_and(|named| named.is_none_or(|named| named == file)) {
                self.kernel.outbox.push(Announcement {
                    happened,
                    file,
                    dir: Some(CellPath { cell: cell.name.clone(), path: dir }),
                    name,
                });
            }
        }
    }

    /// Invalidates names that a record no longer has, or has again.
    fn forget_forms(&self, cell: &Cell, path: &TopoPath) {
        for form in self.records.forms(&cell.name, path).filter(|form| *form != Form::Raw) {
            let name = format!("{}{}", path.name(), form.suffix());
            let file = FileId::Record(CellPath::new(&cell.name, path), form);
            let dir = path.parent().map(|dir| CellPath { cell: cell.name.clone(), path: dir });
            self.kernel.outbox.push(Announcement { happened: Happened::InvalidateOnly, file, dir, name });
        }
    }

    fn announce_dir(&self, cell: &Cell, dir: &TopoPath, happened: Happened) {
        let place = CellPath::new(&cell.name, dir);
        // A directory that this mount shows in any case neither appears nor disappears.
        let stays = is_virtual(&cell.name, dir) || self.records.scratch.has_dir(&place);
        let happened = if stays { Happened::InvalidateOnly } else { happened };
        if happened == Happened::DirRemoved {
            for links in FileId::Dir(place.clone()).link_dirs() {
                // Nobody has seen them by name: a listing need not show them.
                let FileId::Links(_, view) = &links else { continue };
                if self.kernel.inodes.known(&links).is_none() {
                    continue;
                }
                let (dir, name) = (Some(place.clone()), view.name().to_owned());
                self.kernel.outbox.push(Announcement { happened, file: links, dir, name });
            }
        }
        self.kernel.outbox.push(Announcement::of_dir(&cell.name, dir, happened));
    }

    /// A cell appears and disappears with its CellInfo record.
    async fn announce_cell(self: &Arc<Self>, cell: &Cell, path: &TopoPath, happened: Happened) {
        let Some(Key::CellInfo(name)) = Key::of(&cell.name, path) else { return };
        let Ok(name) = CellName::new(name) else { return };
        if name.is_global() {
            return;
        }
        let shown = self.cells.get(&name);
        match &shown {
            Some(cell) => self.follow(cell),
            None => {
                // The end of what was in it is announced first.
                let known = self.announced.lock().get(&name).map(|(shown, _)| shown.clone());
                if let Some(known) = known {
                    let _ = tokio::time::timeout(LONGEST, known.lock()).await;
                }
            }
        }
        let happened = match (happened, shown.is_some()) {
            (Happened::DirMade, true) | (Happened::DirRemoved, false) => happened,
            // The new content of the record may decide whether the cell can be shown.
            _ => Happened::InvalidateOnly,
        };
        self.kernel.outbox.push(Announcement::of_dir(&name, &TopoPath::root(), happened));
    }

    pub(super) async fn announce_locks(&self, cell: &Arc<Cell>, shared: &KnownLocks) {
        let mut holders = Holders::of(cell.clone(), shared).await;
        loop {
            for HolderChange { dir, .. } in holders.changed().await {
                // Some directories are listed only while they are locked.
                if is_virtual(&cell.name, &dir) {
                    let dirs = std::iter::once(dir.clone()).chain(ancestors(&dir));
                    dirs.for_each(|dir| {
                        self.kernel.outbox.push(Announcement::of_dir(&cell.name, &dir, Happened::InvalidateOnly))
                    });
                }
                let file = FileId::Lock(CellPath::new(&cell.name, &dir));
                let parent = Some(CellPath { cell: cell.name.clone(), path: dir });
                self.kernel.outbox.push(Announcement {
                    happened: Happened::Changed,
                    file,
                    dir: parent,
                    name: LOCK_FILE.to_owned(),
                });
            }
        }
    }
}
