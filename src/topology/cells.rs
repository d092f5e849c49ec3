//! Rules about the records of cells and of their aliases. Must never let a cell go that is known to be in use.

use std::time::SystemTime;

use prost::Message;

use crate::backend::{Action, Change, Revision, Version};
use crate::cells::{Cell, Cells};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::record::layout::{self, Key};
use crate::record::messages::topodata;

/// Most records that a refusal names.
const NAMED: usize = 3;

/// Whether a cell may be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parting {
    /// It holds nothing that serves.
    Free,
    /// That is unknown, because the cell does not answer; why.
    Unknown(String),
}

/// What other cells have of the place of a cell.
#[derive(Debug, Default)]
struct Shared {
    /// Other cells with the same place.
    twins: Vec<CellName>,
    /// Whether the global topology has the same place.
    with_global: bool,
    /// Where other cells begin inside of the place: what is there is theirs.
    inside: Vec<(CellName, TopoPath)>,
}

impl Shared {
    fn of(cells: &Cells, cell: &Cell) -> Self {
        let mut shared = Self::default();
        for (other, location) in cells.places() {
            let here = std::iter::once(&cell.location).chain(cell.second_location());
            for path in here.filter_map(|here| here.path_of(&location)).filter(|_| other != cell.name) {
                match (path.is_root(), other.is_global()) {
                    (true, true) => shared.with_global = true,
                    (true, false) if shared.twins.contains(&other) => {}
                    (true, false) => shared.twins.push(other.clone()),
                    (false, _) => shared.inside.push((other.clone(), path)),
                }
            }
        }
        shared
    }

    /// The other cell whose record this is.
    fn owner(&self, path: &TopoPath) -> Option<&CellName> {
        self.inside.iter().find(|(_, root)| path.below(root).is_some()).map(|(other, _)| other)
    }

    fn is_alone(&self) -> bool {
        self.twins.is_empty() && !self.with_global && self.inside.is_empty()
    }
}

fn in_words(cells: &[CellName]) -> String {
    few(cells.iter().map(ToString::to_string))
}

/// The first names of some, and how many more there are.
fn few(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut named: Vec<String> = names.take(NAMED).collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

/// Refuses to remove anything by the name of a cell that another cell stores in the same place.
pub(super) fn refuse_others(cells: &Cells, cell: &Cell, doomed: &[Change]) -> Result<()> {
    let (shared, name) = (Shared::of(cells, cell), &cell.name);
    if !shared.twins.is_empty() {
        let (info, others) = (Key::CellInfo(name.as_str()), in_words(&shared.twins));
        let reason = format!(
            "cell {name} has the server and root of {others}: what is removed from one is gone from the other. Give \
             the cell a root of its own in global/{info}, or remove that record if the cell is one too many"
        );
        return Err(Error::new(Kind::Busy, reason));
    }
    let theirs = doomed.iter().find_map(|change| Some((&change.path, shared.owner(&change.path)?)));
    match theirs {
        Some((path, other)) => Err(Error::new(Kind::Busy, format!("{name}/{path} is a record of cell {other}, too"))),
        None => Ok(()),
    }
}

/// Whether the CellInfo record of a cell may be removed. As in Vitess, not while anything is stored in the cell's
/// directory of keyspaces. The record of a cell that does not answer may be removed: the cell may be gone for good. So
/// may that of a cell whose place is another cell's, too, unless it has tablets: the other still names all records.
/// `together` is what one transaction changes together with that: what counts is what will be.
pub async fn may_part(cells: &Cells, name: &str, together: &[(&Cell, &[Change])]) -> Result<Parting> {
    let info = Key::CellInfo(name);
    let Some(cell) = CellName::new(name).ok().filter(|name| !name.is_global()).and_then(|name| cells.get(&name)) else {
        return match cells.not_asked(name) {
            Some(reason) => Err(Error::new(
                Kind::Busy,
                format!(
                    "global/{info}: this mount does not know whether the cell has serving keyspaces: {reason}{LIFT}"
                ),
            )),
            // Nobody can reach a cell with such a name or record.
            None => Ok(Parting::Unknown("no cell can be reached by this record".to_owned())),
        };
    };
    // Asked for anew: nobody need be interested in the cell, so it is not connected for good.
    match cell.records_now(&TopoPath::parse(layout::KEYSPACES)?).await {
        Ok(mut snapshot) => {
            let here = together.iter().filter(|(other, _)| other.is_same_place(&cell));
            here.for_each(|(_, changes)| snapshot = after(std::mem::take(&mut snapshot), changes));
            let shared = Shared::of(cells, &cell);
            match shared.twins.is_empty() {
                true => refuse_serving(name, &snapshot, &shared).map(|()| Parting::Free),
                false => part_from_twins(&cell, &shared).await,
            }
        }
        Err(error) => unknown(name, error),
    }
}

/// The records after some changes, for judging what they say: the versions of new ones mean nothing.
pub fn after(mut snapshot: Snapshot, changes: &[Change]) -> Snapshot {
    for change in changes {
        match &change.action {
            Action::Put(value) => {
                let version = Version { number: 0, written: Revision::default(), created: Revision::default() };
                let record = Record { value: value.clone(), version, modified: SystemTime::UNIX_EPOCH };
                snapshot.records.insert(change.path.clone(), record);
            }
            Action::Delete => drop(snapshot.records.remove(&change.path)),
            Action::Check => {}
        }
    }
    snapshot
}

/// Nobody knows what the cell has.
fn unknown(name: &str, error: Error) -> Result<Parting> {
    if error.kind == Kind::Unreachable {
        return Ok(Parting::Unknown(error.reason));
    }
    let info = Key::CellInfo(name);
    let reason = format!("global/{info}: it is unknown whether the cell has serving keyspaces: {error}{LIFT}");
    Err(Error::new(error.kind, reason))
}

/// Of cells with one place, those may go that have no tablets there.
async fn part_from_twins(cell: &Cell, shared: &Shared) -> Result<Parting> {
    let name = cell.name.as_str();
    let snapshot = match cell.records_now(&TopoPath::parse(layout::TABLETS)?).await {
        Ok(snapshot) => snapshot,
        Err(error) => return unknown(name, error),
    };
    let is_own = |path: &&TopoPath| match Key::in_cell(path) {
        Some(Key::Tablet(alias)) => alias.rsplit_once('-').is_some_and(|(cell, _)| cell == name),
        _ => false,
    };
    let own: Vec<&TopoPath> = snapshot.records.keys().filter(is_own).collect();
    if own.is_empty() {
        return Ok(Parting::Free);
    }
    let reason = format!(
        "global/{}: the cell has tablets: {}. Cell {} has the same server and root: if that one is one too many, \
         remove its record{LIFT}",
        Key::CellInfo(name),
        some(name, &own),
        in_words(&shared.twins),
    );
    Err(Error::new(Kind::Busy, reason))
}

/// The names of some records.
fn some(cell: &str, records: &[&TopoPath]) -> String {
    few(records.iter().map(|path| format!("{cell}/{path}")))
}

/// How to go on anyway.
const LIFT: &str = " (a mount with --force-cell-removal removes it anyway)";

fn refuse_serving(name: &str, snapshot: &Snapshot, shared: &Shared) -> Result<()> {
    let keyspaces = TopoPath::parse(layout::KEYSPACES)?;
    let all = snapshot.below(&keyspaces).map(|(path, _)| path).filter(|path| shared.owner(path).is_none());
    // The global topology keeps its own records in the same directories.
    let all: Vec<&TopoPath> = all.filter(|path| !shared.with_global || Key::in_cell(path).is_some()).collect();
    if all.is_empty() {
        return Ok(());
    }
    let is_serving = |path: &&&TopoPath| matches!(Key::in_cell(path), Some(Key::SrvKeyspace(_)));
    let serving: Vec<&TopoPath> = all.iter().filter(is_serving).copied().collect();
    let (what, records) = match serving.is_empty() {
        true => ("still has records of keyspaces", all),
        false => ("has serving keyspaces", serving),
    };
    // Never advise to remove a whole directory in which others have records.
    let way = if shared.is_alone() { "topofs remove-keyspace-cell or rm -r" } else { "topofs remove-keyspace-cell" };
    let (info, records) = (Key::CellInfo(name), some(name, &records));
    Err(Error::new(
        Kind::Busy,
        format!("global/{info}: the cell {what}: {records}. Remove them first, with {way}{LIFT}"),
    ))
}

/// Refuses an alias with a cell that another alias has, as Vitess does: which alias would a cell belong to? As Vitess
/// sees it, an alias without cells overlaps every other that has cells.
pub fn refuse_overlap(global: &Snapshot, alias: &str, value: &[u8]) -> Result<()> {
    // What cannot be decoded is refused, or let through, elsewhere.
    let Ok(new) = topodata::CellsAlias::decode(value) else { return Ok(()) };
    for (path, record) in global.below(&TopoPath::parse(layout::CELLS_ALIASES)?) {
        let Some(Key::CellsAlias(other)) = Key::in_global(path) else { continue };
        if other != alias {
            refuse_overlap_with(alias, &new, path, record)?;
        }
    }
    Ok(())
}

/// Refuses the record of a cell without a root, as Vitess does: it would be the root of the whole service, and whoever
/// means that writes `/`. An empty file that is about to be written is let through.
pub fn refuse_rootless(path: &TopoPath, value: &[u8]) -> Result<()> {
    match topodata::CellInfo::decode(value) {
        Ok(info) if info.root.is_empty() && !value.is_empty() => {
            Err(Error::new(Kind::BadMessage, format!("global/{path}: root must not be empty")))
        }
        _ => Ok(()),
    }
}

fn refuse_overlap_with(alias: &str, new: &topodata::CellsAlias, path: &TopoPath, record: &Record) -> Result<()> {
    let refused = |why: String| Err(Error::new(Kind::Busy, format!("global/{}: {why}", Key::CellsAlias(alias))));
    let Ok(other) = topodata::CellsAlias::decode(record.value.clone()) else {
        return refused(format!("its cells may overlap those of global/{path}, which cannot be decoded"));
    };
    if new.cells.is_empty() && !other.cells.is_empty() {
        return refused(format!("an alias without cells overlaps global/{path}, as Vitess sees it"));
    }
    let mut both: Vec<&str> = new.cells.iter().filter(|cell| other.cells.contains(cell)).map(String::as_str).collect();
    both.dedup();
    match both.as_slice() {
        [] => Ok(()),
        [cell] => refused(format!("cell {cell} is in global/{path} already")),
        cells => refused(format!("cells {} are in global/{path} already", cells.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(records: &[(&str, &[u8])]) -> Snapshot {
        let version = Version { number: 1, written: Revision(1), created: Revision(1) };
        let mut snapshot = Snapshot::default();
        for (path, value) in records {
            let record = Record { value: value.to_vec().into(), version, modified: SystemTime::UNIX_EPOCH };
            snapshot.records.insert(TopoPath::parse(path).unwrap(), record);
        }
        snapshot
    }

    #[test]
    fn a_cell_with_anything_in_its_directory_of_keyspaces_is_in_use() {
        let free = [
            &[][..],
            &[("SrvVSchema", &b""[..]), ("tablets/zone1-0000000100/Tablet", b""), ("keyspaces_old/a/SrvKeyspace", b"")],
        ];
        for records in free {
            refuse_serving("zone1", &snapshot(records), &Shared::default()).unwrap();
        }
        let leftover = ("keyspaces/ks/shards/0/ShardReplication", &b""[..]);
        for (records, expected) in [
            (
                vec![("keyspaces/ks/SrvKeyspace", &b""[..]), leftover],
                "global/cells/zone1/CellInfo: the cell has serving keyspaces: zone1/keyspaces/ks/SrvKeyspace. ",
            ),
            (vec![leftover], "still has records of keyspaces: zone1/keyspaces/ks/shards/0/ShardReplication. "),
        ] {
            let error = refuse_serving("zone1", &snapshot(&records), &Shared::default()).unwrap_err();
            assert!(error.kind == Kind::Busy && error.reason.contains(expected), "{error}");
        }
        let many: Vec<String> = (0..5).map(|number| format!("keyspaces/k{number}/SrvKeyspace")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|path| (path.as_str(), &b""[..])).collect();
        let error = refuse_serving("zone1", &snapshot(&many), &Shared::default()).unwrap_err();
        assert!(error.reason.contains("zone1/keyspaces/k2/SrvKeyspace, 2 more. "), "{error}");
    }

    #[test]
    fn records_of_other_cells_in_the_same_place_are_not_those_of_the_cell() {
        let global = Shared { with_global: true, ..Shared::default() };
        let records = [("keyspaces/ks/Keyspace", &b""[..]), ("keyspaces/ks/shards/0/Shard", b"")];
        refuse_serving("zone1", &snapshot(&records), &global).unwrap();
        let served = [&records[..], &[("keyspaces/ks/SrvKeyspace", b"")]].concat();
        let reason = refuse_serving("zone1", &snapshot(&served), &global).unwrap_err().reason;
        let expected =
            "keyspaces: zone1/keyspaces/ks/SrvKeyspace. Remove them first, with topofs remove-keyspace-cell (";
        assert!(reason.contains(expected), "{reason}");
        let inside = (CellName::new("zone2").unwrap(), TopoPath::parse("keyspaces/zone2").unwrap());
        let shared = Shared { inside: vec![inside], ..Shared::default() };
        let records = [("keyspaces/zone2/SrvKeyspace", &b""[..]), ("keyspaces/zone2/tablets/t/Tablet", b"")];
        refuse_serving("zone1", &snapshot(&records), &shared).unwrap();
        refuse_serving("zone1", &snapshot(&[("keyspaces/zone22/SrvKeyspace", b"")]), &shared).unwrap_err();
    }

    #[test]
    fn aliases_may_not_share_a_cell() {
        let alias = |cells: &[&str]| {
            topodata::CellsAlias { cells: cells.iter().map(ToString::to_string).collect() }.encode_to_vec()
        };
        let (east, none) = (alias(&["a", "b"]), alias(&[]));
        let global = snapshot(&[("cells_aliases/east/CellsAlias", &east), ("cells_aliases/none/CellsAlias", &none)]);
        let refused = |name: &str, cells: &[&str]| {
            refuse_overlap(&global, name, &alias(cells)).map_err(|error| {
                assert_eq!(error.kind, Kind::Busy);
                error.reason
            })
        };
        refused("west", &["c"]).unwrap();
        refused("east", &["a", "c"]).unwrap();
        let said = refused("west", &["b", "c", "a"]).unwrap_err();
        let other = "global/cells_aliases/east/CellsAlias";
        assert_eq!(said, format!("global/cells_aliases/west/CellsAlias: cells b, a are in {other} already"));
        assert!(refused("west", &["b"]).unwrap_err().contains("cell b is in "));
        assert!(refused("west", &[]).unwrap_err().contains(&format!("without cells overlaps {other}")));
        let broken = snapshot(&[("cells_aliases/x/CellsAlias", &b"\xff"[..])]);
        let error = refuse_overlap(&broken, "west", &alias(&["c"])).unwrap_err();
        assert!(error.reason.contains("which cannot be decoded"), "{error}");
        refuse_overlap(&broken, "x", &alias(&["c"])).unwrap();
    }
}
