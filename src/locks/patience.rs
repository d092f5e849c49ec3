//! How long a caller waits: until a signal is pending for it, it is gone, or the kernel's time limit for a request is
//! near.
//!
//! The kernel does not tell us of signals (fuser refuses FUSE_INTERRUPT), so one task looks at all waiting threads in
//! /proc. Only a signal that this very thread is going to handle may end its wait with EINTR; otherwise the caller
//! would get errno 512.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::alive;
use crate::error::{Error, Kind};
use crate::process;

/// Pause before a request that does not wait looks at the lock again: the kernel can report the end of one process and
/// the start of the next at the same time.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(10);
/// How often to look at waiting threads.
const LOOK: Duration = Duration::from_millis(100);
/// After so many looks, check that the thread is still the same one: the number of an ended thread is used again, but
/// not soon.
const IDENTITY: u64 = 50;
/// How long a thread may wait if topofs cannot look at it: it lives in another pid namespace, or /proc hides it.
const UNSEEN: Duration = Duration::from_secs(45);
/// The part of the kernel's time limit after which a wait ends.
const MARGIN: f64 = 0.8;
/// Longest /proc/PID/status to read, in bytes: a process may have 65,536 groups of up to 11 bytes each.
const STATUS_LIMIT: usize = 1 << 20;
/// Number of files to keep open for all waiters together, so that waiters do not use up the daemon's descriptors. For
/// any further waiter, each look opens the file.
const KEPT: usize = 256;
/// Its size without groups.
const STATUS_SIZE: usize = 4_096;

/// Why a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The thread has a signal to handle.
    Signal,
    /// The thread has been killed, or is gone.
    Gone,
    /// The longest time is over.
    Limit,
}

/// Watches waiting threads.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    waiting: Arc<Mutex<Waiting>>,
    limit: Option<Duration>,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    threads: HashMap<u64, (Thread, oneshot::Sender<Ended>)>,
    is_watched: bool,
}

/// A thread that waits.
#[derive(Debug, Clone)]
struct Thread {
    id: u32,
    /// Its file in /proc, kept open for the first of them: that saves half of the work, and names no other thread.
    status: Option<Arc<File>>,
    /// When it began to run, if that can be told.
    started: Option<u64>,
    /// Since when nothing can be told of it.
    unseen: Option<Instant>,
}

/// A watched wait. Dropping it ends the watch.
struct Entry<'a>(&'a Patience, u64);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().threads.remove(&self.1);
    }
}

impl Patience {
    /// `request_timeout` is the kernel's time limit for a request, if there is one: after it, the kernel gives up the
    /// mount.
    pub fn new(request_timeout: Option<Duration>) -> Self {
        Self { waiting: Arc::default(), limit: request_timeout.map(|limit| limit.mul_f64(MARGIN)) }
    }

    /// The given time to wait, or the kernel's time limit if that is shorter.
    pub fn at_most(&self, time: Duration) -> Duration {
        self.limit.map_or(time, |limit| limit.min(time))
    }

    /// Returns when the wait of a thread must end.
    pub async fn ended(&self, thread: u32) -> Ended {
        let begin = Instant::now();
        if thread == 0 {
            tokio::time::sleep(self.at_most(UNSEEN)).await;
            return Ended::Limit;
        }
        let (tell, told) = oneshot::channel();
        let entry = {
            let (status, started) = (open_status(thread).ok(), process::started(thread));
            let mut waiting = self.waiting.lock();
            let kept = waiting.threads.values().filter(|(thread, _)| thread.status.is_some()).count();
            let status = status.filter(|_| kept < KEPT).map(Arc::new);
            let thread = Thread { id: thread, status, started, unseen: None };
            waiting.last += 1;
            let number = waiting.last;
            waiting.threads.insert(number, (thread, tell));
            if !std::mem::replace(&mut waiting.is_watched, true) {
                tokio::spawn(watch_all(self.waiting.clone()));
            }
            Entry(self, number)
        };
        let limit = async {
            match self.limit {
                Some(limit) => tokio::time::sleep_until(begin + limit).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            // The channel closes only if the watch itself has ended: then nobody knows.
            told = told => told.unwrap_or(Ended::Limit),
            () = limit => Ended::Limit,
        };
        drop(entry);
        ended
    }
}

/// After a panic nobody knows who has a signal: all waits end as if their time were over, and the next wait starts a
/// new watch.
async fn watch_all(waiting: Arc<Mutex<Waiting>>) {
    if alive::guarded("the watch over who waits", watch(waiting.clone())).await.is_err() {
        let mut waiting = waiting.lock();
        waiting.is_watched = false;
        waiting.threads.clear();
    }
}

async fn watch(waiting: Arc<Mutex<Waiting>>) {
    for round in 0_u64.. {
        let threads: Vec<(u64, Thread)> = {
            let mut waiting = waiting.lock();
            if waiting.threads.is_empty() {
                waiting.is_watched = false;
                return;
            }
            waiting.threads.iter().map(|(number, (thread, _))| (*number, thread.clone())).collect()
        };
        // Many looks take a while, so they run in a thread that answers no requests, and do not block new waits.
        let now = Instant::now();
        let all: Vec<u64> = threads.iter().map(|(number, _)| *number).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let mut buffer = Vec::new();
            let looks = threads.into_iter().map(|(number, thread)| {
                let replaced = round.is_multiple_of(IDENTITY) && thread.is_replaced();
                let seen = if replaced { Look::Ended(Ended::Gone) } else { look(&thread, &mut buffer) };
                (number, thread, seen)
            });
            // Nearly all waits go on.
            looks
                .filter(|(_, thread, look)| *look != Look::Waits || thread.unseen.is_some())
                .map(|(number, _, look)| (number, look))
                .collect::<Vec<_>>()
        });
        // A thread that topofs cannot look at waits on, but not for ever: a look may also have panicked.
        let unknown = |_| all.into_iter().map(|number| (number, Look::Unknown)).collect();
        for (number, look) in looked.await.unwrap_or_else(unknown) {
            waiting.lock().note(number, look, now);
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Waiting {
    fn note(&mut self, number: u64, look: Look, now: Instant) {
        let Some((thread, _)) = self.threads.get_mut(&number) else { return };
        let ended = match look {
            Look::Waits => {
                thread.unseen = None;
                return;
            }
            Look::Unknown => {
                let since = *thread.unseen.get_or_insert(now);
                if now.duration_since(since) < UNSEEN {
                    return;
                }
                Ended::Limit
            }
            Look::Ended(ended) => ended,
        };
        if let Some((_, tell)) = self.threads.remove(&number) {
            // The receiver is gone if the wait has ended.
            let _ = tell.send(ended);
        }
    }
}

impl Thread {
    /// Whether another thread now has its number.
    fn is_replaced(&self) -> bool {
        self.status.is_none()
            && self.started.is_some_and(|known| process::started(self.id).is_some_and(|now| now != known))
    }
}

/// What a look at a thread shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Waits,
    Ended(Ended),
    /// An error is not an answer.
    Unknown,
}

/// The lines of /proc/PID/status without a signal.
const NOTHING_PENDING: &[u8] = b"\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n";

fn open_status(thread: u32) -> std::io::Result<File> {
    File::open(process::entry(thread, "status")?)
}

fn look(thread: &Thread, buffer: &mut Vec<u8>) -> Look {
    let length = match read_status(thread, buffer).map_err(|error| error.raw_os_error()) {
        Ok(length) => length,
        Err(Some(libc::ESRCH)) => return Look::Ended(Ended::Gone),
        // /proc may have a mount option that hides the processes of others.
        Err(Some(libc::ENOENT)) if kill(Pid::from_raw(thread.id.cast_signed()), None) == Err(nix::Error::ESRCH) => {
            return Look::Ended(Ended::Gone);
        }
        Err(_) => return Look::Unknown,
    };
    let text = buffer.get(..length).unwrap_or_default();
    // This is nearly always so; look at the rest only if not.
    if memchr::memmem::find(text, NOTHING_PENDING).is_some() {
        return Look::Waits;
    }
    let Some(status) = std::str::from_utf8(text).ok().and_then(Status::parse) else { return Look::Unknown };
    if status.is_dying() {
        return Look::Ended(Ended::Gone);
    }
    let ours = |signals| status.handles_shared(thread.id, signals, &siblings);
    if status.own() != 0 || ours(status.shared()) { Look::Ended(Ended::Signal) } else { Look::Waits }
}

/// Reads the whole file, because the lines about signals stand after the list of groups, which may be long. Returns its
/// length.
fn read_status(thread: &Thread, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let opened;
    let status = match &thread.status {
        Some(kept) => &**kept,
        None => {
            opened = open_status(thread.id)?;
            &opened
        }
    };
    let mut length = 0;
    loop {
        if length == buffer.len() {
            buffer.resize((length * 2).max(STATUS_SIZE), 0);
        }
        let room = buffer.get_mut(length..).unwrap_or_default();
        let (asked, count) = (room.len(), status.read_at(room, length as u64)?);
        length += count;
        // A read from /proc fills the buffer; a shorter read is the end.
        if count < asked || length >= STATUS_LIMIT {
            return Ok(length);
        }
    }
}

/// The other threads of a process; `None` if /proc hides one of them.
fn siblings(process: u32) -> Option<Vec<(u32, Status)>> {
    let mut known = Vec::new();
    for task in std::fs::read_dir(process::entry(process, "task").ok()?).ok()? {
        let id = task.ok()?.file_name().to_str()?.parse().ok()?;
        match std::fs::read_to_string(process::entry(process, &format!("task/{id}/status")).ok()?) {
            Ok(status) => known.push((id, Status::parse(&status)?)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(_) => return None,
        }
    }
    Some(known)
}

/// What /proc/PID/status says about signals.
#[derive(Debug, Clone, Copy, Default)]
struct Status {
    process: u32,
    ended: bool,
    threads: u32,
    pending: u64,
    shared: u64,
    blocked: u64,
    ignored: u64,
}

const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);

impl Status {
    fn parse(text: &str) -> Option<Self> {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            let signals = || u64::from_str_radix(value, 16).ok();
            match name {
                "State" => status.ended = value.starts_with(['Z', 'X']),
                "Tgid" => status.process = value.parse().ok()?,
                "Threads" => status.threads = value.parse().ok()?,
                "SigPnd" => status.pending = signals()?,
                "ShdPnd" => status.shared = signals()?,
                "SigBlk" => status.blocked = signals()?,
                "SigIgn" => status.ignored = signals()?,
                _ => {}
            }
        }
        Some(status)
    }

    fn is_dying(&self) -> bool {
        self.ended || (self.pending | self.shared) & SIGKILL != 0
    }

    /// Signals to this thread that it is going to handle.
    fn own(&self) -> u64 {
        self.pending & !self.blocked & !self.ignored
    }

    /// Signals to the process that this thread might handle.
    fn shared(&self) -> u64 {
        self.shared & !self.blocked & !self.ignored
    }

    /// Whether this thread is certainly going to handle one of the signals to the process. The kernel gives a signal to
    /// the first thread of the process, or, if that thread blocks it, to any thread that does not.
    fn handles_shared(&self, thread: u32, signals: u64, siblings: &dyn Fn(u32) -> Option<Vec<(u32, Status)>>) -> bool {
        if signals == 0 {
            return false;
        }
        if thread == self.process || self.threads == 1 {
            return true;
        }
        let takers = |signal: u64, siblings: &[(u32, Status)]| {
            siblings.iter().filter(|(_, status)| !status.ended && status.blocked & signal == 0).count()
        };
        let Some(siblings) = siblings(self.process) else { return false };
        (0..u64::BITS).map(|bit| 1 << bit).any(|signal| signals & signal != 0 && takers(signal, &siblings) == 1)
    }
}

/// The error for a wait that has ended.
pub(super) fn interrupted(why: Ended) -> Error {
    match why {
        Ended::Signal | Ended::Gone => Error::new(Kind::Interrupted, "interrupted by a signal"),
        Ended::Limit => Error::new(
            Kind::Unreachable,
            "the lock was not free for as long as a request may wait here (fs.fuse.default_request_timeout and \
             max_request_timeout, or a caller in another pid namespace)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USR1: u64 = 1 << (libc::SIGUSR1 - 1);

    fn status(process: u32, threads: u32) -> Status {
        Status { process, threads, ..Status::default() }
    }

    fn nobody(_: u32) -> Option<Vec<(u32, Status)>> {
        panic!("need not be asked")
    }

    #[test]
    fn the_file_is_understood() {
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let parsed = Status::parse(&own).unwrap();
        assert_eq!(parsed.process, std::process::id());
        assert!(parsed.threads > 1 && !parsed.is_dying());
    }

    #[test]
    fn a_signal_of_its_own_ends_a_wait_unless_it_is_blocked_or_ignored() {
        let pending = Status { pending: USR1, ..status(1, 9) };
        assert_eq!(pending.own(), USR1);
        assert_eq!(Status { blocked: USR1, ..pending }.own(), 0);
        assert_eq!(Status { ignored: USR1, ..pending }.own(), 0);
    }

    #[test]
    fn a_signal_for_the_process_goes_to_its_first_thread() {
        let shared = Status { shared: USR1, ..status(1, 2) };
        assert!(shared.handles_shared(1, shared.shared(), &nobody));
        let both = |_: u32| Some(vec![(1, status(1, 2)), (2, shared)]);
        assert!(!shared.handles_shared(2, shared.shared(), &both), "the first thread will take it");
        let blocked = |_: u32| Some(vec![(1, Status { blocked: USR1, ..status(1, 2) }), (2, shared)]);
        assert!(shared.handles_shared(2, shared.shared(), &blocked), "nobody else can");
        let third = |_: u32| Some(vec![(1, Status { blocked: USR1, ..status(1, 3) }), (2, shared), (3, shared)]);
        assert!(!shared.handles_shared(2, shared.shared(), &third), "nobody knows which of them");
        assert!(Status { shared: USR1, ..status(1, 1) }.handles_shared(7, USR1, &nobody), "the only one");
        assert!(!shared.handles_shared(2, shared.shared(), &|_| None), "what cannot be known is no signal");
    }

    #[test]
    fn an_error_is_no_answer_and_a_wait_that_cannot_be_seen_has_an_end() {
        let begin = Instant::now();
        let mut waiting = Waiting::default();
        let (tell, mut told) = oneshot::channel();
        waiting.threads.insert(1, (Thread { id: 1, status: None, started: None, unseen: None }, tell));
        waiting.note(1, Look::Unknown, begin);
        waiting.note(1, Look::Unknown, begin + UNSEEN / 2);
        // Seen once, it may wait as long again.
        waiting.note(1, Look::Waits, begin + UNSEEN / 2);
        waiting.note(1, Look::Unknown, begin + UNSEEN);
        assert!(told.try_recv().is_err());
        waiting.note(1, Look::Unknown, begin + UNSEEN * 2);
        assert_eq!(told.try_recv(), Ok(Ended::Limit));
    }

    #[test]
    fn a_number_that_is_used_again_is_somebody_else() {
        let own = std::process::id();
        let same = Thread { id: own, status: None, started: process::started(own), unseen: None };
        assert!(same.started.is_some() && !same.is_replaced());
        assert!(Thread { started: same.started.map(|at| at + 1), ..same.clone() }.is_replaced());
        assert!(!Thread { started: None, ..same }.is_replaced(), "nobody knows");
    }

    #[tokio::test]
    async fn a_thread_that_is_gone_does_not_wait() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let patience = Patience::new(None);
        let waiting = {
            let (patience, id) = (patience.clone(), child.id());
            tokio::spawn(async move { patience.ended(id).await })
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(waiting.await.unwrap(), Ended::Gone);
        assert!(patience.waiting.lock().threads.is_empty());
    }

    #[tokio::test]
    async fn a_wait_beyond_the_files_that_are_kept_open_is_watched_without_one() {
        let patience = Patience::new(None);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let waits: Vec<_> = (0..KEPT + 10)
            .map(|_| {
                let (patience, id) = (patience.clone(), child.id());
                tokio::spawn(async move { patience.ended(id).await })
            })
            .collect();
        while patience.waiting.lock().threads.len() < waits.len() {
            tokio::task::yield_now().await;
        }
        let kept = |(thread, _): &&(Thread, _)| thread.status.is_some();
        assert_eq!(patience.waiting.lock().threads.values().filter(kept).count(), KEPT);
        child.kill().unwrap();
        child.wait().unwrap();
        for wait in waits {
            assert_eq!(wait.await.unwrap(), Ended::Gone);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_outlasts_the_kernels_patience() {
        let begin = Instant::now();
        let patience = Patience::new(Some(Duration::from_secs(10)));
        assert_eq!(patience.ended(std::process::id()).await, Ended::Limit);
        assert_eq!(patience.ended(0).await, Ended::Limit);
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
