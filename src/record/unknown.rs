//! Fields that this build does not know, because a newer Vitess wrote them. Decoded forms do not show them, so an
//! edited form comes back without them. This file copies them from the stored record.
//!
//! The path of its message tells where a field belongs: by field number, by map key, and in a list by element. An
//! element matches the new one that is otherwise equal; else the one that has most in common with it and has the same
//! position (or has moved with more than half of its fields); else, in a list of the same length, the one with the same
//! position. If an edit removes an element, its unknown fields go with it.

use std::collections::{HashMap, HashSet, VecDeque};

use prost::Message;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::encode;

/// Maximum number of comparisons of unequal list elements; longer lists are matched in order.
const COMPARISONS: usize = 100_000;

/// Copies unknown fields from `old` into `new`, which is an edited form of `old`.
pub(super) fn carry_over(old: &DynamicMessage, new: &mut DynamicMessage) {
    if !has_unknown(old) {
        return;
    }
    let mut bytes = Vec::new();
    old.unknown_fields().for_each(|field| field.encode(&mut bytes));
    // They come from a message of the same type, so merging cannot fail.
    if let Err(error) = new.merge(bytes.as_slice()) {
        tracing::error!(%error, "cannot keep the unknown fields of a record");
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
    let olds: Vec<&DynamicMessage> = old.iter().filter_map(Value::as_message).collect();
    let mut news: Vec<&mut DynamicMessage> = new.iter_mut().filter_map(Value::as_message_mut).collect();
    for (from, to) in pairs(&olds, &news) {
        if let (Some(old), Some(new)) = (olds.get(from), news.get_mut(to)) {
            carry_over(old, new);
        }
    }
}

/// Matches the elements of the old list with those of the new one.
fn pairs(olds: &[&DynamicMessage], news: &[&mut DynamicMessage]) -> Vec<(usize, usize)> {
    // By their bytes: equal messages have equal bytes, and a lookup by bytes needs no comparison of all pairs.
    let mut equal: HashMap<Vec<u8>, VecDeque<usize>> = HashMap::new();
    for (to, new) in news.iter().enumerate() {
        equal.entry(encode::encode(new)).or_default().push_back(to);
    }
    let mut same: Vec<Option<usize>> = Vec::new();
    let mut taken = HashSet::new();
    for old in olds {
        let to = equal.get_mut(&encode::encode(&without_unknown(old))).and_then(VecDeque::pop_front);
        same.push(to);
        taken.extend(to);
    }
    // The unchanged element before each other element: an edited element still follows the same one.
    let (mut rest, mut after) = (Vec::new(), None);
    for (from, (old, to)) in olds.iter().zip(&same).enumerate() {
        match to {
            Some(to) => after = Some(*to),
            None => rest.push((from, *old, after)),
        }
    }
    let (mut free, mut after) = (Vec::new(), None);
    for (to, new) in news.iter().enumerate() {
        match taken.contains(&to) {
            true => after = Some(to),
            false => free.push((to, &**new, after)),
        }
    }
    let mut pairs: Vec<(usize, usize)> =
        same.iter().enumerate().filter_map(|(from, to)| Some((from, (*to)?))).collect();
    if rest.len().saturating_mul(free.len()) > COMPARISONS {
        pairs.extend(rest.iter().zip(&free).map(|(old, new)| (old.0, new.0)));
        return pairs;
    }
    let mut likely = Vec::new();
    for (from, old, old_after) in &rest {
        for (to, new, new_after) in &free {
            let (common, moved) = (in_common(old, new), old_after != new_after);
            let edited = !moved && (common > 0 || (from == to && olds.len() == news.len()));
            if edited || common * 2 > old.fields().count() {
                likely.push((moved, usize::MAX - common, from.abs_diff(*to), *from, *to));
            }
        }
    }
    likely.sort_unstable();
    let mut placed = HashSet::new();
    for (.., from, to) in likely {
        if !placed.contains(&from) && taken.insert(to) {
            placed.insert(from);
            pairs.push((from, to));
        }
    }
    pairs
}

/// The number of fields with the same value in both.
fn in_common(old: &DynamicMessage, new: &DynamicMessage) -> usize {
    old.fields().filter(|(field, value)| new.has_field(field) && stripped(value) == *new.get_field(field)).count()
}

fn any_message(value: &Value, test: &impl Fn(&DynamicMessage) -> bool) -> bool {
    match value {
        Value::Message(message) => test(message),
        Value::List(items) => items.iter().any(|item| any_message(item, test)),
        Value::Map(map) => map.values().any(|item| any_message(item, test)),
        _ => false,
    }
}

/// Whether the message contains fields that this build does not know.
pub(super) fn has_unknown(message: &DynamicMessage) -> bool {
    message.unknown_fields().next().is_some() || message.fields().any(|(_, value)| any_message(value, &has_unknown))
}

/// Builds a new message: a message whose unknown fields are removed keeps places for them, and does not equal one that
/// never had any.
fn without_unknown(message: &DynamicMessage) -> DynamicMessage {
    let mut copy = DynamicMessage::new(message.descriptor());
    for (field, value) in message.fields() {
        copy.set_field(&field, stripped(value));
    }
    copy
}

fn stripped(value: &Value) -> Value {
    match value {
        Value::Message(message) => Value::Message(without_unknown(message)),
        Value::List(items) => Value::List(items.iter().map(stripped).collect()),
        Value::Map(map) => Value::Map(map.iter().map(|(key, item)| (key.clone(), stripped(item))).collect()),
        value => value.clone(),
    }
}
