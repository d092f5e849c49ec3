//! The checks of the wire format that the library does not make: it accepts a map entry of any wire type, and reads the
//! following bytes as one. Vitess does not.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_reflect::{Kind, MessageDescriptor};

use super::flaw::Flaw;

/// Depth of nested messages to look into; prost refuses deeper ones.
const DEPTH: usize = 100;

/// The first field of an input.
struct Field {
    number: u32,
    wire_type: WireType,
    /// Its length in bytes.
    length: usize,
    /// The length of its content, at its end.
    content: usize,
}

/// The first flaw in the complete fields of a message. No further bytes could repair it.
pub(super) fn flaw(message: &MessageDescriptor, input: &[u8]) -> Option<Flaw> {
    flaw_in(message, input, 0, DEPTH)
}

/// `base` is the offset of this input in the whole input.
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
                let reason = format!("field '{}' has a wire type that does not match", known.name());
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

/// The complete fields of an input.
pub(super) fn complete_fields(input: &[u8]) -> &[u8] {
    let mut rest = input;
    while let Ok(Some(field)) = next_field(rest) {
        rest.advance(field.length);
    }
    input.get(..input.len() - rest.len()).unwrap_or_default()
}

/// The first field of an input; `None` if it is not complete, or if there is none.
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
        // The length of a group is not in its header. No Vitess message has groups, so only the whole input decides.
        WireType::StartGroup => return Ok(None),
        WireType::EndGroup => return Err("a group ends that has not begun".to_owned()),
    };
    let header = input.len() - rest.len();
    Ok((content <= rest.len()).then(|| Field { number, wire_type, length: header + content, content }))
}
