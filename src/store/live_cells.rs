//! All cells of a mount, with its locks.

use std::sync::Arc;

use async_trait::async_trait;

use super::change_set::{ChangeSet, Committed};
use super::commits::Commits;
use super::contract::{RespectLocks, Store, Stores};
use super::live::{CellRules, Live};
use super::together::commit;
use crate::error::Result;
use crate::locks::Locks;
use crate::name::CellName;
use crate::process::Actor;
use crate::record::Records;

/// The cells of a mount, and its locks.
#[derive(Debug)]
pub struct LiveCells {
    locks: Arc<Locks>,
    respected: RespectLocks,
    rules: CellRules,
}

impl LiveCells {
    /// The records of all cells of a mount.
    pub fn new(locks: Arc<Locks>, respected: RespectLocks, rules: CellRules) -> Self {
        Self { locks, respected, rules }
    }

    /// The records of a cell.
    pub fn live(&self, cell: &CellName) -> Option<Live> {
        let cell = self.rules.cells.get(cell)?;
        Some(Live::new(cell, self.locks.clone(), self.respected).with_rules(self.rules.clone()))
    }
}

#[async_trait]
impl Stores for LiveCells {
    fn cells(&self) -> Vec<CellName> {
        self.rules.cells.all().iter().map(|cell| cell.name.clone()).collect()
    }

    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>> {
        Some(Arc::new(self.live(cell)?))
    }

    async fn commit(
        &self,
        records: &Records,
        set: &ChangeSet,
        actor: Actor,
        commits: &dyn Commits,
    ) -> Result<Committed> {
        commit(&|cell| self.live(cell), records, set, actor, commits).await
    }
}
