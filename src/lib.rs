//! x
pub mod backend;
pub mod name;
pub mod error;
pub mod mirror;
pub mod cells;
pub mod control { pub const DIR_NAME: &str = ".topofs"; }
