//! How long a caller waits: until a signal is pending for it, it is gone, or the kernel would lose patience with the mount.
//!
//! The kernel does not tell us of signals (fuser refuses FUSE_INTERRUPT), so waiting threads are looked at in /proc, all
//! together, from one place. Only a signal that this very thread is going to handle may end its wait with EINTR: the kernel
//! would pass anything else to the caller as errno 512.

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

/// How often waiting threads are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long those may wait that cannot be looked at: they live in another pid namespace.
const UNSEEN: Duration = Duration::from_secs(45);
/// Part of the kernel's limit after which a wait is ended.
const MARGIN: f64 = 0.8;

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
    threads: HashMap<u64, Thread>,
    is_watched: bool,
}

#[derive(Debug)]
struct Thread {
    id: u32,
    status: File,
    tell: oneshot::Sender<Ended>,
}

/// A wait that is watched; not any more when dropped.
struct Entry<'a>(&'a Patience, u64);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().threads.remove(&self.1);
    }
}

impl Patience {
    /// `request_timeout` is how long the kernel lets a request take before it gives up the mount, if it does.
    pub fn new(request_timeout: Option<Duration>) -> Self {
        Self { waiting: Arc::default(), limit: request_timeout.map(|limit| limit.mul_f64(MARGIN)) }
    }

    /// Waits until the wait of a thread has to end.
    pub async fn ended(&self, thread: u32) -> Ended {
        let begin = Instant::now();
        let Ok(status) = File::open(format!("/proc/{thread}/status")) else {
            let id = Pid::from_raw(thread.cast_signed());
            if thread != 0 && kill(id, None) == Err(nix::Error::ESRCH) {
                return Ended::Gone;
            }
            tokio::time::sleep(self.limit.map_or(UNSEEN, |limit| limit.min(UNSEEN))).await;
            return Ended::Limit;
        };
        let (tell, told) = oneshot::channel();
        let entry = {
            let mut waiting = self.waiting.lock();
            waiting.last += 1;
            let number = waiting.last;
            waiting.threads.insert(number, Thread { id: thread, status, tell });
            if !std::mem::replace(&mut waiting.is_watched, true) {
                tokio::spawn(watch(self.waiting.clone()));
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
            told = told => told.unwrap_or(Ended::Gone),
            () = limit => Ended::Limit,
        };
        drop(entry);
        ended
    }
}

async fn watch(waiting: Arc<Mutex<Waiting>>) {
    let mut buffer = vec![0; 4096];
    loop {
        {
            let mut waiting = waiting.lock();
            if waiting.threads.is_empty() {
                waiting.is_watched = false;
                return;
            }
            let ended: Vec<(u64, Ended)> = waiting
                .threads
                .iter()
                .filter_map(|(number, thread)| Some((*number, look(thread, &mut buffer)?)))
                .collect();
            for (number, ended) in ended {
                if let Some(thread) = waiting.threads.remove(&number) {
                    // Who has stopped waiting does not want to know.
                    let _ = thread.tell.send(ended);
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What stands in /proc/PID/status as long as there is no signal.
const NOTHING_PENDING: &[u8] = b"\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n";

fn look(thread: &Thread, buffer: &mut [u8]) -> Option<Ended> {
    let Ok(length) = thread.status.read_at(buffer, 0) else { return Some(Ended::Gone) };
    // Nearly always; the rest is looked at only if not.
    if memchr::memmem::find(buffer.get(..length)?, NOTHING_PENDING).is_some() {
        return None;
    }
    let status = Status::parse(std::str::from_utf8(buffer.get(..length)?).ok()?)?;
    if status.is_dying() {
        return Some(Ended::Gone);
    }
    let ours = |signals| status.handles_shared(thread.id, signals, &siblings);
    (status.own() != 0 || ours(status.shared())).then_some(Ended::Signal)
}

/// The other threads of a process.
fn siblings(process: u32) -> Vec<(u32, Status)> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let numbers = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    let status = |id: u32| Status::parse(&std::fs::read_to_string(format!("/proc/{process}/task/{id}/status")).ok()?);
    numbers.filter_map(|id| Some((id, status(id)?))).collect()
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

    /// Signals sent to this thread that it is going to handle.
    fn own(&self) -> u64 {
        self.pending & !self.blocked & !self.ignored
    }

    /// Signals sent to the process that this thread might handle.
    fn shared(&self) -> u64 {
        self.shared & !self.blocked & !self.ignored
    }

    /// Whether one of the signals sent to the process is certainly this thread's to handle. The kernel gives a signal to the
    /// first thread of the process unless that one blocks it, else to any that does not.
    fn handles_shared(&self, thread: u32, signals: u64, siblings: &dyn Fn(u32) -> Vec<(u32, Status)>) -> bool {
        if signals == 0 {
            return false;
        }
        if thread == self.process || self.threads == 1 {
            return true;
        }
        let takers = |signal: u64, siblings: &[(u32, Status)]| {
            siblings.iter().filter(|(_, status)| !status.ended && status.blocked & signal == 0).count()
        };
        let siblings = siblings(self.process);
        (0..u64::BITS).map(|bit| 1 << bit).any(|signal| signals & signal != 0 && takers(signal, &siblings) == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USR1: u64 = 1 << (libc::SIGUSR1 - 1);

    fn status(process: u32, threads: u32) -> Status {
        Status { process, threads, ..Status::default() }
    }

    fn nobody(_: u32) -> Vec<(u32, Status)> {
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
        let both = |_: u32| vec![(1, status(1, 2)), (2, shared)];
        assert!(!shared.handles_shared(2, shared.shared(), &both), "the first thread will take it");
        let blocked = |_: u32| vec![(1, Status { blocked: USR1, ..status(1, 2) }), (2, shared)];
        assert!(shared.handles_shared(2, shared.shared(), &blocked), "nobody else can");
        let third = |_: u32| vec![(1, Status { blocked: USR1, ..status(1, 3) }), (2, shared), (3, shared)];
        assert!(!shared.handles_shared(2, shared.shared(), &third), "nobody knows which of them");
        assert!(Status { shared: USR1, ..status(1, 1) }.handles_shared(7, USR1, &nobody), "the only one");
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

    #[tokio::test(start_paused = true)]
    async fn no_wait_outlasts_the_kernels_patience() {
        let begin = Instant::now();
        let patience = Patience::new(Some(Duration::from_secs(10)));
        assert_eq!(patience.ended(std::process::id()).await, Ended::Limit);
        assert_eq!(patience.ended(0).await, Ended::Limit);
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
