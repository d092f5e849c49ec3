//! The tree: names, inodes, forms, open files. It decides what every file operation means; it knows neither fuser nor any
//! backend by name.
//!
//! Every operation is a future. Those that only look at mirrors and buffers are ready at the first poll; the others wait for
//! a backend, bounded by its time-out. No lock is held across such a wait.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cells::{Cell, Cells};
use crate::control::{Control, ControlFile};
use crate::error::{Error, Kind, Result};
use crate::locks::{Locks, Patience};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Form, Records};
use crate::under_way::UnderWay;

mod attr;
mod cache;
mod caller;
mod change;
mod claim;
mod counts;
mod draft;
mod echo;
mod files;
mod handles;
mod inodes;
mod io;
mod jobs;
mod letting;
mod listing;
mod lockfile;
mod news;
mod node;
mod overlay;
mod removal;
mod rename;
mod room;
mod save;
mod view;
mod xattr;

pub use attr::{Attr, SetAttr};
pub use cache::KernelCaches;
pub use caller::Caller;
pub use echo::HELPERS;
pub use files::{OpenMode, Opened};
pub use inodes::ROOT;
pub use jobs::{Happened, Job, Work};
pub use listing::Listing;
pub use lockfile::LockCall;
pub use node::{FileId, ScratchId};
pub use view::DirEntry;

use caller::Recent;
use handles::Handles;
use inodes::Inodes;
use overlay::Overlay;

/// How the tree is shown and what may be done to it.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// Refuse every change.
    pub read_only: bool,
    /// Refuse to delete stored records.
    pub no_delete: bool,
    /// The forms that exist.
    pub forms: Vec<Form>,
    /// The forms that a directory listing shows.
    pub list: Vec<Form>,
    /// Owner of everything stored.
    pub uid: u32,
    /// Group of everything stored.
    pub gid: u32,
    /// Permission bits that are taken away.
    pub umask: u32,
    /// Room for scratch files, in bytes.
    pub scratch_quota: u64,
    /// The records whose saves need a lock.
    pub respect_locks: RespectLocks,
    /// How long the kernel lets a request take, if it does not let it take for ever.
    pub request_timeout: Option<Duration>,
    /// Processes that cannot be seen may write records, too.
    pub allow_unseen_writers: bool,
}

/// The records that are not saved while somebody else holds the lock of their directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RespectLocks {
    /// None.
    None,
    /// Keyspace records, as Vitess insists, and the routing rules of keyspaces.
    Keyspace,
    /// Shard records, too.
    All,
}

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

/// The tree of one mount.
#[derive(Debug)]
pub struct Tree {
    cells: Arc<Cells>,
    records: Arc<Records>,
    control: Arc<Control>,
    options: TreeOptions,
    inodes: Arc<Inodes>,
    listings: listing::Listings,
    handles: Handles,
    overlay: Overlay,
    recent: Recent,
    room: room::Room,
    /// Records that are to be removed unless whoever has removed one of their names makes it again.
    removals: removal::Removals,
    /// Saves of closed files.
    saving: UnderWay<CellPath>,
    claims: claim::Claims,
    locks: Arc<Locks>,
    echo: echo::Echo,
    /// Commits of this mount that have not come back yet.
    committing: UnderWay<CellPath>,
    caches: OnceLock<cache::Caches>,
    /// The kernel opens files without asking.
    unasked: AtomicBool,
    shadowed: counts::Shadowed,
    /// What control files show, where they are not opened.
    rendered: Mutex<HashMap<ControlFile, (Bytes, SystemTime)>>,
    /// What those who wait for events without having opened them have been told of.
    waiters: Mutex<HashMap<u64, u64>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    mounted: SystemTime,
}

impl Tree {
    /// A tree over connected cells.
    pub fn new(cells: Arc<Cells>, records: Arc<Records>, control: Arc<Control>, options: TreeOptions) -> Arc<Self> {
        let overlay = Overlay::new(options.scratch_quota);
        let locks = Locks::new(control.clone(), Patience::new(options.request_timeout));
        if let Some(global) = cells.get(&CellName::global()) {
            locks.follow(&global);
        }
        let tree = Arc::new(Self {
            cells,
            records,
            control,
            options,
            inodes: Arc::default(),
            listings: listing::Listings::default(),
            handles: Handles::default(),
            overlay,
            recent: Recent::default(),
            room: room::Room::default(),
            removals: removal::Removals::default(),
            saving: UnderWay::default(),
            claims: claim::Claims::default(),
            locks,
            echo: echo::Echo::default(),
            committing: UnderWay::default(),
            caches: OnceLock::new(),
            unasked: AtomicBool::new(false),
            shadowed: counts::Shadowed::default(),
            rendered: Mutex::default(),
            waiters: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            mounted: SystemTime::now(),
        });
        for cell in tree.cells.all() {
            tree.follow(&cell);
        }
        tree
    }

    /// Ends all background work and waits for it.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.echo_ends();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What the control files show.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The locks of this mount.
    pub fn locks(&self) -> &Arc<Locks> {
        &self.locks
    }

    /// The kernel forgets lookups of an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes.forget(ino, lookups);
    }

    /// The inode numbers of `.topofs` and what is in it.
    pub fn control_inodes(&self) -> std::collections::HashSet<u64> {
        let files = ControlFile::ALL.into_iter().map(FileId::ControlFile);
        files.chain([FileId::Control]).map(|node| self.inodes.number(&node)).collect()
    }

    /// The path of an inode, or of a name in it, as people see it.
    pub fn describe(&self, ino: u64, name: Option<&OsStr>) -> String {
        let base = match self.inodes.node(ino) {
            None => format!("inode {ino}"),
            Some(FileId::Scratch(id)) => match self.overlay.place(id) {
                Some(at) => at.to_string(),
                None => FileId::Scratch(id).to_string(),
            },
            Some(node) => node.to_string(),
        };
        match name {
            None => base,
            Some(name) => format!("{}/{}", base.trim_end_matches('/'), name.to_string_lossy()),
        }
    }

    /// Paths of all scratch files.
    pub fn scratch_files(&self) -> Vec<String> {
        self.overlay.survey().0.into_iter().map(|at| at.to_string()).collect()
    }

    /// What statfs tells.
    pub fn usage(&self) -> Usage {
        let (quota, used) = self.overlay.usage();
        let records = self.cells.all().iter().map(|cell| cell.mirror.snapshot().records.len() as u64).sum();
        Usage { quota, used, records }
    }

    /// Whether a stored key has the name of a decoded form of another one.
    fn shadows(&self, cell: &CellName, snapshot: &Snapshot, path: &TopoPath) -> bool {
        let Some((base, _)) = Form::of_name(path.as_str()) else { return false };
        TopoPath::parse(base)
            .is_ok_and(|base| snapshot.records.contains_key(&base) && self.records.message(cell, &base).is_some())
    }

    fn node(&self, ino: u64) -> Result<FileId> {
        self.inodes.node(ino).ok_or_else(Error::not_found)
    }

    fn cell(&self, name: &CellName) -> Result<Arc<Cell>> {
        self.cells.get(name).ok_or_else(Error::not_found)
    }

    /// The directory of a cell in which names can be made and removed.
    fn writable_dir(&self, ino: u64) -> Result<CellPath> {
        self.refuse_if_read_only()?;
        match self.node(ino)? {
            FileId::Dir(at) => Ok(at),
            FileId::Root => {
                Err(Error::new(Kind::NotPermitted, "the root holds the cells: a cell appears with its CellInfo record"))
            }
            FileId::Control | FileId::ControlFile(_) => {
                Err(Error::new(Kind::NotPermitted, "nothing can be made or removed in .topofs"))
            }
            FileId::Record(..) | FileId::Scratch(_) | FileId::Lock(..) => {
                Err(Error::new(Kind::NotDirectory, "not a directory"))
            }
        }
    }

    fn refuse_if_read_only(&self) -> Result<()> {
        if self.options.read_only { Err(Error::new(Kind::ReadOnly, "the mount is read-only")) } else { Ok(()) }
    }
}

/// A name given by the kernel, for looking up: what cannot be a name does not exist.
fn known_name(name: &OsStr) -> Result<&str> {
    let text = name.to_str().ok_or_else(Error::not_found)?;
    crate::name::check_component(text)?;
    Ok(text)
}

/// A name given by the kernel, for making something.
fn new_name(name: &OsStr) -> Result<&str> {
    let text = name.to_str().ok_or_else(|| Error::new(Kind::Invalid, "names are UTF-8"))?;
    crate::name::check_component(text)?;
    Ok(text)
}
