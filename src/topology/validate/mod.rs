//! Finds what contradicts what in a topology. Only computes: it asks no service, and changes nothing. What cannot be
//! known is never called a fault, and neither is anything that Vitess's own tools leave behind in everyday work.
//!
//! One fault is one problem: what follows from it is not reported again. What mends it never removes the only trace of
//! what may be lost. The cost is that of reading all records once.

use std::time::SystemTime;

use crate::error::Error;

mod cells;
mod facts;
mod keyspaces;
mod locks;
mod lost;
mod primaries;
mod problem;
mod restore;
mod rules;
mod serving;
mod shell;
mod sight;
mod strays;
mod tablets;

pub use problem::{Kind, Problem, Report, Severity, Within};

pub use sight::{Fingerprint, Sight};

/// All problems of the records that somebody asks about.
pub fn problems(sight: &Sight, within: Within, now: SystemTime) -> Report {
    let facts = facts::Facts::of(sight);
    let lost = lost::Lost::of(&facts);
    let mut report = Report::new(within);
    cells::check(&facts, &mut report);
    lost::check(&facts, &lost, &mut report);
    keyspaces::check(&facts, &lost, &mut report);
    tablets::check(&facts, &lost, &mut report);
    primaries::check(&facts, &mut report);
    serving::check(&facts, &lost, &mut report);
    rules::check(&facts, &lost, &mut report);
    locks::check(&facts, now, &mut report);
    strays::check(&facts, &lost, &mut report);
    report.finish()
}

/// The only problem that can be seen while the global topology does not answer.
pub fn unreachable(error: &Error) -> Report {
    let mut report = Report::default();
    cells::global_unreachable(error, &mut report);
    report.finish()
}

#[cfg(test)]
mod tests;
