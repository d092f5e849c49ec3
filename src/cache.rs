//! What a cache holds and how much it helps, in numbers. Must never look at what is in it.

use std::hash::Hash;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// The figures of a cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheCount {
    /// Entries.
    pub entries: usize,
    /// Their weight.
    pub weight: u64,
    /// The most weight that it holds.
    pub capacity: u64,
    /// Questions that it has answered.
    pub hits: u64,
    /// Questions that it could not answer.
    pub misses: u64,
}

impl CacheCount {
    /// Those of a cache now.
    pub fn of<K: Eq + Hash, V: Clone, W: Weighter<K, V> + Clone>(cache: &Cache<K, V, W>) -> Self {
        Self {
            entries: cache.len(),
            weight: cache.weight(),
            capacity: cache.capacity(),
            hits: cache.hits(),
            misses: cache.misses(),
        }
    }
}
