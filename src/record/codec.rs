//! Messages and their forms: decode, print, parse, encode.

use std::path::Path;

use bytes::Bytes;
use miette::Diagnostic;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::{Form, early, encode, json, text, unknown};
use crate::error::{Error, Kind, Position, Result};

/// Deepest nesting of an input. The text parser has no limit of its own and would overflow the stack; protobuf's own is 100.
const DEPTH_LIMIT: usize = 100;

/// The messages that can be decoded.
#[derive(Debug)]
pub struct Codec {
    pool: DescriptorPool,
}

/// Why an input cannot be parsed, and where.
pub(super) struct Flaw {
    pub reason: String,
    /// Byte range in the input; empty at its end if the input is incomplete.
    pub span: std::ops::Range<usize>,
}

impl Codec {
    /// The messages of the Vitess that this build was made for.
    pub fn builtin() -> Result<Self> {
        let set: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let pool = DescriptorPool::decode(set)
            .map_err(|error| Error::new(Kind::Io, format!("the built-in descriptors cannot be read: {error}")))?;
        Ok(Self { pool })
    }

    /// The messages of a descriptor set file (`protoc --include_imports --descriptor_set_out`).
    pub fn from_file(path: &Path) -> Result<Self> {
        let flaw = |error: String| Error::new(Kind::Invalid, format!("{}: {error}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| flaw(error.to_string()))?;
        let pool = DescriptorPool::decode(bytes.as_slice())
            .map_err(|error| flaw(format!("not a complete descriptor set: {error}")))?;
        if pool.get_message_by_name("topodata.CellInfo").is_none() {
            return Err(flaw("has no message topodata.CellInfo".to_owned()));
        }
        Ok(Self { pool })
    }

    /// Whether a message can be decoded.
    pub fn knows(&self, message: &str) -> bool {
        self.pool.get_message_by_name(message).is_some()
    }

    fn descriptor(&self, message: &str) -> Result<MessageDescriptor> {
        self.pool
            .get_message_by_name(message)
            .ok_or_else(|| Error::new(Kind::BadMessage, format!("no descriptor of {message}")))
    }

    /// Decodes stored bytes.
    pub fn decode(&self, message: &str, raw: &[u8]) -> Result<DynamicMessage> {
        DynamicMessage::decode(self.descriptor(message)?, raw)
            .map_err(|error| Error::new(Kind::BadMessage, format!("cannot be decoded as {message}: {error}")))
    }

    /// A form of stored bytes.
    pub fn show(&self, message: &str, form: Form, raw: &Bytes) -> Result<Bytes> {
        Ok(match form {
            Form::Raw => raw.clone(),
            Form::Text => text::print(&self.decode(message, raw)?).into(),
            Form::Json => json::print(&self.decode(message, raw)?).into(),
        })
    }

    /// The bytes to store for an input; `None` if `old` is the same record already.
    pub fn store(&self, message: &str, form: Form, input: &Bytes, old: Option<&Bytes>) -> Result<Option<Bytes>> {
        if form == Form::Raw {
            self.decode(message, input)?;
            // prost-reflect takes a map entry of any wire type; Vitess would not.
            self.refuse_early(message, form, input)?;
            return Ok(if old == Some(input) { None } else { Some(input.clone()) });
        }
        let mut new = self.parse(message, form, input)?;
        // Bytes that do not decode have nothing that could be kept.
        let old = old.and_then(|old| self.decode(message, old).ok());
        if let Some(old) = &old {
            unknown::carry_over(old, &mut new);
            if *old == new {
                return Ok(None);
            }
        }
        Ok(Some(encode::encode(&new).into()))
    }

    /// Parses a decoded form.
    pub fn parse(&self, message: &str, form: Form, input: &[u8]) -> Result<DynamicMessage> {
        let descriptor = self.descriptor(message)?;
        parse(&descriptor, form, input).map_err(|flaw| flaw.explain(message, form, input))
    }

    /// Refuses the beginning of an input that no further bytes could make valid.
    pub fn refuse_early(&self, message: &str, form: Form, input: &[u8]) -> Result<()> {
        let descriptor = self.descriptor(message)?;
        match early::flaw(&descriptor, form, input) {
            None => Ok(()),
            Some(flaw) => Err(flaw.explain(message, form, input)),
        }
    }
}

impl Flaw {
    fn explain(self, message: &str, form: Form, input: &[u8]) -> Error {
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

/// Parses a text or JSON form.
pub(super) fn parse(
    message: &MessageDescriptor,
    form: Form,
    input: &[u8],
) -> std::result::Result<DynamicMessage, Flaw> {
    let text = std::str::from_utf8(input).map_err(|error| {
        let at = error.valid_up_to();
        let end = error.error_len().map_or(input.len(), |len| at + len);
        Flaw { reason: "not valid UTF-8".to_owned(), span: at..end }
    })?;
    match form {
        Form::Json => parse_json(message, text),
        Form::Raw | Form::Text => parse_text(message, text),
    }
}

fn parse_text(message: &MessageDescriptor, text: &str) -> std::result::Result<DynamicMessage, Flaw> {
    if let Some(at) = too_deep(text) {
        let reason = format!("nested deeper than {DEPTH_LIMIT}");
        return Err(Flaw { reason, span: at..at });
    }
    DynamicMessage::parse_text_format(message.clone(), text).map_err(|error| {
        let label = error.labels().and_then(|mut labels| labels.next());
        let span = label.map_or(text.len()..text.len(), |label| label.offset()..label.offset() + label.len());
        Flaw { reason: error.to_string(), span }
    })
}

/// Where brackets outside of strings and comments nest too deeply.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut quote = None;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => drop(bytes.next()),
            (Some(open), _) if byte == open || byte == b'\n' => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'#') => drop(bytes.find(|(_, byte)| *byte == b'\n')),
            (None, b'{' | b'<' | b'[') => depth += 1,
            (None, b'}' | b'>' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_LIMIT {
            return Some(at);
        }
    }
    None
}

fn parse_json(message: &MessageDescriptor, text: &str) -> std::result::Result<DynamicMessage, Flaw> {
    let flaw = |error: &serde_json::Error| {
        let whole = error.to_string();
        let reason = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(reason, _)| reason).to_owned();
        let at = if error.is_eof() { text.len() } else { offset(text, error.line(), error.column()) };
        Flaw { reason, span: at..(at + 1).min(text.len()) }
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = DynamicMessage::deserialize(message.clone(), &mut deserializer).map_err(|error| flaw(&error))?;
    deserializer.end().map_err(|error| flaw(&error))?;
    Ok(parsed)
}

/// The byte offset of a line and column as serde_json counts them: from 1, in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (start + column.saturating_sub(1)).min(text.len())
}

/// Line and column of a byte offset, counted from 1, columns in characters.
fn position(input: &[u8], at: usize) -> Position {
    let before = input.get(..at.min(input.len())).unwrap_or_default();
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
    Position { line, column }
}
