//! Panics: the cell or the call that they concern fails where people see it, everything else goes on, and the log has
//! the place.

use serde_json::Value;

use crate::common::eventually;
use crate::common::mount::{Mount, TOPOFS};

const OTHER: &str = "global/keyspaces/commerce/Keyspace.txt";

/// A mount of the sample cluster with faults.
fn mount(faults: &[&str]) -> Mount {
    let faults = format!("TOPOFS_TEST_FAULTS={}", faults.join(" "));
    Mount::under(&["env", &faults, TOPOFS], &["demo", "--respect-locks=none"])
}

/// Records of a cell.
fn records_of(mount: &Mount, cell: &str) -> Vec<String> {
    let found = mount.sh(&format!("find {cell} -type f -name Tablet | sort"));
    found.lines().map(str::to_owned).collect()
}

fn state(mount: &Mount, cell: &str) -> String {
    mount.status()["cells"][cell]["state"].as_str().unwrap().to_owned()
}

/// The panics that the status shows: their tasks.
fn tasks(mount: &Mount) -> Vec<String> {
    let panics = mount.status()["panics"].clone();
    let known: Vec<Value> = panics["known"].as_array().unwrap().clone();
    assert_eq!(panics["count"], known.len());
    for panic in &known {
        assert!(panic["at"].as_str().unwrap().starts_with("src/backend/faulty.rs:"), "{panic}");
        assert!(panic["message"].as_str().unwrap().contains("a panic, as the script wants it"), "{panic}");
    }
    known.iter().map(|panic| panic["task"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_panic_in_a_watch_takes_its_cell_down_and_a_fresh_list_brings_it_back() {
    // What comes after the panic hangs until its time-out: so long the cell can be looked at.
    let mount = mount(&["zone1:watch:1:panic", "zone1:follow:2:hang"]);
    let records = records_of(&mount, "zone1");
    let [record, other, ..] = records.as_slice() else { panic!("zone1 has few records: {records:?}") };
    let content = mount.sh(&format!("xxd -p {record}"));
    assert_eq!((state(&mount, "zone1").as_str(), tasks(&mount).len()), ("live", 0));
    // Any change is a batch of the watch.
    mount.sh(&format!("rm {other}"));
    eventually("the cell is down", || (state(&mount, "zone1") == "down").then_some(()));
    assert_eq!(tasks(&mount), ["mirror of zone1"]);
    let error = mount.status()["cells"]["zone1"]["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("a task of topofs panicked: Watch: a panic, as the script wants it (mirror of zone1"),
        "{error}"
    );
    // Not even the kernel shows anything of it, although it was read a moment ago.
    eventually("nothing is shown of it", || {
        let read = mount.bash(&format!("timeout 25 cat {record}"));
        String::from_utf8_lossy(&read.stderr).contains("Connection timed out").then_some(())
    });
    let refused = mount.errors();
    let refused = refused.iter().find(|error| error["reason"].as_str().unwrap().contains("a task of topofs panicked"));
    assert_eq!(refused.expect("the reason stands among the errors")["errno"], "ETIMEDOUT");
    // Everything else goes on.
    assert_eq!(state(&mount, "global"), "live");
    mount.sh(&format!("timeout 25 cat {OTHER} && timeout 25 ls zone2"));
    eventually("it comes back", || (state(&mount, "zone1") == "live").then_some(()));
    assert_eq!(mount.sh(&format!("xxd -p {record}")), content);
    assert!(!mount.path(other).exists());
    assert_eq!(tasks(&mount).len(), 1, "what has happened is not forgotten");
    let log = mount.stop();
    let line = log.lines().find(|line| line.contains("a task has panicked")).expect("the log tells of it");
    assert!(line.contains("src/backend/faulty.rs:") && line.contains("mirror of zone1"), "{line}");
    assert!(!log.contains("thread '"), "nothing but the log writes to standard error: {log}");
}

#[test]
fn a_panic_in_the_first_list_is_an_answer() {
    let mount = mount(&["zone2:follow:1:panic", "zone2:follow:2:hang"]);
    let listed = mount.bash("timeout 25 ls zone2");
    let error = String::from_utf8_lossy(&listed.stderr);
    assert!(!listed.status.success() && error.contains("Connection timed out"), "{error}");
    assert_eq!((state(&mount, "zone2").as_str(), tasks(&mount)), ("down", vec!["mirror of zone2".to_owned()]));
    eventually("it comes back", || mount.bash("ls zone2/tablets").status.success().then_some(()));
}

#[test]
fn a_panic_in_a_save_is_told_to_the_saver() {
    let mount = mount(&["global:apply:1:panic"]);
    let save = |word: &str| {
        let script = format!("timeout 25 dd of={OTHER} conv=fsync status=none <<< 'durability_policy: \"{word}\"'");
        mount.bash(&script)
    };
    let saved = save("none");
    let error = String::from_utf8_lossy(&saved.stderr);
    assert!(!saved.status.success() && error.contains("Input/output error"), "{error}");
    let refused = mount.errors();
    let reason = refused.last().unwrap()["reason"].as_str().unwrap();
    assert!(
        reason.contains("a task of topofs panicked") && reason.contains("(it may have been carried out)"),
        "{reason}"
    );
    assert_eq!(tasks(&mount), ["apply in cell global"]);
    // Nobody else is concerned, and nothing hangs that waits for this save.
    assert_eq!(state(&mount, "global"), "live");
    let saved = save("semi_sync");
    assert!(saved.status.success(), "{saved:?}");
    assert!(mount.read(OTHER).contains("semi_sync"));
}

#[test]
fn a_panic_in_what_an_open_asks_is_told_to_the_opener() {
    let mount = mount(&["global:get:1:panic"]);
    let opened = mount.bash(&format!("timeout 25 bash -c 'exec 3<>{OTHER}'"));
    let error = String::from_utf8_lossy(&opened.stderr);
    assert!(!opened.status.success() && error.contains("Input/output error"), "{error}");
    assert_eq!(tasks(&mount), ["get in cell global"]);
    mount.sh(&format!("timeout 25 bash -c 'exec 3<>{OTHER}'"));
}

#[test]
fn a_lock_whose_watch_panics_is_lost() {
    let mount = mount(&["global:keep:1:panic"]);
    let script = "exec 3<>global/keyspaces/commerce/.lock && flock 3 && \
                  until grep -q lock-lost .topofs/events; do sleep 0.1; done; \
                  echo mine >&3";
    let held = mount.bash(&format!("timeout 25 bash -c '{script}'"));
    let error = String::from_utf8_lossy(&held.stderr);
    assert!(!held.status.success() && error.contains("Input/output error"), "{error}");
    assert_eq!(tasks(&mount), ["the watch over a lock"]);
    // Nothing is left of it: the next one gets it.
    mount.sh("timeout 25 flock global/keyspaces/commerce/.lock true");
}

#[test]
fn a_panic_on_the_way_to_a_lock_is_told_to_the_locker() {
    let mount = mount(&["global:enter:1:panic"]);
    // By its descriptor: given a name, flock(1) tries a second time.
    let lock = "timeout 25 bash -c 'exec 3<>global/keyspaces/commerce/.lock && flock 3'";
    let locked = mount.bash(lock);
    let error = String::from_utf8_lossy(&locked.stderr);
    assert!(!locked.status.success() && error.contains("Input/output error"), "{error}");
    assert_eq!(tasks(&mount), ["standing in line"]);
    mount.sh(lock);
}
