//! Routing and mirror rules: whether that exists to which they lead.

use super::facts::{Facts, VSchema, read};
use super::lost::Lost;
use super::problem::{Kind, Report};
use super::shell::edit;
use crate::name::CellName;
use crate::plain::short;
use crate::record::layout::Key;
use crate::record::messages::vschema::{KeyspaceRoutingRules, MirrorRules, RoutingRules, ShardRoutingRules};

/// The table that is in every keyspace.
const DUAL: &str = "dual";
/// Longest name of a table that is shown.
const LONGEST: usize = 200;

/// What is known, and what is lost.
type Sources<'a> = (&'a Facts<'a>, &'a Lost<'a>);

pub(super) fn check(facts: &Facts<'_>, lost: &Lost<'_>, report: &mut Report) {
    let rules: RoutingRules = read(facts.global, Key::RoutingRules).unwrap_or_default();
    for rule in rules.rules {
        for table in rule.to_tables {
            leads_to_table((facts, lost), (Key::RoutingRules, &rule.from_table, &table), report);
        }
    }
    let rules: MirrorRules = read(facts.global, Key::MirrorRules).unwrap_or_default();
    for rule in rules.rules {
        leads_to_table((facts, lost), (Key::MirrorRules, &rule.from_table, &rule.to_table), report);
    }
    let rules: KeyspaceRoutingRules = read(facts.global, Key::KeyspaceRoutingRules).unwrap_or_default();
    for rule in rules.rules {
        leads_to_keyspace((facts, lost), (Key::KeyspaceRoutingRules, &rule.from_keyspace, &rule.to_keyspace), report);
    }
    let rules: ShardRoutingRules = read(facts.global, Key::ShardRoutingRules).unwrap_or_default();
    for rule in rules.rules {
        let from = format!("{}/{}", rule.from_keyspace, rule.shard);
        if leads_to_keyspace((facts, lost), (Key::ShardRoutingRules, &from, &rule.to_keyspace), report)
            && !facts.has_shard(&rule.to_keyspace, &rule.shard)
            && !lost.shard(&rule.to_keyspace, &rule.shard)
        {
            let to = format!("shard {}/{}", rule.to_keyspace, rule.shard);
            add(
                Kind::RuleToMissingShard,
                (Key::ShardRoutingRules, &from),
                &format!("{to}, which does not exist"),
                report,
            );
        }
    }
}

fn add(kind: Kind, (key, from): (Key<'_>, &str), leads_to: &str, report: &mut Report) {
    let (global, Ok(path)) = (CellName::global(), key.path()) else { return };
    report.add(kind, (&global, &path), || {
        let from = short(from, LONGEST);
        let fault = format!("the rule for {from} leads to {leads_to}");
        (fault, edit(&global, &path, &format!("remove or correct the rule for {from}")))
    });
}

fn leads_to_keyspace(
    (facts, lost): Sources<'_>,
    (key, from, keyspace): (Key<'_>, &str, &str),
    report: &mut Report,
) -> bool {
    // What is lost is a fault of its own.
    let exists = !facts.is_gone(keyspace) || lost.keyspace(keyspace);
    if !exists {
        let leads_to = format!("keyspace {}, which does not exist", short(keyspace, LONGEST));
        add(Kind::RuleToMissingKeyspace, (key, from), &leads_to, report);
    }
    exists
}

fn leads_to_table((facts, lost): Sources<'_>, (key, from, table): (Key<'_>, &str, &str), report: &mut Report) {
    let Some((keyspace, table)) = qualified(table) else {
        let leads_to = format!("{}, which names no keyspace", short(table, LONGEST));
        return add(Kind::RuleToMissingKeyspace, (key, from), &leads_to, report);
    };
    if !leads_to_keyspace((facts, lost), (key, from, keyspace), report) {
        return;
    }
    // An unsharded keyspace needs no VSchema for its tables.
    let Some(VSchema::Sharded(tables)) = facts.keyspaces.get(keyspace).map(|keyspace| &keyspace.vschema) else {
        return;
    };
    if table != DUAL && !tables.contains(table) {
        let table = short(table, LONGEST);
        let leads_to = format!("{keyspace}.{table}, but the VSchema of this sharded keyspace has no such table");
        add(Kind::RuleToMissingTable, (key, from), &leads_to, report);
    }
}

/// The keyspace and the table in a name. Vitess accepts both with or without backquotes.
fn qualified(name: &str) -> Option<(&str, &str)> {
    let (keyspace, table) = match name.strip_prefix('`') {
        Some(rest) => rest.split_once('`').and_then(|(keyspace, rest)| Some((keyspace, rest.strip_prefix('.')?)))?,
        None => name.split_once('.')?,
    };
    let bare = table.strip_prefix('`').and_then(|table| table.strip_suffix('`')).unwrap_or(table);
    (!keyspace.is_empty() && !bare.is_empty()).then_some((keyspace, bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_are_read_as_vitess_reads_them() {
        for (name, expected) in [
            ("ks.t", Some(("ks", "t"))),
            ("`ks`.`t`", Some(("ks", "t"))),
            ("`k.s`.t", Some(("k.s", "t"))),
            ("ks.`a.b`", Some(("ks", "a.b"))),
            ("t", None),
            ("ks.", None),
            (".t", None),
            ("`ks", None),
            ("", None),
        ] {
            assert_eq!(qualified(name), expected, "{name}");
        }
    }
}
