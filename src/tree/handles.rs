//! Open files and directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::ControlFile;
use super::draft::Draft;
use super::lockfile::LockFile;
use super::overlay::Scratch;
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::record::Form;

/// Something open.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    Reader(Arc<Reader>),
    Draft(Arc<Draft>),
    Lock(Arc<LockFile>),
    Events(Arc<Mutex<crate::control::Reader>>),
    Scratch {
        file: Arc<Scratch>,
        append: bool,
    },
    /// Shows one state, like a reader.
    Control(ControlFile, Arc<Mutex<Bytes>>),
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

/// The table of what is open.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    open: HashMap<u64, (u64, Handle)>,
    by_inode: HashMap<u64, Vec<u64>>,
}

fn bad_handle() -> Error {
    Error::new(Kind::BadDescriptor, "no such open file")
}

impl Handles {
    pub fn add(&self, ino: u64, handle: Handle) -> u64 {
        let mut table = self.0.lock();
        table.last += 1;
        let number = table.last;
        table.open.insert(number, (ino, handle));
        table.by_inode.entry(ino).or_default().push(number);
        number
    }

    /// Whether a file is open.
    pub fn is_open(&self, ino: u64) -> bool {
        self.0.lock().by_inode.contains_key(&ino)
    }

    pub fn get(&self, number: u64) -> Result<Handle> {
        self.0.lock().open.get(&number).map(|(_, handle)| handle.clone()).ok_or_else(bad_handle)
    }

    /// The file that is open.
    pub fn inode(&self, number: u64) -> Result<u64> {
        self.0.lock().open.get(&number).map(|(ino, _)| *ino).ok_or_else(bad_handle)
    }

    pub fn remove(&self, number: u64) -> Result<Handle> {
        let mut table = self.0.lock();
        let (ino, handle) = table.open.remove(&number).ok_or_else(bad_handle)?;
        if let Some(numbers) = table.by_inode.get_mut(&ino) {
            numbers.retain(|known| *known != number);
            if numbers.is_empty() {
                table.by_inode.remove(&ino);
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
        let Some(numbers) = table.by_inode.get(&ino) else { return Vec::new() };
        let drafts = numbers.iter().filter_map(|number| match table.open.get(number) {
            Some((_, Handle::Draft(draft))) => Some(draft.clone()),
            _ => None,
        });
        drafts.collect()
    }

    /// The inode of a draft, and how many other drafts of it the same process has open.
    pub fn other_drafts(&self, number: u64, process: u32) -> Option<(u64, usize)> {
        let table = self.0.lock();
        let (ino, _) = table.open.get(&number)?;
        let same = |other: &&u64| {
            let handle = table.open.get(other).map(|(_, handle)| handle);
            **other != number && matches!(handle, Some(Handle::Draft(draft)) if draft.opener == process)
        };
        Some((*ino, table.by_inode.get(ino)?.iter().filter(same).count()))
    }

    /// A record is gone: who has it open goes on showing its last state, of which the kernel may have had pages.
    pub fn pin(&self, ino: u64, content: &Bytes, modified: SystemTime) {
        let table = self.0.lock();
        for number in table.by_inode.get(&ino).into_iter().flatten() {
            if let Some((_, Handle::Reader(reader))) = table.open.get(number)
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
            Some((_, Handle::Reader(reader))) => {
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
