//! Moments that a real mount cannot be made to wait for: a tree over the embedded service, whose mirror hears of
//! nothing until this thread lets it.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use topofs::backend::SharedPlace;
use topofs::backend::{Action, Backend, Change, Guard, Implementation, Location, Node};
use topofs::cells::{CellOptions, Cells};
use topofs::control::Control;
use topofs::error::Kind;
use topofs::mirror::MirrorOptions;
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Kinds, Records};
use topofs::tree::{Caller, LockCall, OpenMode, ROOT, Tree, TreeOptions};

use crate::common::world::{connect_options, put, tree_options};

const DIR: &str = "metadata";

struct Within {
    tree: Arc<Tree>,
    backend: Arc<dyn Backend>,
    dir: u64,
}

fn caller() -> Caller {
    Caller::new(0, 0, std::process::id())
}

fn dir() -> TopoPath {
    TopoPath::parse(DIR).unwrap()
}

impl Within {
    /// With two records.
    async fn new() -> Self {
        let global = Location { implementation: Implementation::Memory, server: "m".to_owned(), root: "/g".to_owned() };
        let connect = connect_options();
        let backend = topofs::backend::open(&CellName::global(), &global, &connect).unwrap();
        backend.apply(&[put("metadata/a", "a"), put("metadata/b", "b")]).await.unwrap();
        let mirror = MirrorOptions {
            resync_interval: Duration::from_secs(3600),
            stale_after: Duration::from_secs(10),
            serve_stale: false,
        };
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let cells = Cells::start(CellOptions::new(global, connect, mirror), records.clone()).await.unwrap();
        let options = TreeOptions { allow_unseen_writers: true, ..tree_options() };
        let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
        let tree = Tree::new(cells, records, control, options);
        topofs::notify::follow(&tree);
        let global = tree.lookup(&caller(), ROOT, OsStr::new("global")).await.unwrap().ino;
        let dir = tree.lookup(&caller(), global, OsStr::new(DIR)).await.unwrap().ino;
        Self { tree, backend, dir }
    }

    async fn open(&self, name: &str) -> (u64, u64) {
        let ino = self.tree.lookup(&caller(), self.dir, OsStr::new(name)).await.unwrap().ino;
        let mode = OpenMode { write: true, truncate: true, ..OpenMode::default() };
        (ino, self.tree.open(&caller(), ino, mode).await.unwrap().handle)
    }

    /// What asks for the lock through a descriptor of its own.
    async fn asking(&self, owner: u64, pid: u32) -> (u64, LockCall) {
        let (ino, handle) = self.open(".lock").await;
        (ino, LockCall { handle, owner, start: 0, end: i64::MAX.cast_unsigned(), pid })
    }

    async fn lock(&self, owner: u64, pid: u32) -> u64 {
        let (ino, call) = self.asking(owner, pid).await;
        self.tree.lock(&caller(), ino, call, true, false).await.unwrap();
        call.handle
    }

    /// Who stands in line, as the service has it.
    async fn line(&self) -> Vec<Node> {
        self.backend.list(&dir().join("locks").unwrap()).await.unwrap().nodes
    }

    async fn stranger(&self) -> SharedPlace {
        self.backend.enter(&dir(), &"a stranger".into()).await.unwrap()
    }

    async fn take_away(&self, node: &Node) {
        let gone = Change { path: node.path.clone(), guard: Guard::Any, action: Action::Delete };
        self.backend.apply(&[gone]).await.unwrap();
    }

    async fn stored(&self, name: &str) -> String {
        let node = self.backend.get(&dir().join(name).unwrap()).await.unwrap().node.unwrap();
        String::from_utf8(node.value.to_vec()).unwrap()
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = std::time::Instant::now() + crate::common::DEADLINE;
    while !holds().await {
        assert!(std::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_service_itself_refuses_a_save_whose_lock_is_gone() {
    let within = Within::new().await;
    within.lock(1, std::process::id()).await;
    let (_, handle) = within.open("a").await;
    within.tree.write(handle, 0, b"new").unwrap();
    let line = within.line().await;
    assert_eq!(line.len(), 1);
    within.take_away(&line[0]).await;
    // The mirror has not heard of it: only the transaction knows.
    let refused = within.tree.flush(&caller(), handle, 0).now_or_never().expect("nothing is waited for").unwrap_err();
    assert_eq!(refused.kind, Kind::LockLost);
    assert!(refused.reason.contains("is no longer held"), "{refused}");
    assert_eq!(within.stored("a").await, "a");
}

#[tokio::test]
async fn who_loses_the_race_for_a_lock_leaves_the_line() {
    let within = Within::new().await;
    let (ino, call) = within.asking(1, std::process::id()).await;
    let stranger = within.stranger().await;
    let refused = within.tree.lock(&caller(), ino, call, true, false).await.unwrap_err();
    assert_eq!(refused.kind, Kind::WouldBlock);
    let line = within.line().await;
    assert_eq!((line.len(), &line[0].path), (1, &stranger.node().unwrap().path), "{line:?}");
}

#[tokio::test]
async fn who_gives_up_while_it_is_entering_leaves_the_line() {
    let within = Within::new().await;
    let stranger = within.stranger().await;
    let (ino, call) = within.asking(1, std::process::id()).await;
    {
        let caller = caller();
        let waiting = within.tree.lock(&caller, ino, call, true, true);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    eventually("the place is taken, and left", async || {
        tokio::task::yield_now().await;
        within.line().await.len() == 1
    })
    .await;
    stranger.leave().await.unwrap();
    within.lock(2, std::process::id()).await;
}

#[tokio::test]
async fn who_is_killed_while_waiting_leaves_the_line() {
    let within = Within::new().await;
    let stranger = within.stranger().await;
    let (ino, call) = within.asking(1, std::process::id()).await;
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let waiter = Caller::new(0, 0, child.id());
    let (ended, ()) = futures::join!(within.tree.lock(&waiter, ino, call, true, true), async {
        eventually("it stands in line", async || within.line().await.len() == 2).await;
        child.kill().unwrap();
        child.wait().unwrap();
    });
    assert_eq!(ended.unwrap_err().kind, Kind::Interrupted);
    eventually("the line is the stranger's", async || within.line().await.len() == 1).await;
    assert!(stranger.try_hold().await.unwrap().is_some());
}

/// Whoever saves descends from a process that can be seen, or from none.
#[tokio::test]
async fn a_holder_that_cannot_be_seen_is_nobodys_ancestor() {
    let within = Within::new().await;
    let handle = within.lock(1, 0).await;
    within.take_away(&within.line().await[0]).await;
    eventually("it is noticed", async || {
        within.tree.fsync(handle).await.is_err_and(|error| error.kind == Kind::LockLost)
    })
    .await;
    // Another one, who cannot be seen either, has it now.
    within.lock(2, 0).await;
    let ino = within.tree.lookup(&caller(), within.dir, OsStr::new("b")).await.unwrap().ino;
    let mode = OpenMode { write: true, truncate: true, ..OpenMode::default() };
    for caller in [caller(), Caller::new(0, 0, 0)] {
        let refused = within.tree.open(&caller, ino, mode).await.unwrap_err();
        assert_eq!(refused.kind, Kind::LockLost, "{refused}");
    }
    assert_eq!(within.stored("b").await, "b");
}
