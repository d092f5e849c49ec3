//! What the mirrors of a mount remember of the past: of each record that has changed since its cell was loaded, what it
//! was before, when the change was seen, and who made it. Must never ask a service, and never hold more than its
//! bounds.
//!
//! What is kept are changes, not versions: a change has the record that it replaced, and the next change, or the
//! snapshot, has the record that it made. So loading a cell costs nothing, and undoing changes leads from the present
//! to an earlier moment.
//!
//! Two bounds hold: a number for each record, and bytes for all cells together. If the bytes do not suffice, the oldest
//! change goes first, but a record that has more than its share loses its own oldest first: one record that changes all
//! the time does not push out the past of the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use parking_lot::Mutex;

use super::state::{Record, Snapshot, Update};
use crate::backend::{Revision, Version};
use crate::name::TopoPath;
use crate::process::Actor;

mod undo;

use undo::Sight;
pub use undo::Unknown;

/// What a kept change costs besides the bytes of the record that it replaced and of its path: the entries in all maps.
const OVERHEAD: usize = 320;
/// One record may have this part of all bytes before it loses its own changes first.
const SHARE: usize = 16;

/// The bounds of what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Changes of one record; 0 if nothing is remembered.
    pub versions: usize,
    /// Bytes of all cells together.
    pub bytes: usize,
}

impl HistoryLimits {
    /// Nothing is remembered.
    pub const NOTHING: Self = Self { versions: 0, bytes: 0 };
    /// Enough for a day of work on most records.
    pub const VERSIONS: usize = 100;
    /// Some ten thousand changes of usual records, or the last versions of a few VSchemas of a megabyte.
    pub const BYTES: usize = 64 << 20;
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { versions: Self::VERSIONS, bytes: Self::BYTES }
    }
}

/// Who made a change: a process of this machine, through this mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// User and process.
    pub actor: Actor,
    /// The name of the program, if the process could be seen.
    pub command: Option<Arc<str>>,
    /// The change set that it was part of.
    pub change_set: Option<Arc<str>>,
}

impl From<Actor> for Maker {
    fn from(actor: Actor) -> Self {
        let command = crate::process::name(actor.process).map(Into::into);
        Self { actor, command, change_set: None }
    }
}

/// One state that a record was in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// When it was written, or deleted, in the service's count.
    pub at: Revision,
    /// The record; `None` if it was deleted.
    pub record: Option<Record>,
    /// The time of that; if it is not exact, it was not later.
    pub time: SystemTime,
    /// Whether the time is that of the change, as far as the service or the watch tells.
    pub is_exact: bool,
    /// Whether the state before it, in a list, is the one that it replaced.
    pub follows: bool,
    /// Who made it, if that was this mount.
    pub by: Option<Maker>,
    /// Whether the watch told of the change, and what it told is still known: without a maker, it was made elsewhere.
    pub is_watched: bool,
}

/// What is remembered, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryUsage {
    /// Records with a past.
    pub records: usize,
    /// Changes.
    pub changes: usize,
    /// Bytes, with what the changes cost themselves.
    pub bytes: usize,
    /// Changes that were forgotten, because of a bound.
    pub forgotten: u64,
}

/// What all mirrors of a mount remember.
#[derive(Debug)]
pub struct Histories {
    limits: HistoryLimits,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The number of the next change.
    next: u64,
    next_cell: u64,
    cells: HashMap<u64, CellPast>,
    /// All changes, the oldest first.
    order: BTreeMap<u64, (u64, TopoPath)>,
    /// All records with a past by the bytes that they use.
    heavy: BTreeSet<(usize, u64, TopoPath)>,
    bytes: usize,
    forgotten: u64,
    /// The time of the last change: times never go back.
    last: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct CellPast {
    lines: BTreeMap<TopoPath, Line>,
    /// The records whose last change is their deletion.
    gone: OrdMap<TopoPath, ()>,
    sight: Sight,
}

/// The past of one record.
#[derive(Debug, Default)]
struct Line {
    changes: VecDeque<PastChange>,
    bytes: usize,
    /// Of what the first change replaced: who made it, and whether the watch told of it.
    first: (Option<Maker>, bool),
}

/// One change.
#[derive(Debug)]
struct PastChange {
    number: u64,
    when: SystemTime,
    at: Revision,
    /// The revision of the mirror after it.
    seen: Revision,
    is_exact: bool,
    old: Option<Record>,
    new: Option<(Version, SystemTime)>,
    by: Option<Maker>,
}

impl Histories {
    /// Nothing yet.
    pub fn new(limits: HistoryLimits) -> Arc<Self> {
        Arc::new(Self { limits, kept: Mutex::default() })
    }

    /// The bounds.
    pub fn limits(&self) -> HistoryLimits {
        self.limits
    }

    /// How much is remembered.
    pub fn usage(&self) -> HistoryUsage {
        let kept = self.kept.lock();
        HistoryUsage {
            records: kept.heavy.len(),
            changes: kept.order.len(),
            bytes: kept.bytes,
            forgotten: kept.forgotten,
        }
    }

    fn keeps_anything(&self) -> bool {
        self.limits.versions > 0 && self.limits.bytes > 0
    }
}

/// What one mirror remembers. It is forgotten with the mirror.
#[derive(Debug)]
pub(super) struct History {
    all: Arc<Histories>,
    cell: u64,
}

impl Drop for History {
    fn drop(&mut self) {
        self.all.kept.lock().forget_cell(self.cell);
    }
}

impl History {
    pub fn new(all: Arc<Histories>) -> Self {
        let cell = {
            let mut kept = all.kept.lock();
            kept.next_cell += 1;
            let cell = kept.next_cell;
            kept.cells.insert(cell, CellPast::default());
            cell
        };
        Self { all, cell }
    }

    /// Remembers changes that are published together. `is_exact` says that they have just happened.
    pub fn record(&self, updates: &[Update], seen: Revision, is_exact: bool, now: SystemTime) {
        if updates.is_empty() || !self.all.keeps_anything() {
            return;
        }
        let mut kept = self.all.kept.lock();
        let when = kept.now(now);
        for update in updates {
            kept.add(self.cell, update, (seen, is_exact, when), self.all.limits);
        }
    }

    /// This mount has made a change: the version that it wrote, or with `is_deletion`, the version that it deleted.
    pub fn made(&self, path: &TopoPath, version: Revision, is_deletion: bool, maker: &Maker) {
        let mut kept = self.all.kept.lock();
        let line = kept.cells.get_mut(&self.cell).and_then(|cell| cell.lines.get_mut(path));
        let is_meant = |change: &&mut PastChange| match (&change.new, &change.old) {
            (Some((new, _)), _) => !is_deletion && new.written == version,
            (None, Some(old)) => is_deletion && old.version.written == version,
            (None, None) => false,
        };
        if let Some(change) = line.and_then(|line| line.changes.iter_mut().rev().find(is_meant)) {
            change.by = Some(maker.clone());
        }
    }

    /// All states of a record that are known, the oldest first, and the one that it is in now, if it is stored.
    /// `keeps_times` says that the times of all records are those of the service.
    pub fn past(&self, path: &TopoPath, now: Option<&Record>, keeps_times: bool) -> Vec<Past> {
        let kept = self.all.kept.lock();
        let line = kept.cells.get(&self.cell).and_then(|cell| cell.lines.get(path));
        let Some((line, first)) = line.and_then(|line| Some((line, line.changes.front()?))) else {
            return now.map(|record| stored(record, keeps_times, (None, false))).into_iter().collect();
        };
        let mut past: Vec<Past> = Vec::new();
        past.extend(first.old.as_ref().map(|old| stored(old, keeps_times || line.first.1, line.first.clone())));
        for (index, change) in line.changes.iter().enumerate() {
            let next = line.changes.get(index + 1).map_or(now, |next| next.old.as_ref());
            let is_exact = change.is_exact || keeps_times;
            past.extend(match (&change.new, next) {
                (None, _) => Some(Past {
                    at: change.at,
                    record: None,
                    time: change.when,
                    is_exact: change.is_exact,
                    follows: true,
                    by: change.by.clone(),
                    is_watched: change.is_exact,
                }),
                (Some(_), Some(record)) => {
                    let follows = change.is_exact;
                    Some(Past { follows, ..stored(record, is_exact, (change.by.clone(), change.is_exact)) })
                }
                // It was replaced by something that is no record.
                (Some(_), None) => None,
            });
        }
        past
    }

    /// The records that are gone, and whose past is known.
    pub fn gone(&self) -> OrdMap<TopoPath, ()> {
        self.all.kept.lock().cells.get(&self.cell).map_or_else(OrdMap::new, |cell| cell.gone.clone())
    }

    /// A list has come, and the cell is followed from now on.
    pub fn begins(&self, seen: Revision, now: SystemTime) {
        self.sight(|sight, now| sight.begins(seen, now), now);
    }

    /// The watch has broken; it was true until then.
    pub fn breaks(&self, since: SystemTime, now: SystemTime) {
        self.sight(|sight, _| sight.breaks(since), now);
    }

    /// Nothing before this moment can be undone.
    pub fn cut(&self, seen: Revision, now: SystemTime) {
        self.sight(|sight, now| sight.forget(now, seen), now);
    }

    /// A comparison with a list has begun at a time; `missed` says that it has found changes that the watch should have
    /// told of.
    pub fn compared(&self, missed: bool, begun: SystemTime, now: SystemTime) {
        self.sight(|sight, now| sight.compared(missed, begun, now), now);
    }

    fn sight(&self, change: impl FnOnce(&mut Sight, SystemTime), now: SystemTime) {
        let mut kept = self.all.kept.lock();
        let now = kept.now(now);
        if let Some(cell) = kept.cells.get_mut(&self.cell) {
            change(&mut cell.sight, now);
        }
    }

    /// The snapshot of an earlier moment, from the present one. Only the records are known.
    pub fn at(&self, time: SystemTime, present: &Snapshot, now: SystemTime) -> Result<Snapshot, Unknown> {
        if !self.all.keeps_anything() {
            return Err(Unknown::nothing_is_kept());
        }
        let (undone, at) = {
            let kept = self.all.kept.lock();
            kept.since(self.cell, time, kept.last.map_or(now, |last| last.max(now)))?
        };
        let mut records = present.records.clone();
        for (path, old) in undone {
            match old {
                Some(record) => drop(records.insert(path, record)),
                None => drop(records.remove(&path)),
            }
        }
        Ok(Snapshot { records, at, ..Snapshot::default() })
    }
}

/// A state that is, or was, stored.
fn stored(record: &Record, is_exact: bool, (by, is_watched): (Option<Maker>, bool)) -> Past {
    let (at, time, record) = (record.version.written, record.modified, Some(record.clone()));
    Past { at, time, is_exact, follows: false, by, is_watched, record }
}

impl Kept {
    /// The time of what happens now: never before what has happened.
    fn now(&mut self, now: SystemTime) -> SystemTime {
        let now = self.last.map_or(now, |last| last.max(now));
        self.last = Some(now);
        now
    }

    fn add(
        &mut self,
        cell: u64,
        update: &Update,
        (seen, is_exact, when): (Revision, bool, SystemTime),
        limits: HistoryLimits,
    ) {
        let Update { path, old, new, at } = update;
        let number = self.next;
        self.next += 1;
        let Some(past) = self.cells.get_mut(&cell) else { return };
        match new {
            Some(_) => drop(past.gone.remove(path)),
            None => drop(past.gone.insert(path.clone(), ())),
        }
        let change = PastChange {
            number,
            when,
            at: *at,
            seen,
            is_exact,
            old: old.clone(),
            new: new.as_ref().map(|record| (record.version, record.modified)),
            by: None,
        };
        let line = past.lines.entry(path.clone()).or_default();
        let before = line.bytes;
        line.bytes += cost(path, &change);
        self.bytes += cost(path, &change);
        line.changes.push_back(change);
        let (after, count) = (line.bytes, line.changes.len());
        self.heavy.remove(&(before, cell, path.clone()));
        self.heavy.insert((after, cell, path.clone()));
        self.order.insert(number, (cell, path.clone()));
        if count > limits.versions {
            self.forget_first(cell, path);
        }
        while self.bytes > limits.bytes {
            let greedy = self.heavy.last().filter(|(bytes, ..)| *bytes > limits.bytes / SHARE);
            let greedy = greedy.map(|(_, cell, path)| (*cell, path.clone()));
            let Some((cell, path)) = greedy.or_else(|| self.order.first_key_value().map(|(_, at)| at.clone())) else {
                return;
            };
            self.forget_first(cell, &path);
        }
    }

    /// Forgets the oldest change of a record.
    fn forget_first(&mut self, cell: u64, path: &TopoPath) {
        let Some(past) = self.cells.get_mut(&cell) else { return };
        let Some(line) = past.lines.get_mut(path) else { return };
        let Some(change) = line.changes.pop_front() else { return };
        let before = line.bytes;
        line.bytes = line.bytes.saturating_sub(cost(path, &change));
        self.bytes = self.bytes.saturating_sub(cost(path, &change));
        line.first = (change.by, change.is_exact);
        self.order.remove(&change.number);
        self.heavy.remove(&(before, cell, path.clone()));
        self.forgotten += 1;
        past.sight.forget(change.when, change.seen);
        if line.changes.is_empty() {
            past.lines.remove(path);
            past.gone.remove(path);
        } else {
            self.heavy.insert((line.bytes, cell, path.clone()));
        }
    }

    fn forget_cell(&mut self, cell: u64) {
        let Some(past) = self.cells.remove(&cell) else { return };
        for (path, line) in past.lines {
            line.changes.iter().for_each(|change| drop(self.order.remove(&change.number)));
            self.bytes = self.bytes.saturating_sub(line.bytes);
            self.heavy.remove(&(line.bytes, cell, path));
        }
    }
}

/// What it costs to keep a change.
fn cost(path: &TopoPath, change: &PastChange) -> usize {
    OVERHEAD + path.as_str().len() + change.old.as_ref().map_or(0, |old| old.value.len())
}

#[cfg(test)]
mod tests;
