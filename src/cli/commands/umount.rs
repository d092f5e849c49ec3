//! `topofs umount`: ends mounts of topofs, and nothing else.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use super::{Ended, USAGE, complain};
use crate::cli::ask::{NoAnswer, ask};
use crate::cli::flags::values::any_duration;
use crate::cli::health::number;
use crate::cli::holders::{NAMED, daemon_of, holders, is_asked, is_ours, waiting};
use crate::cli::host::Host;
use crate::control::ControlFile;
use crate::mount::{Entry, Refused, unmount};
use crate::plain::shown;

/// How long to wait for a mount to say which process it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same for somebody who does not want to wait: a mount that is well has answered by then.
const LEAST: Duration = Duration::from_millis(500);

/// How long our own questions may keep the mount busy. They end at once if the mount answers.
const ASKERS_GRACE: Duration = Duration::from_secs(1);
/// How often to look whether they have ended.
const LOOK: Duration = Duration::from_millis(20);

/// Flags of `topofs umount`.
#[derive(Debug, Args)]
pub(in crate::cli) struct UmountArgs {
    /// Where the topology is mounted
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "all", value_hint = clap::ValueHint::DirPath)]
    mountpoints: Vec<PathBuf>,
    /// All mounts of topofs; of an ordinary user, the user's own
    #[arg(long, short, conflicts_with = "mountpoints")]
    all: bool,
    /// If the mount is busy, take it out of the tree at once; it ends when nobody uses it any more
    #[arg(long, short)]
    lazy: bool,
    /// How long to wait until the daemon has ended; 0s: not at all
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = any_duration)]
    wait: Duration,
}

impl UmountArgs {
    /// Unmounts. Succeeds if nothing is left, as far as that can be known.
    pub fn run(&self) -> Ended {
        let mut outcome = ExitCode::SUCCESS;
        let mut fail = |what: &Path, error: &anyhow::Error| {
            complain(&shown(&format!("{}: {error:#}", what.display())));
            outcome = USAGE.into();
        };
        if self.all {
            for mount in own_mounts()? {
                if let Err(error) = self.end(&mount) {
                    fail(&mount.mountpoint, &error);
                }
            }
        }
        for path in &self.mountpoints {
            if let Err(error) = named(path).and_then(|mount| self.end(&mount)) {
                fail(path, &error);
            }
        }
        Ok(outcome)
    }

    fn end(&self, mount: &Entry) -> anyhow::Result<()> {
        let uid = nix::unistd::geteuid();
        if let Some(other) = mount.user().filter(|user| !uid.is_root() && *user != uid.as_raw()) {
            bail!("the user with uid {other} has mounted it: only this user and root can unmount it");
        }
        // Afterwards nobody could say which process it was.
        let begin = Instant::now();
        let daemon = Daemon::of(mount, PATIENCE.min(self.wait.max(LEAST)));
        let mut lazy = self.lazy;
        let mut outcome = unmount(mount, lazy);
        // Our own questions end soon if the mount answers. Otherwise nobody can end them.
        let end = Instant::now() + ASKERS_GRACE;
        while !lazy && matches!(outcome, Err(Refused::Busy)) && is_held_by_askers_alone(mount, daemon.pid())? {
            std::thread::sleep(LOOK);
            lazy = Instant::now() >= end;
            outcome = unmount(mount, lazy);
        }
        match outcome {
            Ok(()) => {}
            Err(Refused::Busy) => bail!("{}", why_busy(mount, daemon.pid())?),
            Err(Refused::Other(error)) => return Err(error.into()),
        }
        let still =
            Host::read()?.ours().find(|other| other.device == mount.device).map(|other| other.mountpoint.clone());
        match still {
            Some(place) => complain(&shown(&format!("the same mount is still at {}", place.display()))),
            None if lazy && !self.lazy => complain(&shown(&format!(
                "{}: it does not answer, and only our own questions kept it busy: it is taken out of the tree, and \
                 ends with its daemon{}",
                mount.mountpoint.display(),
                daemon.pid().map_or_else(String::new, |pid| format!(" (process {pid})")),
            ))),
            None if self.lazy || self.wait.is_zero() => {}
            None => daemon.wait(begin, self.wait)?,
        }
        Ok(())
    }
}

/// The mount at a mount point. A symbolic link could lead to anything, so it is not followed.
fn named(path: &Path) -> anyhow::Result<Entry> {
    let host = Host::read().context("/proc/self/mountinfo")?;
    let place = host.find(path, false)?;
    if let Some(mount) = place.mount {
        if place.path == mount.mountpoint {
            return Ok(mount.clone());
        }
        bail!("it is in a mount of topofs; the mount point is {}", mount.mountpoint.display());
    }
    if let Ok(target) = place.path.read_link() {
        bail!("it is a symbolic link to {}: name the mount point itself", target.display());
    }
    match host.topmost(&place.path) {
        Some(other) if host.ours().any(|ours| ours.mountpoint == place.path) => {
            bail!("something else ({}) is mounted over it: unmount that first", other.kind.display())
        }
        Some(other) => bail!("it is a mount of another kind ({}), not of topofs", other.kind.display()),
        None if place.path.symlink_metadata().is_ok() => bail!("nothing is mounted there"),
        None => bail!("there is no such directory"),
    }
}

/// What `--all` means, those that may be inside of others first.
fn own_mounts() -> anyhow::Result<Vec<Entry>> {
    let host = Host::read().context("/proc/self/mountinfo")?;
    let uid = nix::unistd::geteuid();
    let is_own = |entry: &&Entry| uid.is_root() || entry.user() == Some(uid.as_raw());
    Ok(host.ours().rev().filter(is_own).cloned().collect())
}

/// Whether nobody uses a mount but processes of topofs that wait for its answer.
fn is_held_by_askers_alone(mount: &Entry, daemon: Option<u32>) -> anyhow::Result<bool> {
    let has_inner = Host::read()?.below(mount).next().is_some();
    Ok(!has_inner && holders(mount, daemon).is_empty() && is_asked(mount))
}

/// Who keeps a mount busy.
fn why_busy(mount: &Entry, daemon: Option<u32>) -> anyhow::Result<String> {
    let host = Host::read()?;
    let mut reasons: Vec<String> =
        host.below(mount).map(|inner| format!("{} is mounted in it", inner.mountpoint.display())).collect();
    let holders = holders(mount, daemon);
    reasons.extend(holders.iter().take(NAMED).map(|holder| format!("process {}: {}", holder.pid, holder.how)));
    if let Some(more @ 1..) = holders.len().checked_sub(NAMED) {
        reasons.push(format!("and {more} more processes"));
    }
    if reasons.is_empty() {
        reasons.extend(waiting().iter().take(NAMED).map(|(pid, name)| {
            format!(
                "process {pid}: {name} (waits for a file system of FUSE: an operation in flight, if it is this one)"
            )
        }));
    }
    if reasons.is_empty() {
        let words = "by operations in flight, by processes that this user cannot see, or that have mapped a file";
        reasons.push(words.to_owned());
    }
    Ok(format!("busy: {} (--lazy takes it out of the tree all the same)", reasons.join("; ")))
}

/// The process behind a mount.
enum Daemon {
    /// This one: a descriptor stands for no other process with the same number.
    Known(u32, OwnedFd),
    /// There is none.
    Gone,
    /// Nobody can say.
    Unknown,
}

impl Daemon {
    fn of(mount: &Entry, patience: Duration) -> Self {
        // Whoever asks uses the mount, and a mount that does not answer takes all the time.
        let pid = daemon_of(mount.device);
        let pid = match pid.map_or_else(|| ask(mount, ControlFile::Status, patience).map(Some), |_| Ok(None)) {
            Err(NoAnswer::Dead) => return Daemon::Gone,
            Ok(Some(status)) => {
                let status = serde_json::from_str::<Value>(&status).unwrap_or_default();
                let pid = number(&status, &["pid"]).and_then(|pid| u32::try_from(pid).ok());
                // Another pid namespace has other numbers.
                pid.filter(|pid| is_ours(*pid))
            }
            Err(_) | Ok(None) => pid,
        };
        let opened = pid.and_then(|pid| {
            let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
            Some((pid, pidfd_open(number, PidfdFlags::empty()).ok()?))
        });
        opened.map_or(Daemon::Unknown, |(pid, descriptor)| Daemon::Known(pid, descriptor))
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Daemon::Known(pid, _) => Some(*pid),
            Daemon::Gone | Daemon::Unknown => None,
        }
    }

    /// Waits until the saves in progress are finished: the daemon ends after them.
    fn wait(&self, begin: Instant, patience: Duration) -> anyhow::Result<()> {
        let (pid, descriptor) = match self {
            Daemon::Known(pid, descriptor) => (pid, descriptor),
            Daemon::Gone => return Ok(()),
            Daemon::Unknown => {
                complain("it is unmounted; its daemon cannot be seen from here, and may still be finishing saves");
                return Ok(());
            }
        };
        let end = begin + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // It can be read when the process has ended.
            match poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(1..) => return Ok(()),
                _ if left.is_zero() => break,
                _ => {}
            }
        }
        let waited = humantime::format_duration(patience);
        bail!("it is unmounted, but its daemon (process {pid}) has not ended within {waited}: saves may be unfinished")
    }
}
