//! The programs that people use to watch files, each on a record that changes elsewhere.

use std::process::{Command, Stdio};

use crate::common::eventually;
use crate::common::mount::{Lines, Mount, lines};
use crate::common::world::Service;

const OWNER: &str = "global/metadata/owner";

fn service() -> Service {
    Service::etcd2()
}

fn start(mount: &Mount, script: &str) -> Lines {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec 2>&1; {script}")]).current_dir(mount.root()).stdin(Stdio::null());
    lines(command)
}

/// Changes the record elsewhere, again and again, until the program has noticed: when it begins to watch, it does not
/// say.
fn noticed(service: &Service, mut notices: impl FnMut() -> bool) {
    let mut number = 0;
    eventually("the program has noticed", || {
        number += 1;
        service.put(OWNER, "value\n".repeat(number).as_bytes());
        let begin = std::time::Instant::now();
        while begin.elapsed().as_millis() < 300 {
            if notices() {
                return Some(());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        None
    });
}

#[test]
fn entr() {
    let (service, marker) = (service(), tempfile::tempdir().unwrap());
    let mount = service.mount(&[]);
    let out = marker.path().join("out");
    let _running = start(&mount, &format!("echo {OWNER} | entr -np sh -c 'cat {OWNER} > {}'", out.display()));
    noticed(&service, || std::fs::read_to_string(&out).is_ok_and(|text| text.starts_with("value")));
}

#[test]
fn fswatch() {
    let service = service();
    let mount = service.mount(&[]);
    let running = start(&mount, "exec fswatch -m inotify_monitor -x global/metadata");
    noticed(&service, || running.try_next().is_some_and(|line| line.contains("owner Updated")));
}

#[test]
fn watchdog() {
    let service = service();
    let mount = service.mount(&[]);
    let program = "import time
from watchdog.observers import Observer
from watchdog.events import FileSystemEventHandler
class Handler(FileSystemEventHandler):
    def on_modified(self, event):
        if event.src_path.endswith('owner'): print('read', open(event.src_path).read(), flush=True)
observer = Observer()
observer.schedule(Handler(), 'global', recursive=True)
observer.start()
time.sleep(100)";
    let running = start(&mount, &format!("exec /usr/bin/python3 -c \"{program}\""));
    noticed(&service, || running.try_next().is_some_and(|line| line.starts_with("read value")));
}

#[test]
fn watchman() {
    let service = service();
    let mount = service.mount(&[]);
    let state = tempfile::tempdir().unwrap();
    let socket = state.path().join("sock");
    let daemon = format!(
        "HOME={0} exec watchman --foreground --sockname={1} --logfile={0}/log --statefile={0}/state --pidfile={0}/pid",
        state.path().display(),
        socket.display()
    );
    let _daemon = start(&mount, &daemon);
    eventually("it listens", || socket.exists().then_some(()));
    let root = mount.path("global/metadata");
    let watchman = format!("HOME={} watchman --no-spawn --sockname={}", state.path().display(), socket.display());
    let output = mount.bash(&format!("{watchman} watch {}", root.display()));
    assert!(output.status.success(), "{}", crate::common::text(&output));
    let clock =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["clock"].as_str().unwrap().to_owned();
    let begin = clock(&mount.sh(&format!("{watchman} clock {}", root.display())));
    noticed(&service, || mount.sh(&format!("{watchman} since {} {begin}", root.display())).contains("\"owner\""));
    mount.sh(&format!("{watchman} watch-del {}; {watchman} shutdown-server", root.display()));
}

#[test]
fn incron() {
    let service = service();
    let mount = service.mount(&[]);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("out");
    // A configuration of its own, with its own table.
    let tables = out.path().join("tables");
    std::fs::create_dir(&tables).unwrap();
    std::fs::write(
        tables.join("topo"),
        format!("{} IN_CLOSE_WRITE cp $@ {}\n", mount.path(OWNER).display(), file.display()),
    )
    .unwrap();
    let config = out.path().join("config");
    let settings = format!(
        "system_table_dir = {0}\nuser_table_dir = {1}\nlockfile_dir = {1}\nlockfile_name = incron-test\n",
        tables.display(),
        out.path().display()
    );
    std::fs::write(&config, settings).unwrap();
    let _running = start(&mount, &format!("exec incrond -n -f {}", config.display()));
    noticed(&service, || std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with("value")));
}

#[test]
fn tail() {
    let service = service();
    let mount = service.mount(&[]);
    service.put(OWNER, b"one\n");
    eventually("it is seen", || (mount.read(OWNER) == "one\n").then_some(()));
    let running = start(&mount, &format!("exec tail -n +1 -F {OWNER}"));
    assert_eq!(running.next(), "one");
    // A record that grows is followed as a file that grows.
    service.put(OWNER, b"one\ntwo\n");
    assert_eq!(running.next(), "two");
    service.put(OWNER, b"one\ntwo\nthree\n");
    assert_eq!(running.next(), "three");
    // One that is another is read anew.
    service.put(OWNER, b"new\n");
    assert!(running.next().contains("truncated"));
    assert_eq!(running.next(), "new");
}

#[test]
fn systemd() {
    if !std::path::Path::new("/run/systemd/system").exists() {
        eprintln!("systemd does not run here: its path units wait for the same events as inotifywait");
        return;
    }
    let (service, out) = (service(), tempfile::tempdir().unwrap());
    let mount = service.mount(&["--allow-other"]);
    let file = out.path().join("out");
    let unit = format!("topofs-test-{}", std::process::id());
    mount.sh(&format!(
        "systemd-run --unit={unit} --path-property=PathModified={0} /bin/cp {0} {1}",
        mount.path(OWNER).display(),
        file.display()
    ));
    noticed(&service, || std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with("value")));
    mount.sh(&format!("systemctl stop {unit}.path"));
}
