//! Coming up and going away.

use std::process::Command;

use crate::common::etcd::shared;
use crate::common::mount::{Mount, TOPOFS, is_mounted};
use crate::common::server::free_port;
use crate::common::server::fresh_root;
use crate::common::{bash_in, eventually, text};

/// A mount point whose background daemon is ended with the test.
struct Point(tempfile::TempDir);

impl Point {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn topofs(&self, args: &str) -> std::process::Output {
        bash_in(self.0.path(), &format!("{TOPOFS} {args}"))
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn the_shell_gets_control_back_when_the_mount_answers() {
    let point = Point::new();
    // A relative mount point; the pipeline ends although the daemon lives on.
    let output = point.topofs("demo . && cd $PWD && ls | cat");
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), "global\nzone1\nzone2\n"));
    let line = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = line.lines().find(|line| line.contains(point.0.path().to_str().unwrap())).unwrap();
    assert!(line.starts_with("demo ") && line.contains(" fuse.topofs rw,nosuid,nodev,"), "{line}");
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(point.0.path().join(".topofs/status")).unwrap()).unwrap();
    let pid = status["pid"].as_u64().unwrap();
    let output = Command::new("umount").arg(point.0.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    eventually("the daemon ends", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        stat.is_none_or(|stat| stat.contains(") Z")).then_some(())
    });
}

#[test]
fn every_way_of_unmounting_ends_the_daemon() {
    for how in ["umount", "fusermount3 -u", "umount -l"] {
        let mount = Mount::new(&["demo"]);
        let root = mount.root();
        let output = bash_in(mount.outside(), &format!("{how} {}", root.display()));
        assert!(output.status.success(), "{how}: {}", text(&output));
        let pid = mount.pid();
        eventually("the daemon ends", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.contains(") Z").then_some(())
        });
        assert!(mount.log().contains("unmounted"), "{}", mount.log());
    }
    let log = Mount::new(&["demo"]).stop();
    assert!(log.contains("told to end"), "{log}");
}

#[test]
fn a_busy_mount_ends_when_told_to() {
    let mount = Mount::new(&["demo"]);
    let open = std::fs::File::open(mount.path("global/metadata/owner")).unwrap();
    let log = mount.stop();
    assert!(log.contains("busy"), "{log}");
    assert!(std::io::Read::read(&mut &open, &mut [0; 8]).is_err());
}

#[test]
fn a_save_under_way_survives_the_end() {
    let root = fresh_root();
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    mount.sh("mkdir global/metadata; echo kept > global/metadata/kept; : > global/metadata/empty");
    mount.stop();
    assert_eq!(shared().get(&format!("{root}/global/metadata/empty")).as_deref(), Some(&b""[..]));
    assert_eq!(shared().get(&format!("{root}/global/metadata/kept")).as_deref(), Some(&b"kept\n"[..]));
}

#[test]
fn scratch_files_are_named_when_they_are_lost() {
    let mount = Mount::new(&["demo"]);
    mount.sh("echo x > global/keyspaces/notes");
    assert_eq!(mount.xattr("global/keyspaces/notes", "user.topo.scratch").as_deref(), Some("1"));
    assert_eq!(mount.status()["scratch"]["names"][0], "global/keyspaces/notes");
    let log = mount.stop();
    assert!(log.contains("global/keyspaces/notes"), "{log}");
}

#[test]
fn a_dead_mount_is_replaced() {
    let mount = Mount::new(&["demo"]);
    let root = mount.root();
    super::common::signal(mount.pid(), nix::sys::signal::Signal::SIGKILL);
    eventually("the mount is dead", || {
        let error = std::fs::metadata(&root).err()?;
        (error.raw_os_error() == Some(nix::libc::ENOTCONN)).then_some(())
    });
    let output = bash_in(mount.outside(), &format!("{TOPOFS} demo m && ls m"));
    assert_eq!(text(&output), "global\nzone1\nzone2\n");
    assert_eq!(bash_in(mount.outside(), "umount m").status.code(), Some(0));
}

#[test]
fn any_name_of_a_mount_point_will_do() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["with space", "with\ttab", "back\\slash", "ünïcode", "com,ma"] {
        let point = dir.path().join(name);
        std::fs::create_dir(&point).unwrap();
        let output = Command::new(TOPOFS).arg("demo").arg(&point).output().unwrap();
        assert!(output.status.success(), "{name:?}: {}", text(&output));
        assert!(point.join("global").exists());
        let output = Command::new("umount").arg(&point).output().unwrap();
        assert!(output.status.success(), "{name:?}: {}", text(&output));
    }
}

#[test]
fn a_cell_that_cannot_be_shown_is_named() {
    let root = fresh_root();
    let mount = Mount::etcd(&shared().endpoint(), &root, &["--cells", "zone1,nosuch"]);
    assert_eq!(mount.status()["cells_not_shown"]["nosuch"], "it has no CellInfo record");
    shared().put(&format!("{root}/global/cells/zone1/CellInfo"), b"zzz");
    eventually("the status says so", || {
        let reason = mount.status()["cells_not_shown"]["zone1"].as_str()?.to_owned();
        reason.contains("cannot be decoded").then_some(())
    });
    assert!(mount.log().contains("zone1"), "{}", mount.log());
}

#[test]
fn the_environment_sets_flags() {
    let point = Point::new();
    let output =
        bash_in(point.0.path(), &format!("TOPOFS_READ_ONLY=1 TOPOFS_CELLS= {TOPOFS} demo . && ! touch $PWD/global/x"));
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("Read-only"), "{}", text(&output));
}

#[test]
fn errors_can_be_followed() {
    let mount = Mount::new(&["demo"]);
    let log = mount.outside().join("followed");
    let script = format!("timeout 20 tail -n 0 -f .topofs/errors > {}", log.display());
    let root = mount.root();
    let tail = std::thread::spawn(move || bash_in(&root, &script));
    eventually("the error is followed", || {
        mount.bash("echo 'bogus: 1' > global/keyspaces/commerce/Keyspace.txt");
        std::fs::read_to_string(&log).ok().filter(|text| text.contains("bogus"))
    });
    drop(mount);
    let _ = tail.join();
}

#[test]
fn a_failed_mount_says_why_and_leaves_nothing() {
    let point = Point::new();
    let port = free_port();
    let output = point.topofs(&format!(
        "mount --topo-global-server-address 127.0.0.1:{port} --topo-global-root /r/global \
         --remote-operation-timeout 2s ."
    ));
    assert_eq!(output.status.code(), Some(32));
    let message = text(&output);
    for part in ["cell global", "etcd2", &format!("127.0.0.1:{port}"), "/r/global", "refused"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(!is_mounted(point.0.path()));

    for (args, status, reason) in [
        ("mount", 1, "MOUNTPOINT"),
        ("mount --no-such-flag .", 1, "no-such-flag"),
        ("mount -o bogus .", 1, "bogus"),
        ("demo --umask 999 .", 1, "octal"),
        ("demo --log-level loud .", 1, "must be one of off"),
        ("demo --descriptor-set /dev/null .", 1, "/dev/null"),
        ("demo /no/such/dir", 32, "No such file"),
        ("demo --record '[' .", 1, "--record"),
        ("demo --record 'global/[' .", 1, "--record"),
        ("demo --forms txt --list raw .", 1, "--list"),
        ("mount --topo-implementation zk .", 1, "zk"),
    ] {
        let output = point.topofs(args);
        assert_eq!(output.status.code(), Some(status), "{args}: {}", text(&output));
        assert!(text(&output).contains(reason), "{args}: {}", text(&output));
    }
    std::fs::write(point.0.path().join("file"), "").unwrap();
    let output = point.topofs("demo file");
    assert_eq!(output.status.code(), Some(32), "{}", text(&output));
    assert!(text(&output).contains("not a directory"), "{}", text(&output));
}

#[test]
fn an_empty_topology_is_mounted_with_a_warning() {
    let point = Point::new();
    let output = point.topofs(&format!(
        "mount --topo-global-server-address {} --topo-global-root /wrong/root .",
        shared().endpoint()
    ));
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("/wrong/root): nothing is stored there"), "{}", text(&output));
}

#[test]
fn retry_waits_for_the_service() {
    let mut etcd = crate::common::etcd::Etcd::start();
    etcd.kill();
    let (done, waiting) = std::sync::mpsc::channel();
    let endpoint = etcd.endpoint();
    let point = Point::new();
    let dir = point.0.path().to_owned();
    std::thread::spawn(move || {
        let args = format!("mount -o retry=1m,topo_global_server_address={endpoint},remote-operation-timeout=2s .");
        done.send(bash_in(&dir, &format!("{TOPOFS} {args}"))).unwrap();
    });
    assert!(waiting.recv_timeout(std::time::Duration::from_secs(3)).is_err(), "it must wait");
    etcd.restart();
    let output = waiting.recv_timeout(crate::common::DEADLINE).unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(is_mounted(point.0.path()));
}

#[test]
fn control_files_answer() {
    let mount = Mount::new(&["demo", "--no-delete"]);
    assert_eq!(mount.read(".topofs/version"), format!("topofs {}\n", env!("CARGO_PKG_VERSION")));
    let config: serde_json::Value = serde_json::from_str(&mount.read(".topofs/config")).unwrap();
    assert_eq!((&config["no-delete"], &config["topo-implementation"]), (&true.into(), &"memory".into()));
    mount.sh("ls zone1 zone2; echo resync zone1 > .topofs/control");
    eventually("zone1 is compared", || (mount.status()["cells"]["zone1"]["resyncs"] == 1).then_some(()));
    assert_eq!(mount.status()["cells"]["zone2"]["resyncs"], 0);
    super::common::signal(mount.pid(), nix::sys::signal::Signal::SIGHUP);
    eventually("all cells are compared", || (mount.status()["cells"]["global"]["resyncs"] == 1).then_some(()));
    mount.sh("echo 'log debug' > .topofs/control");
    mount.sh("perl -e 'truncate(\"global/metadata/owner\", 0) or die'");
    eventually("debug messages appear", || mount.log().contains("DEBUG").then_some(()));
    for wrong in ["dance", "resync nowhere", "log loud"] {
        assert!(!mount.bash(&format!("echo '{wrong}' > .topofs/control")).status.success(), "{wrong}");
    }
    let status = mount.status();
    assert!(status["requests"]["lookup"].as_u64().unwrap() > 0 && status["inodes"].as_u64().unwrap() > 1);
}

#[test]
fn cells_come_and_go_with_their_records() {
    let root = fresh_root();
    let endpoint = shared().endpoint();
    let mount = Mount::etcd(&endpoint, &root, &[]);
    assert_eq!(mount.sh("ls"), "global\n");
    // By this mount: there at once.
    mount.sh(&format!(
        "mkdir -p global/cells/zone9; \
         echo 'server_address: \"{endpoint}\" root: \"{root}/zone9\"' > global/cells/zone9/CellInfo.txt; \
         ls zone9"
    ));
    mount.sh(
        "mkdir -p zone9/tablets/zone9-0000000001; echo 'hostname: \"h\"' > zone9/tablets/zone9-0000000001/Tablet.txt",
    );
    assert!(shared().get(&format!("{root}/zone9/tablets/zone9-0000000001/Tablet")).is_some());
    // By others: soon.
    let info = shared().get(&format!("{root}/global/cells/zone9/CellInfo")).unwrap();
    shared().put(&format!("{root}/global/cells/zone8/CellInfo"), &info);
    eventually("zone8 appears", || (mount.sh("ls") == "global\nzone8\nzone9\n").then_some(()));
    shared().ctl(&["del", &format!("{root}/global/cells/zone9/CellInfo")]);
    eventually("zone9 disappears", || (mount.sh("ls") == "global\nzone8\n").then_some(()));
    assert_eq!(mount.sh("cat zone8/tablets/zone9-0000000001/Tablet.txt"), "hostname: \"h\"\n");
}
