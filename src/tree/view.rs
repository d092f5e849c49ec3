//! Names: what a directory shows, and what a name stands for.

use std::ffi::OsStr;
use std::sync::Arc;

use super::caller::Removal;
use super::lockfile::{is_listed, is_virtual};
use super::overlay::Local;
use super::{Attr, Caller, ControlFile, FileId, Tree, known_name};
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CONTROL_DIR, CellName, CellPath, DATA_FILE, LOCK_FILE, TopoPath};
use crate::record::Form;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// What it stands for.
    pub node: FileId,
}

impl FileId {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, FileId::Root | FileId::Control | FileId::Dir(..))
    }
}

impl Tree {
    /// Finds a name in a directory; the kernel knows the inode from then on.
    pub async fn lookup(self: &Arc<Self>, caller: &Caller, parent: u64, name: &OsStr) -> Result<Attr> {
        let name = known_name(name)?;
        if self.echo.is_from(caller) {
            return self.echo_lookup(parent, name);
        }
        let node = self.find(caller, parent, name).await?;
        // Known first: whatever is published from now on is told to the kernel.
        let ino = self.inodes.told(&node);
        let attr = match &node {
            FileId::Record(CellPath { cell, path }, form) => {
                self.save_under_way(cell, path).await;
                self.named_record_attr(caller, cell, path, *form).await
            }
            FileId::Dir(..) if self.recent.is_ghost(caller, &node) => Ok(self.dir_attr()),
            _ => self.attr(&node).await,
        };
        let attr = attr.inspect_err(|_| self.inodes.forget(ino, 1))?;
        Ok(self.answered(&node, ino, attr))
    }

    /// As [`Tree::lookup`]; `None` if there is no such name, and the kernel may keep that for a moment.
    pub async fn look_up(self: &Arc<Self>, caller: &Caller, parent: u64, name: &OsStr) -> Result<Option<Attr>> {
        match self.lookup(caller, parent, name).await {
            Err(error) if error.kind == Kind::NotFound && !self.echo.is_from(caller) => {
                let lasts = name.to_str().is_some_and(|name| self.absence_lasts(parent, name));
                if lasts { Ok(None) } else { Err(error) }
            }
            outcome => outcome.map(Some),
        }
    }

    /// What a name in a directory stands for. A record that comes back need not be stored (any more).
    pub(super) async fn find(&self, caller: &Caller, parent: u64, name: &str) -> Result<FileId> {
        match self.node(parent)? {
            FileId::Root if name == CONTROL_DIR => Ok(FileId::Control),
            FileId::Root => {
                let cell = CellName::new(name).map_err(|_| Error::not_found())?;
                self.cell(&cell)?;
                Ok(FileId::Dir(CellPath { cell, path: TopoPath::root() }))
            }
            FileId::Control => ControlFile::of_name(name).map(FileId::ControlFile).ok_or_else(Error::not_found),
            FileId::Dir(CellPath { cell, path: dir }) => {
                self.removals.settled_below(&CellPath::new(&cell, &dir)).await;
                let cell = self.cell(&cell)?;
                let snapshot = cell.snapshot().await?;
                self.entry(caller, &cell, &snapshot, &dir, name)
            }
            FileId::ControlFile(_) | FileId::Record(..) | FileId::Scratch(_) | FileId::Lock(..) => {
                Err(Error::new(Kind::NotDirectory, "not a directory"))
            }
        }
    }

    /// What a name stands for, for this caller: some see what they have removed or are making, and do not see what they are about
    /// to make.
    fn entry(&self, caller: &Caller, cell: &Cell, snapshot: &Snapshot, dir: &TopoPath, name: &str) -> Result<FileId> {
        match self.named(&cell.name, snapshot, dir, name)? {
            Some(node @ FileId::Dir(..)) => return Ok(node),
            Some(node) => return self.unless_free(caller, node),
            None => {}
        }
        let gone = FileId::Dir(CellPath { cell: cell.name.clone(), path: dir.join(name)? });
        if self.recent.is_ghost(caller, &gone) {
            return Ok(gone);
        }
        let node = self.record_or_ghost(caller, &cell.name, snapshot, dir, name)?;
        let draft = self.own_draft(caller, self.inodes.number(&node)).filter(|draft| !draft.is_abandoned());
        if self.recent.is_ghost(caller, &node) || draft.is_some() {
            return Ok(node);
        }
        Err(Error::not_found())
    }

    /// The record that a name would stand for, or that it did stand for before the caller removed it: what is stored may have a form
    /// under a name that nobody would make.
    fn record_or_ghost(
        &self,
        caller: &Caller,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<FileId> {
        let (base, form) = Form::of_name(name).unwrap_or((name, Form::Raw));
        let ghost = dir.join(base).map(|path| FileId::Record(CellPath { cell: cell.clone(), path }, form));
        match ghost {
            Ok(ghost) if self.recent.is_ghost(caller, &ghost) => Ok(ghost),
            _ => self.record_of_name(cell, snapshot, dir, name),
        }
    }

    /// What a name in a directory of a cell stands for, for everybody: the one place that decides it. Listing, looking up and what
    /// the helper is told ask here.
    pub(super) fn named(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<Option<FileId>> {
        if name == LOCK_FILE {
            return Ok(Some(FileId::Lock(CellPath::new(cell, dir))));
        }
        let child = dir.join(name)?;
        if snapshot.has_children(&child) {
            return Ok(Some(FileId::Dir(CellPath { cell: cell.clone(), path: child })));
        }
        if self.shows_raw(cell, snapshot, &child) {
            return Ok(Some(FileId::Record(CellPath { cell: cell.clone(), path: child }, Form::Raw)));
        }
        let place = CellPath { cell: cell.clone(), path: child };
        match self.overlay.get(&place) {
            Some(Local::Scratch(file)) => return Ok(Some(FileId::Scratch(file.id))),
            Some(Local::Dir { .. }) => return Ok(Some(FileId::Dir(place))),
            None if self.overlay.has_children(&place) => {
                return Ok(Some(FileId::Dir(place)));
            }
            None => {}
        }
        if is_virtual(cell, &place.path) {
            return Ok(Some(FileId::Dir(place)));
        }
        let record = self.record_of_name(cell, snapshot, dir, name).ok();
        Ok(record.filter(
            |node| matches!(node, FileId::Record(CellPath { path, .. }, _) if snapshot.records.contains_key(path)),
        ))
    }

    /// Refuses to make a name that would be a form of a record, were its key not a directory now: what is written there would not be
    /// stored.
    pub(super) fn refuse_hidden_form(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<()> {
        let Some((base, form)) = Form::of_name(name) else { return Ok(()) };
        let base = dir.join(base)?;
        let is_record = snapshot.records.contains_key(&base) || self.records.kinds.is_record(cell, &base);
        if !is_record || !snapshot.has_children(&base) || !self.forms(cell, &base).any(|known| known == form) {
            return Ok(());
        }
        let suffix = form.suffix();
        let reason =
            format!("keys are stored below {cell}/{base}: the record is the directory's {DATA_FILE}{suffix} now");
        Err(Error::new(Kind::IsDirectory, reason))
    }

    /// The record that a name would stand for, stored or not: fails if the name is no form of a record.
    pub(super) fn record_of_name(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<FileId> {
        let stored = |path: &TopoPath| snapshot.records.contains_key(path);
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
            let known = stored(&base) || self.records.kinds.is_record(cell, &base);
            if known && !snapshot.has_children(&base) && self.forms(cell, &base).any(|known| known == form) {
                return Ok(FileId::Record(CellPath { cell: cell.clone(), path: base }, form));
            }
        }
        if self.records.kinds.is_record(cell, &child) && self.forms(cell, &child).any(|form| form == Form::Raw) {
            return Ok(FileId::Record(CellPath { cell: cell.clone(), path: child }, Form::Raw));
        }
        Err(Error::not_found())
    }

    /// Whether a stored record is shown under its own name: what the forms hide gives way only to nothing.
    fn shows_raw(&self, cell: &CellName, snapshot: &Snapshot, path: &TopoPath) -> bool {
        snapshot.records.contains_key(path)
            && (self.forms(cell, path).any(|form| form == Form::Raw) || self.shadows(cell, snapshot, path))
    }

    /// A name that its caller expects to be free: an editor has renamed the record to a backup, or `cp` or `install` has just made it
    /// under another form's name and is about to make this one.
    fn unless_free(&self, caller: &Caller, node: FileId) -> Result<FileId> {
        match self.recent.removal(caller, &node) {
            Some(Removal::MovedAway(..) | Removal::Freed(_)) => return Err(Error::not_found()),
            Some(Removal::Appeared(_)) if caller.may_make_anew() => return Err(Error::not_found()),
            _ => {}
        }
        match &node {
            FileId::Record(CellPath { cell, path }, form)
                if (self.recent.made_by(caller, cell, path).is_some_and(|made| made.form != *form)
                    || self.claims.is_of(&CellPath::new(cell, path), caller.process(), *form))
                    && caller.may_make_anew() =>
            {
                Err(Error::not_found())
            }
            _ => Ok(node),
        }
    }

    /// Attributes of a record found by name: stored, being made by this caller, or just removed by it.
    async fn named_record_attr(&self, caller: &Caller, cell: &CellName, path: &TopoPath, form: Form) -> Result<Attr> {
        let node = FileId::Record(CellPath::new(cell, path), form);
        let snapshot = self.cell(cell)?.snapshot().await?;
        if let Some(draft) = self.own_draft(caller, self.inodes.number(&node)) {
            return Ok(self.draft_attr(&draft, &snapshot));
        }
        match snapshot.records.get(path) {
            Some(record) => Ok(self.shown_attr(cell, path, form, record)),
            None => self.ghost_attr(caller, &node).ok_or_else(Error::not_found),
        }
    }

    /// The forms in which a record exists. What cannot be decoded is shown raw, whatever was asked for.
    pub(super) fn forms(&self, cell: &CellName, path: &TopoPath) -> impl Iterator<Item = Form> {
        let decodable = self.records.message(cell, path).is_some();
        let all = if decodable { self.options.forms.clone() } else { vec![Form::Raw] };
        all.into_iter()
    }

    /// The entries of a directory now.
    pub(super) async fn list(&self, node: &FileId) -> Result<Vec<DirEntry>> {
        match node {
            FileId::Root => {
                let dir = |cell: &Arc<Cell>| FileId::Dir(CellPath { cell: cell.name.clone(), path: TopoPath::root() });
                let cells = self.cells.all();
                Ok(cells.iter().map(|cell| DirEntry { name: cell.name.to_string(), node: dir(cell) }).collect())
            }
            FileId::Control => {
                let entry =
                    |file: ControlFile| DirEntry { name: file.name().to_owned(), node: FileId::ControlFile(file) };
                Ok(ControlFile::ALL.into_iter().map(entry).collect())
            }
            FileId::Dir(CellPath { cell, path }) => {
                self.removals.settled_below(&CellPath::new(cell, path)).await;
                let connected = self.cell(cell)?;
                let snapshot = connected.snapshot().await?;
                Ok(self.entries(&connected, &snapshot, path))
            }
            FileId::ControlFile(_) | FileId::Record(..) | FileId::Scratch(_) | FileId::Lock(..) => {
                Err(Error::new(Kind::NotDirectory, "not a directory"))
            }
        }
    }

    fn entries(&self, connected: &Cell, snapshot: &Snapshot, dir: &TopoPath) -> Vec<DirEntry> {
        let cell = &connected.name;
        // Names that there may be; what each is, one function says, as for looking up.
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
        names.extend(self.overlay.entries(&CellPath::new(cell, dir)).into_iter().map(|(name, _)| (name, None)));
        // Elections and named locks exist by being locked.
        let locked = connected.locked_dirs(snapshot);
        names.extend(locked.into_iter().filter_map(|locked| {
            let name = locked.below(dir).and_then(|rest| rest.split('/').next()).filter(|name| !name.is_empty())?;
            is_virtual(cell, &dir.join(name).ok()?).then(|| (name.to_owned(), None))
        }));
        // The last, so that `rm -r` comes to it when everything else is gone.
        if is_listed(cell, snapshot, dir) {
            names.push((LOCK_FILE.to_owned(), None));
        }
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::new();
        for (name, form) in names {
            let Ok(Some(node)) = self.named(cell, snapshot, dir, &name) else { continue };
            let is_listed = match &node {
                // Under its own name, unless it is hidden there.
                FileId::Record(CellPath { path, .. }, known) if form.is_none() => {
                    self.listed_forms(cell, path).any(|form| form == *known) || self.shadows(cell, snapshot, path)
                }
                _ => true,
            };
            if is_listed && seen.insert(name.clone()) {
                entries.push(DirEntry { name, node });
            }
        }
        entries
    }

    fn listed_forms(&self, cell: &CellName, path: &TopoPath) -> impl Iterator<Item = Form> {
        let forms: Vec<Form> = self.forms(cell, path).collect();
        // A record of which no listed form exists is still listed.
        let listed: Vec<Form> = forms.iter().copied().filter(|form| self.options.list.contains(form)).collect();
        let raw_only = forms == [Form::Raw];
        if raw_only { forms.into_iter() } else { listed.into_iter() }
    }
}

/// The directory and the name under which a form of a record is shown.
pub(super) fn name_of(snapshot: &Snapshot, path: &TopoPath, form: Form) -> (Option<TopoPath>, String) {
    let suffix = form.suffix();
    match snapshot.has_children(path) {
        true => (Some(path.clone()), format!("{DATA_FILE}{suffix}")),
        false => (path.parent(), format!("{}{suffix}", path.name())),
    }
}
