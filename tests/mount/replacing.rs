//! What a program was told stays true: what is refused, what is written after a rename, what is removed and made again.

use serde_json::Value;

use crate::common::etcd::shared;
use crate::common::mount::{Mount, TOPOFS};
use crate::common::server::fresh_root;
use crate::common::{PYTHON, eventually, text};
use crate::on_each_backend;

/// Runs a Python program with the mount as its directory and a directory outside as its argument; its output.
fn python(mount: &Mount, program: &str) -> String {
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let output = mount.bash(&format!("python3 {} {}", file.display(), mount.outside().display()));
    assert!(output.status.success(), "{}\n{}", text(&output), mount.log());
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script that must succeed, and says what `.topofs/events` has told of a record meanwhile.
fn events_of(mount: &Mount, path: &str, script: &str) -> Vec<String> {
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

const KEYSPACE: &str = "global/keyspaces/commerce/Keyspace";

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
            mount.sh(&format!("mkdir {saved}.2; cp {saved}/* {saved}.2; {tool} {saved}.2/* global/keyspaces/commerce; rm -rf {saved}.2"));
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
        mount.sh(&format!("sed -i s/semi_sync/none/ {saved}/Keyspace.txt; install -m 600 {saved}/Keyspace {saved}/Keyspace.txt global/keyspaces/commerce; grep -q none {KEYSPACE}.json"));
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
        python(mount, &program.replace("for remove in (lambda d: os.remove(d + \"/Keyspace\"), shutil.rmtree)", "for remove in (shutil.rmtree, lambda d: os.remove(d + \"/Keyspace\"))"));
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

    fn what_is_written_after_a_rename_is_stored_or_refused(world) {
        let mount = &world.mount;
        let program = r#"
import errno, os, tempfile
k = "global/keyspaces/commerce"
def shown(): return open(k + "/Keyspace.txt").read()
with tempfile.NamedTemporaryFile("w", dir=k, delete=False) as f:
    f.write('durability_policy: "one"\n')
    os.replace(f.name, k + "/Keyspace.txt")
assert shown() == 'durability_policy: "one"\n', shown()
def temporary(text, flags=0):
    fd = os.open(k + "/t.tmp", os.O_CREAT | os.O_RDWR | flags, 0o600)
    os.write(fd, text)
    os.rename(k + "/t.tmp", k + "/Keyspace.txt")
    return fd
for flags in (0, os.O_APPEND):
    fd = temporary(b'durability_policy:"two"\n', flags)
    os.write(fd, b'sidecar_db_name: "_vt"\n'); os.fsync(fd)
    assert os.fstat(fd).st_size == 47, os.fstat(fd)
    os.close(fd)
    assert shown() == 'durability_policy: "two"\nsidecar_db_name: "_vt"\n', shown()
fd = temporary(b'durability_policy: "three"\n')
os.ftruncate(fd, 0); os.pwrite(fd, b'durability_policy: "four"\n', 0); os.close(fd)
assert shown() == 'durability_policy: "four"\n', shown()
# What cannot be stored is refused, and the record stays.
fd = temporary(b'durability_policy: "five"\n')
try: os.write(fd, b'bogus: 1\n'); os.close(fd); assert False
except OSError as e: assert e.errno == errno.EBADMSG, e
assert shown() == 'durability_policy: "five"\n', shown()
# A descriptor that only reads goes on with the record.
open(k + "/t.tmp", "w").write('durability_policy: "six"\n')
reader = open(k + "/t.tmp")
os.rename(k + "/t.tmp", k + "/Keyspace.txt")
assert reader.read() == 'durability_policy: "six"\n'
"#;
        python(mount, program);
        assert_eq!(mount.read(&format!("{KEYSPACE}.txt")), "durability_policy: \"six\"\n");
        assert_eq!(mount.status()["scratch"]["bytes"], 0);
    }

    fn removing_what_a_refused_save_has_left_gives_up_the_draft(world) {
        let mount = &world.mount;
        let before = (world.changes(), mount.read(&format!("{KEYSPACE}.txt")));
        let program = r#"
import os
name = "global/keyspaces/commerce/Keyspace.txt"
def refused(call):
    try: call(); assert False, "not refused"
    except OSError: pass
def write_then_remove():
    try:
        with open(name, "w") as f: f.write("bogus: 1\n")
    except OSError:
        os.remove(name); raise
refused(write_then_remove)
# While it is open, and what is written to it then.
f = os.open(name, os.O_WRONLY | os.O_TRUNC)
refused(lambda: os.write(f, b"bogus: 1\n"))
os.remove(name); os.ftruncate(f, 0); os.write(f, b'durability_policy: "gone"\n'); os.close(f)
"#;
        python(mount, program);
        std::fs::write(mount.outside().join("bad"), "bogus: 1\n").unwrap();
        let bad = mount.outside().join("bad").display().to_string();
        for tool in [
            format!("curl -s --remove-on-error -o {KEYSPACE}.txt file://{bad}"),
            format!("gzip -c {bad} > {KEYSPACE}.txt.gz; gunzip -qf {KEYSPACE}.txt.gz; rm -f {KEYSPACE}.txt.gz"),
        ] {
            mount.bash(&tool);
            assert_eq!(mount.read(&format!("{KEYSPACE}.txt")), before.1, "{tool}");
        }
        // It is known as before, and can be removed by who means it.
        mount.sh(&format!("test -e {KEYSPACE}.json; rm {KEYSPACE}.txt; ! test -e {KEYSPACE}"));
        let after_tools = world.changes() - before.0;
        assert!(after_tools <= 3, "gunzip removes first, which is made good: {after_tools} changes");
    }

    fn what_fsync_has_refused_is_refused_by_close(world) {
        // Memory is reached through one mount only; there locks are not respected.
        let Some(service) = &world.service else { return };
        let other = service.mount(&[]);
        let before = (world.changes(), world.mount.read(&format!("{KEYSPACE}.txt")));
        let program = r#"
import errno, os, subprocess, sys
def refused(call):
    try: call(); assert False, "not refused"
    except OSError as e: assert e.errno == errno.EBUSY, e
fd = os.open("global/keyspaces/commerce/Keyspace.txt", os.O_WRONLY | os.O_TRUNC)
os.write(fd, b'durability_policy: "refused"\n')
lock = subprocess.Popen(["flock", sys.argv[2] + "/global/keyspaces/commerce/.lock", "sh", "-c", "echo held; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert lock.stdout.readline() == "held\n"
refused(lambda: os.fsync(fd))
lock.communicate("\n")
refused(lambda: os.fsync(fd)); refused(lambda: os.close(fd))
"#;
        let file = world.mount.outside().join("program.py");
        std::fs::write(&file, program).unwrap();
        world.mount.sh(&format!("python3 {} x {}", file.display(), other.root().display()));
        assert_eq!((world.changes(), world.mount.read(&format!("{KEYSPACE}.txt"))), before);
    }

    fn an_unrefused_program_removes_what_it_has_saved(world) {
        let program = r#"
import os
name = "global/keyspaces/commerce/Keyspace.txt"
try: open(name, "w").write("bogus: 1\n")
except OSError: pass
open(name, "w").write('durability_policy: "none"\n')
os.remove(name)
assert not os.path.exists(name)
"#;
        python(&world.mount, program);
        assert!(!world.mount.path(KEYSPACE).exists());
    }

    fn a_directory_that_is_moved_file_by_file_arrives(world) {
        let mount = &world.mount;
        mount.sh("cp -r global/keyspaces/archive global/keyspaces/from; mv global/keyspaces/from global/keyspaces/to");
        assert!(!mount.path("global/keyspaces/from").exists());
        let found = mount.sh("cd global/keyspaces/to; find . -name Keyspace -o -name VSchema -o -name Shard | sort");
        let expected = mount.sh("cd global/keyspaces/archive; find . -name Keyspace -o -name VSchema -o -name Shard | sort");
        assert_eq!(found, expected);
        mount.sh("diff -r global/keyspaces/archive global/keyspaces/to");
        // The directory whose last record is renamed away is gone for every call.
        mount.sh("mkdir global/keyspaces/one global/keyspaces/two; echo 'durability_policy: \"none\"' > global/keyspaces/one/Keyspace.txt");
        mount.sh("stat global/keyspaces/one > /dev/null; mv global/keyspaces/one/Keyspace.txt global/keyspaces/two/");
        let gone = mount.bash("stat global/keyspaces/one; ls global/keyspaces/one; cd global/keyspaces/one; python3 -c 'import os; os.open(\"global/keyspaces/one\", os.O_PATH)'");
        assert_eq!(text(&gone).matches("No such file or directory").count(), 4, "{}", text(&gone));
        mount.sh("rm -rf global/keyspaces/one; cp -r global/keyspaces/archive global/keyspaces/one; diff -r global/keyspaces/archive global/keyspaces/one");
    }

    fn threads_of_one_program_do_not_conflict(world) {
        let program = r#"
import os, threading
k, seen = "global/keyspaces/commerce", []
def save(value):
    with open(k + "/t.tmp", "w") as f: f.write(f'durability_policy: "{value}"\n')
    os.rename(k + "/t.tmp", k + "/Keyspace.txt")
    seen.append(open(k + "/Keyspace.txt").read())
def truncate(value):
    open(k + "/Keyspace.txt", "w").write(f'durability_policy: "{value}"\n')
for number in range(6):
    t = threading.Thread(target=save if number % 3 else truncate, args=(f"v{number}",)); t.start(); t.join()
assert seen[-1] == 'durability_policy: "v5"\n', seen
"#;
        python(&world.mount, program);
    }

    fn what_a_program_has_read_counts_when_it_writes(world) {
        let mount = &world.mount;
        // Each change is made by another process, once through this mount and once elsewhere.
        let program = r#"
import errno, json, subprocess, sys
name = "global/keyspaces/commerce/Keyspace"
def elsewhere(word): subprocess.run(["sh", "-c", f"echo 'durability_policy: \"{word}\"' > {name}.txt"], check=True)
def save(mode="w", form=".txt", text='durability_policy: "mine"\n'):
    with open(name + form, mode) as f: f.write(text)
def stale(call):
    try: call(); assert False, "not refused"
    except OSError as e: assert e.errno == errno.ESTALE, e
for form in ("", ".txt", ".json"):
    for mode in ("w", "a"):
        open(name + form, "rb").read()
        elsewhere("a" + mode)
        stale(lambda: save(mode))
        assert open(name + ".txt").read() == f'durability_policy: "a{mode}"\n', "nothing is stored"
        save("w")
open(name, "rb").read(); elsewhere("b")
stale(save); save()            # The next try may.
open(name, "rb").read(); elsewhere("c"); open(name + ".json").read(); save()
open(name, "rb").read(); elsewhere("d"); stale(lambda: open(name + ".txt", "r+"))
# Who reads and writes through one descriptor reads again with the next.
with open(name + ".txt", "r+") as f: f.read()
elsewhere("e")
with open(name + ".txt", "r+") as f: f.read(); f.seek(0); f.truncate(); f.write('durability_policy: "f"\n')
# Another thread, and one that has ended.
import threading
t = threading.Thread(target=lambda: open(name, "rb").read()); t.start(); t.join()
elsewhere("g"); stale(save); save()
"#;
        python(mount, program);
        // A shell has read nothing.
        mount.sh(&format!("echo 'durability_policy: \"a\"' > {KEYSPACE}.txt; bash -c \"echo 'durability_policy: \\\"b\\\"' > {KEYSPACE}.txt\"; echo 'durability_policy: \"c\"' > {KEYSPACE}.txt"));
    }

    fn two_mounts_lose_no_update_of_a_program_that_reads_and_writes_apart(world) {
        let second = world.service.as_ref().map(|service| service.mount(&[]));
        let roots = [world.mount.root(), second.as_ref().map_or(world.mount.root(), Mount::root)];
        world.mount.sh("echo 0 > global/metadata/counter");
        if let Some(second) = &second {
            eventually("the counter is seen", || second.path("global/metadata/counter").exists().then_some(()));
        }
        let program = world.mount.outside().join("count.py");
        std::fs::write(&program, r#"
import errno, sys
name, done = sys.argv[1] + "/global/metadata/counter", 0
while done < 200:
    try:
        value = int(open(name).read())
        with open(name, "w") as f: f.write(f"{value + 1}\n")
        done += 1
    except OSError as e: assert e.errno == errno.ESTALE, e
"#).unwrap();
        let run = |root: std::path::PathBuf| {
            let mut command = std::process::Command::new("timeout");
            command.args(["120", "python3"]).arg(&program).arg(root);
            std::thread::spawn(move || command.output().unwrap())
        };
        for output in roots.map(run).map(|thread| thread.join().unwrap()) {
            assert!(output.status.success(), "{}", text(&output));
        }
        eventually("both have counted", || (world.mount.read("global/metadata/counter") == "400\n").then_some(()));
    }

    fn a_program_that_closes_a_record_by_exec_does_not_hang(world) {
        let program = r#"
import os, subprocess
name = "global/metadata/by-exec"
if os.fork() == 0:
    fd = os.open(name, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"whole")
    os.execv("/bin/true", ["true"])
os.wait()
assert open(name).read() == "whole"
# A child that inherits it and closes it by exec saves nothing.
fd = os.open(name, os.O_WRONLY | os.O_TRUNC)
os.write(fd, b"one")
subprocess.run(["/bin/true"], close_fds=False)
if os.fork() == 0: os.execv("/bin/true", ["true"])
os.wait()
os.write(fd, b" two"); os.close(fd)
assert open(name).read() == "one two"
"#;
        let before = world.changes();
        python(&world.mount, program);
        assert_eq!(world.changes(), before + 2);
    }

    fn what_a_program_has_read_counts_whichever_way_it_writes(world) {
        let mount = &world.mount;
        let program = r#"
import errno, os, subprocess, threading
name = "global/keyspaces/commerce/Keyspace.txt"
mine = 'durability_policy: "mine"\n'
def elsewhere(word): subprocess.run(["sh", "-c", f"echo 'durability_policy: \"{word}\"' > {name}"], check=True)
def stale(call):
    try: call(); assert False, "not refused"
    except OSError as e: assert e.errno == errno.ESTALE, e
def temporary():
    open(name + ".tmp", "w").write(mine)
    return name + ".tmp"
for word, write in (("a", lambda: os.rename(name, name + ".bak")), ("b", lambda: os.truncate(name, 0)), ("c", lambda: os.unlink(name)),
                    ("d", lambda: os.rename(temporary(), name))):
    open(name).read(); elsewhere(word)
    stale(write)
    assert open(name).read() == f'durability_policy: "{word}"\n', word
# The next try may, and who has only stored what others have changed since has read nothing.
open(name).read(); elsewhere("e"); stale(lambda: os.truncate(name, 0)); os.truncate(name, 0)
elsewhere("f"); os.rename(temporary(), name); assert open(name).read() == mine
# What has gone is not overwritten by whoever makes it anew: its own child has removed it.
open(name).read(); subprocess.run(["rm", name], check=True); open(name, "w").write(mine)
# Several threads of one program make all forms at once, of which one record comes.
contents = {"": b"\x42\x04both", ".txt": b'durability_policy: "both"\n', ".json": b'{"durability_policy": "both"}'}
for mode in ("xb", "wb"):
    os.makedirs("global/keyspaces/threads", exist_ok=True)
    failed, start = [], threading.Barrier(3)
    def make(form):
        start.wait()
        try:
            with open("global/keyspaces/threads/Keyspace" + form, mode) as file: file.write(contents[form])
        except OSError as e: failed.append((form, e))
    threads = [threading.Thread(target=make, args=(form,)) for form in contents]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert not failed, (mode, failed)
# Under one name, one of them makes it.
made = []
def race():
    try: made.append(os.open("global/metadata/exclusive", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError: pass
threads = [threading.Thread(target=race) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(made) == 1, made
"#;
        python(mount, program);
        // sed's own command changes it between its reading and its renaming away.
        let script = r#"
f=global/keyspaces/commerce/Keyspace.txt
echo 'durability_policy: "0"' > $f
sed -i.bak -e "1e echo 'sidecar_db_name: \"theirs\"' > $f" -e s/0/mine/ $f
"#;
        let program = mount.outside().join("sed");
        std::fs::write(&program, script).unwrap();
        let output = mount.bash(&format!("bash {}", program.display()));
        assert!(text(&output).contains("Stale file handle"), "{}", text(&output));
        assert!(mount.read(&format!("{KEYSPACE}.txt")).contains("theirs"));
    }

    fn forms_that_are_moved_away_one_after_the_other_all_arrive(world) {
        let mount = &world.mount;
        let away = mount.outside().join("away");
        std::fs::create_dir(&away).unwrap();
        let expected = ["", ".txt", ".json"].map(|form| std::fs::read(mount.path(&format!("{KEYSPACE}{form}"))).unwrap());
        mount.sh(&format!("mv {KEYSPACE}* {}; ! test -e {KEYSPACE}", away.display()));
        let arrived = ["", ".txt", ".json"].map(|form| std::fs::read(away.join(format!("Keyspace{form}"))).unwrap());
        assert_eq!(arrived, expected);
        // With scratch files and directories of this mount among them.
        mount.sh("cp -r global/keyspaces/archive global/keyspaces/mx; mkdir global/keyspaces/mx/empty global/keyspaces/mx/shards/new; echo n > global/keyspaces/mx/notes");
        mount.sh("mv global/keyspaces/mx global/keyspaces/my; ! test -e global/keyspaces/mx; cat global/keyspaces/my/notes; ls -d global/keyspaces/my/empty global/keyspaces/my/shards/new; rm -r global/keyspaces/my");
        mount.sh("mkdir global/keyspaces/one global/keyspaces/two; echo 'durability_policy: \"none\"' > global/keyspaces/one/Keyspace.txt; echo n > global/keyspaces/one/notes");
        mount.sh("mv global/keyspaces/one/Keyspace.txt global/keyspaces/two/; rm global/keyspaces/one/notes; rmdir global/keyspaces/one; rm -r global/keyspaces/two");
        // To where no record has that name: it would be in memory only.
        let output = mount.bash("mkdir global/keyspaces/dst; mv global/keyspaces/archive/Keyspace.txt global/keyspaces/dst/other");
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
            "export GIT_DIR={work} GIT_WORK_TREE=$PWD GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.invalid GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.invalid; {command}"
        )
    };
    mount.sh(&format!("git init -q --bare {work}"));
    mount.sh(&git("git add -A; git commit -qm one; sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt; git commit -qam two"));
    let events = events_of(&mount, "keyspaces/commerce/Keyspace", &git("git checkout -q HEAD~1"));
    assert!(events.len() <= 2, "{events:?}");
    mount.sh(&format!("grep -q semi_sync {KEYSPACE}.json"));
    mount.sh(&git("git checkout -q -b new; mkdir global/keyspaces/new; echo 'durability_policy: \"none\"' > global/keyspaces/new/Keyspace.txt; git add -A; git commit -qm new; git checkout -q -"));
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

/// Runs a shell as another user without any right to look into other processes.
fn as_nobody(mount: &Mount, script: &str) -> std::process::Output {
    mount.bash(&format!("setpriv --reuid=65534 --regid=65534 --clear-groups bash -c '{script}'"))
}

#[test]
fn nobody_publishes_what_another_lets_nobody_read() {
    let mount = Mount::new(&["demo", "--respect-locks=none", "--allow-other", "--umask=000"]);
    mount.sh("umask 077; echo 'root only' > global/keyspaces/secret");
    let output = as_nobody(&mount, "mv global/keyspaces/secret global/metadata/leak");
    assert!(text(&output).contains("Permission denied"), "{}", text(&output));
    mount.sh("! test -e global/metadata/leak; mv global/keyspaces/secret global/metadata/leak");
    // What `.topofs` shows is charged to whoever has it open.
    let program = r#"
import errno, os
files = []
try:
    while True: files.append(os.open(".topofs/status", os.O_RDONLY))
except OSError as e: assert e.errno in (errno.ENOSPC, errno.EMFILE), e
"#;
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    mount.sh(&format!("setpriv --reuid=65534 --regid=65534 --clear-groups {PYTHON} - < {}", file.display()));
}

/// A mount whose daemon cannot look into the processes of other users, as in a container or a hardened unit.
fn without_ptrace(flags: &[&str]) -> Mount {
    let args = [&["demo", "--respect-locks=none", "--allow-other", "--umask=000"], flags].concat();
    Mount::under(&["setpriv", "--bounding-set=-sys_ptrace", TOPOFS], &args)
}

#[test]
fn a_killed_writer_of_another_user_stores_nothing_where_its_exit_code_is_hidden() {
    let mount = without_ptrace(&[]);
    let before = mount.read("global/metadata/owner");
    as_nobody(&mount, "exec 3>global/metadata/owner; printf \"first half\" >&3; kill -9 $$");
    eventually("the file is closed", || (mount.status()["handles"] == 0).then_some(()));
    assert_eq!(mount.read("global/metadata/owner"), before);
    // Who ends by itself is heard, with the errors.
    let output =
        as_nobody(&mount, "echo whole > global/metadata/owner && exec 3>global/metadata/owner && printf more >&3");
    assert!(output.status.success(), "{}", text(&output));
    eventually("it is stored", || (mount.read("global/metadata/owner") == "more").then_some(()));
    let output = as_nobody(&mount, "cat > global/keyspaces/commerce/Keyspace.json <<< \"{\"");
    assert!(text(&output).contains("Bad message"), "{}", text(&output));
    // A block of a shell is one save, although its descriptors cannot be counted.
    let before = mount.status()["cells"]["global"]["revision"].as_u64();
    let output = as_nobody(&mount, "{ printf one; /bin/true; printf two >&1; } > global/metadata/block");
    assert!(output.status.success(), "{}", text(&output));
    eventually("it is stored", || (mount.path("global/metadata/block").exists()).then_some(()));
    assert_eq!(mount.read("global/metadata/block"), "onetwo");
    assert_eq!(mount.status()["cells"]["global"]["revision"].as_u64(), before.map(|revision| revision + 1));
}

#[test]
fn a_killed_writer_of_many_threads_or_children_stores_nothing() {
    let mount = Mount::new(&["demo", "--respect-locks=none"]);
    let before = mount.read("global/metadata/owner");
    let programs = [
        // Threads that close duplicates all the time.
        r#"
import os, threading, time
fd = os.open("global/metadata/owner", os.O_WRONLY | os.O_TRUNC); os.write(fd, b"half")
def duplicates():
    while True: os.close(os.dup(fd))
for _ in range(4): threading.Thread(target=duplicates, daemon=True).start()
time.sleep(0.05); os.kill(os.getpid(), 9)
"#,
        // The opener has ended; the child that goes on is killed.
        r#"
import os, time
fd = os.open("global/metadata/owner", os.O_WRONLY)
if os.fork() == 0:
    time.sleep(0.2); os.write(fd, b"half"); os.kill(os.getpid(), 9)
os._exit(0)
"#,
    ];
    for program in programs.iter().cycle().take(8) {
        let file = mount.outside().join("program.py");
        std::fs::write(&file, program).unwrap();
        mount.bash(&format!("python3 {}", file.display()));
        eventually("the file is closed", || (mount.status()["handles"] == 0).then_some(()));
        assert_eq!(mount.read("global/metadata/owner"), before, "{program}");
    }
}

#[test]
fn who_cannot_be_seen_shares_nothing_and_saves_nothing() {
    // Whoever is outside of the daemon's pid namespace.
    let mount =
        Mount::under(&["unshare", "--pid", "--fork", "--kill-child", TOPOFS], &["demo", "--respect-locks=none"]);
    let before = mount.read("global/metadata/owner");
    for call in [
        "echo x > global/metadata/owner",
        "echo x >> global/metadata/owner",
        "echo x > global/metadata/fresh",
        "truncate -s 0 global/metadata/owner",
        "echo x > global/metadata/.t; mv global/metadata/.t global/metadata/owner",
        "{ printf one; /bin/sleep 0; printf two; } > global/metadata/block",
    ] {
        let output = mount.bash(call);
        assert!(text(&output).contains("Operation not permitted"), "{call}: {}", text(&output));
    }
    assert_eq!(mount.read("global/metadata/owner"), before);
    assert!(!mount.path("global/metadata/fresh").exists() && !mount.path("global/metadata/block").exists());
    let reason = mount.errors().last().unwrap()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("pid namespace") && reason.contains("--allow-unseen-writers"), "{reason}");
}

#[test]
fn what_proc_says_of_another_pid_namespace_is_not_believed() {
    // The daemon and its users are in one namespace, and /proc is that of another: the numbers there are strangers'.
    let mount =
        Mount::under(&["unshare", "--pid", "--fork", "--kill-child", TOPOFS], &["demo", "--respect-locks=none"]);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", mount.pid())).unwrap();
    let before = mount.read("global/metadata/owner");
    let inside = format!(
        "nsenter -t {} --pid bash -c 'exec 3>global/metadata/owner; printf \"first half\" >&3; kill -9 $$'",
        children.trim()
    );
    let output = mount.bash(&inside);
    assert!(text(&output).contains("Operation not permitted"), "{}", text(&output));
    eventually("the file is closed", || (mount.status()["handles"] == 0).then_some(()));
    assert_eq!(mount.read("global/metadata/owner"), before);
}

#[test]
fn unseen_writers_that_are_allowed_save_at_the_last_close() {
    let flags = ["demo", "--respect-locks=none", "--allow-unseen-writers"];
    let mount = Mount::under(&["unshare", "--pid", "--fork", "--kill-child", TOPOFS], &flags);
    let revision = || mount.status()["cells"]["global"]["revision"].as_u64().unwrap();
    let before = revision();
    mount.sh("{ printf one; /bin/true; printf two; } > global/metadata/block");
    eventually("it is stored", || mount.path("global/metadata/block").exists().then_some(()));
    assert_eq!((mount.read("global/metadata/block").as_str(), revision()), ("onetwo", before + 1));
    // Drafts are nobody else's.
    let draft =
        mount.bash("exec 3>global/metadata/draft; echo secret >&3; ls -l global/metadata; cat global/metadata/draft");
    assert!(!text(&draft).contains("draft\n") && !text(&draft).contains("secret"), "{}", text(&draft));
    // What can be known at a close is said there.
    let output = mount.bash("cat > global/keyspaces/commerce/Keyspace.json <<< '{'");
    assert!(text(&output).contains("Bad message"), "{}", text(&output));
}

#[test]
fn an_offset_of_one_directory_is_none_of_another() {
    let mount = Mount::new(&["demo", "--allow-other", "--umask=022"]);
    // The kernel's own copy of the listing is dropped, so that each read asks with the caller's offset.
    let program = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def entries(directory, offset):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(fd, offset, os.SEEK_SET)
    buffer, found = ctypes.create_string_buffer(65536), []
    while (size := libc.syscall(217, fd, buffer, 65536)) > 0:
        at = 0
        while at < size:
            length = int.from_bytes(buffer.raw[at + 16:at + 18], "little")
            found.append((buffer.raw[at + 19:at + length].split(b"\0")[0].decode(), int.from_bytes(buffer.raw[at + 8:at + 16], "little")))
            at += length
    os.close(fd)
    return found
a, b = "global/keyspaces/commerce", "global/keyspaces/customer/shards"
own = {name for name, _ in entries(a, 0)}
offsets = [offset for _, offset in entries(b, 0)]
newest = max(offsets) >> 24
for offset in offsets + [(newest + step) << 24 | index for step in range(1, 50) for index in (0, 1, 2)]:
    for name, _ in entries(a, offset):
        assert name in own, (offset, name)
# What was planted under numbers to come is nobody's.
for name, _ in entries("zone1", 0): assert name in ("SrvVSchema", "SrvVSchema.json", "SrvVSchema.txt", "keyspaces", "tablets", ".", ".."), name
"#;
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let output =
        mount.bash(&format!("setpriv --reuid=65534 --regid=65534 --clear-groups {PYTHON} - < {}", file.display()));
    assert!(output.status.success(), "{}", text(&output));
    let before = mount.read("global/keyspaces/customer/Keyspace.txt");
    mount.sh("echo 'durability_policy: \"MEANT_FOR_COMMERCE\"' > global/keyspaces/commerce/Keyspace.txt");
    assert_eq!(mount.read("global/keyspaces/customer/Keyspace.txt"), before);
}

#[test]
fn a_stored_name_of_the_mounts_own_gives_way_everywhere() {
    let root = fresh_root();
    let put = |key: &str, value: &[u8]| shared().put(&format!("{root}/global/keyspaces/k/{key}"), value);
    put("Keyspace", b"\x42\x04none");
    put(".lock", b"x");
    put(".data", b"y");
    put("shards/0/Shard", b"\x38\x00");
    put("shards/0/Shard/locks/123", b"lock");
    put("shards/0/Shard/.data", b"z");
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    mount.sh("ls -la global/keyspaces/k > /dev/null");
    let held = mount.sh(&format!(
        "flock global/keyspaces/k/.lock etcdctl --endpoints {} get --prefix --keys-only {root}/global/keyspaces/k/locks",
        shared().endpoint()
    ));
    assert!(held.contains("/locks/"), "the lock is the topology's: {held:?}");
    assert_ne!(mount.status()["cells"]["global"]["skipped_keys"], 0);
    // Every listed name is found as the same file.
    for dir in mount.sh("find . -type d").lines() {
        let same = mount.sh(&format!(
            "cd {dir}; ls -ia1p | grep -v '\\./$' | while read -r ino name; do echo $ino $(stat -c %i \"$name\"); done"
        ));
        for line in same.lines() {
            let (listed, found) = line.split_once(' ').unwrap();
            assert_eq!(listed, found, "{dir}: {same}");
        }
    }
    // A record whose key is a directory: its forms are refused by their other names rather than kept aside.
    for script in [
        "echo 'is_primary_serving: false' > global/keyspaces/k/shards/0/Shard.txt",
        "echo '{}' > global/keyspaces/k/shards/0/t; mv global/keyspaces/k/shards/0/t global/keyspaces/k/shards/0/Shard.json",
        "mkdir global/keyspaces/k/shards/0/Shard.txt",
    ] {
        let output = mount.bash(script);
        assert!(text(&output).contains("Is a directory"), "{script}: {}", text(&output));
    }
    mount.sh("echo 'is_primary_serving: true' > global/keyspaces/k/shards/0/Shard/.data.txt");
    assert_eq!(shared().get(&format!("{root}/global/keyspaces/k/shards/0/Shard")).as_deref(), Some(&b"\x38\x01"[..]));
    // A keyspace with a slash in its name.
    shared().put(&format!("{root}/global/keyspaces/abc/def/Keyspace"), b"\x42\x04none");
    eventually("it is there", || mount.path("global/keyspaces/abc/def/Keyspace.txt").exists().then_some(()));
    mount.sh("rm -r global/keyspaces/abc");
    assert_eq!(shared().get(&format!("{root}/global/keyspaces/abc/def/Keyspace")), None);
}

#[test]
fn nobody_uses_up_the_memory_of_the_mount() {
    let mount = Mount::new(&["demo", "--allow-other", "--umask=000", "--scratch-quota=1MiB"]);
    // Drafts: a text may be large, many of them may not.
    let program = r#"
import errno, os
files, block = [], bytes([35]) + b"x" * ((1 << 20) - 2) + b"\n"
try:
    for number in range(8):
        files.append(os.open("global/keyspaces/commerce/VSchema.txt", os.O_WRONLY | os.O_TRUNC))
        for _ in range(31): os.write(files[-1], block)
    assert False, "no bound"
except OSError as e: assert e.errno == errno.ENOSPC, e
print(len(files))
"#;
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let output = mount.bash(&format!("{user} {PYTHON} - < {}", file.display()));
    assert!(output.status.success(), "{}", text(&output));
    // One user leaves room for scratch files to the others.
    let output = mount.bash(&format!(
        "{user} head -c 2000000 /dev/zero > global/full; {user} bash -c 'head -c 2000000 /dev/zero > global/full2'"
    ));
    assert!(text(&output).contains("No space left"), "{}", text(&output));
    mount.sh("rm -f global/full");
    mount.sh("head -c 50000 /dev/zero > global/others");
}
