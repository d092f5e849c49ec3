//! `topofs check`: tries the flags of a mount, and says what is wrong before it is mounted.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches};

use super::{Ended, complain};
use crate::cli::check::{
    Finding, Looking, Outcome, Report, There, deadline, files, flags_of, fstab, kernel, look, mount_point, port,
    programs, there,
};
use crate::cli::connection::runtime;
use crate::cli::flags::output::ColorArgs;
use crate::cli::flags::process::ProcessArgs;
use crate::cli::flags::topo::TopoArgs;
use crate::cli::flags::view::ViewArgs;
use crate::cli::host::Host;
use crate::cli::log::{Heard, start_for_command};
use crate::cli::options::{Caller, Line};
use crate::cli::source::Source;
use crate::cli::{Cli, PLACES};
use crate::mount::{operation_timeout, request_timeout};
use crate::plain::shown;

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
    /// The topology, in place of the flags that say which, as topofs mount takes it (demo, etcd2:SERVERS/ROOT)
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
        let mut out = self.color.out();
        let print = |finding: &Finding| {
            let line = if self.json { finding.json() } else { finding.for_people() };
            // A reader that has left still gets the exit status.
            out.print(&line);
            out.flush();
        };
        let mut report = Report::new(print);
        if let Err(error) = self.check(given, &mut report) {
            complain(&shown(&format!("{error:#}")));
            return Ok(UNKNOWN.into());
        }
        let (worst, summary) = (report.worst(), report.summary());
        drop(report);
        if !self.json {
            out.print(&format!("{summary}\n"));
        }
        let well = if worst == Outcome::Failed { FAILED.into() } else { ExitCode::SUCCESS };
        Ok(out.end_command(well, UNKNOWN))
    }

    /// The topology, if it is not said by flags. A word alone is one if it can be nothing else.
    pub fn source(&self) -> Option<&OsStr> {
        let is_source = |word: &&OsStr| self.second.is_some() || word.to_str().is_some_and(Source::is_alone);
        self.first.as_deref().filter(is_source)
    }

    fn mountpoint(&self) -> Option<&Path> {
        let alone = || self.first.as_deref().filter(|_| self.source().is_none());
        self.second.as_deref().or_else(alone).map(Path::new)
    }

    fn check(&self, given: &ArgMatches, report: &mut Report<'_>) -> anyhow::Result<()> {
        let host = Host::read().context("/proc/self/mountinfo")?;
        if let (Some(path), false) = (self.mountpoint(), self.source().is_some() || has_flags(given)) {
            match there(path, &host, PATIENCE)? {
                There::Living(living) => {
                    report.add(living.finding);
                    return Self::of(&flags_of(&living.config))?.check_services(report);
                }
                There::Dead(source) => {
                    let text = format!("is dead; what follows is its source in the mount table: {source}");
                    report.add(Finding::warning("mount", path.display().to_string(), text, "mount again"));
                    let args = Self { first: Some(source.into()), second: Some(path.into()), ..Self::of(&[])? };
                    return args.check_new(&host, report);
                }
                There::Nothing => {
                    if let Some(line) = fstab::line_for(path) {
                        report.add(Finding::ok("fstab", path.display().to_string(), line.told()));
                        return Self::of_fstab(&line)?.check_new(&host, report);
                    }
                    if !is_named_by_environment(given) {
                        let text = "nothing is mounted there, and no SOURCE was named: the default is tried";
                        let advice = "name a SOURCE, or the flags of the mount";
                        report.add(Finding::warning("flags", path.display().to_string(), text, advice));
                    }
                }
            }
        }
        self.check_new(&host, report)
    }

    /// Checks what is not mounted yet.
    fn check_new(&self, host: &Host, report: &mut Report<'_>) -> anyhow::Result<()> {
        report.extend(programs(self.view.allow_other));
        if let Some(path) = self.mountpoint() {
            report.add(mount_point(path, host, PATIENCE));
        }
        report.extend(self.process.metrics_address.map(port));
        self.check_services(report)
    }

    /// The arguments that a line of fstab stands for.
    fn of_fstab(line: &fstab::Line) -> anyhow::Result<Self> {
        let words = ["topofs", "check", "-o", &line.options, "--", &line.source, &line.dir].map(OsString::from);
        let line = Line::read(words, &Cli::command(), Caller::Mount8 { sloppy: true })?;
        let flags = line.words.iter().skip(2).map(|word| word.to_string_lossy().into_owned());
        Self::of(&flags.collect::<Vec<_>>())
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
        let files = files(connect, &self.view, &self.process);
        let lacks_file = files.iter().any(|file| file.outcome == Outcome::Failed);
        report.extend(files);
        if let Some(text) = self.view.shut_out() {
            report.add(Finding::warning("flags", "", text, "add --allow-other, or leave out --uid and --gid"));
        }
        let wrong =
            |error: anyhow::Error| Finding::failed("flags", "", format!("{error:#}"), "correct the flags or files");
        let (records, mut options) =
            match self.view.records().and_then(|records| Ok((records, self.topo.cells(self.source())?))) {
                Ok(both) => both,
                // It is told above.
                Err(error) if lacks_file && error.root_cause().is::<std::io::Error>() => return Ok(()),
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

/// Whether the environment says which topology.
fn is_named_by_environment(given: &ArgMatches) -> bool {
    PLACES.iter().any(|id| given.value_source(id) == Some(ValueSource::EnvVariable))
}

/// Whether flags of a mount are on the command line. What is in the environment is for all commands.
fn has_flags(given: &ArgMatches) -> bool {
    let ids = given.ids().map(clap::Id::as_str).filter(|id| !OWN.contains(id));
    // The structs of flags have ids, too.
    let mut flags = ids.filter(|id| !id.starts_with(char::is_uppercase));
    flags.any(|id| given.value_source(id) == Some(ValueSource::CommandLine))
}
