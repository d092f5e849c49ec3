//! How large a request the servers accept, as far as that is known. `admit` finds out what is not known.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Requests below this size are not tried first, because no server has so small a limit. After a lost request, they
/// are.
const SMALL: usize = 16 << 10;
/// How long a refusal counts, because the limit may have been raised.
const REMEMBERED: Duration = Duration::from_secs(30);

/// What is known about the limit.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    accepted: AtomicUsize,
    refused: Mutex<Option<(usize, Instant)>>,
}

impl Sizes {
    /// Whether the servers accept a request of so many bytes; `None` if that must be tried. After a lost request
    /// (`doubtful`), earlier successes do not count.
    pub fn admits(&self, bytes: usize, doubtful: bool) -> Option<bool> {
        if doubtful {
            self.accepted.store(0, Ordering::Relaxed);
        } else if bytes <= SMALL {
            return Some(true);
        }
        if bytes <= self.accepted.load(Ordering::Relaxed) {
            return Some(true);
        }
        lately(*self.refused.lock()).is_some_and(|limit| bytes >= limit).then_some(false)
    }

    /// A server has read a request of so many bytes.
    pub fn accept(&self, bytes: usize) {
        self.accepted.fetch_max(bytes, Ordering::Relaxed);
    }

    /// A server has not read a request of so many bytes.
    pub fn refuse(&self, bytes: usize) {
        let mut refused = self.refused.lock();
        let smallest = lately(*refused).map_or(bytes, |limit| limit.min(bytes));
        *refused = Some((smallest, Instant::now()));
    }
}

/// The smallest request that was recently refused.
fn lately(refused: Option<(usize, Instant)>) -> Option<usize> {
    refused.filter(|(_, when)| when.elapsed() < REMEMBERED).map(|(limit, _)| limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 2 << 20;

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_tried_again_after_a_while() {
        let sizes = Sizes::default();
        assert_eq!(sizes.admits(SMALL, false), Some(true));
        assert_eq!(sizes.admits(LARGE, false), None, "nobody knows");
        sizes.refuse(LARGE);
        sizes.refuse(2 * LARGE);
        assert_eq!(sizes.admits(LARGE, false), Some(false), "the smallest refusal counts");
        assert_eq!(sizes.admits(LARGE - 1, false), None);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(sizes.admits(LARGE, false), None, "the limit may have been raised");
    }

    #[test]
    fn after_a_lost_request_nothing_counts_that_was_accepted() {
        let sizes = Sizes::default();
        sizes.accept(LARGE);
        assert_eq!(sizes.admits(LARGE, false), Some(true));
        assert_eq!(sizes.admits(1, true), None, "not even a small one");
        assert_eq!(sizes.admits(LARGE, false), None);
    }
}
