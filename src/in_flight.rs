//! Work in flight: it goes on although nobody waits for it, and whoever uses the same thing next must wait for it. close(2)
//! does not wait until the last descriptor is released, so the save or unlock of a release may still be in flight when the same
//! file is used again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Work in flight, by what it concerns.
#[derive(Debug)]
pub(crate) struct InFlight<K>(Mutex<HashMap<K, (usize, Arc<Notify>)>>);

impl<K> Default for InFlight<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> InFlight<K> {
    /// Work begins.
    pub fn begin(&self, key: K) {
        self.0.lock().entry(key).or_default().0 += 1;
    }

    /// Work that was begun has ended.
    pub fn end(&self, key: &K) {
        let mut in_flight = self.0.lock();
        if let Some((count, notify)) = in_flight.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                notify.notify_waiters();
                in_flight.remove(key);
            }
        }
    }

    /// Whether work is in flight.
    pub fn contains(&self, key: &K) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Waits until the work that is in flight now has ended.
    pub async fn wait(&self, key: &K) {
        let Some(notify) = self.0.lock().get(key).map(|(_, notify)| notify.clone()) else { return };
        let notified = notify.notified();
        // It may have ended before we listened.
        if self.0.lock().get(key).is_some_and(|(_, known)| Arc::ptr_eq(known, &notify)) {
            notified.await;
        }
    }
}
