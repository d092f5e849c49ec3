//! Prints proto3 JSON as Vitess's tools do: proto names, two spaces, 64-bit integers as strings, fields by number, maps
//! sorted by key.

use prost_reflect::{DynamicMessage, Kind, MapKey, Value};
use serde_json::{Map, Number, Value as Json};

use super::text::{enum_name, sorted};

/// The JSON of a message, with a final newline.
pub(super) fn print(message: &DynamicMessage) -> String {
    format!("{:#}\n", message_json(message))
}

fn message_json(message: &DynamicMessage) -> Json {
    let mut object = Map::new();
    for (field, value) in message.fields() {
        let json = match value {
            Value::List(items) => Json::Array(items.iter().map(|item| json(&field.kind(), item)).collect()),
            Value::Map(map) => {
                let Kind::Message(entry) = field.kind() else { continue };
                let kind = entry.map_entry_value_field().kind();
                Json::Object(sorted(map).into_iter().map(|(key, item)| (key_text(key), json(&kind, item))).collect())
            }
            _ => json(&field.kind(), value),
        };
        object.insert(field.name().to_owned(), json);
    }
    Json::Object(object)
}

fn json(kind: &Kind, value: &Value) -> Json {
    match value {
        Value::Bool(v) => Json::Bool(*v),
        Value::I32(v) => Json::from(*v),
        Value::U32(v) => Json::from(*v),
        Value::I64(v) => Json::String(v.to_string()),
        Value::U64(v) => Json::String(v.to_string()),
        // Through the shortest decimal, so that 0.1 does not become 0.10000000149011612.
        Value::F32(v) => v.to_string().parse().map_or(Json::Null, number),
        Value::F64(v) => number(*v),
        Value::String(v) => Json::String(v.clone()),
        Value::Bytes(v) => Json::String(base64(v)),
        Value::EnumNumber(number) => enum_name(kind, *number).map_or_else(|| Json::from(*number), Json::String),
        Value::Message(message) => message_json(message),
        Value::List(_) | Value::Map(_) => Json::Null,
    }
}

fn number(value: f64) -> Json {
    /// Integers below this print without a fraction, as Go prints them.
    const INTEGER: f64 = 1e15;
    if value.fract() == 0.0 && value.abs() < INTEGER && !(value == 0.0 && value.is_sign_negative()) {
        #[allow(clippy::cast_possible_truncation)] // checked above
        return Json::from(value as i64);
    }
    Number::from_f64(value).map_or_else(
        || {
            Json::String(
                if value.is_nan() {
                    "NaN"
                } else if value > 0.0 {
                    "Infinity"
                } else {
                    "-Infinity"
                }
                .to_owned(),
            )
        },
        Json::Number,
    )
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
