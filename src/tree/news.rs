//! Following the cells: what the kernel must let go of, and which events are to be raised for what happens elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use tokio::sync::broadcast::{self, error::RecvError};

use super::echo::{Followed, OwnCommit, Told};
use super::jobs::{Happened, Job};
use super::letting::LONGEST;
use super::lockfile::is_virtual;
use super::view::name_of;
use super::{FileId, Tree};
use crate::cells::{Cell, HolderChange, Holders};
use crate::mirror::{Batch, Record, Snapshot, Update};
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::record::Form;

type Updates = broadcast::Receiver<Arc<Batch>>;

impl Tree {
    /// Tells of what happens in a cell from now on. Who watches a cell that was elsewhere before, or was not shown for a while, is told
    /// of what is different.
    pub(super) fn follow(self: &Arc<Self>, cell: &Arc<Cell>) {
        // Listened to before anything is answered that lasts.
        let (first, updates) = (cell.mirror.subscribe(), cell.mirror.subscribe());
        let followed = {
            let mut all = self.echo.followed.lock();
            let known = all.get(&cell.name);
            if known.is_some_and(|known| known.cell.as_ptr() == Arc::as_ptr(cell)) {
                return;
            }
            let told = known.map(|known| (known.told.clone(), known.locked.clone())).unwrap_or_default();
            // What was published before is nothing that the kernel has been told otherwise.
            let followed = Arc::new(Followed::new(cell, cell.mirror.published(), told));
            all.insert(cell.name.clone(), followed.clone());
            followed
        };
        self.locks.follow(cell);
        let (tree, cell) = (self.clone(), cell.clone());
        self.tasks.spawn(async move {
            // One that is another place now has been shown with the records of the old one.
            tree.let_go_of_cell(&cell.name).await;
            let mut told = None;
            tokio::select! {
                () = tree.stop.cancelled() => return,
                () = cell.replaced() => {}
                () = tree.let_go_of_news(&cell, &followed, first) => {}
                () = tree.tell_of(&cell, updates, &followed.told, &mut told) => {}
                () = tree.tell_of_locks(&cell) => {}
                () = tree.guard_freshness(&cell, &followed) => {}
            }
            tree.let_go_of_cell(&cell.name).await;
            if let Some(told) = told.filter(|_| tree.cells.get(&cell.name).is_none()) {
                tree.tell_of_the_end(&cell, told).await;
            }
        });
    }

    /// Lets the kernel ask for everything as soon as a cell's watch is not delivering: what it keeps may be old by then, and must be
    /// gone when the cell is no longer shown.
    async fn guard_freshness(&self, cell: &Cell, followed: &Followed) {
        /// How often the watch is looked at.
        const LOOK: Duration = Duration::from_millis(250);
        let mut dropped = 0;
        loop {
            if !cell.mirror.is_fresh() {
                let given = followed.lasting.load(Ordering::SeqCst);
                if given != dropped {
                    cell.mirror.counters.silences.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(cell = %cell.name, "the watch is silent: the kernel keeps nothing of the cell");
                    self.let_go_of_cell(&cell.name).await;
                    dropped = given;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets the kernel ask again about what has changed, as soon as it has. Telling may have to wait for a commit of this mount's own.
    async fn let_go_of_news(&self, cell: &Cell, followed: &Followed, mut updates: Updates) {
        cell.mirror.loaded().await;
        let mut seen = Snapshot::clone(&cell.mirror.snapshot());
        while let Some(news) = next(cell, &mut updates, &seen).await {
            // The first list is no change, and neither is what was in `seen` already.
            let changes = news.updates.iter().filter(|update| seen.records.get(&update.path) != update.new.as_ref());
            changes.for_each(|update| followed.note_change(&update.path));
            news.updates.iter().for_each(|update| self.pin_last(&cell.name, update));
            self.let_go_of_updates(cell, &news.updates).await;
            followed.has_let_go_of(news.number);
            news.updates.iter().for_each(|update| update.apply(&mut seen));
        }
    }

    /// Whoever has a record open that is gone goes on with its last state.
    fn pin_last(&self, cell: &CellName, update: &Update) {
        let Update { path, old: Some(last), new: None } = update else { return };
        for form in self.forms(cell, path) {
            if let Some(ino) = self.inodes.known(&FileId::Record(CellPath::new(cell, path), form))
                && let Ok(content) = self.records.show(cell, path, &last.value, form)
            {
                self.handles.pin(ino, &content, last.modified);
            }
        }
    }

    async fn tell_of(
        self: &Arc<Self>,
        cell: &Cell,
        mut updates: Updates,
        shared: &Told,
        own: &mut Option<OwnedMutexGuard<Option<Snapshot>>>,
    ) {
        // Who has told of the cell when it was another place has come to an end then.
        let told = own.insert(shared.clone().lock_owned().await);
        if told.is_some() {
            // It is watched: somebody has looked into it. Nobody may do so again before something happens there.
            cell.mirror.load().await;
        }
        cell.mirror.loaded().await;
        // What has come in between is in it already, and is passed over.
        let now = Snapshot::clone(&cell.mirror.snapshot());
        let told = match told.as_mut() {
            None => told.insert(now),
            Some(told) => {
                self.tell_differences(cell, told, &now).await;
                told
            }
        };
        while let Some(news) = next(cell, &mut updates, told).await {
            for update in &news.updates {
                self.tell(cell, update, told).await;
            }
        }
    }

    /// A cell is no longer shown: nothing that was in it is there any more.
    async fn tell_of_the_end(self: &Arc<Self>, cell: &Cell, mut told: OwnedMutexGuard<Option<Snapshot>>) {
        if let Some(told) = told.as_mut() {
            self.tell_differences(cell, told, &Snapshot::default()).await;
        }
    }

    /// Tells of what is different where a cell is another place than before: what was written when and how often says nothing then.
    async fn tell_differences(self: &Arc<Self>, cell: &Cell, told: &mut Snapshot, now: &Snapshot) {
        for update in differences(told, now) {
            let old = told.records.get(&update.path).cloned();
            let same = matches!((&old, &update.new), (Some(old), Some(new)) if old.value == new.value);
            if same {
                update.apply(told);
            } else {
                self.tell_change(cell, (&update, old), None, told).await;
            }
        }
    }

    /// Waits until what this mount has committed stands among the events: who has just saved looks for it there.
    pub(super) async fn own_commits_told(&self) {
        /// No longer, if the service does not tell of it.
        const LONGEST: Duration = Duration::from_millis(200);
        self.echo.own_told(LONGEST).await;
    }

    async fn tell(self: &Arc<Self>, cell: &Cell, update: &Update, told: &mut Snapshot) {
        let Update { path, new, .. } = update;
        let old = match new {
            Some(record) => told.records.get(path).cloned().filter(|old| old.version.created == record.version.created),
            None => told.records.get(path).cloned(),
        };
        let place = CellPath::new(&cell.name, path);
        // Whether it was our own commit is known when that has come back.
        self.committing.wait(&place).await;
        let revision = new.as_ref().or(old.as_ref()).map(|record| record.version.written);
        let own = revision.and_then(|revision| self.echo.own(&place, revision));
        match (&old, new) {
            (Some(old), Some(new)) if old.version == new.version => update.apply(told),
            _ => self.tell_change(cell, (update, old), own.as_ref(), told).await,
        }
        // Not before it stands among the events.
        revision.iter().for_each(|revision| self.echo.told_own(&place, *revision));
    }

    async fn tell_change(
        self: &Arc<Self>,
        cell: &Cell,
        (update, old): (&Update, Option<Record>),
        own: Option<&OwnCommit>,
        told: &mut Snapshot,
    ) {
        let Update { path, new, .. } = update;
        self.record(cell, path, (old.as_ref(), new.as_ref()), own);
        let own = own.map(|commit| commit.form);
        let before = told.clone();
        update.apply(told);
        match (&old, new) {
            (Some(_), Some(_)) => {
                self.tell_forms(cell, told, path, own, Happened::Changed);
                // A cell may be another place now.
                self.tell_cell(cell, path, Happened::Changed).await;
            }
            (None, Some(_)) => {
                if own.is_none() {
                    let new_dirs = ancestors(path).filter(|dir| !before.has_children(dir));
                    for dir in new_dirs.collect::<Vec<_>>().into_iter().rev() {
                        self.tell_dir(cell, &dir, Happened::DirMade);
                    }
                }
                self.tell_forms(cell, told, path, own, Happened::Created);
                self.tell_cell(cell, path, Happened::DirMade).await;
                // A record that has become a directory has other names now.
                let ancestor = path.parent().filter(|dir| told.records.contains_key(dir) && !before.has_children(dir));
                ancestor.iter().for_each(|dir| self.forget_forms(cell, dir));
            }
            (Some(_), None) => {
                self.tell_forms(cell, &before, path, own, Happened::Deleted);
                if own.is_none() {
                    for dir in ancestors(path).filter(|dir| !told.has_children(dir)) {
                        // One that went on being shown for `rm -r` here is gone now, too.
                        let place = CellPath::new(&cell.name, &dir);
                        self.overlay.end_linger(&place);
                        self.overlay.linger_if_used(&place, self.options.uid);
                        self.tell_dir(cell, &dir, Happened::DirRemoved);
                    }
                }
                self.tell_cell(cell, path, Happened::DirRemoved).await;
                let ancestor = path.parent().filter(|dir| told.records.contains_key(dir) && !told.has_children(dir));
                ancestor.iter().for_each(|dir| self.forget_forms(cell, dir));
            }
            (None, None) => {}
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
        let more = [("version", number(new)), ("old_version", number(old)), ("by", by)];
        self.control.events.record(&cell.name, path.as_str(), kind, &more);
    }

    fn tell_forms(&self, cell: &Cell, shown: &Snapshot, path: &TopoPath, own: Option<Form>, happened: Happened) {
        for form in self.forms(&cell.name, path) {
            // The kernel has told of its own call already; only who was listing at that moment may have an old list.
            let happened = match (Some(form) == own, happened) {
                (false, happened) => happened,
                (true, Happened::Changed) => continue,
                (true, _) => Happened::Unnoticed,
            };
            let (Some(dir), name) = name_of(shown, path, form) else { continue };
            let node = FileId::Record(CellPath::new(&cell.name, path), form);
            // A stored key may have that name: then it is that one's, and nobody has seen this form.
            let named = self.named(&cell.name, shown, &dir, &name);
            if named.is_ok_and(|named| named.is_none_or(|named| named == node)) {
                self.echo.push(Job {
                    happened,
                    node,
                    dir: Some(CellPath { cell: cell.name.clone(), path: dir }),
                    name,
                });
            }
        }
    }

    /// Names that a record has no more, or has again.
    fn forget_forms(&self, cell: &Cell, path: &TopoPath) {
        for form in self.forms(&cell.name, path).filter(|form| *form != Form::Raw) {
            let name = format!("{}{}", path.name(), form.suffix());
            let node = FileId::Record(CellPath::new(&cell.name, path), form);
            let dir = path.parent().map(|dir| CellPath { cell: cell.name.clone(), path: dir });
            self.echo.push(Job { happened: Happened::Unnoticed, node, dir, name });
        }
    }

    fn tell_dir(&self, cell: &Cell, dir: &TopoPath, happened: Happened) {
        let place = CellPath::new(&cell.name, dir);
        // One that this mount has anyway neither comes nor goes.
        let stays = is_virtual(&cell.name, dir) || self.overlay.has_dir(&place);
        let happened = if stays { Happened::Unnoticed } else { happened };
        self.echo.push(Job::of_dir(&cell.name, dir, happened));
    }

    /// The directories above a record that have gone with it are gone for everybody as soon as this returns: the kernel forgets their
    /// names, and whoever may still see them is answered by the name. `busy` is the directory in which the kernel is at work for the
    /// caller, beside the record's own: it is free only after the caller has been answered, and not waited for.
    pub(super) async fn forget_gone_dirs(&self, cell: &CellName, path: &TopoPath, busy: Option<&TopoPath>) {
        let (Some(connected), Some(caches)) = (self.cells.get(cell), self.caches.get()) else { return };
        let snapshot = connected.mirror.snapshot();
        for dir in ancestors(path).take_while(|dir| !snapshot.has_children(dir)) {
            let Some(above) = dir.parent() else { return };
            let Some(ino) = self.inodes.known(&FileId::Dir(CellPath::new(cell, &above))) else { continue };
            let asked = caches.letting.forget_name(ino, dir.name());
            if busy != Some(&above) {
                asked.done().await;
            }
        }
    }

    /// A directory of this mount disappears from the listing above by itself, after a time.
    pub(super) fn forget_dir_after(self: &Arc<Self>, place: CellPath, time: Duration) {
        let tree = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = tree.stop.cancelled() => {}
                () = tokio::time::sleep(time) => {
                    tree.echo.push(Job::of_dir(&place.cell, &place.path, Happened::Unnoticed));
                }
            }
        });
    }

    /// A cell comes and goes with its CellInfo record.
    async fn tell_cell(self: &Arc<Self>, cell: &Cell, path: &TopoPath, happened: Happened) {
        let names: Vec<&str> = path.components().collect();
        let (true, ["cells", name, "CellInfo"]) = (cell.name.is_global(), names.as_slice()) else { return };
        let Ok(name) = CellName::new(name) else { return };
        if name.is_global() {
            return;
        }
        let shown = self.cells.get(&name);
        match &shown {
            Some(cell) => self.follow(cell),
            None => {
                // What was in it goes first.
                let followed = self.echo.followed.lock().get(&name).cloned();
                if let Some(followed) = followed {
                    let _ = tokio::time::timeout(LONGEST, followed.told.lock()).await;
                }
            }
        }
        let happened = match (happened, shown.is_some()) {
            (Happened::DirMade, true) | (Happened::DirRemoved, false) => happened,
            // Whether it can be shown may have changed with what its record says.
            _ => Happened::Unnoticed,
        };
        self.echo.push(Job::of_dir(&name, &TopoPath::root(), happened));
    }

    async fn tell_of_locks(&self, cell: &Arc<Cell>) {
        let Some(shared) = self.followed(&cell.name).map(|(_, followed)| followed.locked.clone()) else { return };
        let mut holders = Holders::of(cell.clone(), &shared).await;
        loop {
            for HolderChange { dir, .. } in holders.changed().await {
                // Some directories are listed as long as they are locked.
                if is_virtual(&cell.name, &dir) {
                    let dirs = std::iter::once(dir.clone()).chain(ancestors(&dir));
                    dirs.for_each(|dir| self.echo.push(Job::of_dir(&cell.name, &dir, Happened::Unnoticed)));
                }
                let node = FileId::Lock(CellPath::new(&cell.name, &dir));
                let parent = Some(CellPath { cell: cell.name.clone(), path: dir });
                self.echo.push(Job { happened: Happened::Changed, node, dir: parent, name: LOCK_FILE.to_owned() });
            }
        }
    }
}

/// The next changes of a cell. After too many at once: what is different now is what has happened, each record once.
async fn next(cell: &Cell, updates: &mut Updates, known: &Snapshot) -> Option<Arc<Batch>> {
    match updates.recv().await {
        Ok(news) => Some(news),
        Err(RecvError::Lagged(_)) => {
            *updates = updates.resubscribe();
            let number = cell.mirror.published();
            Some(Arc::new(Batch { number, updates: differences(known, &cell.mirror.snapshot()) }))
        }
        Err(RecvError::Closed) => None,
    }
}

/// The directories above a path, the nearest first, without the cell's root.
pub(super) fn ancestors(path: &TopoPath) -> impl Iterator<Item = TopoPath> {
    std::iter::successors(path.parent(), TopoPath::parent).take_while(|dir| !dir.is_root())
}

/// What is different, deletions first, then in the order in which it was written.
fn differences(old: &Snapshot, new: &Snapshot) -> Vec<Update> {
    use imbl::ordmap::DiffItem;
    let mut updates: Vec<Update> = old
        .records
        .diff(&new.records)
        .map(|item| match item {
            DiffItem::Add(path, record) => Update { path: path.clone(), old: None, new: Some(record.clone()) },
            DiffItem::Update { old: (path, old), new: (_, new) } => {
                Update { path: path.clone(), old: Some(old.clone()), new: Some(new.clone()) }
            }
            DiffItem::Remove(path, record) => Update { path: path.clone(), old: Some(record.clone()), new: None },
        })
        .collect();
    updates.sort_by_key(|update| update.new.as_ref().map(|record| record.version.written));
    updates
}
