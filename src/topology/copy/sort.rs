//! In which order records are copied, and which records a `--do` flag means. Pure: must never ask a service.

use crate::name::{CellName, TopoPath};
use crate::record::layout::Key;

/// The sorts of records in the order in which a copy stores them, so that those who use the target meanwhile find what
/// a record refers to: cells before their tablets, a keyspace before its shards, tablets before the list of a shard's
/// tablets, and what vtgates read at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sort {
    /// Where a cell is.
    CellInfo,
    /// A group of cells.
    CellsAlias,
    /// A keyspace.
    Keyspace,
    /// The VSchema of a keyspace.
    VSchema,
    /// A shard.
    Shard,
    /// A tablet.
    Tablet,
    /// The tablets of a shard in a cell.
    ShardReplication,
    /// Rules of all kinds: for tables, shards and keyspaces, and the mirror rules.
    Rules,
    /// Everything else, also what no Vitess knows.
    Other,
    /// What the vtgates of a cell know about a keyspace.
    SrvKeyspace,
    /// The VSchemas that the vtgates of a cell use.
    SrvVSchema,
}

impl Sort {
    /// The sort of a record. The name of the cell tells whether it is the global topology.
    pub fn of(cell: &CellName, path: &TopoPath) -> Self {
        match Key::of(cell, path) {
            Some(Key::CellInfo(_)) => Sort::CellInfo,
            Some(Key::CellsAlias(_)) => Sort::CellsAlias,
            Some(Key::Keyspace(_)) => Sort::Keyspace,
            Some(Key::VSchema(_)) => Sort::VSchema,
            Some(Key::Shard(..)) => Sort::Shard,
            Some(Key::Tablet(_)) => Sort::Tablet,
            Some(Key::ShardReplication(..)) => Sort::ShardReplication,
            Some(Key::RoutingRules | Key::ShardRoutingRules | Key::MirrorRules | Key::KeyspaceRoutingRules) => {
                Sort::Rules
            }
            Some(Key::SrvKeyspace(_)) => Sort::SrvKeyspace,
            Some(Key::SrvVSchema) => Sort::SrvVSchema,
            Some(Key::Workflow(_) | Key::ExternalCluster(_) | Key::Metadata(_)) | None => Sort::Other,
        }
    }
}

/// What is copied or compared: everything, or the records that Vitess's `--do` flags mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// Keyspace and VSchema records.
    pub keyspaces: bool,
    /// Shard records.
    pub shards: bool,
    /// ShardReplication records in all cells.
    pub shard_replications: bool,
    /// Tablet records in all cells.
    pub tablets: bool,
    /// Rules of all kinds.
    pub routing_rules: bool,
}

impl Selection {
    /// Whether nothing was selected, which means everything.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether records of cells are meant, not only those of the global topology.
    pub fn wants_cells(&self) -> bool {
        self.is_everything() || self.tablets || self.shard_replications
    }

    /// Whether records of a sort are meant. The records of a cell need its CellInfo.
    pub fn wants(&self, sort: Sort) -> bool {
        self.is_everything()
            || match sort {
                Sort::CellInfo => self.wants_cells(),
                Sort::Keyspace | Sort::VSchema => self.keyspaces,
                Sort::Shard => self.shards,
                Sort::Tablet => self.tablets,
                Sort::ShardReplication => self.shard_replications,
                Sort::Rules => self.routing_rules,
                Sort::CellsAlias | Sort::Other | Sort::SrvKeyspace | Sort::SrvVSchema => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(cell: &str, path: &str) -> Sort {
        Sort::of(&CellName::new(cell).unwrap(), &TopoPath::parse(path).unwrap())
    }

    #[test]
    fn what_a_record_refers_to_is_stored_before_it() {
        let global = |path| sort(CellName::GLOBAL, path);
        let local = |path| sort("zone1", path);
        let keyspace = global("keyspaces/ks/Keyspace");
        assert!(global("cells/zone1/CellInfo") < global("cells_aliases/all/CellsAlias"));
        assert!(global("cells/zone1/CellInfo") < local("tablets/zone1-0000000100/Tablet"));
        assert!(keyspace < global("keyspaces/ks/VSchema") && keyspace < global("keyspaces/ks/shards/0/Shard"));
        assert!(global("keyspaces/ks/shards/0/Shard") < local("tablets/zone1-0000000100/Tablet"));
        assert!(local("tablets/zone1-0000000100/Tablet") < local("keyspaces/ks/shards/0/ShardReplication"));
        for rules in ["RoutingRules", "ShardRoutingRules", "MirrorRules", "routing_rules/keyspace/Rules"] {
            assert_eq!(global(rules), Sort::Rules);
        }
        assert!(global("metadata/owner") < local("keyspaces/ks/SrvKeyspace"));
        assert!(local("keyspaces/ks/SrvKeyspace") < local("SrvVSchema"));
    }

    #[test]
    fn a_selection_means_what_vitess_means() {
        let everything = Selection::default();
        let all = [Sort::CellInfo, Sort::CellsAlias, Sort::Keyspace, Sort::Other, Sort::SrvVSchema];
        assert!(all.into_iter().all(|sort| everything.wants(sort)) && everything.wants_cells());
        let keyspaces = Selection { keyspaces: true, ..Selection::default() };
        assert!(keyspaces.wants(Sort::Keyspace) && keyspaces.wants(Sort::VSchema));
        assert!(!keyspaces.wants_cells() && !keyspaces.wants(Sort::CellInfo) && !keyspaces.wants(Sort::Shard));
        let tablets = Selection { tablets: true, ..Selection::default() };
        assert!(tablets.wants(Sort::Tablet) && tablets.wants(Sort::CellInfo) && !tablets.wants(Sort::ShardReplication));
    }
}
