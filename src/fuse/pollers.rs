//! Owns the open files that wait in poll(2) until there is more to read. Each waits once, and there must never be more
//! than a bound, for one user and in all.

use std::collections::HashMap;

use fuser::PollNotifier;
use parking_lot::Mutex;

use super::UNOPENED;

/// Open files that may wait, for one user and in all. A program has one, or a few.
const OF_USER: usize = 256;
const ALL: usize = 4_096;

/// An open file that waits.
#[derive(Debug)]
pub(super) struct Poller<N = PollNotifier> {
    pub uid: u32,
    /// The open file, if it was opened here.
    pub handle: u64,
    pub notifier: N,
}

/// All that wait, by the kernel's number for the open file.
#[derive(Debug)]
pub(super) struct Pollers<N = PollNotifier>(Mutex<HashMap<u64, Poller<N>>>);

impl<N> Default for Pollers<N> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<N> Pollers<N> {
    /// Adds an open file. `None` if too many wait. Otherwise this may return one that gives way: wake it, so that it
    /// asks again.
    pub fn add(&self, waiter: u64, poller: Poller<N>) -> Option<Option<N>> {
        let mut all = self.0.lock();
        let mut gives_way = None;
        if !all.contains_key(&waiter) {
            let of_user = || all.values().filter(|known| known.uid == poller.uid).count();
            if all.len() >= ALL || of_user() >= OF_USER {
                // A kernel that opens without asking does not report closed files either: any of these may be closed.
                let unopened = |known: &Poller<N>| known.handle == UNOPENED && known.uid == poller.uid;
                let oldest = all.iter().filter(|(_, known)| unopened(known)).map(|(name, _)| *name).min()?;
                gives_way = all.remove(&oldest).map(|poller| poller.notifier);
            }
        }
        all.insert(waiter, poller);
        Some(gives_way)
    }

    /// A file is closed.
    pub fn closed(&self, handle: u64) {
        if handle != UNOPENED {
            self.0.lock().retain(|_, poller| poller.handle != handle);
        }
    }

    /// Removes all of them, to wake them.
    pub fn take(&self) -> Vec<N> {
        std::mem::take(&mut *self.0.lock()).into_values().map(|poller| poller.notifier).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(pollers: &Pollers<u64>, waiter: u64, uid: u32, handle: u64) -> bool {
        pollers.add(waiter, Poller { uid, handle, notifier: waiter }).is_some()
    }

    #[test]
    fn an_open_file_waits_once_however_often_it_is_asked() {
        let pollers = Pollers::default();
        assert!((0..100_000).all(|_| add(&pollers, 7, 0, 1)));
        assert_eq!(pollers.take(), [7]);
    }

    #[test]
    fn who_waits_too_often_is_refused_and_nobody_else() {
        let pollers = Pollers::default();
        assert!((1..=OF_USER as u64).all(|number| add(&pollers, number, 1, number)));
        assert!(!add(&pollers, 1_000, 1, 1_000) && add(&pollers, 1, 1, 1) && add(&pollers, 2_000, 2, 2_000));
        pollers.closed(1);
        assert!(add(&pollers, 1_000, 1, 1_000), "who closes makes room");
    }

    #[test]
    fn where_nothing_is_closed_the_oldest_gives_way() {
        let pollers = Pollers::default();
        assert!((0..10_000).all(|number| add(&pollers, number, 1, UNOPENED)));
        let left = pollers.take();
        assert!(left.len() == OF_USER && left.contains(&9_999) && !left.contains(&0));
    }

    #[test]
    fn users_together_have_a_bound_too() {
        let pollers = Pollers::default();
        for uid in 0..100 {
            for number in 0..OF_USER as u64 {
                let _ = add(&pollers, 1 + u64::from(uid) * 1_000 + number, uid, 1);
            }
        }
        assert_eq!(pollers.take().len(), ALL);
    }
}
