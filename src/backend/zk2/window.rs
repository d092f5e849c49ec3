//! How many nodes a bulk read asks for at once: more as long as answers come quickly, fewer over a slow line or where
//! the nodes are large.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::loading::{Came, Ceiling, Haste};

/// Nodes of one request.
pub(super) const BATCH: usize = 64;
/// Number of requests at the same time; the answer to the oldest lets the next one go.
pub(super) const PIPELINE: usize = 8;
/// Nodes to begin with, before their size is known.
const FIRST: usize = 8;

/// The nodes that may be asked for at once.
#[derive(Debug)]
pub(super) struct Window {
    nodes: AtomicUsize,
    ceiling: Ceiling,
    haste: Haste,
}

impl Window {
    /// For a service that has so long for one call.
    pub fn within(call: Duration) -> Self {
        let (nodes, ceiling) = (AtomicUsize::new(FIRST), Ceiling::new(BATCH * PIPELINE));
        Self { nodes, ceiling, haste: Haste::within(call) }
    }

    fn nodes(&self) -> usize {
        self.nodes.load(Ordering::Relaxed).min(self.ceiling.get()).max(1)
    }

    /// Nodes of the next request.
    pub fn batch(&self) -> usize {
        self.nodes().min(BATCH)
    }

    /// Most requests under way.
    pub fn requests(&self) -> usize {
        (self.nodes() / BATCH).clamp(1, PIPELINE)
    }

    /// An answer has come, so long after it was asked for.
    pub fn came(&self, took: Duration) {
        let came = self.haste.judge(took);
        self.ceiling.came(came);
        let nodes = match came {
            Came::Quickly => self.nodes() * 2,
            Came::InTime => self.nodes(),
            Came::Slowly => self.nodes() / 4,
        };
        // Of two answers at once, one counts.
        self.nodes.store(nodes.min(BATCH * PIPELINE), Ordering::Relaxed);
    }

    /// No answer has come in time.
    pub fn is_late(&self) {
        self.ceiling.is_late(self.nodes());
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
        window.is_late();
        assert_eq!((window.batch(), window.requests()), (128 / 8, 1));
        window.is_late();
        // What comes quickly may be followed by something large.
        (0..10).for_each(|_| window.came(Duration::from_millis(1)));
        assert_eq!((window.batch(), window.requests()), (2, 1));
    }
}
