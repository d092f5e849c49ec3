//! Commits a change set of a stage, and has the kernel and the events told of it as of a save.

use std::sync::OnceLock;

use super::RecordFiles;
use super::save::Heard;
use crate::error::Result;
use crate::name::CellName;
use crate::process::Actor;
use crate::store::{ChangeSet, Committed, LiveCells, commit};

impl RecordFiles {
    /// Makes all changes of a set or none.
    pub(crate) async fn commit_set(&self, cells: &LiveCells, actor: Actor, set: &ChangeSet) -> Result<Committed> {
        let live = |cell: &CellName| cells.live(cell);
        let heard =
            Heard { files: self, saver: actor, form: None, set: Some(set.name.clone()), command: OnceLock::new() };
        commit(&live, &self.codec, set, actor, &heard).await
    }
}
