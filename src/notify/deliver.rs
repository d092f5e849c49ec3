//! Delivers the announcements of the outbox, one after the other: has a helper make the call for which the kernel
//! raises the event. Must never make such a call itself.
//!
//! Somebody may hold a directory of the mount (`tree/kernel/invalidation.rs` says how). Then every operation on it
//! hangs, in this daemon or in the helper, and nothing can interrupt it. So a thread has a deadline for each
//! announcement. When that has passed, the thread is left to its fate, the directory is known to be held, and another
//! thread continues with the next announcement, with another helper if necessary.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use scopeguard::ScopeGuard;

use super::echo::{Echo, HELPERS};
use super::helper::{Helpers, Notifier};
use crate::alive;
use crate::tree::Tree;
use crate::tree::kernel::Kernel;
use crate::tree::kernel::outbox::{Announcement, Next};

/// How long one announcement may take: longer than it ever takes, unless somebody holds the directory.
const DEADLINE: Duration = Duration::from_secs(1);
/// How often to look for a late announcement.
const LOOK: Duration = Duration::from_millis(200);
/// The most threads: one works, the others hang. Each hangs in a directory of its own, since held directories are left
/// alone.
const THREADS: usize = 32;
/// The pause before the next attempt, if a helper cannot be started.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest wait for a helper: old names in the kernel must not wait longer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Delivers the tree's announcements, in threads of its own, until the outbox is closed.
pub(crate) fn serve(helpers: Arc<Helpers>, tree: &Tree, runtime: tokio::runtime::Handle) -> io::Result<()> {
    let first = helpers.start()?;
    let (kernel, echo) = (tree.kernel().clone(), Echo::new(tree));
    echo.add_helper(first.process());
    let pool = Pool { ready: vec![first], alive: 1, not_before: None };
    let delivery =
        Arc::new(Delivery { helpers, kernel, echo, runtime, pool: Mutex::new(pool), turn: Mutex::default() });
    start(&delivery, 0)?;
    std::thread::Builder::new().name("deadlines".to_owned()).spawn(move || {
        // A panic here ends nothing: the next look follows.
        while alive::run("the deadlines of events", || delivery.look_after()).unwrap_or(true) {
            std::thread::sleep(LOOK);
        }
    })?;
    Ok(())
}

fn start(delivery: &Arc<Delivery>, number: u64) -> io::Result<()> {
    let delivery = delivery.clone();
    std::thread::Builder::new()
        .name("notifier".to_owned())
        .spawn(move || {
            // A panic in an announcement is caught in `work`. After any other panic the work begins again, as long as
            // this thread has the turn.
            while alive::run("the notifier", || delivery.clone().work(number)).is_err() && delivery.has_turn(number) {
                delivery.turn.lock().announcement = None;
                std::thread::sleep(PAUSE);
            }
        })
        .map(drop)
}

#[derive(Debug)]
struct Delivery {
    helpers: Arc<Helpers>,
    kernel: Arc<Kernel>,
    echo: Arc<Echo>,
    /// Where the tree spawns work that nobody waits for.
    runtime: tokio::runtime::Handle,
    pool: Mutex<Pool>,
    turn: Mutex<Turn>,
}

/// The helpers.
#[derive(Debug)]
struct Pool {
    ready: Vec<Notifier>,
    /// How many there are, including those at work and those that hang.
    alive: usize,
    /// When the next helper may be started.
    not_before: Option<Instant>,
}

/// Which thread works, and which threads hang.
#[derive(Debug, Default)]
struct Turn {
    /// The thread that works.
    thread: u64,
    /// Its announcement, and since when it works on that.
    announcement: Option<(Arc<Announcement>, Instant)>,
    /// The threads that hang, each with its directory.
    hanging: Vec<(u64, Option<u64>)>,
    ended: bool,
}

/// What became of an announcement.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Somebody holds the directory: the announcement must wait.
    Held,
}

impl Delivery {
    fn work(self: Arc<Self>, number: u64) {
        let _runtime = self.runtime.enter();
        loop {
            let announcement = match self.kernel.outbox.next(LOOK, |dir| self.kernel.is_held(dir)) {
                Next::Announcement(announcement) => Arc::new(announcement),
                Next::Lost(cell, count) => {
                    self.kernel.forget_cell(&cell, count);
                    continue;
                }
                Next::Nothing => continue,
                Next::End => break,
            };
            self.turn.lock().announcement = Some((announcement.clone(), Instant::now()));
            let delivered = alive::run("the notifier", || self.deliver(number, &announcement));
            let outcome = delivered.unwrap_or_else(|_| {
                // The event is lost. What the kernel keeps of the cell may be older than the event, so all of it is
                // invalidated.
                let cell = announcement.dir.as_ref().map(|dir| &dir.cell).or(announcement.file.cell());
                cell.iter().for_each(|cell| self.kernel.forget_cell(cell, 1));
                Outcome::Done
            });
            let hung = {
                let mut turn = self.turn.lock();
                if turn.thread == number {
                    turn.announcement = None;
                }
                let index = turn.hanging.iter().position(|(thread, _)| *thread == number);
                index.map(|index| turn.hanging.swap_remove(index).1)
            };
            match (hung, outcome) {
                (None, Outcome::Done) => self.kernel.outbox.end(&announcement),
                (None, Outcome::Held) => self.kernel.defer(Announcement::clone(&announcement)),
                (Some(dir), outcome) => {
                    // Another thread has continued meanwhile.
                    match outcome {
                        Outcome::Done => {
                            self.kernel.outbox.end(&announcement);
                            self.kernel.hangs_no_more(dir, None);
                        }
                        Outcome::Held => self.kernel.hangs_no_more(dir, Some(Announcement::clone(&announcement))),
                    }
                    return;
                }
            }
        }
        self.turn.lock().ended = true;
        self.pool.lock().ready.clear();
    }

    fn has_turn(&self, number: u64) -> bool {
        self.turn.lock().thread == number
    }

    /// Delivers one announcement: first invalidates what the kernel keeps, then has the call made.
    fn deliver(&self, number: u64, announcement: &Announcement) -> Outcome {
        /// Somebody may look up a name just before it is created.
        const ATTEMPTS: usize = 3;
        for _ in 0..ATTEMPTS {
            if !self.kernel.invalidate_before(announcement) || !self.has_turn(number) {
                return Outcome::Held;
            }
            let Some((call, size)) = self.echo.begin(announcement) else { return Outcome::Done };
            let answer = self.call(announcement, size);
            self.echo.end(call);
            let Some(errno) = answer else {
                self.kernel.lost.fetch_add(1, Ordering::Relaxed);
                break;
            };
            if errno == 0 {
                self.helpers.raised();
                return Outcome::Done;
            }
            let error = io::Error::from_raw_os_error(errno);
            let (path, happened) = (announcement.path(), announcement.happened);
            tracing::debug!(path, ?happened, %error, "an event could not be raised");
            if !self.has_turn(number) {
                return Outcome::Held;
            }
        }
        // No event is raised, but the kernel must not keep the name.
        if self.kernel.invalidate_before(&announcement.without_event()) { Outcome::Done } else { Outcome::Held }
    }

    /// Has a helper make a call. `None` if there is none.
    fn call(&self, announcement: &Announcement, size: u64) -> Option<i32> {
        loop {
            // A panic ends the helper, too. Its pid must not be trusted for longer than the helper lives.
            let mut helper = scopeguard::guard(self.helper()?, |helper| self.has_ended(helper));
            match helper.call(announcement.happened, announcement.path(), size) {
                Ok(errno) => {
                    self.pool.lock().ready.push(ScopeGuard::into_inner(helper));
                    return Some(errno);
                }
                Err(error) => {
                    tracing::debug!(%error, "a helper that raises events has ended");
                    drop(helper);
                }
            }
        }
    }

    fn helper(&self) -> Option<Notifier> {
        let wait = {
            let mut pool = self.pool.lock();
            if let Some(helper) = pool.ready.pop() {
                return Some(helper);
            }
            let wait = pool.not_before.map_or(Duration::ZERO, |time| time.saturating_duration_since(Instant::now()));
            if pool.alive >= HELPERS || wait > PATIENCE {
                return None;
            }
            pool.alive += 1;
            wait
        };
        std::thread::sleep(wait);
        match self.helpers.start() {
            Ok(helper) if self.echo.add_helper(helper.process()) => Some(helper),
            // Its calls would be taken for a stranger's.
            Ok(helper) => {
                self.has_ended(helper);
                None
            }
            Err(error) => {
                tracing::error!(%error, "no helper that raises events can be started");
                self.one_less(PAUSE);
                None
            }
        }
    }

    fn has_ended(&self, helper: Notifier) {
        let pause = self.helpers.died(&helper);
        // This comes before the pid is free: the next process with that pid is a stranger.
        self.echo.remove_helper(helper.process());
        drop(helper);
        self.one_less(pause);
    }

    /// An idle helper may die, too. There is always one.
    fn replace_dead(&self) {
        let dead: Vec<Notifier> = self.pool.lock().ready.extract_if(.., |helper| helper.is_dead()).collect();
        dead.into_iter().for_each(|helper| self.has_ended(helper));
        let idle = self.pool.lock().alive == 0 && self.helpers.hold().is_some();
        if let Some(helper) = idle.then(|| self.helper()).flatten() {
            self.pool.lock().ready.push(helper);
        }
    }

    fn one_less(&self, pause: Duration) {
        let mut pool = self.pool.lock();
        pool.alive = pool.alive.saturating_sub(1);
        pool.not_before = Some(Instant::now() + pause);
    }

    /// Looks after the working thread. False if nothing is left to look after.
    fn look_after(self: &Arc<Self>) -> bool {
        self.replace_dead();
        let mut turn = self.turn.lock();
        if turn.ended {
            return false;
        }
        let late = turn.announcement.as_ref().filter(|(_, since)| since.elapsed() > DEADLINE);
        let Some(announcement) =
            late.map(|(announcement, _)| announcement.clone()).filter(|_| turn.hanging.len() + 1 < THREADS)
        else {
            return true;
        };
        let (late, next) = (turn.thread, turn.thread + 1);
        // If no thread can be started, the late one may return, or the next look tries again.
        if let Err(error) = start(self, next) {
            tracing::error!(%error, "no thread can be started: events wait");
            return true;
        }
        turn.thread = next;
        turn.announcement = None;
        let dir = self.kernel.hangs(&announcement);
        turn.hanging.push((late, dir));
        true
    }
}
