//! Looking: listing, reading, copying, and what must not happen while looking.

use crate::common::mount::Mount;
use crate::on_each_backend;

on_each_backend! {
    fn the_tree_is_listed_as_documented(world) {
        let mount = &world.mount;
        assert_eq!(mount.sh("ls"), "global\nzone1\nzone2\n");
        let expected = "Keyspace\nKeyspace.json\nKeyspace.txt\nVSchema\nVSchema.json\nVSchema.txt\nshards\n";
        assert_eq!(mount.sh("ls global/keyspaces/commerce"), expected);
        assert_eq!(mount.sh("ls zone1/tablets | head -2"), "zone1-0000000100\nzone1-0000000102\n");
        // Nothing is listed twice, nothing is missing: 52 records in three forms (metadata has one), and 7 locks.
        assert_eq!(mount.sh("find . -type f -not -name .lock | wc -l"), "154\n");
        let locks = "global/keyspaces/archive/.lock\nglobal/keyspaces/archive/shards/0/.lock\n\
                     global/keyspaces/commerce/.lock\nglobal/keyspaces/commerce/shards/0/.lock\n\
                     global/keyspaces/customer/.lock\nglobal/keyspaces/customer/shards/-80/.lock\n\
                     global/keyspaces/customer/shards/80-/.lock\n";
        assert_eq!(mount.sh("find * -name .lock | sort"), locks);
        assert_eq!(mount.sh("find . -type f | sort | uniq -d"), "");
    }

    fn forms_show_the_same_record(world) {
        let mount = &world.mount;
        let tablet = "zone1/tablets/zone1-0000000200/Tablet";
        let shown = mount.read(&format!("{tablet}.txt"));
        assert!(shown.contains("type: PRIMARY\n") && shown.contains("  end: \"\\200\"\n"), "{shown}");
        let json: serde_json::Value = serde_json::from_str(&mount.read(&format!("{tablet}.json"))).unwrap();
        assert_eq!(json["primary_term_start_time"]["seconds"], "1767225600");
        assert_eq!(json["key_range"]["end"], "gA==");
        let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
        let decode = format!("protoc -I {proto} --decode topodata.Tablet topodata.proto < {tablet}");
        assert_eq!(mount.sh(&decode), shown);
    }

    fn attributes_describe_the_record(world) {
        let mount = &world.mount;
        let attributes = mount.sh("getfattr -d zone1/SrvVSchema.json");
        for expected in [
            "user.topo.cell=\"zone1\"",
            "user.topo.path=\"SrvVSchema\"",
            "user.topo.type=\"vschema.SrvVSchema\"",
            "user.topo.version=\"",
        ] {
            assert!(attributes.contains(expected), "{expected} in {attributes}");
        }
        assert!(mount.xattr("zone1/SrvVSchema", "user.other").is_none());
        assert_eq!(mount.sh("stat -c '%a %s' global/metadata/owner"), "600 13\n");
        assert_eq!(mount.sh("stat -c %a global"), "700\n");
        assert!(mount.sh("df . | tail -1").contains("% /"), "statfs answers");
    }

    fn looking_makes_no_version(world) {
        let mount = &world.mount;
        let before = world.changes();
        mount.sh("ls -lR > /dev/null; grep -r hash . > /dev/null; find . -type f -exec cat {} + > /dev/null");
        mount.sh("tar c . | wc -c");
        mount.sh("vim -es -u NONE -c q global/keyspaces/commerce/Keyspace.txt");
        mount.sh(
            "TERM=xterm timeout 20 script -qec 'vim -c q global/keyspaces/commerce/VSchema.json' /dev/null > /dev/null",
        );
        assert_eq!(world.changes(), before);
    }

    fn a_copy_of_the_tree_is_the_same(world) {
        let copy =
            Mount::new(&["mount", "--topo-implementation=memory", "--topo-global-root=/copy", "--respect-locks=none"]);
        let (from, to) = (world.mount.root(), copy.root());
        copy.sh(&format!("cp -a {}/. .", from.display()));
        assert_eq!(copy.sh(&format!("diff -r {} {}", from.display(), to.display())), "");
        // Each record was stored once, although all its forms were copied. The cells are on a service of their own.
        let stored = || {
            let cells = copy.status()["cells"].clone();
            (cells["global"]["revision"].as_u64().unwrap(), cells["zone1"]["revision"].as_u64().unwrap())
        };
        assert_eq!(stored(), (16, 36));
        // And again, onto itself: equal content makes no version.
        copy.sh(&format!("cp -a {}/. .", from.display()));
        assert_eq!(stored(), (16, 36));
        let archive = world.mount.outside().join("all.tar");
        world.mount.sh(&format!("tar cf {} .", archive.display()));
        let restored =
            Mount::new(&["mount", "--topo-implementation=memory", "--topo-global-root=/tar", "--respect-locks=none"]);
        restored.sh(&format!("tar xf {}", archive.display()));
        assert_eq!(restored.sh(&format!("diff -r {} {}", from.display(), restored.root().display())), "");
        // Into a new topology, and onto itself.
        let synced = Mount::new(&["mount", "--topo-implementation=memory", "--topo-global-root=/rsync"]);
        synced.sh(&format!("rsync -a {0}/global . && rsync -a {0}/ . && rsync -aI {0}/ .", from.display()));
        assert_eq!(synced.sh(&format!("diff -r {} {}", from.display(), synced.root().display())), "");
    }

    fn listings_stay_correct_while_entries_come_and_go(world) {
        // Every entry that exists all the time is seen exactly once by every listing, whatever comes and goes beside
        // it.
        let mount = &world.mount;
        mount.sh("for i in $(seq 100); do echo x > global/metadata/fixed$i; done");
        let script = "
            (for i in $(seq 200); do
                echo x > global/metadata/key$i; rm -f global/metadata/key$((i-1))
            done) 2>/dev/null &
            for i in $(seq 30); do
                ls global/metadata | grep fixed | sort | uniq -c |
                    awk '$1 != 1 {bad=1} END {exit bad || NR != 100}' || exit 1
            done
            wait";
        mount.sh(script);
    }

    fn a_cell_is_listed_as_soon_as_its_record_is_stored_and_no_longer_than_that(world) {
        let script = r#"
            for i in $(seq 15); do
                mkdir global/cells/new$i
                echo "server_address: \"x:1\" root: \"/new$i\"" > global/cells/new$i/CellInfo.txt
                [ "$(echo new*)" = new$i ] || exit 1
                rm -r global/cells/new$i
                [ "$(echo new*)" = "new*" ] || exit 2
            done"#;
        world.mount.sh(script);
    }
}

#[test]
fn forms_and_listings_can_be_chosen() {
    let mount = Mount::new(&["demo", "--forms=txt,json", "--list", "txt"]);
    assert_eq!(mount.sh("ls global/keyspaces/commerce"), "Keyspace.txt\nVSchema.txt\nshards\n");
    assert_eq!(mount.sh("jq -r .durability_policy global/keyspaces/commerce/Keyspace.json"), "semi_sync\n");
    assert!(!mount.path("global/keyspaces/commerce/Keyspace").exists());
    assert_eq!(mount.sh("cat global/metadata/owner"), "the shop team", "what has no decoded form is shown raw");
}

#[test]
fn other_users_are_let_in_only_if_wanted() {
    let script = "setpriv --reuid 65534 --regid 65534 --clear-groups cat global/metadata/owner";
    let closed = Mount::new(&["demo"]);
    assert!(!closed.bash(script).status.success());
    // Their directory must be reachable for them.
    let open = Mount::new(&["demo", "--allow-other", "--umask=022", "--uid=65534"]);
    std::fs::set_permissions(open.outside(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(open.sh(script), "the shop team");
    assert_eq!(open.sh("stat -c '%u %a' global/metadata/owner"), "65534 644\n");
    // The kernel checks permissions.
    let foreign = Mount::new(&["demo", "--allow-other", "--umask=077"]);
    std::fs::set_permissions(foreign.outside(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(!foreign.bash(script).status.success());
}
