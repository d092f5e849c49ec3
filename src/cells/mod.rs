//! The global topology and its cells, each with its own connection and its own failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alive;
use crate::backend::{Implementation, Location, Meter, TeeOptions};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Batch, Health, Histories, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::record::layout::{CELL_INFO, CELLS, Key, cell_of_info};
use crate::record::{CellInfo, Records};

mod cell;
mod drift;
mod earlier;
mod ending;
mod failure;
mod joint;
mod lock;
pub mod lock_text;
mod missed;
mod options;
mod second;
mod together;
mod turns;
mod twins;

pub use cell::Cell;
pub use earlier::Earlier;
pub use joint::Joints;
pub use lock::{HolderChange, Holders, KnownLocks, LockPlace};
use missed::Missed;
pub use options::CellOptions;
use second::TeePlaces;
pub use second::{Drift, Second, SecondPlace};
pub use together::Together;
pub use twins::Twins;

/// How long the start waits for the global topology at the secondary.
const SECONDARY_WAIT: Duration = Duration::from_secs(5);

/// Cells with their locations, and others by the names in their records, with the reasons why they cannot be shown.
type KnownCells = (BTreeMap<CellName, Location>, BTreeMap<String, String>);

/// All cells of a mount.
pub struct Cells {
    global: Arc<Cell>,
    local: ArcSwap<BTreeMap<CellName, Arc<Cell>>>,
    /// Cells that cannot be shown, by the names in their records, with the reasons.
    hidden: ArcSwap<BTreeMap<String, String>>,
    missed: Missed,
    twins: ArcSwap<Twins>,
    /// The revisions of the global topology, at both services, that the set of cells follows.
    followed: [AtomicU64; 2],
    refreshing: Mutex<()>,
    histories: Arc<Histories>,
    options: CellOptions,
    records: Arc<Records>,
    tasks: TaskTracker,
    /// Cells are connected here, whichever thread has looked for one.
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
}

impl std::fmt::Debug for Cells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all().iter().map(ToString::to_string)).finish()
    }
}

impl Cells {
    /// Connects the global topology, and waits until it is loaded. The error names the cell, implementation, server,
    /// root and cause.
    pub async fn start(options: CellOptions, records: Arc<Records>) -> Result<Arc<Self>> {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let second = options.connect.tee.as_ref().map(|tee| SecondPlace::At(tee.secondary.clone()));
        if let Some(tee) = options.connect.tee.as_ref().filter(|tee| options.global.overlaps(&tee.secondary)) {
            let (one, other) = (&options.global, &tee.secondary);
            let reason = format!("--tee-secondary: {other} has keys in common with the primary, {one}");
            return Err(Error::new(Kind::Invalid, reason));
        }
        let histories = Histories::new(options.history);
        let global = (options.global.clone(), second);
        let global = Cell::open(CellName::global(), global, (&options, &histories), &tasks, &stop)?;
        if let Some(reason) = global.second.as_ref().and_then(|second| second.place.reason()) {
            stop.cancel();
            return Err(Error::new(Kind::Invalid, format!("--tee-secondary: {reason}")));
        }
        global.snapshot().await.inspect_err(|_| stop.cancel())?;
        if let Some((second, mirror)) =
            global.second.as_ref().and_then(|second| Some((second, second.mirror.as_ref()?)))
        {
            // The places of the cells stand there. If it does not answer now, the cells learn of it later.
            let waited = tokio::time::timeout(SECONDARY_WAIT, mirror.load()).await;
            if waited.is_err() || !mirror.is_loaded() {
                second.note_away();
                tracing::warn!("the global topology at the secondary does not answer: nothing reaches the secondary");
            }
        }
        let cells = Arc::new(Self {
            global,
            local: ArcSwap::default(),
            hidden: ArcSwap::default(),
            missed: Missed::default(),
            twins: ArcSwap::default(),
            followed: Default::default(),
            refreshing: Mutex::default(),
            histories,
            options,
            records,
            tasks,
            runtime: tokio::runtime::Handle::current(),
            stop,
        });
        let updates = cells.global.mirror.subscribe();
        cells.refresh();
        // A panic in this task changes no cell, and the task starts again. Every use of a cell looks for newer records
        // first.
        let (weak, global, stop) = (Arc::downgrade(&cells), Arc::downgrade(&cells.global), cells.stop.clone());
        let mut first = Some(updates);
        cells.tasks.spawn(alive::restarted("the cells", move || {
            let updates = first.take().or_else(|| Some(global.upgrade()?.mirror.subscribe()));
            follow_cell_info(weak.clone(), updates, stop.clone())
        }));
        Ok(cells)
    }

    /// A cell by name.
    pub fn get(&self, name: &CellName) -> Option<Arc<Cell>> {
        if name.is_global() {
            return Some(self.global.clone());
        }
        self.follow_records();
        self.local.load().get(name).cloned()
    }

    /// All cells, the global topology first.
    pub fn all(&self) -> Vec<Arc<Cell>> {
        self.follow_records();
        std::iter::once(self.global.clone()).chain(self.local.load().values().cloned()).collect()
    }

    /// Cells that cannot be shown, with the reasons.
    pub fn hidden(&self) -> Arc<BTreeMap<String, String>> {
        self.follow_records();
        self.hidden.load_full()
    }

    /// Why this mount has decided not to ask a cell anything; `None` if it shows the cell, or nobody could ask it.
    pub fn not_asked(&self, name: &str) -> Option<String> {
        let is_left_out = |only: &Vec<CellName>| !only.iter().any(|cell| cell.as_str() == name);
        if self.options.only.as_ref().is_some_and(is_left_out) {
            return Some("--cells does not name it".to_owned());
        }
        let path = TopoPath::parse(&Key::CellInfo(name).to_string()).ok()?;
        let value = self.global.mirror.snapshot().records.get(&path)?.value.clone();
        let CellInfo { server, root } = self.records.cell_info(&value)?;
        let location = Location { implementation: self.options.global.implementation, server, root };
        let CellOptions { servers, global, connect, .. } = &self.options;
        servers.check(&location, global, connect).err().map(|error| error.to_string())
    }

    /// For each cell, others with the same location.
    pub fn twins(&self) -> Arc<Twins> {
        self.follow_records();
        self.twins.load_full()
    }

    /// Where all cells are that have a CellInfo record, also those that are not shown, and the global topology. A cell
    /// whose updates go to two services has two places.
    pub fn places(&self) -> Vec<(CellName, Location)> {
        let second =
            self.all().into_iter().filter_map(|cell| Some((cell.name.clone(), cell.second_location()?.clone())));
        let global = (CellName::global(), self.options.global.clone());
        second.chain([global]).chain(self.known_cells(None).0).collect()
    }

    /// How long a call of a service may take.
    pub fn timeout(&self) -> Duration {
        self.options.connect.timeout
    }

    /// The second service, if updates go to two.
    pub fn tee(&self) -> Option<&TeeOptions> {
        self.options.connect.tee.as_ref()
    }

    /// What the mirrors remember of the past.
    pub fn histories(&self) -> &Histories {
        &self.histories
    }

    /// How long the calls of all services took.
    pub fn meter(&self) -> &Meter {
        &self.options.connect.meter
    }

    /// What records mean here.
    pub fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// The mount is ending. From now on, calls to a service that gives no sign of life are given up: they fail, and say
    /// whether they may have been carried out.
    pub fn give_up_if_silent(&self) {
        let _runtime = self.runtime.enter();
        for cell in std::iter::once(&self.global).chain(self.local.load().values()) {
            let (cell, stop) = (cell.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = cell.give_up_if_silent() => {}
                }
            });
        }
    }

    /// Compares all cells with their services, and rereads passwords. Waits until those that answer have been compared,
    /// up to a time limit.
    pub async fn resync(&self, longest: Duration) {
        /// How often to look.
        const STEP: Duration = Duration::from_millis(50);
        let compared = self.all().into_iter().map(|cell| {
            let before = cell.mirror.counters.resyncs.load(Ordering::Relaxed);
            cell.request_resync();
            async move {
                while cell.mirror.health() == Health::Live
                    && cell.mirror.counters.resyncs.load(Ordering::Relaxed) == before
                {
                    tokio::time::sleep(STEP).await;
                }
            }
        });
        let _ = tokio::time::timeout(longest, futures::future::join_all(compared.collect::<Vec<_>>())).await;
    }

    /// Ends all background work and waits for it.
    pub async fn shutdown(&self) {
        let local = self.local.load_full();
        futures::future::join_all(std::iter::once(&self.global).chain(local.values()).map(|cell| cell.settle())).await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A caller that has just stored a CellInfo record finds the cell at once, and need not wait for the event.
    fn follow_records(&self) {
        if self.followed.each_ref().map(|revision| revision.load(Ordering::Acquire)) != self.revisions() {
            self.refresh();
        }
    }

    /// The revisions of the global topology at both services. While nothing is loaded, this one counts as none.
    fn revisions(&self) -> [u64; 2] {
        let second = self.global.second.as_ref().and_then(|second| second.mirror.as_ref());
        let second = second.filter(|mirror| mirror.is_loaded());
        // An empty topology has a revision, too: it is known that there is nothing.
        [self.global.mirror.revision().0, second.map_or(0, |mirror| mirror.revision().0.saturating_add(1))]
    }

    /// Makes the set of cells follow the CellInfo records.
    fn refresh(&self) {
        // One at a time: an older view must not replace a newer one.
        let _turn = self.refreshing.lock();
        // Connecting starts tasks, and the caller may be any thread.
        let _runtime = self.runtime.enter();
        let revisions = self.revisions();
        let (wanted, mut hidden) = self.known_cells(self.options.only.as_deref());
        let tee = self.tee_places(&wanted);
        let current = self.local.load();
        let mut next = BTreeMap::new();
        for (name, location) in wanted {
            if let Some(reason) = tee.hide(&location) {
                hidden.insert(name.to_string(), reason);
                continue;
            }
            let before = current.get(&name);
            let second = self.second_place(&name, &location, &tee);
            let found = |cell: &&Arc<Cell>| cell.second.as_ref().map(|second| &second.found) == second.as_ref();
            if let Some(kept) = before.filter(|cell| cell.location == location).filter(found) {
                next.insert(name, kept.clone());
                continue;
            }
            self.warn_if_moved(&name, before, &location);
            match self.open(name.clone(), (location, second)) {
                Ok(cell) => drop(next.insert(name, cell)),
                Err(error) => drop(hidden.insert(name.to_string(), error.reason)),
            }
        }
        for name in self.options.only.iter().flatten() {
            if !name.is_global() && !next.contains_key(name) && !hidden.contains_key(name.as_str()) {
                hidden.insert(name.to_string(), "it has no CellInfo record".to_owned());
            }
        }
        self.pass_on(&current, &next);
        let before = self.hidden.swap(Arc::new(hidden.clone()));
        for (name, reason) in hidden.iter().filter(|(name, reason)| before.get(*name) != Some(reason)) {
            tracing::warn!(cell = %name, reason, "the cell cannot be shown");
        }
        self.note_twins(&next);
        self.local.store(Arc::new(next));
        // Only now: callers that come earlier must wait for the new set of cells.
        for (followed, revision) in self.followed.iter().zip(revisions) {
            followed.store(revision, Ordering::Release);
        }
    }

    fn open(&self, name: CellName, places: (Location, Option<SecondPlace>)) -> Result<Arc<Cell>> {
        Cell::open(name, places, (&self.options, &self.histories), &self.tasks, &self.stop)
    }

    /// Where a cell is at the second service, as its CellInfo record there says; `None` if the cell has one place.
    fn second_place(&self, name: &CellName, location: &Location, tee: &TeePlaces) -> Option<SecondPlace> {
        match tee.told.get(name)? {
            Ok(second) if second.is_same_place(location) => None,
            Ok(second) => Some(tee.refuse(name, second).unwrap_or_else(|| SecondPlace::At(second.clone()))),
            Err(place) => Some(place.clone()),
        }
    }

    /// What the CellInfo records at the second service say, beside the places of the first.
    fn tee_places(&self, wanted: &BTreeMap<CellName, Location>) -> TeePlaces {
        let mut places = TeePlaces::default();
        let Some(tee) = self.options.connect.tee.as_ref() else { return places };
        places.first.add(&self.options.global, CellName::global());
        wanted.iter().for_each(|(name, location)| places.first.add(location, name.clone()));
        places.second.add(&tee.secondary, CellName::global());
        places.global = Some(tee.secondary.clone());
        let mirror = self.global.second.as_ref().and_then(|second| second.mirror.as_ref());
        let snapshot = mirror.filter(|mirror| mirror.is_loaded()).map(|mirror| mirror.snapshot());
        for name in wanted.keys() {
            let told = match &snapshot {
                Some(snapshot) => self.told_by(snapshot, name, tee.secondary.implementation),
                None => Err(SecondPlace::Unknown("it has not said yet where the cell is".to_owned())),
            };
            if let Ok(location) = &told {
                places.second.add(location, name.clone());
            }
            places.told.insert(name.clone(), told);
        }
        places
    }

    fn told_by(
        &self,
        snapshot: &Snapshot,
        name: &CellName,
        implementation: Implementation,
    ) -> std::result::Result<Location, SecondPlace> {
        let path = Key::CellInfo(name.as_str()).path();
        let path = path.map_err(|error| SecondPlace::Nowhere(format!("{name}: {error}")))?;
        let record = snapshot.records.get(&path);
        let record = record.ok_or_else(|| SecondPlace::Nowhere(format!("it has no {path}")))?;
        match self.records.cell_info(&record.value) {
            Some(CellInfo { server, root }) => Ok(Location { implementation, server, root }),
            None => Err(SecondPlace::Nowhere(format!("its {path} cannot be decoded"))),
        }
    }

    /// Ends cells that are no longer shown. If a cell was connected, connects it again at its new location: its
    /// watchers do not access anything that would connect it.
    fn pass_on(&self, current: &BTreeMap<CellName, Arc<Cell>>, next: &BTreeMap<CellName, Arc<Cell>>) {
        for (name, cell) in current {
            if next.get(name).is_some_and(|kept| Arc::ptr_eq(kept, cell)) {
                continue;
            }
            if cell.mirror.health() != Health::Idle {
                self.missed.note(name);
            }
            cell.end();
        }
        for (name, cell) in next {
            // The cells in --cells connect at once, whenever their records come.
            if self.missed.take(name) || self.options.only.is_some() {
                cell.mirror.wake();
            }
        }
    }

    /// Warns once about cells that show the same records.
    fn note_twins(&self, next: &BTreeMap<CellName, Arc<Cell>>) {
        let cells: Vec<&Cell> = std::iter::once(&*self.global).chain(next.values().map(|cell| &**cell)).collect();
        let twins = Arc::new(twins::twins(&cells));
        let before = self.twins.swap(twins.clone());
        for (cell, others) in twins.iter().filter(|(cell, _)| !before.contains_key(*cell)) {
            // Once for each: a topology may name one place thousands of times.
            if let Some(other) = others.iter().find(|other| *other < cell || before.contains_key(*other)) {
                tracing::warn!(%cell, %other, "two cells have the same location: they show the same records");
            }
        }
    }

    /// Anybody who can write a CellInfo record can move its cell to other servers.
    fn warn_if_moved(&self, name: &CellName, before: Option<&Arc<Cell>>, location: &Location) {
        match before {
            Some(before) if !location.is_served_by(&before.location) => tracing::warn!(
                cell = %name, from = %before.location, to = %location,
                "the CellInfo record moves the cell to other servers"
            ),
            // Only once: a cell that cannot be shown is tried again after every change of any record.
            None if !location.is_served_by(&self.options.global) && !self.hidden.load().contains_key(name.as_str()) => {
                tracing::info!(
                    cell = %name, location = %location,
                    "the CellInfo record names other servers than those of the global topology"
                )
            }
            _ => {}
        }
    }

    /// The locations of all cells that may be shown, and the reasons why others cannot be.
    fn known_cells(&self, only: Option<&[CellName]>) -> KnownCells {
        self.cells_in(&self.global.mirror.snapshot(), only)
    }

    /// The same, by the records of the global topology at some moment.
    fn cells_in(&self, snapshot: &Snapshot, only: Option<&[CellName]>) -> KnownCells {
        let (mut known, mut hidden) = (BTreeMap::new(), BTreeMap::new());
        let Ok(dir) = TopoPath::parse(CELLS) else { return (known, hidden) };
        for (path, record) in snapshot.below(&dir) {
            let Some((called, name)) = cell_of_info(path) else { continue };
            let name = match name {
                Ok(name) => name,
                Err(reason) => {
                    hidden.insert(called.to_owned(), reason.to_owned());
                    continue;
                }
            };
            if only.is_some_and(|only| !only.contains(&name)) {
                continue;
            }
            let implementation = self.options.global.implementation;
            match self.records.cell_info(&record.value) {
                Some(CellInfo { server, root }) => drop(known.insert(name, Location { implementation, server, root })),
                None => drop(hidden.insert(called.to_owned(), "its CellInfo record cannot be decoded".to_owned())),
            }
        }
        (known, hidden)
    }
}

async fn follow_cell_info(
    cells: std::sync::Weak<Cells>,
    updates: Option<tokio::sync::broadcast::Receiver<Arc<Batch>>>,
    stop: CancellationToken,
) {
    use tokio::sync::broadcast::error::RecvError;
    let Some(mut updates) = updates else { return };
    // After a panic: catch up.
    if let Some(cells) = cells.upgrade() {
        cells.follow_records();
    }
    loop {
        let concerned = tokio::select! {
            () = stop.cancelled() => return,
            batch = updates.recv() => match batch {
                Ok(batch) => batch.updates.iter().any(|update| update.path.name() == CELL_INFO),
                Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => return,
            },
        };
        let Some(cells) = cells.upgrade() else { return };
        if concerned {
            cells.refresh();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Action, Applied, Change, ConnectOptions, Guard, Implementation, Revision, Version};
    use crate::mirror::MirrorOptions;
    use crate::record::{Codec, Kinds};

    fn wrote(cells: &Cells, path: &str, value: &'static [u8], at: u64) {
        let path = TopoPath::parse(path).unwrap();
        let change = Change { path, guard: Guard::Any, action: Action::Put(value.into()) };
        let version = Version { number: at, written: Revision(at), created: Revision(at) };
        cells.global.mirror.wrote(&[change], &Applied { at: Revision(at), versions: vec![Some(version)] });
    }

    async fn started() -> Arc<Cells> {
        let global =
            Location { implementation: Implementation::Memory, server: "behind".to_owned(), root: "/g".to_owned() };
        let mirror = MirrorOptions {
            resync_interval: Duration::from_secs(3600),
            stale_after: Duration::from_secs(10),
            serve_stale: false,
        };
        let connect = ConnectOptions::default();
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let options = CellOptions::new(global, connect, mirror);
        Cells::start(options, records).await.unwrap()
    }

    #[tokio::test]
    async fn a_thread_outside_of_the_runtime_may_be_the_first_to_look_for_a_new_cell() {
        let cells = started().await;
        wrote(&cells, "cells/zone1/CellInfo", b"\x0a\x06behind\x12\x02/z", 1_000);
        let zone = CellName::new("zone1").unwrap();
        std::thread::scope(|scope| scope.spawn(|| assert!(cells.get(&zone).is_some())).join()).unwrap();
        cells.shutdown().await;
    }

    #[tokio::test]
    async fn who_follows_the_records_of_cells_and_has_fallen_behind_looks_at_all_of_them() {
        /// More batches than a mirror keeps for a slow listener.
        const MANY: u64 = 2_000;
        let cells = started().await;
        // This thread is the only one, so nobody hears of anything before it waits.
        wrote(&cells, "cells/zone1/CellInfo", b"\x0a\x06behind\x12\x02/z", 1_000);
        for number in 0..MANY {
            wrote(&cells, "other", b"x", 1_001 + number);
        }
        let zone = CellName::new("zone1").unwrap();
        let found = async {
            while !cells.local.load().contains_key(&zone) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found).await.unwrap();
        cells.shutdown().await;
    }

    #[tokio::test]
    async fn a_place_that_is_named_thousands_of_times_is_not_compared_in_pairs() {
        const MANY: u64 = 3_000;
        let location = |root: &str| Location {
            implementation: Implementation::Memory,
            server: "twins".to_owned(),
            root: root.to_owned(),
        };
        let connect = ConnectOptions::default();
        for number in 0..MANY {
            let path = TopoPath::parse(&format!("cells/z{number:04}/CellInfo")).unwrap();
            connect.memory.put(&location("/g"), &path, b"\x0a\x05twins\x12\x02/z".as_slice().into()).unwrap();
        }
        let mirror = MirrorOptions {
            resync_interval: Duration::from_secs(3600),
            stale_after: Duration::from_secs(10),
            serve_stale: false,
        };
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let options = CellOptions::new(location("/g"), connect, mirror);
        let cells = Cells::start(options, records).await.unwrap();
        let twins = cells.twins();
        assert_eq!(twins.len() as u64, MANY);
        assert!(twins.iter().all(|(cell, others)| others.len() == twins::MOST && !others.contains(cell)));
        cells.shutdown().await;
    }
}
