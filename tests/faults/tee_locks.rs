//! Locks of a mount over two services: both are held, in one order, and either one's holder excludes us.

use std::process::{Child, Command, Stdio};

use serde_json::Value;
use topofs::backend::{Node, Role, SharedPlace};
use topofs::name::TopoPath;

use super::tee::{Pair, wait_for_drift};
use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::world::{Service, runtime};

const DIR: &str = "global/keyspaces/commerce";
const LOCK: &str = "global/keyspaces/commerce/.lock";
const REVERSE: &[&str] = &["--tee-reverse-lock-order"];

/// A program that waits for a lock, and then holds it until it ends.
struct Waiter {
    child: Child,
    held: std::path::PathBuf,
}

impl Waiter {
    fn new(mount: &Mount) -> Self {
        let held = mount.outside().join("held");
        let _ = std::fs::remove_file(&held);
        let mut command = Command::new("flock");
        let script = format!("touch {}; cat > /dev/null", held.display());
        command.args([LOCK, "-c", &script]).current_dir(mount.root()).stdin(Stdio::piped());
        Self { child: command.spawn().unwrap(), held }
    }

    fn has_it(&self) -> bool {
        self.held.exists()
    }

    fn gets_it(&self) {
        eventually("the lock is held", || self.has_it().then_some(()));
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The lock's nodes at a service, the holder first.
fn line(service: &Service) -> Vec<Node> {
    let listing = runtime().block_on(service.cell().list(&TopoPath::parse(DIR).unwrap())).unwrap();
    let mut nodes: Vec<Node> = listing.nodes.into_iter().filter(|node| matches!(node.role, Role::Lock(_))).collect();
    nodes.sort_by_key(|node| node.version.written);
    nodes
}

fn wait_for_line(service: &Service, length: usize) -> Vec<Node> {
    eventually("so many stand in line", || Some(line(service)).filter(|line| line.len() == length))
}

/// A tool that knows one service only, such as Vitess's.
fn holder(service: &Service) -> SharedPlace {
    runtime().block_on(async {
        let cell = service.cell();
        let place = cell.enter(&TopoPath::parse(DIR).unwrap(), &"{\"Action\": \"Reparent\"}".into()).await.unwrap();
        assert!(place.try_hold().await.unwrap().is_some());
        place
    })
}

fn leave(place: &SharedPlace) {
    runtime().block_on(place.leave()).unwrap();
}

fn report(mount: &Mount) -> Vec<Value> {
    let lines = mount.read(".topofs/locks");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["path"] == LOCK).collect()
}

fn reason(mount: &Mount) -> String {
    mount.errors().last().unwrap()["reason"].as_str().unwrap().to_owned()
}

#[test]
fn a_lock_is_held_at_both_and_shown_once() {
    let pair = Pair::new();
    let mount = pair.mount(&[]);
    let waiter = Waiter::new(&mount);
    waiter.gets_it();
    let [one, other] = [&pair.primary, &pair.secondary].map(|service| wait_for_line(service, 1));
    assert_eq!(one[0].value, other[0].value, "both services say the same of it");
    assert_eq!(report(&mount).len(), 1);
    assert_eq!(mount.read(LOCK).trim_end().as_bytes(), &one[0].value);
    // Saves below it go to both, guarded at both.
    mount.sh("printf 'keyspace_type: SNAPSHOT\n' > global/keyspaces/commerce/Keyspace.txt");
    wait_for_drift(&mount, "global", 0);
    let key = format!("{DIR}/Keyspace");
    assert_eq!(pair.primary.get(&key), pair.secondary.get(&key));
    waiter.end();
    wait_for_line(&pair.primary, 0);
    wait_for_line(&pair.secondary, 0);
}

#[test]
fn locks_are_taken_in_one_order_or_in_the_other() {
    let pair = Pair::new();
    for flags in [&[], REVERSE] {
        let mount = pair.mount(flags);
        let (first, second) = match flags.is_empty() {
            true => (&pair.primary, &pair.secondary),
            false => (&pair.secondary, &pair.primary),
        };
        // Somebody has the second: the first is held, and the second waited for.
        let other = holder(second);
        let waiter = Waiter::new(&mount);
        wait_for_line(first, 1);
        wait_for_line(second, 2);
        assert!(!waiter.has_it(), "{flags:?}");
        assert!(!mount.bash(&format!("flock -n {LOCK} true")).status.success());
        leave(&other);
        waiter.gets_it();
        waiter.end();
        wait_for_line(first, 0);
        wait_for_line(second, 0);
        // Somebody has the first: nobody stands in the second line yet.
        let other = holder(first);
        let waiter = Waiter::new(&mount);
        wait_for_line(first, 2);
        assert!(line(second).is_empty() && !waiter.has_it(), "{flags:?}");
        leave(&other);
        waiter.gets_it();
        wait_for_line(second, 1);
        waiter.end();
        wait_for_line(first, 0);
        wait_for_line(second, 0);
    }
}

#[test]
fn mounts_with_the_services_the_other_way_round_exclude_each_other() {
    let pair = Pair::new();
    let (one, other) =
        (pair.primary.place(&pair.to_primary.endpoint()), pair.secondary.place(&pair.to_secondary.endpoint()));
    let mounts = [super::tee::mount(&one, &other, &[]), super::tee::mount(&other, &one, REVERSE)];
    let count = mounts[0].outside().join("count");
    std::fs::write(&count, "0").unwrap();
    std::thread::scope(|scope| {
        for mount in &mounts {
            let count = count.display();
            let script = format!(
                "for i in $(seq 5); do flock {LOCK} -c 'n=$(cat {count}); sleep 0.02; echo $((n + 1)) > {count}'; done"
            );
            scope.spawn(move || mount.sh(&script));
        }
    });
    assert_eq!(std::fs::read_to_string(&count).unwrap().trim(), "10", "nobody worked at the same time");
}

#[test]
fn a_holder_at_the_secondary_excludes_saves_and_removals() {
    let pair = Pair::new();
    let mount = pair.mount(&[]);
    let other = holder(&pair.secondary);
    eventually("the mount has heard of it", || {
        let refused = mount.bash("printf 'keyspace_type: SNAPSHOT\n' > global/keyspaces/commerce/Keyspace.txt");
        (!refused.status.success()).then_some(())
    });
    let said = reason(&mount);
    assert!(said.contains("at the secondary") && said.contains("Reparent"), "{said}");
    assert!(!mount.bash("rm global/keyspaces/commerce/shards/0/Shard").status.success());
    assert!(reason(&mount).contains("at the secondary"), "{}", reason(&mount));
    leave(&other);
    mount.sh("printf 'keyspace_type: SNAPSHOT\n' > global/keyspaces/commerce/Keyspace.txt");
    wait_for_drift(&mount, "global", 0);
}

#[test]
fn a_lock_that_is_lost_at_one_service_is_lost() {
    for at_primary in [true, false] {
        let pair = Pair::new();
        let mount = pair.mount(&[]);
        let waiter = Waiter::new(&mount);
        waiter.gets_it();
        let (lost, kept) = if at_primary { (&pair.primary, &pair.secondary) } else { (&pair.secondary, &pair.primary) };
        let node = wait_for_line(lost, 1).remove(0);
        // The mount has seen its lock before.
        eventually("it is shown", || (report(&mount).len() == 1).then_some(()));
        wait_for_drift(&mount, "global", 0);
        runtime().block_on(lost.cell().break_lock(&node)).unwrap();
        wait_for_line(kept, 0);
        eventually("it is reported", || mount.read(".topofs/events").contains("lock-lost").then_some(()));
        assert!(mount.read(".topofs/locks").contains("\"lost\""), "{}", mount.read(".topofs/locks"));
    }
}

#[test]
fn without_the_secondary_no_lock_is_taken_but_saves_go_on() {
    let pair = Pair::new();
    let mount = pair.mount(&["--remote-operation-timeout=2s"]);
    wait_for_drift(&mount, "global", 0);
    pair.to_secondary.cut(true);
    let refused = mount.bash(&format!("timeout 25 flock {LOCK} true"));
    assert!(![Some(0), Some(124)].contains(&refused.status.code()), "{refused:?}");
    let said = reason(&mount);
    assert!(said.contains("cannot be taken at the secondary (zk2:"), "{said}");
    wait_for_line(&pair.primary, 0);
    // A save needs the lock for itself only.
    mount.sh("printf 'keyspace_type: SNAPSHOT\n' > global/keyspaces/commerce/Keyspace.txt");
    wait_for_drift(&mount, "global", 1);
    pair.to_secondary.cut(false);
    eventually("locks are taken again", || {
        mount.bash(&format!("timeout 25 flock {LOCK} true")).status.success().then_some(())
    });
}

#[test]
fn unlock_takes_a_lock_away_at_both() {
    let pair = Pair::new();
    let (mount, holding) = (pair.mount(&[]), pair.mount(&[]));
    let waiter = Waiter::new(&holding);
    waiter.gets_it();
    eventually("the other mount sees it", || (report(&mount).len() == 1).then_some(()));
    // Its holder can do nothing any more.
    crate::common::signal(holding.pid(), nix::sys::signal::Signal::SIGSTOP);
    let dir = mount.path(DIR).display().to_string();
    mount.sh(&format!("{} unlock --force --yes {dir}", crate::common::mount::TOPOFS));
    wait_for_line(&pair.primary, 0);
    wait_for_line(&pair.secondary, 0);
    crate::common::signal(holding.pid(), nix::sys::signal::Signal::SIGCONT);
}
