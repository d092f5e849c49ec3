//! Computed links: `.tablets` and `.primary` of a shard, `.cells` of a keyspace and of a cell alias.

use std::path::Path;

use prost::Message;
use topofs::record::messages::topodata::shard_replication::Node;
use topofs::record::messages::topodata::{CellInfo, CellsAlias, Shard, ShardReplication, TabletAlias};

use crate::common::etcd::shared;
use crate::common::mount::Mount;
use crate::common::server::fresh_root;
use crate::common::world::Service;
use crate::common::{eventually, text};
use crate::on_each_backend;

const SHARD: &str = "global/keyspaces/commerce/shards/0";
/// Every name of a link or of a directory of links, for grep -E.
const NAMES: &str = r"\.(tablets|primary|cells)(/|$)";

/// The names in a directory of links, each with its target.
fn links(mount: &Mount, dir: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(mount.path(dir)).unwrap().map(Result::unwrap);
    let mut links: Vec<(String, String)> = entries
        .map(|entry| {
            assert!(entry.file_type().unwrap().is_symlink(), "the listing says so, too");
            let target = entry.path().read_link().unwrap();
            assert_eq!(entry.metadata().unwrap().len(), target.as_os_str().len() as u64);
            (entry.file_name().into_string().unwrap(), target.to_str().unwrap().to_owned())
        })
        .collect();
    links.sort();
    links
}

fn tablet(cell: &str, uid: u32) -> (String, String) {
    let name = format!("{cell}-{uid:010}");
    (name.clone(), format!("../../../../../../{cell}/tablets/{name}"))
}

on_each_backend! {
    fn links_lead_to_what_belongs_together(world) {
        let mount = &world.mount;
        let all = [("zone1", 100), ("zone1", 102), ("zone1", 104), ("zone2", 101), ("zone2", 103)];
        assert_eq!(links(mount, &format!("{SHARD}/.tablets")), all.map(|(cell, uid)| tablet(cell, uid)));
        let in_cell = |cell: &str, to: &str| (cell.to_owned(), format!("../../../../{cell}{to}"));
        let keyspace = ["zone1", "zone2"].map(|cell| in_cell(cell, "/keyspaces/customer"));
        assert_eq!(links(mount, "global/keyspaces/customer/.cells"), keyspace);
        let region = ["zone1", "zone2"].map(|cell| in_cell(cell, ""));
        assert_eq!(links(mount, "global/cells_aliases/region1/.cells"), region);
        let primary = "zone1/tablets/zone1-0000000100";
        assert_eq!(mount.sh(&format!("readlink {SHARD}/.primary")), format!("../../../../../{primary}\n"));
        assert_eq!(mount.sh(&format!("readlink -f {SHARD}/.primary")).trim(), mount.path(primary).to_str().unwrap());
        assert_eq!(mount.sh(&format!("cd {SHARD}/.primary; pwd -P")).trim(), mount.path(primary).to_str().unwrap());
        let tablet = mount.read(&format!("{primary}/Tablet.json"));
        assert_eq!(mount.sh(&format!("cat {SHARD}/.primary/Tablet.json")), tablet);
        assert_eq!(mount.sh(&format!("ls -l {SHARD}/.tablets/ | grep -c ' -> '")).trim(), "5");
        assert_eq!(mount.sh(&format!("find -L {SHARD}/.tablets -name Tablet.txt | wc -l")).trim(), "5");
        assert_eq!(mount.sh("jq -r .db_type global/cells_aliases/region1/.cells/zone2/SrvVSchema.json"), "null\n");
        // A number belongs to a link for good.
        let number = |path: &str| mount.sh(&format!("stat -c %i {SHARD}/{path}"));
        let numbers = [".primary", ".tablets", ".tablets/zone1-0000000100"].map(number);
        assert_eq!([".primary", ".tablets", ".tablets/zone1-0000000100"].map(number), numbers);
        // A record that is missing is seen to be missing.
        mount.sh("rm -r zone1/tablets/zone1-0000000102");
        mount.sh(&format!("cd {SHARD}/.tablets; test -L zone1-0000000102; ! test -e zone1-0000000102"));
        assert_eq!(mount.sh(&format!("find -L {SHARD}/.tablets -type l -printf '%f\n'")), "zone1-0000000102\n");
        nothing_can_be_changed(mount);
        a_save_is_seen_at_once(mount);
        // They are in nobody's way.
        mount.sh("rm -r global/keyspaces/commerce/shards/0 global/keyspaces/archive");
        assert!(!mount.path(SHARD).exists());
    }
}

fn nothing_can_be_changed(mount: &Mount) {
    for (script, message) in [
        ("touch .tablets/new", "not permitted"),
        ("mkdir .tablets/new", "not permitted"),
        ("ln -s Shard .tablets/new", "not permitted"),
        ("ln -s Shard new", "not permitted"),
        ("rm .tablets/zone1-0000000100", "not permitted"),
        ("rm -r .tablets", "not permitted"),
        ("rmdir .tablets", "not permitted"),
        ("rm .primary", "not permitted"),
        ("mv -T .primary new", "not permitted"),
        ("mv -T Shard .primary", "not permitted"),
        ("mv .tablets/zone1-0000000100 .", "not permitted"),
        ("mkdir .cells", "not permitted"),
        ("touch ../../../../metadata/.tablets", "not permitted"),
        ("cp -a Shard.txt .cells", "not permitted"),
        ("rsync -a Shard .tablets/", "not permitted"),
    ] {
        let output = mount.bash(&format!("cd {SHARD}; {script}"));
        assert!(!output.status.success() && text(&output).contains(message), "{script}: {}", text(&output));
    }
    assert_eq!(links(mount, &format!("{SHARD}/.tablets")).len(), 5);
}

fn a_save_is_seen_at_once(mount: &Mount) {
    let script = "jq '.primary_alias = {cell: \"zone2\", uid: $uid}' --argjson uid \"$1\" Shard.json";
    let save = format!("cd {SHARD}; for uid in 101 103 7777; do set -- $uid; {script} > new; mv new Shard.json;");
    let expected: String =
        [101, 103, 7777].iter().map(|uid| format!("../../../../../zone2/tablets/zone2-{uid:010}\n")).collect();
    assert_eq!(mount.sh(&format!("{save} readlink .primary; done")), expected);
    // The listing that the kernel keeps is old, too.
    let seen = mount.sh(&format!("{save} ls .tablets | wc -l; done"));
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["5", "5", "6"]);
    let alias = "global/cells_aliases/region1";
    mount.sh(&format!("echo 'cells: \"zone2\" cells: \"nowhere\"' > {alias}/CellsAlias.txt"));
    assert_eq!(mount.sh(&format!("ls {alias}/.cells")), "nowhere\nzone2\n");
}

#[test]
fn tools_that_walk_a_tree_meet_records_only() {
    let mount = Mount::new(&["demo"]);
    // Somebody has looked into them.
    mount.sh(&format!("ls {SHARD}/.tablets {SHARD}/.primary global/keyspaces/*/.cells global/cells_aliases/*/.cells"));
    let none = |script: &str| {
        let found = mount.sh(&format!("({script}) | grep -E '{NAMES}' || true"));
        assert_eq!(found, "", "{script}");
    };
    for script in [
        "find",
        "find -L",
        "ls -RA",
        "tar c . | tar t",
        "grep -rl zone1 .",
        "cp -a . ../copy; find ../copy",
        "rsync -a --out-format=%n ./ ../synced",
        "rsync -aL ./ ../followed; find ../followed",
        "git init -q ../repo; git --git-dir=../repo/.git --work-tree=. add -An .",
    ] {
        none(script);
    }
}

#[test]
fn listed_links_are_copied_as_links_and_go_with_their_directory() {
    let mount = Mount::new(&["demo", "--respect-locks=none", "--views=list"]);
    assert_eq!(mount.sh(&format!("ls -A {SHARD}")), ".lock\n.primary\n.tablets\nShard\nShard.json\nShard.txt\n");
    let listed = mount.sh(&format!("find . | grep -E '{NAMES}' | sort"));
    for name in
        ["./global/keyspaces/customer/.cells/zone1", &format!("./{SHARD}/.primary"), &format!("./{SHARD}/.tablets")]
    {
        assert!(listed.lines().any(|line| line == name), "{name} in {listed}");
    }
    // A walk that follows them ends, and meets each tablet by its shard.
    let tablets = mount.sh("find -L global -name Tablet.json | grep -c '/.tablets/'");
    assert_eq!(tablets, mount.sh("find zone1 zone2 -name Tablet.json | wc -l"));
    assert_eq!(mount.sh("grep -rl Shard . | grep -cE '/.(tablets|primary)/' || true").trim(), "0");
    // The links of a copy lead into the copy.
    mount.sh("cp -a . ../copy; tar c . | (mkdir ../tar; tar x -C ../tar); rsync -a ./ ../synced");
    for copy in ["copy", "tar", "synced"] {
        let leads = mount.sh(&format!("cd ../{copy}; cd {SHARD}/.primary; pwd -P"));
        let expected = mount.outside().join(copy).join("zone1/tablets/zone1-0000000100");
        assert_eq!(Path::new(leads.trim()), expected);
    }
    // A copy into the mount brings records; the links are there already.
    let output = mount.bash(&format!("cp -a ../copy/{SHARD}/. {SHARD}/"));
    assert!(!output.status.success(), "{}", text(&output));
    assert_eq!(links(&mount, &format!("{SHARD}/.tablets")).len(), 5);
    // What is listed can be removed with its directory.
    mount.sh(&format!("rm -r {SHARD}"));
    mount.sh("rm -r global/keyspaces/customer global/cells_aliases/region1");
    assert_eq!(mount.sh("ls global/keyspaces"), "archive\ncommerce\n");
    mount.sh("find global/keyspaces/archive -delete; ! test -e global/keyspaces/archive");
    // The names are there again with the records.
    mount.sh(
        "mkdir global/keyspaces/new; echo '{}' > global/keyspaces/new/Keyspace.json; ls global/keyspaces/new/.cells",
    );
    mount.sh(&format!("mkdir -p {SHARD}; ls -A {SHARD} | wc -l; cp -a ../copy/{SHARD}/Shard.txt {SHARD}/"));
    assert_eq!(links(&mount, &format!("{SHARD}/.tablets")).len(), 5);
}

#[test]
fn without_views_there_are_no_links() {
    let mount = Mount::new(&["demo", "--views", "off"]);
    assert!(mount.read(".topofs/config").contains("\"views\": \"off\""));
    for name in
        [format!("{SHARD}/.tablets"), format!("{SHARD}/.primary"), "global/keyspaces/customer/.cells".to_owned()]
    {
        assert!(!mount.path(&name).exists() && mount.path(&name).symlink_metadata().is_err(), "{name}");
    }
    assert!(text(&mount.bash("mkdir global/metadata/.cells")).contains("not permitted"));
}

#[test]
fn read_only_mounts_have_links() {
    let mount = Mount::new(&["demo", "--read-only"]);
    assert_eq!(links(&mount, &format!("{SHARD}/.tablets")).len(), 5);
    mount.sh(&format!("cat {SHARD}/.primary/Tablet.txt > /dev/null; readlink -e {SHARD}/.tablets/zone2-0000000101"));
    for script in ["touch .tablets/x", "rm .primary", "ln -s a b"] {
        let output = mount.bash(&format!("cd {SHARD}; {script}"));
        assert!(text(&output).contains("Read-only file system"), "{script}: {}", text(&output));
    }
}

fn alias(cell: &str, uid: u32) -> Option<TabletAlias> {
    Some(TabletAlias { cell: cell.to_owned(), uid })
}

#[test]
fn a_hostile_record_makes_no_link_out_of_the_mount() {
    let root = fresh_root();
    let put = |key: &str, value: &[u8]| shared().put(&format!("{root}/{key}"), value);
    let info = CellInfo { server_address: shared().endpoint(), root: format!("{root}/z1") };
    put("global/cells/z1/CellInfo", &info.encode_to_vec());
    let hostile = ["..", "../..", "a/b", "", ".", "/etc", ".topofs", "z1/..", "\n", &"x".repeat(300), "z1", "nowhere"];
    let nodes = hostile.iter().map(|cell| Node { tablet_alias: alias(cell, 7) });
    let nodes: Vec<Node> = nodes.chain([Node { tablet_alias: None }]).collect();
    put("z1/keyspaces/k/shards/0/ShardReplication", &ShardReplication { nodes }.encode_to_vec());
    put(
        "global/keyspaces/k/shards/0/Shard",
        &Shard { primary_alias: alias("../../../etc", 7), ..Shard::default() }.encode_to_vec(),
    );
    put("global/keyspaces/k/shards/1/Shard", b"\x0a\x99not a message");
    let cells = hostile.map(str::to_owned).to_vec();
    put("global/cells_aliases/all/CellsAlias", &CellsAlias { cells }.encode_to_vec());
    // More than anybody has, and as many as fit into a record.
    let many = (0..60_000).map(|uid| Node { tablet_alias: alias("z1", uid) }).collect();
    put("z1/keyspaces/k/shards/2/ShardReplication", &ShardReplication { nodes: many }.encode_to_vec());
    put(
        "global/keyspaces/k/shards/2/Shard",
        &Shard { primary_alias: alias("z9", 9), ..Shard::default() }.encode_to_vec(),
    );
    // Stored keys with the names of links give way, and are counted.
    for key in ["shards/0/.tablets/z1-0000000001/Tablet", "shards/0/.primary", ".cells", ".cells/z1"] {
        put(&format!("global/keyspaces/k/{key}"), b"stored");
    }
    let mount = Mount::etcd(&shared().endpoint(), &root, &["--views=list"]);
    assert_eq!(mount.status()["cells"]["global"]["skipped_keys"], 4);
    let tablets = |shard: &str| links(&mount, &format!("global/keyspaces/k/shards/{shard}/.tablets"));
    assert_eq!(tablets("0"), [tablet("\n", 7), tablet("nowhere", 7), tablet("z1", 7)]);
    assert_eq!(tablets("1"), []);
    assert_eq!(tablets("2").len(), 10_000);
    assert!(tablets("2").contains(&tablet("z9", 9)));
    for shard in ["0", "1"] {
        assert!(mount.path(&format!("global/keyspaces/k/shards/{shard}/.primary")).symlink_metadata().is_err());
    }
    let cells = links(&mount, "global/cells_aliases/all/.cells");
    assert_eq!(cells.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["\n", "nowhere", "z1"]);
    assert_eq!(links(&mount, "global/keyspaces/k/.cells").len(), 1);
    // Whatever they say: each goes up to the root of the mount, and from there into a cell.
    for (dir, depth) in
        [("keyspaces/k/shards/0/.tablets", 6), ("keyspaces/k/.cells", 4), ("cells_aliases/all/.cells", 4)]
    {
        for (name, target) in links(&mount, &format!("global/{dir}")) {
            let inside = target.strip_prefix(&"../".repeat(depth)).expect("it goes up so far");
            let mut names = inside.split('/');
            assert!(!name.is_empty() && names.all(|name| !["", ".", "..", ".topofs"].contains(&name)), "{target}");
        }
    }
}

#[test]
fn a_cell_that_never_answers_hides_nobody_for_long() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Service::etcd2();
    let info = CellInfo { server_address: silent.local_addr().unwrap().to_string(), root: "/silent".to_owned() };
    service.put("global/cells/zone1/CellInfo", &info.encode_to_vec());
    let mount = service.mount(&["--cell-servers=any", "--remote-operation-timeout=40s"]);
    // Known without that cell: the primary, and the tablets of the other one.
    let known = [tablet("zone1", 100), tablet("zone2", 101), tablet("zone2", 103)];
    let all = format!("{SHARD}/.tablets");
    assert_eq!(mount.sh(&format!("timeout 20 ls {all}")), known.clone().map(|(name, _)| name + "\n").concat());
    // Nobody waits for it again.
    mount.sh(&format!("for i in $(seq 50); do timeout 10 ls -l {all}; done; timeout 10 ls global/keyspaces/*/.cells"));
    assert_eq!(links(&mount, &all), known);
    assert_eq!(mount.sh("timeout 10 ls global/keyspaces/commerce/.cells"), "zone2\n");
    // When it answers, they are there.
    let answers = CellInfo { server_address: service.server.clone(), root: format!("{}/zone1", service.root) };
    service.put("global/cells/zone1/CellInfo", &answers.encode_to_vec());
    eventually("all of them", || (links(&mount, &all).len() == 5).then_some(()));
}
