//! The second place of a cell whose updates go to two services: its backend, a mirror of its own, and what differs from
//! the first place. Must never show anybody the records of the second place: the first one is the truth.
//!
//! What differs is found by comparing the two mirrors, so it does not matter who wrote where, or who was killed between
//! two writes. Only while a mirror is not current do the notes of the tee count alone.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use super::drift::Drift;
use super::drift::{Comparison, changed, is_young};
use super::ending::Ending;
use super::lock_text::{in_words, says_save};
use super::options::CellOptions;
use crate::backend::tee::{Answers, Failures, Hears, Tee, TeeSettings, is_mirrored};
use crate::backend::{
    Applied, Backend, BackendError, Change, Errors, Failure, Fetched, Guard, Limits, Listing, Location, Node, Owner,
    Places, Role, SharedPlace, TeeOptions, WatchStream,
};
use crate::mirror::{Health, Mirror, Record, Snapshot};
use crate::name::{CellName, TopoPath};

/// How often to ask the secondary for a lock of ours, until its mirror has shown it.
const UNSEEN: Duration = Duration::from_secs(1);

/// Where a cell is at the second service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecondPlace {
    /// Here.
    At(Location),
    /// It is not there, for this reason. Nobody can lock or store anything there.
    Nowhere(String),
    /// Nobody knows, for this reason.
    Unknown(String),
}

impl fmt::Display for SecondPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecondPlace::At(location) => location.fmt(f),
            SecondPlace::Nowhere(reason) | SecondPlace::Unknown(reason) => f.write_str(reason),
        }
    }
}

impl SecondPlace {
    /// Why there is no place.
    pub fn reason(&self) -> Option<&str> {
        match self {
            SecondPlace::At(_) => None,
            SecondPlace::Nowhere(reason) | SecondPlace::Unknown(reason) => Some(reason),
        }
    }
}

/// The places of all cells at both services.
#[derive(Debug, Default)]
pub(super) struct TeePlaces {
    /// Those of the first service.
    pub first: Places<CellName>,
    /// Those of the second.
    pub second: Places<CellName>,
    /// The global topology of the second.
    pub global: Option<Location>,
    /// What the CellInfo records at the second service say of each cell.
    pub told: BTreeMap<CellName, Result<Location, SecondPlace>>,
}

impl TeePlaces {
    /// Why a cell of the first service must not be shown: a repair of the global topology would destroy it.
    pub fn hide(&self, location: &Location) -> Option<String> {
        let hit = self.global.as_ref().is_some_and(|global| global.overlaps(location));
        hit.then(|| "its place has keys in common with the global topology of the secondary".to_owned())
    }

    /// Why a cell must not be kept in a place: something else is there, which an update or a repair would destroy.
    pub fn refuse(&self, name: &CellName, place: &Location) -> Option<SecondPlace> {
        /// Enough to see that there is another one.
        const ENOUGH: usize = 2;
        let first = self.first.overlapping(place, ENOUGH).into_iter().next();
        let other = first.map(|other| format!("{other} of the primary"));
        let second = || self.second.overlapping(place, ENOUGH).into_iter().find(|other| other != name);
        let other = other.or_else(|| Some(format!("{} of the secondary", second()?)))?;
        let reason = format!("its CellInfo record says {place}, but that has keys in common with {other}");
        Some(SecondPlace::Nowhere(reason))
    }
}

/// The second place of a cell.
#[derive(Debug)]
pub struct Second {
    /// What the records say. If this changes, the cell is opened anew.
    pub(super) found: SecondPlace,
    /// What is used.
    pub place: SecondPlace,
    /// What is there; `None` without a place.
    pub mirror: Option<Arc<Mirror>>,
    /// What has gone wrong in calls of its service.
    pub errors: Errors,
    tee: Tee,
    backend: Option<Arc<dyn Backend>>,
    ending: Ending,
    /// The last comparison.
    compared: Mutex<Option<Comparison>>,
}

impl Hears for Mirror {
    fn wrote(&self, changes: &[Change], applied: &Applied) {
        Mirror::wrote(self, changes, applied);
    }

    fn answers(&self) -> Answers {
        match self.health() {
            Health::Live if self.is_fresh() => Answers::Yes,
            Health::Down => {
                Answers::No(self.trouble().map_or_else(|| "it does not answer".to_owned(), |(cause, _)| cause))
            }
            _ => Answers::Unknown,
        }
    }
}

impl Second {
    /// Connects the second place in the background, and puts it beside the first one. An address that cannot be used is
    /// no place.
    pub(super) fn open(
        name: &CellName,
        place: SecondPlace,
        (primary, own): (&Arc<dyn Backend>, &Location),
        (options, tee): (&CellOptions, &TeeOptions),
    ) -> Self {
        let opened = match &place {
            SecondPlace::At(location) if location.is_same_place(own) => {
                Err(SecondPlace::Nowhere(format!("it is the same place as the primary: {location}")))
            }
            SecondPlace::At(location) => {
                let opened = options.open(name, (location, &tee.secondary));
                opened.map_err(|error| SecondPlace::Unknown(format!("{location}: {error}")))
            }
            missing => Err(missing.clone()),
        };
        let mut settings = TeeSettings {
            secondary: String::new(),
            timeout: options.connect.timeout,
            reverse_lock_order: tee.reverse_lock_order,
            is_for_save: says_save,
            in_words,
            hears: None,
        };
        let found = place.clone();
        match (opened, &place) {
            (Ok((backend, errors)), SecondPlace::At(location)) => {
                let mirror = Mirror::new(backend.clone(), options.mirror);
                settings.secondary = location.to_string();
                settings.hears = Some(mirror.clone());
                let tee = Tee::new(primary.clone(), backend.clone(), settings);
                Self {
                    found,
                    place,
                    mirror: Some(mirror),
                    errors,
                    tee,
                    backend: Some(backend),
                    ending: Ending::default(),
                    compared: Mutex::default(),
                }
            }
            (opened, _) => {
                let place = opened.err().unwrap_or(place);
                settings.secondary = tee.secondary.to_string();
                let tee = Tee::new(primary.clone(), Arc::new(Missing(place.clone())), settings);
                Self {
                    found,
                    place,
                    mirror: None,
                    errors: Errors::default(),
                    tee,
                    backend: None,
                    ending: Ending::default(),
                    compared: Mutex::default(),
                }
            }
        }
    }

    /// The two places as one.
    pub(super) fn both(&self) -> Arc<dyn Backend> {
        Arc::new(self.tee.clone())
    }

    /// Keeps the mirror of the second place current as soon as the first one is used.
    pub(super) fn run(&self, name: &CellName, own: &Arc<Mirror>, tasks: &TaskTracker, stop: &CancellationToken) {
        let Some(mirror) = self.mirror.clone() else { return };
        let span = tracing::info_span!("cell", name = %name, place = "secondary");
        let running = mirror.clone().run(format!("second mirror of {name}"), stop.clone());
        tasks.spawn(tracing::Instrument::instrument(running, span));
        let (own, stop) = (own.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = own.loaded() => mirror.wake(),
            }
        });
    }

    /// Since when the second place does not answer our updates, and the last reason.
    pub fn away(&self) -> Option<(SystemTime, Arc<str>)> {
        self.tee.away()
    }

    /// It was waited for in vain.
    pub(super) fn note_away(&self) {
        self.tee.note_away();
    }

    /// Brings everything at the second place to what the first one has; returns how many records differed.
    pub(super) async fn repair(&self) -> Result<usize, BackendError> {
        let repaired = self.tee.repair().await;
        // What the mirror has missed must not count any more.
        if let Some(mirror) = &self.mirror {
            mirror.request_resync();
        }
        repaired.map(|repaired| repaired.brought)
    }

    /// Waits for the updates that are under way.
    pub(super) async fn settle(&self, patience: Duration) {
        tokio::select! {
            () = self.tee.settle(patience) => {}
            () = self.ending.given_up() => {
                tracing::warn!("the secondary gives no sign of life: the last updates may not have reached it");
            }
        }
    }

    /// The mount is ending: updates that are under way are no longer waited for if the second place is silent.
    pub(super) async fn give_up_if_silent(&self) {
        if let (Some(backend), Some(mirror)) = (&self.backend, &self.mirror) {
            self.ending.give_up_if_silent(&**backend, mirror).await;
        }
    }

    /// What differs at the second place, as far as known now. Asks no service.
    pub fn drift(&self, own: &Mirror) -> Arc<Drift> {
        let mirror = self.mirror.as_ref().filter(|mirror| mirror.is_loaded());
        // Before the snapshots: what is published meanwhile is looked at again.
        let state = mirror.map(|mirror| (own.published(), mirror.published(), mirror.health()));
        let last = self.compared.lock().clone();
        if let Some(last) = last.filter(|last| last.counts(state.as_ref(), self.tee.has_failures())) {
            return last.drift;
        }
        let (begun, failures) = (Instant::now(), self.tee.failures());
        let (drift, settled) = match mirror {
            Some(mirror) => self.compare_with(mirror, &own.snapshot(), failures),
            None => (self.drift_unseen(&own.snapshot(), &failures), false),
        };
        let compared = Comparison::new(state.filter(|_| settled), drift, begun);
        let drift = compared.drift.clone();
        *self.compared.lock() = Some(compared);
        drift
    }

    /// Without a mirror of the second place.
    fn drift_unseen(&self, here: &Snapshot, failures: &Failures) -> Drift {
        let mut drift = Drift { is_complete: self.is_nowhere(), ..Drift::default() };
        match self.is_nowhere() {
            true => here.records.iter().for_each(|(path, here)| drift.add(path, Some(here), None, failures)),
            false => failures.known.keys().for_each(|path| {
                let record = here.records.get(path);
                drift.add(path, record, record, failures);
            }),
        }
        drift
    }

    fn compare_with(&self, mirror: &Mirror, here: &Snapshot, mut failures: Failures) -> (Drift, bool) {
        let (is_live, there) = (mirror.health() == Health::Live, mirror.snapshot());
        if is_live {
            // Somebody has brought it there.
            failures.known.retain(|path, _| {
                let same = values(here, path) == values(&there, path) && !self.tee.is_under_way(path);
                if same {
                    self.tee.note_same(path);
                }
                !same
            });
        }
        let (drift, settled) = self.compare(here, &there, &failures);
        (Drift { is_complete: is_live && !failures.more, ..drift }, settled)
    }

    fn is_nowhere(&self) -> bool {
        matches!(self.place, SecondPlace::Nowhere(_))
    }

    /// What differs, and whether time alone changes nothing of it.
    fn compare(&self, here: &Snapshot, there: &Snapshot, failures: &Failures) -> (Drift, bool) {
        let (mut drift, mut settled, now) = (Drift::default(), true, SystemTime::now());
        let is_away = failures.away.is_some();
        let mut look = |path: &TopoPath, one: Option<&Record>, other: Option<&Record>| {
            let failed = failures.known.contains_key(path);
            let same = match (one, other) {
                (Some(one), Some(other)) => one.value == other.value || !is_mirrored(path),
                _ => false,
            };
            if same && !failed {
                return;
            }
            let coming = is_young(changed(one, other), now) || self.tee.is_under_way(path) && !is_away;
            if failed || !coming {
                drift.add(path, one, other, failures);
            } else {
                settled = false;
            }
        };
        let (mut one, mut other) = (here.records.iter().peekable(), there.records.iter().peekable());
        loop {
            let order = match (one.peek(), other.peek()) {
                (Some((one, _)), Some((other, _))) => one.cmp(other),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let here = if order.is_le() { one.next() } else { None };
            let there = if order.is_ge() { other.next() } else { None };
            if let Some((path, _)) = here.or(there) {
                look(path, here.map(|(_, record)| record), there.map(|(_, record)| record));
            }
        }
        // Neither mirror has these: removed at the primary, and nobody knows about the secondary.
        for path in failures.known.keys().filter(|path| values(here, path).is_none() && values(there, path).is_none()) {
            drift.add(path, None, None, failures);
        }
        (drift, settled)
    }

    /// Waits until the second half of a held lock is gone from the second place, whoever has removed it. `primary`: its
    /// node at the first place.
    pub(super) async fn lock_gone(&self, primary: &Node) -> BackendError {
        let fence = self.tee.fence_at_secondary(primary);
        let (Some(mirror), Some(backend), Some(Change { path, guard: Guard::Held(holding), .. })) =
            (&self.mirror, &self.backend, fence)
        else {
            return std::future::pending().await;
        };
        let is_ours = |node: &Node| node.owner() == holding.owner && node.version.created == holding.version.created;
        let gone = || {
            let place = self.place.to_string();
            BackendError::new(Failure::LockLost, format!("somebody took it away at the secondary ({place})"))
        };
        let mut changes = mirror.lock_changes();
        let is_shown = || mirror.snapshot().locks.get(&path).is_some_and(is_ours);
        // The mirror may never show it: what comes and goes at once is no change. Until it does, the service is asked.
        while !is_shown() {
            if let Ok(now) = backend.get(&path).await
                && !now.node.as_ref().is_some_and(is_ours)
            {
                return gone();
            }
            tokio::select! {
                // The mirror lives as long as its cell.
                _ = changes.changed() => {}
                () = tokio::time::sleep(UNSEEN) => {}
            }
        }
        while is_shown() {
            let _ = changes.changed().await;
        }
        gone()
    }

    /// Who holds the lock of a directory at the second place, but not by this mount and not for a save. Believes the
    /// mirror only if the service agrees.
    pub(super) async fn foreign_holder(&self, dir: &TopoPath) -> Option<Node> {
        let (mirror, backend) = (self.mirror.as_ref()?, self.backend.as_ref()?);
        let snapshot = mirror.snapshot();
        let below = snapshot.locks.range(dir.clone()..).take_while(|(path, _)| path.below(dir).is_some());
        let holds =
            |node: &&Node| node.owner() != Owner::NOBODY && backend.locked_dir(&node.path).as_ref() == Some(dir);
        let first = below.map(|(_, node)| node).filter(holds).min_by_key(|node| node.version.written)?;
        if self.tee.holds_at_secondary(first) || says_save(&first.value) {
            return None;
        }
        let now = backend.get(&first.path).await.ok()?;
        mirror.observe(&first.path, &now);
        now.node.filter(|now| matches!(now.role, Role::Lock(_)) && now.version.created == first.version.created)
    }
}

fn values<'a>(snapshot: &'a Snapshot, path: &TopoPath) -> Option<&'a Bytes> {
    snapshot.records.get(path).map(|record| &record.value)
}

/// A second place that there is not.
#[derive(Debug)]
struct Missing(SecondPlace);

impl Missing {
    fn error<T>(&self) -> Result<T, BackendError> {
        Err(BackendError::new(Failure::Unreachable, self.0.reason().unwrap_or_default()))
    }
}

#[async_trait]
impl Backend for Missing {
    fn limits(&self) -> Limits {
        Limits { value: usize::MAX, changes: usize::MAX }
    }

    async fn list(&self, _: &TopoPath) -> Result<Listing, BackendError> {
        self.error()
    }

    async fn get(&self, _: &TopoPath) -> Result<Fetched, BackendError> {
        self.error()
    }

    async fn apply(&self, _: &[Change]) -> Result<Applied, BackendError> {
        self.error()
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        self.error()
    }

    fn locked_dir(&self, _: &TopoPath) -> Option<TopoPath> {
        None
    }

    /// Where there is no cell, nobody can lock anything.
    async fn enter(&self, dir: &TopoPath, _: &Bytes) -> Result<SharedPlace, BackendError> {
        match &self.0 {
            SecondPlace::Nowhere(reason) => Err(BackendError::new(Failure::NoNode, format!("{dir}: {reason}"))),
            _ => self.error(),
        }
    }

    async fn break_lock(&self, _: &Node) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
