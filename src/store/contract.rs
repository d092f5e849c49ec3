//! What every store keeps to.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use super::commits::Commits;
use crate::backend::{Applied, Change, Fetched, Limits};
use crate::error::Result;
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::process::Actor;

/// The records that are not saved while somebody else holds the lock of their directory.
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
/// - A commit changes everything or nothing. It fails with [`crate::error::Kind::Exists`], `NotFound` or `Conflict`
///   where a guard is not met, and with `TooLarge` or `TooMany` where a change is beyond [`Store::limits`].
/// - Whoever has committed finds it in the next snapshot and in the next fetch.
/// - Each version of a record has a greater revision than the one before; a record that is made anew has another
///   creation.
/// - A snapshot never changes. Two records of one snapshot were there at one time.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// The cell.
    fn cell(&self) -> &CellName;

    /// The records, once they have been loaded. Fails at once where they are known to be out of reach.
    async fn snapshot(&self) -> Result<Arc<Snapshot>>;

    /// The records, if they are loaded already.
    fn snapshot_now(&self) -> Result<Arc<Snapshot>>;

    /// One record as it is kept now: not as a snapshot has it, which may be older.
    async fn fetch(&self, path: &TopoPath) -> Result<Fetched>;

    /// Makes all changes or none, for somebody, and lets a listener hear of it.
    async fn commit(&self, actor: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Applied>;

    /// Fails if a change of this record would be refused now, whatever its content. That it does not fail promises
    /// nothing.
    async fn refuse_early(&self, actor: Actor, path: &TopoPath) -> Result<()>;

    /// Fails if a removal of this record would be refused now.
    async fn refuse_removal(&self, actor: Actor, path: &TopoPath) -> Result<()> {
        self.refuse_early(actor, path).await
    }

    /// What can be kept.
    fn limits(&self) -> Limits;

    /// Names of what is known of a record beside its version.
    fn attributes(&self) -> &'static [&'static str] {
        &[]
    }

    /// One of [`Store::attributes`], as it is now; `None` if this record has none.
    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>> {
        let _ = (path, name);
        Ok(None)
    }

    /// Whether what happens to the records is known as soon as it happens: what was read may be kept.
    fn is_fresh(&self) -> bool {
        true
    }
}
