//! The content of a mirror: the records of one cell as a persistent map, and the rules for merging reports into it.
//!
//! Three sources report the state of a record, and may overtake each other: the watch, bulk lists, and this mount's own
//! calls. Every report carries a revision, and an older report never replaces a newer one. The state remembers
//! deletions while an older report may still be in flight. There is one exception: a list that begins a new watch is
//! the truth, whatever was known before. The service may have been restored from a backup, and then its revisions begin
//! again at a lower number.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::backend::{Compared, Listing, Node, Revision, Role, Shown, Version};
use crate::name::TopoPath;

/// A record as the mirror knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The stored bytes.
    pub value: Bytes,
    /// Their version.
    pub version: Version,
    /// When the service wrote it, or when this mount first saw this version. Every new version has a later time.
    pub modified: SystemTime,
}

/// The records of a cell at one moment. Copying it costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Records by path.
    pub records: OrdMap<TopoPath, Record>,
    /// Locks and election candidates by path.
    pub locks: OrdMap<TopoPath, Node>,
    /// The newest revision seen.
    pub at: Revision,
}

impl Snapshot {
    /// Whether anything is stored below this directory.
    pub fn has_children(&self, dir: &TopoPath) -> bool {
        self.below(dir).next().is_some()
    }

    /// Everything below a directory, in order.
    pub fn below<'a>(&'a self, dir: &TopoPath) -> impl Iterator<Item = (&'a TopoPath, &'a Record)> {
        let end = if dir.is_root() { None } else { Some(dir.after_subtree()) };
        self.records
            .range(dir.clone()..)
            .skip_while({
                let dir = dir.clone();
                move |(path, _)| **path == dir
            })
            .take_while(move |(path, _)| end.as_ref().is_none_or(|end| *path < end))
    }

    /// What must happen to these records so that they become others, in the order of the paths.
    pub fn differences(&self, new: &Snapshot) -> Vec<Update> {
        let update = |item: DiffItem<'_, '_, TopoPath, Record>| {
            let (path, old, record) = match item {
                DiffItem::Add(path, record) => (path, None, Some(record)),
                DiffItem::Update { old: (path, old), new: (_, record) } => (path, Some(old), Some(record)),
                DiffItem::Remove(path, record) => (path, Some(record), None),
            };
            let at = record.map_or(new.at, |record| record.version.written);
            Update { path: path.clone(), old: old.cloned(), new: record.cloned(), at }
        };
        self.records.diff(&new.records).map(update).collect()
    }

    /// The entries of a directory. A name can be both a record and a directory.
    pub fn entries(&self, dir: &TopoPath) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut from = dir.clone();
        // Each step seeks past the subtree of the entry before, so the cost depends on the number of entries, not on
        // everything below.
        loop {
            let next = self.records.range(from.clone()..).find(|(path, _)| *path != dir);
            let Some((path, _)) = next else { break };
            let Some(rest) = path.below(dir) else { break };
            let (name, is_record) = match rest.split_once('/') {
                Some((name, _)) => (name, false),
                None => (rest, true),
            };
            // All who keep the entry share one name in memory.
            let child = if is_record { Ok(path.clone()) } else { dir.join(name) };
            let Ok(child) = child else { break };
            let is_directory = !is_record || self.has_children(&child);
            from = child.after_subtree();
            entries.push(Entry { name: name.to_owned(), path: child, is_record, is_directory });
        }
        entries
    }
}

impl Shown for Snapshot {
    fn version(&self, path: &TopoPath) -> Option<Version> {
        let record = self.records.get(path).map(|record| record.version);
        record.or_else(|| self.locks.get(path).map(|lock| lock.version))
    }

    fn count(&self) -> usize {
        self.records.len() + self.locks.len()
    }

    fn at(&self) -> Revision {
        self.at
    }

    fn each(&self, tell: &mut dyn FnMut(&TopoPath, Version)) {
        self.records.iter().for_each(|(path, record)| tell(path, record.version));
        self.locks.iter().for_each(|(path, lock)| tell(path, lock.version));
    }
}

/// Whether a map has anything below a directory.
pub fn has_below<V: Clone>(map: &OrdMap<TopoPath, V>, dir: &TopoPath) -> bool {
    let next = map.range(dir.clone()..).find(|(path, _)| *path != dir);
    next.is_some_and(|(path, _)| path.below(dir).is_some())
}

/// The names in a directory of a map, in order.
pub fn names_below<V: Clone>(map: &OrdMap<TopoPath, V>, dir: &TopoPath) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut from = dir.clone();
    // Seeks past the subtree of each name.
    while let Some((path, _)) = map.range(from.clone()..).find(|(path, _)| *path != dir) {
        let Some(name) = path.below(dir).and_then(|rest| rest.split('/').next()) else { break };
        let Ok(child) = dir.join(name) else { break };
        from = child.after_subtree();
        names.push(name.to_owned());
    }
    names
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: TopoPath,
    /// The name.
    pub name: String,
    /// Whether a record has this path.
    pub is_record: bool,
    /// Whether there are records below it.
    pub is_directory: bool,
}

/// Changes that are published together.
#[derive(Debug)]
pub struct Batch {
    /// The number of the batch; each mirror counts its own.
    pub number: u64,
    /// In the order in which they happened.
    pub updates: Vec<Update>,
}

/// What happened to a record.
#[derive(Debug, Clone)]
pub struct Update {
    /// Which.
    pub path: TopoPath,
    /// Before; `None` if it did not exist.
    pub old: Option<Record>,
    /// Now; `None` if it is gone.
    pub new: Option<Record>,
    /// When that happened, in the service's count. For what a list shows to be gone, it happened earlier.
    pub at: Revision,
}

impl Update {
    /// Applies the change to a private snapshot.
    pub fn apply(&self, snapshot: &mut Snapshot) {
        match &self.new {
            Some(record) => drop(snapshot.records.insert(self.path.clone(), record.clone())),
            None => drop(snapshot.records.remove(&self.path)),
        }
    }
}

/// A snapshot that can be changed.
#[derive(Debug, Default)]
pub(super) struct State {
    pub snapshot: Snapshot,
    /// When paths were deleted: an older report must not bring them back.
    deleted: HashMap<TopoPath, Revision>,
    /// A list has shown everything up to here: a record that is not in the snapshot was gone by then.
    complete: Revision,
    /// While a list is under way: the reports of this mount's own calls since its beginning. They may be newer than the
    /// list.
    own: Option<HashSet<TopoPath>>,
    /// Whether locks have come, gone or changed since the last reset.
    pub locks_changed: bool,
    /// Bytes of all records, with their paths.
    bytes: usize,
}

/// What a record counts.
fn size(path: &TopoPath, record: &Record) -> usize {
    path.as_str().len() + record.value.len()
}

/// Number of deletions to remember. One more, and all earlier ones are forgotten: a late report may then bring a record
/// back until the next comparison with a list. This needs as many deletions between two comparisons.
const DELETIONS: usize = 100_000;
/// Number of records that this mount's own calls may report while a list is under way. One more, and the list does not
/// count, and is requested again.
const OWN: usize = 100_000;

impl State {
    /// A state that begins with the snapshot.
    pub fn of(shown: Snapshot) -> Self {
        let bytes = shown.records.iter().map(|(path, record)| size(path, record)).sum();
        Self { snapshot: shown, locks_changed: true, bytes, ..Self::default() }
    }

    /// Bytes of all records, with their paths.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn put_record(&mut self, path: &TopoPath, record: Record) {
        self.bytes += size(path, &record);
        if let Some(old) = self.snapshot.records.insert(path.clone(), record) {
            self.bytes = self.bytes.saturating_sub(size(path, &old));
        }
    }

    fn take_record(&mut self, path: &TopoPath) -> Option<Record> {
        let old = self.snapshot.records.remove(path)?;
        self.bytes = self.bytes.saturating_sub(size(path, &old));
        Some(old)
    }

    /// Merges one node. Returns the change, if the report is newer than the state.
    pub fn put(&mut self, node: Node, now: SystemTime) -> Option<Update> {
        let Node { path, value, version, role, modified } = node;
        let known = self.deleted.get(&path).is_some_and(|at| *at >= version.written)
            || self.snapshot.records.get(&path).is_some_and(|r| r.version.written >= version.written)
            || self.snapshot.locks.get(&path).is_some_and(|lock| lock.version.written >= version.written);
        if known {
            return None;
        }
        self.snapshot.at = self.snapshot.at.max(version.written);
        self.deleted.remove(&path);
        self.insert(Node { path, value, version, role, modified }, now)
    }

    /// Merges the report of one of this mount's own calls about a node. The answer may be so late that the node has
    /// been deleted since, and that a list has replaced the memory of deletions.
    pub fn put_own(&mut self, node: Node, now: SystemTime) -> Option<Update> {
        let shown = self.snapshot.records.contains_key(&node.path) || self.snapshot.locks.contains_key(&node.path);
        if !shown && node.version.written <= self.complete {
            return None;
        }
        self.put(node, now)
    }

    fn insert(&mut self, node: Node, now: SystemTime) -> Option<Update> {
        let Node { path, value, version, role, modified } = node;
        let old = self.snapshot.records.get(&path).cloned();
        let seen = modified.unwrap_or(now);
        let modified = old.as_ref().map_or(seen, |old| seen.max(old.modified + Duration::from_nanos(1)));
        let record = Record { value: value.clone(), version, modified };
        match role {
            Role::Lock(_) => {
                let lock = Node { path: path.clone(), value, version, role, modified: Some(seen) };
                self.snapshot.locks.insert(path.clone(), lock);
                self.locks_changed = true;
                let old = self.take_record(&path)?;
                Some(Update { path, old: Some(old), new: None, at: version.written })
            }
            Role::Record => {
                self.remove_lock(&path);
                self.put_record(&path, record.clone());
                Some(Update { path, old, new: Some(record), at: version.written })
            }
        }
    }

    /// Merges a deletion that happened at the given revision.
    pub fn delete(&mut self, path: &TopoPath, at: Revision) -> Option<Update> {
        self.snapshot.at = self.snapshot.at.max(at);
        let newer = |version: &Version| version.written > at;
        if self.snapshot.records.get(path).is_some_and(|record| newer(&record.version))
            || self.snapshot.locks.get(path).is_some_and(|lock| newer(&lock.version))
        {
            return None;
        }
        if self.deleted.len() >= DELETIONS {
            self.deleted.clear();
        }
        self.deleted.insert(path.clone(), at);
        self.remove_lock(path);
        let old = self.take_record(path)?;
        Some(Update { path: path.clone(), old: Some(old), new: None, at })
    }

    fn remove_lock(&mut self, path: &TopoPath) {
        self.locks_changed |= self.snapshot.locks.remove(path).is_some();
    }

    /// Merges a comparison. Its differences replace the state, unless a newer report has overtaken them.
    pub fn reconcile(&mut self, compared: Compared, now: SystemTime) -> Vec<Update> {
        let (listing, gone) = match compared {
            Compared::Whole(listing) => {
                let gone = self.not_in(&listing);
                (listing, gone)
            }
            Compared::Differences { changed, gone } => (changed, gone),
        };
        let mut updates: Vec<Update> = gone.iter().filter_map(|path| self.delete(path, listing.at)).collect();
        updates.extend(listing.nodes.into_iter().filter_map(|node| self.put(node, now)));
        self.snapshot.at = self.snapshot.at.max(listing.at);
        updates
    }

    /// What is shown, was so before a list, and is not in it.
    fn not_in(&self, listing: &Listing) -> Vec<TopoPath> {
        let listed: HashSet<&TopoPath> = listing.nodes.iter().map(|node| &node.path).collect();
        let mut gone = Vec::new();
        self.snapshot.each(&mut |path, version| {
            if version.written <= listing.at && !listed.contains(path) {
                gone.push(path.clone());
            }
        });
        gone
    }

    /// A request for a list begins.
    pub fn begin_list(&mut self) {
        self.own = Some(HashSet::new());
    }

    /// Notes that one of this mount's own calls has reported a record.
    pub fn note_own(&mut self, path: &TopoPath) {
        if let Some(own) = &mut self.own {
            own.insert(path.clone());
            if own.len() > OWN {
                self.own = None;
            }
        }
    }

    /// Whether a list is under way that counts.
    #[cfg(test)]
    pub fn counts_own(&self) -> bool {
        self.own.is_some()
    }

    /// Merges a list that begins a new watch: it is the truth, unless our own calls have reported something newer.
    /// `None` if they have reported too much: the list then changes nothing, and must be requested again.
    /// `counts` says whether anybody wants to know the changes: a first list is not news, and may be large.
    pub fn restart(&mut self, listing: Listing, counts: bool, now: SystemTime) -> Option<Vec<Update>> {
        let own = self.own.take()?;
        let mut updates = Vec::new();
        for path in self.vanished(&listing, &own) {
            self.remove_lock(&path);
            let old = self.take_record(&path);
            updates.extend(old.map(|old| Update { path, old: Some(old), new: None, at: listing.at }));
        }
        self.deleted.retain(|path, _| own.contains(path));
        for node in listing.nodes {
            let same = |record: &Record| record.version == node.version && record.value == node.value;
            let shown = match node.role {
                Role::Record => self.snapshot.records.get(&node.path).is_some_and(same),
                Role::Lock(_) => self.snapshot.locks.get(&node.path).is_some_and(|lock| {
                    (lock.version, &lock.value, lock.role) == (node.version, &node.value, node.role)
                }),
            };
            let update = match own.contains(&node.path) {
                true => self.put(node, now),
                false if shown => None,
                false => self.insert(node, now),
            };
            updates.extend(update.filter(|_| counts));
        }
        self.snapshot.at = listing.at;
        self.complete = listing.at;
        Some(updates)
    }

    /// What a list that begins a watch shows to be gone.
    fn vanished(&self, listing: &Listing, own: &HashSet<TopoPath>) -> Vec<TopoPath> {
        if self.snapshot.records.is_empty() && self.snapshot.locks.is_empty() {
            return Vec::new();
        }
        let listed: HashSet<&TopoPath> = listing.nodes.iter().map(|node| &node.path).collect();
        let records = self.snapshot.records.iter().map(|(path, record)| (path, record.version));
        let locks = self.snapshot.locks.iter().map(|(path, lock)| (path, lock.version));
        let newer = |path: &TopoPath, version: Version| own.contains(path) && version.written > listing.at;
        records
            .chain(locks)
            .filter(|(path, version)| !listed.contains(path) && !newer(path, *version))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// Merges the differences that begin a new watch of the same history.
    pub fn resume(&mut self, changed: Listing, gone: Vec<TopoPath>, now: SystemTime) -> Vec<Update> {
        self.own = None;
        let at = changed.at;
        let updates = self.reconcile(Compared::Differences { changed, gone }, now);
        self.forget_deletions(at);
        updates
    }

    /// Forgets deletions up to a revision that a list has shown and that the watch has passed.
    pub fn forget_deletions(&mut self, passed: Revision) {
        self.deleted.retain(|_, at| *at > passed);
        self.complete = self.complete.max(passed);
    }
}

#[cfg(test)]
mod tests;
