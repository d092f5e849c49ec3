//! What a znode is: a record, a lock or a mere directory. Listing, watching, reading and writing all ask here.

use zookeeper_client::{Acl, Error as ZkError, Permission, Stat};

use super::session::CallError;
use super::znode::owner;
use crate::backend::contract::{Owner, Role};
use crate::backend::lock::{self, is_election};
use crate::name::TopoPath;

/// What Vitess calls its records, wherever they stand.
const RECORDS: [&str; 13] = [
    "CellInfo",
    "CellsAlias",
    "Keyspace",
    "MirrorRules",
    "RoutingRules",
    "Shard",
    "ShardReplication",
    "ShardRoutingRules",
    "SrvKeyspace",
    "SrvVSchema",
    "Tablet",
    "VSchema",
    "Workflow",
];
/// Where people choose the names of directories: a keyspace can be called Keyspace.
const CHOSEN: [&str; 8] =
    ["cells", "cells_aliases", "elections", "keyspaces", "named_locks", "shards", "tablets", "workflows"];
/// Directories in which every name is one of a record.
const ALL_RECORDS: [&str; 2] = ["metadata", "ExternalClusters/vitess"];
/// A record whose name alone says little.
const RULES: &str = "routing_rules/keyspace/Rules";

/// What a znode is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// `None` for a directory.
    Is(Option<Role>),
    /// An empty record, or a directory that nobody has collected: its access rights tell.
    Unclear,
}

/// The role of a znode, as far as its path, its size and its stat tell.
pub(super) fn judge(path: Option<&TopoPath>, is_empty: bool, stat: &Stat) -> Judged {
    Judged::Is(match stat.ephemeral_owner {
        0 if path.and_then(locked_dir).is_some() => Some(Role::Lock(Owner::UNBOUND)),
        0 if !is_empty => Some(Role::Record),
        0 if stat.num_children > 0 => None,
        // Nobody writes to a directory: this is a record that somebody has emptied.
        0 if stat.version > 0 => Some(Role::Record),
        0 => match path {
            Some(path) if is_named_as_record(path) || stands_among_records(path) => Some(Role::Record),
            _ => return Judged::Unclear,
        },
        session => Some(Role::Lock(owner(session))),
    })
}

/// The role of an unclear one: Vitess makes records without the right to create children.
pub(super) fn by_acl<S>(answer: Result<(Vec<Acl>, S), CallError>) -> Result<Option<Role>, CallError> {
    match answer {
        Ok((acls, _)) => {
            let may_hold = acls.iter().any(|acl| acl.permission().has(Permission::CREATE));
            Ok(if may_hold { None } else { Some(Role::Record) })
        }
        Err(CallError::Client(ZkError::NoNode | ZkError::NoAuth)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name that ZooKeeper has given: digits and nothing else.
pub(super) fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The directory whose lock a node is.
pub(super) fn locked_dir(node: &TopoPath) -> Option<TopoPath> {
    let parent = node.parent().filter(|_| is_number(node.name()))?;
    match is_election(&parent) {
        true => Some(parent),
        false => lock::dir_of_queued(node),
    }
}

/// Whether a path is one at which Vitess keeps a record, also an empty one.
pub(super) fn is_named_as_record(path: &TopoPath) -> bool {
    let chosen = path.parent().is_some_and(|parent| CHOSEN.contains(&parent.name()));
    path.as_str() == RULES || (RECORDS.contains(&path.name()) && !chosen)
}

fn stands_among_records(path: &TopoPath) -> bool {
    path.parent().is_some_and(|parent| ALL_RECORDS.contains(&parent.as_str()))
}

/// Whether a node with this role is shown: what lives with a session and is no lock is only counted.
pub(super) fn is_shown(path: &TopoPath, role: Role) -> bool {
    role == Role::Record || locked_dir(path).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::CellName;
    use crate::record::Kinds;

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    #[test]
    fn names_of_records_are_those_that_stand_for_messages() {
        let (kinds, zone1) = (Kinds::default(), CellName::new("zone1").unwrap());
        for name in RECORDS {
            let path = path(&format!("some/where/{name}"));
            assert!(kinds.message(&zone1, &path).is_some() && is_named_as_record(&path), "{name}");
        }
        for record in
            ["RoutingRules", "keyspaces/ks/Keyspace", "keyspaces/ks/shards/0/Shard", "keyspaces/Shard/Keyspace", RULES]
        {
            assert!(is_named_as_record(&path(record)), "{record}");
        }
        for other in
            ["keyspaces/Keyspace", "keyspaces/ks/shards/Shard", "cells/CellInfo", "a/Rules", "locks", "keyspaces"]
        {
            assert!(!is_named_as_record(&path(other)), "{other}");
        }
        assert!(stands_among_records(&path("metadata/owner")) && !stands_among_records(&path("metadata/a/b")));
    }
}
