//! Makes the calls that let the kernel raise inotify events for what happens elsewhere: through a mount of the file system that nobody
//! sees (root), or by path (others).
//!
//! A process of its own makes them. A thread of the daemon must not: when the daemon is killed while one of its threads waits
//! for an answer of the daemon's own, that thread keeps the device open, the kernel goes on waiting for the answer, and neither the
//! process nor the mount ever ends. The helper has no part in the device; it ends when the daemon does.

use std::io;
use std::sync::Arc;

use super::helper::{Call, Connection, Keeper};
use crate::tree::{Job, Tree};

/// The daemon's end of the helper.
#[derive(Debug)]
pub(super) struct Notifier {
    keeper: Arc<Keeper>,
    connection: Option<Connection>,
}

impl Notifier {
    /// Through whichever helper there is.
    pub fn new(keeper: Arc<Keeper>) -> Self {
        Self { keeper, connection: None }
    }

    /// Passes on what the tree wants to be told, from a thread of its own, for as long as the mount is there.
    pub fn serve(mut self, tree: Arc<Tree>, runtime: tokio::runtime::Handle) -> io::Result<()> {
        let Some(mut jobs) = tree.jobs() else { return Ok(()) };
        std::thread::Builder::new().name("notifier".to_owned()).spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                if self.keeper.hold().is_some() {
                    self.tell(&tree, &runtime, &job);
                }
                tree.end_echo(&job);
            }
        })?;
        Ok(())
    }

    /// One job: what the kernel keeps is dropped, then the call is made.
    fn tell(&mut self, tree: &Tree, runtime: &tokio::runtime::Handle, job: &Job) {
        /// Somebody may look up a name just before it is to be created; a helper may die.
        const ATTEMPTS: usize = 3;
        let mut helped = true;
        for _ in 0..ATTEMPTS {
            tree.settle(job);
            let Some(size) = runtime.block_on(tree.begin_echo(job)) else { return };
            let path = job.path();
            let outcome = self.call(&Call { happened: job.happened, path: path.clone(), size });
            helped = outcome.is_ok();
            let error = match outcome {
                Ok(0) => return,
                Ok(errno) => io::Error::from_raw_os_error(errno),
                Err(error) => error,
            };
            tracing::debug!(path, happened = ?job.happened, %error, "an event could not be raised");
        }
        // Nobody hears of it, but the kernel must not keep the name.
        if !helped {
            self.keeper.lost();
        }
        tree.settle(&job.unnoticed());
    }

    /// Has the helper make a call; the next one, when this one has died.
    fn call(&mut self, call: &Call) -> io::Result<i32> {
        let known = self.connection.take().or_else(|| self.keeper.connection());
        let mut connection = known.ok_or(io::ErrorKind::NotConnected)?;
        let errno = connection.call(call)?;
        self.connection = Some(connection);
        Ok(errno)
    }
}
