//! Single values in JSON, by the rules of Go's protojson: numbers may be quoted, and must be in range.

use std::borrow::Cow;
use std::str::FromStr;

use prost_reflect::{Kind, MapKey, Value};
use serde::de::IgnoredAny;

/// Longest piece of a text that an error quotes, in characters.
const SHOWN: usize = 40;
/// Maximum number of digits before the point of an integer, as in Go; the largest integer has 20.
const DIGITS: usize = 20;

/// The value of a JSON token.
pub(super) fn parse(kind: &Kind, token: &str) -> Result<Value, String> {
    let string = match token.starts_with('"') {
        true => Some(serde_json::from_str::<Cow<'_, str>>(token).map_err(|_| "not a valid string".to_owned())?),
        false => None,
    };
    let number = string.as_deref().unwrap_or(token);
    let value = match kind {
        Kind::Bool => match token {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => integer(number).map(Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => integer(number).map(Value::I64),
        Kind::Uint32 | Kind::Fixed32 => integer(number).map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => integer(number).map(Value::U64),
        Kind::Float => float(string.as_deref(), number, |v: &f32| v.is_finite()).map(Value::F32),
        Kind::Double => float(string.as_deref(), number, |v: &f64| v.is_finite()).map(Value::F64),
        Kind::String => string.map(|string| Value::String(string.into_owned())),
        Kind::Bytes => string.and_then(|string| base64(&string)).map(|bytes| Value::Bytes(bytes.into())),
        Kind::Enum(values) => match (string.as_deref(), token) {
            (Some(name), _) => values.get_value_by_name(name).map(|value| Value::EnumNumber(value.number())),
            // Only for google.protobuf.NullValue.
            (None, "null") if values.full_name() == "google.protobuf.NullValue" => Some(Value::EnumNumber(0)),
            (None, number) => integer(number).map(Value::EnumNumber),
        },
        Kind::Message(_) => None,
    };
    value.ok_or_else(|| {
        let found: String = token.chars().take(SHOWN).collect();
        let more = if found.len() < token.len() { "..." } else { "" };
        format!("expected {}, found {found}{more}", expected(kind))
    })
}

fn expected(kind: &Kind) -> Cow<'static, str> {
    match kind {
        Kind::Bool => "true or false".into(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a 32-bit integer".into(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a 64-bit integer".into(),
        Kind::Uint32 | Kind::Fixed32 => "an unsigned 32-bit integer".into(),
        Kind::Uint64 | Kind::Fixed64 => "an unsigned 64-bit integer".into(),
        Kind::Float => "a number in the range of a float".into(),
        Kind::Double => "a number in the range of a double".into(),
        Kind::String => "a string".into(),
        Kind::Bytes => "a base64 string".into(),
        Kind::Enum(values) => format!("a name or number of {}", values.full_name()).into(),
        Kind::Message(message) => format!("an object: a {}", message.full_name()).into(),
    }
}

/// The key of a map from the name of a member.
pub(super) fn map_key(kind: &Kind, name: &str) -> Result<MapKey, String> {
    let key = match kind {
        Kind::Bool => name.parse().ok().map(MapKey::Bool),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => name.parse().ok().map(MapKey::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => name.parse().ok().map(MapKey::I64),
        Kind::Uint32 | Kind::Fixed32 => name.parse().ok().map(MapKey::U32),
        Kind::Uint64 | Kind::Fixed64 => name.parse().ok().map(MapKey::U64),
        _ => Some(MapKey::String(name.to_owned())),
    };
    key.ok_or_else(|| format!("expected {} as a key, found '{name}'", expected(kind)))
}

/// Whether a text is exactly one JSON number.
fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && text.ends_with(|last: char| last.is_ascii_digit())
        && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// A number; infinite only if the text says so.
fn float<T: FromStr + From<f32>>(string: Option<&str>, number: &str, is_finite: impl Fn(&T) -> bool) -> Option<T> {
    match string {
        Some("NaN") => Some(f32::NAN.into()),
        Some("Infinity") => Some(f32::INFINITY.into()),
        Some("-Infinity") => Some(f32::NEG_INFINITY.into()),
        _ if is_number(number) => number.parse().ok().filter(is_finite),
        _ => None,
    }
}

/// An integer, also as `1e3` or `1.0`.
fn integer<T: TryFrom<i128>>(text: &str) -> Option<T> {
    if !is_number(text) {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (sign, digits) = mantissa.strip_prefix('-').map_or(("", mantissa), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if whole.is_empty() && fraction.is_empty() {
        return T::try_from(0).ok();
    }
    let exponent: i32 = exponent.parse().ok()?;
    if usize::try_from(exponent).is_ok_and(|zeros| zeros.saturating_add(whole.len()) > DIGITS) {
        return None;
    }
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let all = format!("{whole}{fraction}");
    let all = match usize::try_from(shift) {
        Ok(zeros) => format!("{all}{}", "0".repeat(zeros)),
        Err(_) => {
            let kept = all.len().checked_sub(usize::try_from(shift.unsigned_abs()).ok()?)?;
            let (kept, dropped) = all.split_at_checked(kept)?;
            if dropped.bytes().any(|digit| digit != b'0') {
                return None;
            }
            kept.to_owned()
        }
    };
    format!("{sign}{}", if all.is_empty() { "0" } else { &all })
        .parse()
        .ok()
        .and_then(|value: i128| T::try_from(value).ok())
}

/// As Go decodes it: either alphabet, padded or not, with line breaks.
fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::alphabet::{STANDARD, URL_SAFE};
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let alphabet = if text.contains(['-', '_']) { URL_SAFE } else { STANDARD };
    let padding = match text.len() % 4 {
        0 => DecodePaddingMode::RequireCanonical,
        _ => DecodePaddingMode::RequireNone,
    };
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(padding);
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    GeneralPurpose::new(&alphabet, config).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_go_reads_them() {
        for (text, value) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("1.0", Some(1)),
            ("1e3", Some(1000)),
            ("1.5e1", Some(15)),
            ("100e-2", Some(1)),
            ("0.001e3", Some(1)),
            ("0e99", Some(0)),
            ("2147483647", Some(i32::MAX)),
            ("-2147483648", Some(i32::MIN)),
            ("2147483648", None),
            ("1e10", None),
            ("0.00000000000000000000001e23", None),
            ("1.5", None),
            ("15e-1", None),
            ("1e999999999999", None),
            ("1e-2147483648", None),
            ("01", None),
            ("+1", None),
            ("1.", None),
            (".5", None),
            ("1e", None),
            (" 1", None),
            ("1 ", None),
            ("0x1", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(integer::<i32>(text), value, "{text:?}");
        }
        assert_eq!(integer::<u64>("18446744073709551615"), Some(u64::MAX));
        assert_eq!(integer::<u64>("18446744073709551616"), None);
        assert_eq!(integer::<i64>("9223372036854775807.5"), None);
    }
}
