//! What was and what is to be: history, snapshots, stages, commits; with real mounts, services and tools.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod carried;
mod commits;
mod history;
mod moments;
mod reads;
mod stages;
