//! The commits of this mount, until the mirror has reported them: who made them, and how. If a commit went through a form
//! of a record, the kernel has already raised the event for that form.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::Revision;
use crate::name::CellPath;
use crate::process::Actor;
use crate::record::Form;

/// Number of commits to remember for each record until the mirror has reported them, and number of such records.
const COMMITS: usize = 64;
const RECORDS: usize = 10_000;
/// How long the mirror may take to report a commit. After that it will not: somebody else was faster, or the cell has
/// another location.
const TIME: Duration = Duration::from_secs(10);

/// A commit of this mount.
#[derive(Debug, Clone)]
pub(crate) struct OwnCommit {
    /// The stored version; for a deletion, the deleted version.
    pub revision: Revision,
    /// The form that it went through, if it was the save of a file.
    pub form: Option<Form>,
    /// The change set that it was a part of.
    pub set: Option<Arc<str>>,
    /// Who made it.
    pub saver: Actor,
    /// The name of the program.
    pub command: Option<String>,
}

/// The commits of this mount that the mirror has not reported yet. Bounded: a commit that does not fit is announced as
/// somebody else's.
#[derive(Debug, Default)]
pub(crate) struct OwnCommits {
    by_record: Mutex<HashMap<CellPath, VecDeque<(Instant, OwnCommit)>>>,
    announced: Notify,
}

impl OwnCommits {
    /// Notes a commit of this mount.
    pub fn note(&self, place: &CellPath, commit: OwnCommit) {
        let mut own = self.by_record.lock();
        if own.len() >= RECORDS {
            forget_old(&mut own);
        }
        if own.len() >= RECORDS && !own.contains_key(place) {
            return;
        }
        let known = own.entry(place.clone()).or_default();
        if known.len() >= COMMITS {
            known.pop_front();
        }
        known.push_back((Instant::now(), commit));
    }

    /// Waits until the events contain all commits of this mount so far, up to a time limit.
    pub async fn all_announced(&self, longest: Duration) {
        let all = async {
            loop {
                let announced = self.announced.notified();
                {
                    let mut own = self.by_record.lock();
                    forget_old(&mut own);
                    if own.is_empty() {
                        return;
                    }
                }
                announced.await;
            }
        };
        // The service may not report a commit, or only a newer one.
        let _ = tokio::time::timeout(longest, all).await;
    }

    /// The commit of this mount that made a change, if one did.
    pub fn find(&self, place: &CellPath, revision: Revision) -> Option<OwnCommit> {
        let own = self.by_record.lock();
        own.get(place)?.iter().find(|(_, commit)| commit.revision == revision).map(|(_, commit)| commit.clone())
    }

    /// A change is among the events. Nobody will ask for earlier ones any more.
    pub fn is_announced(&self, place: &CellPath, revision: Revision) {
        let mut own = self.by_record.lock();
        let Some(known) = own.get_mut(place) else { return };
        known.retain(|(_, commit)| commit.revision >= revision);
        // Only one of them: a deletion has the revision of the deleted version.
        if let Some(index) = known.iter().position(|(_, commit)| commit.revision == revision) {
            known.remove(index);
        }
        if known.is_empty() {
            own.remove(place);
        }
        if own.is_empty() {
            self.announced.notify_waiters();
        }
    }
}

/// Forgets commits that the mirror will no longer report.
fn forget_old(own: &mut HashMap<CellPath, VecDeque<(Instant, OwnCommit)>>) {
    own.retain(|_, commits| {
        commits.retain(|(when, _)| when.elapsed() < TIME);
        !commits.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{CellName, TopoPath};

    fn place(name: &str) -> CellPath {
        CellPath { cell: CellName::global(), path: TopoPath::parse(name).unwrap() }
    }

    fn commit(revision: u64) -> OwnCommit {
        let saver = Actor { uid: 0, process: 1 };
        OwnCommit { revision: Revision(revision), form: Some(Form::Raw), set: None, saver, command: None }
    }

    #[tokio::test]
    async fn an_own_change_that_is_never_told_keeps_nobody_waiting() {
        let own = OwnCommits::default();
        own.note(&place("a"), commit(1));
        own.all_announced(Duration::from_millis(10)).await;
        // The mirror has reported only a newer one.
        own.is_announced(&place("a"), Revision(2));
        let begin = Instant::now();
        own.all_announced(Duration::from_secs(60)).await;
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is left to wait for");
    }

    #[test]
    fn own_changes_that_are_never_told_do_not_add_up() {
        let own = OwnCommits::default();
        for number in 0..3 * RECORDS {
            own.note(&place(&format!("key{number}")), commit(1));
        }
        assert!(own.by_record.lock().len() <= RECORDS);
    }
}
