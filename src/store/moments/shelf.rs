//! Keeps what was read, within bounds of number and bytes. Must never fail: what is not kept is read again.

use std::collections::HashMap;
use std::hash::Hash;

/// How many moments are kept. People compare two or three; what they shared with the mirrors may grow into a whole
/// topology each while the mirrors go on.
const MOST: usize = 8;
/// What the moments read for one user may hold, in bytes: a topology of 300,000 small records that have all changed.
pub(super) const PER_USER: usize = 256 << 20;
/// What all moments may hold, in bytes.
const IN_ALL: usize = 512 << 20;

/// Kept things, each for a user.
#[derive(Debug)]
pub(super) struct Shelf<K, V> {
    kept: HashMap<K, Kept<V>>,
    /// Counts uses.
    uses: u64,
}

#[derive(Debug)]
struct Kept<V> {
    value: V,
    uid: u32,
    bytes: usize,
    last_use: u64,
}

impl<K, V> Default for Shelf<K, V> {
    fn default() -> Self {
        Self { kept: HashMap::new(), uses: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shelf<K, V> {
    /// What is kept by this name.
    pub fn get(&mut self, key: &K) -> Option<V> {
        self.uses += 1;
        let kept = self.kept.get_mut(key)?;
        kept.last_use = self.uses;
        Some(kept.value.clone())
    }

    /// Keeps something for a user, and gives up what has to make room for it.
    pub fn put(&mut self, key: K, uid: u32, bytes: usize, value: V) {
        self.uses += 1;
        self.kept.insert(key, Kept { value, uid, bytes, last_use: self.uses });
        while self.bytes(|kept| kept.uid == uid) > PER_USER && self.give_up(uid) {}
        while self.kept.len() > MOST || self.bytes(|_| true) > IN_ALL {
            // What was put last fits if it is alone.
            let Some(uid) = self.greediest() else { return };
            self.give_up(uid);
        }
    }

    fn bytes(&self, counts: impl Fn(&Kept<V>) -> bool) -> usize {
        self.kept.values().filter(|kept| counts(kept)).map(|kept| kept.bytes).sum()
    }

    /// The user for whom most is kept, besides what was put last: who reads much takes little from others.
    fn greediest(&self) -> Option<u32> {
        let older = || self.kept.values().filter(|kept| kept.last_use < self.uses);
        let number = |uid: u32| older().filter(|kept| kept.uid == uid).count();
        let share = |uid: u32| (number(uid), self.bytes(|kept| kept.uid == uid));
        older().map(|kept| kept.uid).max_by_key(|uid| share(*uid))
    }

    /// Gives up what this user has not used for longest, but not what was put last.
    fn give_up(&mut self, uid: u32) -> bool {
        let own = self.kept.iter().filter(|(_, kept)| kept.uid == uid && kept.last_use < self.uses);
        let Some(oldest) = own.min_by_key(|(_, kept)| kept.last_use).map(|(key, _)| key.clone()) else { return false };
        self.kept.remove(&oldest).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut shelf = Shelf::default();
        (0..MOST).for_each(|key| shelf.put(key, 1, 0, key));
        assert_eq!(shelf.get(&0), Some(0));
        shelf.put(MOST, 1, 0, MOST);
        let kept: Vec<usize> = (0..=MOST).filter(|key| shelf.get(key).is_some()).collect();
        assert_eq!(kept, (0..=MOST).filter(|key| *key != 1).collect::<Vec<_>>());
    }

    #[test]
    fn who_reads_much_pushes_nobody_else_out() {
        let mut shelf = Shelf::default();
        shelf.put(1_000, 2, PER_USER, 0);
        (0..100).for_each(|key| shelf.put(key, 1, PER_USER / 2, 0));
        assert_eq!(shelf.get(&1_000), Some(0));
        assert_eq!((98..100).filter(|key| shelf.get(key).is_some()).count(), 2);
        assert!(shelf.get(&97).is_none());
    }

    proptest! {
        #[test]
        fn what_is_kept_has_bounds(puts in prop::collection::vec((0..12u8, 0..4u32, 0..PER_USER), 1..60)) {
            let mut shelf = Shelf::default();
            for (key, uid, bytes) in puts {
                shelf.put(key, uid, bytes, bytes);
                prop_assert_eq!(shelf.get(&key), Some(bytes), "what was put last is kept");
                prop_assert!(shelf.kept.len() <= MOST && shelf.bytes(|_| true) <= IN_ALL);
                for uid in 0..4 {
                    prop_assert!(shelf.bytes(|kept| kept.uid == uid) <= PER_USER);
                }
            }
        }
    }
}
