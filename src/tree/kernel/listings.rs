//! Owns the listings of directories that are being read. No open directory remembers the position: the kernel keeps
//! whole listings, and opens directories without asking. A listing must never be used for another directory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};
use crate::tree::file::{DirEntry, FileId};

/// Bits of an offset that count entries. The other bits are the number of the listing.
const INDEX_BITS: u32 = 24;
/// How many listings are kept, so that a reader finds the rest of the listing that it has begun; and how many entries.
const LISTINGS: usize = 1_000;
const ENTRIES: usize = 300_000;
/// `.` and `..` come before the entries.
const DOTS: usize = 2;
/// The largest listing whose offsets all fit.
const LARGEST: usize = (1 << INDEX_BITS) - 1 - DOTS;

/// Listings that are being read.
#[derive(Debug, Default)]
pub(crate) struct Listings(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_number: BTreeMap<u64, KeptListing>,
    entries: usize,
    last: u64,
}

#[derive(Debug)]
struct KeptListing {
    /// The directory that was listed. Callers choose offsets, so an offset of another directory must not lead here.
    dir: FileId,
    /// The user who has listed it.
    uid: u32,
    entries: Arc<Vec<DirEntry>>,
}

impl Listings {
    /// A listing that was handed out for a directory.
    pub fn get(&self, number: u64, dir: &FileId) -> Option<Arc<Vec<DirEntry>>> {
        let kept = self.0.lock();
        kept.by_number.get(&number).filter(|listing| listing.dir == *dir).map(|listing| listing.entries.clone())
    }

    /// Keeps a listing and gives it a number. To make room, the user who keeps the most loses listings, the
    /// oldest first.
    /// Fails with EFBIG if the listing has more entries than offsets can count.
    pub fn keep(&self, dir: &FileId, uid: u32, entries: &Arc<Vec<DirEntry>>) -> Result<u64> {
        refuse_uncountable(entries.len())?;
        let mut kept = self.0.lock();
        kept.last += 1;
        let number = kept.last;
        kept.entries += entries.len();
        kept.by_number.insert(number, KeptListing { dir: dir.clone(), uid, entries: entries.clone() });
        while kept.by_number.len() > LISTINGS || kept.entries > ENTRIES {
            let Some(oldest) = kept.dispensable(number) else { break };
            if let Some(listing) = kept.by_number.remove(&oldest) {
                kept.entries -= listing.entries.len();
            }
        }
        Ok(number)
    }
}

/// An offset beyond the last that fits would name another place, so a reader would miss entries, or read some for ever.
fn refuse_uncountable(entries: usize) -> Result<()> {
    if entries > LARGEST {
        let reason = format!("the directory has {entries} entries; at most {LARGEST} can be listed");
        return Err(Error::new(Kind::TooLarge, reason));
    }
    Ok(())
}

impl Kept {
    /// The oldest listing of the user who keeps the most, but not the newest of all.
    fn dispensable(&self, newest: u64) -> Option<u64> {
        let mut shares: HashMap<u32, usize> = HashMap::new();
        for listing in self.by_number.values() {
            // An empty listing counts, too.
            *shares.entry(listing.uid).or_default() += listing.entries.len() + 1;
        }
        let others = || self.by_number.iter().filter(|(number, _)| **number != newest);
        let largest = others().map(|(_, listing)| listing.uid).max_by_key(|uid| shares.get(uid))?;
        others().find(|(_, listing)| listing.uid == largest).map(|(number, _)| *number)
    }
}

/// The rest of a listing.
#[derive(Debug, Clone)]
pub struct Listing {
    number: u64,
    entries: Arc<Vec<DirEntry>>,
    /// How many entries have been read, `.` and `..` among them.
    passed: usize,
}

impl Listing {
    /// Those of `.` and `..` that have not been read yet, each with the offset behind it.
    pub fn dots(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [".", ".."].into_iter().enumerate().skip(self.passed).map(|(index, name)| (name, self.offset(index + 1)))
    }

    /// The entries that have not been read yet, each with the offset behind it.
    pub fn entries(&self) -> impl Iterator<Item = (&DirEntry, u64)> {
        let entries = self.entries.iter().enumerate().skip(self.passed.saturating_sub(DOTS));
        entries.map(|(index, entry)| (entry, self.offset(index + 1 + DOTS)))
    }

    fn offset(&self, passed: usize) -> u64 {
        self.number << INDEX_BITS | passed as u64
    }
}

impl Listing {
    /// What an offset asks for: the number of a listing, and how many of its entries have been read. No listing has the
    /// number 0.
    pub fn place(offset: u64) -> (u64, usize) {
        (offset >> INDEX_BITS, usize::try_from(offset & ((1 << INDEX_BITS) - 1)).unwrap_or(usize::MAX))
    }

    /// A listing from a position on.
    pub(crate) fn from(number: u64, entries: Arc<Vec<DirEntry>>, passed: usize) -> Self {
        Self { number, entries, passed }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(count: usize) -> Arc<Vec<DirEntry>> {
        // Without a name: there are many, and nobody reads them.
        Arc::new(vec![DirEntry { name: String::new(), file: FileId::Root }; count])
    }

    #[test]
    fn a_listing_is_of_the_directory_that_it_was_handed_out_for() {
        let listings = Listings::default();
        let number = listings.keep(&FileId::Root, 0, &entries(3)).unwrap();
        assert!(listings.get(number, &FileId::Root).is_some());
        assert!(listings.get(number, &FileId::Control).is_none());
        assert!(listings.get(number + 1, &FileId::Root).is_none(), "a number that was not handed out leads nowhere");
    }

    #[test]
    fn who_lists_most_loses_its_own_listings() {
        let listings = Listings::default();
        let other = listings.keep(&FileId::Root, 1, &entries(10)).unwrap();
        let first = listings.keep(&FileId::Root, 2, &entries(1)).unwrap();
        for _ in 0..2 * LISTINGS {
            listings.keep(&FileId::Root, 2, &entries(1)).unwrap();
        }
        assert!(listings.get(other, &FileId::Root).is_some() && listings.get(first, &FileId::Root).is_none());
        let large = listings.keep(&FileId::Root, 2, &entries(2 * ENTRIES)).unwrap();
        assert!(listings.get(large, &FileId::Root).is_some(), "however large it is");
        assert!(listings.0.lock().by_number.len() <= 2, "{:?}", listings.0.lock().by_number.len());
    }

    /// What comes next: the dots, and the entries, each with the offset behind it.
    fn names(listing: &Listing) -> [Vec<(String, u64)>; 2] {
        let bits = (1 << INDEX_BITS) - 1;
        let entries = listing.entries().map(|(entry, offset)| (entry.name.clone(), offset & bits));
        let dots = listing.dots().map(|(name, offset)| (name.to_owned(), offset & bits));
        [dots.collect(), entries.collect()]
    }

    #[test]
    fn an_offset_names_the_listing_and_what_comes_next() {
        let entries: Vec<_> = ["a", "b"].map(|name| DirEntry { name: name.to_owned(), file: FileId::Root }).into();
        let listing = |passed| Listing { number: 7, entries: Arc::new(entries.clone()), passed };
        let [dot, dots, a, b] =
            [(".", 1), ("..", 2), ("a", 3), ("b", 4)].map(|(name, offset)| (name.to_owned(), offset));
        assert_eq!(names(&listing(0)), [vec![dot, dots.clone()], vec![a.clone(), b.clone()]]);
        assert_eq!(names(&listing(1)), [vec![dots], vec![a.clone(), b.clone()]]);
        assert_eq!(names(&listing(2)), [vec![], vec![a, b.clone()]]);
        assert_eq!(names(&listing(3)), [vec![], vec![b]]);
        assert_eq!(names(&listing(4)), [vec![], vec![]]);
        assert_eq!(names(&listing(usize::MAX)), [vec![], vec![]], "nothing that a caller supplies is out of bounds");
        assert!(listing(0).entries().all(|(_, offset)| offset >> INDEX_BITS == 7));
    }

    #[test]
    fn a_listing_with_more_entries_than_offsets_count_is_refused() {
        refuse_uncountable(LARGEST).unwrap();
        assert_eq!(refuse_uncountable(LARGEST + 1).unwrap_err().kind, Kind::TooLarge);
        let listing = Listing { number: 7, entries: entries(0), passed: 0 };
        assert_eq!(Listing::place(listing.offset(DOTS + LARGEST)), (7, DOTS + LARGEST));
        let beyond = DOTS + LARGEST + 1;
        assert_ne!(Listing::place(listing.offset(beyond)), (7, beyond));
    }

    #[test]
    fn as_many_listings_are_kept_as_may_be() {
        let listings = Listings::default();
        let numbers: Vec<u64> = (0..LISTINGS).map(|_| listings.keep(&FileId::Root, 1, &entries(0)).unwrap()).collect();
        let kept = |number: u64| listings.get(number, &FileId::Root).is_some();
        assert!(numbers.iter().all(|number| kept(*number)));
        listings.keep(&FileId::Root, 1, &entries(0)).unwrap();
        assert!(!kept(numbers[0]) && kept(numbers[1]), "the oldest gives way");
    }

    #[test]
    fn as_many_entries_are_kept_as_may_be() {
        let listings = Listings::default();
        let kept = |number: u64| listings.get(number, &FileId::Root).is_some();
        let other = listings.keep(&FileId::Root, 2, &entries(ENTRIES / 4)).unwrap();
        let own: Vec<u64> = (0..3).map(|_| listings.keep(&FileId::Root, 1, &entries(ENTRIES / 4)).unwrap()).collect();
        assert!(kept(other) && own.iter().all(|number| kept(*number)));
        let last = listings.keep(&FileId::Root, 3, &entries(1)).unwrap();
        assert!(kept(other) && !kept(own[0]) && kept(own[1]) && kept(last), "of the user who keeps the most");
        // A new listing never gives way.
        let large = listings.keep(&FileId::Root, 3, &entries(ENTRIES + 1)).unwrap();
        assert!(kept(large) && !kept(other) && !kept(last));
    }

    #[test]
    fn many_listings_weigh_as_much_as_large_ones() {
        let listings = Listings::default();
        let keep = |uid, size| listings.keep(&FileId::Root, uid, &entries(size)).unwrap();
        let kept = |number: u64| listings.get(number, &FileId::Root).is_some();
        let other = keep(2, 5);
        let own: Vec<u64> = (0..LISTINGS).map(|_| keep(1, 0)).collect();
        assert!(kept(other) && !kept(own[0]) && kept(own[1]), "empty ones count, too");
        // Whoever keeps the most, not whoever came last.
        let listings = Listings::default();
        let keep = |uid, size| listings.keep(&FileId::Root, uid, &entries(size)).unwrap();
        let [most, less, _] = [(1, ENTRIES / 2), (2, ENTRIES / 4), (3, ENTRIES / 2)].map(|(uid, size)| keep(uid, size));
        assert!(listings.get(most, &FileId::Root).is_none() && listings.get(less, &FileId::Root).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_is_counted_is_the_sum_of_what_is_kept(
            sizes in prop::collection::vec((0..4u32, prop_oneof![0..10usize, 0..ENTRIES]), 0..8),
        ) {
            let listings = Listings::default();
            for (uid, size) in sizes {
                let number = listings.keep(&FileId::Root, uid, &entries(size)).unwrap();
                let kept = listings.0.lock();
                prop_assert!(kept.by_number.contains_key(&number));
                let sum: usize = kept.by_number.values().map(|listing| listing.entries.len()).sum();
                prop_assert_eq!(kept.entries, sum);
                prop_assert!(sum <= ENTRIES);
            }
        }
    }
}
