//! What happens while a copy is under way: kills, signals, changes at both ends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use topofs::backend::faulty::{Call, Fault, Faulty};
use topofs::backend::memory::MemoryServers;
use topofs::backend::{
    Action, Backend, CellServers, Change, ConnectOptions, Failure, Guard, Implementation, Location, Wrap,
};
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Kinds, Records};
use topofs::sample::Cluster;
use topofs::topology::copy::{Copied, Options, Progress, Side, Transfer};

use super::{Place, command, copied, ended, without_places};
use crate::common::mount::TOPOFS;
use crate::common::world::{put, runtime};
use crate::common::{bound_command, eventually, signal, spawn_bound};

/// Starts it, bound to this test.
fn start(from: &Place, to: &Place) -> std::process::Child {
    let mut command = bound_command(TOPOFS);
    command.arg("topo2topo").args(from.flags("from")).args(to.flags("to")).args(from.moved_to(to));
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    spawn_bound(command)
}

#[test]
fn killed_at_any_point_a_second_run_ends_in_the_same_state() {
    const KILLS: u32 = 50;
    let from = Place::etcd();
    from.load(&Cluster::of_size("", "", 2, 12, 4, 2));
    let expected = without_places(from.records());
    let whole = [Implementation::Etcd2, Implementation::Zk2].map(|implementation| {
        let to = Place::empty(implementation);
        let begin = Instant::now();
        copied(&from, &to, &[]);
        begin.elapsed()
    });
    let mut halfway = 0;
    for kill in 0..KILLS {
        let (service, whole) = match kill % 5 {
            0 => (Implementation::Zk2, whole[1]),
            _ => (Implementation::Etcd2, whole[0]),
        };
        let to = Place::empty(service);
        let mut child = start(&from, &to);
        // Another point each time, over the whole of its life, as far apart as they can be.
        std::thread::sleep(whole.mul_f64(f64::from(kill * 31 % KILLS) / f64::from(KILLS)));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = to.records().len();
        halfway += usize::from(left > 0 && left < expected.len());
        copied(&from, &to, &[]);
        assert_eq!(without_places(to.records()), expected, "{kill}");
    }
    assert!(halfway > 2, "{halfway} of {KILLS} kills came while it was storing, within {whole:?}");
}

#[test]
fn ctrl_c_ends_the_copy_and_a_second_run_goes_on() {
    let from = Place::etcd();
    from.load(&Cluster::of_size("", "", 2, 60, 8, 2));
    let expected = from.records();
    let to = Place::empty(Implementation::Zk2);
    let moved = from.moved_to(&to);
    let mut command = command(&from, &to, &[&moved[0], &moved[1]]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let timeout = child.id();
    eventually("something is stored", || (!to.records().is_empty()).then_some(()));
    // timeout(1) passes it on.
    signal(timeout, Signal::SIGINT);
    let (status, said) = ended(&child.wait_with_output().unwrap());
    assert!(status == 130 && said.contains("Run the same command again to go on"), "{status}: {said}");
    let left = to.records().len();
    assert!(left < expected.len(), "it had not finished: {left}");
    copied(&from, &to, &[]);
    assert_eq!(without_places(to.records()), without_places(expected));
}

/// Two topologies in this process: what happens between reading and storing can be told exactly.
struct Staged {
    memory: MemoryServers,
    faulty: Arc<Mutex<Vec<(String, Faulty)>>>,
    transfer: Transfer,
}

fn location(side: &str, cell: &str) -> Location {
    Location { implementation: Implementation::Memory, server: side.to_owned(), root: format!("/{cell}") }
}

impl Staged {
    /// The demo cluster, and an empty target, both behind backends that do as they are told.
    fn new(fault: impl Fn(Faulty) -> Faulty + Send + Sync + 'static) -> Self {
        let memory = MemoryServers::default();
        let faulty = Arc::new(Mutex::new(Vec::new()));
        let cluster = Cluster { root: String::new(), ..Cluster::demo("source") };
        for (cell, path, value) in cluster.records(&Codec::builtin().unwrap()).unwrap() {
            memory.put(&location("source", cell.as_str()), &path, value).unwrap();
        }
        let side = |name: &str, wrap| Side {
            global: location(name, "global"),
            connect: ConnectOptions { memory: memory.clone(), wrap, ..ConnectOptions::default() },
            servers: CellServers::Any,
        };
        let kept = faulty.clone();
        let wrap = Wrap::new(move |cell, backend| {
            let faulty = Faulty::new(backend, Duration::from_secs(15));
            let faulty = if cell.is_global() { fault(faulty) } else { faulty };
            kept.lock().unwrap().push((cell.to_string(), faulty.clone()));
            Arc::new(faulty)
        });
        let mut options = Options::default();
        options.mapping.servers.push("source=target".parse().unwrap());
        let transfer = Transfer {
            source: side("source", Wrap::default()),
            target: side("target", wrap),
            options,
            records: Records::new(Codec::builtin().unwrap(), Kinds::default()),
            progress: Progress::default(),
            stop: Default::default(),
        };
        Self { memory, faulty, transfer }
    }

    fn cell(&self, side: &str, cell: &str) -> impl Backend {
        self.memory.open(&location(side, cell)).unwrap()
    }

    async fn put(&self, side: &str, path: &str, value: &str) {
        self.cell(side, "global").apply(&[put(path, value.to_owned())]).await.unwrap();
    }

    async fn delete(&self, side: &str, path: &str) {
        let change = Change { path: TopoPath::parse(path).unwrap(), guard: Guard::Any, action: Action::Delete };
        self.cell(side, "global").apply(&[change]).await.unwrap();
    }

    async fn get(&self, side: &str, path: &str) -> Option<Bytes> {
        let path = TopoPath::parse(path).unwrap();
        self.cell(side, "global").get(&path).await.unwrap().node.map(|node| node.value)
    }

    /// Copies; does something when the first transaction of the target's global topology is held back.
    async fn meanwhile(&self, what: impl AsyncFnOnce()) -> Copied {
        let global =
            || self.faulty.lock().unwrap().iter().find(|(cell, _)| cell == CellName::GLOBAL).map(|(_, f)| f.clone());
        let acting = async {
            let faulty = loop {
                match global() {
                    Some(faulty) => break faulty,
                    None => tokio::task::yield_now().await,
                }
            };
            faulty.begun(Call::Apply, 1).await;
            what().await;
            faulty.release();
        };
        tokio::join!(self.transfer.copy(|_| {}), acting).0.unwrap()
    }
}

#[test]
fn what_somebody_changes_at_the_target_meanwhile_is_not_overwritten() {
    let staged = Staged::new(|faulty| faulty.on(Call::Apply, 1, Fault::Hang));
    runtime().block_on(async {
        for path in ["metadata/owner", "metadata/deleted", "metadata/changed"] {
            staged.put("target", path, "before").await;
            staged.put("source", path, "wanted").await;
        }
        for path in ["metadata/made", "metadata/same"] {
            staged.put("source", path, "wanted").await;
        }
        let copied = staged
            .meanwhile(async || {
                staged.put("target", "metadata/changed", "theirs").await;
                staged.put("target", "metadata/made", "theirs").await;
                staged.put("target", "metadata/same", "wanted").await;
                staged.delete("target", "metadata/deleted").await;
            })
            .await;
        let expected = [
            "global/metadata/changed: somebody has changed it at the target meanwhile",
            "global/metadata/deleted: somebody has deleted it at the target meanwhile",
            "global/metadata/made: somebody has created it at the target meanwhile",
        ];
        assert_eq!(copied.failed, expected);
        assert_eq!(staged.get("target", "metadata/changed").await.unwrap(), "theirs");
        assert_eq!(staged.get("target", "metadata/made").await.unwrap(), "theirs");
        assert_eq!(staged.get("target", "metadata/deleted").await, None);
        assert_eq!(staged.get("target", "metadata/owner").await.unwrap(), "wanted", "the rest goes on");
        assert!(staged.get("target", "RoutingRules").await.is_some());
    });
}

#[test]
fn what_changes_in_the_source_meanwhile_is_copied_again_and_overwrites_nobody() {
    let staged = Staged::new(|faulty| faulty.on(Call::Apply, 1, Fault::Hang));
    runtime().block_on(async {
        staged.put("target", "metadata/theirs", "before").await;
        staged.put("source", "metadata/theirs", "wanted").await;
        let copied = staged
            .meanwhile(async || {
                for path in ["metadata/owner", "metadata/new", "metadata/theirs"] {
                    staged.put("source", path, "newer").await;
                }
                staged.put("target", "metadata/theirs", "theirs").await;
                staged.put("source", "cells/zone9/CellInfo", "").await;
            })
            .await;
        assert_eq!(copied.notes, ["the source has changed during the copy: 3 records are copied again"]);
        let words = copied.failed.join("\n");
        assert!(words.contains("global/metadata/theirs: "), "{words}");
        assert!(words.contains("global/cells/zone9/CellInfo: it has changed in the source during the copy"), "{words}");
        assert_eq!(staged.get("target", "metadata/owner").await.unwrap(), "newer");
        assert_eq!(staged.get("target", "metadata/new").await.unwrap(), "newer");
        assert_eq!(staged.get("target", "metadata/theirs").await.unwrap(), "theirs");
        assert_eq!(staged.get("target", "cells/zone9/CellInfo").await, None);
    });
}

#[test]
fn a_service_that_dies_is_told_once_and_the_other_cells_go_on() {
    let staged = Staged::new(|faulty| {
        (1..100).fold(faulty, |faulty, nth| faulty.on(Call::Apply, nth, Fault::Fail(Failure::Unreachable)))
    });
    runtime().block_on(async {
        let copied = staged.transfer.copy(|_| {}).await.unwrap();
        assert_eq!(copied.failed.len(), 1, "{:?}", copied.failed);
        assert!(copied.failed[0].starts_with("target, cell global (memory:target/global): "), "{:?}", copied.failed);
        assert!(copied.failed[0].ends_with(" records were not copied"), "{:?}", copied.failed);
        let zone1 = staged.cell("target", "zone1").list(&TopoPath::root()).await.unwrap();
        assert!(!zone1.nodes.is_empty());
    });
}

#[test]
fn a_stopped_copy_finishes_what_is_under_way_and_begins_nothing_new() {
    let staged = Staged::new(|faulty| faulty.on(Call::Apply, 1, Fault::Hang));
    runtime().block_on(async {
        let copied = staged.meanwhile(async || staged.transfer.stop.cancel()).await;
        assert!(copied.stopped > 10 && copied.failed.is_empty(), "{copied:?}");
        assert!(staged.get("target", "cells/zone1/CellInfo").await.is_some(), "it was under way");
        assert!(staged.get("target", "RoutingRules").await.is_none());
    });
}
