//! What a mirror holds: the records of one cell as a persistent map, and the rules by which news is merged into it.
//!
//! News comes from three sides that may overtake each other: the watch, bulk lists, and this mount's own calls. Every piece
//! of news carries a revision, and an older piece never replaces a newer one. Deletions are remembered while an older
//! piece may still be on its way. One exception: a list that begins a new watch is the truth, whatever was known before,
//! because the service may have been restored from a backup, and then its revisions begin again lower.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use imbl::OrdMap;

use crate::backend::{Listing, Node, Revision, Role, Version};
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

    /// The entries of a directory with what they are. A name can be both record and directory.
    pub fn entries(&self, dir: &TopoPath) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut from = dir.clone();
        // Each step seeks past the subtree of the entry before, so that the cost is that of the entries, not of all below.
        loop {
            let next = self.records.range(from.clone()..).find(|(path, _)| *path != dir);
            let Some((path, _)) = next else { break };
            let Some(rest) = path.below(dir) else { break };
            let (name, is_record) = match rest.split_once('/') {
                Some((name, _)) => (name, false),
                None => (rest, true),
            };
            // One name in memory, for whoever keeps the entry.
            let child = if is_record { Ok(path.clone()) } else { dir.join(name) };
            let Ok(child) = child else { break };
            let is_directory = !is_record || self.has_children(&child);
            from = child.after_subtree();
            entries.push(Entry { name: name.to_owned(), path: child, is_record, is_directory });
        }
        entries
    }
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: TopoPath,
    /// The name.
    pub name: String,
    /// A record is stored under this very path.
    pub is_record: bool,
    /// Records are stored below it.
    pub is_directory: bool,
}

/// Changes that were published together.
#[derive(Debug)]
pub struct News {
    /// Counted per mirror.
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
}

impl Update {
    /// Makes the change in a snapshot of one's own.
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
    /// When paths were deleted: news from before must not bring them back.
    deleted: HashMap<TopoPath, Revision>,
    /// What this mount's own calls have told of since a list was begun, while one is: it may be newer than the list.
    own: Option<HashSet<TopoPath>>,
    /// Locks have come, gone or changed since this was last looked at.
    pub locks_changed: bool,
}

/// Deletions remembered at most. Reached only when tens of thousands of records are deleted while a list is under way.
const DELETIONS: usize = 100_000;

impl State {
    /// Merges one node. Returns what changed, if it was news.
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
                let old = self.snapshot.records.remove(&path)?;
                Some(Update { path, old: Some(old), new: None })
            }
            Role::Record => {
                self.remove_lock(&path);
                self.snapshot.records.insert(path.clone(), record.clone());
                Some(Update { path, old, new: Some(record) })
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
        let old = self.snapshot.records.remove(path)?;
        Some(Update { path: path.clone(), old: Some(old), new: None })
    }

    fn remove_lock(&mut self, path: &TopoPath) {
        self.locks_changed |= self.snapshot.locks.remove(path).is_some();
    }

    /// Merges a bulk list: what it shows differently and is not overtaken by newer news is taken over.
    pub fn reconcile(&mut self, listing: Listing, now: SystemTime) -> Vec<Update> {
        let listed: HashSet<TopoPath> = listing.nodes.iter().map(|node| node.path.clone()).collect();
        let records = self.snapshot.records.iter().map(|(path, record)| (path, record.version));
        let locks = self.snapshot.locks.iter().map(|(path, lock)| (path, lock.version));
        let vanished: Vec<TopoPath> = records
            .chain(locks)
            .filter(|(path, version)| version.written <= listing.at && !listed.contains(*path))
            .map(|(path, _)| path.clone())
            .collect();
        let mut updates: Vec<Update> = vanished.iter().filter_map(|path| self.delete(path, listing.at)).collect();
        updates.extend(listing.nodes.into_iter().filter_map(|node| self.put(node, now)));
        self.snapshot.at = self.snapshot.at.max(listing.at);
        updates
    }

    /// A list is asked for.
    pub fn begin_list(&mut self) {
        self.own = Some(HashSet::new());
    }

    /// This mount's own calls have told of a record.
    pub fn note_own(&mut self, path: &TopoPath) {
        if let Some(own) = &mut self.own {
            own.insert(path.clone());
        }
    }

    /// Takes over a list that begins a new watch: what it shows is so, except where our own calls have told more since.
    pub fn restart(&mut self, listing: Listing, now: SystemTime) -> Vec<Update> {
        let own = self.own.take().unwrap_or_default();
        let listed: HashSet<TopoPath> = listing.nodes.iter().map(|node| node.path.clone()).collect();
        let known = self.snapshot.records.keys().chain(self.snapshot.locks.keys());
        let vanished: Vec<TopoPath> =
            known.filter(|path| !listed.contains(*path) && !own.contains(*path)).cloned().collect();
        let mut updates = Vec::new();
        for path in vanished {
            self.remove_lock(&path);
            let old = self.snapshot.records.remove(&path);
            updates.extend(old.map(|old| Update { path, old: Some(old), new: None }));
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
            if own.contains(&node.path) {
                updates.extend(self.put(node, now));
            } else if !shown {
                updates.extend(self.insert(node, now));
            }
        }
        self.snapshot.at = listing.at;
        updates
    }

    /// Forgets deletions up to a revision that everything under way is known to have passed.
    pub fn forget_deletions(&mut self, passed: Revision) {
        self.deleted.retain(|_, at| *at > passed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, value: &str, written: u64) -> Node {
        Node {
            path: TopoPath::parse(path).unwrap(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            version: Version { number: written, written: Revision(written), created: Revision(1) },
            role: Role::Record,
            modified: None,
        }
    }

    #[test]
    fn what_is_below_a_directory_is_neither_itself_nor_its_neighbours() {
        let mut state = State::default();
        // The last one is the first name that comes after all that is below foo.
        for name in ["foo", "foo/a", "foo/a/b", "foo-bar", "foo.x/c", "foo\u{1}"] {
            state.put(node(name, "x", 1), SystemTime::now());
        }
        let (snapshot, path) = (state.snapshot, |text: &str| TopoPath::parse(text).unwrap());
        let below = |dir: &TopoPath| snapshot.below(dir).map(|(path, _)| path.to_string()).collect::<Vec<_>>();
        assert_eq!(below(&path("foo")), ["foo/a", "foo/a/b"]);
        assert_eq!(below(&TopoPath::root()).len(), 6);
        for (dir, has_children) in [("foo", true), ("foo/a", true), ("foo.x", true), ("foo-bar", false), ("fo", false)]
        {
            assert_eq!(snapshot.has_children(&path(dir)), has_children, "{dir}");
        }
    }

    #[test]
    fn older_news_never_replaces_newer() {
        let mut state = State::default();
        let now = SystemTime::now();
        assert!(state.put(node("a", "2", 2), now).is_some());
        assert!(state.put(node("a", "1", 1), now).is_none());
        assert!(state.delete(&TopoPath::parse("a").unwrap(), Revision(1)).is_none());
        assert!(state.delete(&TopoPath::parse("a").unwrap(), Revision(3)).is_some());
        assert!(state.put(node("a", "2", 2), now).is_none(), "a deleted record must not come back");
        assert!(state.put(node("a", "4", 4), now).is_some());
    }

    #[test]
    fn a_list_that_was_overtaken_changes_nothing() {
        let mut state = State::default();
        let now = SystemTime::now();
        state.put(node("kept", "new", 9), now);
        state.put(node("gone", "x", 3), now);
        state.delete(&TopoPath::parse("gone").unwrap(), Revision(8));
        let nodes = vec![node("kept", "old", 2), node("gone", "x", 3)];
        assert!(state.reconcile(Listing { nodes, at: Revision(5), skipped: 0 }, now).is_empty());
        let updates = state.reconcile(Listing { nodes: vec![], at: Revision(10), skipped: 0 }, now);
        assert_eq!(updates.len(), 1);
        assert!(state.snapshot.records.is_empty());
    }

    #[test]
    fn a_restored_service_is_believed() {
        let mut state = State::default();
        let now = SystemTime::now();
        state.put(node("a", "newer", 9), now);
        state.put(node("gone", "x", 8), now);
        state.delete(&TopoPath::parse("back").unwrap(), Revision(7));
        state.begin_list();
        let nodes = vec![node("a", "restored", 2), node("back", "restored", 3)];
        let updates = state.restart(Listing { nodes, at: Revision(5), skipped: 0 }, now);
        assert_eq!(updates.len(), 3);
        let shown: Vec<_> =
            state.snapshot.records.iter().map(|(path, record)| (path.as_str(), &record.value[..])).collect();
        assert_eq!(shown, [("a", &b"restored"[..]), ("back", b"restored")]);
        assert!(state.put(node("a", "after", 6), now).is_some());
    }

    #[test]
    fn an_own_save_during_a_list_stands() {
        let mut state = State::default();
        let now = SystemTime::now();
        state.begin_list();
        state.put(node("mine", "saved", 9), now);
        state.note_own(&TopoPath::parse("mine").unwrap());
        state.restart(Listing { nodes: vec![node("mine", "old", 2)], at: Revision(8), skipped: 0 }, now);
        assert_eq!(state.snapshot.records[&TopoPath::parse("mine").unwrap()].value, "saved");
    }

    #[test]
    fn every_version_has_a_later_time() {
        let mut state = State::default();
        let now = SystemTime::now();
        state.put(node("a", "1", 1), now);
        let update = state.put(node("a", "2", 2), now).unwrap();
        assert!(update.new.unwrap().modified > update.old.unwrap().modified);
    }

    #[test]
    fn entries_seek_past_subtrees() {
        let mut state = State::default();
        for (i, path) in
            ["foo/Keyspace", "foo/shards/0/Shard", "foo-bar/Keyspace", "top", "top/below"].iter().enumerate()
        {
            state.put(node(path, "", i as u64 + 1), SystemTime::now());
        }
        let names: Vec<_> = state
            .snapshot
            .entries(&TopoPath::root())
            .into_iter()
            .map(|e| (e.name, e.is_record, e.is_directory))
            .collect();
        assert_eq!(
            names,
            [("foo".to_owned(), false, true), ("foo-bar".to_owned(), false, true), ("top".to_owned(), true, true)]
        );
        let foo = TopoPath::parse("foo").unwrap();
        assert_eq!(state.snapshot.entries(&foo).len(), 2);
        assert_eq!(state.snapshot.below(&foo).count(), 2);
    }
}
