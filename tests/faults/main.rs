//! Servers that die, stop, forget and lie: nothing blocks, nothing is lost, and the mount comes back by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod cells;
mod consul;
mod denied;
mod each;
mod elsewhere;
mod ensemble;
mod etcd;
mod interrupted;
mod loading;
mod lost;
mod panics;
mod partition;
mod restored;
mod resync;
mod rig;
mod size;
mod stop;
mod tee;
mod tee_commands;
mod tee_guide;
mod tee_locks;
mod tools;
mod zookeeper;
mod zookeeper_async;
mod zookeeper_lost;
mod zookeeper_rights;
