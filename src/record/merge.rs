//! Merges what two sides have made of one message, field by field. Must never make something of it that neither side
//! has written: what both have changed differently is a clash, and nothing is merged.
//!
//! - A field, an entry of a map, or the choice of a oneof that only one side has changed is taken from that side.
//! - A message that all three have is merged by its own fields, unless it is one value ([`VALUES`]).
//! - A list is one value: its elements have no names by which they could be matched.
//! - Fields that this build does not know are merged by their numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

use super::encode;

/// Messages that mean something only as a whole: half of one tablet's alias and half of another's name a third tablet.
const VALUES: [&str; 4] = ["topodata.KeyRange", "topodata.TabletAlias", "vttime.Duration", "vttime.Time"];

/// A message before, as one side has made it, and as the other has.
#[derive(Clone, Copy)]
struct Three<T> {
    base: T,
    ours: T,
    theirs: T,
}

impl<T> Three<T> {
    fn map<U>(self, mut change: impl FnMut(T) -> U) -> Three<U> {
        Three { base: change(self.base), ours: change(self.ours), theirs: change(self.theirs) }
    }
}

/// The value that is wanted, if at most one side has changed it, or both alike.
fn one_of<T>(three: Three<T>, same: impl Fn(&T, &T) -> bool) -> Result<T, Three<T>> {
    if same(&three.ours, &three.theirs) || same(&three.base, &three.theirs) {
        return Ok(three.ours);
    }
    if same(&three.base, &three.ours) { Ok(three.theirs) } else { Err(three) }
}

/// The merged message, or the fields that both sides have changed differently.
pub(super) fn merge(
    base: &DynamicMessage,
    ours: &DynamicMessage,
    theirs: &DynamicMessage,
) -> Result<DynamicMessage, Vec<String>> {
    let mut merger = Merger { at: String::new(), clashes: Vec::new() };
    let merged = merger.message(Three { base, ours, theirs });
    if merger.clashes.is_empty() { Ok(merged) } else { Err(merger.clashes) }
}

/// Walks through three messages at once.
struct Merger {
    /// The field that it has come to.
    at: String,
    /// What clashes.
    clashes: Vec<String>,
}

impl Merger {
    /// Goes on one level deeper.
    fn below<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.at.len();
        if length > 0 && !name.starts_with('[') {
            self.at.push('.');
        }
        self.at.push_str(name);
        let done = work(self);
        self.at.truncate(length);
        done
    }

    fn clash(&mut self) {
        self.clashes.push(self.at.clone());
    }

    fn message(&mut self, three: Three<&DynamicMessage>) -> DynamicMessage {
        let descriptor = three.ours.descriptor();
        let mut merged = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields().filter(|field| field.containing_oneof().is_none()) {
            let values = three.map(|message| value(message, &field));
            if let Some(value) = self.below(field.name(), |merger| merger.value(&field, values)) {
                merged.set_field(&field, value);
            }
        }
        self.oneofs(three, &mut merged);
        self.unknown(three, &mut merged);
        merged
    }

    /// Which field of a oneof is set, and to what, is one decision.
    fn oneofs(&mut self, three: Three<&DynamicMessage>, merged: &mut DynamicMessage) {
        for oneof in three.ours.descriptor().oneofs() {
            let choices = three.map(|message| {
                let field = oneof.fields().find(|field| message.has_field(field))?;
                value(message, &field).map(|value| (field, value))
            });
            let same = |a: &Option<(FieldDescriptor, Value)>, b: &Option<(FieldDescriptor, Value)>| match (a, b) {
                (Some((one, a)), Some((other, b))) => one == other && same_value(a, b),
                (a, b) => a.is_none() && b.is_none(),
            };
            let chosen = match one_of(choices, same) {
                Ok(chosen) => chosen,
                Err(Three { base: Some((of, base)), ours: Some((field, ours)), theirs: Some((other, theirs)) })
                    if of == field && field == other =>
                {
                    let values = Three { base: Some(base), ours: Some(ours), theirs: Some(theirs) };
                    self.below(field.name(), |merger| merger.value(&field, values)).map(|value| (field, value))
                }
                Err(_) => {
                    self.below(oneof.name(), Self::clash);
                    None
                }
            };
            if let Some((field, value)) = chosen {
                merged.set_field(&field, value);
            }
        }
    }

    fn value(&mut self, field: &FieldDescriptor, three: Three<Option<Value>>) -> Option<Value> {
        let same = |a: &Option<Value>, b: &Option<Value>| match (a, b) {
            (Some(a), Some(b)) => same_value(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let three = match one_of(three, same) {
            Ok(value) => return value,
            Err(three) => three,
        };
        // A map without entries is one that is not there.
        if field.is_map() {
            let maps = three.map(|value| match value {
                Some(Value::Map(map)) => map,
                _ => HashMap::new(),
            });
            let entries = self.map(field, &maps);
            return (!entries.is_empty()).then_some(Value::Map(entries));
        }
        match three {
            Three {
                base: Some(Value::Message(base)),
                ours: Some(Value::Message(ours)),
                theirs: Some(Value::Message(theirs)),
            } if !VALUES.contains(&ours.descriptor().full_name()) => {
                Some(Value::Message(self.message(Three { base: &base, ours: &ours, theirs: &theirs })))
            }
            three => {
                self.clash();
                three.ours
            }
        }
    }

    fn map(&mut self, field: &FieldDescriptor, maps: &Three<HashMap<MapKey, Value>>) -> HashMap<MapKey, Value> {
        let Kind::Message(entry) = field.kind() else { return HashMap::new() };
        let of_value = entry.map_entry_value_field();
        // In order, so that clashes are reported in the same order every time.
        let keys: BTreeSet<&MapKey> =
            [&maps.base, &maps.ours, &maps.theirs].into_iter().flat_map(HashMap::keys).collect();
        let mut merged = HashMap::new();
        for key in keys {
            let values =
                Three { base: &maps.base, ours: &maps.ours, theirs: &maps.theirs }.map(|map| map.get(key).cloned());
            let value = self.below(&format!("[{}]", key_name(key)), |merger| merger.value(&of_value, values));
            merged.extend(value.map(|value| (key.clone(), value)));
        }
        merged
    }

    fn unknown(&mut self, three: Three<&DynamicMessage>, merged: &mut DynamicMessage) {
        let fields = three.map(unknown_fields);
        let numbers: BTreeSet<u32> =
            [&fields.base, &fields.ours, &fields.theirs].into_iter().flat_map(BTreeMap::keys).copied().collect();
        let mut bytes = Vec::new();
        for number in numbers {
            let values = Three { base: &fields.base, ours: &fields.ours, theirs: &fields.theirs };
            match one_of(values.map(|fields| fields.get(&number)), |a, b| a == b) {
                Ok(value) => bytes.extend(value.into_iter().flatten()),
                Err(_) => self.below(&number.to_string(), Self::clash),
            }
        }
        // They come from messages of the same type, so merging cannot fail.
        if let Err(error) = merged.merge(bytes.as_slice()) {
            tracing::error!(%error, "cannot keep the unknown fields of a record");
            self.clash();
        }
    }
}

fn value(message: &DynamicMessage, field: &FieldDescriptor) -> Option<Value> {
    message.has_field(field).then(|| message.get_field(field).into_owned())
}

fn unknown_fields(message: &DynamicMessage) -> BTreeMap<u32, Vec<u8>> {
    message.unknown_fields().fold(BTreeMap::new(), |mut fields, field| {
        field.encode(fields.entry(field.number()).or_default());
        fields
    })
}

fn key_name(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => format!("{text:?}"),
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
    }
}

/// Whether two values of one field are the same: as they are encoded, so that NaN is the same as NaN.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
        (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
        (Value::Message(a), Value::Message(b)) => encode::encode(a) == encode::encode(b),
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same_value(a, b)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests;
