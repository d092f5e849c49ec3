//! The mirror against a service that does what it is told.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::backend::{Action, Guard, Limits, Listing, Role, SharedPlace, Version, WatchEvent, WatchStream};

mod panics;

type Watch = mpsc::UnboundedSender<Result<WatchBatch, BackendError>>;

/// An error of the watch that means a panic in it.
const PANIC: &str = "the watch panics";

/// Answers each call when it is told to, in order.
#[derive(Debug, Default)]
struct Scripted {
    calls: Mutex<VecDeque<oneshot::Sender<Answer>>>,
    called: Notify,
}

/// The answer to a call of the mirror, and the watch that goes on from it.
type Answer = Result<(Listing, Option<mpsc::UnboundedReceiver<Result<WatchBatch, BackendError>>>), BackendError>;

impl Scripted {
    async fn ask(&self) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.calls.lock().push_back(answer);
        self.called.notify_one();
        answered.await.unwrap()
    }

    /// The next request for a list, to answer it.
    async fn call(&self) -> oneshot::Sender<Answer> {
        loop {
            if let Some(call) = self.calls.lock().pop_front() {
                return call;
            }
            self.called.notified().await;
        }
    }

    /// Answers the next list that begins a watch.
    async fn begin(&self, listing: Listing) -> Watch {
        begin(self.call().await, listing)
    }
}

fn begin(call: oneshot::Sender<Answer>, listing: Listing) -> Watch {
    let (tell, watch) = mpsc::unbounded_channel();
    call.send(Ok((listing, Some(watch)))).unwrap();
    tell
}

#[async_trait::async_trait]
impl Backend for Scripted {
    fn limits(&self) -> Limits {
        Limits { value: 0, changes: 0 }
    }
    fn gives_signs_of_life(&self) -> bool {
        false
    }
    async fn list(&self, _: &TopoPath) -> Result<Listing, BackendError> {
        self.ask().await.map(|(listing, _)| listing)
    }
    async fn get(&self, _: &TopoPath) -> Result<Fetched, BackendError> {
        Ok(Fetched { node: None, at: Revision(0) })
    }
    async fn apply(&self, _: &[Change]) -> Result<Applied, BackendError> {
        Ok(Applied { at: Revision(0), versions: Vec::new() })
    }
    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let (listing, watch) = self.ask().await?;
        let watch = watch.unwrap();
        let stream = futures::stream::unfold(watch, |mut watch| async move {
            let batch = watch.recv().await?;
            assert!(!batch.as_ref().is_err_and(|error| error.message == PANIC), "{PANIC}");
            Some((batch, watch))
        });
        Ok((listing, stream.boxed()))
    }
    fn locked_dir(&self, _: &TopoPath) -> Option<TopoPath> {
        None
    }
    async fn enter(&self, dir: &TopoPath, _: &Bytes) -> Result<SharedPlace, BackendError> {
        Err(BackendError::unmet(Guard::Any, dir, None))
    }
    async fn break_lock(&self, _: &Node) -> Result<(), BackendError> {
        Ok(())
    }
}

fn path(name: &str) -> TopoPath {
    TopoPath::parse(name).unwrap()
}

fn node(name: &str, value: &str, written: u64) -> Node {
    Node {
        path: path(name),
        value: Bytes::copy_from_slice(value.as_bytes()),
        version: version(written),
        role: Role::Record,
        modified: None,
    }
}

fn version(written: u64) -> Version {
    Version { number: written, written: Revision(written), created: Revision(1) }
}

fn listing(at: u64, nodes: &[(&str, &str, u64)]) -> Listing {
    let nodes = nodes.iter().map(|(name, value, written)| node(name, value, *written)).collect();
    Listing { nodes, at: Revision(at), ..Listing::default() }
}

fn event(name: &str, value: Option<&str>, at: u64) -> WatchBatch {
    let event = WatchEvent { path: path(name), node: value.map(|value| node(name, value, at)), at: Revision(at) };
    WatchBatch { events: vec![event], at: Revision(at), skipped: 0 }
}

fn broken() -> BackendError {
    BackendError::new(Failure::Unreachable, "cut")
}

const OPTIONS: MirrorOptions = MirrorOptions {
    resync_interval: Duration::from_secs(3600),
    stale_after: Duration::from_secs(10),
    serve_stale: false,
};

/// A mirror, loaded with a list, and its watch.
async fn loaded(first: Listing) -> (Arc<Mirror>, Arc<Scripted>, Watch) {
    let service = Arc::new(Scripted::default());
    let mirror = Mirror::new(service.clone(), OPTIONS);
    tokio::spawn(mirror.clone().run("the mirror", CancellationToken::new()));
    let (watch, ()) = tokio::join!(service.begin(first), mirror.load());
    (mirror, service, watch)
}

fn shown(mirror: &Mirror) -> Vec<(String, String)> {
    let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
    mirror.snapshot().records.iter().map(|(path, record)| (path.to_string(), text(&record.value))).collect()
}

fn records(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn until(mirror: &Mirror, what: &[(&str, &str)]) {
    for _ in 0..1_000 {
        if shown(mirror) == records(what) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} is shown, not {what:?}", shown(mirror));
}

/// Waits until the mirror is live again.
async fn until_live(mirror: &Mirror) {
    let live = mirror.link.subscribe().wait_for(|link| matches!(link, Link::Live)).await.is_ok();
    assert!(live);
}

fn wrote(mirror: &Mirror, name: &str, action: Action, at: u64) {
    let versions = vec![matches!(action, Action::Put(_)).then(|| version(at))];
    let change = Change { path: path(name), guard: Guard::Any, action };
    mirror.wrote(&[change], &Applied { at: Revision(at), versions });
}

/// All that was published by now: path and new value.
fn published(batches: &mut broadcast::Receiver<Arc<Batch>>) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    while let Ok(batch) = batches.try_recv() {
        all.extend(batch.updates.iter().map(|update| {
            let value = update.new.as_ref().map(|record| String::from_utf8(record.value.to_vec()).unwrap());
            (update.path.to_string(), value)
        }));
    }
    all.sort();
    all
}

#[tokio::test(start_paused = true)]
async fn what_this_mount_does_while_a_list_is_under_way_stands() {
    let (mirror, service, watch) =
        loaded(listing(5, &[("changed", "old", 2), ("removed", "x", 3), ("read", "old", 4)])).await;
    watch.send(Err(broken())).unwrap();
    let call = service.call().await;
    // The list shows revision 7; these happen after it, and the answer comes last.
    wrote(&mirror, "made", Action::Put("mine".into()), 8);
    wrote(&mirror, "changed", Action::Put("mine".into()), 9);
    wrote(&mirror, "removed", Action::Delete, 10);
    mirror.observe(&path("read"), &Fetched { node: Some(node("read", "newer", 11)), at: Revision(11) });
    let mut batches = mirror.subscribe();
    let list = listing(7, &[("changed", "old", 2), ("removed", "x", 3), ("read", "old", 4), ("other", "x", 6)]);
    let watch = begin(call, list);
    until(&mirror, &[("changed", "mine"), ("made", "mine"), ("other", "x"), ("read", "newer")]).await;
    assert_eq!(published(&mut batches), [("other".to_owned(), Some("x".to_owned()))]);
    // Their late events change nothing, and neither do earlier ones.
    watch.send(Ok(event("removed", Some("before"), 8))).unwrap();
    watch.send(Ok(event("made", Some("mine"), 8))).unwrap();
    watch.send(Ok(event("removed", None, 10))).unwrap();
    watch.send(Ok(event("last", Some("x"), 12))).unwrap();
    until(&mirror, &[("changed", "mine"), ("last", "x"), ("made", "mine"), ("other", "x"), ("read", "newer")]).await;
    assert_eq!(published(&mut batches), [("last".to_owned(), Some("x".to_owned()))]);
    assert_eq!(
        mirror.counters.restorations.load(Ordering::Relaxed),
        0,
        "what is newer than the list is no restoration"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_during_a_comparison_does_not_come_back() {
    let (mirror, service, watch) = loaded(listing(5, &[("gone", "x", 3), ("late", "x", 4)])).await;
    mirror.request_resync();
    let call = service.call().await;
    // The watch lags: it still has to tell of a change before the removal.
    wrote(&mirror, "gone", Action::Delete, 9);
    call.send(Ok((listing(6, &[("gone", "x", 3), ("late", "x", 4)]), None))).unwrap();
    while mirror.counters.resyncs.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(shown(&mirror), records(&[("late", "x")]));
    watch.send(Ok(event("gone", Some("before the removal"), 8))).unwrap();
    watch.send(Ok(event("late", Some("y"), 10))).unwrap();
    until(&mirror, &[("late", "y")]).await;
}

#[tokio::test(start_paused = true)]
async fn what_has_happened_during_an_absence_is_published() {
    let (mirror, service, watch) = loaded(listing(5, &[("a", "1", 2), ("b", "1", 3), ("c", "1", 4)])).await;
    let mut batches = mirror.subscribe();
    watch.send(Err(broken())).unwrap();
    let _watch = service.begin(listing(9, &[("a", "1", 2), ("b", "2", 7), ("d", "1", 8)])).await;
    until(&mirror, &[("a", "1"), ("b", "2"), ("d", "1")]).await;
    let some = |value: &str| Some(value.to_owned());
    assert_eq!(
        published(&mut batches),
        [("b".to_owned(), some("2")), ("c".to_owned(), None), ("d".to_owned(), some("1"))]
    );
    assert_eq!(mirror.counters.caught_up.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_comparison_publishes_what_the_watch_has_lost() {
    let (mirror, service, _watch) = loaded(listing(5, &[("a", "1", 2), ("b", "1", 3)])).await;
    let mut batches = mirror.subscribe();
    mirror.request_resync();
    service.call().await.send(Ok((listing(8, &[("a", "2", 7)]), None))).unwrap();
    until(&mirror, &[("a", "2")]).await;
    assert_eq!(published(&mut batches), [("a".to_owned(), Some("2".to_owned())), ("b".to_owned(), None)]);
    assert_eq!(mirror.counters.missed.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_has_gone_back_is_believed_also_while_connected() {
    let (mirror, service, watch) = loaded(listing(50, &[("a", "newer", 40), ("b", "newer", 45)])).await;
    mirror.request_resync();
    // Restored: the comparison shows a point before what is known, so the watch is begun anew.
    service.call().await.send(Ok((listing(20, &[("a", "restored", 10)]), None))).unwrap();
    let again = service.begin(listing(20, &[("a", "restored", 10)])).await;
    until(&mirror, &[("a", "restored")]).await;
    assert!(watch.is_closed());
    assert_eq!(mirror.revision(), Revision(20));
    again.send(Ok(event("b", Some("after"), 21))).unwrap();
    until(&mirror, &[("a", "restored"), ("b", "after")]).await;
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_is_asked_for_does_not_wait_for_one_at_leisure() {
    let (mirror, service, _watch) = loaded(listing(5, &[("a", "1", 2)])).await;
    // At its time, by itself.
    let at_leisure = service.call().await;
    mirror.request_resync();
    let asked_for = service.call().await;
    assert!(at_leisure.is_closed(), "nobody waits for it any more");
    asked_for.send(Ok((listing(6, &[("a", "2", 6)]), None))).unwrap();
    until(&mirror, &[("a", "2")]).await;
    assert_eq!(mirror.counters.resyncs.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_watch_breaks_at_once_is_not_listed_all_the_time() {
    let (mirror, service, watch) = loaded(listing(5, &[("a", "1", 2)])).await;
    let begun = Instant::now();
    drop(watch);
    for _ in 0..50 {
        drop(service.begin(listing(5, &[("a", "1", 2)])).await);
    }
    assert!(begun.elapsed() > Duration::from_secs(5) * 40, "{:?}", begun.elapsed());
    assert_eq!(mirror.snapshot().records.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_any_more_is_neither_shown_nor_deleted() {
    let denied = || BackendError::new(Failure::Denied, "permission denied");
    let (mirror, service, watch) = loaded(listing(5, &[("a", "1", 2)])).await;
    let mut batches = mirror.subscribe();
    watch.send(Err(denied())).unwrap();
    let call = service.call().await;
    assert_eq!(mirror.health(), Health::Denied);
    call.send(Err(denied())).unwrap();
    assert_eq!(mirror.health(), Health::Denied);
    assert!(mirror.trouble().unwrap().0.contains("permission denied"));
    // It is asked again at a slow pace, and comes back by itself.
    let begun = Instant::now();
    for _ in 0..10 {
        service.call().await.send(Err(denied())).unwrap();
    }
    assert!(begun.elapsed() > pace::DENIED_PAUSES.1 * 5, "{:?}", begun.elapsed());
    assert_eq!((published(&mut batches), mirror.health()), (vec![], Health::Denied));
    // A service that does not answer has not restored the right.
    service.call().await.send(Err(broken())).unwrap();
    let call = service.call().await;
    assert!(mirror.health() == Health::Down && mirror.is_denied());
    call.send(Err(broken())).unwrap();
    let _watch = service.begin(listing(9, &[("a", "2", 7)])).await;
    until_live(&mirror).await;
    assert_eq!(published(&mut batches), [("a".to_owned(), Some("2".to_owned()))]);
    assert_eq!((mirror.health(), mirror.is_denied()), (Health::Live, false));
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_is_not_given_back_by_an_absence() {
    let (mirror, service, watch) = loaded(listing(5, &[("a", "1", 2)])).await;
    watch.send(Err(BackendError::new(Failure::Denied, "no"))).unwrap();
    service.call().await.send(Err(broken())).unwrap();
    let _next = service.call().await;
    // Sooner than any other silence is noticed.
    assert!(mirror.trouble().unwrap().1 < OPTIONS.stale_after);
    assert_eq!(mirror.health(), Health::Down);
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_is_refused_ends_in_denied() {
    let (mirror, service, _watch) = loaded(listing(5, &[("a", "1", 2)])).await;
    let mut batches = mirror.subscribe();
    mirror.request_resync();
    service.call().await.send(Err(BackendError::new(Failure::Denied, "no"))).unwrap();
    let _next = service.call().await;
    assert_eq!((published(&mut batches), mirror.health()), (vec![], Health::Denied));
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_is_too_slow_hears_that_it_has_lost_the_oldest() {
    use broadcast::error::TryRecvError;
    let (mirror, _service, _watch) = loaded(listing(5, &[])).await;
    let mut batches = mirror.subscribe();
    let write = |number: usize| wrote(&mirror, "a", Action::Put(number.to_string().into()), 5 + number as u64);
    (1..=UPDATE_QUEUE).for_each(write);
    let mut in_time = mirror.subscribe();
    write(UPDATE_QUEUE + 1);
    assert_eq!(batches.try_recv().unwrap_err(), TryRecvError::Lagged(1));
    assert_eq!(batches.try_recv().unwrap().number, 2, "the rest is there");
    assert_eq!(in_time.try_recv().unwrap().number, UPDATE_QUEUE as u64 + 1);
    assert_eq!(mirror.published(), UPDATE_QUEUE as u64 + 1);
    assert_eq!(shown(&mirror), records(&[("a", &(UPDATE_QUEUE + 1).to_string())]), "nobody else has lost anything");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_too_much_was_changed_beside_is_asked_for_again() {
    let (mirror, service, watch) = loaded(listing(5, &[("a", "1", 2)])).await;
    watch.send(Err(broken())).unwrap();
    let call = service.call().await;
    let mut number = 0;
    while mirror.state.lock().counts_own() {
        number += 1;
        mirror.state.lock().note_own(&path(&format!("own{number}")));
    }
    let _watch = begin(call, listing(6, &[("a", "2", 6)]));
    let again = service.call().await;
    assert_eq!(shown(&mirror), records(&[("a", "1")]), "it changes nothing");
    let _watch = begin(again, listing(7, &[("a", "3", 7)]));
    until(&mirror, &[("a", "3")]).await;
    assert_eq!(mirror.health(), Health::Live);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((count(&mirror.counters.reconnects), count(&mirror.counters.resyncs)), (1, 0), "not by a comparison");
}

/// A service whose watch has become silent.
#[derive(Debug)]
struct Silent(Scripted);

#[async_trait::async_trait]
impl Backend for Silent {
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    async fn list(&self, _: &TopoPath) -> Result<Listing, BackendError> {
        Ok(Listing::default())
    }
    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        self.0.get(path).await
    }
    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        self.0.apply(changes).await
    }
    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        Ok((Listing::default(), futures::stream::pending().boxed()))
    }
    fn locked_dir(&self, _: &TopoPath) -> Option<TopoPath> {
        None
    }
    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        self.0.enter(dir, contents).await
    }
    async fn break_lock(&self, _: &Node) -> Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_says_nothing_is_not_trusted_for_longer_than_the_options_say() {
    let mirror = Mirror::new(Arc::new(Silent(Scripted::default())), OPTIONS);
    tokio::spawn(mirror.clone().run("the mirror", CancellationToken::new()));
    mirror.load().await;
    assert_eq!(mirror.health(), Health::Live);
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(mirror.health(), Health::Live);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(mirror.health(), Health::Down);
    assert!(mirror.trouble().is_some());
}
