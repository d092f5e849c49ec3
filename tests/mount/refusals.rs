//! What a program was told stays true: what is refused, what is written after a rename, what is removed after a
//! refusal.

use super::replacing::{KEYSPACE, python};
use crate::on_each_backend;

on_each_backend! {
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
holder = ["flock", sys.argv[2] + "/global/keyspaces/commerce/.lock", "sh", "-c", "echo held; read line"]
lock = subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
}
