//! Locks that other tools make in Vitess's format, and ours as they see them; breaking them all.

use std::process::{Child, Command, Stdio};

use crate::common::{bound_command, consul, etcd, eventually, spawn_bound, text};
use crate::{DIR, Holder, LOCK, events, is_free, report};

const BY_HAND: &str =
    r#"{"Action": "by hand", "HostName": "h", "UserName": "u", "Time": "2026-01-01T00:00:00Z", "Status": "Running"}"#;

fn order_of(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn etcdctl() {
    let service = crate::etcd_service();
    let mount = service.mount(&[]);
    let order = mount.outside().join("order");
    let lease_of = |answer: String| i64::from_str_radix(answer.split(' ').nth(1).unwrap(), 16).unwrap();
    let lease = lease_of(etcd::shared().ctl(&["lease", "grant", "300"]));
    let line = format!("{}/{DIR}/locks", service.root);
    let put =
        |lease: i64| etcd::shared().ctl(&["put", &format!("--lease={lease:x}"), &format!("{line}/{lease}"), BY_HAND]);
    put(lease);
    // It blocks flock; the order is kept.
    assert!(!is_free(&mount, LOCK));
    assert!(mount.read(LOCK).contains("by hand"));
    let waiter = Holder::waiting(&mount, LOCK, &format!("echo flock >> {}; cat", order.display()));
    eventually("it waits", || (report(&mount, LOCK)[0]["queue"].as_array().unwrap().len() == 1).then_some(()));
    let second = lease_of(etcd::shared().ctl(&["lease", "grant", "300"]));
    put(second);
    let shown = eventually("both wait", || {
        let shown = report(&mount, LOCK).remove(0);
        (shown["queue"].as_array().unwrap().len() == 2).then_some(shown)
    });
    assert_eq!((&shown["holder"]["Action"], shown["pid"].as_u64()), (&"by hand".into(), None));
    assert!(shown["time_left"].as_u64().unwrap() > 200 && shown["age"].as_u64().unwrap() > 1_000_000, "{shown}");
    etcd::shared().ctl(&["lease", "revoke", &format!("{lease:x}")]);
    eventually("flock is next", || (order_of(&order) == "flock\n").then_some(()));
    // flock blocks the other in its turn: its key is not the first.
    let first = etcd::shared().ctl(&["get", "--prefix", &line, "--sort-by=MODIFY", "--limit=1"]);
    assert!(first.contains("flock (pid"), "{first}");
    waiter.end();
    let first = etcd::shared().ctl(&["get", "--prefix", &line, "--sort-by=MODIFY", "--limit=1"]);
    assert!(first.contains("by hand"), "{first}");
    // And is broken.
    let output = mount.bash(&format!("{} unlock --force --yes {DIR}", crate::common::mount::TOPOFS));
    assert!(output.status.success() && text(&output).contains("by hand"), "{}", text(&output));
    assert!(is_free(&mount, LOCK));
    assert_eq!(events(&mount, "lock-broken").len(), 1);
    // Without the flag nothing happens; a lock that is free is said to be.
    let holder = Holder::new(&mount, LOCK);
    let output = mount.bash(&format!("{} unlock {LOCK}", crate::common::mount::TOPOFS));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(!is_free(&mount, LOCK));
    holder.end();
    let output = mount.bash(&format!("{} unlock {LOCK}", crate::common::mount::TOPOFS));
    assert!(output.status.success() && text(&output).contains("is not locked"), "{}", text(&output));
    let output = mount.bash(&format!("{} unlock -fy global/internal/named_locks/any", crate::common::mount::TOPOFS));
    assert!(output.status.success() && text(&output).contains("is not locked"), "{}", text(&output));
    for wrong in ["global/keyspaces/none", "global/keyspaces/commerce/Keyspace.json", ".topofs", "/tmp"] {
        let output = mount.bash(&format!("{} unlock -fy {wrong}", crate::common::mount::TOPOFS));
        assert_eq!(output.status.code(), Some(1), "{wrong}: {}", text(&output));
    }
}

/// A client of ZooKeeper's own, which reads commands as long as it lives.
struct ZkCli(Child);

impl ZkCli {
    fn new(server: &str) -> Self {
        let mut command = Command::new("/usr/share/zookeeper/bin/zkCli.sh");
        command.args(["-server", server]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn say(&mut self, line: &str) {
        use std::io::Write;
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for ZkCli {
    fn drop(&mut self) {
        // It ends its session.
        self.say("quit");
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn zk_cli() {
    let service = crate::zk_service();
    let mount = service.mount(&[]);
    let line = format!("{}/{DIR}/locks", service.root);
    let order = mount.outside().join("order");
    let holder = Holder::new(&mount, LOCK);
    let mut client = ZkCli::new(&service.server);
    client.say(&format!("create -e -s {line}/ by-hand"));
    eventually("it waits", || (report(&mount, LOCK)[0]["queue"].as_array().unwrap().len() == 1).then_some(()));
    let waiter = Holder::waiting(&mount, LOCK, &format!("echo flock >> {}; cat", order.display()));
    eventually("both wait", || (report(&mount, LOCK)[0]["queue"].as_array().unwrap().len() == 2).then_some(()));
    holder.end();
    // The other's turn, which flock waits for.
    eventually("the other has it", || (mount.read(LOCK) == "by-hand\n").then_some(()));
    assert!(!is_free(&mount, LOCK));
    assert_eq!(order_of(&order), "");
    drop(client);
    eventually("flock is next", || (order_of(&order) == "flock\n").then_some(()));
    waiter.end();
    eventually("it is given back", || report(&mount, LOCK).is_empty().then_some(()));
    // An empty directory of locks, which Vitess takes for a lock as soon as it has had children.
    let mut client = ZkCli::new(&service.server);
    client.say(&format!("create {line}"));
    client.say(&format!("create -e -s {line}/ by-hand"));
    eventually("it is locked", || (mount.read(LOCK) == "by-hand\n").then_some(()));
    let output = mount.bash(&format!("{} unlock --force --yes {LOCK}", crate::common::mount::TOPOFS));
    assert!(output.status.success(), "{}", text(&output));
    assert!(is_free(&mount, LOCK));
    eventually("nothing is left", || service.get(&format!("{DIR}/locks")).is_none().then_some(()));
}

#[test]
fn consul_lock() {
    let service = crate::consul_service();
    let mount = service.mount(&[]);
    let key = format!("{}/{DIR}/Lock", service.root.trim_start_matches('/'));
    let holder = Holder::new(&mount, LOCK);
    let inside = mount.outside().join("inside");
    let session = |name: &str| {
        let answer = consul::shared().curl(
            &["-X", "PUT", "-d", &format!(r#"{{"Name": "{name}", "TTL": "60s", "LockDelay": "0s"}}"#)],
            "session/create",
        );
        serde_json::from_str::<serde_json::Value>(&answer.unwrap()).unwrap()["ID"].as_str().unwrap().to_owned()
    };
    let acquire = |id: &str| {
        let path = format!("kv/{key}?acquire={id}&flags=3304740253564472344");
        consul::shared().curl(&["-X", "PUT", "-d", BY_HAND], &path).unwrap()
    };
    let id = session("Consul API Lock");
    assert_eq!(acquire(&id), "false");
    holder.end();
    assert_eq!(acquire(&id), "true");
    assert!(!is_free(&mount, LOCK));
    eventually("who it is", || mount.read(LOCK).contains("by hand").then_some(()));
    let waiter = Holder::waiting(&mount, LOCK, &format!("touch {}; cat", inside.display()));
    consul::shared().curl(&["-X", "PUT"], &format!("kv/{key}?release={id}&flags=3304740253564472344")).unwrap();
    eventually("flock has it", || inside.exists().then_some(()));
    assert_eq!(acquire(&id), "false");
    waiter.end();
    // A key that is left over, by nobody: free for flock, and swept away.
    assert_eq!(acquire(&id), "true");
    consul::shared().curl(&["-X", "PUT"], &format!("session/destroy/{id}")).unwrap();
    let shown = eventually("it is shown as nobody's", || {
        let shown = report(&mount, LOCK);
        shown.first().filter(|line| line["holder"].is_null()).cloned()
    });
    assert!(shown["key"].as_str().unwrap().ends_with("/Lock"));
    assert_eq!(mount.read(LOCK), "");
    let output = mount.bash(&format!("{} unlock --force --yes {LOCK}", crate::common::mount::TOPOFS));
    assert!(output.status.success(), "{}", text(&output));
    assert!(report(&mount, LOCK).is_empty() && is_free(&mount, LOCK));
    // The command `consul lock PREFIX` cannot take part: it always locks PREFIX/.lock, and Vitess's key is PREFIX/Lock.
    let tool = ["target/tools/consul/usr/bin/consul", "consul"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("version").output().is_ok());
    let mut command = bound_command(tool.expect("consul is there"));
    command.args(["lock", &format!("-http-addr={}", service.server), "-n=1", "-child-exit-code"]);
    let marker = mount.outside().join("tool");
    let prefix = format!("{}/{DIR}", service.root.trim_start_matches('/'));
    command
        .args([&prefix, &format!("touch {}; sleep 1000", marker.display())])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut tool = spawn_bound(command);
    eventually("the tool is inside", || marker.exists().then_some(()));
    // Its key is no name that Vitess uses, and does not concern us.
    assert!(is_free(&mount, LOCK));
    crate::common::signal(tool.id(), nix::sys::signal::Signal::SIGTERM);
    let _ = tool.wait();
}
