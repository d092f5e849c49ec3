//! The end of a mount: calls to a service that gives no sign of life are given up, so that a dead service cannot delay
//! the end. Must never give up a call while the service answers, however slowly it does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendError, Failure};
use crate::mirror::Mirror;
use crate::name::TopoPath;

/// How long a service may be silent when the mount ends. An answer over a network takes milliseconds.
const SILENCE: Duration = Duration::from_secs(1);
/// The same for a service whose calls have taken long: a silence of more than this breaks the watch, too.
const LONGEST_SILENCE: Duration = Duration::from_secs(3);
/// Pause between questions while the service answers.
const PAUSE: Duration = Duration::from_millis(500);
/// Pause after a failed question: the service may be starting again.
const AGAIN: Duration = Duration::from_millis(100);
/// A key to ask for. It need not exist.
const QUESTION: &str = "cells";

/// Whether calls to a service are still waited for.
#[derive(Debug, Default)]
pub(super) struct Ending {
    given_up: CancellationToken,
    /// How long calls take that are answered, in milliseconds: the longest lately.
    longest: AtomicU64,
}

impl Ending {
    /// Waits for the answer of a call, unless the mount ends and the service is silent. `changes` says that the call
    /// may have been carried out even so.
    pub async fn answer<T>(
        &self,
        changes: bool,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let words = "the mount is ending, and the service gives no sign of life";
        let given_up = |sent: bool| BackendError::new(Failure::Unreachable, words).uncertain_if(changes && sent);
        if self.given_up.is_cancelled() {
            return Err(given_up(false));
        }
        let begun = Instant::now();
        tokio::select! {
            // An answer that is there counts.
            biased;
            answer = call => {
                if answer.is_ok() {
                    self.note(begun.elapsed());
                }
                answer
            }
            () = self.given_up.cancelled() => Err(given_up(true)),
        }
    }

    /// Returns when calls are no longer waited for.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// The mount is ending: gives up all calls as soon as the service is silent. Never returns while it answers.
    pub async fn give_up_if_silent(&self, backend: &dyn Backend, mirror: &Mirror) {
        // A service in this process is never silent.
        if !backend.gives_signs_of_life() {
            return;
        }
        loop {
            let begun = Instant::now();
            let answered = tokio::time::timeout(self.patience(), answers(backend)).await.is_ok();
            if !answered && mirror.last_heard() <= begun {
                break self.given_up.cancel();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        // Forgets slowly: a few quick answers do not make a service quick. A lost update does no harm.
        let before = self.longest.load(Ordering::Relaxed);
        self.longest.store(took.max(before - before / 8), Ordering::Relaxed);
    }

    fn patience(&self) -> Duration {
        let twice = Duration::from_millis(self.longest.load(Ordering::Relaxed)).saturating_mul(2);
        twice.clamp(SILENCE, LONGEST_SILENCE)
    }
}

/// Returns when the service has answered anything.
async fn answers(backend: &dyn Backend) {
    let Ok(question) = TopoPath::parse(QUESTION) else { return std::future::pending().await };
    while let Err(error) = backend.get(&question).await
        && error.failure == Failure::Unreachable
    {
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_is_given_up_and_says_that_it_may_have_been_carried_out() {
        let ending = Ending::default();
        ending.note(Duration::from_millis(200));
        assert_eq!(ending.patience(), SILENCE);
        let never = || std::future::pending::<Result<(), BackendError>>();
        let (given_up, ()) = tokio::join!(ending.answer(true, never()), async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            ending.given_up.cancel();
        });
        let error = given_up.unwrap_err();
        assert!(error.failure == Failure::Unreachable && error.is_uncertain(), "{error}");
        // What was never sent was certainly not carried out.
        assert!(!ending.answer(true, never()).await.unwrap_err().is_uncertain());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_service_may_be_silent_for_longer() {
        let ending = Ending::default();
        let slow = async {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            Ok(())
        };
        ending.answer(false, slow).await.unwrap();
        assert_eq!(ending.patience(), Duration::from_millis(2_400));
        ending.note(Duration::from_secs(60));
        assert_eq!(ending.patience(), LONGEST_SILENCE);
        (0..40).for_each(|_| ending.note(Duration::ZERO));
        assert_eq!(ending.patience(), SILENCE, "it is forgotten");
    }
}
