//! Records and guarded changes, wherever they are kept. Must never know files.

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
