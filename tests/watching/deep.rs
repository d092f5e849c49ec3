//! Keys that no program could name: they are counted, and cost nothing.

use crate::common::world::Service;
use crate::common::{consul, etcd, eventually};
use crate::watcher::{CLOSED, Watcher};
use topofs::name::{DEPTH_MAX, PATH_MAX};

fn levels(count: usize) -> String {
    vec!["a"; count].join("/")
}

/// What a process has used of memory at most, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Stores and removes keys by `set`, under a mount and before it.
fn is_passed_over(service: &Service, keys: &[String], set: impl Fn(&str, bool)) {
    let skipped =
        |mount: &crate::common::mount::Mount| mount.status()["cells"]["global"]["skipped_keys"].as_u64().unwrap();
    let mount = service.mount(&[]);
    mount.sh("ls -R . > /dev/null");
    let watcher = Watcher::new(&mount, "global/metadata");
    let (before, mut marks) = (memory(mount.pid()), 0);
    let mut is_alive = || {
        marks += 1;
        service.put("global/metadata/owner", marks.to_string().as_bytes());
        eventually("it goes on", || {
            (watcher.seen().iter().filter(|(event, _)| event == CLOSED).count() >= marks).then_some(())
        });
    };
    for key in keys {
        set(key, true);
        eventually("it is counted", || (skipped(&mount) > 0).then_some(()));
        is_alive();
        let other = service.mount(&[]);
        assert!(skipped(&other) > 0, "by who comes later, too");
        assert!(!other.path("global/d").exists());
        set(key, false);
        is_alive();
    }
    let grown = memory(mount.pid()) - before;
    assert!(grown < 200 << 10, "{grown} KiB more");
}

#[test]
fn a_deep_key_of_etcd() {
    let service = Service::etcd2();
    let keys = [levels(DEPTH_MAX + 1), levels(60_000), vec!["n".repeat(200); PATH_MAX / 200 + 1].join("/")];
    is_passed_over(&service, &keys, |key, is_there| {
        let key = format!("{}/global/d/{key}", service.root);
        match is_there {
            true => etcd::shared().put(&key, b"v"),
            false => drop(etcd::shared().ctl(&["del", &key])),
        }
    });
}

#[test]
fn a_deep_key_of_consul() {
    let service = Service::consul();
    is_passed_over(&service, &[levels(DEPTH_MAX + 1)], |key, is_there| {
        let path = format!("kv/{}/global/d/{key}", service.root.trim_start_matches('/'));
        let how: &[&str] = if is_there { &["-f", "-X", "PUT", "-d", "v"] } else { &["-f", "-X", "DELETE"] };
        consul::shared().curl(how, &path).unwrap();
    });
}

#[test]
fn a_deep_key_of_zookeeper() {
    use zookeeper_client::{Acls, Client, CreateMode};
    let service = Service::zk2();
    is_passed_over(&service, &[levels(1_000)], |key, is_there| {
        let path = format!("{}/global/d/{key}", service.root);
        crate::common::world::runtime().block_on(async {
            let client = Client::connect(&service.server).await.unwrap();
            if is_there {
                let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
                client.mkdir(path.rsplit_once('/').unwrap().0, &options).await.unwrap();
                client.create(&path, b"v", &options).await.unwrap();
            } else {
                client.delete(&path, None).await.unwrap();
            }
        });
    });
}

#[test]
fn nothing_is_made_that_could_not_be_shown() {
    let service = Service::etcd2();
    let mount = service.mount(&["--record", "global/metadata/**"]);
    let below = |count: usize| format!("global/metadata/{}", levels(count - 1));
    mount.sh(&format!("mkdir -p {}; echo x > {}/b", below(DEPTH_MAX - 1), below(DEPTH_MAX - 1)));
    let key = format!("{}/{}/b", service.root, below(DEPTH_MAX - 1));
    assert_eq!(etcd::shared().get(&key).as_deref(), Some(&b"x\n"[..]));
    mount.sh(&format!("mkdir {}", below(DEPTH_MAX)));
    for script in [
        format!("mkdir {}", below(DEPTH_MAX + 1)),
        format!("echo x > {}/file", below(DEPTH_MAX)),
        format!("mv {}/b {}/b", below(DEPTH_MAX - 1), below(DEPTH_MAX)),
        format!("mkdir -p global/x/y; touch global/x/y/.z; mv global/x {}/x", below(DEPTH_MAX - 2)),
    ] {
        let text = crate::common::text(&mount.bash(&script));
        assert!(text.contains("File name too long"), "{script}: {text}");
    }
    assert!(mount.path("global/x/y/.z").exists(), "moved as a whole or not at all");
}
