//! Attributes: what backups bring back, what stat(2) and statfs(2) tell.

use crate::common::mount::Mount;
use crate::common::text;

const FILES: [&str; 4] = [
    "global/keyspaces/commerce/Keyspace",
    "global/keyspaces/commerce/VSchema.json",
    "global/metadata/owner",
    "global/scratch",
];

#[test]
fn attributes_that_a_backup_brings_back_are_passed_over() {
    let mount = Mount::new(&["demo"]);
    mount.sh("echo mine > global/scratch");
    let version = mount.version("global/metadata/owner");
    for file in FILES.into_iter().chain(["global/keyspaces/commerce", "global/keyspaces/commerce/.lock"]) {
        mount.sh(&format!("setfattr -n user.topo.version -v 1 {file}; setfattr -x user.topo.type {file}"));
        mount.sh(&format!("getfattr -d {file} > {0}/saved; setfattr --restore={0}/saved", mount.outside().display()));
        // Others would be lost without a word.
        for other in ["setfattr -n user.mine -v 1", "setfattr -x user.mine", "setfattr -n user.topology -v 1"] {
            let output = mount.bash(&format!("{other} {file}"));
            assert!(text(&output).contains("Operation not supported"), "{other} {file}: {}", text(&output));
        }
    }
    assert_eq!(mount.version("global/metadata/owner"), version);
    // A whole copy with its attributes goes away and comes back.
    let copy = mount.outside().join("copy");
    let copy = copy.display();
    mount.sh(&format!("rsync -aX global/ {copy}/"));
    let saved = mount.sh(&format!("getfattr -n user.topo.type --only-values {copy}/keyspaces/commerce/VSchema.json"));
    assert_eq!(saved, "vschema.Keyspace", "the copy has them");
    mount.sh(&format!("rm -r global/keyspaces/archive; rsync -aX {copy}/ global/"));
    mount.sh("test -e global/keyspaces/archive/Keyspace.json");
    assert!(mount.errors().is_empty(), "{:?}", mount.errors());
}

#[test]
fn there_are_never_more_files_free_than_there_are() {
    let mount = Mount::new(&["demo"]);
    let numbers = mount.sh("stat -f -c '%c %d' .");
    let numbers: Vec<u64> = numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [all, free] = numbers[..] else { panic!("{numbers:?}") };
    let status = mount.status();
    let records = status["cells"].as_object().unwrap().values().map(|cell| cell["records"].as_u64().unwrap());
    assert_eq!(all - free, records.sum::<u64>(), "those that are used are the records");
    let table = mount.sh("df -i . | tail -n1");
    let [_, inodes, used, left, share, _] = table.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{table}") };
    let number = |text: &str| text.parse::<u64>().unwrap();
    assert_eq!((number(used) + number(left), share), (number(inodes), "1%"), "{table}");
}

#[test]
fn looking_at_the_attributes_of_a_control_file_counts_nothing() {
    let mount = Mount::new(&["demo"]);
    let size = |file: &str| std::fs::metadata(mount.path(&format!(".topofs/{file}"))).unwrap().len();
    for file in ["status", "metrics", "errors", "events", "locks", "problems", "config", "version", "control"] {
        size(file);
    }
    assert!(size("status") > 0, "there is something to read");
    let read = mount.read(".topofs/status").len() as u64;
    assert_eq!(size("status"), read);
    // It shows more now; who only looks does not make the daemon find that out.
    mount.sh("for n in $(seq 50); do echo x > global/scratch$n; done");
    assert_eq!(size("status"), read);
    let more = mount.read(".topofs/status").len() as u64;
    assert!(more > read && size("status") == more, "{read} {more}");
    mount.bash("echo 'bogus: 1' > global/keyspaces/commerce/Keyspace.txt");
    assert_eq!(size("errors"), mount.read(".topofs/errors").len() as u64);
}

/// As docs/operations.md advises.
#[test]
fn locks_are_left_out_of_copies_and_repositories() {
    let mount = Mount::new(&["demo"]);
    let outside = mount.outside().display().to_string();
    mount.sh(&format!("git init -q --bare {outside}/git; echo .lock >> {outside}/git/info/exclude"));
    let git = format!("git --git-dir={outside}/git --work-tree=. -c user.name=t -c user.email=t@example.invalid");
    let keyspace = "global/keyspaces/commerce";
    mount.sh(&format!("{git} add -A; {git} commit -qm one"));
    mount.sh(&format!("sed -i s/semi_sync/none/ {keyspace}/Keyspace.txt; {git} commit -qam two"));
    // Somebody holds the lock meanwhile: that is nothing that git would see.
    let script = format!(
        "exec 3<> {keyspace}/.lock; flock 3; test -n \"$(cat {keyspace}/.lock)\"; \
         {git} status --porcelain; {git} ls-files"
    );
    assert!(!mount.sh(&script).contains(".lock"));
    mount.sh(&format!("{git} checkout -q HEAD~1"));
    assert_eq!(mount.sh(&format!("jq -r .durability_policy {keyspace}/Keyspace.json")), "semi_sync\n");
    mount.sh(&format!("rsync -a --exclude=.lock ./ {outside}/rsync/; tar cf {outside}/tar --exclude=.lock ."));
    assert_eq!(
        mount.sh(&format!("find {outside}/rsync -name .lock; tar tf {outside}/tar | grep -F .lock || true")),
        ""
    );
    mount.sh(&format!("rsync -a {outside}/rsync/ ./; tar xf {outside}/tar --overwrite --exclude=.lock"));
}
