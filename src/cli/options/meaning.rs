//! What a mount option means: a flag of the command, nothing, or a reason to refuse. The only place that lists options
//! which are not flags.

use clap::{ArgAction, Command};

use super::OptionError;
use super::list::Written;
use crate::cli::near::nearest;
use crate::plain::{SHOWN, short};

/// Options that mount(8), fstab and systemd need, and options that are always so.
pub(in crate::cli) const IGNORED: &[&str] = &[
    // When and by whom it is mounted.
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "group",
    "nogroup",
    "owner",
    "noowner",
    "_netdev",
    "nofail",
    "fail",
    "defaults",
    "comment",
    // A mount is always nodev, nosuid and noexec, whatever is said here.
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    // Reading changes no time.
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    // What is saved has reached the service when close(2) returns.
    "async",
    "sync",
    "dirsync",
    // For the kernel's own file systems.
    "silent",
    "loud",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "symfollow",
    // The kernel always checks owner and mode; a directory need not be empty.
    "default_permissions",
    "nonempty",
];

/// Options that have a meaning which topofs cannot give them.
pub(in crate::cli) const REFUSED: &[(&str, &str)] = &[
    ("remount", "a mount cannot be changed: unmount it, and mount it with other options"),
    ("bind", "mount --bind needs no type"),
    ("rbind", "mount --rbind needs no type"),
    ("move", "mount --move needs no type"),
    ("nosymfollow", "it is not supported: views=off leaves out the links that topofs makes"),
    ("allow_root", "it is not supported: use allow_other, and owner and mode decide"),
    ("auto_unmount", "it is not supported: a dead mount is replaced by the next one"),
    ("fsname", "the source is shown"),
    ("subtype", "the type is always fuse.topofs"),
    ("fd", "topofs sets it"),
    ("rootmode", "topofs sets it"),
    ("user_id", "topofs sets it: the owner of the files is uid"),
    ("group_id", "topofs sets it: the group of the files is gid"),
    ("help", "see mount.topofs(8), or topofs mount --help"),
    ("version", "see topofs --version"),
];

/// Flags that would keep mount(8) waiting until the end of the mount.
pub(in crate::cli) const STAY: &[&str] = &["foreground", "debug"];

/// Who hands over the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Caller {
    /// Somebody who writes the whole command line.
    Shell,
    /// mount(8), which waits for the end of the command.
    Mount8 {
        /// Options that nobody knows are tolerated.
        sloppy: bool,
    },
}

/// What an option means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing to topofs.
    Nothing,
    /// The opposite of read-only, which is no flag.
    Writable,
    /// A flag of the command.
    Flag {
        /// The long name of the flag.
        flag: String,
        /// Every one counts, not only the last.
        adds_up: bool,
    },
}

impl Meaning {
    /// The flag of read-only mounts.
    pub const READ_ONLY: &'static str = "read-only";
}

/// What an option means to a command.
pub(super) fn meaning(option: &Written, command: &Command, caller: Caller) -> Result<Meaning, OptionError> {
    let name = option.name.as_str();
    if is_any(name, IGNORED) || dashed(name).to_ascii_lowercase().starts_with("x-") {
        return Ok(Meaning::Nothing);
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| is_alike(name, refused)) {
        return Err(OptionError::Refused { name: name.to_owned(), reason });
    }
    if is_alike(name, "rw") {
        return without_value(option).map(|()| Meaning::Writable);
    }
    if matches!(caller, Caller::Mount8 { .. }) && is_any(name, STAY) {
        let reason = "mount(8) would wait for the end of the mount: use log_level=debug, or topofs mount --foreground";
        return Err(OptionError::Refused { name: name.to_owned(), reason });
    }
    let is_flag = |arg: &&clap::Arg| spellings(arg).any(|spelling| is_alike(name, spelling));
    match command.get_arguments().find(is_flag) {
        Some(arg) => {
            if !arg.get_action().takes_values() {
                without_value(option)?;
            } else if option.value.is_none() {
                return Err(OptionError::NeedsValue(name.to_owned()));
            }
            // A list is one value: the last list counts.
            let adds_up = matches!(arg.get_action(), ArgAction::Append) && arg.get_value_delimiter() != Some(',');
            Ok(Meaning::Flag { flag: arg.get_long().unwrap_or_default().to_owned(), adds_up })
        }
        None if caller == (Caller::Mount8 { sloppy: true }) => Ok(Meaning::Nothing),
        None => {
            let near = near(name, command, caller);
            Err(OptionError::Unknown { name: short(name, SHOWN), near, after_value: false })
        }
    }
}

fn without_value(option: &Written) -> Result<(), OptionError> {
    if option.value.is_some() { Err(OptionError::TakesNoValue(short(&option.name, SHOWN))) } else { Ok(()) }
}

/// The long names of a flag.
pub(super) fn spellings(arg: &clap::Arg) -> impl Iterator<Item = &str> {
    arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default())
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

fn is_alike(name: &str, other: &str) -> bool {
    dashed(name) == dashed(other)
}

fn is_any(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| is_alike(name, other))
}

/// The usable name that is most like another one, if any is.
fn near(name: &str, command: &Command, caller: Caller) -> Option<String> {
    let is_refused = |flag: &str| matches!(caller, Caller::Mount8 { .. }) && is_any(flag, STAY);
    let flags = command.get_arguments().flat_map(spellings).filter(|flag| !is_refused(flag));
    let flags = flags.filter(|flag| !REFUSED.iter().any(|(refused, _)| is_alike(flag, refused)));
    let known = flags.map(|flag| flag.replace('-', "_")).chain(IGNORED.iter().map(|name| (*name).to_owned()));
    nearest(name, known)
}
