//! How long a mirror waits between attempts to connect. Waits for nothing itself: the time is told.

use std::time::Duration;

use backon::BackoffBuilder;
use tokio::time::Instant;

use crate::backend::Failure;

/// First and longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same while the service refuses us: only a person can change that, and checking a password is expensive for the
/// service.
pub(super) const DENIED_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// The same if a list is too large: each attempt costs the service as much as it can send, and the cell does not become
/// small within seconds.
const TOO_LARGE_PAUSES: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(300));
/// A watch that has lasted so long begins the pauses anew. One that breaks earlier does not: each attempt lists the
/// whole cell, and many mounts may do so.
const STEADY: Duration = Duration::from_secs(5);

/// How long to wait between attempts to connect.
#[derive(Debug)]
pub(super) struct Pace {
    limits: (Duration, Duration),
    backoff: backon::ExponentialBackoff,
    /// Since when there has been a watch.
    watching: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { limits: PAUSES, backoff: backoff(PAUSES), watching: None }
    }
}

impl Pace {
    /// A watch begins.
    pub fn watches(&mut self, now: Instant) {
        self.watching = Some(now);
    }

    /// The attempt has failed, or its watch has ended. Returns the pause before the next one.
    pub fn after(&mut self, failure: Failure, now: Instant) -> Duration {
        let limits = limits(failure);
        let lasted = self.watching.take().is_some_and(|since| now.saturating_duration_since(since) >= STEADY);
        if lasted || self.limits != limits {
            *self = Self { limits, backoff: backoff(limits), watching: None };
        }
        self.backoff.next().unwrap_or(limits.1)
    }
}

fn limits(failure: Failure) -> (Duration, Duration) {
    match failure {
        Failure::Denied => DENIED_PAUSES,
        Failure::TooLarge => TOO_LARGE_PAUSES,
        _ => PAUSES,
    }
}

fn backoff((first, longest): (Duration, Duration)) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses after attempts whose watch lasted so long; `None` if there was none.
    fn pauses(pace: &mut Pace, failure: Failure, lasted: Option<Duration>, attempts: usize) -> Vec<Duration> {
        let begun = Instant::now();
        let mut pause = || {
            lasted.into_iter().for_each(|_| pace.watches(begun));
            pace.after(failure, begun + lasted.unwrap_or_default())
        };
        (0..attempts).map(|_| pause()).collect()
    }

    /// Jitter adds up to the pause itself.
    fn assert_between(pause: Duration, (first, longest): (Duration, Duration)) {
        assert!((first..=longest * 2).contains(&pause), "{pause:?}");
    }

    #[test]
    fn pauses_grow_also_if_each_list_succeeds_and_its_watch_breaks_at_once() {
        for lasted in [None, Some(Duration::ZERO), Some(STEADY - Duration::from_millis(1))] {
            let pauses = pauses(&mut Pace::default(), Failure::Unreachable, lasted, 20);
            assert_between(pauses[0], (PAUSES.0, PAUSES.0));
            assert_between(pauses[19], (PAUSES.1, PAUSES.1));
        }
    }

    #[test]
    fn a_watch_that_has_lasted_begins_them_anew() {
        let mut pace = Pace::default();
        pauses(&mut pace, Failure::Unreachable, Some(Duration::ZERO), 20);
        for pause in pauses(&mut pace, Failure::Unreachable, Some(STEADY), 3) {
            assert_between(pause, (PAUSES.0, PAUSES.0));
        }
        // A watch counts once: the attempts after it fail without one.
        assert_between(pauses(&mut pace, Failure::Unreachable, None, 20)[19], (PAUSES.1, PAUSES.1));
    }

    #[test]
    fn what_only_a_person_can_change_is_tried_less_often() {
        for (failure, limits) in [(Failure::Denied, DENIED_PAUSES), (Failure::TooLarge, TOO_LARGE_PAUSES)] {
            let mut pace = Pace::default();
            pauses(&mut pace, Failure::Unreachable, None, 20);
            let pauses = pauses(&mut pace, failure, None, 20);
            assert_between(pauses[0], (limits.0, limits.0));
            assert_between(pauses[19], (limits.1, limits.1));
            assert_between(pace.after(Failure::Unreachable, Instant::now()), (PAUSES.0, PAUSES.0));
        }
    }
}
