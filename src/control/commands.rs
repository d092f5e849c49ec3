//! The commands that `.topofs/control` accepts, one in each line.

use crate::error::{Error, Kind, Result};
use crate::name::CellName;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Compare a cell, or all, with its service now.
    Resync(Option<CellName>),
    /// The same, with everything that the service has.
    Reread(Option<CellName>),
    /// Take a lock away from its holder.
    BreakLock(BreakLock),
    /// Bring everything at the secondary to what the primary has, in a cell, or in all.
    Repair(Option<CellName>),
    /// Change the level of the log: a filter as `RUST_LOG` takes it.
    Log(String),
}

/// A lock to take away from its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakLock {
    /// The directory, or its `.lock`, below the mount.
    pub path: String,
    /// The key of the lock in `.topofs/locks`; `-` for what is left of a lock that nobody holds.
    pub key: String,
}

/// The content of `control`: the commands that it takes.
pub const HELP: &str = "\
# Write one of these commands to this file:
#   resync [CELL]   compare the mirror with the service; `resyncs` in the status grows then
#   reread [CELL]   the same, but read everything that the service has
#   repair [CELL]   bring everything at the secondary of a tee to what the primary has
#   unlock PATH KEY take a lock away from its holder (better: topofs unlock --force PATH)
#                   KEY is the one in locks; write names with spaces as JSON strings
#   log LEVEL       error, warn, info, debug, trace, or a filter in the syntax of RUST_LOG
";

/// The commands in a text, without empty lines and comments. A line that is not a command is an error in its place.
pub(super) fn parse(text: &[u8]) -> Result<impl Iterator<Item = Result<Command>>> {
    let text = std::str::from_utf8(text).map_err(|_| Error::new(Kind::Invalid, "a command must be UTF-8 text"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(Command::parse))
}

impl Command {
    fn parse(line: &str) -> Result<Self> {
        if let Some(order) = line.strip_prefix("unlock ").and_then(BreakLock::quoted) {
            return Ok(Command::BreakLock(order));
        }
        Ok(match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["resync"] => Command::Resync(None),
            ["resync", cell] => Command::Resync(Some(CellName::new(cell)?)),
            ["reread"] => Command::Reread(None),
            ["reread", cell] => Command::Reread(Some(CellName::new(cell)?)),
            ["repair"] => Command::Repair(None),
            ["repair", cell] => Command::Repair(Some(CellName::new(cell)?)),
            ["unlock", path, key] => Command::BreakLock(BreakLock { path: (*path).to_owned(), key: (*key).to_owned() }),
            ["log", level] => Command::Log((*level).to_owned()),
            _ => return Err(Error::new(Kind::Invalid, format!("unknown command {line:?}"))),
        })
    }
}

impl BreakLock {
    /// Names with spaces and other special characters are JSON strings.
    fn quoted(names: &str) -> Option<Self> {
        let names = serde_json::Deserializer::from_str(names).into_iter::<String>();
        let [path, key] = <[String; 2]>::try_from(names.collect::<serde_json::Result<Vec<_>>>().ok()?).ok()?;
        Some(Self { path, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Result<Command>> {
        parse(text.as_bytes()).unwrap().collect()
    }

    #[test]
    fn each_line_is_a_command() {
        let broken =
            |path: &str, key: &str| Command::BreakLock(BreakLock { path: path.to_owned(), key: key.to_owned() });
        let text = "# a comment\n\n resync \nresync zone1\nreread\nreread zone1\nrepair\nrepair zone1\n\
                    log topofs=debug,info\nunlock global/keyspaces/a locks/7\n\
                    unlock \"global/a b\" \"-\"\n";
        let commands: Vec<Command> = all(text).into_iter().map(Result::unwrap).collect();
        let expected = [
            Command::Resync(None),
            Command::Resync(Some(CellName::new("zone1").unwrap())),
            Command::Reread(None),
            Command::Reread(Some(CellName::new("zone1").unwrap())),
            Command::Repair(None),
            Command::Repair(Some(CellName::new("zone1").unwrap())),
            Command::Log("topofs=debug,info".to_owned()),
            broken("global/keyspaces/a", "locks/7"),
            broken("global/a b", "-"),
        ];
        assert_eq!(commands, expected);
        assert!(all(HELP).is_empty(), "what is shown may be written back");
    }

    #[test]
    fn what_cannot_be_understood_is_refused_in_its_place() {
        for wrong in
            ["reboot", "log", "log a b", "unlock a", "unlock \"a b\" c d", "resync a b", "resync a/b", "repair a b"]
        {
            let commands = all(&format!("resync\n{wrong}\nresync"));
            assert_eq!(commands.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true], "{wrong}");
        }
        assert!(parse(b"resync \xff").is_err());
    }
}
