//! What changed between two versions of a record, in words, on one line. Records may be hostile: nothing that is
//! printed commands a terminal, and the length and the work are bounded.

use bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

use super::Records;
use super::text::{enum_name, sorted};
use crate::name::{CellName, TopoPath};

/// Most changes to name; the others are counted.
const NAMED: usize = 12;
/// Longest value to print, in characters.
const LONGEST: usize = 60;
/// Most fields and items to compare. What differs beyond them is not named.
const WORK: usize = 100_000;

impl Records {
    /// What changed from one version of a record to the next; `old` is `None` if there was none.
    pub fn changes(&self, cell: &CellName, path: &TopoPath, old: Option<&Bytes>, new: &Bytes) -> String {
        if old == Some(new) {
            return "nothing".to_owned();
        }
        let Some(name) = self.message(cell, path) else { return of_bytes(old, new) };
        let before = match old {
            Some(old) => self.codec.decode(name, old),
            None => self.codec.empty(name),
        };
        match (before, self.codec.decode(name, new)) {
            (Ok(before), Ok(after)) => {
                let mut words = Words { named: Vec::new(), more: 0, work: WORK };
                words.message("", &before, &after);
                words.in_all(&before, &after, old.is_some())
            }
            (Err(_), Ok(_)) => "can be decoded again".to_owned(),
            (_, Err(_)) => format!("cannot be decoded: {}", of_bytes(old, new)),
        }
    }
}

/// Changes of what is no message.
fn of_bytes(old: Option<&Bytes>, new: &Bytes) -> String {
    let shown = |value: &Bytes| match std::str::from_utf8(value) {
        Ok(text) if text.chars().count() <= LONGEST => quoted(text),
        _ => format!("{} bytes", value.len()),
    };
    match old {
        None => shown(new),
        Some(old) if old.len() == new.len() && shown(old) == shown(new) => {
            format!("{} bytes -> {} other bytes", old.len(), new.len())
        }
        Some(old) => format!("{} -> {}", shown(old), shown(new)),
    }
}

struct Words {
    named: Vec<String>,
    more: usize,
    work: usize,
}

impl Words {
    fn in_all(mut self, before: &DynamicMessage, after: &DynamicMessage, existed: bool) -> String {
        if self.work == 0 {
            self.named.push("and perhaps more".to_owned());
        } else if self.more > 0 {
            self.named.push(format!("and {} more", self.more));
        }
        if !self.named.is_empty() {
            return self.named.join(", ");
        }
        match (existed, before == after) {
            (false, true) => "empty".to_owned(),
            (true, true) => "the same fields in another order".to_owned(),
            (_, false) => "fields that this build does not know".to_owned(),
        }
    }

    fn say(&mut self, words: impl FnOnce() -> String) {
        match self.named.len() < NAMED {
            true => self.named.push(words()),
            false => self.more += 1,
        }
    }

    /// Whether there is work left; takes some of it.
    fn goes_on(&mut self) -> bool {
        self.work = self.work.saturating_sub(1);
        self.work > 0
    }

    fn message(&mut self, at: &str, before: &DynamicMessage, after: &DynamicMessage) {
        for field in after.descriptor().fields() {
            if !self.goes_on() {
                return;
            }
            let name = if at.is_empty() { field.name().to_owned() } else { format!("{at}.{}", field.name()) };
            match (before.has_field(&field), after.has_field(&field)) {
                (false, false) => {}
                (true, true) => self.both(&name, &field, &before.get_field(&field), &after.get_field(&field)),
                (false, true) => self.appeared(&name, &field, before, &after.get_field(&field)),
                (true, false) => match &*before.get_field(&field) {
                    Value::List(items) => self.say(|| format!("{name} removed ({})", items.len())),
                    Value::Map(entries) => self.say(|| format!("{name} removed ({})", entries.len())),
                    Value::Message(_) => self.say(|| format!("{name} removed")),
                    Value::Bool(true) => self.say(|| format!("{name} set to false")),
                    value => self.say(|| format!("{name} removed (was {})", shown(&field.kind(), value))),
                },
            }
        }
    }

    fn appeared(&mut self, name: &str, field: &FieldDescriptor, before: &DynamicMessage, value: &Value) {
        match value {
            Value::Message(message) => {
                let said = self.named.len() + self.more;
                self.message(name, &DynamicMessage::new(message.descriptor()), message);
                // An empty one counts, too.
                if said == self.named.len() + self.more {
                    self.say(|| format!("{name} added"));
                }
            }
            Value::List(_) | Value::Map(_) => self.both(name, field, &before.get_field(field), value),
            value => self.say(|| format!("{name} set to {}", shown(&field.kind(), value))),
        }
    }

    fn both(&mut self, name: &str, field: &FieldDescriptor, before: &Value, after: &Value) {
        match (before, after) {
            (Value::Message(before), Value::Message(after)) => self.message(name, before, after),
            (Value::List(before), Value::List(after)) => self.list(name, &field.kind(), before, after),
            (Value::Map(before), Value::Map(after)) => {
                let Kind::Message(entry) = field.kind() else { return };
                let kind = entry.map_entry_value_field().kind();
                for (key, old) in sorted(before) {
                    let name = || format!("{name}[{}]", key_shown(key));
                    match after.get(key) {
                        None => self.say(|| format!("{} removed", name())),
                        Some(new) => self.item(name, &kind, old, new),
                    }
                }
                for (key, value) in sorted(after).into_iter().filter(|(key, _)| !before.contains_key(*key)) {
                    self.say(|| added(&format!("{name}[{}]", key_shown(key)), &kind, value));
                }
            }
            (before, after) if before != after => {
                let kind = field.kind();
                self.say(|| match after {
                    Value::Bool(_) => format!("{name} set to {}", shown(&kind, after)),
                    _ => format!("{name} {} -> {}", shown(&kind, before), shown(&kind, after)),
                });
            }
            _ => {}
        }
    }

    /// Two items at the same place of a list or a map.
    fn item(&mut self, name: impl Fn() -> String, kind: &Kind, before: &Value, after: &Value) {
        if before == after || !self.goes_on() {
            return;
        }
        match (before, after) {
            (Value::Message(before), Value::Message(after)) => self.message(&name(), before, after),
            _ => self.say(|| format!("{} {} -> {}", name(), shown(kind, before), shown(kind, after))),
        }
    }

    /// What lists have at their beginnings and ends in common is not looked at. In between, items have changed if there
    /// are as many as before; otherwise some have come or gone.
    fn list(&mut self, name: &str, kind: &Kind, before: &[Value], after: &[Value]) {
        let same = before.iter().zip(after).take_while(|(one, other)| one == other).count();
        let (old, new) = (before.get(same..).unwrap_or_default(), after.get(same..).unwrap_or_default());
        let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
        let old = old.get(..old.len() - tail).unwrap_or_default();
        let new = new.get(..new.len() - tail).unwrap_or_default();
        if old.len() == new.len() {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                self.item(|| format!("{name}[{}]", same + index), kind, old, new);
            }
            return;
        }
        for (index, value) in old.iter().enumerate() {
            self.say(|| match value {
                Value::Message(_) => format!("{name}[{}] removed", same + index),
                value => format!("{name} {} removed", shown(kind, value)),
            });
        }
        for (index, value) in new.iter().enumerate() {
            self.say(|| match value {
                Value::Message(_) => format!("{name}[{}] added", same + index),
                value => format!("{name} {} added", shown(kind, value)),
            });
        }
    }
}

fn added(name: &str, kind: &Kind, value: &Value) -> String {
    match value {
        Value::Message(_) | Value::List(_) | Value::Map(_) => format!("{name} added"),
        value => format!("{name} set to {}", shown(kind, value)),
    }
}

/// A value on one line.
fn shown(kind: &Kind, value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Bytes(bytes) => quoted_bytes(bytes),
        Value::EnumNumber(number) => enum_name(kind, *number).unwrap_or_else(|| number.to_string()),
        Value::Message(_) | Value::List(_) | Value::Map(_) => "...".to_owned(),
    }
}

fn key_shown(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => quoted(text),
        key => shown(&Kind::Int64, &Value::from(key.clone())),
    }
}

/// A text in quotes. Long ones are cut, and everything that is not plain is an escape.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    let mut letters = text.chars();
    for letter in letters.by_ref().take(LONGEST) {
        match letter {
            '"' | '\\' | '\n' | '\t' | '\r' => out.extend(letter.escape_default()),
            // What a terminal would obey, or nobody would see, and what would turn the line around.
            letter if letter == ' ' || letter.is_alphanumeric() || letter.is_ascii_graphic() => out.push(letter),
            letter => out.extend(letter.escape_unicode()),
        }
    }
    out.push('"');
    if letters.next().is_some() {
        out.push_str("...");
    }
    out
}

fn quoted_bytes(bytes: &Bytes) -> String {
    let shown: String = bytes.iter().take(LONGEST / 2).map(|byte| format!("{byte:02x}")).collect();
    format!("0x{shown}{}", if bytes.len() > LONGEST / 2 { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Codec, Form, Kinds};

    fn records() -> std::sync::Arc<Records> {
        static RECORDS: std::sync::LazyLock<std::sync::Arc<Records>> =
            std::sync::LazyLock::new(|| Records::new(Codec::builtin().unwrap(), Kinds::default()));
        RECORDS.clone()
    }

    fn changed(path: &str, old: Option<&str>, new: &str) -> String {
        let (records, cell, path) = (records(), CellName::global(), TopoPath::parse(path).unwrap());
        let value = |text: &str| {
            let text = Bytes::copy_from_slice(text.as_bytes());
            records.store(&cell, &path, Form::Text, &text, None).unwrap().unwrap_or_default()
        };
        records.changes(&cell, &path, old.map(value).as_ref(), &value(new))
    }

    #[test]
    fn fields_are_added_removed_and_set() {
        const SHARD: &str = "keyspaces/ks/shards/0/Shard";
        let old = "primary_alias { cell: \"zone1\" uid: 100 }\n";
        let new = "primary_alias { cell: \"zone1\" uid: 101 }\nis_primary_serving: true\n";
        let said = changed(SHARD, Some(old), new);
        assert_eq!(said, "primary_alias.uid 100 -> 101, is_primary_serving set to true");
        assert_eq!(changed(SHARD, Some(new), old), "primary_alias.uid 101 -> 100, is_primary_serving set to false");
        assert_eq!(
            changed(SHARD, Some(old), "is_primary_serving: true\n"),
            "primary_alias removed, is_primary_serving set to true"
        );
        let made = "primary_alias.cell set to \"zone1\", primary_alias.uid set to 100";
        assert_eq!(changed(SHARD, None, old), made);
        assert_eq!(changed(SHARD, Some("key_range {}\n"), old), format!("{made}, key_range removed"));
        assert_eq!(changed(SHARD, None, "key_range {}\n"), "key_range added");
        assert_eq!(changed("keyspaces/ks/Keyspace", None, ""), "empty");
    }

    #[test]
    fn items_of_lists_and_maps_are_named() {
        let alias = |cells: &str| cells.split(' ').map(|cell| format!("cells: \"{cell}\"\n")).collect::<String>();
        let said = |old: &str, new: &str| changed("cells_aliases/a/CellsAlias", Some(&alias(old)), &alias(new));
        assert_eq!(said("a b c", "a c"), "cells \"b\" removed");
        assert_eq!(said("a c", "a b d c"), "cells \"b\" added, cells \"d\" added");
        assert_eq!(said("a b c", "a x c"), "cells[1] \"b\" -> \"x\"");
        let vschema = |tables: &[(&str, &str)]| {
            let table =
                |(name, kind): &(&str, &str)| format!("tables {{ key: \"{name}\" value {{ type: \"{kind}\" }} }}\n");
            tables.iter().map(table).collect::<String>()
        };
        let old = vschema(&[("a", "sequence"), ("b", "")]);
        let new = vschema(&[("a", "reference"), ("c", "")]);
        let said = changed("keyspaces/ks/VSchema", Some(&old), &new);
        assert_eq!(
            said,
            "tables[\"a\"].type \"sequence\" -> \"reference\", tables[\"b\"] removed, tables[\"c\"] added"
        );
        let many: Vec<String> = (0..40).map(|n| format!("t{n:02}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
        assert!(changed("keyspaces/ks/VSchema", None, &vschema(&many)).ends_with("tables[\"t11\"] added, and 28 more"));
    }

    #[test]
    fn what_is_no_message_is_shown_as_far_as_it_is_short_and_plain() {
        let (records, cell) = (records(), CellName::global());
        let said = |path: &str, old: Option<&[u8]>, new: &[u8]| {
            let old = old.map(Bytes::copy_from_slice);
            records.changes(&cell, &TopoPath::parse(path).unwrap(), old.as_ref(), &Bytes::copy_from_slice(new))
        };
        assert_eq!(said("metadata/a", Some(b"one\n"), b"two\n"), "\"one\\n\" -> \"two\\n\"");
        assert_eq!(said("metadata/a", None, b"\x1b[2J\xe2\x80\xae"), "\"\\u{1b}[2J\\u{202e}\"");
        assert_eq!(said("metadata/a", Some(&[0xff; 9]), &[0xfe; 9]), "9 bytes -> 9 other bytes");
        assert_eq!(said("metadata/a", Some(b"x"), &[b'y'; 100]), "\"x\" -> 100 bytes");
        let broken = said("keyspaces/ks/Keyspace", Some(b""), b"\xff\xff");
        assert!(broken.starts_with("cannot be decoded: "), "{broken}");
        assert_eq!(said("keyspaces/ks/Keyspace", Some(b"\xff"), b""), "can be decoded again");
        // Field 9 is not known.
        assert_eq!(said("cells/a/CellInfo", Some(b"\x4a\x01a"), b"\x4a\x01b"), "fields that this build does not know");
    }

    proptest! {
        #[test]
        fn the_words_are_one_short_line_whatever_is_stored(
            old in prop::option::of(any::<Vec<u8>>()), new: Vec<u8>, text: String
        ) {
            let (records, cell) = (records(), CellName::global());
            for path in ["keyspaces/ks/Keyspace", "keyspaces/ks/shards/0/Shard", "metadata/a"] {
                let path = TopoPath::parse(path).unwrap();
                let old = old.clone().map(Bytes::from);
                for new in [Bytes::from(new.clone()), Bytes::from(text.clone().into_bytes())] {
                    let said = records.changes(&cell, &path, old.as_ref(), &new);
                    prop_assert!(said.chars().all(|letter| !letter.is_control()), "{said:?}");
                    prop_assert!(said.len() < 4_000);
                }
            }
        }
    }
}
