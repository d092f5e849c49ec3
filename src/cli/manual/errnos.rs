//! What each errno means here, from the kinds of errors that there are. Must know all of them.

use std::collections::BTreeMap;

use crate::error::Kind;

/// Every errno by name, with its message and its causes.
pub(super) fn table() -> Vec<(String, String)> {
    let mut causes: BTreeMap<&str, (i32, Vec<&str>)> = BTreeMap::new();
    for kind in Kind::ALL {
        causes.entry(kind.errno_name()).or_insert((kind.errno(), Vec::new())).1.push(cause(kind));
    }
    let entry = |(name, (number, causes)): (&str, (i32, Vec<&str>))| {
        (format!("`{name}` ({})", message(number)), causes.join(" "))
    };
    causes.into_iter().map(entry).collect()
}

/// What strerror(3) says.
fn message(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// What leads to an error of this kind.
fn cause(kind: Kind) -> &'static str {
    match kind {
        Kind::NotFound => "There is no such record or directory.",
        Kind::NotKept => "Nobody keeps this version or this moment of the past, or no longer.",
        Kind::Exists => "It exists already.",
        Kind::Conflict => "Somebody else has changed the record meanwhile. Read again and repeat.",
        Kind::BadMessage => "What is stored cannot be decoded, or what was written does not parse. Nothing is stored.",
        Kind::WouldBlock => "Somebody else holds the lock, and the program did not want to wait.",
        Kind::Busy => {
            "Somebody else holds the lock that the change needs, or the record is in use: a cell that has keyspaces, a \
             cell that another alias has."
        }
        Kind::LockLost => "A lock that this mount held was lost. The change is not stored.",
        Kind::Deadlock => "Those who wait for locks would wait for each other.",
        Kind::Interrupted => "A signal has come while the program waited for a lock.",
        Kind::TooLarge => "The record is larger than the service takes.",
        Kind::NotEmpty => "The directory holds records.",
        Kind::Unreachable => "The service does not answer, or not in time.",
        Kind::Denied => "The service refuses the user or the access. For other users: the mode of the file.",
        Kind::ReadOnly => "The mount is read-only. So are `.topofs/history`, `.topofs/at`, and a committed stage.",
        Kind::NotPermitted => {
            "The guard rail `--no-delete`; names that topofs makes itself (`.lock`, `.topofs`, links); a writer that \
             cannot be seen; links, devices and pipes, which do not exist here."
        }
        Kind::IsDirectory => "It is a directory; also a form of a record whose key is a directory.",
        Kind::NotDirectory => "It is a file.",
        Kind::Invalid => "This cannot be a name, there is no such command, or a stage cannot be committed as it is.",
        Kind::NameTooLong => "The name is longer than 255 bytes, or the path than 4,095 bytes or 64 names.",
        Kind::CrossDevice => "A rename from cell to cell, or of a stored directory: mv(1) copies then.",
        Kind::TooMany => "The commit has more changes than one transaction of the service takes.",
        Kind::NoSpace => {
            "The quota of scratch files, or a user's share of it or of open files, is used up; there are too many \
             snapshots or stages; or the service has no room."
        }
        Kind::NoLocks => "One user, or all of them, hold or wait for as many locks as they may.",
        Kind::TooManyOpen => "One user, or all of them, have as many files open as they may.",
        Kind::NoAttribute => "The file has no such extended attribute.",
        Kind::Unsupported => "Extended attributes other than `user.topo.*` cannot be set.",
        Kind::BadDescriptor => "A user who may only read the `.lock` file wants its lock.",
        Kind::Io => "Or anything else: `.topofs/errors` and the log have the reason.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_is_listed_once_with_all_its_causes() {
        let table = table();
        let of =
            |errno: &str| table.iter().filter(|(name, _)| name.starts_with(&format!("`{errno}`"))).collect::<Vec<_>>();
        let [(name, causes)] = of("EIO")[..] else { panic!("{table:?}") };
        assert_eq!(name, "`EIO` (Input/output error)");
        assert!(causes.contains("was lost") && causes.contains("anything else"), "{causes}");
        for kind in Kind::ALL {
            assert_eq!(of(kind.errno_name()).len(), 1, "{kind:?}");
        }
    }
}
