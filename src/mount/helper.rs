//! The process that makes the calls which raise events: how it is started, what it may do, and that there is one for as long as
//! the mount is there.

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
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::confine;
use super::point::{MountPoint, device_of};
use super::table::Device;
use crate::tree::{Happened, Tree};

/// The hidden command that the helper runs as.
pub const HELPER: &str = "notifier";

/// What the daemon tells the helper, one JSON line each. The answer is a line with an errno, or 0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Call {
    pub happened: Happened,
    /// Below the mount.
    pub path: String,
    /// The size of the file.
    pub size: u64,
}

/// How calls get into the mount.
#[derive(Debug)]
pub(super) enum Way {
    /// A mount of the file system that is not attached anywhere.
    Clone(OwnedFd),
    /// The directory that holds the mount point, its name there, and the device that must be mounted on it. A descriptor inside
    /// the mount would be in the way of whoever unmounts it.
    Path { dir: OwnedFd, name: OsString, device: Device },
}

impl Way {
    /// By way of the mount point.
    pub fn into(point: &MountPoint, device: Device) -> io::Result<Self> {
        let (dir, name) = point.dir_and_name();
        Ok(Self::Path { dir: dir.try_clone_to_owned()?, name: name.to_owned(), device })
    }
}

/// Keeps a helper running: one that dies while the mount is there is followed by another.
pub(super) struct Keeper {
    tree: Arc<Tree>,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("way", &self.state.lock().way).finish_non_exhaustive()
    }
}

struct State {
    /// Until the mount is gone.
    way: Option<Arc<Way>>,
    /// Until it has been seen to be dead: so long its number is its own.
    helper: Option<Pid>,
    /// Until it is taken.
    connection: Option<Connection>,
    /// When the next one is started, while there is none.
    due: Option<Instant>,
}

/// What connects the daemon with a helper.
#[derive(Debug)]
pub(super) struct Connection {
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Connection {
    /// Has a call made. Returns its errno, or 0.
    pub fn call(&mut self, call: &Call) -> io::Result<i32> {
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
}

/// Pauses between helpers that do not live long.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A helper that has lived so long did not die of how it was started.
const STEADY: Duration = Duration::from_secs(10);

impl Keeper {
    /// For the way into a mount.
    pub fn new(way: Way, tree: Arc<Tree>) -> Arc<Self> {
        let state = State { way: Some(Arc::new(way)), helper: None, connection: None, due: None };
        Arc::new(Self { tree, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Starts the first helper, and a thread that sees to the following ones.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        let first = self.start_helper()?;
        let keeper = self.clone();
        let watching = std::thread::Builder::new().name("helper".to_owned()).spawn(move || keeper.keep(first));
        watching.map(drop).inspect_err(|_| self.close())
    }

    fn keep(&self, first: Option<Child>) {
        let backoff = || backon::ExponentialBuilder::new().with_min_delay(PAUSE.0).with_max_delay(PAUSE.1);
        let backoff = || backoff().without_max_times().build();
        let (mut pauses, mut running) = (backoff(), first);
        loop {
            if let Some(child) = running.take() {
                let since = Instant::now();
                let outcome = self.wait_for(child);
                if self.hold().is_none() {
                    return;
                }
                self.tree.control().helper.restarts.fetch_add(1, Ordering::Relaxed);
                tracing::error!(outcome, "the helper that raises events has died: another one is started");
                if since.elapsed() > STEADY {
                    pauses = backoff();
                } else if !self.pause(pauses.next().unwrap_or(PAUSE.1)) {
                    return;
                }
            }
            match self.start_helper() {
                Ok(Some(child)) => running = Some(child),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the helper that raises events cannot be started");
                    if !self.pause(pauses.next().unwrap_or(PAUSE.1)) {
                        return;
                    }
                }
            }
        }
    }

    /// Starts a helper and waits until it has its way into the mount. `None` when the mount is gone.
    fn start_helper(&self) -> io::Result<Option<Child>> {
        let Some(way) = self.hold() else { return Ok(None) };
        let mut child = command(&way)?.spawn()?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let pid = Pid::from_raw(child.id().cast_signed());
        let ready = ends.ok_or_else(|| io::Error::other("no pipes")).and_then(|(orders, answers)| {
            let mut connection = Connection { orders, answers: BufReader::new(answers) };
            connection.answer().map(|_| connection)
        });
        let connection = match ready {
            Ok(connection) => connection,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut state = self.state.lock();
        if state.way.is_none() {
            drop((state, connection));
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        self.tree.echo_from(child.id());
        self.tree.control().helper.pid.store(child.id(), Ordering::Relaxed);
        (state.helper, state.connection, state.due) = (Some(pid), Some(connection), None);
        self.changed.notify_all();
        Ok(Some(child))
    }

    /// Waits until a helper is dead. A dead process has no request under way any more, and until it is reaped nobody else can have
    /// its number: so nothing that it has begun is taken for somebody's own doing, and nobody is taken for it.
    fn wait_for(&self, mut child: Child) -> String {
        let pid = Pid::from_raw(child.id().cast_signed());
        while let Err(Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
        self.tree.echo_from(0);
        self.tree.control().helper.pid.store(0, Ordering::Relaxed);
        let mut state = self.state.lock();
        (state.helper, state.connection, state.due) = (None, None, Some(Instant::now()));
        drop(state);
        child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Waits, and says whether the mount is still there.
    fn pause(&self, pause: Duration) -> bool {
        let due = Instant::now() + pause;
        let mut state = self.state.lock();
        state.due = Some(due);
        self.changed.notify_all();
        while state.way.is_some() && !self.changed.wait_until(&mut state, due).timed_out() {}
        state.way.is_some()
    }

    /// The connection with the next helper, if there soon is one.
    pub fn connection(&self) -> Option<Connection> {
        /// What the kernel keeps of names must not wait for longer.
        const PATIENCE: Duration = Duration::from_millis(500);
        let end = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        loop {
            if let Some(connection) = state.connection.take() {
                return Some(connection);
            }
            if state.way.is_none() || state.due.is_some_and(|due| due > end) {
                return None;
            }
            if self.changed.wait_until(&mut state, end).timed_out() {
                return None;
            }
        }
    }

    /// The way into the mount; `None` when the mount is gone. While it is held, the device of the mount is nobody else's, where the
    /// way is a mount of its own.
    pub fn hold(&self) -> Option<Arc<Way>> {
        self.state.lock().way.clone()
    }

    /// The mount is gone, or is to go: ends the helper, and lets go of the way.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.way = None;
        if let Some(helper) = state.helper.take() {
            // It is not reaped before it has been taken out: the number is still its own. One that has ended already is no error.
            let _ = nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL);
        }
        self.changed.notify_all();
    }

    /// An event that could not be raised.
    pub fn lost(&self) {
        self.tree.control().helper.lost.fetch_add(1, Ordering::Relaxed);
    }
}

/// The helper gets its way into the mount in the place of what it has no use for, standard error, and nothing else of ours: not our
/// environment, not our directory.
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

/// What the helper does: calls as it is told, until the daemon is gone. What is open as standard error is the mount, or, with a name
/// and a device, the directory where it is mounted.
pub fn help(place: Option<(PathBuf, u64)>) -> io::Result<()> {
    let start = io::stderr();
    confine::helper()?;
    let mut answers = io::stdout().lock();
    writeln!(answers, "0")?;
    answers.flush()?;
    for line in io::stdin().lock().lines() {
        let call: Call = serde_json::from_str(&line?)?;
        let outcome = match &place {
            None => make(start.as_fd(), &call),
            Some((name, device)) => tell(start.as_fd(), name.as_os_str(), *device, &call),
        };
        let errno = outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        writeln!(answers, "{errno}")?;
        answers.flush()?;
    }
    Ok(())
}

/// Makes a call by way of the mount point.
fn tell(dir: BorrowedFd<'_>, name: &OsStr, device: u64, call: &Call) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = openat(dir, name, flags, Mode::empty())?;
    // Where the mount is gone, this is somebody else's directory.
    if !is_on(root.as_fd(), device)? {
        return Ok(());
    }
    make(root.as_fd(), call)
}

fn is_on(fd: BorrowedFd<'_>, device: u64) -> io::Result<bool> {
    let (major, minor) = device_of(fd, OsStr::new(""))?;
    Ok(nix::sys::stat::makedev(major.into(), minor.into()) == device)
}

/// Makes a call in the mount. Something else may be mounted on a directory or a file in there: it must not get the call.
fn make(root: BorrowedFd<'_>, Call { happened, path, size }: &Call) -> io::Result<()> {
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
        // The kernel neither removes nor makes what something is mounted on.
        Happened::Deleted => unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?,
        Happened::DirMade => nix::sys::stat::mkdirat(&parent, name, Mode::S_IRWXU)?,
        Happened::DirRemoved => unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?,
        Happened::Unnoticed => {}
    }
    Ok(())
}

/// Opens what is below a directory in the same mount.
fn within(dir: BorrowedFd<'_>, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    match openat2(dir, path, OpenHow::new().flags(flags).mode(mode).resolve(resolve)) {
        // Kernels before 5.6.
        Err(Errno::ENOSYS) => walk(dir, path, flags, mode),
        result => Ok(result?),
    }
}

/// The same, step by step: each must be on the same device.
fn walk(dir: BorrowedFd<'_>, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let device = device_of(dir, OsStr::new(""))?;
    let mut place = dir.try_clone_to_owned()?;
    let mut steps = path.split('/').peekable();
    while let Some(step) = steps.next() {
        // A file is looked at before it is opened, so that nobody hears of what is not ours.
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
