//! The procedures of docs/recovery.md, from beginning to end, on real etcd servers.

use std::collections::BTreeMap;
use std::process::Stdio;

use crate::common::{bound_command, spawn_bound};
use crate::page::Page;

fn page(servers: &[&'static str]) -> Page {
    Page::of(include_str!("../../docs/recovery.md"), servers)
}

/// What two cells do not have alike.
fn different(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

#[test]
fn a_cell_that_is_lost_comes_back() {
    let mut page = page(&["global", "zone1", "zone2", "zone2-new"]);
    page.load(&["zone1", "zone2"]);
    let before = page.stored("zone2", "zone2");
    page.run(&[&page.block("setup"), &page.block("backup")]);
    page.servers.get_mut("zone2").unwrap().kill();
    page.run(&[&page.variables(), &page.block("cell")]);
    assert_eq!(different(&page.stored("zone2-new", "zone2"), &before), [] as [&str; 0]);
    // A part of a backup may be restored at any time.
    page.run(
        &["rm -r /mnt/topo/global/keyspaces/commerce"].map(|script| page.here(script)).each_ref().map(String::as_str),
    );
    page.run(&[&page.variables(), &page.block("restore-part"), "topofs validate"]);
}

#[test]
fn a_global_topology_that_is_lost_comes_back() {
    let mut page = page(&["global", "zone1", "zone2", "global-new"]);
    page.load(&["zone1", "zone2"]);
    let before = page.stored("global", "global");
    page.run(&[&page.block("setup"), &page.block("backup")]);
    page.servers.get_mut("global").unwrap().kill();
    page.run(&[&page.variables(), &page.block("global"), &page.block("global-backup")]);
    assert_eq!(different(&page.stored("global-new", "global"), &before), [] as [&str; 0]);
}

#[test]
fn the_cells_know_most_of_a_global_topology_that_is_lost() {
    let mut page = page(&["global", "zone1", "zone2", "global-new"]);
    page.load(&["zone1", "zone2"]);
    let before = page.stored("global", "global");
    page.run(&[&page.block("setup")]);
    page.servers.get_mut("global").unwrap().kill();
    page.run(&[&page.variables(), &page.block("global"), &page.block("global-cells")]);
    let empty = ["MirrorRules", "ShardRoutingRules"];
    let missing = ["cells_aliases/region1/CellsAlias", "metadata/owner"];
    let found = different(&page.stored("global-new", "global"), &before);
    assert_eq!(found, [&empty[..1], &empty[1..], &missing].concat());
}

/// What happens if vttablets are restarted in another cell and their shards are reparented: each stores its record and
/// its place in the replication graph, and a primary says so in its Shard record.
const TABLETS_MOVE: &str = r#"
cd /mnt/topo
for tablet in local/tablets/*; do
  new=zone1/tablets/zone1-${tablet##*-}
  mkdir -p $new
  jq '.alias.cell = "zone1"' $tablet/Tablet.json > $new/Tablet.json
  ks=$(jq -r .keyspace $new/Tablet.json) shard=$(jq -r .shard $new/Tablet.json)
  graph=zone1/keyspaces/$ks/shards/$shard
  mkdir -p $graph
  nodes=$(jq -c '.nodes // []' $graph/ShardReplication.json 2>/dev/null || echo '[]')
  nodes=$(jq --argjson nodes "$nodes" '{nodes: ($nodes + [{tablet_alias: .alias}])}' $new/Tablet.json)
  echo "$nodes" > $graph/ShardReplication.json
  if grep -q 'type: PRIMARY' $new/Tablet.txt; then
    sed -i 's/"local"/"zone1"/' global/keyspaces/$ks/shards/$shard/Shard.txt
  fi
done
"#;

/// Changes two records under the lock of a keyspace, again and again, until there is a file `stop`. Prints how often.
const WRITER: &str = r#"
cd /mnt/topo
count=0
until [ -e /backup/stop ]; do
  flock global/keyspaces/commerce/.lock sh -ec '
    sum=$(cat global/metadata/counter)
    echo $((sum + 1)) > global/metadata/counter
    sed -i "s/_vt_*[0-9]*/_vt_$((sum + 1))/" global/keyspaces/commerce/Keyspace.txt'
  count=$((count + 1))
  echo $count > /backup/count
done
"#;

#[test]
fn one_etcd_is_split_while_it_is_written_to() {
    let page = page(&["global", "zone1", "zone2"]);
    page.load(&["local"]);
    page.run(&[&page.block("setup"), &page.here("echo 0 > /mnt/topo/global/metadata/counter")]);
    let mut command = bound_command("bash");
    command.args(["-euc", &page.here(WRITER)]).stdout(Stdio::null());
    let mut writer = spawn_bound(command);
    let printed =
        page.run(&[&page.variables(), &page.block("extend"), &page.here(TABLETS_MOVE), &page.block("extend-done")]);
    assert!(!printed.contains("Shard.txt"), "{printed}");
    std::fs::write(page.work.path().join("stop"), "").unwrap();
    assert!(writer.wait().unwrap().success());
    let count = std::fs::read_to_string(page.work.path().join("count")).unwrap();
    let global = page.stored("global", "global");
    assert_eq!(String::from_utf8_lossy(&global["metadata/counter"]), count);
    let keyspace = std::fs::read_to_string(page.mounted().join("global/keyspaces/commerce/Keyspace.txt")).unwrap();
    assert!(keyspace.contains(&format!("\"_vt_{}\"", count.trim())), "{keyspace} after {count}");
    // The first servers have the global topology only.
    assert!(page.stored("global", "local").is_empty());
    let others = page.servers["global"].ctl(&["get", "--prefix", "/", "--keys-only"]);
    assert!(others.split_whitespace().all(|key| key.starts_with("/vitess/global/")), "{others}");
    assert_eq!(std::fs::read_dir(page.mounted()).unwrap().count(), 3, "global, zone1, zone2");
    let tablets = |cell: &str| page.stored(cell, cell).keys().filter(|key| key.starts_with("tablets/")).count();
    assert_eq!((tablets("zone1"), tablets("zone2")), (20, 0));
}
