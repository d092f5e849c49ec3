//! Who calls, and what this mount remembers of callers.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::Node;
use crate::backend::Version;
use crate::error::Error;
use crate::locks::Saver;
use crate::name::{CellName, TopoPath};
use crate::process;

/// Reads remembered, over all callers.
const READS: usize = 50_000;
/// Removed or moved names remembered, over all callers.
const REMOVALS: usize = 10_000;
/// Deleted records kept, over all callers: only of the last few does anybody change their mind.
const DELETED: usize = 64;
/// How long the names that vanish together with an unlinked one still answer to the process that unlinked it.
const REMOVAL_TIME: Duration = Duration::from_secs(30);
/// How long a refused operation is answered the same way: the kernel repeats it at once on ESTALE.
const REPEAT_TIME: Duration = Duration::from_secs(1);
/// Refused operations remembered.
const REPEATS: usize = 256;

/// Who calls.
#[derive(Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The calling thread; 0 if it is in another pid namespace.
    pub thread: u32,
    process: OnceLock<u32>,
}

impl Caller {
    /// As the kernel tells.
    pub fn new(uid: u32, gid: u32, thread: u32) -> Self {
        Self { uid, gid, thread, process: OnceLock::new() }
    }

    /// The process of the calling thread.
    pub fn process(&self) -> u32 {
        *self.process.get_or_init(|| process::process_of(self.thread).unwrap_or(self.thread))
    }

    /// Whether the call is for a file that must not exist yet, or cannot be looked at.
    pub fn may_make_anew(&self) -> bool {
        const ANEW: i32 = libc::O_CREAT | libc::O_EXCL;
        match process::call(self.thread) {
            Some(process::Call::Open(flags)) => flags & ANEW == ANEW,
            Some(process::Call::Read | process::Call::Other) => false,
            None => true,
        }
    }

    /// Whether it is a call that reads, as far as can be told.
    pub fn reads(&self) -> bool {
        process::call(self.thread) == Some(process::Call::Read)
    }

    /// How long the process has been running; `None` if that cannot be told.
    fn age(&self) -> Option<Duration> {
        /// Field 22, counted from behind the name.
        const STARTTIME: usize = 19;
        let started: f64 = process::stat(self.thread)?.get(STARTTIME)?.parse().ok()?;
        let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        #[allow(clippy::cast_precision_loss)] // about a hundred
        let age = uptime - started / ticks as f64;
        Duration::try_from_secs_f64(age.max(0.0)).ok()
    }
}

impl From<&Caller> for Saver {
    fn from(caller: &Caller) -> Self {
        Saver { uid: caller.uid, process: caller.process() }
    }
}

/// What callers did lately.
#[derive(Debug)]
pub struct Recent {
    reads: quick_cache::sync::Cache<(u32, CellName, TopoPath), (Version, Instant)>,
    removals: quick_cache::sync::Cache<(u32, Node), Removal>,
    /// Names that some process sees otherwise than the rest.
    disputed: quick_cache::sync::Cache<Node, Instant>,
    deleted: quick_cache::sync::Cache<(u32, CellName, TopoPath), (Bytes, Instant)>,
    refusals: Mutex<Vec<(u32, Node, Instant, Error)>>,
}

/// Why a name is not what the mirror says, for one process.
#[derive(Debug, Clone)]
pub enum Removal {
    /// The record went with another form's name; this name still answers until it is unlinked too.
    Ghost(Instant),
    /// An editor has renamed the record to a backup; the name is free, and the save that follows replaces this version.
    MovedAway(Instant, Version),
    /// The record was made with O_EXCL under another form's name: `cp -a` and `tar x` make each form so, and expect each
    /// name to be free.
    Appeared(Instant),
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            reads: quick_cache::sync::Cache::new(READS),
            removals: quick_cache::sync::Cache::new(REMOVALS),
            disputed: quick_cache::sync::Cache::new(REMOVALS),
            deleted: quick_cache::sync::Cache::new(DELETED),
            refusals: Mutex::default(),
        }
    }
}

impl Recent {
    /// A thread has read or stored a version of a record.
    pub fn read(&self, thread: u32, cell: &CellName, path: &TopoPath, version: Version) {
        self.reads.insert((thread, cell.clone(), path.clone()), (version, Instant::now()));
    }

    /// A caller has removed a record: what it has read of it does not matter any more.
    pub fn forget_read(&self, caller: &Caller, cell: &CellName, path: &TopoPath) {
        self.reads.remove(&(caller.thread, cell.clone(), path.clone()));
    }

    /// A caller has deleted a record, perhaps to make it anew: `mv` and `install` from elsewhere do so.
    pub fn deleted(&self, caller: &Caller, cell: &CellName, path: &TopoPath, value: Bytes) {
        self.forget_read(caller, cell, path);
        self.deleted.insert((caller.process(), cell.clone(), path.clone()), (value, Instant::now()));
    }

    /// What a process has deleted just now, once.
    pub fn take_deleted(&self, process: u32, cell: &CellName, path: &TopoPath) -> Option<Bytes> {
        let (_, (value, when)) = self.deleted.remove(&(process, cell.clone(), path.clone()))?;
        (when.elapsed() < REMOVAL_TIME).then_some(value)
    }

    /// The version that a caller has read or stored last.
    pub fn last_read(&self, caller: &Caller, cell: &CellName, path: &TopoPath) -> Option<Version> {
        /// Clock ticks are coarse.
        const TOLERANCE: Duration = Duration::from_millis(50);
        let (version, when) = self.reads.get(&(caller.thread, cell.clone(), path.clone()))?;
        // Process numbers are used again: what happened before this process began was somebody else.
        caller.age().is_some_and(|age| when.elapsed() <= age + TOLERANCE).then_some(version)
    }

    /// A name is gone or free for one process.
    pub fn removed(&self, caller: &Caller, node: Node, removal: Removal) {
        self.disputed.insert(node.clone(), Instant::now());
        self.removals.insert((caller.process(), node), removal);
    }

    /// What is known of a name.
    pub fn removal(&self, caller: &Caller, node: &Node) -> Option<Removal> {
        if self.removals.is_empty() {
            return None;
        }
        let removal = self.removals.get(&(caller.process(), node.clone()))?;
        let (Removal::Ghost(when) | Removal::MovedAway(when, _) | Removal::Appeared(when)) = &removal;
        (when.elapsed() < REMOVAL_TIME).then_some(removal)
    }

    /// Whether a name may be another for one process than for the rest.
    pub fn is_disputed(&self, node: &Node) -> bool {
        !self.disputed.is_empty() && self.disputed.get(node).is_some_and(|when| when.elapsed() < REMOVAL_TIME)
    }

    /// The name is an ordinary one again.
    pub fn settle(&self, caller: &Caller, node: &Node) {
        if !self.removals.is_empty() {
            self.removals.remove(&(caller.process(), node.clone()));
        }
    }

    /// An operation was refused with ESTALE: the kernel will repeat it once.
    pub fn refused(&self, caller: &Caller, node: &Node, error: &Error) {
        let mut refusals = self.refusals.lock();
        refusals.retain(|(_, _, when, _)| when.elapsed() < REPEAT_TIME);
        if refusals.len() < REPEATS {
            refusals.push((caller.thread, node.clone(), Instant::now(), error.clone()));
        }
    }

    /// The answer to a repetition.
    pub fn repeated(&self, caller: &Caller, node: &Node) -> Option<Error> {
        let mut refusals = self.refusals.lock();
        refusals.retain(|(_, _, when, _)| when.elapsed() < REPEAT_TIME);
        let index = refusals.iter().position(|(thread, known, ..)| *thread == caller.thread && known == node)?;
        Some(refusals.swap_remove(index).3)
    }
}
