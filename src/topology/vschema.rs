//! The SrvVSchema that Vitess stores in every cell when it rebuilds it. Only computes; must never ask anybody.
//!
//! Source: go/vt/topo/srv_vschema.go. Messages are copied without types, so that what a newer Vitess has written into
//! them survives.

use std::collections::HashMap;

use prost_reflect::{DynamicMessage, MapKey, Value};

use super::graph::decode;
use crate::error::Result;
use crate::mirror::Snapshot;
use crate::name::TopoPath;
use crate::record::Codec;
use crate::record::layout::{self, Key};

/// Rules that the message always contains, also if there are none.
const ALWAYS: [(&str, Key<'static>, &str); 3] = [
    ("routing_rules", Key::RoutingRules, "vschema.RoutingRules"),
    ("shard_routing_rules", Key::ShardRoutingRules, "vschema.ShardRoutingRules"),
    ("mirror_rules", Key::MirrorRules, "vschema.MirrorRules"),
];

/// The SrvVSchema of all keyspaces and rules: the same for every cell. Fails if one of their records cannot be decoded.
///
/// As in Vitess, every name in the directory of keyspaces is a keyspace, and one without a VSchema has an empty one.
pub fn srv_vschema(codec: &Codec, global: &Snapshot) -> Result<DynamicMessage> {
    let mut keyspaces = HashMap::new();
    for entry in global.entries(&TopoPath::parse(layout::KEYSPACES)?) {
        let vschema = match decode(codec, global, Key::VSchema(&entry.name))? {
            Some(vschema) => vschema,
            None => codec.empty("vschema.Keyspace")?,
        };
        keyspaces.insert(MapKey::String(entry.name), Value::Message(vschema));
    }
    let mut message = codec.empty("vschema.SrvVSchema")?;
    message.set_field_by_name("keyspaces", Value::Map(keyspaces));
    for (field, key, empty) in ALWAYS {
        let rules = match decode(codec, global, key)? {
            Some(rules) => rules,
            None => codec.empty(empty)?,
        };
        message.set_field_by_name(field, Value::Message(rules));
    }
    if let Some(rules) = decode(codec, global, Key::KeyspaceRoutingRules)? {
        message.set_field_by_name("keyspace_routing_rules", Value::Message(rules));
    }
    Ok(message)
}

/// Whether stored bytes are this message.
pub fn is_stored_as(codec: &Codec, message: &DynamicMessage, stored: &[u8]) -> bool {
    codec.decode("vschema.SrvVSchema", stored).is_ok_and(|stored| codec.encode(&stored) == codec.encode(message))
}

/// Whether a record is part of the SrvVSchema.
pub fn concerns(path: &TopoPath) -> bool {
    matches!(
        Key::in_global(path),
        Some(
            Key::VSchema(_) | Key::RoutingRules | Key::ShardRoutingRules | Key::MirrorRules | Key::KeyspaceRoutingRules
        )
    )
}
