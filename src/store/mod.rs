//! Records and guarded changes, wherever they are stored. Knows neither files nor the forms of records.
//!
//! `contract` is the contract of every store, and one test checks it for all of them. `commits` defines what a listener
//! hears about a commit, and when; `own` remembers the commits of this mount. `live` is a connected cell, `frozen` one
//! moment, `plain` a map, `stage` private changes over moments. `change_set` is what is to be committed to several
//! cells, `together` commits it. `quota` is the room for what is kept in memory only.

mod change_set;
mod commits;
mod contract;
mod frozen;
mod live;
mod moment;
pub mod moments;
pub(crate) mod own;
#[cfg(test)]
mod plain;
mod quota;
mod stage;
mod together;

pub use crate::process::Actor;
pub use change_set::{ChangeSet, Staged};
pub use commits::{Commits, Made, Mark, Unheard};
pub use contract::{RespectLocks, Store, Stores};
pub use frozen::{Frozen, FrozenCells};
pub use live::{CellRules, Live, LiveCells};
#[cfg(test)]
pub(crate) use plain::Plain;
pub use quota::Quota;
pub use stage::{Committing, Conflict, Outcome, Rebased, Seen, Stage, StagedCell, What, lines as conflict_lines};
pub use together::{Committed, CommittedCell, FindLive, Stored, commit, find_out};

#[cfg(test)]
mod tests;
