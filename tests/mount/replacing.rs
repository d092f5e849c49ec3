//! Records whose forms are removed, moved and made again: one change at most, and nothing comes back.

use crate::common::etcd::shared;
use crate::common::mount::Mount;
use crate::common::server::fresh_root;
use crate::common::{eventually, text};
use crate::on_each_backend;
use serde_json::Value;

/// Runs a Python program with the mount as its directory and a directory outside as its argument; its output.
pub fn python(mount: &Mount, program: &str) -> String {
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let output = mount.bash(&format!("python3 {} {}", file.display(), mount.outside().display()));
    assert!(output.status.success(), "{}\n{}", text(&output), mount.log());
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script that must succeed, and says what `.topofs/events` has told of a record meanwhile.
pub fn events_of(mount: &Mount, path: &str, script: &str) -> Vec<String> {
    let lines = || mount.read(".topofs/events").lines().map(ToOwned::to_owned).collect::<Vec<String>>();
    let before = lines().len();
    mount.sh(script);
    lines()[before..]
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["path"] == path)
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .collect()
}

pub const KEYSPACE: &str = "global/keyspaces/commerce/Keyspace";

on_each_backend! {
    fn a_form_that_is_removed_and_made_again_replaces_the_record_once(world) {
        let mount = &world.mount;
        let saved = mount.outside().join("saved");
        std::fs::create_dir(&saved).unwrap();
        let saved = saved.display();
        mount.sh(&format!("cp {KEYSPACE} {KEYSPACE}.txt {KEYSPACE}.json {saved}"));
        let before = world.changes();
        // Without O_EXCL, with it, and with other calls between.
        for flags in ["w", "x"] {
            let program = format!(r#"
import os, sys
for form in ("Keyspace.txt", "Keyspace.json", "Keyspace"):
    name = "global/keyspaces/commerce/" + form
    os.unlink(name)
    assert not os.path.exists(name), form
    with open(name, "{flags}b") as file: file.write(open(sys.argv[1] + "/saved/" + form, "rb").read())
    os.utime(name); os.chmod(name, 0o600); assert os.stat(name).st_size, form
"#);
            python(mount, &program);
        }
        assert_eq!(world.changes(), before + 4, "one removal and one creation each time");
        for tool in ["cp --remove-destination", "install -m 600", "mv"] {
            let before = world.changes();
            mount.sh(&format!(
                "mkdir {saved}.2; cp {saved}/* {saved}.2; \
                 {tool} {saved}.2/* global/keyspaces/commerce; rm -rf {saved}.2"
            ));
            assert_eq!(world.changes(), before + 2, "{tool}");
            for form in ["", ".txt", ".json"] {
                mount.sh(&format!("cmp {KEYSPACE}{form} {saved}/Keyspace{form}"));
            }
        }
        // Removed, and a temporary file renamed to its place, name after name.
        let before = world.changes();
        let program = r#"
import os, sys
for form in ("Keyspace.json", "Keyspace", "Keyspace.txt"):
    name = "global/keyspaces/commerce/" + form
    open(name + ".tmp", "wb").write(open(sys.argv[1] + "/saved/" + form, "rb").read())
    os.unlink(name); os.rename(name + ".tmp", name); os.stat(name)
"#;
        python(mount, program);
        assert_eq!(world.changes(), before + 2);
        // Another content in each form: the first makes the record, the others change it.
        mount.sh(&format!(
            "sed -i s/semi_sync/none/ {saved}/Keyspace.txt; \
             install -m 600 {saved}/Keyspace {saved}/Keyspace.txt global/keyspaces/commerce; \
             grep -q none {KEYSPACE}.json"
        ));
    }

    fn a_name_that_is_removed_and_not_made_again_removes_the_record(world) {
        let mount = &world.mount;
        let before = world.changes();
        let program = r#"
import os, shutil
for remove in (lambda d: os.remove(d + "/Keyspace"), shutil.rmtree):
    os.mkdir("global/keyspaces/brief")
    open("global/keyspaces/brief/Keyspace.txt", "x").write('durability_policy: "none"')
    remove("global/keyspaces/brief")
"#;
        // The second time round finds nothing of the first.
        let (file, directory) = (r#"lambda d: os.remove(d + "/Keyspace")"#, "shutil.rmtree");
        python(mount, &program.replace(&format!("({file}, {directory})"), &format!("({directory}, {file})")));
        assert!(!mount.path("global/keyspaces/brief/Keyspace").exists(), "gone as soon as the program has ended");
        assert!(!mount.path("global/keyspaces/brief/Keyspace.txt").exists());
        assert_eq!(world.changes(), before + 4);
    }

    fn a_name_that_was_removed_does_not_come_back_with_the_record(world) {
        // Made under one name, and all of them removed, in an order in which the others come first.
        let program = r#"
import os
contents = {"": b"\x42\x04none", ".txt": b'durability_policy: "none"\n', ".json": b'{"durability_policy": "none"}'}
name = "global/keyspaces/brief/Keyspace"
for form in (".json", ".txt", ""):
    os.makedirs("global/keyspaces/brief", exist_ok=True)
    with open(name + form, "xb") as file: file.write(contents[form])
    for other in [other for other in contents if other != form]: os.unlink(name + other)
    os.unlink(name + form)
    for other in contents: assert not os.path.lexists(name + other), (form, other)
"#;
        python(&world.mount, program);
        assert!(!world.mount.path("global/keyspaces/brief/Keyspace").exists());
    }

    fn a_directory_that_is_moved_file_by_file_arrives(world) {
        let mount = &world.mount;
        mount.sh("cp -r global/keyspaces/archive global/keyspaces/from; mv global/keyspaces/from global/keyspaces/to");
        assert!(!mount.path("global/keyspaces/from").exists());
        let find = "find . -name Keyspace -o -name VSchema -o -name Shard | sort";
        let found = mount.sh(&format!("cd global/keyspaces/to; {find}"));
        let expected = mount.sh(&format!("cd global/keyspaces/archive; {find}"));
        assert_eq!(found, expected);
        mount.sh("diff -r global/keyspaces/archive global/keyspaces/to");
        // The directory whose last record is renamed away is gone for every call.
        mount.sh(
            "mkdir global/keyspaces/one global/keyspaces/two; \
             echo 'durability_policy: \"none\"' > global/keyspaces/one/Keyspace.txt",
        );
        mount.sh("stat global/keyspaces/one > /dev/null; mv global/keyspaces/one/Keyspace.txt global/keyspaces/two/");
        let gone = mount.bash(
            "stat global/keyspaces/one; ls global/keyspaces/one; cd global/keyspaces/one; \
             python3 -c 'import os; os.open(\"global/keyspaces/one\", os.O_PATH)'",
        );
        assert_eq!(text(&gone).matches("No such file or directory").count(), 4, "{}", text(&gone));
        mount.sh(
            "rm -rf global/keyspaces/one; cp -r global/keyspaces/archive global/keyspaces/one; \
             diff -r global/keyspaces/archive global/keyspaces/one",
        );
    }

    fn forms_that_are_moved_away_one_after_the_other_all_arrive(world) {
        let mount = &world.mount;
        let away = mount.outside().join("away");
        std::fs::create_dir(&away).unwrap();
        let expected =
            ["", ".txt", ".json"].map(|form| std::fs::read(mount.path(&format!("{KEYSPACE}{form}"))).unwrap());
        mount.sh(&format!("mv {KEYSPACE}* {}; ! test -e {KEYSPACE}", away.display()));
        let arrived = ["", ".txt", ".json"].map(|form| std::fs::read(away.join(format!("Keyspace{form}"))).unwrap());
        assert_eq!(arrived, expected);
        // With scratch files and directories of this mount among them.
        mount.sh(
            "cp -r global/keyspaces/archive global/keyspaces/mx; \
             mkdir global/keyspaces/mx/empty global/keyspaces/mx/shards/new; \
             echo n > global/keyspaces/mx/notes",
        );
        mount.sh(
            "mv global/keyspaces/mx global/keyspaces/my; ! test -e global/keyspaces/mx; \
             cat global/keyspaces/my/notes; \
             ls -d global/keyspaces/my/empty global/keyspaces/my/shards/new; \
             rm -r global/keyspaces/my",
        );
        mount.sh(
            "mkdir global/keyspaces/one global/keyspaces/two; \
             echo 'durability_policy: \"none\"' > global/keyspaces/one/Keyspace.txt; \
             echo n > global/keyspaces/one/notes",
        );
        mount.sh(
            "mv global/keyspaces/one/Keyspace.txt global/keyspaces/two/; rm global/keyspaces/one/notes; \
             rmdir global/keyspaces/one; rm -r global/keyspaces/two",
        );
        // To where no record has that name: it would be in memory only.
        let output = mount.bash(
            "mkdir global/keyspaces/dst; mv global/keyspaces/archive/Keyspace.txt global/keyspaces/dst/other",
        );
        assert!(text(&output).contains("Operation not permitted"), "{}", text(&output));
        mount.sh("test -e global/keyspaces/archive/Keyspace.txt");
    }

    fn times_before_and_after_closing_are_the_same(world) {
        let program = r#"
import os
fd = os.open("global/metadata/owner", os.O_WRONLY | os.O_TRUNC)
os.write(fd, b"new"); os.fsync(fd)
before = os.fstat(fd).st_mtime_ns; os.close(fd)
assert os.stat("global/metadata/owner").st_mtime_ns == before
"#;
        python(&world.mount, program);
    }
}

#[test]
fn git_replaces_each_record_at_most_once() {
    let mount = Mount::new(&["demo", "--respect-locks=none"]);
    let work = mount.outside().join("git").display().to_string();
    let git = |command: &str| {
        format!(
            "export GIT_DIR={work} GIT_WORK_TREE=$PWD \
             GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.invalid \
             GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.invalid; \
             {command}"
        )
    };
    mount.sh(&format!("git init -q --bare {work}"));
    mount.sh(&git("git add -A; git commit -qm one; sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt; \
         git commit -qam two"));
    let events = events_of(&mount, "keyspaces/commerce/Keyspace", &git("git checkout -q HEAD~1"));
    assert!(events.len() <= 2, "{events:?}");
    mount.sh(&format!("grep -q semi_sync {KEYSPACE}.json"));
    mount.sh(&git("git checkout -q -b new; mkdir global/keyspaces/new; \
         echo 'durability_policy: \"none\"' > global/keyspaces/new/Keyspace.txt; \
         git add -A; git commit -qm new; git checkout -q -"));
    assert!(!mount.path("global/keyspaces/new").exists() || !mount.path("global/keyspaces/new/Keyspace").exists());
    let events =
        events_of(&mount, "keyspaces/new/Keyspace", &git("git merge -q new 2>/dev/null || git checkout -q new"));
    assert_eq!(events, ["created"]);
    assert!(mount.path("global/keyspaces/new/Keyspace.json").exists());
}

#[test]
fn exclusive_creation_never_overwrites_somebody_elses_record() {
    let root = fresh_root();
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    let key = format!("{root}/global/keyspaces/fresh/Keyspace");
    mount.sh("mkdir -p global/keyspaces/fresh");
    let program = r#"
import errno, os, sys
k = "global/keyspaces/fresh/"
def make(form):
    fd = os.open(k + form, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(fd, b'durability_policy: "loser"\n' if form.endswith("txt") else b'{"durability_policy": "loser"}')
    return fd
fd = make("Keyspace.json")
print("made", flush=True); sys.stdin.readline()
for form, closes in (("Keyspace.json", True), ("Keyspace.txt", False)):
    try:
        os.close(fd if closes else make(form)); assert False, form
    except OSError as e: assert e.errno == errno.EEXIST, (form, e)
"#;
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let mut child = std::process::Command::new("python3")
        .arg(&file)
        .current_dir(mount.root())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    // durability_policy: "winner"
    shared().put(&key, b"\x42\x06winner");
    eventually("the winner is seen", || mount.path("global/keyspaces/fresh/Keyspace").exists().then_some(()));
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\n").unwrap();
    assert!(child.wait().unwrap().success(), "{}", mount.log());
    assert_eq!(shared().get(&key).as_deref(), Some(&b"\x42\x06winner"[..]));
}
