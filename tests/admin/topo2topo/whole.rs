//! What is copied and compared.

use topofs::backend::Implementation;
use topofs::sample::Cluster;

use super::{Place, copied, copy, run, without_places};
use crate::common::consul::{EVERYTHING, Guarded, READING};
use crate::common::etcd;

/// Records that are not everyday ones.
fn put_odd_records(place: &Place) {
    place.put("global/metadata/empty", "");
    place.put("global/metadata/bytes", vec![0, 159, 146, 150, 255]);
    place.put("global/some/where/nobody_knows", "what it is");
    place.put("global/some/where", "a record with another one below it");
    place.put("global/ExternalClusters/vitess/other", vec![10, 2, 1]);
    place.put("global/metadata/large", "x".repeat(400_000));
    place.put("zone1/keyspaces/rules", "[]");
    // Field 4000 of a Keyspace: of a newer Vitess.
    place.put("global/keyspaces/newer/Keyspace", vec![130, 250, 1, 3, b'n', b'e', b'w']);
    place.put("global/keyspaces/broken/Keyspace", vec![255]);
}

#[test]
fn a_topology_goes_around_all_services_and_comes_back_the_same() {
    let first = Place::etcd();
    first.load(&Cluster::of_size("", "", 3, 100, 8, 1));
    put_odd_records(&first);
    let before = first.records();
    assert!(before.len() > 3_000);
    // Somebody works while it is copied: locks and elections are nobody's records.
    let lease = etcd::shared().ctl(&["lease", "grant", "600"]);
    let lease = lease.split(' ').nth(1).unwrap();
    for lock in ["keyspaces/ks0000/locks", "elections/vtctld/locks", "internal/named_locks/x/locks"] {
        etcd::shared().ctl(&["put", "--lease", lease, &format!("{}/global/{lock}/4711", first.root), "{}"]);
    }
    let [second, third] = [Implementation::Zk2, Implementation::Consul].map(Place::empty);
    copied(&first, &second, &[]);
    let said = copied(&first, &second, &["--compare"]);
    assert!(said.contains(&format!("Topologies are in sync: {} records.", before.len())), "{said}");
    assert_eq!(without_places(second.records()), without_places(before.clone()));
    copied(&second, &third, &[]);
    assert_eq!(without_places(third.records()), without_places(before.clone()));
    etcd::shared().ctl(&["del", "--prefix", &format!("{}/", first.root)]);
    copied(&third, &first, &[]);
    assert_eq!(first.records(), before, "also where the cells are");
}

#[test]
fn a_second_run_writes_nothing_and_another_one_only_what_is_new() {
    let (from, to) = (Place::demo(), Place::etcd());
    let planned = copied(&from, &to, &["--dry-run"]);
    assert!(planned.contains("\ncreate global/keyspaces/commerce/Keyspace\n"), "{planned}");
    assert!(planned.find("create global/cells/zone1/CellInfo") < planned.find("create zone1/tablets/"), "{planned}");
    assert!(planned.ends_with("Nothing was changed: this was a dry run.\n") && to.records().is_empty(), "{planned}");
    let said = copied(&from, &to, &[]);
    assert!(said.contains(&format!("{} records were changed", from.records().len())), "{said}");
    let before = to.records();
    let said = copied(&from, &to, &[]);
    assert!(said.contains("\n0 records were changed"), "{said}");
    from.put("global/metadata/owner", "others");
    from.put("zone2/metadata", "new");
    from.delete("global/RoutingRules");
    to.put("global/cells/zone9/CellInfo", "");
    let said = copied(&from, &to, &[]);
    assert!(said.contains("2 only at the target") && said.contains("\n2 records were changed"), "{said}");
    assert_eq!(to.records().len(), before.len() + 2, "nothing is deleted unasked");
    let planned = copied(&from, &to, &["--delete", "-n"]);
    assert!(planned.contains("\ndelete global/RoutingRules\n"), "{planned}");
    copied(&from, &to, &["--delete"]);
    let mut after = to.records();
    assert!(after.remove("global/cells/zone9/CellInfo").is_some(), "a cell is never deleted");
    assert_eq!(without_places(after), without_places(from.records()));
}

#[test]
fn a_comparison_shows_each_difference_and_its_status_says_whether_there_is_one() {
    let (from, to) = (Place::demo(), Place::etcd());
    let (status, said) = copy(&from, &to, &["--compare"]);
    assert_eq!((status, said.contains("only in source: global/cells/zone1/CellInfo\n")), (1, true), "{said}");
    copied(&from, &to, &[]);
    let records = to.records();
    copied(&from, &to, &["--compare"]);
    // Also without saying again where the cells are: the target says it.
    let (status, said) = run(&from, &to, &["--compare"]);
    assert_eq!((status, said), (0, format!("Topologies are in sync: {} records.\n", records.len())));
    to.put_text("global/keyspaces/commerce/Keyspace", "topodata.Keyspace", "durability_policy: \"none\"");
    to.delete("zone1/SrvVSchema");
    to.put("zone2/stray", "?");
    to.put("global/metadata/owner", vec![255, 1]);
    let (status, said) = run(&from, &to, &["--compare"]);
    let expected = format!(
        "different: global/keyspaces/commerce/Keyspace\n\
         --- source/global/keyspaces/commerce/Keyspace.txt\n+++ target/global/keyspaces/commerce/Keyspace.txt\n\
         @@ -1,2 +1 @@\n-durability_policy: \"semi_sync\"\n-sidecar_db_name: \"_vt\"\n+durability_policy: \"none\"\n\
         different: global/metadata/owner\n--- source/hexadecimal\n+++ target/hexadecimal\n@@ -1 +1 @@\n\
         -74 68 65 20 73 68 6f 70 20 74 65 61 6d\n+ff 01\n\
         only in source: zone1/SrvVSchema\nonly at the target: zone2/stray\n\
         4 of {} records are different.\n",
        records.len() + 1
    );
    assert_eq!((status, said.as_str()), (1, expected.as_str()));
    // Only what is asked for.
    let (status, said) = run(&from, &to, &["--compare", "--do-tablets", "--do-shards"]);
    assert_eq!(status, 0, "{said}");
    let (status, said) = run(&from, &to, &["--compare=true", "--do-keyspaces"]);
    assert!(status == 1 && said.lines().count() == 8, "{said}");
    let (status, said) = run(&from, &to, &["--compare=false", "--do_keyspaces"]);
    assert!(status == 0 && said.contains("\n1 record was changed"), "{said}");
    assert_eq!(run(&from, &to, &["--compare", "--do-keyspaces"]).0, 0);
}

#[test]
fn the_flags_of_vitess_mean_what_they_mean_there() {
    let all = [
        ("--do-keyspaces", &["Keyspace", "VSchema"][..]),
        ("--do_shards", &["Shard"]),
        ("-do_tablets", &["Tablet", "CellInfo"]),
        ("--do-shard-replications=true", &["ShardReplication", "CellInfo"]),
        ("--do-routing-rules", &["RoutingRules", "Rules"]),
        ("--do-tablets=false", &[]),
    ];
    let from = Place::demo();
    let source = from.records();
    for (flag, kinds) in all {
        let to = Place::etcd();
        let moved = if kinds.contains(&"CellInfo") || kinds.is_empty() {
            copy(&from, &to, &[flag])
        } else {
            run(&from, &to, &[flag])
        };
        assert_eq!(moved.0, 0, "{flag}: {}", moved.1);
        let expected: Vec<&String> = source
            .keys()
            .filter(|path| kinds.is_empty() || kinds.contains(&path.rsplit('/').next().unwrap()))
            .collect();
        assert!(!expected.is_empty());
        assert_eq!(to.records().keys().collect::<Vec<_>>(), expected, "{flag}");
    }
}

#[test]
fn each_side_has_its_own_credentials() {
    let guarded = Guarded::start();
    let place = |root: &str| Place {
        implementation: Implementation::Consul,
        server: guarded.server.endpoint(),
        root: root.to_owned(),
    };
    guarded.put("kv/t/global/keyspaces/ks/Keyspace", "x");
    let reader = guarded.auth("reader", &guarded.rules(1, READING));
    let writer = guarded.auth("writer", &guarded.rules(2, EVERYTHING));
    let options = format!("--to-options={}", writer.trim_start_matches("--"));
    let (status, said) = run(&place("t"), &place("t/new"), &[&reader]);
    assert!(status == 1 && said.contains("global/keyspaces/ks/Keyspace: "), "{status}: {said}");
    let (status, said) = run(&place("t"), &place("t/new"), &[&reader, &options]);
    assert_eq!(status, 0, "{said}");
    assert!(!said.contains("00000002-"), "a token is never printed: {said}");
    let (status, said) = run(&place("t"), &place("t/new"), &[&reader, &options, "--compare"]);
    assert_eq!(status, 0, "{said}");
}
