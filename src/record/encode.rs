//! Encodes equal messages to equal bytes: maps are sorted by key, while prost-reflect's order is random. So a record
//! that a tool restores in all its forms is stored only once.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};

use super::text::sorted;

/// The bytes of a message.
pub(super) fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut out = Vec::new();
    let descriptor = message.descriptor();
    for (field, value) in message.fields() {
        match value {
            Value::Map(entries) => {
                let Kind::Message(entry) = field.kind() else { continue };
                for (key, item) in sorted(entries) {
                    let mut bytes = Vec::new();
                    encode_value(&entry, &entry.map_entry_key_field(), &key.clone().into(), &mut bytes);
                    encode_value(&entry, &entry.map_entry_value_field(), item, &mut bytes);
                    put_delimited(field.number(), &bytes, &mut out);
                }
            }
            Value::List(items) if items.iter().any(|item| item.as_message().is_some()) => {
                items.iter().for_each(|item| encode_value(&descriptor, &field, item, &mut out));
            }
            value => encode_value(&descriptor, &field, value, &mut out),
        }
    }
    message.unknown_fields().for_each(|field| field.encode(&mut out));
    out
}

fn encode_value(of: &MessageDescriptor, field: &FieldDescriptor, value: &Value, out: &mut Vec<u8>) {
    if let (Some(message), false) = (value.as_message(), field.is_group()) {
        return put_delimited(field.number(), &encode(message), out);
    }
    // prost encodes messages without maps.
    let mut single = DynamicMessage::new(of.clone());
    single.set_field(field, value.clone());
    out.extend(single.encode_to_vec());
}

fn put_delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
