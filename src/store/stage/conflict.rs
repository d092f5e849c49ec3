//! What has changed underneath a stage, as people and scripts read it: one JSON object a line. Must never call a record
//! unchanged that cannot be looked at.

use serde_json::{Value, json};

use super::cell::Overtaken;
use super::meet::Meeting;
use crate::error::Error;
use crate::name::{CellName, CellPath};

/// A staged record that others have changed, or may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Which; for a cell that cannot be looked at: the cell.
    pub at: CellPath,
    /// What has happened to it.
    pub what: What,
    /// What a rebase makes of it.
    pub rebase: Outcome,
}

/// What has happened to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It has another version, with the number of that.
    Changed(u64),
    /// It was created, with the number of its version.
    Created(u64),
    /// It was deleted.
    Deleted,
    /// Nobody knows, and why.
    Unknown(String),
}

/// What a rebase makes of a staged record that others have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Both changes are kept.
    Merged,
    /// Others have made the same change.
    Same,
    /// Nothing: a person has to decide. The fields that both have changed differently, if they are known.
    Clash(Vec<String>),
}

impl Conflict {
    pub(super) fn of(overtaken: Overtaken) -> Option<Self> {
        let number = overtaken.theirs.as_ref().map(|record| record.version.number);
        let what = match (overtaken.was_there, number) {
            (_, None) => What::Deleted,
            (true, Some(number)) => What::Changed(number),
            (false, Some(number)) => What::Created(number),
        };
        let rebase = match overtaken.meeting {
            Meeting::Alone => return None,
            Meeting::Same => Outcome::Same,
            Meeting::Merged(_) => Outcome::Merged,
            Meeting::Clash(fields) => Outcome::Clash(fields),
        };
        Some(Self { at: overtaken.at, what, rebase })
    }

    pub(super) fn unknown(cell: &CellName, error: &Error) -> Self {
        let at = CellPath { cell: cell.clone(), path: crate::name::TopoPath::root() };
        Self { at, what: What::Unknown(error.reason.clone()), rebase: Outcome::Clash(Vec::new()) }
    }

    /// Whether a rebase leaves it to a person.
    pub fn is_clash(&self) -> bool {
        matches!(self.rebase, Outcome::Clash(_))
    }

    /// Whether it is known what has happened to it.
    pub fn is_known(&self) -> bool {
        !matches!(self.what, What::Unknown(_))
    }

    fn json(&self) -> Value {
        let mut line = json!({ "path": self.at.to_string() });
        let mut add = |key: &str, value: Value| line.as_object_mut().map(|object| object.insert(key.to_owned(), value));
        match &self.what {
            What::Changed(number) => {
                add("what", "changed".into());
                add("version", (*number).into());
            }
            What::Created(number) => {
                add("what", "created".into());
                add("version", (*number).into());
            }
            What::Deleted => drop(add("what", "deleted".into())),
            What::Unknown(reason) => {
                add("what", "unknown".into());
                add("reason", reason.as_str().into());
                return line;
            }
        }
        match &self.rebase {
            Outcome::Merged => drop(add("rebase", "merges".into())),
            Outcome::Same => drop(add("rebase", "drops".into())),
            Outcome::Clash(fields) => {
                add("rebase", "refuses".into());
                if !fields.is_empty() {
                    add("fields", fields.clone().into());
                }
            }
        }
        line
    }
}

/// One JSON object a line.
pub fn lines(conflicts: &[Conflict]) -> String {
    conflicts.iter().fold(String::new(), |lines, conflict| lines + &conflict.json().to_string() + "\n")
}
