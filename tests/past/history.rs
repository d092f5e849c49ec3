//! `.topofs/history`: what records were, on real services, after edits by several tools.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use topofs::backend::Implementation;

use crate::common::etcd::Etcd;
use crate::common::mount::Mount;
use crate::common::world::{Service, World, put, runtime};
use crate::common::{eventually, signal, text};
use crate::on_each_service;

const SHARD: &str = "global/keyspaces/hist/shards/0/Shard";
const PAST: &str = ".topofs/history/global/keyspaces/hist/shards/0/Shard";
/// Versions that a mount remembers in these tests.
const KEPT: usize = 12;

/// A Shard record whose primary has this number.
fn shard(uid: u8) -> Vec<u8> {
    [&b"\x0a\x09\x0a\x05zone1\x10"[..], &[uid]].concat()
}

/// The names in a directory, the oldest version first.
fn names(mount: &Mount, dir: &str) -> Vec<String> {
    mount.sh(&format!("ls -v {dir}")).lines().map(ToOwned::to_owned).collect()
}

fn shows(mount: &Mount, uid: u8) {
    let wanted = format!("uid: {uid}\n");
    eventually("the edit is shown", || mount.read(&format!("{SHARD}.txt")).contains(&wanted).then_some(()));
}

/// Edits by three tools; returns the version of each state.
fn edit(service: &Service, one: &Mount, other: &Mount, uids: std::ops::Range<u8>) -> Vec<u64> {
    uids.map(|uid| {
        match uid % 3 {
            0 => drop(one.sh(&format!("sed -i 's/uid: .*/uid: {uid}/' {SHARD}.txt"))),
            1 => service.put(SHARD, &shard(uid)),
            _ => drop(other.sh(&format!(
                "cat {SHARD}.txt > /dev/null; printf 'primary_alias {{ cell: \"zone1\" uid: {uid} }}' > {SHARD}.txt"
            ))),
        }
        shows(one, uid);
        shows(other, uid);
        one.version(SHARD)
    })
    .collect()
}

/// Every state is there in each form, and can be restored.
fn check_states(service: &Service, mount: &Mount, first: u8, versions: &[u64]) {
    for (uid, version) in (first..).zip(versions) {
        let at = format!("{PAST}/{version}");
        assert_eq!(std::fs::read(mount.path(&at)).unwrap(), shard(uid), "{at}");
        assert!(mount.read(&format!("{at}.txt")).contains(&format!("uid: {uid}\n")));
        assert!(mount.read(&format!("{at}.json")).contains(&format!("\"uid\": {uid}\n")));
    }
    for (uid, version) in [(first, versions[0]), (first + 1, versions[1])] {
        mount.sh(&format!("cp {PAST}/{version}.json {SHARD}.json"));
        assert_eq!(service.get(SHARD).unwrap(), shard(uid));
    }
}

on_each_service! {
    fn fifty_edits_by_three_tools_can_be_read_back_and_restored(service) {
        service.put(SHARD, &shard(49));
        let flags = ["--history", &KEPT.to_string()];
        let (mut one, other) = (service.mount(&flags), service.mount(&[]));
        let versions = edit(&service, &one, &other, 50..100);
        let keeps_all = service.implementation == Implementation::Etcd2;
        let (first, known) = if keeps_all { (50, &versions[..]) } else { (100 - KEPT as u8, &versions[50 - KEPT..]) };
        let listed = names(&one, PAST);
        // The one before the oldest known edit is known, too.
        assert_eq!(listed.len(), 3 * (known.len() + 1), "{listed:?}");
        let last = ["", ".json", ".txt"].map(|form| format!("{}{form}", versions[49]));
        assert!(listed.ends_with(&last), "{listed:?}");
        let by_time = one.sh(&format!("ls -tr {PAST}/*.txt | tail -n {}", known.len()));
        let number = |line: &str| line.rsplit('/').next()?.strip_suffix(".txt")?.parse().ok();
        let by_time: Vec<u64> = by_time.lines().map(|line| number(line).unwrap()).collect();
        assert_eq!(by_time, known);
        let log = one.read(&format!("{PAST}/.log"));
        assert_eq!(log.lines().count(), known.len() + 1, "{log}");
        let changed = |uid: u8| format!("primary_alias.uid {} -> {uid}", uid - 1);
        let line = |uid: u8| log.lines().find(|line| line.ends_with(&changed(uid))).unwrap();
        let by_sed = line(99);
        for part in [&format!(" {} ", versions[49]), " pid ", " sed: "] {
            assert!(by_sed.contains(part), "{by_sed}");
        }
        assert!(line(98).contains(" elsewhere: ") && line(97).contains(" elsewhere: "), "{log}");
        let by = one.xattr(&format!("{PAST}/{}.txt", versions[49]), "user.topo.by").unwrap();
        assert!(by.contains("(uid 0)") && by.ends_with(" sed"), "{by}");
        check_states(&service, &one, first, known);
        let usage = one.status()["history"].clone();
        assert!(usage["versions"].as_u64().unwrap() >= KEPT as u64 && usage["bytes"].as_u64().unwrap() > 0, "{usage}");
        if keeps_all {
            signal(one.pid(), Signal::SIGKILL);
            drop(one);
            one = service.mount(&flags);
            check_states(&service, &one, first, known);
            assert!(one.read(&format!("{PAST}/.log")).contains("primary_alias.uid 98 -> 99"));
        }
    }

    fn a_deleted_record_keeps_its_past_and_a_new_one_of_its_name_has_another(service) {
        let mount = service.mount(&[]);
        let dir = ".topofs/history/global/metadata/gone";
        let change = |value: &str| mount.sh(&format!("echo {value} > global/metadata/gone"));
        change("one");
        change("two");
        mount.sh("rm global/metadata/gone");
        assert!(names(&mount, ".topofs/history/global/metadata").contains(&"gone".to_owned()));
        let listed = names(&mount, dir);
        assert!(listed.len() == 3 && listed[2].ends_with(".deleted"), "{listed:?}");
        assert_eq!(mount.read(&format!("{dir}/{}", listed[1])), "two\n");
        let log = mount.read(&format!("{dir}/.log"));
        assert!(log.ends_with(" rm: deleted\n") && log.lines().count() == 3, "{log}");
        // Restoring is cp.
        mount.sh(&format!("cp {dir}/{} global/metadata/gone", listed[0]));
        assert_eq!(service.get("global/metadata/gone").unwrap(), b"one\n");
        let again = names(&mount, dir);
        assert_eq!(again[..3], listed[..], "names stay");
        assert_eq!((again.len(), mount.read(&format!("{dir}/{}", again[3]))), (4, "one\n".to_owned()));
        assert!(mount.read(&format!("{dir}/.log")).lines().last().unwrap().ends_with(" cp: created: \"one\\n\""));
        if service.implementation == Implementation::Zk2 {
            assert!(again[0] == "0" && again[3].ends_with("-0"), "{again:?}");
        }
        // What is shown fits what is read, by every tool that walks.
        let script = format!(
            "cat {dir}/*; grep -r one {dir} > /dev/null; find {dir} -type f -size +0 | grep -q . ; \
             cp -rp {dir} ../copy; diff -r {dir} ../copy; \
             tar -C {dir} -cf - . | tar -C ../copy -xf - ; diff -r {dir} ../copy"
        );
        mount.sh(&script);
        for script in ["echo x > $F", "rm $F", "mkdir $D/x", "mv $F $D/x", "touch $F", "ln -s a $D/x"] {
            let output = mount.bash(&format!("F={dir}/{} D={dir}; {script}", again[0]));
            let said = text(&output);
            assert!(!output.status.success() && said.contains("Read-only file system"), "{script}: {said}");
        }
    }
}

/// The errno of a read, in time.
fn refused(mount: &Mount, path: &str) -> i32 {
    let begun = Instant::now();
    let errno = std::fs::read(mount.path(path)).unwrap_err().raw_os_error().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "{path}");
    errno
}

#[test]
fn etcd_tells_what_was_before_the_mount_until_it_is_compacted() {
    let etcd = Etcd::start();
    let service = Service::new(Implementation::Etcd2, etcd.endpoint());
    let gone = "global/keyspaces/gone/Keyspace";
    let dir = format!(".topofs/history/{gone}");
    let versions: Vec<u64> = (50..55)
        .map(|uid| {
            service.put(SHARD, &shard(uid));
            etcd.revision()
        })
        .collect();
    for _ in 0..2 {
        service.put(gone, b"");
        service.put(gone, b"\x42\x04none");
        service.delete(gone);
    }
    let mount = service.mount(&[]);
    // Nothing lists a record any more that was deleted before the mount was made, but for etcd itself.
    let lives = names(&mount, &dir);
    assert_eq!((lives.len(), lives.iter().filter(|name| name.ends_with(".deleted")).count()), (14, 2), "{lives:?}");
    assert!(mount.read(&format!("{dir}/{}", lives[2])).contains("none") || lives[2].ends_with(".txt"));
    assert!(names(&mount, ".topofs/history/global/keyspaces").contains(&"gone".to_owned()));
    let log = mount.read(&format!("{dir}/.log"));
    assert_eq!(log.matches("created: empty").count(), 2, "{log}");
    assert_eq!(log.matches(": deleted").count(), 2, "{log}");
    assert_eq!(refused(&mount, ".topofs/history/global/keyspaces/never/Keyspace/.log"), libc::ENOENT);
    check_states(&service, &mount, 50, &versions);
    let shown = mount.version(SHARD);
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    eventually("what is compacted is gone", || {
        (refused_or_zero(&mount, &format!("{PAST}/{}.txt", versions[2])) == libc::ENOENT).then_some(())
    });
    // What this mount has seen, it remembers.
    assert!(mount.read(&format!("{PAST}/{shown}.txt")).contains("uid: 51"));
    assert!(mount.read(&format!("{PAST}/{}.txt", versions[4])).contains("uid: 54"));
    drop(mount);
    let mount = service.mount(&[]);
    assert_eq!(names(&mount, PAST).len(), 3, "only the present version");
    assert_eq!(refused(&mount, &format!("{PAST}/{}", versions[4])), libc::ENOENT);
    assert_eq!(refused(&mount, &format!("{dir}/.log")), libc::ENOENT);
    let errors = mount.errors();
    assert!(errors.iter().all(|error| error["errno"] != "EIO"), "{errors:?}");
}

fn refused_or_zero(mount: &Mount, path: &str) -> i32 {
    std::fs::read(mount.path(path)).err().map_or(0, |error| error.raw_os_error().unwrap())
}

#[test]
fn a_server_that_stops_while_history_is_read_is_an_error_in_time_and_other_cells_go_on() {
    let elsewhere = Etcd::start();
    let service = Service::at(Implementation::Etcd2, crate::common::etcd::shared().endpoint(), &elsewhere.endpoint());
    let tablet = "zone1/tablets/zone1-0000000100/Tablet";
    let key = format!("{}/{tablet}", service.root);
    for hostname in ["a", "b"] {
        elsewhere.put(&key, format!("\x12\x01{hostname}").as_bytes());
    }
    service.put(SHARD, &shard(50));
    let mount = service.mount(&["--remote-operation-timeout", "3s"]);
    let dir = format!(".topofs/history/{tablet}");
    let listed = names(&mount, &dir);
    assert_eq!(listed.len(), 6, "{listed:?}");
    elsewhere.pause();
    // What was read a moment ago may be read once more.
    let first = format!("{dir}/{}", listed[0]);
    let errno = eventually("it is an error", || Some(refused_or_zero(&mount, &first)).filter(|errno| *errno != 0));
    assert_eq!(errno, libc::ETIMEDOUT);
    assert_eq!(refused(&mount, &first), libc::ETIMEDOUT);
    let begun = Instant::now();
    assert_eq!(names(&mount, PAST).len(), 3);
    assert!(mount.read(&format!("{PAST}/.log")).contains("created"));
    assert!(begun.elapsed() < Duration::from_secs(3), "the other cell has its own server");
    let explained = |error: &serde_json::Value| error["reason"].as_str().is_some_and(|reason| reason.contains("zone1"));
    assert!(mount.errors().iter().any(explained), "{:?}", mount.errors());
    elsewhere.resume();
    eventually("the past is shown again", || {
        (refused_or_zero(&mount, &format!("{dir}/{}", listed[0])) == 0).then_some(())
    });
}

#[test]
fn a_hostile_record_has_a_past_that_commands_no_terminal() {
    let world = World::memory();
    let mount = &world.mount;
    let dir = ".topofs/history/global/metadata/evil";
    mount.sh(r"printf '\033[2J\xc2\x9b31m\n' > global/metadata/evil; printf '\xff\n\n' > global/metadata/evil");
    let log = mount.read(&format!("{dir}/.log"));
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.chars().all(|letter| letter == '\n' || letter == ' ' || letter.is_ascii_graphic()), "{log:?}");
    let listed = names(mount, dir);
    assert_eq!(std::fs::read(mount.path(&format!("{dir}/{}", listed[1]))).unwrap(), b"\xff\n\n");
    // Nothing is remembered if nothing is to be.
    let forgetful = Mount::new(&["demo", "--respect-locks=none", "--history", "0"]);
    forgetful.sh("echo a > global/metadata/x; echo b > global/metadata/x");
    assert_eq!(names(&forgetful, ".topofs/history/global/metadata/x").len(), 1);
    assert_eq!(forgetful.status()["history"]["bytes"], 0);
}

#[test]
fn a_record_of_bytes_that_do_not_decode_has_a_past_in_raw_form() {
    let service = Service::etcd2();
    runtime().block_on(service.cell().apply(&[put(SHARD, b"\xff\xff".to_vec())])).unwrap();
    service.put(SHARD, &shard(60));
    let mount = service.mount(&[]);
    let listed = names(&mount, PAST);
    assert_eq!(std::fs::read(mount.path(&format!("{PAST}/{}", listed[0]))).unwrap(), b"\xff\xff");
    assert_eq!(refused(&mount, &format!("{PAST}/{}.txt", listed[0])), libc::EBADMSG);
    assert!(mount.read(&format!("{PAST}/.log")).contains("can be decoded again"));
}
