//! Fields that this build does not know stay where they are when something else is edited.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DynamicMessage, MapKey, Value};
use topofs::record::{Codec, Form};

use crate::descriptor;

/// A message with something that a newer Vitess has written into it.
fn with_unknown(message: &str, text: &str, number: u32, what: &str) -> DynamicMessage {
    let mut raw = DynamicMessage::parse_text_format(descriptor(message), text).unwrap().encode_to_vec();
    prost::encoding::string::encode(number, &what.to_owned(), &mut raw);
    DynamicMessage::decode(descriptor(message), raw.as_slice()).unwrap()
}

/// What a message holds that is not known: the text that `with_unknown` has put there.
fn unknown_of(message: &DynamicMessage) -> Vec<String> {
    let mut found = Vec::new();
    for field in message.unknown_fields() {
        let mut bytes = Vec::new();
        field.encode(&mut bytes);
        // A key of two bytes, a length of one.
        found.push(String::from_utf8(bytes[3..].to_vec()).unwrap());
    }
    found
}

fn column(name: &str, what: &str) -> DynamicMessage {
    with_unknown("vschema.Column", &format!("name: \"{name}\" type: VARCHAR size: 8"), 1000, what)
}

fn set(message: &mut DynamicMessage, field: &str, value: Value) {
    message.set_field_by_name(field, value);
}

/// A VSchema with unknown fields at every depth: in a message, in values of maps, in elements of lists in them.
fn vschema() -> Bytes {
    let columns = ["a", "b", "c"].map(|name| Value::Message(column(name, &format!("of {name}"))));
    let mut table = with_unknown("vschema.Table", "type: \"\" pinned: \"80\"", 1001, "of the table");
    set(&mut table, "columns", Value::List(columns.into()));
    let increment = with_unknown("vschema.AutoIncrement", "column: \"a\" sequence: \"s\"", 1002, "of the increment");
    set(&mut table, "auto_increment", Value::Message(increment));
    let mut keyspace = with_unknown("vschema.Keyspace", "sharded: true", 1003, "of the keyspace");
    let other = with_unknown("vschema.Table", "type: \"sequence\"", 1001, "of the other");
    let tables =
        [("t", table), ("u", other)].map(|(name, table)| (MapKey::String(name.to_owned()), Value::Message(table)));
    set(&mut keyspace, "tables", Value::Map(tables.into_iter().collect()));
    keyspace.encode_to_vec().into()
}

/// The stored record after an edit of one of its decoded forms.
fn edited(codec: &Codec, form: Form, edit: impl Fn(&str) -> String) -> DynamicMessage {
    let raw = vschema();
    let shown = codec.show("vschema.Keyspace", form, &raw).unwrap();
    let text = std::str::from_utf8(&shown).unwrap();
    assert!(!text.contains(" of "), "unknown fields are not shown: {text}");
    let changed = edit(text);
    assert_ne!(changed, text, "{form}");
    let stored = codec.store("vschema.Keyspace", form, &changed.clone().into(), Some(&raw)).unwrap().unwrap();
    // What is stored shows what was written.
    let again = codec.store("vschema.Keyspace", form, &changed.into(), Some(&stored)).unwrap();
    assert_eq!(again, None, "{form}");
    codec.decode("vschema.Keyspace", &stored).unwrap()
}

fn table(keyspace: &DynamicMessage, name: &str) -> DynamicMessage {
    let tables = keyspace.get_field_by_name("tables").unwrap().into_owned();
    tables.as_map().unwrap()[&MapKey::String(name.to_owned())].as_message().unwrap().clone()
}

fn field(message: &DynamicMessage, name: &str) -> DynamicMessage {
    message.get_field_by_name(name).unwrap().as_message().unwrap().clone()
}

/// Each column of table `t`, and what it holds that is not known.
fn columns(keyspace: &DynamicMessage) -> Vec<(String, String)> {
    let columns = table(keyspace, "t").get_field_by_name("columns").unwrap().into_owned();
    let columns = columns.as_list().unwrap().iter().map(|column| column.as_message().unwrap());
    columns
        .map(|column| {
            (column.get_field_by_name("name").unwrap().as_str().unwrap().to_owned(), unknown_of(column).join(" and "))
        })
        .collect()
}

/// The columns of the forms as pieces of text: (text form, JSON form).
fn piece(form: Form, name: &str, size: u32) -> String {
    match form {
        Form::Json => {
            let members =
                [format!("\"name\": \"{name}\""), "\"type\": \"VARCHAR\"".to_owned(), format!("\"size\": {size}")];
            format!("        {{\n          {}\n        }}", members.join(",\n          "))
        }
        _ => format!("    columns {{\n      name: \"{name}\"\n      type: VARCHAR\n      size: {size}\n    }}\n"),
    }
}

/// The text with other columns than `a`, `b`, `c`.
fn replace_columns(form: Form, text: &str, new: &[(&str, u32)]) -> String {
    let join = if form == Form::Json { ",\n" } else { "" };
    let old: Vec<String> = ["a", "b", "c"].map(|name| piece(form, name, 8)).into();
    let text_of_old = old.join(join);
    assert!(text.contains(&text_of_old), "{text}\n does not contain\n{text_of_old}");
    let new: Vec<String> = new.iter().map(|(name, size)| piece(form, name, *size)).collect();
    text.replace(&text_of_old, &new.join(join))
}

#[test]
fn unknown_fields_of_list_elements_stay_with_their_element() {
    let codec = Codec::builtin().unwrap();
    for form in [Form::Text, Form::Json] {
        for (what, new, expected) in [
            ("the first removed", &[("b", 8), ("c", 8)][..], &[("b", "of b"), ("c", "of c")][..]),
            ("one in the middle removed", &[("a", 8), ("c", 8)], &[("a", "of a"), ("c", "of c")]),
            ("the last removed", &[("a", 8), ("b", 8)], &[("a", "of a"), ("b", "of b")]),
            ("all but the last removed", &[("c", 8)], &[("c", "of c")]),
            ("moved", &[("c", 8), ("a", 8), ("b", 8)], &[("c", "of c"), ("a", "of a"), ("b", "of b")]),
            (
                "one added in front",
                &[("x", 1), ("a", 8), ("b", 8), ("c", 8)],
                &[("x", ""), ("a", "of a"), ("b", "of b"), ("c", "of c")],
            ),
            (
                "one added in the middle",
                &[("a", 8), ("x", 1), ("b", 8), ("c", 8)],
                &[("a", "of a"), ("x", ""), ("b", "of b"), ("c", "of c")],
            ),
            ("one edited", &[("a", 8), ("b", 9), ("c", 8)], &[("a", "of a"), ("b", "of b"), ("c", "of c")]),
            (
                "one edited in its place",
                &[("a", 8), ("z", 8), ("c", 8)],
                &[("a", "of a"), ("z", "of b"), ("c", "of c")],
            ),
            ("all edited", &[("a", 1), ("b", 2), ("c", 3)], &[("a", "of a"), ("b", "of b"), ("c", "of c")]),
            ("the first removed, the second edited", &[("b", 9), ("c", 8)], &[("b", "of b"), ("c", "of c")]),
            (
                "one added before one that is edited",
                &[("x", 1), ("a", 9), ("b", 8), ("c", 8)],
                &[("x", ""), ("a", "of a"), ("b", "of b"), ("c", "of c")],
            ),
            (
                "the first removed, another added at the end",
                &[("b", 8), ("c", 8), ("x", 1)],
                &[("b", "of b"), ("c", "of c"), ("x", "")],
            ),
        ] {
            let keyspace = edited(&codec, form, |text| replace_columns(form, text, new));
            let expected: Vec<_> = expected.iter().map(|(name, of)| ((*name).to_owned(), (*of).to_owned())).collect();
            assert_eq!(columns(&keyspace), expected, "{form}: {what}");
            // What is around them is kept, too.
            let table = table(&keyspace, "t");
            assert_eq!(unknown_of(&table), ["of the table"], "{form}: {what}");
            assert_eq!(unknown_of(&keyspace), ["of the keyspace"], "{form}: {what}");
        }
    }
}

#[test]
fn unknown_fields_in_maps_and_messages_survive_an_edit_beside_them() {
    let codec = Codec::builtin().unwrap();
    for form in [Form::Text, Form::Json] {
        let keyspace = edited(&codec, form, |text| {
            text.replace("\"80\"", "\"90\"").replace("\"s\"", "\"s2\"").replace(": \"sequence\"", ": \"reference\"")
        });
        let (t, u) = (table(&keyspace, "t"), table(&keyspace, "u"));
        assert_eq!(
            (unknown_of(&t), unknown_of(&u)),
            (vec!["of the table".to_owned()], vec!["of the other".to_owned()])
        );
        assert_eq!(unknown_of(&field(&t, "auto_increment")), ["of the increment"], "{form}");
        assert_eq!(columns(&keyspace).len(), 3);
        assert!(columns(&keyspace).iter().all(|(name, of)| *of == format!("of {name}")), "{form}");
    }
}

#[test]
fn an_unchanged_form_with_unknown_fields_makes_no_version() {
    let codec = Codec::builtin().unwrap();
    let raw = vschema();
    for form in Form::ALL {
        let shown = codec.show("vschema.Keyspace", form, &raw).unwrap();
        assert_eq!(codec.store("vschema.Keyspace", form, &shown, Some(&raw)).unwrap(), None, "{form}");
    }
    // Nor do fields that are written with the values that they have when they are not.
    let raw = Bytes::from_static(b"\x08\x01");
    for (form, input) in [
        (Form::Text, "sharded: true require_explicit_routing: false"),
        (Form::Json, "{\"sharded\": true, \"tables\": {}, \"require_explicit_routing\": false}"),
    ] {
        assert_eq!(codec.store("vschema.Keyspace", form, &input.into(), Some(&raw)).unwrap(), None, "{form}");
    }
}

#[test]
fn a_long_list_is_matched_by_its_content_too() {
    let codec = Codec::builtin().unwrap();
    let rule = |n: usize| {
        with_unknown(
            "vschema.RoutingRule",
            &format!("from_table: \"t{n}\" to_tables: \"k.t{n}\""),
            1000,
            &format!("of {n}"),
        )
    };
    let count = 3_000;
    let mut rules = DynamicMessage::new(descriptor("vschema.RoutingRules"));
    set(&mut rules, "rules", Value::List((0..count).map(|n| Value::Message(rule(n))).collect()));
    let raw = Bytes::from(rules.encode_to_vec());
    let shown = codec.show("vschema.RoutingRules", Form::Text, &raw).unwrap();
    let text = String::from_utf8_lossy(&shown);
    // The first is removed.
    let rest = text.split_once("}\n").unwrap().1;
    let stored = codec.store("vschema.RoutingRules", Form::Text, &rest.to_owned().into(), Some(&raw)).unwrap().unwrap();
    let stored = codec.decode("vschema.RoutingRules", &stored).unwrap();
    let kept = stored.get_field_by_name("rules").unwrap().into_owned();
    let kept = kept.as_list().unwrap();
    assert_eq!(kept.len(), count - 1);
    for (n, rule) in kept.iter().enumerate() {
        assert_eq!(unknown_of(rule.as_message().unwrap()), [format!("of {}", n + 1)]);
    }
}
