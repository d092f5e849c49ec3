//! The simple reference: what a program sees, stores and is told.

use std::collections::{BTreeMap, BTreeSet};

use topofs::error::Kind;

use crate::words::*;

/// The reference.
#[derive(Debug, Default)]
pub struct Model {
    pub revision: u64,
    /// Content, and the revision that wrote it.
    pub records: BTreeMap<Name, (Vec<u8>, u64)>,
    /// What the mirror still shows where it has not heard of a change.
    pub unheard: BTreeMap<Name, Option<(Vec<u8>, u64)>>,
    /// Content, and the revisions of the records that were shown when the file was made.
    pub scratch: BTreeMap<Name, (Vec<u8>, BTreeMap<Name, u64>)>,
    /// What our program has last read or written of each record.
    pub known: BTreeMap<Name, u64>,
    /// Those of them that it has read.
    pub has_read: BTreeSet<Name>,
    /// Records of which a save of our program was refused.
    pub unsaved: BTreeSet<Name>,
    /// Records that our program has renamed to a backup: the version.
    pub moved: BTreeMap<Name, u64>,
}

impl Model {
    /// A record as the mirror shows it.
    pub fn shown(&self, name: Name) -> Option<&(Vec<u8>, u64)> {
        self.unheard.get(name).map_or_else(|| self.records.get(name), Option::as_ref)
    }

    pub fn visible(&self, name: Name) -> Option<&Vec<u8>> {
        match is_record(name) {
            true if self.moved.contains_key(name) => None,
            true => self.shown(name).map(|(content, _)| content),
            false => self.scratch.get(name).map(|(content, _)| content),
        }
    }

    /// The service is asked for a record: what it says, the mirror shows.
    pub fn fetch(&mut self, name: Name) {
        self.unheard.remove(name);
    }

    /// Whether what the mirror shows of a record is what is stored: a change of what it shows is refused otherwise.
    pub fn is_outdated(&self, name: Name) -> bool {
        self.shown(name) != self.records.get(name)
    }

    /// What a program hears when it removes a name that is outdated: the kernel tries again, and then the mirror has
    /// caught up.
    pub fn refused(&self, name: Name) -> Kind {
        if self.records.contains_key(name) { Kind::Conflict } else { Kind::NotFound }
    }

    pub fn all_shown(&self) -> BTreeMap<Name, u64> {
        RECORDS.iter().filter_map(|name| Some((*name, self.shown(name)?.1))).collect()
    }

    pub fn store(&mut self, name: Name, content: Vec<u8>) {
        if self.records.get(name).is_none_or(|(old, _)| *old != content) {
            self.revision += 1;
            self.records.insert(name, (content, self.revision));
        }
    }

    pub fn stored_by_us(&mut self, name: Name, content: Vec<u8>) {
        self.store(name, content);
        self.known.insert(name, self.records[name].1);
        self.moved.remove(name);
        self.unsaved.remove(name);
    }

    /// Whether our program has read a record that was changed since, as far as the mirror shows. It hears so once.
    pub fn hears_of_change(&mut self, name: Name) -> bool {
        let written = self.shown(name).map(|(_, written)| written);
        let hears = self.has_read.contains(name) && written.is_some() && self.known.get(name) != written;
        if hears {
            self.forget(name);
        }
        hears
    }

    /// What our program has known of a record does not matter any more.
    pub fn forget(&mut self, name: Name) {
        self.known.remove(name);
        self.has_read.remove(name);
    }

    pub fn remote(&mut self, name: Name, remote: Remote) {
        match remote {
            Remote::Put(content) => {
                self.revision += 1;
                self.records.insert(name, (bytes(content, 2), self.revision));
            }
            Remote::Delete if self.records.remove(name).is_some() => self.revision += 1,
            Remote::Delete => {}
        }
    }

    pub fn read(&mut self, name: Name) -> Outcome<Vec<u8>> {
        let content = self.visible(name).cloned().ok_or(Kind::NotFound)?;
        if let Some((_, written)) = self.shown(name).filter(|_| is_record(name)) {
            self.known.insert(name, *written);
            self.has_read.insert(name);
        }
        Ok(content)
    }

    pub fn save(&mut self, name: Name, append: bool, added: Vec<u8>, meanwhile: Option<Remote>) -> Outcome<()> {
        if !is_record(name) {
            let shown = self.all_shown();
            let (content, then) = self.scratch.entry(name).or_insert((Vec::new(), shown.clone()));
            if !append {
                content.clear();
                *then = shown;
            }
            content.extend(added);
            return Ok(());
        }
        let was_shown = self.visible(name).is_some();
        self.fetch(name);
        if was_shown && !self.records.contains_key(name) {
            return Err(Kind::NotFound);
        }
        if let Some(version) = self.moved.get(name)
            && self.records.get(name).is_some_and(|(_, written)| written != version)
        {
            // It knows now.
            self.moved.insert(name, self.records[name].1);
            return Err(Kind::Conflict);
        }
        let base = self.records.get(name).map(|(_, written)| *written);
        let is_backed_up = self.moved.contains_key(name);
        if !is_backed_up && self.hears_of_change(name) {
            return Err(Kind::Conflict);
        }
        let mut content = match self.visible(name) {
            Some(old) if append => old.clone(),
            _ => Vec::new(),
        };
        // Opened for appending and closed without a write: nothing is done.
        let untouched = append && self.visible(name).is_some() && added.is_empty();
        // The name is an ordinary one again as soon as the file is open.
        self.moved.remove(name);
        content.extend(added);
        if let Some(remote) = meanwhile {
            self.remote(name, remote);
        }
        if untouched {
            return Ok(());
        }
        if self.records.get(name).map(|(_, written)| *written) != base {
            self.unsaved.insert(name);
            return Err(Kind::Conflict);
        }
        self.stored_by_us(name, content);
        Ok(())
    }

    pub fn unlink(&mut self, name: Name) -> Outcome<()> {
        self.visible(name).ok_or(Kind::NotFound)?;
        if self.unsaved.remove(name) {
            // It removes what its own refused save has left.
            return Ok(());
        }
        if is_record(name) && (self.hears_of_change(name) || self.is_outdated(name)) {
            return Err(self.refused(name));
        }
        if is_record(name) {
            self.revision += 1;
            self.records.remove(name);
            self.forget(name);
        } else {
            self.scratch.remove(name);
        }
        Ok(())
    }

    pub fn rename(&mut self, from: Name, to: Name) -> Outcome<()> {
        let content = self.visible(from).cloned().ok_or(Kind::NotFound)?;
        match (is_record(from), is_record(to)) {
            _ if from == to => {}
            (false, false) => drop(self.scratch.remove(from).map(|file| self.scratch.insert(to, file))),
            (false, true) => {
                self.fetch(to);
                let then = self.scratch[from].1.get(to);
                let written = self.records.get(to).map(|(_, written)| *written);
                let known = self.known.get(to).filter(|_| self.has_read.contains(to));
                let conflict = match (written, self.moved.get(to), known) {
                    (Some(written), Some(version), _) => written != *version,
                    (Some(written), None, Some(known)) => written != *known,
                    (Some(written), None, None) => then != Some(&written),
                    (None, Some(_), _) => false,
                    (None, None, known) => known.is_some(),
                };
                if conflict {
                    // It knows now.
                    self.forget(to);
                    if let (Some(version), Some(written)) = (self.moved.get_mut(to), written) {
                        *version = written;
                    }
                    return Err(Kind::Conflict);
                }
                self.scratch.remove(from);
                self.stored_by_us(to, content);
            }
            (true, true) if self.hears_of_change(to) => return Err(self.refused(from)),
            (true, true) if self.is_outdated(from) || self.is_outdated(to) => return Err(self.refused(from)),
            (true, true) => {
                self.revision += 1;
                let moved = (content, self.revision);
                // What does not differ makes no version.
                let old = self.records.get(to).filter(|(old, _)| *old == moved.0).cloned();
                let moved = old.unwrap_or(moved);
                self.records.remove(from);
                self.forget(from);
                self.unsaved.remove(to);
                self.known.insert(to, moved.1);
                self.records.insert(to, moved);
                self.moved.remove(to);
            }
            (true, false) if self.hears_of_change(from) => return Err(self.refused(from)),
            (true, false) => {
                self.moved.insert(from, self.shown(from).map_or(0, |(_, written)| *written));
                self.scratch.insert(to, (content, self.all_shown()));
            }
        }
        Ok(())
    }

    pub fn apply(&mut self, op: &Op) -> Outcome<Vec<u8>> {
        let nothing = |outcome: Outcome<()>| outcome.map(|()| Vec::new());
        match *op {
            Op::Read(name) => self.read(name),
            Op::Save { name, append, content, length, meanwhile } => {
                nothing(self.save(name, append, bytes(content, length), meanwhile))
            }
            Op::Make { name, content } => match self.visible(name) {
                Some(_) => Err(Kind::Exists),
                None => {
                    self.fetch(name);
                    match self.visible(name) {
                        Some(_) if is_record(name) => Err(Kind::Exists),
                        _ => nothing(self.save(name, false, bytes(content, 2), None)),
                    }
                }
            },
            Op::Truncate { name, size } => {
                self.visible(name).ok_or(Kind::NotFound)?;
                self.fetch(name);
                let mut new = self.visible(name).cloned().ok_or(Kind::NotFound)?;
                if is_record(name) && self.hears_of_change(name) {
                    return Err(self.refused(name));
                }
                new.resize(size, 0);
                if is_record(name) {
                    self.stored_by_us(name, new);
                } else if let Some((content, _)) = self.scratch.get_mut(name) {
                    *content = new;
                }
                Ok(Vec::new())
            }
            Op::Unlink(name) => nothing(self.unlink(name)),
            Op::Rename(from, to) => nothing(self.rename(from, to)),
            Op::Remote(name, remote) => {
                self.remote(name, remote);
                Ok(Vec::new())
            }
            Op::Unheard(name, remote) => {
                let shown = self.shown(name).cloned();
                self.unheard.insert(name, shown);
                self.remote(name, remote);
                Ok(Vec::new())
            }
        }
    }

    pub fn listing(&self) -> BTreeMap<String, Vec<u8>> {
        let records = self.records.iter().map(|(name, (content, _))| (name, content));
        let scratch = self.scratch.iter().map(|(name, (content, _))| (name, content));
        records.chain(scratch).map(|(name, content)| ((*name).to_owned(), content.clone())).collect()
    }
}
