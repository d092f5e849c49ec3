//! Real inotify events for what happens elsewhere, as if a local process had done it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod deep;
mod events;
mod held;
mod helper;
mod moved;
mod soak;
mod users;
mod views;
mod watcher;
