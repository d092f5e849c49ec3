//! Whoever writes through a tee, in whatever order the answers come: the secondary ends as the primary.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;
use topofs::backend::faulty::{Call, Fault, Faulty};
use topofs::backend::memory::Memory;
use topofs::backend::tee::{Tee, TeeSettings};
use topofs::backend::{Backend, Failure, Guard, Implementation, Location};

use crate::common::world::connect_options;
use crate::{check, delete, failure, path, put, store, value};

const TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than anything takes here. The clock need not be waited for.
const LONG: Duration = Duration::from_secs(3600);
const RECORDS: [&str; 2] = ["a", "b"];

/// Two services in this process, and two tees over them, each with faults of its own.
struct World {
    primary: Memory,
    secondary: Memory,
    tees: [Tee; 2],
    to_primary: [Faulty; 2],
    to_secondary: [Faulty; 2],
}

impl World {
    fn new() -> Self {
        let options = connect_options();
        let service = |server: &str| {
            let (server, root) = (server.to_owned(), "/x".to_owned());
            options.memory.open(&Location { implementation: Implementation::Memory, server, root }).unwrap()
        };
        let (primary, secondary) = (service("one"), service("other"));
        let faulty = |memory: &Memory| [(); 2].map(|()| Faulty::new(Arc::new(memory.clone()), TIMEOUT));
        let (to_primary, to_secondary) = (faulty(&primary), faulty(&secondary));
        let tees = [0, 1].map(|number| {
            let settings = TeeSettings {
                secondary: "memory:other/x".to_owned(),
                timeout: TIMEOUT,
                reverse_lock_order: false,
                is_for_save: |contents| contents == b"save",
                in_words: |contents| String::from_utf8_lossy(contents).into_owned(),
                hears: None,
            };
            let [one, other] = [&to_primary, &to_secondary].map(|faulty| Arc::new(faulty[number].clone()));
            Tee::new(one, other, settings)
        });
        Self { primary, secondary, tees, to_primary, to_secondary }
    }

    async fn stored(memory: &Memory) -> HashMap<String, Bytes> {
        let nodes = memory.list(&path("")).await.unwrap().nodes;
        nodes.into_iter().map(|node| (node.path.to_string(), node.value)).collect()
    }

    /// What differs.
    async fn differing(&self) -> Vec<String> {
        let (one, other) = (Self::stored(&self.primary).await, Self::stored(&self.secondary).await);
        let keys: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// One of the tees writes a record, whatever its version.
    Put(usize, usize),
    /// It removes it.
    Delete(usize, usize),
    /// It writes both in one transaction.
    Both(usize),
    /// It repairs everything.
    Repair(usize),
    /// The next call of a tee to one of its services meets this.
    Fault(usize, bool, Call, Fault),
    /// Time goes by.
    Wait(u64),
}

fn steps(faults: impl Strategy<Value = Fault> + 'static) -> impl Strategy<Value = Vec<Step>> {
    let (tee, record) = (0..2usize, 0..RECORDS.len());
    let call = prop_oneof![Just(Call::Get), Just(Call::Apply)];
    let step = prop_oneof![
        4 => (tee.clone(), record.clone()).prop_map(|(tee, record)| Step::Put(tee, record)),
        2 => (tee.clone(), record).prop_map(|(tee, record)| Step::Delete(tee, record)),
        1 => tee.clone().prop_map(Step::Both),
        1 => tee.clone().prop_map(Step::Repair),
        5 => (tee, any::<bool>(), call, faults).prop_map(|(tee, at, call, fault)| Step::Fault(tee, at, call, fault)),
        2 => (1u64..3_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..50)
}

/// Runs the steps, waits for all that is under way, and returns what the tees say has failed, and what differs.
async fn run(steps: Vec<Step>) -> (World, Vec<String>, Vec<String>) {
    let world = World::new();
    let mut running = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let text = format!("{number}");
        let changes = |tee: usize, changes: Vec<topofs::backend::Change>| {
            let tee = world.tees[tee].clone();
            tokio::spawn(async move { drop(tee.apply(&changes).await) })
        };
        match step {
            Step::Put(tee, record) => running.push(changes(tee, vec![put(RECORDS[record], Guard::Any, text)])),
            Step::Delete(tee, record) => running.push(changes(tee, vec![delete(RECORDS[record], Guard::Any)])),
            Step::Both(tee) => {
                let both = RECORDS.iter().map(|record| put(record, Guard::Any, text.clone()));
                running.push(changes(tee, both.collect()));
            }
            Step::Repair(tee) => {
                let tee = world.tees[tee].clone();
                running.push(tokio::spawn(async move { drop(tee.repair().await) }));
            }
            Step::Fault(tee, true, call, fault) => world.to_primary[tee].next(call, fault),
            Step::Fault(tee, false, call, fault) => world.to_secondary[tee].next(call, fault),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        tokio::task::yield_now().await;
    }
    for running in running {
        tokio::time::timeout(LONG, running).await.expect("it ends").unwrap();
    }
    for tee in &world.tees {
        tee.settle(LONG).await;
    }
    let failed = world.tees.iter().flat_map(|tee| tee.failures().known.into_keys()).map(|path| path.to_string());
    let failed = failed.collect();
    let differing = world.differing().await;
    (world, failed, differing)
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_answers_leave_nothing_that_differs(
        steps in steps((1u64..4_000).prop_map(|millis| Fault::Late(Duration::from_millis(millis)))),
    ) {
        paused().block_on(async {
            let (_, failed, differing) = run(steps).await;
            assert_eq!((failed, differing), (Vec::new(), Vec::new()));
        });
    }

    #[test]
    fn what_differs_after_faults_is_known_and_a_repair_mends_it(
        steps in steps(prop_oneof![
            Just(Fault::Fail(Failure::Unreachable)),
            Just(Fault::Fail(Failure::Denied)),
            Just(Fault::Hang),
            Just(Fault::Lost),
            (1u64..4_000).prop_map(|millis| Fault::Late(Duration::from_millis(millis))),
        ]),
    ) {
        paused().block_on(async {
            let (world, failed, differing) = run(steps).await;
            assert!(differing.iter().all(|path| failed.contains(path)), "nobody knows of {differing:?}: {failed:?}");
            // Faults that are left meet the first attempts.
            let repaired = async {
                while world.tees[0].repair().await.is_err() {}
            };
            tokio::time::timeout(LONG, repaired).await.expect("it is repaired");
            assert_eq!(world.differing().await, Vec::<String>::new());
        });
    }
}

#[tokio::test(start_paused = true)]
async fn the_secondary_never_fails_a_caller_and_is_waited_for_only_once() {
    for fault in
        [Fault::Fail(Failure::Denied), Fault::Fail(Failure::Unreachable), Fault::Hang, Fault::Lost, Fault::Panic]
    {
        let world = World::new();
        let [tee, _] = &world.tees;
        for call in [Call::Get, Call::Apply] {
            world.to_secondary[0].next(call, fault);
            let begun = tokio::time::Instant::now();
            store(tee, "a", &format!("{call:?}")).await;
            assert!(begun.elapsed() <= Duration::from_secs(3), "{fault:?} {call:?}: {:?}", begun.elapsed());
        }
        if matches!(fault, Fault::Hang | Fault::Lost) {
            let begun = tokio::time::Instant::now();
            world.to_secondary[0].next(Call::Get, fault);
            store(tee, "b", "1").await;
            assert_eq!(begun.elapsed(), Duration::ZERO, "{fault:?}: it is known to be away");
        }
        tee.settle(LONG).await;
        // The next save of the record brings it, too.
        for name in RECORDS {
            store(tee, name, "last").await;
        }
        tee.settle(LONG).await;
        assert_eq!((world.differing().await, tee.failures().known.len()), (Vec::new(), 0), "{fault:?}");
        assert!(tee.failures().away.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_primary_leaves_the_secondary_alone() {
    let world = World::new();
    let [tee, _] = &world.tees;
    store(tee, "a", "1").await;
    let calls = world.to_secondary[0].count(Call::Any);
    assert_eq!(failure(tee.apply(&[put("a", Guard::Absent, "2")]).await), Failure::NodeExists);
    world.to_primary[0].next(Call::Apply, Fault::Fail(Failure::Unreachable));
    assert_eq!(failure(tee.apply(&[put("a", Guard::Any, "2")]).await), Failure::Unreachable);
    tee.apply(&[check("b", Guard::Absent)]).await.unwrap();
    tee.settle(LONG).await;
    assert_eq!(world.to_secondary[0].count(Call::Any), calls, "it was not even asked");
    assert_eq!(value(&world.secondary, "a").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_does_not_leave_half_an_update() {
    for fault in [Fault::Late(Duration::from_secs(1)), Fault::Lost] {
        let world = World::new();
        let [tee, _] = &world.tees;
        world.to_primary[0].next(Call::Apply, fault);
        let change = [put("a", Guard::Any, "1")];
        assert!(tokio::time::timeout(Duration::from_millis(1), tee.apply(&change)).await.is_err());
        tee.settle(LONG).await;
        assert_eq!(value(&world.primary, "a").await.unwrap(), "1");
        assert_eq!(world.differing().await, Vec::<String>::new(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_does_not_empty_what_is_no_copy_of_the_primary() {
    let world = World::new();
    let [tee, _] = &world.tees;
    for number in 0..6 {
        store(&world.secondary, &format!("theirs{number}"), "1").await;
        store(&world.primary, &format!("ours{number}"), "1").await;
    }
    let error = tee.repair().await.unwrap_err();
    assert!(error.message.contains("6 records are only there"), "{error}");
    assert_eq!(World::stored(&world.secondary).await.len(), 6);
    // One that both have: it is a copy that is out of date.
    store(&world.secondary, "ours0", "1").await;
    tee.repair().await.unwrap();
    assert_eq!(world.differing().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_late_write_is_not_made_when_its_lock_is_gone() {
    let world = World::new();
    let [tee, _] = &world.tees;
    store(tee, "dir/a", "1").await;
    let place = tee.enter(&path("dir"), &"x".into()).await.unwrap();
    let node = place.try_hold().await.unwrap().unwrap();
    let there = world.secondary.list(&path("dir/locks")).await.unwrap().nodes.remove(0);
    let held = topofs::backend::Holding { version: node.version, owner: node.owner() };
    let fenced = |text: &'static str| [check(node.path.as_str(), Guard::Held(held)), put("dir/a", Guard::Any, text)];
    tee.apply(&fenced("2")).await.unwrap();
    assert_eq!(value(&world.secondary, "dir/a").await.unwrap(), "2");
    // Somebody takes the lock at the secondary away, and works there.
    world.secondary.break_lock(&there).await.unwrap();
    store(&world.secondary, "dir/a", "theirs").await;
    tee.apply(&fenced("3")).await.unwrap();
    assert_eq!(value(&world.primary, "dir/a").await.unwrap(), "3");
    assert_eq!(value(&world.secondary, "dir/a").await.unwrap(), "theirs");
    let failures = tee.failures();
    assert!(failures.known[&path("dir/a")].cause.contains("no longer held"), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lock_needs_both_services_but_a_save_does_not() {
    let world = World::new();
    let [tee, _] = &world.tees;
    store(tee, "dir/a", "1").await;
    for (call, failure) in [(Call::Enter, Failure::Unreachable), (Call::TryHold, Failure::Denied)] {
        for (contents, is_held) in [("lock", false), ("save", true)] {
            world.to_secondary[0].next(call, Fault::Fail(failure));
            let place = tee.enter(&path("dir"), &contents.into()).await.unwrap();
            let held = place.try_hold().await;
            assert_eq!(held.is_ok_and(|node| node.is_some()), is_held, "{call:?} {contents}");
            if is_held {
                place.leave().await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            for service in [&world.primary, &world.secondary] {
                assert!(service.list(&path("dir/locks")).await.unwrap().nodes.is_empty(), "nothing is left");
            }
        }
    }
    // What the secondary does not have, nobody can lock there.
    store(&world.primary, "new/a", "1").await;
    let place = tee.enter(&path("new"), &"lock".into()).await.unwrap();
    assert!(place.try_hold().await.unwrap().is_some());
    place.leave().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_that_arrives_late_never_replaces_a_newer_one() {
    let world = World::new();
    let [slow, quick] = world.tees.clone();
    store(&slow, "a", "0").await;
    let (_, mut watch) = world.secondary.follow().await.unwrap();
    let calls = world.to_secondary[0].count(Call::Apply);
    world.to_secondary[0].next(Call::Apply, Fault::Hang);
    let writing = tokio::spawn(async move { store(&slow, "a", "1").await });
    world.to_secondary[0].begun(Call::Apply, calls + 1).await;
    store(&quick, "a", "2").await;
    world.to_secondary[0].release();
    writing.await.unwrap();
    store(&quick, "last", "").await;
    for tee in &world.tees {
        tee.settle(LONG).await;
    }
    let mut values = Vec::new();
    while values.last().is_none_or(|(path, _)| path != "last") {
        let events = watch.next().await.unwrap().unwrap().events;
        values.extend(events.into_iter().map(|event| (event.path.to_string(), event.node.unwrap().value)));
    }
    assert_eq!(values, [("a".to_owned(), Bytes::from("2")), ("last".to_owned(), Bytes::new())]);
}
