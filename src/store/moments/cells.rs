//! The cells of an earlier moment as stores. What was given up to make room is read again when somebody looks at it.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Moment, Moments};
use crate::backend::Fetched;
use crate::cells::Earlier;
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::store::contract::global_first;
use crate::store::{Store, Stores};

/// All cells of a moment.
#[derive(Debug)]
pub struct MomentCells {
    of: Arc<Of>,
    /// The global topology first. They do not change, however often the moment is read.
    cells: Vec<CellName>,
}

/// A moment, and for whom it is read.
#[derive(Debug)]
struct Of {
    moments: Arc<Moments>,
    moment: Moment,
    uid: u32,
}

impl MomentCells {
    /// The cells of a moment that was read for a user.
    pub fn new(moments: Arc<Moments>, moment: Moment, uid: u32, read: &Earlier) -> Self {
        let mut cells: Vec<CellName> = read.cells.keys().cloned().collect();
        cells.sort_by(global_first);
        Self { of: Arc::new(Of { moments, moment, uid }), cells }
    }
}

impl Stores for MomentCells {
    fn cells(&self) -> Vec<CellName> {
        self.cells.clone()
    }

    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>> {
        let cell = self.cells.iter().find(|known| *known == cell)?.clone();
        Some(Arc::new(MomentCell { of: self.of.clone(), cell }))
    }
}

/// One cell at an earlier moment.
#[derive(Debug)]
struct MomentCell {
    of: Arc<Of>,
    cell: CellName,
}

impl MomentCell {
    fn of(&self, read: &Earlier) -> Result<Arc<Snapshot>> {
        // The service may not let us read it any more.
        let missing = || {
            let why = read.missing.get(self.cell.as_str()).map_or("it is missing", String::as_str);
            Error::new(Kind::NotKept, format!("{} at {}: {why}", self.cell, self.of.moment))
        };
        read.cells.get(&self.cell).cloned().ok_or_else(missing)
    }
}

#[async_trait]
impl Store for MomentCell {
    fn cell(&self) -> &CellName {
        &self.cell
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        let Of { moments, moment, uid } = &*self.of;
        self.of(&*moments.get(*moment, *uid).await?)
    }

    fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        let read = self.of.moments.get_now(self.of.moment);
        let given_up = || Error::new(Kind::NotKept, format!("{} must be read again", self.of.moment));
        self.of(&*read.ok_or_else(given_up)?)
    }

    fn known(&self) -> Arc<Snapshot> {
        self.snapshot_now().unwrap_or_default()
    }

    fn is_frozen(&self) -> bool {
        true
    }

    async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        Ok(crate::store::frozen::fetched(&*self.snapshot().await?, path))
    }
}
