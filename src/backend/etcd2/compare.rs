//! How a cell differs from what is shown, without reading what is equal.
//!
//! At the last point, all was equal. A key that was written since has a later modification revision, so etcd names it.
//! A key that etcd still has and does not name is as it was. So etcd has nothing but shown and named keys, and their
//! number says whether all of them are there: if it is smaller, some were deleted, and smaller and smaller ranges are
//! counted until those are found. All of that is read at one revision. Compaction takes no part of it away.
//!
//! This holds for one history. `lineage` says whether it is still the same one.

use std::cmp::Ordering;
use std::ops::Range;

use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};

use super::key::{first_key, node, version};
use super::lineage::Lineage;
use super::pages::{positive, prefix_end};
use super::{BackendError, Etcd, Failure, LIST_ATTEMPTS, Listing, Node, Revision, Version, connection};
use crate::backend::contract::{Compared, Shown};
use crate::backend::loading::Loading;
use crate::backend::mark::Mark;
use crate::name::TopoPath;

/// Most keys that are asked for because they were written since the last point. If there are more, a list is not much
/// larger, and needs fewer requests.
const MOST_CHANGED: i64 = 20_000;
/// Number of values that are read by one request.
const VALUES: usize = 64;
/// Ranges of so many keys are read by name, not halved further: as much as a few answers to a count.
const FEW: usize = 250;
/// Most counts of one search for deleted keys. What is not found by then is found by name, so a search ends, whatever a
/// server answers. Enough for four deletions anywhere among a million keys.
const COUNTS: usize = 64;
/// Keys of one page of names: about a megabyte.
const PAGE: i64 = 10_000;

/// A point at which somebody had all that etcd had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Equal {
    pub at: Revision,
    /// Number of keys that cannot be file names.
    pub skipped: u64,
    /// Of a moment before the point.
    pub lineage: Lineage,
}

/// What became of a history.
enum Since {
    /// These differences.
    Known(Compared),
    /// It cannot be told, or not for less than a whole list costs.
    Doubtful,
    /// There is another one instead.
    Replaced,
}

/// Keys, all of them known, of which etcd may have lost some.
struct Known<'a> {
    prefix: &'a str,
    /// In the order of their bytes.
    paths: Vec<TopoPath>,
    at: Revision,
}

/// What names have shown.
#[derive(Default)]
struct Missing {
    gone: Vec<TopoPath>,
    skipped: u64,
}

impl Etcd {
    /// The differences from what is shown, or the whole list if they cannot be known. Fails with [`Failure::Compacted`]
    /// if the history has been replaced by another one.
    pub(super) async fn compare_with(&self, shown: &dyn Shown, mark: &Mark) -> Result<Compared, BackendError> {
        let replaced = || BackendError::new(Failure::Compacted, "the service's history has been replaced");
        match self.since(shown, mark).await? {
            Since::Known(compared) => Ok(compared),
            Since::Replaced => Err(replaced()),
            Since::Doubtful => {
                let listing = self.list_root(&Loading::default()).await?;
                match listing.contradicts(shown) {
                    true => Err(replaced()),
                    false => Ok(Compared::Whole(listing)),
                }
            }
        }
    }

    /// The differences from what is shown, or the whole list if they cannot be known, or if the history has been
    /// replaced.
    pub(super) async fn differences_or_list(&self, shown: &dyn Shown, mark: &Mark) -> Result<Compared, BackendError> {
        match self.since(shown, mark).await? {
            Since::Known(compared) => Ok(compared),
            Since::Doubtful | Since::Replaced => self.list_root(&Loading::default()).await.map(Compared::Whole),
        }
    }

    async fn since(&self, shown: &dyn Shown, mark: &Mark) -> Result<Since, BackendError> {
        let Some(equal) = mark.get::<Equal>() else { return Ok(Since::Doubtful) };
        let mut attempt = 1;
        let compared = loop {
            let now = self.connection.newest(self.keys.prefix()).await?;
            let found = match now.cmp(&equal.at) {
                Ordering::Less => return Ok(Since::Replaced),
                Ordering::Equal => Ok(Some(nothing(equal))),
                Ordering::Greater => self.written_since(shown, equal, now).await,
            };
            match found {
                // A point between two that have just been compacted.
                Err(error) if error.failure == Failure::Compacted && attempt < LIST_ATTEMPTS => attempt += 1,
                found => break found?,
            }
        };
        let (Some((mut changed, gone)), Some(lineage)) = (compared, self.lineage().await) else {
            return Ok(Since::Doubtful);
        };
        match lineage.continues(&equal.lineage) {
            Some(true) => {
                changed.mark = Mark::new(Equal { at: changed.at, skipped: changed.skipped, lineage });
                Ok(Since::Known(Compared::Differences { changed, gone }))
            }
            Some(false) => Ok(Since::Replaced),
            None => Ok(Since::Doubtful),
        }
    }

    /// What differs at a later revision. `None` if that is too much, or makes no sense.
    async fn written_since(
        &self,
        shown: &dyn Shown,
        equal: &Equal,
        at: Revision,
    ) -> Result<Option<(Listing, Vec<TopoPath>)>, BackendError> {
        let end = prefix_end(self.keys.prefix().as_bytes());
        let options = GetOptions::new()
            .with_range(end)
            .with_revision(positive(at)?)
            .with_min_mod_revision(positive(equal.at)?.saturating_add(1))
            .with_keys_only()
            .with_limit(MOST_CHANGED);
        let page = self.connection.range(first_key(self.keys.prefix()), options).await?;
        // The number of all keys, also of those that were not written since.
        let count = page.count().cast_unsigned();
        if page.more() {
            return Ok(None);
        }
        let mut changed = Listing { at, skipped: equal.skipped, ..Listing::default() };
        let (mut differing, mut unseen): (Vec<TopoPath>, Vec<TopoPath>) = (Vec::new(), Vec::new());
        for kv in page.kvs() {
            let Some(path) = self.keys.path(kv.key()) else {
                // One that was made anew is counted twice, and the names tell.
                changed.skipped += u64::from(kv.create_revision().cast_unsigned() > equal.at.0);
                continue;
            };
            let known = shown.version(&path);
            if known.is_none() {
                unseen.push(path.clone());
            }
            if known != Some(version(kv)) {
                differing.push(path);
            }
        }
        let all = shown.count() as u64 + unseen.len() as u64 + changed.skipped;
        let gone = match count.cmp(&all) {
            Ordering::Equal => Vec::new(),
            Ordering::Greater => return Ok(None),
            Ordering::Less => {
                let known = Known::new(self.keys.prefix(), shown, unseen, at);
                // Nobody knows where those are that cannot be file names.
                let found = match changed.skipped {
                    0 => self.search(&known, count).await?,
                    most => self.names(&known, 0..known.paths.len(), most).await?,
                };
                let Some(missing) = found else { return Ok(None) };
                changed.skipped = missing.skipped;
                missing.gone
            }
        };
        let Some(nodes) = self.values(&differing, at).await? else { return Ok(None) };
        changed.nodes = nodes;
        Ok(Some((changed, gone)))
    }

    /// Finds the keys that are gone, if etcd has so many of the known ones and no others.
    async fn search(&self, known: &Known<'_>, count: u64) -> Result<Option<Missing>, BackendError> {
        let (mut parts, mut counts) = (vec![(0..known.paths.len(), count)], 0);
        let mut missing = Missing::default();
        while let Some((part, count)) = parts.pop() {
            match count.cmp(&(part.len() as u64)) {
                Ordering::Equal => {}
                Ordering::Greater => return Ok(None),
                Ordering::Less if part.len() <= FEW || counts == COUNTS => {
                    let Some(found) = self.names(known, part, 0).await? else { return Ok(None) };
                    missing.gone.extend(found.gone);
                }
                Ordering::Less => {
                    counts += 1;
                    let middle = part.start + part.len() / 2;
                    let (first, second) = (part.start..middle, middle..part.end);
                    let options = known.options(&first)?.with_count_only();
                    let there = self.connection.range(known.start(&first), options).await?.count().cast_unsigned();
                    let Some(rest) = count.checked_sub(there) else { return Ok(None) };
                    parts.extend([(first, there), (second, rest)]);
                }
            }
        }
        Ok(Some(missing))
    }

    /// Reads the names in a part of the known keys. `None` if there are others, or too many that cannot be file names.
    async fn names(
        &self,
        known: &Known<'_>,
        part: Range<usize>,
        most_skipped: u64,
    ) -> Result<Option<Missing>, BackendError> {
        let mut missing = Missing::default();
        let mut expected = known.paths.get(part.clone()).unwrap_or_default().iter().peekable();
        let mut start = known.start(&part);
        loop {
            let page = self.connection.range(start, known.options(&part)?.with_keys_only().with_limit(PAGE)).await?;
            for kv in page.kvs() {
                let Some(path) = self.keys.path(kv.key()) else {
                    missing.skipped += 1;
                    continue;
                };
                // Both are in the order of their bytes.
                while let Some(gone) = expected.next_if(|known| known.as_str() < path.as_str()) {
                    missing.gone.push(gone.clone());
                }
                if expected.next_if(|known| **known == path).is_none() {
                    return Ok(None);
                }
            }
            if missing.skipped > most_skipped {
                return Ok(None);
            }
            match page.kvs().last() {
                Some(last) if page.more() => start = [last.key(), &[0]].concat(),
                _ => break,
            }
        }
        missing.gone.extend(expected.cloned());
        Ok(Some(missing))
    }

    /// These nodes as they were at a revision. `None` if one was not there.
    async fn values(&self, paths: &[TopoPath], at: Revision) -> Result<Option<Vec<Node>>, BackendError> {
        let mut nodes = Vec::with_capacity(paths.len());
        for some in paths.chunks(VALUES) {
            let options = GetOptions::new().with_revision(positive(at)?);
            let gets: Vec<TxnOp> =
                some.iter().map(|path| TxnOp::get(self.keys.key(path), Some(options.clone()))).collect();
            let txn = Txn::new().and_then(gets);
            let answer = self
                .connection
                .read(|client| {
                    let txn = txn.clone();
                    async move { connection::kv(&client).txn(txn).await }
                })
                .await?;
            let answers = answer.op_responses().into_iter();
            let kvs = answers.filter_map(|answer| match answer {
                TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
                _ => None,
            });
            nodes.extend(kvs.filter_map(|kv| node(&self.keys, kv)));
        }
        Ok((nodes.len() == paths.len()).then_some(nodes))
    }
}

/// Nothing has happened.
fn nothing(equal: &Equal) -> (Listing, Vec<TopoPath>) {
    (Listing { at: equal.at, skipped: equal.skipped, ..Listing::default() }, Vec::new())
}

impl<'a> Known<'a> {
    fn new(prefix: &'a str, shown: &dyn Shown, unseen: Vec<TopoPath>, at: Revision) -> Self {
        let mut paths = unseen;
        shown.each(&mut |path, _: Version| paths.push(path.clone()));
        paths.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        Self { prefix, paths, at }
    }

    /// The first possible key of a part.
    fn start(&self, part: &Range<usize>) -> Vec<u8> {
        match part.start {
            0 => first_key(self.prefix),
            first => self.key(first),
        }
    }

    /// The range that ends before the next part.
    fn options(&self, part: &Range<usize>) -> Result<GetOptions, BackendError> {
        let end = if part.end >= self.paths.len() { prefix_end(self.prefix.as_bytes()) } else { self.key(part.end) };
        Ok(GetOptions::new().with_range(end).with_revision(positive(self.at)?))
    }

    fn key(&self, index: usize) -> Vec<u8> {
        let path = self.paths.get(index).map_or("", |path| path.as_str());
        [self.prefix, path].concat().into_bytes()
    }
}
