//! Stores what a plan says, many records in one transaction and several transactions at a time. Never stores anything
//! without its guard.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::locked::Locks;
use super::place::Place;
use super::plan::{Stage, Step};
use super::words::Progress;
use crate::backend::{Action, BackendError, Change, Failure, Guard};
use crate::name::{CellName, CellPath};

/// Transactions that are under way at the same time. More of them wait for the service, not for the network.
const IN_FLIGHT: usize = 8;
/// Bytes of a transaction: below the limits of all services (Consul takes 512 KiB with values in base64). One larger
/// record goes alone.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of a change besides its value, and how often a request names its path.
const AROUND: (usize, usize) = (200, 6);

/// What the writing has come to.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Records that were not stored, with the reasons.
    pub failed: Vec<(CellPath, String)>,
    /// Places that no longer answered, with the reasons, and how many of their records were not stored.
    pub lost: Vec<(String, usize)>,
    /// Records that were not stored because somebody has stopped the copy.
    pub stopped: usize,
}

/// Writes. Each place has its own steps.
pub(super) struct Writer<'a> {
    progress: &'a Progress,
    stop: &'a CancellationToken,
    locks: Locks,
    lost: Mutex<HashMap<CellName, (String, usize)>>,
    outcome: Mutex<Written>,
}

/// Changes of one place that are applied together.
struct Batch {
    place: Arc<Place>,
    changes: Vec<Change>,
}

impl<'a> Writer<'a> {
    pub fn new(progress: &'a Progress, stop: &'a CancellationToken, locks: Locks) -> Self {
        Self { progress, stop, locks, lost: Mutex::default(), outcome: Mutex::default() }
    }

    /// Stores everything, stage by stage. When it is stopped, what is under way is finished, and nothing else begins.
    pub async fn write(self, steps: Vec<(Arc<Place>, Vec<Step>)>) -> Written {
        let mut stages: std::collections::BTreeMap<Stage, Vec<Batch>> = Default::default();
        for (place, steps) in steps {
            let mut by_stage: HashMap<Stage, Vec<Change>> = HashMap::new();
            for step in steps {
                by_stage.entry(step.stage()).or_default().push(step.change);
            }
            for (stage, changes) in by_stage {
                stages.entry(stage).or_default().extend(batches(&place, changes));
            }
        }
        for batches in stages.into_values() {
            futures::stream::iter(batches).for_each_concurrent(IN_FLIGHT, |batch| self.store(batch)).await;
        }
        let mut outcome = self.outcome.into_inner();
        outcome.lost = self.lost.into_inner().into_values().collect();
        outcome
    }

    async fn store(&self, mut batch: Batch) {
        if self.given_up(&batch) {
            return;
        }
        self.leave_out_locked(&mut batch).await;
        // Looking at the locks takes time.
        if batch.changes.is_empty() || self.given_up(&batch) {
            return;
        }
        match batch.place.backend.apply(&batch.changes).await {
            Ok(_) => self.done(batch.changes.len()),
            Err(error) if is_lost(&error) => self.lose(&batch.place, &error, batch.changes.len()),
            // One of them is refused: which one?
            Err(_) if batch.changes.len() > 1 => self.store_one_by_one(batch).await,
            Err(error) => self.settle(&batch, error).await,
        }
    }

    /// Takes out of a batch what somebody else's lock protects.
    async fn leave_out_locked(&self, batch: &mut Batch) {
        let mut held = self.locks.in_the_way(&batch.place, &batch.changes, self.stop).await;
        batch.changes.retain(|change| {
            let Some(reason) = held.remove(&change.path) else { return true };
            self.outcome.lock().failed.push((CellPath::new(&batch.place.cell, &change.path), reason));
            false
        });
    }

    async fn store_one_by_one(&self, batch: Batch) {
        let each = batch.changes.into_iter().map(|change| Batch { place: batch.place.clone(), changes: vec![change] });
        futures::stream::iter(each)
            .for_each_concurrent(IN_FLIGHT, |single| async move {
                if self.given_up(&single) {
                    return;
                }
                match single.place.backend.apply(&single.changes).await {
                    Ok(_) => self.done(1),
                    Err(error) if is_lost(&error) => self.lose(&single.place, &error, 1),
                    Err(error) => self.settle(&single, error).await,
                }
            })
            .await;
    }

    /// Whether nothing of a batch is stored any more.
    fn given_up(&self, batch: &Batch) -> bool {
        if let Some((_, records)) = self.lost.lock().get_mut(&batch.place.cell) {
            *records += batch.changes.len();
            return true;
        }
        let stopped = self.stop.is_cancelled();
        if stopped {
            self.outcome.lock().stopped += batch.changes.len();
        }
        stopped
    }

    fn done(&self, records: usize) {
        self.progress.done.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// A service that does not answer is asked no more: each call would take its whole time.
    fn lose(&self, place: &Place, error: &BackendError, records: usize) {
        let mut lost = self.lost.lock();
        let (_, count) = lost.entry(place.cell.clone()).or_insert_with(|| (place.explain(error.clone()).reason, 0));
        *count += records;
    }

    /// One change was refused. If the target holds what it should hold, somebody else has stored it, or our own request
    /// was carried out although its answer was lost.
    async fn settle(&self, single: &Batch, error: BackendError) {
        let Some(change) = single.changes.first() else { return };
        let is_unmet = matches!(error.failure, Failure::NodeExists | Failure::NoNode | Failure::BadVersion);
        if is_unmet && let Ok(fetched) = single.place.backend.get(&change.path).await {
            let now = fetched.node.map(|node| node.value);
            let wanted = match &change.action {
                Action::Put(value) => Some(value),
                Action::Delete | Action::Check => None,
            };
            if now.as_ref() == wanted {
                return self.done(1);
            }
        }
        let reason = match (error.failure, change.guard) {
            (Failure::NodeExists, Guard::Absent) => "somebody has created it at the target meanwhile".to_owned(),
            (Failure::NoNode, Guard::Version(_)) => "somebody has deleted it at the target meanwhile".to_owned(),
            (Failure::BadVersion | Failure::NoNode, _) => "somebody has changed it at the target meanwhile".to_owned(),
            _ => error.message,
        };
        self.outcome.lock().failed.push((CellPath::new(&single.place.cell, &change.path), reason));
    }
}

/// Whether further calls are useless.
fn is_lost(error: &BackendError) -> bool {
    matches!(error.failure, Failure::Unreachable | Failure::NoSpace)
}

/// Divides changes by the limits of the service.
fn batches(place: &Arc<Place>, changes: Vec<Change>) -> Vec<Batch> {
    let most = place.backend.limits().changes.max(1);
    let size = |change: &Change| {
        let value = match &change.action {
            Action::Put(value) => value.len(),
            Action::Delete | Action::Check => 0,
        };
        value + AROUND.0 + AROUND.1 * change.path.as_str().len()
    };
    let mut all: Vec<Batch> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let more = size(&change);
        match all.last_mut() {
            Some(batch) if batch.changes.len() < most && bytes + more <= BATCH_BYTES => {
                bytes += more;
                batch.changes.push(change);
            }
            _ => {
                bytes = more;
                all.push(Batch { place: place.clone(), changes: vec![change] });
            }
        }
    }
    all
}
