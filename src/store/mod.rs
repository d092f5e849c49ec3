//! Records and guarded changes, wherever they are stored. Knows neither files nor the forms of records.
//!
//! `contract` is the contract of every store, and one test checks it for all of them. `commits` defines what a listener
//! hears about a commit, and when; `own` remembers the commits of this mount. `live` is a connected cell, `live_cells` all
//! of them, `frozen` one moment, `plain` a map. `change_set` is what is to be committed to several cells, and `together`
//! commits it; `moment` has the locks of a commit. `quota` is the room for what is kept in memory only.

mod change_set;
mod commits;
mod contract;
mod frozen;
mod live;
mod live_cells;
mod moment;
pub(crate) mod own;
mod plain;
mod quota;
mod stage;
mod together;

pub use change_set::{ChangeSet, Committed, CommittedCell, Staged};
pub use commits::{Commits, Made, Mark, Unheard};
pub use contract::{RespectLocks, Store, Stores};
pub use frozen::{Frozen, FrozenCells};
pub use live::{CellRules, Live};
pub use live_cells::LiveCells;
pub use plain::{Plain, PlainCells};
pub use quota::Quota;
pub use stage::{Committing, Conflict, Outcome, Rebased, Seen, Stage, StagedCell, What, lines as conflict_lines};

#[cfg(test)]
mod tests;
