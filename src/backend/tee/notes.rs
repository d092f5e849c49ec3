//! What a tee knows of its secondary without asking it: which updates are under way, and which have failed. Must never
//! be taken for all that differs: others write, too, and whoever was killed has left no note.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use crate::backend::contract::{BackendError, Change, Failure};
use crate::in_flight::{self, InFlight};
use crate::name::TopoPath;

/// Number of failed updates to remember. Further ones are only known to exist; comparing finds them.
const REMEMBERED: usize = 10_000;
/// Number of updates that may wait for the secondary at the same time. One more is not tried.
pub(super) const WAITING: usize = 256;

/// An update of the secondary.
#[derive(Debug)]
pub(super) struct Work {
    /// The records.
    pub paths: Vec<TopoPath>,
    /// The locks at the secondary that guard it.
    pub fences: Vec<Change>,
    /// It counts as under way as long as this is there.
    pub _under_way: Vec<in_flight::Work<TopoPath>>,
}

/// An update that did not reach the secondary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Why.
    pub cause: Arc<str>,
    /// Since when the record may differ.
    pub since: SystemTime,
}

/// Updates that did not reach the secondary.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    /// By record.
    pub known: BTreeMap<TopoPath, Failed>,
    /// Whether there were more.
    pub more: bool,
    /// Since when the secondary does not answer, and the last reason.
    pub away: Option<(SystemTime, Arc<str>)>,
}

/// A moment in the order of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

/// Failures, each with its number in the order in which they came.
#[derive(Debug, Default)]
struct Numbered {
    all: Failures,
    numbers: HashMap<TopoPath, u64>,
    count: u64,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Notes {
    failures: Mutex<Numbered>,
    under_way: InFlight<TopoPath>,
    pub tasks: TaskTracker,
}

impl Notes {
    /// Updates begin.
    pub fn begin(&self, paths: &[TopoPath]) -> Vec<in_flight::Work<TopoPath>> {
        paths.iter().map(|path| self.under_way.begin(path.clone())).collect()
    }

    pub fn is_under_way(&self, path: &TopoPath) -> bool {
        self.under_way.contains(path)
    }

    /// Now: what is read from the primary after this shows every change whose update has failed before.
    pub fn now(&self) -> Moment {
        Moment(self.failures.lock().count)
    }

    /// The records at the secondary are what the primary had at this moment. A failure since then is of a later change.
    pub fn forget(&self, paths: &[TopoPath], at: Moment) {
        let mut failures = self.failures.lock();
        for path in paths {
            if failures.numbers.get(path).is_some_and(|number| *number <= at.0) {
                failures.numbers.remove(path);
                failures.all.known.remove(path);
            }
        }
    }

    /// The secondary has answered.
    pub fn back(&self) {
        self.failures.lock().all.away = None;
    }

    /// The secondary keeps a caller waiting.
    pub fn away(&self) {
        let cause = || (SystemTime::now(), "no answer".into());
        self.failures.lock().all.away.get_or_insert_with(cause);
    }

    /// Whether the secondary does not answer, so that nobody should wait for it.
    pub fn is_away(&self) -> bool {
        self.failures.lock().all.away.is_some()
    }

    /// Since when it does not answer, and the last reason.
    pub fn away_since(&self) -> Option<(SystemTime, Arc<str>)> {
        self.failures.lock().all.away.clone()
    }

    pub fn has_failures(&self) -> bool {
        !self.failures.lock().all.known.is_empty()
    }

    /// The records at the secondary may differ now.
    pub fn failed(&self, paths: &[TopoPath], error: &BackendError) {
        let (cause, since): (Arc<str>, _) = (error.message.as_str().into(), SystemTime::now());
        let mut noted = self.failures.lock();
        let Numbered { all: failures, numbers, count } = &mut *noted;
        if error.failure == Failure::Unreachable {
            let since = failures.away.as_ref().map_or(since, |(since, _)| *since);
            failures.away = Some((since, cause.clone()));
        }
        for path in paths {
            let since = failures.known.get(path).map_or(since, |known| known.since);
            if failures.known.len() < REMEMBERED || failures.known.contains_key(path) {
                failures.known.insert(path.clone(), Failed { cause: cause.clone(), since });
                *count += 1;
                numbers.insert(path.clone(), *count);
            } else {
                failures.more = true;
            }
        }
    }

    /// Everything was compared: only these still differ.
    pub fn compared(&self) {
        self.failures.lock().all.more = false;
    }

    pub fn failures(&self) -> Failures {
        self.failures.lock().all.clone()
    }

    /// Waits for the updates that are under way.
    pub async fn settle(&self, patience: Duration) {
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!("updates have not reached the secondary in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_failures_are_remembered() {
        let notes = Notes::default();
        let path = |number: usize| TopoPath::parse(&format!("f{number}")).unwrap();
        let denied = BackendError::new(Failure::Denied, "no");
        (0..REMEMBERED).for_each(|number| notes.failed(&[path(number)], &denied));
        assert!(!notes.failures().more && !notes.is_away());
        let first = notes.failures().known[&path(0)].since;
        notes.failed(&[path(0)], &BackendError::new(Failure::Unreachable, "gone"));
        let failures = notes.failures();
        assert_eq!((failures.known.len(), failures.more), (REMEMBERED, false));
        assert_eq!(failures.known[&path(0)], Failed { cause: "gone".into(), since: first }, "it differs since then");
        assert!(notes.is_away());
        notes.failed(&[path(REMEMBERED)], &denied);
        assert!(notes.failures().more);
        notes.forget(&[path(0)], notes.now());
        notes.back();
        assert_eq!(notes.failures().known.len(), REMEMBERED - 1);
        assert!(!notes.is_away());
    }

    #[test]
    fn an_update_that_succeeds_does_not_hide_the_failure_of_a_later_one() {
        let (notes, path) = (Notes::default(), TopoPath::parse("a").unwrap());
        let denied = BackendError::new(Failure::Denied, "no");
        let read = notes.now();
        notes.failed(std::slice::from_ref(&path), &denied);
        notes.forget(std::slice::from_ref(&path), read);
        assert!(notes.has_failures(), "what was read before does not show the later change");
        notes.forget(std::slice::from_ref(&path), notes.now());
        assert!(!notes.has_failures());
    }
}
