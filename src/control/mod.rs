//! `.topofs`: what the mount says about itself, as files. Owns the counters and the log of errors; never touches a backend
//! except by asking a mirror to compare itself.

use bytes::Bytes;
use serde_json::json;

use crate::cells::Cells;
use crate::error::{Error, Kind, Result};
use crate::name::CellName;

mod errors;
mod requests;
mod status;

pub use errors::{ErrorLog, Refusal};
pub use requests::{Op, Requests};
pub use status::TreeCounts;

/// The name of the control directory in the root of a mount. It opens by name and is not listed, so that `grep -r`, `tar` and
/// `cp -a` of a mount see the topology and nothing else.
pub const DIR_NAME: &str = ".topofs";

/// A file in the control directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlFile {
    /// The state of the mount as JSON.
    Status,
    /// The last refused operations as JSON lines, newest last.
    Errors,
    /// The effective settings as JSON, without secrets.
    Config,
    /// The version of topofs.
    Version,
    /// Takes commands.
    Control,
}

impl ControlFile {
    /// All of them.
    pub const ALL: [ControlFile; 5] =
        [ControlFile::Status, ControlFile::Errors, ControlFile::Config, ControlFile::Version, ControlFile::Control];

    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            ControlFile::Status => "status",
            ControlFile::Errors => "errors",
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

/// Changes the level of the log: a filter as `RUST_LOG` takes it.
pub type SetLogLevel = Box<dyn Fn(&str) -> std::result::Result<(), String> + Send + Sync>;

/// What the control files show and do.
pub struct Control {
    /// Refused operations.
    pub errors: ErrorLog,
    /// Requests of the kernel by kind.
    pub requests: Requests,
    config: serde_json::Value,
    set_log_level: SetLogLevel,
    started: std::time::SystemTime,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Control {
    /// `config` is shown as it is: it must hold no secrets.
    pub fn new(config: serde_json::Value, set_log_level: SetLogLevel) -> Self {
        Self {
            errors: ErrorLog::default(),
            requests: Requests::default(),
            config,
            set_log_level,
            started: std::time::SystemTime::now(),
        }
    }

    /// The content of a file now.
    pub fn read(&self, file: ControlFile, cells: &Cells, counts: &TreeCounts) -> Bytes {
        match file {
            ControlFile::Status => pretty(&status::status(self, cells, counts)),
            ControlFile::Errors => self.errors.lines(),
            ControlFile::Config => pretty(&self.config),
            ControlFile::Version => format!("topofs {}\n", env!("CARGO_PKG_VERSION")).into(),
            ControlFile::Control => Bytes::from_static(COMMANDS.as_bytes()),
        }
    }

    /// Does what was written to `control`, line by line.
    pub fn command(&self, text: &[u8], cells: &Cells) -> Result<()> {
        let invalid = |reason: String| Error::new(Kind::Invalid, reason);
        let text = std::str::from_utf8(text).map_err(|_| invalid("a command is text".to_owned()))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["resync"] => cells.all().iter().for_each(|cell| cell.mirror.request_resync()),
                ["resync", name] => {
                    let name = CellName::new(name)?;
                    let cell = cells.get(&name).ok_or_else(|| invalid(format!("no cell {name}")))?;
                    cell.mirror.request_resync();
                }
                ["log", level] => (self.set_log_level)(level).map_err(|error| invalid(format!("{level}: {error}")))?,
                _ => return Err(invalid(format!("unknown command {line:?}"))),
            }
        }
        Ok(())
    }
}

/// Shown when `control` is read.
const COMMANDS: &str = "\
# Write one of these to this file:
#   resync [CELL]   compare with a bulk list now
#   log LEVEL       error, warn, info, debug, trace, or a filter as RUST_LOG takes it
";

fn pretty(value: &serde_json::Value) -> Bytes {
    format!("{value:#}\n").into()
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(time: std::time::SystemTime) -> serde_json::Value {
    json!(humantime::format_rfc3339_millis(time).to_string())
}
