//! Makes the calls that let the kernel raise inotify events for what happens elsewhere: through a clone of the mount that nobody
//! sees (root), or by path (others).
//!
//! A process of its own makes them. A thread of the daemon must not: when the daemon is killed while one of its threads waits
//! for an answer of the daemon's own, that thread keeps the device open, the kernel goes on waiting for the answer, and neither the
//! process nor the mount ever ends. The helper has no part in the device; it ends when the daemon does.

use std::ffi::CString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::tree::Happened;

/// The hidden command that the helper runs as.
pub const HELPER: &str = "notifier";

/// What the daemon tells the helper, one JSON line each. The answer is a line with an errno, or 0.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    happened: Happened,
    /// Below the mount.
    path: String,
    /// The size of the file.
    size: u64,
}

/// How calls get into the mount.
#[derive(Debug)]
pub(super) enum Way {
    /// A clone of the mount, not attached anywhere.
    Clone(OwnedFd),
    /// The mount point, and the device that must be mounted there.
    Path(PathBuf, u64),
}

/// A clone of the mount at a path. Needs CAP_SYS_ADMIN.
#[allow(unsafe_code)]
pub(super) fn clone_of(mountpoint: &Path) -> io::Result<OwnedFd> {
    /// linux/mount.h
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC.cast_unsigned();
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a string that ends with NUL and lives across the call; libc has no function for it.
    let number = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    match i32::try_from(number) {
        // SAFETY: the kernel has just given us this descriptor.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts helpers, for as long as the mount is there.
#[derive(Debug)]
pub(super) struct Helpers(Mutex<Started>);

#[derive(Debug)]
struct Started {
    /// `None` when the mount has gone.
    way: Option<Way>,
    /// The processes that have not been reaped: their numbers are still their own.
    processes: Vec<Pid>,
}

impl Helpers {
    /// None yet.
    pub fn new(way: Way) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Started { way: Some(way), processes: Vec::new() })))
    }

    /// Starts one, and waits until it has its way into the mount.
    pub fn start(self: &Arc<Self>) -> io::Result<Notifier> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(HELPER).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = {
            let mut started = self.0.lock();
            match &started.way {
                None => return Err(io::Error::other("the mount is gone")),
                // In the place of what the helper has no use for.
                Some(Way::Clone(root)) => command.stderr(root.try_clone()?),
                Some(Way::Path(mountpoint, device)) => {
                    command.stderr(Stdio::null()).arg(mountpoint).arg(device.to_string())
                }
            };
            let child = command.spawn()?;
            started.processes.push(Pid::from_raw(child.id().cast_signed()));
            child
        };
        // It keeps a copy of the clone.
        drop(command);
        let (orders, answers) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        let mut notifier = Notifier { child, orders, answers, all: self.clone() };
        notifier.answer()?;
        Ok(notifier)
    }

    /// The mount has gone: no helper must keep it alive.
    pub fn end(&self) {
        let mut started = self.0.lock();
        started.way = None;
        for process in &started.processes {
            let _ = nix::sys::signal::kill(*process, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The daemon's end of one helper, which ends with it.
#[derive(Debug)]
pub(super) struct Notifier {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Option<BufReader<ChildStdout>>,
    all: Arc<Helpers>,
}

impl Notifier {
    /// Makes a call. Returns its errno, or 0. May hang, as the call may; an error means that the helper is gone.
    pub fn call(&mut self, happened: Happened, path: String, size: u64) -> io::Result<i32> {
        let line = serde_json::to_string(&Call { happened, path, size })?;
        let orders = self.orders.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        orders.write_all(format!("{line}\n").as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<i32> {
        let mut line = String::new();
        let answers = self.answers.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        if answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.trim().parse().map_err(io::Error::other)
    }

    /// The process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.orders.take());
        // One that has ended already is no error.
        let _ = self.child.kill();
        let number = Pid::from_raw(self.child.id().cast_signed());
        self.all.0.lock().processes.retain(|process| *process != number);
        let _ = self.child.wait();
    }
}

/// What the helper does: calls as it is told, until the daemon is gone. Without a path, into what is open as stderr.
pub fn help(path: Option<(PathBuf, u64)>) -> io::Result<()> {
    let way = match path {
        None => Way::Clone(io::stderr().as_fd().try_clone_to_owned()?),
        Some((mountpoint, device)) => Way::Path(mountpoint, device),
    };
    let mut answers = io::stdout().lock();
    writeln!(answers, "0")?;
    answers.flush()?;
    for line in io::stdin().lock().lines() {
        let call: Call = serde_json::from_str(&line?)?;
        let errno = tell(&way, &call).map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        writeln!(answers, "{errno}")?;
        answers.flush()?;
    }
    Ok(())
}

fn tell(way: &Way, call: &Call) -> io::Result<()> {
    match way {
        Way::Clone(root) => make(root.as_fd(), call),
        Way::Path(mountpoint, device) => {
            let root =
                nix::fcntl::open(mountpoint, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            // Where the mount is gone, this is somebody else's directory.
            if fstat(&root)?.st_dev != *device {
                return Ok(());
            }
            make(root.as_fd(), call)
        }
    }
}

fn make(root: BorrowedFd<'_>, Call { happened, path, size }: &Call) -> io::Result<()> {
    let path = path.as_str();
    let write = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match happened {
        Happened::Changed => {
            let file = openat(root, path, write, Mode::empty())?;
            nix::unistd::ftruncate(&file, size.cast_signed())?;
        }
        Happened::Created => drop(openat(root, path, write | OFlag::O_CREAT | OFlag::O_EXCL, Mode::S_IRUSR)?),
        Happened::Deleted => unlinkat(root, path, UnlinkatFlags::NoRemoveDir)?,
        Happened::DirMade => nix::sys::stat::mkdirat(root, path, Mode::S_IRWXU)?,
        Happened::DirRemoved => unlinkat(root, path, UnlinkatFlags::RemoveDir)?,
        Happened::Unnoticed => {}
    }
    Ok(())
}

/// The device of what is mounted at a path.
pub(super) fn device_of(mountpoint: &Path) -> io::Result<u64> {
    Ok(nix::sys::stat::fstatat(nix::fcntl::AT_FDCWD, mountpoint, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_dev)
}

/// Ends the helpers as soon as the visible mount has gone: their clone would keep the mount alive.
pub(super) fn end_with_mount(helpers: Arc<Helpers>, is_mounted: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    /// Looked at so often even if the kernel says nothing, in milliseconds.
    const LOOK: u16 = 1_000;
    let table = std::fs::File::open("/proc/self/mountinfo")?;
    std::thread::Builder::new().name("mountinfo".to_owned()).spawn(move || {
        while is_mounted() {
            // The kernel says so when any mount comes or goes.
            let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
            let _ = poll(&mut fds, PollTimeout::from(LOOK));
        }
        helpers.end();
    })?;
    Ok(())
}
