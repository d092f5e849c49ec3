//! Taking away what was left behind, wherever it is and whoever left it; and what `topofs unlock` does not believe.

use std::process::Command;

use crate::common::mount::{Mount, TOPOFS};
use crate::common::{consul, etcd, eventually, text};
use crate::{LOCK, events, is_free, report};

const LEFT: &str = "global/keyspaces/gone/.lock";

fn unlock(mount: &Mount, flags: &str, path: &str) -> std::process::Output {
    mount.bash(&format!("{TOPOFS} unlock {flags} {}", mount.path(path).display()))
}

/// Gives orders to ZooKeeper's own client.
fn zk_cli(server: &str, script: &str) {
    let mut client = Command::new("/usr/share/zookeeper/bin/zkCli.sh");
    client.args(["-server", server]).stdin(std::process::Stdio::piped());
    let mut client = client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(client.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
    client.wait().unwrap();
}

/// By the path that `.topofs/locks` shows, and by its directory. `before` locks have been broken already.
fn can_be_broken(mount: &Mount, before: usize, leave: impl Fn()) {
    for path in [LEFT, LEFT.strip_suffix("/.lock").unwrap()] {
        leave();
        let shown = eventually("it is shown", || report(mount, LEFT).pop());
        assert!(!mount.path("global/keyspaces/gone").exists());
        // First it is only shown.
        let output = unlock(mount, "", path);
        assert!(
            !output.status.success() && text(&output).contains(shown["key"].as_str().unwrap()),
            "{}",
            text(&output)
        );
        assert_eq!(report(mount, LEFT).len(), 1);
        let output = unlock(mount, "--force --yes", path);
        assert!(output.status.success() && text(&output).contains("was taken away"), "{}", text(&output));
        eventually("it is gone", || report(mount, LEFT).is_empty().then_some(()));
    }
    for wrong in [LEFT, "global/keyspaces/gone", "global/keyspaces/none/.lock", ".topofs", ".topofs/.lock"] {
        for flags in ["", "--force --yes"] {
            let output = unlock(mount, flags, wrong);
            assert!(
                !output.status.success() && text(&output).contains("is not a directory"),
                "{wrong}: {}",
                text(&output)
            );
        }
    }
    assert_eq!(events(mount, "lock-broken").len(), before + 2);
}

#[test]
fn a_lease_in_a_directory_without_records() {
    let service = crate::etcd_service();
    let mount = service.mount(&[]);
    can_be_broken(&mount, 0, || {
        let granted = etcd::shared().ctl(&["lease", "grant", "300"]);
        let lease = i64::from_str_radix(granted.split(' ').nth(1).unwrap(), 16).unwrap();
        let key = format!("{}/global/keyspaces/gone/locks/{lease}", service.root);
        etcd::shared().ctl(&["put", &format!("--lease={lease:x}"), &key, r#"{"Action": "gone"}"#]);
    });
}

#[test]
fn a_key_of_nobody_in_a_directory_without_records() {
    let service = crate::consul_service();
    let mount = service.mount(&[]);
    let key = format!("kv{}/global/keyspaces/gone/Lock?flags=3304740253564472344", service.root);
    can_be_broken(&mount, 0, || drop(consul::shared().curl(&["-X", "PUT", "-d", "{}"], &key).unwrap()));
}

#[test]
fn an_empty_directory_of_locks_without_records() {
    let service = crate::zk_service();
    let mount = service.mount(&[]);
    let line = format!("{}/global/keyspaces/gone/locks", service.root);
    let parent = line.strip_suffix("/locks").unwrap();
    zk_cli(&service.server, &format!("create {parent}\ncreate {line}\nquit\n"));
    let output = unlock(&mount, "--force --yes", LEFT);
    assert!(output.status.success() && text(&output).contains("was taken away"), "{}", text(&output));
    let output = unlock(&mount, "--force --yes", LEFT);
    assert!(!output.status.success() && text(&output).contains("is not a directory"), "{}", text(&output));
}

#[test]
fn a_directory_that_only_looks_like_a_mount_is_not_believed() {
    let place = tempfile::tempdir().unwrap();
    let (control, victim) = (place.path().join(".topofs"), place.path().join("victim"));
    std::fs::create_dir_all(place.path().join("global/x")).unwrap();
    std::fs::create_dir(&control).unwrap();
    std::fs::write(control.join("locks"), "{\"path\": \"global/x/.lock\", \"key\": \"text of mine\"}\n").unwrap();
    std::fs::write(&victim, "as it was").unwrap();
    std::os::unix::fs::symlink(&victim, control.join("control")).unwrap();
    for path in ["global/x", "global/x/.lock", "global/y"] {
        let output = Command::new(TOPOFS).args(["unlock", "-fy"]).arg(place.path().join(path)).output().unwrap();
        assert!(!output.status.success() && text(&output).contains("is not in a mount of topofs"), "{}", text(&output));
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "as it was");
    // Neither is a directory of that name inside of a mount; what leads to a mount is followed.
    let mount = Mount::new(&["demo"]);
    mount.sh("mkdir global/.topofs; cp .topofs/locks global/.topofs/; touch global/.topofs/control");
    assert!(unlock(&mount, "-fy", "global/keyspaces/commerce").status.success());
    assert_eq!(mount.read("global/.topofs/control"), "");
    let link = place.path().join("link");
    std::os::unix::fs::symlink(mount.path(LOCK), &link).unwrap();
    mount.sh(&format!("exec 8> {LOCK}; flock 8; {TOPOFS} unlock -fy {}", link.display()));
    eventually("it is free", || is_free(&mount, LOCK).then_some(()));
    assert_eq!(events(&mount, "lock-broken").len(), 1);
}

/// A copy of a topology that was locked: shown, waited for, and broken like any other.
fn holds_everybody_up_until_it_is_broken(mount: &Mount, leave: impl Fn()) {
    let there = LOCK.strip_suffix("/.lock").unwrap();
    for path in [LOCK, there] {
        leave();
        let shown = eventually("it is shown", || report(mount, LOCK).pop());
        assert_eq!((&shown["holder"]["Action"], &shown["abandoned"]), (&"copied".into(), &true.into()), "{shown}");
        assert!(shown["time_left"].is_null() && shown["pid"].is_null() && shown["queue"] == serde_json::json!([]));
        assert!(mount.read(LOCK).contains("copied") && !is_free(mount, LOCK));
        let output = mount.bash(&format!("echo 'durability_policy: \"none\"' | tee {there}/Keyspace.txt"));
        assert!(text(&output).contains("busy"), "{}", text(&output));
        let error = mount.errors().pop().unwrap();
        assert!(error["reason"].as_str().unwrap().contains("copied"), "{error}");
        let waiter = crate::Holder::waiting(mount, LOCK, "cat > /dev/null");
        eventually("it is waited for", || {
            (report(mount, LOCK).pop()?["queue"].as_array().unwrap().len() == 1).then_some(())
        });
        let output = unlock(mount, "--force --yes", path);
        assert!(output.status.success() && text(&output).contains("was taken away"), "{}", text(&output));
        eventually("the waiter is next", || (report(mount, LOCK).pop()?["pid"] == waiter.pid()).then_some(()));
        waiter.end();
        assert!(is_free(mount, LOCK));
    }
    eventually("nothing is left", || report(mount, LOCK).is_empty().then_some(()));
}

const COPIED: &str =
    r#"{"Action": "copied", "HostName": "h", "UserName": "u", "Time": "2026-01-01T00:00:00Z", "Status": "Running"}"#;

#[test]
fn a_copied_lock_of_etcds_that_no_lease_keeps() {
    let service = crate::etcd_service();
    let mount = service.mount(&[]);
    let key = format!("{}/global/keyspaces/commerce/locks/7587899169048611629", service.root);
    holds_everybody_up_until_it_is_broken(&mount, || drop(etcd::shared().ctl(&["put", &key, COPIED])));
    let key = format!("{}/global/keyspaces/gone/locks/7587899169048611629", service.root);
    can_be_broken(&mount, 2, || drop(etcd::shared().ctl(&["put", &key, COPIED])));
}

#[test]
fn a_copied_lock_of_zookeepers_that_no_session_keeps() {
    let service = crate::zk_service();
    let mount = service.mount(&[]);
    let copied = |dir: &str| {
        let line = format!("{}/global/keyspaces/{dir}/locks", service.root);
        zk_cli(&service.server, &format!("create {line}\ncreate {line}/0000000000 '{COPIED}'\nquit\n"));
    };
    holds_everybody_up_until_it_is_broken(&mount, || copied("commerce"));
    zk_cli(&service.server, &format!("create {}/global/keyspaces/gone\nquit\n", service.root));
    can_be_broken(&mount, 2, || {
        zk_cli(&service.server, &format!("create {}/global/keyspaces/gone\nquit\n", service.root));
        copied("gone");
    });
}

/// A key in the line that no file can be named by: nobody is kept waiting for it without a word.
#[test]
fn a_key_in_the_line_that_is_no_name_is_told() {
    let service = crate::etcd_service();
    let mount = service.mount(&[]);
    etcd::shared().put(&format!("{}/global/keyspaces/commerce/locks//odd", service.root), b"x");
    for call in ["flock -n", "flock -w 20"] {
        let output = mount.bash(&format!("{call} {LOCK} true"));
        assert!(!output.status.success(), "{call}: {}", text(&output));
        let told = mount.errors().last().unwrap()["reason"].as_str().unwrap().to_owned();
        assert!(told.contains("locks//odd") && told.contains("etcdctl del"), "{call}: {told}");
    }
    etcd::shared().ctl(&["del", &format!("{}/global/keyspaces/commerce/locks//odd", service.root)]);
    eventually("free", || is_free(&mount, LOCK).then_some(()));
}

#[test]
fn names_with_spaces_can_be_unlocked() {
    let service = crate::etcd_service();
    let mount = service.mount(&[]);
    for key in ["keyspaces/commerce/locks/a b", "keyspaces/ar chive/locks/8"] {
        etcd::shared().put(&format!("{}/global/{key}", service.root), b"x");
        let dir = format!("global/{}", key.split("/locks/").next().unwrap());
        eventually("it is shown", || report(&mount, &format!("{dir}/.lock")).pop());
        let output = mount.bash(&format!("{TOPOFS} unlock --force --yes '{}'", mount.path(&dir).display()));
        assert!(output.status.success(), "{dir}: {}", text(&output));
        assert_eq!(etcd::shared().get(&format!("{}/global/{key}", service.root)), None);
    }
}
