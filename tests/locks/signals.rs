//! Waiting: it ends with a signal, with the caller, in time, and costs nothing.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::mount::Mount;
use crate::common::{eventually, signal};
use crate::{Holder, LOCK, is_free, py, report};

/// How late a wait may end, on a machine that is busy with other tests.
const LATE: Duration = Duration::from_millis(200 + 300);

fn waiter(mount: &Mount, program: &[&str]) -> std::process::Child {
    // A shell that runs tests in the background makes them ignore SIGINT.
    let mut command = std::process::Command::new("env");
    command
        .arg("--default-signal")
        .args(program)
        .current_dir(mount.root())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

fn queue(mount: &Mount) -> usize {
    report(mount, LOCK).first().map_or(0, |line| line["queue"].as_array().unwrap().len())
}

#[test]
fn a_wait_ends_when_it_should() {
    let mount = crate::etcd_service().mount(&[]);
    let holder = Holder::new(&mount, LOCK);
    let begin = Instant::now();
    let status = waiter(&mount, &["flock", "-w", "1", LOCK, "true"]).wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let late = begin.elapsed().checked_sub(Duration::from_secs(1)).expect("not too early");
    assert!(late < LATE, "{late:?}");
    assert_eq!(waiter(&mount, &["flock", "-n", LOCK, "true"]).wait().unwrap().code(), Some(1));
    for sent in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut waiting = waiter(&mount, &["flock", LOCK, "true"]);
        eventually("it waits", || (queue(&mount) == 1).then_some(()));
        let begin = Instant::now();
        signal(waiting.id(), sent);
        let status = waiting.wait().unwrap();
        assert!(begin.elapsed() < LATE, "{sent}: {:?}", begin.elapsed());
        assert!(!status.success());
        eventually("nobody is left in the line", || (queue(&mount) == 0).then_some(()));
    }
    holder.end();
    assert!(is_free(&mount, LOCK));
}

#[test]
fn a_handled_signal_does_not_cost_the_place() {
    let mount = crate::etcd_service().mount(&[]);
    let holder = Holder::new(&mount, LOCK);
    let order = mount.outside().join("order");
    // Its handler restarts the call; it gets a signal ten times a second.
    let program = "import fcntl, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
f = open(sys.argv[1], 'w')
fcntl.flock(f, fcntl.LOCK_EX)
# Python's end is no handler any more.
signal.setitimer(signal.ITIMER_REAL, 0)
open(sys.argv[2], 'a').write('first ')";
    let mut first = waiter(&mount, &["python3", "-c", program, LOCK, order.to_str().unwrap()]);
    eventually("it waits", || (queue(&mount) == 1).then_some(()));
    let script = format!("flock {LOCK} -c 'echo second >> {}'", order.display());
    let mut second = waiter(&mount, &["bash", "-c", &script]);
    eventually("both wait", || (queue(&mount) == 2).then_some(()));
    let begin = Instant::now();
    eventually("some signals have come", || (begin.elapsed() > Duration::from_secs(2)).then_some(()));
    holder.end();
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&order).unwrap(), "first second\n");
}

#[test]
fn nobody_ever_sees_an_errno_that_is_none() {
    // Many threads of one process, waiting with fcntl and flock, some handling, blocking or ignoring signals, under
    // storms of signals for the process and for single threads, while the lock changes hands and the service is slow
    // now and then.
    let service = crate::etcd_service();
    let (mount, other) = (service.mount(&[]), service.mount(&[]));
    let program = r#"
import ctypes, errno, fcntl, os, random, signal, sys, threading, time
lock, other, end = sys.argv[1], sys.argv[2], time.time() + float(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
counts, guard = {}, threading.Lock()
class Flock(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_short), ("whence", ctypes.c_short),
        ("start", ctypes.c_long), ("len", ctypes.c_long), ("pid", ctypes.c_int),
    ]
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, True)
signal.signal(signal.SIGUSR2, lambda *_: None)
signal.siginterrupt(signal.SIGUSR2, False)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
F_OFD_SETLKW = 38
def count(what):
    with guard:
        counts[what] = counts.get(what, 0) + 1
def call(number):
    code = ctypes.get_errno()
    if number != 0:
        count(errno.errorcode.get(code, str(code)))
    else:
        count("ok")
    return number == 0
def worker(index):
    if index % 4 == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    if index % 4 == 2:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    while time.time() < end:
        fd = os.open(lock if index % 2 else other, os.O_RDWR)
        ctypes.set_errno(0)
        kind = index % 3
        want = Flock(fcntl.F_WRLCK, 0, 0, 0, 0)
        if kind == 0:
            got = call(libc.flock(fd, fcntl.LOCK_EX))
        elif kind == 1:
            got = call(libc.fcntl(fd, fcntl.F_SETLKW, ctypes.byref(want)))
        else:
            got = call(libc.fcntl(fd, F_OFD_SETLKW, ctypes.byref(want)))
        if got:
            time.sleep(random.random() * 0.02)
        os.close(fd)
children = []
for i in range(2):
    pid = os.fork()
    if pid == 0:
        while time.time() < end:
            fd = os.open(lock, os.O_RDWR)
            libc.flock(fd, fcntl.LOCK_EX)
            time.sleep(0.3)
            os.close(fd)
        os._exit(0)
    children.append(pid)
threads = [threading.Thread(target=worker, args=(i,)) for i in range(12)]
for t in threads: t.start()
while any(t.is_alive() for t in threads):
    kind = random.choice([signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH])
    if random.random() < 0.5:
        os.kill(os.getpid(), kind)
    else:
        # A thread that has just ended is no error.
        libc.tgkill(os.getpid(), random.choice(threads).native_id, kind)
    time.sleep(0.004)
for pid in children: os.waitpid(pid, 0)
print(counts)
bad = set(counts) - {"ok", "EINTR"}
sys.exit(f"unexpected: {bad}" if bad else 0)
"#;
    let second = other.path(LOCK);
    let counts = py(&mount, program, &[LOCK, second.to_str().unwrap(), "15"]);
    assert!(counts.contains("'ok'") && counts.contains("'EINTR'"), "{counts}");
    eventually("all is given back", || report(&mount, LOCK).is_empty().then_some(()));
}

#[test]
fn many_who_wait_cost_nothing() {
    let mount = crate::etcd_service().mount(&[]);
    let holder = Holder::new(&mount, LOCK);
    let look = || {
        let begin = Instant::now();
        mount.sh("for i in $(seq 20); do ls -lR > /dev/null; done");
        begin.elapsed()
    };
    let before = look();
    let mut waiters: Vec<_> = (0..200).map(|_| waiter(&mount, &["flock", LOCK, "true"])).collect();
    eventually("all wait", || (queue(&mount) == 200).then_some(()));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", mount.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (used, begin) = (ticks(), Instant::now());
    eventually("some time has passed", || (begin.elapsed() > Duration::from_secs(10)).then_some(()));
    #[allow(clippy::cast_precision_loss)]
    let share = (ticks() - used) as f64 / 100.0 / begin.elapsed().as_secs_f64();
    // Each is looked at ten times a second. Where reading their states alone takes more than that, it is the machine's
    // doing.
    let begin = Instant::now();
    for waiter in (0..10).flat_map(|_| &waiters) {
        drop(std::fs::read(format!("/proc/{}/status", waiter.id())).unwrap());
    }
    let looking = begin.elapsed().as_secs_f64();
    eprintln!("200 waiters cost {share} of a core, reading their states {looking}");
    assert!(
        share < 0.1_f64.max(4.0 * looking),
        "{share} of a core, 5 % for each hundred; reading their states takes {looking}"
    );
    // Waiting does not keep a session thread: looking is as fast as before, give or take what the machine does.
    let during = look();
    assert!(during < before * 2, "{before:?} before, {during:?} beside 200 waiters");
    holder.end();
    for waiter in &mut waiters {
        assert!(waiter.wait().unwrap().success());
    }
    assert!(is_free(&mount, LOCK));
}
