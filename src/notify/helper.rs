//! The helper: a process that makes the calls for which the kernel raises inotify events. It makes them through a mount
//! of the file system that nobody sees (root), or by path (others). This file says how a helper is started and what it
//! does; `deliver.rs` says which calls it makes. It must never have the device of the mount open.
//!
//! A process of its own makes the calls. A thread of the daemon must not: if the daemon is killed while that thread
//! waits for an answer of the daemon itself, the thread keeps the device open, the kernel continues to wait for the
//! answer, and neither the process nor the mount ever ends. A helper does not have the device open, and ends when the
//! daemon does.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, UnlinkatFlags, symlinkat, unlinkat};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::confine;
use crate::control::Control;
use crate::device::{Device, device_of};
use crate::tree::kernel::outbox::Happened;

/// The hidden command that runs the helper.
pub const HELPER: &str = "notifier";

/// What the daemon sends to the helper, one JSON line for each call. The answer is a line with an errno, or 0.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    /// `None`: the helper only asks the mount something that the daemon answers from memory.
    happened: Option<Happened>,
    /// The path below the mount.
    path: String,
    /// The size of the file.
    size: u64,
}

/// How calls get into the mount.
#[derive(Debug)]
pub(crate) enum Way {
    /// A mount of the file system that is not attached anywhere.
    Clone(OwnedFd),
    /// The directory that holds the mount point, its name there, and the device that must be mounted on it. A
    /// descriptor inside the mount would keep others from unmounting it.
    Path { dir: OwnedFd, name: OsString, device: Device },
}

/// Starts helpers, for as long as the mount exists.
pub(crate) struct Helpers {
    control: Arc<Control>,
    started: Mutex<Started>,
}

impl std::fmt::Debug for Helpers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helpers").field("started", &self.started.lock()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Started {
    /// `None` when the mount is gone.
    way: Option<Arc<Way>>,
    /// The processes that have not been reaped: until then nobody else gets their pids.
    processes: Vec<Pid>,
    /// Pauses before the next start, if the last helpers did not live long.
    pauses: backon::ExponentialBackoff,
}

impl Helpers {
    /// Starts none yet.
    pub fn new(way: Way, control: Arc<Control>) -> Arc<Self> {
        let started = Started { way: Some(Arc::new(way)), processes: Vec::new(), pauses: pauses() };
        Arc::new(Self { control, started: Mutex::new(started) })
    }

    /// Starts a helper, and waits until it is ready.
    pub fn start(self: &Arc<Self>) -> io::Result<Notifier> {
        let notifier = self.start_prober()?;
        self.control.helper.pid.store(notifier.process(), Ordering::Relaxed);
        Ok(notifier)
    }

    /// Starts a helper that only asks the mount whether it answers: what it does is a stranger's.
    pub fn start_prober(self: &Arc<Self>) -> io::Result<Notifier> {
        let gone = || io::Error::other("the mount is gone");
        let mut command = command(&*self.hold().ok_or_else(gone)?)?;
        let mut child = command.spawn()?;
        // The child has a copy of the way.
        drop(command);
        let (orders, answers) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        let mut notifier = Notifier { child, orders, answers, since: Instant::now(), all: self.clone() };
        {
            let mut started = self.started.lock();
            if started.way.is_none() {
                drop(started);
                return Err(gone());
            }
            started.processes.push(notifier.pid());
        }
        notifier.answer()?;
        Ok(notifier)
    }

    /// A helper has made a call.
    pub fn raised(&self) {
        self.control.helper.raised.fetch_add(1, Ordering::Relaxed);
    }

    /// A helper has died, which is an error while the mount exists. Returns how long to wait before the next start.
    pub fn died(&self, notifier: &Notifier) -> Duration {
        /// A helper that lived so long did not die because of its start.
        const STEADY: Duration = Duration::from_secs(10);
        let mut started = self.started.lock();
        if started.way.is_none() {
            return Duration::ZERO;
        }
        let pause = if notifier.since.elapsed() > STEADY {
            started.pauses = pauses();
            Duration::ZERO
        } else {
            started.pauses.next().unwrap_or(PAUSE.1)
        };
        drop(started);
        let helper = &self.control.helper;
        helper.restarts.fetch_add(1, Ordering::Relaxed);
        let _ = helper.pid.compare_exchange(notifier.process(), 0, Ordering::Relaxed, Ordering::Relaxed);
        tracing::error!(pid = notifier.process(), "the helper that raises events has died: another one is started");
        pause
    }

    /// The way into the mount; `None` when the mount is gone. If the way is a mount of its own, nobody else gets the
    /// device of the mount while the way is held.
    pub fn hold(&self) -> Option<Arc<Way>> {
        self.started.lock().way.clone()
    }

    /// The mount is gone, or soon will be: no helper may keep it alive.
    pub fn end(&self) {
        let mut started = self.started.lock();
        started.way = None;
        for process in &started.processes {
            // It is no error if the process has ended already.
            let _ = nix::sys::signal::kill(*process, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Pauses between helpers that do not live long.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

fn pauses() -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new().with_min_delay(PAUSE.0).with_max_delay(PAUSE.1).without_max_times().build()
}

/// The daemon's end of one helper. To drop it is to end the helper.
#[derive(Debug)]
pub(crate) struct Notifier {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Option<BufReader<ChildStdout>>,
    since: Instant,
    all: Arc<Helpers>,
}

impl Notifier {
    /// Makes a call. Returns its errno, or 0. May hang, as the call may. An error means that the helper is gone.
    pub fn call(&mut self, happened: Happened, path: String, size: u64) -> io::Result<i32> {
        self.send(&Call { happened: Some(happened), path, size })
    }

    /// Asks the mount something that it answers from memory. Returns the errno, or 0. Hangs if the mount does not
    /// answer. An error means that the helper is gone.
    pub fn ask(&mut self) -> io::Result<i32> {
        self.send(&Call { happened: None, path: String::new(), size: 0 })
    }

    fn send(&mut self, call: &Call) -> io::Result<i32> {
        let line = serde_json::to_string(call)?;
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

    /// The pid.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Whether it is dead. Until this is dropped, nobody else gets its pid.
    pub fn is_dead(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        !matches!(waitid(Id::Pid(self.pid()), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It is no error if the process has ended already.
        let _ = self.child.kill();
        let number = self.pid();
        self.all.started.lock().processes.retain(|process| *process != number);
        let _ = self.child.wait();
    }
}

/// The command that starts a helper. Its standard error, which it does not need, is its way into the mount. It gets
/// nothing else of ours: not our environment, not our directory.
fn command(way: &Way) -> io::Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("topofs").arg(HELPER).env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    match way {
        Way::Clone(root) => command.stderr(root.try_clone()?),
        Way::Path { dir, name, device: (major, minor) } => command
            .stderr(dir.try_clone()?)
            .arg(name)
            .arg(nix::sys::stat::makedev((*major).into(), (*minor).into()).to_string()),
    };
    Ok(command)
}

/// What the helper does: makes the calls that it is sent, until the daemon is gone. Its standard error is the mount,
/// or, with a name and a device, the directory that holds the mount point.
pub fn help(place: Option<(PathBuf, u64)>) -> io::Result<()> {
    let start = io::stderr();
    confine::helper()?;
    // Signals of a terminal are for others. It is no error if this is a session of its own already.
    let _ = nix::unistd::setsid();
    let mut answers = io::stdout().lock();
    writeln!(answers, "0")?;
    answers.flush()?;
    for line in io::stdin().lock().lines() {
        let call: Call = serde_json::from_str(&line?)?;
        let outcome = match &place {
            None => make(start.as_fd(), &call),
            Some((name, device)) => make_by_path(start.as_fd(), name.as_os_str(), *device, &call),
        };
        let errno = outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        writeln!(answers, "{errno}")?;
        answers.flush()?;
    }
    Ok(())
}

/// Makes a call by way of the mount point.
fn make_by_path(dir: BorrowedFd<'_>, name: &OsStr, device: u64, call: &Call) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = openat(dir, name, flags, Mode::empty())?;
    // If the mount is gone, this is somebody else's directory.
    if !is_on(root.as_fd(), device)? {
        return Ok(());
    }
    make(root.as_fd(), call)
}

fn is_on(fd: BorrowedFd<'_>, device: u64) -> io::Result<bool> {
    let (major, minor) = device_of(fd, OsStr::new(""))?;
    Ok(nix::sys::stat::makedev(major.into(), minor.into()) == device)
}

/// Makes a call in the mount. Another file system may be mounted on a directory or a file in there: it must not get the
/// call.
fn make(root: BorrowedFd<'_>, Call { happened, path, size }: &Call) -> io::Result<()> {
    let Some(happened) = happened else {
        // The kernel keeps no answer to this.
        return Ok(nix::sys::statvfs::fstatvfs(root).map(drop)?);
    };
    let write = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let parent = within(root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    match happened {
        Happened::Changed => {
            let file = within(parent.as_fd(), name, write, Mode::empty())?;
            nix::unistd::ftruncate(&file, size.cast_signed())?;
        }
        Happened::Created => {
            drop(within(parent.as_fd(), name, write | OFlag::O_CREAT | OFlag::O_EXCL, Mode::S_IRUSR)?);
        }
        // Whoever looks at the link sees where it points; this text is never shown.
        Happened::Linked => symlinkat(".", &parent, name)?,
        // The kernel neither removes nor makes a name that is a mount point.
        Happened::Deleted => unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?,
        Happened::DirMade => nix::sys::stat::mkdirat(&parent, name, Mode::S_IRWXU)?,
        Happened::DirRemoved => unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?,
        Happened::InvalidateOnly => {}
    }
    Ok(())
}

/// Opens a path below a directory, in the same mount.
fn within(dir: BorrowedFd<'_>, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    match openat2(dir, path, OpenHow::new().flags(flags).mode(mode).resolve(resolve)) {
        // Kernels before 5.6.
        Err(Errno::ENOSYS) => walk(dir, path, flags, mode),
        result => Ok(result?),
    }
}

/// The same, one component at a time: each must be on the same device.
fn walk(dir: BorrowedFd<'_>, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let device = device_of(dir, OsStr::new(""))?;
    let mut place = dir.try_clone_to_owned()?;
    let mut steps = path.split('/').peekable();
    while let Some(step) = steps.next() {
        // The device is checked before a file is opened, so that no watcher of another file system gets an event.
        let same = device_of(place.as_fd(), OsStr::new(step));
        let creates = steps.peek().is_none() && flags.contains(OFlag::O_CREAT);
        if !creates && same? != device {
            return Err(Errno::EXDEV.into());
        }
        let step_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let (flags, mode) = if steps.peek().is_none() { (flags, mode) } else { (step_flags, Mode::empty()) };
        place = openat(&place, step, flags | OFlag::O_NOFOLLOW, mode)?;
    }
    Ok(place)
}
