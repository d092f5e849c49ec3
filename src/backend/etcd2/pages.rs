//! Lists in pages: all keys below a prefix at one revision, of now or of the past. Must never hold more than two pages:
//! one is read while the one before is taken.
//!
//! With each page, etcd counts all keys that are left, so many small pages of a large cell cost more than its content.
//! So pages grow as long as they come quickly.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{GetOptions, KeyValue};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Connection, LARGEST_PAGE};
use super::key::{first_key, header_revision};
use super::{BackendError, Etcd, Failure, Revision};
use crate::alive;
use crate::backend::loading::{Came, Haste, Loading};

/// Keys of the first page, before the size of the values is known.
const FIRST_PAGE: usize = 32;
/// Target size of the second page, and bounds of those after it, in bytes. The largest is far below the answer that a
/// client takes (`connection::MAX_ANSWER`): the next values may be larger than those before. The smallest comes in time
/// over a line of a kilobyte a second.
const PAGE_BYTES: Bounds = Bounds { first: 2 << 20, smallest: 8 << 10, largest: 32 << 20 };
/// Most bytes of a list: as much as an etcd holds by default (`--quota-backend-bytes`). A server that sends more would
/// use up the memory of all cells.
const LARGEST_LIST: usize = 2 << 30;
/// How much a page shrinks whose values turn out too large for one answer.
const TOO_LARGE_FACTOR: usize = 8;

/// Takes the keys one by one, and ends the list with its first error.
type TakeKey<'a> = dyn FnMut(KeyValue) -> Result<(), BackendError> + Send + 'a;

struct Bounds {
    first: usize,
    smallest: usize,
    largest: usize,
}

impl Etcd {
    /// Takes all keys below a prefix at a revision, or now. Returns the revision.
    pub(super) async fn pages(
        &self,
        prefix: &str,
        at: Option<Revision>,
        loading: &Loading,
        take: &mut TakeKey<'_>,
    ) -> Result<Revision, BackendError> {
        let start = first_key(prefix);
        let at = at.map(positive).transpose()?;
        let range = Range { end: prefix_end(prefix.as_bytes()), start, at, limit: FIRST_PAGE };
        let mut size = PageSize::within(self.connection.timeout());
        let mut page = range.read(&self.connection).await?;
        let mut bytes = 0;
        loop {
            loading.answered(page.keys.len());
            bytes += page.keys.iter().map(stored_size).sum::<usize>();
            if bytes > LARGEST_LIST {
                let message = format!("the list is larger than {} MiB", LARGEST_LIST >> 20);
                return Err(BackendError::new(Failure::TooLarge, message));
            }
            let next = page.rest.take().map(|rest| {
                let limit = size.limit(&page.keys, page.took);
                Range { limit, ..rest }.read_ahead(&self.connection)
            });
            std::mem::take(&mut page.keys).into_iter().try_for_each(&mut *take)?;
            page = match next {
                None => return Ok(page.at),
                Some(next) => next.await.unwrap_or_else(|error| {
                    Err(BackendError::new(Failure::Other, format!("a page of the list was not read: {error}")))
                })?,
            };
        }
    }
}

/// The keys that are still to be read.
#[derive(Clone)]
struct Range {
    start: Vec<u8>,
    end: Vec<u8>,
    /// `None` for the present, which the first page decides.
    at: Option<i64>,
    /// Most keys of the next page.
    limit: usize,
}

/// A page of a list.
struct Page {
    keys: Vec<KeyValue>,
    at: Revision,
    /// How long it took.
    took: Duration,
    /// What comes after it.
    rest: Option<Range>,
}

impl Range {
    /// Reads the first page in a task of its own: another processor reads it while this one takes the page before.
    fn read_ahead(self, connection: &Arc<Connection>) -> AbortOnDropHandle<Result<Page, BackendError>> {
        let connection = connection.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let read = alive::guarded("a page of a list", self.read(&connection)).await;
            read.unwrap_or_else(|panic| Err(BackendError::new(Failure::Other, panic.to_string())))
        }))
    }

    /// Reads the first page. If the values are too large for one answer, the page is a smaller one. If it does not come
    /// in time, a smaller one is asked for once.
    async fn read(mut self, connection: &Connection) -> Result<Page, BackendError> {
        let mut was_late = false;
        loop {
            self.limit = self.limit.min(connection.page_keys.get());
            let begun = Instant::now();
            match self.try_read(connection).await {
                Err(error) if error.failure == Failure::TooLarge && self.limit > 1 => self.limit /= TOO_LARGE_FACTOR,
                // A server that is not there says so sooner.
                Err(error)
                    if error.failure == Failure::Unreachable
                        && begun.elapsed() >= connection.timeout().mul_f64(0.5) =>
                {
                    connection.page_keys.is_late(self.limit);
                    if self.limit == 1 || std::mem::replace(&mut was_late, true) {
                        return Err(error);
                    }
                }
                read => {
                    if let Ok(page) = &read {
                        connection.page_keys.came(Haste::within(connection.timeout()).judge(page.took));
                    }
                    return read;
                }
            }
            self.limit = self.limit.max(1);
        }
    }

    async fn try_read(&self, connection: &Connection) -> Result<Page, BackendError> {
        let begun = Instant::now();
        let mut options = GetOptions::new().with_range(self.end.clone()).with_limit(self.limit as i64);
        if let Some(at) = self.at {
            options = options.with_revision(at);
        }
        let mut answer = connection.range(self.start.clone(), options).await?;
        let at = match self.at {
            Some(at) => Revision(at.cast_unsigned()),
            None => header_revision(answer.header())?,
        };
        let (more, keys) = (answer.more(), answer.take_kvs());
        let rest = match keys.last() {
            _ if !more => None,
            Some(last) => Some(Range { start: [last.key(), &[0]].concat(), at: Some(positive(at)?), ..self.clone() }),
            None => return Err(BackendError::new(Failure::Other, "etcd promises more keys, but has none")),
        };
        Ok(Page { keys, at, took: begun.elapsed(), rest })
    }
}

/// A revision as etcd takes it: 0 and less would mean the newest.
pub(super) fn positive(at: Revision) -> Result<i64, BackendError> {
    let positive = i64::try_from(at.0).ok().filter(|at| *at > 0);
    positive.ok_or_else(|| BackendError::new(Failure::NotKept, format!("{} is not a revision of etcd", at.0)))
}

/// The size of pages.
struct PageSize {
    /// The target of the last page, in bytes; `None` before the second.
    target: Option<usize>,
    haste: Haste,
}

impl PageSize {
    /// Each page must come within the time for one call.
    fn within(time: Duration) -> Self {
        Self { target: None, haste: Haste::within(time) }
    }

    /// How many keys to ask for after a page that took so long.
    fn limit(&mut self, keys: &[KeyValue], took: Duration) -> usize {
        self.after(keys.iter().map(stored_size).sum(), keys.len(), took)
    }

    fn after(&mut self, bytes: usize, keys: usize, took: Duration) -> usize {
        let target = match (self.target, self.haste.judge(took)) {
            // As much as comes in time at the pace of the first page.
            (None, _) => {
                let in_time = bytes as f64 * (self.haste.slow.as_secs_f64() / took.as_secs_f64().max(f64::EPSILON));
                PAGE_BYTES.first.min(in_time as usize).max(PAGE_BYTES.smallest)
            }
            (Some(before), Came::Quickly) => before.saturating_mul(2).min(PAGE_BYTES.largest),
            (Some(before), Came::Slowly) => (before / 4).max(PAGE_BYTES.smallest),
            (Some(before), Came::InTime) => before,
        };
        self.target = Some(target);
        let average = (bytes / keys.max(1)).max(BESIDE);
        (target / average).clamp(1, LARGEST_PAGE)
    }
}

/// What a key costs beside its name and its value, in bytes.
const BESIDE: usize = 32;

/// What a key costs, in bytes.
fn stored_size(kv: &KeyValue) -> usize {
    kv.key().len() + kv.value().len() + BESIDE
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

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Duration = Duration::from_secs(15);
    const QUICK: Duration = Duration::from_millis(500);
    const SLOW: Duration = Duration::from_secs(2);

    #[test]
    fn pages_grow_while_they_come_quickly_and_shrink_when_they_do_not() {
        let mut size = PageSize::within(CALL);
        let page = |size: &mut PageSize, took| size.after(1_000 * 1_000, 1_000, took);
        assert_eq!(page(&mut size, QUICK), (2 << 20) / 1_000);
        assert_eq!(page(&mut size, QUICK), (4 << 20) / 1_000);
        assert_eq!(page(&mut size, SLOW), (4 << 20) / 1_000, "neither quick nor slow");
        let largest = (0..20).map(|_| page(&mut size, QUICK)).last();
        assert_eq!(largest, Some((32 << 20) / 1_000));
        let smallest = (0..20).map(|_| page(&mut size, SLOW * 2)).last();
        assert_eq!(smallest, Some((8 << 10) / 1_000));
        // The first page came over a slow line: the second is as large as what comes in time.
        assert_eq!(page(&mut PageSize::within(CALL), SLOW * 2), 500);
        assert_eq!(page(&mut PageSize::within(CALL), SLOW * 1_000), (8 << 10) / 1_000);
        // If a call may take one second, a page of half a second is already a slow one.
        let mut hurried = PageSize { target: Some(4 << 20), ..PageSize::within(Duration::from_secs(1)) };
        assert_eq!(page(&mut hurried, QUICK), (1 << 20) / 1_000);
    }

    #[test]
    fn a_page_has_a_key_at_least_and_not_too_many() {
        assert_eq!(PageSize::within(CALL).after(100 << 20, 1, QUICK), 1);
        let mut size = PageSize { target: Some(PAGE_BYTES.largest), ..PageSize::within(CALL) };
        assert_eq!(size.after(10, 10, QUICK), LARGEST_PAGE);
        assert_eq!(size.after(0, 0, QUICK), LARGEST_PAGE, "a page without keys");
    }
}
