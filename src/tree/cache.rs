//! What the kernel may keep without asking again, and how it is made to let go of it.
//!
//! The kernel keeps names, attributes and listings for as long as a reply says, and pages until it is told. What a reply says
//! lasts is only what everybody sees alike and what the mirror will tell of: stored records, while their cell's watch is
//! delivering and nothing of theirs is under way. Everything else (drafts, scratch files, names that one process has removed)
//! is asked for every time.
//!
//! Letting go happens twice. At once, when the new state is published: inodes only, since names need the lock of their directory, which
//! somebody may hold who waits for a backend. And once more in the line of events, before the event is raised: a reply that
//! was under way the first time and has come to nothing the kernel knew then is caught by waiting for the directory's lock.
//!
//! Nobody waits for the kernel for ever: `letting` says why that may take as long as a stranger likes, and what holds until then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::echo::Followed;
use super::handles::Reader;
use super::inodes::State;
use super::jobs::{Happened, Job};
use super::letting::{Asked, Letting, drop_inode};
use super::{Attr, Caller, FileId, Opened, Tree};
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Update};
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};

/// Largest content that goes through the kernel's page cache, in bytes: one page, which is of one state whoever reads it in whatever
/// steps. Larger files are read from one state to their end.
const CACHED_LIMIT: usize = 4096;
/// A name that no directory has: dropping it only waits for the directory.
const NO_NAME: &str = "/";

/// The kernel's caches.
pub trait KernelCaches: Send + Sync + std::fmt::Debug {
    /// Drops attributes, pages and listing of an inode. Waits for reads of its pages that are under way. False if the kernel knows
    /// no such inode.
    fn drop_inode(&self, ino: u64) -> bool;
    /// Drops a name. Waits for whoever looks up, lists, makes or removes names in the directory.
    fn drop_name(&self, parent: u64, name: &str);
    /// Gives the whole content of a file that is being opened. Waits for reads of its pages that are under way.
    fn give(&self, ino: u64, content: &[u8]);
}

/// The caches of a mount.
#[derive(Debug)]
pub(super) struct Caches {
    kernel: Arc<dyn KernelCaches>,
    pub(super) letting: Arc<Letting>,
    /// How many contents may be given at once: one session thread must be free to answer what they wait for.
    give_at_once: usize,
}

impl Tree {
    /// The kernel's caches, from now on used. `threads` is the number of those that answer requests.
    pub fn use_caches(&self, kernel: Arc<dyn KernelCaches>, threads: usize) {
        // There is one kernel.
        let letting = Letting::new(kernel.clone(), self.inodes.clone());
        let _ = self.caches.set(Caches { kernel, letting, give_at_once: threads.saturating_sub(1) });
    }

    /// Whether somebody keeps the kernel from letting go of an inode.
    pub(super) fn is_held(&self, ino: u64) -> bool {
        self.caches.get().is_some_and(|caches| caches.letting.is_held(ino))
    }

    /// Whether somebody keeps the kernel from letting go of the directory of a node.
    fn dir_is_held(&self, node: &FileId) -> bool {
        let parent = match node {
            FileId::Dir(CellPath { path, .. }) if path.is_root() => Some(FileId::Root),
            FileId::Dir(CellPath { cell, path }) | FileId::Record(CellPath { cell, path }, _) => {
                path.parent().map(|dir| FileId::Dir(CellPath { cell: cell.clone(), path: dir }))
            }
            FileId::Lock(CellPath { cell, path: dir }) => Some(FileId::Dir(CellPath::new(cell, dir))),
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => None,
        };
        let holds_any = self.caches.get().is_some_and(|caches| caches.letting.holds_any());
        holds_any && parent.and_then(|parent| self.inodes.known(&parent)).is_some_and(|ino| self.is_held(ino))
    }

    /// An answer about a node: notes what the kernel knows, and says whether it may keep it.
    pub(super) fn answered(&self, node: &FileId, ino: u64, attr: Attr) -> Attr {
        self.note_told(node, ino, &attr);
        let lasting = self.caches.get().is_some() && self.lasts(node, ino, &attr);
        // A listing that the kernel cannot be made to drop is one of another time than the directory's: so it asks for a new one.
        let modified = if attr.is_dir && self.is_held(ino) { SystemTime::now() } else { attr.modified };
        Attr { ino, lasting, modified, ..attr }
    }

    /// Notes what the kernel is told of a node. An answer may be late: between its making and this note, a newer one may have been made
    /// and noted, and the kernel passes over what was asked for before it had to let go.
    pub(super) fn note_told(&self, node: &FileId, ino: u64, attr: &Attr) {
        let connected = match node {
            FileId::Record(CellPath { cell, path }, _) => self.cells.get(cell).map(|cell| (cell, path)),
            _ => None,
        };
        self.inodes.tell(ino, attr.record.as_ref(), |record| {
            let now = connected.as_ref().map(|(cell, path)| (cell.mirror.snapshot(), path));
            now.is_none_or(|(snapshot, path)| snapshot.records.get(*path).is_none_or(|now| now == record))
        });
    }

    fn lasts(&self, node: &FileId, ino: u64, attr: &Attr) -> bool {
        let Some(caches) = self.caches.get() else { return false };
        if caches.letting.is_pending(ino) || self.dir_is_held(node) {
            return false;
        }
        let (cell, path) = match node {
            FileId::Root | FileId::Control => return true,
            FileId::ControlFile(_) | FileId::Scratch(_) => return false,
            FileId::Dir(CellPath { path, .. }) if path.is_root() => return true,
            FileId::Dir(CellPath { cell, path })
            | FileId::Record(CellPath { cell, path }, _)
            | FileId::Lock(CellPath { cell, path }) => (cell, path),
        };
        let Some(connected) = self.cells.get(cell) else { return false };
        let is_stored = |dir: &TopoPath| dir.is_root() || connected.mirror.snapshot().has_children(dir);
        if self.echo.is_coming(node) || self.recent.is_disputed(node) {
            return false;
        }
        let place = CellPath::new(cell, path);
        // Noted before the last look at the watch: if that fails, it is known that this was given.
        self.gives_lasting(cell)
            && connected.mirror.is_fresh()
            && match node {
                FileId::Record(..) => {
                    attr.record.is_some() && !self.committing.contains(&place) && self.handles.drafts(ino).is_empty()
                }
                FileId::Dir(..) => is_stored(path) && !self.overlay.has_dir(&place),
                _ => is_stored(path),
            }
    }

    /// Notes that the kernel is given something of a cell that it keeps until it is told. False if nobody would tell it.
    pub(super) fn gives_lasting(&self, cell: &CellName) -> bool {
        self.followed(cell).is_some_and(|(_, followed)| {
            followed.lasting.fetch_add(1, Ordering::SeqCst);
            true
        })
    }

    /// Whether the kernel may keep for a moment that there is no such name: not if it could be a record's, or a cell's.
    pub(super) fn absence_lasts(&self, parent: u64, name: &str) -> bool {
        if self.caches.get().is_none() || name == LOCK_FILE {
            return false;
        }
        match self.inodes.node(parent) {
            Some(FileId::Dir(CellPath { cell, path: dir })) => {
                let Some(connected) = self.cells.get(&cell).filter(|cell| cell.mirror.is_fresh()) else { return false };
                let snapshot = connected.mirror.snapshot();
                let (Ok(child), Err(_)) = (dir.join(name), self.record_of_name(&cell, &snapshot, &dir, name)) else {
                    return false;
                };
                let raw = FileId::Record(CellPath::new(&cell, &child), crate::record::Form::Raw);
                !self.is_held(parent)
                    && !self.echo.is_coming(&raw)
                    && !self.echo.is_coming(&FileId::Dir(CellPath { cell, path: child }))
            }
            _ => false,
        }
    }

    /// Waits until what the kernel keeps of a cell is no older than the last snapshot that was taken: what is answered from that, and what
    /// is read through the kernel's cache next, must not contradict each other.
    pub(super) async fn kernel_keeps_up(&self, cell: &CellName) {
        if let Some((connected, followed)) = self.followed(cell).filter(|_| self.caches.get().is_some()) {
            followed.let_go_of(connected.mirror.published()).await;
        }
    }

    /// A cell whose changes are told.
    pub(super) fn followed(&self, cell: &CellName) -> Option<(Arc<Cell>, Arc<Followed>)> {
        let connected = self.cells.get(cell)?;
        let followed = self.echo.followed(&connected)?;
        Some((connected, followed))
    }

    /// How the kernel may read a record that is opened for reading: whether through its page cache, and whether it may keep
    /// the pages that it has. At the first time the content goes there right away.
    pub(super) fn through_cache(
        &self,
        ino: u64,
        (cell, path): (&CellName, &TopoPath),
        record: &Record,
        content: &Bytes,
    ) -> Opened {
        // While a record changes, the kernel may cut its new content to the old size.
        let is_quiet =
            |(cell, followed): (Arc<Cell>, Arc<Followed>)| cell.mirror.is_fresh() && !followed.is_changing(path);
        let quiet = self.followed(cell).is_some_and(is_quiet);
        let is_free = |caches: &&Caches| quiet && content.len() <= CACHED_LIMIT && !caches.letting.is_pending(ino);
        let Some(caches) = self.caches.get().filter(is_free) else {
            return Opened::direct();
        };
        let state = State::of(record);
        // Whoever is reading might hold the page that is to be given.
        if !self.handles.is_open(ino) && self.inodes.begin_giving(ino, state, caches.give_at_once) {
            let done = scopeguard::guard((), |()| self.inodes.end_giving(ino));
            caches.kernel.give(ino, content);
            drop(done);
            return Opened::cached(true);
        }
        Opened::cached(self.inodes.open_pages(ino, state))
    }

    /// A record's content for the kernel's pages: of the state whose attributes the kernel was told last, since it cuts off what is longer
    /// than the size that it knows, and fills up what is shorter. A read(2) has just asked for the attributes, if they have been
    /// let go of; who looks into memory has not, and sees what there is now. `None` if the record is gone.
    pub(super) fn page_content(&self, caller: &Caller, ino: u64, reader: &Reader) -> Result<Option<Bytes>> {
        let Reader { cell, path, form, .. } = reader;
        let snapshot = self.cell(cell)?.snapshot_now()?;
        let told = self.inodes.told_of(ino).filter(|told| !told.let_go || caller.reads());
        let value = told.map(|told| told.value).or_else(|| Some(snapshot.records.get(path)?.value.clone()));
        value.map(|value| self.records.show(cell, path, &value, *form)).transpose()
    }

    /// Lets the kernel ask again about what a change concerns. What is returned waits for the files, and for the directories.
    pub(super) fn let_go_of<'a>(
        &self,
        cell: &CellName,
        changes: impl Iterator<Item = (&'a TopoPath, bool)>,
    ) -> Option<(Asked, Asked)> {
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for (path, relists) in changes {
            let forms = self.forms(cell, path).map(|form| FileId::Record(CellPath::new(cell, path), form));
            files.extend(forms.filter_map(|node| self.inodes.known(&node)));
            if relists {
                let above = std::iter::successors(path.parent(), TopoPath::parent);
                let above = std::iter::once(path.clone())
                    .chain(above)
                    .map(|dir| FileId::Dir(CellPath { cell: cell.clone(), path: dir }));
                dirs.extend(above.filter_map(|node| self.inodes.known(&node)));
            }
        }
        for numbers in [&mut files, &mut dirs] {
            numbers.sort_unstable();
            numbers.dedup();
        }
        let caches = self.caches.get().filter(|_| !files.is_empty() || !dirs.is_empty())?;
        Some(caches.letting.let_go(files, dirs, false))
    }

    /// The same, about what the mirror tells. Waits for the files: who lists a directory is told when the event is raised.
    pub(super) async fn let_go_of_updates(&self, cell: &Cell, updates: &[Update]) {
        let relists = |update: &Update| update.old.is_none() || update.new.is_none();
        let asked = self.let_go_of(&cell.name, updates.iter().map(|update| (&update.path, relists(update))));
        if let Some((files, _)) = asked {
            files.done().await;
        }
    }

    /// Lets the kernel ask again about everything of a cell.
    pub(super) async fn let_go_of_cell(&self, cell: &CellName) {
        self.let_go(self.inodes.of_cell(cell), false).await;
    }

    /// The same, and about all names in it: so many calls that would have told of them are lost.
    pub fn forget_cell(&self, cell: &CellName, lost: u64) {
        tracing::warn!(%cell, lost, "too much has happened at once: events are lost, and the kernel forgets the cell");
        self.echo.lost.fetch_add(lost, Ordering::Relaxed);
        let numbers = self.inodes.of_cell(cell).into_iter().chain([super::ROOT]).collect();
        self.ask_to_let_go(numbers, true);
    }

    /// Lets the kernel ask again about everything.
    pub async fn let_go_of_all(&self) {
        self.let_go(self.inodes.all(), false).await;
    }

    async fn let_go(&self, numbers: Vec<u64>, names: bool) {
        if let Some((files, dirs)) = self.ask_to_let_go(numbers, names) {
            tokio::join!(files.done(), dirs.done());
        }
    }

    fn ask_to_let_go(&self, numbers: Vec<u64>, names: bool) -> Option<(Asked, Asked)> {
        let is_dir = |ino: &u64| self.inodes.node(*ino).is_some_and(|node| node.is_dir());
        let (dirs, files) = numbers.into_iter().partition(is_dir);
        Some(self.caches.get()?.letting.let_go(files, dirs, names))
    }

    /// What comes before an event is raised, from the thread that does so: nothing that a reply under way has brought to the kernel
    /// may be older than the event. False if somebody holds the directory: then it must wait. May hang.
    pub fn settle(&self, job: &Job) -> bool {
        let Some(caches) = self.caches.get() else { return true };
        let Some(parent) = self.inodes.known(&job.parent()) else { return true };
        if caches.letting.is_held(parent) {
            return false;
        }
        let name = match job.happened {
            Happened::Created | Happened::DirMade | Happened::Unnoticed => job.name(),
            // The call that raises the event is to find the name.
            Happened::Changed | Happened::Deleted | Happened::DirRemoved => NO_NAME,
        };
        caches.kernel.drop_name(parent, name);
        if job.happened != Happened::Changed {
            caches.letting.let_go_of_dir_here(parent);
        }
        // What the kernel knew the first time is right since then. To drop it again would make the kernel pass over attributes that are
        // on their way, and readers would see new content cut to an old size.
        if let Some(ino) = self.inodes.known(job.node()).filter(|ino| self.inodes.was_unknown(*ino)) {
            match job.node().is_dir() {
                true => caches.letting.let_go_of_dir_here(ino),
                false => drop_inode(&self.inodes, &*caches.kernel, ino),
            }
        }
        true
    }

    /// What is being done for a job hangs: somebody holds the directory.
    pub fn hangs(&self, job: &Job) -> Option<u64> {
        let parent = self.inodes.known(&job.parent())?;
        self.caches.get()?.letting.hangs(parent);
        let directory = job.parent();
        tracing::warn!(%directory, "somebody holds the directory: until it is let go of, nothing is told of it, and nothing is kept");
        Some(parent)
    }

    /// It has come to its end. What has not been told is told now.
    pub fn hangs_no_more(&self, parent: Option<u64>, job: Option<Job>) {
        if let (Some(caches), Some(parent)) = (self.caches.get(), parent) {
            caches.letting.hangs_no_more(parent);
        }
        if let Some(job) = job {
            self.echo.jobs.defer(parent.unwrap_or(0), job);
        }
    }

    /// A job that cannot be done before its directory is let go of.
    pub fn defer(&self, job: Job) {
        let parent = self.inodes.known(&job.parent()).unwrap_or(0);
        self.echo.jobs.defer(parent, job);
    }

    /// The content of a file where the kernel opens without asking.
    pub async fn read_unopened(
        &self,
        caller: &Caller,
        ino: u64,
        offset: u64,
        size: u32,
        direct: bool,
    ) -> Result<Bytes> {
        let content = match self.node(ino)? {
            FileId::ControlFile(super::ControlFile::Events) => {
                return Ok(self.control.events.read_at(offset, size as usize));
            }
            FileId::ControlFile(file) => self.rendered(file).await.0,
            FileId::Lock(CellPath { cell, path: dir }) => self.lock_content(&cell, &dir).await?,
            FileId::Record(CellPath { cell, path }, form) if direct => {
                self.shown(caller, &cell, &path, form, true).await?.0
            }
            FileId::Record(CellPath { cell, path }, form) => {
                let reader = Reader::new(&cell, &path, form, Bytes::new());
                self.page_content(caller, ino, &reader)?.ok_or_else(Error::not_found)?
            }
            FileId::Scratch(_) => return Err(Error::new(Kind::ReadOnly, "the mount is read-only")),
            FileId::Root | FileId::Control | FileId::Dir(..) => {
                return Err(Error::new(Kind::IsDirectory, "is a directory"));
            }
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        Ok(content.slice(start..start.saturating_add(size as usize).min(content.len())))
    }

    /// What a control file shows, where it is not opened: the kernel asks for its size and then for its content, perhaps in
    /// pieces, and all of that must fit.
    pub(super) async fn rendered(&self, file: super::ControlFile) -> (Bytes, SystemTime) {
        /// How long it shows the same.
        const TIME: Duration = Duration::from_millis(200);
        let known = self.rendered.lock().get(&file).cloned();
        if let Some((content, when)) = known.filter(|(_, when)| when.elapsed().is_ok_and(|age| age < TIME)) {
            return (content, when);
        }
        let shown = (self.control_content(file).await, SystemTime::now());
        self.rendered.lock().insert(file, shown.clone());
        shown
    }

    /// Whether an open file that the kernel has opened without asking has more to read, for `.topofs/events`: once for all that
    /// is new. `waiter` is the kernel's name of the open file.
    pub fn has_news(&self, ino: u64, waiter: u64) -> bool {
        /// Open files remembered.
        const WAITERS: usize = 1_000;
        if !matches!(self.inodes.node(ino), Some(FileId::ControlFile(super::ControlFile::Events))) {
            return true;
        }
        let end = self.control.events.size() as u64;
        let mut waiters = self.waiters.lock();
        if waiters.len() >= WAITERS && !waiters.contains_key(&waiter) {
            waiters.clear();
        }
        waiters.insert(waiter, end).unwrap_or(0) < end
    }

    /// The kernel refuses all writes from now on, so that opening a file need not be asked for.
    pub fn open_unasked(&self) {
        self.unasked.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Whether the kernel opens files without asking.
    pub fn opens_unasked(&self) -> bool {
        self.unasked.load(std::sync::atomic::Ordering::Acquire)
    }
}
