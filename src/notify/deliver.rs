//! Tells the kernel, through helpers, of what the tree wants to be told, one announcement after the other.
//!
//! Somebody may hold a directory of the mount (`tree/letting.rs` says how): whatever is done about it then hangs, in this daemon or in the
//! helper, and nothing can interrupt it. So a thread is given a time for each announcement. When that is over, the thread is left to its
//! fate, the directory is known to be held, and another thread goes on with the next announcement, with another helper if need be.

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

/// How long one announcement may take: longer than it ever does, unless somebody holds the directory.
const DEADLINE: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Threads at most: one at a time does the work, the others hang. Each has its own directory, since what is held is left alone.
const THREADS: usize = 32;
/// Pause before a helper is started again, where one could not be.
const PAUSE: Duration = Duration::from_secs(1);
/// What the kernel keeps of names must not wait longer for a helper.
const PATIENCE: Duration = Duration::from_millis(500);

/// Passes on what the tree wants to be told, from threads of its own, for as long as the tree says.
pub(crate) fn serve(helpers: Arc<Helpers>, tree: &Tree, runtime: tokio::runtime::Handle) -> io::Result<()> {
    let first = helpers.start()?;
    let (kernel, echo) = (tree.kernel().clone(), Echo::new(tree));
    echo.add_helper(first.process());
    let pool = Pool { ready: vec![first], alive: 1, not_before: None };
    let delivery =
        Arc::new(Delivery { helpers, kernel, echo, runtime, pool: Mutex::new(pool), turn: Mutex::default() });
    start(&delivery, 0)?;
    std::thread::Builder::new().name("deadlines".to_owned()).spawn(move || {
        // A panic here ends nothing: the next look comes.
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
            // Whatever an announcement can do has been caught there. What else panics is begun again, as long as it is this thread's turn.
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
    /// Where the tree starts what need not be waited for.
    runtime: tokio::runtime::Handle,
    pool: Mutex<Pool>,
    turn: Mutex<Turn>,
}

/// The helpers.
#[derive(Debug)]
struct Pool {
    ready: Vec<Notifier>,
    /// Those that are at work, or hang, among them.
    alive: usize,
    /// When the next may be started.
    not_before: Option<Instant>,
}

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turn {
    /// The thread that does the work.
    thread: u64,
    /// What it is at, and since when.
    announcement: Option<(Arc<Announcement>, Instant)>,
    /// Those that hang, with the directories that they hang in.
    hanging: Vec<(u64, Option<u64>)>,
    ended: bool,
}

/// What has come of a announcement.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The directory is held: later.
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
                // The event is lost, and so is all that the kernel keeps of the cell: it may be older than the event.
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
                    // Somebody else has gone on meanwhile.
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

    /// One announcement: what the kernel keeps is dropped, then the call is made.
    fn deliver(&self, number: u64, announcement: &Announcement) -> Outcome {
        /// Somebody may look up a name just before it is to be created.
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
                return Outcome::Done;
            }
            let error = io::Error::from_raw_os_error(errno);
            tracing::debug!(path = announcement.path(), happened = ?announcement.happened, %error, "an event could not be raised");
            if !self.has_turn(number) {
                return Outcome::Held;
            }
        }
        // Nobody hears of it, but the kernel must not keep the name.
        if self.kernel.invalidate_before(&announcement.without_event()) { Outcome::Done } else { Outcome::Held }
    }

    /// Has a helper make a call. `None` if there is none.
    fn call(&self, announcement: &Announcement, size: u64) -> Option<i32> {
        loop {
            // A panic ends the helper, too, and its number must not be trusted any longer than it lives.
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
            // What it does would count as a stranger's.
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
        // Before its number is free: whoever gets that next is somebody else.
        self.echo.remove_helper(helper.process());
        drop(helper);
        self.one_less(pause);
    }

    /// A helper that has nothing to do may die, too. There always is one.
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

    /// Looks after the thread that works. False when there is nothing to be looked after any more.
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
        // Where no thread can be started, this one may come back, or the next look will find it.
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
