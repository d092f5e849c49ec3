//! Tablets, the shards that they belong to, and the ShardReplication records that name them.

use std::collections::BTreeSet;

use prost::Message;

use super::facts::{Facts, Place, Tablet, alias_of, belongs_somewhere};
use super::lost::Lost;
use super::problem::{Kind, Report};
use super::shell::{edit, file, remove, remove_dir_of};
use crate::mirror::Record;
use crate::name::TopoPath;
use crate::record::layout::{self, KEYSPACES, Key};
use crate::record::messages::topodata;

/// Tablets that a ShardReplication names: keyspace, shard, alias.
type Named<'a> = BTreeSet<(&'a str, &'a str, String)>;

pub(super) fn check(facts: &Facts<'_>, lost: &Lost<'_>, report: &mut Report) {
    let mut named = Vec::new();
    let mut undecodable = BTreeSet::new();
    for (number, place) in facts.places.iter().enumerate() {
        let mut here = Named::new();
        let Ok(dir) = TopoPath::parse(KEYSPACES) else { return };
        for (path, record) in place.records.below(&dir) {
            let Some(Key::ShardReplication(keyspace, shard)) = Key::in_cell(path) else { continue };
            if !replication((facts, lost), (number, place), (path, record), (keyspace, shard), &mut here, report) {
                undecodable.insert((number, keyspace, shard));
            }
        }
        named.push(here);
    }
    for ((number, directory), tablet) in &facts.tablets {
        let (Some(place), Some(named)) = (facts.places.get(*number), named.get(*number)) else { continue };
        let Ok(path) = Key::Tablet(directory).path() else { continue };
        let Some(tablet) = tablet else {
            empty(place, directory, &path, report);
            continue;
        };
        let is_placed = is_placed((place, directory, &path), tablet, report);
        blanked(place, &path, tablet, report);
        let has_shard = has_shard((facts, lost), place, (&path, tablet), report);
        let unknown = undecodable.contains(&(*number, tablet.keyspace.as_str(), tablet.shard.as_str()));
        if is_placed && has_shard && !unknown {
            is_named(place, tablet, named, report);
        }
    }
}

/// A Tablet record that says nothing. What follows from that is not reported.
fn empty(place: &Place<'_>, directory: &str, path: &TopoPath, report: &mut Report) {
    let Some(record) = place.records.records.get(path) else { return };
    if !topodata::Tablet::decode(&*record.value).is_ok_and(|tablet| !belongs_somewhere(&tablet)) {
        return;
    }
    report.add(Kind::TabletEmpty, (&place.cell, path), || {
        let fault = match record.value.is_empty() {
            true => "the record is empty",
            false => "the record does not say to which keyspace and shard the tablet belongs",
        };
        (fault.to_owned(), restart(directory))
    });
}

/// A vttablet writes its Tablet record when it starts. No command here can do that.
pub(super) fn restart(alias: &str) -> String {
    format!("# restart the vttablet of {}: it writes its record again", crate::plain::shown(alias))
}

fn is_placed((place, directory, path): (&Place<'_>, &str, &TopoPath), tablet: &Tablet, report: &mut Report) -> bool {
    let is_placed = place.names.contains(&tablet.cell) && tablet.alias() == directory;
    if !is_placed {
        report.add(Kind::TabletMisplaced, (&place.cell, path), || {
            let fault =
                format!("the record says that it is tablet {}, which Vitess looks for somewhere else", tablet.alias());
            let advice = match directory.rsplit_once('-') {
                Some((cell, uid)) if uid.parse::<u32>().is_ok() => {
                    let uid = uid.parse().unwrap_or(0_u32);
                    format!("alias {{ cell: {cell:?} uid: {uid} }}, as its directory says")
                }
                _ => "the alias as in the name of its directory".to_owned(),
            };
            let copy = format!("; if it is a copy that nobody needs: {}", remove_dir_of(&place.cell, path));
            (fault, format!("{}{copy}", edit(&place.cell, path, &advice)))
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
        let remove = format!("{}{rest}", remove_dir_of(&place.cell, path));
        (fault, format!("{}. If it does not come back: {remove}", restart(&tablet.directory)))
    });
}

fn has_shard(
    (facts, lost): (&Facts<'_>, &Lost<'_>),
    place: &Place<'_>,
    (path, tablet): (&TopoPath, &Tablet),
    report: &mut Report,
) -> bool {
    let Tablet { keyspace, shard, .. } = tablet;
    if facts.has_shard(keyspace, shard) {
        return true;
    }
    // A lost shard is a fault of its own, and so is a keyspace without record.
    if lost.shard(keyspace, shard) || facts.keyspaces.get(keyspace).is_some_and(|keyspace| !keyspace.has_record) {
        return false;
    }
    report.add(Kind::TabletWithoutShard, (&place.cell, path), || {
        let missing = if facts.is_gone(keyspace) { "keyspace" } else { "shard" };
        let fault = format!("the tablet belongs to {keyspace}/{shard}, but this {missing} does not exist");
        let remove = remove_dir_of(&place.cell, path);
        (
            fault,
            format!("{}; if it is of no use any more: {remove}", edit(&place.cell, path, "correct keyspace and shard")),
        )
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
    (facts, lost): (&Facts<'_>, &Lost<'_>),
    (number, place): (usize, &Place<'_>),
    (path, record): (&TopoPath, &Record),
    (keyspace, shard): (&'a str, &'a str),
    named: &mut Named<'a>,
    report: &mut Report,
) -> bool {
    let cell = &place.cell;
    if !facts.has_shard(keyspace, shard) {
        // The directory of a keyspace without record is a fault of its own, and so is a lost shard.
        if !lost.shard(keyspace, shard) && facts.keyspaces.get(keyspace).is_none_or(|keyspace| keyspace.has_record) {
            report.add(Kind::ReplicationLeftOver, (cell, path), || {
                let missing = if facts.is_gone(keyspace) { "keyspace" } else { "shard" };
                let fault = format!("{keyspace}/{shard}: this {missing} does not exist any more");
                (fault, format!("{}  # if it was deleted", remove(cell, path)))
            });
        }
        return true;
    }
    let Ok(decoded) = topodata::ShardReplication::decode(&*record.value) else { return false };
    for alias in decoded.nodes.into_iter().filter_map(|node| node.tablet_alias) {
        let tablet = facts.tablets.get(&(number, alias_of(&alias)));
        let is_missing = tablet.is_none() && place.names.contains(&alias.cell);
        let fault = match tablet {
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
                let advice = match is_missing {
                    true => {
                        format!("remove the node of {name}, unless its record is lost: its vttablet writes it again")
                    }
                    false => format!("remove the node of {name}"),
                };
                let fault = format!("the record names tablet {name}, but {fault}");
                (fault, edit(cell, path, &advice))
            });
        }
        named.insert((keyspace, shard, alias_of(&alias)));
    }
    true
}
