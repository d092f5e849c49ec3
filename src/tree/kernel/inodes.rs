//! Owns the inode table: which number stands for which file, how often the kernel has looked it up, and what the kernel
//! was shown of it (`shown.rs`). One number must never stand for two files.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::{Condvar, Mutex};

use super::shown::{Fingerprint, Reply, Shown};
use crate::mirror::Record;
use crate::name::{CellName, CellPath, DATA_FILE, LOCK_FILE, TopoPath};
use crate::tree::file::FileId;

/// The number that the kernel gives to the root.
pub const ROOT: u64 = 1;
/// The number of the directory of the global topology. It is the smallest, since `cp` and `tar` walk a directory in the
/// order of inode numbers, and a copy of a whole tree must make the CellInfo records before it comes to the cells.
const GLOBAL: u64 = 2;

/// Numbers and files. A file's number is a hash of what it stands for. So it is the same when the kernel has forgotten
/// the file and asks again (`tar`, `find` and `rsync` compare numbers over time).
#[derive(Debug)]
pub(crate) struct Inodes {
    table: Mutex<Table>,
    /// Notified when a file's content has been stored in the kernel.
    stored: Condvar,
}

#[derive(Debug)]
struct Table {
    by_number: HashMap<u64, Slot>,
    /// Files whose number is not their hash.
    exceptions: HashMap<FileId, u64>,
    /// Files whose content is being stored in the kernel.
    storing: Vec<u64>,
}

#[derive(Debug)]
struct Slot {
    file: FileId,
    lookups: u64,
    /// The name that led here leads to another inode now.
    replaced: bool,
    shown: Shown,
}

impl Default for Inodes {
    fn default() -> Self {
        let root = Slot { lookups: 1, ..Slot::new(FileId::Root) };
        let table = Table {
            by_number: HashMap::from([(ROOT, root)]),
            exceptions: HashMap::from([(FileId::Root, ROOT)]),
            storing: Vec::new(),
        };
        Self { table: Mutex::new(table), stored: Condvar::new() }
    }
}

impl Slot {
    fn new(file: FileId) -> Self {
        Self { file, lookups: 0, replaced: false, shown: Shown::default() }
    }
}

fn natural_number(file: &FileId) -> u64 {
    if matches!(file, FileId::Dir(CellPath { cell, path }) if cell.is_global() && path.is_root()) {
        return GLOBAL;
    }
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    no_reserved_number(hasher.finish())
}

/// 0 means "no inode", and the next ones are taken.
fn no_reserved_number(hash: u64) -> u64 {
    hash.max(GLOBAL + 1)
}

impl Table {
    fn number(&self, file: &FileId) -> u64 {
        if let Some(number) = self.exceptions.get(file) {
            return *number;
        }
        let mut number = natural_number(file);
        // Skips a number that something else has.
        while self.by_number.get(&number).is_some_and(|slot| slot.replaced || slot.file != *file) {
            number = no_reserved_number(number.wrapping_add(1));
        }
        number
    }

    fn known(&self, file: &FileId) -> Option<u64> {
        let number = self.number(file);
        self.by_number.contains_key(&number).then_some(number)
    }

    fn set_number(&mut self, file: &FileId, number: u64) {
        if number == natural_number(file) {
            self.exceptions.remove(file);
        } else {
            self.exceptions.insert(file.clone(), number);
        }
    }

    fn retire(&mut self, file: &FileId) {
        if let Some(number) = self.known(file)
            && let Some(slot) = self.by_number.get_mut(&number)
        {
            slot.replaced = true;
            self.exceptions.remove(file);
        }
    }
}

impl Inodes {
    /// The number of a file, whether or not the kernel knows it.
    pub fn number(&self, file: &FileId) -> u64 {
        self.table.lock().number(file)
    }

    /// The number of a file that is shown to the kernel: counts one lookup.
    pub fn count_lookup(&self, file: &FileId) -> u64 {
        let mut table = self.table.lock();
        let number = table.number(file);
        if let Some(slot) = table.by_number.get_mut(&number) {
            slot.lookups += 1;
        } else {
            table.set_number(file, number);
            table.by_number.insert(number, Slot { lookups: 1, ..Slot::new(file.clone()) });
        }
        number
    }

    /// The kernel has forgotten so many lookups.
    pub fn forget(&self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        let mut table = self.table.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups == 0
            && let Some(slot) = table.by_number.remove(&number)
            && table.exceptions.get(&slot.file) == Some(&number)
        {
            table.exceptions.remove(&slot.file);
        }
    }

    /// A directory is removed. The kernel treats its inode as dead for as long as anybody has something open below it.
    /// So a new directory of the same name gets another inode.
    pub fn retire(&self, file: &FileId) {
        let mut table = self.table.lock();
        table.retire(file);
        file.link_dirs().for_each(|links| table.retire(&links));
    }

    /// A name has been renamed: the kernel keeps using the inode that it had, under the new name. The file that had the
    /// new name before is another inode.
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
    pub fn file(&self, number: u64) -> Option<FileId> {
        self.table.lock().by_number.get(&number).map(|slot| slot.file.clone())
    }

    /// The number of a file that the kernel knows.
    pub fn known(&self, file: &FileId) -> Option<u64> {
        self.table.lock().known(file)
    }

    /// All numbers of a cell that the kernel knows.
    pub fn of_cell(&self, cell: &CellName) -> Vec<u64> {
        let table = self.table.lock();
        let numbers = table.by_number.iter().filter(|(_, slot)| slot.file.cell() == Some(cell));
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
    pub(crate) fn names_in(&self, dir: u64) -> Vec<String> {
        let table = self.table.lock();
        let Some(dir) = table.by_number.get(&dir).map(|slot| &slot.file) else { return Vec::new() };
        let is_in = |cell: &CellName, path: &TopoPath| match (dir, path.parent()) {
            (FileId::Root, None) => true,
            (FileId::Dir(CellPath { cell: of, path: dir }), Some(parent)) => of == cell && *dir == parent,
            _ => false,
        };
        let is_dir = |cell: &CellName, path: &TopoPath| match dir {
            FileId::Dir(CellPath { cell: of, path: dir }) => of == cell && dir == path,
            _ => false,
        };
        let names = table.by_number.values().filter_map(|slot| match &slot.file {
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
            FileId::Links(CellPath { cell, path }, view) if is_dir(cell, path) => Some(view.name().to_owned()),
            FileId::Link(link) if *dir == FileId::dir_of_link(link) => Some(link.name().to_owned()),
            _ => None,
        });
        names.collect()
    }

    /// Notes what the kernel is replied; see [`Shown::note_reply`].
    pub fn note_reply(&self, number: u64, record: Option<&Record>, is_current: impl FnOnce(&Record) -> bool) {
        if let Some(slot) = self.table.lock().by_number.get_mut(&number) {
            slot.shown.note_reply(record, is_current);
        }
    }

    /// The record whose attributes the kernel was replied last.
    pub fn reply(&self, number: u64) -> Option<Reply> {
        self.table.lock().by_number.get(&number)?.shown.reply().cloned()
    }

    /// A file is opened in a state: whether the kernel may keep using the pages that it has.
    pub fn open_pages(&self, number: u64, state: Fingerprint) -> bool {
        self.table.lock().by_number.get_mut(&number).is_some_and(|slot| slot.shown.open_pages(state))
    }

    /// The content of a state is about to be stored in the kernel. False if it need not or must not be stored, or if
    /// too many contents are being stored.
    pub fn begin_storing(&self, number: u64, state: Fingerprint, at_once: usize) -> bool {
        let mut table = self.table.lock();
        if table.storing.len() >= at_once || table.storing.contains(&number) {
            return false;
        }
        let begins = table.by_number.get_mut(&number).is_some_and(|slot| slot.shown.begin_storing(state));
        if begins {
            table.storing.push(number);
        }
        begins
    }

    /// The content has been stored.
    pub fn end_storing(&self, number: u64) {
        self.table.lock().storing.retain(|other| *other != number);
        self.stored.notify_all();
    }

    /// Waits while the content of a file is being stored, and returns whether it waited: the store would bring back
    /// what is invalidated during it.
    pub fn wait_until_stored(&self, number: u64) -> bool {
        let mut table = self.table.lock();
        let waits = table.storing.contains(&number);
        while table.storing.contains(&number) {
            self.stored.wait(&mut table);
        }
        waits
    }

    /// The kernel is about to forget what it was shown of a file.
    pub fn invalidating(&self, number: u64) {
        if let Some(slot) = self.table.lock().by_number.get_mut(&number) {
            slot.shown.invalidating();
        }
    }

    /// The kernel has forgotten that, if it knew the inode.
    pub fn invalidated(&self, number: u64, known: bool) {
        if let Some(slot) = self.table.lock().by_number.get_mut(&number) {
            slot.shown.invalidated(known);
        }
    }

    /// Whether the kernel did not know an inode when it was last asked to forget it.
    pub fn was_unknown(&self, number: u64) -> bool {
        self.table.lock().by_number.get(&number).is_some_and(|slot| slot.shown.was_unknown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use bytes::Bytes;

    use crate::backend::{Revision, Version};
    use crate::tree::ScratchId;

    #[test]
    fn an_inode_lives_as_long_as_the_kernel_knows_it() {
        let inodes = Inodes::default();
        let file = FileId::Scratch(ScratchId(7));
        let number = inodes.count_lookup(&file);
        assert_eq!(inodes.count_lookup(&file), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.file(number), Some(file.clone()));
        inodes.forget(number, 1);
        assert_eq!(inodes.file(number), None);
        assert_eq!(inodes.count(), 1, "the root remains");
        assert_eq!(inodes.count_lookup(&file), number, "the number is the same again");
    }

    #[test]
    fn what_was_removed_and_made_again_is_another_inode() {
        let inodes = Inodes::default();
        let file = FileId::Scratch(ScratchId(7));
        let dead = inodes.count_lookup(&file);
        inodes.retire(&file);
        let living = inodes.count_lookup(&file);
        assert_ne!(living, dead);
        assert_eq!((inodes.file(dead), inodes.file(living)), (Some(file.clone()), Some(file.clone())));
        inodes.forget(dead, 1);
        assert_eq!(inodes.count_lookup(&file), living, "the other is not concerned");
        inodes.forget(living, 2);
        assert_eq!(inodes.count_lookup(&file), dead, "when all are forgotten it is the first number again");
    }

    #[test]
    fn a_renamed_file_keeps_its_number() {
        let inodes = Inodes::default();
        let (from, to) = (FileId::Scratch(ScratchId(1)), FileId::Scratch(ScratchId(2)));
        let (moved, old) = (inodes.count_lookup(&from), inodes.count_lookup(&to));
        inodes.count_lookup(&from);
        inodes.renamed(&from, &to);
        assert_eq!((inodes.known(&from), inodes.known(&to)), (None, Some(moved)));
        assert_eq!(inodes.file(old), Some(to.clone()), "whoever has it open keeps it");
        assert_ne!(inodes.count_lookup(&from), moved, "a new file of the old name is another inode");
        inodes.forget(moved, 1);
        assert_eq!(inodes.file(moved), Some(to.clone()), "it was looked up twice");
        inodes.forget(moved, 1);
        assert_eq!(inodes.file(moved), None);
        assert_ne!(inodes.number(&to), old, "that one was replaced");
        inodes.forget(old, 1);
        assert_eq!(inodes.number(&to), old);
    }

    #[test]
    fn the_names_in_a_directory_are_known() {
        let inodes = Inodes::default();
        let cell = CellName::global();
        let path = |text: &str| TopoPath::parse(text).unwrap();
        let form = crate::record::Form::Text;
        let dir = inodes.count_lookup(&FileId::Dir(CellPath { cell: cell.clone(), path: path("a") }));
        for file in [
            FileId::Dir(CellPath { cell: cell.clone(), path: TopoPath::root() }),
            FileId::Dir(CellPath { cell: cell.clone(), path: path("a/b") }),
            FileId::Dir(CellPath { cell: cell.clone(), path: path("a/b/c") }),
            FileId::Record(CellPath { cell: cell.clone(), path: path("a/x") }, form),
            FileId::Record(CellPath { cell: cell.clone(), path: path("a") }, form),
            FileId::Record(CellPath { cell: cell.clone(), path: path("ab") }, form),
            FileId::Lock(CellPath { cell: cell.clone(), path: path("a") }),
        ] {
            inodes.count_lookup(&file);
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
        assert_eq!(inodes.file(ROOT), Some(FileId::Root));
    }

    #[test]
    fn a_number_that_something_else_has_is_passed_over() {
        let inodes = Inodes::default();
        let (first, second) = (FileId::Scratch(ScratchId(1)), FileId::Scratch(ScratchId(2)));
        // As if their hashes were equal.
        let taken = natural_number(&second);
        inodes.table.lock().by_number.insert(taken, Slot { lookups: 1, ..Slot::new(first.clone()) });
        let number = inodes.count_lookup(&second);
        assert_eq!(number, taken + 1);
        inodes.forget(taken, 1);
        assert_eq!((inodes.number(&second), inodes.file(taken)), (number, None), "it keeps its number");
        inodes.forget(number, 1);
        assert_eq!(inodes.number(&second), taken);
        assert!(inodes.table.lock().exceptions.len() == 1, "only that of the root");
    }

    #[test]
    fn the_inodes_of_a_cell_are_those_of_its_directories_records_and_locks() {
        let inodes = Inodes::default();
        let (cell, other) = (CellName::new("zone1").unwrap(), CellName::global());
        let (root, path) = (TopoPath::root(), TopoPath::parse("a").unwrap());
        let form = crate::record::Form::Raw;
        let record = FileId::Record(CellPath { cell: cell.clone(), path: path.clone() }, form);
        let files = [
            FileId::Dir(CellPath { cell: cell.clone(), path: root.clone() }),
            record,
            FileId::Lock(CellPath { cell: cell.clone(), path: root.clone() }),
        ];
        let mut own = files.map(|file| inodes.count_lookup(&file)).to_vec();
        for foreign in [
            FileId::Dir(CellPath { cell: other.clone(), path: root }),
            FileId::Record(CellPath { cell: other, path }, form),
            FileId::Control,
        ] {
            inodes.count_lookup(&foreign);
        }
        let mut shown = inodes.of_cell(&cell);
        own.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, own);
        assert_eq!((inodes.all().len(), inodes.count()), (7, 7));
    }

    #[test]
    fn the_global_topology_comes_first_and_no_number_is_one_of_the_kernels() {
        let global = FileId::Dir(CellPath::new(&CellName::global(), &TopoPath::root()));
        assert_eq!(natural_number(&global), GLOBAL);
        assert_eq!([0, GLOBAL, GLOBAL + 1, u64::MAX].map(no_reserved_number), [3, 3, 3, u64::MAX]);
        assert!((0..10_000).all(|id| natural_number(&FileId::Scratch(ScratchId(id))) > GLOBAL));
    }

    #[test]
    fn a_content_is_given_once_and_dropped_after_it_has_arrived() {
        let record = |number| {
            let version = Version { number, written: Revision(number), created: Revision(1) };
            Record { value: Bytes::new(), version, modified: SystemTime::UNIX_EPOCH }
        };
        let state = |number| Fingerprint::of(&record(number));
        let inodes = Inodes::default();
        let file = inodes.count_lookup(&FileId::Scratch(ScratchId(1)));
        assert!(!inodes.begin_storing(file, state(1), 1), "its size is not known to the kernel");
        inodes.note_reply(file, Some(&record(1)), |_| true);
        assert!(inodes.begin_storing(file, state(1), 1));
        assert!(!inodes.begin_storing(file, state(1), 9), "it is in flight");
        let other = inodes.count_lookup(&FileId::Scratch(ScratchId(2)));
        inodes.note_reply(other, Some(&record(1)), |_| true);
        assert!(!inodes.begin_storing(other, state(1), 1) && inodes.begin_storing(other, state(1), 2), "two at once");
        inodes.end_storing(file);
        assert!(!inodes.begin_storing(file, state(1), 2), "it is there");
        assert!(inodes.open_pages(file, state(1)));
        assert!(!inodes.open_pages(file, state(2)), "that is another state");
        inodes.invalidating(file);
        assert!(inodes.reply(file).is_some_and(|shown| shown.invalidated), "its size is still that");
        inodes.invalidated(file, true);
        assert!(!inodes.begin_storing(file, state(1), 1), "the kernel must ask first");
        inodes.note_reply(file, Some(&record(2)), |_| true);
        assert!(inodes.begin_storing(file, state(2), 2) && !inodes.was_unknown(file));
        inodes.invalidated(file, false);
        assert!(inodes.was_unknown(file));
    }

    #[test]
    fn an_answer_that_is_late_does_not_take_back_a_newer_one() {
        let record = |number: u64| {
            let version = Version { number, written: Revision(number), created: Revision(1) };
            let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number);
            Record { value: number.to_string().into(), version, modified }
        };
        let inodes = Inodes::default();
        let file = inodes.count_lookup(&FileId::Scratch(ScratchId(1)));
        let shown = || inodes.reply(file).map(|shown| shown.value);
        inodes.note_reply(file, Some(&record(1)), |_| true);
        inodes.invalidating(file);
        inodes.invalidated(file, true);
        inodes.note_reply(file, Some(&record(2)), |_| true);
        // Looked up before the change, noted after it: the kernel ignores it, and keeps using the newer one.
        inodes.note_reply(file, Some(&record(1)), |_| false);
        assert_eq!(shown().as_deref(), Some(&b"2"[..]));
        // A service was restored, or a clock went back.
        inodes.note_reply(file, Some(&record(1)), |_| true);
        assert_eq!(shown().as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn who_drops_a_content_waits_until_it_has_been_stored() {
        let inodes = Inodes::default();
        inodes.table.lock().storing.extend([7, 8]);
        assert!(!inodes.wait_until_stored(9));
        let (about_to, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                about_to.send(()).unwrap();
                inodes.wait_until_stored(7);
                !inodes.table.lock().storing.contains(&7)
            });
            waits.recv().unwrap();
            inodes.end_storing(8);
            inodes.end_storing(7);
            assert!(waiter.join().unwrap());
        });
        assert!(inodes.table.lock().storing.is_empty() && !inodes.wait_until_stored(7));
    }
}
