//! Refuses input at write(), before the file is closed, because shells ignore the errors of close.
//!
//! The beginning of an input is refused only if no further bytes could make it valid.

use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::flaw::Flaw;
use super::parse::parse;
use super::{Form, wire};

/// The flaw that makes every continuation of an input invalid.
pub(super) fn flaw(message: &MessageDescriptor, form: Form, input: &[u8]) -> Option<Flaw> {
    if form == Form::Raw {
        return raw_flaw(message, input);
    }
    let input = complete_characters(input);
    let flaw = parse(message, form, input).err()?;
    let is_final = match form {
        // A token at the end may continue: a number, or the byte before the one that the reader does not accept.
        Form::Json => flaw.span.end < input.len(),
        Form::Raw | Form::Text => is_final_text(&flaw, input),
    };
    is_final.then_some(flaw)
}

/// The input without an incomplete character at its end.
fn complete_characters(input: &[u8]) -> &[u8] {
    match std::str::from_utf8(input) {
        Err(error) if error.error_len().is_none() => input.get(..error.valid_up_to()).unwrap_or(input),
        _ => input,
    }
}

fn is_final_text(flaw: &Flaw, input: &[u8]) -> bool {
    let from = |at: usize| input.get(at..).unwrap_or_default();
    // An incomplete string is not a token; strings end with their line. Any other token (`1e+`) ends with white space
    // at the latest.
    let lexical = flaw.reason.contains("invalid token") || flaw.reason.contains("invalid string");
    if lexical {
        from(flaw.span.start).contains(&b'\n')
    } else {
        from(flaw.span.end).iter().any(u8::is_ascii_whitespace)
    }
}

fn raw_flaw(message: &MessageDescriptor, input: &[u8]) -> Option<Flaw> {
    if let Some(flaw) = wire::flaw(message, input) {
        return Some(flaw);
    }
    let complete = wire::complete_fields(input);
    let error = DynamicMessage::decode(message.clone(), complete).err()?;
    Some(Flaw { reason: error.to_string(), span: 0..complete.len() })
}
