//! A cell and the global topology in one service, under the root that they have in common: one transaction can check a
//! lock of the global topology and change a record of the cell. Must never remove anything: a service may clear away
//! directories that are empty then, and does not know here where a cell begins.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Cell, Cells};
use crate::backend::{Applied, Backend, BackendError, Change, Failure, Guard, Holding, Implementation, Location};
use crate::error::Result;
use crate::name::{CellName, TopoPath};

/// The services that have been opened, by root; `None` if one cannot be used.
#[derive(Debug, Default)]
pub struct Joints(Mutex<HashMap<String, Option<Arc<dyn Backend>>>>);

/// The root that two cells have in common, and the paths from there.
struct Common {
    root: String,
    global: TopoPath,
    cell: TopoPath,
}

impl Joints {
    /// Applies changes of a cell, only if a guard in the global topology is met. Where one transaction cannot contain
    /// both, the guard is not checked: the service is another, the account may not do both at once, or it is a tee.
    pub async fn apply(&self, cells: &Cells, cell: &Cell, guard: &Change, changes: &[Change]) -> Result<Applied> {
        if let Some((backend, common)) = self.of(cells, cell) {
            let guard = checkable(&cell.location, moved(&common.global, guard)?);
            let others = changes.iter().map(|change| moved(&common.cell, change));
            let all = std::iter::once(Ok(guard.clone())).chain(others).collect::<Result<Vec<_>>>()?;
            match backend.apply(&all).await {
                Ok(mut applied) => {
                    applied.versions.drain(..1.min(applied.versions.len()));
                    return Ok(applied);
                }
                Err(BackendError { failure: Failure::Denied, .. }) => drop(self.0.lock().insert(common.root, None)),
                Err(BackendError { failure: Failure::TooMany, .. }) => {}
                Err(error) => return Err(cell.explain(blame(backend.as_ref(), &guard, error).await)),
            }
        }
        cell.apply(changes).await
    }

    fn of(&self, cells: &Cells, cell: &Cell) -> Option<(Arc<dyn Backend>, Common)> {
        // What is written past a tee would be missing at the secondary.
        if cells.global.second.is_some() || cell.second.is_some() {
            return None;
        }
        let common = common(&cells.global.location, &cell.location)?;
        let mut known = self.0.lock();
        let opened = known.entry(common.root.clone()).or_insert_with(|| {
            let location = Location { root: common.root.clone(), ..cells.global.location.clone() };
            crate::backend::open(&CellName::global(), &location, &cells.options.connect).ok()
        });
        Some((opened.clone()?, common))
    }
}

/// A guard that this connection can check. On ZooKeeper, only the session of a lock can prove that it holds the lock;
/// any other can check that the lock is still there.
fn checkable(location: &Location, guard: Change) -> Change {
    match guard.guard {
        Guard::Held(Holding { version, .. }) if location.implementation == Implementation::Zk2 => {
            Change { guard: Guard::Version(version), ..guard }
        }
        _ => guard,
    }
}

/// The error of an unmet guard, if it was the lock that was not there any more.
async fn blame(backend: &dyn Backend, guard: &Change, error: BackendError) -> BackendError {
    let Guard::Version(version) = guard.guard else { return error };
    let is_unmet = matches!(error.failure, Failure::NoNode | Failure::BadVersion | Failure::NodeExists);
    if !is_unmet {
        return error;
    }
    match backend.get(&guard.path).await {
        Ok(fetched) if fetched.node.as_ref().is_none_or(|node| node.version.created != version.created) => {
            BackendError::new(Failure::LockLost, format!("the lock {} is no longer held", guard.path))
        }
        _ => error,
    }
}

/// `None` if the cells may be in different services.
fn common(global: &Location, cell: &Location) -> Option<Common> {
    let is_rooted = |location: &Location| location.root.starts_with('/');
    if global.implementation != cell.implementation
        || !cell.is_served_by(global)
        || is_rooted(global) != is_rooted(cell)
    {
        return None;
    }
    let names = |location: &Location| -> Vec<String> {
        let root = location.clean_root();
        root.split('/').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
    };
    let (global_names, cell_names) = (names(global), names(cell));
    let shared = global_names.iter().zip(&cell_names).take_while(|(a, b)| a == b).count();
    let rest = |names: &[String]| TopoPath::parse(&names.get(shared..)?.join("/")).ok();
    let slash = if is_rooted(global) { "/" } else { "" };
    Some(Common {
        root: format!("{slash}{}", global_names.get(..shared)?.join("/")),
        global: rest(&global_names)?,
        cell: rest(&cell_names)?,
    })
}

/// The same change, named from a root above.
fn moved(root: &TopoPath, change: &Change) -> Result<Change> {
    let path = if root.is_root() { change.path.to_string() } else { format!("{root}/{}", change.path) };
    Ok(Change { path: TopoPath::parse(&path)?, ..change.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_root_is_as_long_as_possible_and_only_of_one_service() {
        let location = |server: &str, root: &str| Location {
            implementation: Implementation::Etcd2,
            server: server.to_owned(),
            root: root.to_owned(),
        };
        let found = |cell: &Location| {
            common(&location("a:1,b:1", "/vitess/x/global"), cell)
                .map(|common| (common.root, common.global.to_string(), common.cell.to_string()))
        };
        let expected =
            |root: &str, global: &str, cell: &str| Some((root.to_owned(), global.to_owned(), cell.to_owned()));
        assert_eq!(found(&location("a:1", "/vitess/x/zone1/")), expected("/vitess/x", "global", "zone1"));
        assert_eq!(found(&location("b:1,a:1", "/other")), expected("/", "vitess/x/global", "other"));
        assert_eq!(found(&location("a:1", "/vitess/x/global")), expected("/vitess/x/global", "", ""));
        assert_eq!(found(&location("a:1", "vitess/x/zone1")), None, "on etcd, a slash makes another key");
        assert_eq!(found(&location("c:1", "/vitess/x/zone1")), None, "another service");
    }
}
