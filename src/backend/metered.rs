//! Any service, with its calls counted and timed. Must never change a call or its answer.
//!
//! Durations are counted for all cells together, by operation and outcome: there may be hundreds of cells. Each
//! connection counts its own errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use imbl::OrdMap;
use prometheus::Histogram;

use super::contract::{
    Along, Applied, Backend, BackendError, Change, Compared, Earlier, Failure, Fetched, Limits, Listing, Node, Owner,
    Part, Place, Revision, SharedPlace, Shown, Take, WatchStream,
};
use super::loading::Loading;
use super::mark::Mark;
use crate::journal::metrics::BACKEND_DURATION;
use crate::name::TopoPath;

macro_rules! calls {
    ($($call:ident $name:literal,)*) => {
        /// A kind of call.
        #[derive(Debug, Clone, Copy)]
        enum Call { $($call,)* }

        /// Their names.
        const CALLS: &[&str] = &[$($name,)*];
    };
}

calls! {
    List "list",
    Compare "compare",
    ListAt "list_at",
    Get "get",
    Earlier "earlier",
    Deleted "deleted",
    Attribute "attribute",
    Apply "apply",
    Follow "follow",
    Enter "enter",
    TryHold "try_hold",
    Leave "leave",
    BreakLock "break_lock",
    SweepLocks "sweep_locks",
    TimeLeft "time_left",
}

/// What came of a call.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Ok,
    /// The service has answered, and it was no.
    Refused,
    /// It has not answered, or not as it should.
    Failed,
    /// The caller has not waited for the answer.
    Abandoned,
}

/// Their names, in the same order.
const OUTCOMES: [&str; 4] = ["ok", "refused", "failed", "abandoned"];

/// All failures, with their names.
const FAILURES: [(Failure, &str); 13] = [
    (Failure::NoNode, "no_node"),
    (Failure::NodeExists, "node_exists"),
    (Failure::BadVersion, "bad_version"),
    (Failure::Unreachable, "unreachable"),
    (Failure::Denied, "denied"),
    (Failure::TooLarge, "too_large"),
    (Failure::TooMany, "too_many"),
    (Failure::NoSpace, "no_space"),
    (Failure::LockLost, "lock_lost"),
    (Failure::Locked, "locked"),
    (Failure::Compacted, "compacted"),
    (Failure::NotKept, "not_kept"),
    (Failure::Other, "other"),
];

impl Outcome {
    fn of(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable | Failure::Denied | Failure::NoSpace | Failure::Other => Outcome::Failed,
            Failure::NoNode
            | Failure::NodeExists
            | Failure::BadVersion
            | Failure::TooLarge
            | Failure::TooMany
            | Failure::LockLost
            | Failure::Locked
            | Failure::Compacted
            | Failure::NotKept => Outcome::Refused,
        }
    }
}

/// How long the calls of all connections took.
#[derive(Debug)]
pub struct Meter(Vec<Histogram>);

impl Default for Meter {
    fn default() -> Self {
        let labels = CALLS.iter().flat_map(|call| OUTCOMES.iter().map(move |outcome| (call, outcome)));
        let histogram =
            |(call, outcome): (&&str, &&str)| BACKEND_DURATION.histogram(&[("operation", call), ("outcome", outcome)]);
        // All or none: a definition that is no metric is none for any label.
        Self(labels.filter_map(histogram).collect())
    }
}

impl Meter {
    fn observe(&self, call: Call, outcome: Outcome, took: Duration) {
        if let Some(histogram) = self.0.get(call as usize * OUTCOMES.len() + outcome as usize) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Those kinds of calls, with their outcomes, that were made.
    pub fn durations(&self) -> impl Iterator<Item = &Histogram> {
        self.0.iter().filter(|histogram| histogram.get_sample_count() > 0)
    }
}

/// How often the calls of one connection have failed, by failure. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Errors(Arc<[AtomicU64; FAILURES.len()]>);

impl Errors {
    fn count(&self, failure: Failure) {
        let place = FAILURES.iter().position(|(known, _)| *known == failure);
        if let Some(counter) = place.and_then(|place| self.0.get(place)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The failures that there were, by name.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = FAILURES.iter().zip(self.0.iter());
        counts.map(|((_, name), count)| (*name, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }
}

/// A backend whose calls are counted.
#[derive(Debug, Clone)]
pub struct Metered {
    inner: Arc<dyn Backend>,
    meter: Arc<Meter>,
    errors: Errors,
}

/// A call under way. One that is dropped was abandoned.
struct Timing<'a> {
    metered: &'a Metered,
    call: Call,
    begun: Instant,
    outcome: Outcome,
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.metered.meter.observe(self.call, self.outcome, self.begun.elapsed());
    }
}

impl Metered {
    /// Counts the calls of a connection: their durations with those of others, their errors here.
    pub fn wrap(inner: Arc<dyn Backend>, meter: Arc<Meter>, errors: Errors) -> Arc<dyn Backend> {
        Arc::new(Self { inner, meter, errors })
    }

    async fn pass<T>(
        &self,
        call: Call,
        inner: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let mut timing = Timing { metered: self, call, begun: Instant::now(), outcome: Outcome::Abandoned };
        let answer = inner.await;
        timing.outcome = match &answer {
            Ok(_) => Outcome::Ok,
            Err(error) => {
                self.errors.count(error.failure);
                Outcome::of(error.failure)
            }
        };
        answer
    }

    fn counting(&self, stream: WatchStream) -> WatchStream {
        let errors = self.errors.clone();
        stream.inspect_err(move |error| errors.count(error.failure)).boxed()
    }
}

#[async_trait]
impl Backend for Metered {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn gives_signs_of_life(&self) -> bool {
        self.inner.gives_signs_of_life()
    }

    fn keeps_times(&self) -> bool {
        self.inner.keeps_times()
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        self.pass(Call::List, self.inner.list(dir)).await
    }

    async fn compare(&self, shown: &dyn Shown, mark: &Mark, time: Duration) -> Result<Compared, BackendError> {
        self.pass(Call::Compare, self.inner.compare(shown, mark, time)).await
    }

    async fn list_at(&self, dir: &TopoPath, at: Revision, take: &mut Take<'_>) -> Result<(), BackendError> {
        self.pass(Call::ListAt, self.inner.list_at(dir, at, take)).await
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        self.pass(Call::Get, self.inner.get(path)).await
    }

    async fn earlier(&self, path: &TopoPath) -> Result<Option<Earlier>, BackendError> {
        self.pass(Call::Earlier, self.inner.earlier(path)).await
    }

    async fn deleted(&self) -> Result<Option<OrdMap<TopoPath, Vec<Revision>>>, BackendError> {
        self.pass(Call::Deleted, self.inner.deleted()).await
    }

    fn cannot_hold(&self, path: &TopoPath, value: &[u8], holds_others: bool) -> Option<String> {
        self.inner.cannot_hold(path, value, holds_others)
    }

    fn attributes(&self) -> &'static [&'static str] {
        self.inner.attributes()
    }

    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        self.pass(Call::Attribute, self.inner.attribute(path, name)).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        self.pass(Call::Apply, self.inner.apply(changes)).await
    }

    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        self.inner.refuse_parts(parts)
    }

    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.pass(Call::Apply, self.inner.apply_parts(parts)).await
    }

    fn along(&self, changes: &[Change]) -> Option<Box<dyn Along>> {
        self.inner.along(changes)
    }

    fn identity(&self) -> Option<u64> {
        self.inner.identity()
    }

    fn loading(&self) -> Loading {
        self.inner.loading()
    }

    /// The end of a watch counts as an error of its own.
    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let (listing, stream) = self.pass(Call::Follow, self.inner.follow()).await?;
        Ok((listing, self.counting(stream)))
    }

    async fn follow_again(&self, shown: &dyn Shown, mark: &Mark) -> Result<(Compared, WatchStream), BackendError> {
        let (compared, stream) = self.pass(Call::Follow, self.inner.follow_again(shown, mark)).await?;
        Ok((compared, self.counting(stream)))
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        self.inner.locked_dir(node)
    }

    fn has_queue(&self) -> bool {
        self.inner.has_queue()
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        let place = self.pass(Call::Enter, self.inner.enter(dir, contents)).await?;
        Ok(Arc::new(MeteredPlace { metered: self.clone(), place }))
    }

    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        self.pass(Call::BreakLock, self.inner.break_lock(node)).await
    }

    async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        self.pass(Call::SweepLocks, self.inner.sweep_locks(dir)).await
    }

    async fn reread_secrets(&self) {
        self.inner.reread_secrets().await;
    }

    async fn time_left(&self, owner: Owner) -> Result<Option<Duration>, BackendError> {
        self.pass(Call::TimeLeft, self.inner.time_left(owner)).await
    }
}

/// A place in a line of the inner backend.
#[derive(Debug)]
struct MeteredPlace {
    metered: Metered,
    place: SharedPlace,
}

#[async_trait]
impl Place for MeteredPlace {
    fn node(&self) -> Option<Node> {
        self.place.node()
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        self.metered.pass(Call::TryHold, self.place.try_hold()).await
    }

    async fn lost(&self) -> BackendError {
        self.place.lost().await
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        self.metered.pass(Call::Leave, self.place.leave()).await
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Metric;

    use super::*;
    use crate::backend::faulty::{self, Fault, Faulty};
    use crate::backend::memory::MemoryServers;
    use crate::backend::{Action, Guard, Implementation, Location};

    /// What was counted, as `apply ok 2`.
    fn counted(meter: &Meter) -> Vec<String> {
        let words = |histogram: &Histogram| {
            let metric = histogram.metric();
            let labels: Vec<String> = metric.get_label().iter().map(|label| label.value().to_owned()).collect();
            format!("{} {}", labels.join(" "), histogram.get_sample_count())
        };
        meter.durations().map(words).collect()
    }

    fn metered() -> (Faulty, Arc<dyn Backend>, Arc<Meter>, Errors) {
        let location =
            Location { implementation: Implementation::Memory, server: "m".to_owned(), root: "/r".to_owned() };
        let memory = Arc::new(MemoryServers::default().open(&location).unwrap());
        let faulty = Faulty::new(memory, Duration::from_secs(5));
        let (meter, errors) = (Arc::<Meter>::default(), Errors::default());
        let backend = Metered::wrap(Arc::new(faulty.clone()), meter.clone(), errors.clone());
        (faulty, backend, meter, errors)
    }

    fn put(guard: Guard) -> [Change; 1] {
        [Change { path: TopoPath::parse("a/b").unwrap(), guard, action: Action::Put("x".into()) }]
    }

    #[tokio::test]
    async fn calls_are_counted_by_what_came_of_them() {
        let (faulty, backend, meter, errors) = metered();
        backend.apply(&put(Guard::Absent)).await.unwrap();
        backend.apply(&put(Guard::Absent)).await.unwrap_err();
        faulty.next(faulty::Call::Apply, Fault::Fail(Failure::Unreachable));
        backend.apply(&put(Guard::Any)).await.unwrap_err();
        faulty.next(faulty::Call::Get, Fault::Hang);
        let root = TopoPath::root();
        assert!(tokio::time::timeout(Duration::from_millis(10), backend.get(&root)).await.is_err());
        assert_eq!(counted(&meter), ["get abandoned 1", "apply ok 1", "apply refused 1", "apply failed 1"]);
        assert_eq!(errors.counts().collect::<Vec<_>>(), [("node_exists", 1), ("unreachable", 1)]);
    }

    #[tokio::test]
    async fn a_watch_that_ends_is_an_error_and_no_call() {
        let (faulty, backend, meter, errors) = metered();
        let (_, mut watch) = backend.follow().await.unwrap();
        faulty.next(faulty::Call::Watch, Fault::Fail(Failure::Unreachable));
        backend.apply(&put(Guard::Any)).await.unwrap();
        while watch.next().await.is_some_and(|batch| batch.is_ok()) {}
        assert_eq!(counted(&meter), ["apply ok 1", "follow ok 1"]);
        assert_eq!(errors.counts().collect::<Vec<_>>(), [("unreachable", 1)]);
    }

    #[test]
    fn every_outcome_of_every_call_has_a_place_of_its_own() {
        assert_eq!(Meter::default().0.len(), CALLS.len() * OUTCOMES.len());
        assert_eq!(Call::TimeLeft as usize + 1, CALLS.len());
        assert_eq!(Outcome::Abandoned as usize + 1, OUTCOMES.len());
    }
}
