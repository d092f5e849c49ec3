//! What a service says of itself, and what its user may do there, found out before anything is mounted. Must never
//! change anything: a right to write is tried by a change that the service checks the right for, and then certainly
//! refuses.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::contract::{BackendError, Failure};
use crate::name::TopoPath;
use crate::record::layout::{CELL_INFO, CELLS, KEYSPACE, KEYSPACES};

/// Whether a user may do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum May {
    /// The service would carry it out.
    Yes,
    /// It would not; with the reason.
    No(String),
    /// Nobody knows; with the reason. This is never taken for yes.
    Unknown(String),
}

impl May {
    /// What the refusal of a change says that could not be carried out. `unmet` is the failure of its condition, which
    /// comes after the check of the rights.
    pub(super) fn of_refused(outcome: Result<(), BackendError>, unmet: &[Failure]) -> Self {
        match outcome {
            Err(error) if unmet.contains(&error.failure) => May::Yes,
            Err(error) if matches!(error.failure, Failure::Denied | Failure::NoSpace) => May::No(error.message),
            Err(error) => May::Unknown(error.message),
            Ok(()) => May::Unknown("the service has not refused what it had to refuse".to_owned()),
        }
    }
}

/// Where a right to write is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WritePlace {
    /// A new record in a directory, which need not exist.
    Below(TopoPath),
    /// A record that is there.
    At(TopoPath),
}

/// The name of a record that is never made.
pub(super) const NEVER_MADE: &str = "topofs-check";

/// Where a topology seems to be, and how many keys it has.
pub type FoundRoot = (String, u64);

/// One cell of a service that is looked at from outside. Every call ends within the operation timeout.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// What the service is, in a few words. Fails if it does not answer, or refuses the credentials.
    async fn about(&self) -> Result<String, BackendError>;

    /// Whether a record could be written there.
    async fn may_write(&self, place: &WritePlace) -> May;

    /// Roots of topologies in this service, as far as they are found with little effort.
    async fn roots(&self) -> Result<Vec<FoundRoot>, BackendError>;
}

/// The roots of topologies among keys: where there are CellInfo or Keyspace records.
pub fn roots_of<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Vec<FoundRoot> {
    let mut roots: BTreeMap<&str, u64> = keys.clone().filter_map(root_of).map(|root| (root, 0)).collect();
    for key in keys {
        // The slash at the beginning is a part of the first name.
        for (end, _) in key.match_indices('/').filter(|(end, _)| *end > 0) {
            if let Some(count) = key.get(..end).and_then(|above| roots.get_mut(above)) {
                *count += 1;
            }
        }
        if let Some(count) = roots.get_mut("").filter(|_| !key.starts_with('/')) {
            *count += 1;
        }
    }
    let named = |(root, count): (&str, u64)| (if root.is_empty() { "/".to_owned() } else { root.to_owned() }, count);
    roots.into_iter().map(named).collect()
}

/// The root of the topology that a key is the record of a cell or a keyspace in.
fn root_of(key: &str) -> Option<&str> {
    let (above, last) = key.rsplit_once('/')?;
    let (above, _) = above.rsplit_once('/')?;
    let dir = match last {
        CELL_INFO => CELLS,
        KEYSPACE => KEYSPACES,
        _ => return None,
    };
    let root = above.strip_suffix(dir)?;
    if root.is_empty() { Some(root) } else { root.strip_suffix('/') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topologies_are_found_by_their_records() {
        let keys = [
            "/vitess/global/cells/zone1/CellInfo",
            "/vitess/global/keyspaces/a/Keyspace",
            "/vitess/global/keyspaces/a/shards/0/Shard",
            "/vitess/zone1/tablets/zone1-1/Tablet",
            "test/global/keyspaces/b/Keyspace",
            "cells/x/CellInfo",
            "/other/cells/CellInfo",
            "/mycells/x/CellInfo",
            "x",
        ];
        let roots = roots_of(keys.iter().copied());
        let found: Vec<(&str, u64)> = roots.iter().map(|(root, count)| (root.as_str(), *count)).collect();
        // Without a slash at the beginning, all keys are below the root of the service.
        assert_eq!(found, [("/", 3), ("/vitess/global", 3), ("test/global", 1)]);
    }

    #[test]
    fn only_an_unmet_condition_proves_a_right() {
        let refused = |failure| Err(BackendError::new(failure, "words"));
        let may = |outcome| May::of_refused(outcome, &[Failure::BadVersion]);
        assert_eq!(may(refused(Failure::BadVersion)), May::Yes);
        assert_eq!(may(refused(Failure::Denied)), May::No("words".to_owned()));
        assert_eq!(may(refused(Failure::NoSpace)), May::No("words".to_owned()));
        for unknown in [refused(Failure::Unreachable), refused(Failure::NoNode), refused(Failure::Other), Ok(())] {
            assert!(matches!(may(unknown), May::Unknown(_)));
        }
    }
}
