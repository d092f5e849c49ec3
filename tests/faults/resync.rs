//! Comparisons with the service: what a watch has lost is found, whatever it was, and nothing else is transferred.

use std::collections::BTreeMap;

use topofs::backend::{Backend, Compared, Failure, Implementation, Mark, Shown, Version};
use topofs::name::TopoPath;

use crate::common::etcd::Etcd;
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::server::{Server, fresh_root};
use crate::common::world::{etcd_cell, put, runtime};
use crate::common::{consul, etcd, eventually};
use crate::rig::{counter, resync, stored, wait_for_state, wait_until_equal};
use crate::size::{PATIENTLY, fill};

/// A mount of ten thousand records of 300 bytes behind a proxy, and how many bytes passed until it had them.
fn large(server: &Server, root: &str, implementation: Implementation) -> (Proxy, Mount, usize) {
    fill(implementation, &server.endpoint(), root, 10_000);
    let is_etcd = implementation == Implementation::Etcd2;
    let proxy = if is_etcd { Proxy::start(server.port) } else { Proxy::plain(server.port) };
    let mount = Mount::of(&implementation.to_string(), &proxy.endpoint(), root, PATIENTLY);
    let loading = proxy.bytes();
    assert!(loading > 10_000 * 300, "{loading}");
    (proxy, mount, loading)
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
    let (proxy, mount, loading) = large(server, &root, Implementation::Etcd2);
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
    let (proxy, mount, loading) = large(server, &root, Implementation::Consul);
    assert!(share(&proxy, &mount, loading, "nothing has happened") < 10);
    server.curl(&["-X", "PUT", "-d", "x"], "kv/elsewhere").unwrap();
    assert!(share(&proxy, &mount, loading, "something elsewhere") < 10);
}

#[test]
fn after_an_absence_etcd_is_asked_for_what_has_happened_since() {
    let root = fresh_root();
    let server = etcd::shared();
    let (proxy, mount, loading) = large(server, &root, Implementation::Etcd2);
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
    let backup = etcd.back_up();
    (0..30).for_each(|_| write());
    etcd.ctl(&["del", "/t/global/metadata/b"]);
    let before = etcd.revision();
    meanwhile();
    etcd.restore(&backup);
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

#[test]
fn a_server_that_lies_about_the_number_of_its_keys_is_listed() {
    /// In an answer: the field of the count, and a count that is stored in two bytes.
    const COUNT: u8 = 4 << 3;
    fn count(number: u16) -> [u8; 3] {
        [COUNT, number as u8 | 0x80, (number >> 7) as u8]
    }
    let root = fresh_root();
    let server = etcd::shared();
    fill(Implementation::Etcd2, &server.endpoint(), &root, 1_000);
    let proxy = Proxy::start(server.port);
    let mount = Mount::etcd(&proxy.endpoint(), &root, &["--resync-interval=1h"]);
    assert_eq!(counter(&mount, "records"), 1_000);
    for (lies, lie) in [(1, 16_383), (2, 128), (3, 999)] {
        // Something must have happened, or nothing is counted.
        server.put("/elsewhere", b"x");
        proxy.forge(&count(1_000), &count(lie));
        resync(&mount);
        assert!(proxy.count() >= lies, "the count is forged");
        assert_eq!((counter(&mount, "records"), counter(&mount, "missed")), (1_000, 0), "{lie} of 1,000");
        assert!(mount.path("global/metadata/key000000").exists() && mount.path("global/metadata/key000999").exists());
    }
}

#[test]
fn everything_is_read_anew_if_somebody_asks_for_it() {
    let root = fresh_root();
    let server = etcd::shared();
    let proxy = Proxy::start(server.port);
    let mount = Mount::etcd(&proxy.endpoint(), &root, &["--resync-interval=1h"]);
    mount.sh("ls global");
    // A server that lies, to the watch and to a comparison.
    proxy.forge(b"metadata/real", b"metadata/fake");
    server.put(&format!("{root}/global/metadata/real"), b"x");
    eventually("the lie is shown", || mount.path("global/metadata/fake").exists().then_some(()));
    resync(&mount);
    proxy.be_honest();
    resync(&mount);
    assert_eq!(mount.sh("ls global/metadata"), "fake\n", "nothing has happened since");
    mount.sh("echo reread global > .topofs/control");
    eventually("the truth is shown", || (mount.bash("ls global/metadata").stdout == b"real\n").then_some(()));
}
