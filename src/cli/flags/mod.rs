//! The flags: each is defined once, and help, man page and completions come from that.

pub(super) mod connect;
pub(super) mod level;
pub(super) mod lock;
pub(super) mod migrate;
pub(super) mod output;
pub(super) mod process;
pub(super) mod topo;
pub(super) mod values;
pub(super) mod view;

pub(super) use values::Fault;
