//! How a record comes back whose bytes are no use, or that is gone: from other records that say the same. Commands
//! write over what is stored; none removes a record that nothing can bring back.

use prost::Message;

use super::facts::{Facts, read};
use super::lost::Lost;
use super::shell::{file, remove, topofs, word, write_text};
use super::tablets::restart;
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::layout::Key;
use crate::record::messages::vschema::{Keyspace as VSchema, SrvVSchema};

/// The records that SrvVSchema has copies of, apart from VSchemas.
pub(super) const RULES: [Key<'static>; 4] =
    [Key::RoutingRules, Key::ShardRoutingRules, Key::MirrorRules, Key::KeyspaceRoutingRules];
/// Tablets that a command names; of more, the user makes a list.
const TABLETS: usize = 50;

/// What mends a record that cannot be decoded.
pub(super) fn undecodable(
    (facts, lost): (&Facts<'_>, &Lost<'_>),
    (cell, path): (&CellName, &TopoPath),
    key: Option<Key<'_>>,
) -> String {
    let by_hand = || format!("vim {}  # write it anew", file(cell, path, ".txt"));
    let flags = facts.sight.flags.as_str();
    match key {
        // A rebuild does not replace what it cannot read, and makes the same again.
        Some(Key::SrvKeyspace(keyspace)) if facts.has_shards(keyspace) => {
            let rebuild = topofs("rebuild-keyspace-graph", flags, Some(keyspace));
            format!("{} && {rebuild}", remove(cell, path))
        }
        Some(Key::SrvVSchema) => topofs("rebuild-vschema-graph", flags, None),
        Some(Key::Shard(keyspace, shard)) => {
            let record = lost.record(facts, keyspace, shard);
            format!("{}  # as far as the cells know it", write_text((cell, path), &record))
        }
        Some(Key::Tablet(alias)) => restart(alias),
        Some(Key::ShardReplication(keyspace, shard)) => {
            replication((facts, lost), (cell, path), (keyspace, shard)).unwrap_or_else(by_hand)
        }
        Some(key) => from_graph(facts, key).unwrap_or_else(by_hand),
        None => by_hand(),
    }
}

/// Writes a ShardReplication that names the tablets that there are.
fn replication(
    (facts, lost): (&Facts<'_>, &Lost<'_>),
    (cell, path): (&CellName, &TopoPath),
    shard: (&str, &str),
) -> Option<String> {
    let place = facts.places.get(facts.place(cell.as_str())?)?;
    let tablets = lost.tablets_in(shard, &place.names);
    if tablets.is_empty() || tablets.len() > TABLETS {
        return None;
    }
    let node = |tablet: &&super::facts::Tablet| {
        format!("nodes {{ tablet_alias {{ cell: {:?} uid: {} }} }}", tablet.cell, tablet.uid)
    };
    let nodes: Vec<String> = tablets.iter().map(node).collect();
    Some(write_text((cell, path), &nodes.join(" ")))
}

/// Writes a VSchema or rules as the SrvVSchema of a cell has them, if one has.
pub(super) fn from_graph(facts: &Facts<'_>, key: Key<'_>) -> Option<String> {
    let of = match key {
        Key::VSchema(keyspace) => format!(".keyspaces[{}]", serde_json::Value::from(keyspace)),
        Key::RoutingRules => ".routing_rules".to_owned(),
        Key::ShardRoutingRules => ".shard_routing_rules".to_owned(),
        Key::MirrorRules => ".mirror_rules".to_owned(),
        Key::KeyspaceRoutingRules => ".keyspace_routing_rules".to_owned(),
        _ => return None,
    };
    let has = |records: &Snapshot| read::<SrvVSchema>(records, Key::SrvVSchema).is_some_and(|graph| says(&graph, key));
    let place = facts.places.iter().find(|place| has(place.records))?;
    let (global, path, graph) = (CellName::global(), key.path().ok()?, Key::SrvVSchema.path().ok()?);
    let make = match facts.global.records.contains_key(&path) || path.parent().is_none_or(|dir| dir.is_root()) {
        true => String::new(),
        false => format!("mkdir -p {} && ", file(&global, &path.parent()?, "")),
    };
    let (graph, record) = (file(&place.cell, &graph, ".json"), file(&global, &path, ".json"));
    Some(format!("{make}jq {} {graph} > {record}", word(&of)))
}

/// Whether a SrvVSchema has something of a record.
pub(super) fn says(graph: &SrvVSchema, key: Key<'_>) -> bool {
    fn says<M: Message>(message: Option<&M>) -> bool {
        message.is_some_and(|message| message.encoded_len() > 0)
    }
    match key {
        Key::VSchema(keyspace) => says::<VSchema>(graph.keyspaces.get(keyspace)),
        Key::RoutingRules => says(graph.routing_rules.as_ref()),
        Key::ShardRoutingRules => says(graph.shard_routing_rules.as_ref()),
        Key::MirrorRules => says(graph.mirror_rules.as_ref()),
        Key::KeyspaceRoutingRules => says(graph.keyspace_routing_rules.as_ref()),
        _ => false,
    }
}

/// The records that say nothing, although a SrvVSchema has something of them: a rebuild would forget it.
pub(super) fn only_in<'a>(facts: &Facts<'_>, graph: &'a SrvVSchema) -> Vec<Key<'a>> {
    let is_there = |key: &Key<'_>| {
        let record = key.path().ok().and_then(|path| facts.global.records.get(&path));
        record.is_some_and(|record| !record.value.is_empty())
    };
    // What was deleted as a whole was deleted on purpose.
    let vschemas = graph.keyspaces.keys().filter(|keyspace| !facts.is_gone(keyspace));
    let all = vschemas.map(|keyspace| Key::VSchema(keyspace)).chain(RULES);
    all.filter(|key| !is_there(key) && says(graph, *key)).collect()
}
