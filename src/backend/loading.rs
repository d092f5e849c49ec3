//! How far a list of a whole cell has come. A service says so while it answers; those who wait for the list, and the
//! status of the mount, look here. Decides nothing, and waits for nothing.

use std::sync::Arc;

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
