//! What belongs to a shard, a keyspace or a cell alias in other cells: the tablets of a shard are those that Vitess
//! finds. Must never name anything outside of the cells, and never more than [`MOST`] things at once.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::Topology;
use super::picture::read;
use crate::backend::Version;
use crate::mirror::Snapshot;
use crate::name::{CELLS_LINKS, CellName, CellPath, PRIMARY_LINK, TABLETS_LINKS, TopoPath};
use crate::record::layout::{self, Key, Lockable};
use crate::record::messages::topodata::{CellsAlias, Shard, ShardReplication, TabletAlias};

/// The most links of one directory: more than a shard has tablets, or a keyspace cells. A record can list more.
pub const MOST: usize = 10_000;

/// What a link stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// The tablets of a shard.
    Tablets,
    /// The primary of a shard.
    Primary,
    /// The cells of a keyspace or of a cell alias.
    Cells,
}

impl View {
    /// The name of the link, or of the directory that holds the links.
    pub fn name(self) -> &'static str {
        match self {
            View::Tablets => TABLETS_LINKS,
            View::Primary => PRIMARY_LINK,
            View::Cells => CELLS_LINKS,
        }
    }

    /// The views of a directory.
    pub fn of(dir: &CellPath) -> &'static [View] {
        match Lockable::of(&dir.path) {
            _ if !dir.cell.is_global() => &[],
            Some(Lockable::Keyspace(_)) => &[View::Cells],
            Some(Lockable::Shard(..)) => &[View::Tablets, View::Primary],
            _ if layout::cells_alias(&dir.path).is_some() => &[View::Cells],
            _ => &[],
        }
    }

    /// Whether the records of other cells decide what a view of a directory shows.
    pub fn asks_cells(self, dir: &TopoPath) -> bool {
        match self {
            View::Tablets => true,
            View::Primary => false,
            View::Cells => layout::cells_alias(dir).is_none(),
        }
    }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// The directory of the shard, of the keyspace or of the alias.
    pub of: CellPath,
    /// What it stands for.
    pub view: View,
    /// Where it points. Nothing need be there.
    pub to: CellPath,
}

impl Link {
    /// Its name in its directory.
    pub fn name(&self) -> &str {
        match self.view {
            View::Tablets => self.to.path.name(),
            View::Primary => self.view.name(),
            View::Cells => self.to.cell.as_str(),
        }
    }
}

/// A cell that a record names; `None` if no cell can have this name. The global topology is no cell.
fn cell(name: &str) -> Option<CellName> {
    CellName::new(name).ok().filter(|cell| !cell.is_global())
}

/// The directory of a tablet; `None` if the alias cannot be a file name.
fn tablet(alias: &TabletAlias) -> Option<CellPath> {
    let cell = cell(&alias.cell)?;
    let path = layout::tablet(&layout::tablet_alias(&alias.cell, alias.uid)).ok()?;
    Some(CellPath { cell, path })
}

/// The primary of a shard, as its Shard record names it.
pub fn primary(global: &Snapshot, shard_dir: &TopoPath) -> Option<CellPath> {
    let Some(Lockable::Shard(keyspace, shard)) = Lockable::of(shard_dir) else { return None };
    let record: Shard = read(global, Key::Shard(keyspace, shard))?.ok()?;
    tablet(record.primary_alias.as_ref()?)
}

/// The tablets of a shard: those in the ShardReplication record of any cell, and the primary that the Shard record
/// names. Without a Shard record Vitess finds none.
fn tablets(topology: &Topology, shard_dir: &TopoPath) -> BTreeSet<CellPath> {
    let mut found = BTreeSet::new();
    let Some(Lockable::Shard(keyspace, shard)) = Lockable::of(shard_dir) else { return found };
    let exists = Key::Shard(keyspace, shard).path().is_ok_and(|path| topology.global.records.contains_key(&path));
    if !exists {
        return found;
    }
    // The primary always has a place.
    found.extend(primary(&topology.global, shard_dir));
    for cell in topology.cells.keys() {
        // A record that cannot be decoded lists nothing.
        let record = topology.in_cell(cell, Key::ShardReplication(keyspace, shard));
        let Some(Ok(ShardReplication { nodes })) = record else { continue };
        for node in nodes.iter().filter_map(|node| node.tablet_alias.as_ref()) {
            if found.len() >= MOST {
                return found;
            }
            found.extend(tablet(node));
        }
    }
    found
}

/// The cells in which anything is stored for a keyspace, each with its directory there.
fn cells_of_keyspace(topology: &Topology, dir: &TopoPath) -> BTreeSet<CellPath> {
    let known = topology.cells.iter().filter_map(|(cell, records)| Some((cell, records.as_ref().ok()?)));
    let stored = known.filter(|(_, records)| records.has_children(dir));
    stored.map(|(cell, _)| CellPath::new(cell, dir)).take(MOST).collect()
}

/// The cells that the record of an alias names, whether or not there are such cells.
fn cells_of_alias(global: &Snapshot, alias: &str) -> BTreeSet<CellPath> {
    let Some(Ok(CellsAlias { cells })) = read(global, Key::CellsAlias(alias)) else { return BTreeSet::new() };
    let names = cells.iter().filter_map(|name| cell(name));
    names.map(|cell| CellPath { cell, path: TopoPath::root() }).take(MOST).collect()
}

/// Where a link of this name points, if the view has it.
pub fn target_of_name(dir: &TopoPath, view: View, name: &str) -> Option<CellPath> {
    match view {
        View::Tablets => {
            let (cell, _) = name.rsplit_once('-')?;
            Some(CellPath { cell: CellName::new(cell).ok()?, path: layout::tablet(name).ok()? })
        }
        View::Primary => None,
        View::Cells => {
            let path = if view.asks_cells(dir) { dir.clone() } else { TopoPath::root() };
            Some(CellPath { cell: CellName::new(name).ok()?, path })
        }
    }
}

/// The state of a record: where it is, its version, and when it was written. Versions may repeat when a service is
/// restored; times do not.
pub type State = (CellName, Version, SystemTime);

/// The states of the records that decide where the links of a view point, if it is records that decide: the same states
/// give the same links.
pub fn decided_by(topology: &Topology, dir: &TopoPath, view: View) -> Option<Vec<State>> {
    let state = |cell: &CellName, snapshot: &Snapshot, key: Key<'_>| {
        let record = snapshot.records.get(&key.path().ok()?)?;
        Some((cell.clone(), record.version, record.modified))
    };
    let global = |key| state(&CellName::global(), &topology.global, key);
    match (view, Lockable::of(dir), layout::cells_alias(dir)) {
        (View::Tablets, Some(Lockable::Shard(keyspace, shard)), _) => {
            let cells = topology.cells.iter().filter_map(|(cell, records)| {
                state(cell, records.as_ref().ok()?, Key::ShardReplication(keyspace, shard))
            });
            Some(global(Key::Shard(keyspace, shard)).into_iter().chain(cells).collect())
        }
        (View::Cells, _, Some(alias)) => Some(global(Key::CellsAlias(alias)).into_iter().collect()),
        _ => None,
    }
}

/// Where the links of a view point. Cells that are not known have no part in it.
pub fn targets(topology: &Topology, dir: &TopoPath, view: View) -> BTreeSet<CellPath> {
    match (view, layout::cells_alias(dir)) {
        (View::Tablets, _) => tablets(topology, dir),
        (View::Primary, _) => primary(&topology.global, dir).into_iter().collect(),
        (View::Cells, Some(alias)) => cells_of_alias(&topology.global, alias),
        (View::Cells, None) => cells_of_keyspace(topology, dir),
    }
}

/// The view with links in a directory of its own that a record of a cell has a part in, and the directory of the
/// global topology that has that view.
pub fn concerned(cell: &CellName, path: &TopoPath) -> Vec<(TopoPath, View)> {
    let mut concerned = Vec::new();
    let dir = |view| path.parent().map(|dir| (dir, view));
    match Key::of(cell, path) {
        Some(Key::Shard(..) | Key::ShardReplication(..)) => concerned.extend(dir(View::Tablets)),
        Some(Key::CellsAlias(_)) => concerned.extend(dir(View::Cells)),
        _ => {}
    }
    if !cell.is_global() {
        concerned.extend(layout::keyspace_dir(path).map(|dir| (dir, View::Cells)));
    }
    concerned
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::backend::{Revision, Version};
    use crate::error::{Error, Kind};
    use crate::mirror::Record;
    use crate::record::messages::topodata::shard_replication::Node;

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    fn snapshot(records: &[Stored<'_>]) -> Arc<Snapshot> {
        let version = Version { number: 1, written: Revision(1), created: Revision(1) };
        let record =
            |value: &Vec<u8>| Record { value: value.clone().into(), version, modified: SystemTime::UNIX_EPOCH };
        let records = records.iter().map(|(key, value)| (path(key), record(value))).collect();
        Arc::new(Snapshot { records, ..Snapshot::default() })
    }

    fn alias((cell, uid): (&str, u32)) -> TabletAlias {
        TabletAlias { cell: cell.to_owned(), uid }
    }

    fn shard(primary: Option<(&str, u32)>) -> Vec<u8> {
        Shard { primary_alias: primary.map(alias), ..Shard::default() }.encode_to_vec()
    }

    fn replication(tablets: &[(&str, u32)]) -> Vec<u8> {
        let nodes = tablets.iter().map(|tablet| Node { tablet_alias: Some(alias(*tablet)) }).collect();
        ShardReplication { nodes }.encode_to_vec()
    }

    /// A key and its value.
    type Stored<'a> = (&'a str, Vec<u8>);

    fn topology(global: &[Stored<'_>], cells: &[(&str, &[Stored<'_>])]) -> Topology {
        let cells = cells.iter().map(|(name, records)| (CellName::new(name).unwrap(), Ok(snapshot(records))));
        Topology { global: snapshot(global), cells: cells.collect() }
    }

    fn shown(topology: &Topology, dir: &str, view: View) -> Vec<String> {
        targets(topology, &path(dir), view).iter().map(ToString::to_string).collect()
    }

    const SHARD: &str = "keyspaces/ks/shards/0";
    const SHARD_RECORD: &str = "keyspaces/ks/shards/0/Shard";
    const REPLICATION: &str = "keyspaces/ks/shards/0/ShardReplication";

    #[test]
    fn the_tablets_of_a_shard_are_those_that_vitess_finds() {
        let all = topology(
            &[(SHARD_RECORD, shard(Some(("zone9", 7))))],
            &[
                ("zone1", &[(REPLICATION, replication(&[("zone1", 101), ("zone1", 100), ("zone2", 5)]))]),
                ("zone2", &[(REPLICATION, replication(&[("zone2", 5), ("zone2", 200)]))]),
                // Another shard's.
                ("zone3", &[("keyspaces/ks/shards/1/ShardReplication", replication(&[("zone3", 1)]))]),
            ],
        );
        let expected = [
            "zone1/tablets/zone1-0000000100",
            "zone1/tablets/zone1-0000000101",
            "zone2/tablets/zone2-0000000005",
            "zone2/tablets/zone2-0000000200",
            "zone9/tablets/zone9-0000000007",
        ];
        assert_eq!(shown(&all, SHARD, View::Tablets), expected);
        assert_eq!(shown(&all, SHARD, View::Primary), expected[4..]);
        // Without a Shard record Vitess finds nothing.
        let without = topology(&[], &[("zone1", &[(REPLICATION, replication(&[("zone1", 100)]))])]);
        assert!(shown(&without, SHARD, View::Tablets).is_empty());
        // A Shard record that cannot be decoded exists, and hides nobody.
        let broken = topology(
            &[(SHARD_RECORD, b"\x0a\x09a".to_vec())],
            &[
                ("zone1", &[(REPLICATION, replication(&[("zone1", 100)]))]),
                ("zone2", &[(REPLICATION, b"\x0a\x09".to_vec())]),
            ],
        );
        assert_eq!(shown(&broken, SHARD, View::Tablets), expected[..1]);
        assert!(shown(&broken, SHARD, View::Primary).is_empty());
    }

    #[test]
    fn a_cell_that_does_not_answer_has_no_part_but_the_primary_is_known() {
        let silent = CellName::new("zone1").unwrap();
        let global = snapshot(&[(SHARD_RECORD, shard(Some(("zone1", 100))))]);
        let unreachable = Err(Error::new(Kind::Unreachable, "it is away"));
        let all = Topology { global, cells: BTreeMap::from([(silent, unreachable)]) };
        assert_eq!(shown(&all, SHARD, View::Tablets), ["zone1/tablets/zone1-0000000100"]);
        assert!(shown(&all, "keyspaces/ks", View::Cells).is_empty());
    }

    #[test]
    fn the_cells_of_a_keyspace_hold_something_of_it_and_those_of_an_alias_are_in_its_record() {
        let cells = CellsAlias {
            cells: ["zone1", "nowhere", "../..", "", ".topofs", "global", "zone1"].map(str::to_owned).into(),
        };
        let all = topology(
            &[("keyspaces/ks/Keyspace", Vec::new()), ("cells_aliases/all/CellsAlias", cells.encode_to_vec())],
            &[
                ("zone1", &[("keyspaces/ks/SrvKeyspace", Vec::new())]),
                ("zone2", &[("keyspaces/ks/shards/0/ShardReplication", Vec::new())]),
                ("zone3", &[("keyspaces/ks2/SrvKeyspace", Vec::new())]),
            ],
        );
        assert_eq!(shown(&all, "keyspaces/ks", View::Cells), ["zone1/keyspaces/ks", "zone2/keyspaces/ks"]);
        assert_eq!(shown(&all, "cells_aliases/all", View::Cells), ["nowhere", "zone1"]);
        assert!(shown(&all, "cells_aliases/none", View::Cells).is_empty());
    }

    #[test]
    fn links_are_the_same_as_long_as_the_records_that_decide_are() {
        let global = [(SHARD_RECORD, shard(Some(("zone1", 1)))), ("cells_aliases/all/CellsAlias", Vec::new())];
        let replicas = [(REPLICATION, replication(&[("zone1", 1)])), ("tablets/zone1-0000000001/Tablet", Vec::new())];
        let one = topology(&global, &[("zone1", &replicas), ("zone2", &[])]);
        let decided = |all: &Topology, dir: &str, view| decided_by(all, &path(dir), view).map(|states| states.len());
        assert_eq!(decided(&one, SHARD, View::Tablets), Some(2));
        assert_eq!(decided(&one, "cells_aliases/all", View::Cells), Some(1));
        // There, it is whether there is any record.
        assert_eq!(decided(&one, "keyspaces/ks", View::Cells), None);
        let two = topology(&global, &[("zone1", &replicas), ("zone2", &replicas[..1])]);
        assert_eq!(decided(&two, SHARD, View::Tablets), Some(3));
        let moved = topology(&global, &[("zone1", &[]), ("zone2", &replicas[..1])]);
        let states = |all| decided_by(all, &path(SHARD), View::Tablets);
        assert_ne!(states(&one), states(&moved), "the cell counts");
        assert_eq!(states(&one), states(&one));
    }

    #[test]
    fn only_a_shard_a_keyspace_and_an_alias_have_views() {
        let views = |cell: &str, dir: &str| View::of(&CellPath { cell: CellName::new(cell).unwrap(), path: path(dir) });
        assert_eq!(views("global", SHARD), [View::Tablets, View::Primary]);
        assert_eq!(views("global", "keyspaces/ks"), [View::Cells]);
        assert_eq!(views("global", "cells_aliases/all"), [View::Cells]);
        for other in ["keyspaces", "keyspaces/ks/shards", "cells/zone1", "cells_aliases", "elections/x", "metadata", ""]
        {
            assert!(views("global", other).is_empty(), "{other}");
        }
        assert!(views("zone1", SHARD).is_empty() && views("zone1", "keyspaces/ks").is_empty());
    }

    #[test]
    fn a_record_concerns_the_views_that_it_has_a_part_in() {
        let concerned = |cell: &str, key: &str| concerned(&CellName::new(cell).unwrap(), &path(key));
        let (tablets, cells) = ((path(SHARD), View::Tablets), (path("keyspaces/ks"), View::Cells));
        assert_eq!(concerned("zone1", REPLICATION), [tablets.clone(), cells.clone()]);
        assert_eq!(concerned("global", SHARD_RECORD), [tablets]);
        assert_eq!(concerned("zone1", "keyspaces/ks/SrvKeyspace"), [cells]);
        assert_eq!(concerned("global", "cells_aliases/all/CellsAlias"), [(path("cells_aliases/all"), View::Cells)]);
        for (cell, other) in [
            ("global", "keyspaces/ks/Keyspace"),
            ("global", REPLICATION),
            ("zone1", "cells_aliases/all/CellsAlias"),
            ("zone1", "tablets/zone1-0000000100/Tablet"),
        ] {
            assert!(concerned(cell, other).is_empty(), "{cell}/{other}");
        }
    }

    #[test]
    fn a_huge_list_has_an_end_and_keeps_the_primary() {
        let many: Vec<(&str, u32)> = (0..MOST as u32 + 5_000).map(|uid| ("zone1", uid)).collect();
        let all =
            topology(&[(SHARD_RECORD, shard(Some(("zone9", 9))))], &[("zone1", &[(REPLICATION, replication(&many))])]);
        let tablets = shown(&all, SHARD, View::Tablets);
        assert_eq!(tablets.len(), MOST);
        assert!(tablets.contains(&"zone9/tablets/zone9-0000000009".to_owned()));
        let cells: Vec<String> = (0..MOST + 5_000).map(|number| format!("c{number}")).collect();
        let all = topology(&[("cells_aliases/all/CellsAlias", CellsAlias { cells }.encode_to_vec())], &[]);
        assert_eq!(shown(&all, "cells_aliases/all", View::Cells).len(), MOST);
    }

    proptest! {
        #[test]
        fn whatever_a_record_says_a_link_stays_in_the_cells(
            names in prop::collection::vec(
                prop_oneof![
                    "[./]{1,6}",
                    "[a-z]{1,4}(/\\.\\.){1,3}",
                    ".{0,12}",
                    Just("x".repeat(250)),
                    Just(".cells".to_owned()),
                ],
                0..6,
            ),
            uid in any::<u32>(),
        ) {
            let nodes: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), uid)).collect();
            let alias = CellsAlias { cells: names.clone() }.encode_to_vec();
            let found = |link: &Link| target_of_name(&link.of.path, link.view, link.name());
            let all = topology(
                &[(SHARD_RECORD, shard(nodes.first().copied())), ("cells_aliases/all/CellsAlias", alias)],
                &[("zone1", &[(REPLICATION, replication(&nodes))])],
            );
            for (dir, view) in [(SHARD, View::Tablets), (SHARD, View::Primary), ("cells_aliases/all", View::Cells)] {
                let of = CellPath { cell: CellName::global(), path: path(dir) };
                for to in targets(&all, &of.path, view) {
                    prop_assert!(CellName::new(to.cell.as_str()).is_ok() && TopoPath::parse(to.path.as_str()).is_ok());
                    let link = Link { of: of.clone(), view, to };
                    prop_assert!(crate::name::check_component(link.name()).is_ok(), "{link:?}");
                    prop_assert!(view == View::Primary || found(&link) == Some(link.to.clone()), "{link:?}");
                }
            }
        }
    }
}
