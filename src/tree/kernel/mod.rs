//! What the kernel knows: numbers, what it was shown, what it may keep, and what it must forget. Must never know
//! records: a namespace says whether an answer is settled, and a followed cell says whether its watch is delivering.
//!
//! Invalidating happens twice. The first time is at once, when a new state is published, and concerns inodes only:
//! names need the lock of their directory, and somebody may hold that lock and wait for a backend. The second time is
//! the turn of the event, before it is raised. It waits for the directory's lock, and so catches a reply that was on
//! its way the first time, about something that the kernel did not know then.
//!
//! Nobody waits for the kernel for ever: `invalidation.rs` says why the kernel may take as long as a stranger likes,
//! and what holds until then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::name::CellName;

pub(crate) mod followed;
pub(crate) mod inodes;
pub(crate) mod invalidation;
pub(crate) mod lasting;
pub(crate) mod listings;
pub(crate) mod outbox;
pub(crate) mod pages;
pub(crate) mod shown;
pub(crate) mod space;

use super::file::FileId;
use followed::Followed;
use inodes::{Inodes, ROOT};
use invalidation::{Asked, Invalidations, invalidate_inode};
use outbox::{Announcement, Happened, Outbox};

/// A name that no directory can have: to forget it is only to wait for the directory.
const NO_NAME: &str = "/";

/// The kernel's caches.
pub trait KernelCaches: Send + Sync + std::fmt::Debug {
    /// Invalidates attributes, pages and listing of an inode. Waits for reads of its pages that are in flight. False if
    /// the kernel knows no such inode.
    fn invalidate(&self, ino: u64) -> bool;
    /// Makes the kernel forget a name. Waits for everybody who looks up, lists, makes or removes names in the
    /// directory.
    fn forget_name(&self, parent: u64, name: &str);
    /// Stores the whole content of a file that is being opened. Waits for reads of its pages that are in flight.
    fn store_pages(&self, ino: u64, content: &[u8]);
}

/// The caches of a mount.
#[derive(Debug)]
struct Caches {
    kernel: Arc<dyn KernelCaches>,
    invalidations: Arc<Invalidations>,
    /// How many contents may be stored at once. One session thread must stay free to answer what they wait for.
    store_at_once: usize,
}

/// What the kernel knows of one mount.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub inodes: Arc<Inodes>,
    /// Calls to make through the mount.
    pub outbox: Outbox,
    /// Announcements that were lost.
    pub lost: AtomicU64,
    caches: OnceLock<Caches>,
    /// The cells that are followed.
    followed: Mutex<BTreeMap<CellName, Arc<Followed>>>,
    /// The kernel opens files without asking.
    opens_unasked: AtomicBool,
}

impl Kernel {
    /// Starts using the kernel's caches. `threads` is the number of threads that answer requests.
    pub fn use_caches(&self, kernel: Arc<dyn KernelCaches>, threads: usize) {
        let invalidations = Invalidations::new(kernel.clone(), self.inodes.clone());
        // There is one kernel, so this happens once.
        let _ = self.caches.set(Caches { kernel, invalidations, store_at_once: threads.saturating_sub(1) });
    }

    /// From now on the kernel refuses all writes itself, so it need not ask before it opens a file.
    pub fn open_unasked(&self) {
        self.opens_unasked.store(true, Ordering::Release);
    }

    /// Whether the kernel opens files without asking.
    pub fn opens_unasked(&self) -> bool {
        self.opens_unasked.load(Ordering::Acquire)
    }

    /// Whether somebody keeps the kernel from invalidating an inode.
    pub fn is_held(&self, ino: u64) -> bool {
        self.caches.get().is_some_and(|caches| caches.invalidations.is_held(ino))
    }

    /// Makes the kernel ask again about files and directories. Returns what to wait for: first the files, then the
    /// directories.
    pub fn invalidate(&self, mut files: Vec<u64>, mut dirs: Vec<u64>) -> Option<(Asked, Asked)> {
        for numbers in [&mut files, &mut dirs] {
            numbers.sort_unstable();
            numbers.dedup();
        }
        let caches = self.caches.get().filter(|_| !files.is_empty() || !dirs.is_empty())?;
        Some(caches.invalidations.invalidate(files, dirs, false))
    }

    /// Makes the kernel ask again about everything of a cell.
    pub async fn invalidate_cell(&self, cell: &CellName) {
        wait_for_all(self.ask_for(self.inodes.of_cell(cell), false)).await;
    }

    /// Makes the kernel ask again about everything.
    pub async fn invalidate_all(&self) {
        wait_for_all(self.ask_for(self.inodes.all(), false)).await;
    }

    /// Makes the kernel ask again about a cell and forget all names in it, because `lost` announcements about it are
    /// lost.
    pub fn forget_cell(&self, cell: &CellName, lost: u64) {
        tracing::warn!(%cell, lost, "too much has happened at once: events are lost, and the kernel forgets the cell");
        self.lost.fetch_add(lost, Ordering::Relaxed);
        self.ask_for(self.inodes.of_cell(cell).into_iter().chain([ROOT]).collect(), true);
    }

    fn ask_for(&self, numbers: Vec<u64>, names: bool) -> Option<(Asked, Asked)> {
        let is_dir = |ino: &u64| self.inodes.file(*ino).is_some_and(|file| file.is_dir());
        let (dirs, files) = numbers.into_iter().partition(is_dir);
        Some(self.caches.get()?.invalidations.invalidate(files, dirs, names))
    }

    /// Makes the kernel forget a name in a directory, if it knows the directory.
    pub fn forget_name(&self, dir: &FileId, name: &str) -> Option<Asked> {
        let ino = self.inodes.known(dir)?;
        Some(self.caches.get()?.invalidations.forget_name(ino, name))
    }

    /// Prepares an announcement, in the thread that makes it: the kernel must hold nothing older than the event, not
    /// even from a reply that was on its way. False if somebody holds the directory: then the announcement must wait.
    /// May hang.
    pub fn invalidate_before(&self, announcement: &Announcement) -> bool {
        let Some(caches) = self.caches.get() else { return true };
        let Some(parent) = self.inodes.known(&announcement.parent()) else { return true };
        if caches.invalidations.is_held(parent) {
            return false;
        }
        let name = match announcement.happened {
            Happened::Created | Happened::Linked | Happened::DirMade | Happened::InvalidateOnly => announcement.name(),
            // The call that raises the event must find the name.
            Happened::Changed | Happened::Deleted | Happened::DirRemoved => NO_NAME,
        };
        caches.kernel.forget_name(parent, name);
        if announcement.happened != Happened::Changed {
            caches.invalidations.invalidate_dir_here(parent);
        }
        // If the kernel knew the inode the first time, what it knows has been right since then. To invalidate it again
        // would make the kernel ignore attributes that are on their way, and readers would see new content cut to an
        // old size.
        let known = self.inodes.known(announcement.file());
        if let Some(ino) = known.filter(|ino| self.inodes.was_unknown(*ino)) {
            match announcement.file().is_dir() {
                true => caches.invalidations.invalidate_dir_here(ino),
                false => invalidate_inode(&self.inodes, &*caches.kernel, ino),
            }
        }
        true
    }

    /// The work for an announcement hangs: somebody holds the directory, whose inode is returned.
    pub fn hangs(&self, announcement: &Announcement) -> Option<u64> {
        let directory = announcement.parent();
        let parent = self.inodes.known(&directory)?;
        self.caches.get()?.invalidations.hangs(parent);
        tracing::warn!(
            %directory,
            "somebody holds the directory: until it is free, nothing in it is announced, and no reply about it lasts"
        );
        Some(parent)
    }

    /// That work has ended. If the announcement was not made, it is made now.
    pub fn hangs_no_more(&self, parent: Option<u64>, announcement: Option<Announcement>) {
        if let (Some(caches), Some(parent)) = (self.caches.get(), parent) {
            caches.invalidations.hangs_no_more(parent);
        }
        if let Some(announcement) = announcement {
            self.outbox.defer(parent.unwrap_or(0), announcement);
        }
    }

    /// An announcement cannot be made before its directory is free.
    pub fn defer(&self, announcement: Announcement) {
        let parent = self.inodes.known(&announcement.parent()).unwrap_or(0);
        self.outbox.defer(parent, announcement);
    }
}

/// Waits until the kernel has been made to ask again about files and directories, if it had to be.
pub(crate) async fn wait_for_all(asked: Option<(Asked, Asked)>) {
    if let Some((files, dirs)) = asked {
        tokio::join!(files.done(), dirs.done());
    }
}
