//! `topofs check`: tries the flags of a mount, and says what is wrong before it is mounted.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};

use super::{Ended, complain};
use crate::cli::check::{
    Finding, Looking, Outcome, Report, deadline, files, flags_of, kernel, living, look, mount_point, programs,
};
use crate::cli::connection::runtime;
use crate::cli::flags::output::ColorArgs;
use crate::cli::flags::process::ProcessArgs;
use crate::cli::flags::topo::TopoArgs;
use crate::cli::flags::view::ViewArgs;
use crate::cli::host::Host;
use crate::cli::log::{Heard, start_for_command};
use crate::cli::source::Source;
use crate::mount::{operation_timeout, request_timeout};
use crate::topology::validate::shown;

/// Exit status: something does not work.
const FAILED: u8 = 1;
/// Exit status: it could not be found out.
const UNKNOWN: u8 = 2;
/// How long to wait for a mount that is there already.
const PATIENCE: Duration = Duration::from_secs(5);
/// Flags of the check itself, beside those of a mount.
const OWN: [&str; 4] = ["json", "color", "first", "second"];

/// Flags of `topofs check`: those of `topofs mount`, and its own.
#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    // What has no heading comes first: a heading is for all that follows.
    /// The topology, in place of the flags that say which, as topofs mount takes it
    #[arg(value_name = "SOURCE", value_hint = clap::ValueHint::DirPath)]
    first: Option<OsString>,
    /// Where to mount, or a mount that is there already
    #[arg(value_name = "MOUNTPOINT", value_hint = clap::ValueHint::DirPath)]
    second: Option<OsString>,
    /// Print one JSON object a line: outcome, step, subject, text, advice
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    color: ColorArgs,
    #[command(flatten)]
    topo: TopoArgs,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

impl CheckArgs {
    /// Checks. Succeeds if nothing has failed.
    pub fn run(&self, given: &ArgMatches) -> Ended {
        start_for_command(Heard::Errors)?;
        let mut out = self.color.stdout();
        let print = |finding: &Finding| {
            let line = if self.json { finding.json() } else { finding.for_people() };
            // A reader that has left still gets the exit status.
            let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        };
        let mut report = Report::new(print);
        if let Err(error) = self.check(given, &mut report) {
            complain(&shown(&format!("{error:#}")));
            return Ok(UNKNOWN.into());
        }
        let (worst, summary) = (report.worst(), report.summary());
        drop(report);
        if !self.json {
            let _ = writeln!(out, "{summary}");
        }
        Ok(if worst == Outcome::Failed { FAILED.into() } else { ExitCode::SUCCESS })
    }

    /// The topology, if it is not said by flags. A word alone is one if it can be nothing else.
    pub fn source(&self) -> Option<&OsStr> {
        let is_source = |word: &&OsStr| self.second.is_some() || word.to_str().is_some_and(Source::is_meant);
        self.first.as_deref().filter(is_source)
    }

    fn mountpoint(&self) -> Option<&Path> {
        let alone = || self.first.as_deref().filter(|_| self.source().is_none());
        self.second.as_deref().or_else(alone).map(Path::new)
    }

    fn check(&self, given: &ArgMatches, report: &mut Report<'_>) -> anyhow::Result<()> {
        let host = Host::read().context("/proc/self/mountinfo")?;
        if let (Some(path), false) = (self.mountpoint(), self.source().is_some() || has_flags(given))
            && let Some(living) = living(path, &host, PATIENCE)?
        {
            report.add(living.finding);
            let flags = flags_of(&living.config);
            return Self::of(&flags)?.check_services(report);
        }
        report.extend(programs(self.view.allow_other));
        if let Some(path) = self.mountpoint() {
            report.add(mount_point(path, &host, PATIENCE));
        }
        self.check_services(report)
    }

    /// The arguments in flags alone: what is in the environment was not meant for them.
    fn of(flags: &[String]) -> anyhow::Result<Self> {
        let command = CheckArgs::augment_args(clap::Command::new("check").no_binary_name(true));
        let command = command.mut_args(|flag| flag.env(None));
        let matches = command.try_get_matches_from(flags).context("the settings of the mount")?;
        Ok(CheckArgs::from_arg_matches(&matches)?)
    }

    fn check_services(&self, report: &mut Report<'_>) -> anyhow::Result<()> {
        let connect = &self.topo.connect;
        report.extend(kernel(connect.remote_operation_timeout));
        report.extend(files(connect, &self.view, &self.process));
        if let Some(text) = self.view.shut_out() {
            report.add(Finding::warning("flags", "", text, "add --allow-other, or leave out --uid and --gid"));
        }
        let wrong =
            |error: anyhow::Error| Finding::failed("flags", "", format!("{error:#}"), "correct the flags or files");
        let (records, mut options) =
            match self.view.records().and_then(|records| Ok((records, self.topo.cells(self.source())?))) {
                Ok(both) => both,
                Err(error) => {
                    report.add(wrong(error));
                    return Ok(());
                }
            };
        options.connect.timeout = operation_timeout(options.connect.timeout, request_timeout());
        report.add(Finding::ok("flags", options.source(), "can be understood"));
        let deadline = deadline(options.connect.timeout);
        let looking = Looking { options, records, read_only: self.view.read_only, deadline };
        let runtime = runtime()?;
        runtime.block_on(look(&looking, report));
        // Whoever still waits for a name server may take for ever.
        runtime.shutdown_background();
        Ok(())
    }
}

/// Whether flags of a mount are on the command line. What is in the environment is for all commands.
fn has_flags(given: &ArgMatches) -> bool {
    let ids = given.ids().map(clap::Id::as_str).filter(|id| !OWN.contains(id));
    // The structs of flags have ids, too.
    let mut flags = ids.filter(|id| !id.starts_with(char::is_uppercase));
    flags.any(|id| given.value_source(id) == Some(ValueSource::CommandLine))
}
