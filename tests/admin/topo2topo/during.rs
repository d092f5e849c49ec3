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

use super::{Place, command, copied, copy, ended, without_places};
use crate::common::mount::TOPOFS;
use crate::common::world::{cell, put, runtime};
use crate::common::{bound_command, eventually, signal, spawn_bound, text};

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
    from.load(&Cluster::of_size("", "", 2, 100, 8, 2));
    let expected = from.records();
    let to = Place::empty(Implementation::Zk2);
    let moved = from.moved_to(&to);
    let mut command = command(&from, &to, &[&moved[0], &moved[1]]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    // Not timeout(1): it passes a signal on twice.
    let children = eventually("the program runs", || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        (!children.trim().is_empty()).then_some(children)
    });
    let program = children.trim().parse().unwrap();
    // It runs in slices, and stands still while it is looked at: the copy can be quicker than a look.
    eventually("something is stored", || {
        signal(program, Signal::SIGSTOP);
        let stored = (!to.records().is_empty()).then(|| signal(program, Signal::SIGINT));
        signal(program, Signal::SIGCONT);
        stored
    });
    let (status, said) = ended(&child.wait_with_output().unwrap());
    assert!(status == 130 && said.contains("Run the same command again to go on"), "{status}: {said}");
    let left = to.records().len();
    assert!(left < expected.len(), "it had not finished: {left}");
    copied(&from, &to, &[]);
    assert_eq!(without_places(to.records()), without_places(expected));
}

/// A pipe that takes no more than a page.
fn narrow_pipe() -> (std::fs::File, std::os::fd::OwnedFd) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (read.into(), write)
}

/// The bytes that wait in a pipe.
fn waiting_in(pipe: &std::fs::File) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, and that is what it gets.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(pipe), libc::FIONREAD, &mut bytes) };
    assert_eq!(done, 0);
    bytes
}

#[test]
fn a_signal_while_it_has_not_begun_ends_it_at_once_whatever_it_is_busy_with() {
    /// More cells than the pipe has room for lines.
    const CELLS: usize = 20;
    let from = Place::etcd();
    from.put("global/metadata/owner", "x");
    for cell in 0..CELLS {
        let (name, root) = (format!("{}{cell}", "n".repeat(60)), format!("{}/{}{cell}", from.root, "r".repeat(60)));
        let place = format!("server_address: \"{}\" root: \"{root}\"", from.server);
        from.put_text(&format!("global/cells/{name}/CellInfo"), "topodata.CellInfo", &place);
    }
    for (kind, expected) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let to = Place::etcd();
        let (out, into) = narrow_pipe();
        let mut command = bound_command(TOPOFS);
        command.arg("topo2topo").args(from.flags("from")).args(to.flags("to")).args(from.moved_to(&to));
        command.stdout(into).stderr(std::process::Stdio::piped());
        let child = spawn_bound(command);
        // It waits for somebody to read what it is going to do. It could as well be busy with finding that out.
        eventually("the pipe is full", || (waiting_in(&out) > 4096 - 600).then_some(()));
        signal(child.id(), kind);
        let output = eventually_ended(child);
        let said = text(&output);
        assert_eq!((output.status.code(), said.trim()), (Some(expected), "topofs: stopped: nothing was changed"));
        assert!(to.records().is_empty());
    }
}

/// Its output, once it has ended; it has to, by itself.
fn eventually_ended(mut child: std::process::Child) -> std::process::Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn what_somebody_has_locked_at_the_target_stays_and_the_holder_is_named() {
    let from = Place::demo();
    for implementation in [Implementation::Etcd2, Implementation::Zk2, Implementation::Consul] {
        let to = Place::empty(implementation);
        to.put("global/keyspaces/commerce/Keyspace", "theirs");
        to.put("global/keyspaces/commerce/old", "only here");
        to.put("global/keyspaces/free/Keyspace", "only here");
        let all = cell(implementation, &to.server, &format!("{}/global", to.root));
        let dir = TopoPath::parse("keyspaces/commerce").unwrap();
        let text = r#"{"Action": "Reshard", "HostName": "host", "UserName": "root", "Time": "2026-08-19T12:34:29Z"}"#;
        let place = runtime().block_on(all.enter(&dir, &text.into())).unwrap();
        assert!(runtime().block_on(place.try_hold()).unwrap().is_some());
        let (status, said) = copy(&from, &to, &["--delete"]);
        let locked =
            "global/keyspaces/commerce is locked by root@host (Reshard, since 2026-08-19T12:34:29Z) at the target";
        for record in ["Keyspace", "old"] {
            let line = format!("topofs: global/keyspaces/commerce/{record}: {locked}\n");
            assert!(status == 1 && said.contains(&line), "{implementation}, {status}: {said}");
        }
        assert!(said.contains("; 2 failures."), "{said}");
        let records = to.records();
        assert_eq!(records["global/keyspaces/commerce/Keyspace"], "theirs", "{implementation}");
        assert!(records.contains_key("global/keyspaces/commerce/old"), "{implementation}");
        assert!(!records.contains_key("global/keyspaces/free/Keyspace"), "the rest goes on: {implementation}");
        assert!(records.contains_key("zone1/SrvVSchema"), "the rest goes on: {implementation}");
        runtime().block_on(place.leave()).unwrap();
        copied(&from, &to, &["--delete"]);
        assert_eq!(
            to.records()["global/keyspaces/commerce/Keyspace"],
            from.records()["global/keyspaces/commerce/Keyspace"]
        );
    }
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
fn what_is_deleted_in_the_source_meanwhile_is_deleted_or_said_to_stay() {
    for delete in [false, true] {
        let mut staged = Staged::new(|faulty| faulty.on(Call::Apply, 1, Fault::Hang));
        staged.transfer.options.delete = delete;
        runtime().block_on(async {
            staged.put("source", "metadata/gone", "wanted").await;
            let copied = staged.meanwhile(async || staged.delete("source", "metadata/gone").await).await;
            let was = "1 record was deleted in the source during the copy";
            let expected = match delete {
                false => format!("{was}. What was copied stays at the target: --delete deletes it there"),
                true => format!("{was}, and so at the target"),
            };
            assert_eq!((copied.notes, copied.failed), (vec![expected], vec![]));
            assert_eq!(staged.get("target", "metadata/gone").await.is_some(), !delete);
        });
    }
}

#[test]
fn a_lock_that_comes_between_reading_and_storing_is_seen() {
    let staged = Staged::new(|faulty| faulty.on(Call::Apply, 1, Fault::Hang));
    runtime().block_on(async {
        let rules = "routing_rules/keyspace/Rules";
        staged.put("target", rules, "theirs").await;
        staged.put("source", rules, "wanted").await;
        let global = staged.cell("target", "global");
        let copied = staged
            .meanwhile(async || {
                let dir = TopoPath::parse("routing_rules").unwrap();
                let place = global.enter(&dir, &Bytes::from_static(b"tool")).await.unwrap();
                assert!(place.try_hold().await.unwrap().is_some());
            })
            .await;
        assert_eq!(copied.failed, [format!("global/{rules}: global/routing_rules is locked by tool at the target")]);
        assert_eq!(staged.get("target", rules).await.unwrap(), "theirs");
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
        assert!(copied.is_stopped && copied.stopped > 10 && copied.failed.is_empty(), "{copied:?}");
        assert!(staged.get("target", "cells/zone1/CellInfo").await.is_some(), "it was under way");
        assert!(staged.get("target", "RoutingRules").await.is_none());
    });
}
