//! The commit of a change set: one transaction over the cells of one service. Must never leave half of a set behind,
//! and never say that nothing happened if that is not known.

use super::change_set::ChangeSet;
use super::commits::Commits;
use super::live::Live;
use crate::backend::{Applied, Change};
use crate::error::{Error, Kind, Result};
use crate::name::CellName;
use crate::process::Actor;
use crate::record::Records;

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
/// Before anything is sent: [`Kind::BadMessage`] if a record does not decode, [`Kind::CrossDevice`] if the cells are
/// not kept by one service, [`Kind::TooMany`] if they are more than one transaction takes, [`Kind::Busy`] if a rule or a
/// lock forbids a change. [`Kind::Conflict`] if records have changed since; the reason names them, and nothing is stored.
/// An error that ends with [`crate::error::UNCERTAIN`] means that nobody knows. A set without changes sends nothing.
pub async fn commit(
    live: FindLive<'_>,
    records: &Records,
    set: &ChangeSet,
    actor: Actor,
    commits: &dyn Commits,
) -> Result<Committed> {
    let _ = (live, records, set, actor, commits);
    Err(Error::new(Kind::Unsupported, "not yet"))
}
