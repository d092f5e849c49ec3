//! One test over every store, and what a store of a service adds to it.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::backend::faulty::{Call, Fault, Faulty};
use crate::backend::{
    Action, Applied, Backend, Change, ConnectOptions, Failure, Guard, Holding, Implementation, Limits, Location, Owner,
    Revision, SharedPlace, Version, Wrap,
};
use crate::cells::{CellOptions, Cells};
use crate::control::Control;
use crate::error::{Kind, Result};
use crate::locks::{Locks, Patience};
use crate::mirror::{MirrorOptions, Snapshot};
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Actor;
use crate::record::{Codec, Kinds, Records};

const ACTOR: Actor = Actor { uid: 0, process: 0 };

fn path(name: &str) -> TopoPath {
    TopoPath::parse(name).unwrap()
}

fn put(name: &str, guard: Guard, value: &str) -> Change {
    Change { path: path(name), guard, action: Action::Put(Bytes::copy_from_slice(value.as_bytes())) }
}

fn delete(name: &str, guard: Guard) -> Change {
    Change { path: path(name), guard, action: Action::Delete }
}

fn check(name: &str, guard: Guard) -> Change {
    Change { path: path(name), guard, action: Action::Check }
}

/// Commits for nobody in particular, unheard.
async fn commit(store: &dyn Store, changes: &[Change]) -> Result<Applied> {
    store.commit(ACTOR, changes, &Unheard).await
}

async fn refused(store: &dyn Store, changes: &[Change]) -> Kind {
    let before = store.snapshot().await.unwrap();
    let error = commit(store, changes).await.unwrap_err();
    let after = store.snapshot().await.unwrap();
    assert_eq!(before.records, after.records, "{error}: something has changed");
    error.kind
}

async fn version(store: &dyn Store, name: &str) -> Option<Version> {
    let fetched = store.fetch(&path(name)).await.unwrap().node;
    let shown = store.snapshot_now().unwrap().records.get(&path(name)).cloned();
    assert_eq!(
        fetched.as_ref().map(|node| (&node.value, node.version)),
        shown.as_ref().map(|record| (&record.value, record.version)),
        "who has committed sees the same everywhere"
    );
    fetched.map(|node| node.version)
}

/// Writes down what it hears, and what is shown then.
struct Ear<'a> {
    store: &'a dyn Store,
    heard: Arc<Mutex<String>>,
}

/// Writes down when it is dropped.
struct Marked(Arc<Mutex<String>>, TopoPath);

impl Drop for Marked {
    fn drop(&mut self) {
        write!(self.0.lock(), "end {}, ", self.1).unwrap();
    }
}

impl<'a> Ear<'a> {
    fn new(store: &'a dyn Store) -> Self {
        Self { store, heard: Arc::default() }
    }

    fn take(&self) -> String {
        std::mem::take(&mut *self.heard.lock())
    }
}

#[async_trait]
impl Commits for Ear<'_> {
    fn begin(&self, at: &CellPath) -> Mark {
        assert_eq!(at.cell, *self.store.cell());
        let is_there = self.store.snapshot_now().unwrap().records.contains_key(&at.path);
        write!(self.heard.lock(), "begin {} {is_there}, ", at.path).unwrap();
        Box::new(Marked(self.heard.clone(), at.path.clone()))
    }

    async fn answered(&self, cell: &CellName, changes: &[Change]) {
        assert_eq!(cell, self.store.cell());
        let now = self.store.snapshot_now().unwrap();
        let there: Vec<_> = changes.iter().map(|change| now.records.contains_key(&change.path)).collect();
        write!(self.heard.lock(), "answered {there:?}, ").unwrap();
    }

    fn made(&self, at: &CellPath, Made { revision, is_new }: Made) {
        write!(self.heard.lock(), "made {} {} {is_new}, ", at.path, revision.0).unwrap();
    }
}

/// The order in which a listener hears of a commit.
async fn check_heard(store: &dyn Store) {
    let ear = Ear::new(store);
    let changes = [put("heard/a", Guard::Absent, "1"), put("heard/b", Guard::Any, "1")];
    let at = store.commit(ACTOR, &changes, &ear).await.unwrap().at.0;
    let expected = format!(
        "begin heard/a false, begin heard/b false, answered [true, true], \
         made heard/a {at} true, end heard/a, made heard/b {at} false, end heard/b, "
    );
    assert_eq!(ear.take(), expected);
    let (a, b) = (version(store, "heard/a").await.unwrap(), version(store, "heard/b").await.unwrap());
    let changes = [
        put("heard/a", Guard::Version(a), "2"),
        check("heard/b", Guard::Version(b)),
        put("heard/c", Guard::Absent, "1"),
    ];
    let at = store.commit(ACTOR, &changes, &ear).await.unwrap().at.0;
    let expected = format!(
        "begin heard/a true, begin heard/b true, begin heard/c false, answered [true, true, true], \
         made heard/a {at} false, end heard/a, end heard/b, made heard/c {at} true, end heard/c, "
    );
    assert_eq!(ear.take(), expected, "what is only checked is not made");
    let changes = [delete("heard/b", Guard::Version(b)), delete("heard/c", Guard::Any)];
    store.commit(ACTOR, &changes, &ear).await.unwrap();
    let expected = format!(
        "begin heard/b true, begin heard/c true, answered [false, false], \
         made heard/b {} false, end heard/b, end heard/c, ",
        b.written.0
    );
    assert_eq!(ear.take(), expected, "a deletion has the revision of what it has deleted");
    // The listener also hears of a refusal, so waiters go on.
    store.commit(ACTOR, &[put("heard/a", Guard::Absent, "3")], &ear).await.unwrap_err();
    assert_eq!(ear.take(), "begin heard/a true, answered [true], end heard/a, ");
}

/// The contract of every store.
async fn check_contract(store: &dyn Store) {
    assert_eq!(version(store, "a").await, None);
    let empty = store.snapshot().await.unwrap();
    let applied = commit(store, &[put("a", Guard::Absent, "1")]).await.unwrap();
    let first = version(store, "a").await.unwrap();
    assert_eq!((applied.versions, applied.at), (vec![Some(first)], first.written));
    assert_eq!((first.created, store.snapshot().await.unwrap().at), (first.written, first.written));
    assert!(!empty.records.contains_key(&path("a")), "a snapshot never changes");

    // Versions grow; a recreated record is another one.
    let applied = commit(store, &[put("a", Guard::Version(first), "2")]).await.unwrap();
    let second = version(store, "a").await.unwrap();
    assert_eq!(applied.versions, [Some(second)]);
    assert!(second.written > first.written && second.created == first.created && second != first);
    assert_eq!(commit(store, &[check("a", Guard::Version(second))]).await.unwrap().versions, [None]);
    assert_eq!(version(store, "a").await, Some(second), "a check makes no version");
    assert_eq!(commit(store, &[delete("a", Guard::Version(second))]).await.unwrap().versions, [None]);
    assert_eq!(version(store, "a").await, None);
    commit(store, &[put("a", Guard::Any, "3")]).await.unwrap();
    let third = version(store, "a").await.unwrap();
    assert!(third.written > second.written && third.created > first.created);

    // Guards that are not met.
    let holding = Holding { version: third, owner: Owner(1) };
    for (change, kind) in [
        (put("a", Guard::Absent, "x"), Kind::Exists),
        (check("a", Guard::Absent), Kind::Exists),
        (put("a", Guard::Version(second), "x"), Kind::Conflict),
        (delete("a", Guard::Version(second)), Kind::Conflict),
        (check("a", Guard::Version(first)), Kind::Conflict),
        (put("missing", Guard::Version(third), "x"), Kind::NotFound),
        (delete("missing", Guard::Version(third)), Kind::NotFound),
        (delete("missing", Guard::Any), Kind::NotFound),
        (check("missing", Guard::Held(holding)), Kind::LockLost),
    ] {
        assert_eq!(refused(store, std::slice::from_ref(&change)).await, kind, "{change:?}");
        // Whole or nothing, wherever it stands.
        let other = put("other", Guard::Absent, "x");
        assert_eq!(refused(store, &[other.clone(), change.clone()]).await, kind, "{change:?}");
        assert_eq!(refused(store, &[change, other]).await, kind);
    }
    commit(store, &[delete("a", Guard::Version(third)), put("b/c", Guard::Absent, "x")]).await.unwrap();
    assert!(version(store, "a").await.is_none() && version(store, "b/c").await.is_some());

    // Limits.
    let Limits { value, changes } = store.limits();
    let large = "x".repeat(value + 1);
    assert_eq!(refused(store, &[put("large", Guard::Any, &large)]).await, Kind::TooLarge);
    commit(store, &[put("large", Guard::Any, large.split_at(1).1)]).await.unwrap();
    let many = |count: usize| (0..count).map(|n| put(&format!("many/{n}"), Guard::Absent, "")).collect::<Vec<_>>();
    assert_eq!(refused(store, &many(changes + 1)).await, Kind::TooMany);
    commit(store, &many(changes)).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().below(&path("many")).count(), changes);

    assert_eq!(store.attribute(&path("b/c"), "no such attribute").await.unwrap(), None);
    for name in store.attributes() {
        store.attribute(&path("b/c"), name).await.unwrap();
    }
    store.refuse_early(ACTOR, &path("b/c")).await.unwrap();
    store.refuse_removal(ACTOR, &path("b/c")).await.unwrap();
    assert!(store.is_fresh());
    check_heard(store).await;
}

/// A store over a service in memory.
struct Service {
    cells: Arc<Cells>,
    locks: Arc<Locks>,
    /// What stands between the store and the service.
    faulty: Faulty,
    /// The service, as others see it.
    others: Arc<dyn Backend>,
}

impl Service {
    async fn new() -> Self {
        let global =
            Location { implementation: Implementation::Memory, server: "store".to_owned(), root: "/g".to_owned() };
        let mut connect = ConnectOptions::default();
        let timeout = connect.timeout;
        let others: Arc<dyn Backend> = Arc::new(connect.memory.open(&global).unwrap());
        let faulty = Faulty::new(others.clone(), timeout);
        let given = faulty.clone();
        connect.wrap = Wrap::new(move |_, _| Arc::new(given.clone()));
        let mirror = MirrorOptions {
            resync_interval: Duration::from_secs(3600),
            stale_after: Duration::from_secs(10),
            serve_stale: false,
        };
        let options = CellOptions::new(global, connect, mirror);
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let cells = Cells::start(options, records).await.unwrap();
        let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
        Self { cells, locks: Locks::new(control, Patience::new(None)), faulty, others }
    }

    fn store(&self, respected: RespectLocks) -> Live {
        Live::new(self.cells.get(&CellName::global()).unwrap(), self.locks.clone(), respected)
    }

    /// Somebody else has the lock of a directory.
    async fn lock(&self, dir: &str) -> SharedPlace {
        let place = self.others.enter(&path(dir), &Bytes::from_static(b"somebody else")).await.unwrap();
        let node = place.try_hold().await.unwrap().unwrap();
        let mirror = &self.cells.get(&CellName::global()).unwrap().mirror;
        let mut changes = mirror.lock_changes();
        while !mirror.snapshot().locks.contains_key(&node.path) {
            changes.changed().await.unwrap();
        }
        place
    }
}

#[tokio::test(start_paused = true)]
async fn every_store_keeps_to_the_contract() {
    let service = Service::new().await;
    check_contract(&service.store(RespectLocks::All)).await;
    let limits = Limits { value: 10_000, changes: 12 };
    check_contract(&Plain::new(CellName::global(), limits, Snapshot::default())).await;
    check_contract(&*staged_cell(limits, Snapshot::default())).await;
    let below = Plain::new(CellName::global(), limits, Snapshot::default());
    commit(&below, &[put("a", Guard::Absent, "0"), put("below", Guard::Absent, "1")]).await.unwrap();
    commit(&below, &[delete("a", Guard::Any)]).await.unwrap();
    let below = below.snapshot().await.unwrap();
    check_contract(&*staged_cell(limits, Snapshot::clone(&below))).await;
    assert_eq!(below.records.len(), 1, "nothing below has changed");
}

fn staged_cell(limits: Limits, below: Snapshot) -> Arc<StagedCell> {
    let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
    let seen = Seen { cell: CellName::global(), records: Ok(Arc::new(below)), limits };
    let stage = Stage::new("a", records, &[seen], (Quota::new(1 << 20), 0));
    stage.staged_cell(&CellName::global()).unwrap()
}

#[tokio::test]
async fn a_map_goes_on_from_where_it_begins() {
    let limits = Limits { value: 10, changes: 10 };
    let first = Plain::new(CellName::global(), limits, Snapshot::default());
    commit(&first, &[put("a", Guard::Absent, "1")]).await.unwrap();
    let begin = first.snapshot_now().unwrap();
    let second = Plain::new(CellName::new("zone1").unwrap(), limits, Snapshot::clone(&begin));
    let known = version(&second, "a").await.unwrap();
    commit(&second, &[put("a", Guard::Version(known), "2")]).await.unwrap();
    assert_eq!((second.cell().as_str(), second.snapshot_now().unwrap().at), ("zone1", Revision(begin.at.0 + 1)));
    assert_eq!(version(&first, "a").await, Some(known), "the other is not concerned");
}

#[tokio::test(start_paused = true)]
async fn what_the_service_denies_or_does_not_answer_is_not_made() {
    let service = Service::new().await;
    let store = service.store(RespectLocks::Keyspace);
    let ear = Ear::new(&store);
    for (failure, kind) in [(Failure::Denied, Kind::Denied), (Failure::NoSpace, Kind::NoSpace)] {
        service.faulty.next(Call::Apply, Fault::Fail(failure));
        let error = store.commit(ACTOR, &[put("a", Guard::Absent, "1")], &ear).await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert_eq!(ear.take(), "begin a false, answered [false], end a, ");
    }
    service.faulty.next(Call::Apply, Fault::Hang);
    let error = commit(&store, &[put("a", Guard::Absent, "1")]).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    service.faulty.next(Call::Get, Fault::Fail(Failure::Denied));
    assert_eq!(store.fetch(&path("a")).await.unwrap_err().kind, Kind::Denied);
    assert_eq!(version(&store, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_somebody_else_refuses_what_it_protects_and_nothing_else() {
    let service = Service::new().await;
    let none = service.store(RespectLocks::None);
    let begin = [
        put("keyspaces/a/Keyspace", Guard::Absent, "1"),
        put("keyspaces/a/shards/0/Shard", Guard::Absent, "1"),
        put("keyspaces/b/Keyspace", Guard::Absent, "1"),
        put("routing_rules/keyspace/Rules", Guard::Absent, "1"),
    ];
    commit(&none, &begin).await.unwrap();
    let _locks = [
        service.lock("keyspaces/a").await,
        service.lock("keyspaces/a/shards/0").await,
        service.lock("routing_rules").await,
    ];
    // The locks that a save needs, and those that a removal needs.
    for (name, respected, save, removal) in [
        ("keyspaces/a/Keyspace", RespectLocks::Keyspace, Some(Kind::Busy), Some(Kind::Busy)),
        ("keyspaces/a/Keyspace", RespectLocks::None, None, None),
        ("keyspaces/a/shards/0/Shard", RespectLocks::Keyspace, None, Some(Kind::Busy)),
        ("keyspaces/a/shards/0/Shard", RespectLocks::All, Some(Kind::Busy), Some(Kind::Busy)),
        ("keyspaces/b/Keyspace", RespectLocks::All, None, None),
        ("routing_rules/keyspace/Rules", RespectLocks::Keyspace, Some(Kind::Busy), Some(Kind::Busy)),
        ("routing_rules/keyspace/Rules", RespectLocks::None, None, None),
    ] {
        let store = service.store(respected);
        let kind = |outcome: Result<()>| outcome.err().map(|error| error.kind);
        let case = format!("{name} {respected:?}");
        assert_eq!(kind(store.refuse_early(ACTOR, &path(name)).await), save, "{case}");
        assert_eq!(kind(store.refuse_removal(ACTOR, &path(name)).await), removal, "{case}");
        assert_eq!(kind(commit(&store, &[put(name, Guard::Any, "2")]).await.map(drop)), save, "{case}");
        let removed = commit(&store, &[delete(name, Guard::Any)]).await.map(drop);
        assert_eq!(kind(removed), removal, "{case}");
        if removal.is_none() {
            commit(&none, &[put(name, Guard::Any, "1")]).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_tried_again_while_the_lock_of_its_moment_is_lost_but_not_for_ever() {
    const PATH: &str = "keyspaces/a/Keyspace";
    let service = Service::new().await;
    let store = service.store(RespectLocks::Keyspace);
    commit(&store, &[put(PATH, Guard::Absent, "1")]).await.unwrap();
    let lose = |times: u64| {
        let done = service.faulty.count(Call::Apply);
        for nth in 1..=times {
            let _ = service.faulty.clone().on(Call::Apply, done + nth, Fault::Fail(Failure::LockLost));
        }
    };
    lose(live::LOCK_CHANGES as u64 - 1);
    let ear = Ear::new(&store);
    store.commit(ACTOR, &[put(PATH, Guard::Any, "2")], &ear).await.unwrap();
    assert_eq!(ear.take().matches("begin").count(), live::LOCK_CHANGES, "each try is heard of");
    lose(live::LOCK_CHANGES as u64);
    let error = commit(&store, &[put(PATH, Guard::Any, "3")]).await.unwrap_err();
    assert_eq!(error.kind, Kind::Busy);
    assert!(error.reason.contains("change too often"), "{error}");
    let node = store.fetch(&path(PATH)).await.unwrap().node.unwrap();
    assert_eq!(node.value, "2");
    // If no lock guarded the commit, a lost lock is not a reason to try again.
    lose(1);
    let error = commit(&store, &[put("elsewhere", Guard::Any, "1")]).await.unwrap_err();
    assert_eq!(error.kind, Kind::LockLost);
}
