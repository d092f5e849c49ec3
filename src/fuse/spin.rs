//! What a session thread does after a reply: it looks for the next request for a moment before it sleeps, because
//! waking it up costs more than most answers. Must never spin for a mount that is idle, or where it would take the
//! only processor from the program that it waits for.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::journal::Requests;

/// After so many spins in a row that nothing came of, requests must come back to back again before there is another.
/// A program that works for longer between its requests costs no more than these.
const MISSES: u32 = 8;
/// So many requests back to back end such a pause: more than open, read, flush and release of one file.
const TOGETHER: u32 = 5;
/// How often to look on how many processors topofs may run: a system call that each spin need not make.
const PROCESSORS: Duration = Duration::from_secs(1);

/// When to spin. Knows no clock: times are those since the session began. Session threads share single numbers here
/// and no lock; if two of them write at once, there is a spin too many or too few.
#[derive(Debug)]
struct Policy {
    /// The longest spin.
    longest: Duration,
    /// When the last reply was given, in nanoseconds.
    replied: AtomicU64,
    /// How many requests in a row came within the longest spin after a reply.
    together: AtomicU32,
    /// Spins in a row that nothing came of.
    misses: AtomicU32,
}

impl Policy {
    fn new(longest: Duration) -> Self {
        Self { longest, replied: AtomicU64::new(0), together: AtomicU32::new(0), misses: AtomicU32::new(0) }
    }

    /// A request has come.
    fn came(&self, now: Duration) {
        let replied = Duration::from_nanos(self.replied.load(Ordering::Relaxed));
        if now.saturating_sub(replied) > self.longest {
            self.together.store(0, Ordering::Relaxed);
        } else {
            self.together.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It is answered. Returns whether to spin.
    fn replied(&self, now: Duration) -> bool {
        self.replied.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let needed = if self.misses.load(Ordering::Relaxed) < MISSES { 1 } else { TOGETHER };
        self.together.load(Ordering::Relaxed) >= needed
    }

    /// A spin has ended: with a request, or because its time was over.
    fn spun(&self, hit: bool) {
        if hit {
            self.misses.store(0, Ordering::Relaxed);
        } else {
            // It is compared with a bound, so it need not wrap around.
            let _ = self.misses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |misses| misses.checked_add(1));
        }
    }
}

/// Looks for requests on the device of a session.
#[derive(Debug)]
pub(super) struct Spinner {
    policy: Policy,
    /// All session threads take their requests from one queue, so any descriptor of it shows them.
    device: OwnedFd,
    /// One thread looks at a time: a second one would find nothing more.
    is_spinning: AtomicBool,
    began: Instant,
    /// Whether there is a processor beside the one that spins.
    has_room: AtomicBool,
    /// When to look at that again, in nanoseconds since the beginning.
    look_again: AtomicU64,
}

impl Spinner {
    /// Spins for at most so long after each reply; never if that is zero.
    pub fn new(device: OwnedFd, longest: Duration) -> Option<Self> {
        // This knows what a container may use, too.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        (!longest.is_zero() && processors > 1).then(|| Self {
            policy: Policy::new(longest),
            device,
            is_spinning: AtomicBool::new(false),
            began: Instant::now(),
            has_room: AtomicBool::new(false),
            look_again: AtomicU64::new(0),
        })
    }

    /// A request came at this moment.
    pub fn came(&self, at: Instant) {
        self.policy.came(at.saturating_duration_since(self.began));
    }

    /// A session thread has answered a request: looks for the next one, if it is going to come.
    pub fn replied(&self, requests: &Requests) {
        let now = self.began.elapsed();
        if !self.policy.replied(now) || !self.has_room(now) || self.is_spinning.swap(true, Ordering::Acquire) {
            return;
        }
        if let Some(hit) = self.spin() {
            self.policy.spun(hit);
            requests.spun(hit);
        }
        self.is_spinning.store(false, Ordering::Release);
    }

    /// Whether a request has come. `None` if none can come any more.
    fn spin(&self) -> Option<bool> {
        let begin = Instant::now();
        loop {
            let mut device = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            match poll(&mut device, PollTimeout::ZERO) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => {
                    let came = device.iter().filter_map(PollFd::revents).any(|seen| seen.contains(PollFlags::POLLIN));
                    return came.then_some(true);
                }
                Err(_) => return None,
            }
            if begin.elapsed() >= self.policy.longest {
                return Some(false);
            }
            // Whoever else wants this processor gets it.
            std::thread::yield_now();
        }
    }

    /// Whether this thread may run on more than one processor that is online.
    fn has_room(&self, now: Duration) -> bool {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if nanos >= self.look_again.load(Ordering::Relaxed) {
            let next = nanos.saturating_add(u64::try_from(PROCESSORS.as_nanos()).unwrap_or(u64::MAX));
            self.look_again.store(next, Ordering::Relaxed);
            // What cannot be known is no room.
            let has_room = rustix::thread::sched_getaffinity(None).is_ok_and(|processors| processors.count() > 1);
            self.has_room.store(has_room, Ordering::Relaxed);
        }
        self.has_room.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(100);

    /// A session with a clock of its own.
    struct Session(Policy, Duration);

    impl Session {
        fn new() -> Self {
            Self(Policy::new(LONGEST), Duration::from_secs(1))
        }

        /// A request after a pause of so many microseconds. Returns whether there is a spin after it.
        fn request(&mut self, pause: u64) -> bool {
            self.1 += Duration::from_micros(pause);
            self.0.came(self.1);
            self.1 += Duration::from_micros(5);
            self.0.replied(self.1)
        }
    }

    #[test]
    fn requests_back_to_back_are_looked_for_and_single_ones_are_not() {
        let mut session = Session::new();
        let spins: Vec<bool> = [5_000, 101, 100, 3, 101, 20].into_iter().map(|pause| session.request(pause)).collect();
        assert_eq!(spins, [false, false, true, true, false, true]);
    }

    #[test]
    fn the_first_request_of_a_session_is_a_single_one() {
        let mut session = Session(Policy::new(LONGEST), Duration::ZERO);
        assert!(!session.request(101));
    }

    #[test]
    fn after_some_misses_in_a_row_there_are_no_more_spins_until_requests_come_back_to_back() {
        let mut session = Session::new();
        // A program that asks two things at a time, and works in between.
        let spins = (0..100).filter(|_| {
            assert!(!session.request(1_000));
            let spins = session.request(50);
            if spins {
                session.0.spun(false);
            }
            spins
        });
        assert_eq!(spins.count(), MISSES as usize);
        // Another one that does not work in between.
        session.request(1_000);
        let spins: Vec<bool> = (0..TOGETHER).map(|_| session.request(50)).collect();
        assert_eq!(spins.iter().position(|spins| *spins), Some(TOGETHER as usize - 1));
        // If nothing comes of that either, the pause goes on.
        session.0.spun(false);
        session.request(1_000);
        assert!(!session.request(50));
        for _ in 0..TOGETHER {
            session.request(50);
        }
        session.0.spun(true);
        session.request(1_000);
        assert!(session.request(50), "a hit ends the pause");
    }

    #[test]
    fn a_clock_that_seems_to_go_back_hurts_nobody() {
        let policy = Policy::new(LONGEST);
        policy.replied(Duration::from_secs(2));
        policy.came(Duration::from_secs(1));
        assert!(policy.replied(Duration::from_secs(1)));
    }

    fn pipe() -> (OwnedFd, std::io::PipeWriter) {
        let (read, write) = std::io::pipe().unwrap();
        (read.into(), write)
    }

    /// A spinner on any machine.
    fn spinner(device: OwnedFd, longest: Duration) -> Spinner {
        Spinner {
            policy: Policy::new(longest),
            device,
            is_spinning: AtomicBool::new(false),
            began: Instant::now(),
            has_room: AtomicBool::new(true),
            look_again: AtomicU64::new(u64::MAX),
        }
    }

    #[test]
    fn a_spin_sees_what_has_come_and_ends_when_its_time_is_over() {
        use std::io::Write;
        let (device, mut kernel) = pipe();
        let spinner = spinner(device, LONGEST);
        assert_eq!(spinner.spin(), Some(false));
        kernel.write_all(b"x").unwrap();
        assert_eq!(spinner.spin(), Some(true));
    }

    #[test]
    fn a_session_that_has_ended_is_no_miss() {
        let (device, kernel) = pipe();
        drop(kernel);
        let spinner = spinner(device, Duration::from_secs(60));
        assert_eq!(spinner.spin(), None);
    }

    #[test]
    fn one_thread_spins_at_a_time_and_only_where_another_processor_is() {
        let (device, _kernel) = pipe();
        let (mut spinner, requests) = (spinner(device, LONGEST), Requests::default());
        let back_to_back = |spinner: &Spinner| {
            spinner.came(Instant::now());
            spinner.policy.together.store(TOGETHER, Ordering::Relaxed);
            spinner.replied(&requests);
            requests.spins()
        };
        spinner.is_spinning = AtomicBool::new(true);
        assert_eq!(back_to_back(&spinner), (0, 0));
        spinner.is_spinning = AtomicBool::new(false);
        spinner.has_room = AtomicBool::new(false);
        assert_eq!(back_to_back(&spinner), (0, 0));
        spinner.has_room = AtomicBool::new(true);
        assert_eq!(back_to_back(&spinner), (1, 0));
        assert_eq!(back_to_back(&spinner), (2, 0), "the first one has ended");
    }

    #[test]
    fn zero_is_never() {
        assert!(Spinner::new(pipe().0, Duration::ZERO).is_none());
    }
}
