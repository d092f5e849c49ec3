//! Changes to several cells in one transaction, if one service keeps them. Must never take two places for one service
//! because that is likely.

use std::sync::Arc;

use super::cell::Cell;
use crate::alive;
use crate::backend::{Applied, BackendError, Change, Failure, Part, apply_together};
use crate::error::{Error, Kind, Result, UNCERTAIN};

/// Cells that one transaction can change.
#[derive(Debug)]
pub struct Together {
    cells: Vec<Arc<Cell>>,
    /// The one whose connection is used.
    carrier: Arc<Cell>,
}

impl Together {
    /// Fails with EXDEV if one transaction cannot change all of these cells, as far as can be known without asking.
    pub fn new(cells: Vec<Arc<Cell>>) -> Result<Self> {
        let carries = |cell: &&Arc<Cell>| cells.iter().all(|other| cell.location.may_carry(&other.location));
        let Some(carrier) = cells.iter().find(carries).cloned() else {
            return Err(apart(&cells, |one, other| {
                one.location.may_carry(&other.location) || other.location.may_carry(&one.location)
            }));
        };
        // Nobody knows where a second place is that has not been said.
        let in_one = |one: &Cell, other: &Cell| match (one.second_location(), other.second_location()) {
            _ if one.name == other.name => true,
            (Some(one), Some(other)) => one.may_carry(other) || other.may_carry(one),
            (one_at, other_at) => {
                one_at.is_none() && other_at.is_none() && one.second.is_none() && other.second.is_none()
            }
        };
        if !cells.iter().all(|other| in_one(&carrier, other)) {
            return Err(apart(&cells, in_one));
        }
        if let Some(other) = cells.iter().find(|other| other.backend.identity() != carrier.backend.identity()) {
            let reason = format!("{carrier} and {other} have tokens of their own, and one transaction has one token");
            return Err(Error::new(Kind::CrossDevice, reason));
        }
        Ok(Self { cells, carrier })
    }

    /// Fails with E2BIG if the service certainly takes no such transaction. Asks nobody. `changes` are those of each
    /// cell.
    pub fn refuse_large(&self, changes: &[Vec<Change>]) -> Result<()> {
        self.carrier.backend.refuse_parts(&self.parts(changes)).map_err(|error| self.explain(error))
    }

    /// Applies the changes of all cells or none. Their mirrors show them at once.
    pub async fn apply(&self, changes: &[Vec<Change>]) -> Result<Vec<Applied>> {
        self.cells.iter().try_for_each(|cell| cell.refuse_if_down())?;
        let parts = self.parts(changes);
        let answered = self.carrier.ending.answer(true, apply_together(&*self.carrier.backend, &parts));
        let made = alive::guarded("a change of several cells", answered).await;
        let made = made.unwrap_or_else(|panic| Err(BackendError::new(Failure::Other, format!("{panic}{UNCERTAIN}"))));
        let applied = made.map_err(|error| self.explain(error))?;
        for ((cell, changes), applied) in self.cells.iter().zip(changes).zip(&applied) {
            cell.mirror.wrote(changes, applied);
        }
        Ok(applied)
    }

    fn parts<'a>(&'a self, changes: &'a [Vec<Change>]) -> Vec<Part<'a>> {
        let part = |(cell, changes): (&'a Arc<Cell>, &'a Vec<Change>)| Part {
            cell: &*cell.backend,
            root: &cell.location.root,
            changes,
        };
        self.cells.iter().zip(changes).map(part).collect()
    }

    /// The kind says what a transaction would say: too many bytes are no large file.
    fn explain(&self, error: BackendError) -> Error {
        let is_large = matches!(error.failure, Failure::TooLarge | Failure::TooMany);
        let mut error = self.carrier.explain(error);
        if is_large {
            error.kind = Kind::TooMany;
        }
        error
    }
}

/// The error that names two cells which are not in one service.
fn apart(cells: &[Arc<Cell>], in_one: impl Fn(&Cell, &Cell) -> bool) -> Error {
    let others = |index: usize| cells.iter().skip(index + 1);
    let mut pairs = cells.iter().enumerate().flat_map(|(index, one)| others(index).map(move |other| (one, other)));
    let place = |cell: &Cell| {
        let second = cell.second_location().map_or_else(String::new, |second| format!(" and {second}"));
        format!("cell {} ({}{second})", cell.name, cell.location)
    };
    let reason = match pairs.find(|(one, other)| !in_one(one, other)) {
        Some((one, other)) => format!("{} and {} are not known to be in one service", place(one), place(other)),
        None => "no server is known to keep all of these cells".to_owned(),
    };
    Error::new(Kind::CrossDevice, format!("{reason}: one transaction cannot change both"))
}
