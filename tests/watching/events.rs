//! What happens elsewhere, told to those who watch: of which file, when, and to whom.

use std::process::{Command, Stdio};

use crate::common::world::Service;
use crate::common::{self, eventually};
use crate::on_each_service;
use crate::watcher::{CLOSED, Watcher};

const FORMS: [&str; 3] = ["", ".txt", ".json"];

on_each_service! {
    fn a_remote_change_is_an_event_of_every_form(service) {
        let (here, there) = (service.mount(&[]), service.mount(&[]));
        let watcher = Watcher::new(&here, "global");
        let keyspace = "keyspaces/commerce/Keyspace";
        there.sh(&format!("sed -i s/semi_sync/none/ global/{keyspace}.txt"));
        for form in FORMS {
            let events = watcher.until(&format!("{keyspace}{form}"), CLOSED);
            assert_eq!(events, ["MODIFY", CLOSED], "{form}");
        }
        assert!(here.read(&format!("global/{keyspace}.txt")).contains("none"));
        // A new record, with directories, and one with a single form.
        there.sh(
            "echo x > global/metadata/new; \
             mkdir -p global/cells/zone9; echo '{}' > global/cells/zone9/CellInfo.json",
        );
        assert_eq!(watcher.until("metadata/new", CLOSED), ["CREATE", CLOSED]);
        watcher.until("cells/zone9", "CREATE,ISDIR");
        eventually("it is there", || here.path("global/cells/zone9/CellInfo").exists().then_some(()));
        there.sh("rm global/metadata/new; rm -r global/cells/zone9");
        assert_eq!(watcher.until("metadata/new", "DELETE"), ["CREATE", CLOSED, "DELETE"]);
        watcher.until("cells/zone9", "DELETE,ISDIR");
    }

    fn own_changes_are_told_once(service) {
        let mount = service.mount(&[]);
        let watcher = Watcher::new(&mount, "global");
        mount.sh("echo x > global/metadata/own; echo y > global/metadata/own");
        mount.sh("printf 'durability_policy: \"none\"\\n' > global/keyspaces/commerce/Keyspace.txt");
        for form in ["", ".json"] {
            assert_eq!(watcher.until(&format!("keyspaces/commerce/Keyspace{form}"), CLOSED), ["MODIFY", CLOSED]);
        }
        // The kernel tells of O_TRUNC and of the write.
        let written = watcher.until("keyspaces/commerce/Keyspace.txt", CLOSED);
        assert_eq!(written.iter().filter(|event| *event == CLOSED).count(), 1, "{written:?}");
        mount.sh("rm global/metadata/own; touch global/marker");
        watcher.until("marker", CLOSED);
        let events = watcher.seen().into_iter().filter(|(_, path)| path == "metadata/own");
        let events: Vec<String> = events.map(|(event, _)| event).collect();
        for (event, count) in [("CREATE", 1), (CLOSED, 2), ("DELETE", 1)] {
            assert_eq!(events.iter().filter(|known| *known == event).count(), count, "{event}: {events:?}");
        }
    }

    fn a_lock_that_changes_hands_is_an_event(service) {
        let (here, there) = (service.mount(&[]), service.mount(&[]));
        let watcher = Watcher::new(&here, "global");
        let lock = "keyspaces/commerce/.lock";
        there.sh(&format!("flock global/{lock} sleep 1"));
        eventually("taken and given back", || {
            let events = watcher.seen().into_iter().filter(|(event, path)| event == "MODIFY" && path == lock).count();
            (events >= 2).then_some(())
        });
        assert_eq!(here.read(&format!("global/{lock}")), "");
    }
}

#[test]
fn looking_into_a_cell_for_the_first_time_is_no_event() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let seen = mount.outside().join("seen");
    // Not recursive: that would look into it.
    let script = format!("exec inotifywait -m -e create -e delete -e modify zone1 > {0} 2> {0}.ready", seen.display());
    let mut watcher = Command::new("bash").args(["-c", &script]).current_dir(mount.root()).spawn().unwrap();
    let ready = std::path::PathBuf::from(format!("{}.ready", seen.display()));
    eventually("it watches", || std::fs::read_to_string(&ready).ok()?.contains("established").then_some(()));
    assert_eq!(mount.status()["cells"]["zone1"]["state"], "idle");
    mount.sh("ls -R zone1 > /dev/null; cat zone1/SrvVSchema.txt > /dev/null");
    service.put("zone1/SrvVSchema", b"");
    eventually("a change is told", || std::fs::read_to_string(&seen).unwrap().contains("MODIFY").then_some(()));
    let events = std::fs::read_to_string(&seen).unwrap();
    let _ = watcher.kill();
    let _ = watcher.wait();
    assert!(!events.contains("CREATE"), "{events}");
}

#[test]
fn read_only_mounts_have_events_and_stay_read_only() {
    let service = Service::etcd2();
    let (here, there) = (service.mount(&["--read-only"]), service.mount(&[]));
    let watcher = Watcher::new(&here, "global");
    there.sh("echo x > global/metadata/owner");
    assert_eq!(watcher.until("metadata/owner", CLOSED), ["MODIFY", CLOSED]);
    for script in ["touch global/metadata/owner", "rm global/metadata/owner", "mkdir global/x"] {
        assert!(common::text(&here.bash(script)).contains("Read-only file system"), "{script}");
    }
    assert!(here.sh(&format!("grep ' {} ' /proc/mounts", here.root().display())).contains(" ro,"));
}

/// Unmounts it, whatever comes of the test.
struct OfUser(tempfile::TempDir);

impl Drop for OfUser {
    fn drop(&mut self) {
        let _ = common::bash_in(self.0.path(), "umount -l m");
    }
}

#[test]
fn an_ordinary_user_has_events_too() {
    let service = Service::etcd2();
    service.put("global/metadata/owner", b"old");
    let dir = OfUser(tempfile::tempdir().unwrap());
    let root = |script: &str| {
        let output = common::bash_in(dir.0.path(), &format!("set -e; {script}"));
        assert!(output.status.success(), "{script}: {}", common::text(&output));
        common::text(&output)
    };
    // As udev makes it on a machine where users may mount.
    root("chmod 0666 /dev/fuse; mkdir m; chmod 0755 .");
    root(&format!("cp {} topofs; chown -R 65534:65534 .", common::mount::TOPOFS));
    const USER: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let user = |script: &str| root(&format!("{USER} bash -c {script:?}"));
    let flags = format!("--topo-implementation etcd2 --topo-global-server-address {}", service.server);
    user(&format!("./topofs mount {flags} --topo-global-root {}/global --log-file log m", service.root));
    assert_eq!(user("cat m/global/metadata/owner"), "old");
    let mut watch = Command::new("bash");
    let script = format!("exec {USER} inotifywait -m -r --format '%e %f' -e close_write m/global 2> ready");
    watch.args(["-c", &script]).current_dir(dir.0.path()).stdin(Stdio::null());
    let seen = common::mount::lines(watch);
    let read = |name: &str| std::fs::read_to_string(dir.0.path().join(name)).unwrap_or_default();
    eventually("it watches", || read("ready").contains("established").then_some(()));
    service.put("global/metadata/owner", b"new");
    assert_eq!(seen.next(), "CLOSE_WRITE,CLOSE owner");
    assert_eq!(user("cat m/global/metadata/owner"), "new");
    // While it is watched, too.
    user("fusermount3 -u m || fusermount3 -uz m");
    eventually("it has ended", || read("log").contains("unmounted").then_some(()));
}

#[test]
fn an_event_is_never_ahead_of_what_is_read() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let watcher = Watcher::new(&mount, "global/metadata");
    for number in 0..200 {
        service.put("global/metadata/owner", number.to_string().as_bytes());
        eventually("an event", || {
            (watcher.seen().iter().filter(|(event, _)| event == CLOSED).count() > number).then_some(())
        });
        assert_eq!(mount.read("global/metadata/owner"), number.to_string());
    }
}

#[test]
fn a_burst_is_told_completely() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let watcher = Watcher::new(&mount, "global/metadata");
    for number in 0..3_000 {
        service.put(&format!("global/metadata/key{number:04}"), b"x");
    }
    eventually("the last", || {
        watcher.seen().iter().any(|(event, path)| event == "CREATE" && path == "key2999").then_some(())
    });
    let created: std::collections::BTreeSet<String> =
        watcher.seen().into_iter().filter(|(event, _)| event == "CREATE").map(|(_, path)| path).collect();
    assert_eq!(created.len(), 3_000);
}

#[test]
fn unmounting_is_not_in_the_way_of_anybody() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    mount.sh("ls -R > /dev/null");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                service.put("global/metadata/owner", b"x");
            }
        });
        let begin = std::time::Instant::now();
        eventually("some events are under way", || (begin.elapsed().as_millis() > 500).then_some(()));
        // Not lazily, and at the first attempt.
        let outcome = nix::mount::umount2(&mount.root(), nix::mount::MntFlags::empty());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap();
    });
    eventually("the daemon has ended", || common::process_has_ended(mount.pid()).then_some(()));
    assert!(!common::mount::is_mounted(&mount.root()));
}

#[test]
fn a_daemon_that_is_killed_is_gone_at_once() {
    // While it raises events as fast as it can: nothing of it may wait for itself.
    let service = Service::etcd2();
    for _ in 0..10 {
        let mount = service.mount(&[]);
        mount.sh("ls -R > /dev/null");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    service.put("global/metadata/owner", b"x");
                    service.put("global/keyspaces/commerce/VSchema", b"");
                }
            });
            let before = mount.status()["requests"]["setattr"].as_u64().unwrap_or(0);
            eventually("events are raised", || {
                (mount.status()["requests"]["setattr"].as_u64().unwrap_or(0) > before + 20).then_some(())
            });
            common::signal(mount.pid(), nix::sys::signal::Signal::SIGKILL);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        eventually("all of its threads are gone", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", mount.pid()));
            threads.map_or(true, |threads| threads.count() <= 1).then_some(())
        });
        let error = std::fs::read_dir(mount.root()).unwrap_err().raw_os_error();
        assert!(matches!(error, Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error:?}");
    }
}

#[test]
fn the_stream_of_events_says_who_did_what() {
    let service = Service::etcd2();
    let (here, there) = (service.mount(&[]), service.mount(&[]));
    // A program that waits with poll(2), one that follows with tail(1).
    let waiting = "import json, os, select, sys
f = os.open('.topofs/events', os.O_RDONLY)
while os.read(f, 65536): pass
p = select.epoll() if sys.argv[1] == 'epoll' else select.poll()
p.register(f, select.POLLIN)
assert not p.poll(0.2 if sys.argv[1] == 'epoll' else 200)
print('waiting', flush=True)
seen = b''
while b'deleted' not in seen:
    assert p.poll(20 if sys.argv[1] == 'epoll' else 20000), 'nothing came'
    seen += os.read(f, 65536)
for line in seen.splitlines(): print(json.loads(line)['kind'], flush=True)";
    let start = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).current_dir(here.root()).stdin(Stdio::null());
        common::mount::lines(command)
    };
    let pollers = [start("python3", &["-c", waiting, "poll"]), start("python3", &["-c", waiting, "epoll"])];
    for poller in &pollers {
        assert_eq!(poller.next(), "waiting");
    }
    let tail = start("tail", &["-n", "0", "-f", ".topofs/events"]);
    let begin = std::time::Instant::now();
    eventually("tail is there", || (begin.elapsed().as_millis() > 300).then_some(()));
    here.sh("echo x > global/metadata/new");
    there.sh("echo y > global/metadata/new; rm global/metadata/new");
    for poller in &pollers {
        let kinds: Vec<String> = std::iter::repeat_with(|| poller.next()).take(3).collect();
        assert_eq!(kinds, ["created", "changed", "deleted"]);
    }
    let lines: Vec<serde_json::Value> =
        std::iter::repeat_with(|| serde_json::from_str(&tail.next()).unwrap()).take(3).collect();
    assert_eq!((&lines[0]["path"], &lines[0]["by"]["command"]), (&"metadata/new".into(), &"bash".into()));
    assert_eq!((lines[0]["by"]["uid"].as_u64(), &lines[1]["by"]), (Some(0), &"remote".into()));
    assert_eq!(lines[1]["old_version"], lines[0]["version"]);
    assert_eq!((&lines[2]["version"], &lines[2]["old_version"]), (&serde_json::Value::Null, &lines[1]["version"]));
    assert_eq!(
        here.sh("wc -l < .topofs/events; jq -s length .topofs/events")
            .split_whitespace()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        1
    );
}
