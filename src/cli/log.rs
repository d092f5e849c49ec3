//! Where the log goes, and how its level changes at run time.

use std::sync::Mutex;

use anyhow::{Context, anyhow};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use super::flags::process::ProcessArgs;
use super::one_line::OneLine;
use crate::control::SetLogLevel;

/// fuser logs every reply to a caller that was killed meanwhile; the ZooKeeper client logs every session and attempt.
/// Both also return what matters as an error.
const QUIET: &str = "fuser=off,zookeeper_client=off";

/// Starts logging to the target in the flags; to syslog if nobody would see standard error.
pub(super) fn start(args: &ProcessArgs) -> anyhow::Result<SetLogLevel> {
    let (filter, handle) = reload::Layer::new(filter(args)?);
    let format = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    if let Some(path) = &args.log_file {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open the log file {}", path.display()))?;
        registry.with(format.with_writer(OneLine(Mutex::new(file)))).try_init()?;
    } else if args.stays() {
        registry.with(format.with_writer(OneLine(std::io::stderr))).try_init()?;
    } else {
        let (options, facility) = (syslog_tracing::Options::LOG_PID, syslog_tracing::Facility::Daemon);
        let syslog = syslog_tracing::Syslog::new(c"topofs", options, facility).context("syslog is already in use")?;
        // Syslog adds time and level itself.
        registry.with(format.with_writer(OneLine(syslog)).without_time().with_level(false)).try_init()?;
    }
    Ok(Box::new(move |level| {
        let filter = parse(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

fn filter(args: &ProcessArgs) -> anyhow::Result<EnvFilter> {
    let level = if args.debug { "debug" } else { &args.log_level };
    parse(level).with_context(|| format!("--log-level {level}"))
}

fn parse(level: &str) -> anyhow::Result<EnvFilter> {
    /// The words that are a level; EnvFilter would read any other word as the name of a module.
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let is_filter = level.contains(['=', ',']);
    if !is_filter && !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
        return Err(anyhow!("not a log level: use one of {}", LEVELS.join(", ")));
    }
    Ok(EnvFilter::try_new(if is_filter { level.to_owned() } else { format!("{level},{QUIET}") })?)
}
