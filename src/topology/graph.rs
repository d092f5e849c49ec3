//! The SrvKeyspace that Vitess stores in every cell when it rebuilds a keyspace. Only computes; must never ask anybody.
//!
//! Source: go/vt/topotools/rebuild_keyspace.go. Messages are copied field by field without types, so that what a newer
//! Vitess has written into them survives.

use prost_reflect::{DynamicMessage, Value};

use super::ranges::{self, Ranged};
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::layout::{self, Key};
use crate::record::messages::topodata::{KeyRange, KeyspaceType, TabletType};
use crate::record::{Codec, is_vitess_name};

/// The types of tablets that every serving shard serves, in the order of their partitions.
const SERVED: [TabletType; 3] = [TabletType::Primary, TabletType::Replica, TabletType::Rdonly];

/// The shards that serve, with their records, and those that do not.
type Shards = (Vec<(Ranged, DynamicMessage)>, Vec<Ranged>);

/// A rebuilt SrvKeyspace: the same for every cell.
#[derive(Debug, Clone, PartialEq)]
pub struct SrvKeyspace {
    /// What to store.
    pub message: DynamicMessage,
    /// Whether the order of its shards was checked. Otherwise Vitess leaves them in random order.
    is_ordered: bool,
}

/// The SrvKeyspace of a keyspace, from its Keyspace and Shard records. Fails, in words, if Vitess would refuse to
/// rebuild it. `allow_partial` lets a SNAPSHOT keyspace have gaps.
pub fn srv_keyspace(codec: &Codec, global: &Snapshot, keyspace: &str, allow_partial: bool) -> Result<SrvKeyspace> {
    refuse_name(keyspace)?;
    let record = decode(codec, global, Key::Keyspace(keyspace))?;
    let record = record.ok_or_else(|| is_missing(Key::Keyspace(keyspace)))?;
    let (mut serving, idle) = serving_shards(codec, global, keyspace)?;
    serving.sort_by(|(a, _), (b, _)| a.compare(b));
    let is_snapshot = number(&record, "keyspace_type") == Some(KeyspaceType::Snapshot as i32);
    let is_ordered = !(is_snapshot && allow_partial);
    if is_ordered {
        let order: Vec<Ranged> = serving.iter().map(|(ranged, _)| ranged.clone()).collect();
        refuse_faults(keyspace, &order, &idle)?;
    }
    let mut message = codec.empty("topodata.SrvKeyspace")?;
    if record.has_field_by_name("throttler_config")
        && let Some(config) = record.get_field_by_name("throttler_config")
    {
        message.set_field_by_name("throttler_config", config.into_owned());
    }
    if !serving.is_empty() {
        let references = serving.iter().map(|(ranged, shard)| reference(codec, &ranged.shard, shard));
        let references = references.map(|reference| reference.map(Value::Message)).collect::<Result<Vec<_>>>()?;
        let partitions = SERVED.map(|served| partition(codec, served, references.clone()).map(Value::Message));
        message.set_field_by_name("partitions", Value::List(partitions.into_iter().collect::<Result<_>>()?));
    }
    Ok(SrvKeyspace { message, is_ordered })
}

/// Fails if Vitess accepts no keyspace of this name.
pub(super) fn refuse_name(keyspace: &str) -> Result<()> {
    if is_vitess_name(keyspace) {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, format!("{keyspace:?} is not a name that Vitess accepts for a keyspace")))
}

impl SrvKeyspace {
    /// Whether stored bytes are the same record. The order counts only where Vitess has one: shards with equal ranges,
    /// or without ranges, have none.
    pub fn is_stored_as(&self, codec: &Codec, stored: &[u8]) -> bool {
        let Ok(stored) = codec.decode("topodata.SrvKeyspace", stored) else { return false };
        let settled = |message: &DynamicMessage| codec.encode(&self.settled(message));
        settled(&self.message) == settled(&stored)
    }

    /// The same message, with those references sorted that Vitess leaves in random order.
    fn settled(&self, message: &DynamicMessage) -> DynamicMessage {
        let mut message = message.clone();
        for partition in messages_mut(&mut message, "partitions") {
            let Some(Value::List(references)) = partition.get_field_by_name_mut("shard_references") else { continue };
            let mut keyed: Vec<(Ranged, Value)> = std::mem::take(references)
                .into_iter()
                .map(|value| (value.as_message().map(ranged_of_reference).unwrap_or_default(), value))
                .collect();
            let sort = |run: &mut [(Ranged, Value)]| run.sort_by(|(a, _), (b, _)| a.compare(b));
            let is_equal = |(a, _): &(Ranged, _), (b, _): &(Ranged, _)| ranges::compare(a.range(), b.range()).is_eq();
            match self.is_ordered {
                true => keyed.chunk_by_mut(is_equal).for_each(sort),
                false => sort(&mut keyed),
            }
            *references = keyed.into_iter().map(|(_, value)| value).collect();
        }
        message
    }
}

/// Fails if a stored SrvKeyspace says that traffic is being moved: Vitess refuses to rebuild it then.
pub fn refuse_migration(codec: &Codec, cell: &CellName, path: &TopoPath, stored: &[u8]) -> Result<()> {
    let stored = decoded(codec, cell, path, stored)?;
    for partition in messages(&stored, "partitions") {
        for control in messages(&partition, "shard_tablet_controls") {
            if control.get_field_by_name("query_service_disabled").and_then(|flag| flag.as_bool()) == Some(true) {
                let shard = text(&control, "name");
                let served = number(&partition, "served_type").and_then(|served| TabletType::try_from(served).ok());
                let served = served.unwrap_or_default().as_str_name();
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "{cell}/{path}: the query service of shard {shard} is disabled for {served}, as while traffic \
                         is being moved. A rebuild would forget that"
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// The shards of a keyspace that serve, with their records, and those that do not. Fails if one of all shards cannot be
/// read, as Vitess does.
fn serving_shards(codec: &Codec, global: &Snapshot, keyspace: &str) -> Result<Shards> {
    let (mut serving, mut idle) = (Vec::new(), Vec::new());
    for entry in global.entries(&layout::shards_dir(keyspace)?) {
        let key = Key::Shard(keyspace, &entry.name);
        let Some(shard) = decode(codec, global, key)? else { continue };
        ranges::of_name(&entry.name).map_err(|why| {
            let refused = format!("global/{key}: Vitess refuses the name of this shard: {why}");
            Error::new(Kind::Invalid, refused)
        })?;
        let serves = shard.get_field_by_name("is_primary_serving").and_then(|flag| flag.as_bool()) == Some(true);
        let ranged = Ranged { shard: entry.name, range: key_range(&shard) };
        match serves {
            true => serving.push((ranged, shard)),
            false => idle.push(ranged),
        }
    }
    Ok((serving, idle))
}

fn refuse_faults(keyspace: &str, order: &[Ranged], idle: &[Ranged]) -> Result<()> {
    let faults = ranges::faults(order);
    let Some(first) = faults.first() else { return Ok(()) };
    let words = faults.iter().map(|fault| match fault.having(idle).as_slice() {
        [] => fault.to_string(),
        having => {
            let having: Vec<&str> = having.iter().map(|ranged| ranged.shard.as_str()).collect();
            format!("{fault} (not serving: {})", having.join(", "))
        }
    });
    let words: Vec<String> = words.collect();
    let shards = first.shards();
    let paths: Vec<String> =
        shards.iter().map(|ranged| format!("global/{}", Key::Shard(keyspace, &ranged.shard))).collect();
    Err(Error::new(Kind::Invalid, format!("{}: {}", paths.join(", "), words.join("; "))))
}

/// A shard in a partition.
fn reference(codec: &Codec, name: &str, shard: &DynamicMessage) -> Result<DynamicMessage> {
    let mut reference = codec.empty("topodata.ShardReference")?;
    reference.set_field_by_name("name", Value::String(name.to_owned()));
    if shard.has_field_by_name("key_range")
        && let Some(range) = shard.get_field_by_name("key_range")
    {
        reference.set_field_by_name("key_range", range.into_owned());
    }
    Ok(reference)
}

fn partition(codec: &Codec, served: TabletType, references: Vec<Value>) -> Result<DynamicMessage> {
    let mut partition = codec.empty("topodata.SrvKeyspace.KeyspacePartition")?;
    partition.set_field_by_name("served_type", Value::EnumNumber(served as i32));
    partition.set_field_by_name("shard_references", Value::List(references));
    Ok(partition)
}

fn ranged_of_reference(reference: &DynamicMessage) -> Ranged {
    Ranged { shard: text(reference, "name"), range: key_range(reference) }
}

fn key_range(message: &DynamicMessage) -> Option<KeyRange> {
    if !message.has_field_by_name("key_range") {
        return None;
    }
    let range = message.get_field_by_name("key_range")?;
    let range = range.as_message()?;
    let bytes = |name| Some(range.get_field_by_name(name)?.as_bytes()?.to_vec());
    Some(KeyRange { start: bytes("start")?, end: bytes("end")? })
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(ToOwned::to_owned)).unwrap_or_default()
}

fn number(message: &DynamicMessage, field: &str) -> Option<i32> {
    message.get_field_by_name(field)?.as_enum_number()
}

fn messages(message: &DynamicMessage, field: &str) -> Vec<DynamicMessage> {
    let Some(value) = message.get_field_by_name(field) else { return Vec::new() };
    value.as_list().into_iter().flatten().filter_map(Value::as_message).cloned().collect()
}

fn messages_mut<'a>(message: &'a mut DynamicMessage, field: &str) -> Vec<&'a mut DynamicMessage> {
    match message.get_field_by_name_mut(field) {
        Some(Value::List(items)) => items.iter_mut().filter_map(Value::as_message_mut).collect(),
        _ => Vec::new(),
    }
}

/// A record of the global topology without types; `None` if it does not exist.
pub(super) fn decode(codec: &Codec, global: &Snapshot, key: Key<'_>) -> Result<Option<DynamicMessage>> {
    let path = key.path()?;
    let record = global.records.get(&path);
    record.map(|record| decoded(codec, &CellName::global(), &path, &record.value)).transpose()
}

/// A stored record without types.
pub(super) fn decoded(codec: &Codec, cell: &CellName, path: &TopoPath, value: &[u8]) -> Result<DynamicMessage> {
    let message = layout::message(cell, path).unwrap_or_default();
    codec.decode(message, value).map_err(|error| Error::new(error.kind, format!("{cell}/{path}: {}", error.reason)))
}

/// The error of a record that must exist.
pub(super) fn is_missing(key: Key<'_>) -> Error {
    Error::new(Kind::NotFound, format!("global/{key} does not exist"))
}
