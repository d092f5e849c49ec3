//! The commands. Each file has the arguments of one command, and what it does.

pub(super) mod completions;
pub(super) mod demo;
pub(super) mod man;
pub(super) mod mount;
pub(super) mod notifier;
pub(super) mod unlock;
pub(super) mod validate;

use std::io::Write;
use std::process::ExitCode;

/// Exit status of a wrong command line.
pub(super) const USAGE: u8 = 1;

/// How a command has ended. An error means that the command line was wrong, or that the command could not begin.
pub(super) type Ended = anyhow::Result<ExitCode>;

/// Tells people why the command has failed.
pub(super) fn complain(reason: &str) {
    // One call writes it, so the output of another process cannot split it. If the pipe is closed, nobody reads it.
    let _ = std::io::stderr().write_all(format!("topofs: {reason}\n").as_bytes());
}
