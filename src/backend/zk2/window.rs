//! How many nodes a bulk read asks for at once: more as long as answers come quickly, fewer over a slow line or where
//! the nodes are large. What was found out counts for later lists, too, so a list that has failed is read in the end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::loading::{Came, Haste};

/// Nodes of one request.
pub(super) const BATCH: usize = 64;
/// Number of requests at the same time; the answer to the oldest lets the next one go.
pub(super) const PIPELINE: usize = 8;
/// Nodes to begin with, before their size is known.
const FIRST: usize = 8;
/// How much less to ask for if there was no answer in time.
const TOO_LATE: usize = 8;

/// The nodes that may be asked for at once.
#[derive(Debug)]
pub(super) struct Window {
    nodes: AtomicUsize,
    haste: Haste,
}

impl Window {
    /// For a service that has so long for one call.
    pub fn within(call: Duration) -> Self {
        Self { nodes: AtomicUsize::new(FIRST), haste: Haste::within(call) }
    }

    /// Nodes of the next request.
    pub fn batch(&self) -> usize {
        self.nodes.load(Ordering::Relaxed).clamp(1, BATCH)
    }

    /// Most requests under way.
    pub fn requests(&self) -> usize {
        (self.nodes.load(Ordering::Relaxed) / BATCH).clamp(1, PIPELINE)
    }

    /// An answer has come, so long after it was asked for.
    pub fn came(&self, took: Duration) {
        self.change(|nodes| match self.haste.judge(took) {
            Came::Quickly => nodes * 2,
            Came::InTime => nodes,
            Came::Slowly => nodes / 4,
        });
    }

    /// No answer has come in time.
    pub fn is_late(&self) {
        self.change(|nodes| nodes / TOO_LATE);
    }

    fn change(&self, change: impl Fn(usize) -> usize) {
        let bounded = |nodes| Some(change(nodes).clamp(1, BATCH * PIPELINE));
        // It always has a new value.
        let _ = self.nodes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, bounded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_asked_for_while_answers_come_quickly_and_less_when_they_do_not() {
        let window = Window::within(Duration::from_secs(15));
        assert_eq!((window.batch(), window.requests()), (FIRST, 1));
        (0..3).for_each(|_| window.came(Duration::from_millis(1)));
        assert_eq!((window.batch(), window.requests()), (BATCH, 1));
        (0..10).for_each(|_| window.came(Duration::from_millis(1)));
        assert_eq!((window.batch(), window.requests()), (BATCH, PIPELINE));
        window.came(Duration::from_secs(1));
        assert_eq!((window.batch(), window.requests()), (BATCH, PIPELINE), "in time");
        window.came(Duration::from_secs(3));
        assert_eq!((window.batch(), window.requests()), (BATCH, 2));
        (0..2).for_each(|_| window.is_late());
        assert_eq!((window.batch(), window.requests()), (2, 1));
        (0..2).for_each(|_| window.is_late());
        assert_eq!((window.batch(), window.requests()), (1, 1));
    }
}
