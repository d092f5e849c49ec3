//! Looking for the next request before sleeping: only while requests come back to back, and never for an idle mount.

use std::time::{Duration, SystemTime};

use crate::common::eventually;
use crate::common::mount::{Mount, TOPOFS};

/// Reads everything, one request after the other.
const WALK: &str = "grep -r xyz global zone1 zone2 > /dev/null || true";
/// For so long a mount is left alone.
const IDLE: Duration = Duration::from_secs(3);

/// How often a session thread has looked for a request, and how often one came. The look itself does not count.
fn spins(mount: &Mount) -> (u64, u64) {
    let spins = &mount.status()["spins"];
    (spins["count"].as_u64().unwrap(), spins["hits"].as_u64().unwrap())
}

/// Whether this process may use more than one processor.
fn has_two() -> bool {
    std::thread::available_parallelism().unwrap().get() > 1
}

#[test]
fn requests_back_to_back_are_hits_and_an_idle_mount_looks_for_none() {
    let mount = Mount::new(&["demo"]);
    if !has_two() {
        mount.sh(WALK);
        assert_eq!(spins(&mount), (0, 0));
        return;
    }
    // The other processor may have something else to do for a while.
    let (count, hits) = eventually("a request is seen before its thread sleeps", || {
        mount.sh(WALK);
        Some(spins(&mount)).filter(|(_, hits)| *hits > 10)
    });
    assert!(hits <= count, "{hits} of {count}");
    let shown = mount.control("metrics");
    for metric in ["topofs_spins_total", "topofs_spin_hits_total"] {
        assert!(shown.lines().any(|line| line.starts_with(&format!("{metric} "))), "{metric}: {shown}");
    }
    // Looking at the status asks for the root once a second, and that is all that happens.
    let (before, begin) = (spins(&mount), SystemTime::now());
    eventually("some time has passed", || {
        let time = mount.status()["time"].as_str().unwrap().to_owned();
        (humantime::parse_rfc3339(&time).unwrap() > begin + IDLE).then_some(())
    });
    assert_eq!(spins(&mount), before);
}

#[test]
fn zero_switches_it_off() {
    let mount = Mount::new(&["demo", "--spin=0"]);
    assert!(mount.control("config").contains("\"spin\": \"0s\""));
    (0..3).for_each(|_| drop(mount.sh(WALK)));
    assert_eq!(spins(&mount), (0, 0));
}

#[test]
fn where_there_is_one_processor_it_is_left_to_who_asks() {
    let mount = Mount::under(&["taskset", "--cpu-list", "0", TOPOFS], &["demo", "--spin=1ms"]);
    (0..3).for_each(|_| drop(mount.sh(WALK)));
    assert_eq!(spins(&mount), (0, 0));
    // A mount that had two of them notices that one is left: within a second, then it looks no more.
    if has_two() {
        let mount = Mount::new(&["demo"]);
        mount.sh(WALK);
        mount.sh(&format!("taskset --all-tasks --cpu-list --pid 0 {}", mount.pid()));
        eventually("it looks no more", || {
            let before = spins(&mount);
            mount.sh(WALK);
            (spins(&mount) == before).then_some(())
        });
    }
}
