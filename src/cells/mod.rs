//! The global topology and the cells that it names: each with its own connection and its own failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alive;
use crate::backend::{
    Applied, Backend, BackendError, CellServers, Change, ConnectOptions, Failure, Fetched, Limits, Location,
};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Health, Mirror, MirrorOptions, Snapshot};
use crate::name::{CellName, TopoPath};
use crate::record::layout::{CELL_INFO, CELLS};

mod failure;
mod lock;

pub use lock::{HolderChange, Holders, KnownLocks, LockPlace};

/// Reads a CellInfo record: server address and root. The codec is above this module, so it is handed in.
pub type ReadCellInfo = Arc<dyn Fn(&[u8]) -> Option<(String, String)> + Send + Sync>;

/// How cells are connected.
#[derive(Clone)]
pub struct CellOptions {
    /// The global topology.
    pub global: Location,
    /// For all backends.
    pub connect: ConnectOptions,
    /// Which servers that CellInfo records name are connected.
    pub servers: CellServers,
    /// For all mirrors.
    pub mirror: MirrorOptions,
    /// If given: these cells are connected at once and no others are shown.
    pub only: Option<Vec<CellName>>,
}

/// What a change leaves open that has panicked on its way.
const UNCERTAIN: &str = " (it may have been carried out)";

/// One cell: its place, its backend, its mirror.
#[derive(Debug)]
pub struct Cell {
    /// Its name; the first level of the tree.
    pub name: CellName,
    /// Where its data is.
    pub location: Location,
    /// Its records.
    pub mirror: Arc<Mirror>,
    backend: Arc<dyn Backend>,
    turns: lock::Turns,
    timeout: std::time::Duration,
    stop: CancellationToken,
    serve_stale: bool,
    /// What to say of an address without a port.
    untold_port: Option<String>,
    /// Whether its keys are those of the global topology.
    holds_global: bool,
}

impl Cell {
    /// The records, once the first list is there. Fails at once when the cell is known to be down.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        match self.mirror.health() {
            Health::Live | Health::Shaky => return Ok(self.mirror.snapshot()),
            Health::Down | Health::Denied => return self.down(),
            Health::Idle | Health::Loading => {}
        }
        // A load that takes longer than a call may take goes on; only this caller stops waiting for it.
        if tokio::time::timeout(self.timeout, self.mirror.settled()).await.is_err() {
            let waited = humantime::format_duration(self.timeout);
            return Err(Error::new(Kind::Unreachable, format!("{self}: not loaded within {waited}")));
        }
        self.snapshot_now()
    }

    /// The records, if they are there already.
    pub fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        match self.mirror.health() {
            Health::Live | Health::Shaky => Ok(self.mirror.snapshot()),
            Health::Down | Health::Denied | Health::Idle | Health::Loading => self.down(),
        }
    }

    /// Ends when the cell is no longer shown, or is another place now.
    pub async fn replaced(&self) {
        self.stop.cancelled().await;
    }

    /// Whether old records are shown while the cell is down. What may not be read any more is not shown.
    pub fn serves_stale(&self) -> bool {
        self.serve_stale && self.mirror.is_loaded() && !self.mirror.is_denied()
    }

    fn down(&self) -> Result<Arc<Snapshot>> {
        if self.serves_stale() {
            return Ok(self.mirror.snapshot());
        }
        Err(self.unreachable())
    }

    fn unreachable(&self) -> Error {
        let cause = self.mirror.trouble().map_or_else(String::new, |(cause, since)| match since.as_secs() {
            0 => format!(": {cause}"),
            seconds => format!(": {cause} (for {seconds} s)"),
        });
        match self.mirror.health() {
            Health::Denied => Error::new(Kind::Denied, format!("{self} may not be read{cause}")),
            _ => Error::new(Kind::Unreachable, format!("{self} is not reachable{cause}")),
        }
    }

    /// One record as the service has it now.
    pub async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        self.refuse_if_down()?;
        let fetched = self.call(("get", ""), self.backend.get(path)).await?;
        self.mirror.observe(path, &fetched);
        Ok(fetched)
    }

    /// Applies changes whole or not at all; the mirror shows them at once.
    pub async fn apply(&self, changes: &[Change]) -> Result<Applied> {
        self.refuse_if_down()?;
        let applied = self.call(("apply", UNCERTAIN), self.backend.apply(changes)).await?;
        self.mirror.wrote(changes, &applied);
        Ok(applied)
    }

    /// Names of what this kind of service can tell of a record beside its version.
    pub fn attributes(&self) -> &'static [&'static str] {
        self.backend.attributes()
    }

    /// One of [`Cell::attributes`], as the service has it now.
    pub async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>> {
        self.refuse_if_down()?;
        self.call(("attribute", ""), self.backend.attribute(path, name)).await
    }

    /// Whether the records of the global topology are here: in the global cell itself, and in one whose CellInfo record names the same
    /// server and root.
    pub fn holds_global(&self) -> bool {
        self.holds_global
    }

    /// Whether another cell shows the very same records, so that their locks are the same ones.
    pub fn is_same_place(&self, other: &Cell) -> bool {
        self.name == other.name || self.location.is_same_place(&other.location)
    }

    /// What the service takes.
    pub fn limits(&self) -> Limits {
        self.backend.limits()
    }

    /// Calls the service. A panic is an error of this call, and of no other; `after` is what it leaves open.
    async fn call<T>(
        &self,
        (what, after): (&str, &str),
        call: impl Future<Output = std::result::Result<T, BackendError>>,
    ) -> Result<T> {
        let called = alive::guarded(format!("{what} in cell {}", self.name), call)
            .await
            .unwrap_or_else(|panic| Err(BackendError::new(Failure::Other, format!("{panic}{after}"))));
        called.map_err(|error| self.explain(error))
    }

    fn refuse_if_down(&self) -> Result<()> {
        match self.mirror.health() {
            Health::Down | Health::Denied => Err(self.unreachable()),
            Health::Idle | Health::Loading | Health::Live | Health::Shaky => Ok(()),
        }
    }

    fn explain(&self, error: BackendError) -> Error {
        let mut error = Error::from(error);
        error.reason = format!("{self}: {}", error.reason);
        error
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let untold = self.untold_port.as_ref().map_or_else(String::new, |words| format!("; {words}"));
        write!(f, "cell {} ({}{untold})", self.name, self.location)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Cells at most that are remembered while they have no record.
const MISSED: usize = 1_000;

/// Cells that are the same place as others, and which.
pub type Twins = BTreeMap<CellName, Vec<CellName>>;

/// All cells of a mount.
pub struct Cells {
    global: Arc<Cell>,
    local: ArcSwap<BTreeMap<CellName, Arc<Cell>>>,
    /// Cells that cannot be shown, by what their records call them, and why.
    hidden: ArcSwap<BTreeMap<String, String>>,
    /// Cells that somebody has looked into and whose records are gone: if they come back, they are connected again.
    missed: Mutex<BTreeSet<CellName>>,
    twins: ArcSwap<Twins>,
    /// The revision of the global topology that the set of cells follows.
    followed: AtomicU64,
    refreshing: Mutex<()>,
    options: CellOptions,
    read_cell_info: ReadCellInfo,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Cells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all().iter().map(ToString::to_string)).finish()
    }
}

impl Cells {
    /// Connects the global topology and waits until it is loaded. The error names cell, implementation, server, root and cause.
    pub async fn start(options: CellOptions, read_cell_info: ReadCellInfo) -> Result<Arc<Self>> {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let global = open_cell(CellName::global(), options.global.clone(), &options, &tasks, &stop)?;
        global.snapshot().await.inspect_err(|_| stop.cancel())?;
        let cells = Arc::new(Self {
            global,
            local: ArcSwap::default(),
            hidden: ArcSwap::default(),
            missed: Mutex::default(),
            twins: ArcSwap::default(),
            followed: AtomicU64::default(),
            refreshing: Mutex::default(),
            options,
            read_cell_info,
            tasks,
            stop,
        });
        let updates = cells.global.mirror.subscribe();
        cells.refresh();
        // A panic in it leaves the cells as they were. Whoever uses one looks for newer records first; the task is begun again.
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
        self.follow_news();
        self.local.load().get(name).cloned()
    }

    /// All cells, the global topology first.
    pub fn all(&self) -> Vec<Arc<Cell>> {
        self.follow_news();
        std::iter::once(self.global.clone()).chain(self.local.load().values().cloned()).collect()
    }

    /// Cells that cannot be shown, and why.
    pub fn hidden(&self) -> Arc<BTreeMap<String, String>> {
        self.follow_news();
        self.hidden.load_full()
    }

    /// Cells that are the same place as others, and which.
    pub fn twins(&self) -> Arc<Twins> {
        self.follow_news();
        self.twins.load_full()
    }

    /// Ends all background work and waits for it.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whoever has just stored a CellInfo record finds the cell at once, not when its event has come round.
    fn follow_news(&self) {
        if self.followed.load(Ordering::Acquire) != self.global.mirror.revision().0 {
            self.refresh();
        }
    }

    /// Makes the set of cells follow the CellInfo records.
    fn refresh(&self) {
        // One at a time: the older view must not replace the newer one.
        let _turn = self.refreshing.lock();
        let revision = self.global.mirror.revision().0;
        let (wanted, mut hidden) = self.known_cells();
        let current = self.local.load();
        let mut next = BTreeMap::new();
        for (name, location) in wanted {
            let before = current.get(&name);
            if let Some(kept) = before.filter(|cell| cell.location == location) {
                next.insert(name, kept.clone());
                continue;
            }
            self.warn_if_moved(&name, before, &location);
            match self.open(name.clone(), location) {
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
        // Not before: who comes meanwhile must wait for what is being made of it.
        self.followed.store(revision, Ordering::Release);
    }

    fn open(&self, name: CellName, location: Location) -> Result<Arc<Cell>> {
        open_cell(name, location, &self.options, &self.tasks, &self.stop)
    }

    /// Ends cells that are not shown any more. What was connected is connected again where it is now, by itself: whoever watches it
    /// looks at nothing that would do so.
    fn pass_on(&self, current: &BTreeMap<CellName, Arc<Cell>>, next: &BTreeMap<CellName, Arc<Cell>>) {
        let mut missed = self.missed.lock();
        for (name, cell) in current {
            if next.get(name).is_some_and(|kept| Arc::ptr_eq(kept, cell)) {
                continue;
            }
            if cell.mirror.health() != Health::Idle && missed.len() < MISSED {
                missed.insert(name.clone());
            }
            cell.stop.cancel();
        }
        for (name, cell) in next {
            // Those that --cells names are connected at once, whenever they come.
            if missed.remove(name) || self.options.only.is_some() {
                cell.mirror.wake();
            }
        }
    }

    /// Tells once of cells that show the same records.
    fn note_twins(&self, next: &BTreeMap<CellName, Arc<Cell>>) {
        let cells: Vec<&Cell> = std::iter::once(&*self.global).chain(next.values().map(|cell| &**cell)).collect();
        let twins = twins(&cells);
        let before = self.twins.swap(Arc::new(twins.clone()));
        for (cell, others) in &twins {
            let known = |other: &&CellName| before.get(cell).is_some_and(|others| others.contains(other));
            for other in others.iter().filter(|other| *other < cell && !known(other)) {
                tracing::warn!(%cell, %other, "two cells are one place: they show the same records");
            }
        }
    }

    /// Records, and so cells, can be sent elsewhere by whoever may write them.
    fn warn_if_moved(&self, name: &CellName, before: Option<&Arc<Cell>>, location: &Location) {
        match before {
            Some(before) if !location.is_served_by(&before.location) => tracing::warn!(
                cell = %name, from = %before.location, to = %location, "its CellInfo record sends the cell to other servers"
            ),
            // Once: a cell that cannot be shown is tried again whenever any record changes.
            None if !location.is_served_by(&self.options.global) && !self.hidden.load().contains_key(name.as_str()) => {
                tracing::info!(
                    cell = %name, location = %location, "its CellInfo record names other servers than those of the global topology"
                )
            }
            _ => {}
        }
    }

    /// The places of all cells, and why others cannot be shown.
    fn known_cells(&self) -> (BTreeMap<CellName, Location>, BTreeMap<String, String>) {
        let snapshot = self.global.mirror.snapshot();
        let (mut known, mut hidden) = (BTreeMap::new(), BTreeMap::new());
        let Ok(dir) = TopoPath::parse(CELLS) else { return (known, hidden) };
        for (path, record) in snapshot.below(&dir).filter(|(path, _)| path.name() == CELL_INFO) {
            let Some(rest) = path.below(&dir) else { continue };
            let called = rest.strip_suffix(CELL_INFO).unwrap_or(rest).trim_end_matches('/');
            let name = match CellName::new(called) {
                Ok(name) if name.is_global() => Err("this is the name of the global topology"),
                Ok(name) => Ok(name),
                Err(_) => Err("no directory of a mount can have this name"),
            };
            let name = match name {
                Ok(name) => name,
                Err(reason) => {
                    hidden.insert(called.to_owned(), reason.to_owned());
                    continue;
                }
            };
            if self.options.only.as_ref().is_some_and(|only| !only.contains(&name)) {
                continue;
            }
            let implementation = self.options.global.implementation;
            match (self.read_cell_info)(&record.value) {
                Some((server, root)) => drop(known.insert(name, Location { implementation, server, root })),
                None => drop(hidden.insert(called.to_owned(), "its CellInfo record cannot be decoded".to_owned())),
            }
        }
        (known, hidden)
    }
}

/// Which cells are the same place.
fn twins(cells: &[&Cell]) -> Twins {
    // Hundreds of cells are not compared each with each.
    let mut by_root: BTreeMap<String, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        by_root.entry(cell.location.clean_root()).or_default().push(cell);
    }
    let mut twins = Twins::new();
    for (cell, all) in by_root.values().flat_map(|all| all.iter().map(move |cell| (cell, all))) {
        let others = all.iter().filter(|other| other.name != cell.name && other.location.is_same_place(&cell.location));
        let others: Vec<CellName> = others.map(|other| other.name.clone()).collect();
        if !others.is_empty() {
            twins.insert(cell.name.clone(), others);
        }
    }
    twins
}

fn open_cell(
    name: CellName,
    location: Location,
    options: &CellOptions,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<Cell>> {
    let holds_global = location.is_same_place(&options.global);
    let allowed = options.servers.check(&location, &options.global, &options.connect);
    let opened = allowed.and_then(|()| crate::backend::open(&name, &location, &options.connect));
    let backend = opened.map_err(|error| {
        let mut error = Error::from(error);
        error.reason = format!("cell {name} ({location}): {}", error.reason);
        error
    })?;
    let mirror = Mirror::new(backend.clone(), options.mirror);
    let stop = stop.child_token();
    let span = tracing::info_span!("cell", name = %name);
    tasks.spawn(tracing::Instrument::instrument(mirror.clone().run(format!("mirror of {name}"), stop.clone()), span));
    Ok(Arc::new(Cell {
        name,
        untold_port: location.untold_port(&options.connect),
        holds_global,
        location,
        mirror,
        backend,
        turns: lock::Turns::default(),
        timeout: options.connect.timeout,
        stop,
        serve_stale: options.mirror.serve_stale,
    }))
}

async fn follow_cell_info(
    cells: std::sync::Weak<Cells>,
    updates: Option<tokio::sync::broadcast::Receiver<Arc<crate::mirror::News>>>,
    stop: CancellationToken,
) {
    use tokio::sync::broadcast::error::RecvError;
    let Some(mut updates) = updates else { return };
    // After a panic: what has happened meanwhile.
    if let Some(cells) = cells.upgrade() {
        cells.follow_news();
    }
    loop {
        let concerned = tokio::select! {
            () = stop.cancelled() => return,
            news = updates.recv() => match news {
                Ok(news) => news.updates.iter().any(|update| update.path.name() == CELL_INFO),
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
mod tests;
