//! The commands that a stage takes in `.control`: what they are called. Must never carry one out.

use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath, TopoPath};
use crate::record::Form;

/// The content of `.control`: the commands that it takes.
pub const HELP: &str = "\
# Write one of these commands to this file:
#   commit      store all changes in one transaction, or none of them
#   rebase      take in what others have changed meanwhile; .conflicts has what is left to you
#   check       fail if the changes bring errors into the topology; .check has them
#   keep PATH   keep what is staged, whatever others have made of this record
#   drop PATH   give up what is staged of this record
";

/// What `keep` and `drop` need.
const PATH: &str = "the path of a staged record in the stage, such as global/keyspaces/ks/Keyspace.txt";

/// A command for a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Commit,
    Rebase,
    Check,
    /// Decide about a record: keep what is staged, or give it up.
    Settle(String, bool),
}

/// The commands in a text, without empty lines and comments.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Command>> {
    let invalid = |reason: String| Error::new(Kind::Invalid, reason);
    let text = std::str::from_utf8(text).map_err(|_| invalid("a command must be UTF-8 text".to_owned()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let command = |line: &str| match line
        .split_once(char::is_whitespace)
        .map_or((line, ""), |(word, rest)| (word, rest.trim()))
    {
        ("commit", "") => Ok(Command::Commit),
        ("rebase", "") => Ok(Command::Rebase),
        ("check", "") => Ok(Command::Check),
        (word @ ("keep" | "drop"), "") => Err(invalid(format!("{word}: PATH is missing: {PATH}"))),
        (word @ ("keep" | "drop"), path) => Ok(Command::Settle(path.to_owned(), word == "keep")),
        _ => Err(invalid(format!("unknown command {line:?}: commit, rebase, check, keep PATH or drop PATH"))),
    };
    lines.map(command).collect()
}

/// The records that a path in the stage may mean: it may have a form. Fails with EINVAL if it can mean none.
pub(super) fn meant(path: &str) -> Result<Vec<CellPath>> {
    let invalid = || Error::new(Kind::Invalid, format!("{path:?} is no record: expected {PATH}"));
    let (cell, rest) = path.split_once('/').ok_or_else(invalid)?;
    let cell = CellName::new(cell).map_err(|_| invalid())?;
    let rest = rest.trim_end_matches('/');
    let plain = Form::of_name(rest).map_or(rest, |(plain, _)| plain);
    let paths = [rest, plain].into_iter().filter_map(|path| TopoPath::parse(path).ok());
    let all: Vec<CellPath> =
        paths.filter(|path| !path.is_root()).map(|path| CellPath { cell: cell.clone(), path }).collect();
    if all.is_empty() { Err(invalid()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_command_and_nothing_is_done_if_one_is_none() {
        let all = parse(b"# first\n rebase \n\ncommit\nkeep global/a b/Keyspace.txt\ndrop  zone1/x\n").unwrap();
        let settle = |path: &str, keep| Command::Settle(path.to_owned(), keep);
        let expected =
            [Command::Rebase, Command::Commit, settle("global/a b/Keyspace.txt", true), settle("zone1/x", false)];
        assert_eq!(all, expected);
        for text in ["commit now", "Commit", "undo", "commit\nfrobnicate", "\u{0}"] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.reason.contains("unknown command"), "{text}: {error}");
        }
        assert_eq!(parse(b"\xff").unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn what_is_no_path_of_a_record_is_refused_with_what_is_expected() {
        for word in ["keep", " drop  "] {
            let error = parse(word.as_bytes()).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.reason.contains("PATH is missing"), "{word}: {error}");
        }
        for path in ["Keyspace.txt", "global", "global/", "glo\0bal/x", "/a", "global/a//b"] {
            let error = meant(path).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{path:?}: {error}");
            assert!(error.reason.contains(&format!("{path:?}")) && error.reason.contains("such as"), "{error}");
        }
        let named = |path: &str| meant(path).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(named("zone1/a/Tablet.txt"), ["zone1/a/Tablet.txt", "zone1/a/Tablet"]);
    }
}
