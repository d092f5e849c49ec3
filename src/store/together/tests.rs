//! Commits of change sets over cells in memory, with faults of the service.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use super::*;
use crate::backend::faulty::{Call, Fault, Faulty};
use crate::backend::{
    Action, Backend, ConnectOptions, Failure, Guard, Implementation, Location, SharedPlace, TeeOptions, Wrap,
};
use crate::cells::{CellOptions, Cells};
use crate::control::{Control, LockCounts};
use crate::locks::{Locks, Patience};
use crate::mirror::MirrorOptions;
use crate::name::{CellPath, TopoPath};
use crate::record::messages::topodata;
use crate::record::{Codec, Kinds};
use crate::store::{CellRules, LiveCells, Made, Mark, RespectLocks, Staged, Unheard};

const ACTOR: Actor = Actor { uid: 0, process: 0 };
/// Where the cells are: zone3 alone is in another service.
const CELLS: [(&str, &str, &str); 3] =
    [("zone1", "one", "/t/zone1"), ("zone2", "one", "/elsewhere/zone2"), ("zone3", "other", "/t/zone3")];

fn at(place: &str) -> CellPath {
    let (cell, path) = place.split_once('/').unwrap();
    CellPath::new(&CellName::new(cell).unwrap(), &TopoPath::parse(path).unwrap())
}

fn location(server: &str, root: &str) -> Location {
    Location { implementation: Implementation::Memory, server: server.to_owned(), root: root.to_owned() }
}

/// Cells in memory, and what stands between them and their services.
struct World {
    connect: ConnectOptions,
    cells: Arc<Cells>,
    locks: Arc<Locks>,
    control: Arc<Control>,
    faulty: Arc<Mutex<BTreeMap<String, Faulty>>>,
}

impl World {
    async fn new() -> Self {
        Self::over(None).await
    }

    /// The cells, perhaps with a second place for each. `second`: the server, and that of zone2.
    async fn over(second: Option<(&str, &str)>) -> Self {
        let mut connect = ConnectOptions::default();
        let (timeout, faulty) = (connect.timeout, Arc::new(Mutex::new(BTreeMap::new())));
        let info = |server: &str, root: &str| {
            topodata::CellInfo { server_address: server.to_owned(), root: root.to_owned() }.encode_to_vec()
        };
        for (cell, server, root) in CELLS {
            let path = TopoPath::parse(&format!("cells/{cell}/CellInfo")).unwrap();
            connect.memory.put(&location("one", "/t/global"), &path, info(server, root).into()).unwrap();
            if let Some((second, of_zone2)) = second {
                let server = if cell == "zone2" { of_zone2 } else { second };
                connect.memory.put(&location(second, "/t/global"), &path, info(server, root).into()).unwrap();
            }
        }
        connect.tee = second
            .map(|(server, _)| TeeOptions { secondary: location(server, "/t/global"), reverse_lock_order: false });
        let made = faulty.clone();
        connect.wrap = Wrap::new(move |cell, backend| {
            let faulty = Faulty::new(backend, timeout);
            made.lock().entry(cell.to_string()).or_insert_with(|| faulty.clone());
            Arc::new(faulty)
        });
        let hour = Duration::from_secs(3600);
        let mirror = MirrorOptions { resync_interval: hour, stale_after: hour, serve_stale: false };
        let global = location("one", "/t/global");
        let options = CellOptions::new(global, connect.clone(), mirror);
        let cells = Cells::start(options, Records::new(Codec::builtin().unwrap(), Kinds::default())).await.unwrap();
        let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
        Self { connect, locks: Locks::new(control.clone(), Patience::new(None)), control, cells, faulty }
    }

    fn live(&self) -> LiveCells {
        let (cells, control) = (self.cells.clone(), self.control.clone());
        LiveCells::new(self.locks.clone(), RespectLocks::Keyspace, CellRules { cells, control, force_removal: false })
    }

    /// A cell as others see it.
    fn others(&self, cell: &CellName) -> Arc<dyn Backend> {
        Arc::new(self.connect.memory.open(&self.cells.get(cell).unwrap().location).unwrap())
    }

    async fn value(&self, place: &str) -> Option<Bytes> {
        let at = at(place);
        self.others(&at.cell).get(&at.path).await.unwrap().node.map(|node| node.value)
    }

    async fn store(&self, place: &str, value: impl Into<Bytes>) {
        let at = at(place);
        let change = Change { path: at.path, guard: Guard::Any, action: Action::Put(value.into()) };
        self.others(&at.cell).apply(&[change]).await.unwrap();
    }

    /// A set, over what the records are now.
    async fn set(&self, changes: &[(&str, Option<&[u8]>)]) -> ChangeSet {
        let mut all = Vec::new();
        for (place, now) in changes {
            let at = at(place);
            let cell = self.cells.get(&at.cell).unwrap();
            cell.snapshot().await.unwrap();
            cell.fetch(&at.path).await.unwrap();
            let base = cell.mirror.snapshot().records.get(&at.path).cloned();
            all.push(Staged { at, base, now: now.map(Bytes::copy_from_slice) });
        }
        ChangeSet { name: "test".into(), changes: all }
    }

    async fn commit(&self, set: &ChangeSet) -> Result<Committed> {
        self.commit_heard(set, &Unheard).await
    }

    async fn commit_heard(&self, set: &ChangeSet, commits: &dyn Commits) -> Result<Committed> {
        let live = self.live();
        commit(&|cell| live.live(cell), self.cells.records(), set, ACTOR, commits).await
    }

    /// The kind and the reason of a refusal, after which nothing has been sent.
    async fn refused(&self, set: &ChangeSet) -> (Kind, String) {
        let before = self.applied();
        let error = self.commit(set).await.unwrap_err();
        assert_eq!(self.applied(), before, "something was sent: {error}");
        (error.kind, error.reason)
    }

    /// How many changes were sent to the services.
    fn applied(&self) -> u64 {
        self.faulty.lock().values().map(|faulty| faulty.count(Call::Apply)).sum()
    }

    async fn lock(&self, dir: &str) -> SharedPlace {
        let at = at(dir);
        let place = self.others(&at.cell).enter(&at.path, &Bytes::from_static(b"somebody else")).await.unwrap();
        let node = place.try_hold().await.unwrap().unwrap();
        let mirror = &self.cells.get(&at.cell).unwrap().mirror;
        let mut changes = mirror.lock_changes();
        while !mirror.snapshot().locks.contains_key(&node.path) {
            changes.changed().await.unwrap();
        }
        place
    }

    async fn locks_in(&self, cell: &str) -> usize {
        let cell = CellName::new(cell).unwrap();
        let nodes = self.others(&cell).list(&TopoPath::root()).await.unwrap().nodes;
        nodes.iter().filter(|node| matches!(node.role, crate::backend::Role::Lock(_))).count()
    }
}

/// Writes down what it hears.
#[derive(Default)]
struct Ear(Arc<Mutex<String>>);

struct Marked(Arc<Mutex<String>>, CellPath);

impl Drop for Marked {
    fn drop(&mut self) {
        write!(self.0.lock(), "end {}, ", self.1).unwrap();
    }
}

#[async_trait]
impl Commits for Ear {
    fn begin(&self, at: &CellPath) -> Mark {
        write!(self.0.lock(), "begin {at}, ").unwrap();
        Box::new(Marked(self.0.clone(), at.clone()))
    }

    async fn answered(&self, cell: &CellName, changes: &[Change]) {
        write!(self.0.lock(), "answered {cell} {}, ", changes.len()).unwrap();
    }

    fn made(&self, at: &CellPath, Made { is_new, .. }: Made) {
        write!(self.0.lock(), "made {at} {is_new}, ").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_over_several_cells_is_one_transaction_and_everybody_hears_of_all_of_it() {
    let world = World::new().await;
    world.store("zone2/metadata/old", "1").await;
    world.store("global/metadata/same", "same").await;
    let set = world.set(&[
        ("zone2/metadata/old", None),
        ("zone1/metadata/new", Some(b"1")),
        ("global/keyspaces/ks/Keyspace", Some(b"")),
        ("global/metadata/a", Some(b"1")),
        ("global/metadata/same", Some(b"same")),
        ("global/metadata/never", None),
    ]);
    let ear = Ear::default();
    let committed = world.commit_heard(&set.await, &ear).await.unwrap();
    let [global, zone1, zone2] = &committed.cells[..] else { panic!("{committed:?}") };
    assert!(global.applied.at == zone1.applied.at && global.applied.at == zone2.applied.at, "one transaction");
    let named = |cell: &CommittedCell| cell.changes.iter().map(|change| change.path.to_string()).collect::<Vec<_>>();
    assert_eq!(named(global), ["keyspaces/ks/Keyspace", "metadata/a"], "what stays as it is makes no version");
    assert_eq!(zone2.applied.versions, [None]);
    let fetched = world.others(&global.cell).get(&global.changes[1].path).await.unwrap().node.unwrap();
    assert_eq!(global.applied.versions[1], Some(fetched.version));
    for (cell, name) in [(global, "metadata/a"), (zone1, "metadata/new")] {
        let shown = world.cells.get(&cell.cell).unwrap().mirror.snapshot();
        assert!(shown.records.contains_key(&TopoPath::parse(name).unwrap()), "whoever has committed sees it");
    }
    assert_eq!(
        *ear.0.lock(),
        "begin global/keyspaces/ks/Keyspace, begin global/metadata/a, begin zone1/metadata/new, \
         begin zone2/metadata/old, answered global 2, answered zone1 1, answered zone2 1, \
         made global/keyspaces/ks/Keyspace true, end global/keyspaces/ks/Keyspace, \
         made global/metadata/a true, end global/metadata/a, made zone1/metadata/new true, end zone1/metadata/new, \
         made zone2/metadata/old false, end zone2/metadata/old, "
    );
    assert_eq!(world.locks_in("global").await, 0);
    // Nothing to change: nothing is sent, and that is no error.
    let before = world.applied();
    assert!(world.commit(&world.set(&[]).await).await.unwrap().cells.is_empty());
    assert_eq!(world.applied(), before);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_names_every_record_that_was_in_the_way() {
    let world = World::new().await;
    for place in ["global/metadata/a", "global/metadata/b", "zone1/metadata/c", "zone1/metadata/d"] {
        world.store(place, "1").await;
    }
    let set = world
        .set(&[
            ("global/metadata/a", Some(b"2")),
            ("global/metadata/b", Some(b"2")),
            ("zone1/metadata/c", None),
            ("zone1/metadata/d", Some(b"2")),
            ("zone1/metadata/e", Some(b"2")),
            ("zone2/metadata/f", Some(b"2")),
        ])
        .await;
    world.store("global/metadata/b", "theirs").await;
    let remove = async |place: &str| {
        let at = at(place);
        let change = Change { path: at.path, guard: Guard::Any, action: Action::Delete };
        world.others(&at.cell).apply(&[change]).await.unwrap();
    };
    remove("zone1/metadata/c").await;
    remove("zone1/metadata/d").await;
    world.store("zone1/metadata/d", "theirs").await;
    world.store("zone1/metadata/e", "theirs").await;
    let ear = Ear::default();
    let error = world.commit_heard(&set, &ear).await.unwrap_err();
    assert_eq!(error.kind, Kind::Conflict);
    for words in [
        "change set test: 4 of 6 records have changed since they were staged, and nothing is stored: ",
        "global/metadata/b (version ",
        "zone1/metadata/c (deleted)",
        "zone1/metadata/d (deleted and created)",
        "zone1/metadata/e (created)",
    ] {
        assert!(error.reason.contains(words), "{words}: {error}");
    }
    assert!(!ear.0.lock().contains("made") && ear.0.lock().contains("answered zone2"), "{}", ear.0.lock());
    assert_eq!(world.value("global/metadata/a").await.unwrap(), "1");
    assert_eq!(world.value("zone2/metadata/f").await, None);
    // There are bounds to what is named.
    let many: Vec<String> = (0..60).map(|n| format!("zone1/metadata/m{n}")).collect();
    let changes: Vec<(&str, Option<&[u8]>)> = many.iter().map(|place| (place.as_str(), Some(&b"2"[..]))).collect();
    let set = world.set(&changes).await;
    for place in &many {
        world.store(place, "theirs").await;
    }
    let error = world.commit(&set).await.unwrap_err();
    assert!(error.reason.contains(", and 40 more"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_one_transaction_cannot_hold_is_refused_before_anything_is_sent() {
    let world = World::new().await;
    let apart = world.set(&[("global/metadata/a", Some(b"1")), ("zone3/metadata/a", Some(b"1"))]).await;
    let (kind, reason) = world.refused(&apart).await;
    assert_eq!(kind, Kind::CrossDevice);
    assert!(reason.contains("cell global (memory:one/t/global) and cell zone3 (memory:other/t/zone3)"), "{reason}");
    assert!(reason.ends_with("one transaction cannot change both"), "{reason}");
    // Alone it can be committed.
    world.commit(&world.set(&[("zone3/metadata/a", Some(b"1"))]).await).await.unwrap();

    let large = vec![b'x'; 1_600_000];
    let (kind, reason) =
        world.refused(&world.set(&[("zone1/metadata/a", Some(&large)), ("zone1/metadata/b", Some(b""))]).await).await;
    assert_eq!(kind, Kind::TooMany, "{reason}");
    let half = vec![b'x'; 800_000];
    let both = world.set(&[("zone1/metadata/a", Some(&half)), ("zone2/metadata/a", Some(&half))]).await;
    let (kind, reason) = world.refused(&both).await;
    assert_eq!(kind, Kind::TooMany);
    assert!(reason.contains("1600") && reason.contains("bytes, but the service accepts 1572864"), "{reason}");
    let many: Vec<String> = (0..129).map(|n| format!("zone1/metadata/m{n}")).collect();
    let changes: Vec<(&str, Option<&[u8]>)> = many.iter().map(|place| (place.as_str(), Some(&b"2"[..]))).collect();
    let (kind, reason) = world.refused(&world.set(&changes).await).await;
    assert_eq!(kind, Kind::TooMany);
    assert!(reason.contains("129 changes, but the service accepts 128"), "{reason}");

    let broken = world.set(&[("global/keyspaces/a/Keyspace", Some(b"\xff")), ("global/metadata/a", Some(b"1"))]).await;
    let (kind, reason) = world.refused(&broken).await;
    assert_eq!(kind, Kind::BadMessage);
    assert!(reason.contains("global/keyspaces/a/Keyspace: "), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn the_rules_count_for_what_the_whole_set_leaves_behind() {
    let world = World::new().await;
    let alias = |cells: &[&str]| {
        topodata::CellsAlias { cells: cells.iter().map(ToString::to_string).collect() }.encode_to_vec()
    };
    let (east, west) = ("global/cells_aliases/east/CellsAlias", "global/cells_aliases/west/CellsAlias");
    world.store(east, alias(&["zone1", "zone2"])).await;
    world.store(west, alias(&["zone3"])).await;
    // A cell moves from one alias to the other, in both orders of the names.
    for (first, second) in [(&["zone1"][..], &["zone2", "zone3"][..]), (&["zone1", "zone2"], &["zone3"])] {
        let set = world.set(&[(east, Some(&alias(first))), (west, Some(&alias(second)))]).await;
        world.commit(&set).await.unwrap();
    }
    // An alias is renamed.
    let south = "global/cells_aliases/south/CellsAlias";
    world.commit(&world.set(&[(west, None), (south, Some(&alias(&["zone3"])))]).await).await.unwrap();
    let both = world.set(&[(east, Some(&alias(&["zone1"]))), (south, Some(&alias(&["zone1", "zone3"])))]).await;
    let (kind, reason) = world.refused(&both).await;
    assert!(kind == Kind::Busy && reason.contains("cell zone1 is in "), "{reason}");

    // A cell goes with its serving keyspaces, but not before them.
    let (info, serving) = ("global/cells/zone2/CellInfo", "zone2/keyspaces/ks/SrvKeyspace");
    world.store(serving, "").await;
    let (kind, reason) = world.refused(&world.set(&[(info, None)]).await).await;
    assert!(kind == Kind::Busy && reason.contains("has serving keyspaces"), "{reason}");
    world.commit(&world.set(&[(info, None), (serving, None)]).await).await.unwrap();
    let set = world.set(&[("global/cells/zone1/CellInfo", None), ("zone1/keyspaces/ks/SrvKeyspace", Some(b""))]).await;
    assert_eq!(world.refused(&set).await.0, Kind::Busy);
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_lock_is_named_and_no_lock_stays_behind() {
    let world = World::new().await;
    let keyspace = |name: &str| format!("global/keyspaces/{name}/Keyspace");
    for name in ["a", "b", "c"] {
        world.store(&keyspace(name), "").await;
    }
    let theirs = world.lock("global/keyspaces/b").await;
    let named = ["a", "b", "c"].map(keyspace);
    let changes: Vec<(&str, Option<&[u8]>)> =
        named.iter().map(|place| (place.as_str(), Some(&b"\x22\x00"[..]))).collect();
    let set = world.set(&changes).await;
    let (kind, reason) = world.refused(&set).await;
    assert!(kind == Kind::Busy && reason.contains("global/keyspaces/b is locked by somebody else"), "{reason}");
    assert_eq!(world.locks_in("global").await, 1, "only theirs");
    theirs.leave().await.unwrap();
    world.commit(&world.set(&changes).await).await.unwrap();
    assert_eq!(world.locks_in("global").await, 0);
    // A removal of anything below needs that nobody has the keyspace.
    let shard = "global/keyspaces/a/shards/0/Shard";
    world.store(shard, "").await;
    let theirs = world.lock("global/keyspaces/a").await;
    let set = world.set(&[(shard, None), ("zone1/metadata/a", Some(b"1"))]).await;
    assert_eq!(world.refused(&set).await.0, Kind::Busy);
    theirs.leave().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_no_lock_behind() {
    let world = World::new().await;
    world.store("global/keyspaces/a/Keyspace", "").await;
    let set = world.set(&[("global/keyspaces/a/Keyspace", Some(b"\x22\x00")), ("zone1/metadata/a", Some(b"1"))]).await;
    let faulty = world.faulty.lock()["global"].clone();
    for call in [Call::Apply, Call::Enter] {
        faulty.next(call, Fault::Hang);
        let calls = faulty.count(call);
        tokio::select! {
            outcome = world.commit(&set) => panic!("{outcome:?}"),
            () = faulty.begun(call, calls + 1) => {}
        }
        faulty.release();
        let has_locks = || {
            let LockCounts { held, waiting, lost, .. } = world.locks.counts();
            held + waiting + lost > 0
        };
        let gone = async {
            while world.locks_in("global").await > 0 || has_locks() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(300), gone).await.expect("the locks are given back");
    }
    assert_eq!(world.value("zone1/metadata/a").await, None);
    world.commit(&set).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_was_overtaken_hears_of_a_conflict_though_nobody_can_look_where() {
    let world = World::new().await;
    let set = world.set(&[("global/metadata/new", Some(b"1")), ("zone1/metadata/new", Some(b"1"))]).await;
    let global = world.faulty.lock()["global"].clone();
    for failure in [Failure::NodeExists, Failure::NoNode, Failure::BadVersion] {
        global.next(Call::Apply, Fault::Fail(failure));
        global.next(Call::Get, Fault::Fail(Failure::Unreachable));
        let error = world.commit(&set).await.unwrap_err();
        assert!(error.kind == Kind::Conflict && !error.is_uncertain(), "{failure:?}: {:?} {error}", error.kind);
    }
    world.commit(&set).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_out_and_a_lost_request_is_not_called_a_failure() {
    let world = World::new().await;
    world.store("zone1/metadata/a", "1").await;
    let faulty = world.faulty.lock()["global"].clone();
    let set = world.set(&[("global/metadata/a", Some(b"1")), ("zone1/metadata/a", Some(b"2"))]).await;
    // The request does not arrive, as far as anybody knows.
    faulty.next(Call::Apply, Fault::Hang);
    let error = world.commit(&set).await.unwrap_err();
    assert!(error.kind == Kind::Unreachable && error.is_uncertain(), "{error}");
    assert_eq!(world.value("global/metadata/a").await, None);
    // It arrives, and the answer does not.
    faulty.next(Call::Apply, Fault::Lost);
    let ear = Ear::default();
    let committed = world.commit_heard(&set, &ear).await.unwrap();
    assert_eq!(ear.0.lock().matches("made").count(), 2, "{}", ear.0.lock());
    let versions: Vec<_> = committed.cells.iter().flat_map(|cell| cell.applied.versions.clone()).collect();
    assert!(versions.iter().all(|version| version.unwrap().written == committed.cells[0].applied.at), "{committed:?}");
    // Somebody else writes the same, record by record: that was no commit of ours.
    let set = world.set(&[("global/metadata/a", Some(b"3")), ("zone1/metadata/a", Some(b"3"))]).await;
    let calls = faulty.count(Call::Apply);
    faulty.next(Call::Apply, Fault::Hang);
    let others = async {
        faulty.begun(Call::Apply, calls + 1).await;
        world.store("global/metadata/a", "3").await;
        world.store("zone1/metadata/a", "3").await;
    };
    let (outcome, ()) = tokio::join!(world.commit(&set), others);
    assert!(outcome.unwrap_err().is_uncertain());
    // One that was created alone may be another's.
    let set = world.set(&[("zone1/metadata/alone", Some(b"1"))]).await;
    let zone1 = world.faulty.lock()["zone1"].clone();
    zone1.next(Call::Apply, Fault::Lost);
    let error = world.commit(&set).await.unwrap_err();
    assert!(error.is_uncertain(), "{error}");
    assert_eq!(world.value("zone1/metadata/alone").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_tried_again_while_the_locks_of_its_moment_are_lost_but_not_for_ever() {
    let world = World::new().await;
    world.store("global/keyspaces/a/Keyspace", "").await;
    let set = world.set(&[("global/keyspaces/a/Keyspace", Some(b"\x22\x00")), ("zone1/metadata/a", Some(b"1"))]).await;
    let faulty = world.faulty.lock()["global"].clone();
    let lose = |times: u64| {
        let done = faulty.count(Call::Apply);
        for nth in 1..=times {
            let _ = faulty.clone().on(Call::Apply, done + nth, Fault::Fail(Failure::LockLost));
        }
    };
    lose(LOCK_CHANGES as u64);
    let error = world.commit(&set).await.unwrap_err();
    assert!(error.kind == Kind::Busy && error.reason.contains("change too often"), "{error}");
    lose(LOCK_CHANGES as u64 - 1);
    world.commit(&set).await.unwrap();
    // Without such a lock, one that is lost is lost.
    lose(1);
    let set = world.set(&[("global/metadata/a", Some(b"1")), ("zone1/metadata/a", Some(b"2"))]).await;
    assert_eq!(world.commit(&set).await.unwrap_err().kind, Kind::LockLost);
    assert_eq!(world.value("zone1/metadata/a").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn the_second_places_of_all_cells_are_brought_along_and_must_be_in_one_service() {
    let world = World::over(Some(("second", "second"))).await;
    let set = world.set(&[("global/metadata/a", Some(b"1")), ("zone2/metadata/a", Some(b"1"))]).await;
    world.commit(&set).await.unwrap();
    for root in ["/t/global", "/elsewhere/zone2"] {
        let second = world.connect.memory.open(&location("second", root)).unwrap();
        let found = second.get(&TopoPath::parse("metadata/a").unwrap()).await.unwrap();
        assert_eq!(found.node.unwrap().value, "1", "{root}");
    }
    let world = World::over(Some(("second", "third"))).await;
    let set = world.set(&[("global/metadata/a", Some(b"1")), ("zone2/metadata/a", Some(b"1"))]).await;
    let (kind, reason) = world.refused(&set).await;
    assert_eq!(kind, Kind::CrossDevice);
    assert!(reason.contains("memory:third/elsewhere/zone2"), "{reason}");
    world
        .commit(&world.set(&[("zone1/metadata/a", Some(b"1")), ("global/metadata/a", Some(b"1"))]).await)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_was_lost_is_found_out_later() {
    let world = World::new().await;
    world.store("zone1/metadata/a", "1").await;
    world.store("zone2/metadata/b", "1").await;
    let set = world
        .set(&[("global/metadata/a", Some(b"1")), ("zone1/metadata/a", Some(b"2")), ("zone2/metadata/b", None)])
        .await;
    let found = async |set: &ChangeSet| {
        let live = world.live();
        find_out(&|cell| live.live(cell), world.cells.records(), set, ACTOR).await
    };
    assert_eq!(found(&set).await.unwrap(), Stored::Nothing);
    // Somebody else has made a part of it.
    world.store("global/metadata/a", "1").await;
    assert_eq!(found(&set).await.unwrap(), Stored::Part(vec![at("global/metadata/a")]));
    let before = world.applied();
    world.store("zone1/metadata/a", "2").await;
    let gone = Change { path: at("zone2/metadata/b").path, guard: Guard::Any, action: Action::Delete };
    world.others(&at("zone2/x").cell).apply(&[gone]).await.unwrap();
    assert_eq!(found(&set).await.unwrap(), Stored::All);
    assert_eq!(world.applied(), before, "nothing is sent again");
    for place in ["global/metadata/a", "zone1/metadata/a"] {
        let at = at(place);
        let mirror = &world.cells.get(&at.cell).unwrap().mirror;
        let last = mirror.past(&at.path).pop().unwrap();
        assert_eq!(last.by.unwrap().change_set.as_deref(), Some("test"), "{place}");
    }
    // One cell does not answer: nobody knows.
    world.faulty.lock()["zone1"].next(Call::Get, Fault::Hang);
    assert_eq!(found(&set).await.unwrap_err().kind, Kind::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn another_record_of_the_same_version_is_not_overwritten() {
    let world = World::new().await;
    world.store("zone1/metadata/a", "theirs").await;
    world.store("zone1/metadata/b", "1").await;
    let mut set = world.set(&[("zone1/metadata/a", Some(b"2")), ("zone1/metadata/b", Some(b"2"))]).await;
    // It was another one when it was staged, in a service that is no more.
    set.changes[0].base.as_mut().unwrap().value = "mine".into();
    let (kind, reason) = world.refused(&set).await;
    assert_eq!(kind, Kind::Conflict, "{reason}");
    assert!(reason.contains("1 of 2 records") && reason.contains("zone1/metadata/a (another value"), "{reason}");
    assert_eq!(world.value("zone1/metadata/a").await.unwrap(), "theirs");
}

#[tokio::test(start_paused = true)]
async fn a_cell_does_not_move_together_with_its_records_and_must_be_connected() {
    let world = World::new().await;
    let info = |server: &str, root: &str| {
        topodata::CellInfo { server_address: server.to_owned(), root: root.to_owned() }.encode_to_vec()
    };
    const INFO: &str = "global/cells/zone1/CellInfo";
    for moved in [info("one", "/t/elsewhere"), info("other", "/t/zone1")] {
        let set = world.set(&[(INFO, Some(&moved)), ("zone1/metadata/a", Some(b"1"))]).await;
        let (kind, reason) = world.refused(&set).await;
        assert_eq!(kind, Kind::Invalid, "{reason}");
        assert!(reason.ends_with("zone1 moves with its CellInfo record: commit that by itself first"), "{reason}");
    }
    // What does not move it, and what goes with it, is no reason.
    let more = [info("one", "/t/zone1"), b"\x9a\x06\x01x".to_vec()].concat();
    world.commit(&world.set(&[(INFO, Some(&more)), ("zone1/metadata/a", Some(b"1"))]).await).await.unwrap();
    let moved = info("one", "/t/elsewhere");
    let set = world.set(&[(INFO, Some(&moved)), ("zone2/metadata/a", Some(b"1"))]).await;
    let mut new = set.clone();
    new.changes.push(Staged { at: at("zone9/metadata/a"), base: None, now: Some("1".into()) });
    let (kind, reason) = world.refused(&new).await;
    assert_eq!(kind, Kind::NotFound);
    for words in ["zone9/metadata/a: the cell zone9 is not connected", "global/cells/zone9/CellInfo must be"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    world.commit(&set).await.unwrap();
    world.commit(&world.set(&[("global/cells/zone2/CellInfo", None), ("zone2/metadata/a", None)]).await).await.unwrap();
}
