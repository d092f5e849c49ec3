//! Vitess's key layout: the meaning of each path. Only this file spells the paths; all others ask here by meaning.
//!
//! Sources: go/vt/topo/server.go names the records and their directories, shard_lock.go and similar files name the
//! locked directories, and election.go names the elections. `kind` decides which names a keyspace or a shard may have.

use std::fmt;

use crate::name::{CellName, NameError, TopoPath};

// Directories.
pub(crate) const CELLS: &str = "cells";
pub(crate) const CELLS_ALIASES: &str = "cells_aliases";
pub(crate) const KEYSPACES: &str = "keyspaces";
const SHARDS: &str = "shards";
pub(crate) const TABLETS: &str = "tablets";
const WORKFLOWS: &str = "workflows";
const ROUTING_RULES: &str = "routing_rules";
const BY_KEYSPACE: &str = "keyspace";
pub(crate) const METADATA: &str = "metadata";
const EXTERNAL: &str = "ExternalClusters";
const EXTERNAL_VITESS: &str = "vitess";
/// Leader elections: one directory for each.
pub(crate) const ELECTIONS: &str = "elections";
/// For Vitess's internal use.
pub(crate) const INTERNAL: &str = "internal";
/// In [`INTERNAL`]: locks of names without records.
const NAMED_LOCKS: &str = "named_locks";

// Records.
/// Where a cell is.
pub(crate) const CELL_INFO: &str = "CellInfo";
const CELLS_ALIAS: &str = "CellsAlias";
pub(crate) const KEYSPACE: &str = "Keyspace";
const MIRROR: &str = "MirrorRules";
const ROUTING: &str = "RoutingRules";
const RULES: &str = "Rules";
const SHARD: &str = "Shard";
const SHARD_REPLICATION: &str = "ShardReplication";
const SHARD_ROUTING: &str = "ShardRoutingRules";
const SRV_KEYSPACE: &str = "SrvKeyspace";
const SRV_VSCHEMA: &str = "SrvVSchema";
const TABLET: &str = "Tablet";
const VSCHEMA: &str = "VSchema";
const WORKFLOW: &str = "Workflow";

// Locks.
/// The directory with the places in line for a directory's lock, on etcd and ZooKeeper.
pub(crate) const LOCKS: &str = "locks";
/// The key of a directory's lock, on Consul.
pub(crate) const LOCK: &str = "Lock";

/// The file names that tell the message of a record in any directory.
const MESSAGES: [(&str, &str); 13] = [
    (CELL_INFO, "topodata.CellInfo"),
    (CELLS_ALIAS, "topodata.CellsAlias"),
    (KEYSPACE, "topodata.Keyspace"),
    (VSCHEMA, "vschema.Keyspace"),
    (SHARD, "topodata.Shard"),
    (SHARD_REPLICATION, "topodata.ShardReplication"),
    (TABLET, "topodata.Tablet"),
    (SRV_KEYSPACE, "topodata.SrvKeyspace"),
    (SRV_VSCHEMA, "vschema.SrvVSchema"),
    (ROUTING, "vschema.RoutingRules"),
    (SHARD_ROUTING, "vschema.ShardRoutingRules"),
    (MIRROR, "vschema.MirrorRules"),
    (WORKFLOW, "workflow.Workflow"),
];
/// The message of the record whose name alone says little.
const KEYSPACE_ROUTING: &str = "vschema.KeyspaceRoutingRules";
/// The message of another Vitess cluster; its record has the name of the cluster.
const EXTERNAL_CLUSTER: &str = "topodata.ExternalVitessCluster";

/// The names of records, with their messages.
pub fn messages() -> impl Iterator<Item = (&'static str, &'static str)> {
    MESSAGES.into_iter().chain([(RULES, KEYSPACE_ROUTING), ("ExternalClusters/vitess/*", EXTERNAL_CLUSTER)])
}

/// Directories whose entries have names that people choose: a keyspace can be called Keyspace.
const CHOSEN: [&str; 8] = [CELLS, CELLS_ALIASES, ELECTIONS, KEYSPACES, NAMED_LOCKS, SHARDS, TABLETS, WORKFLOWS];

/// A record at the place that Vitess gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// A cell, by its name.
    CellInfo(&'a str),
    /// A group of cells, by its name.
    CellsAlias(&'a str),
    /// A workflow of old Vitess, by its name.
    Workflow(&'a str),
    /// A keyspace, by its name.
    Keyspace(&'a str),
    /// The VSchema of a keyspace.
    VSchema(&'a str),
    /// A shard: keyspace and shard.
    Shard(&'a str, &'a str),
    /// The routing rules of tables.
    RoutingRules,
    /// The routing rules of shards.
    ShardRoutingRules,
    /// The mirror rules.
    MirrorRules,
    /// The routing rules of keyspaces.
    KeyspaceRoutingRules,
    /// Another Vitess cluster, by its name.
    ExternalCluster(&'a str),
    /// Bytes that somebody has stored, by their name.
    Metadata(&'a str),
    /// A tablet, by its alias.
    Tablet(&'a str),
    /// What the vtgates of a cell know about a keyspace.
    SrvKeyspace(&'a str),
    /// The tablets of a shard in a cell: keyspace and shard.
    ShardReplication(&'a str, &'a str),
    /// The VSchemas that vtgates of a cell use.
    SrvVSchema,
}

impl<'a> Key<'a> {
    /// The record of a path in a cell. The name of the cell tells whether it is the global topology.
    pub fn of(cell: &CellName, path: &'a TopoPath) -> Option<Self> {
        if cell.is_global() { Self::in_global(path) } else { Self::in_cell(path) }
    }

    /// The record of a path in the global topology.
    pub fn in_global(path: &'a TopoPath) -> Option<Self> {
        let names: Vec<&str> = path.components().collect();
        Some(match *names.as_slice() {
            [CELLS, cell, CELL_INFO] => Key::CellInfo(cell),
            [CELLS_ALIASES, alias, CELLS_ALIAS] => Key::CellsAlias(alias),
            [WORKFLOWS, workflow, WORKFLOW] => Key::Workflow(workflow),
            [KEYSPACES, keyspace, KEYSPACE] => Key::Keyspace(keyspace),
            [KEYSPACES, keyspace, VSCHEMA] => Key::VSchema(keyspace),
            [KEYSPACES, keyspace, SHARDS, shard, SHARD] => Key::Shard(keyspace, shard),
            [ROUTING] => Key::RoutingRules,
            [SHARD_ROUTING] => Key::ShardRoutingRules,
            [MIRROR] => Key::MirrorRules,
            [ROUTING_RULES, BY_KEYSPACE, RULES] => Key::KeyspaceRoutingRules,
            [EXTERNAL, EXTERNAL_VITESS, cluster] => Key::ExternalCluster(cluster),
            [METADATA, name] => Key::Metadata(name),
            _ => return None,
        })
    }

    /// The record of a path in any other cell.
    pub fn in_cell(path: &'a TopoPath) -> Option<Self> {
        let names: Vec<&str> = path.components().collect();
        Some(match *names.as_slice() {
            [TABLETS, alias, TABLET] => Key::Tablet(alias),
            [KEYSPACES, keyspace, SRV_KEYSPACE] => Key::SrvKeyspace(keyspace),
            [KEYSPACES, keyspace, SHARDS, shard, SHARD_REPLICATION] => Key::ShardReplication(keyspace, shard),
            [SRV_VSCHEMA] => Key::SrvVSchema,
            _ => return None,
        })
    }

    /// Its path. Fails if a name in it is not valid in a path.
    pub fn path(self) -> Result<TopoPath, NameError> {
        TopoPath::parse(&self.to_string())
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::CellInfo(cell) => write!(f, "{CELLS}/{cell}/{CELL_INFO}"),
            Key::CellsAlias(alias) => write!(f, "{CELLS_ALIASES}/{alias}/{CELLS_ALIAS}"),
            Key::Workflow(workflow) => write!(f, "{WORKFLOWS}/{workflow}/{WORKFLOW}"),
            Key::Keyspace(keyspace) => write!(f, "{KEYSPACES}/{keyspace}/{KEYSPACE}"),
            Key::VSchema(keyspace) => write!(f, "{KEYSPACES}/{keyspace}/{VSCHEMA}"),
            Key::Shard(keyspace, shard) => write!(f, "{KEYSPACES}/{keyspace}/{SHARDS}/{shard}/{SHARD}"),
            Key::RoutingRules => f.write_str(ROUTING),
            Key::ShardRoutingRules => f.write_str(SHARD_ROUTING),
            Key::MirrorRules => f.write_str(MIRROR),
            Key::KeyspaceRoutingRules => write!(f, "{ROUTING_RULES}/{BY_KEYSPACE}/{RULES}"),
            Key::ExternalCluster(cluster) => write!(f, "{EXTERNAL}/{EXTERNAL_VITESS}/{cluster}"),
            Key::Metadata(name) => write!(f, "{METADATA}/{name}"),
            Key::Tablet(alias) => write!(f, "{TABLETS}/{alias}/{TABLET}"),
            Key::SrvKeyspace(keyspace) => write!(f, "{KEYSPACES}/{keyspace}/{SRV_KEYSPACE}"),
            Key::ShardReplication(keyspace, shard) => {
                write!(f, "{KEYSPACES}/{keyspace}/{SHARDS}/{shard}/{SHARD_REPLICATION}")
            }
            Key::SrvVSchema => f.write_str(SRV_VSCHEMA),
        }
    }
}

/// The message in a record. The name decides, in any directory, as in Vitess's own tools. In the global topology,
/// `metadata` contains plain bytes. `None` for plain bytes and unknown records.
pub fn message(cell: &CellName, path: &TopoPath) -> Option<&'static str> {
    let names: Vec<&str> = path.components().collect();
    match (cell.is_global(), names.as_slice()) {
        (true, [METADATA, ..]) => None,
        (true, [EXTERNAL, EXTERNAL_VITESS, _]) => Some(EXTERNAL_CLUSTER),
        (_, [.., BY_KEYSPACE, RULES]) => Some(KEYSPACE_ROUTING),
        (_, [.., name]) => MESSAGES.iter().find(|(record, _)| record == name).map(|(_, message)| *message),
        (_, []) => None,
    }
}

/// Whether a path has the name of a record, and no person has chosen that name. Such a key is a record even if it is
/// empty.
pub fn is_named_as_record(path: &TopoPath) -> bool {
    let chosen = path.parent().is_some_and(|parent| CHOSEN.contains(&parent.name()));
    let named = MESSAGES.iter().any(|(record, _)| *record == path.name());
    Key::in_global(path) == Some(Key::KeyspaceRoutingRules) || (named && !chosen)
}

/// Whether a path is in a directory in which Vitess keeps records: nothing else may be there.
pub fn is_among_records(path: &TopoPath) -> bool {
    let first = path.components().next();
    first.is_some_and(|first| CHOSEN.contains(&first) || [ROUTING_RULES, METADATA, EXTERNAL].contains(&first))
}

/// Whether a path is in a directory in which every name belongs to a record.
pub fn stands_among_records(path: &TopoPath) -> bool {
    matches!(Key::in_global(path), Some(Key::Metadata(_) | Key::ExternalCluster(_)))
}

/// Whether a path is below `metadata`, where records may have any names.
pub fn is_metadata(path: &TopoPath) -> bool {
    path.components().next() == Some(METADATA)
}

/// The keyspace directory above a path of the global topology.
pub fn keyspace_dir(path: &TopoPath) -> Option<TopoPath> {
    let mut names = path.components();
    match (names.next(), names.next(), names.next()) {
        (Some(KEYSPACES), Some(keyspace), Some(_)) => TopoPath::parse(&format!("{KEYSPACES}/{keyspace}")).ok(),
        _ => None,
    }
}

/// The directory whose lock a change of a record of the global topology needs: Vitess changes it under that lock only.
pub fn lock_of_save(path: &TopoPath) -> Option<TopoPath> {
    match Key::in_global(path)? {
        Key::Keyspace(_) => path.parent(),
        // Vitess replaces them whatever their version, so only its lock protects them.
        Key::KeyspaceRoutingRules => path.parent()?.parent(),
        _ => None,
    }
}

/// The cell of a CellInfo record: the name as it stands in the path, and the cell, or why no cell can have that name.
/// `None` for any other record.
pub fn cell_of_info(path: &TopoPath) -> Option<(&str, Result<CellName, &'static str>)> {
    let rest = path.as_str().strip_prefix(CELLS)?.strip_prefix('/').filter(|_| path.name() == CELL_INFO)?;
    let called = rest.strip_suffix(CELL_INFO)?.trim_end_matches('/');
    let cell = match CellName::new(called) {
        Ok(cell) if cell.is_global() => Err("this name belongs to the global topology"),
        Ok(cell) => Ok(cell),
        Err(_) => Err("this name is not valid for a directory"),
    };
    Some((called, cell))
}

/// The directory of a keyspace, in the global topology and in every cell that serves it.
pub fn keyspace(keyspace: &str) -> Result<TopoPath, NameError> {
    TopoPath::parse(&format!("{KEYSPACES}/{keyspace}"))
}

/// The directory of the shards of a keyspace.
pub fn shards_dir(keyspace: &str) -> Result<TopoPath, NameError> {
    TopoPath::parse(&format!("{KEYSPACES}/{keyspace}/{SHARDS}"))
}

/// The directory of a tablet, by its alias.
pub fn tablet(alias: &str) -> Result<TopoPath, NameError> {
    TopoPath::parse(&format!("{TABLETS}/{alias}"))
}

/// The cell alias whose directory this is.
pub fn cells_alias(dir: &TopoPath) -> Option<&str> {
    let mut names = dir.components();
    match (names.next(), names.next(), names.next()) {
        (Some(CELLS_ALIASES), Some(alias), None) => Some(alias),
        _ => None,
    }
}

/// The name of the directory of a tablet: what Vitess calls its alias.
pub fn tablet_alias(cell: &str, uid: u32) -> String {
    format!("{cell}-{uid:010}")
}

/// A directory that Vitess's own tools lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lockable<'a> {
    /// A keyspace, by its name.
    Keyspace(&'a str),
    /// A shard: keyspace and shard.
    Shard(&'a str, &'a str),
    /// The routing rules of keyspaces.
    RoutingRules,
    /// An election, by its name.
    Election(&'a str),
    /// A name that stands for no records.
    Named,
}

impl<'a> Lockable<'a> {
    /// What the lock of a directory of the global topology protects.
    pub fn of(dir: &'a TopoPath) -> Option<Self> {
        let names: Vec<&str> = dir.components().collect();
        Some(match *names.as_slice() {
            [KEYSPACES, keyspace] => Lockable::Keyspace(keyspace),
            [KEYSPACES, keyspace, SHARDS, shard] => Lockable::Shard(keyspace, shard),
            [ROUTING_RULES] => Lockable::RoutingRules,
            [ELECTIONS, election] => Lockable::Election(election),
            [INTERNAL, NAMED_LOCKS, _, ..] => Lockable::Named,
            _ => return None,
        })
    }
}

/// Whether a directory belongs to an election.
pub fn is_election(dir: &TopoPath) -> bool {
    matches!(Lockable::of(dir), Some(Lockable::Election(_)))
}

/// Whether a directory can be locked without stored records.
pub fn needs_no_records(dir: &TopoPath) -> bool {
    matches!(Lockable::of(dir), Some(Lockable::Election(_) | Lockable::Named))
}

/// Whether a directory has a name without stored records: one that [`needs_no_records`], or one above it.
pub fn is_virtual(dir: &TopoPath) -> bool {
    let names: Vec<&str> = dir.components().collect();
    matches!(names.as_slice(), [ELECTIONS] | [INTERNAL] | [INTERNAL, NAMED_LOCKS]) || needs_no_records(dir)
}

/// The directory with the places in line for a directory's lock, if the service has a queue.
pub fn line(dir: &TopoPath) -> Result<TopoPath, NameError> {
    dir.join(LOCKS)
}

/// The directory to whose lock a place in such a line belongs.
pub fn dir_of_queued(node: &TopoPath) -> Option<TopoPath> {
    node.parent().filter(|parent| parent.name() == LOCKS)?.parent()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    #[test]
    fn a_key_is_found_where_it_says_that_it_is() {
        let global = [
            (Key::CellInfo("zone1"), "cells/zone1/CellInfo"),
            (Key::CellsAlias("all"), "cells_aliases/all/CellsAlias"),
            (Key::Workflow("old"), "workflows/old/Workflow"),
            (Key::Keyspace("ks"), "keyspaces/ks/Keyspace"),
            (Key::VSchema("ks"), "keyspaces/ks/VSchema"),
            (Key::Shard("ks", "-80"), "keyspaces/ks/shards/-80/Shard"),
            (Key::RoutingRules, "RoutingRules"),
            (Key::ShardRoutingRules, "ShardRoutingRules"),
            (Key::MirrorRules, "MirrorRules"),
            (Key::KeyspaceRoutingRules, "routing_rules/keyspace/Rules"),
            (Key::ExternalCluster("c"), "ExternalClusters/vitess/c"),
            (Key::Metadata("owner"), "metadata/owner"),
        ];
        let local = [
            (Key::Tablet("zone1-1"), "tablets/zone1-1/Tablet"),
            (Key::SrvKeyspace("ks"), "keyspaces/ks/SrvKeyspace"),
            (Key::ShardReplication("ks", "0"), "keyspaces/ks/shards/0/ShardReplication"),
            (Key::SrvVSchema, "SrvVSchema"),
        ];
        for (key, text) in global {
            assert_eq!((key.path().unwrap(), Key::in_global(&path(text))), (path(text), Some(key)));
            assert_eq!(Key::in_cell(&path(text)), None, "{text}");
        }
        for (key, text) in local {
            assert_eq!((key.path().unwrap(), Key::in_cell(&path(text))), (path(text), Some(key)));
            assert_eq!(Key::in_global(&path(text)), None, "{text}");
        }
        assert!(Key::Keyspace("a/b").path().is_ok_and(|path| Key::in_global(&path).is_none()));
        assert!(Key::Keyspace("..").path().is_err());
    }

    #[test]
    fn a_record_of_a_cell_says_its_name_and_whether_a_cell_can_have_it() {
        let cell = |text: &str| cell_of_info(&path(text)).map(|(name, cell)| (name.to_owned(), cell.is_ok()));
        assert_eq!(cell("cells/zone1/CellInfo"), Some(("zone1".to_owned(), true)));
        for (record, name) in
            [("cells/a/b/CellInfo", "a/b"), ("cells/CellInfo", ""), ("cells/global/CellInfo", "global")]
        {
            assert_eq!(cell(record), Some((name.to_owned(), false)), "{record}");
        }
        for other in ["cells/zone1/xCellInfo", "cells/zone1", "cellsx/zone1/CellInfo", "other/cells/zone1/CellInfo"] {
            assert_eq!(cell(other), None, "{other}");
        }
    }

    #[test]
    fn names_of_records_are_those_that_stand_for_messages() {
        let (global, zone1) = (CellName::global(), CellName::new("zone1").unwrap());
        for (name, expected) in MESSAGES {
            assert_eq!(message(&zone1, &path(&format!("some/where/{name}"))), Some(expected));
            assert!(is_named_as_record(&path(&format!("some/where/{name}"))), "{name}");
        }
        for record in
            ["RoutingRules", "keyspaces/ks/Keyspace", "keyspaces/Shard/Keyspace", "routing_rules/keyspace/Rules"]
        {
            assert!(is_named_as_record(&path(record)), "{record}");
        }
        for other in
            ["keyspaces/Keyspace", "keyspaces/ks/shards/Shard", "cells/CellInfo", "a/Rules", "locks", "keyspaces"]
        {
            assert!(!is_named_as_record(&path(other)), "{other}");
        }
        assert_eq!(message(&global, &path("metadata/Keyspace")), None);
        assert_eq!(message(&global, &path("ExternalClusters/vitess/c")), Some(EXTERNAL_CLUSTER));
        assert!(stands_among_records(&path("metadata/owner")) && !stands_among_records(&path("metadata/a/b")));
        assert!(is_metadata(&path("metadata/a/b")) && !is_metadata(&path("keyspaces/metadata")));
    }

    #[test]
    fn what_is_locked_is_where_vitess_locks() {
        let all = [
            ("keyspaces/ks", Some(Lockable::Keyspace("ks"))),
            ("keyspaces/ks/shards/0", Some(Lockable::Shard("ks", "0"))),
            ("routing_rules", Some(Lockable::RoutingRules)),
            ("elections/vtctld", Some(Lockable::Election("vtctld"))),
            ("internal/named_locks/ks", Some(Lockable::Named)),
            ("internal/named_locks/ks/workflow", Some(Lockable::Named)),
            ("internal/named_locks", None),
            ("internal/named_locks2/ks", None),
            ("elections", None),
            ("elections/vtctld/locks", None),
            ("keyspaces", None),
            ("keyspaces/ks/shards", None),
            ("keyspaces/ks/other/0", None),
            ("cells/zone1", None),
        ];
        for (dir, lockable) in all {
            assert_eq!(Lockable::of(&path(dir)), lockable, "{dir}");
            assert_eq!(is_election(&path(dir)), matches!(lockable, Some(Lockable::Election(_))), "{dir}");
            let (virtually, alone) = (is_virtual(&path(dir)), needs_no_records(&path(dir)));
            assert!(virtually || !alone, "{dir}");
            assert_eq!(
                alone,
                dir.starts_with("elections/v") && lockable.is_some() || lockable == Some(Lockable::Named)
            );
        }
        for above in ["elections", "internal", "internal/named_locks"] {
            assert!(is_virtual(&path(above)), "{above}");
        }
        assert!(!is_virtual(&TopoPath::root()) && !is_virtual(&path("internal/other")));
        assert_eq!(dir_of_queued(&line(&path("a/b")).unwrap().join("7").unwrap()), Some(path("a/b")));
        assert_eq!(dir_of_queued(&path("a/b/7")), None);
        assert_eq!(keyspace_dir(&path("keyspaces/ks/shards/0/Shard")), Some(path("keyspaces/ks")));
        assert_eq!(keyspace_dir(&path("keyspaces/ks")), None);
        let locks = ["keyspaces/ks/Keyspace", "routing_rules/keyspace/Rules", "keyspaces/ks/shards/0/Shard"];
        let locks = locks.map(|record| lock_of_save(&path(record)));
        assert_eq!(locks, [Some(path("keyspaces/ks")), Some(path("routing_rules")), None]);
        assert_eq!(cells_alias(&path("cells_aliases/all")), Some("all"));
        for other in ["cells_aliases", "cells_aliases/all/CellsAlias", "cells/all"] {
            assert_eq!(cells_alias(&path(other)), None, "{other}");
        }
        assert_eq!(tablet("zone1-1"), Ok(path("tablets/zone1-1")));
        assert!(tablet("a/../b").is_err());
    }
}
