//! How the daemon runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::level::log_level;
use super::values::spin;
use crate::scrape::MetricsAddress;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(in crate::cli) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// How the daemon runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub(in crate::cli) struct ProcessArgs {
    /// Stay in the foreground
    #[arg(long, short)]
    pub foreground: bool,
    /// Stay in the foreground and log everything
    #[arg(long, short)]
    pub debug: bool,
    /// Log level: off, error, warn, info, debug, trace, or a filter in the syntax of RUST_LOG
    ///
    /// A filter gives levels to parts of topofs: `warn,topofs::backend=debug`. The parts are its modules; with
    /// --log-format json each line has its part, as `target`.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level, env = "TOPOFS_LOG_LEVEL")]
    pub log_level: String,
    /// Append the log to this file [default: standard error in the foreground, syslog in the background]
    #[arg(long, value_name = "FILE", env = "TOPOFS_LOG_FILE")]
    pub log_file: Option<PathBuf>,
    /// How a line of the log looks
    ///
    /// A JSON object has the members `time`, `level`, `target` and `message`, and those that the event has, among them
    /// `cell`, `op`, `path`, `errno`, `uid` and `pid`.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = "TOPOFS_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Serve the metrics over HTTP, at /metrics of this address: PORT, ADDRESS:PORT or [IPV6-ADDRESS]:PORT
    ///
    /// A port alone is one that only this host reaches. Whoever reaches the address may read the metrics: they contain
    /// names of cells and numbers, but no records. The same is in .topofs/metrics.
    #[arg(long, value_name = "ADDRESS", env = "TOPOFS_METRICS_ADDRESS")]
    pub metrics_address: Option<MetricsAddress>,
    /// How long to look for the next request before sleeping, while requests come back to back; 0 for not at all
    ///
    /// Waking up costs more than most answers where there is more than one processor. An idle mount never looks, and
    /// neither does one that may use one processor only. At most 10ms.
    #[arg(long, value_name = "DURATION", default_value = "100us", value_parser = spin, env = "TOPOFS_SPIN")]
    pub spin: Duration,
    /// Mount options as mount(8) takes them
    ///
    /// Every long flag is also an option (`-o ro,allow_other,retry=2m`), with `_` or `-` in its name. Write a comma in
    /// a value as `\,`, or put the value in double quotes. If an option is given twice, the last one counts. topofs
    /// ignores options that only mount(8) and systemd need: auto, noauto, user, nouser, _netdev, nofail, defaults, dev,
    /// suid, exec, the atime family, async, sync, x-*, X-* and comment.
    #[arg(short, value_name = "OPTION,...", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
}

impl ProcessArgs {
    /// Whether the process stays in the foreground.
    pub fn stays(&self) -> bool {
        self.foreground || self.debug
    }
}
