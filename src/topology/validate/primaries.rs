//! The primary of each shard: what the Shard record says, and what the tablets say.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::facts::{Facts, Tablet, alias_of};
use super::problem::{Kind, Report};
use super::shell::{edit, file};
use crate::name::{CellName, TopoPath};
use crate::record::layout::Key;
use crate::record::messages::topodata::{Shard, TabletAlias, TabletType};

/// The tablets that say that they are the primary of a shard, with their places. The newest term is first.
type Claimants<'a> = Vec<(usize, &'a Tablet)>;

pub(super) fn check(facts: &Facts<'_>, report: &mut Report) {
    let mut claimants: BTreeMap<(&str, &str), Claimants<'_>> = BTreeMap::new();
    for ((place, _), tablet) in &facts.tablets {
        let Some(tablet) = tablet.as_ref().filter(|tablet| tablet.kind == TabletType::Primary) else { continue };
        claimants.entry((&tablet.keyspace, &tablet.shard)).or_default().push((*place, tablet));
    }
    for (keyspace, records) in &facts.keyspaces {
        for (shard, record) in &records.shards {
            let (Some(record), Ok(path)) = (record, Key::Shard(keyspace, shard).path()) else { continue };
            let mut claimants = claimants.remove(&(keyspace.as_str(), shard.as_str())).unwrap_or_default();
            claimants.sort_by_key(|(_, tablet)| Reverse(tablet.term));
            let shard = OneShard { facts, keyspace, shard, path, claimants };
            shard.check(record, report);
        }
    }
}

struct OneShard<'a> {
    facts: &'a Facts<'a>,
    keyspace: &'a str,
    shard: &'a str,
    path: TopoPath,
    claimants: Claimants<'a>,
}

/// What is known about the tablet that a Shard record names.
enum Named<'a> {
    /// Its record says that it is the primary.
    Sound,
    /// Its cell does not answer, or its record cannot be decoded.
    Unknown,
    Missing(&'static str),
    Elsewhere(&'a Tablet),
    OtherType(&'a Tablet),
}

impl OneShard<'_> {
    fn check(&self, record: &Shard, report: &mut Report) {
        let alias = record.primary_alias.as_ref().filter(|alias| !alias.cell.is_empty() || alias.uid != 0);
        let Some(alias) = alias else {
            if let Some((_, newest)) = self.claimants.first() {
                let fault = format!("the record names no primary, but tablet {} says that it is", newest.alias());
                self.add(Kind::UnnamedPrimary, report, fault);
            }
            self.extra_primaries(1, report);
            return;
        };
        let name = alias_of(alias);
        match self.named(alias) {
            Named::Sound => self.other_primaries(&name, report),
            Named::Unknown => {
                let others = self.claimants.iter().filter(|(_, tablet)| tablet.alias() != name);
                for (place, tablet) in others {
                    let fault = format!(
                        "the tablet says that it is the primary of {}, but the Shard record names {name}",
                        self.name()
                    );
                    self.add_to_tablet(Kind::UnnamedPrimary, (*place, tablet), report, fault);
                }
            }
            Named::Missing(what) => {
                self.add(Kind::DanglingPrimary, report, format!("the primary is {name}, but {what}{}", self.instead()));
                self.extra_primaries(1, report);
            }
            Named::Elsewhere(tablet) => {
                let belongs = format!("{}/{}", tablet.keyspace, tablet.shard);
                let fault = format!("the primary is {name}, but this tablet belongs to {belongs}{}", self.instead());
                self.add(Kind::PrimaryElsewhere, report, fault);
                self.extra_primaries(1, report);
            }
            Named::OtherType(tablet) => {
                let kind = tablet.kind.as_str_name();
                let fault = format!("the primary is {name}, but this tablet says that it is {kind}{}", self.instead());
                self.add(Kind::PrimaryNotPrimary, report, fault);
                self.extra_primaries(1, report);
            }
        }
    }

    fn named(&self, alias: &TabletAlias) -> Named<'_> {
        let Some(place) = self.facts.place(&alias.cell) else {
            return match self.facts.cells.contains(&alias.cell) {
                true => Named::Unknown,
                false => Named::Missing("its cell has no CellInfo record"),
            };
        };
        match self.facts.tablets.get(&(place, alias_of(alias))) {
            None => Named::Missing("it has no Tablet record"),
            Some(None) => Named::Unknown,
            Some(Some(tablet)) if (&*tablet.keyspace, &*tablet.shard) != (self.keyspace, self.shard) => {
                Named::Elsewhere(tablet)
            }
            Some(Some(tablet)) if tablet.kind != TabletType::Primary => Named::OtherType(tablet),
            Some(Some(_)) => Named::Sound,
        }
    }

    fn other_primaries(&self, name: &str, report: &mut Report) {
        for (place, tablet) in self.claimants.iter().filter(|(_, tablet)| tablet.alias() != name) {
            let named = self.claimants.iter().find(|(_, tablet)| tablet.alias() == name);
            let is_newer = named.is_some_and(|(_, named)| named.term < tablet.term);
            let newer = if is_newer { ", and its term is newer" } else { "" };
            let fault = format!(
                "two tablets say that they are the primary of {}: the Shard record names {name}, not this one{newer}",
                self.name()
            );
            self.add_to_tablet(Kind::TwoPrimaries, (*place, tablet), report, fault);
        }
    }

    /// If the Shard record names no primary that is one: the tablet with the newest term counts, the others are extra.
    fn extra_primaries(&self, first: usize, report: &mut Report) {
        let Some((_, newest)) = self.claimants.first() else { return };
        for (place, tablet) in self.claimants.iter().skip(first) {
            let fault = format!(
                "two tablets say that they are the primary of {}: the term of {} is newer",
                self.name(),
                newest.alias()
            );
            self.add_to_tablet(Kind::TwoPrimaries, (*place, tablet), report, fault);
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.keyspace, self.shard)
    }

    fn instead(&self) -> String {
        let newest = self.claimants.first();
        newest
            .map_or_else(String::new, |(_, tablet)| format!(". Tablet {} says that it is the primary", tablet.alias()))
    }

    fn add(&self, kind: Kind, report: &mut Report, fault: String) {
        let global = CellName::global();
        report.add(kind, (&global, &self.path), || {
            let advice = match self.claimants.first() {
                Some((_, tablet)) => format!("primary_alias {{ cell: {:?} uid: {} }}", tablet.cell, tablet.uid),
                None if kind == Kind::DanglingPrimary => {
                    "name the tablet that is the primary, unless its record is lost: its vttablet writes it again"
                        .to_owned()
                }
                None => "name the tablet that is the primary, or remove primary_alias".to_owned(),
            };
            (fault, edit(&global, &self.path, &advice))
        });
    }

    fn add_to_tablet(&self, kind: Kind, (place, tablet): (usize, &Tablet), report: &mut Report, fault: String) {
        let path = Key::Tablet(&tablet.directory).path();
        let (Some(place), Ok(path)) = (self.facts.places.get(place), path) else { return };
        report.add(kind, (&place.cell, &path), || {
            let file = file(&place.cell, &path, ".txt");
            (fault, format!("sed -i 's/^type: PRIMARY/type: REPLICA/' {file}  # if the Shard record is right"))
        });
    }
}
