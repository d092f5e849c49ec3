//! Comparisons on ZooKeeper: whatever the watch has lost is found by stats alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use topofs::backend::{Action, Change, Guard, Implementation};
use topofs::name::TopoPath;

use crate::common::chance::Chance;
use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::world::{put, runtime};
use crate::rig::{Rig, counter, resync, shown, wait_until_equal};

const ROUNDS: usize = 8;
const CHANGES: usize = 60;

/// The records of the test, as the service has them and as the mount shows them.
fn both(rig: &Rig, mount: &Mount) -> [BTreeMap<String, Vec<u8>>; 2] {
    let of_test =
        |all: BTreeMap<String, Vec<u8>>| all.into_iter().filter(|(path, _)| path.contains("/lost/")).collect();
    [of_test(rig.stored()), of_test(shown(mount))]
}

#[test]
fn what_the_watch_has_lost_of_bursts_is_found_and_counted() {
    let rig = Rig::new(Implementation::Zk2);
    let proxy = Proxy::zookeeper(rig.server.port);
    let mount = Mount::of("zk2", &proxy.endpoint(), "/t", &["--resync-interval=1h"]);
    wait_until_equal(&mount, || rig.stored());
    let (cell, mut chance, mut lost) = (rig.cell(), Chance(7), 0);
    let mut there: Vec<String> = Vec::new();
    for round in 0..ROUNDS {
        // A part of each burst.
        proxy.lose_events(50);
        for number in 0..CHANGES {
            let old = (!there.is_empty()).then(|| chance.below(there.len()));
            let change = match (chance.below(3), old) {
                (0, Some(old)) => {
                    let path = TopoPath::parse(&there.swap_remove(old)).unwrap();
                    Change { path, guard: Guard::Any, action: Action::Delete }
                }
                (1, Some(old)) => put(&there[old], format!("changed in round {round}, {number}")),
                _ => {
                    // New directories, too, and such as have been taken away.
                    let path = format!("global/lost/d{}/e{}/r{round}-{number}", chance.below(4), chance.below(40));
                    there.push(path.clone());
                    put(&path, "new")
                }
            };
            runtime().block_on(cell.apply(&[change])).unwrap();
        }
        proxy.lose_events(0);
        // What comes in order after everything that was not lost.
        rig_put(&rig, "global/metadata/marker", &format!("round {round}"));
        eventually("the marker", || {
            let marker = std::fs::read_to_string(mount.path("global/metadata/marker")).ok();
            (marker? == format!("round {round}")).then_some(())
        });
        let [stored, before] = both(&rig, &mount);
        let paths: std::collections::BTreeSet<&String> = stored.keys().chain(before.keys()).collect();
        let differ = paths.into_iter().filter(|path| stored.get(*path) != before.get(*path)).count() as u64;
        let missed = counter(&mount, "missed");
        resync(&mount);
        let [stored, after] = both(&rig, &mount);
        assert_eq!(stored, after, "round {round}");
        assert_eq!(counter(&mount, "missed") - missed, differ, "round {round}");
        lost += differ;
    }
    assert!(lost >= 100, "{lost} differences, {} events lost", proxy.dropped());
    assert_eq!(counter(&mount, "reconnects"), 0);
    // What was missed and found can go with an event like any other.
    for path in &there {
        let change = Change { path: TopoPath::parse(path).unwrap(), guard: Guard::Any, action: Action::Delete };
        runtime().block_on(cell.apply(&[change])).unwrap();
    }
    eventually("all are gone", || both(&rig, &mount).iter().all(BTreeMap::is_empty).then_some(()));
    resync(&mount);
    assert_eq!((counter(&mount, "missed"), counter(&mount, "reconnects")), (lost, 0));
}

fn rig_put(rig: &Rig, path: &str, value: &str) {
    runtime().block_on(rig.cell().apply(&[put(path, value.to_owned())])).unwrap();
}

/// A large cell, and a mount of it.
fn large(records: usize, interval: &str) -> (Rig, Proxy, Mount, usize) {
    let rig = Rig::new(Implementation::Zk2);
    let cell = rig.cell();
    let changes: Vec<Change> =
        (0..records).map(|number| put(&format!("global/large/d{}/r{number}", number % 20), "x".repeat(300))).collect();
    for some in changes.chunks(64) {
        runtime().block_on(cell.apply(some)).unwrap();
    }
    let proxy = Proxy::zookeeper(rig.server.port);
    let mount = Mount::of("zk2", &proxy.endpoint(), "/t", &[interval]);
    let bulk = proxy.bytes();
    (rig, proxy, mount, bulk)
}

#[test]
fn a_comparison_without_news_reads_no_values() {
    let (_rig, proxy, mount, bulk) = large(3_000, "--resync-interval=1h");
    let before = proxy.bytes();
    resync(&mount);
    let compared = proxy.bytes() - before;
    println!("{compared} bytes of {bulk}: {} %", compared * 100 / bulk);
    assert!(compared * 100 <= bulk * 35, "{compared} of {bulk} bytes");
    assert_eq!((counter(&mount, "missed"), counter(&mount, "reconnects")), (0, 0));
}

#[test]
fn a_comparison_that_nobody_waits_for_is_no_burst_and_one_that_is_asked_for_comes_before_it() {
    let (_rig, proxy, mount, _) = large(3_000, "--resync-interval=20s");
    // What passes in each tenth of a second until the first comparison is over.
    let (mut passed, mut before) = (Vec::new(), proxy.bytes());
    let begun = Instant::now();
    while counter(&mount, "resyncs") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "it is never compared");
        std::thread::sleep(Duration::from_millis(100));
        let now = proxy.bytes();
        passed.push(now - before);
        before = now;
    }
    let (most, all) =
        (passed.windows(10).map(|some| some.iter().sum::<usize>()).max().unwrap(), passed.iter().sum::<usize>());
    println!("{most} bytes in the busiest second, {all} in all");
    assert!(most * 3 < all, "{most} of {all} bytes in a second");
    let slice = all / 20;
    let slow = Duration::from_millis(100) * u32::try_from(passed.len()).unwrap();
    // The next one has begun when a slice has passed.
    let before = proxy.bytes();
    eventually("the next comparison has begun", || (proxy.bytes() > before + slice).then_some(()));
    let begun = Instant::now();
    resync(&mount);
    assert!(begun.elapsed() < slow / 2, "it waits for the slow one: {:?} of {slow:?}", begun.elapsed());
}
