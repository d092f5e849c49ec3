//! Brings records at the secondary to what the primary has, whoever else does so at the same time. Must never replace a
//! newer state by an older one for good.
//!
//! Several writers may be under way with different states of one record, and a slow one may come last. So each writes
//! at the secondary only over what it has read there, and then looks whether the primary still has what it wrote. If
//! not, it begins again. The last writer at the secondary has therefore written what the primary has.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::oneshot;

use super::notes::{Moment, WAITING, Work};
use super::{Tee, record};
use crate::alive;
use crate::backend::contract::{Action, BackendError, Change, Failure, Guard, Node, Role};
use crate::name::TopoPath;

/// How often to begin again while others change the same records.
const ROUNDS: u32 = 32;
/// Pause before the next round, times the number of the round: writers that meet must not go on meeting.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest that one update may take, in time limits of a call: it needs three calls, and more if others write.
const LONGEST: u32 = 6;

impl Tee {
    /// Brings the records to the secondary in a task of its own. `known`: what the primary has, as far as the caller
    /// knows. The receiver ends with the task; there is none if nothing was begun.
    pub(super) fn bring_later(&self, work: Work, known: Option<Vec<Option<Node>>>) -> Option<oneshot::Receiver<()>> {
        let notes = &self.0.notes;
        if notes.tasks.len() >= WAITING {
            let error = BackendError::new(Failure::Unreachable, "too many updates wait for the secondary");
            notes.failed(&work.paths, &self.explain(error));
            return None;
        }
        let (tell, told) = oneshot::channel::<()>();
        let tee = self.clone();
        notes.tasks.spawn(async move {
            let longest = tee.0.settings.timeout * LONGEST;
            let brought = tokio::time::timeout(longest, tee.bring(&work.paths, known, &work.fences));
            let outcome = match alive::guarded("an update of the secondary", brought).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(BackendError::new(Failure::Unreachable, "the update took too long")),
                Err(panic) => Err(BackendError::new(Failure::Other, panic.to_string())),
            };
            tee.note(&work.paths, outcome);
            drop((work, tell));
        });
        Some(told)
    }

    fn note(&self, paths: &[TopoPath], outcome: Result<Moment, BackendError>) {
        let notes = &self.0.notes;
        match outcome {
            Ok(at) => {
                notes.forget(paths, at);
                notes.back();
            }
            Err(error) => {
                let first = paths.first().map_or("", |path| path.as_str());
                if !notes.is_away() {
                    tracing::warn!(%error, path = first, "an update did not reach the secondary");
                }
                notes.failed(paths, &error);
            }
        }
    }

    /// Brings the records to the secondary: all in one transaction, or, if it does not take that, one by one. Returns
    /// the moment of which they are.
    pub(super) async fn bring(
        &self,
        paths: &[TopoPath],
        known: Option<Vec<Option<Node>>>,
        fences: &[Change],
    ) -> Result<Moment, BackendError> {
        let begun = self.0.notes.now();
        match self.bring_together(paths, known, fences).await {
            Err(error) if paths.len() > 1 && matches!(error.failure, Failure::TooLarge | Failure::TooMany) => {
                for path in paths {
                    self.bring_together(std::slice::from_ref(path), None, fences).await?;
                }
                Ok(begun)
            }
            outcome => outcome,
        }
    }

    async fn bring_together(
        &self,
        paths: &[TopoPath],
        mut known: Option<Vec<Option<Node>>>,
        fences: &[Change],
    ) -> Result<Moment, BackendError> {
        for round in 0..ROUNDS {
            let there = self.at_secondary(paths).await?;
            let here = match known.take() {
                Some(known) => known,
                // The secondary was read first: what is written over it is newer.
                None => self.at_primary(paths).await?,
            };
            let changes = paths.iter().zip(&here).zip(&there).map(|((path, here), there)| change(path, here, there));
            let changes: Vec<Change> = changes.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
            if !changes.is_empty() {
                let guarded = [fences, &changes].concat();
                match self.0.secondary.apply(&guarded).await {
                    Ok(applied) => {
                        if let Some(hears) = &self.0.settings.hears {
                            hears.wrote(&guarded, &applied);
                        }
                    }
                    Err(error)
                        if matches!(error.failure, Failure::BadVersion | Failure::NodeExists | Failure::NoNode) =>
                    {
                        tokio::time::sleep(PAUSE * round).await;
                        continue;
                    }
                    Err(error) => return Err(self.explain(error)),
                }
            }
            let at = self.0.notes.now();
            let now = self.at_primary(paths).await?;
            if now.iter().map(version).eq(here.iter().map(version)) {
                return Ok(at);
            }
            // The next round reads the secondary again, and then the primary.
        }
        Err(BackendError::new(Failure::Other, "others change the record too often"))
    }

    async fn at_primary(&self, paths: &[TopoPath]) -> Result<Vec<Option<Node>>, BackendError> {
        let fetched = try_join_all(paths.iter().map(|path| self.0.primary.get(path))).await?;
        Ok(fetched.into_iter().map(|fetched| record(fetched.node)).collect())
    }

    async fn at_secondary(&self, paths: &[TopoPath]) -> Result<Vec<Option<Node>>, BackendError> {
        let fetched = try_join_all(paths.iter().map(|path| self.0.secondary.get(path))).await;
        Ok(fetched.map_err(|error| self.explain(error))?.into_iter().map(|fetched| fetched.node).collect())
    }
}

fn version(node: &Option<Node>) -> Option<crate::backend::contract::Version> {
    node.as_ref().map(|node| node.version)
}

/// What the secondary needs to have the primary's record; nothing if it has it.
fn change(path: &TopoPath, here: &Option<Node>, there: &Option<Node>) -> Result<Option<Change>, BackendError> {
    if there.as_ref().is_some_and(|there| there.role != Role::Record) {
        return Err(BackendError::new(Failure::Other, format!("{path} is a lock at the secondary")));
    }
    let guard = there.as_ref().map_or(Guard::Absent, |there| Guard::Version(there.version));
    let action = match (here, there) {
        (Some(here), Some(there)) if here.value == there.value => return Ok(None),
        (None, None) => return Ok(None),
        (Some(here), _) => Action::Put(here.value.clone()),
        (None, Some(_)) => Action::Delete,
    };
    Ok(Some(Change { path: path.clone(), guard, action }))
}
