//! A reader of the mount who lists a directory and does not take the answer: the kernel holds the directory, and the
//! page of its listing, for as long as he likes. He is in nobody's way but of those who make and remove names in that
//! very directory.

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};

use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::world::Service;
use crate::watcher::{CLOSED, Watcher};

/// Holds a directory until told otherwise.
struct Holder {
    child: std::process::Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    orders: ChildStdin,
}

impl Holder {
    fn new(mount: &Mount, dir: &str) -> Self {
        use std::io::BufRead;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/watching/hold.py");
        let mut command = Command::new("python3");
        command.args([script, dir]).current_dir(mount.root()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut holder = Self { orders: child.stdin.take().unwrap(), child, lines };
        assert_eq!(holder.lines.next().unwrap().unwrap(), "held");
        holder
    }

    fn release(mut self) {
        writeln!(self.orders).unwrap();
        assert_eq!(self.lines.next().unwrap().unwrap(), "free");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that must come to its end while somebody holds a directory.
fn quick(mount: &Mount, script: &str) {
    mount.sh(&format!("timeout -s KILL 10 bash -ec {script:?}"));
}

/// The paths in `.topofs/events`.
fn told(mount: &Mount, path: &str) -> usize {
    mount.read(".topofs/events").matches(&format!("\"path\":\"{path}\"")).count()
}

#[test]
fn who_holds_a_cell_is_not_in_the_way_of_what_happens_below() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    mount.sh("ls -R . > /dev/null; ls global > /dev/null");
    let watcher = Watcher::new(&mount, "global/metadata");
    let holder = Holder::new(&mount, "global");
    for round in 0..5 {
        quick(&mount, "echo a > global/metadata/two; rm global/metadata/two; mkdir global/keyspaces/x");
        quick(&mount, "echo {} > global/keyspaces/x/Keyspace.json; rm -r global/keyspaces/x");
        service.put("global/metadata/owner", format!("round {round}").as_bytes());
        eventually("the event", || {
            let seen = watcher.seen().iter().filter(|(event, path)| event == CLOSED && path == "owner").count();
            (seen > round).then_some(())
        });
        assert_eq!(mount.read("global/metadata/owner"), format!("round {round}"));
    }
    holder.release();
    quick(&mount, "ls global; echo a > global/top; rm global/top");
}

#[test]
fn what_is_shown_is_new_also_where_a_directory_is_held() {
    let service = Service::etcd2();
    service.put("global/metadata/owner", b"old");
    let mount = service.mount(&[]);
    mount.sh("ls -R . > /dev/null; ls global/metadata > /dev/null; cat global/metadata/owner > /dev/null");
    let watcher = Watcher::new(&mount, "global");
    let holders = ["global/metadata", "global/keyspaces/archive"].map(|dir| Holder::new(&mount, dir));
    for round in 1..=5 {
        let text = "new\n".repeat(round);
        service.put("global/metadata/owner", text.as_bytes());
        // One more, so that something waits for the directory.
        service.put(&format!("global/metadata/key{round}"), b"x");
        service.put(&format!("global/keyspaces/archive/shards/{round}/Shard"), b"");
        eventually("it is told", || (told(&mount, "metadata/owner") >= round).then_some(()));
        assert_eq!(mount.read("global/metadata/owner"), text);
        assert_eq!(std::fs::metadata(mount.path("global/metadata/owner")).unwrap().len(), text.len() as u64);
        // Elsewhere, events go on.
        service.put("global/keyspaces/commerce/VSchema", &[0x08, u8::try_from(round).unwrap() % 2]);
        let name = "keyspaces/commerce/VSchema";
        eventually("events go on elsewhere", || {
            let seen = watcher.seen().iter().filter(|(event, path)| event == CLOSED && path == name).count();
            (seen >= round).then_some(())
        });
        quick(&mount, "cat global/keyspaces/commerce/*.txt > /dev/null; stat zone1 global .topofs/status > /dev/null");
    }
    assert!(mount.log().contains("somebody holds the directory"), "{}", mount.log());
    holders.into_iter().for_each(Holder::release);
    // What could not be told then is told now.
    for path in ["metadata/owner", "metadata/key5", "keyspaces/archive/shards/5"] {
        eventually("what had to wait is told", || watcher.seen().iter().any(|(_, known)| known == path).then_some(()));
    }
    assert_eq!(mount.sh("ls global/metadata | grep -c key").trim(), "5");
    quick(&mount, "echo x > global/metadata/free; rm global/metadata/free");
}

#[test]
fn a_helper_that_is_killed_is_replaced() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let watcher = Watcher::new(&mount, "global/metadata");
    let helpers = || -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
        children
            .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
            .collect()
    };
    let first = helpers();
    assert_eq!(first.len(), 1);
    crate::common::signal(first[0], nix::sys::signal::Signal::SIGKILL);
    let mut number = 0;
    eventually("events go on", || {
        number += 1;
        service.put("global/metadata/owner", number.to_string().as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(100));
        watcher.seen().iter().any(|(event, path)| event == CLOSED && path == "owner").then_some(())
    });
    assert!(helpers().len() == 1 && helpers() != first);
}
