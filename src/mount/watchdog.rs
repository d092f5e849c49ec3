//! The watchdog: tells the service manager that the mount lives, as long as it really does. A mount lives if its
//! runtime runs tasks and if it answers the kernel. Must never depend on a service: a mount of a dead service is alive.
//!
//! A process of its own asks the mount, as every program does, since the daemon must not. A question that is never
//! answered keeps this thread waiting, and then the service manager hears nothing more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nix::errno::Errno;

use super::manager::Manager;
use crate::alive;
use crate::device::is_dead;
use crate::notify::helper::{Helpers, Notifier};

/// How many signs of life the service manager gets in its time.
const SIGNS: u32 = 3;

/// Ends the watchdog when it is dropped.
#[derive(Debug)]
pub(super) struct Watchdog(#[allow(dead_code)] Option<Sender<()>>);

impl Watchdog {
    /// Starts one if the service manager wants to hear from it.
    pub fn start(manager: &Manager, helpers: &Arc<Helpers>, runtime: tokio::runtime::Handle) -> io::Result<Self> {
        let Some(period) = manager.watchdog() else { return Ok(Self(None)) };
        let (sender, end) = channel();
        let (manager, helpers) = (manager.clone(), helpers.clone());
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut prober = None;
            // After a panic it begins again: the daemon lives on.
            while alive::run("the watchdog", || {
                watch(period / SIGNS, (&manager, &helpers, &mut prober), &runtime, &end)
            })
            .is_err()
            {
                prober = None;
            }
        })?;
        Ok(Self(Some(sender)))
    }
}

fn watch(
    every: Duration,
    (manager, helpers, prober): (&Manager, &Arc<Helpers>, &mut Option<Notifier>),
    runtime: &tokio::runtime::Handle,
    end: &Receiver<()>,
) {
    let mut unasked = false;
    // In the background, it hears us only when it knows our pid.
    while end.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        if helpers.hold().is_none() {
            // The mount is gone; the daemon is ending.
            manager.alive();
            continue;
        }
        if runs_tasks(runtime) {
            match answers(helpers, prober) {
                Ok(true) => manager.alive(),
                Ok(false) => tracing::error!("the kernel has given up the mount"),
                // That no process can be started says nothing about the mount.
                Err(error) => {
                    if !std::mem::replace(&mut unasked, true) {
                        tracing::warn!(%error, "the watchdog cannot ask the mount: it looks at the daemon alone");
                    }
                    manager.alive();
                }
            }
        }
    }
}

/// Whether the runtime runs a new task. Waits for that, if need be for ever.
fn runs_tasks(runtime: &tokio::runtime::Handle) -> bool {
    let (done, is_done) = channel();
    runtime.spawn(async move {
        // It is no error if nobody waits any more.
        let _ = done.send(());
    });
    is_done.recv().is_ok()
}

/// Whether the mount answers. Waits for that, if need be for ever. An error means that nobody could ask.
fn answers(helpers: &Arc<Helpers>, prober: &mut Option<Notifier>) -> io::Result<bool> {
    let mut asked = match prober.take() {
        Some(asked) => asked,
        None => helpers.start_prober()?,
    };
    let errno = match asked.ask() {
        // Somebody has ended it.
        Err(_) => {
            drop(asked);
            asked = helpers.start_prober()?;
            asked.ask()?
        }
        Ok(errno) => errno,
    };
    *prober = Some(asked);
    Ok(!is_dead(Errno::from_raw(errno)))
}
