//! The command line: every flag is defined here once; help, man page and completions come from these definitions.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use crate::alive;
use crate::confine;
use crate::control::SetLogLevel;
use crate::mount::{self, Readiness, Settings, Side};
use crate::notify::helper;

mod args;
mod log;
mod one_line;
mod options;
mod settings;
mod unlock;
mod values;

pub use options::{OptionError, normalize};

/// Exit status of a wrong command line.
const USAGE: u8 = 1;
/// Exit status of a mount that failed, as mount(8) has it.
const MOUNT_FAILURE: u8 = 32;

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
    /// Exit status: 0 the mount answers, 1 wrong usage, 32 the mount failed.
    Mount(Box<args::MountArgs>),
    /// Mount a sample cluster that lives in this process, for trying
    Demo(Box<args::CommonArgs>),
    /// Show who holds a lock of a mounted topology, and take it away
    ///
    /// Works for locks of any tool, and for what dead ones have left. Exit status: 0 the lock is free, 1 it is not, or an error.
    Unlock(unlock::UnlockArgs),
    /// What a mount runs beside itself, to raise inotify events
    #[command(hide = true, name = helper::HELPER)]
    Notifier {
        /// Where there is no clone of the mount as stderr
        #[arg(requires = "device")]
        mountpoint: Option<std::path::PathBuf>,
        device: Option<u64>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Runs the command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = match normalize(args) {
        Ok(args) => Cli::try_parse_from(args),
        Err(error) => Err(Cli::command().error(clap::error::ErrorKind::InvalidValue, error)),
    };
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. A closed pipe is nobody's loss.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let (outcome, failure) = match &cli.command {
        Command::Mount(args) => (start(&args.common.process, |log| args.settings(log)), USAGE),
        Command::Demo(args) => (start(&args.process, |log| args.demo_settings(log)), USAGE),
        Command::Unlock(args) => (args.run().map(|free| if free { Ok(()) } else { Err(USAGE) }), USAGE),
        Command::Notifier { mountpoint, device } => {
            (helper::help(mountpoint.clone().zip(*device)).map(Ok).map_err(anyhow::Error::from), USAGE)
        }
        Command::Completions { shell } => (completions(*shell).map(|()| Ok(())), USAGE),
        Command::Man => (man().map(|()| Ok(())), USAGE),
    };
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failed)) => failed.into(),
        Err(error) => {
            complain(&format!("{error:#}"));
            failure.into()
        }
    }
}

fn complain(reason: &str) {
    // Written with one call, so that it stays one piece beside another process's output. A closed pipe is nobody's loss.
    let _ = std::io::stderr().write_all(format!("topofs: {reason}\n").as_bytes());
}

/// Goes to the background if wanted, and serves there. Fails if the command line is wrong; a mount that fails, here or in
/// the child, has its exit status in the result.
fn start(
    args: &args::ProcessArgs,
    settings: impl FnOnce(SetLogLevel) -> anyhow::Result<Settings>,
) -> anyhow::Result<Result<(), u8>> {
    let inherited = confine::Inherited::note();
    confine::daemon().context("cannot keep passwords out of core dumps")?;
    // Whatever panics in the daemon is noted from here on.
    alive::note_panics();
    // All files are opened here: their names are relative to a directory that the daemon leaves.
    let settings = settings(log::start(args)?)?;
    inherited.close();
    let ready = if args.stays() {
        Readiness::nobody_waits()
    } else {
        match mount::detach(MOUNT_FAILURE).context("cannot go to the background")? {
            Side::Parent(outcome) => return Ok(outcome),
            Side::Child(ready) => ready,
        }
    };
    Ok(mount::serve(settings, ready).map_err(|error| {
        tracing::error!("{error}");
        complain(&error.to_string());
        MOUNT_FAILURE
    }))
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "topofs", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// One page with every command: the pages of subcommands have no names of their own to be found by.
fn man() -> anyhow::Result<()> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands().filter(|sub| matches!(sub.get_name(), "mount" | "demo" | "unlock")) {
        let name = sub.get_name().to_uppercase();
        writeln!(page, ".SH \"{name}\"")?;
        let sub = clap_mangen::Man::new(sub.clone());
        sub.render_synopsis_section(&mut page)?;
        sub.render_description_section(&mut page)?;
        sub.render_options_section(&mut page)?;
    }
    Ok(std::io::stdout().write_all(&page)?)
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
            assert_eq!(args.topo.topo_etcd_lease_ttl.as_secs(), 7, "{flags:?}");
        }
    }
}
