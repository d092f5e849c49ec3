//! Fields that this build does not know (a newer Vitess wrote them): neither decoded form shows them, so an edited form
//! comes back without them. Here they are carried over from the stored record.
//!
//! A field finds its place by the path of its message: by field number, by map key, and in lists by the element that is
//! otherwise equal, else in order. What the edit removed takes its unknown fields with it.

use prost::Message;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

/// Comparisons of list elements at most; longer lists are matched in order.
const COMPARISONS: usize = 1_000_000;

/// Copies unknown fields from `old` into `new`, which came from a form of it.
pub(super) fn carry_over(old: &DynamicMessage, new: &mut DynamicMessage) {
    if !has_unknown(old) {
        return;
    }
    let mut bytes = Vec::new();
    old.unknown_fields().for_each(|field| field.encode(&mut bytes));
    // They were decoded from a message of this very type: merging cannot fail.
    if let Err(error) = new.merge(bytes.as_slice()) {
        tracing::error!(%error, "unknown fields could not be carried over");
    }
    for (field, old_value) in old.fields() {
        if !new.has_field(&field) {
            continue;
        }
        match (old_value, new.get_field_mut(&field)) {
            (Value::Message(old), Value::Message(new)) => carry_over(old, new),
            (Value::Map(old), Value::Map(new)) => {
                for (key, value) in new {
                    if let (Some(Value::Message(old)), Value::Message(new)) = (old.get(key), value) {
                        carry_over(old, new);
                    }
                }
            }
            (Value::List(old), Value::List(new)) => carry_over_list(old, new),
            _ => {}
        }
    }
}

fn carry_over_list(old: &[Value], new: &mut [Value]) {
    let olds = old.iter().filter_map(Value::as_message);
    let mut news: Vec<Option<&mut DynamicMessage>> = new.iter_mut().map(Value::as_message_mut).collect();
    let compare = olds.clone().count().saturating_mul(news.len()) <= COMPARISONS;
    let mut rest = Vec::new();
    for old in olds {
        let known = without_unknown(old);
        let same = |new: &&mut Option<&mut DynamicMessage>| new.as_deref().is_some_and(|new| *new == known);
        match news.iter_mut().find(|new| compare && same(new)).and_then(Option::take) {
            Some(new) => carry_over(old, new),
            None => rest.push(old),
        }
    }
    for (old, new) in rest.into_iter().zip(news.into_iter().flatten()) {
        carry_over(old, new);
    }
}

fn any_message(value: &Value, test: &impl Fn(&DynamicMessage) -> bool) -> bool {
    match value {
        Value::Message(message) => test(message),
        Value::List(items) => items.iter().any(|item| any_message(item, test)),
        Value::Map(map) => map.values().any(|item| any_message(item, test)),
        _ => false,
    }
}

/// Whether this build does not know something in the message.
pub(super) fn has_unknown(message: &DynamicMessage) -> bool {
    message.unknown_fields().next().is_some() || message.fields().any(|(_, value)| any_message(value, &has_unknown))
}

fn without_unknown(message: &DynamicMessage) -> DynamicMessage {
    let mut copy = message.clone();
    copy.take_unknown_fields().for_each(drop);
    let fields: Vec<_> = copy.descriptor().fields().filter(|field| copy.has_field(field)).collect();
    for field in fields {
        strip(copy.get_field_mut(&field));
    }
    copy
}

fn strip(value: &mut Value) {
    match value {
        Value::Message(message) => *message = without_unknown(message),
        Value::List(items) => items.iter_mut().for_each(strip),
        Value::Map(map) => map.values_mut().for_each(strip),
        _ => {}
    }
}
