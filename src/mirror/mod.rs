//! The mirror of one cell: a bulk list loads it, a watch keeps it current, and it is compared with the service at
//! intervals.
//!
//! Readers take snapshots and never wait for the watcher. A mirror that has lost its watch says so ([`Health`]); only
//! [`Mirror::health`] decides whether its snapshot may still be shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::alive::{self, Panic, TaskName};
use crate::backend::{
    Applied, Backend, BackendError, Change, Compared, Failure, Fetched, Loading, Node, Revision, SIGN_OF_LIFE, Step,
    WatchBatch,
};
use crate::name::TopoPath;

mod compare;
mod doubt;
mod history;
mod pace;
mod state;

use compare::Agreed;
use doubt::Doubtful;
use history::History;
pub use history::{Histories, HistoryLimits, HistoryUsage, Maker, Past, Unknown};
use imbl::OrdMap;
use pace::Pace;
use state::State;
pub use state::{Batch, Entry, Record, Snapshot, Update, has_below, names_below};

/// Number of batches that may wait for a slow listener. One more, and the listener loses the oldest: the channel says
/// so, and the listener compares what it knows with the snapshot.
const UPDATE_QUEUE: usize = 1_024;
/// The cause that a cell shows between a panic and the next list.
const DOUBTED: &str = "a task of topofs panicked while it changed the mirror";
/// Random share of the resync interval, so that many mounts do not ask at the same moment.
const RESYNC_JITTER: f64 = 0.1;

/// How to keep a mirror.
#[derive(Debug, Clone, Copy)]
pub struct MirrorOptions {
    /// How often to compare the mirror with the service.
    pub resync_interval: Duration,
    /// How long the watch may be broken before the snapshot is no longer shown.
    pub stale_after: Duration,
    /// Whether to show an old snapshot instead of failing.
    pub serve_stale: bool,
}

/// Whether a snapshot may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nobody has asked for this cell yet.
    Idle,
    /// The first list is under way.
    Loading,
    /// The watch is delivering.
    Live,
    /// The watch is broken, but not for long.
    Shaky,
    /// The watch has been broken for too long, or nothing was ever loaded.
    Down,
    /// The service does not let us read the cell. The mount no longer shows what it has read, however recent that is.
    Denied,
}

#[derive(Debug, Clone)]
enum Link {
    Idle,
    Loading,
    Live,
    /// `denied`: since then, the service has said that we may not read.
    Broken {
        since: Instant,
        cause: BackendError,
        denied: bool,
    },
}

/// Counters of `.topofs/status`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Watch events merged.
    pub events: AtomicU64,
    /// Comparisons with the service.
    pub resyncs: AtomicU64,
    /// Changes that the watch should have delivered and did not.
    pub missed: AtomicU64,
    /// Differences found after the watch had been broken.
    pub caught_up: AtomicU64,
    /// Silences of the watch that were so long that kept records could no longer be trusted.
    pub silences: AtomicU64,
    /// How often the watch was set up again.
    pub reconnects: AtomicU64,
    /// How often the history of the service has gone back: its revisions mean something else since.
    pub restorations: AtomicU64,
    /// Keys that cannot be file names: those in the last list, and their changes since.
    pub skipped: AtomicU64,
    /// Keys that cannot be file names, as the last list showed them. A watch tells only that something has happened to
    /// such a key, not whether it is still there.
    pub unnameable: AtomicU64,
}

/// The mirror of one cell.
#[derive(Debug)]
pub struct Mirror {
    backend: Arc<dyn Backend>,
    options: MirrorOptions,
    state: Doubtful,
    snapshot: ArcSwap<Snapshot>,
    link: watch::Sender<Link>,
    loaded: AtomicBool,
    updates: broadcast::Sender<Arc<Batch>>,
    /// The number of the last batch that the snapshot contains.
    published: AtomicU64,
    /// Bytes of the records in the snapshot.
    bytes: AtomicUsize,
    /// Counts changes of locks.
    locks: watch::Sender<u64>,
    /// How far a list has come that begins a watch.
    loading: Loading,
    resync: Notify,
    wanted: Notify,
    last_event: Mutex<Option<SystemTime>>,
    /// When the watch last gave a sign of life: the snapshot was true then.
    last_heard: Mutex<Instant>,
    history: History,
    /// Where mirror and service were last equal.
    agreed: Mutex<Agreed>,
    /// Whether somebody has asked for everything to be read at the next comparison.
    reread: AtomicBool,
    /// What has happened to this mirror.
    pub counters: Counters,
}

impl Mirror {
    /// An empty mirror, which remembers nothing of the past.
    pub fn new(backend: Arc<dyn Backend>, options: MirrorOptions) -> Arc<Self> {
        Self::remembering(backend, options, Histories::new(HistoryLimits::NOTHING))
    }

    /// An empty mirror. It remembers the past together with others.
    pub fn remembering(backend: Arc<dyn Backend>, options: MirrorOptions, histories: Arc<Histories>) -> Arc<Self> {
        Arc::new(Self {
            loading: backend.loading(),
            backend,
            options,
            state: Doubtful::default(),
            snapshot: ArcSwap::default(),
            link: watch::Sender::new(Link::Idle),
            loaded: false.into(),
            updates: broadcast::Sender::new(UPDATE_QUEUE),
            published: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            locks: watch::Sender::new(0),
            resync: Notify::new(),
            wanted: Notify::new(),
            last_event: Mutex::new(None),
            last_heard: Mutex::new(Instant::now()),
            history: History::new(histories),
            agreed: Mutex::default(),
            reread: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    /// Whether the snapshot may be shown now.
    pub fn health(&self) -> Health {
        let link = self.link.borrow();
        match &*link {
            Link::Idle => Health::Idle,
            Link::Loading => Health::Loading,
            Link::Live if self.state.is_doubted() || self.is_silent() => Health::Down,
            Link::Live => Health::Live,
            Link::Broken { cause, .. } if cause.failure == Failure::Denied => Health::Denied,
            Link::Broken { since, denied, .. } => {
                // After a panic nobody knows the age of the shown records.
                let is_known = self.is_loaded() && !denied && !self.state.is_doubted();
                if is_known && since.elapsed() < self.options.stale_after { Health::Shaky } else { Health::Down }
            }
        }
    }

    /// Whether a watch that seems to be alive has been silent for too long.
    fn is_silent(&self) -> bool {
        let patience = self.options.stale_after.max(SIGN_OF_LIFE * 2);
        self.backend.gives_signs_of_life() && self.last_heard.lock().elapsed() > patience
    }

    /// Whether the watch delivers, and has given a sign of life lately, so it will report what happens now.
    pub fn is_fresh(&self) -> bool {
        matches!(&*self.link.borrow(), Link::Live)
            && !self.state.is_doubted()
            && (!self.backend.gives_signs_of_life() || self.last_heard.lock().elapsed() < SIGN_OF_LIFE.mul_f64(1.5))
    }

    /// Why the watch is broken, and for how long.
    pub fn trouble(&self) -> Option<(String, Duration)> {
        match &*self.link.borrow() {
            Link::Broken { since, cause, .. } => Some((cause.message.clone(), since.elapsed())),
            Link::Live if self.state.is_doubted() => Some((DOUBTED.to_owned(), Duration::ZERO)),
            Link::Live if self.is_silent() => {
                Some(("the watch is silent".to_owned(), self.last_heard.lock().elapsed()))
            }
            _ => None,
        }
    }

    /// Whether the service has said that we may not read. Failed attempts to reach it since do not count.
    pub fn is_denied(&self) -> bool {
        matches!(&*self.link.borrow(), Link::Broken { denied: true, .. })
    }

    /// Whether the first list is loaded.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Bytes of all records, with their paths.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How long ago the service gave the last sign of life: what the mirror has was true then. `None` if nothing was
    /// loaded yet, or the service need not give any.
    pub fn silent_for(&self) -> Option<Duration> {
        let gives = self.is_loaded() && self.backend.gives_signs_of_life();
        gives.then(|| self.last_heard.lock().elapsed())
    }

    /// When the last event was delivered.
    pub fn last_event(&self) -> Option<SystemTime> {
        *self.last_event.lock()
    }

    /// When the watch last gave a sign of life.
    pub fn last_heard(&self) -> Instant {
        *self.last_heard.lock()
    }

    /// The records now, even if the mirror is not healthy.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Asks for the first connection, without waiting for it.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Asks for the first list, and waits until it is loaded or has failed.
    pub async fn load(&self) {
        self.wake();
        let mut link = self.link.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        let _ = link.wait_for(|link| !matches!(link, Link::Idle | Link::Loading)).await;
    }

    /// The same, but gives up if the service has not answered anything for so long. However long the list takes, a
    /// service that goes on answering is waited for. False if it was given up.
    pub async fn load_while_answered(&self, silence: Duration) -> bool {
        self.while_answered(self.load(), silence).await
    }

    /// Waits for the list that is under way, as [`Self::load_while_answered`] does. Returns at once if there is none,
    /// or if it has not brought anything.
    pub async fn reload_while_answered(&self, silence: Duration) -> bool {
        let mut progress = self.loading.subscribe();
        if !progress.borrow_and_update().brings() {
            return true;
        }
        let ended = async {
            // The sender lives as long as self, so waiting cannot fail.
            let _ = progress.wait_for(|progress| progress.step == Step::None).await;
        };
        self.while_answered(ended, silence).await
    }

    async fn while_answered(&self, loaded: impl Future<Output = ()>, silence: Duration) -> bool {
        let mut loaded = std::pin::pin!(loaded);
        let mut answers = self.loading.subscribe();
        loop {
            // What the mirror does with the list is not the service's silence.
            let asks = answers.borrow_and_update().step != Step::TakingOver;
            tokio::select! {
                biased;
                () = &mut loaded => return true,
                // The sender lives as long as self.
                _ = answers.changed() => {}
                () = tokio::time::sleep(silence), if asks => return false,
            }
        }
    }

    /// How many records a list has brought so far that begins a watch; `None` if none is under way.
    pub fn loading(&self) -> Option<u64> {
        let progress = self.loading.progress();
        (progress.step != Step::None).then_some(progress.records)
    }

    /// Waits until there is a first list, without asking for it.
    pub async fn loaded(&self) {
        let mut link = self.link.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        let _ = link.wait_for(|link| matches!(link, Link::Live)).await;
    }

    /// Every change after the first list, in order. If a listener falls behind, the channel says so.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.updates.subscribe()
    }

    /// The number of the last batch that may be in a snapshot from before this call.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Changes when a lock in the snapshot has come, gone or changed.
    pub fn lock_changes(&self) -> watch::Receiver<u64> {
        self.locks.subscribe()
    }

    /// A lock of this mount is gone.
    pub fn released(&self, path: &TopoPath, at: Revision) {
        self.change(true, |state| {
            state.note_own(path);
            state.delete(path, at).into_iter().collect()
        });
    }

    /// Waits until the watch has told of everything up to a time; not longer than a watch that delivers needs for a
    /// sign of life, and not for what has not come yet.
    pub async fn has_told(&self, time: SystemTime) {
        /// How often to look.
        const STEP: Duration = Duration::from_millis(50);
        let end = Instant::now() + SIGN_OF_LIFE * 2;
        let has_told = || {
            let now = SystemTime::now();
            let heard = now.checked_sub(self.last_heard.lock().elapsed()).unwrap_or(now);
            time <= heard || time > now || !self.backend.gives_signs_of_life()
        };
        while self.is_loaded() && self.health() == Health::Live && !has_told() && Instant::now() < end {
            tokio::time::sleep(STEP).await;
        }
    }

    /// The records of an earlier moment, as far as this mirror has seen what has happened since. Only the owner of the
    /// cell knows whether they may still be shown.
    pub fn at(&self, time: SystemTime) -> Result<Snapshot, Unknown> {
        let now = SystemTime::now();
        // Something may have happened of which the watch has not told yet.
        let heard = now.checked_sub(self.last_heard.lock().elapsed()).unwrap_or(now);
        if self.is_loaded() && self.backend.gives_signs_of_life() && time > heard && time <= now {
            let heard = humantime::format_rfc3339_millis(heard);
            return Err(Unknown(format!("the watch has told everything up to {heard}, and not more yet")));
        }
        // Nothing changes meanwhile, so the snapshot is that of the last remembered change.
        let state = self.state.lock();
        if self.state.is_doubted() {
            return Err(Unknown(DOUBTED.to_owned()));
        }
        let earlier = self.history.at(time, &self.snapshot.load(), now);
        drop(state);
        earlier
    }

    /// All states of a record that are remembered, the oldest first, with the present one.
    pub fn past(&self, path: &TopoPath) -> Vec<Past> {
        let _unchanged = self.state.lock();
        let snapshot = self.snapshot.load();
        self.history.past(path, snapshot.records.get(path), self.backend.keeps_times())
    }

    /// The records that are gone, and whose past is remembered.
    pub fn gone(&self) -> OrdMap<TopoPath, ()> {
        self.history.gone()
    }

    /// Notes who has made changes that this mount has just made.
    pub fn made(&self, changes: &[Change], applied: &Applied, maker: &Maker) {
        use crate::backend::{Action, Guard};
        for (change, version) in changes.iter().zip(&applied.versions) {
            match (&change.action, version, change.guard) {
                (Action::Put(_), Some(version), _) => self.history.made(&change.path, version.written, false, maker),
                (Action::Delete, _, Guard::Version(old)) => self.history.made(&change.path, old.written, true, maker),
                _ => {}
            }
        }
    }

    /// Asks for a comparison with the service now.
    pub fn request_resync(&self) {
        self.resync.notify_one();
    }

    /// Asks for a comparison with everything that the service has.
    pub fn request_reread(&self) {
        self.reread.store(true, Ordering::Relaxed);
        self.request_resync();
    }

    /// Merges what this mount has just read.
    pub fn observe(&self, path: &TopoPath, fetched: &Fetched) {
        self.change(true, |state| {
            // Under the same lock: a list that is merged in between would undo it.
            state.note_own(path);
            let update = match &fetched.node {
                Some(node) => state.put_own(node.clone(), SystemTime::now()),
                None => state.delete(path, fetched.at),
            };
            update.into_iter().collect()
        });
    }

    /// Merges what this mount has just written, so that it reads its own writes.
    pub fn wrote(&self, changes: &[Change], applied: &Applied) {
        self.change(true, |state| {
            let mut updates = Vec::new();
            for (change, version) in changes.iter().zip(&applied.versions) {
                let update = match (&change.action, version) {
                    (crate::backend::Action::Put(value), Some(version)) => {
                        let node = Node {
                            path: change.path.clone(),
                            value: value.clone(),
                            version: *version,
                            role: crate::backend::Role::Record,
                            modified: None,
                        };
                        state.put_own(node, SystemTime::now())
                    }
                    (crate::backend::Action::Delete, _) => state.delete(&change.path, applied.at),
                    _ => None,
                };
                updates.extend(update);
                state.note_own(&change.path);
            }
            updates
        });
    }

    /// Keeps the mirror current until cancelled. It connects when somebody calls [`Mirror::load`] or [`Mirror::wake`].
    ///
    /// A panic, here or in a task that changes the records, takes the cell down at once, even if only briefly. The cell
    /// comes back with a fresh list.
    pub async fn run(self: Arc<Self>, task: impl Into<TaskName>, stop: CancellationToken) {
        let task = task.into();
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.wanted.notified() => self.set_link(Link::Loading),
        }
        let (mut pace, mut panics) = (Pace::default(), alive::Pauses::default());
        loop {
            let doubts = self.state.renew(&self.snapshot());
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = alive::guarded(task.clone(), self.follow(&mut pace, doubts)) => outcome,
                () = self.state.doubted(doubts) => Ok(BackendError::new(Failure::Other, DOUBTED)),
            };
            let (cause, pause) = match outcome {
                Ok(error) => {
                    let pause = pace.after(error.failure, Instant::now());
                    (error, pause)
                }
                Err(panic) => (self.panicked(&panic), panics.pause()),
            };
            self.broken(cause);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.resync.notified() => self.backend.reread_secrets().await,
            }
        }
    }

    /// One connection: list, watch, follow. Returns why it ended.
    async fn follow(&self, pace: &mut Pace, doubts: u64) -> BackendError {
        // What this mount saves while it reads the list is newer than the list, and no other history.
        let before = self.revision();
        self.loading.begin();
        let connected = self.connect().await;
        self.loading.told();
        let (compared, mut stream) = match connected {
            Ok(connected) => connected,
            Err(error) => return error,
        };
        let again = self.is_loaded();
        let at = compared.listing().at;
        // Differences are told only within one history.
        let went_back = matches!(compared, Compared::Whole(_)) && at < before;
        if went_back {
            let (from, to) = (before.0, at.0);
            tracing::warn!(from, to, "the service's history has gone back: the service was restored or recreated");
            self.counters.restorations.fetch_add(1, Ordering::Relaxed);
        }
        self.count_skipped(compared.listing());
        let agreed = self.agreed.lock().clone().after(&compared);
        let (mut is_whole, mut differences) = (true, 0);
        if went_back {
            // What the revisions said before says nothing about those that come.
            self.history.cut(at, SystemTime::now());
        }
        self.change(false, |state| {
            let updates = match compared {
                // The first list contains nothing new: the records were always there.
                Compared::Whole(listing) => state.restart(listing, again, SystemTime::now()),
                Compared::Differences { changed, gone } => Some(state.resume(changed, gone, SystemTime::now())),
            };
            is_whole = updates.is_some();
            let updates = updates.unwrap_or_default();
            differences = updates.len() as u64;
            updates
        });
        if !is_whole {
            return BackendError::new(Failure::Other, "this mount changed too many records while it read the list");
        }
        *self.agreed.lock() = agreed;
        self.history.begins(at, SystemTime::now());
        if again {
            self.counters.caught_up.fetch_add(differences, Ordering::Relaxed);
            self.counters.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        self.loaded.store(true, Ordering::Release);
        *self.last_heard.lock() = Instant::now();
        self.state.settle(doubts);
        self.delivers();
        pace.watches(Instant::now());
        let mut tick = tokio::time::interval_at(Instant::now() + self.resync_interval(), self.resync_interval());
        loop {
            tokio::select! {
                batch = stream.next() => match batch {
                    Some(Ok(batch)) => self.merge(batch),
                    Some(Err(error)) => return error,
                    None => return BackendError::new(Failure::Unreachable, "the watch ended"),
                },
                _ = tick.tick() => if let Err(error) = self.compare_at_leisure(&mut stream).await { return error },
                () = self.resync.notified() => if let Err(error) = self.compare_now(&mut stream).await { return error },
            }
        }
    }

    fn merge(&self, batch: WatchBatch) {
        let now = SystemTime::now();
        *self.last_heard.lock() = Instant::now();
        self.counters.skipped.fetch_add(batch.skipped, Ordering::Relaxed);
        if batch.events.is_empty() {
            return;
        }
        *self.last_event.lock() = Some(now);
        self.counters.events.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
        self.change(true, |state| {
            let mut updates = Vec::new();
            for event in batch.events {
                updates.extend(match event.node {
                    Some(node) => state.put(node, now),
                    None => state.delete(&event.path, event.at),
                });
            }
            state.snapshot.at = state.snapshot.at.max(batch.at);
            updates
        });
    }

    /// Changes the state, remembers what has changed, and publishes it, all under one lock: an older snapshot cannot
    /// replace a newer one, and no snapshot has a change that is not remembered. `is_exact` says that the changes have
    /// just happened.
    fn change(&self, is_exact: bool, merge: impl FnOnce(&mut State) -> Vec<Update>) {
        let locks_changed = {
            let mut state = self.state.lock();
            let updates = merge(&mut state);
            self.history.record(&updates, state.snapshot.at, is_exact, SystemTime::now());
            let number = self.published() + u64::from(!updates.is_empty());
            // Count first: a caller that has seen the snapshot waits for its batch.
            self.published.store(number, Ordering::Release);
            self.snapshot.store(Arc::new(state.snapshot.clone()));
            self.bytes.store(state.bytes(), Ordering::Relaxed);
            if !updates.is_empty() {
                // It is not an error if nobody listens.
                let _ = self.updates.send(Arc::new(Batch { number, updates }));
            }
            std::mem::take(&mut state.locks_changed)
        };
        if locks_changed {
            self.locks.send_modify(|changes| *changes += 1);
        }
    }

    fn panicked(&self, panic: &Panic) -> BackendError {
        self.state.doubt();
        BackendError::new(Failure::Other, panic.to_string())
    }

    fn set_link(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// The watch delivers. If it was broken, the log has said so, and says when that is over.
    fn delivers(&self) {
        let before = self.link.send_replace(Link::Live);
        self.loading.end();
        if let Link::Broken { since, .. } = before {
            let after = humantime::format_duration(Duration::from_millis(whole_millis(since.elapsed())));
            tracing::info!(%after, "the watch delivers again");
        }
    }

    fn broken(&self, cause: BackendError) {
        // Whoever starts a mirror waits for it, and is told why there is no watch.
        if self.is_loaded() || matches!(&*self.link.borrow(), Link::Live) {
            tracing::warn!(%cause, "the watch is broken");
        } else {
            tracing::debug!(%cause, "there is no watch yet");
        }
        let now = SystemTime::now();
        let since = now.checked_sub(self.last_heard.lock().elapsed()).unwrap_or(now);
        self.history.breaks(since, now);
        self.link.send_modify(|link| {
            // The last sign of life counts, not the moment when we noticed the silence or when the last attempt failed.
            let since = match link {
                Link::Broken { since, .. } => *since,
                Link::Live => *self.last_heard.lock(),
                Link::Idle | Link::Loading => Instant::now(),
            };
            let denied = cause.failure == Failure::Denied || matches!(&*link, Link::Broken { denied: true, .. });
            *link = Link::Broken { since, cause, denied };
        });
        self.loading.end();
    }

    fn resync_interval(&self) -> Duration {
        // The nanoseconds of the clock are random enough to keep many mounts apart.
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
        let share = f64::from(nanos % 1_000) / 1_000.0;
        self.options.resync_interval.mul_f64(1.0 - RESYNC_JITTER + 2.0 * RESYNC_JITTER * share)
    }

    /// The newest revision that this mirror has seen.
    pub fn revision(&self) -> Revision {
        self.snapshot.load().at
    }
}

/// Finer than that, nobody wants to read it.
fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
