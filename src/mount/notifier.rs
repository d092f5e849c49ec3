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
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::tree::{Happened, Job, Tree};

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

/// The daemon's end of the helper.
#[derive(Debug)]
pub(super) struct Notifier {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Notifier {
    /// Starts the helper and waits until it has its way into the mount.
    pub fn start(way: Way) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(HELPER).stdin(Stdio::piped()).stdout(Stdio::piped());
        match way {
            // In the place of what the helper has no use for.
            Way::Clone(root) => command.stderr(root),
            Way::Path(mountpoint, device) => command.stderr(Stdio::null()).arg(mountpoint).arg(device.to_string()),
        };
        let mut child = command.spawn()?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (orders, answers) = ends.ok_or_else(|| io::Error::other("no pipes"))?;
        let mut notifier = Self { child, orders, answers: BufReader::new(answers) };
        notifier.answer()?;
        Ok(notifier)
    }

    /// Passes on what the tree wants to be told, from a thread of its own, for as long as the mount is there.
    pub fn serve(mut self, tree: Arc<Tree>, runtime: tokio::runtime::Handle) -> io::Result<()> {
        let Some(mut jobs) = tree.jobs() else { return Ok(()) };
        tree.echo_from(self.child.id());
        std::thread::Builder::new().name("notifier".to_owned()).spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                let outcome = self.tell(&tree, &runtime, &job);
                tree.end_echo(&job);
                match outcome {
                    Ok(()) => {}
                    // It ends with the mount.
                    Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => {
                        break;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the helper that raises events has failed: there are no more events");
                        break;
                    }
                }
            }
            self.end();
        })?;
        Ok(())
    }

    /// One job: what the kernel keeps is dropped, then the call is made.
    fn tell(&mut self, tree: &Tree, runtime: &tokio::runtime::Handle, job: &Job) -> io::Result<()> {
        /// Somebody may look up a name just before it is to be created.
        const ATTEMPTS: usize = 3;
        for _ in 0..ATTEMPTS {
            tree.settle(job);
            let Some(size) = runtime.block_on(tree.begin_echo(job)) else { return Ok(()) };
            let path = job.path();
            let errno = self.call(&Call { happened: job.happened, path: path.clone(), size })?;
            if errno == 0 {
                return Ok(());
            }
            let error = io::Error::from_raw_os_error(errno);
            tracing::debug!(path, happened = ?job.happened, %error, "an event could not be raised");
        }
        // Nobody hears of it, but the kernel must not keep the name.
        tree.settle(&job.unnoticed());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> io::Result<i32> {
        let line = serde_json::to_string(call)?;
        self.orders.write_all(format!("{line}\n").as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<i32> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.trim().parse().map_err(io::Error::other)
    }

    /// The process of the helper.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    fn end(mut self) {
        drop(self.orders);
        // One that has ended already is no error.
        let _ = self.child.kill();
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

/// Ends the helper as soon as the visible mount has gone: its clone would keep the mount alive.
pub(super) fn end_with_mount(
    helper: nix::unistd::Pid,
    is_mounted: impl Fn() -> bool + Send + 'static,
) -> io::Result<()> {
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
        // It is not reaped before it has been told to end: the number is still its own.
        let _ = nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL);
    })?;
    Ok(())
}
