//! Names: what a directory shows, and what a name stands for.

use std::ffi::OsStr;
use std::sync::Arc;

use super::caller::Removal;
use super::lockfile::{LOCK, is_listed, is_virtual};
use super::node::DATA;
use super::overlay::Local;
use super::{Attr, Caller, ControlFile, Node, Tree, known_name};
use crate::cells::Cell;
use crate::control;
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::Form;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// What it stands for.
    pub node: Node,
}

impl Node {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Node::Root | Node::Control | Node::Dir(..))
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
            Node::Record(cell, path, form) => {
                self.save_under_way(cell, path).await;
                self.named_record_attr(caller, cell, path, *form).await
            }
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
    pub(super) async fn find(&self, caller: &Caller, parent: u64, name: &str) -> Result<Node> {
        match self.node(parent)? {
            Node::Root if name == control::DIR_NAME => Ok(Node::Control),
            Node::Root => {
                let cell = CellName::new(name).map_err(|_| Error::not_found())?;
                self.cell(&cell)?;
                Ok(Node::Dir(cell, TopoPath::root()))
            }
            Node::Control => ControlFile::of_name(name).map(Node::ControlFile).ok_or_else(Error::not_found),
            Node::Dir(cell, dir) => {
                let cell = self.cell(&cell)?;
                let snapshot = cell.snapshot().await?;
                self.entry(caller, &cell, &snapshot, &dir, name)
            }
            Node::ControlFile(_) | Node::Record(..) | Node::Scratch(_) | Node::Lock(..) => {
                Err(Error::new(Kind::NotDirectory, "not a directory"))
            }
        }
    }

    fn entry(&self, caller: &Caller, cell: &Cell, snapshot: &Snapshot, dir: &TopoPath, name: &str) -> Result<Node> {
        let cell_name = &cell.name;
        if name == LOCK {
            return self.unless_free(caller, Node::Lock(cell_name.clone(), dir.clone()));
        }
        let child = dir.join(name)?;
        let place = (cell_name.clone(), child.clone());
        let is_dir = snapshot.has_children(&child);
        if is_dir {
            return Ok(Node::Dir(cell_name.clone(), child));
        }
        if self.shows_raw(cell_name, snapshot, &child) {
            return self.unless_free(caller, Node::Record(cell_name.clone(), child, Form::Raw));
        }
        match self.overlay.get(&place) {
            Some(Local::Scratch(file)) => return Ok(Node::Scratch(file.id)),
            Some(Local::Dir { .. }) => return Ok(Node::Dir(place.0, place.1)),
            None if self.overlay.has_children(&place) => return Ok(Node::Dir(place.0, place.1)),
            None => {}
        }
        if is_virtual(cell_name, &child) {
            return Ok(Node::Dir(place.0, place.1));
        }
        let node = self.record_of_name(cell_name, snapshot, dir, name)?;
        let Node::Record(_, path, _) = &node else { return Err(Error::not_found()) };
        if snapshot.records.contains_key(path) {
            return self.unless_free(caller, node);
        }
        let ghost = matches!(self.recent.removal(caller, &node), Some(Removal::Ghost(_)));
        if ghost || self.own_draft(caller, self.inodes.number(&node)).is_some() {
            return Ok(node);
        }
        Err(Error::not_found())
    }

    /// The record that a name would stand for, stored or not: fails if the name is no form of a record.
    pub(super) fn record_of_name(
        &self,
        cell: &CellName,
        snapshot: &Snapshot,
        dir: &TopoPath,
        name: &str,
    ) -> Result<Node> {
        let stored = |path: &TopoPath| snapshot.records.contains_key(path);
        if let Some(suffix) = name.strip_prefix(DATA)
            && stored(dir)
            && let Some(form) = self.forms(cell, dir).find(|form| form.suffix() == suffix)
        {
            return Ok(Node::Record(cell.clone(), dir.clone(), form));
        }
        let child = dir.join(name)?;
        if self.shows_raw(cell, snapshot, &child) {
            return Ok(Node::Record(cell.clone(), child, Form::Raw));
        }
        if let Some((base, form)) = Form::of_name(name) {
            let base = dir.join(base)?;
            let known = stored(&base) || self.records.kinds.is_record(cell, &base);
            if known && !snapshot.has_children(&base) && self.forms(cell, &base).any(|known| known == form) {
                return Ok(Node::Record(cell.clone(), base, form));
            }
        }
        if self.records.kinds.is_record(cell, &child) && self.forms(cell, &child).any(|form| form == Form::Raw) {
            return Ok(Node::Record(cell.clone(), child, Form::Raw));
        }
        Err(Error::not_found())
    }

    /// Whether a stored record is shown under its own name: what the forms hide gives way only to nothing.
    fn shows_raw(&self, cell: &CellName, snapshot: &Snapshot, path: &TopoPath) -> bool {
        snapshot.records.contains_key(path)
            && (self.forms(cell, path).any(|form| form == Form::Raw) || self.shadows(cell, snapshot, path))
    }

    /// A name that its caller expects to be free: an editor has renamed the record to a backup, or `cp` has just made it
    /// under another form's name and is about to make this one.
    fn unless_free(&self, caller: &Caller, node: Node) -> Result<Node> {
        match self.recent.removal(caller, &node) {
            Some(Removal::MovedAway(..)) => Err(Error::not_found()),
            Some(Removal::Appeared(_)) if caller.may_make_anew() => Err(Error::not_found()),
            _ => Ok(node),
        }
    }

    /// Attributes of a record found by name: stored, being made by this caller, or just removed by it.
    async fn named_record_attr(&self, caller: &Caller, cell: &CellName, path: &TopoPath, form: Form) -> Result<Attr> {
        let node = Node::Record(cell.clone(), path.clone(), form);
        if let Some(draft) = self.own_draft(caller, self.inodes.number(&node)) {
            return Ok(self.draft_attr(&draft));
        }
        let snapshot = self.cell(cell)?.snapshot().await?;
        match snapshot.records.get(path) {
            Some(record) => Ok(self.shown_attr(cell, path, form, record)),
            None if self.recent.removal(caller, &node).is_some() => Ok(self.file_attr(0, self.mounted)),
            None => Err(Error::not_found()),
        }
    }

    /// The forms in which a record exists. What cannot be decoded is shown raw, whatever was asked for.
    pub(super) fn forms(&self, cell: &CellName, path: &TopoPath) -> impl Iterator<Item = Form> {
        let decodable = self.records.message(cell, path).is_some();
        let all = if decodable { self.options.forms.clone() } else { vec![Form::Raw] };
        all.into_iter()
    }

    /// The entries of a directory now.
    pub(super) async fn list(&self, node: &Node) -> Result<Vec<DirEntry>> {
        match node {
            Node::Root => {
                let dir = |cell: &Arc<Cell>| Node::Dir(cell.name.clone(), TopoPath::root());
                let cells = self.cells.all();
                Ok(cells.iter().map(|cell| DirEntry { name: cell.name.to_string(), node: dir(cell) }).collect())
            }
            Node::Control => {
                let entry =
                    |file: ControlFile| DirEntry { name: file.name().to_owned(), node: Node::ControlFile(file) };
                Ok(ControlFile::ALL.into_iter().map(entry).collect())
            }
            Node::Dir(cell, path) => {
                let connected = self.cell(cell)?;
                let snapshot = connected.snapshot().await?;
                Ok(self.entries(&connected, &snapshot, path))
            }
            Node::ControlFile(_) | Node::Record(..) | Node::Scratch(_) | Node::Lock(..) => {
                Err(Error::new(Kind::NotDirectory, "not a directory"))
            }
        }
    }

    fn entries(&self, connected: &Cell, snapshot: &Snapshot, dir: &TopoPath) -> Vec<DirEntry> {
        let cell = &connected.name;
        let mut entries = Vec::new();
        let mut names = std::collections::HashSet::new();
        let mut add = |name: String, node: Node| {
            if names.insert(name.clone()) {
                entries.push(DirEntry { name, node });
            }
        };
        if snapshot.records.contains_key(dir) {
            for form in self.listed_forms(cell, dir) {
                add(format!("{DATA}{}", form.suffix()), Node::Record(cell.clone(), dir.clone(), form));
            }
        }
        let stored = snapshot.entries(dir);
        let child = |name: &str| dir.join(name).ok();
        // What is stored under its own name comes first: a decoded form of the same name gives way.
        for entry in &stored {
            let path = entry.path.clone();
            if entry.is_directory {
                add(entry.name.clone(), Node::Dir(cell.clone(), path));
            } else if self.listed_forms(cell, &path).any(|form| form == Form::Raw)
                || self.shadows(cell, snapshot, &path)
            {
                add(entry.name.clone(), Node::Record(cell.clone(), path, Form::Raw));
            }
        }
        for entry in stored.iter().filter(|entry| !entry.is_directory) {
            let path = &entry.path;
            for form in self.listed_forms(cell, path).filter(|form| *form != Form::Raw) {
                add(format!("{}{}", entry.name, form.suffix()), Node::Record(cell.clone(), path.clone(), form));
            }
        }
        for (name, file) in self.overlay.entries(&(cell.clone(), dir.clone())) {
            let Some(path) = child(&name) else { continue };
            match file {
                Some(id) => add(name, Node::Scratch(id)),
                None => add(name, Node::Dir(cell.clone(), path)),
            }
        }
        // Elections and named locks exist by being locked.
        for locked in connected.locked_dirs(snapshot) {
            let Some(name) = locked.below(dir).and_then(|rest| rest.split('/').next()) else { continue };
            if let Some(path) = child(name).filter(|path| is_virtual(cell, path)) {
                add(name.to_owned(), Node::Dir(cell.clone(), path));
            }
        }
        // The last, so that `rm -r` comes to it when everything else is gone.
        if is_listed(cell, snapshot, dir) {
            add(LOCK.to_owned(), Node::Lock(cell.clone(), dir.clone()));
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
