//! The records of one cell in a stage: those of a snapshot, and private changes over them. Must never reach a service,
//! and never change what others see of the snapshot.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use parking_lot::Mutex;

use super::diff::{CellChange, RecordChange};
use super::ledger::{Ledger, Phase};
use super::meet::{Meeting, meet};
use crate::backend::{Action, Applied, Change, Fetched, Limits, Revision, Version, check_limits};
use crate::error::{Error, Kind, Result};
use crate::mirror::{Record, Snapshot, Update};
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Actor;
use crate::record::Records;
use crate::store::change_set::Staged;
use crate::store::commits::{Commits, heard_at_once};
use crate::store::contract::Store;
use crate::store::frozen::fetched;

/// Private revisions begin here, far above those of any service: a private version is never taken for a stored one,
/// and is later than all that were there when the stage was made.
const PRIVATE: u64 = 1 << 62;
/// What a staged record costs besides its path and value, in bytes.
const OVERHEAD: u64 = 512;
/// How often to compute a rebase while programs go on saving.
const ATTEMPTS: usize = 8;

/// One cell of a stage.
#[derive(Debug)]
pub struct StagedCell {
    cell: CellName,
    limits: Limits,
    records: Arc<Records>,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
}

/// A moment of a cell in a stage. Copying it costs nothing.
#[derive(Debug, Clone)]
struct State {
    /// What the changes were made over.
    base: Arc<Snapshot>,
    /// What the stage shows.
    shown: Arc<Snapshot>,
    /// Everything that was saved in the stage and is still there, or was there before.
    touched: OrdMap<TopoPath, Touched>,
    /// Counts private revisions.
    saves: u64,
    /// What is charged for it all.
    cost: u64,
}

/// A record that was saved in the stage.
#[derive(Debug, Clone)]
struct Touched {
    /// What it was before.
    base: Option<Record>,
    /// Whether it is to be committed: it may be as it was before.
    is_change: bool,
    /// What is charged for it.
    cost: u64,
}

/// What is known about a staged record that others have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overtaken {
    pub at: CellPath,
    /// Whether it was there when it was staged.
    pub was_there: bool,
    /// What it is now.
    pub theirs: Option<Record>,
    pub meeting: Meeting,
}

impl State {
    /// The staged value of a record.
    fn value(&self, path: &TopoPath) -> Option<&Bytes> {
        self.shown.records.get(path).map(|record| &record.value)
    }

    fn changes(&self) -> impl Iterator<Item = (&TopoPath, &Touched)> {
        self.touched.iter().filter(|(_, touched)| touched.is_change)
    }

    /// Makes one save visible. Returns the version.
    fn put(&mut self, path: &TopoPath, value: &Bytes) -> Version {
        let written = Revision(PRIVATE + self.saves);
        let shown = Arc::make_mut(&mut self.shown);
        let old = shown.records.get(path);
        let version = Version {
            // Numbers go up for those who look at them, and do not look private.
            number: self.base.at.0 + self.saves,
            written,
            created: old.map_or(written, |old| old.version.created),
        };
        let now = SystemTime::now();
        let modified = old.map_or(now, |old| now.max(old.modified + Duration::from_nanos(1)));
        shown.records.insert(path.clone(), Record { value: value.clone(), version, modified });
        version
    }

    fn remove(&mut self, path: &TopoPath) {
        Arc::make_mut(&mut self.shown).records.remove(path);
    }

    /// Notes what has become of a record of which `base` was stored.
    fn touch(&mut self, records: &Records, cell: &CellName, path: &TopoPath, base: Option<Record>) {
        let now = self.value(path);
        let is_change = match (&base, now) {
            // What others have created meanwhile is shown after the next rebase.
            (None, None) if self.base.records.contains_key(path) => false,
            (None, None) => return self.forget(path),
            (Some(base), Some(now)) => {
                // An edit that was taken back, too: it comes back in the bytes that topofs writes.
                base.value != *now && records.canonical(cell, path, &base.value).as_ref() != Some(now)
            }
            _ => true,
        };
        // Bytes of the snapshot are not kept for the stage alone.
        let is_own = |now: &&Bytes| base.as_ref().is_none_or(|base| base.value.as_ptr() != now.as_ptr());
        let value = now.filter(is_own).map_or(0, Bytes::len);
        let cost = OVERHEAD + (path.as_str().len() + value) as u64;
        let before = self.touched.insert(path.clone(), Touched { base, is_change, cost });
        self.cost = (self.cost + cost).saturating_sub(before.map_or(0, |before| before.cost));
    }

    fn forget(&mut self, path: &TopoPath) {
        let before = self.touched.remove(path);
        self.cost = self.cost.saturating_sub(before.map_or(0, |before| before.cost));
    }

    /// What was stored of a record when it was staged, or would be if it were staged now.
    fn base_of(&self, path: &TopoPath) -> Option<Record> {
        match self.touched.get(path) {
            Some(touched) => touched.base.clone(),
            None => self.base.records.get(path).cloned(),
        }
    }
}

impl StagedCell {
    pub(super) fn new(
        cell: CellName,
        limits: Limits,
        base: Arc<Snapshot>,
        records: Arc<Records>,
        ledger: Arc<Ledger>,
    ) -> Self {
        let mut shown = Snapshot::clone(&base);
        // Locks are of the service: they protect nothing here.
        shown.locks = OrdMap::new();
        let shown = Arc::new(shown);
        let state = State { base, shown, touched: OrdMap::new(), saves: 0, cost: 0 };
        Self { cell, limits, records, ledger, state: Mutex::new(state) }
    }

    /// Whether it was made in the stage: nothing was there.
    pub(super) fn is_made(&self) -> bool {
        let state = self.state.lock();
        state.base.records.is_empty() && state.base.at == Revision::default()
    }

    fn make(&self, changes: &[Change]) -> Result<Applied> {
        check_limits(changes, self.limits).map_err(Error::from)?;
        // Held until the end: nothing is saved any more when a commit begins.
        let phase = self.ledger.phase.read();
        phase.refuse_save()?;
        let mut state = self.state.lock();
        for change in changes {
            let found = state.shown.records.get(&change.path).map(|record| record.version);
            // There are no locks here.
            change.require(found, None)?;
        }
        let mut next = state.clone();
        // A commit that only checks makes no revision.
        if changes.iter().any(|change| change.action != Action::Check) {
            next.saves += 1;
            Arc::make_mut(&mut next.shown).at = Revision(PRIVATE + next.saves);
        }
        let versions = changes.iter().map(|change| self.make_one(&mut next, change)).collect();
        self.ledger.resize(state.cost, next.cost)?;
        let (at, saves) = (next.shown.at, next.saves - state.saves);
        *state = next;
        self.ledger.saved(saves);
        Ok(Applied { at, versions })
    }

    /// Makes one change. Returns the new version of its record.
    fn make_one(&self, state: &mut State, change: &Change) -> Option<Version> {
        let base = state.base_of(&change.path);
        let version = match &change.action {
            Action::Check => return None,
            Action::Delete => {
                state.remove(&change.path);
                None
            }
            Action::Put(value) => {
                // If it is as before, the snapshot's bytes do.
                let known = base.as_ref().map(|base| &base.value).filter(|known| *known == value);
                Some(state.put(&change.path, known.unwrap_or(value)))
            }
        };
        state.touch(&self.records, &self.cell, &change.path, base);
        version
    }

    fn now(&self) -> State {
        self.state.lock().clone()
    }

    /// The changes that are to be committed.
    pub(super) fn staged(&self) -> Vec<Staged> {
        let state = self.now();
        let staged = |(path, touched): (&TopoPath, &Touched)| Staged {
            at: CellPath::new(&self.cell, path),
            base: touched.base.clone(),
            now: state.value(path).cloned(),
        };
        state.changes().map(staged).collect()
    }

    /// The number of changes that are to be committed.
    pub(super) fn count(&self) -> usize {
        self.now().changes().count()
    }

    /// The changes, and what lies around them.
    pub(super) fn change(&self) -> CellChange {
        let state = self.now();
        let change = |(path, touched): (&TopoPath, &Touched)| RecordChange {
            path: path.clone(),
            before: touched.base.as_ref().map(|base| base.value.clone()),
            after: state.value(path).cloned(),
        };
        CellChange {
            cell: self.cell.clone(),
            changes: state.changes().map(change).collect(),
            before: Snapshot::clone(&state.base),
            after: Snapshot::clone(&state.shown),
        }
    }

    /// The staged records that others have changed.
    pub(super) fn overtaken(&self, live: &Snapshot) -> Vec<Overtaken> {
        let state = self.now();
        let all = state.changes().map(|(path, touched)| self.meet(&state, (path, touched), live));
        all.filter(|overtaken| overtaken.meeting != Meeting::Alone).collect()
    }

    fn meet(&self, state: &State, (path, touched): (&TopoPath, &Touched), live: &Snapshot) -> Overtaken {
        let (at, theirs) = (CellPath::new(&self.cell, path), live.records.get(path));
        let meeting = meet(&self.records, &at, touched.base.as_ref(), state.value(path), theirs);
        Overtaken { at, was_there: touched.base.is_some(), theirs: theirs.cloned(), meeting }
    }

    /// Takes in what others have changed. What clashes stays as it is. Returns what has changed in the stage, and what
    /// clashes.
    pub(super) fn rebase(&self, live: &Arc<Snapshot>) -> Result<(Vec<Update>, Vec<Overtaken>)> {
        for _ in 0..ATTEMPTS {
            // Merging takes time. Programs that save meanwhile do not wait for it: it is done again.
            let seen = self.now();
            let (next, updates, clashes) = self.rebased(&seen, live);
            let phase = self.ledger.phase.read();
            phase.refuse_save()?;
            let mut state = self.state.lock();
            if state.saves == seen.saves && Arc::ptr_eq(&state.base, &seen.base) {
                self.ledger.resize(state.cost, next.cost)?;
                *state = next;
                self.ledger.changed();
                return Ok((updates, clashes));
            }
        }
        Err(Error::new(Kind::Busy, format!("programs are saving records of {} all the time", self.cell)))
    }

    /// The state over another snapshot.
    fn rebased(&self, seen: &State, live: &Arc<Snapshot>) -> (State, Vec<Update>, Vec<Overtaken>) {
        let mut next = seen.clone();
        next.base = live.clone();
        // All that changes has a version that is later than any before.
        next.saves += 1;
        for item in seen.base.records.diff(&live.records) {
            let (path, new) = match item {
                DiffItem::Add(path, record) | DiffItem::Update { new: (path, record), .. } => (path, Some(record)),
                DiffItem::Remove(path, _) => (path, None),
            };
            if seen.touched.contains_key(path) {
                continue;
            }
            let shown = Arc::make_mut(&mut next.shown);
            match new {
                Some(record) => drop(shown.records.insert(path.clone(), record.clone())),
                None => drop(shown.records.remove(path)),
            }
        }
        let mut clashes = Vec::new();
        for (path, touched) in &seen.touched {
            if !touched.is_change {
                self.adopt(&mut next, path, live.records.get(path));
                continue;
            }
            let overtaken = self.meet(seen, (path, touched), live);
            match &overtaken.meeting {
                Meeting::Alone => {}
                Meeting::Same => self.adopt(&mut next, path, overtaken.theirs.as_ref()),
                Meeting::Merged(value) => {
                    self.show(&mut next, path, value.as_ref());
                    next.touch(&self.records, &self.cell, path, overtaken.theirs.clone());
                }
                Meeting::Clash(_) => clashes.push(overtaken),
            }
        }
        let shown = Arc::make_mut(&mut next.shown);
        shown.at = Revision(PRIVATE + next.saves);
        let updates = seen.shown.differences(&next.shown);
        (next, updates, clashes)
    }

    /// A record of the stage becomes what others have made of it. It is no change any more.
    fn adopt(&self, state: &mut State, path: &TopoPath, theirs: Option<&Record>) {
        self.show(state, path, theirs.map(|record| &record.value));
        state.touch(&self.records, &self.cell, path, theirs.cloned());
    }

    /// Shows a value, with a new version if it is another one.
    fn show(&self, state: &mut State, path: &TopoPath, value: Option<&Bytes>) {
        match value {
            None => state.remove(path),
            Some(value) if state.value(path) == Some(value) => {}
            Some(value) => drop(state.put(path, value)),
        }
    }

    /// Decides about one staged record: `keep` what is staged, whatever others have made of it, or take theirs.
    pub(super) fn settle(&self, path: &TopoPath, live: &Snapshot, keep: bool) -> Result<()> {
        let phase = self.ledger.phase.read();
        phase.refuse_save()?;
        let mut state = self.state.lock();
        let mut next = state.clone();
        if !next.touched.get(path).is_some_and(|touched| touched.is_change) {
            let reason = format!("{}/{path} is not staged", self.cell);
            return Err(Error::new(Kind::NotFound, reason));
        }
        next.saves += 1;
        let theirs = live.records.get(path);
        match keep {
            true => next.touch(&self.records, &self.cell, path, theirs.cloned()),
            false => self.adopt(&mut next, path, theirs),
        }
        Arc::make_mut(&mut next.shown).at = Revision(PRIVATE + next.saves);
        self.ledger.resize(state.cost, next.cost)?;
        *state = next;
        self.ledger.changed();
        Ok(())
    }
}

#[async_trait]
impl Store for StagedCell {
    fn cell(&self) -> &CellName {
        &self.cell
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        self.snapshot_now()
    }

    fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        Ok(self.known())
    }

    fn known(&self) -> Arc<Snapshot> {
        self.state.lock().shown.clone()
    }

    fn was_record(&self, path: &TopoPath) -> bool {
        self.state.lock().base_of(path).is_some()
    }

    async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        Ok(fetched(&self.known(), path))
    }

    async fn commit(&self, _: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Applied> {
        heard_at_once(&self.cell, changes, commits, || self.make(changes)).await
    }

    async fn refuse_early(&self, _: Actor, _: &TopoPath) -> Result<()> {
        match *self.ledger.phase.read() {
            // A commit that is refused leaves the stage open.
            Phase::Open | Phase::Committing => Ok(()),
            Phase::Committed => Err(Phase::read_only()),
        }
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}
