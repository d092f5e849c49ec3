//! What a watch has lost is found, whatever it was: a thousand of a thousand, on each service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use topofs::backend::{Action, Backend, Change, Guard, Implementation};
use topofs::name::TopoPath;

use crate::common::chance::Chance;
use crate::common::http::{Http, Reply};
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::server::fresh_root;
use crate::common::world::{cell, put, runtime};
use crate::common::{consul, etcd, eventually, zookeeper};
use crate::rig::{counter, resync, stored, wait_until_equal};

/// Keys of which the watch is not told, and what is to come of them.
struct Lost {
    cell: Arc<dyn Backend>,
    chance: Chance,
    there: BTreeSet<usize>,
    /// Number of records that were created, changed, deleted.
    expected: BTreeMap<&'static str, usize>,
}

impl Lost {
    const KEYS: usize = 600;
    const ROUNDS: usize = 5;
    const EACH: usize = 200;

    fn new(cell: Arc<dyn Backend>) -> Self {
        let there: BTreeSet<usize> = (0..Self::KEYS).step_by(2).collect();
        let lost = Self { cell, chance: Chance(11), there, expected: BTreeMap::new() };
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
            keys.insert(self.chance.below(Self::KEYS));
        }
        for key in keys {
            let (path, value) = (Self::path(key), format!("round {round}, {}", self.chance.below(1_000_000)));
            let deletion =
                || Change { path: TopoPath::parse(&path).unwrap(), guard: Guard::Any, action: Action::Delete };
            let (is_there, kind) = (self.there.contains(&key), self.chance.below(3));
            if kind == 0 {
                around(self.chance.below(20));
            }
            let what = match (is_there, kind) {
                (true, 0) => {
                    self.apply(deletion());
                    self.there.remove(&key);
                    "deleted"
                }
                (true, 1) => {
                    self.apply(put(&path, value));
                    "changed"
                }
                (true, _) => {
                    self.apply(deletion());
                    self.apply(put(&path, value));
                    // Another record of the same name.
                    "created"
                }
                (false, kind) => {
                    if kind == 1 {
                        self.apply(put(&path, "short"));
                        self.apply(deletion());
                    }
                    self.apply(put(&path, value));
                    self.there.insert(key);
                    "created"
                }
            };
            *self.expected.entry(what).or_default() += 1;
        }
    }

    /// All of a round are found. `beside` others are lost in each round, too.
    fn check_round(&self, mount: &Mount, round: usize, beside: usize) {
        resync(mount);
        assert_eq!(counter(mount, "missed") as usize, (round + 1) * (Self::EACH + beside), "round {round}");
    }

    /// All of them are shown and announced, and nothing was listed anew.
    fn check(&self, mount: &Mount) {
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

/// The proxy loses what the watch says of these keys, and passes on what it says of others.
fn all_that_a_proxy_loses_is_found(implementation: Implementation, address: &str, root: &str, proxy: &Proxy) {
    let mut lost = Lost::new(cell(implementation, address, root));
    let mount = Mount::of(&implementation.to_string(), &proxy.endpoint(), root, &["--resync-interval=1h"]);
    mount.sh("ls global/metadata");
    for round in 0..Lost::ROUNDS {
        proxy.drop_containing(Some("/metadata/lost"));
        let cell = lost.cell.clone();
        let seen = |key: usize, value: &str| {
            runtime().block_on(cell.apply(&[put(&format!("global/metadata/seen{key}"), value.to_owned())])).unwrap();
        };
        lost.change(round, |key| seen(key, &format!("round {round}")));
        // The watch has told everything before it. On etcd, the message of one may have that of a lost one in it.
        eventually("the end is told", || {
            seen(99, &format!("end {round}"));
            (std::fs::read_to_string(mount.path("global/metadata/seen99")).ok()? == format!("end {round}"))
                .then_some(())
        });
        proxy.drop_containing(None);
        lost.check_round(&mount, round, 0);
    }
    assert!(proxy.dropped() >= Lost::ROUNDS * Lost::EACH, "{}", proxy.dropped());
    lost.check(&mount);
}

#[test]
fn a_thousand_of_a_thousand_messages_of_etcd() {
    let server = etcd::shared();
    let proxy = Proxy::start(server.port);
    all_that_a_proxy_loses_is_found(Implementation::Etcd2, &server.endpoint(), &fresh_root(), &proxy);
}

#[test]
fn a_thousand_of_a_thousand_messages_of_zookeeper() {
    let server = zookeeper::shared();
    let proxy = Proxy::zookeeper(server.port);
    all_that_a_proxy_loses_is_found(Implementation::Zk2, &server.endpoint(), &fresh_root(), &proxy);
}

#[test]
fn a_thousand_of_a_thousand_changes_of_consul() {
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
        // The last change is one more that is lost.
        let end = runtime().block_on(lost.cell.apply(&[put("global/end", round.to_string())])).unwrap().at;
        eventually("the mount waits for what comes next", || {
            let waits_after = |request: &String| {
                let index: Option<u64> = request.split_once("&index=")?.1.split('&').next()?.parse().ok();
                index.filter(|index| *index >= end.0)
            };
            http.requests().iter().rev().find_map(waits_after).map(drop)
        });
        is_lost.store(false, Ordering::SeqCst);
        lost.check_round(&mount, round, 1);
    }
    lost.check(&mount);
}
