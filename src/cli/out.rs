//! Standard output of a command. Remembers the first error, so that no command takes for success what nobody could
//! read. A reader that has left, as `head` does, has seen enough: that is no error.

use std::io::{BufWriter, ErrorKind, Stdout, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use anstream::AutoStream;

/// What a command prints, and what came between.
pub(super) struct Out {
    to: BufWriter<AutoStream<Stdout>>,
    error: Option<std::io::Error>,
}

impl Default for Out {
    fn default() -> Self {
        Self::to(AutoStream::always(std::io::stdout()))
    }
}

impl Out {
    /// Prints there.
    pub fn to(stream: AutoStream<Stdout>) -> Self {
        Self { to: BufWriter::new(stream), error: None }
    }

    /// Prints a text, at some time.
    pub fn print(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = self.to.write_all(text.as_bytes()).err();
        }
    }

    /// Prints everything now. `false` if it is of no use to go on.
    pub fn flush(&mut self) -> bool {
        if self.error.is_none() {
            self.error = self.to.flush().err();
        }
        self.error.is_none()
    }

    /// Ends it. Fails if something could not be written that somebody may be waiting for.
    pub fn end(mut self) -> std::io::Result<()> {
        self.flush();
        match self.error.take() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends a command: with this exit status, or with the other one and a complaint.
    pub fn end_command(self, well: ExitCode, otherwise: u8) -> ExitCode {
        match self.end() {
            Ok(()) => well,
            Err(error) => {
                complain(&write_error(&error));
                otherwise.into()
            }
        }
    }
}

/// Why something could not be written, as other tools say it.
pub(super) fn write_error(error: &std::io::Error) -> String {
    let errno = error.raw_os_error().map(nix::Error::from_raw);
    format!("write error: {}", errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_owned()))
}

/// The name under which the program was called, if it is another one.
static NAME: OnceLock<&'static str> = OnceLock::new();

/// Says under which name the program complains.
pub(super) fn speak_as(name: &'static str) {
    // Nobody has two names.
    let _ = NAME.set(name);
}

/// Tells people why the command has failed.
pub(super) fn complain(reason: &str) {
    let name = NAME.get().unwrap_or(&"topofs");
    // One call writes it, so the output of another process cannot split it. If the pipe is closed, nobody reads it.
    let _ = std::io::stderr().write_all(format!("{name}: {reason}\n").as_bytes());
}
