//! Our own processes that ask mounts, as /proc shows them. One whose mount does not answer cannot be killed, so nobody
//! may start another one beside it. Must believe only what no other user can feign: the program, and the user.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use crate::device::{Device, identity};
use crate::process;

/// The name of such a process.
pub(super) const ASKER: &CStr = c"topofs-ask";
/// The name of one that goes on listening: somebody has started that, and knows what it is.
pub(super) const FOLLOWER: &CStr = c"topofs events";
/// The argument that says which mount it asks.
pub(super) const DEVICE: &str = "--device";
/// The argument of one that goes on listening.
pub(super) const FOLLOW: &str = "--follow";
/// Most of them that ask one mount at a time for one user: each of them may stay.
const AT_A_TIME: usize = 4;
/// How long one that was killed may take to end, if its mount answers.
const GRACE: Duration = Duration::from_secs(1);
/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until a mount may be asked; an error with the process that still waits for an earlier answer.
pub(super) fn await_turn(device: Device, end: Instant) -> Result<(), u32> {
    let grace = Instant::now() + GRACE;
    loop {
        let askers = of(device);
        let stuck = askers.iter().find(|asker| asker.is_killed);
        let crowd = askers.get(AT_A_TIME - 1..).and_then(|more| more.first());
        let now = Instant::now();
        match (stuck, crowd) {
            (Some(asker), _) if now >= grace.min(end) => return Err(asker.pid),
            (_, Some(asker)) if now >= end => return Err(asker.pid),
            (None, None) => return Ok(()),
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// A process that asks a mount.
struct Asker {
    pid: u32,
    /// Nobody waits for its answer any more, but it has not ended.
    is_killed: bool,
}

/// This user's processes that ask a mount for an answer that must come at once.
fn of(device: Device) -> Vec<Asker> {
    let mut found = Vec::new();
    for pid in process::all().filter(|pid| is_called(*pid, &[ASKER, FOLLOWER])) {
        if process::effective_user(pid) != Some(geteuid().as_raw()) {
            continue;
        }
        let Some(follows) = asks(pid, device) else { continue };
        let is_killed = process::is_killed(pid);
        if is_killed || !follows {
            found.push(Asker { pid, is_killed });
        }
    }
    found
}

/// Whether one asks this mount, and goes on listening. Ask this only of this user's processes: the
/// arguments of others may be in a mount that hangs.
fn asks(pid: u32, device: Device) -> Option<bool> {
    let arguments = process::entry(pid, "cmdline").and_then(std::fs::read).ok()?;
    let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    let is_asked = arguments.windows(2).any(|two| *two == [DEVICE.as_bytes(), device_text(device).as_bytes()]);
    is_asked.then(|| arguments.contains(&FOLLOW.as_bytes()))
}

/// Whether a process is one that asks and does not go on listening, of any user: it runs this very program. Anybody
/// can take its name.
pub(super) fn is_one(pid: u32) -> bool {
    is_called(pid, &[ASKER])
}

fn is_called(pid: u32, names: &[&CStr]) -> bool {
    process::name(pid).is_some_and(|name| names.iter().any(|one| one.to_bytes() == name.as_bytes()))
        && process::entry(pid, "exe")
            .ok()
            .and_then(|exe| program(&exe))
            .is_some_and(|exe| program(Path::new("/proc/self/exe")) == Some(exe))
}

/// Which file a program is. No file system is asked.
fn program(link: &Path) -> Option<(Device, u64)> {
    let file = open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    identity(file.as_fd()).ok()
}

/// A device as an argument.
pub(super) fn device_text((major, minor): Device) -> String {
    format!("{major}:{minor}")
}

/// Reads what [`device_text`] writes.
pub(super) fn parse_device(text: &str) -> Result<Device, String> {
    let parsed = text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| "not of the form MAJOR:MINOR".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        assert_eq!(parse_device(&device_text((7, 4_000_000))), Ok((7, 4_000_000)));
        for wrong in ["", "1", "1:", ":1", "a:b", "1:-1"] {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }
}
