//! One cell: its location, its backend, its mirror. Every error names the cell and its location.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use imbl::OrdMap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ending::Ending;
use super::options::CellOptions;
use super::second::{Second, SecondPlace};
use super::turns::Turns;
use crate::alive;
use crate::backend::{
    Applied, Backend, BackendError, Change, Earlier, Errors, Failure, Fetched, Limits, Location, Node, Revision, Role,
};
use crate::error::{Error, Kind, Result, UNCERTAIN};
use crate::mirror::{Health, Histories, Mirror, Record, Snapshot};
use crate::name::{CellName, TopoPath};

impl CellOptions {
    /// Where the global topology is, in all its places.
    pub fn source(&self) -> String {
        match &self.connect.tee {
            None => self.global.to_string(),
            Some(tee) => format!("tee:{};{}", self.global, tee.secondary),
        }
    }
}

/// How many may read the past of a record at once: each of them may hold many versions.
const PAST_READERS: usize = 4;

/// One cell: its location, its backend, its mirror.
#[derive(Debug)]
pub struct Cell {
    /// Its name; the first level of the tree.
    pub name: CellName,
    /// Where its data is.
    pub location: Location,
    /// Its records.
    pub mirror: Arc<Mirror>,
    /// Where its updates go, too.
    pub second: Option<Second>,
    /// What has gone wrong in calls of its service.
    pub errors: Errors,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) turns: Turns,
    pub(super) ending: Ending,
    /// Those who may read the past of a record at once.
    past_turns: Semaphore,
    timeout: Duration,
    stop: CancellationToken,
    serve_stale: bool,
    /// The hint for an address without a port.
    untold_port: Option<String>,
    /// Whether it has the keys of the global topology.
    holds_global: bool,
}

impl Cell {
    /// Connects a cell in the background. It loads nothing until somebody asks for it.
    pub(super) fn open(
        name: CellName,
        (location, second): (Location, Option<SecondPlace>),
        (options, histories): (&CellOptions, &Arc<Histories>),
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>> {
        let holds_global = location.is_same_place(&options.global);
        let (primary, errors) = options.open(&name, (&location, &options.global)).map_err(|error| {
            let mut error = Error::from(error);
            error.reason = format!("cell {name} ({location}): {}", error.reason);
            error
        })?;
        let second = second.zip(options.connect.tee.as_ref());
        let second = second.map(|(place, tee)| Second::open(&name, place, (&primary, &location), (options, tee)));
        let backend = second.as_ref().map_or(primary, Second::both);
        let mirror = Mirror::remembering(backend.clone(), options.mirror, histories.clone());
        let stop = stop.child_token();
        if let Some(second) = &second {
            second.run(&name, &mirror, tasks, &stop);
        }
        let span = tracing::info_span!("cell", name = %name);
        tasks.spawn(tracing::Instrument::instrument(
            mirror.clone().run(format!("mirror of {name}"), stop.clone()),
            span,
        ));
        Ok(Arc::new(Self {
            name,
            untold_port: location.untold_port(&options.connect),
            holds_global,
            location,
            mirror,
            second,
            errors,
            backend,
            turns: Turns::default(),
            ending: Ending::default(),
            past_turns: Semaphore::new(PAST_READERS),
            timeout: options.connect.timeout,
            stop,
            serve_stale: options.mirror.serve_stale,
        }))
    }

    /// The records, after the first list. Fails at once if the cell is known to be down, unless a list is on its way.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        let is_down = match self.mirror.health() {
            Health::Live | Health::Shaky => return Ok(self.mirror.snapshot()),
            Health::Denied => return self.down(),
            Health::Down if self.serves_stale() => return self.down(),
            Health::Down => true,
            Health::Idle | Health::Loading => false,
        };
        let load = async {
            match is_down {
                true => self.mirror.reload_while_answered(self.timeout).await,
                false => self.mirror.load_while_answered(self.timeout).await,
            }
        };
        // A load goes on when this caller stops waiting.
        let is_answered = tokio::select! {
            is_answered = load => is_answered,
            () = self.ending.given_up() => true,
        };
        if !is_answered {
            let silence = humantime::format_duration(self.timeout);
            return Err(Error::new(Kind::Unreachable, format!("{self}: not loaded, and no answer within {silence}")));
        }
        self.snapshot_now()
    }

    /// The records, if the first list is there.
    pub fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        match self.mirror.health() {
            Health::Live | Health::Shaky => Ok(self.mirror.snapshot()),
            Health::Down | Health::Denied | Health::Idle | Health::Loading => self.down(),
        }
    }

    /// The records of an earlier moment, with the reason if they are unknown. A service that denies them now denies
    /// those of then, too.
    pub fn at(&self, time: SystemTime) -> Result<Snapshot> {
        if self.mirror.is_denied() {
            return Err(self.unreachable());
        }
        self.mirror.at(time).map_err(|unknown| Error::new(Kind::NotKept, format!("{self}: {unknown}")))
    }

    /// The cell is no longer shown, or has another location now.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Returns when the cell is no longer shown, or has another location.
    pub async fn replaced(&self) {
        self.stop.cancelled().await;
    }

    /// Whether the mount shows old records while the cell is down. It never shows records that it may no longer read.
    pub fn serves_stale(&self) -> bool {
        self.serve_stale && self.mirror.is_loaded() && !self.mirror.is_denied()
    }

    fn down(&self) -> Result<Arc<Snapshot>> {
        if self.serves_stale() {
            return Ok(self.mirror.snapshot());
        }
        Err(self.unreachable())
    }

    /// Why the cell does not answer. The words stay the same until the cause is another one.
    pub fn not_answering(&self) -> Error {
        let cause = self.mirror.trouble().map_or_else(String::new, |(cause, _)| format!(": {cause}"));
        let (kind, what) = match self.mirror.health() {
            Health::Denied => (Kind::Denied, "may not be read"),
            _ => (Kind::Unreachable, "is not reachable"),
        };
        Error::new(kind, format!("{self} {what}{cause}"))
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

    /// All states of a record that the service still has; `None` if it keeps only the present one.
    pub async fn earlier(&self, path: &TopoPath) -> Result<Option<Earlier>> {
        self.refuse_if_down()?;
        // It takes many calls, and many may want it.
        let called = async {
            let _turn = self.past_turns.acquire().await;
            self.call(("earlier", ""), self.backend.earlier(path)).await
        };
        tokio::time::timeout(self.timeout, called).await.unwrap_or_else(|_| {
            let waited = humantime::format_duration(self.timeout);
            Err(Error::new(Kind::Unreachable, format!("{self}: the past of {path} is not read within {waited}")))
        })
    }

    /// When records were deleted, as far as the service still knows; `None` if it does not keep that.
    pub async fn deleted(&self) -> Result<Option<OrdMap<TopoPath, Vec<Revision>>>> {
        self.refuse_if_down()?;
        self.call(("deleted", ""), self.backend.deleted()).await
    }

    /// The records below a directory as the service has them now, at one point.
    pub async fn records_now(&self, dir: &TopoPath) -> Result<Snapshot> {
        self.refuse_if_down()?;
        let listing = self.call(("list", ""), self.backend.list(dir)).await?;
        let records = listing.nodes.into_iter().filter(|node| node.role == Role::Record);
        let records = records.map(|node| {
            let modified = node.modified.unwrap_or(SystemTime::UNIX_EPOCH);
            (node.path, Record { value: node.value, version: node.version, modified })
        });
        Ok(Snapshot { records: records.collect(), at: listing.at, ..Snapshot::default() })
    }

    /// Applies all changes or none. The mirror shows them at once.
    pub async fn apply(&self, changes: &[Change]) -> Result<Applied> {
        self.refuse_if_down()?;
        // After a panic nobody knows the outcome.
        let applied = self.call(("apply", UNCERTAIN), self.backend.apply(changes)).await?;
        self.mirror.wrote(changes, &applied);
        Ok(applied)
    }

    /// Compares the mirrors with the services now.
    pub fn request_resync(&self) {
        self.mirrors().for_each(|mirror| mirror.request_resync());
    }

    /// Reads everything that the services have, and compares the mirrors with that.
    pub fn request_reread(&self) {
        self.mirrors().for_each(|mirror| mirror.request_reread());
    }

    fn mirrors(&self) -> impl Iterator<Item = &Arc<Mirror>> {
        let second = self.second.as_ref().and_then(|second| second.mirror.as_ref());
        std::iter::once(&self.mirror).chain(second)
    }

    /// Brings everything at the second place to what this one has. Returns how many records differed.
    pub async fn repair(&self) -> Result<usize> {
        let Some(second) = &self.second else {
            return Err(Error::new(Kind::Invalid, format!("{self} is kept in one place: there is nothing to repair")));
        };
        let repaired = self.call(("repair", ""), second.repair()).await?;
        tracing::info!(cell = %self.name, records = repaired, "the secondary is repaired");
        Ok(repaired)
    }

    /// Who holds the lock of a directory at the second place, but not by this mount and not for a save.
    pub async fn foreign_holder_at_secondary(&self, dir: &TopoPath) -> Option<Node> {
        self.second.as_ref()?.foreign_holder(dir).await
    }

    /// Waits for updates that are on their way to the second place.
    pub(super) async fn settle(&self) {
        if let Some(second) = &self.second {
            second.settle(self.timeout).await;
        }
    }

    /// The mount is ending: gives up calls to services that are silent.
    pub(super) async fn give_up_if_silent(&self) {
        let second = async {
            if let Some(second) = &self.second {
                second.give_up_if_silent().await;
            }
        };
        let first = async {
            // Nobody waits for a cell that was never used.
            if self.mirror.health() != Health::Idle {
                self.ending.give_up_if_silent(&*self.backend, &self.mirror).await;
            }
        };
        futures::future::join(first, second).await;
    }

    /// Names of what this kind of service knows about a record beside its version.
    pub fn attributes(&self) -> &'static [&'static str] {
        self.backend.attributes()
    }

    /// One of [`Cell::attributes`], as the service has it now.
    pub async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>> {
        self.refuse_if_down()?;
        self.call(("attribute", ""), self.backend.attribute(path, name)).await
    }

    /// Whether the records of the global topology are here: in the global cell itself, and in one whose CellInfo record
    /// names the same server and root.
    pub fn holds_global(&self) -> bool {
        self.holds_global
    }

    /// Whether another cell shows the same records, and so has the same locks.
    pub fn is_same_place(&self, other: &Cell) -> bool {
        self.name == other.name || self.location.is_same_place(&other.location)
    }

    /// Where it is at the second service.
    pub fn second_location(&self) -> Option<&Location> {
        match &self.second.as_ref()?.place {
            SecondPlace::At(location) => Some(location),
            SecondPlace::Nowhere(_) | SecondPlace::Unknown(_) => None,
        }
    }

    /// The limits of the service.
    pub fn limits(&self) -> Limits {
        self.backend.limits()
    }

    /// Calls the service. A panic is an error of this call only; `after` is added to its error.
    async fn call<T>(
        &self,
        (what, after): (&str, &str),
        call: impl Future<Output = std::result::Result<T, BackendError>>,
    ) -> Result<T> {
        let answered = self.ending.answer(!after.is_empty(), call);
        let called = alive::guarded(format!("{what} in cell {}", self.name), answered)
            .await
            .unwrap_or_else(|panic| Err(BackendError::new(Failure::Other, format!("{panic}{after}"))));
        called.map_err(|error| self.explain(error))
    }

    pub(super) fn refuse_if_down(&self) -> Result<()> {
        match self.mirror.health() {
            Health::Down | Health::Denied => Err(self.unreachable()),
            Health::Idle | Health::Loading | Health::Live | Health::Shaky => Ok(()),
        }
    }

    pub(super) fn explain(&self, error: BackendError) -> Error {
        let mut error = Error::from(error);
        error.reason = format!("{self}: {}", error.reason);
        error
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let untold = self.untold_port.as_ref().map_or_else(String::new, |words| format!("; {words}"));
        write!(f, "cell {} ({}{untold})", self.name, self.location)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::backend::{Implementation, Listing, Loading, SharedPlace, WatchStream};
    use crate::mirror::MirrorOptions;

    /// A service whose first list never comes.
    #[derive(Debug, Default)]
    struct Never(Loading);

    #[async_trait::async_trait]
    impl Backend for Never {
        fn limits(&self) -> Limits {
            Limits { value: 0, changes: 0 }
        }
        async fn list(&self, _: &TopoPath) -> std::result::Result<Listing, BackendError> {
            std::future::pending().await
        }
        async fn get(&self, _: &TopoPath) -> std::result::Result<Fetched, BackendError> {
            std::future::pending().await
        }
        async fn apply(&self, _: &[Change]) -> std::result::Result<Applied, BackendError> {
            std::future::pending().await
        }
        fn loading(&self) -> Loading {
            self.0.clone()
        }
        async fn follow(&self) -> std::result::Result<(Listing, WatchStream), BackendError> {
            std::future::pending().await
        }
        fn locked_dir(&self, _: &TopoPath) -> Option<TopoPath> {
            None
        }
        async fn enter(&self, _: &TopoPath, _: &Bytes) -> std::result::Result<SharedPlace, BackendError> {
            Err(BackendError::new(Failure::Other, "there are no locks"))
        }
        async fn break_lock(&self, _: &Node) -> std::result::Result<(), BackendError> {
            Ok(())
        }
    }

    /// The cell of such a service.
    fn never(serve_stale: bool) -> (Cell, Loading) {
        let backend = Arc::new(Never::default());
        let (resync_interval, stale_after) = (Duration::from_secs(3600), Duration::from_secs(10));
        let mirror = Mirror::new(backend.clone(), MirrorOptions { resync_interval, stale_after, serve_stale });
        let stop = CancellationToken::new();
        tokio::spawn(mirror.clone().run("the mirror", stop.clone()));
        let (implementation, server) = (Implementation::Memory, "never".to_owned());
        let loading = backend.loading();
        let cell = Cell {
            name: CellName::global(),
            location: Location { implementation, server, root: "/x".to_owned() },
            mirror,
            second: None,
            errors: Errors::default(),
            backend,
            turns: Turns::default(),
            ending: Ending::default(),
            past_turns: Semaphore::new(PAST_READERS),
            timeout: Duration::from_secs(15),
            stop,
            serve_stale,
            untold_port: None,
            holds_global: true,
        };
        (cell, loading)
    }

    #[tokio::test(start_paused = true)]
    async fn a_cell_that_loads_for_ever_is_not_waited_for_for_ever() {
        for serve_stale in [false, true] {
            let (cell, _) = never(serve_stale);
            // A later caller waits no longer than the first.
            for _ in 0..2 {
                let waited = tokio::time::timeout(Duration::from_secs(16), cell.snapshot()).await;
                let error = waited.expect("it ends in time").unwrap_err();
                assert_eq!(error.kind, Kind::Unreachable);
                assert!(error.reason.contains("not loaded, and no answer within 15s"), "{error}");
            }
            assert!(cell.snapshot_now().is_err(), "what was never loaded is not shown as empty");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cell_whose_service_goes_on_answering_is_waited_for() {
        let (cell, loading) = never(false);
        let answering = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(14)).await;
                loading.answered(1_000);
            }
        };
        let begun = tokio::time::Instant::now();
        let (waited, ()) = tokio::join!(cell.snapshot(), answering);
        assert_eq!(waited.unwrap_err().kind, Kind::Unreachable);
        assert_eq!(begun.elapsed().as_secs(), 10 * 14 + 15, "no longer than a call after the last answer");
        assert_eq!(cell.mirror.loading(), Some(10_000));
        // What the mirror does with a list is no silence of the service.
        loading.told();
        assert!(tokio::time::timeout(Duration::from_secs(600), cell.snapshot()).await.is_err());
    }
}
