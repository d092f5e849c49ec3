//! Asks a mount for a file of its `.topofs` in a way that can be given up. A request to a mount whose daemon is stopped
//! may never end, not even by SIGKILL, and a process cannot end before its threads. So a child asks, and is left to its
//! fate if it takes too long: it holds nothing of ours but a pipe.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::askers;
use crate::control::ControlFile;
use crate::device::{Device, is_dead};
use crate::mount::Entry;

/// The hidden command of the child.
pub(super) const ASK: &str = "ask";
/// The first word of an answer, and of a refusal. A number follows the latter, and then its meaning.
pub(super) const OK: &str = "ok";
pub(super) const FAILED: &str = "failed";
/// How long a child that was killed may take to end. It needs a moment, or for ever.
const GRACE: Duration = Duration::from_millis(500);
/// The longest line of a file of lines: a lock's text, or a path, and what is said of it.
const LONGEST_LINE: usize = 1 << 20;
/// The most that is taken of a file at once: a status has some hundred bytes for each cell.
pub(super) const MOST: usize = 16 << 20;
/// The most of a file of lines: 10,000 events of many kilobytes.
pub(super) const MOST_LINES: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The daemon is gone.
    Dead,
    /// The mount is of a user who lets nobody else in.
    NotReadable,
    /// Something else is mounted there by now, or over a directory above it.
    Elsewhere,
    /// Nobody has answered in time.
    Silent(Duration),
    /// A process of this user still waits for an earlier answer, and cannot even be killed.
    Unanswered(u32),
    /// Anything else.
    Other(String),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoAnswer::Dead => f.write_str("dead: its daemon is gone (Transport endpoint is not connected)"),
            NoAnswer::NotReadable => write!(
                f,
                "not readable by uid {} (--allow-other of the mount lets other users in)",
                nix::unistd::geteuid()
            ),
            NoAnswer::Elsewhere => f.write_str("something else is mounted over it"),
            NoAnswer::Silent(waited) => write!(f, "no answer within {}", humantime::format_duration(*waited)),
            NoAnswer::Unanswered(pid) => write!(f, "silent: an earlier question is still unanswered (process {pid})"),
            NoAnswer::Other(reason) => f.write_str(reason),
        }
    }
}

/// A child that asks, and what it has said so far.
pub(super) struct Asking {
    child: Child,
    pipe: ChildStdout,
    read: Vec<u8>,
    /// How much of it is taken.
    taken: usize,
    /// How much may still come, unless the answer goes on.
    left: Option<usize>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        // While it lives, the mount is busy. But it may not end, and then nobody waits for that.
        let _ = self.child.kill();
        let end = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(GRACE / 100);
        }
    }
}

impl Asking {
    /// Starts to ask. With `follow`, the answer goes on for as long as the mount lives.
    pub fn start(mount: &Entry, file: ControlFile, follow: bool, patience: Duration) -> Result<Self, NoAnswer> {
        let more: &[&OsStr] = if follow { &[askers::FOLLOW.as_ref()] } else { &[] };
        Self::start_with(mount, file, more, patience)
    }

    fn start_with(mount: &Entry, file: ControlFile, more: &[&OsStr], patience: Duration) -> Result<Self, NoAnswer> {
        let other = |error: std::io::Error| NoAnswer::Other(format!("cannot ask it: {error}"));
        askers::await_turn(mount.device, Instant::now() + patience).map_err(NoAnswer::Unanswered)?;
        let mut command = Command::new("/proc/self/exe");
        command.args([ASK, askers::DEVICE, &askers::device_text(mount.device), "--file", file.name()]);
        command
            .args(more)
            .arg("--")
            .arg(&mount.mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Ctrl-C is for us. The child notices that nobody listens any more.
        let mut child = command.process_group(0).spawn().map_err(other)?;
        let pipe = child.stdout.take().ok_or_else(|| NoAnswer::Other("cannot ask it: no pipe".to_owned()))?;
        let follows = more.contains(&OsStr::new(askers::FOLLOW));
        let left = (!follows).then_some(MOST_LINES);
        let mut asking = Self { child, pipe, read: Vec::new(), taken: 0, left };
        let first = asking.line(Some(Instant::now() + patience)).map_err(|ended| match ended {
            Ended::Late => NoAnswer::Silent(patience),
            Ended::Over | Ended::TooLong => NoAnswer::Other("the process that asks it has ended".to_owned()),
        })?;
        if first == OK {
            return Ok(asking);
        }
        let refusal = first.strip_prefix(FAILED).unwrap_or_default().trim_start();
        let (number, reason) = refusal.split_once(' ').unwrap_or_default();
        Err(match number.parse().map(Errno::from_raw) {
            Ok(errno) if is_dead(errno) => NoAnswer::Dead,
            Ok(Errno::EACCES) => NoAnswer::NotReadable,
            Ok(Errno::EXDEV) => NoAnswer::Elsewhere,
            _ => NoAnswer::Other(reason.to_owned()),
        })
    }

    /// The next line. Fails at the end of the answer, or if it does not come in time.
    pub fn line(&mut self, deadline: Option<Instant>) -> Result<String, Ended> {
        loop {
            let rest = self.read.get(self.taken..).unwrap_or_default();
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
                self.taken += length + 1;
                return Ok(line);
            }
            self.read.drain(..self.taken);
            self.taken = 0;
            if self.read.len() > LONGEST_LINE {
                return Err(Ended::TooLong);
            }
            self.more(deadline)?;
        }
    }

    /// Everything that is left of the answer.
    fn rest(mut self, deadline: Instant) -> Result<String, Ended> {
        loop {
            match self.more(Some(deadline)) {
                Ok(()) if self.read.len() - self.taken > MOST => return Err(Ended::TooLong),
                Ok(()) => {}
                Err(ended @ (Ended::Late | Ended::TooLong)) => return Err(ended),
                Err(Ended::Over) => {
                    return Ok(String::from_utf8_lossy(self.read.get(self.taken..).unwrap_or_default()).into_owned());
                }
            }
        }
    }

    fn more(&mut self, deadline: Option<Instant>) -> Result<(), Ended> {
        if !is_readable(self.pipe.as_fd(), deadline) {
            return Err(Ended::Late);
        }
        let mut buffer = [0; 64 << 10];
        match self.pipe.read(&mut buffer) {
            Ok(0) | Err(_) => Err(Ended::Over),
            Ok(count) => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(count).ok_or(Ended::TooLong)?;
                }
                self.read.extend_from_slice(buffer.get(..count).unwrap_or_default());
                Ok(())
            }
        }
    }
}

/// Why there is no further line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It did not come in time.
    Late,
    /// The answer is over.
    Over,
    /// It is longer than any that topofs gives.
    TooLong,
}

/// The content of a file of a mount's `.topofs`.
pub(super) fn ask(mount: &Entry, file: ControlFile, patience: Duration) -> Result<String, NoAnswer> {
    let deadline = Instant::now() + patience;
    let asking = Asking::start(mount, file, false, patience)?;
    asking.rest(deadline).map_err(|ended| match ended {
        Ended::Late => NoAnswer::Silent(patience),
        Ended::Over | Ended::TooLong => too_long(file),
    })
}

/// Whether a path in a mount is certainly not there.
pub(super) fn is_missing(mount: &Entry, path: &str, patience: Duration) -> bool {
    let asked = Asking::start_with(mount, ControlFile::Version, &["--exists".as_ref(), path.as_ref()], patience);
    matches!(asked, Err(NoAnswer::Other(reason)) if reason.starts_with(Errno::ENOENT.desc()))
}

/// Why an answer is not taken.
pub(super) fn too_long(file: ControlFile) -> NoAnswer {
    NoAnswer::Other(format!("it gives more than topofs ever does: not a {} of topofs", file.name()))
}

/// Waits until something can be read, or has ended; `false` if the time is over.
fn is_readable(fd: std::os::fd::BorrowedFd<'_>, deadline: Option<Instant>) -> bool {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, so that no wait of zero is repeated.
        let timeout = match left.map(|left| u16::try_from(left.as_millis().saturating_add(1))) {
            None => PollTimeout::NONE,
            Some(Ok(left)) => PollTimeout::from(left),
            Some(Err(_)) => PollTimeout::from(u16::MAX),
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// The child's own place in the conversation: what it says is read by [`Asking`].
pub(super) struct Answering {
    /// Where the mount is.
    pub mountpoint: PathBuf,
    /// Which one it must be.
    pub device: Device,
}

impl Answering {
    /// The mount, if it is the wanted one.
    pub fn mount(&self) -> anyhow::Result<super::mounted::Mount> {
        let found = super::mounted::Mount::at(&self.mountpoint)?;
        Ok(found.filter(|mount| mount.device == self.device).ok_or(Errno::EXDEV)?)
    }

    /// Says why there is no answer.
    pub fn refuse(error: &anyhow::Error) {
        let errno = error.downcast_ref::<Errno>().map(|errno| *errno as i32);
        let errno = errno.or_else(|| error.downcast_ref::<std::io::Error>()?.raw_os_error()).unwrap_or(0);
        let reason = format!("{error:#}").replace('\n', " ");
        // If nobody listens, nobody wants to know.
        let _ = writeln!(std::io::stdout(), "{FAILED} {errno} {reason}");
    }
}

/// A mount point for people, on one line.
pub(super) fn shown_path(path: &Path) -> String {
    crate::plain::shown(&path.to_string_lossy())
}
