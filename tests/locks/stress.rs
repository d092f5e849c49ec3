//! Mutual exclusion, judged by files that know nothing of locks.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::mount::Mount;
use crate::common::{eventually, signal};
use crate::on_each_service;
use crate::{LOCK, SHORT, is_free_for_each, report};

/// Enters critical sections: counts in a file without atomics, and makes a directory that must not be there.
const WORKER: &str = "import fcntl, os, sys
lock, place, sections, way = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
for i in range(sections):
    f = open(lock, 'w')
    (fcntl.flock if way == 'flock' else fcntl.lockf)(f, fcntl.LOCK_EX)
    os.mkdir(place + '/inside')
    count = int(open(place + '/counter').read())
    with open(place + '/counter', 'w') as counter: counter.write(str(count + 1))
    os.rmdir(place + '/inside')
    if i % 2: fcntl.flock(f, fcntl.LOCK_UN) if way == 'flock' else fcntl.lockf(f, fcntl.LOCK_UN)
    f.close()
    print('.', end='', flush=True)";

fn worker(mount: &Mount, place: &std::path::Path, sections: usize, way: &str) -> Child {
    let lock = mount.path(LOCK);
    let mut command = Command::new("timeout");
    command.args(["100", "python3", "-c", WORKER, lock.to_str().unwrap(), place.to_str().unwrap()]);
    command.args([&sections.to_string(), way]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn workers(mounts: &[&Mount], place: &std::path::Path, sections: usize) -> Vec<Child> {
    std::fs::write(place.join("counter"), "0").unwrap();
    let mounts = mounts.iter().cycle().take(8).enumerate();
    mounts.map(|(i, mount)| worker(mount, place, sections, if i % 4 < 2 { "flock" } else { "lockf" })).collect()
}

fn counter(place: &std::path::Path) -> usize {
    std::fs::read_to_string(place.join("counter")).unwrap().parse().unwrap_or(0)
}

fn all_succeed(workers: Vec<Child>, mounts: &[&Mount]) {
    let outputs: Vec<_> = workers.into_iter().map(|worker| worker.wait_with_output().unwrap()).collect();
    // Of all of them: one that died inside looks to the others like one that is inside.
    let said: Vec<String> =
        outputs.iter().map(|output| format!("{}: {}", output.status, crate::common::text(output))).collect();
    let logs: Vec<String> = mounts.iter().map(|mount| mount.log()).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{}\n{logs:?}", said.join("\n"));
}

const SECTIONS: usize = 63;

on_each_service! {
    fn five_hundred_sections(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let place = tempfile::tempdir().unwrap();
        all_succeed(workers(&[&one, &two], place.path(), SECTIONS), &[&one, &two]);
        assert_eq!(counter(place.path()), 8 * SECTIONS);
        assert!(is_free_for_each(&[&one, &two], LOCK));
    }

    fn a_daemon_dies_and_the_rest_goes_on(service) {
        let (one, two) = (service.mount(SHORT), service.mount(SHORT));
        let place = tempfile::tempdir().unwrap();
        let sections = SECTIONS / 3;
        let mut workers = workers(&[&one, &two], place.path(), sections);
        eventually("it is going", || (counter(place.path()) > 20).then_some(()));
        signal(one.pid(), Signal::SIGKILL);
        // Those of the dead mount fail, wherever they were.
        let (mut dead, mut alive) = (Vec::new(), Vec::new());
        for (index, worker) in workers.drain(..).enumerate() {
            if index % 2 == 0 { dead.push(worker) } else { alive.push(worker) }
        }
        let mut entered = 0;
        for worker in dead {
            let output = worker.wait_with_output().unwrap();
            entered += output.stdout.len();
        }
        all_succeed(alive, &[&two]);
        let counted = counter(place.path());
        assert!(counted >= entered + 4 * sections && counted <= entered + 4 * sections + 1, "{counted}, {entered}");
        eventually("all is given back", || report(&two, LOCK).is_empty().then_some(()));
    }
}

#[test]
fn five_hundred_sections_of_the_embedded_service() {
    let mount = Mount::new(&["demo"]);
    let place = tempfile::tempdir().unwrap();
    all_succeed(workers(&[&mount], place.path(), SECTIONS), &[&mount]);
    assert_eq!(counter(place.path()), 8 * SECTIONS);
}

/// `stress-ng` knows every way to lock a file.
#[test]
fn stress_ng() {
    let mount = crate::etcd_service().mount(&[]);
    for kind in ["flock", "lockf", "lockofd"] {
        // It locks files that it makes itself: below the mount, these are files of the mount.
        let script = format!(
            "mkdir -p global/stress; stress-ng --{kind} 2 --timeout 7 \
             --temp-path {}/global/stress --metrics-brief 2>&1",
            mount.root().display()
        );
        let output = mount.sh(&script);
        assert!(output.contains("successful run completed"), "{output}");
    }
    assert_eq!(mount.status()["handles"], 0);
}
