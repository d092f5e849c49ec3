//! The global topology and the cells that it names: each with its own connection and its own failures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{
    Applied, Backend, BackendError, Change, ConnectOptions, Fetched, Implementation, Limits, Location,
};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Health, Mirror, MirrorOptions, Snapshot};
use crate::name::{CellName, TopoPath};

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
    /// For all mirrors.
    pub mirror: MirrorOptions,
    /// If given: these cells are connected at once and no others are shown.
    pub only: Option<Vec<CellName>>,
}

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
}

impl Cell {
    /// The records, once the first list is there. Fails at once when the cell is known to be down.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        match self.mirror.health() {
            Health::Live | Health::Shaky => return Ok(self.mirror.snapshot()),
            Health::Down => return self.down(),
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
            Health::Down | Health::Idle | Health::Loading => self.down(),
        }
    }

    /// Ends when the cell is no longer shown, or is another place now.
    pub async fn replaced(&self) {
        self.stop.cancelled().await;
    }

    /// Whether old records are shown while the cell is down.
    pub fn serves_stale(&self) -> bool {
        self.serve_stale && self.mirror.is_loaded()
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
        Error::new(Kind::Unreachable, format!("{self} is not reachable{cause}"))
    }

    /// One record as the service has it now.
    pub async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        self.refuse_if_down()?;
        let fetched = self.backend.get(path).await.map_err(|e| self.explain(e))?;
        self.mirror.observe(path, &fetched);
        Ok(fetched)
    }

    /// Applies changes whole or not at all; the mirror shows them at once.
    pub async fn apply(&self, changes: &[Change]) -> Result<Applied> {
        self.refuse_if_down()?;
        let applied = self.backend.apply(changes).await.map_err(|e| self.explain(e))?;
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
        self.backend.attribute(path, name).await.map_err(|e| self.explain(e))
    }

    /// What the service takes.
    pub fn limits(&self) -> Limits {
        self.backend.limits()
    }

    fn refuse_if_down(&self) -> Result<()> {
        if self.mirror.health() == Health::Down { Err(self.unreachable()) } else { Ok(()) }
    }

    fn explain(&self, error: BackendError) -> Error {
        let mut error = Error::from(error);
        error.reason = format!("{self}: {}", error.reason);
        error
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cell {} ({})", self.name, self.location)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All cells of a mount.
pub struct Cells {
    global: Arc<Cell>,
    local: ArcSwap<BTreeMap<CellName, Arc<Cell>>>,
    /// Cells that cannot be shown, and why.
    hidden: ArcSwap<BTreeMap<CellName, String>>,
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
            followed: AtomicU64::default(),
            refreshing: Mutex::default(),
            options,
            read_cell_info,
            tasks,
            stop,
        });
        let updates = cells.global.mirror.subscribe();
        cells.refresh();
        cells.tasks.spawn(follow_cell_info(Arc::downgrade(&cells), updates, cells.stop.clone()));
        if cells.options.only.is_some() {
            for cell in cells.local.load().values().cloned() {
                cells.tasks.spawn(async move { cell.mirror.settled().await });
            }
        }
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
    pub fn hidden(&self) -> Arc<BTreeMap<CellName, String>> {
        self.follow_news();
        self.hidden.load_full()
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
        let wanted = self.known_cells();
        let current = self.local.load();
        let mut next = BTreeMap::new();
        let mut hidden = BTreeMap::new();
        for (name, location) in wanted {
            let location = match location {
                Ok(location) => location,
                Err(error) => {
                    hidden.insert(name, error.reason);
                    continue;
                }
            };
            let kept = current.get(&name).filter(|cell| cell.location == location).cloned();
            match kept.map_or_else(|| open_cell(name.clone(), location, &self.options, &self.tasks, &self.stop), Ok) {
                Ok(cell) => {
                    next.insert(name, cell);
                }
                Err(error) => drop(hidden.insert(name, error.reason)),
            }
        }
        for name in self.options.only.iter().flatten() {
            if !name.is_global() && !next.contains_key(name) && !hidden.contains_key(name) {
                hidden.insert(name.clone(), "it has no CellInfo record".to_owned());
            }
        }
        for (name, cell) in current.iter() {
            if !next.get(name).is_some_and(|kept| Arc::ptr_eq(kept, cell)) {
                cell.stop.cancel();
            }
        }
        let before = self.hidden.swap(Arc::new(hidden.clone()));
        for (name, reason) in hidden.iter().filter(|(name, reason)| before.get(*name) != Some(reason)) {
            tracing::warn!(cell = %name, reason, "the cell cannot be shown");
        }
        self.local.store(Arc::new(next));
        // Not before: who comes meanwhile must wait for what is being made of it.
        self.followed.store(revision, Ordering::Release);
    }

    fn known_cells(&self) -> BTreeMap<CellName, Result<Location>> {
        let snapshot = self.global.mirror.snapshot();
        let Ok(dir) = TopoPath::parse("cells") else { return BTreeMap::new() };
        snapshot
            .below(&dir)
            .filter_map(|(path, record)| {
                let name = path.below(&dir)?.strip_suffix("/CellInfo")?;
                let name = CellName::new(name).ok().filter(|name| !name.is_global())?;
                if self.options.only.as_ref().is_some_and(|only| !only.contains(&name)) {
                    return None;
                }
                let implementation = self.options.global.implementation;
                let location = (self.read_cell_info)(&record.value)
                    .map(|(server, root)| Location { implementation, server, root })
                    .ok_or_else(|| Error::new(Kind::BadMessage, "its CellInfo record cannot be decoded"));
                Some((name, location))
            })
            .collect()
    }
}

fn open_cell(
    name: CellName,
    location: Location,
    options: &CellOptions,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<Cell>> {
    let backend = crate::backend::open(&name, &location, &options.connect).map_err(|error| {
        let mut error = Error::from(error);
        error.reason = format!("cell {name} ({location}): {}", error.reason);
        error
    })?;
    let mirror = Mirror::new(backend.clone(), options.mirror);
    let stop = stop.child_token();
    let span = tracing::info_span!("cell", name = %name);
    tasks.spawn(tracing::Instrument::instrument(mirror.clone().run(stop.clone()), span));
    Ok(Arc::new(Cell {
        name,
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
    mut updates: tokio::sync::broadcast::Receiver<Arc<crate::mirror::News>>,
    stop: CancellationToken,
) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        let concerned = tokio::select! {
            () = stop.cancelled() => return,
            news = updates.recv() => match news {
                Ok(news) => news.updates.iter().any(|update| update.path.name() == "CellInfo"),
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

/// The services of a mount by the name that Vitess gives them.
impl std::str::FromStr for Implementation {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        <Self as clap::ValueEnum>::from_str(text, true)
    }
}
