//! Who calls: what the kernel says of a caller, and what /proc says of its process. Must never take an unseen process
//! for a known one.

use std::sync::OnceLock;

use crate::process::{self, Actor, Process};

/// Who calls.
#[derive(Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The calling thread; 0 if it is in another pid namespace.
    pub thread: u32,
    process: OnceLock<Option<Process>>,
}

impl Caller {
    /// A caller as the kernel describes it.
    pub fn new(uid: u32, gid: u32, thread: u32) -> Self {
        Self { uid, gid, thread, process: OnceLock::new() }
    }

    /// The process of the calling thread, if it can be seen.
    pub fn process(&self) -> Option<Process> {
        *self.process.get_or_init(|| Process::of(self.thread))
    }

    /// Whether the call makes a file that must not exist yet. Also true if the call cannot be seen.
    pub fn may_make_anew(&self) -> bool {
        const ANEW: i32 = libc::O_CREAT | libc::O_EXCL;
        match process::call(self.thread) {
            Some(process::Call::Open(flags)) => flags & ANEW == ANEW,
            Some(process::Call::Read | process::Call::Other) => false,
            None => true,
        }
    }

    /// Whether the kernel would let the caller access a file of this user, group and mode, as far as that is known: of
    /// the caller's groups only one is. If the other groups may matter, a descriptor is the proof.
    pub fn may(&self, access: u32, (uid, gid, mode): (u32, u32, u32)) -> bool {
        let bits = match () {
            () if self.uid == 0 => return true,
            () if self.uid == uid => access << 6,
            () if self.gid == gid => access << 3,
            () => access << 3 | access,
        };
        mode & bits == bits
    }

    /// Whether the call reads, as far as that can be seen.
    pub fn reads(&self) -> bool {
        process::call(self.thread) == Some(process::Call::Read)
    }
}

impl From<&Caller> for Actor {
    fn from(caller: &Caller) -> Self {
        Actor { uid: caller.uid, process: caller.process().map_or(0, |process| process.pid) }
    }
}
