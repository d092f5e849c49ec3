//! `topofs validate` and `.topofs/problems`: each fault is found on each service, by both alike.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use bytes::Bytes;
use serde_json::Value;
use topofs::backend::Implementation;
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Form, Kinds, Records};

use crate::common::mount::{Mount, TOPOFS};
use crate::common::server::free_port;
use crate::common::world::{Service, World};
use crate::common::{consul, etcd, eventually, text};
use crate::on_each_backend;

/// The stored bytes of a record in text form.
fn encoded(record: &str, text: &str) -> Bytes {
    let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
    let (cell, path) = record.split_once('/').unwrap();
    let (cell, path) = (CellName::new(cell).unwrap(), TopoPath::parse(path).unwrap());
    records.store(&cell, &path, Form::Text, &Bytes::copy_from_slice(text.as_bytes()), None).unwrap().unwrap_or_default()
}

/// Stores bytes: by somebody else, where there is somebody else.
fn put(world: &World, record: &str, value: &[u8]) {
    match &world.service {
        Some(service) => service.put(record, value),
        None => {
            let path = world.mount.path(record);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            // Nothing that was read must have changed since.
            let _ = std::fs::read(&path);
            std::fs::write(path, value).unwrap();
        }
    }
}

/// Faults that any program can put in: record, its text, kind and record of what is found.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    (
        "global/keyspaces/commerce/shards/0/Shard",
        "is_primary_serving: true primary_alias { cell: \"zone1\" uid: 999 }",
        "dangling-primary",
        "global/keyspaces/commerce/shards/0/Shard",
    ),
    (
        "zone2/tablets/zone2-0000000201/Tablet",
        "alias { cell: \"zone2\" uid: 201 } hostname: \"h\" keyspace: \"customer\" shard: \"-80\" type: PRIMARY \
         key_range { end: \"\\x80\" }",
        "two-primaries",
        "zone2/tablets/zone2-0000000201/Tablet",
    ),
    (
        "zone1/tablets/zone1-0000000300/Tablet",
        "alias { cell: \"zone1\" uid: 300 } hostname: \"h\" keyspace: \"customer\" shard: \"80-\" type: REPLICA \
         key_range { start: \"\\x80\" }",
        "primary-not-primary",
        "global/keyspaces/customer/shards/80-/Shard",
    ),
    (
        "zone1/tablets/zone1-0000000402/Tablet",
        "alias { cell: \"zone1\" uid: 402 } keyspace: \"archive\" shard: \"0\" type: RDONLY \
         tablet_shutdown_time { seconds: 1 }",
        "tablet-blanked",
        "zone1/tablets/zone1-0000000402/Tablet",
    ),
    (
        "zone1/tablets/zone1-0000009999/Tablet",
        "alias { cell: \"zone1\" uid: 9999 } hostname: \"h\" keyspace: \"archive\" shard: \"1\" type: REPLICA",
        "tablet-without-shard",
        "zone1/tablets/zone1-0000009999/Tablet",
    ),
    (
        "zone2/keyspaces/archive/shards/0/ShardReplication",
        "nodes { tablet_alias { cell: \"zone2\" uid: 401 } }",
        "tablet-not-in-replication",
        "zone2/keyspaces/archive/shards/0/ShardReplication",
    ),
    (
        "zone2/keyspaces/customer/shards/80-/ShardReplication",
        "nodes { tablet_alias { cell: \"zone2\" uid: 301 } } nodes { tablet_alias { cell: \"zone2\" uid: 303 } } \
         nodes { tablet_alias { cell: \"zone2\" uid: 777 } }",
        "replication-without-tablet",
        "zone2/keyspaces/customer/shards/80-/ShardReplication",
    ),
    (
        "zone2/keyspaces/gone/shards/0/ShardReplication",
        "",
        "replication-left-over",
        "zone2/keyspaces/gone/shards/0/ShardReplication",
    ),
    ("zone2/keyspaces/gone/SrvKeyspace", "", "srv-keyspace-left-over", "zone2/keyspaces/gone/SrvKeyspace"),
    ("zone1/keyspaces/commerce/SrvKeyspace", "", "srv-keyspace-outdated", "zone1/keyspaces/commerce/SrvKeyspace"),
    ("zone1/SrvVSchema", "", "srv-vschema-outdated", "zone1/SrvVSchema"),
    ("global/keyspaces/odd/Keyspace", "durability_policy: \"none\"", "srv-vschema-outdated", "zone2/SrvVSchema"),
    (
        "global/keyspaces/odd/shards/-40/Shard",
        "key_range { end: \"\\x80\" }",
        "shard-name",
        "global/keyspaces/odd/shards/-40/Shard",
    ),
    ("global/keyspaces/open/Keyspace", "durability_policy: \"none\"", "srv-vschema-outdated", "zone2/SrvVSchema"),
    (
        "global/keyspaces/open/shards/80-/Shard",
        "is_primary_serving: true key_range { start: \"\\x80\" }",
        "shard-gap",
        "global/keyspaces/open/shards/80-/Shard",
    ),
    ("global/keyspaces/twice/Keyspace", "durability_policy: \"none\"", "srv-vschema-outdated", "zone2/SrvVSchema"),
    (
        "global/keyspaces/twice/shards/-/Shard",
        "is_primary_serving: true key_range {}",
        "shard-overlap",
        "global/keyspaces/twice/shards/-/Shard",
    ),
    (
        "global/keyspaces/twice/shards/80-/Shard",
        "is_primary_serving: true key_range { start: \"\\x80\" }",
        "shard-overlap",
        "global/keyspaces/twice/shards/-/Shard",
    ),
    (
        "global/keyspaces/bare/VSchema",
        "require_explicit_routing: true",
        "keyspace-without-record",
        "global/keyspaces/bare",
    ),
    (
        "global/RoutingRules",
        "rules { from_table: \"a\" to_tables: \"nowhere.a\" } \
         rules { from_table: \"b\" to_tables: \"customer.nothing\" }",
        "rule-to-missing-keyspace",
        "global/RoutingRules",
    ),
    (
        "global/ShardRoutingRules",
        "rules { from_keyspace: \"x\" to_keyspace: \"customer\" shard: \"c0-\" }",
        "rule-to-missing-shard",
        "global/ShardRoutingRules",
    ),
    (
        "global/MirrorRules",
        "rules { from_table: \"customer.corder\" to_table: \"customer.nothing\" percent: 1 }",
        "rule-to-missing-table",
        "global/MirrorRules",
    ),
    (
        "global/cells_aliases/other/CellsAlias",
        "cells: \"zone9\"",
        "alias-missing-cell",
        "global/cells_aliases/other/CellsAlias",
    ),
];

/// Faults that topofs itself does not let anybody put in. The key of a lock without owner depends on the service.
fn raw_faults(service: &Service) -> Vec<(String, Bytes, &'static str, String)> {
    let junk = || Bytes::from_static(b"\x7fno");
    let info = |server: &str, root: &str| {
        encoded("global/cells/x/CellInfo", &format!("server_address: \"{server}\" root: \"{root}\""))
    };
    let cells = "global/cells";
    let dead = format!("127.0.0.1:{}", free_port());
    let zone2 = service.get("global/cells/zone2/CellInfo").unwrap().into();
    // Only etcd takes control characters in names.
    let hostile = match service.implementation {
        Implementation::Zk2 | Implementation::Consul => "it's $(reboot) `x` \"y\"",
        _ => "it's $(reboot)\n`x`\u{1b}[2J \"y\"",
    };
    let hostile = format!("global/keyspaces/{hostile}/notes");
    let (lock, kind) = match service.implementation {
        // Without the flags of a lock, nobody gets it any more.
        Implementation::Consul => ("Lock", "stray-key"),
        _ => ("locks/0000000007", "lock-without-owner"),
    };
    let dir = "global/keyspaces/customer";
    let holder = Bytes::from_static(b"{\"Action\":\"a\x1b[2J\"}");
    let lock_at = match kind {
        "stray-key" => format!("{dir}/{lock}"),
        _ => format!("{dir}/.lock"),
    };
    vec![
        (
            format!("{cells}/zone8/CellInfo"),
            info(&dead, "/nowhere"),
            "cell-unreachable",
            format!("{cells}/zone8/CellInfo"),
        ),
        (format!("{cells}/zone9/CellInfo"), zone2, "cell-shares-place", format!("{cells}/zone9/CellInfo")),
        (
            "global/cells_aliases/bad/CellsAlias".to_owned(),
            junk(),
            "undecodable",
            "global/cells_aliases/bad/CellsAlias".to_owned(),
        ),
        ("zone1/tablets/.x.swp".to_owned(), junk(), "stray-key", "zone1/tablets/.x.swp".to_owned()),
        (hostile.clone(), junk(), "stray-key", hostile),
        (format!("{dir}/{lock}"), holder, kind, lock_at),
    ]
}

/// `topofs validate` on the topology of a service, without a mount.
fn validate(service: &Service, args: &[&str]) -> Output {
    let global = format!("{}/global", service.root);
    let mut command = Command::new(TOPOFS);
    command.arg("validate").args(["--topo-implementation", &service.implementation.to_string()]);
    command.args(["--topo-global-server-address", &service.server, "--topo-global-root", &global]);
    command.args(["--remote-operation-timeout", "5s"]).args(args).output().unwrap()
}

/// `topofs validate`, run in a mount.
fn validate_in(mount: &Mount, args: &str) -> Output {
    mount.bash(&format!("{TOPOFS} validate {args}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Kind and record of each problem.
fn found(lines: &[Value]) -> BTreeSet<(String, String)> {
    let word = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    lines.iter().map(|line| (word(line, "kind"), word(line, "record"))).collect()
}

/// What a mount has found, once it is this.
fn shows(mount: &Mount, expected: &BTreeSet<(String, String)>) -> String {
    let differences = std::cell::RefCell::new(String::new());
    let _shown_on_failure = Shown(&differences);
    let shown = eventually("the mount shows the problems", || {
        let shown = mount.read(".topofs/problems");
        let found = found(&lines(&shown));
        let differ: Vec<_> = found.symmetric_difference(expected).collect();
        *differences.borrow_mut() = format!("{differ:?}");
        differ.is_empty().then_some(shown)
    });
    differences.borrow_mut().clear();
    shown
}

/// Prints what was expected in vain.
struct Shown<'a>(&'a std::cell::RefCell<String>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("found and not expected, or the other way round: {}", self.0.borrow());
        }
    }
}

fn sound(world: &World) {
    world.mount.sh("ls zone1 zone2");
    shows(&world.mount, &BTreeSet::new());
    let output = validate_in(&world.mount, ".");
    assert_eq!((output.status.code(), text(&output).trim()), (Some(0), "No problems."));
    assert_eq!(world.mount.sh("[ -s .topofs/problems ] || echo none"), "none\n");
    if let Some(service) = &world.service {
        let output = validate(service, &["--json"]);
        assert_eq!((output.status.code(), text(&output)), (Some(0), String::new()));
    }
}

/// Puts all faults in, and returns what must be found.
fn put_in(world: &World) -> BTreeSet<(String, String)> {
    let mut expected = BTreeSet::new();
    for (record, text, kind, at) in FAULTS {
        put(world, record, &encoded(record, text));
        expected.insert(((*kind).to_owned(), (*at).to_owned()));
    }
    expected.insert(("rule-to-missing-table".to_owned(), "global/RoutingRules".to_owned()));
    let service = world.service.as_ref();
    for (key, value, kind, at) in service.map(raw_faults).unwrap_or_default() {
        service.unwrap().put(&key, &value);
        expected.insert((kind.to_owned(), at));
    }
    if service.is_some_and(|service| service.implementation == Implementation::Consul) {
        // As Vitess leaves it when it dies.
        let root = &service.unwrap().root;
        let key = format!("kv{root}/global/keyspaces/archive/Lock?flags=3304740253564472344");
        consul::shared().curl(&["-X", "PUT", "-d", "{}"], &key).unwrap();
        expected.insert(("lock-left-over".to_owned(), "global/keyspaces/archive/.lock".to_owned()));
    }
    if service.is_some() {
        // The directory of the stray key with the hostile name.
        let hostile =
            expected.iter().find(|(_, at)| at.ends_with("/notes")).unwrap().1.trim_end_matches("/notes").to_owned();
        expected.insert(("keyspace-without-record".to_owned(), hostile));
        // A cell of this name exists now.
        expected.retain(|(kind, _)| kind != "alias-missing-cell");
    }
    expected
}

/// A problem without the address in its command: the mount may reach Consul by another one.
fn without_server(mut line: Value) -> Value {
    let mend = line["mend"].as_str().unwrap_or_default();
    let mend = mend.split(" --topo-global-server-address").next().unwrap_or_default().to_owned();
    line["mend"] = Value::from(mend);
    line
}

/// Runs the commands that mend some kinds, as they are shown.
fn mend(mount: &Mount, shown: &[Value]) -> BTreeSet<(String, String)> {
    const KINDS: [&str; 7] = [
        "two-primaries",
        "tablet-not-in-replication",
        "replication-left-over",
        "srv-keyspace-left-over",
        "stray-key",
        "keyspace-without-record",
        "lock-left-over",
    ];
    let mut left = found(shown);
    for line in shown {
        let (kind, record) = (line["kind"].as_str().unwrap(), line["record"].as_str().unwrap());
        if !KINDS.contains(&kind) {
            continue;
        }
        let command =
            line["mend"].as_str().unwrap().replace("topofs unlock --force", &format!("{TOPOFS} unlock --force --yes"));
        // What was mended before may have taken it along: a directory with all that is in it.
        if !["keyspace-without-record", "stray-key"].contains(&kind) || mount.path(record).exists() {
            mount.sh(&command);
        }
        left.remove(&(kind.to_owned(), record.to_owned()));
    }
    // VSchemas without keyspace are gone, but those that differ still differ.
    left
}

on_each_backend! {
    fn each_fault_is_found_and_mended(world) {
        sound(&world);
        let expected = put_in(&world);
        if world.service.is_some() {
            assert!(!world.mount.bash("ls zone8").status.success());
            // The mount hears of it from the service.
            eventually("the other cell is shown", || world.mount.bash("ls zone9").status.success().then_some(()));
        }
        let shown = shows(&world.mount, &expected);
        assert_eq!(world.mount.read(".topofs/problems"), shown, "the same, until something changes");
        // The mount and the command, through the mount and without it, say the same.
        let through = validate_in(&world.mount, "--json .");
        assert_eq!((through.status.code(), String::from_utf8(through.stdout).unwrap()), (Some(1), shown.clone()));
        if let Some(service) = &world.service {
            let direct = validate(service, &["--json"]);
            assert_eq!(direct.status.code(), Some(1), "{}", text(&direct));
            let (direct, shown) = (lines(&String::from_utf8(direct.stdout).unwrap()), lines(&shown));
            assert_eq!(found(&direct), found(&shown));
            // A cell that does not answer may not do so in several ways.
            let comparable = |lines: &[Value]| {
                let others = lines.iter().filter(|line| line["kind"] != "cell-unreachable");
                others.cloned().map(without_server).collect::<Vec<_>>()
            };
            assert_eq!(comparable(&direct), comparable(&shown));
            // People see names that a terminal takes for names.
            let people = validate(service, &[]);
            let people = String::from_utf8(people.stdout).unwrap();
            assert!(!people.contains('\u{1b}') && people.contains("cell-unreachable"), "{people}");
            let part = validate(service, &["zone2/keyspaces", "--json"]);
            let part = found(&lines(&String::from_utf8(part.stdout).unwrap()));
            assert!(part.iter().all(|(_, at)| at.starts_with("zone2/keyspaces/")));
        }
        let left = mend(&world.mount, &lines(&shown));
        assert!(left.len() + 5 <= expected.len(), "{left:?}");
        shows(&world.mount, &left);
    }
}

#[test]
fn a_path_that_could_not_be_checked_is_not_called_sound() {
    let world = World::etcd2();
    let service = world.service.as_ref().unwrap();
    let dead = format!("server_address: \"127.0.0.1:{}\" root: \"/x\"", free_port());
    service.put("global/cells/dead/CellInfo", &encoded("global/cells/dead/CellInfo", &dead));
    for (path, status, words) in [
        ("global/keyspaces", 0, "No problems."),
        ("/global/keyspaces/commerce/Keyspace.txt", 0, "No problems."),
        ("global/keyspaces/commerc", 2, "nothing is stored at global/keyspaces/commerc"),
        ("zone7", 2, "there is no cell zone7"),
        ("dead/tablets", 2, "dead"),
        ("global/../x", 2, "not a path of a topology"),
    ] {
        let output = validate(service, &[path]);
        assert_eq!(output.status.code(), Some(status), "{path}: {}", text(&output));
        assert!(text(&output).contains(words), "{path}: {}", text(&output));
    }
    // In a mount, relative paths mean its files.
    let output = validate_in(&world.mount, "global/keyspaces/commerce zone1");
    assert_eq!((output.status.code(), text(&output).trim()), (Some(0), "No problems."));
    for (paths, words) in
        [("global/keyspaces/commerc", "No such file"), ("global /tmp", "some of the paths are in a mount")]
    {
        let output = validate_in(&world.mount, paths);
        assert_eq!(output.status.code(), Some(2), "{paths}: {}", text(&output));
        assert!(text(&output).contains(words), "{paths}: {}", text(&output));
    }
    let output = Command::new(TOPOFS).args(["validate", "--no-such-flag"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    // A wrong root is not a sound topology.
    let wrong = Service { server: service.server.clone(), root: "/wrong/root".to_owned(), ..*service };
    let output = validate(&wrong, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("nothing is stored there (is the root right?)"), "{}", text(&output));
    let none = free_port().to_string();
    let output = validate(&Service { server: format!("127.0.0.1:{none}"), root: "/x".to_owned(), ..*service }, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn a_mount_notes_cells_that_nobody_has_used_and_connects_none() {
    let world = World::etcd2();
    let service = world.service.as_ref().unwrap();
    service.put("zone1/keyspaces/gone/SrvKeyspace", b"");
    let state = |cell: &str| world.mount.status()["cells"][cell]["state"].as_str().unwrap().to_owned();
    let notes = lines(&world.mount.read(".topofs/problems"));
    let words = |line: &Value| ["kind", "severity", "mend"].map(|name| line[name].as_str().unwrap().to_owned());
    let note = |cell: &str| ["cell-not-known", "note", &format!("ls {cell} > /dev/null")].map(ToOwned::to_owned);
    assert_eq!(notes.iter().map(words).collect::<Vec<_>>(), ["zone1", "zone2"].map(note));
    // What nobody knows is no problem for a script.
    assert_eq!(world.mount.sh("[ -s .topofs/problems ] || echo none"), "none\n");
    world.mount.sh("stat .topofs/problems; ls -l .topofs");
    assert_eq!((state("zone1"), state("zone2")), ("idle".to_owned(), "idle".to_owned()));
    // The command asks for all of them.
    let output = validate_in(&world.mount, ".");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("zone1/keyspaces/gone/SrvKeyspace"), "{}", text(&output));
    assert_eq!((state("zone1"), state("zone2")), ("live".to_owned(), "live".to_owned()));
}

#[test]
fn many_readers_of_a_large_topology_find_out_together() {
    let service = Service::etcd2();
    // Every tablet is in no ShardReplication.
    let tablet = encoded("zone1/tablets/zone1-1/Tablet", "keyspace: \"commerce\" shard: \"0\"");
    for number in 1..=3_000 {
        let alias = encoded(
            "zone1/tablets/zone1-1/Tablet",
            &format!("alias {{ cell: \"zone1\" uid: {number} }} hostname: \"h\""),
        );
        let key = format!("zone1/tablets/zone1-{number:010}/Tablet");
        service.put(&key, &[&alias[..], &tablet].concat());
    }
    let mount = service.mount(&[]);
    mount.sh("ls zone1 zone2 > /dev/null");
    let sums = mount.sh("for i in $(seq 16); do md5sum < .topofs/problems & done; wait");
    assert_eq!(sums.lines().collect::<BTreeSet<_>>().len(), 1, "{sums}");
    let all = mount.read(".topofs/problems");
    // A part is shown, and the others are counted.
    assert!(all.lines().last().unwrap().contains("\"more\":"), "{}", all.lines().last().unwrap());
    assert!(all.lines().count() < 5_000);
}

/// As a person does who finds that a record is lost: what is shown is run as it is.
#[test]
fn a_lost_shard_and_a_key_that_is_gone_are_mended_by_what_is_shown() {
    let world = World::etcd2();
    let service = world.service.as_ref().unwrap();
    let mount = &world.mount;
    mount.sh("ls zone1 zone2 > /dev/null");
    let shard = "global/keyspaces/customer/shards/80-/Shard";
    let before = mount.read(&format!("{shard}.txt"));
    mount.sh("rm -r global/keyspaces/customer/shards/80-");
    let lost = BTreeSet::from([("shard-without-record".to_owned(), shard.to_owned())]);
    let shown = lines(&shows(mount, &lost));
    mount.sh(shown[0]["mend"].as_str().unwrap());
    shows(mount, &BTreeSet::new());
    assert_eq!(mount.read(&format!("{shard}.txt")), before);
    // The command has the flags of the mount: nothing else says where the topology is.
    service.put("zone1/keyspaces/customer/SrvKeyspace", b"");
    let outdated = ("srv-keyspace-outdated".to_owned(), "zone1/keyspaces/customer/SrvKeyspace".to_owned());
    let shown = lines(&shows(mount, &BTreeSet::from([outdated])));
    mount.sh(&shown[0]["mend"].as_str().unwrap().replace("topofs ", &format!("{TOPOFS} ")));
    shows(mount, &BTreeSet::new());
    // Only a list tells which keys are there that no mount shows.
    let unnameable = BTreeSet::from([("unnameable-keys".to_owned(), "zone1".to_owned())]);
    let key = format!("{}/zone1/tablets/bad//key", service.root);
    etcd::shared().put(&key, b"x");
    mount.sh("echo resync zone1 > .topofs/control");
    let shown = shows(mount, &unnameable);
    assert!(shown.contains("1 key whose name") && shown.contains("etcdctl"), "{shown}");
    etcd::shared().ctl(&["del", &key]);
    mount.sh("echo resync zone1 > .topofs/control");
    shows(mount, &BTreeSet::new());
}
