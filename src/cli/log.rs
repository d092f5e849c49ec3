//! Where the log goes, and how its level changes at run time.

use std::fmt;
use std::sync::Mutex;

use anyhow::Context;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use super::flags::level::parse;
use super::flags::process::{LogFormat, ProcessArgs};
use super::one_line::OneLine;
use crate::control::SetLogLevel;
use crate::plain::{SHOWN, short, shown};

mod journal;
mod json;

use journal::Journal;

/// What adds time and level to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// We do.
    Own,
    /// The log that gets the line.
    Others,
}

/// Starts logging to the target in the flags; to syslog if nobody would see standard error.
pub(super) fn start(args: &ProcessArgs) -> anyhow::Result<SetLogLevel> {
    let (filter, handle) = reload::Layer::new(filter(args)?);
    let registry = tracing_subscriber::registry().with(filter);
    let format = args.log_format;
    if let Some(path) = &args.log_file {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open the log file {}", path.display()))?;
        registry.with(layer(format, Frame::Own, Mutex::new(file))).try_init()?;
    } else if args.stays() && journal::is_standard_error() {
        registry.with(layer(format, Frame::Others, Journal)).try_init()?;
    } else if args.stays() {
        registry.with(layer(format, Frame::Own, std::io::stderr)).try_init()?;
    } else {
        let (options, facility) = (syslog_tracing::Options::LOG_PID, syslog_tracing::Facility::Daemon);
        let syslog = syslog_tracing::Syslog::new(c"topofs", options, facility).context("syslog is already in use")?;
        registry.with(layer(format, Frame::Others, syslog)).try_init()?;
    }
    Ok(Box::new(move |level| {
        let filter = parse(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

fn layer<S, W>(format: LogFormat, frame: Frame, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(OneLine(writer));
    match (format, frame) {
        (LogFormat::Text, Frame::Own) => layer.boxed(),
        (LogFormat::Text, Frame::Others) => layer.without_time().with_level(false).boxed(),
        // A program that reads the objects need not know which way they came.
        (LogFormat::Json, _) => layer.fmt_fields(json::Fields).event_format(json::Object).boxed(),
    }
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
    parse(level).with_context(|| format!("--log-level {}", shown(&short(level, SHOWN))))
}
