//! Changes to records of several cells, each with what the record was before. Knows neither how they were made nor how
//! they are stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{Action, Change, Guard};
use crate::mirror::Record;
use crate::name::CellPath;

/// One record of a change set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Which record.
    pub at: CellPath,
    /// What it was; `None` if it did not exist.
    pub base: Option<Record>,
    /// What it is to be; `None` if it is to be deleted.
    pub now: Option<Bytes>,
}

impl Staged {
    /// The change that makes it so, if nobody else has changed the record; `None` if there is nothing to make.
    pub fn change(&self) -> Option<Change> {
        let guard = self.base.as_ref().map_or(Guard::Absent, |base| Guard::Version(base.version));
        let action = match (&self.base, &self.now) {
            (None, None) => return None,
            (_, Some(value)) => Action::Put(value.clone()),
            (Some(_), None) => Action::Delete,
        };
        Some(Change { path: self.at.path.clone(), guard, action })
    }
}

/// Changes to be made together, in the order of cells and paths.
#[derive(Debug, Clone)]
pub struct ChangeSet {
    /// The name, for events, history and errors.
    pub name: Arc<str>,
    /// At most one for each record.
    pub changes: Vec<Staged>,
}
