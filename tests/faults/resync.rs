//! Comparisons with the service: what a watch has lost is found, whatever it was, and nothing else is transferred.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use topofs::backend::{Action, Backend, Change, Compared, Failure, Guard, Implementation, Mark, Shown, Version};
use topofs::name::TopoPath;

use crate::common::etcd::Etcd;
use crate::common::http::{Http, Reply};
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::server::fresh_root;
use crate::common::world::{cell, etcd_cell, put, runtime};
use crate::common::{consul, etcd, eventually};
use crate::rig::{stored, wait_for_state, wait_until_equal};
use crate::size::{PATIENTLY, fill};

fn counter(mount: &Mount, name: &str) -> u64 {
    mount.status()["cells"]["global"][name].as_u64().unwrap()
}

fn resync(mount: &Mount) {
    let before = counter(mount, "resyncs");
    mount.sh("echo resync global > .topofs/control");
    eventually("it is compared", || (counter(mount, "resyncs") > before).then_some(()));
}

fn delete(path: &str) -> Change {
    Change { path: TopoPath::parse(path).unwrap(), guard: Guard::Any, action: Action::Delete }
}

/// Repeatable numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

/// Keys of which the watch is not told, and what is to come of them.
struct Lost {
    cell: Arc<dyn Backend>,
    dice: Dice,
    there: BTreeSet<usize>,
    /// Number of records that were created, changed, deleted.
    expected: BTreeMap<&'static str, usize>,
}

impl Lost {
    const KEYS: usize = 300;
    const ROUNDS: usize = 10;
    const EACH: usize = 100;

    fn new(cell: Arc<dyn Backend>) -> Self {
        let there: BTreeSet<usize> = (0..Self::KEYS).step_by(2).collect();
        let lost = Self { cell, dice: Dice(11), there, expected: BTreeMap::new() };
        lost.there.iter().for_each(|key| lost.apply(put(&Self::path(*key), "first")));
        lost
    }

    fn path(key: usize) -> String {
        format!("global/metadata/lost{key:03}")
    }

    fn apply(&self, change: Change) {
        runtime().block_on(self.cell.apply(&[change])).unwrap();
    }

    /// Changes some keys, each once or in a burst, so that each differs in the end. `around` is done now and then.
    fn change(&mut self, round: usize, around: impl Fn(usize)) {
        let mut keys = BTreeSet::new();
        while keys.len() < Self::EACH {
            keys.insert(self.dice.below(Self::KEYS));
        }
        for key in keys {
            let (path, value) = (Self::path(key), format!("round {round}, {}", self.dice.below(1_000_000)));
            let (is_there, kind) = (self.there.contains(&key), self.dice.below(3));
            if kind == 0 {
                around(self.dice.below(20));
            }
            let what = match (is_there, kind) {
                (true, 0) => {
                    self.apply(delete(&path));
                    self.there.remove(&key);
                    "deleted"
                }
                (true, 1) => {
                    self.apply(put(&path, value));
                    "changed"
                }
                (true, _) => {
                    self.apply(delete(&path));
                    self.apply(put(&path, value));
                    // Another record of the same name.
                    "created"
                }
                (false, kind) => {
                    if kind == 1 {
                        self.apply(put(&path, "short"));
                        self.apply(delete(&path));
                    }
                    self.apply(put(&path, value));
                    self.there.insert(key);
                    "created"
                }
            };
            *self.expected.entry(what).or_default() += 1;
        }
    }

    /// All of them are found: counted, shown, and announced.
    fn check(&self, mount: &Mount) {
        assert_eq!(counter(mount, "missed") as usize, Self::ROUNDS * Self::EACH);
        wait_until_equal(mount, || stored(&*self.cell));
        assert_eq!(counter(mount, "reconnects"), 0, "{}", mount.log());
        let events = || {
            let events = mount.read(".topofs/events");
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for line in events.lines().filter(|line| line.contains("metadata/lost")) {
                let kind = ["created", "changed", "deleted"];
                let kind = kind.into_iter().find(|kind| line.contains(&format!("\"kind\":\"{kind}\"")));
                *counts.entry(kind.unwrap()).or_default() += 1;
            }
            counts
        };
        eventually("all events are raised", || (events() == self.expected).then_some(()));
    }
}

#[test]
fn a_comparison_finds_a_thousand_of_a_thousand_lost_messages_of_etcd() {
    let root = fresh_root();
    let server = etcd::shared();
    let mut lost = Lost::new(etcd_cell(&server.endpoint(), &root));
    let proxy = Proxy::start(server.port);
    let mount = Mount::etcd(&proxy.endpoint(), &root, &[]);
    mount.sh("ls global/metadata");
    for round in 0..Lost::ROUNDS {
        proxy.drop_containing(Some("/metadata/lost"));
        let cell = lost.cell.clone();
        let seen = |key: usize, value: &str| {
            runtime().block_on(cell.apply(&[put(&format!("global/metadata/seen{key}"), value.to_owned())])).unwrap();
        };
        lost.change(round, |key| seen(key, &format!("round {round}")));
        // The watch has told everything before it.
        eventually("the end is told", || {
            seen(99, &format!("end {round}"));
            (std::fs::read_to_string(mount.path("global/metadata/seen99")).ok()? == format!("end {round}"))
                .then_some(())
        });
        proxy.drop_containing(None);
        resync(&mount);
        assert_eq!(counter(&mount, "missed") as usize, (round + 1) * Lost::EACH, "round {round}");
    }
    assert!(proxy.dropped() >= Lost::ROUNDS * Lost::EACH, "{}", proxy.dropped());
    lost.check(&mount);
}

#[test]
fn a_comparison_finds_a_thousand_of_a_thousand_lost_changes_of_consul() {
    let root = fresh_root();
    let server = consul::shared();
    let mut lost = Lost::new(cell(Implementation::Consul, &server.endpoint(), &root));
    // When the mount looks at what has changed, nothing has.
    let is_lost = Arc::new(AtomicBool::new(false));
    let loses = is_lost.clone();
    let http = Http::before(server.port, move |request| {
        let is_look = request.line.contains("?keys=&consistent=");
        match is_look && loses.load(Ordering::SeqCst) {
            true => Reply::Answer("200 OK", "X-Consul-Index: 1\r\n".to_owned(), b"[]".to_vec()),
            false => Reply::Pass,
        }
    });
    let mount = Mount::of("consul", &http.endpoint(), &root, &[]);
    mount.sh("ls global/metadata");
    for round in 0..Lost::ROUNDS {
        is_lost.store(true, Ordering::SeqCst);
        lost.change(round, |_| {});
        // The last change is one more that is lost: of the same key, so counted once in all.
        let end = runtime().block_on(lost.cell.apply(&[put("global/end", round.to_string())])).unwrap().at;
        eventually("the mount waits for what comes next", || {
            let waits_after = |request: &String| {
                let index: Option<u64> = request.split_once("&index=")?.1.split('&').next()?.parse().ok();
                index.filter(|index| *index >= end.0)
            };
            http.requests().iter().rev().find_map(waits_after).map(drop)
        });
        is_lost.store(false, Ordering::SeqCst);
        resync(&mount);
        assert_eq!(counter(&mount, "missed") as usize, (round + 1) * (Lost::EACH + 1), "round {round}");
    }
    assert_eq!(counter(&mount, "reconnects"), 0, "{}", mount.log());
    wait_until_equal(&mount, || stored(&*lost.cell));
}

/// Bytes of a comparison, in thousandths of what was read first.
fn share(proxy: &Proxy, mount: &Mount, loading: usize, what: &str) -> usize {
    let before = proxy.bytes();
    resync(mount);
    let bytes = proxy.bytes() - before;
    println!("{what}: {bytes} bytes, loading took {loading}");
    bytes * 1_000 / loading
}

#[test]
fn a_comparison_without_news_of_etcd_transfers_next_to_nothing() {
    let root = fresh_root();
    let server = etcd::shared();
    fill(Implementation::Etcd2, &server.endpoint(), &root, 10_000);
    let proxy = Proxy::start(server.port);
    let mount = Mount::etcd(&proxy.endpoint(), &root, PATIENTLY);
    let loading = proxy.bytes();
    assert!(loading > 10_000 * 300, "{loading}");
    assert!(share(&proxy, &mount, loading, "nothing has happened") < 20);
    server.put("/elsewhere", b"x");
    assert!(share(&proxy, &mount, loading, "something elsewhere") < 20);
    server.put(&format!("{root}/global/metadata/key000077"), b"x");
    assert!(share(&proxy, &mount, loading, "a change") < 20);
    proxy.drop_containing(Some("/metadata/key005"));
    for key in ["key005001", "key005500", "key005999"] {
        server.ctl(&["del", &format!("{root}/global/metadata/{key}")]);
    }
    eventually("they are lost", || (proxy.dropped() == 3).then_some(()));
    proxy.drop_containing(None);
    assert!(share(&proxy, &mount, loading, "three lost deletions") < 50);
    assert_eq!(counter(&mount, "missed"), 3);
    assert_eq!(counter(&mount, "records"), 9_997);
}

#[test]
fn a_comparison_without_news_of_consul_transfers_next_to_nothing() {
    let root = fresh_root();
    let server = consul::shared();
    fill(Implementation::Consul, &server.endpoint(), &root, 10_000);
    let proxy = Proxy::plain(server.port);
    let mount = Mount::of("consul", &proxy.endpoint(), &root, PATIENTLY);
    let loading = proxy.bytes();
    assert!(share(&proxy, &mount, loading, "nothing has happened") < 10);
    server.curl(&["-X", "PUT", "-d", "x"], "kv/elsewhere").unwrap();
    assert!(share(&proxy, &mount, loading, "something elsewhere") < 10);
}

#[test]
fn after_an_absence_etcd_is_asked_for_what_has_happened_since() {
    let root = fresh_root();
    let server = etcd::shared();
    fill(Implementation::Etcd2, &server.endpoint(), &root, 10_000);
    let proxy = Proxy::start(server.port);
    let mount = Mount::etcd(&proxy.endpoint(), &root, PATIENTLY);
    let loading = proxy.bytes();
    proxy.cut(true);
    eventually("it is noticed", || (mount.status()["cells"]["global"]["state"] != "live").then_some(()));
    for (key, value) in [("key000001", "changed"), ("new", "created")] {
        server.put(&format!("{root}/global/metadata/{key}"), value.as_bytes());
    }
    server.ctl(&["del", &format!("{root}/global/metadata/key000002")]);
    proxy.cut(false);
    wait_for_state(&mount, "global", "live");
    let bytes = proxy.bytes() - loading;
    println!("{bytes} bytes after an absence, loading took {loading}");
    assert!(bytes * 20 < loading, "{bytes} bytes, loading took {loading}");
    assert_eq!(counter(&mount, "caught_up"), 3);
    assert_eq!(mount.read("global/metadata/key000001"), "changed");
    assert_eq!(mount.read("global/metadata/new"), "created");
    assert!(!mount.path("global/metadata/key000002").exists());
    // And the watch goes on from there.
    server.put(&format!("{root}/global/metadata/new"), b"again");
    eventually("the next change is seen", || (mount.read("global/metadata/new") == "again").then_some(()));
}

/// What was listed once.
struct Listed(BTreeMap<TopoPath, Version>, Mark);

impl Listed {
    fn of(cell: &dyn Backend) -> Self {
        let listing = runtime().block_on(cell.list(&TopoPath::root())).unwrap();
        Self(listing.nodes.into_iter().map(|node| (node.path, node.version)).collect(), listing.mark)
    }
}

impl Shown for Listed {
    fn version(&self, path: &TopoPath) -> Option<Version> {
        self.0.get(path).copied()
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn each(&self, tell: &mut dyn FnMut(&TopoPath, Version)) {
        self.0.iter().for_each(|(path, version)| tell(path, *version));
    }
}

fn back_up(etcd: &Etcd) -> String {
    let backup = etcd.dir().join("backup").display().to_string();
    etcd.ctl(&["snapshot", "save", &backup]);
    backup
}

/// From a backup, at the same place and under the same name.
fn restore(etcd: &mut Etcd, backup: &str) {
    etcd.kill();
    let data = etcd.dir().join("data").display().to_string();
    std::fs::remove_dir_all(&data).unwrap();
    let member = [
        "--name=development",
        "--initial-cluster=development=http://localhost:2380",
        "--initial-advertise-peer-urls=http://localhost:2380",
    ];
    etcd.ctl(&[&["snapshot", "restore", backup, "--data-dir", &data], &member[..]].concat());
    etcd.restart();
}

/// Makes a backup, deletes a key, calls back, restores the backup, and deletes another key: as many keys as before,
/// none of them written since, and a higher revision than before.
fn restored_and_written_past(etcd: &mut Etcd, meanwhile: impl FnOnce()) {
    for key in ["a", "b", "c"] {
        etcd.put(&format!("/t/global/metadata/{key}"), b"x");
    }
    // A log that has been used for some time.
    let elsewhere = etcd_cell(&etcd.endpoint(), "/elsewhere");
    let write = || drop(runtime().block_on(elsewhere.apply(&[put("metadata/x", "x")])).unwrap());
    (0..300).for_each(|_| write());
    let backup = back_up(etcd);
    (0..30).for_each(|_| write());
    etcd.ctl(&["del", "/t/global/metadata/b"]);
    let before = etcd.revision();
    meanwhile();
    restore(etcd, &backup);
    etcd.ctl(&["del", "/t/global/metadata/c"]);
    while etcd.revision() <= before {
        etcd.put("/elsewhere/metadata/x", b"again");
    }
}

#[test]
fn a_backup_that_was_restored_and_written_past_is_no_continuation() {
    let mut etcd = Etcd::start();
    let cell = etcd_cell(&etcd.endpoint(), "/t");
    let mut listed = None;
    let read = || listed = Some(Listed::of(&*cell));
    restored_and_written_past(&mut etcd, read);
    let listed = listed.unwrap();
    let outcome = runtime().block_on(cell.compare(&listed, &listed.1, std::time::Duration::ZERO));
    assert_eq!(outcome.unwrap_err().failure, Failure::Compacted);
}

#[test]
fn a_backup_that_was_restored_and_written_past_during_an_absence_is_read_anew() {
    let mut etcd = Etcd::start();
    let proxy = Proxy::start(etcd.port);
    let mut mount = None;
    let address = proxy.endpoint();
    let meet = || {
        mount = Some(Mount::etcd(&address, "/t", &["--stale-after=1s"]));
        proxy.cut(true);
    };
    restored_and_written_past(&mut etcd, meet);
    let mount = mount.unwrap();
    proxy.cut(false);
    wait_for_state(&mount, "global", "live");
    wait_until_equal(&mount, || stored(&*etcd_cell(&etcd.endpoint(), "/t")));
    assert_eq!(mount.sh("ls global/metadata"), "a\nb\n");
}

#[test]
fn compaction_takes_nothing_away_from_a_comparison() {
    let etcd = Etcd::start();
    for key in ["a", "b", "c"] {
        etcd.put(&format!("/t/metadata/{key}"), b"x");
    }
    // Such as cannot be file names count, too.
    etcd.put("/t/metadata//odd", b"x");
    etcd.put("/t/metadata//odder", b"x");
    let cell = etcd_cell(&etcd.endpoint(), "/t");
    let listed = Listed::of(&*cell);
    etcd.put("/t/metadata/a", b"y");
    etcd.put("/t/metadata/d", b"new");
    etcd.put("/t/metadata//oddest", b"new");
    etcd.ctl(&["del", "/t/metadata/b"]);
    etcd.ctl(&["del", "/t/metadata//odd"]);
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    let compared = runtime().block_on(cell.compare(&listed, &listed.1, std::time::Duration::ZERO)).unwrap();
    let Compared::Differences { changed, gone } = compared else { panic!("everything was listed") };
    let mut names: Vec<&str> = changed.nodes.iter().map(|node| node.path.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["metadata/a", "metadata/d"]);
    assert_eq!(gone, [TopoPath::parse("metadata/b").unwrap()]);
    assert_eq!(changed.skipped, 2);
}
