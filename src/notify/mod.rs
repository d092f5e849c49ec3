//! Announces to the kernel what happens elsewhere, so that it raises real inotify events and keeps nothing old. Only
//! this part of the program touches the program's own mount, and it must never do that from the daemon's process.
//!
//! - `follow.rs` follows the mirror of each cell, and invalidates what has changed.
//! - `batches.rs` reads what a mirror publishes, also for a reader that has fallen behind.
//! - `announce.rs` decides which events a change is, and puts announcements into the outbox (`tree/kernel/outbox.rs`).
//! - `deliver.rs` takes announcements out, one after the other, and has a helper make the matching call.
//! - `helper.rs` is the helper: a process of its own.
//! - `echo.rs` is what the helper sees of the mount.

mod announce;
mod batches;
mod deliver;
mod echo;
mod follow;
pub(crate) mod helper;

pub(crate) use deliver::serve;
pub use follow::follow;
