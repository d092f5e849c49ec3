//! Work that goes on although nobody waits for it, and that the next who comes must wait for: close(2) does not wait for the
//! last descriptor's release, so what a release saves or unlocks may still be under way when the same file is used again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// What is under way, by what it concerns.
#[derive(Debug)]
pub(crate) struct UnderWay<K>(Mutex<HashMap<K, (usize, Arc<Notify>)>>);

impl<K> Default for UnderWay<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> UnderWay<K> {
    /// Work begins.
    pub fn begin(&self, key: K) {
        self.0.lock().entry(key).or_default().0 += 1;
    }

    /// Work that was begun has ended.
    pub fn end(&self, key: &K) {
        let mut under_way = self.0.lock();
        if let Some((count, notify)) = under_way.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                notify.notify_waiters();
                under_way.remove(key);
            }
        }
    }

    /// Whether work is under way.
    pub fn contains(&self, key: &K) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Waits until what is under way now has ended.
    pub async fn wait(&self, key: &K) {
        let Some(notify) = self.0.lock().get(key).map(|(_, notify)| notify.clone()) else { return };
        let notified = notify.notified();
        // It may have ended before we listened.
        if self.0.lock().get(key).is_some_and(|(_, known)| Arc::ptr_eq(known, &notify)) {
            notified.await;
        }
    }
}
