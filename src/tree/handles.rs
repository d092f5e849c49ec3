//! Open files and directories.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::ControlFile;
use super::draft::Draft;
use super::lockfile::LockFile;
use super::overlay::Scratch;
use super::room::Charge;
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::process::Process;
use crate::record::Form;

/// Something open.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    Reader(Arc<Reader>),
    Draft(Arc<Draft>),
    Lock(Arc<LockFile>),
    Events(Arc<Mutex<crate::journal::Reader>>),
    Scratch(Arc<OpenScratch>),
    /// Shows one state, like a reader.
    Control(Arc<OpenControl>),
}

/// An open file of `.topofs`: what it shows is charged to its user.
#[derive(Debug)]
pub(super) struct OpenControl {
    pub file: ControlFile,
    pub content: Mutex<(Bytes, Charge)>,
}

/// An open scratch file.
#[derive(Debug)]
pub(super) struct OpenScratch {
    pub file: Arc<Scratch>,
    /// O_APPEND.
    pub append: bool,
    /// O_WRONLY or O_RDWR.
    pub writes: bool,
    /// Who has opened it.
    pub opener: (Option<Process>, u32),
}

/// A record open for reading: shows one state of it until it is read from the beginning again.
#[derive(Debug)]
pub(super) struct Reader {
    pub cell: CellName,
    pub path: TopoPath,
    pub form: Form,
    /// O_DIRECT: asks the backend.
    pub direct: bool,
    pub shown: Mutex<(Bytes, SystemTime)>,
    /// Read through the kernel's page cache, which is of one state for everybody.
    pub cached: bool,
    /// The end of it has been read.
    pub ended: std::sync::atomic::AtomicBool,
}

impl Handle {
    /// What is open, if it is a certain scratch file.
    fn scratch(&self, file: &Arc<Scratch>) -> Option<&Arc<OpenScratch>> {
        match self {
            Handle::Scratch(open) if Arc::ptr_eq(&open.file, file) => Some(open),
            _ => None,
        }
    }
}

impl Reader {
    pub fn new(cell: &CellName, path: &TopoPath, form: Form, content: Bytes) -> Self {
        Self {
            cell: cell.clone(),
            path: path.clone(),
            form,
            direct: false,
            shown: Mutex::new((content, SystemTime::now())),
            cached: false,
            ended: false.into(),
        }
    }
}

/// Files that may be open at once, in all and for one user: each costs memory here, and none of the daemon's descriptors.
const IN_ALL: usize = 131_072;
const PER_USER: usize = 32_768;

/// The table of what is open.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Open>,
    by_inode: HashMap<u64, BTreeSet<u64>>,
    /// Those of them that write to a record: they are looked for at each opening.
    drafts: HashMap<u64, BTreeSet<u64>>,
    by_user: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Open {
    ino: u64,
    uid: u32,
    handle: Handle,
}

fn bad_handle() -> Error {
    Error::new(Kind::BadDescriptor, "no such open file")
}

impl Handles {
    /// Notes what a user has opened. Fails with EMFILE if there is too much of it.
    pub fn add(&self, uid: u32, ino: u64, handle: Handle) -> Result<u64> {
        let mut table = self.0.lock();
        let own = table.by_user.get(&uid).copied().unwrap_or(0);
        if table.open.len() >= IN_ALL || own >= PER_USER {
            let reason = format!("{own} files are open for this user, {} for all", table.open.len());
            return Err(Error::new(Kind::TooManyOpen, reason));
        }
        table.last += 1;
        let number = table.last;
        table.by_user.insert(uid, own + 1);
        if let Handle::Draft(_) = &handle {
            table.drafts.entry(ino).or_default().insert(number);
        }
        table.open.insert(number, Open { ino, uid, handle });
        table.by_inode.entry(ino).or_default().insert(number);
        Ok(number)
    }

    /// Whether a file is open.
    pub fn is_open(&self, ino: u64) -> bool {
        self.0.lock().by_inode.contains_key(&ino)
    }

    pub fn get(&self, number: u64) -> Result<Handle> {
        self.0.lock().open.get(&number).map(|open| open.handle.clone()).ok_or_else(bad_handle)
    }

    /// The file that is open.
    pub fn inode(&self, number: u64) -> Result<u64> {
        self.0.lock().open.get(&number).map(|open| open.ino).ok_or_else(bad_handle)
    }

    pub fn remove(&self, number: u64) -> Result<Handle> {
        let mut table = self.0.lock();
        let Open { ino, uid, handle } = table.open.remove(&number).ok_or_else(bad_handle)?;
        match table.by_user.get_mut(&uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(table.by_user.remove(&uid)),
        }
        let Table { by_inode, drafts, .. } = &mut *table;
        for known in [by_inode, drafts] {
            if let Some(numbers) = known.get_mut(&ino) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    known.remove(&ino);
                }
            }
        }
        Ok(handle)
    }

    pub fn draft(&self, number: u64) -> Option<Arc<Draft>> {
        match self.get(number) {
            Ok(Handle::Draft(draft)) => Some(draft),
            _ => None,
        }
    }

    /// Everything that is being written to an inode, oldest first.
    pub fn drafts(&self, ino: u64) -> Vec<Arc<Draft>> {
        let table = self.0.lock();
        let Some(numbers) = table.drafts.get(&ino) else { return Vec::new() };
        let drafts = numbers.iter().filter_map(|number| match table.open.get(number) {
            Some(Open { handle: Handle::Draft(draft), .. }) => Some(draft.clone()),
            _ => None,
        });
        drafts.collect()
    }

    /// The inode of a draft, and how many other drafts of it the same process has open.
    pub fn other_drafts(&self, number: u64, process: Process) -> Option<(u64, usize)> {
        let table = self.0.lock();
        let ino = table.open.get(&number)?.ino;
        let same = |other: &&u64| {
            let handle = table.open.get(other).map(|open| &open.handle);
            **other != number && matches!(handle, Some(Handle::Draft(draft)) if draft.opener == Some(process))
        };
        Some((ino, table.drafts.get(&ino)?.iter().filter(same).count()))
    }

    /// Whoever has opened a scratch file for writing first: who it is, and whether it appends.
    pub fn writer_of(&self, ino: u64, file: &Arc<Scratch>) -> Option<Arc<OpenScratch>> {
        let table = self.0.lock();
        let open = table.by_inode.get(&ino)?.iter().filter_map(|number| table.open.get(number)?.handle.scratch(file));
        open.into_iter().find(|open| open.writes).cloned()
    }

    /// A scratch file has become a record: who has it open goes on with that. Says how many they are.
    pub fn adopt(
        &self,
        ino: u64,
        file: &Arc<Scratch>,
        draft: Option<&Arc<Draft>>,
        reader: impl Fn() -> Reader,
    ) -> usize {
        let mut table = self.0.lock();
        let Table { open, by_inode, drafts, .. } = &mut *table;
        let mut adopted = 0;
        for number in by_inode.get(&ino).into_iter().flatten() {
            let Some(Open { handle, .. }) = open.get_mut(number) else { continue };
            let Some(writes) = handle.scratch(file).map(|open| open.writes) else { continue };
            *handle = match draft.filter(|_| writes) {
                Some(draft) => {
                    drafts.entry(ino).or_default().insert(*number);
                    Handle::Draft(draft.clone())
                }
                None => Handle::Reader(Arc::new(reader())),
            };
            adopted += 1;
        }
        adopted
    }

    /// A record is gone: who has it open goes on showing its last state, of which the kernel may have had pages.
    pub fn pin(&self, ino: u64, content: &Bytes, modified: SystemTime) {
        let table = self.0.lock();
        for number in table.by_inode.get(&ino).into_iter().flatten() {
            if let Some(Open { handle: Handle::Reader(reader), .. }) = table.open.get(number)
                && reader.cached
            {
                *reader.shown.lock() = (content.clone(), modified);
            }
        }
    }

    /// Size and time of what a reader of an inode still shows.
    pub fn pinned(&self, ino: u64) -> Option<(usize, SystemTime)> {
        let table = self.0.lock();
        table.by_inode.get(&ino)?.iter().find_map(|number| match table.open.get(number) {
            Some(Open { handle: Handle::Reader(reader), .. }) => {
                let shown = reader.shown.lock();
                Some((shown.0.len(), shown.1))
            }
            _ => None,
        })
    }

    pub fn count(&self) -> usize {
        self.0.lock().open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_open_all_files_that_may_be_open() {
        let handles = Handles::default();
        let open = |uid| handles.add(uid, 1, Handle::Events(Arc::default()));
        let first = open(1).unwrap();
        (1..PER_USER).for_each(|_| assert!(open(1).is_ok()));
        assert_eq!(open(1).unwrap_err().kind, Kind::TooManyOpen);
        open(2).unwrap();
        handles.remove(first).unwrap();
        open(1).unwrap();
        assert_eq!(open(1).unwrap_err().kind, Kind::TooManyOpen);
        // All together.
        (3..7).for_each(|uid| (0..PER_USER).for_each(|_| drop(open(uid))));
        assert_eq!(handles.count(), IN_ALL);
        assert_eq!(open(9).unwrap_err().kind, Kind::TooManyOpen);
    }
}
