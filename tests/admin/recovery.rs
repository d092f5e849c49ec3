//! The procedures of docs/recovery.md, from beginning to end, on real etcd servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use topofs::name::TopoPath;
use topofs::record::{Codec, Form};
use topofs::sample::Cluster;

use crate::common::etcd::Etcd;
use crate::common::mount::TOPOFS;
use crate::common::world::{etcd_cell, put, runtime};
use crate::common::{bound_command, spawn_bound, text};

/// The scripts of the page, with the servers and directories of a test.
struct Page {
    work: TempDir,
    servers: BTreeMap<&'static str, Etcd>,
}

impl Page {
    /// `global.example:2379` of the page is the server `global`.
    fn with(servers: &[&'static str]) -> Self {
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir(work.path().join("topo")).unwrap();
        Self { work, servers: servers.iter().map(|name| (*name, Etcd::start())).collect() }
    }

    fn mounted(&self) -> PathBuf {
        self.work.path().join("topo")
    }

    /// All blocks of one name, as one script.
    fn block(&self, wanted: &str) -> String {
        let page = include_str!("../../docs/recovery.md");
        let blocks = page.split("\n```sh ").skip(1).filter_map(|rest| rest.split_once('\n'));
        let named = blocks.filter(|(name, _)| *name == wanted).map(|(_, rest)| rest.split("\n```").next().unwrap());
        let script = named.collect::<Vec<_>>().join("\n");
        assert!(!script.is_empty(), "the page has no block {wanted}");
        self.here(&script)
    }

    fn here(&self, script: &str) -> String {
        let mut script = script.replace("/mnt/topo", self.mounted().to_str().unwrap());
        script = script.replace("/backup/", &format!("{}/", self.work.path().display()));
        for (name, server) in &self.servers {
            script = script.replace(&format!("{name}.example:2379"), &server.endpoint());
        }
        assert!(!script.contains(".example:"), "{script}");
        script
    }

    /// Runs scripts in one shell, as a reader does. Returns what they print.
    fn run(&self, scripts: &[&str]) -> String {
        let path = format!("{}:{}", Path::new(TOPOFS).parent().unwrap().display(), std::env::var("PATH").unwrap());
        let script = format!("set -euo pipefail\n{}", scripts.join("\n"));
        let mut command = Command::new("timeout");
        command.args(["120", "bash", "-c", &script]).env("PATH", path).stdin(Stdio::null());
        let output = command.output().unwrap();
        let status = || std::fs::read_to_string(self.mounted().join(".topofs/errors")).unwrap_or_default();
        assert!(output.status.success(), "{script}\n{}\n{}", text(&output), status());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The variables of the page, for a shell that needs no mount.
    fn variables(&self) -> String {
        let setup = self.block("setup");
        setup.lines().filter(|line| line.starts_with("export")).collect::<Vec<_>>().join("\n")
    }

    /// Stores the sample: each cell on the server of its name, or on the global one.
    fn load(&self, cells: &[&str]) {
        let codec = Codec::builtin().unwrap();
        let cluster =
            Cluster { cells: cells.iter().map(ToString::to_string).collect(), ..Cluster::demo("global.example:2379") };
        for (cell, path, value) in cluster.records(&codec).unwrap() {
            let value = match path.as_str().strip_prefix("cells/").and_then(|rest| rest.strip_suffix("/CellInfo")) {
                Some(named) => {
                    let text = format!("server_address: \"{}\" root: \"/vitess/{named}\"", self.server(named));
                    codec.store("topodata.CellInfo", Form::Text, &text.into(), None).unwrap().unwrap()
                }
                None => value,
            };
            let backend = etcd_cell(&self.server(cell.as_str()), &format!("/vitess/{cell}"));
            runtime().block_on(backend.apply(&[put(path.as_str(), value)])).unwrap();
        }
    }

    fn server(&self, cell: &str) -> String {
        self.servers.get(cell).unwrap_or_else(|| &self.servers["global"]).endpoint()
    }

    /// All records of a cell on a server.
    fn stored(&self, server: &str, cell: &str) -> BTreeMap<String, Vec<u8>> {
        let backend = etcd_cell(&self.servers[server].endpoint(), &format!("/vitess/{cell}"));
        let listing = runtime().block_on(backend.list(&TopoPath::root())).unwrap();
        listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value.to_vec())).collect()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Its daemon ends with it.
        let _ = nix::mount::umount2(&self.mounted(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What two cells do not have alike.
fn different(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

#[test]
fn a_cell_that_is_lost_comes_back() {
    let mut page = Page::with(&["global", "zone1", "zone2", "zone2-new"]);
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
    let mut page = Page::with(&["global", "zone1", "zone2", "global-new"]);
    page.load(&["zone1", "zone2"]);
    let before = page.stored("global", "global");
    page.run(&[&page.block("setup"), &page.block("backup")]);
    page.servers.get_mut("global").unwrap().kill();
    page.run(&[&page.variables(), &page.block("global"), &page.block("global-backup")]);
    assert_eq!(different(&page.stored("global-new", "global"), &before), [] as [&str; 0]);
}

#[test]
fn the_cells_know_most_of_a_global_topology_that_is_lost() {
    let mut page = Page::with(&["global", "zone1", "zone2", "global-new"]);
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
    let page = Page::with(&["global", "zone1", "zone2"]);
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
