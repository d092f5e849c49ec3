//! Keyspaces and the key ranges of their shards.

use super::facts::{Facts, Keyspace};
use super::problem::{Kind, Report};
use super::shell::{edit, file};
use crate::name::CellName;
use crate::record::layout::{self, Key};
use crate::topology::ranges::{self, Fault, Ranged};

pub(super) fn check(facts: &Facts<'_>, report: &mut Report) {
    for (name, keyspace) in &facts.keyspaces {
        if !keyspace.has_record {
            without_record(name, report);
            continue;
        }
        let mut names_are_right = true;
        for (shard, record) in &keyspace.shards {
            names_are_right &= shard_name(name, shard, record.as_ref().map(|record| record.key_range.as_ref()), report);
        }
        // What one wrong range does to the whole is not another fault.
        if names_are_right && !keyspace.is_snapshot {
            whole_range(name, keyspace, report);
        }
    }
}

/// Whether nothing is wrong with the shards themselves, so that something can be said about what is made of them.
pub(super) fn has_sound_shards(keyspace: &Keyspace) -> bool {
    let sound = |(name, record): (&String, &Option<_>)| {
        record.as_ref().is_some_and(|record: &crate::record::messages::topodata::Shard| {
            ranges::fits_name(name, record.key_range.as_ref())
        })
    };
    keyspace.has_record
        && keyspace.shards.iter().all(sound)
        && (keyspace.is_snapshot || ranges::faults(&serving(keyspace)).is_empty())
}

fn without_record(name: &str, report: &mut Report) {
    let (global, Ok(dir)) = (CellName::global(), layout::keyspace(name)) else { return };
    report.add(Kind::KeyspaceWithoutRecord, (&global, &dir), || {
        let fault = "the directory has no Keyspace record, but Vitess takes it for a keyspace".to_owned();
        let dir = file(&global, &dir, "");
        (fault, format!("rm -r {dir}  # if the keyspace was deleted; otherwise write its record: touch {dir}/Keyspace"))
    });
}

fn shard_name(
    keyspace: &str,
    shard: &str,
    range: Option<Option<&crate::record::messages::topodata::KeyRange>>,
    report: &mut Report,
) -> bool {
    let fits = range.is_some_and(|range| ranges::fits_name(shard, range));
    let (Some(range), false) = (range, fits) else { return fits };
    let (global, Ok(path)) = (CellName::global(), Key::Shard(keyspace, shard).path()) else { return false };
    report.add(Kind::ShardName, (&global, &path), || match ranges::of_name(shard) {
        Err(why) => {
            let dir = path.parent().unwrap_or_else(|| path.clone());
            let fault = format!("Vitess refuses the name of the shard: {why}");
            (fault, format!("rm -r {}  # and create it with a right name", file(&global, &dir, "")))
        }
        Ok(None) => {
            let fault = format!("the name of the shard means no key range, but key_range is {}", ranges::name(range));
            (fault, edit(&global, &path, "remove key_range"))
        }
        Ok(Some(_)) => {
            let said = range.map_or_else(|| "missing".to_owned(), |range| ranges::name(Some(range)));
            let fault = format!("the name of the shard means the key range {shard}, but key_range is {said}");
            (fault, edit(&global, &path, &format!("key_range as in the name: {shard}")))
        }
    });
    false
}

/// The shards that serve, in the order of their ranges.
fn serving(keyspace: &Keyspace) -> Vec<Ranged> {
    let serving = keyspace.shards.iter().filter_map(|(shard, record)| {
        let record = record.as_ref().filter(|record| record.is_primary_serving)?;
        Some(Ranged { shard: shard.clone(), range: record.key_range.clone() })
    });
    let mut serving: Vec<Ranged> = serving.collect();
    ranges::sort(&mut serving);
    serving
}

fn whole_range(name: &str, keyspace: &Keyspace, report: &mut Report) {
    for fault in ranges::faults(&serving(keyspace)) {
        let (kind, advice) = match fault {
            Fault::Start(_) | Fault::End(_) | Fault::Gap(..) => {
                (Kind::ShardGap, "is_primary_serving: true in the shards that have the missing keys")
            }
            Fault::Overlap(..) | Fault::Mixed(..) => {
                (Kind::ShardOverlap, "is_primary_serving: false in all but one of the shards that have the same keys")
            }
        };
        let shards = fault.shards();
        let Some(first) = shards.first() else { continue };
        let (global, Ok(path)) = (CellName::global(), Key::Shard(name, &first.shard).path()) else { continue };
        report.add(kind, (&global, &path), || {
            let fault = format!("of the shards that serve, {fault}: Vitess refuses to rebuild the keyspace");
            (fault, edit(&global, &path, advice))
        });
    }
}
