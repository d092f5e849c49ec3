//! What the records say, read once for all checks. A record that cannot be decoded exists, and says nothing.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::sight::Sight;
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::layout::{self, Key};
use crate::record::messages::{topodata, vschema};
use topodata::{KeyspaceType, TabletType};

/// What the records say.
pub(super) struct Facts<'a> {
    pub sight: &'a Sight,
    /// The records of the global topology.
    pub global: &'a Snapshot,
    /// The cells with CellInfo records.
    pub cells: BTreeSet<String>,
    /// Every name in the directory of keyspaces that is a directory.
    pub keyspaces: BTreeMap<String, Keyspace>,
    /// The places where the records of cells are.
    pub places: Vec<Place<'a>>,
    place_of: BTreeMap<String, usize>,
    /// All tablets, by place and by the name of their directory; `None` if the record cannot be decoded.
    /// So is one that says nothing of what it belongs to.
    pub tablets: BTreeMap<(usize, String), Option<Tablet>>,
}

/// A keyspace of the global topology.
#[derive(Default)]
pub(super) struct Keyspace {
    /// Whether there is a Keyspace record.
    pub has_record: bool,
    /// Whether it is a snapshot, which may have some of its shards only. Unknown counts as one.
    pub is_snapshot: bool,
    pub vschema: VSchema,
    /// The shards with Shard records; `None` if the record cannot be decoded.
    pub shards: BTreeMap<String, Option<topodata::Shard>>,
}

/// What a VSchema says about tables.
#[derive(Default)]
pub(super) enum VSchema {
    /// Any table may exist: the keyspace is not sharded, or nothing is known.
    #[default]
    Any,
    /// Tables exist if they are named.
    Sharded(BTreeSet<String>),
}

/// Where the records of a cell are. Cells with the same server and root share a place.
pub(super) struct Place<'a> {
    /// The first of its cells.
    pub cell: CellName,
    /// All of its cells.
    pub names: BTreeSet<String>,
    pub records: &'a Snapshot,
    /// Whether the global topology is there, too.
    pub holds_global: bool,
}

/// What counts of a Tablet record.
pub(super) struct Tablet {
    /// The name of its directory.
    pub directory: String,
    /// The cell and the number that it says it has.
    pub cell: String,
    pub uid: u32,
    pub keyspace: String,
    pub shard: String,
    pub kind: TabletType,
    /// It has no address.
    pub is_blank: bool,
    /// It says when it was shut down.
    pub was_shut_down: bool,
    /// When it became the primary, in seconds and nanoseconds.
    pub term: (i64, i32),
}

impl Tablet {
    /// What Vitess calls it.
    pub fn alias(&self) -> String {
        layout::tablet_alias(&self.cell, self.uid)
    }
}

impl<'a> Facts<'a> {
    pub fn of(sight: &'a Sight) -> Self {
        let global = &*sight.topology.global;
        let (places, place_of) = places(sight);
        let tablets = places.iter().enumerate().flat_map(|(number, place)| {
            let found = tablets(place.records).into_iter();
            found.map(move |(alias, tablet)| ((number, alias), tablet))
        });
        let tablets = tablets.collect();
        Self { sight, global, cells: sight.cell_names(), keyspaces: keyspaces(global), places, place_of, tablets }
    }

    /// The place of a cell whose records are known.
    pub fn place(&self, cell: &str) -> Option<usize> {
        self.place_of.get(cell).copied()
    }

    /// Whether a keyspace is certainly gone: nothing is stored in its directory.
    pub fn is_gone(&self, keyspace: &str) -> bool {
        !self.keyspaces.contains_key(keyspace)
    }

    /// Whether a keyspace exists and has shards, so that something can be rebuilt.
    pub fn has_shards(&self, keyspace: &str) -> bool {
        self.keyspaces.get(keyspace).is_some_and(|keyspace| keyspace.has_record && !keyspace.shards.is_empty())
    }

    /// Whether a shard has a Shard record.
    pub fn has_shard(&self, keyspace: &str, shard: &str) -> bool {
        self.keyspaces.get(keyspace).is_some_and(|keyspace| keyspace.shards.contains_key(shard))
    }
}

/// A stored record as a message; `None` if it does not exist or cannot be decoded.
pub(super) fn read<M: Message + Default>(records: &Snapshot, key: Key<'_>) -> Option<M> {
    M::decode(&*records.records.get(&key.path().ok()?)?.value).ok()
}

/// The name of a cell in a message as Vitess's tools mean it.
pub(super) fn alias_of(alias: &topodata::TabletAlias) -> String {
    layout::tablet_alias(&alias.cell, alias.uid)
}

fn places(sight: &Sight) -> (Vec<Place<'_>>, BTreeMap<String, usize>) {
    let (mut places, mut place_of) = (Vec::<Place<'_>>::new(), BTreeMap::new());
    for (cell, records) in &sight.topology.cells {
        let Ok(records) = records else { continue };
        if place_of.contains_key(cell.as_str()) {
            continue;
        }
        let twins = sight.twins.get(cell).map_or(&[][..], Vec::as_slice);
        let (global, twins): (Vec<&CellName>, Vec<&CellName>) = twins.iter().partition(|twin| twin.is_global());
        let names: BTreeSet<String> = twins.into_iter().chain([cell]).map(ToString::to_string).collect();
        place_of.extend(names.iter().map(|name| (name.clone(), places.len())));
        places.push(Place { cell: cell.clone(), names, records, holds_global: !global.is_empty() });
    }
    (places, place_of)
}

fn keyspaces(global: &Snapshot) -> BTreeMap<String, Keyspace> {
    let mut keyspaces: BTreeMap<String, Keyspace> = BTreeMap::new();
    let Ok(dir) = TopoPath::parse(layout::KEYSPACES) else { return keyspaces };
    for (path, record) in global.below(&dir) {
        let Some((name, _)) = path.below(&dir).and_then(|rest| rest.split_once('/')) else { continue };
        let keyspace = match keyspaces.get_mut(name) {
            Some(keyspace) => keyspace,
            None => keyspaces.entry(name.to_owned()).or_default(),
        };
        match Key::in_global(path) {
            Some(Key::Keyspace(_)) => {
                let decoded = topodata::Keyspace::decode(&*record.value);
                keyspace.has_record = true;
                keyspace.is_snapshot = decoded.is_ok_and(|decoded| decoded.keyspace_type() == KeyspaceType::Snapshot);
            }
            Some(Key::VSchema(_)) => keyspace.vschema = tables(&record.value),
            Some(Key::Shard(_, shard)) => {
                let decoded = topodata::Shard::decode(&*record.value).ok();
                keyspace.shards.insert(shard.to_owned(), decoded);
            }
            _ => {}
        }
    }
    keyspaces
}

fn tables(value: &[u8]) -> VSchema {
    match vschema::Keyspace::decode(value) {
        Ok(vschema) if vschema.sharded => VSchema::Sharded(vschema.tables.into_keys().collect()),
        _ => VSchema::Any,
    }
}

/// Whether a tablet says to which keyspace and shard it belongs.
pub(super) fn belongs_somewhere(tablet: &topodata::Tablet) -> bool {
    !tablet.keyspace.is_empty() && !tablet.shard.is_empty()
}

fn tablets(records: &Snapshot) -> Vec<(String, Option<Tablet>)> {
    let Ok(dir) = TopoPath::parse(layout::TABLETS) else { return Vec::new() };
    let tablet = |directory: &str, value: &[u8]| {
        let tablet = topodata::Tablet::decode(value).ok().filter(belongs_somewhere)?;
        let kind = tablet.r#type();
        let alias = tablet.alias.unwrap_or_default();
        Some(Tablet {
            directory: directory.to_owned(),
            cell: alias.cell,
            uid: alias.uid,
            kind,
            is_blank: tablet.hostname.is_empty() && tablet.port_map.is_empty(),
            was_shut_down: tablet.tablet_shutdown_time.is_some(),
            term: tablet.primary_term_start_time.map_or((0, 0), |time| (time.seconds, time.nanoseconds)),
            keyspace: tablet.keyspace,
            shard: tablet.shard,
        })
    };
    let found = records.below(&dir).filter_map(|(path, record)| match Key::in_cell(path) {
        Some(Key::Tablet(alias)) => Some((alias.to_owned(), tablet(alias, &record.value))),
        _ => None,
    });
    found.collect()
}
