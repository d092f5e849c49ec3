//! `mount.topofs`: the program that mount(8) calls for the type topofs. It is the same binary by another name. Must
//! never say more than one line when it fails: mount(8) shows it as it is.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::commands::mount::Fake;
use super::commands::{Ended, USAGE, complain, speak_as};
use super::manual::flags::{Spelling, spelled};
use super::options::{Caller, Line};
use super::source::Source;
use super::{Cli, Command, words};
use crate::mount::CannotMount;

/// Its name.
const NAME: &str = "mount.topofs";
/// The names of the program: mount(8) looks for one that ends with the type.
const NAMES: [&str; 2] = [NAME, "mount.fuse.topofs"];

/// Mount a topology for mount(8)
///
/// mount(8) calls this program for `mount -t topofs SOURCE DIR -o OPTION,...` and for lines of fstab with the type
/// topofs. Exit status: 0 if the mount answers, 1 for wrong usage, 32 if the mount failed.
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 100)]
struct Mount8 {
    /// The topology: IMPLEMENTATION:SERVERS/ROOT, tee:PRIMARY;SECONDARY, or demo
    ///
    /// `etcd2:http://host:2379/vitess/global`. The implementations are etcd2, zk2, consul and memory. Commas between
    /// servers stay as they are. /proc/mounts shows the source as it is written here.
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// Where to mount: a directory
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Mount options: the long flags of `topofs mount`, with `_` or `-` in their names, and those of mount(8)
    #[arg(short, value_name = "OPTION,...", action = clap::ArgAction::Append)]
    options: Vec<OsString>,
    /// Check the command line and the files that it names, and mount nothing
    #[arg(short)]
    fake: bool,
    /// Tolerate options that topofs does not know
    #[arg(short)]
    sloppy: bool,
    /// Say what is mounted
    #[arg(short)]
    verbose: bool,
    /// Has no meaning: there is no /etc/mtab to write to
    #[arg(short)]
    no_mtab: bool,
    /// Mount in this mount namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// Has no meaning: the type is always fuse.topofs
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
}

/// What it takes, for the manual.
pub(super) fn definitions() -> clap::Command {
    Mount8::command()
}

/// Whether mount(8) has called: by the name of the program, or, through mount.fuse, by a source in place of a command.
pub(super) fn is_called(args: &[OsString]) -> bool {
    let name = args.first().and_then(|program| Path::new(program).file_name());
    let is_ours = |name: &OsStr| NAMES.iter().any(|ours| name == *ours);
    name.is_some_and(is_ours) || args.get(1).and_then(|word| word.to_str()).is_some_and(Source::is_meant)
}

/// Runs the program.
pub(super) fn main(args: Vec<OsString>) -> ExitCode {
    speak_as(NAME);
    let args = match Mount8::try_parse_from(args) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => return refuse(&words(&error)),
        Err(help) => {
            // If the pipe is closed, nobody reads it.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    args.run().unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        super::failure(&error, USAGE)
    })
}

fn refuse(reason: &str) -> ExitCode {
    complain(reason);
    USAGE.into()
}

impl Mount8 {
    fn run(self) -> Ended {
        if let Some(namespace) = &self.namespace {
            enter(namespace).with_context(|| format!("cannot enter the namespace {}", namespace.display()))?;
        }
        let (verbose, fake) = (self.verbose, if self.fake { Fake::Yes } else { Fake::No });
        let shown = format!("{:?} on {:?} type fuse.topofs", self.source, self.mountpoint);
        let mut program = Cli::command();
        let caller = Caller::Mount8 { sloppy: self.sloppy };
        let line = Line::read(self.into_command(), &program, caller)?;
        let parsed = super::parse(&mut program, &line);
        let (cli, _) = parsed.map_err(|error| {
            let reason = line.complaint(&error, &program).unwrap_or_else(|| words(&error));
            anyhow::anyhow!(in_options(&reason))
        })?;
        let Command::Mount(args) = &cli.command else { anyhow::bail!("not a mount") };
        let ended = match args.run(fake) {
            Err(error) if !error.is::<CannotMount>() => anyhow::bail!("{}", in_options(&format!("{error:#}"))),
            ended => ended?,
        };
        if verbose && ended == ExitCode::SUCCESS {
            // If the pipe is closed, nobody reads it.
            let _ = writeln!(std::io::stdout(), "{NAME}: {shown}");
        }
        Ok(ended)
    }

    /// The same as a command line of `topofs mount`.
    fn into_command(self) -> Vec<OsString> {
        let mut line: Vec<OsString> = [NAME, "mount"].map(OsString::from).into();
        line.extend(self.options.into_iter().flat_map(|list| ["-o".into(), list]));
        line.extend(["--".into(), self.source, self.mountpoint.into()]);
        line
    }
}

/// A reason in the words of whoever writes options, and no flags.
fn in_options(reason: &str) -> String {
    let mut program = Cli::command();
    program.build();
    program.find_subcommand("mount").map_or_else(|| reason.to_owned(), |mount| spelled(reason, Spelling::Option, mount))
}

/// Goes into another mount namespace. Call this before any thread is started.
fn enter(namespace: &Path) -> anyhow::Result<()> {
    let namespace = std::fs::File::open(namespace)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Mount8::command().debug_assert();
    }

    #[test]
    fn mount8_is_known_by_the_name_or_by_the_source() {
        for (line, called) in [
            (&["/sbin/mount.topofs", "demo", "/m"][..], true),
            (&["mount.fuse.topofs"], true),
            (&["topofs", "etcd2:h/r", "/m", "-o", "rw"], true),
            (&["topofs", "tee:etcd2:h/r;zk2:h/r", "/m"], true),
            (&["topofs", "mount", "etcd2:h/r", "/m"], false),
            (&["topofs", "demo", "/m"], false),
            (&["/usr/bin/topofs"], false),
            (&[], false),
        ] {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            assert_eq!(is_called(&line), called, "{line:?}");
        }
    }

    #[test]
    fn options_may_stand_anywhere() {
        for line in [
            &["mount.topofs", "demo", "/m", "-sfn", "-o", "ro", "-o", "umask=022", "-t", "fuse.topofs"][..],
            &["mount.topofs", "-o", "ro", "-n", "demo", "-oumask=022", "-sf", "/m", "-t", "x"],
        ] {
            let read = Mount8::try_parse_from(line).unwrap();
            assert!(read.fake && read.sloppy && read.no_mtab && !read.verbose);
            let command = read.into_command();
            assert_eq!(command, ["mount.topofs", "mount", "-o", "ro", "-o", "umask=022", "--", "demo", "/m"]);
        }
    }
}
