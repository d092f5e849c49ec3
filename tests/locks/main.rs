//! Locks through real mounts: flock(1), fcntl(2), signals, other tools' locks, and what happens when somebody dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use common::eventually;
use common::mount::Mount;
use common::world::Service;

/// Leases and sessions that end soon.
const SHORT: &[&str] = &[
    "--topo-etcd-lease-ttl=3s",
    "--topo-zk-base-timeout=6s",
    "--topo-consul-lock-session-ttl=10s",
    "--topo-consul-lock-delay=1s",
];
const DIR: &str = "global/keyspaces/commerce";
const LOCK: &str = "global/keyspaces/commerce/.lock";

fn etcd_service() -> Service {
    Service::etcd2()
}

fn zk_service() -> Service {
    Service::zk2()
}

fn consul_service() -> Service {
    Service::consul()
}

/// Somebody who holds a lock until told to stop.
struct Holder(Child);

impl Holder {
    /// Once the lock is held.
    fn new(mount: &Mount, lock: &str) -> Self {
        let held = mount.outside().join(format!("held-{}", lock.replace('/', "-")));
        let _ = std::fs::remove_file(&held);
        let holder = Self::waiting(mount, lock, &format!("touch {}; cat > /dev/null", held.display()));
        eventually("the lock is held", || held.exists().then_some(()));
        holder
    }

    /// Of a lock that may take its time; then runs a script that reads the rest of its life from standard input.
    fn waiting(mount: &Mount, lock: &str, script: &str) -> Self {
        let mut command = Command::new("flock");
        command.args([lock, "-c", script]).current_dir(mount.root());
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Lets go.
    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of `.topofs/locks` that are about a lock.
fn report(mount: &Mount, lock: &str) -> Vec<serde_json::Value> {
    let lines = mount.read(".topofs/locks");
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["path"] == lock).collect()
}

/// The lines of `.topofs/events` of a kind.
fn events(mount: &Mount, kind: &str) -> Vec<serde_json::Value> {
    let lines = mount.read(".topofs/events");
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["kind"] == kind).collect()
}

fn is_free(mount: &Mount, lock: &str) -> bool {
    mount.bash(&format!("flock -n {lock} true")).status.success()
}

/// Whether it is free for each of several mounts. Whoever has let go is over before the service has heard of it, and a
/// look takes the lock for a moment, too: one after the other, when all have heard.
fn is_free_for_each(mounts: &[&Mount], lock: &str) -> bool {
    mounts.iter().all(|mount| {
        for each in mounts {
            eventually("all have let go, and that is seen", || report(each, lock).is_empty().then_some(()));
        }
        is_free(mount, lock)
    })
}

/// Runs a Python program with the mount as its directory.
fn python(mount: &Mount, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", "python3", "-"]).args(args).current_dir(mount.root());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What a Python program prints that must succeed.
fn py(mount: &Mount, program: &str, args: &[&str]) -> String {
    let output = python(mount, program, args);
    assert!(output.status.success(), "{}\n{}", common::text(&output), mount.log());
    String::from_utf8(output.stdout).unwrap()
}

mod access;
mod descriptors;
mod fencing;
mod holding;
mod saving;
mod signals;
mod stress;
mod successor;
mod tools;
mod unlocking;
mod within;
