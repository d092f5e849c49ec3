//! Records as files: the cells, their directories, the forms of records, locks, and what exists in this mount only.
//! Must never use an inode number except as a key, nor reach the kernel except through `tree/kernel`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub(crate) mod attrs;
pub(crate) mod change_set;
mod counts;
pub(crate) mod draft;
pub(crate) mod exclusive;
pub(crate) mod flush;
pub(crate) mod invalidate;
pub(crate) mod lockfile;
pub(crate) mod make;
pub(crate) mod memory;
pub(crate) mod names;
pub(crate) mod open;
pub(crate) mod reader;
pub(crate) mod removal;
pub(crate) mod rename;
pub(crate) mod save;
pub(crate) mod scratch;
pub(crate) mod scratch_file;
pub(crate) mod views;
pub(crate) mod xattrs;

use super::caller::Caller;
use super::file::{Attr, Defaults, DirEntry, FileId, OpenMode, SetAttr, SpaceId};
use super::handles::Handles;
use super::kernel::space::SpaceKernel;
use super::namespace::{Created, Inode, Keep, Name, Namespace, Open, OpenFile, Part};
use super::options::{Background, TreeOptions};
use super::room::Room;
use crate::cells::Cell;
use crate::control::Control;
use crate::error::{Error, Kind, Result};
use crate::in_flight::InFlight;
use crate::locks::Locks;
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Form, Records};
use crate::store::own::OwnCommits;
use crate::store::{Quota, Store, Stores};
use memory::Memory;
use scratch::ScratchSpace;

/// The files of a mount that stand for something in a cell.
#[derive(Debug)]
pub(crate) struct RecordFiles {
    pub stores: Arc<dyn Stores>,
    /// The live records, if these are of a tree beside them.
    live: Option<Arc<dyn Stores>>,
    /// Whether directories have locks. A snapshot has none, and nobody else sees a stage.
    has_locks: bool,
    pub codec: Arc<Records>,
    pub control: Arc<Control>,
    pub options: TreeOptions,
    pub defaults: Defaults,
    pub kernel: SpaceKernel,
    handles: Arc<Handles>,
    pub scratch: ScratchSpace,
    memory: Memory,
    /// What the memory of this mount holds for scratch files and stages.
    pub quota: Quota,
    pub room: Room,
    /// Records that will be removed unless the process that removed one of their names makes that name again.
    removals: removal::Removals,
    /// Saves of closed files.
    saving: InFlight<CellPath>,
    exclusive: exclusive::ExclusiveMakers,
    pub locks: Arc<Locks>,
    pub own: Arc<OwnCommits>,
    /// Commits of this mount that have not returned yet.
    pub committing: InFlight<CellPath>,
    shadowed: counts::Shadowed,
    views: views::ViewMemory,
    pub background: Background,
}

impl RecordFiles {
    /// The files of connected cells.
    pub fn new(
        (stores, codec, control): (Arc<dyn Stores>, Arc<Records>, Arc<Control>),
        (options, defaults): (TreeOptions, Defaults),
        (kernel, handles, locks): (SpaceKernel, Arc<Handles>, Arc<Locks>),
        background: Background,
    ) -> Arc<Self> {
        let quota = Quota::new(options.scratch_quota);
        Arc::new(Self {
            stores,
            live: None,
            has_locks: true,
            codec,
            control,
            scratch: ScratchSpace::new(quota.clone()),
            quota,
            options,
            defaults,
            kernel,
            handles,
            memory: Memory::default(),
            room: Room::default(),
            removals: removal::Removals::default(),
            saving: InFlight::default(),
            exclusive: exclusive::ExclusiveMakers::default(),
            locks,
            own: Arc::default(),
            committing: InFlight::default(),
            shadowed: counts::Shadowed::default(),
            views: views::ViewMemory::default(),
            background,
        })
    }

    /// The files of a tree beside this one: the same forms, bounds and kernel, but other records, and nothing that is
    /// in flight here.
    pub fn beside(&self, space: SpaceId, stores: Arc<dyn Stores>, defaults: Defaults) -> Arc<Self> {
        Arc::new(Self {
            stores,
            live: Some(self.live.clone().unwrap_or_else(|| self.stores.clone())),
            has_locks: false,
            codec: self.codec.clone(),
            control: self.control.clone(),
            scratch: ScratchSpace::new(self.quota.clone()),
            quota: self.quota.clone(),
            options: TreeOptions {
                uid: defaults.uid,
                gid: defaults.gid,
                umask: defaults.umask,
                ..self.options.clone()
            },
            defaults,
            kernel: self.kernel.of(space),
            handles: self.handles.clone(),
            memory: Memory::default(),
            room: self.room.clone(),
            removals: removal::Removals::default(),
            saving: InFlight::default(),
            exclusive: exclusive::ExclusiveMakers::default(),
            locks: self.locks.clone(),
            own: Arc::default(),
            committing: InFlight::default(),
            shadowed: counts::Shadowed::default(),
            views: views::ViewMemory::default(),
            background: self.background.clone(),
        })
    }

    /// The connected cell, for its locks.
    pub(crate) fn cell(&self, name: &CellName) -> Result<Arc<Cell>> {
        self.store(name)?.connected().cloned().ok_or_else(Error::not_found)
    }

    /// Whether a directory exists that holds no records: it is there to be locked.
    pub(crate) fn is_virtual(&self, cell: &CellName, path: &TopoPath) -> bool {
        self.has_locks && lockfile::is_virtual(cell, path)
    }

    /// The records of a cell.
    pub(crate) fn store(&self, cell: &CellName) -> Result<Arc<dyn Store>> {
        self.stores.get(cell).ok_or_else(Error::not_found)
    }

    /// Whether a stored key has the name of a decoded form of another key.
    fn shadows(&self, cell: &CellName, snapshot: &Snapshot, path: &TopoPath) -> bool {
        let Some((base, _)) = Form::of_name(path.as_str()) else { return false };
        TopoPath::parse(base)
            .is_ok_and(|base| snapshot.records.contains_key(&base) && self.codec.message(cell, &base).is_some())
    }

    /// The directory of a cell in which names can be made and removed.
    fn writable_dir(&self, dir: &FileId) -> Result<CellPath> {
        match dir {
            FileId::Dir(at) => Ok(at.clone()),
            FileId::Root => {
                Err(Error::new(Kind::NotPermitted, "the root holds the cells: a cell appears with its CellInfo record"))
            }
            FileId::Control | FileId::ControlFile(_) => {
                Err(Error::new(Kind::NotPermitted, "nothing can be made or removed in .topofs"))
            }
            FileId::Links(..) => {
                Err(Error::new(Kind::NotPermitted, "the links here are computed: nothing can be made or removed"))
            }
            FileId::Record(..) | FileId::Scratch(_) | FileId::Lock(..) | FileId::Link(_) => {
                Err(Error::new(Kind::NotDirectory, "not a directory"))
            }
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Err(Error::not_found()),
        }
    }

    /// The path of a file below the mount, as people see it.
    pub fn describe(&self, file: &FileId) -> String {
        match file {
            FileId::Scratch(id) => self.scratch.place(*id).map_or_else(|| file.to_string(), |at| at.to_string()),
            file => file.to_string(),
        }
    }
}

#[async_trait]
impl Namespace for Arc<RecordFiles> {
    async fn lookup(&self, caller: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        self.find(caller, dir, name).await
    }

    fn absence_lasts(&self, dir: &Inode, name: &str) -> bool {
        RecordFiles::absence_lasts(self, dir, name)
    }

    async fn attr(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        RecordFiles::attr(self, caller, inode).await
    }

    async fn attr_of_name(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        RecordFiles::attr_of_name(self, caller, inode).await
    }

    fn attr_of_entry(&self, file: &FileId) -> Result<Attr> {
        match file {
            FileId::Dir(_) => Ok(self.defaults.dir()),
            FileId::Links(of, view) => Ok(self.listed_links_attr(of, *view)),
            file => self.attr_now(file),
        }
    }

    async fn set_attr(
        &self,
        caller: &Caller,
        inode: &Inode,
        open: Option<Arc<dyn OpenFile>>,
        set: &SetAttr,
    ) -> Result<()> {
        RecordFiles::set_attr(self, caller, inode, open, set).await
    }

    fn keep(&self, file: &FileId) -> Keep {
        match file {
            FileId::Root => Keep::Always,
            FileId::Dir(at) if at.path.is_root() => Keep::Always,
            FileId::Dir(at) | FileId::Record(at, _) | FileId::Lock(at) => {
                let store = self.stores.get(&at.cell);
                match store.as_ref().map(|store| (store.connected(), store.is_frozen())) {
                    Some((Some(cell), _)) => Keep::WhileWatched(cell.clone()),
                    Some((None, true)) => Keep::Always,
                    _ => Keep::Never,
                }
            }
            FileId::Links(..) | FileId::Link(_) => Keep::Never,
            FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => Keep::Never,
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Keep::Never,
        }
    }

    fn is_settled(&self, inode: &Inode, attr: &Attr) -> bool {
        RecordFiles::is_settled(self, inode, attr)
    }

    fn is_current(&self, file: &FileId, record: &Record) -> bool {
        let FileId::Record(CellPath { cell, path }, _) = file else { return true };
        let now = self.stores.get(cell).map(|store| store.known());
        now.is_none_or(|snapshot| snapshot.records.get(path).is_none_or(|now| now == record))
    }

    async fn read_link(&self, _: &Caller, file: &FileId) -> Result<String> {
        views::read_link(file)
    }

    async fn symlink(&self, _: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        self.writable_dir(at.dir)?;
        Err(Error::new(Kind::NotPermitted, "there are no links but those that are computed"))
    }

    async fn list(&self, caller: &Caller, dir: &FileId) -> Result<Vec<DirEntry>> {
        RecordFiles::list(self, caller, dir).await
    }

    async fn open(&self, caller: &Caller, inode: &Inode, mode: OpenMode) -> Result<Open> {
        RecordFiles::open(self, caller, inode, mode).await
    }

    async fn read_unopened(&self, caller: &Caller, inode: &Inode, part: Part, direct: bool) -> Result<Bytes> {
        RecordFiles::read_unopened(self, caller, inode, part, direct).await
    }

    async fn create(&self, caller: &Caller, at: Name<'_>, permissions: u32, mode: OpenMode) -> Result<Created> {
        RecordFiles::create(self, caller, at, permissions, mode).await
    }

    async fn mkdir(&self, caller: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        RecordFiles::mkdir(self, caller, at).await
    }

    async fn rmdir(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        RecordFiles::rmdir(self, caller, at).await
    }

    async fn unlink(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        RecordFiles::unlink(self, caller, at).await
    }

    async fn rename(&self, caller: &Caller, from: Name<'_>, to: Name<'_>, no_replace: bool) -> Result<()> {
        RecordFiles::rename(self, caller, from, to, no_replace).await
    }

    async fn xattr(&self, file: &FileId, name: &str) -> Result<Vec<u8>> {
        RecordFiles::xattr(self, file, name).await
    }

    async fn xattr_names(&self, file: &FileId) -> Result<Vec<String>> {
        RecordFiles::xattr_names(self, file).await
    }
}
