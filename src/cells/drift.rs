//! What differs at the second place of a cell, and how often that is found out. Must never cost more than a small part
//! of the time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::backend::tee::{Failures, is_mirrored};
use crate::mirror::{Health, Record};
use crate::name::TopoPath;

/// A difference that is younger is not counted: another writer may be about to bring it to the secondary.
const SETTLING: Duration = Duration::from_secs(1);

/// Comparing all records takes at most one part in so many of the time, however often somebody looks: a comparison is
/// used for so many times as long as it took.
const SHARE: u32 = 20;
/// But not for longer than this: a thread may have lost its processor meanwhile.
const OLDEST: Duration = Duration::from_secs(5);

/// What differs at the second place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Records that are missing there.
    pub missing: usize,
    /// Records that have another value there.
    pub different: usize,
    /// Records that exist only there.
    pub left_over: usize,
    /// Whether both places are known. Otherwise more may differ.
    pub is_complete: bool,
    /// Since when at least one record has differed.
    pub since: Option<SystemTime>,
    /// One of them, in words.
    pub example: Option<String>,
}

impl Drift {
    /// How many records differ.
    pub fn count(&self) -> usize {
        self.missing + self.different + self.left_over
    }

    pub(super) fn add(&mut self, path: &TopoPath, here: Option<&Record>, there: Option<&Record>, failures: &Failures) {
        let (count, words) = match (here, there) {
            (Some(_), None) => (&mut self.missing, "missing at the secondary"),
            (None, Some(_)) => (&mut self.left_over, "left over at the secondary"),
            (Some(_) | None, _) => (&mut self.different, "different at the secondary"),
        };
        *count += 1;
        let failed = failures.known.get(path);
        let since = failed.map(|failed| failed.since).or_else(|| changed(here, there));
        self.since = self.since.into_iter().chain(since).min();
        // One whose cause is known says more.
        if self.example.is_none() || failed.is_some() && !self.example.as_ref().is_some_and(|text| text.contains('(')) {
            let cause = failed.map_or_else(String::new, |failed| format!(" ({})", failed.cause));
            let hint = match is_mirrored(path) {
                true => "",
                false => "; CellInfo records differ on purpose and are not repaired: add or remove it there",
            };
            self.example = Some(format!("{path}: {words}{cause}{hint}"));
        }
    }
}

/// When a record last changed at either place, as far as known.
pub(super) fn changed(here: Option<&Record>, there: Option<&Record>) -> Option<SystemTime> {
    here.into_iter().chain(there).map(|record| record.modified).max()
}

/// Whether it changed just now. A time in the future is of another clock.
pub(super) fn is_young(changed: Option<SystemTime>, now: SystemTime) -> bool {
    changed.is_some_and(|changed| match now.duration_since(changed) {
        Ok(age) => age < SETTLING,
        Err(ahead) => ahead.duration() < SETTLING,
    })
}

/// What two mirrors had published when they were compared.
pub(super) type Compared = (u64, u64, Health);

/// A comparison.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    /// Of what; `None` if time alone may change it.
    pub of: Option<Compared>,
    pub drift: Arc<Drift>,
    /// It is not made again before this.
    until: Instant,
}

impl Comparison {
    /// One that has just been made, and was begun then.
    pub(super) fn new(of: Option<Compared>, drift: Drift, begun: Instant) -> Self {
        let now = Instant::now();
        let until = now + (now - begun).saturating_mul(SHARE).min(OLDEST);
        Self { of, drift: Arc::new(drift), until }
    }

    /// Whether it says what another one would, or another one would cost too much now.
    pub(super) fn counts(&self, state: Option<&Compared>, has_failures: bool) -> bool {
        Instant::now() < self.until || self.of.is_some() && self.of.as_ref() == state && !has_failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_is_not_made_again_before_twenty_times_as_long_as_it_took() {
        let took = Duration::from_millis(100);
        let state = |published| Some((published, 1, Health::Live));
        let comparison = |of| Comparison::new(of, Drift::default(), Instant::now() - took);
        let known = comparison(state(1));
        assert!(known.until >= Instant::now() + took * (SHARE - 1));
        assert!(known.counts(state(2).as_ref(), true), "a steady writer makes it no more expensive");
        let expired = |of| Comparison { until: Instant::now(), ..comparison(of) };
        assert!(!expired(state(1)).counts(state(2).as_ref(), false));
        assert!(!expired(state(1)).counts(state(1).as_ref(), true), "a failed update may have come there meanwhile");
        assert!(expired(state(1)).counts(state(1).as_ref(), false), "nothing has changed");
        assert!(!expired(None).counts(None, false), "time alone may change it");
    }
}
