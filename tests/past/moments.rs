//! `.topofs/at`: snapshots that are made, and moments of the past that are looked up; through real mounts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use topofs::backend::Implementation;
use topofs::name::TopoPath;
use topofs::record::{Codec, Form};
use topofs::sample::Cluster;

use crate::common::etcd::Etcd;
use crate::common::mount::{Mount, write_knowingly};
use crate::common::world::{self, Service, runtime};
use crate::common::{DEADLINE, eventually};
use crate::{on_each_backend, on_each_service};

const OWNER: &str = "global/metadata/owner";

#[track_caller]
fn errno(mount: &Mount, path: &str) -> i32 {
    std::fs::metadata(mount.path(path)).expect_err(path).raw_os_error().unwrap()
}

/// The reasons of the last errors of a path, the newest first.
fn reasons(mount: &Mount, path: &str) -> Vec<String> {
    let mut errors = mount.errors();
    errors.reverse();
    let of_path = errors.into_iter().filter(|error| error["path"].as_str().unwrap().ends_with(path));
    of_path.map(|error| error["reason"].as_str().unwrap().to_owned()).collect()
}

fn entries(mount: &Mount, dir: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(mount.path(dir)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A time as people write it.
fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

#[test]
fn a_revision_of_etcd_is_looked_up_by_its_number() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    std::fs::write(mount.path(OWNER), "one").unwrap();
    let one = mount.version(OWNER);
    write_knowingly(mount.path(OWNER), "two");
    let two = mount.version(OWNER);
    mount.sh("rm -r zone1/tablets global/keyspaces/commerce");
    mount.sh("mkdir -p global/metadata && echo later > global/metadata/later");
    let last = mount.version("global/metadata/later");
    for (revision, value, there) in [(one, "one", true), (two, "two", true), (last, "two", false)] {
        let at = format!(".topofs/at/{revision}");
        assert_eq!(mount.read(&format!("{at}/{OWNER}")), value);
        assert_eq!(mount.path(&format!("{at}/zone1/tablets")).exists(), there);
        assert_eq!(mount.path(&format!("{at}/global/keyspaces/commerce/Keyspace.json")).exists(), there);
        assert_eq!(mount.path(&format!("{at}/global/metadata/later")).exists(), !there);
        assert_eq!(entries(&mount, &at), ["global", "zone1", "zone2"].map(str::to_owned).into());
        assert_eq!(mount.read(&format!("{at}/.missing")), "");
    }
    // In all forms, with the version of then, and for reading only.
    let tablet = format!(".topofs/at/{one}/zone1/tablets/zone1-0000000100/Tablet");
    assert!(mount.read(&format!("{tablet}.txt")).contains("cell: \"zone1\""));
    assert!(mount.read(&format!("{tablet}.json")).contains("\"cell\": \"zone1\""));
    assert_eq!(mount.version(&format!(".topofs/at/{one}/{OWNER}")), one);
    let write = std::fs::write(mount.path(&format!(".topofs/at/{one}/{OWNER}")), "x").unwrap_err();
    assert_eq!(write.raw_os_error(), Some(libc::EROFS));
    let changed = mount.bash(&format!("cd .topofs/at; diff -rq {one} {two}; diff -rq {two} {last} | wc -l"));
    let changed = String::from_utf8(changed.stdout).unwrap();
    assert!(changed.starts_with(&format!("Files {one}/{OWNER} and {two}/{OWNER} differ\n")), "{changed}");
    // Restoring is copying.
    mount.sh(&format!("cp -r .topofs/at/{one}/global/keyspaces/commerce global/keyspaces/"));
    assert!(mount.path("global/keyspaces/commerce/shards").exists());
    // They are not listed, not made and not removed.
    assert_eq!(entries(&mount, ".topofs/at"), BTreeSet::new());
    let removed = std::fs::remove_dir(mount.path(&format!(".topofs/at/{one}"))).unwrap_err();
    assert_eq!(removed.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_number_is_a_revision_or_nothing() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    let revision = mount.version(OWNER);
    for name in [format!("0{revision}"), "0".to_owned(), "+7".to_owned(), "99999999999999999999".to_owned()] {
        assert_eq!(errno(&mount, &format!(".topofs/at/{name}")), libc::ENOENT, "{name}");
        assert!(reasons(&mount, &name)[0].contains("a revision is written as etcd prints it"), "{name}");
    }
    let future = (revision + 1_000_000_000).to_string();
    assert_eq!(errno(&mount, &format!(".topofs/at/{future}")), libc::ENOENT);
    assert!(reasons(&mount, &future)[0].contains("future revision"), "{:?}", reasons(&mount, &future));
    for name in [&future, "2026-11-26T10:00:00Z", "2026-11-26T10:00", "007"] {
        let made = std::fs::create_dir(mount.path(&format!(".topofs/at/{name}"))).unwrap_err();
        assert_eq!(made.raw_os_error(), Some(libc::EINVAL), "{name}");
        assert!(reasons(&mount, name)[0].contains("give the snapshot another name"), "{name}");
    }
    std::fs::create_dir(mount.path(".topofs/at/2026-11-26")).unwrap();
}

#[test]
fn what_keeps_no_revisions_says_so() {
    let service = Service::zk2();
    let mount = service.mount(&[]);
    assert_eq!(errno(&mount, ".topofs/at/1"), libc::ENOENT);
    let reasons = reasons(&mount, "at/1");
    assert!(reasons[0].contains("keeps no earlier revisions") && reasons[0].contains("zk2:"), "{reasons:?}");
}

/// The sample cluster, with `zone2` on an etcd of its own.
fn two_servers(first: &Etcd, second: &Etcd) -> String {
    let (codec, root) = (Codec::builtin().unwrap(), "/t".to_owned());
    let cluster = Cluster { root: root.clone(), ..Cluster::demo(&first.endpoint()) };
    world::load(&*world::etcd_cell(&first.endpoint(), &root), &cluster);
    world::load(&*world::etcd_cell(&second.endpoint(), &root), &cluster);
    let text = format!("server_address: \"{}\" root: \"{root}/zone2\"", second.endpoint());
    let info = codec.store("topodata.CellInfo", Form::Text, &text.into(), None).unwrap().unwrap();
    let change = world::put("global/cells/zone2/CellInfo", info);
    runtime().block_on(world::etcd_cell(&first.endpoint(), &root).apply(&[change])).unwrap();
    root
}

#[test]
fn a_revision_that_is_compacted_or_not_answered_is_an_error_in_time() {
    let (first, second) = (Etcd::start(), Etcd::start());
    let root = two_servers(&first, &second);
    let flags = ["--remote-operation-timeout=1s", "--stale-after=2s"];
    let mount = Mount::etcd(&first.endpoint(), &root, &flags);
    let revision = first.revision();
    mount.sh(&format!("ls zone1 zone2; echo now > {OWNER}"));
    let at = |revision: u64| format!(".topofs/at/{revision}/global/metadata");
    // What another service keeps is missing.
    let missing = mount.read(&format!(".topofs/at/{revision}/.missing"));
    assert_eq!(missing, format!("zone2: kept by another service: etcd2:{}/t/zone2\n", second.endpoint()));
    assert_eq!(
        entries(&mount, &format!(".topofs/at/{revision}")),
        [".missing", "global", "zone1"].map(str::to_owned).into()
    );
    first.pause();
    // What was read is still there; another revision would have to be read.
    assert!(mount.path(&at(revision)).exists());
    let begun = std::time::Instant::now();
    let stopped = mount.bash(&format!("timeout 20 stat {} 2>&1; timeout 20 ls zone2", at(revision - 1)));
    let stopped = String::from_utf8(stopped.stdout).unwrap();
    assert!(stopped.contains("Connection timed out") && stopped.contains("keyspaces"), "{stopped}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    first.resume();
    eventually("the revision is read", || mount.path(&at(revision - 1)).exists().then_some(()));
    // Compacted: it is gone, and that is all.
    first.put("/t/global/metadata/owner", b"after");
    let last = first.revision();
    first.ctl(&["compact", &last.to_string()]);
    assert_eq!(errno(&mount, &format!(".topofs/at/{}", revision - 2)), libc::ENOENT);
    let reasons = reasons(&mount, &format!("at/{}", revision - 2));
    assert!(reasons[0].contains("compacted"), "{reasons:?}");
    assert_eq!(mount.read(&format!("{}/owner", at(last))), "after");
    mount.sh("ls global zone1 zone2");
}

#[test]
fn a_cell_that_does_not_answer_is_missing_from_a_snapshot_which_says_so() {
    let (first, mut second) = (Etcd::start(), Etcd::start());
    let root = two_servers(&first, &second);
    let mount = Mount::etcd(&first.endpoint(), &root, &["--remote-operation-timeout=1s", "--stale-after=1s"]);
    mount.sh("ls zone2; mkdir .topofs/at/before");
    second.kill();
    eventually("zone2 is down", || (mount.status()["cells"]["zone2"]["state"] == "down").then_some(()));
    mount.sh("mkdir .topofs/at/after");
    assert_eq!(entries(&mount, ".topofs/at/before"), ["global", "zone1", "zone2"].map(str::to_owned).into());
    assert_eq!(mount.read(".topofs/at/before/.missing"), "");
    assert!(mount.path(".topofs/at/before/zone2/tablets").exists(), "it was there");
    assert_eq!(entries(&mount, ".topofs/at/after"), [".missing", "global", "zone1"].map(str::to_owned).into());
    let missing = mount.read(".topofs/at/after/.missing");
    let expected = format!("cell zone2 (etcd2:{}/t/zone2) is not reachable", second.endpoint());
    assert!(missing.starts_with("zone2: since 20") && missing.contains(&expected), "{missing}");
    assert_eq!(missing.lines().count(), 1, "{missing}");
    assert_eq!(errno(&mount, ".topofs/at/after/zone2"), libc::ENOENT);
    // An archive of it says so, too.
    assert!(mount.sh("tar -C .topofs/at/after -c . | tar -t").contains("./.missing\n"));
}

on_each_backend! {
    fn a_time_at_which_the_mount_was_there_is_looked_up(world) {
        let mount = &world.mount;
        let before = now();
        assert_eq!(errno(mount, ".topofs/at/2001-09-09T01:46:40Z"), libc::ENOENT);
        let unknown = reasons(mount, "2001-09-09T01:46:40Z");
        assert!(unknown[0].contains("this mount has known the cell since"), "{unknown:?}");
        assert_eq!(errno(mount, ".topofs/at/2999-01-01T00:00:00Z"), libc::ENOENT);
        let future = reasons(mount, "2999-01-01T00:00:00Z");
        assert!(future[0].contains("has not come yet"), "{future:?}");
        // A watch tells within seconds that nothing has happened.
        let there = |time: &str| {
            let shown = mount.path(&format!(".topofs/at/{time}/global"));
            eventually("the time is known", || shown.exists().then_some(()));
        };
        there(&before);
        let first = mount.read(OWNER);
        write_knowingly(mount.path(OWNER), "changed");
        mount.sh("rm -r global/keyspaces/commerce");
        let between = now();
        write_knowingly(mount.path(OWNER), "again");
        there(&between);
        assert_eq!(mount.read(&format!(".topofs/at/{before}/{OWNER}")), first);
        assert!(mount.path(&format!(".topofs/at/{before}/global/keyspaces/commerce/VSchema.json")).exists());
        assert_eq!(mount.read(&format!(".topofs/at/{between}/{OWNER}")), "changed");
        assert!(!mount.path(&format!(".topofs/at/{between}/global/keyspaces/commerce")).exists());
        assert_eq!(mount.read(OWNER), "again");
        // Another spelling, the same moment.
        let zone = between.replace('Z', "+00:00");
        assert_eq!(mount.read(&format!(".topofs/at/{zone}/{OWNER}")), "changed");
        // zone1 was not loaded yet.
        let missing = mount.read(&format!(".topofs/at/{between}/.missing"));
        assert!(missing.contains("zone1: ") && missing.contains("has not loaded the cell yet"), "{missing}");
    }
}

on_each_service! {
    /// A writer that always changes two records in one transaction.
    fn no_snapshot_shows_half_of_a_transaction(service) {
        const SNAPSHOTS: usize = 300;
        let mount = service.mount(&["--record=*/**"]);
        mount.sh("ls zone1 > /dev/null");
        let stop = Arc::new(AtomicBool::new(false));
        let (cell, ends) = (service.cell(), stop.clone());
        let write = move |number: u64| {
            let changes = ["zone1/rules/one", "zone1/metadata/two"].map(|path| world::put(path, number.to_string()));
            runtime().block_on(cell.apply(&changes)).unwrap().at.0
        };
        write(0);
        let mut revisions = Vec::new();
        let writer = std::thread::spawn(move || {
            for number in 1.. {
                revisions.push((write(number), number));
                if ends.load(Ordering::Relaxed) {
                    return revisions;
                }
            }
            unreachable!()
        });
        eventually("the records are there", || mount.path("zone1/metadata/two").exists().then_some(()));
        let both = |at: &str| ["rules/one", "metadata/two"].map(|name| mount.read(&format!("{at}/zone1/{name}")));
        let (mut seen, mut number) = (BTreeSet::new(), 0);
        let deadline = std::time::Instant::now() + 4 * DEADLINE;
        while number < SNAPSHOTS || seen.len() <= 20 {
            assert!(std::time::Instant::now() < deadline, "the writer writes: {} of {number}", seen.len());
            let at = format!(".topofs/at/s{number}");
            std::fs::create_dir(mount.path(&at)).unwrap();
            let both = both(&at);
            assert_eq!(both[0], both[1], "snapshot {number}");
            seen.insert(both[0].clone());
            std::fs::remove_dir(mount.path(&at)).unwrap();
            number += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let revisions = writer.join().unwrap();
        if service.implementation == Implementation::Etcd2 {
            for (revision, number) in revisions.iter().step_by(revisions.len() / 10) {
                let both = both(&format!(".topofs/at/{revision}"));
                assert_eq!(both, [number.to_string(), number.to_string()], "revision {revision}");
            }
        }
    }
}

/// All keys of a service below the mount with their bytes.
fn stored(service: &Service) -> std::collections::BTreeMap<String, Vec<u8>> {
    let listing = runtime().block_on(service.cell().list(&TopoPath::root())).unwrap();
    listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value.to_vec())).collect()
}

#[test]
fn a_snapshot_restored_into_another_implementation_is_the_same_byte_for_byte() {
    let flags = ["--list=raw", "--record=*/**"];
    let from = Service::etcd2();
    from.put("global/routing_rules/keyspace/Rules", b"");
    from.put("global/metadata/a name, with 'quotes' and a \\", b"any \0 bytes");
    from.put("zone1/rules/custom", &vec![b'x'; 300_000]);
    let then = stored(&from);
    let mount = from.mount(&flags);
    mount.sh("mkdir .topofs/at/then");
    // The snapshot does not change while the tree does.
    mount.sh("rm -r global/keyspaces/commerce zone1/tablets; echo new > global/metadata/new; echo x > zone2/new");
    mount.sh("rm global/metadata/owner");
    let archive = tempfile::NamedTempFile::new().unwrap();
    mount.sh(&format!("tar -C .topofs/at/then -cf {} .", archive.path().display()));
    // Into memory: its cells are where the records of etcd say.
    let memory = Mount::of("memory", "somewhere", "/empty", &flags);
    assert_eq!(entries(&memory, "global"), BTreeSet::new());
    let restore = format!("tar -xf {}", archive.path().display());
    memory.sh(&format!("{restore}; mkdir .topofs/at/restored"));
    assert_eq!(memory.errors(), [] as [serde_json::Value; 0]);
    let both = [mount.path(".topofs/at/then"), memory.path(".topofs/at/restored")];
    mount.sh(&format!("diff -r {} {}", both[0].display(), both[1].display()));
    for (key, value) in &then {
        assert_eq!(&std::fs::read(memory.path(key)).unwrap(), value, "{key}");
    }
    // Into ZooKeeper: its cells are elsewhere.
    let other = Service { implementation: Implementation::Zk2, ..Service::zk2() };
    let kept: Vec<String> = other.keys().into_iter().filter(|key| key.ends_with("/CellInfo")).collect();
    for key in other.keys().iter().filter(|key| !kept.contains(key)) {
        other.delete(key);
    }
    let zookeeper = other.mount(&flags);
    zookeeper.sh(&format!("{restore} --exclude=CellInfo"));
    zookeeper.stop();
    let without_places = |mut all: std::collections::BTreeMap<String, Vec<u8>>| {
        all.retain(|key, _| !key.ends_with("/CellInfo"));
        all
    };
    assert!(without_places(stored(&other)) == without_places(then), "they are not the same");
}
