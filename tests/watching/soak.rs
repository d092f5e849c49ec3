//! Everything at once for a while: nothing may hang, and what is shown in the end is what is stored.
//! `TOPOFS_TEST_SOAK_SECONDS=600` makes it long.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::mount::Mount;
use crate::common::world::Service;
use crate::common::{eventually, text};

fn length() -> Duration {
    let seconds = std::env::var("TOPOFS_TEST_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// A loop of a shell until a file appears; no round may take longer than two thirds of a minute, however busy the
/// machine is.
fn keep(mount: &Mount, dir: &std::path::Path, round: &str) -> Child {
    let script = format!(
        "while [ -d {0} -a ! -e {0}/stop ]; do \
         timeout -s KILL 40 bash -c \"$1\" > /dev/null 2>&1; \
         [ $? = 137 ] && exit 9; done; exit 0",
        dir.display()
    );
    Command::new("bash")
        .args(["-c", &script, "soak", round])
        .current_dir(mount.root())
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn nothing_hangs() {
    let service = Service::etcd2();
    let (here, there) = (service.mount(&[]), service.mount(&[]));
    let stop = here.outside().join("stop");
    let rounds = [
        "ls -lR .",
        "cat global/keyspaces/*/*.txt zone1/tablets/*/Tablet.json",
        "grep -r hash .",
        "timeout 2 inotifywait -m -r global",
        "for i in 1 2 3 4 5; do echo $i > global/metadata/own; rm global/metadata/own; done",
        "sed -i s/semi_sync/none/ global/keyspaces/archive/Keyspace.txt; \
         sed -i s/none/semi_sync/ global/keyspaces/archive/Keyspace.txt",
        "mkdir -p global/keyspaces/extra; echo '{}' > global/keyspaces/extra/Keyspace.json; \
         rm -r global/keyspaces/extra",
        "flock -w 5 global/keyspaces/commerce/.lock sed -i s/a/a/ global/keyspaces/commerce/VSchema.txt",
        "echo 2 > /proc/sys/vm/drop_caches; sleep 0.3",
    ];
    let mut loops: Vec<Child> = Vec::new();
    for mount in [&here, &there] {
        loops.extend(rounds.iter().map(|round| keep(mount, here.outside(), round)));
    }
    // Mounts that come and go in the middle of it all.
    let begin = Instant::now();
    while begin.elapsed() < length() {
        let passing = service.mount(&[]);
        passing.sh("ls -R > /dev/null 2>&1 || true; timeout 1 inotifywait -m -r global > /dev/null 2>&1 || true");
        drop(passing.stop());
    }
    std::fs::write(&stop, "").unwrap();
    for child in &mut loops {
        let status = eventually("a loop ends", || child.try_wait().unwrap());
        assert!(status.success(), "a round has hung: {status}");
    }
    // Both show what is stored.
    for key in ["global/keyspaces/archive/Keyspace", "global/keyspaces/commerce/VSchema"] {
        let stored = service.get(key);
        for mount in [&here, &there] {
            eventually("the same", || (std::fs::read(mount.path(key)).ok() == stored).then_some(()));
        }
    }
    let counts = |mount: &Mount| mount.status()["handles"].as_u64().unwrap();
    eventually("everything is closed", || (counts(&here) == 0 && counts(&there) == 0).then_some(()));
    assert!(text(&here.bash("cat .topofs/status")).contains("\"missed\": 0"), "the watch has delivered everything");
}
