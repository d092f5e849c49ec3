//! topofs shows a Vitess Topology Service as a file system. See README.md and docs/architecture.md.

pub mod alive;
pub mod backend;
mod cache;
pub mod cells;
pub mod cli;
pub mod confine;
pub mod control;
mod device;
pub mod error;
pub mod fuse;
mod given;
mod in_flight;
pub mod journal;
pub mod locks;
pub mod mirror;
pub mod mount;
pub mod name;
pub mod notify;
mod plain;
mod process;
pub mod record;
pub mod sample;
pub mod scrape;
pub mod store;
pub mod topology;
pub mod tree;
mod users;
