//! Parses proto3 JSON as Vitess's parser (Go's protojson) does, and refuses what that parser refuses.
//!
//! The library's own parser accepts more: if a member occurs twice, the last one wins, and quoted numbers that are too
//! large become infinite.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::flaw::Flaw;
use super::scalar;

/// The messages with their own JSON form. No record of Vitess contains one, but another descriptor set might.
const WELL_KNOWN: &str = "google.protobuf.";

/// The message of a text.
pub(super) fn parse(message: &MessageDescriptor, text: &str) -> Result<DynamicMessage, Flaw> {
    let input = Input { text, flaw: Cell::default() };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = MessageSeed(&input, message).deserialize(&mut deserializer);
    let parsed = parsed.and_then(|parsed| deserializer.end().map(|()| parsed));
    parsed.map_err(|error| input.flaw.take().unwrap_or_else(|| flaw(text, &error)))
}

/// A text, and the part of its flaw that the JSON reader cannot report.
struct Input<'a> {
    text: &'a str,
    flaw: Cell<Option<Flaw>>,
}

impl Input<'_> {
    /// The bytes of a part of the text.
    fn span(&self, part: &str) -> std::ops::Range<usize> {
        let start = part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        start..start + part.len()
    }

    fn refuse<E: Error>(&self, reason: String, part: &str) -> E {
        self.flaw.set(Some(Flaw { reason: reason.clone(), span: self.span(part) }));
        E::custom(reason)
    }

    fn scalar<E: Error>(&self, kind: &Kind, part: &str) -> Result<Value, E> {
        scalar::parse(kind, part).map_err(|reason| self.refuse(reason, part))
    }

    /// Messages that the library reads by special rules. It would also accept duplicates there.
    fn well_known<E: Error>(&self, message: &MessageDescriptor, part: &str) -> Result<DynamicMessage, E> {
        let at = self.span(part).start;
        if let Some(Flaw { reason, .. }) = flaw_of_any(message, part) {
            return Err(self.refuse(reason, part));
        }
        let unique = serde_json::from_str::<Unique>(part);
        let parsed = unique.and_then(|_| {
            let mut deserializer = serde_json::Deserializer::from_str(part);
            DynamicMessage::deserialize(message.clone(), &mut deserializer)
        });
        parsed.map_err(|error| {
            let Flaw { reason, span } = flaw(part, &error);
            self.flaw.set(Some(Flaw { reason, span: at + span.start..at + span.end }));
            E::custom(error)
        })
    }
}

/// The flaw of the message in an Any, where the library also accepts too much. It does not say where the flaw is.
fn flaw_of_any(any: &MessageDescriptor, part: &str) -> Option<Flaw> {
    const TYPE: &str = "@type";
    if any.full_name() != "google.protobuf.Any" {
        return None;
    }
    let mut members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(part).ok()?;
    let name = members.shift_remove(TYPE)?;
    let message = any.parent_pool().get_message_by_name(name.as_str()?.rsplit('/').next()?)?;
    if is_well_known(&message) {
        return None;
    }
    parse(&message, &serde_json::Value::Object(members).to_string()).err()
}

fn flaw(text: &str, error: &serde_json::Error) -> Flaw {
    let whole = error.to_string();
    let reason = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(reason, _)| reason).to_owned();
    let at = if error.is_eof() { text.len() } else { offset(text, error.line(), error.column()) };
    Flaw { reason, span: at..(at + 1).min(text.len()) }
}

/// The byte offset of a line and column as serde_json counts them: from 1, in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (start + column.saturating_sub(1)).min(text.len())
}

fn is_well_known(message: &MessageDescriptor) -> bool {
    message.full_name().starts_with(WELL_KNOWN)
}

/// Whether `null` is a value of the field, not its absence.
fn takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(values) => values.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

struct MessageSeed<'a>(&'a Input<'a>, &'a MessageDescriptor);

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = DynamicMessage;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<DynamicMessage, D::Error> {
        let Self(input, message) = self;
        if is_well_known(message) {
            let part: &RawValue = serde::Deserialize::deserialize(deserializer)?;
            return input.well_known(message, part.get());
        }
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = DynamicMessage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object: a {}", self.1.full_name())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<DynamicMessage, A::Error> {
        let Self(input, descriptor) = self;
        let mut message = DynamicMessage::new(descriptor.clone());
        let (mut seen, mut oneofs) = (HashSet::new(), HashSet::new());
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            let field = descriptor.get_field_by_json_name(&name).or_else(|| descriptor.get_field_by_name(&name));
            let Some(field) = field else {
                return Err(A::Error::custom(format!("unrecognized field name '{name}'")));
            };
            if !seen.insert(field.number()) {
                return Err(A::Error::custom(format!("field '{}' occurs twice, here as '{name}'", field.name())));
            }
            let Some(value) = members.next_value_seed(FieldSeed(input, &field))? else { continue };
            if let Some(oneof) = field.containing_oneof()
                && !oneofs.insert(oneof.name().to_owned())
            {
                return Err(A::Error::custom(format!("'{}' has a second value: '{name}'", oneof.name())));
            }
            message.set_field(&field, value);
        }
        Ok(message)
    }
}

/// The value of a member; `None` if it is null.
struct FieldSeed<'a>(&'a Input<'a>, &'a FieldDescriptor);

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        let Self(input, field) = self;
        let kind = field.kind();
        if field.is_list() || field.is_map() || (matches!(kind, Kind::Message(_)) && !takes_null(&kind)) {
            return deserializer.deserialize_option(self);
        }
        let part: &RawValue = serde::Deserialize::deserialize(deserializer)?;
        match kind {
            Kind::Message(message) => input.well_known(&message, part.get()).map(|value| Some(Value::Message(value))),
            kind if part.get() == "null" && !takes_null(&kind) => Ok(None),
            kind => input.scalar(&kind, part.get()).map(Some),
        }
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_none<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        let Self(input, field) = self;
        let kind = field.kind();
        let value = match &kind {
            Kind::Message(entry) if field.is_map() => {
                deserializer.deserialize_map(MapVisitor(input, entry)).map(Value::Map)
            }
            _ if field.is_list() => deserializer.deserialize_seq(ListVisitor(input, &kind)).map(Value::List),
            kind => ValueSeed(input, kind).deserialize(deserializer),
        };
        value.map(Some)
    }
}

/// A value that cannot be absent: in a list or a map.
struct ValueSeed<'a>(&'a Input<'a>, &'a Kind);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Self(input, kind) = self;
        if let Kind::Message(message) = kind {
            return MessageSeed(input, message).deserialize(deserializer).map(Value::Message);
        }
        let part: &RawValue = serde::Deserialize::deserialize(deserializer)?;
        input.scalar(kind, part.get())
    }
}

struct ListVisitor<'a>(&'a Input<'a>, &'a Kind);

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Value>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(ValueSeed(self.0, self.1))? {
            list.push(item);
        }
        Ok(list)
    }
}

struct MapVisitor<'a>(&'a Input<'a>, &'a MessageDescriptor);

impl<'de> Visitor<'de> for MapVisitor<'_> {
    type Value = HashMap<MapKey, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object: a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let Self(input, entry) = self;
        let (key_kind, value_kind) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        let mut map = HashMap::new();
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            let key = scalar::map_key(&key_kind, &name).map_err(A::Error::custom)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key '{name}' occurs twice")));
            }
            let value = members.next_value_seed(ValueSeed(input, &value_kind))?;
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// Any JSON without duplicate members in an object.
struct Unique;

impl<'de> serde::Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("'{name}' occurs twice")));
            }
            members.next_value::<Self>()?;
            seen.insert(name);
        }
        Ok(self)
    }
}
