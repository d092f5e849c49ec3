//! Decides what a directory shows, and what a name stands for. A listing and a lookup must never disagree.

use super::RecordFiles;
use super::lockfile::is_listed;
use super::memory::Exception;
use super::scratch::Local;
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, DATA_FILE, LINKS, LOCK_FILE, TopoPath};
use crate::record::Form;
use crate::store::{Store, Stores};
use crate::tree::caller::Caller;
use crate::tree::file::{DirEntry, FileId};
use crate::tree::namespace::Inode;

impl RecordFiles {
    /// What a name in a directory stands for. If that is a record, it need not be stored (any more).
    pub(super) async fn find(&self, caller: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        match dir {
            FileId::Root => {
                let cell = CellName::new(name).map_err(|_| Error::not_found())?;
                self.store(&cell)?;
                Ok(FileId::Dir(CellPath { cell, path: TopoPath::root() }))
            }
            FileId::Dir(at) => {
                self.removals.settled_below(at).await;
                let snapshot = self.store(&at.cell)?.snapshot().await?;
                let file = self.entry(caller, &at.cell, &snapshot, &at.path, name)?;
                if let FileId::Links(of, view) = &file {
                    self.look_at_links(of, *view).await;
                }
                Ok(file)
            }
            FileId::Links(of, view) => self.find_link(of, *view, name).await,
            FileId::Control
            | FileId::ControlFile(_)
            | FileId::Record(..)
            | FileId::Scratch(_)
            | FileId::Lock(..)
            | FileId::Link(_) => Err(Error::new(Kind::NotDirectory, "not a directory")),
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Err(Error::not_found()),
        }
    }

    /// What a name stands for, for this caller. A process still sees what it has removed or is making, and does not see
    /// what it is about to make.
    fn entry(
        &self,
        caller: &Caller,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<FileId> {
        match self.named(cell, snapshot, dir, name)? {
            Some(file @ (FileId::Dir(..) | FileId::Links(..) | FileId::Link(_))) => return Ok(file),
            Some(file) => return self.unless_free(caller, file),
            None => {}
        }
        if let Some(link) = self.removed_primary(caller, cell, dir, name) {
            return Ok(link);
        }
        let gone = FileId::Dir(CellPath { cell: cell.clone(), path: dir.join(name)? });
        if self.memory.has_tombstone(caller, &gone) {
            return Ok(gone);
        }
        let file = self.record_or_tombstone(caller, cell, snapshot, dir, name)?;
        let draft = self.own_draft(caller, self.kernel.number(&file)).filter(|draft| !draft.is_abandoned());
        if self.memory.has_tombstone(caller, &file) || draft.is_some() {
            return Ok(file);
        }
        Err(Error::not_found())
    }

    /// The record that a name would stand for, or stood for before the caller removed it: a stored record may have had
    /// a form under a name that stands for no record otherwise.
    fn record_or_tombstone(
        &self,
        caller: &Caller,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<FileId> {
        let (base, form) = Form::of_name(name).unwrap_or((name, Form::Raw));
        let removed = dir.join(base).map(|path| FileId::Record(CellPath { cell: cell.clone(), path }, form));
        match removed {
            Ok(removed) if self.memory.has_tombstone(caller, &removed) => Ok(removed),
            _ => self.record_of_name(cell, snapshot, dir, name),
        }
    }

    /// What a name in a directory of a cell stands for, for everybody. Only this function decides that: listings,
    /// lookups and the helper's answers ask here.
    pub(crate) fn named(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<Option<FileId>> {
        if name == LOCK_FILE {
            return Ok(self.has_locks.then(|| FileId::Lock(CellPath::new(cell, dir))));
        }
        if LINKS.contains(&name) {
            return Ok(self.view(cell, snapshot, dir, name));
        }
        let child = dir.join(name)?;
        if snapshot.has_children(&child) {
            return Ok(Some(FileId::Dir(CellPath { cell: cell.clone(), path: child })));
        }
        if self.shows_raw(cell, snapshot, &child) {
            return Ok(Some(FileId::Record(CellPath { cell: cell.clone(), path: child }, Form::Raw)));
        }
        let place = CellPath { cell: cell.clone(), path: child };
        match self.scratch.get(&place) {
            Some(Local::Scratch(file)) => return Ok(Some(FileId::Scratch(file.id))),
            Some(Local::Dir { .. }) => return Ok(Some(FileId::Dir(place))),
            None if self.scratch.has_children(&place) => {
                return Ok(Some(FileId::Dir(place)));
            }
            None => {}
        }
        if self.is_virtual(cell, &place.path) {
            return Ok(Some(FileId::Dir(place)));
        }
        let record = self.record_of_name(cell, snapshot, dir, name).ok();
        Ok(record.filter(
            |file| matches!(file, FileId::Record(CellPath { path, .. }, _) if snapshot.records.contains_key(path)),
        ))
    }

    /// Refuses to make a name of links, or one that would be a form of a record if its key were not a directory now:
    /// what is written there would not be stored.
    pub(crate) fn refuse_hidden_form(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<()> {
        self.refuse_link_name(name)?;
        let Some((base, form)) = Form::of_name(name) else { return Ok(()) };
        let base = dir.join(base)?;
        let is_record = snapshot.records.contains_key(&base) || self.is_record(cell, &base);
        if !is_record || !snapshot.has_children(&base) || !self.forms(cell, &base).any(|known| known == form) {
            return Ok(());
        }
        let suffix = form.suffix();
        let reason =
            format!("keys are stored below {cell}/{base}: the record is the directory's {DATA_FILE}{suffix} now");
        Err(Error::new(Kind::IsDirectory, reason))
    }

    /// The record that a name would stand for, stored or not. Fails if the name is no form of a record.
    pub(crate) fn record_of_name(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<FileId> {
        let stored = |path: &TopoPath| snapshot.records.contains_key(path);
        if LINKS.contains(&name) {
            return Err(Error::not_found());
        }
        if let Some(suffix) = name.strip_prefix(DATA_FILE)
            && stored(dir)
            && let Some(form) = self.forms(cell, dir).find(|form| form.suffix() == suffix)
        {
            return Ok(FileId::Record(CellPath::new(cell, dir), form));
        }
        let child = dir.join(name)?;
        if self.shows_raw(cell, snapshot, &child) {
            return Ok(FileId::Record(CellPath { cell: cell.clone(), path: child }, Form::Raw));
        }
        if let Some((base, form)) = Form::of_name(name) {
            let base = dir.join(base)?;
            let known = stored(&base) || self.is_record(cell, &base);
            if known && !snapshot.has_children(&base) && self.forms(cell, &base).any(|known| known == form) {
                return Ok(FileId::Record(CellPath { cell: cell.clone(), path: base }, form));
            }
        }
        if self.is_record(cell, &child) && self.forms(cell, &child).any(|form| form == Form::Raw) {
            return Ok(FileId::Record(CellPath { cell: cell.clone(), path: child }, Form::Raw));
        }
        Err(Error::not_found())
    }

    /// Whether a path is a record's, stored or not. Beside the live tree, so is what is or was a record there: a patch
    /// or a copy may bring it, and it must not be lost because nobody knows its kind.
    fn is_record(&self, cell: &CellName, path: &TopoPath) -> bool {
        let was_record = |stores: &dyn Stores| stores.get(cell).is_some_and(|store| store.was_record(path));
        let was_known = || self.live.as_ref().is_some_and(|live| was_record(&*self.stores) || was_record(&**live));
        self.codec.kinds.is_record(cell, path) || was_known()
    }

    /// Whether a stored record is shown under its own name: raw files are shown, or the name would be a form of another
    /// record, which then gives way.
    fn shows_raw(&self, cell: &CellName, snapshot: &Snapshot, path: &TopoPath) -> bool {
        snapshot.records.contains_key(path)
            && (self.forms(cell, path).any(|form| form == Form::Raw) || self.shadows(cell, snapshot, path))
    }

    /// Fails if the caller expects a name to be free: an editor has renamed the record to a backup, or `cp` or
    /// `install` has just made the record under another form's name and is about to make this name.
    fn unless_free(&self, caller: &Caller, file: FileId) -> Result<FileId> {
        match self.memory.exception(caller, &file) {
            Some(Exception::MovedAway(..) | Exception::Freed(_)) => return Err(Error::not_found()),
            Some(Exception::NotYetMade(_)) if caller.may_make_anew() => return Err(Error::not_found()),
            _ => {}
        }
        match &file {
            FileId::Record(CellPath { cell, path }, form)
                if (self.memory.made_by(caller, cell, path).is_some_and(|made| made.form != *form)
                    || self.exclusive.is_of(&CellPath::new(cell, path), caller.process(), *form))
                    && caller.may_make_anew() =>
            {
                Err(Error::not_found())
            }
            _ => Ok(file),
        }
    }

    /// The forms in which a record exists. A record that cannot be decoded is shown raw, whatever forms the mount
    /// shows.
    pub(crate) fn forms(&self, cell: &CellName, path: &TopoPath) -> impl Iterator<Item = Form> {
        let decodable = self.codec.message(cell, path).is_some();
        let all = if decodable { self.options.forms.clone() } else { vec![Form::Raw] };
        all.into_iter()
    }

    /// The entries of a directory now.
    pub(super) async fn list(&self, caller: &Caller, dir: &FileId) -> Result<Vec<DirEntry>> {
        match dir {
            FileId::Root => {
                let dir = |cell: CellName| FileId::Dir(CellPath { cell, path: TopoPath::root() });
                let cells = self.stores.cells().into_iter();
                Ok(cells.map(|cell| DirEntry { name: cell.to_string(), file: dir(cell) }).collect())
            }
            FileId::Dir(at) => {
                let store = self.store(&at.cell)?;
                store.snapshot().await?;
                if !self.memory.has_tombstone(caller, dir) {
                    self.require_dir(&at.cell, &at.path).await?;
                }
                // The kernel keeps the listing.
                store.connected().map(|cell| self.kernel.count_lasting(cell));
                self.removals.settled_below(at).await;
                let snapshot = store.snapshot().await?;
                Ok(self.entries(&*store, &snapshot, &at.path))
            }
            FileId::Links(of, view) => self.list_links(of, *view).await,
            FileId::Control
            | FileId::ControlFile(_)
            | FileId::Record(..)
            | FileId::Scratch(_)
            | FileId::Lock(..)
            | FileId::Link(_) => Err(Error::new(Kind::NotDirectory, "not a directory")),
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Err(Error::not_found()),
        }
    }

    /// Whether the kernel may keep for a moment that there is no such name. It may not if the name could be a record's,
    /// or a cell's.
    pub(super) fn absence_lasts(&self, dir: &Inode, name: &str) -> bool {
        let FileId::Dir(CellPath { cell, path }) = &dir.file else { return false };
        if name == LOCK_FILE || LINKS.contains(&name) {
            return false;
        }
        let Some(store) = self.stores.get(cell).filter(|store| store.connected().is_some() && store.is_fresh()) else {
            return false;
        };
        let snapshot = store.known();
        let (Ok(child), Err(_)) = (path.join(name), self.record_of_name(cell, &snapshot, path, name)) else {
            return false;
        };
        let child = CellPath { cell: cell.clone(), path: child };
        !self.kernel.is_held(dir.ino)
            && !self.kernel.is_coming(&FileId::Record(child.clone(), Form::Raw))
            && !self.kernel.is_coming(&FileId::Dir(child))
    }

    fn entries(&self, store: &dyn Store, snapshot: &Snapshot, dir: &TopoPath) -> Vec<DirEntry> {
        let cell = store.cell();
        // Names that there may be. The same function as for lookups decides what each stands for.
        let mut names: Vec<(String, Option<Form>)> = Vec::new();
        let stored = snapshot.entries(dir);
        let own = |name: &str, form: Form| (format!("{name}{}", form.suffix()), Some(form));
        if snapshot.records.contains_key(dir) {
            names.extend(self.listed_forms(cell, dir).map(|form| own(DATA_FILE, form)));
        }
        names.extend(stored.iter().map(|entry| (entry.name.clone(), None)));
        for entry in stored.iter().filter(|entry| !entry.is_directory) {
            let forms = self.listed_forms(cell, &entry.path).filter(|form| *form != Form::Raw);
            names.extend(forms.map(|form| own(&entry.name, form)));
        }
        names.extend(self.scratch.entries(&CellPath::new(cell, dir)).into_iter().map(|(name, _)| (name, None)));
        // Elections and named locks exist only while they are locked.
        let locked = store.connected().map(|connected| connected.locked_dirs(snapshot)).unwrap_or_default();
        names.extend(locked.into_iter().filter_map(|locked| {
            let name = locked.below(dir).and_then(|rest| rest.split('/').next()).filter(|name| !name.is_empty())?;
            self.is_virtual(cell, &dir.join(name).ok()?).then(|| (name.to_owned(), None))
        }));
        // These are the last names, so that `rm -r` comes to them when everything else is gone.
        names.extend(self.listed_views(cell, snapshot, dir).iter().map(|view| (view.name().to_owned(), None)));
        if self.has_locks && is_listed(cell, snapshot, dir) {
            names.push((LOCK_FILE.to_owned(), None));
        }
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::new();
        for (name, form) in names {
            let Ok(Some(file)) = self.named(cell, snapshot, dir, &name) else { continue };
            let is_listed = match &file {
                // Under its own name, unless that is hidden.
                FileId::Record(CellPath { path, .. }, known) if form.is_none() => {
                    self.listed_forms(cell, path).any(|form| form == *known) || self.shadows(cell, snapshot, path)
                }
                _ => true,
            };
            if is_listed && seen.insert(name.clone()) {
                entries.push(DirEntry { name, file });
            }
        }
        entries
    }

    fn listed_forms(&self, cell: &CellName, path: &TopoPath) -> impl Iterator<Item = Form> {
        let forms: Vec<Form> = self.forms(cell, path).collect();
        // A record that exists only in raw form is listed, even if the raw form is not.
        let listed: Vec<Form> = forms.iter().copied().filter(|form| self.options.list.contains(form)).collect();
        let raw_only = forms == [Form::Raw];
        if raw_only { forms.into_iter() } else { listed.into_iter() }
    }
}

/// The directories above a path, the nearest first, without the cell's root.
pub(crate) fn ancestors(path: &TopoPath) -> impl Iterator<Item = TopoPath> {
    std::iter::successors(path.parent(), TopoPath::parent).take_while(|dir| !dir.is_root())
}

/// The directory and the name under which a form of a record is shown.
pub(crate) fn name_of(snapshot: &Snapshot, path: &TopoPath, form: Form) -> (Option<TopoPath>, String) {
    form.place(path, snapshot.has_children(path))
}
