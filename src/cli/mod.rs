//! The command line: every flag is defined here once; help, man page and completions come from these definitions.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};

use crate::mount::CannotMount;
use crate::notify::helper;

mod ask;
mod askers;
mod check;
mod clock;
mod commands;
mod connection;
mod environment;
mod flags;
mod health;
mod holders;
mod host;
mod interrupt;
mod listen;
mod log;
mod manual;
mod mount8;
mod mounted;
mod near;
mod one_line;
mod options;
mod out;
mod paint;
mod settings;
mod source;
mod told;

use commands::ask::AskArgs;
use commands::check::CheckArgs;
use commands::completions::CompletionsArgs;
use commands::demo::DemoArgs;
use commands::errors::ErrorsArgs;
use commands::events::EventsArgs;
use commands::man::ManArgs;
use commands::mount::{Fake, MountArgs};
use commands::notifier::NotifierArgs;
use commands::rebuild_keyspace_graph::RebuildKeyspaceGraphArgs;
use commands::rebuild_vschema_graph::RebuildVschemaGraphArgs;
use commands::remove_keyspace_cell::RemoveKeyspaceCellArgs;
use commands::status::{StatusArgs, UNKNOWN};
use commands::topo2topo::{self, TROUBLE, Topo2topoArgs};
use commands::umount::UmountArgs;
use commands::unlock::UnlockArgs;
use commands::validate::{NOT_CHECKED, ValidateArgs};
use commands::{USAGE, complain};

use options::{Caller, Line};

pub use options::OptionError;

/// Mount a Vitess Topology Service as a file system.
#[derive(Debug, Parser)]
#[command(name = "topofs", version, about, args_override_self = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Mount a topology on a directory
    ///
    /// Exit status: 0 if the mount answers, 1 for wrong usage, 32 if the mount failed.
    #[command(override_usage = "topofs mount [OPTIONS] [SOURCE] MOUNTPOINT")]
    Mount(Box<MountArgs>),
    /// Mount a sample cluster in memory, to try topofs
    ///
    /// Two cells, three keyspaces, twenty tablets. It touches nothing else, and ends with the mount. Exit status: as of
    /// topofs mount.
    Demo(Box<DemoArgs>),
    /// Try the flags of a mount, and say what is wrong before it is mounted
    ///
    /// Takes the words and flags of `topofs mount`, changes nothing, and prints one line for each step with what to do
    /// about it: the host (/dev/fuse, fusermount3), the mount point, the files that the flags name, the names and ports
    /// of the servers, their answer (TLS, user and password), the root (if nothing is there, which other roots look
    /// like a topology), the schema of all records, and what this user may do. A right to write is tried by a change
    /// that the service certainly refuses; a right that cannot be found out is never taken for yes. Then the same for
    /// each cell.
    ///
    /// For a MOUNTPOINT without flags where a topology is mounted, the settings of that mount are tried once more from
    /// outside, beside what it says of itself. The files that it names are read as the user who checks, so only a mount
    /// of that user is believed. root checks the mount of another user as that user (runuser -u USER topofs check ...).
    /// For a dead mount, its source in the mount table is tried; where nothing is mounted, the line of /etc/fstab for
    /// this directory.
    ///
    /// Every step ends within --remote-operation-timeout, and all within four times as long (at least 20 s,
    /// at most 5 min).
    ///
    /// Exit status: 0 if nothing has failed (there may be warnings), 1 if something has, 2 if it could not be found out
    /// or the command line is wrong.
    #[command(override_usage = "topofs check [OPTIONS] [SOURCE] [MOUNTPOINT]")]
    Check(Box<CheckArgs>),
    /// Show how the mounts of this host are
    ///
    /// A mount is not healthy if its daemon is gone ("Transport endpoint is not connected") or does not answer in time;
    /// if a cell is reconnecting, down, stale or denied, or cannot be shown; if a lock is lost and its holder does not
    /// know; if topofs itself has panicked; or, with two services, if the second one is out of reach or differs. Idle
    /// cells are healthy. Changes that the watch has missed, and inotify events that were lost, are notes: they are
    /// made good, or over. A mount that stands still cannot delay the answer for longer than --timeout.
    ///
    /// Without MOUNTPOINT, the mounts of this user and of root count. Those of other users are listed below them with
    /// their owners, and are neither asked nor counted: anybody can make a mount that says anything. Name them, or use
    /// --all-users.
    ///
    /// Exit status: 0 if all mounts are healthy; 1 if one is not; 2 if that is unknown: there is no such mount, it is
    /// not readable by this user (not even root reads a mount that another user has made without --allow-other), or
    /// something else is mounted over it.
    Status(StatusArgs),
    /// Show what happens in a mounted topology, one line for each event
    ///
    /// Records that are created, changed and deleted, with their versions; locks that are taken, given back, lost and
    /// broken; and by whom: a user and program of this host, or a client elsewhere. Shows what .topofs/events has: the
    /// last 10,000 events since the mount. Without PATH, the mount is the one that the current directory is in, or else
    /// the only mount of this user and of root.
    ///
    /// Exit status: 0 at the end, also if the mount ends while it is followed; 2 if the mount cannot be read; 130 after
    /// Ctrl-C.
    Events(EventsArgs),
    /// Show which operations a mount has refused, and why, one line each
    ///
    /// Shows what .topofs/errors has, the last 1,000 refusals: path, line and column in the written text, errno,
    /// reason, user and process. Without PATH, the mount is the one that the current directory is in, or else the only
    /// mount of this user and of root.
    ///
    /// Exit status: 0 at the end, also if the mount ends while it is followed; 2 if the mount cannot be read; 130 after
    /// Ctrl-C.
    Errors(ErrorsArgs),
    /// Unmount a topology
    ///
    /// Unmounts mounts of topofs, dead ones too, and nothing else. Symbolic links in place of the mount point are not
    /// followed. If the mount is busy, says who uses it. Returns when the daemon has ended, so that all saves are
    /// finished. root unmounts by itself; everybody else needs fusermount3.
    ///
    /// Exit status: 0 if all is unmounted, 1 if something is not, or if the daemon has not ended in time.
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Show who holds a lock in a mounted topology, and take it away
    ///
    /// Works for the locks of any tool, and for locks that a dead process has left. Exit status: 0 if the lock is free,
    /// 1 if it is not, or after an error.
    Unlock(UnlockArgs),
    /// Rebuild the SrvKeyspace records of keyspaces, as vtctldclient RebuildKeyspaceGraph does
    ///
    /// Stores what Vitess would store, under the lock of the keyspace, in all cells at once. Writes nothing if the key
    /// ranges of the serving shards have gaps or overlap, if traffic is being moved, or if one of the cells does not
    /// answer. Exit status: 0 if every cell has the new record, 1 if not.
    #[command(alias = "RebuildKeyspaceGraph")]
    RebuildKeyspaceGraph(RebuildKeyspaceGraphArgs),
    /// Rebuild the SrvVSchema records of cells, as vtctldclient RebuildVSchemaGraph does
    ///
    /// Stores what Vitess would store, in all cells at once. An older rebuild never replaces a newer one: if a VSchema
    /// or a rule changes meanwhile, all begins again. Exit status: 0 if every cell has the new record, 1 if not.
    #[command(name = "rebuild-vschema-graph", alias = "RebuildVSchemaGraph")]
    RebuildVschemaGraph(RebuildVschemaGraphArgs),
    /// Remove a keyspace from a cell, as vtctldclient RemoveKeyspaceCell does
    ///
    /// Removes the keyspace's SrvKeyspace and ShardReplication records from the cell, under the lock of the keyspace.
    /// Removes nothing if a primary is in the cell, if tablets are left there, or if another cell has the same place.
    /// Exit status: 0 if all is removed, or if --force leaves the records of a cell that does not answer, 1 if not.
    #[command(alias = "RemoveKeyspaceCell")]
    RemoveKeyspaceCell(RemoveKeyspaceCellArgs),
    /// Copy a topology to another service, or compare the two
    ///
    /// Without a --do flag, everything is copied that the topology holds, byte for byte, except locks. The target's
    /// CellInfo records say where the records of a cell go; a cell that the target does not know gets the CellInfo
    /// record of the source, with the server and the root that --map-server and --map-root say. Nothing is overwritten
    /// that somebody changes at the target meanwhile. The command can be interrupted and run again. Exit status: 0 if
    /// the target has everything, 1 if some records were not copied (with --compare, if there are differences), 2 after
    /// any other error.
    #[command(name = "topo2topo", override_usage = topo2topo::SYNOPSIS)]
    Topo2topo(Box<Topo2topoArgs>),
    /// Find what contradicts what in a topology
    ///
    /// Reads all records, and changes nothing. Each problem comes with its record, the fault in words, and the command
    /// that mends it. Exit status: 0 if there are no problems, 1 if there are some, 2 if it could not find out.
    Validate(Box<ValidateArgs>),
    /// Reads a file of a mount for another process, which may give up waiting
    #[command(hide = true, name = ask::ASK)]
    Ask(AskArgs),
    /// The helper process of a mount: raises inotify events
    #[command(hide = true, name = helper::HELPER)]
    Notifier(NotifierArgs),
    /// Print a completion script for a shell
    ///
    /// For this shell alone: `source <(topofs completions bash)`; `topofs completions fish | source`. The package for
    /// Debian brings those of bash, zsh and fish. Exit status: 0 if all is written, 1 if not.
    Completions(CompletionsArgs),
    /// Print a page of the manual, or write all of them
    ///
    /// Exit status: 0 if all is written, 1 if not.
    Man(ManArgs),
}

/// Runs the command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if mount8::is_called(&args) {
        return mount8::main(args);
    }
    let usage = usage_status(&args);
    let mut program = Cli::command();
    let line = match Line::read(args, &program, Caller::Shell) {
        Ok(line) => line,
        Err(error) => {
            complain(&error.to_string());
            return usage.into();
        }
    };
    let (cli, given) = match parse(&mut program, &line) {
        Ok(parsed) => parsed,
        Err(error) => {
            match line.complaint(&error, &program) {
                Some(reason) => complain(&reason),
                None => {
                    let printed = error.print().and_then(|()| std::io::stdout().flush());
                    // Help and version are not errors. If the pipe is closed, nobody reads them.
                    return match printed {
                        _ if error.use_stderr() => usage.into(),
                        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                            complain(&out::write_error(&error));
                            usage.into()
                        }
                        _ => ExitCode::SUCCESS,
                    };
                }
            }
            return usage.into();
        }
    };
    let ended = match &cli.command {
        Command::Mount(args) => args.run(Fake::No),
        Command::Demo(args) => args.run(),
        Command::Check(args) => args.run(given.subcommand().map_or(&given, |(_, given)| given)),
        Command::Status(args) => args.run(),
        Command::Events(args) => args.run(),
        Command::Errors(args) => args.run(),
        Command::Umount(args) => args.run(),
        Command::Unlock(args) => args.run(),
        Command::RebuildKeyspaceGraph(args) => args.run(),
        Command::RebuildVschemaGraph(args) => args.run(),
        Command::RemoveKeyspaceCell(args) => args.run(),
        Command::Topo2topo(args) => args.run(),
        Command::Validate(args) => args.run(),
        Command::Ask(args) => args.run(),
        Command::Notifier(args) => args.run(),
        Command::Completions(args) => args.run(Cli::command()),
        Command::Man(args) => args.run(Cli::command()),
    };
    ended.unwrap_or_else(|error| {
        let lines: Vec<String> = format!("{error:#}").lines().map(crate::plain::shown).collect();
        complain(&lines.join("\n"));
        failure(&error, usage)
    })
}

/// Rewrites a command line: `-o a,b=c` becomes `--a --b=c`, `--a_b=c` becomes `--a-b=c`.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, OptionError> {
    static PROGRAM: std::sync::LazyLock<clap::Command> = std::sync::LazyLock::new(Cli::command);
    Ok(Line::read(args, &PROGRAM, Caller::Shell)?.words)
}

/// Flags that say which topology, as a source does.
const PLACES: [&str; 5] =
    ["topo_implementation", "topo_global_server_address", "topo_global_root", "tee_primary", "tee_secondary"];

/// Understands a command line.
fn parse(program: &mut clap::Command, line: &Line) -> Result<(Cli, ArgMatches), clap::Error> {
    let matches = match program.try_get_matches_from_mut(&line.words) {
        Ok(matches) => matches,
        Err(error) => return Err(what_is_missing(program, error)),
    };
    let cli = Cli::from_arg_matches(&matches)?;
    // Nobody would notice that a variable with a wrong name does nothing.
    if matches!(cli.command, Command::Mount(_) | Command::Demo(_) | Command::Check(_))
        && let Some(reason) = environment::wrong(program)
    {
        return Err(program.error(clap::error::ErrorKind::ArgumentConflict, reason));
    }
    let source = match &cli.command {
        Command::Mount(args) => args.source(),
        Command::Check(args) => args.source(),
        _ => None,
    };
    if let (Some(_), Some((_, matches))) = (source, matches.subcommand())
        && let Some(place) = PLACES.iter().find(|flag| matches.value_source(flag) == Some(ValueSource::CommandLine))
    {
        let flag = place.replace('_', "-");
        let flag = line.option(&flag).map_or_else(|| format!("--{flag}"), str::to_owned);
        let reason = format!("the source says which topology is mounted: leave out {flag}");
        return Err(program.error(clap::error::ErrorKind::ArgumentConflict, reason));
    }
    Ok((cli, matches))
}

/// An error about a missing mount point, in words that also tell of what may stand in its place.
fn what_is_missing(program: &mut clap::Command, error: clap::Error) -> clap::Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let missing = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(names)) if error.kind() == ErrorKind::MissingRequiredArgument => names.as_slice(),
        _ => return error,
    };
    let reason = match missing.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["<SOURCE>", "<MOUNTPOINT>"] => "name a MOUNTPOINT, and before it a SOURCE unless flags say which topology",
        ["<MOUNTPOINT>..."] => "name a MOUNTPOINT, or all mounts with --all (-a)",
        _ => return error,
    };
    program.error(ErrorKind::MissingRequiredArgument, reason)
}

/// What is wrong with a command line, in one line.
fn words(error: &clap::Error) -> String {
    let text = error.render().to_string();
    // Advice and usage follow after an empty line.
    let reason = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
    reason.trim_start_matches("error: ").to_owned()
}

/// The exit status of a command that could not begin. A mount point that is not there is no wrong command line.
fn failure(error: &anyhow::Error, usage: u8) -> ExitCode {
    if error.is::<CannotMount>() && usage == USAGE { commands::mount::FAILURE.into() } else { usage.into() }
}

/// The exit status of a wrong command line. For a command that answers a question, 1 would be an answer.
fn usage_status(args: &[OsString]) -> u8 {
    match args.get(1) {
        Some(command) if command == "validate" => NOT_CHECKED,
        Some(command) if command == "topo2topo" => TROUBLE,
        Some(command) if ["check", "status", "events", "errors"].iter().any(|name| command == name) => UNKNOWN,
        _ => USAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lease_of_etcd_has_two_names_in_every_spelling() {
        for flags in [
            &["--topo-etcd-lease-ttl=7s"][..],
            &["--topo_etcd_lease_ttl", "7"],
            &["--topo-etcd-lease-duration", "7s"],
            &["--topo_etcd_lease_duration=7"],
            &["-topo_etcd_lease_duration", "7"],
            &["-o", "ro,topo_etcd_lease_duration=7"],
        ] {
            let line = [&["topofs", "mount"], flags, &["point"]].concat();
            let parsed = Cli::try_parse_from(normalize(line.iter().map(OsString::from)).unwrap()).unwrap();
            let Command::Mount(args) = parsed.command else { panic!("not a mount") };
            assert_eq!(args.topo.connect.topo_etcd_lease_ttl.as_secs(), 7, "{flags:?}");
        }
    }
}
