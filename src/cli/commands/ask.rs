//! `topofs ask`, which no person calls: reads a file of a mount's `.topofs` for another process of topofs, which gives
//! up waiting if the mount does not answer. It must end as soon as nobody listens any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Ended;
use crate::cli::ask::{Answering, MOST, OK};
use crate::cli::askers;
use crate::control::ControlFile;
use crate::device::Device;

/// How often a file that cannot be waited for is read again.
const LOOK: Duration = Duration::from_secs(1);
/// How much is passed on at a time.
const PIECE: usize = 128 << 10;

/// What to read.
#[derive(Debug, Args)]
pub(in crate::cli) struct AskArgs {
    /// The device of the mount
    #[arg(long, value_parser = askers::parse_device)]
    device: Device,
    /// The name of the file
    #[arg(long, value_parser = |name: &str| ControlFile::of_name(name).ok_or("no such file"))]
    file: ControlFile,
    /// Go on with what comes later
    #[arg(long)]
    follow: bool,
    /// Refuse if nothing is there in the mount
    #[arg(long)]
    exists: Option<PathBuf>,
    mountpoint: PathBuf,
}

impl AskArgs {
    /// Reads, and says what it has read.
    pub fn run(&self) -> Ended {
        // It is started as `exe`, which would be its name among those who use the mount.
        rustix::thread::set_name(if self.follow { askers::FOLLOWER } else { askers::ASKER })?;
        // If who asks is killed, nobody else would kill this.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let answering = Answering { mountpoint: self.mountpoint.clone(), device: self.device };
        match self.answer(&answering) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                Answering::refuse(&error);
                Ok(ExitCode::FAILURE)
            }
        }
    }

    fn answer(&self, answering: &Answering) -> anyhow::Result<()> {
        let mount = answering.mount()?;
        if let Some(path) = &self.exists
            && let Err(error) = self.mountpoint.join(path).symlink_metadata()
            && error.kind() == io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let mut out = io::stdout().lock();
        let mut file = mount.file(self.file)?;
        if self.file == ControlFile::Events {
            return events(&mut file, self.follow, &mut out);
        }
        let text = read(file)?;
        writeln!(out, "{OK}")?;
        out.write_all(&text)?;
        out.flush()?;
        if !self.follow {
            return Ok(());
        }
        // From here on, any error is the end: of the mount, or of who listens.
        let _ = follow_changes(&text, || Ok(read(mount.file(self.file)?)?), &mut out);
        Ok(())
    }
}

/// A file that is no longer than topofs makes it, or one byte more: then the listener refuses it.
fn read(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MOST as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Passes on the events. They may be many: the listener says when it has had enough.
fn events(file: &mut File, follow: bool, out: &mut (impl Write + AsFd)) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE];
    // If the first read fails, that is the answer.
    let mut count = file.read(&mut piece)?;
    writeln!(out, "{OK}")?;
    while count > 0 {
        out.write_all(piece.get(..count).unwrap_or_default())?;
        count = file.read(&mut piece)?;
    }
    out.flush()?;
    if follow {
        // From here on, any error is the end: of the mount, or of who listens.
        let _ = follow_growth(file, out);
    }
    Ok(())
}

/// Passes on what comes at the end of a file that can be waited for.
fn follow_growth(file: &mut File, out: &mut (impl Write + AsFd)) -> io::Result<()> {
    loop {
        io::copy(file, out)?;
        out.flush()?;
        let more = PollFd::new(file.as_fd(), PollFlags::POLLIN);
        let mut fds = [more, PollFd::new(out.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::NONE)?;
        let [more, listener] = &fds;
        if listener.any() == Some(true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Too many wait, or the mount has ended, as the next read tells.
        if more.revents().is_some_and(|events| !events.contains(PollFlags::POLLIN)) {
            wait(LOOK, out)?;
        }
    }
}

/// Passes on new lines of a file that drops its oldest lines.
fn follow_changes(
    first: &[u8],
    mut read: impl FnMut() -> anyhow::Result<Vec<u8>>,
    out: &mut (impl Write + AsFd),
) -> anyhow::Result<()> {
    let lines = |text: &[u8]| text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<VecDeque<_>>();
    let mut known = lines(first);
    loop {
        wait(LOOK, out)?;
        let now = lines(&read()?);
        let new = new_lines(known.make_contiguous(), &now);
        now.iter().skip(now.len() - new).try_for_each(|line| out.write_all(line))?;
        out.flush()?;
        known = now;
    }
}

/// How many lines at the end are new, if lines only came at the end and went at the beginning.
fn new_lines(before: &[Vec<u8>], now: &VecDeque<Vec<u8>>) -> usize {
    let is_kept = |dropped: &usize| {
        let kept = before.get(*dropped..).unwrap_or_default();
        kept.len() <= now.len() && kept.iter().eq(now.iter().take(kept.len()))
    };
    let dropped = (0..=before.len()).find(is_kept).unwrap_or(before.len());
    now.len() - (before.len() - dropped)
}

/// Waits for a while; fails if nobody listens any more.
fn wait(time: Duration, out: &impl AsFd) -> io::Result<()> {
    let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(out.as_fd(), PollFlags::empty())], time)? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_lines_of_a_bounded_log_are_told() {
        let lines = |text: &str| text.chars().map(|line| vec![line as u8]).collect::<VecDeque<_>>();
        for (before, now, new) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "ab", 0),
            ("ab", "abc", 1),
            ("abc", "bcd", 1),
            ("abc", "def", 3),
            ("aab", "abb", 1),
            ("abc", "", 0),
        ] {
            let mut known = lines(before);
            assert_eq!(new_lines(known.make_contiguous(), &lines(now)), new, "{before} {now}");
        }
    }
}
