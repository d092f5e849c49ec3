//! Comparing a mirror with its service while the watch goes on: what a watch has lost is found, merged and counted.
//!
//! The service is asked for its differences from what is shown, which costs little where there are none. Now and then
//! it is asked for everything, whatever it says about differences.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use tokio::time::Instant;

use super::{Mirror, Snapshot};
use crate::backend::{BackendError, Compared, Failure, Listing, Mark, WatchStream};
use crate::name::TopoPath;

/// How long the watch may lag behind a comparison before its undelivered changes count as missed.
const RESYNC_GRACE: Duration = Duration::from_secs(2);
/// The share of the resync interval that a comparison may take which nobody waits for: it ends before the next one,
/// also if that comes early.
const LEISURE: f64 = 0.75;
/// How long differences alone may be asked for. Then everything is read: what differences cannot show (a disk of the
/// service that was put back to an earlier state without a trace, a fault of topofs itself) lasts no longer. A thousand
/// mounts then list one cell of a service every 22 seconds.
const WHOLE_LIST: Duration = Duration::from_secs(6 * 60 * 60);

/// Where a mirror and its service were equal.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    mark: Mark,
    /// When a whole list was last merged.
    whole: Instant,
}

impl Default for Agreed {
    fn default() -> Self {
        Self { mark: Mark::default(), whole: Instant::now() }
    }
}

impl Agreed {
    /// After what has been merged.
    pub fn after(self, compared: &Compared) -> Self {
        match compared {
            Compared::Whole(listing) => Self { mark: listing.mark.clone(), whole: Instant::now() },
            Compared::Differences { changed, .. } => Self { mark: changed.mark.clone(), ..self },
        }
    }

    /// Whether everything must be read.
    fn is_old(&self) -> bool {
        self.whole.elapsed() >= WHOLE_LIST
    }
}

impl Mirror {
    /// Compares at leisure, as it is done at intervals: the service may spread its work. If somebody asks for a
    /// comparison meanwhile, that one is made instead.
    pub(super) async fn compare_at_leisure(&self, stream: &mut WatchStream) -> Result<(), BackendError> {
        let time = self.options.resync_interval.mul_f64(LEISURE);
        tokio::select! {
            compared = self.compare(stream, time) => return compared,
            () = self.resync.notified() => {}
        }
        self.compare_now(stream).await
    }

    /// Compares because somebody has asked for it.
    pub(super) async fn compare_now(&self, stream: &mut WatchStream) -> Result<(), BackendError> {
        self.backend.reread_secrets().await;
        self.compare(stream, Duration::ZERO).await
    }

    /// Begins a watch: with a whole list, or with what has happened since mirror and service were last equal.
    pub(super) async fn connect(&self) -> Result<(Compared, WatchStream), BackendError> {
        self.state.lock().begin_list();
        let (shown, agreed) = (self.snapshot(), self.agreed.lock().clone());
        // What is doubtful, or could not be read for a while, is read again.
        let is_sound = self.is_loaded() && !self.state.is_doubted() && !self.is_denied();
        if !is_sound || agreed.is_old() {
            let (listing, stream) = self.backend.follow().await?;
            return Ok((Compared::Whole(listing), stream));
        }
        let connected = self.backend.follow_again(&*shown, &agreed.mark).await?;
        if matches!(&connected.0, Compared::Differences { changed, .. } if changed.at < shown.at) {
            *self.agreed.lock() = Agreed::default();
            return Err(gone_back());
        }
        Ok(connected)
    }

    /// A whole list of the history that is shown.
    async fn everything(&self, shown: &Snapshot) -> Result<Compared, BackendError> {
        let listing = self.backend.list(&TopoPath::root()).await?;
        if listing.contradicts(shown) {
            // What was agreed on is of another history.
            *self.agreed.lock() = Agreed::default();
            return Err(gone_back());
        }
        Ok(Compared::Whole(listing))
    }

    /// Compares with the service while the watch goes on. A change counts as missed only if the watch has not delivered
    /// it after a grace time.
    async fn compare(&self, stream: &mut WatchStream, time: Duration) -> Result<(), BackendError> {
        let (shown, begun) = (self.snapshot(), SystemTime::now());
        let agreed = self.agreed.lock().clone();
        let everything = agreed.is_old() | self.reread.swap(false, Ordering::Relaxed);
        let asked = async {
            match everything {
                true => self.everything(&shown).await,
                false => self.backend.compare(&*shown, &agreed.mark, time).await,
            }
        };
        let compared = self.merge_until(stream, asked).await??;
        let at = compared.listing().at;
        if at < shown.at {
            return Err(gone_back());
        }
        self.merge_until(stream, tokio::time::sleep(RESYNC_GRACE)).await?;
        let agreed = agreed.after(&compared);
        let missed = self.take_over(compared);
        *self.agreed.lock() = agreed;
        self.history.compared(missed > 0, begun, SystemTime::now());
        self.state.lock().forget_deletions(at);
        self.counters.resyncs.fetch_add(1, Ordering::Relaxed);
        self.counters.missed.fetch_add(missed, Ordering::Relaxed);
        if missed > 0 {
            tracing::warn!(missed, "the watch missed changes; a comparison with the service has found them");
        }
        Ok(())
    }

    /// Merges events until the other future ends.
    async fn merge_until<T>(&self, stream: &mut WatchStream, done: impl Future<Output = T>) -> Result<T, BackendError> {
        tokio::pin!(done);
        loop {
            tokio::select! {
                value = &mut done => return Ok(value),
                batch = stream.next() => match batch {
                    Some(batch) => self.merge(batch?),
                    None => return Err(BackendError::new(Failure::Unreachable, "the watch ended")),
                },
            }
        }
    }

    pub(super) fn count_skipped(&self, listing: &Listing) {
        self.counters.skipped.store(listing.skipped, Ordering::Relaxed);
        self.counters.unnameable.store(listing.skipped.saturating_sub(listing.ephemeral), Ordering::Relaxed);
    }

    fn take_over(&self, compared: Compared) -> u64 {
        self.count_skipped(compared.listing());
        let mut count = 0;
        self.change(false, |state| {
            let updates = state.reconcile(compared, SystemTime::now());
            count = updates.len() as u64;
            updates
        });
        count
    }
}

fn gone_back() -> BackendError {
    BackendError::new(Failure::Compacted, "the service's history has gone back")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn differences_do_not_put_off_the_next_whole_list() {
        let differences = Compared::Differences { changed: Listing::default(), gone: Vec::new() };
        let agreed = Agreed::default();
        tokio::time::advance(WHOLE_LIST / 2).await;
        let agreed = agreed.after(&differences);
        assert!(!agreed.is_old());
        tokio::time::advance(WHOLE_LIST / 2).await;
        let agreed = agreed.after(&differences);
        assert!(agreed.is_old());
        assert!(!agreed.after(&Compared::Whole(Listing::default())).is_old());
    }
}
