//! Prints what a mount tells line by line: `topofs events` and `topofs errors`. Must end when nobody reads what it
//! prints, and when the mount ends.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::ask::{Asking, Ended, ask, is_missing, shown_path};
use super::clock::{parse_since, parse_stamp};
use super::commands::complain;
use super::connection::runtime;
use super::flags::output::ColorArgs;
use super::flags::values::duration;
use super::health::text;
use super::host::Host;
use super::interrupt::end_on_interrupt;
use super::out::Out;
use super::told::{self, Names};
use crate::control::ControlFile;
use crate::mount::Entry;
use crate::plain::{shown, shown_json};
use crate::users::user_name;

/// Exit status: it could not be found out.
pub(super) const UNKNOWN: u8 = 2;

/// What to show.
#[derive(Debug, Args)]
pub(super) struct ListenArgs {
    /// A mount, or a path in one: then only what is at this path and below it [default: see above]
    ///
    /// In the only mount of this host, a path may also be written as Vitess does: global/keyspaces/commerce.
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    path: Option<PathBuf>,
    /// Only since then: a duration before now (10m, -10m), a local time (14:30, 2026-08-19, "2026-08-19 14:30"),
    /// today, yesterday, or seconds since 1970 (@1787142869)
    #[arg(long, short, value_name = "TIME", value_parser = parse_since, allow_hyphen_values = true)]
    since: Option<SystemTime>,
    /// Go on with what comes, until the mount ends
    ///
    /// The mount is in use meanwhile: topofs umount refuses it as busy, and names this process. With --lazy, or when
    /// the daemon is told to end (SIGTERM, systemctl stop), the mount goes all the same.
    #[arg(long, short)]
    follow: bool,
    /// Print the lines as the mount has them, one JSON object each
    #[arg(long)]
    json: bool,
    /// How long to wait for the answer of the mount
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    color: ColorArgs,
}

/// A file of lines, and how people are told of them.
pub(super) struct Told {
    pub file: ControlFile,
    /// Where a line belongs.
    pub place: fn(&Value) -> String,
    /// A line for people.
    pub line: fn(&Value, &Names<'_>) -> String,
}

impl ListenArgs {
    /// Prints the lines.
    pub fn run(&self, told: &Told) -> super::commands::Ended {
        Ok(match self.listen(told) {
            Ok(out) => out.end_command(ExitCode::SUCCESS, UNKNOWN),
            Err(error) => {
                complain(&shown(&format!("{error:#}")));
                UNKNOWN.into()
            }
        })
    }

    fn listen(&self, told: &Told) -> anyhow::Result<Out> {
        let host = Host::read().context("/proc/self/mountinfo")?;
        let (mount, above) = self.place(&host)?;
        if self.follow {
            end_on_interrupt()?;
            end_with_the_reader();
        }
        let runtime = runtime()?;
        let names = |uid: u32| runtime.block_on(user_name(uid));
        let refused = |reason| anyhow::anyhow!("{}: {reason}", shown_path(&mount.mountpoint));
        let mut asking = Asking::start(mount, told.file, self.follow, self.timeout).map_err(refused)?;
        let mut out = self.color.out();
        let mut is_silent = true;
        let outcome = loop {
            // Nobody knows when the next line comes, if the mount is followed.
            let deadline = (!self.follow).then(|| Instant::now() + self.timeout);
            let line = match asking.line(deadline) {
                Ok(line) => line,
                Err(Ended::Over) => {
                    if self.follow {
                        complain(&format!("{}: the mount has ended", shown_path(&mount.mountpoint)));
                    }
                    break Ok(());
                }
                Err(Ended::TooLong) => break Err(refused(super::ask::too_long(told.file))),
                Err(Ended::Late) => break Err(refused(super::ask::NoAnswer::Silent(self.timeout))),
            };
            let Some(line) = self.print(told, &line, &above, &names) else { continue };
            is_silent = false;
            out.print(&line);
            if !out.flush() {
                break Ok(());
            }
        };
        // A mistyped name must not look like a place where nothing happens.
        let is_of_interest = outcome.is_ok() && is_silent && !self.follow && self.since.is_none() && !above.is_empty();
        if is_of_interest && is_missing(mount, &above, self.timeout) {
            complain(&shown(&format!("nothing is known of {above}, and nothing is there")));
        }
        // Whoever still looks for the name of a user may take for ever.
        runtime.shutdown_background();
        outcome.map(|()| out)
    }

    /// What is printed of a line, if it is wanted.
    fn print(&self, told: &Told, line: &str, above: &str, names: &Names<'_>) -> Option<String> {
        if line.trim().is_empty() {
            return None;
        }
        // What nobody understands is shown as it is.
        let parsed = serde_json::from_str::<Value>(line).unwrap_or_default();
        let time = text(&parsed, "time").and_then(parse_stamp);
        if time.zip(self.since).is_some_and(|(time, since)| time < since) {
            return None;
        }
        // Whatever was lost may have been anywhere.
        if time.is_some() && !told::is_below(&(told.place)(&parsed), above) {
            return None;
        }
        let printed = match (self.json, parsed.is_object()) {
            (true, _) => shown_json(line),
            (false, true) => (told.line)(&parsed, names),
            (false, false) => shown(line),
        };
        Some(printed + "\n")
    }

    /// The mount, and the path in it.
    fn place<'a>(&self, host: &'a Host) -> anyhow::Result<(&'a Entry, String)> {
        let Some(path) = &self.path else { return Ok((host.usual()?, String::new())) };
        let place = host.find(path, true).with_context(|| path.display().to_string())?;
        let inside = |path: &Path| path.to_str().map(ToOwned::to_owned).context("the path is not UTF-8");
        if let Some(mount) = place.mount {
            return Ok((mount, inside(place.inside())?));
        }
        let nowhere = || format!("{} is neither in a mount of topofs nor a path of a topology", path.display());
        // As Vitess writes it. A mistyped name of a directory must not look like a place where nothing happens.
        let mount = match host.trusted()[..] {
            [mount] => mount,
            [] => bail!("{}", nowhere()),
            _ => host.usual().with_context(|| format!("{} is not in a mount", path.display()))?,
        };
        let path = inside(path)?;
        let cell = path.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
        let status = ask(mount, ControlFile::Status, self.timeout)
            .map_err(|reason| anyhow::anyhow!("{}: {reason}", shown_path(&mount.mountpoint)))?;
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        if status.get("cells").and_then(|cells| cells.get(&cell)).is_none() {
            bail!("{}", nowhere());
        }
        Ok((mount, path))
    }
}

/// Ends this process when nobody can read its output any more, even if nothing comes that could be printed.
fn end_with_the_reader() {
    std::thread::spawn(|| {
        let out = std::io::stdout();
        // A pipe without a reader, or a terminal that is gone: these are told without being asked for.
        while poll(&mut [PollFd::new(out.as_fd(), PollFlags::empty())], PollTimeout::NONE) == Err(nix::Error::EINTR) {}
        std::process::exit(0);
    });
}
