//! What the kernel keeps: reading again asks nothing, and what is read is never older than it may be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod edits;
mod requests;
mod spin;
mod torn;
mod truth;
