//! The work of administrators: backup and restore, recovery, migration; with the real program and real services.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod backup;
mod changes;
mod check;
mod events;
mod page;
mod recovery;
mod rights;
mod shell;
mod status;
mod topo2topo;
mod umount;
