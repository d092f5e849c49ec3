//! `topofs umount`: ends mounts of topofs and nothing else, and says why something stays.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::mount::{Mount, TOPOFS, is_mounted};
use crate::common::proxy::Proxy;
use crate::common::world::Service;
use crate::common::{bound_command, etcd, eventually, process_has_ended, signal, spawn_bound};
use crate::shell::{Place, alone, wait_for_end};
use topofs::backend::Implementation;

#[test]
fn it_returns_when_the_daemon_has_ended() {
    let place = Place::new();
    place.sh(&format!("mkdir m; {TOPOFS} demo m"));
    let pid = place.pid("m");
    assert_eq!(place.topofs("umount m"), (0, String::new()));
    assert!(process_has_ended(pid) && !is_mounted(&place.path("m")));
    // By its other name, and by its whole path.
    place.sh(&format!("{TOPOFS} demo m"));
    let (code, told) = place.topofs(&format!("unmount {}/", place.path("m").display()));
    assert_eq!((code, told.as_str()), (0, ""));
}

#[test]
fn a_busy_mount_says_who_uses_it_and_goes_when_told_to() {
    let place = Place::new();
    place.sh(&format!("mkdir m; {TOPOFS} demo m"));
    let daemon = place.pid("m");
    let mut command = bound_command("sleep");
    command.arg("600").current_dir(place.path("m")).stdout(Stdio::null());
    let mut inside = spawn_bound(command);
    let mut command = Command::new("sh");
    command.args(["-c", "exec 7< m/global/metadata/owner; exec sleep 600"]).current_dir(place.dir());
    let mut reads = spawn_bound(command);
    eventually("both use it", || {
        let (code, told) = place.topofs("umount m");
        assert_eq!(code, 1, "{told}");
        let both = told.contains(&format!("process {}: sleep (working directory)", inside.id()))
            && told.contains(&format!("process {}: sleep (1 open file)", reads.id()));
        both.then(|| assert!(told.contains("--lazy") && !told.contains(&format!("process {daemon}:")), "{told}"))
    });
    // Who follows is named as what it is.
    let mut command = bound_command(TOPOFS);
    command.args(["events", "-f", "m"]).current_dir(place.dir()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut follows = spawn_bound(command);
    eventually("the follower is named", || place.topofs("umount m").1.contains(": topofs events (").then_some(()));
    follows.kill().unwrap();
    follows.wait().unwrap();
    assert!(is_mounted(&place.path("m")), "it was left alone");
    assert_eq!(place.topofs("umount --lazy m"), (0, String::new()));
    assert!(!is_mounted(&place.path("m")));
    for process in [&mut inside, &mut reads] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    wait_for_end(daemon);
}

#[test]
fn a_dead_mount_goes_like_any_other() {
    let mount = Mount::new(&["demo"]);
    signal(mount.pid(), Signal::SIGKILL);
    eventually("it is dead", || {
        let error = std::fs::metadata(mount.point()).err()?;
        (error.raw_os_error() == Some(nix::libc::ENOTCONN)).then_some(())
    });
    assert_eq!(Place::new().topofs(&format!("umount {}", mount.point().display())), (0, String::new()));
    assert!(!is_mounted(&mount.point()));
}

#[test]
fn a_daemon_that_stands_still_loses_its_mount_and_is_not_called_finished() {
    let mount = Mount::new(&["demo"]);
    signal(mount.pid(), Signal::SIGSTOP);
    let (code, told) = Place::new().topofs(&format!("umount --wait 300ms {}", mount.point().display()));
    assert!(!is_mounted(&mount.point()), "{told}");
    match code {
        1 => assert!(told.contains(&format!("process {}) has not ended within 300ms", mount.pid())), "{told}"),
        // The kernel is too old to show whose connection it is.
        code => assert!(code == 0 && told.contains("cannot be seen from here"), "{code} {told}"),
    }
}

#[test]
fn a_save_that_waits_is_named_as_what_keeps_a_mount_busy() {
    let proxy = Proxy::start(etcd::shared().port);
    let service = Service::at(Implementation::Etcd2, etcd::shared().endpoint(), &proxy.endpoint());
    let mount = Mount::of("etcd2", &proxy.endpoint(), &service.root, &["--remote-operation-timeout=30s"]);
    mount.sh("ls global");
    proxy.silence(true);
    let mut command = bound_command("cat");
    command.arg(mount.path("zone1/tablets")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waits = spawn_bound(command);
    let expected = format!("process {}: cat (waits", waits.id());
    eventually("it is named", || {
        let (code, told) = Place::new().topofs(&format!("umount {}", mount.point().display()));
        assert_eq!(code, 1, "{told}");
        (told.contains(&expected) || told.contains("operations in flight")).then_some(())
    });
    proxy.silence(false);
    let _ = waits.kill();
    waits.wait().unwrap();
}

#[test]
fn nothing_else_is_unmounted() {
    let place = Place::new();
    place.sh("mkdir m t over plain; ln -s m link; ln -s t far");
    let (code, told) = alone(
        place.dir(),
        "$T demo m; $T demo over; mount -t tmpfs x t; mount -t tmpfs x over
         for p in link far t over plain none m/global link/global /; do $T umount $p; echo $p $?; done
         grep -c -e ' m ' -e fuse.topofs /proc/mounts; mountpoint -q t && mountpoint -q m && echo there
         umount over; $T umount --all; echo all $?; grep -c fuse.topofs /proc/mounts; mountpoint t",
    );
    let told = told.replace(&place.dir().display().to_string(), "DIR");
    assert_eq!(code, 0, "{told}");
    for part in [
        "topofs: link: it is a symbolic link to m: name the mount point itself\nlink 1\n",
        "topofs: far: it is a symbolic link to t: name the mount point itself\nfar 1\n",
        "topofs: t: it is a mount of another kind (tmpfs), not of topofs\nt 1\n",
        "topofs: over: something else (tmpfs) is mounted over it: unmount that first\nover 1\n",
        "topofs: plain: nothing is mounted there\nplain 1\n",
        "topofs: none: there is no such directory\nnone 1\n",
        "topofs: m/global: it is in a mount of topofs; the mount point is DIR/m\nm/global 1\n",
        "topofs: link/global: it is in a mount of topofs; the mount point is DIR/m\nlink/global 1\n",
        "\n2\nthere\nall 0\n0\nt is a mountpoint\n",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
}
