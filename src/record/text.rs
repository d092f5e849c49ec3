//! Prints protobuf text format exactly as `protoc --decode` does: one field in each line, maps sorted by key.
//!
//! Leaves out fields that this build does not know, because no parser accepts them. `unknown` keeps them across an
//! edit.

use std::fmt::Write;

use prost_reflect::{DynamicMessage, Kind, MapKey, Value};

/// The text of a message; ends with a newline unless it is empty.
pub(super) fn print(message: &DynamicMessage) -> String {
    let mut out = String::new();
    print_message(&mut out, message, 0);
    out
}

fn print_message(out: &mut String, message: &DynamicMessage, indent: usize) {
    for (field, value) in message.fields() {
        let name = field.name();
        match value {
            Value::List(items) => items.iter().for_each(|item| print_field(out, name, &field.kind(), item, indent)),
            Value::Map(map) => {
                let Kind::Message(entry) = field.kind() else { continue };
                for (key, item) in sorted(map) {
                    let _ = writeln!(out, "{:indent$}{name} {{", "");
                    print_field(out, "key", &entry.map_entry_key_field().kind(), &Value::from(key.clone()), indent + 2);
                    print_field(out, "value", &entry.map_entry_value_field().kind(), item, indent + 2);
                    let _ = writeln!(out, "{:indent$}}}", "");
                }
            }
            _ => print_field(out, name, &field.kind(), value, indent),
        }
    }
}

/// Map entries in the order of their keys, the only order that is the same every time.
pub(super) fn sorted(map: &std::collections::HashMap<MapKey, Value>) -> Vec<(&MapKey, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by(|a, b| a.0.cmp(b.0));
    entries
}

fn print_field(out: &mut String, name: &str, kind: &Kind, value: &Value, indent: usize) {
    // Writing to a String cannot fail.
    if let Value::Message(message) = value {
        let _ = writeln!(out, "{:indent$}{name} {{", "");
        print_message(out, message, indent + 2);
        let _ = writeln!(out, "{:indent$}}}", "");
        return;
    }
    let _ = write!(out, "{:indent$}{name}: ", "");
    let _ = match value {
        Value::Bool(v) => write!(out, "{v}"),
        Value::I32(v) => write!(out, "{v}"),
        Value::I64(v) => write!(out, "{v}"),
        Value::U32(v) => write!(out, "{v}"),
        Value::U64(v) => write!(out, "{v}"),
        Value::F32(v) => out.write_str(&float(f64::from(*v), 6, 9, |text| text.parse::<f32>() == Ok(*v))),
        Value::F64(v) => out.write_str(&float(*v, 15, 17, |text| text.parse::<f64>() == Ok(*v))),
        Value::String(v) => quote(out, v.as_bytes()),
        Value::Bytes(v) => quote(out, v),
        Value::EnumNumber(number) => match enum_name(kind, *number) {
            Some(name) => out.write_str(&name),
            None => write!(out, "{number}"),
        },
        Value::Message(_) | Value::List(_) | Value::Map(_) => Ok(()),
    };
    out.push('\n');
}

/// The first declared name of an enum's number, as protoc and Go print it.
pub(super) fn enum_name(kind: &Kind, number: i32) -> Option<String> {
    let Kind::Enum(values) = kind else { return None };
    // The reflected values have another order; the descriptor keeps the declared one.
    let declared = &values.enum_descriptor_proto().value;
    declared.iter().find(|value| value.number() == number).map(|value| value.name().to_owned())
}

/// C escapes with three octal digits for everything that is not printable ASCII.
fn quote(out: &mut String, bytes: &[u8]) -> std::fmt::Result {
    out.push('"');
    for byte in bytes {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'"' => out.push_str("\\\""),
            b'\'' => out.push_str("\\'"),
            b'\\' => out.push_str("\\\\"),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => write!(out, "\\{byte:03o}")?,
        }
    }
    out.push('"');
    Ok(())
}

/// C's `%.{short}g`, or `%.{long}g` if the shorter one does not parse to the same number.
fn float(value: f64, short: usize, long: usize, reads_back: impl Fn(&str) -> bool) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let text = percent_g(value, short);
    if reads_back(&text) { text } else { percent_g(value, long) }
}

/// C's `%.{precision}g`.
fn percent_g(value: f64, precision: usize) -> String {
    let scientific = format!("{value:.*e}", precision.saturating_sub(1));
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if exponent < -4 || exponent >= i32::try_from(precision).unwrap_or(i32::MAX) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.unsigned_abs());
    }
    let decimals = i32::try_from(precision).unwrap_or(i32::MAX) - 1 - exponent;
    trim(&format!("{value:.*}", usize::try_from(decimals).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_c() {
        let double = |v: f64| float(v, 15, 17, |text| text.parse::<f64>() == Ok(v));
        assert_eq!(double(1.0), "1");
        assert_eq!(double(0.1), "0.1");
        assert_eq!(double(1e15), "1e+15");
        assert_eq!(double(123456.0), "123456");
        assert_eq!(double(1e-5), "1e-05");
        assert_eq!(double(0.0001), "0.0001");
        assert_eq!(double(1.0 / 3.0), "0.33333333333333331");
        assert_eq!(double(f64::INFINITY), "inf");
        assert_eq!(double(-0.0), "-0");
        assert_eq!(double(100.0), "100");
    }
}
