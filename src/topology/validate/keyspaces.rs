//! Keyspaces and the key ranges of their shards.

use super::facts::{Facts, Keyspace};
use super::lost::{self, Lost};
use super::problem::{Kind, Report};
use super::shell::{edit, file};
use crate::name::CellName;
use crate::record::is_vitess_name;
use crate::record::layout::{self, Key};
use crate::topology::ranges::{self, Fault, Ranged};

pub(super) fn check(facts: &Facts<'_>, lost: &Lost<'_>, report: &mut Report) {
    for (name, keyspace) in &facts.keyspaces {
        if !keyspace.has_record {
            without_record((facts, lost), (name, keyspace), report);
            continue;
        }
        let mut names_are_right = true;
        for (shard, record) in &keyspace.shards {
            names_are_right &= shard_name(name, shard, record.as_ref().map(|record| record.key_range.as_ref()), report);
        }
        // What one wrong range or one lost shard does to the whole is not another fault.
        if names_are_right && !keyspace.is_snapshot && !lost.any_shard(name) {
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

fn without_record((facts, lost): (&Facts<'_>, &Lost<'_>), (name, keyspace): (&str, &Keyspace), report: &mut Report) {
    let (global, Ok(dir)) = (CellName::global(), layout::keyspace(name)) else { return };
    report.add(Kind::KeyspaceWithoutRecord, (&global, &dir), || {
        let fault = "the directory has no Keyspace record, but Vitess takes it for a keyspace".to_owned();
        // Only what nobody can use any more is removed: the rest of a keyspace may be all that is left of it.
        let serves = |shard: &Option<crate::record::messages::topodata::Shard>| {
            shard.as_ref().is_none_or(|shard| shard.is_primary_serving || shard.primary_alias.is_some())
        };
        let is_used = keyspace.shards.values().any(serves) || lost.is_used(name);
        let write = lost::write_keyspace(facts, name);
        let remove = format!("rm -r {}", file(&global, &dir, ""));
        let may_be_used = is_used || !facts.sight.unseen().is_empty();
        match (is_vitess_name(name), may_be_used) {
            (true, true) => (fault, write),
            // A record there would be one more key that Vitess does not accept.
            (false, _) if keyspace.shards.is_empty() => (fault, format!("{remove}  # if nobody needs it")),
            (false, _) => (fault, format!("# give it a name that Vitess accepts. If nobody needs it: {remove}")),
            (true, false) => (fault, format!("{remove}  # if the keyspace was deleted; otherwise: {write}")),
        }
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
            let remove = format!("rm -r {}", file(&global, &dir, ""));
            (fault, format!("# create the shard with a right name, move its tablets there, and then: {remove}"))
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
    that_serve(keyspace, true)
}

fn that_serve(keyspace: &Keyspace, do_they: bool) -> Vec<Ranged> {
    let chosen = keyspace.shards.iter().filter_map(|(shard, record)| {
        let record = record.as_ref().filter(|record| record.is_primary_serving == do_they)?;
        Some(Ranged { shard: shard.clone(), range: record.key_range.clone() })
    });
    let mut chosen: Vec<Ranged> = chosen.collect();
    ranges::sort(&mut chosen);
    chosen
}

fn whole_range(name: &str, keyspace: &Keyspace, report: &mut Report) {
    let idle = that_serve(keyspace, false);
    for fault in ranges::faults(&serving(keyspace)) {
        let (Fault::Overlap(..) | Fault::Mixed(..)) = fault else {
            gap(name, keyspace, (&fault, &idle), report);
            continue;
        };
        let (kind, advice) =
            (Kind::ShardOverlap, "is_primary_serving: false in all but one of the shards that have the same keys");
        let shards = fault.shards();
        let Some(first) = shards.first() else { continue };
        let (global, Ok(path)) = (CellName::global(), Key::Shard(name, &first.shard).path()) else { continue };
        report.add(kind, (&global, &path), || {
            let fault = format!("of the shards that serve, {fault}: Vitess refuses to rebuild the keyspace");
            (fault, edit(&global, &path, advice))
        });
    }
}

/// Keys that no shard serves. The record is that of the shard that should, if there is one.
fn gap(name: &str, keyspace: &Keyspace, (fault, idle): (&Fault<'_>, &[Ranged]), report: &mut Report) {
    let having = fault.having(idle);
    let has_primary = |shard: &Ranged| {
        let record = keyspace.shards.get(&shard.shard).and_then(Option::as_ref);
        record.is_some_and(|record| record.primary_alias.is_some())
    };
    // One shard that has exactly these keys or a primary is more likely than a part of a resharding.
    let missing = fault.missing();
    let is_whole = |shard: &Ranged| ranges::compare(shard.range(), missing.as_ref()).is_eq();
    let likely = having.iter().max_by_key(|shard| (has_primary(shard), is_whole(shard)));
    let first = likely.copied().or_else(|| fault.shards().first().copied());
    let Some(first) = first else { return };
    let (global, Ok(path)) = (CellName::global(), Key::Shard(name, &first.shard).path()) else { return };
    report.add(Kind::ShardGap, (&global, &path), || {
        let others: Vec<&str> = having.iter().map(|shard| shard.shard.as_str()).collect();
        let (has, advice) = match others.as_slice() {
            [] => (", and no other shard has them".to_owned(), "create the shard that has the missing keys".to_owned()),
            [one] => (format!(": {one} has them, but does not serve"), "is_primary_serving: true".to_owned()),
            several => {
                let several = several.join(", ");
                let advice = "is_primary_serving: true here, or in other shards that have all of the missing keys";
                (format!(": {several} have such keys, but do not serve"), advice.to_owned())
            }
        };
        let fault = format!("{fault}{has}. Vitess refuses to rebuild the keyspace");
        let mend = match others.is_empty() {
            true => format!("# {advice}"),
            false => edit(&global, &path, &advice),
        };
        (fault, mend)
    });
}
