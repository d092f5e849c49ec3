//! Tells the kernel of what happens elsewhere, so that it raises real inotify events and keeps nothing old. The only part of the
//! program that touches the program's own mount.
//!
//! - `follow.rs` follows each cell's mirror: what has changed, the kernel must ask again about.
//! - `batches.rs` reads what a mirror publishes, also by who has fallen behind.
//! - `announce.rs` says which events a change is, and puts them into the outbox (`tree/kernel/outbox.rs`).
//! - `deliver.rs` takes them out, one after the other, and has a helper make the matching call.
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
