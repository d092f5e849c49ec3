//! What an edit asks for: of the kernel's requests and of the service, no more than it needs.

use std::collections::BTreeMap;

use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::world::Service;

/// Calls of the services so far, by what they ask for.
fn calls(mount: &Mount) -> BTreeMap<String, u64> {
    let metrics = mount.control("metrics");
    let counts = metrics.lines().filter_map(|line| {
        let (labels, count) = line.strip_prefix("topofs_backend_request_duration_seconds_count{")?.rsplit_once(' ')?;
        let operation = labels.split("operation=\"").nth(1)?.split('"').next()?;
        Some((operation.to_owned(), count.parse().ok()?))
    });
    let mut calls = BTreeMap::new();
    counts.for_each(|(operation, count): (String, u64)| *calls.entry(operation).or_default() += count);
    calls
}

fn requests(mount: &Mount) -> BTreeMap<String, u64> {
    serde_json::from_value(mount.status()["requests"].clone()).unwrap()
}

fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = after.iter().map(|(name, count)| (name.clone(), count - before.get(name).unwrap_or(&0)));
    grown.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn an_edit_is_a_read_and_a_compare_and_swap_and_asks_for_nothing_twice() {
    const EDITS: u64 = 20;
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let edit = |number: u64| std::fs::write(mount.path("global/metadata/owner"), format!("edit {number}")).unwrap();
    // The first one makes the kernel ask for what it keeps from then on.
    edit(0);
    let before = (calls(&mount), requests(&mount));
    (1..=EDITS).for_each(edit);
    // The kernel does not wait for the last release.
    let after = eventually("all files are closed", || {
        let asked = since(&before.1, &requests(&mount));
        (asked.get("release") == Some(&EDITS)).then_some(asked)
    });
    let mut called = since(&before.0, &calls(&mount));
    // A sign of life of the watch, every two seconds.
    called.retain(|operation, _| operation == "get" || operation == "apply");
    assert_eq!(called, BTreeMap::from([("get".to_owned(), EDITS), ("apply".to_owned(), EDITS)]));
    for request in ["open", "write", "flush", "release"] {
        assert_eq!(after.get(request), Some(&EDITS), "{after:?}");
    }
    // Each save changes the attributes, and before it writes the kernel asks whether the file gives privileges. Once a
    // second the root is asked for.
    let count = |op: &str| after.get(op).copied().unwrap_or(0);
    assert!(count("getxattr") <= EDITS && count("getattr") + count("lookup") <= EDITS + 10, "{after:?}");
    let known = ["open", "write", "flush", "release", "getattr", "getxattr", "lookup", "forget"];
    assert!(after.keys().all(|request| known.contains(&request.as_str())), "{after:?}");
}
