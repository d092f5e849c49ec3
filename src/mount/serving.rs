//! A mount that answers, until a signal or an unmount ends it. Must never let what is going on delay a signal.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::ending;
use super::kernel::KernelMount;
use super::manager::Manager;
use crate::cells::Cells;
use crate::tree::Tree;

/// How long readers and open files may keep a session alive after it was asked to end.
const BUSY_GRACE: Duration = Duration::from_secs(1);

/// What a mount is served with.
pub(super) struct Serving<'a> {
    pub cells: &'a Arc<Cells>,
    pub tree: &'a Arc<Tree>,
    pub manager: &'a Manager,
    /// How long a call of a service may take.
    pub timeout: Duration,
}

impl Serving<'_> {
    /// Serves until the mount is gone. What is in flight then goes on.
    pub async fn until_end(&self, mount: &mut KernelMount, signals: &mut Signals) -> std::io::Result<()> {
        self.manager.ready();
        // They end with this function.
        let (mut words, mut reload) = (JoinSet::new(), JoinSet::new());
        let (cells, manager) = (self.cells.clone(), self.manager.clone());
        words.spawn(async move { manager.follow(&cells).await });
        let signal = loop {
            tokio::select! {
                () = mount.ended() => break None,
                signal = signals.next() => match signal {
                    Signal::Resync => {
                        reload.abort_all();
                        reload.spawn(resync(self.cells.clone(), self.manager.clone(), self.timeout));
                    }
                    Signal::End => break Some(signal),
                },
            }
        };
        drop((words, reload));
        self.manager.stopping();
        ending::begin(self.tree, self.cells);
        if signal.is_some() {
            tracing::info!("told to end");
            return self.unmount(mount).await;
        }
        if let Err(error) = mount.clear() {
            tracing::warn!(%error, "it is unknown whether the mount is still there");
        }
        tracing::info!("unmounted");
        Ok(())
    }

    async fn unmount(&self, mount: &mut KernelMount) -> std::io::Result<()> {
        let end = Instant::now() + BUSY_GRACE;
        // Whoever still has something open must not take the kernel's copy for the present state. Nobody who holds a
        // page can delay the end.
        let _ = timeout_at(end, self.tree.invalidate_all()).await;
        mount.unmount()?;
        // Open files keep a busy mount alive; they fail when the process ends.
        let _ = timeout_at(end, mount.ended()).await;
        Ok(())
    }
}

/// Compares all cells with their services, and says when that is done.
async fn resync(cells: Arc<Cells>, manager: Manager, timeout: Duration) {
    manager.reloading();
    cells.resync(timeout).await;
    manager.reloaded();
}

/// The signals that a mount knows.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    /// Catches them from now on.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.hang_up.recv() => Signal::Resync,
        }
    }

    /// Waits until one asks for the end.
    pub async fn end(&mut self) {
        while self.next().await != Signal::End {}
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    End,
    Resync,
}
