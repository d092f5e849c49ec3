//! What a rebuild stores, and what it refuses. (Vitess's own functions are the judge in tests/interop.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost_reflect::{DynamicMessage, ReflectMessage};
use tokio_util::sync::CancellationToken;

use super::lock::Patience;
use super::rebuild::{Done, Rebuild};
use super::{graph, vschema};
use crate::backend::{Action, Change, ConnectOptions, Guard, Implementation, Location, Revision, Version};
use crate::cells::{CellOptions, Cells};
use crate::error::{Kind, Result};
use crate::mirror::{MirrorOptions, Record, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::record::{Codec, Form, Kinds, Records};

fn codec() -> Codec {
    Codec::builtin().unwrap()
}

fn path(text: &str) -> TopoPath {
    TopoPath::parse(text).unwrap()
}

/// Records of the global topology by path, as text.
fn snapshot(records: &[(&str, &str)]) -> Snapshot {
    let all = Records::new(codec(), Kinds::default());
    let mut snapshot = Snapshot::default();
    for (name, text) in records {
        let input = Bytes::copy_from_slice(text.as_bytes());
        let value = all.store(&CellName::global(), &path(name), Form::Text, &input, None).unwrap().unwrap_or_default();
        put(&mut snapshot, name, value);
    }
    snapshot
}

fn put(snapshot: &mut Snapshot, name: &str, value: impl Into<Bytes>) {
    let version = Version { number: 1, written: Revision(1), created: Revision(1) };
    let record = Record { value: value.into(), version, modified: SystemTime::UNIX_EPOCH };
    snapshot.records.insert(path(name), record);
}

/// A keyspace whose serving shards have these names and ranges.
fn keyspace(keyspace: &str, shards: &[(&str, &str)]) -> Snapshot {
    let mut records = vec![("keyspaces/ks/Keyspace".to_owned(), keyspace.to_owned())];
    for (name, fields) in shards {
        records.push((format!("keyspaces/ks/shards/{name}/Shard"), (*fields).to_owned()));
    }
    snapshot(&records.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect::<Vec<_>>())
}

const LEFT: (&str, &str) = ("-80", r#"is_primary_serving: true key_range { end: "\x80" }"#);
const RIGHT: (&str, &str) = ("80-", r#"is_primary_serving: true key_range { start: "\x80" }"#);
const CHOSEN: (&str, &str) = ("a", "is_primary_serving: true");

fn text(message: &DynamicMessage) -> String {
    let text = codec().show(message.descriptor().full_name(), Form::Text, &codec().encode(message)).unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

fn rebuilt(global: &Snapshot) -> Result<graph::SrvKeyspace> {
    graph::srv_keyspace(&codec(), global, "ks", false)
}

#[test]
fn serving_shards_are_in_each_partition_in_the_order_of_their_ranges() {
    let unserved = ("00-20", r#"key_range { start: "\x00" end: "\x20" }"#);
    let global = keyspace("throttler_config { enabled: true }", &[RIGHT, unserved, LEFT]);
    let shards = r#"  shard_references {
    name: "-80"
    key_range {
      end: "\200"
    }
  }
  shard_references {
    name: "80-"
    key_range {
      start: "\200"
    }
  }
"#;
    let expected = ["PRIMARY", "REPLICA", "RDONLY"]
        .map(|served| format!("partitions {{\n  served_type: {served}\n{shards}}}\n"))
        .concat();
    let expected = format!("{expected}throttler_config {{\n  enabled: true\n}}\n");
    assert_eq!(text(&rebuilt(&global).unwrap().message), expected);
}

#[test]
fn a_keyspace_that_serves_nothing_has_no_partitions() {
    let global = keyspace("", &[("0", "")]);
    assert_eq!(codec().encode(&rebuilt(&global).unwrap().message), "");
}

#[test]
fn fields_of_a_newer_vitess_are_copied_with_what_is_copied() {
    let mut global = keyspace("", &[]);
    // An unknown field 2000 in the key range, one in the throttler's settings, and one in the keyspace itself.
    let unknown = b"\x82\x7d\x01x".as_slice();
    put(&mut global, "keyspaces/ks/Keyspace", [b"\x4a\x04".as_slice(), unknown, unknown].concat());
    put(&mut global, "keyspaces/ks/shards/0/Shard", [b"\x12\x04".as_slice(), unknown, b"\x38\x01"].concat());
    let raw = codec().encode(&rebuilt(&global).unwrap().message).to_vec();
    assert_eq!(
        raw.windows(4).filter(|bytes| *bytes == unknown).count(),
        4,
        "three references and the settings: {raw:?}"
    );
}

#[test]
fn what_vitess_refuses_is_refused_with_the_path_of_the_shard() {
    let bad = ("no-range-", "");
    for (shards, kind, expected) in [
        (&[RIGHT][..], Kind::Invalid, "global/keyspaces/ks/shards/80-/Shard: no serving shard has the keys before 80-"),
        (&[LEFT, RIGHT, CHOSEN], Kind::Invalid, "either all shards have key ranges or none"),
        (&[LEFT, RIGHT, bad], Kind::Invalid, "global/keyspaces/ks/shards/no-range-/Shard: Vitess refuses the name"),
    ] {
        let error = rebuilt(&keyspace("", shards)).unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(error.reason.contains(expected), "{}", error.reason);
    }
    let mut global = keyspace("", &[LEFT, RIGHT]);
    put(&mut global, "keyspaces/ks/shards/c0-/Shard", b"\xff".as_slice());
    let error = rebuilt(&global).unwrap_err();
    assert!(error.kind == Kind::BadMessage && error.reason.starts_with("global/keyspaces/ks/shards/c0-/Shard: "));
    for name in ["gone", "a b", ""] {
        assert!(graph::srv_keyspace(&codec(), &global, name, false).is_err(), "{name}");
    }
}

#[test]
fn only_a_snapshot_may_be_partial_and_only_if_that_is_allowed() {
    for (keyspace_type, allowed, expected) in
        [("NORMAL", true, false), ("NORMAL", false, false), ("SNAPSHOT", false, false), ("SNAPSHOT", true, true)]
    {
        let global = keyspace(&format!("keyspace_type: {keyspace_type}"), &[RIGHT]);
        let is_rebuilt = graph::srv_keyspace(&codec(), &global, "ks", allowed).is_ok();
        assert_eq!(is_rebuilt, expected, "{keyspace_type} {allowed}");
    }
}

#[test]
fn the_order_counts_only_where_vitess_has_one() {
    let served = |shards: &[(&str, &str)]| {
        let references = shards.iter().map(|(name, fields)| {
            let range = fields.replace("is_primary_serving: true", "");
            format!("shard_references {{ name: \"{name}\" {range} }}")
        });
        let references: String = references.collect();
        let all = ["PRIMARY", "REPLICA", "RDONLY"]
            .map(|served| format!("partitions {{ served_type: {served} {references} }}"));
        let message = codec().parse("topodata.SrvKeyspace", Form::Text, all.concat().as_bytes()).unwrap();
        codec().encode(&message)
    };
    let other = ("b", "is_primary_serving: true");
    for (global, allowed, stored, expected) in [
        (keyspace("", &[LEFT, RIGHT]), false, served(&[LEFT, RIGHT]), true),
        (keyspace("", &[LEFT, RIGHT]), false, served(&[RIGHT, LEFT]), false),
        (keyspace("", &[LEFT, RIGHT]), false, served(&[LEFT]), false),
        (keyspace("", &[CHOSEN, other]), false, served(&[other, CHOSEN]), true),
        (keyspace("keyspace_type: SNAPSHOT", &[LEFT, RIGHT]), true, served(&[RIGHT, LEFT]), true),
    ] {
        let rebuilt = graph::srv_keyspace(&codec(), &global, "ks", allowed).unwrap();
        assert_eq!(rebuilt.is_stored_as(&codec(), &stored), expected, "{}", text(&rebuilt.message));
    }
}

#[test]
fn a_disabled_query_service_refuses_a_rebuild() {
    let cell = CellName::new("zone1").unwrap();
    let refused = |disabled: &str| {
        let control = format!("shard_tablet_controls {{ name: \"-80\" {disabled} }}");
        let stored = format!("partitions {{ served_type: REPLICA {control} }}");
        let stored = codec().parse("topodata.SrvKeyspace", Form::Text, stored.as_bytes()).unwrap();
        let stored = codec().encode(&stored);
        graph::refuse_migration(&codec(), &cell, &path("keyspaces/ks/SrvKeyspace"), &stored)
    };
    refused("").unwrap();
    let error = refused("query_service_disabled: true").unwrap_err();
    assert_eq!(error.kind, Kind::Busy);
    let said = "zone1/keyspaces/ks/SrvKeyspace: the query service of shard -80 is disabled for REPLICA";
    assert!(error.reason.starts_with(said), "{error}");
}

#[test]
fn a_srv_vschema_has_every_keyspace_and_all_rules() {
    let global = snapshot(&[("keyspaces/a/Keyspace", ""), ("keyspaces/b/VSchema", "sharded: true")]);
    let rebuilt = vschema::srv_vschema(&codec(), &global).unwrap();
    let expected = r#"keyspaces {
  key: "a"
  value {
  }
}
keyspaces {
  key: "b"
  value {
    sharded: true
  }
}
routing_rules {
}
shard_routing_rules {
}
mirror_rules {
}
"#;
    assert_eq!(text(&rebuilt), expected);
    let raw = codec().encode(&rebuilt);
    assert!(vschema::is_stored_as(&codec(), &rebuilt, &raw));
    let mut with_rules = global;
    put(&mut with_rules, "routing_rules/keyspace/Rules", b"".as_slice());
    let rebuilt = vschema::srv_vschema(&codec(), &with_rules).unwrap();
    assert!(text(&rebuilt).contains("keyspace_routing_rules {\n}"), "an empty record counts");
    assert!(!vschema::is_stored_as(&codec(), &rebuilt, &raw));
    put(&mut with_rules, "keyspaces/a/VSchema", b"\xff".as_slice());
    let error = vschema::srv_vschema(&codec(), &with_rules).unwrap_err();
    assert!(error.kind == Kind::BadMessage && error.reason.starts_with("global/keyspaces/a/VSchema: "), "{error}");
}

/// A topology in memory with one cell, and what to rebuild it with.
async fn in_memory(server: &str) -> (Arc<Cells>, Codec) {
    let location = |root: &str| Location {
        implementation: Implementation::Memory,
        server: server.to_owned(),
        root: root.to_owned(),
    };
    let mirror = MirrorOptions {
        resync_interval: Duration::from_secs(3600),
        stale_after: Duration::from_secs(10),
        serve_stale: false,
    };
    let (global, connect) = (location("/g"), ConnectOptions::default());
    let options = CellOptions::new(global, connect, mirror);
    let cells = Cells::start(options, Records::new(codec(), Kinds::default())).await.unwrap();
    store(&cells, "cells/zone1/CellInfo", &format!("server_address: \"{server}\" root: \"/zone1\"")).await;
    (cells, codec())
}

/// Stores a record of the global topology, given as text.
async fn store(cells: &Cells, name: &str, text: &str) {
    let input = Bytes::copy_from_slice(text.as_bytes());
    let value = cells.records().store(&CellName::global(), &path(name), Form::Text, &input, None).unwrap().unwrap();
    let change = Change { path: path(name), guard: Guard::Any, action: Action::Put(value) };
    cells.get(&CellName::global()).unwrap().apply(&[change]).await.unwrap();
}

/// What happens between reading the sources of a rebuild and storing it: a VSchema changes, and perhaps another rebuild
/// overtakes this one.
#[tokio::test]
async fn a_vschema_that_changes_during_a_rebuild_is_in_what_is_stored() {
    for (round, is_overtaken) in [(0, false), (1, true)] {
        let (cells, codec) = in_memory(&format!("meanwhile{round}")).await;
        let patience = Patience { timeout: Duration::ZERO, stop: CancellationToken::new() };
        let rebuild = Rebuild::new(&cells, &codec, &[], patience);
        let (global, first) = (cells.get(&CellName::global()).unwrap(), AtomicBool::new(true));
        let outcomes = rebuild.write_vschema(async || {
            let read = rebuild.rebuilt_vschema(&global).await?;
            if first.swap(false, Ordering::SeqCst) {
                store(&cells, "keyspaces/ks/VSchema", "sharded: true").await;
                if is_overtaken {
                    rebuild.vschema().await?;
                }
            }
            Ok(read)
        });
        let outcomes = outcomes.await.unwrap();
        let done: Vec<Done> = outcomes.iter().map(|outcome| *outcome.done.as_ref().unwrap()).collect();
        assert_eq!(done, [if is_overtaken { Done::Unchanged } else { Done::Created }]);
        let zone = cells.get(&CellName::new("zone1").unwrap()).unwrap();
        let stored = zone.fetch(&path("SrvVSchema")).await.unwrap().node.unwrap();
        let stored = codec.decode("vschema.SrvVSchema", &stored.value).unwrap();
        assert!(text(&stored).contains("sharded: true"), "{is_overtaken}: {}", text(&stored));
        cells.shutdown().await;
    }
}
