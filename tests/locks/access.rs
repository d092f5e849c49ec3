//! A lock is written to the service: who may not write takes none. And nobody takes more than a share.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::mount::Mount;
use crate::common::{PYTHON, eventually, signal, text};
use crate::on_each_service;
use crate::{Holder, LOCK, is_free, py, report};

/// A user who may read, like everybody.
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
/// Locks that exist without anything stored, and one of a keyspace.
const ANY: [&str; 3] = [LOCK, "global/elections/any/.lock", "global/internal/named_locks/any/.lock"];

/// Every way to lock through a descriptor that can only read; prints how each fails.
const READERS: &str = "import errno, fcntl, os, sys
for lock in sys.argv[1:]:
    f = os.open(lock, os.O_RDONLY)
    for call in (
        lambda: fcntl.flock(f, fcntl.LOCK_EX), lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda: fcntl.flock(f, fcntl.LOCK_SH),
        lambda: fcntl.lockf(f, fcntl.LOCK_SH), lambda: fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB),
        lambda: fcntl.lockf(f, fcntl.LOCK_EX),
    ):
        try: call(); print('locked', end=' ')
        except OSError as error: print(errno.errorcode[error.errno], end=' ')
    os.close(f)";

/// Where others can get at it.
fn shared_mount(service: &crate::common::world::Service, flags: &[&str]) -> Mount {
    let mount = service.mount(&[&["--allow-other", "--umask", "022"], flags].concat());
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(mount.outside(), std::fs::Permissions::from_mode(0o755)).unwrap();
    mount
}

/// Runs a Python program as somebody.
fn as_user(mount: &Mount, user: &str, program: &str, args: &[&str]) -> String {
    let script = mount.outside().join("program.py");
    std::fs::write(&script, program).unwrap();
    mount.sh(&format!("{user} {PYTHON} {} {}", script.display(), args.join(" ")))
}

on_each_service! {
    fn who_may_only_read_takes_no_lock(service) {
        let mount = shared_mount(&service, &[]);
        assert_eq!(as_user(&mount, NOBODY, READERS, &ANY), "EBADF ".repeat(18));
        for lock in ANY {
            // It asks to write next, as on NFS.
            let output = mount.bash(&format!("{NOBODY} flock -n {lock} true"));
            assert!(text(&output).contains("Permission denied"), "{lock}: {}", text(&output));
            assert_eq!(mount.read(lock), "");
        }
        let keys = service.keys();
        assert!(keys.iter().all(|key| !key.contains("/locks/") && !key.ends_with("/Lock")), "{keys:?}");
        // Reading who holds it is for everybody; so is a lock of a file that is this mount's affair.
        let holder = Holder::new(&mount, LOCK);
        assert!(mount.sh(&format!("{NOBODY} cat {LOCK}")).contains("flock"));
        holder.end();
        mount.sh(&format!("{NOBODY} flock -n global/metadata/owner true"));
    }
}

#[test]
fn who_could_write_may_lock_through_a_descriptor_that_reads() {
    let service = crate::etcd_service();
    let root = shared_mount(&service, &[]);
    root.sh(&format!("exec 8< {LOCK}; flock -n 8; ! flock -n {LOCK} true"));
    // A descriptor that somebody who could has passed on.
    root.sh(&format!("exec 8< {LOCK}; {NOBODY} flock -n 8"));
    eventually("given back", || report(&root, LOCK).is_empty().then_some(()));
    let owned = shared_mount(&service, &["--uid", "65534"]);
    owned.sh(&format!("{NOBODY} bash -c 'exec 8< {LOCK}; flock -n 8'"));
    eventually("given back", || report(&owned, LOCK).is_empty().then_some(()));
    // Supplementary groups cannot be seen: a descriptor that writes is the proof, and flock(1) makes one.
    let grouped = shared_mount(&service, &["--gid", "4321", "--umask", "002"]);
    let member = "setpriv --reuid 65534 --regid 65534 --groups 4321";
    assert!(as_user(&grouped, member, READERS, &[LOCK]).starts_with("EBADF "));
    grouped.sh(&format!("{member} flock -n {LOCK} true"));
    let first = "setpriv --reuid 65534 --regid 4321 --clear-groups";
    grouped.sh(&format!("{first} bash -c 'exec 8< {LOCK}; flock -n 8'"));
}

#[test]
fn a_read_only_mount_locks_nothing_whatever_the_descriptor() {
    let service = crate::etcd_service();
    let mount = service.mount(&["--read-only"]);
    // The kernel itself refuses the last: such a descriptor cannot have a write lock of fcntl's.
    let expected = format!("{}EBADF ", "EROFS ".repeat(5)).repeat(3);
    assert_eq!(py(&mount, READERS, &ANY), expected);
    // Nor a file that is its own affair: nobody would tell it of the close.
    assert_eq!(py(&mount, READERS, &["global/metadata/owner"]), format!("{}EBADF ", "EROFS ".repeat(5)));
    assert!(service.keys().iter().all(|key| !key.contains("/locks/")), "{:?}", service.keys());
}

/// Threads that wait for a lock of a file; says how many wait and how many were refused for their number.
const CROWD: &str = "import errno, fcntl, os, resource, sys, threading, time
path, threads = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
threading.stack_size(65536)
codes = {}
guard = threading.Lock()
def wait():
    f = os.open(path, os.O_RDONLY)
    try: fcntl.flock(f, fcntl.LOCK_EX)
    except OSError as error:
        with guard: codes[errno.errorcode[error.errno]] = codes.get(errno.errorcode[error.errno], 0) + 1
for _ in range(threads): threading.Thread(target=wait, daemon=True).start()
while True:
    print(threads - sum(codes.values()), codes, flush=True)
    time.sleep(0.05)";

fn crowd(mount: &Mount, path: &str, threads: usize) -> (Child, std::sync::mpsc::Receiver<String>) {
    use std::io::BufRead;
    let script = mount.outside().join("crowd.py");
    std::fs::write(&script, CROWD).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--pdeathsig", "KILL", PYTHON]);
    command.arg(script).args([path, &threads.to_string()]).current_dir(mount.root());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let out = std::io::BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    (child, lines)
}

#[test]
fn a_thousand_waiters_of_one_user_are_in_nobodys_way() {
    let mount = shared_mount(&crate::etcd_service(), &[]);
    let file = "global/metadata/owner";
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap().count();
    let before = descriptors();
    let holder = Holder::new(&mount, file);
    let (mut waiting, lines) = crowd(&mount, file, 1_100);
    let last = || lines.try_iter().last();
    eventually("the rest is refused", || last().filter(|line| line == "512 {'ENOLCK': 588}"));
    // Of all who wait, a bounded number costs one.
    assert!(descriptors() < before + 300, "{before} before, now {}", descriptors());
    // Others wait and lock as ever, there and elsewhere; events and saves go on.
    mount
        .sh(&format!("! flock -w 0.1 {file} true; flock -w 5 {LOCK} true; flock -n global/metadata/motd true || true"));
    mount.sh("sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt");
    assert!(
        mount
            .errors()
            .iter()
            .any(|error| error["errno"] == "ENOLCK" && error["reason"].as_str().unwrap().contains("512"))
    );
    // All of them are gone at once, and counted no more.
    signal(waiting.id(), Signal::SIGKILL);
    waiting.wait().unwrap();
    holder.end();
    eventually("room again", || mount.bash(&format!("{NOBODY} flock -n {file} true")).status.success().then_some(()));
}

#[test]
fn the_places_of_one_user_are_bounded() {
    let mount = Mount::new(&["demo", "--allow-other", "--umask", "000"]);
    let program = "import errno, fcntl, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = []
def lock():
    held.append(os.open(f'global/internal/named_locks/n{len(held)}/.lock', os.O_RDWR))
    fcntl.flock(held[-1], fcntl.LOCK_EX)
try:
    for _ in range(1000): lock()
except OSError as error: print(errno.errorcode[error.errno], len(held))
os.setresuid(65534, 65534, 65534)
lock()
for f in held: os.close(f)
held.clear()
lock()
print('again')";
    assert_eq!(py(&mount, program, &[]), "ENOLCK 513\nagain\n");
    eventually("nothing is held", || (mount.status()["locks"]["held"] == 0).then_some(()));
}

#[test]
fn a_killed_waiter_of_many_groups_is_gone_at_once() {
    let mount = crate::etcd_service().mount(&[]);
    let holder = Holder::new(&mount, LOCK);
    let program = "import fcntl, os, sys
os.setgroups(range(1000, 3000))
fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)";
    let mut waiting = Command::new("python3").args(["-c", program, LOCK]).current_dir(mount.root()).spawn().unwrap();
    let queue = || report(&mount, LOCK)[0]["queue"].as_array().unwrap().len();
    eventually("it waits", || (queue() == 1).then_some(()));
    signal(waiting.id(), Signal::SIGKILL);
    eventually("it ends although the lock is held", || waiting.try_wait().unwrap());
    eventually("its place is free", || (queue() == 0).then_some(()));
    holder.end();
    assert!(is_free(&mount, LOCK));
}

#[test]
fn reading_all_locks_asks_the_service_for_a_share_of_them() {
    let server = crate::common::etcd::Etcd::start();
    let service = crate::common::world::Service::new(topofs::backend::Implementation::Etcd2, server.endpoint());
    let mount = service.mount(&[]);
    let asked = || {
        let output =
            Command::new("curl").args(["-sf", &format!("http://{}/metrics", server.endpoint())]).output().unwrap();
        let metrics = String::from_utf8(output.stdout).unwrap();
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("grpc_server_handled_total") && line.contains("\"LeaseTimeToLive\""));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum::<f64>()
    };
    let program = "import fcntl, os, sys
held = []
for number in range(100):
    held.append(os.open(f'global/internal/named_locks/n{number}/.lock', os.O_RDWR))
    fcntl.flock(held[-1], fcntl.LOCK_EX)
lines = open('.topofs/locks').read().splitlines()
assert len(lines) == 100 and sum('\"time_left\":null' in line for line in lines) == 100 - 64, lines
for _ in range(200): assert len(open('.topofs/locks').read().splitlines()) == 100
print('done')";
    let begin = std::time::Instant::now();
    assert_eq!(py(&mount, program, &[]), "done\n");
    let seconds = begin.elapsed().as_secs_f64();
    let asked = asked();
    assert!(
        (64.0..=64.0 * (seconds + 2.0)).contains(&asked),
        "{asked} questions in {seconds} s for 200 readings of 100 locks"
    );
}
