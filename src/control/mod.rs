//! `.topofs`: what the mount says about itself, as files. Never touches a backend except by asking a mirror to compare
//! itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Mutex;

use crate::alive;
use crate::cells::{Cell, Cells};
use crate::error::{Error, Kind, Result};
use crate::journal::{EventLog, RefusalLog, Requests};
use crate::name::CellName;

mod commands;
mod figures;
mod helper;
mod metrics;
mod problems;
mod status;

pub use commands::{BreakLock, Command, HELP as COMMANDS};
pub use helper::Helper;
pub use metrics::CONTENT_TYPE;
pub use problems::Problems;
pub use status::{LockCounts, NAMED_SCRATCH, SpaceCount, TreeCounts};

/// A file in the control directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlFile {
    /// The state of the mount as JSON.
    Status,
    /// The figures of the mount in Prometheus's text format.
    Metrics,
    /// The last refused operations as JSON lines, newest last.
    Errors,
    /// The events, as JSON lines, newest last.
    Events,
    /// The locks of the topology as JSON lines.
    Locks,
    /// What is wrong with the records that the mount knows, as JSON lines.
    Problems,
    /// The effective settings as JSON, without secrets.
    Config,
    /// The version of topofs.
    Version,
    /// Takes commands.
    Control,
}

impl ControlFile {
    /// All of them.
    pub const ALL: [ControlFile; 9] = [
        ControlFile::Status,
        ControlFile::Metrics,
        ControlFile::Errors,
        ControlFile::Events,
        ControlFile::Locks,
        ControlFile::Problems,
        ControlFile::Config,
        ControlFile::Version,
        ControlFile::Control,
    ];

    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            ControlFile::Status => "status",
            ControlFile::Metrics => "metrics",
            ControlFile::Errors => "errors",
            ControlFile::Events => "events",
            ControlFile::Locks => "locks",
            ControlFile::Problems => "problems",
            ControlFile::Config => "config",
            ControlFile::Version => "version",
            ControlFile::Control => "control",
        }
    }

    /// The file of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name() == name)
    }
}

/// A command that waits for a service.
#[derive(Debug)]
pub enum Order {
    /// Take a lock away from its holder.
    BreakLock(BreakLock),
    /// Repair the second places of these cells.
    Repair(Vec<Arc<Cell>>),
}

/// Cells that are repaired at the same time. Each of them lists two services.
const REPAIRS: usize = 8;

impl Order {
    /// Repairs cells, each whatever becomes of the others. Fails with what went wrong.
    pub async fn repair(cells: Vec<Arc<Cell>>) -> Result<()> {
        let mut failed: Option<Error> = None;
        // A service that does not answer is waited for once, not once for each cell.
        let repairs = cells.into_iter().map(|cell| async move { cell.repair().await });
        let mut repairs = futures::stream::iter(repairs).buffered(REPAIRS);
        while let Some(repaired) = repairs.next().await {
            if let Err(error) = repaired {
                failed = Some(match failed {
                    None => error,
                    Some(first) => Error::new(first.kind, format!("{}; {}", first.reason, error.reason)),
                });
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The cell that a command names.
fn named(cells: &Cells, name: &CellName) -> Result<Arc<Cell>> {
    cells.get(name).ok_or_else(|| invalid(format!("no cell {name}")))
}

/// The cells that are kept in two places.
fn twofold(cells: &Cells) -> Result<Vec<Arc<Cell>>> {
    let cells: Vec<Arc<Cell>> = cells.all().into_iter().filter(|cell| cell.second.is_some()).collect();
    match cells.is_empty() {
        true => {
            Err(invalid("there is nothing to repair: this mount has one service (--topo-implementation)".to_owned()))
        }
        false => Ok(cells),
    }
}

/// Changes the level of the log: a filter as `RUST_LOG` takes it.
pub type SetLogLevel = Box<dyn Fn(&str) -> std::result::Result<(), String> + Send + Sync>;

/// What the control files show and do.
pub struct Control {
    /// Refused operations.
    pub errors: RefusalLog,
    /// What happens.
    pub events: EventLog,
    /// Requests of the kernel by kind.
    pub requests: Requests,
    /// The process that raises events.
    pub helper: Helper,
    /// What is wrong with the records.
    pub problems: Problems,
    config: serde_json::Value,
    set_log_level: SetLogLevel,
    started: std::time::SystemTime,
    /// The size of the status at the last read; 0 before.
    status_size: AtomicUsize,
    /// The same of the metrics.
    metrics_size: AtomicUsize,
    /// Held while the metrics are put together, even if the reader has left: no number of readers takes more than one
    /// processor.
    metrics_turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Control {
    /// `config` is shown unchanged, so it must contain no secrets.
    pub fn new(config: serde_json::Value, set_log_level: SetLogLevel) -> Self {
        Self {
            errors: RefusalLog::default(),
            events: EventLog::default(),
            requests: Requests::default(),
            helper: Helper::default(),
            problems: Problems::default(),
            config,
            set_log_level,
            started: std::time::SystemTime::now(),
            status_size: AtomicUsize::new(0),
            metrics_size: AtomicUsize::new(0),
            metrics_turn: Arc::default(),
        }
    }

    /// The content of a file now. Asks the tree for its counts only if the file shows them.
    pub fn read(&self, file: ControlFile, cells: &Cells, counts: impl FnOnce() -> TreeCounts) -> Bytes {
        match file {
            ControlFile::Status => {
                let content = pretty(&status::status(self, cells, &counts()));
                self.status_size.store(content.len(), Ordering::Relaxed);
                content
            }
            ControlFile::Errors => self.errors.lines(),
            // A reader of `events` follows the log; the others are found out when they are opened.
            ControlFile::Events | ControlFile::Metrics | ControlFile::Locks | ControlFile::Problems => Bytes::new(),
            ControlFile::Config => pretty(&self.config),
            ControlFile::Version => format!("topofs {}\n", env!("CARGO_PKG_VERSION")).into(),
            ControlFile::Control => Bytes::from_static(commands::HELP.as_bytes()),
        }
    }

    /// The metrics now. A cell may be so large, and cells so many, that this takes a moment: so it never happens on the
    /// thread that answers the kernel.
    pub async fn metrics(
        self: &Arc<Self>,
        cells: Arc<Cells>,
        counts: impl FnOnce() -> TreeCounts + Send + 'static,
    ) -> Result<Bytes> {
        let (control, turn) = (self.clone(), self.metrics_turn.clone().lock_owned().await);
        alive::blocking("the metrics", move || {
            let _turn = turn;
            let text = metrics::text(&control, &cells, Some(&counts()))?;
            control.metrics_size.store(text.len(), Ordering::Relaxed);
            Ok(text.into())
        })
        .await?
    }

    /// The size of a file. Anybody may ask for it at any rate, so the answer counts and prints nothing: the sizes of
    /// the status and of the metrics are those at the last read. A program reads a control file to its end, whatever
    /// its size.
    pub fn size(&self, file: ControlFile, cells: &Cells) -> usize {
        match file {
            ControlFile::Events => self.events.size(),
            ControlFile::Errors => self.errors.size(),
            ControlFile::Problems => self.problems.size(),
            ControlFile::Status => match self.status_size.load(Ordering::Relaxed) {
                0 => self.read(file, cells, TreeCounts::default).len(),
                size => size,
            },
            ControlFile::Metrics => match self.metrics_size.load(Ordering::Relaxed) {
                0 => {
                    let size = metrics::text(self, cells, None).map_or(0, |text| text.len());
                    self.metrics_size.store(size, Ordering::Relaxed);
                    size
                }
                size => size,
            },
            file => self.read(file, cells, TreeCounts::default).len(),
        }
    }

    /// Carries out the commands in a text, line by line, up to the first error. Returns those that wait for a service.
    pub fn command(&self, text: &[u8], cells: &Cells) -> Result<Vec<Order>> {
        let mut orders = Vec::new();
        for command in commands::parse(text)? {
            match command? {
                Command::Resync(None) => cells.all().iter().for_each(|cell| cell.request_resync()),
                Command::Resync(Some(name)) => named(cells, &name)?.request_resync(),
                Command::Reread(None) => cells.all().iter().for_each(|cell| cell.request_reread()),
                Command::Reread(Some(name)) => named(cells, &name)?.request_reread(),
                Command::BreakLock(order) => orders.push(Order::BreakLock(order)),
                Command::Repair(None) => orders.push(Order::Repair(twofold(cells)?)),
                Command::Repair(Some(name)) => orders.push(Order::Repair(vec![named(cells, &name)?])),
                Command::Log(level) => {
                    (self.set_log_level)(&level).map_err(|error| invalid(format!("{level}: {error}")))?;
                }
            }
        }
        Ok(orders)
    }
}

fn invalid(reason: String) -> Error {
    Error::new(Kind::Invalid, reason)
}

fn pretty(value: &serde_json::Value) -> Bytes {
    format!("{value:#}\n").into()
}
