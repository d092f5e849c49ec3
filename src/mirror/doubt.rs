//! The state of a mirror. A panic makes it doubtful.
//!
//! A task that panics while it changes the state leaves half of a change behind, and the lock does not notice. Until a
//! fresh list has replaced the state, no part of it counts as current.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::state::{Snapshot, State};

/// A state, and whether it is reliable.
#[derive(Debug)]
pub(super) struct Doubtful {
    state: Mutex<State>,
    /// Counts the panics that made it doubtful.
    raised: watch::Sender<u64>,
    /// The number of panics that a fresh list has settled.
    settled: AtomicU64,
}

impl Default for Doubtful {
    fn default() -> Self {
        Self { state: Mutex::default(), raised: watch::Sender::new(0), settled: AtomicU64::new(0) }
    }
}

impl Doubtful {
    /// The state, to change it.
    pub fn lock(&self) -> Changing<'_> {
        Changing { all: self, state: self.state.lock() }
    }

    /// A task has panicked that may have been changing the state.
    pub fn doubt(&self) {
        self.raised.send_modify(|raised| *raised += 1);
    }

    /// Whether there are panics that no list has settled.
    pub fn is_doubted(&self) -> bool {
        *self.raised.borrow() != self.settled.load(Ordering::Acquire)
    }

    /// A request for a fresh list begins. The snapshot replaces a doubtful state: the snapshot is whole, because it
    /// changes by one assignment. Returns the panics that the list settles.
    pub fn renew(&self, shown: &Snapshot) -> u64 {
        let mut state = self.lock();
        let doubts = *self.raised.borrow();
        if doubts != self.settled.load(Ordering::Acquire) {
            *state = State::of(shown.clone());
        }
        doubts
    }

    /// The fresh list is now the state. Panics since its request stay unsettled.
    pub fn settle(&self, doubts: u64) {
        self.settled.store(doubts, Ordering::Release);
    }

    /// Waits until there are more panics than these.
    pub async fn doubted(&self, doubts: u64) {
        let mut raised = self.raised.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        let _ = raised.wait_for(|raised| *raised != doubts).await;
    }
}

/// A state that is being changed.
pub(super) struct Changing<'a> {
    all: &'a Doubtful,
    state: MutexGuard<'a, State>,
}

impl Deref for Changing<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // This happens before the lock is free.
        if std::thread::panicking() {
            self.all.doubt();
        }
    }
}
