//! How far a list of a whole cell has come. A service says so while it answers; those who wait for the list, and the
//! status of the mount, look here. And how much to ask a service for at once, so that each answer comes in time. Asks
//! no service itself, and waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// How far the list that begins a watch has come. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Loading(Arc<watch::Sender<Progress>>);

/// What a list has brought so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Which part of it is under way.
    pub step: Step,
    /// The records that it has brought. It may count other keys, too: the service has not said yet what they are.
    pub records: u64,
    /// Answers of the service, of this list and of those before it. While it grows, the service is not silent.
    pub answers: u64,
}

impl Progress {
    /// Whether a list is under way that has brought something.
    pub fn brings(&self) -> bool {
        match self.step {
            Step::None => false,
            Step::Asking => self.records > 0,
            Step::TakingOver => true,
        }
    }
}

/// What is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Step {
    /// Nothing: there is no list, or it is shown.
    #[default]
    None,
    /// The service is asked.
    Asking,
    /// The service has told everything, and the mirror takes it over. That takes only processor time.
    TakingOver,
}

/// How an answer came that was one of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// So soon that twice as much may be asked for.
    Quickly,
    /// Neither.
    InTime,
    /// So late that less must be asked for.
    Slowly,
}

/// Judges the answers of a list. Each must come within the time for one call, however long the list takes.
#[derive(Debug, Clone, Copy)]
pub struct Haste {
    /// The longest time of an answer that came quickly.
    pub quick: Duration,
    /// The longest time of one that came in time.
    pub slow: Duration,
}

impl Haste {
    /// For a service that has so long for one call. The share of it leaves room for an answer to twice as much that
    /// takes four times as long.
    pub fn within(call: Duration) -> Self {
        const QUICK: (Duration, f64) = (Duration::from_millis(500), 0.125);
        const SLOW: (Duration, f64) = (Duration::from_secs(2), 0.25);
        let share = |(most, share): (Duration, f64)| most.min(call.mul_f64(share));
        Self { quick: share(QUICK), slow: share(SLOW) }
    }

    /// How an answer came that took so long.
    pub fn judge(&self, took: Duration) -> Came {
        match took {
            took if took <= self.quick => Came::Quickly,
            took if took <= self.slow => Came::InTime,
            _ => Came::Slowly,
        }
    }
}

/// The most that may be asked for at once. It sinks when an answer is late, and rises again slowly: what is small comes
/// quickly, and what follows may be large. It counts for later lists, too: one that has failed is read in the end.
#[derive(Debug)]
pub struct Ceiling {
    highest: usize,
    now: AtomicUsize,
    /// Answers in a row that came quickly.
    quick: AtomicUsize,
}

impl Ceiling {
    /// How much lower it is after a late answer.
    const SINKS: usize = 8;
    /// It is twice as high after so many quick answers.
    const QUICK: usize = 32;

    /// One that has not sunk.
    pub fn new(highest: usize) -> Self {
        Self { highest, now: AtomicUsize::new(highest), quick: AtomicUsize::new(0) }
    }

    /// How much may be asked for.
    pub fn get(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// An answer to so much did not come in time.
    pub fn is_late(&self, asked: usize) {
        self.quick.store(0, Ordering::Relaxed);
        self.now.store((asked.min(self.get()) / Self::SINKS).max(1), Ordering::Relaxed);
    }

    /// An answer has come.
    pub fn came(&self, came: Came) {
        if came != Came::Quickly {
            self.quick.store(0, Ordering::Relaxed);
        } else if self.quick.fetch_add(1, Ordering::Relaxed) + 1 >= Self::QUICK {
            self.quick.store(0, Ordering::Relaxed);
            self.now.store((self.get() * 2).min(self.highest), Ordering::Relaxed);
        }
    }
}

impl Loading {
    /// A list begins, or begins again.
    pub fn begin(&self) {
        self.0.send_modify(|progress| *progress = Progress { step: Step::Asking, records: 0, ..*progress });
    }

    /// The service has answered, with so many records.
    pub fn answered(&self, records: usize) {
        self.0.send_modify(|progress| {
            progress.answers += 1;
            progress.records += u64::try_from(records).unwrap_or(u64::MAX);
        });
    }

    /// The service has told everything.
    pub fn told(&self) {
        self.0.send_modify(|progress| *progress = Progress { step: Step::TakingOver, ..*progress });
    }

    /// The list is shown, or has failed.
    pub fn end(&self) {
        self.0.send_modify(|progress| *progress = Progress { step: Step::None, records: 0, ..*progress });
    }

    /// What there is so far.
    pub fn progress(&self) -> Progress {
        *self.0.borrow()
    }

    /// Changes with each answer.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_sinks_at_once_and_rises_slowly() {
        let ceiling = Ceiling::new(1_000);
        ceiling.is_late(400);
        assert_eq!(ceiling.get(), 50);
        // Of one that was asked for before it sank.
        ceiling.is_late(400);
        assert_eq!(ceiling.get(), 6);
        (0..2).for_each(|_| ceiling.is_late(6));
        assert_eq!(ceiling.get(), 1);
        (0..31).for_each(|_| ceiling.came(Came::Quickly));
        ceiling.came(Came::InTime);
        (0..31).for_each(|_| ceiling.came(Came::Quickly));
        assert_eq!(ceiling.get(), 1);
        ceiling.came(Came::Quickly);
        assert_eq!(ceiling.get(), 2);
        (0..32 * 20).for_each(|_| ceiling.came(Came::Quickly));
        assert_eq!(ceiling.get(), 1_000);
    }
}
