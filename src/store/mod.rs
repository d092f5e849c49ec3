//! Records and guarded changes, wherever they are stored. Knows neither files nor the forms of records.
//!
//! `contract` is the contract of every store, and one test checks it for all of them. `commits` defines what a listener
//! hears about a commit, and when; `own` remembers the commits of this mount. `live` is a connected cell, `plain` a
//! map. `change_set` is what is to be committed to several cells together.

mod change_set;
mod commits;
mod contract;
mod live;
pub mod moments;
pub(crate) mod own;
mod plain;

pub use change_set::{ChangeSet, Staged};
pub use commits::{Commits, Made, Mark, Unheard};
pub use contract::{RespectLocks, Store};
pub use live::{CellRules, Live};
pub use plain::Plain;

#[cfg(test)]
mod tests;
