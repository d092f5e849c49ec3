//! One cell of one of the two topologies: its location, its connection, its records at one point.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::backend::{Backend, BackendError, CellServers, ConnectOptions, Location, Node, Role, open};
use crate::error::{Error, Result};
use crate::name::{CellName, TopoPath};

/// One of the two topologies.
#[derive(Debug, Clone)]
pub struct Side {
    /// Where its global topology is.
    pub global: Location,
    /// How its services are connected.
    pub connect: ConnectOptions,
    /// Which servers in its CellInfo records are connected.
    pub servers: CellServers,
}

/// What a side is called in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What is read.
    Source,
    /// What is filled.
    Target,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Source => "source",
            End::Target => "target",
        })
    }
}

/// A cell of a side.
#[derive(Debug)]
pub(super) struct Place {
    pub cell: CellName,
    pub backend: Arc<dyn Backend>,
    pub location: Location,
    end: End,
    /// Directories of this place that are the roots of other places: their records belong there.
    others: Vec<TopoPath>,
}

/// The records of a place at one point.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Without locks.
    pub nodes: BTreeMap<TopoPath, Node>,
    /// Directories with a lock that somebody holds or waits for.
    pub locked: BTreeSet<TopoPath>,
    /// Number of keys that cannot be file names.
    pub unnamed: u64,
}

impl Place {
    /// Prepares the connection, if the rules for credentials allow these servers.
    pub fn open(end: End, side: &Side, cell: &CellName, location: &Location) -> Result<Self> {
        let allowed = side.servers.check(location, &side.global, &side.connect);
        let backend = allowed.and_then(|()| open(cell, location, &side.connect));
        let backend = backend.map_err(|error| explained(end, cell, location, error))?;
        Ok(Self { cell: cell.clone(), backend, location: location.clone(), end, others: Vec::new() })
    }

    /// The same place, without what belongs to other cells of both topologies whose roots are inside of its own.
    pub fn beside(mut self, all: &[Location]) -> Self {
        self.others = all.iter().filter_map(|other| inside(&self.location, other)).collect();
        self
    }

    /// Reads everything at one point.
    pub async fn read(&self) -> Result<Contents> {
        let listing = self.backend.list(&TopoPath::root()).await.map_err(|error| self.explain(error))?;
        let unnamed = listing.skipped.saturating_sub(listing.ephemeral);
        let (records, locks): (Vec<Node>, Vec<Node>) =
            listing.nodes.into_iter().partition(|node| node.role == Role::Record);
        let locked = locks.iter().filter_map(|node| self.backend.locked_dir(&node.path)).collect();
        let records = records.into_iter().filter(|node| self.owns(&node.path));
        Ok(Contents { nodes: records.map(|node| (node.path.clone(), node)).collect(), locked, unnamed })
    }

    /// Whether a path belongs to this cell.
    pub fn owns(&self, path: &TopoPath) -> bool {
        !self.others.iter().any(|other| path.below(other).is_some())
    }

    /// The error with the cell and its location.
    pub fn explain(&self, error: BackendError) -> Error {
        explained(self.end, &self.cell, &self.location, error)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cell, self.location)
    }
}

fn explained(end: End, cell: &CellName, location: &Location, error: BackendError) -> Error {
    let mut error = Error::from(error);
    error.reason = format!("{end}, cell {cell} ({location}): {}", error.reason);
    error
}

/// The path of another location's root below this one.
fn inside(this: &Location, other: &Location) -> Option<TopoPath> {
    this.path_of(other).filter(|path| !path.is_root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Implementation;

    #[test]
    fn a_root_inside_of_another_belongs_to_its_own_cell() {
        let location = |server: &str, root: &str| Location {
            implementation: Implementation::Etcd2,
            server: server.to_owned(),
            root: root.to_owned(),
        };
        let global = location("a:1,b:1", "/vitess");
        let found = |server: &str, root: &str| inside(&global, &location(server, root)).map(|path| path.to_string());
        assert_eq!(found("b:1", "/vitess/zone1"), Some("zone1".to_owned()));
        assert_eq!(found("b:1", "/vitess2"), None);
        assert_eq!(found("b:1", "/vitess/"), None, "it is the same place");
        assert_eq!(found("c:1", "/vitess/zone1"), None, "another service");
    }
}
