use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::name::{CellName, TopoPath};
use crate::record::{Codec, Form, Kinds, Records};

const VSCHEMA: &str = "keyspaces/ks/VSchema";
const SHARD: &str = "keyspaces/ks/shards/0/Shard";
const KEYSPACE: &str = "keyspaces/ks/Keyspace";

struct World(std::sync::Arc<Records>);

impl World {
    fn new() -> Self {
        Self(Records::new(Codec::builtin().unwrap(), Kinds::default()))
    }

    fn stored(&self, path: &str, text: &str) -> Bytes {
        let (cell, path) = (CellName::global(), TopoPath::parse(path).unwrap());
        self.0.store(&cell, &path, Form::Text, &text.to_owned().into(), None).unwrap().unwrap()
    }

    fn merged(&self, path: &str, texts: [&str; 3]) -> Result<String, Vec<String>> {
        self.merged_bytes(path, texts.map(|text| self.stored(path, text)))
    }

    fn merged_bytes(&self, path: &str, [base, ours, theirs]: [Bytes; 3]) -> Result<String, Vec<String>> {
        let (cell, path) = (CellName::global(), TopoPath::parse(path).unwrap());
        let merged = self.0.merge(&cell, &path, &base, (&ours, &theirs))?;
        // Whoever is asked first, it is the same.
        assert_eq!(self.0.merge(&cell, &path, &base, (&theirs, &ours)).as_ref(), Ok(&merged));
        let text = self.0.show(&cell, &path, &merged, Form::Text).unwrap();
        Ok(String::from_utf8(text.into()).unwrap())
    }
}

fn clash(fields: &[&str]) -> Result<String, Vec<String>> {
    Err(fields.iter().map(|field| (*field).to_owned()).collect())
}

#[test]
fn different_fields_are_merged_and_the_same_field_clashes() {
    let world = World::new();
    let base = "durability_policy: \"none\"\nsidecar_db_name: \"_vt\"\n";
    let ours = "durability_policy: \"semi_sync\"\nsidecar_db_name: \"_vt\"\n";
    let theirs = "durability_policy: \"none\"\nsidecar_db_name: \"other\"\n";
    let both = "durability_policy: \"semi_sync\"\nsidecar_db_name: \"other\"\n";
    assert_eq!(world.merged(KEYSPACE, [base, ours, theirs]), Ok(both.to_owned()));
    assert_eq!(world.merged(KEYSPACE, [base, ours, both]), Ok(both.to_owned()), "made alike by both");
    let removed = "sidecar_db_name: \"_vt\"\n";
    let cross = "durability_policy: \"cross_cell\"\nsidecar_db_name: \"_vt\"\n";
    for other in [removed, cross] {
        assert_eq!(world.merged(KEYSPACE, [base, ours, other]), clash(&["durability_policy"]), "{other}");
    }
    assert_eq!(world.merged(KEYSPACE, [base, removed, theirs]), Ok("sidecar_db_name: \"other\"\n".to_owned()));
}

#[test]
fn what_is_one_value_is_never_put_together_from_two() {
    let world = World::new();
    let shard = |alias: (&str, u32), time: u64, serving: bool| {
        format!(
            "primary_alias {{ cell: {:?} uid: {} }} is_primary_serving: {serving} \
             primary_term_start_time {{ seconds: {time} }}",
            alias.0, alias.1
        )
    };
    let base = shard(("zone1", 100), 5, true);
    let (ours, theirs) = (shard(("zone1", 200), 5, true), shard(("zone2", 100), 5, true));
    assert_eq!(
        world.merged(SHARD, [&base, &ours, &theirs]),
        clash(&["primary_alias"]),
        "zone2-200 was meant by nobody"
    );
    let theirs = shard(("zone1", 100), 6, false);
    let merged = world.merged(SHARD, [&base, &ours, &theirs]).unwrap();
    assert!(merged.contains("uid: 200") && merged.contains("seconds: 6") && !merged.contains("serving"), "{merged}");
    // Lists have no names for their elements.
    let [base, ours, theirs] =
        ["a", "b", "c"].map(|tables| format!("tablet_controls {{ tablet_type: REPLICA denied_tables: {tables:?} }}"));
    assert_eq!(world.merged(SHARD, [&base, &ours, &theirs]), clash(&["tablet_controls"]));
    assert!(world.merged(SHARD, [&base, &ours, &base]).unwrap().contains("\"b\""));
}

#[test]
fn maps_are_merged_by_key_and_their_entries_by_field() {
    let world = World::new();
    let table = |name: &str, rest: &str| format!("tables {{ key: {name:?} value {{ {rest} }} }}\n");
    let base = table("a", "pinned: \"x\" type: \"t\"") + &table("b", "") + &table("c", "");
    let ours = table("a", "pinned: \"y\" type: \"t\"") + &table("b", "") + &table("d", "");
    let theirs = table("a", "pinned: \"x\" type: \"u\"") + &table("c", "") + &table("e", "");
    let merged = world.merged(VSCHEMA, [&base, &ours, &theirs]).unwrap();
    let expected = table("a", "type: \"u\" pinned: \"y\"") + &table("d", "") + &table("e", "");
    assert_eq!(world.stored(VSCHEMA, &merged), world.stored(VSCHEMA, &expected));
    // Removed by one, changed by the other; added by both.
    let ours = table("b", "") + &table("c", "") + &table("d", "pinned: \"1\"");
    let theirs = table("a", "pinned: \"z\"") + &table("b", "") + &table("c", "") + &table("d", "type: \"2\"");
    assert_eq!(world.merged(VSCHEMA, [&base, &ours, &theirs]), clash(&["tables[\"a\"]", "tables[\"d\"]"]));
}

#[test]
fn the_choice_of_a_oneof_is_one_decision() {
    // No message of Vitess's topology has a oneof today.
    let pool = protox_pool();
    let message = pool.get_message_by_name("t.M").unwrap();
    let make = |text: &str| DynamicMessage::parse_text_format(message.clone(), text).unwrap();
    let merged = |texts: [&str; 3]| {
        let [base, ours, theirs] = texts.map(make);
        merge(&base, &ours, &theirs).map(|merged| merged.to_text_format())
    };
    assert_eq!(merged(["a: 1", "b: \"x\"", "a: 1 other: 2"]), Ok("b:\"x\",other:2".to_owned()));
    assert_eq!(merged(["a: 1", "b: \"x\"", "a: 2"]), Err(vec!["choice".to_owned()]));
    assert_eq!(merged(["a: 1", "a: 3", "a: 2"]), Err(vec!["a".to_owned()]));
    assert_eq!(merged(["", "b: \"x\"", "a: 2"]), Err(vec!["choice".to_owned()]));
    assert_eq!(merged(["c { other: 1 }", "c { other: 1 a: 7 }", "c { other: 2 }"]), Ok("c{a:7,other:2}".to_owned()));
    assert_eq!(merged(["maybe: 0", "", "maybe: 0 other: 1"]), Ok("other:1".to_owned()), "zero is not nothing");
    assert_eq!(merged(["d: nan", "d: nan other: 1", "d: nan other: 1"]), Ok("other:1,d:NaN".to_owned()));
    assert_eq!(merged(["d: nan", "d: nan a: 1", "d: nan other: 1"]).map(|text| text.contains("a:1")), Ok(true));
}

fn protox_pool() -> prost_reflect::DescriptorPool {
    let source = "syntax = \"proto3\"; package t; message M { oneof choice { int32 a = 1; string b = 2; M c = 3; } \
                  int32 other = 4; double d = 5; optional int32 maybe = 6; }";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.proto"), source).unwrap();
    let set = protox::compile(["t.proto"], [dir.path()]).unwrap();
    prost_reflect::DescriptorPool::from_file_descriptor_set(set).unwrap()
}

#[test]
fn fields_of_a_newer_vitess_survive_and_clash_like_others() {
    let world = World::new();
    let known = world.stored(KEYSPACE, "durability_policy: \"none\"");
    let other = world.stored(KEYSPACE, "durability_policy: \"semi_sync\"");
    // Fields 100 and 101, with one byte each.
    let with = |known: &Bytes, fields: &[(u8, u8)]| {
        let fields = fields.iter().flat_map(|(field, value)| [0xa0 + field * 8, 6, *value]);
        Bytes::from_iter(known.iter().copied().chain(fields))
    };
    let base = with(&known, &[(0, 1)]);
    let (cell, path) = (CellName::global(), TopoPath::parse(KEYSPACE).unwrap());
    let merge = |ours: &Bytes, theirs: &Bytes| world.0.merge(&cell, &path, &base, (ours, theirs));
    assert_eq!(merge(&with(&other, &[(0, 1)]), &with(&known, &[(0, 2)])), Ok(with(&other, &[(0, 2)])));
    assert_eq!(merge(&with(&known, &[(0, 1), (1, 1)]), &with(&known, &[(0, 2)])), Ok(with(&known, &[(0, 2), (1, 1)])));
    assert_eq!(merge(&with(&known, &[(0, 3)]), &with(&known, &[(0, 2)])), Err(vec!["100".to_owned()]));
    // What does not decode, or is no message, is compared as a whole.
    assert_eq!(merge(&Bytes::from_static(b"\xff"), &other), Err(Vec::new()));
    let path = TopoPath::parse("metadata/a").unwrap();
    assert_eq!(world.0.merge(&cell, &path, &known, (&base, &other)), Err(Vec::new()));
}

/// An edit of a VSchema: its path, and its new value; `None` removes.
type Edit = (usize, Option<u8>);

/// Leaves of a VSchema by path, and marks of what exists without leaves.
type Leaves = BTreeMap<&'static str, u8>;

/// Everything that an edit can change, with what it stands for. A mark stands above its leaves.
const PLACES: [(&str, Option<&str>); 8] = [
    ("prevent", None),
    ("mode", None),
    ("v[a]", None),
    ("v[a].owner", Some("v[a]")),
    ("v[a].params[p]", Some("v[a]")),
    ("v[b]", None),
    ("v[b].owner", Some("v[b]")),
    ("v[b].params[q]", Some("v[b]")),
];

fn edited(base: &Leaves, edits: &[Edit]) -> Leaves {
    let mut leaves = base.clone();
    for (place, value) in edits {
        let (name, above) = PLACES[*place];
        match value {
            None => leaves.retain(|known, _| *known != name && !known.starts_with(&format!("{name}."))),
            Some(value) => {
                // A mark has no value.
                let is_mark = PLACES.iter().any(|(_, above)| *above == Some(name));
                leaves.insert(name, if is_mark { 1 } else { value + 1 });
                leaves.extend(above.map(|above| (above, 1)));
            }
        }
    }
    leaves
}

fn text(leaves: &Leaves) -> String {
    let mut text = String::new();
    let get = |name: &str| leaves.get(name).copied();
    if get("prevent").is_some() {
        text += "prevent_cross_keyspace_reads: true ";
    }
    text += &get("mode").map_or(String::new(), |mode| format!("foreign_key_mode: {mode} "));
    for (name, param) in [("a", "p"), ("b", "q")] {
        if get(&format!("v[{name}]")).is_none() {
            continue;
        }
        let owner = get(&format!("v[{name}].owner")).map_or(String::new(), |owner| format!("owner: \"{owner}\" "));
        let params = get(&format!("v[{name}].params[{param}]"))
            .map_or(String::new(), |value| format!("params {{ key: {param:?} value: \"{value}\" }} "));
        text += &format!("vindexes {{ key: {name:?} value {{ {owner}{params} }} }} ");
    }
    text
}

/// What a merge of leaves must give; `None` if it clashes.
fn reference(base: &Leaves, ours: &Leaves, theirs: &Leaves) -> Option<Leaves> {
    let mut merged = Leaves::new();
    for (name, above) in PLACES {
        let [b, o, t] = [base, ours, theirs].map(|leaves| leaves.get(name));
        // Removed with all that is in it, or made by both.
        let inside = |leaves: &Leaves| -> Vec<(&'static str, u8)> {
            let below = leaves.iter().filter(|(known, _)| known.starts_with(&format!("{name}.")));
            below.map(|(known, value)| (*known, *value)).collect()
        };
        let [ib, io, it] = [base, ours, theirs].map(inside);
        let lost = (b.is_some() && o.is_none() && t.is_some() && it != ib)
            || (b.is_some() && t.is_none() && o.is_some() && io != ib)
            || (b.is_none() && o.is_some() && t.is_some() && io != it);
        let _ = above;
        if lost {
            return None;
        }
        let value = if o == t || b == t {
            o
        } else if b == o {
            t
        } else {
            return None;
        };
        merged.extend(value.map(|value| (name, *value)));
    }
    Some(merged)
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec((0..PLACES.len(), prop::option::weighted(0.7, 0_u8..3)), 0..4)
}

proptest! {
    #[test]
    fn a_merge_is_what_the_reference_says(base in edits(), ours in edits(), theirs in edits()) {
        let world = World::new();
        let mut begin = edited(&Leaves::new(), &base);
        // `prevent` is true or nothing.
        begin.entry("prevent").and_modify(|value| *value = 1);
        let fix = |mut leaves: Leaves| { leaves.entry("prevent").and_modify(|value| *value = 1); leaves };
        let (ours, theirs) = (fix(edited(&begin, &ours)), fix(edited(&begin, &theirs)));
        let merged = world.merged(VSCHEMA, [&text(&begin), &text(&ours), &text(&theirs)]);
        let expected = reference(&begin, &ours, &theirs);
        let stored = |text: String| world.stored(VSCHEMA, &text);
        prop_assert_eq!(merged.map(&stored).ok(), expected.map(|leaves| stored(text(&leaves))));
    }
}
