//! Prints proto3 JSON as Vitess's tools do: proto names, two spaces, 64-bit integers as strings, fields by number, maps
//! sorted by key.

use std::io::{Result, Write};

use prost_reflect::{DynamicMessage, Kind, MapKey, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Number, Value as Json};

use super::text::{enum_name, sorted};

/// The JSON of a message, with a final newline.
pub(super) fn print(message: &DynamicMessage) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, AsGo(PrettyFormatter::new()));
    // Writing to memory cannot fail, and all keys are strings.
    if let Err(error) = message_json(message).serialize(&mut serializer) {
        tracing::error!(%error, "cannot show a message as JSON");
    }
    out.push(b'\n');
    String::from_utf8(out).unwrap_or_default()
}

/// Indented, with numbers as Go prints them.
struct AsGo(PrettyFormatter<'static>);

impl Formatter for AsGo {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> Result<()> {
        out.write_all(decimal(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.0.end_object_value(out)
    }
}

/// The shortest digits that parse to the same number, with an exponent only if the number is very small or large.
fn decimal(value: f64) -> String {
    const PLAIN: std::ops::Range<f64> = 1e-6..1e21;
    if value == 0.0 || PLAIN.contains(&value.abs()) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    if text.contains("e-") { text } else { text.replace('e', "e+") }
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
    let name = match value {
        _ if value.is_nan() => "NaN",
        f64::INFINITY => "Infinity",
        _ => "-Infinity",
    };
    Number::from_f64(value).map_or_else(|| Json::String(name.to_owned()), Json::Number)
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
