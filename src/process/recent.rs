//! Processes that have called lately. A number belongs to the same process until that has ended, and a descriptor of
//! the process says whether it has: that is one system call, where a look into /proc takes four.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quick_cache::sync::Cache;
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use super::Process;

/// How many of them, and which part of the descriptors that topofs may have: each takes one.
const CALLERS: (u64, u64) = (64, 16);

static RECENT: LazyLock<Cache<u32, Recent>> = LazyLock::new(|| {
    let (most, part) = CALLERS;
    let most = getrlimit(Resource::Nofile).current.map_or(most, |limit| most.min(limit / part));
    Cache::new(most as usize)
});

/// A process, with a descriptor of it.
#[derive(Debug, Clone)]
struct Recent {
    process: Process,
    descriptor: Arc<OwnedFd>,
}

impl Recent {
    /// `None` if the process has ended, or if this kernel has no such descriptors.
    fn of(process: Process) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // It may be that of a later process with the same number.
        let is_same = super::started(process.pid) == Some(process.started);
        is_same.then(|| Self { process, descriptor: Arc::new(descriptor) })
    }

    fn runs(&self) -> bool {
        // What cannot be known is looked up.
        let mut descriptor = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut descriptor, PollTimeout::ZERO) == Ok(0)
    }
}

/// The process with this number, if it has called lately and still runs.
pub(super) fn get(pid: u32) -> Option<Process> {
    let recent = RECENT.get(&pid)?;
    if recent.runs() {
        return Some(recent.process);
    }
    RECENT.remove(&pid);
    None
}

/// Remembers a process that has called more than once.
pub(super) fn remember(process: Process) {
    if let Some(recent) = Recent::of(process) {
        RECENT.retain(|_, recent| recent.runs());
        RECENT.insert(process.pid, recent);
    }
}
