//! What a listener hears of a commit, and when.

use std::any::Any;

use async_trait::async_trait;

use crate::backend::{Action, Applied, Change, Guard, Revision};
use crate::error::Result;
use crate::name::{CellName, CellPath};

/// Lasts as long as a change is in flight.
pub type Mark = Box<dyn Any + Send>;

/// A change that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// What was stored; for a deletion, what was deleted.
    pub revision: Revision,
    /// Nothing was stored there before.
    pub is_new: bool,
}

/// Who hears of a commit.
#[async_trait]
pub trait Commits: Send + Sync {
    /// A change is about to be made. Others may hear of it before the commit has returned: they wait until the mark is
    /// dropped.
    fn begin(&self, at: &CellPath) -> Mark;

    /// The changes were made, or refused, or nobody knows. The commit goes on when nobody is shown any more what was
    /// before.
    async fn answered(&self, cell: &CellName, changes: &[Change]);

    /// A change was certainly made. Its mark is dropped afterwards.
    fn made(&self, at: &CellPath, made: Made);
}

/// Nobody hears of a commit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unheard;

#[async_trait]
impl Commits for Unheard {
    fn begin(&self, _: &CellPath) -> Mark {
        Box::new(())
    }

    async fn answered(&self, _: &CellName, _: &[Change]) {}

    fn made(&self, _: &CellPath, _: Made) {}
}

/// Makes changes, and lets a listener hear of it. Each step stands where it does for a reason:
///
/// 1. Every change is marked before anything is sent: the watch may tell of it first.
/// 2. The listener hears of the answer before the caller does: who has saved reads what was saved.
/// 3. What was made is noted before its mark is dropped: who has waited for the mark asks next whose commit it was.
///
/// `None` stands for a try that has changed nothing and may be repeated.
pub(super) async fn heard(
    cell: &CellName,
    changes: &[Change],
    commits: &dyn Commits,
    make: impl Future<Output = Result<Option<Applied>>> + Send,
) -> Result<Option<Applied>> {
    let marked: Vec<(CellPath, Mark)> = changes
        .iter()
        .map(|change| {
            let at = CellPath::new(cell, &change.path);
            let mark = commits.begin(&at);
            (at, mark)
        })
        .collect();
    let outcome = make.await;
    commits.answered(cell, changes).await;
    let applied = outcome.as_ref().ok().and_then(Option::as_ref);
    for (index, (change, (at, mark))) in changes.iter().zip(marked).enumerate() {
        if let Some(made) = applied.and_then(|applied| made(change, applied, index)) {
            commits.made(&at, made);
        }
        drop(mark);
    }
    outcome
}

/// What has become of a change. A deletion without a guard is of nobody knows which version.
fn made(change: &Change, applied: &Applied, index: usize) -> Option<Made> {
    let stored = applied.versions.get(index).copied().flatten();
    let revision = match (&change.action, stored, change.guard) {
        (Action::Put(_), Some(version), _) | (Action::Delete, _, Guard::Version(version)) => version.written,
        _ => return None,
    };
    Some(Made { revision, is_new: stored.is_some() && change.guard == Guard::Absent })
}
