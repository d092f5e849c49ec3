//! The commands. Each file has the arguments of one command, and what it does.

pub(super) mod ask;
pub(super) mod check;
pub(super) mod completions;
pub(super) mod demo;
pub(super) mod errors;
pub(super) mod events;
pub(super) mod man;
pub(super) mod mount;
pub(super) mod notifier;
pub(super) mod rebuild_keyspace_graph;
pub(super) mod rebuild_vschema_graph;
pub(super) mod remove_keyspace_cell;
pub(super) mod status;
pub(super) mod topo2topo;
pub(super) mod umount;
pub(super) mod unlock;
pub(super) mod validate;

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::out::Out;
pub(super) use super::out::{complain, speak_as};
use crate::error::{Error, Result};
use crate::topology::rebuild::Outcome;

/// Exit status of a wrong command line.
pub(super) const USAGE: u8 = 1;

/// How a command has ended. An error means that the command line was wrong, or that the command could not begin.
pub(super) type Ended = anyhow::Result<ExitCode>;

/// Complaints that differ only in their keyspace are printed in full so many times; the rest is one line.
const ALIKE: usize = 10;

/// Tells what became of the records of each cell, and complains about what has failed.
#[derive(Default)]
struct Report {
    out: Out,
    has_failed: bool,
    /// The subjects of all complaints, by what the complaint says.
    complaints: BTreeMap<String, Vec<String>>,
}

impl Report {
    /// Prints what became of a keyspace (of all if the name is empty).
    fn add(&mut self, what: &str, keyspace: &str, outcome: Result<Vec<Outcome>>) {
        let outcomes = match outcome {
            Ok(outcomes) => outcomes,
            Err(error) => return self.complain(what.to_owned(), keyspace, &error),
        };
        for Outcome { cell, path, done } in &outcomes {
            match done {
                Ok(done) => {
                    self.out.print(&format!("{cell}/{path} {}\n", done.word()));
                    self.out.flush();
                }
                Err(error) => self.complain(format!("{cell}/{path}"), keyspace, error),
            }
        }
    }

    fn complain(&mut self, subject: String, keyspace: &str, error: &Error) {
        self.has_failed = true;
        let reason = error.to_string();
        let alike = match keyspace {
            "" => reason.clone(),
            name => reason.replace(&format!("keyspaces/{name}/"), "keyspaces/*/"),
        };
        let subjects = self.complaints.entry(alike).or_default();
        if subjects.len() < ALIKE {
            complain(&format!("{subject}: {reason}"));
        }
        subjects.push(subject);
    }

    /// The exit status.
    fn end(self) -> ExitCode {
        for subjects in self.complaints.values() {
            if let (Some(first), Some(rest @ [_, ..])) = (subjects.first(), subjects.get(ALIKE..)) {
                complain(&format!("as for {first}: {}", rest.join(", ")));
            }
        }
        let well = if self.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        self.out.end_command(well, USAGE)
    }
}
