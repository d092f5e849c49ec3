//! Parses the text format, and refuses what the library accepts silently: a field that is set twice, first to its
//! default value, and a duplicate key in a map. (Of duplicate keys, Vitess's parser also takes the last one; here
//! nothing is lost.)

use std::collections::HashSet;
use std::ops::Range;

use miette::Diagnostic;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor};

use super::flaw::Flaw;

/// Deepest nesting of an input. The library has no limit of its own and would overflow the stack; protobuf's own
/// is 100.
const DEPTH_LIMIT: usize = 100;
/// A hint for people who have written a new value beside the old one.
const ONE_VALUE: &str = "a record keeps one value for it, and no comments";

/// The message of a text.
pub(super) fn parse(message: &MessageDescriptor, text: &str) -> Result<DynamicMessage, Flaw> {
    if let Some(at) = too_deep(text) {
        let reason = format!("nested deeper than {DEPTH_LIMIT}");
        return Err(Flaw { reason, span: at..at });
    }
    let parsed = DynamicMessage::parse_text_format(message.clone(), text).map_err(|error| {
        let label = error.labels().and_then(|mut labels| labels.next());
        let span = label.map_or(text.len()..text.len(), |label| label.offset()..label.offset() + label.len());
        let mut reason = error.to_string();
        if reason.contains("already set") {
            reason = format!("{reason}: {ONE_VALUE}");
        }
        Flaw { reason, span }
    })?;
    let mut tokens = Tokens { text, at: 0 };
    tokens.message(Some(message))?;
    Ok(parsed)
}

/// The place where brackets outside strings and comments nest too deeply.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut tokens = Tokens { text, at: 0 };
    while let Some((token, span)) = tokens.next() {
        match token {
            Token::Mark(b'{' | b'<' | b'[') => depth += 1,
            Token::Mark(b'}' | b'>' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_LIMIT {
            return Some(span.start);
        }
    }
    None
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token {
    /// A quoted string.
    String,
    /// A bracket, a comma and the like.
    Mark(u8),
    /// Anything else: names and numbers.
    Word,
}

/// A value after the walk.
struct Walked {
    span: Range<usize>,
    /// For a message: the place of its first field's value.
    first: Option<Range<usize>>,
}

impl Walked {
    fn scalar(span: Range<usize>) -> Self {
        Self { span, first: None }
    }
}

/// The tokens of a text. Splitting it into tokens always works; the walk needs a valid text.
#[derive(Clone)]
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<(Token, Range<usize>)> {
        let bytes = self.text.as_bytes();
        let byte = |at: usize| bytes.get(at).copied();
        while let Some(next) = byte(self.at) {
            if next == b'#' {
                let rest = bytes.get(self.at..).unwrap_or_default();
                self.at += memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            } else if is_space(next) {
                self.at += 1;
            } else {
                break;
            }
        }
        let start = self.at;
        let first = byte(start)?;
        self.at += 1;
        let token = match first {
            b'"' | b'\'' => {
                // A string ends with its line, even without a closing quote.
                while let Some(next) = byte(self.at) {
                    self.at += if next == b'\\' { 2 } else { 1 };
                    if next == first || next == b'\n' {
                        break;
                    }
                }
                self.at = self.at.min(bytes.len());
                Token::String
            }
            mark if is_mark(mark) => Token::Mark(mark),
            _ => {
                while byte(self.at)
                    .is_some_and(|next| !is_space(next) && !is_mark(next) && !matches!(next, b'"' | b'\'' | b'#'))
                {
                    self.at += 1;
                }
                Token::Word
            }
        };
        Some((token, start..self.at))
    }

    fn peek(&self) -> Option<Token> {
        self.clone().next().map(|(token, _)| token)
    }

    fn skip(&mut self, wanted: impl Fn(Token) -> bool) -> bool {
        let found = self.peek().is_some_and(wanted);
        if found {
            self.next();
        }
        found
    }

    fn part(&self, span: &Range<usize>) -> &'a str {
        self.text.get(span.clone()).unwrap_or_default()
    }

    /// Walks through the fields of a message, to its closing bracket or the end of the text. Returns the place of its
    /// first field's value, which is the key in an entry of a map.
    fn message(&mut self, message: Option<&MessageDescriptor>) -> Result<Option<Range<usize>>, Flaw> {
        let mut seen = HashSet::new();
        let mut keys = HashSet::new();
        let mut first = None;
        while let Some((token, name)) = self.next() {
            let field = match token {
                Token::Mark(b'}' | b'>') => break,
                Token::Mark(b'[') => {
                    let inner = message.and_then(|message| self.expanded(message));
                    // An Any with its content written out: its two fields.
                    if inner.is_some() && !seen.insert(1) {
                        return Err(twice("the content", name));
                    }
                    self.skip(|token| token == Token::Mark(b':'));
                    self.value(inner.as_ref())?;
                    continue;
                }
                Token::Word => message.and_then(|message| message.get_field_by_name(self.part(&name))),
                // A separator, or something that the parser should have refused: not a name.
                Token::Mark(b',' | b';') => continue,
                Token::Mark(_) | Token::String => {
                    return Err(Flaw { reason: "expected a field name".to_owned(), span: name });
                }
            };
            self.skip(|token| token == Token::Mark(b':'));
            let kind = field.as_ref().map(FieldDescriptor::kind);
            let inner = kind.as_ref().and_then(Kind::as_message);
            let values = self.value(inner)?;
            let Some(field) = field else { continue };
            if field.is_map() {
                for Walked { span: entry, first: key } in values {
                    let text = key.as_ref().map_or("", |key| self.part(key));
                    let Some(key_value) = inner.and_then(|entry| map_key(entry, text)) else { continue };
                    if !keys.insert((field.number(), key_value)) {
                        let text = if text.is_empty() { "of no name" } else { text };
                        return Err(twice(&format!("key {text} of '{}'", field.name()), key.unwrap_or(entry)));
                    }
                }
            } else if !field.is_list() {
                if !seen.insert(field.number()) {
                    return Err(twice(&format!("'{}'", field.name()), name));
                }
                if field.number() == 1 {
                    first = values.into_iter().next().map(|value| value.span);
                }
            }
        }
        Ok(first)
    }

    /// Walks through a value or a list of values; returns their places.
    fn value(&mut self, inner: Option<&MessageDescriptor>) -> Result<Vec<Walked>, Flaw> {
        let is_list = self.skip(|token| token == Token::Mark(b'['));
        let mut values = Vec::new();
        while let Some((token, span)) = self.next() {
            match token {
                Token::Mark(b']') => break,
                Token::Mark(b',') if is_list => continue,
                Token::Mark(b'{' | b'<') => {
                    let first = self.message(inner)?;
                    values.push(Walked { span: span.start..self.at, first });
                }
                // There may be space between a sign and its number.
                Token::Word if self.part(&span).starts_with('-') => {
                    if self.part(&span) == "-" {
                        self.skip(|token| token == Token::Word);
                    }
                    let span = span.start..self.at;
                    if self.part(&span).get(1..).is_some_and(|number| number.trim().eq_ignore_ascii_case("nan")) {
                        return Err(Flaw { reason: "nan cannot have a sign".to_owned(), span });
                    }
                    values.push(Walked::scalar(span));
                }
                // Adjacent strings are one string.
                Token::String => {
                    let mut end = self.at;
                    while self.skip(|token| token == Token::String) {
                        end = self.at;
                    }
                    values.push(Walked::scalar(span.start..end));
                }
                Token::Word | Token::Mark(_) => values.push(Walked::scalar(span)),
            }
            if !is_list {
                break;
            }
        }
        Ok(values)
    }

    /// The message for a name in brackets in an Any, up to the closing bracket.
    fn expanded(&mut self, any: &MessageDescriptor) -> Option<MessageDescriptor> {
        let start = self.at;
        while let Some((token, span)) = self.next() {
            if token == Token::Mark(b']') {
                let name = self.part(&(start..span.start)).rsplit('/').next()?.trim();
                return any.parent_pool().get_message_by_name(name);
            }
        }
        None
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn is_mark(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'<' | b'>' | b'[' | b']' | b',' | b';' | b':' | b'/')
}

fn twice(what: &str, span: Range<usize>) -> Flaw {
    Flaw { reason: format!("{what} is already set: {ONE_VALUE}"), span }
}

/// The key of a map's entry; a missing key is the default.
fn map_key(entry: &MessageDescriptor, text: &str) -> Option<MapKey> {
    let field = entry.map_entry_key_field();
    let text = if text.is_empty() { String::new() } else { format!("{}: {text}", field.name()) };
    let message = DynamicMessage::parse_text_format(entry.clone(), &text).ok()?;
    message.get_field(&field).into_owned().into_map_key()
}
