//! End to end: the real program, the real kernel, the real tools.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod attaching;
mod attributes;
mod editing;
mod errors;
mod hostile;
mod knowing;
mod lifecycle;
mod metrics;
mod reading;
mod refusals;
mod replacing;
mod scrape;
mod unseen;
mod views;
