//! Locks through descriptors that are opened twice, duplicated, inherited and passed on: as Linux does it for local
//! files, and after the last close nothing is held in the service. The cases are those of xfstests generic/478 and
//! generic/504 and of LTP's fcntl14 and fcntl17, written anew.

use crate::common::mount::Mount;
use crate::{LOCK, eventually, py, report};

const PRELUDE: &str = "
import errno, fcntl, os, socket, struct, sys, time
lock = sys.argv[1]
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
def flock_struct(kind, start=0, length=0): return struct.pack('hhqqi4x', kind, 0, start, length, 0)
def ofd(fd, kind, start=0, length=0): fcntl.fcntl(fd, OFD_SETLK, flock_struct(kind, start, length))
def refused(call):
    try: call()
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.EACCES), error
        return True
    return False
def in_child(call):
    pid = os.fork()
    if pid == 0:
        try: os._exit(0 if call() else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
def opened(): return os.open(lock, os.O_RDWR)
def is_locked(): return in_child(lambda: refused(lambda: fcntl.flock(opened(), fcntl.LOCK_EX | fcntl.LOCK_NB)))
def becomes_free():
    end = time.time() + 20
    while is_locked(): assert time.time() < end, 'it stays locked'
EX, NB, UN, SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN, fcntl.LOCK_SH
";

/// On the lock of a keyspace, and on an ordinary file of the mount.
fn on_both(name: &str, program: &str) {
    let mount = crate::etcd_service().mount(&[]);
    mount.sh("touch global/plain");
    for file in [LOCK, "global/plain", "global/metadata/owner"] {
        let printed = py(&mount, &format!("{PRELUDE}{program}\nprint('done')"), &[file]);
        assert_eq!(printed, "done\n", "{name} on {file}");
    }
    nothing_is_left(&mount);
}

fn nothing_is_left(mount: &Mount) {
    eventually("nothing is held in the service", || report(mount, LOCK).is_empty().then_some(()));
}

#[test]
fn flock_belongs_to_the_open_file() {
    on_both(
        "flock",
        "
f = opened()
fcntl.flock(f, EX)
assert is_locked()
# Again, through the same open file: converted, not blocked.
fcntl.flock(f, EX | NB); fcntl.flock(f, SH | NB); fcntl.flock(f, EX | NB)
# Another open file of the same process is somebody else.
other = opened()
assert refused(lambda: fcntl.flock(other, EX | NB))
os.close(other)
assert is_locked()
# A duplicate is the same.
copy = os.dup(f)
fcntl.flock(copy, EX | NB)
os.close(f)
assert is_locked()
fcntl.flock(copy, UN)
becomes_free()
fcntl.flock(copy, EX)
# So is a child's.
r, w = os.pipe()
if os.fork() == 0:
    os.close(w); os.read(r, 1); os._exit(0)
os.close(r); os.close(copy)
assert is_locked()
os.close(w); os.wait()
becomes_free()
# And one that is passed on.
f = opened()
fcntl.flock(f, EX)
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [f])
os.close(f)
assert is_locked()
_, fds, _, _ = socket.recv_fds(b, 1, 1)
assert is_locked()
os.close(fds[0])
becomes_free()",
    );
}

#[test]
fn posix_locks_belong_to_the_process() {
    on_both(
        "posix",
        "
f = opened()
fcntl.lockf(f, EX)
assert in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB)))
# A child does not inherit it, not even through the same descriptor.
assert in_child(lambda: refused(lambda: fcntl.lockf(f, EX | NB)))
assert in_child(lambda: os.close(f) is None)
assert in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB)))
# Any close of the file by the process ends it.
os.close(opened())
end = time.time() + 20
while in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB))): assert time.time() < end
# Its end, too, whichever way.
pid = os.fork()
if pid == 0:
    fcntl.lockf(f, EX); os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
end = time.time() + 20
while in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB))): assert time.time() < end",
    );
}

#[test]
fn open_file_description_locks_belong_to_the_open_file() {
    // xfstests generic/478: OFD and POSIX locks, through clones, forks and second opens.
    on_both(
        "ofd",
        "
f = opened()
ofd(f, fcntl.F_WRLCK)
# Through a duplicate or a child's copy: the same owner.
ofd(os.dup(f), fcntl.F_WRLCK)
assert in_child(lambda: ofd(f, fcntl.F_WRLCK) is None)
# Another open file, of this process or another: somebody else.
other = opened()
assert refused(lambda: ofd(other, fcntl.F_WRLCK))
assert in_child(lambda: refused(lambda: ofd(opened(), fcntl.F_WRLCK)))
assert in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB)))
# Closing another descriptor of the file does not end it.
os.close(other); os.close(opened())
assert in_child(lambda: refused(lambda: ofd(opened(), fcntl.F_WRLCK)))
# The last close does.
os.closerange(f, f + 8)
end = time.time() + 20
while in_child(lambda: refused(lambda: ofd(opened(), fcntl.F_WRLCK))): assert time.time() < end
# Also when the last one is somebody else's.
f = opened()
ofd(f, fcntl.F_WRLCK)
r, w = os.pipe()
if os.fork() == 0:
    os.close(w); os.read(r, 1); os._exit(0)
os.close(r); os.close(f)
assert in_child(lambda: refused(lambda: ofd(opened(), fcntl.F_WRLCK)))
os.close(w); os.wait()
end = time.time() + 20
while in_child(lambda: refused(lambda: ofd(opened(), fcntl.F_WRLCK))): assert time.time() < end",
    );
}

#[test]
fn waiting_threads_and_closed_descriptors() {
    let mount = crate::etcd_service().mount(&[]);
    let program = "
import threading
f = opened()
fcntl.flock(f, EX)
# A thread waits for a POSIX lock through a descriptor that is closed meanwhile.
g = opened()
waiting = threading.Thread(target=lambda: fcntl.lockf(g, EX))
waiting.start()
time.sleep(0.3)
os.close(opened())
os.close(f)
waiting.join(20)
assert not waiting.is_alive()
os.close(g)
becomes_free()
# Threads of one process are one owner: the second is not blocked by the first.
h, i = opened(), opened()
fcntl.lockf(h, EX); fcntl.lockf(i, EX | NB)
os.close(i)
becomes_free()
print('done')";
    assert_eq!(py(&mount, &format!("{PRELUDE}{program}"), &[LOCK]), "done\n");
    nothing_is_left(&mount);
}

#[test]
fn ranges_of_ordinary_files() {
    // LTP fcntl14: ranges that touch, overlap and are split; fcntl17: a deadlock is noticed.
    let mount = crate::etcd_service().mount(&[]);
    mount.sh("touch global/plain");
    let program = "
f = opened()
def free(kind, start, length):
    return in_child(lambda: not refused(lambda: fcntl.lockf(opened(), kind | NB, length, start)))
fcntl.lockf(f, EX, 10, 10)
assert free(EX, 0, 10) and free(EX, 20, 10) and not free(EX, 9, 2) and not free(EX, 19, 2) and not free(SH, 12, 1)
fcntl.lockf(f, fcntl.LOCK_UN, 2, 14)
assert free(EX, 14, 2) and not free(EX, 13, 1) and not free(EX, 16, 1)
fcntl.lockf(f, SH, 4, 10)
assert free(SH, 10, 4) and not free(EX, 10, 4) and not free(SH, 16, 4)
fcntl.lockf(f, fcntl.LOCK_UN)
assert free(EX, 0, 0)
# Two who wait for each other.
fcntl.lockf(f, EX, 1, 0)
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    g = opened()
    fcntl.lockf(g, EX, 1, 1)
    os.write(w, b'x')
    try: fcntl.lockf(g, EX, 1, 0)
    except OSError as error: os._exit(0 if error.errno == errno.EDEADLK else 1)
    os._exit(0)
os.read(r, 1)
time.sleep(0.5)
try:
    fcntl.lockf(f, EX, 1, 1)
    os._exit(3)
except OSError as error: assert error.errno == errno.EDEADLK, error
fcntl.lockf(f, fcntl.LOCK_UN)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print('done')";
    assert_eq!(py(&mount, &format!("{PRELUDE}{program}"), &["global/plain"]), "done\n");
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    // As on a local file: neither waits for the other, in one process or in two.
    let mount = crate::etcd_service().mount(&[]);
    mount.sh("touch global/plain");
    let program = "
f = opened()
fcntl.lockf(f, EX); fcntl.flock(f, EX)
assert in_child(lambda: refused(lambda: fcntl.flock(opened(), EX | NB)))
assert in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB)))
# Each is given back by its own call.
fcntl.flock(f, UN)
assert in_child(lambda: fcntl.flock(opened(), EX | NB) is None)
assert in_child(lambda: refused(lambda: fcntl.lockf(opened(), EX | NB)))
fcntl.lockf(f, UN); fcntl.flock(f, EX)
assert in_child(lambda: fcntl.lockf(opened(), EX | NB) is None)
assert in_child(lambda: refused(lambda: fcntl.flock(opened(), EX | NB)))
fcntl.flock(f, UN)
# Open file description locks have the same owner as flock's, and are locks of fcntl's.
ofd(f, fcntl.F_WRLCK); fcntl.flock(f, EX)
ofd(f, fcntl.F_UNLCK)
assert in_child(lambda: refused(lambda: fcntl.flock(opened(), EX | NB)))
assert in_child(lambda: fcntl.lockf(opened(), EX | NB) is None)
print('done')";
    for file in ["global/plain", "global/metadata/owner"] {
        assert_eq!(py(&mount, &format!("{PRELUDE}{program}"), &[file]), "done\n", "{file}");
    }
}

#[test]
fn one_process_does_not_wait_for_itself_by_the_other_call() {
    // There is one lock, which both hold; it is given back with the last.
    let mount = crate::etcd_service().mount(&[]);
    let program = "
import signal
signal.alarm(30)
for first, second in ((fcntl.lockf, fcntl.flock), (fcntl.flock, fcntl.lockf)):
    f = opened()
    first(f, EX); second(f, EX); second(f, EX | NB)
    assert is_locked()
    first(f, UN)
    assert is_locked()
    first(f, EX | NB)
    second(f, UN); first(f, UN)
    becomes_free()
    os.close(f)
# Another open file of the same process: by the other call.
f, g = opened(), opened()
fcntl.flock(f, EX)
fcntl.lockf(g, EX)
# By the same one, it is somebody else.
assert refused(lambda: fcntl.flock(g, EX | NB))
fcntl.flock(f, UN)
assert is_locked()
os.close(f)
becomes_free()
# Who waits for the lock gets it when the other call of its process does.
import threading
h = opened()
other = opened()
fcntl.flock(other, EX)
def both(call, fd): call(fd, EX)
threads = [threading.Thread(target=both, args=(call, h)) for call in (fcntl.flock, fcntl.lockf)]
for t in threads: t.start()
time.sleep(0.3)
in_child(lambda: os.close(other) is None); os.dup2(g, other)
for t in threads: t.join(20)
assert not any(t.is_alive() for t in threads)
print('done')";
    assert_eq!(py(&mount, &format!("{PRELUDE}{program}"), &[LOCK]), "done\n");
    nothing_is_left(&mount);
}
