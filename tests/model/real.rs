//! The real tree over a memory backend, without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::world::{connect_options, tree_options};
use topofs::backend::memory::MemoryServers;
use topofs::backend::{Action, Backend, Change, Guard, Implementation, Location};
use topofs::cells::{CellOptions, Cells};
use topofs::control::Control;
use topofs::error::{Error, Kind};
use topofs::mirror::MirrorOptions;
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Kinds, Records};
use topofs::tree::{Caller, OpenMode, ROOT, SetAttr, Tree};

use crate::words::*;

/// The real thing, without a kernel.
pub struct Real {
    pub tree: Arc<Tree>,
    pub cells: Arc<Cells>,
    pub backend: Arc<dyn Backend>,
    pub servers: MemoryServers,
    /// Revisions that were made to see how far the mirror is.
    pub marks: AtomicU64,
    /// Names that an answer to a repetition waits for that has not come.
    pub unrepeated: std::sync::Mutex<BTreeSet<Name>>,
    pub dir: u64,
}

pub fn caller() -> Caller {
    // A real process: what a caller has read counts only if it happened in its lifetime.
    Caller::new(0, 0, std::process::id())
}

impl Real {
    pub async fn new() -> Self {
        let location =
            Location { implementation: Implementation::Memory, server: SERVER.to_owned(), root: "/g".to_owned() };
        let mirror = MirrorOptions {
            resync_interval: std::time::Duration::from_secs(3600),
            stale_after: std::time::Duration::from_secs(10),
            serve_stale: false,
        };
        let options = CellOptions::new(location.clone(), connect_options(), mirror);
        let servers = options.connect.memory.clone();
        let backend = topofs::backend::open(&CellName::global(), &location, &options.connect).unwrap();
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let cells = Cells::start(options, records.clone()).await.unwrap();
        let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
        let options = tree_options();
        let tree = Tree::new(cells.clone(), records, control, options);
        topofs::notify::follow(&tree);
        let global = tree.lookup(&caller(), ROOT, OsStr::new("global")).await.unwrap().ino;
        // A record of nobody's business keeps the directory there.
        let keep = Change {
            path: TopoPath::parse(&format!("{DIR}/keep")).unwrap(),
            guard: Guard::Any,
            action: Action::Put("k".into()),
        };
        let applied = backend.apply(&[keep]).await.unwrap();
        while cells.get(&CellName::global()).unwrap().mirror.revision() < applied.at {
            tokio::task::yield_now().await;
        }
        let dir = tree.lookup(&caller(), global, OsStr::new(DIR)).await.unwrap().ino;
        tree.forget(global, 1);
        Self { tree, cells, backend, servers, marks: AtomicU64::new(0), unrepeated: Default::default(), dir }
    }

    /// The same tree in a stage: nobody else changes it.
    pub async fn staged() -> Self {
        let live = Self::new().await;
        live.tree.forget(live.dir, 1);
        let (tree, caller) = (live.tree.clone(), caller());
        let mut path = Vec::new();
        for name in [".topofs", "stage"] {
            let dir = path.last().copied().unwrap_or(ROOT);
            path.push(tree.lookup(&caller, dir, OsStr::new(name)).await.unwrap().ino);
        }
        let made = tree.mkdir(&caller, path[1], OsStr::new("s")).await.unwrap().ino;
        path.push(made);
        for name in ["global", DIR] {
            path.push(tree.lookup(&caller, path[path.len() - 1], OsStr::new(name)).await.unwrap().ino);
        }
        let dir = path.pop().unwrap();
        path.into_iter().for_each(|ino| tree.forget(ino, 1));
        Self { dir, ..live }
    }

    /// How many versions were made.
    pub async fn versions(&self, in_stage: bool) -> u64 {
        match in_stage {
            true => 1 + self.status().await["stages"][0]["saves"].as_u64().unwrap(),
            false => {
                let mirror = &self.cells.get(&CellName::global()).unwrap().mirror;
                mirror.revision().0 - self.marks.load(Ordering::Relaxed)
            }
        }
    }

    /// As the kernel does: what fails with ESTALE is tried once more, and must fail, too. `name` is what it is about.
    pub async fn repeating<T: std::fmt::Debug>(
        &self,
        name: Name,
        operation: impl AsyncFn() -> Result<T, Error>,
    ) -> Outcome<T> {
        let known_as = |outcome: Result<T, Error>| outcome.map_err(|error| error.kind);
        match operation().await {
            Err(error) if error.kind == Kind::Conflict => {
                // What was unheard may be known by then.
                self.catch_up().await;
                let again = operation().await;
                if self.unrepeated.lock().unwrap().remove(name) {
                    // That answer was for an earlier call. This one is not repeated again.
                    if again.as_ref().is_err_and(|error| error.kind == Kind::Conflict) {
                        self.unrepeated.lock().unwrap().insert(name);
                    }
                    return known_as(again);
                }
                match again.expect_err("the repetition must fail, too").kind {
                    Kind::Conflict => Err(Kind::Conflict),
                    // The name was gone by then, so nobody has come for the answer.
                    Kind::NotFound => {
                        self.unrepeated.lock().unwrap().insert(name);
                        Err(Kind::NotFound)
                    }
                    other => panic!("the repetition fails with {other:?}"),
                }
            }
            outcome => known_as(outcome),
        }
    }

    pub async fn lookup(&self, name: Name) -> Outcome<u64> {
        self.tree.lookup(&caller(), self.dir, OsStr::new(name)).await.map(|attr| attr.ino).map_err(|error| error.kind)
    }

    pub async fn store(&self, name: Name, remote: Remote) {
        let path = TopoPath::parse(&format!("{DIR}/{name}")).unwrap();
        let action = match remote {
            Remote::Put(content) => Action::Put(bytes(content, 2).into()),
            Remote::Delete => Action::Delete,
        };
        // There may be nothing to delete.
        let _ = self.backend.apply(&[Change { path, guard: Guard::Any, action }]).await;
    }

    pub async fn remote(&self, name: Name, remote: Remote) {
        self.store(name, remote).await;
        self.catch_up().await;
    }

    /// The mirror hears of everything that has happened.
    pub async fn catch_up(&self) {
        self.servers.let_go(SERVER);
        // Its revision does not tell, own writes are ahead of what is unheard. Watches tell in order, so what comes
        // last does.
        let path = TopoPath::parse("mark").unwrap();
        let put = Change { path: path.clone(), guard: Guard::Any, action: Action::Put("m".into()) };
        let mark = self.backend.apply(&[put]).await.unwrap().versions[0].unwrap();
        self.marks.fetch_add(1, Ordering::Relaxed);
        let mirror = &self.cells.get(&CellName::global()).unwrap().mirror;
        while mirror.snapshot().records.get(&path).is_none_or(|record| record.version != mark) {
            tokio::task::yield_now().await;
        }
    }

    pub async fn read(&self, name: Name) -> Outcome<Vec<u8>> {
        self.read_as(&caller(), name).await
    }

    async fn read_as(&self, caller: &Caller, name: Name) -> Outcome<Vec<u8>> {
        let looked_up = self.tree.lookup(caller, self.dir, OsStr::new(name)).await;
        let ino = looked_up.map_err(|error| error.kind)?.ino;
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let opened = self.tree.open(caller, ino, mode).await.map_err(|error| error.kind)?;
        let content = self.tree.read(caller, opened.handle, 0, 1000).await;
        self.tree.close(opened.handle).await.unwrap();
        self.tree.forget(ino, 1);
        content.map(|content| content.to_vec()).map_err(|error| error.kind)
    }

    pub async fn save(&self, name: Name, mode: OpenMode, content: Vec<u8>, meanwhile: Option<Remote>) -> Outcome<()> {
        // As open(2) with O_CREAT: a lookup, then open or create, and all of it again on ESTALE.
        let (ino, handle) = self
            .repeating(name, async || match self.tree.lookup(&caller(), self.dir, OsStr::new(name)).await {
                Ok(attr) if mode.exclusive => {
                    self.tree.forget(attr.ino, 1);
                    Err(Error::new(Kind::Exists, "exists"))
                }
                Ok(attr) => match self.tree.open(&caller(), attr.ino, mode).await {
                    Ok(opened) => Ok((attr.ino, opened.handle)),
                    Err(error) => {
                        self.tree.forget(attr.ino, 1);
                        Err(error)
                    }
                },
                Err(error) if error.kind == Kind::NotFound => {
                    let (attr, opened) = self.tree.create(&caller(), self.dir, OsStr::new(name), 0o600, mode).await?;
                    Ok((attr.ino, opened.handle))
                }
                Err(error) => Err(error),
            })
            .await?;
        if let Some(remote) = meanwhile.filter(|_| is_record(name)) {
            self.remote(name, remote).await;
        }
        // A shell flushes before it writes.
        self.tree.flush(&caller(), handle, 0).await.unwrap();
        let written = if content.is_empty() { Ok(()) } else { self.tree.write(handle, 0, &content).map(drop) };
        let flushed = self.tree.flush(&caller(), handle, 0).await;
        let released = self.tree.close(handle).await;
        self.tree.forget(ino, 1);
        written.and(flushed).and(released).map_err(|error| error.kind)
    }

    pub async fn apply(&self, op: &Op) -> Outcome<Vec<u8>> {
        let nothing = |outcome: Outcome<()>| outcome.map(|()| Vec::new());
        match *op {
            Op::Read(name) => self.read(name).await,
            Op::Save { name, append, content, length, meanwhile } => {
                let mode = OpenMode { write: true, append, truncate: !append, ..OpenMode::default() };
                nothing(self.save(name, mode, bytes(content, length), meanwhile).await)
            }
            Op::Make { name, content } => {
                let mode = OpenMode { write: true, exclusive: true, ..OpenMode::default() };
                nothing(self.save(name, mode, bytes(content, 2), None).await)
            }
            Op::Truncate { name, size } => nothing(
                self.repeating(name, async || {
                    let ino = self.tree.lookup(&caller(), self.dir, OsStr::new(name)).await?.ino;
                    let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                    let outcome = self.tree.setattr(&caller(), ino, None, set).await;
                    self.tree.forget(ino, 1);
                    outcome.map(drop)
                })
                .await,
            ),
            Op::Unlink(name) => nothing(
                self.repeating(name, async || self.tree.unlink(&caller(), self.dir, OsStr::new(name)).await).await,
            ),
            Op::Rename(from, to) => {
                // A backup is refused for what it would take away, a save for what it would replace.
                let name = if is_record(from) && !is_record(to) { from } else { to };
                let (from, to) = ((self.dir, OsStr::new(from)), (self.dir, OsStr::new(to)));
                nothing(self.repeating(name, async || self.tree.rename(&caller(), from, to, false).await).await)
            }
            Op::Remote(name, remote) => {
                self.remote(name, remote).await;
                Ok(Vec::new())
            }
            Op::Unheard(name, remote) => {
                self.servers.hold_back(SERVER);
                self.store(name, remote).await;
                Ok(Vec::new())
            }
        }
    }

    /// What the directory holds: names from the listing, contents from the service and the scratch files.
    pub async fn listing(&self) -> BTreeMap<String, Vec<u8>> {
        let listing = self.tree.listing(&caller(), self.dir, 0).await.unwrap();
        let mut all = BTreeMap::new();
        for entry in listing.entries().map(|(entry, _)| entry.clone()).filter(|entry| entry.name != "keep") {
            let path = TopoPath::parse(&format!("{DIR}/{}", entry.name)).unwrap();
            let content = match self.backend.get(&path).await.unwrap().node {
                Some(node) => node.value.to_vec(),
                // A scratch file, or a record of a stage: another process sees what everybody sees, and what it has
                // read does not count for the program.
                None => {
                    let name = SCRATCH.iter().chain(RECORDS).find(|name| **name == entry.name);
                    let name = name.unwrap_or_else(|| panic!("{entry:?} is not stored"));
                    self.read_as(&Caller::new(0, 0, 1), name).await.unwrap()
                }
            };
            assert!(all.insert(entry.name, content).is_none(), "listed twice");
        }
        all
    }

    /// A number in `.topofs/status`.
    pub async fn count(&self, what: &str) -> u64 {
        self.status().await[what].as_u64().unwrap()
    }

    async fn status(&self) -> serde_json::Value {
        let control = self.tree.lookup(&caller(), ROOT, OsStr::new(".topofs")).await.unwrap().ino;
        let status = self.tree.lookup(&caller(), control, OsStr::new("status")).await.unwrap().ino;
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let opened = self.tree.open(&caller(), status, mode).await.unwrap();
        let content = self.tree.read(&caller(), opened.handle, 0, 1 << 20).await.unwrap();
        self.tree.close(opened.handle).await.unwrap();
        self.tree.forget(status, 1);
        self.tree.forget(control, 1);
        serde_json::from_slice(&content).unwrap()
    }
}
