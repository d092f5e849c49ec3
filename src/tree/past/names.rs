//! Names in the directory of a record's past that are not those of its known states. Must never ask anybody.

use super::LOG;
use super::states::{DELETED, States};
use crate::error::{Error, Kind};
use crate::name::CellPath;
use crate::record::Form;

/// The name of the directory of a key that is called like the log of the record, if there is one among these.
pub(super) fn beside_log(children: &[String]) -> Option<String> {
    let is_taken = |name: &str| children.iter().any(|child| child == name);
    is_taken(LOG).then(|| (2_u64..).map(|copy| format!("{LOG}~{copy}")).find(|name| !is_taken(name)))?
}

/// Whether a name is one that a state could have.
pub(super) fn is_of_state(name: &str) -> bool {
    let base = name.strip_suffix(DELETED).or_else(|| Some(Form::of_name(name)?.0)).unwrap_or(name);
    let base = base.split_once('~').map_or(base, |(base, _)| base);
    base.starts_with(|letter: char| letter.is_ascii_digit())
        && base.chars().all(|letter| letter.is_ascii_digit() || letter == '-')
}

/// Why there is no file for a state. That a known one has no such form needs no words.
pub(super) fn unknown(at: &CellPath, states: &States, name: &str) -> Error {
    let base = Form::of_name(name).map_or(name, |(base, _)| base);
    if states.find(base).is_some() {
        return Error::not_found();
    }
    let known = match (states.all.first(), states.all.last()) {
        (Some(first), Some(last)) => format!("{} to {} are known, with gaps or without", first.name, last.name),
        _ => "none is known".to_owned(),
    };
    let reason = format!("no version {name} of {at}: {known}; the others never were, or were compacted or forgotten");
    Error::new(Kind::NotKept, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{CellName, TopoPath};

    #[test]
    fn the_log_wins_over_a_key_of_its_name() {
        let beside = |names: &[&str]| beside_log(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(beside(&["a", ".log~2"]), None);
        assert_eq!(beside(&["a", ".log"]).as_deref(), Some(".log~2"));
        assert_eq!(beside(&[".log", ".log~2"]).as_deref(), Some(".log~3"));
    }

    #[test]
    fn who_asks_for_an_unknown_version_is_told_why_there_is_none() {
        for name in ["99", "99.txt", "5-3", "5-3.json", "99.deleted", "99~2"] {
            assert!(is_of_state(name), "{name}");
        }
        for name in ["", ".log", "x", "a99", "-1", ".git", "9x.txt", "Keyspace"] {
            assert!(!is_of_state(name), "{name}");
        }
        let at = CellPath { cell: CellName::global(), path: TopoPath::parse("metadata/a").unwrap() };
        let error = unknown(&at, &States::default(), "99");
        assert_eq!(error.kind, Kind::NotKept);
        assert!(error.reason.contains("no version 99 of ") && error.reason.contains("metadata/a"), "{error}");
    }
}
