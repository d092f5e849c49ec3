//! The commit of a change set: one transaction over the cells of one service. Must never leave half of a set behind,
//! and never say that nothing happened if that is not known.
//!
//! This file says in which order things are refused, and makes the attempts; `plan` is what is to be made,
//! `after` looks at what a failed attempt has left.

use super::change_set::{ChangeSet, Staged};
use super::commits::{Commits, heard};
use super::live::{LOCK_CHANGES, Live};
use super::moment::{Moment, Part, unless_let_go, with_guards, without_guards};
use crate::backend::{Applied, Change};
use crate::cells::Together;
use crate::error::{Error, Kind, Result};
use crate::locks::Fence;
use crate::mirror::Maker;
use crate::name::CellName;
use crate::process::Actor;
use crate::record::Records;
use crate::record::layout::Key;

mod after;
mod plan;

pub use after::{Stored, find_out};
use plan::Plan;

/// What a commit has done to one cell.
#[derive(Debug, Clone)]
pub struct CommittedCell {
    /// The cell.
    pub cell: CellName,
    /// The changes, in the order of the set.
    pub changes: Vec<Change>,
    /// Their new versions, and when they were made.
    pub applied: Applied,
}

/// A change set that was committed.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// The cells with changes; none if there was nothing to change.
    pub cells: Vec<CommittedCell>,
}

/// Finds the records of a connected cell.
pub type FindLive<'a> = &'a (dyn Fn(&CellName) -> Option<Live> + Send + Sync);

/// Makes all changes of a set or none, in one transaction, guarded by what each record was when it was staged.
///
/// Before anything is sent: [`Kind::BadMessage`] if a record does not decode, [`Kind::NotFound`] if a cell is not
/// connected, [`Kind::Invalid`] if a cell moves and its records change, [`Kind::CrossDevice`] if the cells are
/// not known to be in one service, [`Kind::TooMany`] if they are more than one transaction takes, [`Kind::Busy`] if a
/// rule or somebody's lock forbids a change. [`Kind::Conflict`] if records have changed since; the reason names them,
/// and nothing is stored. [`Error::is_uncertain`]: nobody knows. A set without changes sends nothing, and succeeds.
pub async fn commit(
    live: FindLive<'_>,
    records: &Records,
    set: &ChangeSet,
    actor: Actor,
    commits: &dyn Commits,
) -> Result<Committed> {
    let committed = async {
        let plan = Plan::new(live, records, set)?;
        match plan.lives.is_empty() {
            true => Ok(Committed::default()),
            false => plan.commit(actor, commits).await,
        }
    };
    committed.await.map_err(|error| Error { reason: format!("change set {}: {}", set.name, error.reason), ..error })
}

/// The cell that a record says the place of.
fn cell_of(staged: &Staged) -> Option<&str> {
    match Key::in_global(&staged.at.path).filter(|_| staged.at.cell.is_global())? {
        Key::CellInfo(cell) => Some(cell),
        _ => None,
    }
}

impl Plan<'_> {
    async fn commit(self, actor: Actor, commits: &dyn Commits) -> Result<Committed> {
        let together = Together::new(self.lives.iter().map(|live| live.at.cell.clone()).collect())?;
        together.refuse_large(&self.changes)?;
        let parts = self.parts();
        let mut doubts = Vec::new();
        for (live, part) in self.lives.iter().zip(&parts) {
            // A cell that was never looked at is loaded now; one that is known to be down fails at once.
            part.at.cell.snapshot().await?;
            doubts.push(live.refuse_by_rules(part.changes, &parts).await?);
        }
        self.refuse_overtaken().await?;
        for _ in 0..LOCK_CHANGES {
            let Some(applied) = self.attempt(&together, &parts, actor, commits).await? else { continue };
            self.lives.iter().zip(&doubts).for_each(|(live, doubts)| live.warn(doubts, actor));
            self.note(&applied, actor);
            let cells = self.lives.iter().zip(self.changes.iter().cloned()).zip(applied);
            let cells = cells.map(|((live, changes), applied)| CommittedCell {
                cell: live.at.cell.name.clone(),
                changes,
                applied,
            });
            return Ok(Committed { cells: cells.collect() });
        }
        Err(Error::new(Kind::Busy, "the locks above its records change too often"))
    }

    /// Notes in the history who has made the changes.
    fn note(&self, applied: &[Applied], actor: Actor) {
        let maker = Maker { change_set: Some(self.name.clone()), ..actor.into() };
        for ((live, changes), applied) in self.lives.iter().zip(&self.changes).zip(applied) {
            live.at.cell.mirror.made(changes, applied, &maker);
        }
    }

    /// One attempt; `None` if a lock that guarded it was released meanwhile, and nothing has changed.
    async fn attempt(
        &self,
        together: &Together,
        parts: &[Part<'_>],
        actor: Actor,
        commits: &dyn Commits,
    ) -> Result<Option<Vec<Applied>>> {
        let Some(moment) = Moment::begin(parts, actor).await? else { return Ok(None) };
        let apply = async {
            let fences = parts.iter().enumerate().map(|part| moment.fences(part, actor));
            let fences = fences.collect::<Result<Vec<Vec<Fence>>>>()?;
            let guarded = parts.iter().zip(&fences).map(|(part, fences)| with_guards(fences, part.changes));
            let guarded: Vec<Vec<Change>> = guarded.collect();
            match unless_let_go(together.apply(&guarded).await, &fences.concat()) {
                Ok(applied) => Ok(applied.map(|applied| {
                    applied.into_iter().zip(&fences).map(|(applied, fences)| without_guards(applied, fences)).collect()
                })),
                Err(error) => self.after(error).await.map(Some),
            }
        };
        let cells: Vec<(&CellName, &[Change])> = parts.iter().map(|part| (&part.at.cell.name, part.changes)).collect();
        let outcome = heard(&cells, commits, apply).await;
        moment.end().await;
        outcome
    }
}

#[cfg(test)]
mod tests;
