//! What can be refused at write(), before the file is closed: shells ignore the errors of close.
//!
//! The beginning of an input is refused only if no further bytes could make it valid.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::Form;
use super::codec::{Flaw, parse};

/// The flaw that makes every continuation of this input invalid.
pub(super) fn flaw(message: &MessageDescriptor, form: Form, input: &[u8]) -> Option<Flaw> {
    if form == Form::Raw {
        return raw_flaw(message, input);
    }
    let input = complete_characters(input);
    let flaw = parse(message, form, input).err()?;
    let is_final = match form {
        // The reader reports the position of the byte that it cannot take, or of the one after it.
        Form::Json => flaw.span.start + 1 < input.len(),
        Form::Raw | Form::Text => is_final_text(&flaw, input),
    };
    is_final.then_some(flaw)
}

/// The input without a character that is cut in the middle.
fn complete_characters(input: &[u8]) -> &[u8] {
    match std::str::from_utf8(input) {
        Err(error) if error.error_len().is_none() => input.get(..error.valid_up_to()).unwrap_or(input),
        _ => input,
    }
}

fn is_final_text(flaw: &Flaw, input: &[u8]) -> bool {
    let from = |at: usize| input.get(at..).unwrap_or_default();
    // A string that is cut in the middle is not a token; strings end with their line. Any other token (`1e+`) ends with
    // white space at the latest.
    let lexical = flaw.reason.contains("invalid token") || flaw.reason.contains("invalid string");
    if lexical {
        from(flaw.span.start).contains(&b'\n')
    } else {
        from(flaw.span.end).iter().any(u8::is_ascii_whitespace)
    }
}

fn raw_flaw(message: &MessageDescriptor, input: &[u8]) -> Option<Flaw> {
    let mut rest = input;
    loop {
        let at = input.len() - rest.len();
        match field_length(rest) {
            Ok(Some(length)) => rest.advance(length.min(rest.len())),
            Ok(None) => {
                let whole = input.get(..at).unwrap_or_default();
                let error = DynamicMessage::decode(message.clone(), whole).err()?;
                return Some(Flaw { reason: error.to_string(), span: 0..at });
            }
            Err(reason) => return Some(Flaw { reason, span: at..input.len() }),
        }
    }
}

/// The length of the field that an input begins with; `None` if it is not complete (or there is none).
fn field_length(input: &[u8]) -> Result<Option<usize>, String> {
    /// Longest varint, in bytes.
    const VARINT: usize = 10;
    let mut rest = input;
    let complete = |rest: &[u8]| rest.len() >= VARINT || rest.iter().any(|byte| byte & 0x80 == 0);
    if !complete(rest) {
        return Ok(None);
    }
    let (_, wire_type) = decode_key(&mut rest).map_err(|error| error.to_string())?;
    let length = match wire_type {
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::Varint | WireType::LengthDelimited => {
            if !complete(rest) {
                return Ok(None);
            }
            let value = decode_varint(&mut rest).map_err(|error| error.to_string())?;
            if wire_type == WireType::Varint { 0 } else { usize::try_from(value).unwrap_or(usize::MAX) }
        }
        // Groups end where they end; no Vitess message has any, so only the whole input tells.
        WireType::StartGroup => return Ok(None),
        WireType::EndGroup => return Err("the end of a group that has not begun".to_owned()),
    };
    Ok(if length > rest.len() { None } else { Some(input.len() - rest.len() + length) })
}
