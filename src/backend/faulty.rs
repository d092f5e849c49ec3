//! Any service, with faults from a script: calls fail, hang, panic, or get their answer late or never.
//!
//! It wraps another backend and keeps the same contract: without a script it changes nothing, and a call that hangs
//! ends with the operation timeout. So tests of cells, mirrors and mounts need not kill a server at the right moment,
//! and need not guess a time: [`Faulty::begun`] tells when a call has come.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::contract::{
    Along, Applied, Backend, BackendError, Change, Compared, Earlier, Failure, Fetched, Limits, Listing, Node, Owner,
    Part, Place, Revision, SharedPlace, Shown, Take, WatchBatch, WatchStream,
};
use super::loading::Loading;
use super::mark::Mark;
use crate::name::TopoPath;

/// A kind of call. Each has its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// Every call of these kinds but [`Call::LockedDir`], which asks no service.
    Any,
    /// [`Backend::locked_dir`]. Of the faults, only a panic can meet it.
    LockedDir,
    /// [`Backend::list`].
    List,
    /// [`Backend::compare`].
    Compare,
    /// [`Backend::list_at`].
    ListAt,
    /// [`Backend::get`].
    Get,
    /// [`Backend::earlier`].
    Earlier,
    /// [`Backend::deleted`].
    Deleted,
    /// [`Backend::attribute`].
    Attribute,
    /// [`Backend::apply`], [`Backend::apply_parts`].
    Apply,
    /// [`Backend::follow`], [`Backend::follow_again`]: the list, and the beginning of the watch.
    Follow,
    /// A batch that a watch delivers.
    Watch,
    /// [`Backend::enter`].
    Enter,
    /// [`Place::try_hold`].
    TryHold,
    /// [`Place::lost`]: the task that keeps a place alive.
    Keep,
    /// [`Place::leave`].
    Leave,
    /// [`Backend::break_lock`].
    BreakLock,
    /// [`Backend::sweep_locks`].
    SweepLocks,
    /// [`Backend::reread_secrets`].
    RereadSecrets,
    /// [`Backend::time_left`].
    TimeLeft,
}

impl Call {
    /// Whether it counts among [`Call::Any`].
    fn asks_the_service(self) -> bool {
        self != Call::LockedDir
    }

    /// Whether it changes something: without an answer, the caller cannot know the outcome.
    fn changes_something(self) -> bool {
        matches!(self, Call::Apply | Call::Enter | Call::TryHold | Call::Leave | Call::BreakLock | Call::SweepLocks)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and the service never receives it. A watch ends with this failure.
    Fail(Failure),
    /// It does not reach the service. It ends with the timeout, unless [`Faulty::release`] lets it go on.
    Hang,
    /// The service does it, and the answer comes so much later; if the timeout is earlier, the call ends with that.
    Late(Duration),
    /// The service does it, and the answer does not come: the call ends like [`Fault::Hang`]. A watch skips the batch.
    Lost,
    /// The caller's task panics before the service receives it.
    Panic,
}

/// A backend with faults. Clones share the script.
#[derive(Debug, Clone)]
pub struct Faulty(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Backend>,
    timeout: Duration,
    script: Mutex<Vec<(Call, u64, Fault)>>,
    /// How many calls of each kind have come.
    begun: watch::Sender<HashMap<Call, u64>>,
    /// Counts releases.
    released: watch::Sender<u64>,
}

/// When a call began.
struct Since {
    time: Instant,
    /// Sees the releases from then on.
    released: watch::Receiver<u64>,
}

impl Faulty {
    /// A backend without faults. `timeout` is the operation timeout of the inner backend: a hanging call ends with it.
    pub fn new(inner: Arc<dyn Backend>, timeout: Duration) -> Self {
        Self(Arc::new(Shared {
            inner,
            timeout,
            script: Mutex::default(),
            begun: watch::Sender::default(),
            released: watch::Sender::default(),
        }))
    }

    /// Gives this fault to the n-th call of a kind (from 1, counted from the beginning).
    #[must_use]
    pub fn on(self, call: Call, nth: u64, fault: Fault) -> Self {
        self.0.script.lock().push((call, nth, fault));
        self
    }

    /// Gives this fault to the next call of a kind.
    pub fn next(&self, call: Call, fault: Fault) {
        let mut script = self.0.script.lock();
        let nth = self.count(call) + 1;
        script.push((call, nth, fault));
    }

    /// How many calls of a kind have come.
    pub fn count(&self, call: Call) -> u64 {
        self.0.begun.borrow().get(&call).copied().unwrap_or(0)
    }

    /// Waits until so many calls of a kind have come.
    pub async fn begun(&self, call: Call, calls: u64) {
        let mut begun = self.0.begun.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        let _ = begun.wait_for(|begun| begun.get(&call).is_some_and(|begun| *begun >= calls)).await;
    }

    /// Lets hanging calls go on, and delivers the lost answers.
    pub fn release(&self) {
        self.0.released.send_modify(|releases| *releases += 1);
    }

    /// The beginning of a call that is not counted yet: whoever waits for the call and releases it then, releases it.
    fn since(&self) -> Since {
        Since { time: Instant::now(), released: self.0.released.subscribe() }
    }

    /// Counts a call, and returns its fault.
    fn begin(&self, call: Call) -> Option<Fault> {
        let mut script = self.0.script.lock();
        self.0.begun.send_modify(|begun| {
            for kind in std::iter::once(call).chain(call.asks_the_service().then_some(Call::Any)) {
                *begun.entry(kind).or_default() += 1;
            }
        });
        let is_any = |kind: Call| kind == Call::Any && call.asks_the_service();
        let counts = |kind: Call| (kind == call || is_any(kind)).then(|| self.count(kind));
        let at = script.iter().position(|(kind, nth, _)| counts(*kind) == Some(*nth))?;
        Some(script.remove(at).2)
    }

    /// Waits for a release; fails with the timeout of the call.
    async fn hang(&self, call: Call, mut since: Since) -> Result<(), BackendError> {
        match timeout_at(since.time + self.0.timeout, since.released.changed()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.no_answer(call)),
        }
    }

    /// Waits for a late answer; fails with the timeout of the call.
    async fn delay(&self, call: Call, since: Since, time: Duration) -> Result<(), BackendError> {
        match timeout_at(since.time + self.0.timeout, sleep(time)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.no_answer(call)),
        }
    }

    fn no_answer(&self, call: Call) -> BackendError {
        let waited = humantime::format_duration(self.0.timeout);
        let error = BackendError::new(Failure::Unreachable, format!("{call}: no answer within {waited}"));
        error.uncertain_if(call.changes_something())
    }

    /// A call of the inner backend, with the fault from the script.
    async fn pass<T>(
        &self,
        call: Call,
        inner: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let since = self.since();
        match self.begin(call) {
            None => inner.await,
            Some(Fault::Fail(failure)) => Err(failed(call, failure)),
            Some(Fault::Panic) => panics(call),
            Some(Fault::Hang) => {
                self.hang(call, since).await?;
                inner.await
            }
            Some(Fault::Late(time)) => {
                let answer = inner.await;
                self.delay(call, since, time).await?;
                answer
            }
            Some(Fault::Lost) => {
                let answer = inner.await;
                self.hang(call, since).await?;
                answer
            }
        }
    }

    /// A watch, with the faults from the script.
    fn faults_of(&self, stream: WatchStream) -> WatchStream {
        let stream = futures::stream::unfold(Some((self.clone(), stream)), |state| async move {
            let (faulty, mut stream) = state?;
            let next = faulty.next_batch(&mut stream).await?;
            let state = next.is_ok().then_some((faulty, stream));
            Some((next, state))
        });
        stream.boxed()
    }

    /// The next batch of a watch, with the fault from the script; `None` if the watch has ended.
    async fn next_batch(&self, stream: &mut WatchStream) -> Option<Result<WatchBatch, BackendError>> {
        loop {
            let next = stream.next().await?;
            let since = self.since();
            let broken = match self.begin(Call::Watch) {
                None => return Some(next),
                Some(Fault::Lost) => continue,
                Some(Fault::Panic) => panics(Call::Watch),
                Some(Fault::Fail(failure)) => Err(failed(Call::Watch, failure)),
                Some(Fault::Hang) => self.hang(Call::Watch, since).await,
                Some(Fault::Late(time)) => self.delay(Call::Watch, since, time).await,
            };
            return Some(broken.and(next));
        }
    }
}

fn failed(call: Call, failure: Failure) -> BackendError {
    BackendError::new(failure, format!("{call}: {failure:?}, as the script wants it"))
}

#[expect(clippy::panic, reason = "the fault that is wanted is a panic")]
fn panics(call: Call) -> ! {
    panic!("{call}: a panic, as the script wants it")
}

#[async_trait]
impl Backend for Faulty {
    fn limits(&self) -> Limits {
        self.0.inner.limits()
    }

    fn gives_signs_of_life(&self) -> bool {
        self.0.inner.gives_signs_of_life()
    }

    fn keeps_times(&self) -> bool {
        self.0.inner.keeps_times()
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        self.pass(Call::List, self.0.inner.list(dir)).await
    }

    async fn compare(&self, shown: &dyn Shown, mark: &Mark, time: Duration) -> Result<Compared, BackendError> {
        self.pass(Call::Compare, self.0.inner.compare(shown, mark, time)).await
    }

    async fn list_at(&self, dir: &TopoPath, at: Revision, take: &mut Take<'_>) -> Result<(), BackendError> {
        self.pass(Call::ListAt, self.0.inner.list_at(dir, at, take)).await
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        self.pass(Call::Get, self.0.inner.get(path)).await
    }

    async fn earlier(&self, path: &TopoPath) -> Result<Option<Earlier>, BackendError> {
        self.pass(Call::Earlier, self.0.inner.earlier(path)).await
    }

    async fn deleted(&self) -> Result<Option<OrdMap<TopoPath, Vec<Revision>>>, BackendError> {
        self.pass(Call::Deleted, self.0.inner.deleted()).await
    }

    fn cannot_hold(&self, path: &TopoPath, value: &[u8], holds_others: bool) -> Option<String> {
        self.0.inner.cannot_hold(path, value, holds_others)
    }

    fn attributes(&self) -> &'static [&'static str] {
        self.0.inner.attributes()
    }

    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        self.pass(Call::Attribute, self.0.inner.attribute(path, name)).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        self.pass(Call::Apply, self.0.inner.apply(changes)).await
    }

    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        self.0.inner.refuse_parts(parts)
    }

    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.pass(Call::Apply, self.0.inner.apply_parts(parts)).await
    }

    fn along(&self, changes: &[Change]) -> Option<Box<dyn Along>> {
        self.0.inner.along(changes)
    }

    fn identity(&self) -> Option<u64> {
        self.0.inner.identity()
    }

    fn loading(&self) -> Loading {
        self.0.inner.loading()
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let (listing, stream) = self.pass(Call::Follow, self.0.inner.follow()).await?;
        Ok((listing, self.faults_of(stream)))
    }

    async fn follow_again(&self, shown: &dyn Shown, mark: &Mark) -> Result<(Compared, WatchStream), BackendError> {
        let (compared, stream) = self.pass(Call::Follow, self.0.inner.follow_again(shown, mark)).await?;
        Ok((compared, self.faults_of(stream)))
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        if self.begin(Call::LockedDir) == Some(Fault::Panic) {
            panics(Call::LockedDir);
        }
        self.0.inner.locked_dir(node)
    }

    fn has_queue(&self) -> bool {
        self.0.inner.has_queue()
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        let entered = async {
            let place = self.0.inner.enter(dir, contents).await?;
            // If the answer is lost, only this can leave the place.
            Ok(scopeguard::guard(place, |place| drop(tokio::spawn(async move { place.leave().await }))))
        };
        let place = scopeguard::ScopeGuard::into_inner(self.pass(Call::Enter, entered).await?);
        Ok(Arc::new(FaultyPlace { faulty: self.clone(), place }))
    }

    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        self.pass(Call::BreakLock, self.0.inner.break_lock(node)).await
    }

    async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        self.pass(Call::SweepLocks, self.0.inner.sweep_locks(dir)).await
    }

    async fn reread_secrets(&self) {
        let reread = async {
            self.0.inner.reread_secrets().await;
            Ok(())
        };
        // The contract has no such failure.
        let _ = self.pass(Call::RereadSecrets, reread).await;
    }

    async fn time_left(&self, owner: Owner) -> Result<Option<Duration>, BackendError> {
        self.pass(Call::TimeLeft, self.0.inner.time_left(owner)).await
    }
}

/// A place in a line of the inner backend.
#[derive(Debug)]
struct FaultyPlace {
    faulty: Faulty,
    place: SharedPlace,
}

#[async_trait]
impl Place for FaultyPlace {
    fn node(&self) -> Option<Node> {
        self.place.node()
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        self.faulty.pass(Call::TryHold, self.place.try_hold()).await
    }

    async fn lost(&self) -> BackendError {
        let lost = async { Ok(self.place.lost().await) };
        self.faulty.pass(Call::Keep, lost).await.unwrap_or_else(|error| error)
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        self.faulty.pass(Call::Leave, self.place.leave()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_release_counts_for_a_call_that_has_begun_and_does_not_wait_yet() {
        let timeout = Duration::from_secs(10);
        let memory = crate::backend::memory::MemoryServers::default().open(&"memory:server/root".parse().unwrap());
        let slow = Faulty::new(Arc::new(memory.unwrap()), timeout).on(Call::Get, 1, Fault::Hang);
        let faulty = Faulty::new(Arc::new(slow.clone()), timeout).on(Call::Get, 1, Fault::Lost);
        let path = TopoPath::parse("metadata/x").unwrap();
        let call = tokio::spawn({
            let faulty = faulty.clone();
            async move { faulty.get(&path).await }
        });
        slow.begun(Call::Get, 1).await;
        faulty.release();
        slow.release();
        assert_eq!(call.await.unwrap().unwrap().node, None);
    }
}
