//! End to end: the real program, the real kernel, the real tools.

#[path = "../common/mod.rs"]
mod common;

mod editing;
mod errors;
mod lifecycle;
mod reading;
