//! How long to wait for the secondary: not at all while it is known not to answer. Must never take it for away once it
//! has been heard of again.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::Tee;
use crate::backend::contract::{BackendError, Failure};

/// How often to look whether it is known by now that the secondary does not answer.
const LOOK: Duration = Duration::from_millis(500);

/// Whether a service answers, as far as known without asking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// It was heard of just now.
    Yes,
    /// It does not, for this reason.
    No(String),
    /// Nobody knows.
    Unknown,
}

impl Tee {
    /// The reason, if the secondary is known not to answer. Without somebody who would hear that it is back, nobody
    /// knows.
    pub(super) fn known_away(&self) -> Option<BackendError> {
        let cause = match self.0.settings.hears.as_ref()?.answers() {
            Answers::Yes => return None,
            Answers::No(cause) => cause,
            // An update was waited for in vain, and nothing was heard since.
            Answers::Unknown => self.0.notes.is_away().then(|| "it does not answer".to_owned())?,
        };
        Some(BackendError::new(Failure::Unreachable, cause))
    }

    /// Nothing was heard of the secondary for long.
    pub fn note_away(&self) {
        self.0.notes.away();
    }

    /// Waits for the secondary until it is known not to answer, or the patience is over, which then is known.
    pub(super) async fn while_it_answers<T>(
        &self,
        call: impl Future<Output = T>,
        patience: Option<Duration>,
    ) -> Result<T, BackendError> {
        let begun = Instant::now();
        tokio::pin!(call);
        loop {
            if let Ok(outcome) = tokio::time::timeout(LOOK, &mut call).await {
                return Ok(outcome);
            }
            if patience.is_some_and(|patience| begun.elapsed() >= patience) {
                self.note_away();
                return Err(BackendError::new(Failure::Unreachable, "it does not answer"));
            }
            if let Some(error) = self.known_away() {
                return Err(error);
            }
        }
    }
}
