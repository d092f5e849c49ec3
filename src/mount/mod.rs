//! The life of a mount: connect, attach to the kernel, serve, detach. Nowhere else may blocking and asynchronous code
//! meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::BackoffBuilder;

use crate::cells::{CellOptions, Cells};
use crate::control::{CONTENT_TYPE, Control, SetLogLevel};
use crate::error::{Error, Kind, Result};
use crate::fuse::Adapter;
use crate::notify;
use crate::record::Records;
use crate::scrape::{Listening, MetricsAddress, Page};
use crate::tree::{Tree, TreeOptions};

mod attach;
mod daemon;
mod doubts;
mod ending;
mod fusermount;
mod kernel;
mod manager;
mod point;
mod serving;
mod spec;
mod table;
mod umount;
mod watchdog;

pub use daemon::{Failed, Readiness, Side, detach};
pub(crate) use doubts::shut_out;
use kernel::KernelMount;
pub use manager::Manager;
pub use point::{CannotMount, MountPoint};
use serving::{Serving, Signals};
use spec::MountSpec;
#[cfg(test)]
pub(crate) use table::parse;
pub(crate) use table::{Entry, Table, unescape};
pub(crate) use umount::{Refused, unmount};

/// Shortest and longest pause between attempts to reach the global topology while `--retry` lasts.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How many calls in a row the start of a mount may need, beside what `--retry` gives: more than it does.
const CALLS_AT_START: u32 = 4;
/// Session threads: one for each core, within bounds.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// Everything that a mount is made from.
pub struct Settings {
    /// Where to mount.
    pub mountpoint: MountPoint,
    /// What the mount table shows as the source: no secrets.
    pub source: String,
    /// The cells.
    pub cells: CellOptions,
    /// How records are shown.
    pub records: Arc<Records>,
    /// How the tree is shown.
    pub tree: TreeOptions,
    /// Other users may look, too; the kernel checks permissions.
    pub allow_other: bool,
    /// How long to keep trying when the global topology does not answer.
    pub retry: Duration,
    /// Shown in `.topofs/config`: no secrets.
    pub config: serde_json::Value,
    /// Changes the level of the log.
    pub set_log_level: SetLogLevel,
    /// How long a session thread looks for the next request before it sleeps; zero if not at all.
    pub spin: Duration,
    /// Where the metrics are served over HTTP.
    pub metrics: Option<MetricsAddress>,
}

/// Serves a mount until it is unmounted or a signal ends the process. Returns when nothing is in flight any more.
pub fn serve(settings: Settings, ready: Readiness, manager: &Manager) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io_error)?;
    let outcome = runtime.block_on(run(settings, ready, manager));
    // Work that is left waits for backends that do not answer.
    runtime.shutdown_background();
    outcome
}

async fn run(settings: Settings, ready: Readiness, manager: &Manager) -> Result<()> {
    let timeout = settings.cells.connect.timeout;
    let spec = MountSpec {
        mountpoint: settings.mountpoint.path().to_owned(),
        source: settings.source.clone(),
        allow_other: settings.allow_other,
        read_only: settings.tree.read_only,
        direct_io: settings.tree.direct_io,
        spin: settings.spin,
        threads: std::thread::available_parallelism()
            .map_or(*THREADS.start(), usize::from)
            .clamp(*THREADS.start(), *THREADS.end()),
    };
    let cannot_mount =
        |error| Error::new(Kind::Io, format!("cannot mount {}: {error}", settings.mountpoint.path().display()));
    settings.mountpoint.look().map_err(cannot_mount)?;
    doubts::of_settings(&settings, &ready);
    // Signals are caught before the mount exists, so that none can leave it behind.
    let mut signals = Signals::listen().map_err(io_error)?;
    manager.say(&format!("connecting to {}", spec.source));
    // What cannot be had is known before there is a mount.
    let endpoint = settings.metrics.map(Listening::at).transpose().map_err(io_error)?;
    let cells = tokio::select! {
        cells = manager.starting(settings.retry + timeout * CALLS_AT_START, connect(&settings, manager)) => cells?,
        () = signals.end() => return Err(Error::new(Kind::Interrupted, "interrupted")),
    };
    doubts::of_cells(&cells, &settings, &ready);
    if let Some(limit) = settings.tree.request_timeout {
        let limit = limit.as_secs();
        tracing::warn!(
            limit,
            ?timeout,
            "the kernel gives up a mount whose requests take longer: waits end before, calls are shorter"
        );
    }
    let control = Arc::new(Control::new(settings.config, settings.set_log_level));
    let tree = Tree::new(cells.clone(), settings.records, control, settings.tree);
    notify::follow(&tree);
    let serve = |endpoint: Listening| endpoint.serve(metrics_of(&tree), CONTENT_TYPE);
    let _serving = endpoint.map(serve).transpose().map_err(io_error)?;
    let adapter = Adapter::new(tree.clone(), tokio::runtime::Handle::current());
    let waiting = adapter.waiting();
    let mut mount = KernelMount::start(adapter, &spec, settings.mountpoint, &tree)
        .map_err(|error| Error::new(Kind::Io, format!("cannot mount {}: {error}", spec.mountpoint.display())))?;
    tracing::info!(mountpoint = %spec.mountpoint.display(), source = %spec.source, "mounted");
    let serving = Serving { cells: &cells, tree: &tree, manager, timeout };
    // What has been started must have an end, and nobody else would ever unmount it.
    let served = match mount.watch(manager).and_then(|watchdog| ready.report().map(|()| watchdog)) {
        Ok(_watchdog) => serving.until_end(&mut mount, &mut signals).await,
        Err(error) => mount.unmount().and(Err(error)),
    };
    ending::finish(&tree, &cells, &waiting, timeout).await;
    served.map_err(io_error)
}

/// The metrics of a tree, for as long as it exists.
fn metrics_of(tree: &Arc<Tree>) -> Page {
    let tree = Arc::downgrade(tree);
    Arc::new(move || {
        let tree = tree.upgrade();
        Box::pin(async move {
            match tree {
                Some(tree) => tree.metrics().await,
                None => Err(Error::new(Kind::Io, "the mount is ending")),
            }
        })
    })
}

/// How long the kernel lets a request take before it gives up a mount; `None` if for ever. Anything that takes longer,
/// even a wait for a lock, would lose the mount.
pub fn request_timeout() -> Option<Duration> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}")).ok()?.trim().parse().ok();
    let limits = ["default_request_timeout", "max_request_timeout"].into_iter().filter_map(read);
    limits.filter(|seconds| *seconds > 0).min().map(Duration::from_secs)
}

/// The longest time for one call to a service. A request may need several calls, and must end before the kernel's
/// patience does.
pub fn operation_timeout(wanted: Duration, request_timeout: Option<Duration>) -> Duration {
    /// A save that takes a lock for a moment needs six.
    const CALLS: u32 = 8;
    request_timeout.map_or(wanted, |limit| wanted.min((limit / CALLS).max(Duration::from_secs(1))))
}

async fn connect(settings: &Settings, manager: &Manager) -> Result<Arc<Cells>> {
    let deadline = Instant::now() + settings.retry;
    let (shortest, longest) = RETRY_PAUSE;
    let pauses = backon::ExponentialBuilder::new().with_min_delay(shortest).with_max_delay(longest).without_max_times();
    let mut pauses = pauses.build();
    loop {
        match Cells::start(settings.cells.clone(), settings.records.clone()).await {
            Err(error)
                if matches!(error.kind, Kind::Unreachable | Kind::Denied) && Instant::now() + shortest < deadline =>
            {
                tracing::warn!(%error, "trying again");
                manager.say(&format!("trying again: {error}"));
                let left = deadline.saturating_duration_since(Instant::now());
                tokio::time::sleep(pauses.next().unwrap_or(longest).min(left)).await;
            }
            outcome => return outcome,
        }
    }
}

fn io_error(error: std::io::Error) -> Error {
    Error::new(Kind::Io, error.to_string())
}
