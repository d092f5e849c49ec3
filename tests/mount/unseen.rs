//! Writers that are killed, or that the mount cannot see.

use super::replacing::python;
use crate::common::mount::{Mount, TOPOFS};
use crate::common::{PYTHON, eventually, text};
use crate::on_each_backend;

on_each_backend! {
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
