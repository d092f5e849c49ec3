//! Vitess's rules about more than one record: what belongs together, what is computed from what, what contradicts what.
//! Knows records and cells; must never know files. The commands use it directly, without a mount.
//!
//! Rules that compute something from records are pure functions over a [`Topology`]; what asks or changes a service is
//! async and says so.

pub mod cells;
pub mod copy;
pub mod graph;
pub mod links;
pub mod lock;
mod picture;
pub mod ranges;
pub mod rebuild;
pub mod remove;
pub mod validate;
pub mod vschema;

pub use picture::{CellRecords, Topology};

#[cfg(test)]
mod tests;
