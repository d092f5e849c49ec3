//! Vitess's rules about more than one record, on the real services: rebuilding what is computed, and rules about cells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod cells;
mod rebuild;
mod rig;
mod validate;
