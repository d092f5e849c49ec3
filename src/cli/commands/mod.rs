//! The commands. Each file has the arguments of one command, and what it does.

pub(super) mod completions;
pub(super) mod demo;
pub(super) mod man;
pub(super) mod mount;
pub(super) mod notifier;
pub(super) mod rebuild_keyspace_graph;
pub(super) mod rebuild_vschema_graph;
pub(super) mod remove_keyspace_cell;
pub(super) mod topo2topo;
pub(super) mod unlock;
pub(super) mod validate;

use std::io::Write;
use std::process::ExitCode;

use crate::error::Result;
use crate::topology::rebuild::Outcome;

/// Exit status of a wrong command line.
pub(super) const USAGE: u8 = 1;

/// How a command has ended. An error means that the command line was wrong, or that the command could not begin.
pub(super) type Ended = anyhow::Result<ExitCode>;

/// Tells people why the command has failed.
pub(super) fn complain(reason: &str) {
    // One call writes it, so the output of another process cannot split it. If the pipe is closed, nobody reads it.
    let _ = std::io::stderr().write_all(format!("topofs: {reason}\n").as_bytes());
}

/// The exit status of a command whose work may fail in part.
fn status(is_done: bool) -> ExitCode {
    if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what became of the records of each cell, and complains about what has failed. Returns whether all is done.
fn report(what: &str, outcome: Result<Vec<Outcome>>) -> bool {
    let outcomes = match outcome {
        Ok(outcomes) => outcomes,
        Err(error) => {
            complain(&format!("{what}: {error}"));
            return false;
        }
    };
    for Outcome { cell, path, done } in &outcomes {
        match done {
            // If the pipe is closed, nobody reads it.
            Ok(done) => drop(writeln!(std::io::stdout(), "{cell}/{path} {}", done.word())),
            Err(error) => complain(&format!("{cell}/{path}: {error}")),
        }
    }
    outcomes.iter().all(|outcome| outcome.done.is_ok())
}
