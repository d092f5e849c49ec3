//! The figures of a mount, as they are now: `.topofs/status` and `.topofs/metrics` show the same. Asks no service, and
//! counts nothing that a mirror does not count anyway, except drift, which has a bound of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::alive::{self, Panics};
use crate::cells::{Cell, Cells, Drift, Second, SecondPlace};
use crate::mirror::{Health, HistoryLimits, HistoryUsage, Mirror};

/// The states of a cell.
pub(super) const STATES: [&str; 7] = ["idle", "loading", "live", "reconnecting", "down", "stale", "denied"];
/// The states of a second place.
pub(super) const SECOND_STATES: [&str; 8] =
    ["idle", "loading", "live", "reconnecting", "down", "denied", "missing", "unknown"];

/// What is known of a mount beside its tree.
pub(super) struct Figures {
    pub cells: Vec<CellFigures>,
    /// Cells that cannot be shown, with the reasons.
    pub hidden: Arc<BTreeMap<String, String>>,
    pub history: (HistoryUsage, HistoryLimits),
    pub panics: Panics,
}

impl Figures {
    pub fn of(cells: &Cells) -> Self {
        Self {
            cells: cells.all().into_iter().map(CellFigures::of).collect(),
            hidden: cells.hidden(),
            history: (cells.histories().usage(), cells.histories().limits()),
            panics: alive::panics(),
        }
    }
}

/// What is known of one mirror.
pub(super) struct MirrorFigures {
    pub state: &'static str,
    pub records: usize,
    /// Records that a list has brought so far which begins a watch.
    pub loading: Option<u64>,
    pub bytes: usize,
    pub revision: u64,
    /// Since the last sign of life.
    pub silent_for: Option<Duration>,
    /// Why the watch is broken, and for how long.
    pub trouble: Option<(String, Duration)>,
}

impl MirrorFigures {
    fn of(mirror: &Mirror, serves_stale: bool) -> Self {
        let snapshot = mirror.snapshot();
        Self {
            state: state_of(&mirror.health(), serves_stale),
            records: snapshot.records.len(),
            loading: mirror.loading(),
            bytes: mirror.bytes(),
            revision: snapshot.at.0,
            silent_for: mirror.silent_for(),
            trouble: mirror.trouble(),
        }
    }
}

/// What is known of a cell.
pub(super) struct CellFigures {
    pub cell: Arc<Cell>,
    pub mirror: MirrorFigures,
    pub last_event: Option<SystemTime>,
    pub events: u64,
    pub resyncs: u64,
    pub missed: u64,
    pub caught_up: u64,
    pub silences: u64,
    pub reconnects: u64,
    pub restorations: u64,
    pub skipped_keys: u64,
    /// What has gone wrong in calls of its service, by failure.
    pub errors: Vec<(&'static str, u64)>,
}

impl CellFigures {
    fn of(cell: Arc<Cell>) -> Self {
        let counters = &cell.mirror.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            mirror: MirrorFigures::of(&cell.mirror, cell.serves_stale()),
            last_event: cell.mirror.last_event(),
            events: count(&counters.events),
            resyncs: count(&counters.resyncs),
            missed: count(&counters.missed),
            caught_up: count(&counters.caught_up),
            silences: count(&counters.silences),
            reconnects: count(&counters.reconnects),
            restorations: count(&counters.restorations),
            skipped_keys: count(&counters.skipped),
            errors: cell.errors.counts().collect(),
            cell,
        }
    }

    /// What is known of its second place, if it has two. Comparing the places may take a moment.
    pub fn second(&self) -> Option<SecondFigures<'_>> {
        self.cell.second.as_ref().map(|second| SecondFigures::of(&self.cell, second))
    }
}

/// What is known of the second place of a cell.
pub(super) struct SecondFigures<'a> {
    pub second: &'a Second,
    pub state: &'static str,
    pub mirror: Option<MirrorFigures>,
    pub drift: Arc<Drift>,
    /// Since when it does not answer our updates, and why.
    pub failing: Option<(SystemTime, Arc<str>)>,
    pub errors: Vec<(&'static str, u64)>,
}

impl<'a> SecondFigures<'a> {
    fn of(cell: &Cell, second: &'a Second) -> Self {
        let mirror = second.mirror.as_ref().map(|mirror| MirrorFigures::of(mirror, false));
        let state = match &second.place {
            SecondPlace::At(_) => mirror.as_ref().map_or("unknown", |mirror| mirror.state),
            SecondPlace::Nowhere(_) => "missing",
            SecondPlace::Unknown(_) => "unknown",
        };
        let (drift, failing) = (second.drift(&cell.mirror), second.away());
        Self { second, state, mirror, drift, failing, errors: second.errors.counts().collect() }
    }
}

fn state_of(health: &Health, serves_stale: bool) -> &'static str {
    match health {
        Health::Idle => "idle",
        Health::Loading => "loading",
        Health::Live => "live",
        Health::Shaky => "reconnecting",
        Health::Down if serves_stale => "stale",
        Health::Down => "down",
        Health::Denied => "denied",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_among_all() {
        let healths =
            [Health::Idle, Health::Loading, Health::Live, Health::Shaky, Health::Down, Health::Down, Health::Denied];
        for (place, health) in healths.iter().enumerate() {
            assert_eq!(state_of(health, place == 5), STATES[place]);
            if place != 5 {
                assert!(SECOND_STATES.contains(&state_of(health, false)), "{health:?}");
            }
        }
    }
}
