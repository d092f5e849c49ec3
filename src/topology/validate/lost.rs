//! Shards and keyspaces whose records are lost, although tablets and SrvKeyspace records still speak of them. They are
//! written again from what is left. Must never advise to remove what is left: it may be the only trace.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::facts::{Facts, Tablet, alias_of};
use super::problem::{Kind, Report};
use super::shell::{file, write_text};
use crate::name::{CellName, TopoPath};
use crate::record::is_vitess_name;
use crate::record::layout::{self, KEYSPACES, Key};
use crate::record::messages::topodata::{KeyRange, ShardReplication, SrvKeyspace, TabletType};
use crate::topology::ranges;

/// What the cells say about shards, and which shards are lost.
pub(super) struct Lost<'a> {
    /// The tablets of each shard, by keyspace and shard.
    tablets: BTreeMap<(&'a str, &'a str), Vec<&'a Tablet>>,
    /// The shards in SrvKeyspace records.
    served: BTreeMap<(String, String), Served>,
    /// The keyspaces that have a SrvKeyspace.
    has_graph: BTreeSet<&'a str>,
    /// Shards without Shard record.
    shards: BTreeSet<(String, String)>,
    /// Keyspaces of which nothing is stored in the global topology.
    keyspaces: BTreeSet<String>,
}

/// A shard in SrvKeyspace records.
#[derive(Default)]
struct Served {
    range: Option<KeyRange>,
    /// The cells whose primaries it serves.
    cells: BTreeSet<String>,
}

impl<'a> Lost<'a> {
    pub fn of(facts: &'a Facts<'_>) -> Self {
        let mut lost = Self {
            tablets: BTreeMap::new(),
            served: BTreeMap::new(),
            has_graph: BTreeSet::new(),
            shards: BTreeSet::new(),
            keyspaces: BTreeSet::new(),
        };
        for tablet in facts.tablets.values().flatten() {
            lost.tablets.entry((&tablet.keyspace, &tablet.shard)).or_default().push(tablet);
        }
        let replicated = lost.read_cells(facts);
        let named = lost.tablets.keys().map(|(keyspace, shard)| ((*keyspace).to_owned(), (*shard).to_owned()));
        let all: BTreeSet<(String, String)> = named.chain(lost.served.keys().cloned()).collect();
        for (keyspace, shard) in all {
            if facts.has_shard(&keyspace, &shard) || !is_vitess_name(&keyspace) || ranges::of_name(&shard).is_err() {
                continue;
            }
            if lost.has_traces(facts, (&keyspace, &shard), &replicated) {
                if facts.is_gone(&keyspace) {
                    lost.keyspaces.insert(keyspace.clone());
                }
                lost.shards.insert((keyspace, shard));
            }
        }
        lost
    }

    /// Reads what is served, and returns the shards whose ShardReplication names a tablet that exists.
    fn read_cells(&mut self, facts: &'a Facts<'_>) -> BTreeSet<(&'a str, &'a str)> {
        let mut replicated = BTreeSet::new();
        let Ok(dir) = TopoPath::parse(KEYSPACES) else { return replicated };
        for (number, place) in facts.places.iter().enumerate() {
            for (path, record) in place.records.below(&dir) {
                match Key::in_cell(path) {
                    Some(Key::SrvKeyspace(keyspace)) => {
                        self.has_graph.insert(keyspace);
                        let graph = SrvKeyspace::decode(&*record.value).unwrap_or_default();
                        self.read_graph(keyspace, graph, place.cell.as_str());
                    }
                    Some(Key::ShardReplication(keyspace, shard)) if !facts.has_shard(keyspace, shard) => {
                        let nodes = ShardReplication::decode(&*record.value).unwrap_or_default().nodes;
                        let exists = |alias| facts.tablets.contains_key(&(number, alias_of(&alias)));
                        if nodes.into_iter().filter_map(|node| node.tablet_alias).any(exists) {
                            replicated.insert((keyspace, shard));
                        }
                    }
                    _ => {}
                }
            }
        }
        replicated
    }

    fn read_graph(&mut self, keyspace: &str, graph: SrvKeyspace, cell: &str) {
        let primaries = graph.partitions.into_iter().filter(|partition| partition.served_type() == TabletType::Primary);
        for shard in primaries.flat_map(|partition| partition.shard_references) {
            let served = self.served.entry((keyspace.to_owned(), shard.name)).or_default();
            served.range = shard.key_range;
            served.cells.insert(cell.to_owned());
        }
    }

    /// Whether enough speaks of a shard that it must have existed. A lone tablet may have been told a wrong name, and a
    /// shard whose keys others serve by now may have been removed.
    fn has_traces(
        &self,
        facts: &Facts<'_>,
        (keyspace, shard): (&str, &str),
        replicated: &BTreeSet<(&str, &str)>,
    ) -> bool {
        let tablets = self.tablets.get(&(keyspace, shard)).map_or(&[][..], Vec::as_slice);
        let served = self.served.get(&(keyspace.to_owned(), shard.to_owned()));
        if !tablets.is_empty() {
            let has_primary = tablets.iter().any(|tablet| tablet.kind == TabletType::Primary);
            return has_primary || served.is_some() || replicated.contains(&(keyspace, shard));
        }
        served.is_some_and(|served| {
            facts.keyspaces.contains_key(keyspace) && !is_served(facts, keyspace, served.range.as_ref())
        })
    }

    /// Whether nothing is stored of a keyspace that exists.
    pub fn keyspace(&self, keyspace: &str) -> bool {
        self.keyspaces.contains(keyspace)
    }

    /// Whether the record of a shard is lost.
    pub fn shard(&self, keyspace: &str, shard: &str) -> bool {
        self.shards.contains(&(keyspace.to_owned(), shard.to_owned()))
    }

    /// Whether a keyspace has lost one of its shards.
    pub fn any_shard(&self, keyspace: &str) -> bool {
        let first = self.shards.range((keyspace.to_owned(), String::new())..).next();
        first.is_some_and(|(of, _)| of == keyspace)
    }

    /// Whether the cells know of a keyspace: it has tablets, or a SrvKeyspace.
    pub fn is_used(&self, keyspace: &str) -> bool {
        let tablets = self.tablets.range((keyspace, "")..).next();
        self.has_graph.contains(keyspace) || tablets.is_some_and(|((of, _), _)| *of == keyspace)
    }

    /// The directories in a cell of the tablets of a shard that are there.
    pub fn tablets_in(&self, (keyspace, shard): (&str, &str), names: &BTreeSet<String>) -> Vec<&Tablet> {
        let tablets = self.tablets.get(&(keyspace, shard)).into_iter().flatten();
        tablets.filter(|tablet| names.contains(&tablet.cell)).copied().collect()
    }

    /// The Shard record of a shard as text, from its name and from what the cells say.
    pub fn record(&self, facts: &Facts<'_>, keyspace: &str, shard: &str) -> String {
        let served = self.served.get(&(keyspace.to_owned(), shard.to_owned()));
        let named = ranges::of_name(shard).ok().flatten();
        let range = named.or_else(|| served.and_then(|served| served.range.clone()));
        let mut fields = Vec::new();
        if let Some((_, primary)) = self.primary(keyspace, shard) {
            fields.push(format!("primary_alias {{ cell: {:?} uid: {} }}", primary.cell, primary.uid));
            let (seconds, nanoseconds) = primary.term;
            if primary.term != (0, 0) {
                fields.push(format!("primary_term_start_time {{ seconds: {seconds} nanoseconds: {nanoseconds} }}"));
            }
        }
        if let Some(range) = &range {
            fields.push(format!("key_range {{ start: {} end: {} }}", quoted(&range.start), quoted(&range.end)));
        }
        // As in Vitess, a shard serves if no other serves its keys. Where the cells know the keyspace, they say it.
        let serves = match self.has_graph.contains(keyspace) {
            true => served.is_some(),
            false => !is_served(facts, keyspace, range.as_ref()),
        };
        if serves {
            fields.push("is_primary_serving: true".to_owned());
        }
        fields.join(" ")
    }

    /// The tablet with the newest term that says that it is the primary, and its alias.
    fn primary(&self, keyspace: &str, shard: &str) -> Option<(String, &Tablet)> {
        let tablets = self.tablets.get(&(keyspace, shard))?.iter();
        let primaries = tablets.filter(|tablet| tablet.kind == TabletType::Primary);
        primaries.max_by_key(|tablet| tablet.term).map(|tablet| (tablet.alias(), *tablet))
    }

    /// What speaks of a shard, in words.
    fn traces(&self, keyspace: &str, shard: &str) -> String {
        let mut words = Vec::new();
        match self.tablets.get(&(keyspace, shard)).map_or(0, Vec::len) {
            0 => {}
            1 => words.push("a tablet belongs to it".to_owned()),
            count => words.push(format!("{count} tablets belong to it")),
        }
        if let Some((alias, _)) = self.primary(keyspace, shard) {
            words.push(format!("{alias} says that it is its primary"));
        }
        if let Some(served) = self.served.get(&(keyspace.to_owned(), shard.to_owned())) {
            let cells: Vec<&str> = served.cells.iter().map(String::as_str).take(CELLS).collect();
            words.push(format!("SrvKeyspace has it in {}", cells.join(", ")));
        }
        words.join(", ")
    }
}

/// Cells that are named; more would say nothing more.
const CELLS: usize = 5;

/// Whether a shard that serves has some keys. One whose record cannot be decoded may have any.
fn is_served(facts: &Facts<'_>, keyspace: &str, range: Option<&KeyRange>) -> bool {
    let shards = facts.keyspaces.get(keyspace).into_iter().flat_map(|keyspace| keyspace.shards.values());
    shards.into_iter().any(|shard| match shard {
        Some(shard) => shard.is_primary_serving && ranges::intersect(shard.key_range.as_ref(), range),
        None => true,
    })
}

/// Bytes as the text form writes them.
fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.iter().map(|byte| format!("\\{byte:03o}")).collect::<String>())
}

/// What may be missing in advice, as cells are not known.
fn unseen(facts: &Facts<'_>) -> String {
    let unseen = facts.sight.unseen();
    match unseen.is_empty() {
        true => String::new(),
        false => format!(
            "; look at the cells first of which nothing is known: {}",
            crate::plain::shown(&unseen.into_iter().take(CELLS).collect::<Vec<_>>().join(", "))
        ),
    }
}

pub(super) fn check(facts: &Facts<'_>, lost: &Lost<'_>, report: &mut Report) {
    let global = CellName::global();
    for keyspace in &lost.keyspaces {
        let Ok(path) = layout::keyspace(keyspace) else { continue };
        report.add(Kind::KeyspaceWithoutRecord, (&global, &path), || {
            let shards = lost.shards.iter().filter(|(of, _)| of == keyspace);
            let traces = shards.map(|(_, shard)| format!("{shard} ({})", lost.traces(keyspace, shard)));
            let traces: Vec<String> = traces.collect();
            let fault = format!("nothing is stored of the keyspace, but of its shard {}", traces.join(", shard "));
            (fault, write_keyspace(facts, keyspace))
        });
    }
    for (keyspace, shard) in &lost.shards {
        // If the keyspace is lost, it comes first.
        if facts.keyspaces.get(keyspace).is_none_or(|keyspace| !keyspace.has_record) {
            continue;
        }
        let Ok(path) = Key::Shard(keyspace, shard).path() else { continue };
        report.add(Kind::ShardWithoutRecord, (&global, &path), || {
            let fault = format!("the shard has no Shard record, but {}", lost.traces(keyspace, shard));
            let directory = file(&global, &path.parent().unwrap_or_else(TopoPath::root), "");
            let write = write_text((&global, &path), &lost.record(facts, keyspace, shard));
            let primary = match lost.primary(keyspace, shard) {
                Some(_) => "as far as the cells know it",
                None => "no tablet says that it is the primary",
            };
            (fault, format!("mkdir -p {directory} && {write}  # {primary}{}", unseen(facts)))
        });
    }
}

/// Writes the record of a keyspace whose shards or tablets are still there.
pub(super) fn write_keyspace(facts: &Facts<'_>, keyspace: &str) -> String {
    let (global, Ok(dir)) = (CellName::global(), layout::keyspace(keyspace)) else { return String::new() };
    let directory = file(&global, &dir, "");
    let settings = "then write its durability_policy and what else it had";
    let Ok(path) = Key::Keyspace(keyspace).path() else { return String::new() };
    format!("mkdir -p {directory} && touch {}  # {settings}{}", file(&global, &path, ""), unseen(facts))
}
