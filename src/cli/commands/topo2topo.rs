//! `topofs topo2topo`: copies a topology to another service, or compares the two. It needs no mount.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::BoolishValueParser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Ended, complain};
use crate::cli::connection::runtime;
use crate::cli::flags::migrate::{ScopeArgs, SidesArgs};
use crate::cli::log::{Heard, start_for_command};
use crate::cli::out::Out;
use crate::record::{Codec, Kinds, Records};
use crate::topology::copy::{Compared, Copied, Options, Progress, Tally, Transfer, counted};

/// The line that says what has to be given. Made from the flags, it would show all that were given as needed ones.
pub(in crate::cli) const SYNOPSIS: &str =
    "topofs topo2topo [OPTIONS] --from-implementation <NAME> --to-implementation <NAME>";

/// Exit status if some records were not copied, or are different.
const PARTLY: u8 = 1;
/// Exit status of a wrong command line, and if the command could not do its work, as in diff(1).
pub(in crate::cli) const TROUBLE: u8 = 2;
/// Exit status of a process that a signal has ended, as in shells.
const SIGNALLED: u8 = 128;
/// Most failures that are printed one by one.
const LINES: usize = 1_000;
/// How often the bar of a terminal moves, and how often a line is printed elsewhere.
const EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Flags of `topofs topo2topo`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Topo2topoArgs {
    #[command(flatten)]
    sides: SidesArgs,
    #[command(flatten)]
    scope: ScopeArgs,
    /// Change nothing, and show the differences
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true,
          conflicts_with_all = ["delete", "dry_run", "keep_going"])]
    compare: bool,
    /// Change nothing, and print what would be changed, one record a line
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Also delete what only the target has, except CellInfo records
    #[arg(long)]
    delete: bool,
    /// If something cannot be copied, copy everything else; without this flag, nothing is copied
    #[arg(long, short = 'k')]
    keep_going: bool,
}

impl Topo2topoArgs {
    /// Copies or compares.
    pub fn run(&self) -> Ended {
        let options = Options {
            delete: self.delete,
            keep_going: self.keep_going,
            dry_run: self.dry_run,
            ..self.scope.options()?
        };
        let transfer = Transfer {
            source: self.sides.source()?,
            target: self.sides.target()?,
            options,
            records: Records::new(Codec::builtin()?, Kinds::default()),
            progress: Progress::default(),
            stop: CancellationToken::new(),
        };
        start_for_command(Heard::Warnings)?;
        let runtime = runtime()?;
        // A service that does not answer must not hold back the end.
        let ended =
            runtime.block_on(async { if self.compare { compare(&transfer).await } else { copy(transfer).await } });
        runtime.shutdown_background();
        ended
    }
}

async fn compare(transfer: &Transfer) -> Ended {
    let mut out = Out::default();
    let Compared { differences, records, notes, failed } = transfer.compare(|lines| out.print(lines)).await?;
    notes.iter().for_each(|note| say(note));
    complain_of(&failed);
    match differences {
        0 if failed.is_empty() => {
            out.print(&format!("Topologies are in sync: {}.\n", counted(records, "record", "records")))
        }
        0 => {}
        _ => {
            let are = if differences == 1 { "is" } else { "are" };
            let records = counted(records, "record", "records");
            out.print(&format!("{differences} of {records} {are} different.\n"))
        }
    }
    out.end()?;
    Ok(match (failed.is_empty(), differences) {
        (false, _) => TROUBLE.into(),
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => PARTLY.into(),
    })
}

async fn copy(transfer: Transfer) -> Ended {
    let begin = Instant::now();
    let (transfer, bar) = (Arc::new(transfer), Arc::new(Bar::new()));
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut signalled = None;
    // On a thread of its own: planning is work for the processor, printing may have to wait, and a signal for neither.
    let mut copying = tokio::task::spawn_blocking({
        let (transfer, bar) = (transfer.clone(), bar.clone());
        let copying = async move { transfer.copy(|tally| bar.print_out(&line(&tally))).await };
        move || tokio::runtime::Handle::current().block_on(copying)
    });
    let mut ticks = tokio::time::interval(if bar.is_shown() { EVERY.0 } else { EVERY.1 });
    ticks.reset();
    let copied = loop {
        let number = tokio::select! {
            biased;
            _ = interrupts.recv() => libc::SIGINT,
            _ = terminations.recv() => libc::SIGTERM,
            copied = &mut copying => break copied,
            _ = ticks.tick() => {
                bar.show(&transfer.progress);
                continue;
            }
        };
        transfer.stop.cancel();
        let status = SIGNALLED.saturating_add(u8::try_from(number).unwrap_or_default());
        if signalled.replace(status).is_some() {
            // Whoever asks twice does not want to wait. What is under way is stored or not; a second run finds out.
            return Ok(status.into());
        }
        if !transfer.progress.has_begun() {
            bar.end();
            complain("stopped: nothing was changed");
            return Ok(status.into());
        }
        bar.print("stopping: what is under way is finished; the same signal again ends at once");
    };
    bar.end();
    let copied = copied??;
    report(&transfer, &copied, begin.elapsed())?;
    Ok(match signalled {
        Some(status) => status.into(),
        None if copied.failed.is_empty() => ExitCode::SUCCESS,
        None => PARTLY.into(),
    })
}

/// What has happened, in lines.
fn report(transfer: &Transfer, copied: &Copied, time: Duration) -> std::io::Result<()> {
    let mut out = Out::default();
    copied.planned.iter().for_each(|planned| out.print(&format!("{planned}\n")));
    copied.notes.iter().for_each(|note| say(note));
    complain_of(&copied.failed);
    let done = usize::try_from(transfer.progress.done.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
    let rest = rest(copied);
    out.print(&match transfer.options.dry_run {
        true => format!("Nothing was changed: this was a dry run{rest}.\n"),
        false => {
            let done = counted(done, "record was", "records were");
            format!("{done} changed in {:.1} s{rest}.\n", time.as_secs_f64())
        }
    });
    out.end()
}

/// What is not done.
fn rest(copied: &Copied) -> String {
    let mut rest = match copied.failed.len() {
        0 => String::new(),
        failed => format!("; {}", counted(failed, "failure", "failures")),
    };
    if copied.is_stopped {
        let left = match copied.stopped {
            0 => "whether the source has changed meanwhile is not known".to_owned(),
            left => counted(left, "record is not copied yet", "records are not copied yet"),
        };
        rest.push_str(&format!("; stopped: {left}. Run the same command again to go on"));
    }
    rest
}

fn complain_of(failed: &[String]) {
    failed.iter().take(LINES).for_each(|reason| complain(reason));
    if failed.len() > LINES {
        complain(&format!("and {} more", failed.len() - LINES));
    }
}

fn line(tally: &Tally) -> String {
    let Tally { cell, records, same, created, updated, deleted, only_target } = tally;
    let parts = [
        (created, "to create"),
        (updated, "to update"),
        (deleted, "to delete"),
        (same, "the same"),
        (only_target, "only at the target"),
    ];
    let parts = parts.iter().filter(|(count, _)| **count > 0).map(|(count, what)| format!(", {count} {what}"));
    format!("{cell}: {}{}", counted(*records, "record", "records"), parts.collect::<String>())
}

fn say(words: &str) {
    // If nobody reads it, nobody wants it.
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// The progress: on a terminal, what is being done, and then a bar; elsewhere, a line now and then.
struct Bar {
    terminal: Option<Terminal>,
}

/// What a terminal shows.
struct Terminal {
    bar: ProgressBar,
    /// While records are stored; their number is known.
    storing: ProgressStyle,
    /// While nobody knows how long it takes.
    waiting: ProgressStyle,
    is_storing: AtomicBool,
}

impl Terminal {
    fn new() -> Self {
        // Without a fraction.
        let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "{:.0}/s", state.per_sec());
        };
        let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let waiting = style("{spinner} {msg}");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(waiting.clone());
        let storing = style("copying {wide_bar} {pos}/{len} records, {rate}, {eta} left").with_key("rate", rate);
        Self { bar, storing, waiting, is_storing: AtomicBool::new(false) }
    }

    fn show(&self, progress: &Progress) {
        let words = progress.words();
        let is_storing = words.is_none();
        if self.is_storing.swap(is_storing, Ordering::Relaxed) != is_storing {
            self.bar.set_style(if is_storing { self.storing.clone() } else { self.waiting.clone() });
            // Its rate counts from here.
            self.bar.reset_eta();
        }
        match words {
            Some(words) => self.bar.set_message(words),
            None => {
                self.bar.set_length(progress.total.load(Ordering::Relaxed));
                self.bar.set_position(progress.done.load(Ordering::Relaxed));
            }
        }
        self.bar.tick();
    }
}

impl Bar {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal().then(Terminal::new) }
    }

    fn is_shown(&self) -> bool {
        self.terminal.is_some()
    }

    fn show(&self, progress: &Progress) {
        let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
        match (&self.terminal, progress.words()) {
            (Some(terminal), _) => terminal.show(progress),
            (None, Some(words)) => say(&words),
            (None, None) => say(&format!("{done} of {total} records")),
        }
    }

    fn print(&self, words: &str) {
        match &self.terminal {
            Some(terminal) => terminal.bar.suspend(|| say(words)),
            None => say(words),
        }
    }

    fn print_out(&self, words: &str) {
        // If nobody reads it, the end of the command says so.
        let print = || drop(writeln!(std::io::stdout(), "{words}"));
        match &self.terminal {
            Some(terminal) => terminal.bar.suspend(print),
            None => print(),
        }
    }

    fn end(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.bar.finish_and_clear();
        }
    }
}
