//! Reading directories, without an open directory to keep the place in: the kernel keeps whole listings, and opens
//! directories without asking.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Attr, DirEntry, Node, Tree};
use crate::error::Result;

/// Bits of an offset that count entries; the rest names the listing.
const INDEX_BITS: u32 = 24;
/// Listings kept, so that whoever reads on finds the rest of the same one, and their entries.
const LISTINGS: usize = 1_000;
const ENTRIES: usize = 300_000;
/// `.` and `..` come before the entries.
const DOTS: usize = 2;

/// Listings that are being read.
#[derive(Debug, Default)]
pub(super) struct Listings(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_number: BTreeMap<u64, Arc<Vec<DirEntry>>>,
    entries: usize,
    last: u64,
}

impl Listings {
    fn new_number(&self) -> u64 {
        let mut kept = self.0.lock();
        kept.last += 1;
        kept.last
    }

    fn get(&self, number: u64) -> Option<Arc<Vec<DirEntry>>> {
        self.0.lock().by_number.get(&number).cloned()
    }

    /// Keeps a listing; the oldest give way, however large this one is.
    fn keep(&self, number: u64, entries: &Arc<Vec<DirEntry>>) {
        let mut kept = self.0.lock();
        kept.entries += entries.len();
        if let Some(replaced) = kept.by_number.insert(number, entries.clone()) {
            kept.entries -= replaced.len();
        }
        while kept.by_number.len() > LISTINGS || (kept.entries > ENTRIES && kept.by_number.len() > 1) {
            let Some((_, oldest)) = kept.by_number.pop_first() else { return };
            kept.entries -= oldest.len();
        }
    }
}

/// The rest of a listing.
#[derive(Debug, Clone)]
pub struct Listing {
    number: u64,
    entries: Arc<Vec<DirEntry>>,
    /// How many are passed, the dots among them.
    passed: usize,
}

impl Listing {
    /// Which of `.` and `..` are still to come, with the offsets behind them.
    pub fn dots(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [".", ".."].into_iter().enumerate().skip(self.passed).map(|(index, name)| (name, self.offset(index + 1)))
    }

    /// The entries still to come, with the offsets behind them.
    pub fn entries(&self) -> impl Iterator<Item = (&DirEntry, u64)> {
        let entries = self.entries.iter().enumerate().skip(self.passed.saturating_sub(DOTS));
        entries.map(|(index, entry)| (entry, self.offset(index + 1 + DOTS)))
    }

    fn offset(&self, passed: usize) -> u64 {
        self.number << INDEX_BITS | passed as u64
    }
}

impl Tree {
    /// A directory from an offset on; 0 looks anew. Entries keep their offsets while they are read on, whatever comes
    /// and goes meanwhile.
    pub async fn listing(&self, ino: u64, offset: u64) -> Result<Listing> {
        let passed = usize::try_from(offset & ((1 << INDEX_BITS) - 1)).unwrap_or(usize::MAX);
        let number = match offset {
            0 => self.listings.new_number(),
            _ => offset >> INDEX_BITS,
        };
        if let Some(entries) = self.listings.get(number) {
            return Ok(Listing { number, entries, passed });
        }
        let node = self.node(ino)?;
        if let Node::Dir(cell, path) = &node {
            self.cell(cell)?.snapshot().await?;
            self.require_dir(cell, path).await?;
            self.gives_lasting(cell);
        }
        let entries = Arc::new(self.list(&node).await?);
        self.listings.keep(number, &entries);
        Ok(Listing { number, entries, passed })
    }

    /// An entry with its attributes; the kernel knows the inode from then on. `None` if it has gone meanwhile.
    pub fn entry_told(&self, entry: &DirEntry) -> Option<Attr> {
        // Known first: whatever is published from now on is told to the kernel.
        let ino = self.inodes.told(&entry.node);
        let attr = match &entry.node {
            Node::Dir(..) => Ok(self.dir_attr()),
            node => self.attr_now(node),
        };
        match attr {
            Ok(attr) => Some(self.answered(&entry.node, ino, attr)),
            Err(_) => {
                self.inodes.forget(ino, 1);
                None
            }
        }
    }

    /// Attributes of a directory that is listed.
    pub fn listed_dir_attr(&self, ino: u64) -> Attr {
        Attr { ino, ..self.dir_attr() }
    }

    /// The inode number of an entry of a listing.
    pub fn number(&self, entry: &DirEntry) -> u64 {
        self.inodes.number(&entry.node)
    }
}
