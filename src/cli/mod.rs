//! The command line: every flag is defined here once; help, man page and completions come from these definitions.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::notify::helper;

mod commands;
mod connection;
mod flags;
mod interrupt;
mod log;
mod mount8;
mod mounted;
mod one_line;
mod options;
mod settings;
mod source;

use commands::completions::CompletionsArgs;
use commands::demo::DemoArgs;
use commands::man;
use commands::mount::{Fake, MountArgs};
use commands::notifier::NotifierArgs;
use commands::rebuild_keyspace_graph::RebuildKeyspaceGraphArgs;
use commands::rebuild_vschema_graph::RebuildVschemaGraphArgs;
use commands::remove_keyspace_cell::RemoveKeyspaceCellArgs;
use commands::topo2topo::{self, TROUBLE, Topo2topoArgs};
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
    Demo(Box<DemoArgs>),
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
    /// The helper process of a mount: raises inotify events
    #[command(hide = true, name = helper::HELPER)]
    Notifier(NotifierArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
}

/// Runs the command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if mount8::is_called(&args) {
        return mount8::main(args);
    }
    let usage = usage_status(&args);
    let program = Cli::command();
    let line = match Line::read(args, &program, Caller::Shell) {
        Ok(line) => line,
        Err(error) => {
            complain(&error.to_string());
            return usage.into();
        }
    };
    let cli = match parse(program, &line) {
        Ok(cli) => cli,
        Err(error) => {
            match line.complaint(&error) {
                Some(reason) => complain(&reason),
                // Help and version are not errors. If the pipe is closed, nobody reads them.
                None => drop(error.print()),
            }
            return if error.use_stderr() { usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let ended = match &cli.command {
        Command::Mount(args) => args.run(Fake::No),
        Command::Demo(args) => args.run(),
        Command::Unlock(args) => args.run(),
        Command::RebuildKeyspaceGraph(args) => args.run(),
        Command::RebuildVschemaGraph(args) => args.run(),
        Command::RemoveKeyspaceCell(args) => args.run(),
        Command::Topo2topo(args) => args.run(),
        Command::Validate(args) => args.run(),
        Command::Notifier(args) => args.run(),
        Command::Completions(args) => args.run(Cli::command()),
        Command::Man => man::run(Cli::command()),
    };
    ended.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        usage.into()
    })
}

/// Rewrites a command line: `-o a,b=c` becomes `--a --b=c`, `--a_b=c` becomes `--a-b=c`.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, OptionError> {
    static PROGRAM: std::sync::LazyLock<clap::Command> = std::sync::LazyLock::new(Cli::command);
    Ok(Line::read(args, &PROGRAM, Caller::Shell)?.words)
}

/// Understands a command line.
fn parse(mut program: clap::Command, line: &Line) -> Result<Cli, clap::Error> {
    /// Flags that say which topology, as a source does.
    const PLACES: [&str; 5] =
        ["topo_implementation", "topo_global_server_address", "topo_global_root", "tee_primary", "tee_secondary"];
    let matches = program.try_get_matches_from_mut(&line.words)?;
    let cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Mount(args), Some((_, matches))) = (&cli.command, matches.subcommand())
        && args.source().is_some()
        && let Some(place) = PLACES.iter().find(|flag| matches.value_source(flag) == Some(ValueSource::CommandLine))
    {
        let flag = place.replace('_', "-");
        let flag = line.option(&flag).map_or_else(|| format!("--{flag}"), str::to_owned);
        let reason = format!("the source says which topology is mounted: leave out {flag}");
        return Err(program.error(clap::error::ErrorKind::ArgumentConflict, reason));
    }
    Ok(cli)
}

/// What is wrong with a command line, in one line.
fn words(error: &clap::Error) -> String {
    let text = error.render().to_string();
    // Advice and usage follow after an empty line.
    let reason = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
    reason.trim_start_matches("error: ").to_owned()
}

/// The exit status of a wrong command line. For a command that answers a question, 1 would be an answer.
fn usage_status(args: &[OsString]) -> u8 {
    match args.get(1) {
        Some(command) if command == "validate" => NOT_CHECKED,
        Some(command) if command == "topo2topo" => TROUBLE,
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
