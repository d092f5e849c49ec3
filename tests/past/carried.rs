//! What tools carry into a stage: nothing of it is lost without a word.

use crate::common::text;
use crate::common::world::Service;

/// Keys that topofs takes for no records of Vitess, with a value.
const UNKNOWN: [&str; 3] =
    ["global/keyspaces/commerce/NewVitessRecord", "global/internal/thing", "global/metadata/notes.bak"];

#[test]
fn a_patch_changes_and_brings_back_records_of_any_name() {
    let service = Service::etcd2();
    UNKNOWN.iter().for_each(|key| service.put(key, b"one\n"));
    let mount = service.mount(&[]);
    let stage = |name: &str| mount.sh(&format!("mkdir .topofs/stage/{name}"));
    stage("a");
    for key in UNKNOWN {
        mount.sh(&format!("echo two > .topofs/stage/a/{key}"));
    }
    // git removes and makes, patch renames.
    stage("b");
    mount.sh("cd .topofs/stage/b; git apply < ../a/.diff; diff ../a/.diff .diff; ! grep -q ^deleted .diff");
    mount.sh("echo commit > .topofs/stage/b/.control");
    UNKNOWN.iter().for_each(|key| assert_eq!(service.get(key).as_deref(), Some(&b"two\n"[..]), "{key}"));
    // Records that are gone come back by the patch that takes it back, and by a copy.
    stage("c");
    for key in UNKNOWN {
        mount.sh(&format!("rm .topofs/stage/c/{key}"));
    }
    mount.sh("mkdir .topofs/at/before; echo commit > .topofs/stage/c/.control");
    UNKNOWN.iter().for_each(|key| assert_eq!(service.get(key), None, "{key}"));
    stage("d");
    mount.sh("cd .topofs/stage/d; patch -s -p1 < ../c/.undo; echo commit > .control");
    UNKNOWN.iter().for_each(|key| assert_eq!(service.get(key).as_deref(), Some(&b"two\n"[..]), "{key}"));
    stage("e");
    mount.sh("cd .topofs/stage/e; rm -r global/internal; echo commit > .control");
    stage("f");
    mount.sh("cd .topofs/stage/f; cp -r ../../at/before/global/internal global/; echo commit > .control");
    assert_eq!(service.get("global/internal/thing").as_deref(), Some(&b"two\n"[..]));
}

#[test]
fn the_records_of_a_cell_that_does_not_exist_are_staged_and_not_committed() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let before = service.keys();
    mount.sh("mkdir .topofs/stage/a; cd .topofs/stage/a; rm -r zone2/*; echo commit > .control; \
         mkdir ../b; cd ../b; rm -r global/cells/zone2; echo commit > .control");
    assert!(service.keys().iter().all(|key| !key.starts_with("zone2/")));
    // Both sets together, taken back by one patch.
    mount.sh("mkdir .topofs/stage/c; cd .topofs/stage/c; git apply < ../b/.undo; git apply < ../a/.undo");
    let staged = mount.sh("grep -c '^diff --git' .topofs/stage/c/.diff").trim().parse::<usize>().unwrap();
    let listed = mount.sh("cd .topofs/stage; cat a/.undo b/.undo | grep -c '^diff --git'");
    let listed = listed.trim().parse::<usize>().unwrap();
    assert_eq!(staged, listed, "nothing is lost on the way");
    let output = mount.bash("echo commit > .topofs/stage/c/.control");
    assert!(text(&output).contains("No such file"), "{}", text(&output));
    assert!(mount.errors().last().unwrap()["reason"].as_str().unwrap().contains("zone2"), "{:?}", mount.errors());
    // One after the other.
    mount.sh("mkdir .topofs/stage/d; cd .topofs/stage/d; git apply < ../b/.undo; echo commit > .control");
    crate::common::eventually("the cell is back", || mount.path("zone2").exists().then_some(()));
    mount.sh("ls zone2 > /dev/null; mkdir .topofs/stage/e; cd .topofs/stage/e; \
         git apply < ../a/.undo; echo commit > .control");
    assert_eq!(service.keys(), before);
    // A cell that was made in a stage by mistake can be removed there.
    mount.sh("cd .topofs/stage; mkdir f f/zone7 f/zone7/tablets; rm -r f/zone7; \
         ! rmdir f/zone1 2>/dev/null; ls f | grep -qv zone7");
}

#[test]
fn whole_trees_are_copied_into_a_stage() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    mount.sh("set -e; mkdir .topofs/stage/s; cd .topofs/stage/s; \
         cp -a ../../../global/keyspaces/customer global/keyspaces/cust2; \
         rsync -a ../../../global/keyspaces/commerce/ global/keyspaces/comm2/; \
         (cd ../../../global/keyspaces; tar cf - archive) | (cd global; mkdir other; tar xf - -C keyspaces); \
         rmdir global/other; diff -r -x .lock ../../../global/keyspaces/customer global/keyspaces/cust2; \
         cells=../../../global/cells_aliases; \
         cp -r $cells/region1 global/cells_aliases/renamed; rm -r global/cells_aliases/region1; cat .diff > /dev/null");
    let output = mount.bash("mv global/metadata/owner .topofs/stage/s/global/metadata/moved");
    // It is copied, and removed where it was.
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(mount.read(".topofs/stage/s/global/metadata/moved"), "the shop team");
    let log = mount.stop();
    assert!(log.contains("a stage is gone with the mount") && log.contains("changes="), "{log}");
}

#[test]
fn no_cell_takes_the_place_of_what_tells_of_a_stage() {
    let service = Service::etcd2();
    let info = service.get("global/cells/zone1/CellInfo").unwrap();
    service.put("global/cells/.control/CellInfo", &info);
    service.put("global/cells/.diff/CellInfo", &info);
    let mount = service.mount(&[]);
    mount.sh("mkdir .topofs/stage/s; cd .topofs/stage/s; echo v > global/metadata/v; ls -la > /dev/null; \
         ! ls -a | grep -q control; grep -q '^+v' .diff; echo commit > .control; test -f .undo");
    assert!(mount.status()["cells_not_shown"][".control"].is_string());
}
