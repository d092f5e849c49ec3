//! The commands: each file has the arguments of one, and what it does.

pub(super) mod completions;
pub(super) mod demo;
pub(super) mod man;
pub(super) mod mount;
pub(super) mod notifier;
pub(super) mod unlock;

use std::io::Write;
use std::process::ExitCode;

/// Exit status of a wrong command line.
pub(super) const USAGE: u8 = 1;

/// How a command that was understood has ended; an error means that it was not, or could not even begin.
pub(super) type Ended = anyhow::Result<ExitCode>;

/// Tells people why the command has failed.
pub(super) fn complain(reason: &str) {
    // Written with one call, so that it stays one piece beside another process's output. A closed pipe is nobody's
    // loss.
    let _ = std::io::stderr().write_all(format!("topofs: {reason}\n").as_bytes());
}
