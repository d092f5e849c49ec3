//! Tablets, the shards that they belong to, and the ShardReplication records that name them.

use std::collections::BTreeSet;

use prost::Message;

use super::facts::{Facts, Place, Tablet, alias_of};
use super::problem::{Kind, Report};
use super::shell::{edit, file, remove, remove_dir_of};
use crate::mirror::Record;
use crate::name::TopoPath;
use crate::record::layout::{self, KEYSPACES, Key};
use crate::record::messages::topodata;

/// Tablets that a ShardReplication names: keyspace, shard, alias.
type Named<'a> = BTreeSet<(&'a str, &'a str, String)>;

pub(super) fn check(facts: &Facts<'_>, report: &mut Report) {
    let mut named = Vec::new();
    let mut undecodable = BTreeSet::new();
    for (number, place) in facts.places.iter().enumerate() {
        let mut here = Named::new();
        let Ok(dir) = TopoPath::parse(KEYSPACES) else { return };
        for (path, record) in place.records.below(&dir) {
            let Some(Key::ShardReplication(keyspace, shard)) = Key::in_cell(path) else { continue };
            if !replication(facts, (number, place), (path, record), (keyspace, shard), &mut here, report) {
                undecodable.insert((number, keyspace, shard));
            }
        }
        named.push(here);
    }
    for ((number, directory), tablet) in &facts.tablets {
        let (Some(place), Some(tablet), Some(named)) = (facts.places.get(*number), tablet, named.get(*number)) else {
            continue;
        };
        let Ok(path) = Key::Tablet(directory).path() else { continue };
        let is_placed = is_placed((place, directory, &path), tablet, report);
        blanked(place, &path, tablet, report);
        let has_shard = has_shard(facts, place, (&path, tablet), report);
        let unknown = undecodable.contains(&(*number, tablet.keyspace.as_str(), tablet.shard.as_str()));
        if is_placed && has_shard && !unknown {
            is_named(place, tablet, named, report);
        }
    }
}

fn is_placed((place, directory, path): (&Place<'_>, &str, &TopoPath), tablet: &Tablet, report: &mut Report) -> bool {
    let is_placed = place.names.contains(&tablet.cell) && tablet.alias() == directory;
    if !is_placed {
        report.add(Kind::TabletMisplaced, (&place.cell, path), || {
            let fault =
                format!("the record says that it is tablet {}, which Vitess looks for somewhere else", tablet.alias());
            (fault, remove_dir_of(&place.cell, path))
        });
    }
    is_placed
}

fn blanked(place: &Place<'_>, path: &TopoPath, tablet: &Tablet, report: &mut Report) {
    if !tablet.is_blank {
        return;
    }
    report.add(Kind::TabletBlanked, (&place.cell, path), || {
        let why = if tablet.was_shut_down { "it was shut down" } else { "it has no hostname and no ports" };
        let fault = format!("the tablet has no address, so nobody can connect to it: {why}");
        let replication = Key::ShardReplication(&tablet.keyspace, &tablet.shard).path();
        let rest = replication.map_or_else(
            |_| String::new(),
            |replication| format!(" && vim {}", file(&place.cell, &replication, ".txt")),
        );
        let advice = "if it does not come back: remove it there, too";
        (fault, format!("{}{rest}  # {advice}", remove_dir_of(&place.cell, path)))
    });
}

fn has_shard(facts: &Facts<'_>, place: &Place<'_>, (path, tablet): (&TopoPath, &Tablet), report: &mut Report) -> bool {
    let Tablet { keyspace, shard, .. } = tablet;
    if facts.has_shard(keyspace, shard) {
        return true;
    }
    report.add(Kind::TabletWithoutShard, (&place.cell, path), || {
        let missing = if facts.is_gone(keyspace) { "keyspace" } else { "shard" };
        let fault = format!("the tablet belongs to {keyspace}/{shard}, but this {missing} does not exist");
        (fault, remove_dir_of(&place.cell, path))
    });
    false
}

fn is_named(place: &Place<'_>, tablet: &Tablet, named: &Named<'_>, report: &mut Report) {
    let Tablet { keyspace, shard, .. } = tablet;
    if named.contains(&(keyspace.as_str(), shard.as_str(), tablet.alias())) {
        return;
    }
    let Ok(path) = Key::ShardReplication(keyspace, shard).path() else { return };
    report.add(Kind::TabletNotInReplication, (&place.cell, &path), || {
        let fault = format!("tablet {} belongs to {keyspace}/{shard}, but is not named here", tablet.alias());
        // The name of a cell in a path has no quotes: the whole is one word for the shell and one for protobuf.
        let node = format!("nodes {{ tablet_alias {{ cell: {:?} uid: {} }} }}", tablet.cell, tablet.uid);
        let directory = path.parent().unwrap_or_else(TopoPath::root);
        let (directory, path) = (file(&place.cell, &directory, ""), file(&place.cell, &path, ".txt"));
        (fault, format!("mkdir -p {directory} && echo {} >> {path}", super::shell::word(&node)))
    });
}

/// Checks a ShardReplication, and notes the tablets that it names. Returns whether it can be decoded.
fn replication<'a>(
    facts: &Facts<'_>,
    (number, place): (usize, &Place<'_>),
    (path, record): (&TopoPath, &Record),
    (keyspace, shard): (&'a str, &'a str),
    named: &mut Named<'a>,
    report: &mut Report,
) -> bool {
    let cell = &place.cell;
    if !facts.has_shard(keyspace, shard) {
        // The directory of a keyspace without record is a fault of its own.
        if facts.keyspaces.get(keyspace).is_none_or(|keyspace| keyspace.has_record) {
            report.add(Kind::ReplicationLeftOver, (cell, path), || {
                let missing = if facts.is_gone(keyspace) { "keyspace" } else { "shard" };
                (format!("{keyspace}/{shard}: this {missing} does not exist any more"), remove(cell, path))
            });
        }
        return true;
    }
    let Ok(decoded) = topodata::ShardReplication::decode(&*record.value) else { return false };
    for alias in decoded.nodes.into_iter().filter_map(|node| node.tablet_alias) {
        let fault = match facts.tablets.get(&(number, alias_of(&alias))) {
            _ if !place.names.contains(&alias.cell) => Some(format!("it is not a tablet of cell {cell}")),
            None => Some("it has no Tablet record".to_owned()),
            Some(Some(tablet)) if (&*tablet.keyspace, &*tablet.shard) != (keyspace, shard) => {
                Some(format!("it belongs to {}/{}", tablet.keyspace, tablet.shard))
            }
            Some(_) => None,
        };
        if let Some(fault) = fault {
            report.add(Kind::ReplicationWithoutTablet, (cell, path), || {
                let name = layout::tablet_alias(&alias.cell, alias.uid);
                let fault = format!("the record names tablet {name}, but {fault}");
                (fault, edit(cell, path, &format!("remove the node of {name}")))
            });
        }
        named.insert((keyspace, shard, alias_of(&alias)));
    }
    true
}
