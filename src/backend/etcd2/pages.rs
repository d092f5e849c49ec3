//! Lists in pages: all keys below a prefix at one revision, of now or of the past. Must never hold more than a page.

use etcd_client::{GetOptions, KeyValue};

use super::key::header_revision;
use super::{BackendError, Etcd, Failure, Revision};

/// Target size of a page of a listing: well below every message limit on the way.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Keys of the first page, before the size of the values is known.
const FIRST_PAGE: i64 = 256;
/// Most keys of one page.
const LARGEST_PAGE: i64 = 10_000;

/// Takes the keys one by one, and ends the list with its first error.
type TakeKey<'a> = dyn FnMut(KeyValue) -> Result<(), BackendError> + Send + 'a;

impl Etcd {
    /// Takes all keys below a prefix at a revision, or now. Returns the revision.
    pub(super) async fn pages(
        &self,
        prefix: &str,
        at: Option<Revision>,
        take: &mut TakeKey<'_>,
    ) -> Result<Revision, BackendError> {
        let end = prefix_end(prefix.as_bytes());
        let mut at = at.map(|at| positive(at).map(|_| at)).transpose()?;
        // An empty key is not allowed; NUL is the first possible key.
        let mut start = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let mut limit = FIRST_PAGE;
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if let Some(at) = at {
                options = options.with_revision(positive(at)?);
            }
            let mut page = self.get_range(start.clone(), options).await?;
            let shown = match at {
                Some(at) => at,
                None => header_revision(page.header())?,
            };
            at = Some(shown);
            let more = page.more();
            let kvs = page.take_kvs();
            match kvs.last() {
                Some(last) => start = [last.key(), &[0]].concat(),
                None if more => return Err(BackendError::new(Failure::Other, "etcd promises more keys, but has none")),
                None => {}
            }
            limit = next_page(&kvs);
            kvs.into_iter().try_for_each(&mut *take)?;
            if !more {
                return Ok(shown);
            }
        }
    }
}

/// A revision as etcd takes it: 0 and less would mean the newest.
pub(super) fn positive(at: Revision) -> Result<i64, BackendError> {
    let positive = i64::try_from(at.0).ok().filter(|at| *at > 0);
    positive.ok_or_else(|| BackendError::new(Failure::NotKept, format!("{} is not a revision of etcd", at.0)))
}

fn next_page(kvs: &[KeyValue]) -> i64 {
    let bytes: usize = kvs.iter().map(|kv| kv.key().len() + kv.value().len() + 32).sum();
    let average = bytes / kvs.len().max(1) + 1;
    i64::try_from(PAGE_BYTES / average).unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE)
}

/// The end of the key range of a prefix.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // All keys.
    vec![0]
}
