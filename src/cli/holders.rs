//! Who keeps a mount busy: processes with a file open in it, or with their working or root directory there. Asks /proc
//! only, never the mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::askers;
use crate::device::{Device, device_of};
use crate::mount::Entry;
use crate::process;

/// How long to look.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most processes to name.
pub(super) const NAMED: usize = 10;
/// Where a process notes where it is.
const PLACES: [(&str, &str); 3] = [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")];
/// The name of the helper of a mount, which does not keep it busy.
const HELPER: &str = "topofs-notifier";

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub pid: u32,
    /// Its name, and what it has there, for people.
    pub how: String,
}

/// The processes that use a mount, as far as this user may see that. The daemon's own are not among
/// them, nor those of ours that ask it.
pub(super) fn holders(mount: &Entry, daemon: Option<u32>) -> Vec<Holder> {
    let end = Instant::now() + PATIENCE;
    let own = std::process::id();
    let mut found = Vec::new();
    for pid in process::all() {
        let name = process::name(pid).unwrap_or_default();
        if pid == own || Some(pid) == daemon || name == HELPER || askers::is_one(pid) {
            continue;
        }
        if Instant::now() >= end {
            break;
        }
        let uses = uses(pid, mount);
        if !uses.is_empty() {
            found.push(Holder { pid, how: format!("{name} ({})", uses.join(", ")) });
        }
    }
    found
}

/// Whether a process of topofs waits for an answer of a mount.
pub(super) fn is_asked(mount: &Entry) -> bool {
    process::all().any(|pid| askers::is_one(pid) && !uses(pid, mount).is_empty())
}

/// The processes that wait for the answer of a file system of FUSE, as far as the kernel shows that to this user. A
/// file that is still being opened is no open file, and keeps the mount busy all the same.
pub(super) fn waiting() -> Vec<(u32, String)> {
    /// Where in the kernel they wait.
    const WAITS: &str = "request_wait_answer";
    let waits = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("wchan")).is_ok_and(|place| place.starts_with(WAITS))
    };
    let end = Instant::now() + PATIENCE;
    let own = std::process::id();
    let others = process::all().take_while(|_| Instant::now() < end).filter(|pid| *pid != own);
    let named = others.map(|pid| (pid, process::name(pid).unwrap_or_default())).filter(|(_, name)| name != HELPER);
    let found = named.filter(|(pid, _)| {
        let threads = process::entry(*pid, "task").and_then(std::fs::read_dir);
        threads.into_iter().flatten().flatten().any(waits)
    });
    found.collect()
}

/// What a process has in a mount.
fn uses(pid: u32, mount: &Entry) -> Vec<String> {
    let mut uses = Vec::new();
    for (file, what) in PLACES {
        let Ok(link) = process::entry(pid, file) else { continue };
        if device_behind(&link) == Some(mount.device) {
            uses.push(what.to_owned());
        }
    }
    let mut files = 0;
    let infos = process::entry(pid, "fdinfo").and_then(std::fs::read_dir);
    for info in infos.into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(info.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u32>().ok());
        files += usize::from(id == Some(mount.id));
    }
    match files {
        0 => {}
        1 => uses.push("1 open file".to_owned()),
        files => uses.push(format!("{files} open files")),
    }
    uses
}

/// The file system that a link of /proc leads to. No file system is asked.
fn device_behind(link: &Path) -> Option<Device> {
    let file = open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    device_of(file.as_fd(), OsStr::new("")).ok()
}

/// The process that answers for a mount, if the kernel shows that to this user: since Linux 6.10, to root.
pub(super) fn daemon_of(device: Device) -> Option<u32> {
    process::all().filter(|pid| is_ours(*pid)).find(|pid| {
        let infos = process::entry(*pid, "fdinfo").and_then(std::fs::read_dir);
        infos.into_iter().flatten().flatten().any(|info| {
            let text = std::fs::read_to_string(info.path()).unwrap_or_default();
            let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(':')).collect();
            // The number of a connection is the number of its device.
            let connection = fields.get("fuse_connection").and_then(|number| number.trim().parse::<u32>().ok());
            device.0 == 0 && connection == Some(device.1)
        })
    })
}

/// Whether a process may be a daemon of ours, and not another one with a number that was used again.
pub(super) fn is_ours(pid: u32) -> bool {
    process::name(pid).is_some_and(|name| name.starts_with("topofs") || name.starts_with("mount.topofs"))
}
