//! What a listener hears about a commit, and when.

use std::any::Any;

use async_trait::async_trait;

use crate::backend::{Action, Applied, Change, Guard, Revision};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath};

/// A mark that lasts as long as a change is in flight.
pub type Mark = Box<dyn Any + Send>;

/// A committed change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The stored version; for a deletion, the deleted version.
    pub revision: Revision,
    /// Whether nothing was stored there before.
    pub is_new: bool,
}

/// A listener for commits.
#[async_trait]
pub trait Commits: Send + Sync {
    /// A change is about to be sent. Others may hear of it before the commit returns; they wait until the mark is
    /// dropped.
    fn begin(&self, at: &CellPath) -> Mark;

    /// The changes were made, or refused, or the outcome is unknown. The commit goes on when nobody sees the old state
    /// any more.
    async fn answered(&self, cell: &CellName, changes: &[Change]);

    /// A change was certainly made. Its mark is dropped after this.
    fn made(&self, at: &CellPath, made: Made);
}

/// A listener that ignores all commits.
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

/// Makes changes to some cells, and informs a listener. The order of the steps matters:
///
/// 1. Every change is marked before anything is sent: the watch may report it first.
/// 2. The listener hears of the answer before the caller does, so a program reads what it has saved.
/// 3. A commit is noted before its mark is dropped: a task that has waited for the mark then asks whose commit it was.
///
/// What is applied has one part for each cell. `None` is an attempt that has changed nothing and may be repeated.
pub(super) async fn heard(
    cells: &[(&CellName, &[Change])],
    commits: &dyn Commits,
    make: impl Future<Output = Result<Option<Vec<Applied>>>> + Send,
) -> Result<Option<Vec<Applied>>> {
    let begin = |cell: &CellName, change: &Change| {
        let at = CellPath::new(cell, &change.path);
        let mark = commits.begin(&at);
        (at, mark)
    };
    let marked: Vec<Vec<(CellPath, Mark)>> =
        cells.iter().map(|(cell, changes)| changes.iter().map(|change| begin(cell, change)).collect()).collect();
    let outcome = make.await;
    for (cell, changes) in cells {
        commits.answered(cell, changes).await;
    }
    let applied = outcome.as_ref().ok().and_then(Option::as_ref);
    for (number, ((_, changes), marked)) in cells.iter().zip(marked).enumerate() {
        let applied = applied.and_then(|applied| applied.get(number));
        for (index, (change, (at, mark))) in changes.iter().zip(marked).enumerate() {
            if let Some(made) = applied.and_then(|applied| made(change, applied, index)) {
                commits.made(&at, made);
            }
            drop(mark);
        }
    }
    outcome
}

/// The same for changes of one cell.
pub(super) async fn heard_alone(
    cell: &CellName,
    changes: &[Change],
    commits: &dyn Commits,
    make: impl Future<Output = Result<Option<Applied>>> + Send,
) -> Result<Option<Applied>> {
    let make = async { Ok(make.await?.map(|applied| vec![applied])) };
    Ok(heard(&[(cell, changes)], commits, make).await?.and_then(|applied| applied.into_iter().next()))
}

/// The same for changes that are made in memory, which waits for nothing.
pub(super) async fn heard_at_once(
    cell: &CellName,
    changes: &[Change],
    commits: &dyn Commits,
    make: impl FnOnce() -> Result<Applied> + Send,
) -> Result<Applied> {
    let made = heard_alone(cell, changes, commits, async { make().map(Some) }).await?;
    made.ok_or_else(|| Error::new(Kind::Io, "no answer"))
}

/// The outcome of a change. A deletion without a guard may have deleted any version.
fn made(change: &Change, applied: &Applied, index: usize) -> Option<Made> {
    let stored = applied.versions.get(index).copied().flatten();
    let revision = match (&change.action, stored, change.guard) {
        (Action::Put(_), Some(version), _) | (Action::Delete, _, Guard::Version(version)) => version.written,
        _ => return None,
    };
    Some(Made { revision, is_new: stored.is_some() && change.guard == Guard::Absent })
}
