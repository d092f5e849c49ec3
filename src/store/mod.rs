//! Records and guarded changes, wherever they are kept. Knows no files, and no forms of records.
//!
//! `contract` says what every store keeps to, and one test checks it over all of them. `commits` says what a listener
//! hears of a commit, and when; `own` remembers this mount's own commits. `live` is a connected cell, `plain` a map.

mod commits;
mod contract;
mod live;
pub(crate) mod own;
mod plain;

pub use commits::{Commits, Made, Mark, Unheard};
pub use contract::{RespectLocks, Store};
pub use live::Live;
pub use plain::Plain;

#[cfg(test)]
mod tests;
