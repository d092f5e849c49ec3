//! The inode table: which number stands for which node, how often the kernel knows it, and what it has been told of it. Owns
//! nothing else.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::FileId;
use crate::mirror::Record;
use crate::name::{CellName, CellPath, DATA_FILE, LOCK_FILE, TopoPath};

/// The number that the kernel gives to the root.
pub const ROOT: u64 = 1;
/// The number of the global topology's directory: the smallest, since `cp` and `tar` walk a directory in the order of inode
/// numbers, and a copy of a whole tree must make the CellInfo records before it comes to the cells.
const GLOBAL: u64 = 2;

/// Numbers and nodes. A node's number is a hash of what it stands for, so that it is the same when the kernel has
/// forgotten the node and asks again (`tar`, `find` and `rsync` compare numbers over time).
#[derive(Debug)]
pub struct Inodes {
    table: Mutex<Table>,
    /// Told when a file's content has been given to the kernel.
    given: Condvar,
}

#[derive(Debug)]
struct Table {
    by_number: HashMap<u64, Slot>,
    /// Nodes that have another number than their hash.
    exceptions: HashMap<FileId, u64>,
    /// Files whose content is being given to the kernel.
    giving: Vec<u64>,
}

#[derive(Debug)]
struct Slot {
    node: FileId,
    lookups: u64,
    /// The name that led here leads to another inode now.
    replaced: bool,
    /// What the kernel was told the attributes of last.
    told: Option<Told>,
    /// The kernel knew nothing of it when it was to drop it: an answer may be on its way there.
    unknown: bool,
    /// The state whose pages the kernel may hold: no others.
    pages: Option<State>,
}

/// A record whose attributes the kernel was told: there is one for every file that it knows.
#[derive(Debug, Clone)]
pub(super) struct Told {
    state: State,
    /// A later state of the record has a later time.
    modified: SystemTime,
    /// The stored bytes.
    pub value: Bytes,
    /// The kernel has been made to ask again since, or is about to be.
    pub let_go: bool,
}

/// Names one state of a record, in few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(NonZeroU64);

impl State {
    /// The state of a record. Versions may come again when a service is restored; times do not.
    pub fn of(record: &Record) -> Self {
        let mut hasher = DefaultHasher::new();
        (record.version.number, record.version.written.0, record.version.created.0).hash(&mut hasher);
        record.modified.hash(&mut hasher);
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }
}

impl Default for Inodes {
    fn default() -> Self {
        let root = Slot { lookups: 1, ..Slot::new(FileId::Root) };
        let table = Table {
            by_number: HashMap::from([(ROOT, root)]),
            exceptions: HashMap::from([(FileId::Root, ROOT)]),
            giving: Vec::new(),
        };
        Self { table: Mutex::new(table), given: Condvar::new() }
    }
}

impl Slot {
    fn new(node: FileId) -> Self {
        Self { node, lookups: 0, replaced: false, told: None, unknown: false, pages: None }
    }
}

fn natural_number(node: &FileId) -> u64 {
    if matches!(node, FileId::Dir(CellPath { cell, path }) if cell.is_global() && path.is_root()) {
        return GLOBAL;
    }
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    // 0 means "no inode".
    match hasher.finish() {
        number if number <= GLOBAL => GLOBAL + 1,
        number => number,
    }
}

impl Table {
    fn number(&self, node: &FileId) -> u64 {
        if let Some(number) = self.exceptions.get(node) {
            return *number;
        }
        let mut number = natural_number(node);
        // A number that something else has is passed over.
        while self.by_number.get(&number).is_some_and(|slot| slot.replaced || slot.node != *node) {
            number = number.wrapping_add(1).max(GLOBAL + 1);
        }
        number
    }

    fn known(&self, node: &FileId) -> Option<u64> {
        let number = self.number(node);
        self.by_number.contains_key(&number).then_some(number)
    }

    fn set_number(&mut self, node: &FileId, number: u64) {
        if number == natural_number(node) {
            self.exceptions.remove(node);
        } else {
            self.exceptions.insert(node.clone(), number);
        }
    }

    fn retire(&mut self, node: &FileId) {
        if let Some(number) = self.known(node)
            && let Some(slot) = self.by_number.get_mut(&number)
        {
            slot.replaced = true;
            self.exceptions.remove(node);
        }
    }
}

impl Inodes {
    /// The number of a node, without the kernel's knowing it.
    pub fn number(&self, node: &FileId) -> u64 {
        self.table.lock().number(node)
    }

    /// The number of a node that is told to the kernel: counts one lookup.
    pub fn told(&self, node: &FileId) -> u64 {
        let mut table = self.table.lock();
        let number = table.number(node);
        if let Some(slot) = table.by_number.get_mut(&number) {
            slot.lookups += 1;
        } else {
            table.set_number(node, number);
            table.by_number.insert(number, Slot { lookups: 1, ..Slot::new(node.clone()) });
        }
        number
    }

    /// The kernel forgets a number of lookups.
    pub fn forget(&self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        let mut table = self.table.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups == 0
            && let Some(slot) = table.by_number.remove(&number)
            && table.exceptions.get(&slot.node) == Some(&number)
        {
            table.exceptions.remove(&slot.node);
        }
    }

    /// A directory is removed. The kernel takes its inode for dead as long as anybody has something open below it, so what is made
    /// of the same name is another inode.
    pub fn retire(&self, node: &FileId) {
        self.table.lock().retire(node);
    }

    /// A name has been renamed: the kernel goes on with the inode that it had, under the other name. What had that name before
    /// is another inode.
    pub fn renamed(&self, from: &FileId, to: &FileId) {
        let mut table = self.table.lock();
        let Some(number) = table.known(from).filter(|_| from != to) else { return };
        table.retire(to);
        table.exceptions.remove(from);
        if let Some(slot) = table.by_number.get_mut(&number) {
            *slot = Slot { lookups: slot.lookups, ..Slot::new(to.clone()) };
            table.set_number(to, number);
        }
    }

    /// What a number stands for, if the kernel knows it.
    pub fn node(&self, number: u64) -> Option<FileId> {
        self.table.lock().by_number.get(&number).map(|slot| slot.node.clone())
    }

    /// The number of a node that the kernel knows.
    pub fn known(&self, node: &FileId) -> Option<u64> {
        self.table.lock().known(node)
    }

    /// All numbers of a cell that the kernel knows.
    pub fn of_cell(&self, cell: &CellName) -> Vec<u64> {
        let table = self.table.lock();
        let numbers = table.by_number.iter().filter(|(_, slot)| match &slot.node {
            FileId::Dir(CellPath { cell: of, .. })
            | FileId::Record(CellPath { cell: of, .. }, _)
            | FileId::Lock(CellPath { cell: of, .. }) => of == cell,
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => false,
        });
        numbers.map(|(number, _)| *number).collect()
    }

    /// All numbers that the kernel knows.
    pub fn all(&self) -> Vec<u64> {
        self.table.lock().by_number.keys().copied().collect()
    }

    /// How many inodes the kernel knows.
    pub fn count(&self) -> usize {
        self.table.lock().by_number.len()
    }

    /// The names that the kernel may know in a directory.
    pub(super) fn names_in(&self, dir: u64) -> Vec<String> {
        let table = self.table.lock();
        let Some(dir) = table.by_number.get(&dir).map(|slot| &slot.node) else { return Vec::new() };
        let is_in = |cell: &CellName, path: &TopoPath| match (dir, path.parent()) {
            (FileId::Root, None) => true,
            (FileId::Dir(CellPath { cell: of, path: dir }), Some(parent)) => of == cell && *dir == parent,
            _ => false,
        };
        let is_dir = |cell: &CellName, path: &TopoPath| matches!(dir, FileId::Dir(CellPath { cell: of, path: dir }) if of == cell && dir == path);
        let names = table.by_number.values().filter_map(|slot| match &slot.node {
            FileId::Dir(CellPath { cell, path }) if is_in(cell, path) => {
                Some(if path.is_root() { cell.to_string() } else { path.name().to_owned() })
            }
            FileId::Record(CellPath { cell, path }, form) if is_dir(cell, path) => {
                Some(format!("{DATA_FILE}{}", form.suffix()))
            }
            FileId::Record(CellPath { cell, path }, form) if is_in(cell, path) => {
                Some(format!("{}{}", path.name(), form.suffix()))
            }
            FileId::Lock(CellPath { cell, path }) if is_dir(cell, path) => Some(LOCK_FILE.to_owned()),
            _ => None,
        });
        names.collect()
    }

    /// The kernel is told the attributes of a record; `None` if they are those of no stored one. Whether they are those of now is looked
    /// at in turn with all others who tell: who is late (with attributes that the kernel will not take over, or must let go of in a moment)
    /// does not take back what is newer.
    pub(super) fn tell(&self, number: u64, record: Option<&Record>, is_current: impl FnOnce(&Record) -> bool) {
        let mut table = self.table.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return };
        let told = record.map(|record| Told {
            state: State::of(record),
            modified: record.modified,
            value: record.value.clone(),
            let_go: false,
        });
        let is_late = match (&slot.told, record) {
            (Some(known), Some(record)) => known.modified > record.modified && !is_current(record),
            _ => false,
        };
        if !is_late {
            slot.told = told;
        }
    }

    /// What the kernel was told the attributes of last.
    pub(super) fn told_of(&self, number: u64) -> Option<Told> {
        self.table.lock().by_number.get(&number)?.told.clone()
    }

    /// A file of a state is opened: whether the pages that the kernel may hold are of that state. If not, the kernel must drop
    /// them; it reads that state then.
    pub(super) fn open_pages(&self, number: u64, state: State) -> bool {
        let mut table = self.table.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return false };
        let same = slot.pages == Some(state);
        slot.pages = Some(state);
        same
    }

    /// The content of a state is about to be given to the kernel. False if that need not or must not be: the kernel has
    /// its pages, was told the attributes of another state, or too many are under way.
    pub(super) fn begin_giving(&self, number: u64, state: State, at_once: usize) -> bool {
        let mut table = self.table.lock();
        if table.giving.len() >= at_once || table.giving.contains(&number) {
            return false;
        }
        let Some(slot) = table.by_number.get_mut(&number) else { return false };
        if slot.pages.is_some() || !slot.told.as_ref().is_some_and(|told| !told.let_go && told.state == state) {
            return false;
        }
        slot.pages = Some(state);
        table.giving.push(number);
        true
    }

    /// It has been given.
    pub(super) fn end_giving(&self, number: u64) {
        self.table.lock().giving.retain(|other| *other != number);
        self.given.notify_all();
    }

    /// Waits while the content of a file is being given to the kernel: what is dropped in the meantime would come back.
    pub(super) fn wait_until_given(&self, number: u64) -> bool {
        let mut table = self.table.lock();
        let waits = table.giving.contains(&number);
        while table.giving.contains(&number) {
            self.given.wait(&mut table);
        }
        waits
    }

    /// The kernel is about to drop what it has been told of a file.
    pub(super) fn let_go(&self, number: u64) {
        let mut table = self.table.lock();
        if let Some(told) = table.by_number.get_mut(&number).and_then(|slot| slot.told.as_mut()) {
            told.let_go = true;
        }
    }

    /// It has dropped that, and the pages, if it knew it.
    pub(super) fn dropped(&self, number: u64, known: bool) {
        if let Some(slot) = self.table.lock().by_number.get_mut(&number) {
            slot.unknown = !known;
            slot.pages = None;
        }
    }

    /// Whether the kernel knew nothing of an inode when it was to drop it last.
    pub(super) fn was_unknown(&self, number: u64) -> bool {
        self.table.lock().by_number.get(&number).is_some_and(|slot| slot.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Revision, Version};
    use crate::tree::ScratchId;

    #[test]
    fn an_inode_lives_as_long_as_the_kernel_knows_it() {
        let inodes = Inodes::default();
        let node = FileId::Scratch(ScratchId(7));
        let number = inodes.told(&node);
        assert_eq!(inodes.told(&node), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number), Some(node.clone()));
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number), None);
        assert_eq!(inodes.count(), 1, "the root remains");
        assert_eq!(inodes.told(&node), number, "the number is the same again");
    }

    #[test]
    fn what_was_removed_and_made_again_is_another_inode() {
        let inodes = Inodes::default();
        let node = FileId::Scratch(ScratchId(7));
        let dead = inodes.told(&node);
        inodes.retire(&node);
        let living = inodes.told(&node);
        assert_ne!(living, dead);
        assert_eq!((inodes.node(dead), inodes.node(living)), (Some(node.clone()), Some(node.clone())));
        inodes.forget(dead, 1);
        assert_eq!(inodes.told(&node), living, "the other is not concerned");
        inodes.forget(living, 2);
        assert_eq!(inodes.told(&node), dead, "when all are forgotten it is the first number again");
    }

    #[test]
    fn a_renamed_file_keeps_its_number() {
        let inodes = Inodes::default();
        let (from, to) = (FileId::Scratch(ScratchId(1)), FileId::Scratch(ScratchId(2)));
        let (moved, old) = (inodes.told(&from), inodes.told(&to));
        inodes.renamed(&from, &to);
        assert_eq!((inodes.known(&from), inodes.known(&to)), (None, Some(moved)));
        assert_eq!(inodes.node(old), Some(to.clone()), "who has it open still has it");
        assert_ne!(inodes.told(&from), moved, "what is made of the old name is another file");
        inodes.forget(moved, 1);
        assert_eq!(inodes.node(moved), None);
        assert_ne!(inodes.number(&to), old, "that one was replaced");
        inodes.forget(old, 1);
        assert_eq!(inodes.number(&to), old);
    }

    #[test]
    fn a_content_is_given_once_and_dropped_after_it_has_arrived() {
        let record = |number| {
            let version = Version { number, written: Revision(number), created: Revision(1) };
            Record { value: Bytes::new(), version, modified: SystemTime::UNIX_EPOCH }
        };
        let state = |number| State::of(&record(number));
        let inodes = Inodes::default();
        let file = inodes.told(&FileId::Scratch(ScratchId(1)));
        assert!(!inodes.begin_giving(file, state(1), 1), "its size is not known to the kernel");
        inodes.tell(file, Some(&record(1)), |_| true);
        assert!(inodes.begin_giving(file, state(1), 1));
        assert!(!inodes.begin_giving(file, state(1), 9), "it is under way");
        inodes.end_giving(file);
        assert!(!inodes.begin_giving(file, state(1), 1), "it is there");
        assert!(inodes.open_pages(file, state(1)));
        assert!(!inodes.open_pages(file, state(2)), "that is another state");
        inodes.let_go(file);
        assert!(
            inodes.told_of(file).is_some_and(|told| told.let_go && told.state == state(1)),
            "its size is still that"
        );
        inodes.dropped(file, true);
        assert!(!inodes.begin_giving(file, state(1), 1), "the kernel must ask first");
        inodes.tell(file, Some(&record(2)), |_| true);
        assert!(inodes.begin_giving(file, state(2), 1) && !inodes.was_unknown(file));
    }

    #[test]
    fn an_answer_that_is_late_does_not_take_back_a_newer_one() {
        let record = |number: u64| {
            let version = Version { number, written: Revision(number), created: Revision(1) };
            let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number);
            Record { value: number.to_string().into(), version, modified }
        };
        let inodes = Inodes::default();
        let file = inodes.told(&FileId::Scratch(ScratchId(1)));
        let shown = || inodes.told_of(file).map(|told| told.value);
        inodes.tell(file, Some(&record(1)), |_| true);
        inodes.let_go(file);
        inodes.dropped(file, true);
        inodes.tell(file, Some(&record(2)), |_| true);
        // Looked up before the change, noted after it: the kernel does not take it over, and reads on with what is newer.
        inodes.tell(file, Some(&record(1)), |_| false);
        assert_eq!(shown().as_deref(), Some(&b"2"[..]));
        // A service that was restored, or a clock that goes back.
        inodes.tell(file, Some(&record(1)), |_| true);
        assert_eq!(shown().as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn the_names_in_a_directory_are_known() {
        let inodes = Inodes::default();
        let cell = CellName::global();
        let path = |text: &str| TopoPath::parse(text).unwrap();
        let form = crate::record::Form::Text;
        let dir = inodes.told(&FileId::Dir(CellPath { cell: cell.clone(), path: path("a") }));
        for node in [
            FileId::Dir(CellPath { cell: cell.clone(), path: TopoPath::root() }),
            FileId::Dir(CellPath { cell: cell.clone(), path: path("a/b") }),
            FileId::Dir(CellPath { cell: cell.clone(), path: path("a/b/c") }),
            FileId::Record(CellPath { cell: cell.clone(), path: path("a/x") }, form),
            FileId::Record(CellPath { cell: cell.clone(), path: path("a") }, form),
            FileId::Record(CellPath { cell: cell.clone(), path: path("ab") }, form),
            FileId::Lock(CellPath { cell: cell.clone(), path: path("a") }),
        ] {
            inodes.told(&node);
        }
        let mut names = inodes.names_in(dir);
        names.sort();
        assert_eq!(names, [".data.txt", ".lock", "b", "x.txt"]);
        assert_eq!(inodes.names_in(ROOT), ["global"]);
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let inodes = Inodes::default();
        inodes.forget(ROOT, 99);
        assert_eq!(inodes.node(ROOT), Some(FileId::Root));
    }
}
