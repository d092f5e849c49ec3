//! What docs/operations.md says about upgrades: what programs see when a mount is ended and made again.

use std::process::Command;

use serde_json::Value;

use crate::common::mount::{TOPOFS, is_mounted};
use crate::common::world::Service;
use crate::common::{PYTHON, bash_in, eventually, process_has_ended, text};

/// A program that has things open while the mount is made anew. It prints what it sees as one JSON object.
const USER: &str = r#"
import ctypes, errno, fcntl, json, os, struct, subprocess, sys, time
point, mode = sys.argv[1], sys.argv[2]
record, lock = point + "/global/metadata/owner", point + "/global/keyspaces/commerce/.lock"
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call):
    try:
        call()
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
notify = libc.inotify_init1(0)
libc.inotify_add_watch(notify, os.path.dirname(record).encode(), 0xfff)
def events():
    masks = []
    while not masks or not masks[-1] & 0x8000:
        data, at = os.read(notify, 65536), 0
        while at < len(data):
            _, mask, _, length = struct.unpack_from("iIII", data, at)
            masks.append(mask)
            at += 16 + length
    return masks
seen = {}
if mode == "uses":
    reading, writing = os.open(record, os.O_RDONLY), os.open(record, os.O_RDWR)
    os.write(writing, b"not saved\n")
    locked = os.open(lock, os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX)
    os.chdir(point + "/global")
print("ready", flush=True)
sys.stdin.readline()
if mode == "uses":
    seen["read"] = attempt(lambda: os.pread(reading, 10, 0))
    seen["write"] = attempt(lambda: os.write(writing, b"more"))
    seen["save"] = attempt(lambda: os.close(writing))
    seen["lock"] = attempt(lambda: fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB))
    seen["directory"] = attempt(lambda: os.listdir("."))
    seen["again"] = attempt(lambda: os.listdir(point))
    seen["entered again"] = attempt(lambda: (os.chdir(point + "/global"), os.listdir(".")))
    free = subprocess.run(["flock", "-n", lock, "true"]).returncode
    seen["lock is free"] = free == 0
    attempt(lambda: os.close(reading))
    attempt(lambda: os.close(locked))
seen["events"] = events()
print(json.dumps(seen), flush=True)
"#;

/// What a program sees if the mount is ended by a command and then made again.
fn seen(mode: &str, end: &str) -> Value {
    let service = Service::etcd2();
    let dir = tempfile::tempdir().unwrap();
    let mount = format!(
        "{TOPOFS} mount --topo-global-server-address {} --topo-global-root {}/global m",
        service.server, service.root
    );
    let output = bash_in(dir.path(), &format!("mkdir -p m; {mount}"));
    assert!(output.status.success(), "{}", text(&output));
    let point = dir.path().join("m");
    let _unmounted = scopeguard(point.clone());
    let status: Value = serde_json::from_slice(&std::fs::read(point.join(".topofs/status")).unwrap()).unwrap();
    let pid = u32::try_from(status["pid"].as_u64().unwrap()).unwrap();
    let (read, mut write) = std::io::pipe().unwrap();
    let mut command = Command::new(PYTHON);
    command.args(["-c", USER]).arg(&point).arg(mode).stdin(read);
    let program = crate::common::mount::lines(command);
    assert_eq!(program.next(), "ready");
    let output = bash_in(dir.path(), &end.replace("PID", &pid.to_string()));
    assert!(output.status.success(), "{}", text(&output));
    eventually("the daemon has ended", || process_has_ended(pid).then_some(()));
    let output = bash_in(dir.path(), &mount);
    assert!(output.status.success(), "{}", text(&output));
    std::io::Write::write_all(&mut write, b"go\n").unwrap();
    serde_json::from_str(&program.next()).unwrap()
}

/// Unmounts at the end, also when a test fails.
fn scopeguard(point: std::path::PathBuf) -> impl Drop {
    struct Guard(std::path::PathBuf);
    impl Drop for Guard {
        fn drop(&mut self) {
            while is_mounted(&self.0) && nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        }
    }
    Guard(point)
}

/// The mask of inotify(7) for an unmounted file system.
const IN_UNMOUNT: u64 = 0x2000;

fn has_unmounted(seen: &Value) -> bool {
    seen["events"].as_array().unwrap().iter().any(|mask| mask.as_u64().unwrap() & IN_UNMOUNT != 0)
}

#[test]
fn programs_that_use_a_mount_get_enotconn_when_it_is_made_anew() {
    let seen = seen("uses", "kill PID");
    for (what, errno) in [
        ("read", "ENOTCONN"),
        ("write", "ENOTCONN"),
        ("save", "ENOTCONN"),
        ("lock", "ENOTCONN"),
        ("directory", "ENOTCONN"),
        ("again", "ok"),
        ("entered again", "ok"),
    ] {
        assert_eq!(seen[what], errno, "{what}: {seen}");
    }
    // The lock was given back at the end; the watch ends when the last user has let go.
    assert_eq!(seen["lock is free"], true, "{seen}");
    assert!(has_unmounted(&seen), "{seen}");
}

#[test]
fn watchers_hear_that_a_mount_has_ended() {
    for end in ["umount m", "kill PID", "kill -9 PID"] {
        let seen = seen("watches", end);
        assert!(has_unmounted(&seen), "{end}: {seen}");
    }
}

#[test]
fn a_symbolic_link_leads_from_one_mount_to_the_next_without_a_gap() {
    let service = Service::etcd2();
    let (old, new) = (service.mount(&[]), service.mount(&[]));
    let dir = tempfile::tempdir().unwrap();
    let (link, record) = (dir.path().join("topo"), dir.path().join("topo/global/metadata/owner"));
    std::os::unix::fs::symlink(old.root(), &link).unwrap();
    let open = std::fs::File::open(&record).unwrap();
    let output = bash_in(dir.path(), &format!("ln -s {} topo.new && mv -T topo.new topo", new.root().display()));
    assert!(output.status.success(), "{}", text(&output));
    // Who has something open goes on; everybody else is at the new mount.
    assert!(std::io::Read::read(&mut &open, &mut [0; 4]).unwrap() > 0);
    std::fs::write(&record, "by the new one\n").unwrap();
    let users = |mount: &crate::common::mount::Mount| {
        let output = bash_in(dir.path(), &format!("fuser --mount {}", mount.root().display()));
        text(&output).contains(&std::process::id().to_string())
    };
    assert!(users(&old));
    drop(open);
    assert!(!users(&old));
    old.stop();
    assert_eq!(std::fs::read_to_string(&record).unwrap(), "by the new one\n");
}
