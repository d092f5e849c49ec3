//! `topofs topo2topo`: copies a topology to another service, or compares the two. It needs no mount.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
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
use crate::record::{Codec, Kinds, Records};
use crate::topology::copy::{Compared, Copied, Options, Progress, Tally, Transfer};

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
            runtime.block_on(async { if self.compare { compare(&transfer).await } else { copy(&transfer).await } });
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
        0 if failed.is_empty() => out.print(&format!("Topologies are in sync: {records} records.\n")),
        0 => {}
        _ => out.print(&format!("{differences} of {records} records are different.\n")),
    }
    out.end()?;
    Ok(match (failed.is_empty(), differences) {
        (false, _) => TROUBLE.into(),
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => PARTLY.into(),
    })
}

/// Standard output. If its reader has gone, as `head` does, nobody wants the rest, and that is no error.
struct Out(std::io::Result<std::io::BufWriter<std::io::Stdout>>);

impl Default for Out {
    fn default() -> Self {
        Self(Ok(std::io::BufWriter::new(std::io::stdout())))
    }
}

impl Out {
    fn print(&mut self, text: &str) {
        if let Ok(out) = &mut self.0
            && let Err(error) = out.write_all(text.as_bytes())
        {
            self.0 = Err(error);
        }
    }

    fn end(self) -> std::io::Result<()> {
        match self.0.and_then(|mut out| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            ended => ended,
        }
    }
}

async fn copy(transfer: &Transfer) -> Ended {
    let begin = Instant::now();
    let bar = Bar::new();
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut signalled = None;
    let copying = transfer.copy(|tally| bar.print_out(&line(&tally)));
    tokio::pin!(copying);
    let mut ticks = tokio::time::interval(if bar.0.is_some() { EVERY.0 } else { EVERY.1 });
    ticks.reset();
    let copied = loop {
        let number = tokio::select! {
            copied = &mut copying => break copied,
            _ = ticks.tick() => {
                bar.show(&transfer.progress);
                continue;
            }
            _ = interrupts.recv() => libc::SIGINT,
            _ = terminations.recv() => libc::SIGTERM,
        };
        let status = SIGNALLED.saturating_add(u8::try_from(number).unwrap_or_default());
        if signalled.replace(status).is_some() {
            // Whoever asks twice does not want to wait. What is under way is stored or not; a second run finds out.
            return Ok(status.into());
        }
        bar.print("stopping: what is under way is finished; the same signal again ends at once");
        transfer.stop.cancel();
    };
    bar.show(&transfer.progress);
    bar.end();
    let copied = copied?;
    report(transfer, &copied, begin.elapsed())?;
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
    let done = transfer.progress.done.load(Ordering::Relaxed);
    let rest = match (copied.stopped, copied.failed.len()) {
        (0, 0) => String::new(),
        (0, failed) => format!("; {failed} failures"),
        (stopped, _) => format!("; stopped: {stopped} records are not copied yet. Run the same command again to go on"),
    };
    out.print(&match transfer.options.dry_run {
        true => format!("Nothing was changed: this was a dry run{rest}.\n"),
        false => format!("{done} records were changed in {:.1} s{rest}.\n", time.as_secs_f64()),
    });
    out.end()
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
    format!("{cell}: {records} records{}", parts.collect::<String>())
}

fn say(words: &str) {
    // If nobody reads it, nobody wants it.
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// The progress: a bar on a terminal, a line now and then elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} records, {rate}, {eta} left");
        if let Ok(style) = style {
            // Without a fraction.
            let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                let _ = write!(text, "{:.0}/s", state.per_sec());
            };
            bar.set_style(style.with_key("rate", rate));
        }
        bar.set_message("reading");
        Self(Some(bar))
    }

    fn show(&self, progress: &Progress) {
        let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
        match &self.0 {
            Some(bar) if total > 0 => {
                bar.set_message("copying");
                bar.set_length(total);
                bar.set_position(done);
            }
            Some(bar) => bar.tick(),
            None if total > 0 && done < total => say(&format!("{done} of {total} records")),
            None => {}
        }
    }

    fn print(&self, words: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| say(words)),
            None => say(words),
        }
    }

    fn print_out(&self, words: &str) {
        // If nobody reads it, the end of the command says so.
        let print = || drop(writeln!(std::io::stdout(), "{words}"));
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
