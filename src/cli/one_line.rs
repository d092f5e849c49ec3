//! Each event is one line of the log. Records contain names and addresses that anybody may have written; these must not
//! add lines.

use std::io::{self, Write};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::plain::is_unsafe;

/// Writers that write one line for each event, and escape what a terminal would obey.
#[derive(Debug)]
pub(super) struct OneLine<M>(pub M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = Escaped<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaped(self.0.make_writer())
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        Escaped(self.0.make_writer_for(event))
    }
}

/// A writer that gets one event at a time.
#[derive(Debug)]
pub(super) struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.write_all(escaped(event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The event in one line, with its original end.
fn escaped(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
    let mut shown = String::with_capacity(text.len());
    for character in line.chars() {
        match character {
            '\t' => shown.push(character),
            character if is_unsafe(character) => shown.extend(character.escape_default()),
            character => shown.push(character),
        }
    }
    shown + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(escaped(b"plain, \xc3\xa4\n"), "plain, \u{e4}\n");
        assert_eq!(escaped(b"a\n2026 ERROR forged\x1b[2J\r\n"), "a\\n2026 ERROR forged\\u{1b}[2J\\r\n");
        assert_eq!(escaped("\u{9b}31m\u{202e}\u{e0041}".as_bytes()), "\\u{9b}31m\\u{202e}\\u{e0041}");
    }
}
