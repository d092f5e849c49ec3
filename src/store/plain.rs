//! Records in a map, without a service, locks or other users: stands for a service in tests.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::commits::{Commits, heard_at_once};
use super::contract::Store;
use super::frozen::fetched;
use crate::backend::{Action, Applied, Change, Fetched, Limits, Revision, Version, check_limits};
use crate::error::{Error, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::process::Actor;

/// A map of records, as one cell.
#[derive(Debug)]
pub struct Plain {
    cell: CellName,
    limits: Limits,
    /// The newest state. A copy of it never changes.
    now: Mutex<Snapshot>,
}

impl Plain {
    /// A store that begins with these records.
    pub fn new(cell: CellName, limits: Limits, begin: Snapshot) -> Self {
        Self { cell, limits, now: Mutex::new(begin) }
    }

    fn make(&self, changes: &[Change]) -> Result<Applied> {
        check_limits(changes, self.limits).map_err(Error::from)?;
        let mut now = self.now.lock();
        for change in changes {
            let found = now.records.get(&change.path).map(|record| record.version);
            // There are no locks here.
            change.require(found, None)?;
        }
        // A commit that only checks makes no revision.
        let is_change = changes.iter().any(|change| change.action != Action::Check);
        now.at = Revision(now.at.0 + u64::from(is_change));
        let versions = changes.iter().map(|change| put(&mut now, change)).collect();
        Ok(Applied { at: now.at, versions })
    }
}

/// Makes one change. Returns the new version of its record.
fn put(now: &mut Snapshot, change: &Change) -> Option<Version> {
    let at = now.at;
    match &change.action {
        Action::Check => None,
        Action::Delete => {
            now.records.remove(&change.path);
            None
        }
        Action::Put(value) => {
            let created = now.records.get(&change.path).map_or(at, |old| old.version.created);
            let version = Version { number: at.0, written: at, created };
            let record = Record { value: value.clone(), version, modified: SystemTime::now() };
            now.records.insert(change.path.clone(), record);
            Some(version)
        }
    }
}

#[async_trait]
impl Store for Plain {
    fn cell(&self) -> &CellName {
        &self.cell
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        self.snapshot_now()
    }

    fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        Ok(Arc::new(self.now.lock().clone()))
    }

    fn known(&self) -> Arc<Snapshot> {
        Arc::new(self.now.lock().clone())
    }

    async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        Ok(fetched(&self.now.lock(), path))
    }

    async fn commit(&self, _: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Applied> {
        heard_at_once(&self.cell, changes, commits, || self.make(changes)).await
    }

    async fn refuse_early(&self, _: Actor, _: &TopoPath) -> Result<()> {
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}
