//! Passes on to the helper what the tree wants to be told, and sees to it that there always is one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::notifier::{Helpers, Notifier};
use crate::tree::{Job, Tree};

/// How often an idle helper is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// What the kernel keeps of names must not wait longer for a helper.
const PATIENCE: Duration = Duration::from_millis(500);

/// Passes on what the tree wants to be told, from a thread of its own, for as long as the mount is there.
pub(super) fn serve(helpers: Arc<Helpers>, tree: Arc<Tree>) -> io::Result<()> {
    let Some(mut jobs) = tree.jobs() else { return Ok(()) };
    let first = helpers.start()?;
    tree.echo_from(first.process());
    let mut teller = Teller { helpers, tree, helper: Some(first), not_before: Instant::now() };
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("notifier".to_owned()).spawn(move || {
        loop {
            let job = runtime.block_on(async { tokio::time::timeout(LOOK, jobs.recv()).await });
            teller.replace_dead();
            match job {
                Ok(Some(job)) => {
                    if teller.helpers.hold().is_some() {
                        teller.tell(&runtime, &job);
                    }
                    teller.tree.end_echo(&job);
                }
                Ok(None) => return,
                Err(_) => {}
            }
        }
    })?;
    Ok(())
}

#[derive(Debug)]
struct Teller {
    helpers: Arc<Helpers>,
    tree: Arc<Tree>,
    helper: Option<Notifier>,
    /// When the next may be started.
    not_before: Instant,
}

impl Teller {
    /// One job: what the kernel keeps is dropped, then the call is made.
    fn tell(&mut self, runtime: &tokio::runtime::Handle, job: &Job) {
        /// Somebody may look up a name just before it is to be created; a helper may die.
        const ATTEMPTS: usize = 3;
        let mut helped = true;
        for _ in 0..ATTEMPTS {
            self.tree.settle(job);
            let Some(size) = runtime.block_on(self.tree.begin_echo(job)) else { return };
            let outcome = self.call(job, size);
            helped = outcome.is_ok();
            let error = match outcome {
                Ok(0) => return,
                Ok(errno) => io::Error::from_raw_os_error(errno),
                Err(error) => error,
            };
            tracing::debug!(path = job.path(), happened = ?job.happened, %error, "an event could not be raised");
        }
        // Nobody hears of it, but the kernel must not keep the name.
        if !helped {
            self.helpers.lost();
        }
        self.tree.settle(&job.unnoticed());
    }

    /// Has the helper make a call; the next attempt is another one's when it dies.
    fn call(&mut self, job: &Job, size: u64) -> io::Result<i32> {
        self.start();
        let mut helper = self.helper.take().ok_or(io::ErrorKind::NotConnected)?;
        let outcome = helper.call(job.happened, job.path(), size);
        match outcome {
            Ok(_) => self.helper = Some(helper),
            Err(_) => self.has_died(helper),
        }
        outcome
    }

    fn replace_dead(&mut self) {
        if let Some(helper) = self.helper.take_if(|helper| helper.is_dead()) {
            self.has_died(helper);
        }
        if Instant::now() >= self.not_before {
            self.start();
        }
    }

    fn has_died(&mut self, helper: Notifier) {
        self.not_before = Instant::now() + self.helpers.died(&helper);
        // Before its number is free: whoever gets that next is somebody else.
        self.tree.echo_from(0);
    }

    /// Starts a helper if there is none, soon, or not at all.
    fn start(&mut self) {
        let wait = self.not_before.saturating_duration_since(Instant::now());
        if self.helper.is_some() || wait > PATIENCE || self.helpers.hold().is_none() {
            return;
        }
        std::thread::sleep(wait);
        match self.helpers.start() {
            Ok(helper) => {
                self.tree.echo_from(helper.process());
                self.helper = Some(helper);
            }
            Err(error) => {
                /// Where it cannot be started at all.
                const PAUSE: Duration = Duration::from_secs(1);
                tracing::error!(%error, "the helper that raises events cannot be started");
                self.not_before = Instant::now() + PAUSE;
            }
        }
    }
}
