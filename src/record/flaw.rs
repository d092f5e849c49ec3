//! What is wrong with an input, and where.

use super::Form;
use crate::error::{Error, Kind, Position};

/// Why an input cannot be parsed, and where.
pub(super) struct Flaw {
    pub reason: String,
    /// Byte range in the input; if the input is incomplete, an empty range at its end.
    pub span: std::ops::Range<usize>,
}

impl Flaw {
    /// The error for people: the message, the form and the place in it.
    pub fn explain(self, message: &str, form: Form, input: &[u8]) -> Error {
        if form == Form::Raw {
            let at = self.span.start;
            let reason = format!("cannot be decoded as {message}: {} at byte {at}", self.reason);
            return Error::new(Kind::BadMessage, reason);
        }
        let position = position(input, self.span.start);
        let Position { line, column } = position;
        let reason = format!("not valid {form} of {message}: line {line}, column {column}: {}", self.reason);
        Error { kind: Kind::BadMessage, reason, position: Some(position) }
    }
}

/// Line and column of a byte offset, counted from 1, columns in characters.
fn position(input: &[u8], at: usize) -> Position {
    let before = input.get(..at.min(input.len())).unwrap_or_default();
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
    Position { line, column }
}
