//! The door of the tree: every file operation comes through it. Only the door knows inode numbers, counts lookups and
//! hands out handles. It finds the [`FileId`] of a number, asks the namespace of that file (or the helper's namespace,
//! if the helper calls), and lets `kernel/` note the answer. It must never know fuser, nor any backend by name.
//!
//! Rooms: `records/` (records as files), `control.rs` (`.topofs`), `kernel/` (what the kernel knows), `handles.rs`
//! (what is open), `caller.rs` (who calls), `file.rs` and `namespace.rs` (the words and the seams).
//!
//! Every operation is a future. An operation that needs only mirrors and buffers is ready at the first poll; the others
//! wait for a backend, no longer than its time-out. Few of our own locks are held across such a wait. A draft's turn is
//! one, so that its saves follow each other; docs/internals/locks.md lists them all.

use std::ffi::OsStr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

use crate::cells::Cells;
use crate::control::Control;
use crate::error::{Error, Kind, Result};
use crate::locks::{Locks, Patience};
use crate::name::{CONTROL_DIR, CellName, HISTORY_DIR};
use crate::record::Records;
use crate::store::{CellRules, LiveCells};

pub(crate) mod caller;
#[cfg(test)]
pub(crate) mod conformance;
mod control;
pub(crate) mod file;
mod handles;
pub(crate) mod kernel;
pub(crate) mod namespace;
mod opened;
pub(crate) mod options;
mod past;
pub(crate) mod records;
pub(crate) mod room;
mod spaces;

pub use crate::store::RespectLocks;
pub use caller::Caller;
pub use file::{
    About, Attr, Caching, DirEntry, Entry, FileId, FileKind, OpenMode, Opened, ScratchId, SetAttr, SpaceId, SpaceKind,
};
pub use kernel::KernelCaches;
pub use kernel::inodes::ROOT;
pub use kernel::listings::Listing;
pub use namespace::Rest;
pub use options::{TreeOptions, Views};
pub use records::lockfile::LockCall;
pub use spaces::STAGE_COMMANDS;

use control::ControlFiles;
use file::{Defaults, PastFile};
use handles::Handles;
use kernel::Kernel;
use kernel::listings::Listings;
use kernel::space::SpaceKernel;
use namespace::{Inode, Name, Namespace, Open};
use options::Background;
use past::PastFiles;
use records::RecordFiles;
use spaces::{Space, Spaces};

/// Room and contents of a mount.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Room for scratch files, in bytes.
    pub quota: u64,
    /// Bytes that scratch files use.
    pub used: u64,
    /// Records of the connected cells.
    pub records: u64,
}

/// What the helper process sees: a namespace of its own.
pub(crate) trait Helper: Namespace {
    /// Whether a request comes from a helper.
    fn asks(&self, caller: &Caller) -> bool;
}

/// The handle of an open file with which nothing can be done.
const NOTHING: u64 = u64::MAX;

/// The only kind of extended attributes that exists here.
const USER_XATTR: &str = "user.";

/// The tree of one mount.
#[derive(Debug)]
pub struct Tree {
    cells: Arc<Cells>,
    records: Arc<RecordFiles>,
    control: Arc<ControlFiles>,
    past: Arc<PastFiles>,
    spaces: Arc<Spaces>,
    helper: OnceLock<Arc<dyn Helper>>,
    kernel: Arc<Kernel>,
    handles: Arc<Handles>,
    listings: Listings,
    journal: Arc<Control>,
    background: Background,
}

impl Tree {
    /// A tree over connected cells.
    pub fn new(cells: Arc<Cells>, codec: Arc<Records>, journal: Arc<Control>, options: TreeOptions) -> Arc<Self> {
        let locks = Locks::new(journal.clone(), Patience::new(options.request_timeout));
        if let Some(global) = cells.get(&CellName::global()) {
            locks.follow(&global);
        }
        let (kernel, handles, background) =
            (Arc::<Kernel>::default(), Arc::<Handles>::default(), Background::default());
        let TreeOptions { uid, gid, umask, .. } = options;
        let defaults = Defaults { uid, gid, umask, mounted: SystemTime::now() };
        let rules =
            CellRules { cells: cells.clone(), control: journal.clone(), force_removal: options.force_cell_removal };
        let live = Arc::new(LiveCells::new(locks.clone(), options.respect_locks, rules));
        let forms = (options.forms.clone(), options.list.clone());
        let records = RecordFiles::new(
            (live.clone(), codec.clone(), journal.clone()),
            (options, defaults),
            (SpaceKernel::live(kernel.clone()), handles.clone(), locks.clone()),
            background.clone(),
        );
        let past = PastFiles::new((cells.clone(), codec), forms, defaults, records.room.clone());
        let spaces = Spaces::new(records.clone(), (cells.clone(), live), journal.clone());
        let counted = (records.clone(), spaces.clone());
        let control = ControlFiles::new(
            (journal.clone(), cells.clone(), locks, records.own.clone()),
            (kernel.clone(), defaults),
            records.room.clone(),
            Arc::new(move |file| counted.0.counts(file).with(counted.1.counts(), counted.1.scratch_files())),
        );
        let (helper, listings) = (OnceLock::new(), Listings::default());
        Arc::new(Self { cells, records, control, past, spaces, helper, kernel, handles, listings, journal, background })
    }

    /// Ends all background work and waits for it.
    pub async fn shutdown(&self) {
        self.background.stop.cancel();
        self.kernel.outbox.close();
        self.background.tasks.close();
        self.background.tasks.wait().await;
    }

    /// `.topofs/metrics` now. Asks no service.
    pub async fn metrics(&self) -> Result<Bytes> {
        self.control.metrics().await
    }

    /// What the control files show.
    pub fn control(&self) -> &Arc<Control> {
        &self.journal
    }

    /// The locks of this mount.
    pub fn locks(&self) -> &Arc<Locks> {
        &self.records.locks
    }

    pub(crate) fn cells(&self) -> &Arc<Cells> {
        &self.cells
    }

    pub(crate) fn records(&self) -> &Arc<RecordFiles> {
        &self.records
    }

    pub(crate) fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Answers helpers by a namespace of their own from now on. Each mount has one.
    pub(crate) fn answer_helpers(&self, helper: Arc<dyn Helper>) {
        let _ = self.helper.set(helper);
    }

    /// Starts using the kernel's caches. `threads` is the number of threads that answer requests.
    pub fn use_caches(&self, caches: Arc<dyn KernelCaches>, threads: usize) {
        self.kernel.use_caches(caches, threads);
    }

    /// Makes the kernel ask again about everything.
    pub async fn invalidate_all(&self) {
        self.kernel.invalidate_all().await;
    }

    /// From now on the kernel refuses all writes itself, so it need not ask before it opens a file.
    pub fn open_unasked(&self) {
        self.kernel.open_unasked();
    }

    /// Whether the kernel opens files without asking.
    pub fn opens_unasked(&self) -> bool {
        self.kernel.opens_unasked()
    }

    /// Whether an inode, or a name in it, is `.topofs` or in it.
    pub fn is_control(&self, ino: u64, name: Option<&OsStr>) -> bool {
        let file = self.kernel.inodes.file(ino);
        matches!(file, Some(FileId::Control | FileId::ControlFile(_) | FileId::Past(_)))
            || (ino == ROOT && name == Some(OsStr::new(CONTROL_DIR)))
    }

    /// The path of an inode, or of a name in it, as people see it.
    pub fn describe(&self, ino: u64, name: Option<&OsStr>) -> String {
        let base = match self.kernel.inodes.file(ino) {
            None => format!("inode {ino}"),
            Some(FileId::Inside(id, file)) => {
                let file = FileId::Inside(id.clone(), file);
                self.spaces.get(&id).map_or_else(|| file.to_string(), |space| space.describe(&file))
            }
            Some(file) => self.records.describe(&file),
        };
        match name {
            None => base,
            Some(name) => format!("{}/{}", base.trim_end_matches('/'), name.to_string_lossy()),
        }
    }

    /// Paths of all scratch files.
    pub fn scratch_files(&self) -> Vec<String> {
        let live = self.records.scratch.survey().0.into_iter().map(|at| at.to_string());
        live.chain(self.spaces.scratch_files()).collect()
    }

    /// Stages with changes that are not committed: name, and how many.
    pub fn uncommitted(&self) -> Vec<(String, usize)> {
        self.spaces.uncommitted()
    }

    /// What statfs shows.
    pub fn usage(&self) -> Usage {
        let (quota, used) = self.records.scratch.usage();
        let cells = self.cells.all();
        let records = cells.iter().map(|cell| cell.mirror.snapshot().records.len() as u64).sum();
        Usage { quota, used, records }
    }

    /// What an inode stands for.
    fn inode(&self, ino: u64) -> Result<Inode> {
        Ok(Inode { ino, file: self.kernel.inodes.file(ino).ok_or_else(Error::not_found)? })
    }

    /// The namespace of the helper, if the helper calls. Only this function decides that.
    fn helper(&self, caller: &Caller) -> Option<&dyn Namespace> {
        let helper = self.helper.get().filter(|helper| helper.asks(caller))?;
        Some(&**helper)
    }

    /// The namespace that answers a caller's question about a file.
    fn space(&self, caller: &Caller, file: &FileId) -> Space<'_> {
        self.helper(caller).map_or_else(|| self.space_of(file), Space::Lasting)
    }

    /// The namespace that a file belongs to.
    fn space_of(&self, file: &FileId) -> Space<'_> {
        Space::Lasting(match file {
            FileId::Control | FileId::ControlFile(_) => &self.control,
            FileId::Past(_) => &self.past,
            FileId::Spaces(_) => &self.spaces,
            FileId::Inside(id, _) => return self.spaces.get(id).map_or(Space::Gone, Space::Inside),
            FileId::Root
            | FileId::Dir(_)
            | FileId::Record(..)
            | FileId::Lock(_)
            | FileId::Links(..)
            | FileId::Link(_)
            | FileId::Scratch(_)
            | FileId::About(_) => &self.records,
        })
    }

    /// The namespace that answers a change. Helpers change nothing; on a read-only mount, nobody else does.
    fn space_to_change(&self, caller: &Caller, file: &FileId) -> Result<Space<'_>> {
        match self.helper(caller) {
            Some(helper) => Ok(Space::Lasting(helper)),
            None if self.records.options.read_only => Err(Error::read_only()),
            None => Ok(self.space_of(file)),
        }
    }

    /// Makes an answer about a file: notes what the kernel is shown, and says whether the kernel may keep it. The
    /// answer may be late: a newer answer may have been made and noted after this one was made and before it is noted
    /// here. Besides, the kernel ignores attributes that it asked for before an invalidation.
    fn answered(&self, space: &dyn Namespace, inode: &Inode, attr: Attr) -> Entry {
        let Inode { ino, file } = inode;
        self.kernel.inodes.note_reply(*ino, attr.record.as_ref(), |record| space.is_current(file, record));
        self.kernel.answer((file, *ino), attr, space.keep(file), |attr| space.is_settled(inode, attr))
    }

    /// Counts a lookup of a file, before anybody looks at its attributes: whatever is published from now on is
    /// invalidated.
    fn counted(&self, file: FileId) -> Inode {
        Inode { ino: self.kernel.inodes.count_lookup(&file), file }
    }

    /// Finds a name in a directory; the kernel knows the inode from then on.
    pub async fn lookup(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<Entry> {
        let name = known_name(name)?;
        let dir = self.inode(parent)?.file;
        let (space, file) = match self.helper(caller) {
            None => {
                let file = match joint(&dir, name) {
                    Some(file) => file,
                    None => self.space_of(&dir).lookup(caller, &dir, name).await?,
                };
                (self.space_of(&file), file)
            }
            Some(helper) => (Space::Lasting(helper), helper.lookup(caller, &dir, name).await?),
        };
        // The kernel hears of the lookup only if it is answered: not after an error, and not if the caller gives up.
        let inode = scopeguard::guard(self.counted(file), |inode| self.forget(inode.ino, 1));
        let attr = space.attr_of_name(caller, &inode).await?;
        Ok(self.answered(&*space, &scopeguard::ScopeGuard::into_inner(inode), attr))
    }

    /// As [`Tree::lookup`], but `None` if there is no such name and the kernel may keep that for a moment.
    pub async fn lookup_or_absent(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<Option<Entry>> {
        match self.lookup(caller, parent, name).await {
            Err(error) if error.kind == Kind::NotFound && self.kernel.has_caches() => {
                let lasts = match (self.inode(parent), name.to_str()) {
                    (Ok(dir), Some(name)) => self.space(caller, &dir.file).absence_lasts(&dir, name),
                    _ => false,
                };
                if lasts { Ok(None) } else { Err(error) }
            }
            outcome => outcome.map(Some),
        }
    }

    /// The kernel has forgotten so many lookups of an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.kernel.inodes.forget(ino, lookups);
    }

    /// Attributes of an inode.
    pub async fn getattr(&self, caller: &Caller, ino: u64) -> Result<Entry> {
        let inode = self.inode(ino)?;
        let space = self.space(caller, &inode.file);
        let attr = space.attr(caller, &inode).await?;
        Ok(self.answered(&*space, &inode, attr))
    }

    /// Changes those attributes that can be changed.
    pub async fn setattr(&self, caller: &Caller, ino: u64, handle: Option<u64>, set: SetAttr) -> Result<Entry> {
        let inode = self.inode(ino)?;
        let open = handle.and_then(|handle| self.handles.get(handle).ok());
        self.space_to_change(caller, &inode.file)?.set_attr(caller, &inode, open, &set).await?;
        self.getattr(caller, ino).await
    }

    /// Lists a directory from an offset on; 0 lists it anew. Entries keep their offsets while a reader continues,
    /// whatever comes and goes meanwhile.
    pub async fn listing(&self, caller: &Caller, ino: u64, offset: u64) -> Result<Listing> {
        let dir = self.inode(ino)?.file;
        let (number, passed) = Listing::place(offset);
        if offset != 0
            && let Some(entries) = self.listings.get(number, &dir)
        {
            return Ok(Listing::from(number, entries, passed));
        }
        let mut entries = self.space(caller, &dir).list(caller, &dir).await?;
        if dir == FileId::Control {
            let entry = |kind: SpaceKind| DirEntry { name: kind.name().to_owned(), file: FileId::Spaces(kind) };
            entries.extend(SpaceKind::ALL.map(entry));
            entries.push(DirEntry { name: HISTORY_DIR.to_owned(), file: FileId::Past(PastFile::Top) });
        }
        let entries = Arc::new(entries);
        // If an offset belongs to no listing (any more), it is a position in this one.
        let number = self.listings.keep(&dir, caller.uid, &entries)?;
        Ok(Listing::from(number, entries, passed))
    }

    /// An entry of a listing with its attributes; the kernel knows the inode from then on. `None` if it has gone
    /// meanwhile.
    pub fn listed(&self, entry: &DirEntry) -> Option<Entry> {
        let space = self.space_of(&entry.file);
        let inode = self.counted(entry.file.clone());
        match space.attr_of_entry(&inode.file) {
            Ok(attr) => Some(self.answered(&*space, &inode, attr)),
            Err(_) => {
                self.forget(inode.ino, 1);
                None
            }
        }
    }

    /// Attributes of any directory.
    pub fn dir_attr(&self) -> Attr {
        self.records.defaults.dir()
    }

    /// The inode number of an entry of a listing.
    pub fn number(&self, entry: &DirEntry) -> u64 {
        self.kernel.inodes.number(&entry.file)
    }

    /// Opens a file.
    pub async fn open(&self, caller: &Caller, ino: u64, mode: OpenMode) -> Result<Opened> {
        let inode = self.inode(ino)?;
        let space = match mode.write {
            true => self.space_to_change(caller, &inode.file)?,
            false => self.space(caller, &inode.file),
        };
        self.hand_out(caller, ino, space.open(caller, &inode, mode).await?)
    }

    /// Hands out a handle. Fails with EMFILE if too much is open.
    fn hand_out(&self, caller: &Caller, ino: u64, open: Open) -> Result<Opened> {
        let caching = open.caching;
        let Some(file) = open.file else { return Ok(Opened { handle: NOTHING, caching }) };
        Ok(Opened { handle: self.handles.add(caller.uid, ino, file)?, caching })
    }

    /// Makes a file and opens it.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Entry, Opened)> {
        let dir = self.inode(parent)?.file;
        let space = self.space_to_change(caller, &dir)?;
        let created = space.create(caller, Name { dir: &dir, name: new_name(name)? }, permissions, mode).await?;
        let inode = self.counted(created.file);
        let opened = self.hand_out(caller, inode.ino, created.open).inspect_err(|_| self.forget(inode.ino, 1))?;
        Ok((self.answered(&*space, &inode, created.attr), opened))
    }

    /// Makes a directory.
    pub async fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<Entry> {
        let dir = self.inode(parent)?.file;
        let space = self.space_to_change(caller, &dir)?;
        let (file, attr) = space.mkdir(caller, Name { dir: &dir, name: new_name(name)? }).await?;
        Ok(self.answered(&*self.space(caller, &file), &self.counted(file), attr))
    }

    /// Makes a symbolic link.
    pub async fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<Entry> {
        let dir = self.inode(parent)?.file;
        let space = self.space_to_change(caller, &dir)?;
        let (file, attr) = space.symlink(caller, Name { dir: &dir, name: new_name(name)? }).await?;
        Ok(self.answered(&*space, &self.counted(file), attr))
    }

    /// Where a symbolic link points.
    pub async fn read_link(&self, caller: &Caller, ino: u64) -> Result<String> {
        let file = self.inode(ino)?.file;
        self.space(caller, &file).read_link(caller, &file).await
    }

    /// Removes a directory.
    pub async fn rmdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<()> {
        let dir = self.inode(parent)?.file;
        self.space_to_change(caller, &dir)?.rmdir(caller, Name { dir: &dir, name: known_name(name)? }).await
    }

    /// Removes a file.
    pub async fn unlink(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<()> {
        let dir = self.inode(parent)?.file;
        self.space_to_change(caller, &dir)?.unlink(caller, Name { dir: &dir, name: known_name(name)? }).await
    }

    /// Renames.
    pub async fn rename(
        &self,
        caller: &Caller,
        (from_dir, from_name): (u64, &OsStr),
        (to_dir, to_name): (u64, &OsStr),
        no_replace: bool,
    ) -> Result<()> {
        let (from_dir, to_dir) = (self.inode(from_dir)?.file, self.inode(to_dir)?.file);
        let space = self.space_to_change(caller, &from_dir)?;
        let tree = |dir: &FileId| match dir {
            FileId::Inside(id, _) => Some(id.clone()),
            _ => None,
        };
        if tree(&from_dir) != tree(&to_dir) {
            return Err(Error::new(Kind::CrossDevice, "these are different trees: only a copy can cross"));
        }
        let from = Name { dir: &from_dir, name: known_name(from_name)? };
        space.rename(caller, from, Name { dir: &to_dir, name: new_name(to_name)? }, no_replace).await
    }

    /// One extended attribute; ENODATA if there is none of that name.
    pub async fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        // Other kinds (ACLs, labels, capabilities) do not exist. This errno stops `ls -l` from asking for three of them
        // for each file.
        let unsupported = || Error::new(Kind::Unsupported, "there are only user attributes");
        let name = name.to_str().filter(|name| name.starts_with(USER_XATTR)).ok_or_else(unsupported)?;
        let file = self.inode(ino)?.file;
        self.space_of(&file).xattr(&file, name).await
    }

    /// The names of all extended attributes, each followed by NUL.
    pub async fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        let file = self.inode(ino)?.file;
        let names = self.space_of(&file).xattr_names(&file).await?;
        Ok(names.iter().flat_map(|name| name.bytes().chain([0])).collect())
    }

    /// Attributes only describe, so they cannot be set or removed. A backup that is restored may set ours: nothing
    /// happens, because they come back with what they describe.
    pub fn setxattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        self.inode(ino)?;
        if name.to_str().is_some_and(|name| name.starts_with(records::xattrs::PREFIX)) {
            return Ok(());
        }
        Err(Error::new(Kind::Unsupported, "extended attributes cannot be set"))
    }
}

/// A name that stands for a file of another namespace than its directory.
fn joint(dir: &FileId, name: &str) -> Option<FileId> {
    match dir {
        FileId::Root => (name == CONTROL_DIR).then_some(FileId::Control),
        FileId::Control if name == HISTORY_DIR => Some(FileId::Past(PastFile::Top)),
        FileId::Control => SpaceKind::ALL.into_iter().find(|kind| kind.name() == name).map(FileId::Spaces),
        _ => None,
    }
}

/// A name from the kernel, to look up: what cannot be a name does not exist.
fn known_name(name: &OsStr) -> Result<&str> {
    let text = name.to_str().ok_or_else(Error::not_found)?;
    crate::name::check_component(text)?;
    Ok(text)
}

/// A name from the kernel, to make something.
fn new_name(name: &OsStr) -> Result<&str> {
    let text = name.to_str().ok_or_else(|| Error::new(Kind::Invalid, "names are UTF-8"))?;
    crate::name::check_component(text)?;
    Ok(text)
}
