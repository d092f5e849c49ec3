//! What a program has read counts when it writes.

use super::replacing::{KEYSPACE, python};
use crate::common::mount::Mount;
use crate::common::{eventually, text};
use crate::on_each_backend;

on_each_backend! {
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
        mount.sh(&format!(
            "echo 'durability_policy: \"a\"' > {KEYSPACE}.txt; \
             bash -c \"echo 'durability_policy: \\\"b\\\"' > {KEYSPACE}.txt\"; \
             echo 'durability_policy: \"c\"' > {KEYSPACE}.txt"
        ));
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
for word, write in (
    ("a", lambda: os.rename(name, name + ".bak")), ("b", lambda: os.truncate(name, 0)),
    ("c", lambda: os.unlink(name)), ("d", lambda: os.rename(temporary(), name)),
):
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
}
