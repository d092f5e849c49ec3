//! The wire format, as far as the library does not look at it: it takes a map entry of any wire type, and reads what
//! follows as one. Vitess would not.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_reflect::{Kind, MessageDescriptor};

use super::flaw::Flaw;

/// Messages in messages that are looked into; prost refuses deeper ones.
const DEPTH: usize = 100;

/// A field, from the beginning of an input.
struct Field {
    number: u32,
    wire_type: WireType,
    /// Bytes of it in all.
    length: usize,
    /// How many of them, at its end, are its content.
    content: usize,
}

/// The first flaw in the complete fields of a message that no further bytes could repair.
pub(super) fn flaw(message: &MessageDescriptor, input: &[u8]) -> Option<Flaw> {
    flaw_in(message, input, 0, DEPTH)
}

/// `base` is where the input begins in the whole one.
fn flaw_in(message: &MessageDescriptor, input: &[u8], base: usize, depth: usize) -> Option<Flaw> {
    let mut rest = input;
    loop {
        let at = input.len() - rest.len();
        let field = match next_field(rest) {
            Ok(Some(field)) => field,
            Ok(None) => return None,
            Err(reason) => return Some(Flaw { reason, span: base + at..base + input.len() }),
        };
        if let Some(known) = message.get_field(field.number).filter(|known| !known.is_group())
            && let Kind::Message(inner) = known.kind()
        {
            if field.wire_type != WireType::LengthDelimited {
                let reason = format!("field '{}' has the wire type of something else", known.name());
                return Some(Flaw { reason, span: base + at..base + at + field.length });
            }
            let start = at + field.length - field.content;
            let content = input.get(start..start + field.content).unwrap_or_default();
            if let Some(flaw) = depth.checked_sub(1).and_then(|depth| flaw_in(&inner, content, base + start, depth)) {
                return Some(flaw);
            }
        }
        rest.advance(field.length);
    }
}

/// The fields that an input holds completely.
pub(super) fn complete_fields(input: &[u8]) -> &[u8] {
    let mut rest = input;
    while let Ok(Some(field)) = next_field(rest) {
        rest.advance(field.length);
    }
    input.get(..input.len() - rest.len()).unwrap_or_default()
}

/// The field that an input begins with; `None` if it is not complete (or there is none).
fn next_field(input: &[u8]) -> Result<Option<Field>, String> {
    /// Longest varint, in bytes.
    const VARINT: usize = 10;
    let mut rest = input;
    let complete = |rest: &[u8]| rest.len() >= VARINT || rest.iter().any(|byte| byte & 0x80 == 0);
    if !complete(rest) {
        return Ok(None);
    }
    let (number, wire_type) = decode_key(&mut rest).map_err(|error| error.to_string())?;
    let content = match wire_type {
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
    let header = input.len() - rest.len();
    Ok((content <= rest.len()).then(|| Field { number, wire_type, length: header + content, content }))
}
