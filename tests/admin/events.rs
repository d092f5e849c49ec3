//! `topofs events` and `topofs errors`: readable lines of what happens, and an end when nobody reads or nothing more
//! can come.

use std::process::{Command, Stdio};

use crate::common::mount::{Lines, Mount, TOPOFS, lines};
use crate::common::world::Service;
use crate::common::{eventually, signal, text};
use crate::shell::{Place, alone};
use nix::sys::signal::Signal;

const OWNER: &str = "global/metadata/owner";

/// The output of `topofs ARGS` in the root of a mount, without the times.
fn told(mount: &Mount, args: &str) -> String {
    mount.sh(&format!("TZ=UTC {TOPOFS} {args}"))
}

fn follow(mount: &Mount, args: &[&str]) -> Lines {
    let mut command = Command::new(TOPOFS);
    command.args(args).arg("-f").current_dir(mount.outside()).arg("m").stdin(Stdio::null()).stderr(Stdio::null());
    lines(command)
}

#[test]
fn what_happens_is_one_readable_line_each() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    mount.sh(&format!("cat {OWNER} > /dev/null; echo new > {OWNER}; exec 9> global/keyspaces/commerce/.lock; flock 9"));
    service.put("global/metadata/other", b"x");
    service.delete("global/metadata/other");
    let all = eventually("all is told", || Some(told(&mount, "events")).filter(|all| all.contains("deleted")));
    let line = |words: &[&str]| {
        let found = all.lines().find(|line| words.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("{words:?} in {all}")).to_owned()
    };
    let changed = line(&["changed", OWNER, " -> ", "by root (bash, pid "]);
    line(&["created", "global/metadata/other", "by somebody else's client"]);
    line(&["deleted", "global/metadata/other", "was version"]);
    line(&["unlocked", "global/keyspaces/commerce/.lock", "held by root@"]);
    // Below a path, in any form of a record, by any way to write it.
    for path in ["global/keyspaces", "global/keyspaces/commerce", "./global/keyspaces/commerce/.lock"] {
        let below = told(&mount, &format!("events {path}"));
        assert!(below.contains("unlocked") && !below.contains("metadata"), "{path}: {below}");
    }
    assert_eq!(told(&mount, &format!("events {OWNER}.txt")), format!("{changed}\n"));
    // Since then.
    assert_eq!(told(&mount, "events --since 1h"), all);
    assert_eq!(told(&mount, "events --since 2099-01-01"), "");
    let zone = mount.sh(&format!("TZ=Asia/Kolkata {TOPOFS} events {OWNER}"));
    assert_ne!(zone.get(..16), changed.get(..16), "the local time");
    // As the mount has them.
    assert_eq!(told(&mount, "events --json"), mount.control("events"));
    assert!(told(&mount, "events --color=always").contains("\u{1b}[33mchanged"));
    let coloured = mount.sh(&format!("NO_COLOR=1 script -qec '{TOPOFS} events' /dev/null"));
    assert!(!coloured.contains("\u{1b}[33m"), "{coloured}");
}

#[test]
fn events_are_followed_until_the_mount_ends() {
    let mut mount = Some(Mount::new(&["demo"]));
    let living = mount.as_ref().unwrap();
    living.sh(&format!("cat {OWNER} > /dev/null; echo 1 > {OWNER}"));
    let script = format!("{TOPOFS} events -f m > followed 2> said; echo $? > code");
    let mut child = Command::new("bash").args(["-c", &script]).current_dir(living.outside()).spawn().unwrap();
    let read = |name: &str| std::fs::read_to_string(living.outside().join(name)).unwrap_or_default();
    eventually("the first is told", || read("followed").contains("changed").then_some(()));
    living.sh(&format!("rm {OWNER}"));
    eventually("the next is told", || read("followed").contains("deleted").then_some(()));
    let kept = tempfile::tempdir().unwrap();
    let outside = living.outside().to_owned();
    signal(living.pid(), Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
    std::fs::copy(outside.join("code"), kept.path().join("code")).unwrap();
    let said = std::fs::read_to_string(outside.join("said")).unwrap();
    assert!(said.contains("the mount has ended"), "{said}");
    assert_eq!(std::fs::read_to_string(kept.path().join("code")).unwrap(), "0\n");
    drop(mount.take());
}

#[test]
fn who_follows_ends_with_its_reader_and_with_ctrl_c() {
    let mount = Mount::new(&["demo"]);
    mount.sh(&format!("cat {OWNER} > /dev/null; echo 1 > {OWNER}"));
    // Nothing more happens, and it ends all the same.
    for command in ["events", "errors"] {
        mount.bash("echo 'bogus: 1' > global/keyspaces/commerce/Keyspace.txt");
        let line = mount.sh(&format!("set -o pipefail; timeout 20 {TOPOFS} {command} -f | head -n 1"));
        assert_eq!(line.lines().count(), 1, "{line}");
        let interrupted = "timeout --foreground -s INT --preserve-status 1";
        let output = mount.bash(&format!("{interrupted} {TOPOFS} {command} -f > /dev/null; echo $?"));
        assert_eq!(text(&output), "130\n", "{command}");
    }
    // Nobody is left who reads the mount.
    eventually("the mount can be unmounted", || {
        let (code, _) = Place::new().topofs(&format!("umount {}", mount.point().display()));
        (code == 0).then_some(())
    });
}

#[test]
fn what_could_not_be_written_is_no_success() {
    let mount = Mount::new(&["demo"]);
    mount.sh(&format!("cat {OWNER} > /dev/null; echo 1 > {OWNER}"));
    mount.bash("echo 'bogus: 1' > global/keyspaces/commerce/Keyspace.txt");
    eventually("there is something to tell", || (!mount.control("events").is_empty()).then_some(()));
    for command in [
        "events",
        "events -f",
        "events --json",
        "errors",
        "errors --json",
        "errors -f",
        "status .",
        "status --json .",
        "status -1 .",
        "check --json memory",
        "status --help",
        "validate --help",
    ] {
        let output = mount.bash(&format!("timeout 20 {TOPOFS} {command} 2>&1 > /dev/full; echo $?"));
        assert_eq!(text(&output), "topofs: write error: No space left on device\n2\n", "{command}");
        // A reader that has left has seen enough.
        let output = mount.bash(&format!("timeout 20 {TOPOFS} {command} 2>&1 > >(exec true); true"));
        assert_eq!(text(&output), "", "{command}");
    }
    let output = mount.bash(&format!("{TOPOFS} mount --help 2>&1 > /dev/full; echo $?"));
    assert_eq!(text(&output), "topofs: write error: No space left on device\n1\n");
}

#[test]
fn refusals_have_their_place_and_reason_and_are_followed() {
    let mount = Mount::new(&["demo"]);
    let refuse = |field: &str| {
        let file = "global/keyspaces/commerce/Keyspace.txt";
        assert!(!mount.bash(&format!("printf 'durability_policy: \"x\"\\n  {field}: 1\\n' > {file}")).status.success());
    };
    refuse("bogus");
    let all = told(&mount, "errors");
    for part in ["EBADMSG", "global/keyspaces/commerce/Keyspace.txt:2:3", "'bogus' not found", "by root (pid "] {
        assert!(all.contains(part), "{part} in {all}");
    }
    assert_eq!(told(&mount, "errors global/keyspaces/commerce/Keyspace"), all);
    assert_eq!(told(&mount, "errors zone1"), "");
    assert_eq!(told(&mount, "errors --json"), mount.control("errors"));
    let followed = follow(&mount, &["errors"]);
    assert!(followed.next().contains("bogus"));
    refuse("more");
    assert!(followed.next().contains("'more' not found"));
}

#[test]
fn the_mount_is_that_of_the_directory_or_the_only_one() {
    let place = Place::new();
    place.sh("mkdir a b");
    let (code, told) = alone(
        place.dir(),
        "$T events; echo none $?
         $T demo a; echo 1 > a/global/metadata/first
         $T events > only; echo only $? $(wc -l < only)
         $T events global/metadata > below; echo below $? $(wc -l < below); $T events zone1 | wc -l
         $T events nonsense; echo nonsense $?
         $T events global/no/such; $T events global/cells
         $T unlock global/keyspaces/commerce; echo free $?
         $T demo b; $T events; echo two $?
         $T events b | wc -l; (cd a/global/cells; $T events | wc -l)
         $T events global/metadata; echo short $?
         $T umount a; $T umount b",
    );
    let told = told.replace(&place.dir().display().to_string(), "DIR");
    assert_eq!(code, 0, "{told}");
    for part in [
        "topofs: there is no mount of topofs on this host\nnone 2\n",
        "only 0 1\nbelow 0 1\n0\n",
        "topofs: nonsense is neither in a mount of topofs nor a path of a topology\nnonsense 2\n",
        "name one of DIR/a, DIR/b\ntwo 2\n0\n1\n",
        "global/metadata is not in a mount: there are several mounts of topofs on this host: name one of DIR/a, \
         DIR/b\nshort 2\n",
        "nothing is known of global/no/such, and nothing is there\n",
        "keyspaces/commerce is not locked.\nfree 0\n",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn hostile_names_reach_no_terminal() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let name = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\n2026-01-01 forged";
    service.put(&format!("global/metadata/{name}"), b"x");
    eventually("it is told", || mount.control("events").contains("forged").then_some(()));
    let _ = std::fs::write(mount.path(&format!("global/keyspaces/{name}/Keyspace.txt")), "bogus");
    mount.bash("echo 'a\u{9b}\u{202e}: 1' > global/keyspaces/commerce/Keyspace.txt");
    for command in ["events", "errors", "events --json", "errors --json"] {
        let output = told(&mount, command);
        assert!(!output.is_empty(), "{command}");
        assert!(output.lines().all(|line| line.starts_with("20") || line.starts_with('{')), "{command}: {output:?}");
        assert!(!output.lines().any(|line| line.starts_with("2026-01-01 forged")), "{command}: {output:?}");
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!output.chars().any(bad), "{command}: {output:?}");
    }
}
