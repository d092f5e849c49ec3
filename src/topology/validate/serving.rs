//! What vtgates read: the SrvKeyspace and SrvVSchema records of each cell, compared with what a rebuild would store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::facts::{Facts, Place, read};
use super::keyspaces::has_sound_shards;
use super::lost::Lost;
use super::problem::{Kind, Report};
use super::restore;
use super::shell::{edit, remove, topofs};
use crate::mirror::Record;
use crate::name::{CellName, TopoPath};
use crate::plain::short;
use crate::record::Codec;
use crate::record::layout::{KEYSPACES, Key};
use crate::record::messages::topodata::{ShardReference, SrvKeyspace, TabletType};
use crate::record::messages::vschema::SrvVSchema;
use crate::topology::{graph, ranges, vschema};

/// Names in a list of differences; of more, only the number is told.
const NAMES: usize = 5;

pub(super) fn check(facts: &Facts<'_>, lost: &Lost<'_>, report: &mut Report) {
    let rebuilt = rebuilt_keyspaces(facts, lost);
    let used: BTreeSet<(usize, &str)> = facts
        .tablets
        .iter()
        .filter_map(|((place, _), tablet)| Some((*place, tablet.as_ref()?.keyspace.as_str())))
        .collect();
    for (number, place) in facts.places.iter().enumerate() {
        let Ok(dir) = TopoPath::parse(KEYSPACES) else { return };
        for (path, record) in place.records.below(&dir) {
            if let Some(Key::SrvKeyspace(keyspace)) = Key::in_cell(path) {
                // What is lost is a fault of its own, and this may be what is left of it.
                if !lost.keyspace(keyspace) {
                    srv_keyspace(facts, place, (path, record), (keyspace, rebuilt.get(keyspace)), report);
                }
            }
        }
        for (_, keyspace) in used.range((number, "")..(number + 1, "")) {
            missing(facts, place, (keyspace, rebuilt.contains_key(keyspace)), report);
        }
    }
    srv_vschemas((facts, lost), &used, report);
}

/// What a rebuild would store in every cell, for the keyspaces that can be rebuilt.
fn rebuilt_keyspaces<'a>(facts: &'a Facts<'_>, lost: &Lost<'_>) -> BTreeMap<&'a str, Served> {
    let codec = &facts.sight.records.codec;
    let sound = facts.keyspaces.iter().filter(|(name, keyspace)| has_sound_shards(keyspace) && !lost.any_shard(name));
    let rebuilt = sound.filter_map(|(name, _)| {
        // Snapshots may be partial.
        let rebuilt = graph::srv_keyspace(codec, facts.global, name, true).ok()?;
        let message = SrvKeyspace::decode(&*codec.encode(&rebuilt.message)).ok()?;
        Some((name.as_str(), Served::of(&message)))
    });
    rebuilt.collect()
}

/// What a SrvKeyspace means. The order of types and shards means nothing, and neither do controls that forbid nothing.
/// (Vitess leaves such controls behind when it has moved traffic; a rebuild drops them.)
#[derive(PartialEq)]
struct Served {
    /// The type of tablets, the shard, its range.
    shards: BTreeSet<(i32, String, String)>,
    throttler: Vec<u8>,
}

impl Served {
    fn of(message: &SrvKeyspace) -> Self {
        let key = |reference: &ShardReference| {
            let range = reference.key_range.as_ref();
            (reference.name.clone(), range.map_or_else(String::new, |range| ranges::name(Some(range))))
        };
        let shards = message.partitions.iter().flat_map(|partition| {
            let references = partition.shard_references.iter().map(key);
            references.map(|(name, range)| (partition.served_type, name, range))
        });
        let throttler = message.throttler_config.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        Self { shards: shards.collect(), throttler }
    }

    /// What a rebuild would change, in words.
    fn differences(&self, rebuilt: &Self) -> String {
        let named = |shards: Vec<&(i32, String, String)>| {
            let name = |(served, shard, range): &(i32, String, String)| {
                let served = TabletType::try_from(*served).unwrap_or_default().as_str_name();
                let range = if range.is_empty() || range == shard { String::new() } else { format!(" ({range})") };
                format!("{shard}{range} for {served}")
            };
            list(shards.into_iter().map(name))
        };
        let mut words = Vec::new();
        for (what, shards) in [
            ("add", rebuilt.shards.difference(&self.shards).collect::<Vec<_>>()),
            ("remove", self.shards.difference(&rebuilt.shards).collect()),
        ] {
            if !shards.is_empty() {
                words.push(format!("{what} shard {}", named(shards)));
            }
        }
        if self.throttler != rebuilt.throttler {
            words.push("replace the settings of the throttler".to_owned());
        }
        words.join("; ")
    }
}

fn list(names: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = names.map(|name| short(&name, 200)).collect();
    let more = all.len().saturating_sub(NAMES);
    all.truncate(NAMES);
    match more {
        0 => all.join(", "),
        more => format!("{} and {more} more", all.join(", ")),
    }
}

fn srv_keyspace(
    facts: &Facts<'_>,
    place: &Place<'_>,
    (path, record): (&TopoPath, &Record),
    (keyspace, rebuilt): (&str, Option<&Served>),
    report: &mut Report,
) {
    let at = (&place.cell, path);
    if facts.is_gone(keyspace) {
        return report.add(Kind::SrvKeyspaceLeftOver, at, || {
            let fault = format!("keyspace {keyspace} does not exist any more, but vtgates still read this record");
            (fault, format!("{}  # if the keyspace was deleted", remove(&place.cell, path)))
        });
    }
    let (Some(rebuilt), Ok(stored)) = (rebuilt, SrvKeyspace::decode(&*record.value)) else { return };
    if let Some(disabled) = disabled_shards(&stored).next() {
        return disabled_for_ever(facts, place, (path, keyspace), &disabled, report);
    }
    let served = Served::of(&stored);
    if served != *rebuilt {
        report.add(Kind::SrvKeyspaceOutdated, at, || {
            let fault = format!("a rebuild would change the record: {}", served.differences(rebuilt));
            (fault, mend_outdated(facts, keyspace, (&served, rebuilt)))
        });
    }
}

/// Rebuilds a keyspace, unless that would forget what the records of the keyspace may have lost.
fn mend_outdated(facts: &Facts<'_>, keyspace: &str, (served, rebuilt): (&Served, &Served)) -> String {
    let global = CellName::global();
    let rebuild = topofs("rebuild-keyspace-graph", &facts.sight.flags, Some(keyspace));
    let (lost, key, what) = match (served.shards.first(), rebuilt.shards.is_empty()) {
        (Some((_, shard, _)), true) if facts.has_shard(keyspace, shard) => {
            (true, Key::Shard(keyspace, shard), "is_primary_serving: true, if it should serve")
        }
        _ => {
            let lost = rebuilt.throttler.is_empty() && !served.throttler.is_empty();
            (lost, Key::Keyspace(keyspace), "throttler_config as in SrvKeyspace, if it was lost here")
        }
    };
    match (lost, key.path()) {
        (true, Ok(path)) => edit(&global, &path, &format!("{what}. Then: {rebuild}")),
        _ => rebuild,
    }
}

/// The shards whose query service a SrvKeyspace disables.
fn disabled_shards(message: &SrvKeyspace) -> impl Iterator<Item = String> {
    let controls = message.partitions.iter().flat_map(|partition| &partition.shard_tablet_controls);
    controls.filter(|control| control.query_service_disabled).map(|control| control.name.clone())
}

/// While Vitess moves traffic between shards, it disables those that lose it, and refuses rebuilds. That is no fault.
/// But if no other shard has the same keys, nothing is being moved.
fn disabled_for_ever(
    facts: &Facts<'_>,
    place: &Place<'_>,
    (path, keyspace): (&TopoPath, &str),
    disabled: &str,
    report: &mut Report,
) {
    let shards = facts.keyspaces.get(keyspace).map(|keyspace| &keyspace.shards);
    let range = |shard: &str| Some(shards?.get(shard)?.as_ref()?.key_range.clone());
    let is_moving = range(disabled).is_some_and(|own| {
        let others = shards.into_iter().flatten().filter(|(name, _)| *name != disabled);
        others.filter_map(|(name, _)| range(name)).any(|other| ranges::intersect(own.as_ref(), other.as_ref()))
    });
    if is_moving {
        return;
    }
    report.add(Kind::RebuildRefused, (&place.cell, path), || {
        let fault = format!(
            "the query service of shard {disabled} is disabled, but no other shard has its keys: the keyspace cannot \
             be rebuilt"
        );
        (fault, edit(&place.cell, path, "remove shard_tablet_controls"))
    });
}

fn missing(facts: &Facts<'_>, place: &Place<'_>, (keyspace, is_sound): (&str, bool), report: &mut Report) {
    let Ok(path) = Key::SrvKeyspace(keyspace).path() else { return };
    if !is_sound || place.records.records.contains_key(&path) {
        return;
    }
    report.add(Kind::SrvKeyspaceMissing, (&place.cell, &path), || {
        let fault = format!("the cell has tablets of keyspace {keyspace}, but vtgates do not find it there");
        (fault, topofs("rebuild-keyspace-graph", &facts.sight.flags, Some(keyspace)))
    });
}

/// A message with its rules, whether an empty one is stored or left out: older versions of Vitess leave it out.
fn settled(mut message: SrvVSchema) -> SrvVSchema {
    message.routing_rules.get_or_insert_default();
    message.shard_routing_rules.get_or_insert_default();
    message.keyspace_routing_rules.get_or_insert_default();
    message.mirror_rules.get_or_insert_default();
    message
}

fn rebuilt_vschema(codec: &Codec, facts: &Facts<'_>) -> Option<SrvVSchema> {
    let rebuilt = vschema::srv_vschema(codec, facts.global).ok()?;
    Some(settled(SrvVSchema::decode(&*codec.encode(&rebuilt)).ok()?))
}

fn srv_vschemas((facts, lost): (&Facts<'_>, &Lost<'_>), used: &BTreeSet<(usize, &str)>, report: &mut Report) {
    // A record that cannot be decoded is a fault of its own, and Vitess cannot rebuild then.
    let Some(rebuilt) = rebuilt_vschema(&facts.sight.records.codec, facts) else { return };
    let Ok(path) = Key::SrvVSchema.path() else { return };
    let says_something = rebuilt
        != settled(SrvVSchema {
            keyspaces: rebuilt.keyspaces.keys().map(|name| (name.clone(), Default::default())).collect(),
            ..SrvVSchema::default()
        });
    let rebuild = topofs("rebuild-vschema-graph", &facts.sight.flags, None);
    // All cells have the same, as a rule.
    let mut last: Option<(Bytes, (String, String))> = None;
    for (number, place) in facts.places.iter().enumerate() {
        let at = (&place.cell, &path);
        let Some(stored) = place.records.records.get(&path) else {
            if says_something && used.range((number, "")..(number + 1, "")).next().is_some() {
                let fault = "the cell has tablets, but vtgates find no VSchemas and no rules there";
                report.add(Kind::SrvVSchemaMissing, at, || (fault.to_owned(), rebuild.clone()));
            }
            continue;
        };
        let (differences, mend) = match last.take().filter(|(value, _)| *value == stored.value) {
            Some((_, words)) => words,
            None => match read::<SrvVSchema>(place.records, Key::SrvVSchema) {
                Some(mut message) => {
                    // The only copy of the VSchema of a lost keyspace stays out of it.
                    message.keyspaces.retain(|keyspace, _| !lost.keyspace(keyspace));
                    let mend = mend_vschema(facts, &message, &rebuild);
                    (vschema_differences(&settled(message), &rebuilt), mend)
                }
                None => Default::default(),
            },
        };
        if !differences.is_empty() {
            report.add(Kind::SrvVSchemaOutdated, at, || {
                (format!("a rebuild would change the record: {differences}"), mend.clone())
            });
        }
        last = Some((stored.value.clone(), (differences, mend)));
    }
}

/// Rebuilds the SrvVSchema. But where only this record has a VSchema or rules, it writes them back: a rebuild would
/// forget them.
fn mend_vschema(facts: &Facts<'_>, stored: &SrvVSchema, rebuild: &str) -> String {
    let only_here = restore::only_in(facts, stored);
    let back: Vec<String> = only_here.iter().take(NAMES).filter_map(|key| restore::from_graph(facts, *key)).collect();
    if !back.is_empty() {
        return format!("{}  # if it was lost. If it was removed: {rebuild}", back.join(" && "));
    }
    match stored.keyspaces.keys().any(|keyspace| facts.is_gone(keyspace)) {
        true => format!("{rebuild}  # if keyspaces that are not there any more were deleted"),
        false => rebuild.to_owned(),
    }
}

/// What a rebuild would change, in words. Bytes are compared, because there are numbers that do not equal themselves.
fn vschema_differences(stored: &SrvVSchema, rebuilt: &SrvVSchema) -> String {
    let mut words = Vec::new();
    let (have, want) = (&stored.keyspaces, &rebuilt.keyspaces);
    let add: Vec<String> = want.keys().filter(|name| !have.contains_key(*name)).cloned().collect();
    let remove: Vec<String> = have.keys().filter(|name| !want.contains_key(*name)).cloned().collect();
    let differs = |name: &&String| {
        let bytes = |of: &BTreeMap<String, _>| of.get(*name).map(Message::encode_to_vec);
        have.contains_key(*name) && bytes(have) != bytes(want)
    };
    let replace: Vec<String> = want.keys().filter(differs).cloned().collect();
    for (what, names) in [("add", add), ("remove", remove), ("replace", replace)] {
        if !names.is_empty() {
            words.push(format!("{what} the VSchema of {}", list(names.into_iter())));
        }
    }
    let rules = [
        ("routing rules", encoded(&stored.routing_rules) != encoded(&rebuilt.routing_rules)),
        ("shard routing rules", encoded(&stored.shard_routing_rules) != encoded(&rebuilt.shard_routing_rules)),
        ("keyspace routing rules", encoded(&stored.keyspace_routing_rules) != encoded(&rebuilt.keyspace_routing_rules)),
        ("mirror rules", encoded(&stored.mirror_rules) != encoded(&rebuilt.mirror_rules)),
    ];
    words.extend(rules.iter().filter(|(_, differ)| *differ).map(|(rules, _)| format!("replace the {rules}")));
    words.join("; ")
}

fn encoded<M: Message>(message: &Option<M>) -> Vec<u8> {
    message.as_ref().map(Message::encode_to_vec).unwrap_or_default()
}
