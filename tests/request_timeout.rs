//! Kernels that give up a mount when a request takes too long: a program of its own, because the limit is that of the
//! machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::mount::Mount;
use common::text;

const LIMIT: &str = "/proc/sys/fs/fuse/max_request_timeout";
const LOCK: &str = "global/keyspaces/commerce/.lock";

/// The limit of the machine, for as long as this lives. Mounts made meanwhile keep it.
struct Limit(String);

impl Limit {
    fn seconds(seconds: u32) -> Self {
        let before = std::fs::read_to_string(LIMIT).expect("kernels from 6.15 on have a limit");
        std::fs::write(LIMIT, seconds.to_string()).unwrap();
        Self(before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        std::fs::write(LIMIT, self.0.trim()).unwrap();
    }
}

#[test]
fn waiting_does_not_lose_the_mount() {
    if !std::path::Path::new(LIMIT).exists() {
        // Older kernels wait for ever; there is nothing that could go wrong.
        eprintln!("this kernel has no {LIMIT}");
        return;
    }
    let mount = {
        let _limit = Limit::seconds(15);
        Mount::new(&["demo"])
    };
    assert_eq!(mount.status()["request_timeout"], 15);
    assert_eq!(mount.sh("jq -r '.\"remote-operation-timeout\"' .topofs/config"), "1s 875ms\n");
    let begin = Instant::now();
    // On the topology's lock and on that of an ordinary file.
    mount.sh("touch global/plain");
    let output = mount.bash(&format!(
        "flock {LOCK} flock global/plain \
         bash -c 'flock global/plain true 2> {0}/plain & flock {LOCK} true; wait; cat {0}/plain >&2'",
        mount.outside().display()
    ));
    let waited = begin.elapsed();
    assert_eq!(text(&output).matches("timed out").count(), 2, "{}", text(&output));
    assert!(waited > Duration::from_secs(8) && waited < Duration::from_secs(15), "{waited:?}");
    let error = mount.errors().pop().unwrap();
    assert!(error["reason"].as_str().unwrap().contains("max_request_timeout"), "{error}");
    // Longer than the kernel would have waited, the mount is still there.
    let end = Instant::now() + Duration::from_secs(25);
    common::eventually("the limit is over", || (Instant::now() > end).then_some(()));
    assert!(mount.path(LOCK).exists());
    mount.sh(&format!("flock -n {LOCK} true"));
}
