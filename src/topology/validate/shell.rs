//! Commands that mend something, for a shell whose working directory is the mount point. A hostile name must never be
//! more than one word of a command.

use crate::name::{CellName, TopoPath};
use crate::plain::{is_unsafe, shown};

/// A file or directory of the mount.
pub(super) fn file(cell: &CellName, path: &TopoPath, suffix: &str) -> String {
    let name = match path.is_root() {
        true => cell.to_string(),
        false => format!("{cell}/{path}{suffix}"),
    };
    // A name that begins with a dash would be taken for a flag.
    if name.starts_with('-') { word(&format!("./{name}")) } else { word(&name) }
}

/// The text form of a record, in an editor, and what to do there.
pub(super) fn edit(cell: &CellName, path: &TopoPath, what: &str) -> String {
    format!("vim {}  # {}", file(cell, path, ".txt"), shown(what))
}

/// Removes a record.
pub(super) fn remove(cell: &CellName, path: &TopoPath) -> String {
    format!("rm {}", file(cell, path, ""))
}

/// Removes the directory that a record is in.
pub(super) fn remove_dir_of(cell: &CellName, path: &TopoPath) -> String {
    format!("rm -r {}", file(cell, &path.parent().unwrap_or_else(TopoPath::root), ""))
}

/// Writes the text form of a record. Unlike `echo`, this is the same in every shell.
pub(super) fn write_text((cell, path): (&CellName, &TopoPath), text: &str) -> String {
    format!("printf '%s\\n' {} > {}", word(text), file(cell, path, ".txt"))
}

/// A command of topofs that needs the flags of a topology, which are words already. Its argument may begin with a dash.
pub(super) fn topofs(command: &str, flags: &str, argument: Option<&str>) -> String {
    let argument = argument.map(|argument| {
        let dashes = if argument.starts_with('-') { " --" } else { "" };
        format!("{dashes} {}", word(argument))
    });
    format!("topofs {command}{flags}{}", argument.unwrap_or_default())
}

/// One word for a shell (bash, zsh and ksh).
pub(super) fn word(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-./@%+=:,".contains(character);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    if !text.chars().any(is_unsafe) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut quoted = "$'".to_owned();
    for character in text.chars() {
        match character {
            '\'' | '\\' => quoted.extend(['\\', character]),
            character if is_unsafe(character) => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    // Three digits, always: a digit that follows belongs to the name.
                    quoted += &format!("\\{byte:03o}");
                }
            }
            character => quoted.push(character),
        }
    }
    quoted + "'"
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// The words that bash makes of a text.
    fn words(line: &str) -> Vec<String> {
        let script = format!("printf '%s\\0' {line}");
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{script:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\0').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn simple_names_stay_as_they_are() {
        let cell = CellName::new("zone1").unwrap();
        let path = TopoPath::parse("keyspaces/commerce/shards/-80/Shard").unwrap();
        assert_eq!(remove(&cell, &path), "rm zone1/keyspaces/commerce/shards/-80/Shard");
        assert_eq!(remove_dir_of(&cell, &path), "rm -r zone1/keyspaces/commerce/shards/-80");
        let edited = edit(&cell, &path, "do\nthis");
        assert_eq!(edited, r"vim zone1/keyspaces/commerce/shards/-80/Shard.txt  # do\u{a}this");
        assert_eq!(topofs("rebuild-keyspace-graph", "", Some("a")), "topofs rebuild-keyspace-graph a");
        assert_eq!(topofs("rebuild-keyspace-graph", " --x y", Some("-a")), "topofs rebuild-keyspace-graph --x y -- -a");
        let dashed = CellName::new("-rf").unwrap();
        assert_eq!(file(&dashed, &TopoPath::root(), ""), "./-rf");
    }

    #[test]
    fn hostile_names_are_one_word() {
        let hostile =
            ["", "a b", "$(reboot)", "`x`", "it's", "a\nb", "\u{1b}[2J1'\\", "*", "~", "#x", "\u{9b}7\u{202e}", "!!"];
        let line: Vec<String> = hostile.iter().map(|name| word(name)).collect();
        assert!(!line.iter().any(|word| word.chars().any(is_unsafe)), "{line:?}");
        assert_eq!(words(&line.join(" ")), hostile);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn bash_reads_every_name_as_it_was(names in prop::collection::vec("[^\0]{0,20}", 40)) {
            let line: Vec<String> = names.iter().map(|name| word(name)).collect();
            prop_assert_eq!(words(&line.join(" ")), names);
        }
    }
}
