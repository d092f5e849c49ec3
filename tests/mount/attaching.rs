//! Where a mount comes to be, what it lets through, and that its end takes nothing else away.

use std::process::Command;

use crate::common::etcd::Etcd;
use crate::common::mount::{Mount, TOPOFS, is_mounted};
use crate::common::{bash_apart, bash_in, eventually, process_has_ended, signal, text};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

/// A directory with mount points, which are all unmounted with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The output of a script that must succeed.
    fn sh(&self, script: &str) -> String {
        let output = bash_in(self.0.path(), &format!("set -e; {script}"));
        assert!(output.status.success(), "{script}: {}", text(&output));
        text(&output)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn daemon_of(&self, name: &str) -> u32 {
        self.sh(&format!("jq .pid {name}/.topofs/status")).trim().parse().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let table = std::fs::read("/proc/self/mounts").unwrap();
        let inside = self.0.path().to_str().unwrap();
        for line in String::from_utf8_lossy(&table).lines().rev() {
            if let Some(path) = line.split(' ').nth(1).filter(|path| path.starts_with(inside)) {
                let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            }
        }
    }
}

fn has_ended(pid: u32) {
    eventually("the daemon ends", || process_has_ended(pid).then_some(()));
}

#[test]
fn a_mount_point_that_is_swapped_leads_nowhere_else() {
    for swap in
        ["mv m old; ln -s target m", "mv m old; mkdir m", "mv m old; mv target m", "mv dir old; ln -s elsewhere dir"]
    {
        let place = Place::new();
        // `dir/m` by a symbolic link that is there at the start.
        place.sh("mkdir -p real/dir/m real/dir/target real/elsewhere/m; ln -s real link");
        let mut etcd = Etcd::start();
        etcd.kill();
        let server = format!("--topo-global-server-address {} --topo-global-root /g", etcd.endpoint());
        let command = format!(
            "exec {TOPOFS} mount {server} --retry 1m --remote-operation-timeout 2s -f link/dir/m > log 2>&1 & echo $!"
        );
        let pid: u32 = place.sh(&command).trim().parse().unwrap();
        eventually("it tries", || {
            std::fs::read_to_string(place.path("log")).unwrap().contains("trying again").then_some(())
        });
        let within = if swap.starts_with("mv dir") { "real" } else { "real/dir" };
        place.sh(&format!("cd {within}; {swap}"));
        etcd.restart();
        if swap.starts_with("mv dir") {
            // The directory is the same, wherever it is now.
            eventually("it is mounted", || is_mounted(&place.path("real/old/m")).then_some(()));
            assert!(!is_mounted(&place.path("real/elsewhere/m")));
            signal(pid, Signal::SIGTERM);
            has_ended(pid);
            assert!(!is_mounted(&place.path("real/old/m")));
        } else {
            has_ended(pid);
            let log = std::fs::read_to_string(place.path("log")).unwrap();
            assert!(log.contains("not the directory any more"), "{log}");
        }
        let table = String::from_utf8_lossy(&std::fs::read("/proc/self/mounts").unwrap()).into_owned();
        assert!(!table.contains(place.0.path().to_str().unwrap()), "{swap}: {table}");
    }
}

#[test]
fn a_dead_mount_of_another_kind_is_left_alone() {
    let place = Place::new();
    // One whose daemon has died at once.
    place.sh("mkdir m; python3 -c \"
import ctypes, os
fuse = os.open('/dev/fuse', os.O_RDWR)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0' % fuse
assert ctypes.CDLL(None).mount(b'other', b'm', b'fuse.other', 0, options) == 0\"");
    let error = std::fs::read_dir(place.path("m")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTCONN));
    let output = bash_in(place.0.path(), &format!("{TOPOFS} demo m"));
    assert_eq!(output.status.code(), Some(32), "{}", text(&output));
    assert!(text(&output).contains("dead mount of another kind (fuse.other)"), "{}", text(&output));
    assert_eq!(place.sh(&format!("grep -c ' {} fuse.other ' /proc/mounts", place.path("m").display())), "1\n");
}

/// A daemon of FUSE that dies over the question whether it lives.
const DYING: &str = r#"
import ctypes, os, struct
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
assert ctypes.CDLL(None).mount(b"topofs", b"m", b"fuse.topofs", 0, options) == 0
INIT, GETATTR, STATFS = 26, 3, 17
while True:
    _, opcode, unique = struct.unpack_from("<IIQ", os.read(fuse, 1 << 20))
    errno, body = 0, b""
    if opcode == INIT:
        body = struct.pack("<IIIIHHIIHH32x", 7, 31, 0, 0, 12, 9, 65536, 1, 0, 0)
    elif opcode == GETATTR:
        body = struct.pack("<QII6Q3I7I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
    elif opcode == STATFS:
        os._exit(0)
    else:
        errno = -38
    os.write(fuse, struct.pack("<IiQ", 16 + len(body), errno, unique) + body)
"#;

#[test]
fn a_mount_that_dies_while_it_is_asked_is_replaced() {
    let place = Place::new();
    std::fs::write(place.path("dying.py"), DYING).unwrap();
    place.sh("mkdir m; python3 dying.py > log 2>&1 &");
    eventually("it is mounted", || is_mounted(&place.path("m")).then_some(()));
    assert_eq!(place.sh(&format!("{TOPOFS} demo m; ls m")), "global\nzone1\nzone2\n");
    assert_eq!(place.sh(&format!("grep -c ' {} ' /proc/mounts", place.path("m").display())), "1\n");
}

#[test]
fn the_daemon_ends_with_its_mount_whatever_is_mounted_next() {
    // Something that is mounted at the same moment gets the number of the mount that has just gone.
    for _ in 0..10 {
        let place = Place::new();
        place.sh(&format!("mkdir m x; {TOPOFS} demo m"));
        let pid = place.daemon_of("m");
        umount2(&place.path("m"), MntFlags::empty()).unwrap();
        nix::mount::mount(Some("none"), &place.path("x"), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
            .unwrap();
        has_ended(pid);
        assert!(is_mounted(&place.path("x")));
    }
}

#[test]
fn a_mount_that_has_been_moved_or_copied_does_not_outlive_its_daemon() {
    let place = Place::new();
    place.sh(&format!("mkdir m moved copy; {TOPOFS} demo m"));
    let pid = place.daemon_of("m");
    place.sh(
        "mount --bind m copy; mount --move m moved; umount copy; mount --bind moved/global copy; ls moved/global copy",
    );
    signal(pid, Signal::SIGTERM);
    has_ended(pid);
    for name in ["m", "moved", "copy"] {
        assert!(!is_mounted(&place.path(name)), "{name}");
    }
}

#[test]
fn a_connection_that_is_cut_leaves_no_mount() {
    let place = Place::new();
    place.sh(&format!("mkdir m connections; {TOPOFS} demo m; mount -t fusectl none connections"));
    let pid = place.daemon_of("m");
    place.sh("echo 1 > connections/$(mountpoint -d m | cut -d: -f2)/abort");
    has_ended(pid);
    assert!(!is_mounted(&place.path("m")));
}

#[test]
fn what_is_mounted_over_it_is_left_alone() {
    let mount = Mount::new(&["demo"]);
    bash_in(mount.outside(), "mount -t tmpfs over m; touch m/mine");
    signal(mount.pid(), Signal::SIGTERM);
    eventually("it has ended", || process_has_ended(mount.pid()).then_some(()));
    assert!(mount.log().contains("something else is mounted over"), "{}", mount.log());
    assert!(mount.path("mine").exists());
    bash_in(mount.outside(), "umount m");
}

#[test]
fn nothing_in_a_mount_is_a_program() {
    // As `-o exec` in fstab does not change, since Vitess stores no programs.
    for flags in ["", "-o noexec,user", "-o exec,suid,dev"] {
        let place = Place::new();
        place
            .sh(&format!("mkdir m; {TOPOFS} demo {flags} m; cp /bin/true m/global/program; chmod +x m/global/program"));
        let output = bash_in(place.0.path(), "m/global/program");
        assert!(text(&output).contains("Permission denied"), "{flags}: {}", text(&output));
        let options = place.sh(&format!("grep ' {} ' /proc/mounts", place.path("m").display()));
        assert!(options.contains(" rw,nosuid,nodev,noexec,"), "{options}");
        umount2(&place.path("m"), MntFlags::empty()).unwrap();
    }
}

#[test]
fn the_daemon_keeps_nothing_that_its_starter_had_open() {
    let place = Place::new();
    // A lock of a script, a pipe, and a password that is read through such a descriptor.
    let script = format!(
        "mkdir m; : > lock; exec 3< <(:) 9> lock 251> /dev/null; flock -n 9; \
         {TOPOFS} demo m 10< lock; exec 9>&-; flock -n lock true"
    );
    place.sh(&script);
    let pid = place.daemon_of("m");
    let opened: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    assert!(!opened.iter().any(|file| file.ends_with("/lock")), "{opened:?}");
    // Two pipes, to the helper and back: the one for the readiness is closed.
    assert_eq!(opened.iter().filter(|file| file.starts_with("pipe:")).count(), 2, "{opened:?}");
}

#[test]
fn passwords_get_into_no_core_dump() {
    let mount = Mount::new(&["demo"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let cores: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().split_whitespace().collect();
    assert_eq!(cores[4..6], ["0", "0"]);
    // Of a process whose memory nobody may look into, everything belongs to root.
    let place = Place::new();
    place.sh(&format!("mkdir m; chmod 0755 .; chown 65534:65534 m; chmod 0666 /dev/fuse; cp {TOPOFS} topofs"));
    const USER: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    place.sh(&format!("{USER} ./topofs demo m"));
    let pid: u32 = place.sh(&format!("{USER} jq .pid m/.topofs/status")).trim().parse().unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/mem")).unwrap());
    assert_eq!(owner, 0);
    let output = bash_in(place.0.path(), &format!("{USER} cat /proc/{pid}/environ"));
    assert!(!output.status.success(), "{}", text(&output));
    signal(pid, Signal::SIGTERM);
    has_ended(pid);
    assert!(!is_mounted(&place.path("m")));
}

#[test]
fn a_users_daemon_that_ends_takes_nobody_elses_mount_away() {
    let place = Place::new();
    place.sh(&format!("chmod 0755 .; mkdir m; chown -R 65534:65534 .; chmod 0666 /dev/fuse; cp {TOPOFS} topofs"));
    let user = |script: &str| {
        place.sh(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups bash -c \"set -e; {script}\""))
    };
    for _ in 0..5 {
        user("./topofs demo m");
        let before: u32 = user("jq .pid m/.topofs/status").trim().parse().unwrap();
        user("fusermount3 -u m; ./topofs demo m");
        has_ended(before);
        let now: u32 = user("jq .pid m/.topofs/status").trim().parse().unwrap();
        assert_ne!(before, now);
        let options = place.sh(&format!("grep ' {} fuse.topofs ' /proc/mounts", place.path("m").display()));
        assert!(options.starts_with("demo ") && options.contains(" rw,nosuid,nodev,noexec,"), "{options}");
        signal(now, Signal::SIGTERM);
        has_ended(now);
        assert!(!is_mounted(&place.path("m")));
    }
}

#[test]
fn a_users_mount_that_is_in_use_ends_too_whatever_its_name() {
    let place = Place::new();
    place.sh(&format!("chmod 0755 .; chown -R 65534:65534 .; chmod 0666 /dev/fuse; cp {TOPOFS} topofs"));
    let script = r#"set -e
        mkdir $'\xff'; ./topofs demo --log-file log $'\xff'; cd $'\xff'
        pid=$(jq .pid .topofs/status); jq -e .mountpoint .topofs/config; exec 7< global/metadata/owner
        kill $pid
        while grep -a "$OLDPWD" /proc/self/mounts; do sleep 0.01; done
        cat "$OLDPWD/log""#;
    std::fs::write(place.path("script"), script).unwrap();
    let output = bash_apart(place.0.path(), "exec setpriv --reuid 65534 --regid 65534 --clear-groups bash script");
    assert!(output.status.success() && text(&output).contains("busy"), "{}", text(&output));
}

#[test]
fn a_failed_mount_of_a_user_says_why() {
    let place = Place::new();
    place.sh(&format!("chmod 0755 .; mkdir m; cp {TOPOFS} topofs; chmod 0666 /dev/fuse"));
    // It belongs to root: fusermount3 mounts for nobody on what is not his.
    let mut command = Command::new("setpriv");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "./topofs", "demo", "m"];
    let output = command.args(user).current_dir(place.0.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(32));
    assert!(text(&output).contains("fusermount3: user has no write access"), "{}", text(&output));
    assert!(!is_mounted(&place.path("m")));
}
