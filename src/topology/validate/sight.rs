//! What a check looks at: the records of all cells, which cells answer, and how the cells lie to each other. Must never
//! claim anything about a cell that it could not see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::join_all;

use super::shell::word;
use crate::backend::{Location, Node};
use crate::cells::{Cell, Cells, Twins};
use crate::error::{Error, Result};
use crate::mirror::{Health, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::record::Records;
use crate::topology::picture::{CellRecords, Topology};

/// All that a check knows.
#[derive(Debug)]
pub struct Sight {
    /// The records. A cell that is not among the cells, although it has a CellInfo record, has not been looked at.
    pub topology: Topology,
    /// The cells that nobody has used, so that nothing is known about them.
    pub idle: BTreeSet<CellName>,
    /// For each cell, the other cells with the same server and root.
    pub twins: Arc<Twins>,
    /// Names in `cells` from which no cell can be connected, with the reasons.
    pub unusable: Arc<BTreeMap<String, String>>,
    /// In the records of a cell: the roots of other cells.
    pub roots_inside: BTreeMap<CellName, Vec<TopoPath>>,
    /// The locks of each cell, with their directories.
    pub locks: BTreeMap<CellName, Vec<(TopoPath, Node)>>,
    /// How many keys of a cell have names that cannot be file names, as the last list showed.
    pub unnameable: BTreeMap<CellName, u64>,
    /// Where the records of the cells are.
    pub locations: BTreeMap<CellName, Location>,
    /// The flags that tell topofs this topology, each after a space, in words for a shell. No secrets.
    pub flags: String,
    /// Which keys are records.
    pub records: Arc<Records>,
}

/// What must be the same for two sights to find the same problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    cells: Vec<(CellName, Option<SnapshotId>, u64, Option<String>)>,
    idle: BTreeSet<CellName>,
    twins: Arc<Twins>,
    unusable: Arc<BTreeMap<String, String>>,
}

/// A snapshot without its records: they need not stay in memory for this.
#[derive(Debug, Clone)]
struct SnapshotId(std::sync::Weak<Snapshot>);

impl PartialEq for SnapshotId {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl Sight {
    /// Loads every cell, and waits for each no longer than a call may take. Fails if the global topology does not
    /// answer.
    pub async fn load(cells: &Cells) -> Result<Self> {
        let all = cells.all();
        let loaded = join_all(all.into_iter().map(|cell| async move {
            let records = cell.snapshot().await;
            (cell, Some(records))
        }));
        Self::of(cells, loaded.await)
    }

    /// What the mirrors have, without asking a service for anything. Fails if the global topology does not answer.
    pub fn at_hand(cells: &Cells) -> Result<Self> {
        let at_hand = cells.all().into_iter().map(|cell| {
            let records = match cell.mirror.health() {
                Health::Idle | Health::Loading => None,
                Health::Live | Health::Shaky => Some(cell.snapshot_now()),
                // What was known before may be shown, but nothing is claimed about it.
                Health::Down | Health::Denied => Some(Err(cell.not_answering())),
            };
            (cell, records)
        });
        Self::of(cells, at_hand.collect())
    }

    fn of(cells: &Cells, all: Vec<(Arc<Cell>, Option<CellRecords>)>) -> Result<Self> {
        let roots_inside = roots_inside(&all.iter().map(|(cell, _)| &**cell).collect::<Vec<_>>());
        let (mut locks, mut unnameable, mut known) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut locations, mut idle) = (BTreeMap::new(), BTreeSet::new());
        for (cell, records) in all {
            let Some(records) = records else {
                idle.insert(cell.name.clone());
                continue;
            };
            if let Ok(snapshot) = &records {
                let locked = |(path, node): (&TopoPath, &Node)| Some((cell.locked_dir(path)?, node.clone()));
                locks.insert(cell.name.clone(), snapshot.locks.iter().filter_map(locked).collect());
                unnameable.insert(cell.name.clone(), cell.mirror.counters.unnameable.load(Ordering::Relaxed));
                locations.insert(cell.name.clone(), cell.location.clone());
            }
            known.insert(cell.name.clone(), records);
        }
        let global = known.remove(&CellName::global()).ok_or_else(Error::not_found)??;
        Ok(Self {
            topology: Topology { global, cells: known },
            idle,
            locations,
            flags: flags(cells),
            twins: cells.twins(),
            unusable: cells.hidden(),
            roots_inside,
            locks,
            unnameable,
            records: cells.records().clone(),
        })
    }

    /// What this sees.
    pub fn fingerprint(&self) -> Fingerprint {
        let id = |snapshot: &Arc<Snapshot>| SnapshotId(Arc::downgrade(snapshot));
        let skipped = |cell: &CellName| self.unnameable.get(cell).copied().unwrap_or(0);
        let global = CellName::global();
        let first = (global.clone(), Some(id(&self.topology.global)), skipped(&global), None);
        let others = self.topology.cells.iter().map(|(cell, records)| match records {
            Ok(snapshot) => (cell.clone(), Some(id(snapshot)), skipped(cell), None),
            Err(error) => (cell.clone(), None, 0, Some(error.reason.clone())),
        });
        Fingerprint {
            cells: std::iter::once(first).chain(others).collect(),
            idle: self.idle.clone(),
            twins: self.twins.clone(),
            unusable: self.unusable.clone(),
        }
    }

    /// The cells whose records are not known: those that do not answer, and those that nobody has looked at.
    pub fn unseen(&self) -> BTreeSet<String> {
        let seen = |name: &String| {
            let name = CellName::new(name).ok();
            name.is_some_and(|name| self.topology.cells.get(&name).is_some_and(Result::is_ok))
        };
        self.cell_names().into_iter().filter(|name| !seen(name)).collect()
    }

    /// The names of all cells that have a CellInfo record.
    pub fn cell_names(&self) -> BTreeSet<String> {
        use crate::record::layout::{CELLS, Key};
        let Ok(dir) = TopoPath::parse(CELLS) else { return BTreeSet::new() };
        let paths = self.topology.global.below(&dir).map(|(path, _)| path);
        paths
            .filter_map(|path| match Key::in_global(path) {
                Some(Key::CellInfo(cell)) => Some(cell.to_owned()),
                _ => None,
            })
            .collect()
    }
}

/// The flags of topofs for this topology. Servers with a name and a password in them are left out.
fn flags(cells: &Cells) -> String {
    let Some(global) = cells.get(&CellName::global()) else { return String::new() };
    let flags = match cells.tee() {
        None => vec![
            ("topo-implementation", global.location.implementation.to_string()),
            ("topo-global-server-address", global.location.server.clone()),
            ("topo-global-root", global.location.root.clone()),
        ],
        Some(tee) => vec![
            ("topo-implementation", "tee".to_owned()),
            ("tee-primary", global.location.to_string()),
            ("tee-secondary", tee.secondary.to_string()),
            ("tee-reverse-lock-order", tee.reverse_lock_order.to_string()),
        ],
    };
    let is_shown = |(_, value): &(&str, String)| !value.contains('@');
    flags.into_iter().filter(is_shown).map(|(flag, value)| format!(" --{flag} {}", word(&value))).collect()
}

/// For each cell, where in its records other cells begin: a global root `/vitess` has the cell at `/vitess/zone1`.
fn roots_inside(cells: &[&Cell]) -> BTreeMap<CellName, Vec<TopoPath>> {
    let mut by_root: BTreeMap<String, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        by_root.entry(cell.location.clean_root()).or_default().push(cell);
    }
    let mut inside: BTreeMap<CellName, Vec<TopoPath>> = BTreeMap::new();
    for inner in cells {
        // Every root ends in a slash, and so do those above it.
        let root = inner.location.clean_root();
        for (end, _) in root.trim_end_matches('/').match_indices('/') {
            let above = root.get(..=end).unwrap_or_default();
            for outer in by_root.get(above).into_iter().flatten() {
                if let Some(path) = outer.location.path_of(&inner.location) {
                    inside.entry(outer.name.clone()).or_default().push(path);
                }
            }
        }
    }
    inside
}
