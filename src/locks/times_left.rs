//! The services' answers about the time that locks have left. The number of questions and answers is bounded.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::backend::Owner;
use crate::cells::Cell;
use crate::name::CellName;

/// How long an answer stays valid.
const FRESH: Duration = Duration::from_secs(1);
/// Number of questions within [`FRESH`]: anybody who can read `.topofs/locks` can cause them.
const QUESTIONS: usize = 64;
/// How long to wait for an answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Number of answers to keep. One more, and all are forgotten and asked for again.
const ANSWERS: usize = 4_096;

/// The services' answers about the time that locks have left.
#[derive(Debug, Default)]
pub(super) struct TimesLeft(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    known: HashMap<(CellName, Owner), (Option<Duration>, Instant)>,
    /// When counting began, and the number of questions since.
    asked: Option<(Instant, usize)>,
}

impl Answers {
    /// Whether one more question may be asked now.
    fn may_ask(&mut self) -> bool {
        let now = Instant::now();
        let (since, count) = self.asked.filter(|(since, _)| since.elapsed() < FRESH).unwrap_or((now, 0));
        self.asked = Some((since, count + 1));
        count < QUESTIONS
    }

    fn note(&mut self, key: (CellName, Owner), left: Option<Duration>) {
        if self.known.len() >= ANSWERS {
            self.known.clear();
        }
        self.known.insert(key, (left, Instant::now()));
    }

    fn fresh(&self, key: &(CellName, Owner)) -> Option<Option<Duration>> {
        let (left, when) = self.known.get(key)?;
        (when.elapsed() < FRESH).then(|| left.map(|left| left.saturating_sub(when.elapsed())))
    }
}

impl TimesLeft {
    /// The time that the lock of an owner has left; `None` if unknown, or if no more questions are allowed now.
    pub async fn of(&self, cell: &Cell, owner: Owner) -> Option<Duration> {
        let key = (cell.name.clone(), owner);
        {
            let mut answers = self.0.lock();
            if let Some(left) = answers.fresh(&key) {
                return left;
            }
            if is_abandoned(owner) || !answers.may_ask() {
                return None;
            }
        }
        let answer = tokio::time::timeout(ANSWER, cell.time_left(owner)).await;
        let mut answers = self.0.lock();
        if answer.is_err() {
            // The service does not answer: nobody else need wait for it.
            answers.asked = Some((Instant::now(), QUESTIONS));
        }
        let left = answer.ok().flatten();
        answers.note(key, left);
        left
    }
}

/// Whether a lock has neither a lease nor a session.
pub(super) fn is_abandoned(owner: Owner) -> bool {
    owner == Owner::NOBODY || owner == Owner::UNBOUND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_asked_for_no_more_than_a_share_and_not_twice_in_a_moment() {
        let mut answers = Answers::default();
        let key = (CellName::global(), Owner(1));
        assert_eq!(answers.fresh(&key), None);
        assert_eq!((0..1_000).filter(|_| answers.may_ask()).count(), QUESTIONS);
        answers.known.insert(key.clone(), (Some(Duration::from_secs(9)), Instant::now()));
        assert!(answers.fresh(&key).is_some_and(|left| left.is_some_and(|left| left <= Duration::from_secs(9))));
        // "There is none" is also an answer.
        answers.known.insert(key.clone(), (None, Instant::now()));
        assert_eq!(answers.fresh(&key), Some(None));
        answers.known.insert(key.clone(), (None, Instant::now() - FRESH));
        assert_eq!(answers.fresh(&key), None);
    }

    #[test]
    fn only_so_many_answers_are_kept() {
        let mut answers = Answers::default();
        let key = |number: u64| (CellName::global(), Owner(number.into()));
        for number in 0..ANSWERS as u64 {
            answers.note(key(number), None);
        }
        assert!(answers.fresh(&key(0)).is_some());
        answers.note(key(ANSWERS as u64), None);
        assert_eq!((answers.fresh(&key(0)), answers.known.len()), (None, 1), "they are asked for again");
        assert!(answers.fresh(&key(ANSWERS as u64)).is_some());
    }
}
