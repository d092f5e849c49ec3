//! Standard error that leads to systemd's journal. The journal adds the time and reads the priority at the beginning of
//! each line (sd-daemon(3)).

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The variable by which systemd says which file leads to the journal.
const VARIABLE: &str = "JOURNAL_STREAM";

/// Whether standard error leads to the journal. systemd's word alone does not count: standard error may have been
/// redirected since.
pub(super) fn is_standard_error() -> bool {
    std::env::var(VARIABLE).is_ok_and(|stream| is_stream(io::stderr().as_fd(), &stream))
}

fn is_stream(fd: BorrowedFd<'_>, stream: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let named = stream.split_once(':').and_then(|(device, inode)| Some((number(device)?, number(inode)?)));
    nix::sys::stat::fstat(fd).is_ok_and(|stat| Some((stat.st_dev, stat.st_ino)) == named)
}

/// Writes lines with their priority to standard error.
#[derive(Debug)]
pub(super) struct Journal;

/// One line.
#[derive(Debug)]
pub(super) struct Line(u8);

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(priority(&Level::INFO))
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        Line(priority(event.level()))
    }
}

/// The priority of syslog(3).
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut whole = format!("<{}>", self.0).into_bytes();
        whole.extend_from_slice(line);
        // In one call, so that no other thread's line comes between.
        io::stderr().lock().write_all(&whole)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_the_file_that_systemd_names_and_no_other() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let stat = nix::sys::stat::fstat(&file).unwrap();
        assert!(is_stream(file.as_fd(), &format!("{}:{}", stat.st_dev, stat.st_ino)));
        for other in ["", ":", "0:0", "a:b", &format!("{}:{}", stat.st_dev, stat.st_ino + 1), &stat.st_ino.to_string()]
        {
            assert!(!is_stream(file.as_fd(), other), "{other}");
        }
    }
}
