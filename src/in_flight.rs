//! Work in flight: it goes on although nobody waits for it, and the next user of the same thing must wait for it.
//! close(2) does not wait for the release of the last descriptor, so a release may still be saving or unlocking when
//! somebody uses the same file again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Work in flight, by what it concerns. It needs no bound: each entry is a request or a task, and those are bounded.
#[derive(Debug)]
pub(crate) struct InFlight<K>(Arc<Mutex<Entries<K>>>);

/// How much work there is, and a signal for its end.
type Entries<K> = HashMap<K, (usize, Arc<Notify>)>;

impl<K> Default for InFlight<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One piece of work. It ends when this is dropped, so nobody waits for a task that has panicked.
#[derive(Debug)]
pub(crate) struct Work<K: Hash + Eq>(InFlight<K>, K);

impl<K: Hash + Eq + Clone> InFlight<K> {
    /// Work begins.
    #[must_use]
    pub fn begin(&self, key: K) -> Work<K> {
        self.0.lock().entry(key.clone()).or_default().0 += 1;
        Work(Self(self.0.clone()), key)
    }

    /// Whether work is in flight.
    pub fn contains(&self, key: &K) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Waits until the work that is in flight now has ended.
    pub async fn wait(&self, key: &K) {
        let Some(notify) = self.0.lock().get(key).map(|(_, notify)| notify.clone()) else { return };
        let notified = notify.notified();
        // It may have ended before this began to listen.
        if self.0.lock().get(key).is_some_and(|(_, known)| Arc::ptr_eq(known, &notify)) {
            notified.await;
        }
    }
}

impl<K: Hash + Eq> Drop for Work<K> {
    fn drop(&mut self) {
        let Self(all, key) = self;
        let mut all = all.0.lock();
        if let Some((count, notify)) = all.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                notify.notify_waiters();
                all.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_work_that_has_ended_or_panicked() {
        let all = InFlight::default();
        all.wait(&1).await;
        let (first, second) = (all.begin(1), all.begin(1));
        assert!(all.contains(&1) && !all.contains(&2));
        drop(first);
        assert!(all.contains(&1), "one of two goes on");
        let ends = tokio::spawn(async move {
            let _work = second;
            tokio::task::yield_now().await;
            panic!("in the middle of it")
        });
        let waited = tokio::time::timeout(std::time::Duration::from_secs(1), all.wait(&1)).await;
        assert!(waited.is_ok() && !all.contains(&1));
        assert!(ends.await.is_err());
    }
}
