//! The contract of every store.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use super::commits::Commits;
use crate::backend::{Applied, Change, Fetched, Limits};
use crate::cells::Cell;
use crate::error::{Error, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::process::Actor;

/// The records that must not be saved while somebody else holds the lock of their directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RespectLocks {
    /// None.
    None,
    /// Keyspace records, as Vitess insists, and the routing rules of keyspaces.
    Keyspace,
    /// Shard records, too.
    All,
}

impl RespectLocks {
    /// All choices, from the least to the most.
    pub const ALL: [RespectLocks; 3] = [RespectLocks::None, RespectLocks::Keyspace, RespectLocks::All];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            RespectLocks::None => "none",
            RespectLocks::Keyspace => "keyspace",
            RespectLocks::All => "all",
        }
    }
}

/// The records of one cell.
///
/// - A commit makes all changes or none. It fails with [`crate::error::Kind::Exists`], `NotFound` or `Conflict` if a
///   guard is not met, and with `TooLarge` or `TooMany` if a change exceeds [`Store::limits`].
/// - After a commit, the next snapshot and the next fetch contain it.
/// - Each version of a record has a greater revision than the one before; a recreated record has another creation.
/// - A snapshot never changes. All its records existed at the same time.
///
/// By default nothing can be changed.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// The cell.
    fn cell(&self) -> &CellName;

    /// The records, after they are loaded. Fails at once if they are known to be out of reach.
    async fn snapshot(&self) -> Result<Arc<Snapshot>>;

    /// The records, if they are loaded.
    fn snapshot_now(&self) -> Result<Arc<Snapshot>>;

    /// The records as far as they are known, even if nobody may be shown them.
    fn known(&self) -> Arc<Snapshot>;

    /// Whether a record was stored here, as far as is known, though it may be gone.
    fn was_record(&self, path: &TopoPath) -> bool {
        let _ = path;
        false
    }

    /// The cell that these are the records of, with its watch and its locks; `None` if they are a copy.
    fn connected(&self) -> Option<&Arc<Cell>> {
        None
    }

    /// Whether nothing ever changes.
    fn is_frozen(&self) -> bool {
        false
    }

    /// One record as it is stored now. A snapshot may be older.
    async fn fetch(&self, path: &TopoPath) -> Result<Fetched>;

    /// Makes all changes or none, for an actor, and informs a listener.
    async fn commit(&self, actor: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Applied> {
        let _ = (actor, changes, commits);
        Err(Error::read_only())
    }

    /// Fails if a change of this record would be refused now, whatever its content. Success promises nothing.
    async fn refuse_early(&self, actor: Actor, path: &TopoPath) -> Result<()> {
        let _ = (actor, path);
        Err(Error::read_only())
    }

    /// Fails if a removal of this record would be refused now.
    async fn refuse_removal(&self, actor: Actor, path: &TopoPath) -> Result<()> {
        self.refuse_early(actor, path).await
    }

    /// The limits of the store.
    fn limits(&self) -> Limits {
        Limits { value: 0, changes: 0 }
    }

    /// Names of what the store knows about a record beside its version.
    fn attributes(&self) -> &'static [&'static str] {
        &[]
    }

    /// One of [`Store::attributes`], as it is now; `None` if this record has none.
    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>> {
        let _ = (path, name);
        Ok(None)
    }

    /// Whether the store hears of every change as soon as it happens, so that what was read may be kept.
    fn is_fresh(&self) -> bool {
        true
    }
}

/// The order of cells in a tree.
pub(super) fn global_first(one: &CellName, other: &CellName) -> Ordering {
    other.is_global().cmp(&one.is_global()).then_with(|| one.cmp(other))
}

/// The records of all cells of one tree.
pub trait Stores: Send + Sync + Debug {
    /// The cells, the global topology first.
    fn cells(&self) -> Vec<CellName>;

    /// The records of a cell.
    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>>;

    /// All of them, in the order of [`Stores::cells`].
    fn all(&self) -> Vec<Arc<dyn Store>> {
        self.cells().iter().filter_map(|cell| self.get(cell)).collect()
    }
}
