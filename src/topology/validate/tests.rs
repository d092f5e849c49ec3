//! A sound topology, in which each fault is put in alone; and sound topologies of any shape.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use proptest::prelude::*;

use super::{Kind, Report, Sight, Within, problems, unreachable};
use crate::backend::{Node, Owner, Revision, Role, Version};
use crate::error::Error;
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::{Codec, Form, Kinds, Records};
use crate::topology::{Topology, graph, vschema};

/// The time in these tests: 1972-09-27.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 * 24 * 3600)
}

/// The records of a topology, by cell.
struct World {
    cells: BTreeMap<CellName, Snapshot>,
    down: Vec<&'static str>,
    idle: Vec<&'static str>,
    sight: Sight,
}

fn cell(name: &str) -> CellName {
    CellName::new(name).unwrap()
}

fn path(text: &str) -> TopoPath {
    TopoPath::parse(text).unwrap()
}

fn place(text: &str) -> (CellName, TopoPath) {
    let (name, rest) = text.split_once('/').unwrap();
    (cell(name), path(rest))
}

const VERSION: Version = Version { number: 1, written: Revision(1), created: Revision(1) };

impl World {
    fn empty(cells: &[&str]) -> Self {
        let sight = Sight {
            topology: Topology { global: Arc::default(), cells: BTreeMap::new() },
            idle: BTreeSet::new(),
            locations: BTreeMap::new(),
            flags: " --topo-global-root /r".to_owned(),
            twins: Arc::default(),
            unusable: Arc::default(),
            roots_inside: BTreeMap::new(),
            locks: BTreeMap::new(),
            unnameable: BTreeMap::new(),
            records: Records::new(Codec::builtin().unwrap(), Kinds::default()),
        };
        let all = cells.iter().chain([&CellName::GLOBAL]).map(|name| (cell(name), Snapshot::default()));
        let mut world = Self { cells: all.collect(), down: vec![], idle: vec![], sight };
        for name in cells {
            world.put(&format!("global/cells/{name}/CellInfo"), &format!("server_address: \"s\" root: \"/{name}\""));
        }
        world
    }

    /// Stores a record, as text.
    fn put(&mut self, record: &str, text: &str) {
        let (cell, path) = place(record);
        let input = Bytes::copy_from_slice(text.as_bytes());
        let value = self.sight.records.store(&cell, &path, Form::Text, &input, None).unwrap().unwrap_or_default();
        self.put_bytes(record, value);
    }

    fn put_bytes(&mut self, record: &str, value: impl Into<Bytes>) {
        let (cell, path) = place(record);
        let record = Record { value: value.into(), version: VERSION, modified: now() };
        self.cells.get_mut(&cell).unwrap().records.insert(path, record);
    }

    /// Changes the text of a record.
    fn edit(&mut self, record: &str, from: &str, to: &str) {
        let (cell, path) = place(record);
        let value = self.cells[&cell].records[&path].value.clone();
        let text = self.sight.records.show(&cell, &path, &value, Form::Text).unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains(from), "{record}: {text}");
        self.put(record, &text.replace(from, to));
    }

    fn remove(&mut self, record: &str) {
        let (cell, path) = place(record);
        assert!(self.cells.get_mut(&cell).unwrap().records.remove(&path).is_some(), "{record}");
    }

    fn lock(&mut self, dir: &str, owner: Owner, text: &str) {
        let (cell, dir) = place(dir);
        let value = Bytes::copy_from_slice(text.as_bytes());
        let role = Role::Lock(owner);
        let node = Node { path: dir.join("locks").unwrap(), value, version: VERSION, role, modified: None };
        self.sight.locks.entry(cell).or_default().push((dir, node));
    }

    fn keyspace(&mut self, name: &str, shards: &[&str]) {
        self.put(&format!("global/keyspaces/{name}/Keyspace"), "durability_policy: \"none\"");
        for shard in shards {
            let record = format!("global/keyspaces/{name}/shards/{shard}/Shard");
            self.put(&record, &format!("is_primary_serving: true {}", range(shard)));
        }
    }

    /// Makes a tablet, as Vitess's tools do; the primary is named by its shard.
    fn tablet(&mut self, at: &str, uid: u32, keyspace: &str, shard: &str, kind: &str) {
        let term = if kind == "PRIMARY" { "primary_term_start_time { seconds: 10 }" } else { "" };
        let alias = format!("cell: \"{at}\" uid: {uid}");
        let text = format!(
            "alias {{ {alias} }} hostname: \"h{uid}\" port_map {{ key: \"grpc\" value: 1 }} keyspace: \"{keyspace}\" \
             shard: \"{shard}\" type: {kind} {term} {}",
            range(shard)
        );
        self.put(&format!("{at}/tablets/{at}-{uid:010}/Tablet"), &text);
        let replication = format!("{at}/keyspaces/{keyspace}/shards/{shard}/ShardReplication");
        let (cell, record) = place(&replication);
        let mut value = self.cells[&cell].records.get(&record).map(|record| record.value.to_vec()).unwrap_or_default();
        let node = format!("nodes {{ tablet_alias {{ {alias} }} }}").into();
        value.extend(self.sight.records.store(&cell, &record, Form::Text, &node, None).unwrap().unwrap());
        self.put_bytes(&replication, value);
        if kind == "PRIMARY" {
            let text = format!("is_primary_serving: true primary_alias {{ {alias} }} {}", range(shard));
            self.put(&format!("global/keyspaces/{keyspace}/shards/{shard}/Shard"), &text);
        }
    }

    /// What Vitess's rebuilds store.
    fn rebuild(&mut self, keyspaces: &[&str]) {
        let codec = Codec::builtin().unwrap();
        let global = self.cells[&CellName::global()].clone();
        let cells: Vec<CellName> = self.cells.keys().filter(|cell| !cell.is_global()).cloned().collect();
        for keyspace in keyspaces {
            let message = graph::srv_keyspace(&codec, &global, keyspace, false).unwrap().message;
            let value = codec.encode(&message);
            for cell in &cells {
                self.put_bytes(&format!("{cell}/keyspaces/{keyspace}/SrvKeyspace"), value.clone());
            }
        }
        let value = codec.encode(&vschema::srv_vschema(&codec, &global).unwrap());
        for cell in &cells {
            self.put_bytes(&format!("{cell}/SrvVSchema"), value.clone());
        }
    }

    fn sight(self) -> Sight {
        let Self { mut cells, down, idle, mut sight } = self;
        let global = Arc::new(cells.remove(&CellName::global()).unwrap());
        let known = cells.into_iter().filter(|(cell, _)| !idle.contains(&cell.as_str()));
        let known = known.map(|(cell, snapshot)| match down.contains(&cell.as_str()) {
            true => (cell, Err(Error::new(crate::error::Kind::Unreachable, "nobody answers"))),
            false => (cell, Ok(Arc::new(snapshot))),
        });
        sight.topology = Topology { global, cells: known.collect() };
        sight.idle = idle.into_iter().map(cell).collect();
        sight
    }

    fn report(self) -> Report {
        problems(&self.sight(), Within::default(), now())
    }
}

fn range(shard: &str) -> String {
    let side = |name: &str, hex: &str| match hex {
        "" => String::new(),
        hex => format!("{name}: \"\\x{hex}\""),
    };
    match shard.split_once('-') {
        Some((start, end)) => format!("key_range {{ {} {} }}", side("start", start), side("end", end)),
        None => String::new(),
    }
}

/// A topology as after a day of work with Vitess's tools.
fn sound() -> World {
    let mut world = World::empty(&["zone1", "zone2"]);
    world.put("global/cells_aliases/region1/CellsAlias", "cells: \"zone1\" cells: \"zone2\"");
    world.keyspace("commerce", &["0"]);
    world.keyspace("customer", &["-80", "80-"]);
    world.put("global/keyspaces/customer/VSchema", "sharded: true tables { key: \"corder\" value {} }");
    // Shards of a resharding do not serve yet.
    for shard in ["-40", "40-80"] {
        world.put(&format!("global/keyspaces/customer/shards/{shard}/Shard"), &range(shard));
    }
    for (number, (keyspace, shard)) in [("commerce", "0"), ("customer", "-80"), ("customer", "80-")].iter().enumerate()
    {
        let uid = 100 * (u32::try_from(number).unwrap() + 1);
        world.tablet("zone1", uid, keyspace, shard, "PRIMARY");
        world.tablet("zone2", uid + 1, keyspace, shard, "REPLICA");
    }
    // An empty record is legal, and so is a keyspace without anything else.
    world.put_bytes("global/keyspaces/empty/Keyspace", "");
    world.put("global/keyspaces/partial/Keyspace", "keyspace_type: SNAPSHOT base_keyspace: \"customer\"");
    world.put("global/keyspaces/partial/shards/-80/Shard", &format!("is_primary_serving: true {}", range("-80")));
    world.put(
        "global/RoutingRules",
        "rules { from_table: \"corder\" to_tables: \"customer.corder\" } \
         rules { from_table: \"old@replica\" to_tables: \"commerce.any\" } \
         rules { from_table: \"d\" to_tables: \"`customer`.dual\" }",
    );
    world.put("global/ShardRoutingRules", "rules { from_keyspace: \"gone\" to_keyspace: \"customer\" shard: \"-80\" }");
    world.put("global/MirrorRules", "rules { from_table: \"commerce.t\" to_table: \"customer.corder\" percent: 1 }");
    world.put("global/routing_rules/keyspace/Rules", "rules { from_keyspace: \"gone\" to_keyspace: \"commerce\" }");
    world.put_bytes("global/metadata/anything~", "x");
    world.lock("global/keyspaces/commerce", Owner(7), "{\"Action\": \"x\", \"Time\": \"1972-09-27T00:00:00Z\"}");
    world.lock("global/elections/one", Owner::NOBODY, "leader:1");
    world.rebuild(&["commerce", "customer"]);
    world
}

fn found(world: World) -> Vec<(String, String)> {
    let report = world.report();
    report.problems().iter().map(|problem| (problem.kind.name().to_owned(), problem.record())).collect()
}

#[test]
fn nothing_is_wrong_with_what_the_tools_of_vitess_have_made() {
    assert_eq!(found(sound()), []);
}

/// A fault: its kind, its record, and how it is put in.
type Fault = (Kind, &'static str, fn(&mut World));

const SHARD: &str = "global/keyspaces/commerce/shards/0/Shard";
const PRIMARY: &str = "zone1/tablets/zone1-0000000100/Tablet";
const REPLICA: &str = "zone2/tablets/zone2-0000000101/Tablet";
const REPLICATION: &str = "zone2/keyspaces/commerce/shards/0/ShardReplication";
const SRV: &str = "zone1/keyspaces/customer/SrvKeyspace";

fn faults() -> Vec<Fault> {
    let mut faults = faults_of_cells_and_keyspaces();
    faults.extend(faults_of_tablets());
    faults.extend(faults_of_what_is_served());
    faults.extend(faults_of_rules_locks_and_keys());
    faults
}

fn faults_of_cells_and_keyspaces() -> Vec<Fault> {
    vec![
        (Kind::CellNotUsable, "global/cells/zone3/CellInfo", |world| {
            world.put("global/cells/zone3/CellInfo", "server_address: \"far\" root: \"/z\"");
            world.sight.unusable = Arc::new([("zone3".to_owned(), "no such server".to_owned())].into());
        }),
        (Kind::CellSharesPlace, "global/cells/zone2/CellInfo", |world| {
            // Both cells show the records of both, and their tablets are named together.
            let names = ["zone1", "zone2"].map(cell);
            let mut both: BTreeMap<TopoPath, Record> = BTreeMap::new();
            for (path, record) in names.iter().flat_map(|name| world.cells[name].records.clone()) {
                let joined = both.get(&path).filter(|_| path.name() == "ShardReplication");
                let joined = joined.map(|other| [&other.value[..], &record.value].concat().into());
                both.insert(path, Record { value: joined.unwrap_or(record.value), ..record });
            }
            for name in &names {
                world.cells.get_mut(name).unwrap().records = both.clone().into_iter().collect();
            }
            world.sight.twins =
                Arc::new([(cell("zone1"), vec![cell("zone2")]), (cell("zone2"), vec![cell("zone1")])].into());
        }),
        (Kind::AliasOverlap, "global/cells_aliases/region2/CellsAlias", |world| {
            world.put("global/cells_aliases/region2/CellsAlias", "cells: \"zone2\"");
        }),
        (Kind::AliasMissingCell, "global/cells_aliases/region1/CellsAlias", |world| {
            world.edit(
                "global/cells_aliases/region1/CellsAlias",
                "cells: \"zone1\"\n",
                "cells: \"zone1\"\ncells: \"zone9\"\n",
            );
        }),
        (Kind::AliasEmpty, "global/cells_aliases/none/CellsAlias", |world| {
            world.put_bytes("global/cells_aliases/none/CellsAlias", "");
        }),
        (Kind::KeyspaceWithoutRecord, "global/keyspaces/empty", |world| {
            world.remove("global/keyspaces/empty/Keyspace");
            world.put("global/keyspaces/empty/VSchema", "");
        }),
        (Kind::ShardName, "global/keyspaces/customer/shards/-80/Shard", |world| {
            world.edit("global/keyspaces/customer/shards/-80/Shard", "end: \"\\200\"", "end: \"\\300\"");
        }),
        (Kind::ShardName, "global/keyspaces/empty/shards/80-40/Shard", |world| {
            world.put("global/keyspaces/empty/shards/80-40/Shard", "");
        }),
        (Kind::ShardGap, "global/keyspaces/customer/shards/80-/Shard", |world| {
            world.edit("global/keyspaces/customer/shards/80-/Shard", "is_primary_serving: true", "");
        }),
        // Those of a resharding have the keys, too, but no primary.
        (Kind::ShardGap, "global/keyspaces/customer/shards/-80/Shard", |world| {
            world.edit("global/keyspaces/customer/shards/-80/Shard", "is_primary_serving: true", "");
        }),
        (Kind::ShardWithoutRecord, "global/keyspaces/customer/shards/80-/Shard", |world| {
            world.remove("global/keyspaces/customer/shards/80-/Shard");
        }),
        // Only SrvKeyspace knows it.
        (Kind::ShardWithoutRecord, SHARD, |world| {
            for tablet in [PRIMARY, REPLICA, REPLICATION, "zone1/keyspaces/commerce/shards/0/ShardReplication"] {
                world.remove(tablet);
            }
            world.remove(SHARD);
        }),
        (Kind::KeyspaceWithoutRecord, "global/keyspaces/customer", |world| {
            world.remove("global/keyspaces/customer/Keyspace");
        }),
        (Kind::KeyspaceWithoutRecord, "global/keyspaces/customer", |world| {
            for rest in [
                "Keyspace",
                "VSchema",
                "shards/-80/Shard",
                "shards/80-/Shard",
                "shards/-40/Shard",
                "shards/40-80/Shard",
            ] {
                world.remove(&format!("global/keyspaces/customer/{rest}"));
            }
        }),
        (Kind::ShardOverlap, "global/keyspaces/customer/shards/-80/Shard", |world| {
            world.put(
                "global/keyspaces/customer/shards/40-80/Shard",
                &format!("is_primary_serving: true {}", range("40-80")),
            );
        }),
    ]
}

fn faults_of_tablets() -> Vec<Fault> {
    vec![
        (Kind::DanglingPrimary, SHARD, |world| {
            world.remove(PRIMARY);
            world.put_bytes("zone1/keyspaces/commerce/shards/0/ShardReplication", "");
        }),
        (Kind::DanglingPrimary, SHARD, |world| world.edit(SHARD, "zone1", "zone9")),
        (Kind::PrimaryNotPrimary, SHARD, |world| world.edit(PRIMARY, "type: PRIMARY", "type: REPLICA")),
        (Kind::PrimaryNotPrimary, SHARD, |world| {
            world.edit(PRIMARY, "type: PRIMARY", "type: REPLICA");
            world.edit(REPLICA, "type: REPLICA", "type: PRIMARY");
        }),
        (Kind::PrimaryElsewhere, "global/keyspaces/customer/shards/-80/Shard", |world| {
            world.edit("global/keyspaces/customer/shards/-80/Shard", "uid: 200", "uid: 300");
            world.edit("zone1/tablets/zone1-0000000200/Tablet", "type: PRIMARY", "type: REPLICA");
        }),
        (Kind::UnnamedPrimary, SHARD, |world| world.put(SHARD, "is_primary_serving: true")),
        (Kind::TwoPrimaries, REPLICA, |world| world.edit(REPLICA, "type: REPLICA", "type: PRIMARY")),
        (Kind::TabletMisplaced, "zone1/tablets/zone1-0000000900/Tablet", |world| {
            let value = world.cells[&cell("zone1")].records[&path("tablets/zone1-0000000100/Tablet")].value.clone();
            world.put_bytes("zone1/tablets/zone1-0000000900/Tablet", value);
            world.edit("zone1/tablets/zone1-0000000900/Tablet", "type: PRIMARY", "type: REPLICA");
        }),
        (Kind::TabletWithoutShard, "zone1/tablets/zone1-0000000900/Tablet", |world| {
            world.tablet("zone1", 900, "gone", "0", "REPLICA");
            world.remove("zone1/keyspaces/gone/shards/0/ShardReplication");
        }),
        (Kind::KeyspaceWithoutRecord, "global/keyspaces/gone", |world| {
            world.tablet("zone1", 900, "gone", "0", "PRIMARY");
            world.remove("global/keyspaces/gone/shards/0/Shard");
        }),
        (Kind::TabletEmpty, PRIMARY, |world| world.put_bytes(PRIMARY, "")),
        (Kind::TabletEmpty, REPLICA, |world| world.put(REPLICA, "alias { cell: \"zone2\" uid: 101 }")),
        (Kind::TabletWithoutShard, REPLICA, |world| {
            world.edit(REPLICA, "shard: \"0\"", "shard: \"1\"");
            world.put_bytes(REPLICATION, "");
        }),
        (Kind::TabletBlanked, REPLICA, |world| {
            world.edit(REPLICA, "hostname: \"h101\"", "tablet_shutdown_time { seconds: 1 }");
            world.edit(REPLICA, "port_map {\n  key: \"grpc\"\n  value: 1\n}", "");
        }),
        (Kind::TabletNotInReplication, REPLICATION, |world| world.put_bytes(REPLICATION, "")),
        (Kind::TabletNotInReplication, REPLICATION, |world| world.remove(REPLICATION)),
        (Kind::ReplicationWithoutTablet, REPLICATION, |world| world.remove(REPLICA)),
        (Kind::ReplicationWithoutTablet, REPLICATION, |world| {
            world.edit(REPLICATION, "nodes", "nodes { tablet_alias { cell: \"zone1\" uid: 100 } } nodes");
        }),
        (Kind::ReplicationWithoutTablet, REPLICATION, |world| {
            world.edit(REPLICATION, "nodes", "nodes { tablet_alias { cell: \"zone2\" uid: 201 } } nodes");
        }),
        (Kind::ReplicationLeftOver, "zone2/keyspaces/gone/shards/0/ShardReplication", |world| {
            world.put_bytes("zone2/keyspaces/gone/shards/0/ShardReplication", "");
        }),
        (Kind::ReplicationLeftOver, "zone2/keyspaces/commerce/shards/1/ShardReplication", |world| {
            world.put_bytes("zone2/keyspaces/commerce/shards/1/ShardReplication", "");
        }),
    ]
}

fn faults_of_what_is_served() -> Vec<Fault> {
    vec![
        (Kind::SrvKeyspaceMissing, "zone2/keyspaces/commerce/SrvKeyspace", |world| {
            world.remove("zone2/keyspaces/commerce/SrvKeyspace");
        }),
        (Kind::SrvKeyspaceOutdated, SRV, |world| world.edit(SRV, "name: \"-80\"", "name: \"-8\"")),
        (Kind::SrvKeyspaceOutdated, SRV, |world| world.edit(SRV, "served_type: RDONLY", "served_type: BACKUP")),
        (Kind::SrvKeyspaceOutdated, SRV, |world| world.put(SRV, "")),
        (Kind::RebuildRefused, SRV, |world| {
            let disabled = "shard_tablet_controls { name: \"80-\" query_service_disabled: true }";
            world.edit(SRV, "served_type: RDONLY", &format!("served_type: RDONLY {disabled}"));
        }),
        (Kind::SrvKeyspaceLeftOver, "zone1/keyspaces/gone/SrvKeyspace", |world| {
            world.put("zone1/keyspaces/gone/SrvKeyspace", "");
        }),
        (Kind::SrvVSchemaMissing, "zone1/SrvVSchema", |world| world.remove("zone1/SrvVSchema")),
        (Kind::SrvVSchemaOutdated, "zone2/SrvVSchema", |world| {
            world.edit("zone2/SrvVSchema", "from_table: \"corder\"", "from_table: \"order\"");
        }),
        (Kind::SrvVSchemaOutdated, "zone2/SrvVSchema", |world| {
            world.edit("zone2/SrvVSchema", "key: \"empty\"", "key: \"gone\"");
        }),
        (Kind::SrvVSchemaOutdated, "zone2/SrvVSchema", |world| {
            world.edit("zone2/SrvVSchema", "sharded: true", "");
        }),
    ]
}

fn faults_of_rules_locks_and_keys() -> Vec<Fault> {
    fn rule(world: &mut World, record: &str, from: &str, to: &str) {
        world.edit(record, from, to);
        world.rebuild(&[]);
    }
    vec![
        (Kind::RuleToMissingKeyspace, "global/RoutingRules", |world| {
            rule(world, "global/RoutingRules", "commerce.any", "gone.any")
        }),
        (Kind::RuleToMissingKeyspace, "global/RoutingRules", |world| {
            rule(world, "global/RoutingRules", "commerce.any", "any")
        }),
        (Kind::RuleToMissingTable, "global/RoutingRules", |world| {
            rule(world, "global/RoutingRules", "customer.corder", "customer.order");
        }),
        (Kind::RuleToMissingTable, "global/MirrorRules", |world| {
            rule(world, "global/MirrorRules", "customer.corder", "customer.order");
        }),
        (Kind::RuleToMissingShard, "global/ShardRoutingRules", |world| {
            rule(world, "global/ShardRoutingRules", "-80", "-90")
        }),
        (Kind::RuleToMissingKeyspace, "global/ShardRoutingRules", |world| {
            rule(world, "global/ShardRoutingRules", "customer", "customers");
        }),
        (Kind::RuleToMissingKeyspace, "global/routing_rules/keyspace/Rules", |world| {
            rule(world, "global/routing_rules/keyspace/Rules", "commerce", "commerces");
        }),
        (Kind::LockWithoutOwner, "global/keyspaces/customer/.lock", |world| {
            world.lock("global/keyspaces/customer", Owner::UNBOUND, "{}");
        }),
        (Kind::LockLeftOver, "global/keyspaces/customer/.lock", |world| {
            world.lock("global/keyspaces/customer", Owner::NOBODY, "x");
        }),
        (Kind::LockTooOld, "global/internal/named_locks/a/b/.lock", |world| {
            world.lock("global/internal/named_locks/a/b", Owner(1), "{\"Time\": \"1972-09-25T20:00:00Z\"}");
        }),
        (Kind::Undecodable, "global/keyspaces/commerce/Keyspace", |world| {
            world.put_bytes("global/keyspaces/commerce/Keyspace", "\u{7f}no");
        }),
        (Kind::Undecodable, SHARD, |world| world.put_bytes(SHARD, "\u{7f}no")),
        (Kind::Undecodable, PRIMARY, |world| world.put_bytes(PRIMARY, "\u{7f}no")),
        (Kind::Undecodable, REPLICATION, |world| world.put_bytes(REPLICATION, "\u{7f}no")),
        (Kind::Undecodable, SRV, |world| world.put_bytes(SRV, "\u{7f}no")),
        (Kind::Undecodable, "zone1/SrvVSchema", |world| world.put_bytes("zone1/SrvVSchema", "\u{7f}no")),
        (Kind::Undecodable, "global/RoutingRules", |world| world.put_bytes("global/RoutingRules", "\u{7f}no")),
        (Kind::StrayKey, "global/keyspaces/commerce/Keyspace.bak", |world| {
            world.put_bytes("global/keyspaces/commerce/Keyspace.bak", "x");
        }),
        (Kind::StrayKey, "zone1/tablets/nobody/Tablet", |world| {
            world.put_bytes("zone1/tablets/nobody/Tablet", "x");
            world.tablet("zone1", 1, "commerce", "0", "SPARE");
        }),
        (Kind::StrayKey, "zone1/rules", |world| world.put_bytes("zone1/rules", "{}")),
        (Kind::CellNotKnown, "global/cells/zone2/CellInfo", |world| world.idle = vec!["zone2"]),
        (Kind::UnnameableKeys, "zone1", |world| world.sight.unnameable.extend([(cell("zone1"), 3)])),
    ]
}

#[test]
fn each_fault_is_found_and_nothing_else() {
    let mut kinds = std::collections::BTreeSet::from([Kind::CellUnreachable]);
    for (number, (kind, record, put_in)) in faults().into_iter().enumerate() {
        let mut world = sound();
        put_in(&mut world);
        let expected = vec![(kind.name().to_owned(), record.to_owned())];
        assert_eq!(found(world), expected, "fault {number}");
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), Kind::ALL.len(), "every kind has a fault: {kinds:?}");
}

#[test]
fn nothing_is_claimed_about_what_only_an_unknown_cell_could_tell() {
    let mut world = sound();
    world.down = vec!["zone1"];
    assert_eq!(found(world), [("cell-unreachable".to_owned(), "global/cells/zone1/CellInfo".to_owned())]);
    let mut world = sound();
    world.idle = vec!["zone1", "zone2"];
    let idle = ["global/cells/zone1/CellInfo", "global/cells/zone2/CellInfo"];
    assert_eq!(found(world), idle.map(|record| ("cell-not-known".to_owned(), record.to_owned())));
    // What contradicts the global topology alone is seen all the same.
    let mut world = sound();
    world.idle = vec!["zone1"];
    world.edit(REPLICA, "type: REPLICA", "type: PRIMARY");
    assert_eq!(found(world).last().unwrap(), &("unnamed-primary".to_owned(), REPLICA.to_owned()));
    let report = unreachable(&Error::new(crate::error::Kind::Unreachable, "gone"));
    assert_eq!(report.problems().iter().map(|problem| problem.record()).collect::<Vec<_>>(), ["global"]);
}

#[test]
fn traffic_that_is_being_moved_is_no_fault() {
    // The replicas are served by the new shards already, and the old one is disabled for them.
    let mut world = sound();
    let disabled = "shard_tablet_controls { name: \"-80\" query_service_disabled: true }";
    world.edit(SRV, "served_type: RDONLY", &format!("served_type: RDONLY {disabled}"));
    assert_eq!(found(world), []);
    // When it is done, controls stay that forbid nothing.
    let mut world = sound();
    world.edit(SRV, "served_type: RDONLY", "served_type: RDONLY shard_tablet_controls { name: \"-80\" }");
    assert_eq!(found(world), []);
}

#[test]
fn a_cell_may_begin_inside_another() {
    let mut world = sound();
    world.put_bytes("global/zone1/tablets/zone1-0000000100/Tablet", "");
    assert_eq!(found(world).len(), 1);
    let mut world = sound();
    world.put_bytes("global/zone1/tablets/zone1-0000000100/Tablet", "");
    world.sight.roots_inside.insert(CellName::global(), vec![path("zone1")]);
    assert_eq!(found(world), []);
    // But not where Vitess keeps the records of the outer one.
    let mut world = sound();
    world.sight.roots_inside.insert(cell("zone1"), vec![path("tablets"), path("mine")]);
    assert_eq!(found(world), [("cell-shares-place".to_owned(), "zone1/tablets".to_owned())]);
}

#[test]
fn a_cell_may_be_where_the_global_topology_is() {
    let mut world = World::empty(&["zone1"]);
    world.keyspace("ks", &["0"]);
    world.tablet("zone1", 1, "ks", "0", "PRIMARY");
    world.rebuild(&["ks"]);
    let all: Vec<(TopoPath, Record)> = world
        .cells
        .values()
        .flat_map(|cell| cell.records.iter().map(|(path, record)| (path.clone(), record.clone())))
        .collect();
    for (path, record) in all {
        world.cells.values_mut().for_each(|cell| drop(cell.records.insert(path.clone(), record.clone())));
    }
    let global = CellName::global();
    world.sight.twins = Arc::new([(cell("zone1"), vec![global.clone()]), (global, vec![cell("zone1")])].into());
    assert_eq!(found(world), [("cell-shares-place".to_owned(), "global/cells/zone1/CellInfo".to_owned())]);
}

#[test]
fn a_lock_gets_old_without_any_change() {
    let report = sound().report();
    let until = report.until.unwrap();
    assert_eq!(until, now() + Duration::from_secs(25 * 3600));
    let later = problems(&sound().sight(), Within::default(), until);
    assert_eq!(later.problems().iter().map(|problem| problem.kind).collect::<Vec<_>>(), [Kind::LockTooOld]);
}

#[test]
fn only_what_is_asked_about_is_reported() {
    let mut world = sound();
    world.remove(REPLICA);
    world.put("zone1/keyspaces/gone/SrvKeyspace", "");
    let sight = world.sight();
    let (cell, path) = place("zone2/keyspaces");
    let report = problems(&sight, Within(vec![CellPath { cell, path }]), now());
    assert_eq!(report.problems().iter().map(|problem| problem.record()).collect::<Vec<_>>(), [REPLICATION]);
}

#[test]
fn a_hundred_thousand_tablets_are_checked_and_their_million_faults_counted() {
    let mut world = World::empty(&["zone1"]);
    world.keyspace("ks", &["0"]);
    let mut tablet = Vec::new();
    for uid in 1..=100_000 {
        // As `World::tablet`, without adding each to a record that grows.
        tablet.clear();
        let alias = [&[10, 5][..], b"zone1", &[16], &varint(uid)].concat();
        tablet
            .extend([&[10, u8::try_from(alias.len()).unwrap()][..], &alias, &[42, 2], b"ks", &[50, 1], b"0"].concat());
        world.put_bytes(&format!("zone1/tablets/zone1-{uid:010}/Tablet"), tablet.clone());
    }
    let report = world.report();
    // Blanked, and in no ShardReplication; one SrvKeyspace is missing.
    assert_eq!(report.count(), 200_001);
    assert!(report.lines().lines().count() < 5_000);
}

fn varint(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}

/// The command that mends the first problem.
fn mend(put_in: fn(&mut World)) -> String {
    let mut world = sound();
    put_in(&mut world);
    world.report().problems()[0].mend.clone()
}

/// Whatever was lost, nothing that is left of it is removed to mend that.
#[test]
fn what_mends_a_loss_removes_nothing() {
    let fine = ["cell-", "alias-", "stray-key", "lock-", "replication-left-over", "srv-keyspace-left-over", "unname"];
    for (number, (kind, record, put_in)) in faults().into_iter().enumerate() {
        if fine.iter().any(|start| kind.name().starts_with(start)) {
            continue;
        }
        let mend = mend(put_in);
        let command = mend.split('#').next().unwrap();
        let derived = kind == Kind::Undecodable && record == SRV || record == "global/keyspaces/empty";
        assert!(derived || !command.contains("rm "), "fault {number}, {kind} at {record}: {mend}");
    }
}

#[test]
fn what_is_lost_is_written_again_from_what_is_left() {
    const SHARD_80: &str = "global/keyspaces/customer/shards/80-/Shard";
    let shard = mend(|world| world.remove(SHARD_80));
    let expected = "mkdir -p global/keyspaces/customer/shards/80- && printf '%s\\n' 'primary_alias { cell: \"zone1\" \
                    uid: 300 } primary_term_start_time { seconds: 10 nanoseconds: 0 } key_range { start: \"\\200\" \
                    end: \"\" } is_primary_serving: true' > global/keyspaces/customer/shards/80-/Shard.txt  # as far";
    assert!(shard.starts_with(expected), "{shard}");
    let junk = mend(|world| world.put_bytes(SHARD_80, "\u{7f}no"));
    assert!(junk.starts_with(expected.split(" && ").nth(1).unwrap()), "{junk}");
    let keyspace = mend(|world| world.remove("global/keyspaces/customer/Keyspace"));
    assert!(keyspace.starts_with("mkdir -p global/keyspaces/customer && touch global/keyspaces/customer/Keyspace  #"));
    // A VSchema or rules that are gone or broken come back from the SrvVSchema that has them.
    let rules = "jq .routing_rules zone1/SrvVSchema.json > global/RoutingRules.json";
    assert_eq!(mend(|world| world.put_bytes("global/RoutingRules", "\u{7f}no")), rules);
    let removed = mend(|world| world.remove("global/RoutingRules"));
    assert!(removed.starts_with(&format!("{rules}  # if it was lost")), "{removed}");
    let vschema = mend(|world| world.put_bytes("global/keyspaces/customer/VSchema", ""));
    let expected = "jq '.keyspaces[\"customer\"]' zone1/SrvVSchema.json > global/keyspaces/customer/VSchema.json";
    assert!(vschema.starts_with(expected), "{vschema}");
    let tablet = mend(|world| world.put_bytes(PRIMARY, "\u{7f}no"));
    assert!(tablet.starts_with("# restart the vttablet of zone1-0000000100"), "{tablet}");
    let replication = mend(|world| world.put_bytes(REPLICATION, "\u{7f}no"));
    let expected = "printf '%s\\n' 'nodes { tablet_alias { cell: \"zone2\" uid: 101 } }' > ";
    assert!(replication.starts_with(expected), "{replication}");
    let misplaced = mend(|world| world.edit(REPLICA, "uid: 101", "uid: 999"));
    assert!(misplaced.starts_with("vim ") && misplaced.contains("uid: 101"), "{misplaced}");
}

#[test]
fn keys_that_nobody_serves_are_said_with_the_shards_that_have_them() {
    let mut world = sound();
    world.edit("global/keyspaces/customer/shards/-80/Shard", "is_primary_serving: true", "");
    let report = world.report();
    let expected = "no serving shard has the keys before 80-: -40, -80, 40-80 have such keys, but do not serve";
    assert!(report.problems()[0].fault.contains(expected), "{}", report.problems()[0].fault);
}

#[test]
fn commands_say_which_topology_and_keys_are_counted_in_words() {
    let rebuild = mend(|world| world.put(SRV, ""));
    assert_eq!(rebuild, "topofs rebuild-keyspace-graph --topo-global-root /r customer");
    let mut world = sound();
    world.sight.unnameable.insert(cell("zone1"), 1);
    let location = "etcd2:s1:2379,s2:2379/vitess/zone1".parse().unwrap();
    world.sight.locations.insert(cell("zone1"), location);
    let report = world.report();
    let problem = &report.problems()[0];
    assert!(problem.fault.contains("1 key whose name"), "{}", problem.fault);
    let list = "etcdctl --endpoints=s1:2379,s2:2379 get --prefix --keys-only /vitess/zone1/";
    assert!(problem.mend.starts_with(list), "{}", problem.mend);
}

/// A sound topology of any shape: cells, and for each keyspace its number of shards (a power of two) and the tablets of
/// each shard.
fn any_sound() -> impl Strategy<Value = World> {
    let keyspaces =
        prop::collection::vec((0..4_u32, prop::collection::vec((0..3_usize, 0..3_usize), 0..4), any::<bool>()), 0..5);
    (1..4_usize, keyspaces).prop_map(|(cells, keyspaces)| {
        let names: Vec<String> = (0..cells).map(|number| format!("c{number}")).collect();
        let mut world = World::empty(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut uid = 0;
        let mut used = Vec::new();
        for (number, (power, tablets, sharded)) in keyspaces.into_iter().enumerate() {
            let name = format!("ks{number}");
            let count = 1 << power;
            let hex =
                |at: usize| if at.is_multiple_of(count) { String::new() } else { format!("{:02x}", at * 256 / count) };
            let shards: Vec<String> = (0..count).map(|at| format!("{}-{}", hex(at), hex(at + 1))).collect();
            let shards = if count == 1 { vec!["0".to_owned()] } else { shards };
            world.keyspace(&name, &shards.iter().map(String::as_str).collect::<Vec<_>>());
            if sharded {
                world.put(&format!("global/keyspaces/{name}/VSchema"), "sharded: true");
            }
            for shard in &shards {
                for (index, (at, kind)) in tablets.iter().enumerate() {
                    uid += 1;
                    let kind = if index == 0 { "PRIMARY" } else { ["REPLICA", "RDONLY", "BACKUP"][*kind] };
                    world.tablet(&names[at % cells], uid, &name, shard, kind);
                }
            }
            used.push(name);
        }
        world.rebuild(&used.iter().map(String::as_str).collect::<Vec<_>>());
        world
    })
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths = self.cells.iter().map(|(cell, records)| (cell, records.records.keys().collect::<Vec<_>>()));
        f.debug_map().entries(paths).finish()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn sound_topologies_of_any_shape_have_no_problems(world in any_sound()) {
        prop_assert_eq!(found(world), []);
    }
}
