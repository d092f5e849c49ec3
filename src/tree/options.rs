//! How a tree is made: its options, and where its background work runs. Must never decide anything.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::record::Form;
pub use crate::store::RespectLocks;

/// Whether there are computed links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Views {
    /// There are none.
    Off,
    /// They open by name.
    On,
    /// Listings show them, too.
    List,
}

impl Views {
    /// All choices.
    pub const ALL: [Views; 3] = [Views::Off, Views::On, Views::List];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Views::Off => "off",
            Views::On => "on",
            Views::List => "list",
        }
    }
}

/// How the tree is shown and what may be done to it.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// Refuse every change.
    pub read_only: bool,
    /// Refuse to delete stored records.
    pub no_delete: bool,
    /// Also delete the CellInfo records of cells that have serving keyspaces.
    pub force_cell_removal: bool,
    /// The forms that exist.
    pub forms: Vec<Form>,
    /// The forms that a directory listing shows.
    pub list: Vec<Form>,
    /// Whether there are links to what belongs together.
    pub views: Views,
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
    /// How long the kernel lets a request take; `None` if as long as it likes.
    pub request_timeout: Option<Duration>,
    /// Each open record shows the state that it had when it was opened.
    pub direct_io: bool,
    /// Unseen processes may write records, too.
    pub allow_unseen_writers: bool,
}

/// Work in the background. Only the end of the mount waits for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Background {
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}
