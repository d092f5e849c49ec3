//! `.topofs/metrics`: the figures of the mount in Prometheus's text format. Asks no service. Must never show anything
//! but numbers, names of cells, and words that `journal/metrics` and the counters define.

use std::borrow::Cow;
use std::time::UNIX_EPOCH;

use prometheus::Histogram;

use super::figures::{CellFigures, Figures, MirrorFigures, SECOND_STATES, STATES, SecondFigures};
use super::status::TreeCounts;
use super::{Control, Helper};
use crate::cells::Cells;
use crate::error::{Error, Kind, Result};
use crate::journal::metrics as names;

mod page;
mod process;

use page::{Page, label};
use process::Usage;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text. Without the counts of the tree it leaves out what takes a moment to find out, too.
pub(super) fn text(control: &Control, cells: &Cells, counts: Option<&TreeCounts>) -> Result<String> {
    let figures = Figures::of(cells);
    let mut page = Page::default();
    let written = (|| {
        page.one(&names::BUILD_INFO, [([env!("CARGO_PKG_VERSION")], 1.0)])?;
        requests(&mut page, control)?;
        backend(&mut page, cells)?;
        cell_metrics(&mut page, &figures)?;
        history(&mut page, &figures)?;
        events(&mut page, control)?;
        page.number(&names::PANICS, figures.panics.count as f64)?;
        if let Some(counts) = counts {
            tee(&mut page, &figures)?;
            tree(&mut page, counts)?;
        }
        process(&mut page)?;
        page.text()
    })();
    written.map_err(|error: prometheus::Error| Error::new(Kind::Io, format!("the metrics cannot be shown: {error}")))
}

fn requests(page: &mut Page, control: &Control) -> prometheus::Result<()> {
    let requests = &control.requests;
    page.one(&names::REQUESTS, requests.counts().map(|(op, count)| ([op.name()], count as f64)))?;
    requests.durations().try_for_each(|duration: &Histogram| page.histogram(duration))?;
    let errors = requests.errors().into_iter().map(|((op, errno), count)| ([op, errno], count as f64));
    page.one(&names::REQUEST_ERRORS, errors)?;
    page.number(&names::REQUESTS_WAITING, requests.waiting() as f64)?;
    let (spins, hits) = requests.spins();
    page.number(&names::SPINS, spins as f64)?;
    page.number(&names::SPIN_HITS, hits as f64)
}

fn backend(page: &mut Page, cells: &Cells) -> prometheus::Result<()> {
    cells.meter().durations().try_for_each(|duration| page.histogram(duration))
}

fn cell_metrics(page: &mut Page, figures: &Figures) -> prometheus::Result<()> {
    let cells: Vec<(Cow<'_, str>, &CellFigures)> =
        figures.cells.iter().map(|figures| (label(figures.cell.name.as_str()), figures)).collect();
    let info = cells.iter().map(|(cell, figures)| ([&**cell, figures.cell.location.implementation.name()], 1.0));
    page.one(&names::CELL_INFO, info)?;
    page.one(
        &names::CELL_STATE,
        cells.iter().flat_map(|(cell, figures)| {
            STATES.iter().map(|state| ([&**cell, state], f64::from(u8::from(*state == figures.mirror.state))))
        }),
    )?;
    page.one(&names::CELL_LAG, cells.iter().filter_map(|(cell, figures)| Some(([&**cell], lag(&figures.mirror)?))))?;
    page.one(
        &names::BACKEND_ERRORS,
        cells.iter().flat_map(|(cell, figures)| {
            figures.errors.iter().map(|(failure, count)| ([&**cell, failure], *count as f64))
        }),
    )?;
    type Figure = fn(&CellFigures) -> u64;
    let figure: [(_, Figure); 10] = [
        (&names::CELL_RECORDS, |figures| figures.mirror.records as u64),
        (&names::CELL_BYTES, |figures| figures.mirror.bytes as u64),
        (&names::CELL_EVENTS, |figures| figures.events),
        (&names::CELL_RESYNCS, |figures| figures.resyncs),
        (&names::CELL_MISSED, |figures| figures.missed),
        (&names::CELL_CAUGHT_UP, |figures| figures.caught_up),
        (&names::CELL_SILENCES, |figures| figures.silences),
        (&names::CELL_RECONNECTS, |figures| figures.reconnects),
        (&names::CELL_RESTORATIONS, |figures| figures.restorations),
        (&names::CELL_SKIPPED, |figures| figures.skipped_keys),
    ];
    for (metric, figure) in figure {
        page.one(metric, cells.iter().map(|(cell, figures)| ([&**cell], figure(figures) as f64)))?;
    }
    page.number(&names::CELLS_HIDDEN, figures.hidden.len() as f64)
}

fn lag(mirror: &MirrorFigures) -> Option<f64> {
    mirror.silent_for.map(|time| time.as_secs_f64())
}

/// The second places of a mount of two services.
fn tee(page: &mut Page, figures: &Figures) -> prometheus::Result<()> {
    let cells: Vec<(Cow<'_, str>, SecondFigures<'_>)> =
        figures.cells.iter().filter_map(|cell| Some((label(cell.cell.name.as_str()), cell.second()?))).collect();
    page.one(
        &names::TEE_STATE,
        cells.iter().flat_map(|(cell, second)| {
            SECOND_STATES.iter().map(|state| ([&**cell, state], f64::from(u8::from(*state == second.state))))
        }),
    )?;
    let mirrors = || cells.iter().filter_map(|(cell, second)| Some((&**cell, second.mirror.as_ref()?)));
    page.one(&names::TEE_RECORDS, mirrors().map(|(cell, mirror)| ([cell], mirror.records as f64)))?;
    page.one(&names::TEE_LAG, mirrors().filter_map(|(cell, mirror)| Some(([cell], lag(mirror)?))))?;
    page.one(
        &names::TEE_DRIFT,
        cells.iter().flat_map(|(cell, second)| {
            let drift = &second.drift;
            let kinds = [("missing", drift.missing), ("different", drift.different), ("left_over", drift.left_over)];
            kinds.map(|(kind, count)| ([&**cell, kind], count as f64))
        }),
    )?;
    let complete = cells.iter().map(|(cell, second)| ([&**cell], f64::from(u8::from(second.drift.is_complete))));
    page.one(&names::TEE_DRIFT_COMPLETE, complete)?;
    let failing = cells.iter().map(|(cell, second)| ([&**cell], f64::from(u8::from(second.failing.is_some()))));
    page.one(&names::TEE_FAILING, failing)?;
    page.one(
        &names::TEE_BACKEND_ERRORS,
        cells.iter().flat_map(|(cell, second)| {
            second.errors.iter().map(|(failure, count)| ([&**cell, failure], *count as f64))
        }),
    )
}

fn history(page: &mut Page, figures: &Figures) -> prometheus::Result<()> {
    let (usage, limits) = &figures.history;
    page.number(&names::HISTORY_RECORDS, usage.records as f64)?;
    page.number(&names::HISTORY_VERSIONS, usage.changes as f64)?;
    page.number(&names::HISTORY_BYTES, usage.bytes as f64)?;
    page.number(&names::HISTORY_LIMIT, limits.bytes as f64)?;
    page.number(&names::HISTORY_FORGOTTEN, usage.forgotten as f64)
}

fn events(page: &mut Page, control: &Control) -> prometheus::Result<()> {
    let Helper { pid, restarts, raised } = &control.helper;
    let load = std::sync::atomic::Ordering::Relaxed;
    page.number(&names::EVENTS, control.events.count() as f64)?;
    page.number(&names::EVENTS_RAISED, raised.load(load) as f64)?;
    page.number(&names::HELPER_RUNNING, f64::from(u8::from(pid.load(load) != 0)))?;
    page.number(&names::HELPER_RESTARTS, restarts.load(load) as f64)
}

fn tree(page: &mut Page, counts: &TreeCounts) -> prometheus::Result<()> {
    let TreeCounts { locks, spaces, .. } = counts;
    page.number(&names::LOCKS_HELD, locks.held as f64)?;
    page.number(&names::LOCKS_WAITING, locks.waiting as f64)?;
    page.number(&names::LOCKS_LOST, locks.lost as f64)?;
    page.number(&names::LOCKS_LONGEST, locks.longest.as_secs_f64())?;
    page.number(&names::EVENTS_LOST, counts.events_lost as f64)?;
    page.number(&names::INODES, counts.inodes as f64)?;
    page.number(&names::HANDLES, counts.handles as f64)?;
    page.number(&names::SCRATCH_FILES, counts.scratch_files as f64)?;
    page.number(&names::SCRATCH_BYTES, counts.scratch_bytes.0 as f64)?;
    page.number(&names::SCRATCH_LIMIT, counts.scratch_bytes.1 as f64)?;
    page.number(&names::LOCAL_DIRECTORIES, counts.local_directories as f64)?;
    let of_kind = |kind: &'static str| spaces.iter().filter(move |space| space.kind == kind);
    page.number(&names::SNAPSHOTS, of_kind("at").count() as f64)?;
    page.number(&names::STAGES, of_kind("stage").count() as f64)?;
    page.number(&names::STAGED_CHANGES, of_kind("stage").map(|stage| stage.changes).sum::<usize>() as f64)?;
    let caches = || counts.caches.iter();
    page.one(&names::CACHE_ENTRIES, caches().map(|(name, cache)| ([*name], cache.entries as f64)))?;
    page.one(&names::CACHE_WEIGHT, caches().map(|(name, cache)| ([*name], cache.weight as f64)))?;
    page.one(&names::CACHE_CAPACITY, caches().map(|(name, cache)| ([*name], cache.capacity as f64)))?;
    page.one(&names::CACHE_HITS, caches().map(|(name, cache)| ([*name], cache.hits as f64)))?;
    page.one(&names::CACHE_MISSES, caches().map(|(name, cache)| ([*name], cache.misses as f64)))
}

/// What /proc does not say is left out.
fn process(page: &mut Page) -> prometheus::Result<()> {
    let Usage { cpu, resident, virtual_size, open_files, most_files, started } = Usage::now();
    page.number(&names::PROCESS_CPU, cpu.as_secs_f64())?;
    let started = started.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    for (metric, known) in [
        (&names::PROCESS_RSS, resident),
        (&names::PROCESS_VIRTUAL, virtual_size),
        (&names::PROCESS_FDS, open_files),
        (&names::PROCESS_MAX_FDS, most_files),
    ] {
        known.map_or(Ok(()), |number| page.number(metric, number as f64))?;
    }
    started.map_or(Ok(()), |time| page.number(&names::PROCESS_START, time.as_secs_f64()))
}
