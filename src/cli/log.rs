//! Where the log goes, and how its level changes at run time.

use std::fmt;
use std::sync::Mutex;

use anyhow::{Context, anyhow};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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

/// What people hear of a command that needs no mount, beside its result.
#[derive(Debug, Clone, Copy)]
pub(super) enum Heard {
    /// Warnings and errors.
    Warnings,
    /// Errors only: the command itself reports what warnings would say.
    Errors,
}

/// Starts logging to standard error for a command that runs in a terminal, in the words of its other complaints.
pub(super) fn start_for_command(heard: Heard) -> anyhow::Result<()> {
    let level = match heard {
        Heard::Warnings => "warn",
        Heard::Errors => "error",
    };
    let format = tracing_subscriber::fmt::layer().with_ansi(false).event_format(Complaint);
    let registry = tracing_subscriber::registry().with(parse(level)?);
    Ok(registry.with(format.with_writer(OneLine(std::io::stderr))).try_init()?)
}

/// An event as a complaint: `topofs: warning: cell name=zone1: the watch is broken cause=...`.
struct Complaint;

impl<S, N> FormatEvent<S, N> for Complaint
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = if *event.metadata().level() == Level::ERROR { "error" } else { "warning" };
        write!(to, "topofs: {level}: ")?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
            write!(to, "{} {fields}: ", span.name())?;
        }
        context.format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
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
