//! Parses an input of any form, and says what is wrong with an invalid one.

use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::flaw::Flaw;
use super::{Form, parse_json, parse_text};

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
        Form::Json => parse_json::parse(message, text),
        Form::Raw | Form::Text => parse_text::parse(message, text),
    }
}
