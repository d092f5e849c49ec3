//! How a cell differs from what is shown, without reading what is equal.
//!
//! A prefix has an index: the highest of its keys and of its tombstones. Whatever happens below it gets a higher one
//! than there was anywhere in the store. So the index of the whole cell, a few bytes, says whether anything has
//! happened since the last point, and the search of the watch (`changes`) finds what it was.
//!
//! Consul forgets tombstones after 15 minutes, and the index falls back. So it says nothing of deletions that may be
//! older than that, and an index that is lower than it was says nothing at all: the store may have been restored.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::time::Instant;

use super::changes::Changes;
use super::{BackendError, Consul, Failure, Listing, Node, Pair, Revision};
use crate::backend::contract::{Compared, Shown};
use crate::backend::loading::Loading;
use crate::backend::mark::Mark;
use crate::name::TopoPath;

/// How long a deletion certainly leaves a tombstone: 15 minutes, with time to spare for clocks and for slow answers.
const TOMBSTONES: Duration = Duration::from_secs(10 * 60);
/// How many of the keys that were written last show whether the store was restored.
const NEWEST: usize = 8;
/// Most keys that cannot be file names and are remembered. With more of them, every comparison is with a whole list.
const ODD_KEYS: usize = 10_000;

/// A point at which somebody had all that Consul had.
#[derive(Debug)]
pub(super) struct Equal {
    /// When it was asked for.
    since: Instant,
    /// The index of the whole store: all that has happened since has a higher one.
    at: u64,
    /// The index of the cell, asked for after that.
    cell: u64,
    /// The keys that cannot be file names, with their ModifyIndex.
    odd: BTreeMap<String, u64>,
}

/// The indexes at one moment.
pub(super) struct Moment {
    since: Instant,
    at: u64,
    cell: u64,
}

impl Moment {
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The mark of a list that was begun after this.
    pub fn mark(&self, odd: BTreeMap<String, u64>) -> Mark {
        // If something has happened between the two questions, the index of the cell is no sign.
        match odd.len() <= ODD_KEYS && self.cell <= self.at {
            true => Mark::new(Equal { since: self.since, at: self.at, cell: self.cell, odd }),
            false => Mark::default(),
        }
    }
}

impl Consul {
    /// The index of the whole store, and then that of the cell.
    pub(super) async fn moment(&self) -> Result<Moment, BackendError> {
        let since = Instant::now();
        let at = self.client.newest().await?;
        Ok(Moment { since, at, cell: self.client.index_of(self.keys.prefix()).await? })
    }

    /// The differences from what is shown, or the whole list if they cannot be known.
    pub(super) async fn compare_with(&self, shown: &dyn Shown, mark: &Mark) -> Result<Compared, BackendError> {
        if let Some(equal) = mark.get::<Equal>()
            && let Some(compared) = self.since(shown, equal).await?
        {
            return Ok(compared);
        }
        let listing = self.list_root(&Loading::default()).await?.0;
        match listing.contradicts(shown) {
            true => Err(BackendError::new(Failure::Compacted, "Consul's store was replaced")),
            false => Ok(Compared::Whole(listing)),
        }
    }

    async fn since(&self, shown: &dyn Shown, equal: &Equal) -> Result<Option<Compared>, BackendError> {
        self.rights.check().await?;
        let now = self.moment().await?;
        let has_tombstones = equal.since.elapsed() < TOMBSTONES;
        if now.at < equal.at || now.cell < equal.cell {
            return Ok(None);
        }
        match (now.cell == equal.cell, has_tombstones) {
            (true, true) => Ok(Some(differences(&now, Vec::new(), Vec::new(), equal.odd.clone()))),
            (true, false) => self.deleted(shown, equal, &now).await,
            (false, true) if self.is_restored(shown).await? => Ok(None),
            (false, true) => self.searched(shown, equal, &now).await,
            (false, false) => Ok(None),
        }
    }

    /// Whether one of the keys that were written last is as it was before: a store that is restored, and written to
    /// since, has a higher index, but where nothing was written nobody would look.
    async fn is_restored(&self, shown: &dyn Shown) -> Result<bool, BackendError> {
        let mut newest = BinaryHeap::new();
        shown.each(&mut |path, version| {
            newest.push(Reverse((version.number, path.clone())));
            if newest.len() > NEWEST {
                newest.pop();
            }
        });
        let looks = newest.into_iter().map(|Reverse((number, path))| async move {
            let found = self.client.pair(&self.keys.key(&path)).await?.value;
            Ok(found.is_some_and(|pair| pair.modify_index < number))
        });
        futures::stream::iter(looks).buffered(NEWEST).try_any(|is_older| async move { is_older }).await
    }

    /// All keys that are shown or cannot be, with their ModifyIndex.
    fn known(&self, shown: &dyn Shown, equal: &Equal) -> BTreeMap<String, u64> {
        let mut known = equal.odd.clone();
        shown.each(&mut |path, version| {
            known.insert(self.keys.key(path), version.number);
        });
        known
    }

    /// Nothing was stored since: whatever has happened are deletions, and the names show them.
    async fn deleted(&self, shown: &dyn Shown, equal: &Equal, now: &Moment) -> Result<Option<Compared>, BackendError> {
        let mut known = self.known(shown, equal);
        for key in self.client.keys(self.keys.prefix()).await?.value {
            // Another one: the store is not what it was.
            if known.remove(&key).is_none() {
                return Ok(None);
            }
        }
        let gone: Vec<String> = known.into_keys().collect();
        self.rights.gone(&gone, now.at).await?;
        let mut odd = equal.odd.clone();
        odd.retain(|key, _| gone.binary_search(key).is_err());
        let gone = gone.iter().filter_map(|key| self.keys.path(key.as_bytes())).collect();
        Ok(Some(differences(now, Vec::new(), gone, odd)))
    }

    /// Looks where the index has moved.
    async fn searched(&self, shown: &dyn Shown, equal: &Equal, now: &Moment) -> Result<Option<Compared>, BackendError> {
        let known = self.known(shown, equal);
        let mut changes =
            Changes::knowing(self.client.clone(), self.rights.clone(), self.keys.clone(), equal.at, known);
        let events = match changes.found(now.at).await {
            Ok(events) => events,
            // Too much has changed.
            Err(error) if error.failure == Failure::Compacted => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut nodes, mut gone) = (Vec::new(), Vec::new());
        for event in events {
            match event.node {
                Some(node) => nodes.push(node),
                None => gone.push(event.path),
            }
        }
        let odd = changes.into_known().into_iter().filter(|(key, _)| self.keys.path(key.as_bytes()).is_none());
        Ok(Some(differences(now, nodes, gone, odd.collect())))
    }

    /// Everything, with the mark for a comparison.
    pub(super) async fn list_root(&self, loading: &Loading) -> Result<(Listing, Vec<Pair>), BackendError> {
        let now = self.moment().await?;
        let (mut listing, pairs) = self.list_prefix(self.keys.prefix(), now.at(), loading).await?;
        let odd = pairs.iter().filter(|pair| self.keys.path(pair.key.as_bytes()).is_none());
        listing.mark = now.mark(odd.take(ODD_KEYS + 1).map(|pair| (pair.key.clone(), pair.modify_index)).collect());
        Ok((listing, pairs))
    }
}

fn differences(now: &Moment, nodes: Vec<Node>, gone: Vec<TopoPath>, odd: BTreeMap<String, u64>) -> Compared {
    let skipped = odd.len() as u64;
    let changed = Listing { nodes, at: Revision(now.at), skipped, mark: now.mark(odd), ..Listing::default() };
    Compared::Differences { changed, gone }
}
