//! Confines the processes of a mount. The daemon must never keep a foreign descriptor or dump its core, since it has
//! passwords in its memory; the helper must never have more than one capability.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// Descriptors that whoever has started this process left open: a shell's, a lock's. A daemon would keep them for as
/// long as it runs.
#[derive(Debug)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Call this before anything is opened.
    pub fn note() -> Self {
        const STANDARD: RawFd = 2;
        let listing = std::fs::read_dir("/proc/self/fd");
        let names = listing.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let numbers: Vec<RawFd> = names.filter_map(|name| name.parse().ok()).filter(|fd| *fd > STANDARD).collect();
        // The descriptor of the listing itself is closed by now.
        Self(
            numbers.into_iter().filter(|fd| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()).collect(),
        )
    }

    /// Call this when the files that the command line names have been read: one of them may be such a descriptor
    /// (`--topo-etcd-password-file <(...)`).
    pub fn close(self) {
        for fd in self.0 {
            // It is no error if somebody has closed one meanwhile.
            let _ = nix::unistd::close(fd);
        }
    }
}

/// The least number of descriptors: an idle daemon has 18, and needs some for cells and for those who wait.
const FILES: u64 = 64;

/// Whether a daemon may have as many descriptors as it needs; an error that says how many.
pub fn enough_files() -> io::Result<()> {
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < FILES => Err(io::Error::other(format!(
            "a mount needs at least {FILES} open files, and only {most} are allowed: raise the limit (LimitNOFILE= of \
             systemd, ulimit -Hn)"
        ))),
        _ => Ok(()),
    }
}

/// For a process that will read passwords: no core dumps, nobody can look into its memory, and as many descriptors as
/// it may have.
pub fn daemon() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A core pattern that is a pipe ignores the limit.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let limit = getrlimit(Resource::Nofile);
    // Open files of users, their waiting threads, and connections need one each: the usual 1,024 are few.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

/// For the helper. It must reach files of any owner, as root can, and needs nothing more.
pub(crate) fn helper() -> io::Result<()> {
    // It is started as `exe`, which would be its name.
    rustix::thread::set_name(c"topofs-notifier")?;
    Inherited::note().close();
    set_no_new_privs(true)?;
    let had = rustix::thread::capabilities(None)?;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
        for capability in all.filter(|capability| *capability != CapabilitySet::DAC_OVERRIDE) {
            // The kernel says which capabilities exist.
            if rustix::thread::capability_is_in_bounding_set(capability).is_ok_and(|there| there) {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
        }
    }
    let kept = had.permitted & CapabilitySet::DAC_OVERRIDE;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
