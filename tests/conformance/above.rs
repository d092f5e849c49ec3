//! What stands on a backend keeps its promises while the backend has faults: cells say what they cannot know, and
//! mirrors never go back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::time::Instant;
use topofs::backend::faulty::{Call, Fault, Faulty};
use topofs::backend::{Backend, Failure, Guard, Implementation, Location, Revision, Wrap};
use topofs::cells::{Cell, CellOptions, Cells};
use topofs::error::Kind;
use topofs::mirror::{Health, MirrorOptions};
use topofs::name::CellName;
use topofs::record::{Codec, Kinds, Records};

use crate::common::world::connect_options;
use crate::{path, put, store};

const TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than anything takes here. The clock need not be waited for.
const LONG: Duration = Duration::from_secs(3600);
const UNCERTAIN: &str = "it may have been carried out";

/// The global cell of a mount over a memory service.
struct World {
    cells: Arc<Cells>,
    /// The service without faults.
    plain: Arc<dyn Backend>,
    faulty: Faulty,
}

impl World {
    async fn new() -> Self {
        let made: Arc<Mutex<Option<Faulty>>> = Arc::default();
        let (maker, mut connect) = (made.clone(), connect_options());
        connect.timeout = TIMEOUT;
        connect.wrap = Wrap::new(move |_, backend| {
            let faulty = Faulty::new(backend, TIMEOUT);
            *maker.lock() = Some(faulty.clone());
            Arc::new(faulty)
        });
        let location =
            Location { implementation: Implementation::Memory, server: "test".to_owned(), root: "/x".to_owned() };
        let plain = Arc::new(connect.memory.open(&location).unwrap());
        let mirror = MirrorOptions {
            resync_interval: Duration::from_secs(300),
            stale_after: Duration::from_secs(10),
            serve_stale: false,
        };
        let options = CellOptions::new(location, connect, mirror);
        let cells = Cells::start(options, Records::new(Codec::builtin().unwrap(), Kinds::default())).await.unwrap();
        let faulty = made.lock().take().unwrap();
        Self { cells, plain, faulty }
    }

    fn cell(&self) -> Arc<Cell> {
        self.cells.get(&CellName::global()).unwrap()
    }

    /// What the mirror shows of a record.
    fn shown(&self, at: &str) -> Option<(Bytes, Revision)> {
        let snapshot = self.cell().mirror.snapshot();
        snapshot.records.get(&path(at)).map(|record| (record.value.clone(), record.version.written))
    }

    async fn shows(&self, at: &str, value: &str) {
        let mut news = self.cell().mirror.subscribe();
        let shown = async {
            while self.shown(at).is_none_or(|(shown, _)| shown != value) {
                news.recv().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, shown).await.unwrap_or_else(|_| panic!("{at} is never shown as {value}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_without_an_answer_is_uncertain_and_not_refused() {
    for fault in [Fault::Lost, Fault::Hang, Fault::Late(TIMEOUT * 2)] {
        let world = World::new().await;
        let cell = world.cell();
        world.faulty.next(Call::Apply, fault);
        let begun = Instant::now();
        let error = cell.apply(&[put("f", Guard::Absent, "1")]).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable, "{fault:?}: {error}");
        assert!(error.reason.contains(UNCERTAIN), "{fault:?}: {error}");
        assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < TIMEOUT * 2, "{fault:?}: {:?}", begun.elapsed());
        // What was carried out is shown all the same, because the watch tells of it.
        if fault != Fault::Hang {
            world.shows("f", "1").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_certain() {
    let world = World::new().await;
    let cell = world.cell();
    for (failure, kind) in [
        (Failure::BadVersion, Kind::Conflict),
        (Failure::Denied, Kind::Denied),
        (Failure::NoSpace, Kind::NoSpace),
        (Failure::TooLarge, Kind::TooLarge),
    ] {
        world.faulty.next(Call::Apply, Fault::Fail(failure));
        let error = cell.apply(&[put("f", Guard::Any, "1")]).await.unwrap_err();
        assert_eq!(error.kind, kind, "{failure:?}");
        assert!(!error.reason.contains(UNCERTAIN), "{failure:?}: {error}");
    }
    assert_eq!(world.shown("f"), None);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_hangs_ends_with_the_time_out() {
    let world = World::new().await;
    world.faulty.next(Call::Get, Fault::Hang);
    let begun = Instant::now();
    let error = world.cell().fetch(&path("f")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert!(!error.reason.contains(UNCERTAIN), "{error}");
    assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < TIMEOUT + Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_is_begun_again() {
    let world = World::new().await;
    let mirror = world.cell().mirror.clone();
    // The second list fails, too.
    world.faulty.next(Call::Watch, Fault::Fail(Failure::Unreachable));
    world.faulty.next(Call::Follow, Fault::Fail(Failure::Unreachable));
    store(&*world.plain, "f", "1").await;
    world.shows("f", "1").await;
    assert_eq!(world.faulty.count(Call::Follow), 3);
    mirror.loaded().await;
    assert_eq!(mirror.counters.reconnects.load(Ordering::Relaxed), 1);
    assert_eq!(mirror.counters.caught_up.load(Ordering::Relaxed), 1);
    // And the new watch delivers.
    store(&*world.plain, "f", "2").await;
    world.shows("f", "2").await;
    assert_eq!(mirror.counters.reconnects.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cell_whose_watch_is_silent_for_long_is_not_shown() {
    let world = World::new().await;
    let cell = world.cell();
    // The watch is silent until the time-out, and then nothing can be connected for longer than is tolerated.
    world.faulty.next(Call::Watch, Fault::Hang);
    let lists = world.faulty.count(Call::Follow);
    let world = (1..=100).fold(world, |world, nth| World {
        faulty: world.faulty.on(Call::Follow, lists + nth, Fault::Fail(Failure::Unreachable)),
        ..world
    });
    store(&*world.plain, "f", "1").await;
    let down = async {
        while cell.mirror.health() != Health::Down {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(LONG, down).await.expect("the cell is down");
    assert_eq!(cell.snapshot().await.unwrap_err().kind, Kind::Unreachable);
    assert_eq!(cell.apply(&[put("f", Guard::Any, "2")]).await.unwrap_err().kind, Kind::Unreachable);
    assert_eq!(world.faulty.count(Call::Apply), 0, "a cell that is down is not asked");
}

#[tokio::test(start_paused = true)]
async fn what_a_watch_has_left_out_is_found_by_comparing() {
    let world = World::new().await;
    let mirror = world.cell().mirror.clone();
    world.faulty.next(Call::Watch, Fault::Lost);
    store(&*world.plain, "f", "1").await;
    world.faulty.begun(Call::Watch, 1).await;
    assert_eq!(world.shown("f"), None);
    // The first comparison fails: the watch is begun anew. After that one there is nothing left to find.
    mirror.request_resync();
    world.shows("f", "1").await;
    assert_eq!(mirror.counters.missed.load(Ordering::Relaxed), 1);
}

/// What happens next in a random run.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody else writes a record.
    Theirs(usize),
    /// Somebody else removes a record.
    TheirsGone(usize),
    /// This mount writes it.
    Ours(usize),
    /// This mount looks at it.
    Look(usize),
    /// The next call of this kind meets this.
    Fault(Call, Fault),
    /// The mirror is compared with a list.
    Compare,
    /// What hangs goes on.
    Release,
    /// Time goes by.
    Wait(u64),
}

const RECORDS: [&str; 2] = ["a", "b"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop_oneof![
        Just(Fault::Fail(Failure::Unreachable)),
        Just(Fault::Fail(Failure::Compacted)),
        Just(Fault::Hang),
        Just(Fault::Lost),
        (1u64..4_000).prop_map(|millis| Fault::Late(Duration::from_millis(millis))),
    ];
    let call = prop_oneof![
        4 => Just(Call::Watch),
        2 => Just(Call::Apply),
        1 => Just(Call::Follow),
        1 => Just(Call::List),
        1 => Just(Call::Get),
    ];
    let record = 0..RECORDS.len();
    let step = prop_oneof![
        3 => record.clone().prop_map(Step::Theirs),
        1 => record.clone().prop_map(Step::TheirsGone),
        3 => record.clone().prop_map(Step::Ours),
        2 => record.prop_map(Step::Look),
        4 => (call, fault).prop_map(|(call, fault)| Step::Fault(call, fault)),
        1 => Just(Step::Compare),
        1 => Just(Step::Release),
        2 => (1u64..3_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

/// Runs the steps; at each, no record may be older than it was shown or told before, and at the end the mirror shows
/// what is stored.
async fn never_goes_back(steps: Vec<Step>) {
    let world = World::new().await;
    let cell = world.cell();
    let told: Arc<Mutex<HashMap<usize, Revision>>> = Arc::default();
    let mut running = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let value = format!("{number}");
        match step {
            Step::Theirs(at) => drop(store(&*world.plain, RECORDS[at], &value).await),
            Step::TheirsGone(at) => {
                let gone = crate::delete(RECORDS[at], Guard::Any);
                // There may be none.
                drop(world.plain.apply(&[gone]).await);
            }
            Step::Ours(at) => {
                let (cell, told) = (cell.clone(), told.clone());
                running.push(tokio::spawn(async move {
                    if let Ok(applied) = cell.apply(&[put(RECORDS[at], Guard::Any, value)]).await {
                        let mut told = told.lock();
                        let newest = told.entry(at).or_default();
                        *newest = applied.at.max(*newest);
                    }
                }));
            }
            Step::Look(at) => {
                let (cell, told) = (cell.clone(), told.clone());
                running.push(tokio::spawn(async move {
                    if let Ok(fetched) = cell.fetch(&path(RECORDS[at])).await {
                        let mut told = told.lock();
                        let newest = told.entry(at).or_default();
                        let written = fetched.node.map_or(Revision::default(), |node| node.version.written);
                        *newest = written.max(*newest);
                    }
                }));
            }
            Step::Fault(call, fault) => world.faulty.next(call, fault),
            Step::Compare => cell.mirror.request_resync(),
            Step::Release => world.faulty.release(),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        tokio::task::yield_now().await;
        let mut told = told.lock();
        for (at, name) in RECORDS.iter().enumerate() {
            if let Some((_, written)) = world.shown(name) {
                let newest = told.entry(at).or_default();
                assert!(written >= *newest, "step {number}: {name} is of {written:?} and was of {newest:?}");
                *newest = written;
            }
        }
    }
    for running in running {
        running.await.unwrap();
    }
    let stored = async || {
        let nodes = world.plain.list(&path("")).await.unwrap().nodes;
        nodes.into_iter().map(|node| (node.path, node.value)).collect::<HashMap<_, _>>()
    };
    let shown = || {
        let snapshot = cell.mirror.snapshot();
        snapshot.records.iter().map(|(path, record)| (path.clone(), record.value.clone())).collect::<HashMap<_, _>>()
    };
    // A comparison meets the faults that are left; each takes a time-out at most.
    let converges = async {
        while stored().await != shown() || cell.mirror.health() != Health::Live {
            cell.mirror.request_resync();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(LONG, converges).await.expect("the mirror shows what is stored");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_mirror_is_never_older_than_what_it_said(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(never_goes_back(steps));
    }
}
