//! Stages on real mounts: what git and patch make of them, conflicts, commits, and taking them back.

use std::path::PathBuf;

use crate::common::mount::Mount;
use crate::common::text;
use crate::common::world::{Service, World};

/// A file outside of a mount.
fn kept(mount: &Mount, name: &str, content: &[u8]) -> String {
    let path: PathBuf = mount.outside().join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

fn bytes(mount: &Mount, path: &str) -> Vec<u8> {
    std::fs::read(mount.path(path)).unwrap_or_else(|error| panic!("{path}: {error}\n{}", mount.log()))
}

/// The error of a command of a stage.
fn refused(mount: &Mount, stage: &str, command: &str) -> String {
    let output = mount.bash(&format!("echo {command:?} > .topofs/stage/{stage}/.control"));
    assert!(!output.status.success(), "{command} is carried out\n{}", mount.log());
    text(&output)
}

fn last_reason(mount: &Mount) -> String {
    mount.errors().last().expect("there are errors")["reason"].as_str().unwrap().to_owned()
}

/// A change set with everything that happens to records.
const EDITS: &str = r#"
    mkdir .topofs/stage/mine; cd .topofs/stage/mine
    sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt
    sed -i s/example.com/example.org/ zone1/tablets/zone1-0000000100/Tablet.txt
    mkdir -p 'global/keyspaces/new/shards/0' global/keyspaces/empty
    echo 'durability_policy: "none"' > global/keyspaces/new/Keyspace.txt
    echo 'is_primary_serving: true' > global/keyspaces/new/shards/0/Shard.txt
    echo '{}' > global/keyspaces/empty/Keyspace.json
    rm -r global/keyspaces/customer
    printf 'no newline' > 'global/metadata/a note'
"#;

#[test]
fn a_patch_of_a_stage_gives_the_same_records_in_stages_of_other_services() {
    let worlds = [World::etcd2(), World::zk2(), World::consul(), World::memory()];
    let [etcd, zookeeper, consul, memory] = &worlds;
    let before = etcd.changes();
    etcd.mount.sh(EDITS);
    let patch = bytes(&etcd.mount, ".topofs/stage/mine/.diff");
    let shown = String::from_utf8(patch.clone()).unwrap();
    for part in [
        "diff --git a/global/keyspaces/commerce/Keyspace.txt b/global/keyspaces/commerce/Keyspace.txt\n",
        "-durability_policy: \"semi_sync\"\n+durability_policy: \"none\"\n",
        "--- /dev/null\n+++ b/global/keyspaces/new/Keyspace.txt\n",
        "--- a/global/keyspaces/customer/VSchema.txt\n+++ /dev/null\n",
        "+no newline\n\\ No newline at end of file\n",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    // The patch of each is the patch for the next.
    let tools = ["git apply", "patch -p1 <", "git apply"];
    for (world, tool) in [zookeeper, consul, memory].into_iter().zip(tools) {
        let file = kept(&world.mount, "patch", &patch);
        world.mount.sh(&format!("mkdir .topofs/stage/theirs; cd .topofs/stage/theirs; {tool} {file}"));
        let theirs = String::from_utf8(bytes(&world.mount, ".topofs/stage/theirs/.diff")).unwrap();
        assert_eq!(theirs, shown, "{tool}");
        assert_eq!(bytes(&world.mount, ".topofs/stage/theirs/global/keyspaces/empty/Keyspace"), b"");
    }
    // Bytes that are no text: git alone takes them.
    etcd.mount.sh(r"printf '\0\1\377' > .topofs/stage/mine/global/metadata/bytes");
    let patch = bytes(&etcd.mount, ".topofs/stage/mine/.diff");
    let file = kept(&zookeeper.mount, "patch", &patch);
    zookeeper.mount.sh(&format!("mkdir .topofs/stage/again; cd .topofs/stage/again; git apply {file}"));
    assert_eq!(bytes(&zookeeper.mount, ".topofs/stage/again/global/metadata/bytes"), b"\x00\x01\xff");
    assert_eq!(bytes(&zookeeper.mount, ".topofs/stage/again/.diff"), patch);
    // Nothing but records is listed, and none of it has reached a service.
    assert_eq!(etcd.mount.sh("cd .topofs/stage/mine; ls -A"), "global\nzone1\nzone2\n");
    for world in &worlds {
        assert!(!world.mount.path("global/keyspaces/new").exists());
        assert!(world.mount.path("global/keyspaces/customer/Keyspace").exists());
    }
    assert_eq!(etcd.changes(), before);
    zookeeper.mount.sh("rmdir .topofs/stage/again .topofs/stage/theirs");
}

#[test]
fn a_conflict_stores_nothing_and_is_merged_by_a_rebase() {
    let service = Service::etcd2();
    let (mine, other) = (service.mount(&[]), service.mount(&[]));
    const KEYSPACE: &str = "global/keyspaces/commerce/Keyspace.txt";
    mine.sh("mkdir .topofs/stage/mine; cd .topofs/stage/mine; ! test -s .conflicts; ! test -s .diff; ! test -e .undo");
    mine.sh(&format!("cd .topofs/stage/mine; sed -i s/semi_sync/none/ {KEYSPACE}; echo x > global/metadata/new"));
    other.sh(&format!("sed -i s/_vt/_other/ {KEYSPACE}; echo 1 > global/metadata/theirs"));
    let said = refused(&mine, "mine", "commit");
    assert!(said.contains("Stale file handle"), "{said}");
    assert!(last_reason(&mine).contains("global/keyspaces/commerce/Keyspace"), "{}", last_reason(&mine));
    let conflicts = mine.read(".topofs/stage/mine/.conflicts");
    let conflict: serde_json::Value = serde_json::from_str(&conflicts).unwrap();
    assert_eq!(conflict["path"], "global/keyspaces/commerce/Keyspace");
    assert_eq!((&conflict["what"], &conflict["rebase"]), (&"changed".into(), &"merges".into()));
    assert!(!other.path("global/metadata/new").exists() && service.get("global/metadata/new").is_none());

    mine.sh("cd .topofs/stage/mine; echo rebase > .control; ! test -s .conflicts");
    let merged = "durability_policy: \"none\"\nsidecar_db_name: \"_other\"\n";
    assert_eq!(mine.read(&format!(".topofs/stage/mine/{KEYSPACE}")), merged);
    assert_eq!(mine.read(".topofs/stage/mine/global/metadata/theirs"), "1\n");
    mine.sh("echo commit > .topofs/stage/mine/.control");
    assert_eq!((mine.read(KEYSPACE).as_str(), mine.read("global/metadata/new").as_str()), (merged, "x\n"));

    // It can be read, and taken back, but not changed.
    for change in ["echo y > global/metadata/new", "rm global/metadata/new", "mkdir global/metadata/dir"] {
        let output = mine.bash(&format!("cd .topofs/stage/mine && {change}"));
        assert!(text(&output).contains("Read-only file system"), "{change}: {}", text(&output));
    }
    assert!(refused(&mine, "mine", "commit").contains("Read-only file system"));
    mine.sh("mkdir .topofs/stage/back; cd .topofs/stage/back; git apply ../mine/.undo; echo commit > .control");
    assert_eq!(mine.read(KEYSPACE), merged.replace("none", "semi_sync"));
    assert!(!mine.path("global/metadata/new").exists() && service.get("global/metadata/new").is_none());
}

#[test]
fn what_cannot_be_merged_is_left_to_a_person() {
    let service = Service::zk2();
    let (mine, other) = (service.mount(&[]), service.mount(&[]));
    mine.sh("mkdir .topofs/stage/mine; cd .topofs/stage/mine; \
         for k in commerce customer; do sed -i s/semi_sync/none/ global/keyspaces/$k/Keyspace.txt; done; \
         rm global/keyspaces/archive/VSchema.txt");
    other.sh("for k in commerce customer; do sed -i s/semi_sync/cross_cell/ global/keyspaces/$k/Keyspace.txt; done; \
         echo 'tables { key: \"t\" }' > global/keyspaces/archive/VSchema.txt");
    let said = refused(&mine, "mine", "rebase");
    assert!(said.contains("Stale file handle"), "{said}");
    let conflicts = mine.read(".topofs/stage/mine/.conflicts");
    assert_eq!(conflicts.matches("\"rebase\":\"refuses\"").count(), 3, "{conflicts}");
    assert_eq!(conflicts.matches("\"fields\":[\"durability_policy\"]").count(), 2, "{conflicts}");
    let reason = last_reason(&mine);
    assert!(reason.contains("global/keyspaces/archive/VSchema, global/keyspaces/commerce/Keyspace"), "{reason}");
    refused(&mine, "mine", "commit");
    let said = refused(&mine, "mine", "drop global/keyspaces/nobody/Keyspace");
    assert!(said.contains("No such file") && last_reason(&mine).contains("not staged"), "{said}");
    mine.sh("cd .topofs/stage/mine; echo 'keep global/keyspaces/commerce/Keyspace.txt' > .control; \
         printf '%s\\n' 'drop global/keyspaces/customer/Keyspace' 'keep global/keyspaces/archive/VSchema' commit \
         > .control");
    let policy = |keyspace: &str| mine.sh(&format!("grep -o none global/keyspaces/{keyspace}/Keyspace.txt || true"));
    assert_eq!((policy("commerce").as_str(), policy("customer").as_str()), ("none\n", ""));
    assert!(!mine.path("global/keyspaces/archive/VSchema").exists());
}

#[test]
fn a_check_tells_what_the_changes_would_break() {
    let world = World::memory();
    let mount = &world.mount;
    mount.sh("mkdir .topofs/stage/mine; cd .topofs/stage/mine; echo check > .control");
    mount.sh("rm .topofs/stage/mine/global/keyspaces/customer/shards/-80/Shard");
    let said = refused(mount, "mine", "check");
    assert!(said.contains("Bad message"), "{said}");
    let (problems, reason) = (mount.read(".topofs/stage/mine/.check"), last_reason(mount));
    assert!(problems.contains("customer") && problems.contains("\"severity\":\"error\""), "{problems}");
    assert!(reason.contains("errors, see .check") && reason.contains("customer"), "{reason}");
    assert!(!mount.read(".topofs/problems").contains("shard-without-record"), "the live topology has all");
    // What is unknown changes nothing, and says what is known.
    let said = refused(mount, "mine", "commit please");
    assert!(said.contains("Invalid argument") && last_reason(mount).contains("keep PATH"), "{said}");
    mount.sh("cp global/keyspaces/customer/shards/-80/Shard .topofs/stage/mine/global/keyspaces/customer/shards/-80/");
    mount.sh("cd .topofs/stage/mine; ! test -s .diff; echo check > .control; grep -q 'check' .control");
}

#[test]
fn a_commit_leaves_no_file_out_and_a_removed_stage_takes_no_command() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    mount.sh("mkdir .topofs/stage/mine; cd .topofs/stage/mine; echo 1 > global/metadata/a
         mkdir -p global/keyspaces/new; echo '{}' > global/keyspaces/new/keyspace.txt");
    let said = refused(&mount, "mine", "commit");
    assert!(said.contains("Invalid argument"), "{said}");
    let reason = last_reason(&mount);
    assert!(reason.starts_with("global/keyspaces/new/keyspace.txt are no records"), "{reason}");
    assert!(!mount.path("global/metadata/a").exists(), "nothing is stored");
    // Whoever has opened `.control` before.
    let output = mount.bash("exec 3> .topofs/stage/mine/.control; rmdir .topofs/stage/mine || exit 9; echo commit >&3");
    assert!(text(&output).contains("No such file"), "{}", text(&output));
    assert!(last_reason(&mount).contains("the stage was removed"), "{}", last_reason(&mount));
    assert!(!mount.path("global/metadata/a").exists(), "nothing is stored");
    assert!(mount.log().contains("stage mine: 1 uncommitted changes are given up"), "{}", mount.log());
    mount.sh("mkdir .topofs/stage/mine; rmdir .topofs/stage/mine; mkdir .topofs/stage/mine
         cd .topofs/stage/mine; echo 1 > global/metadata/a; echo commit > .control; cd /; rmdir $OLDPWD");
    assert_eq!(mount.log().matches("given up").count(), 1, "{}", mount.log());
}
