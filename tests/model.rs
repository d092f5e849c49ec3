//! The tree and the write path against a simple reference: random operations of one program and of others on the same
//! records; both must agree after every step. The mirror may be behind when the program does something, and catch up while it does. The
//! kernel's habit of repeating what fails with ESTALE is part of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::world::{connect_options, runtime};
use proptest::prelude::*;
use topofs::backend::memory::MemoryServers;
use topofs::backend::{Action, Backend, Change, Guard, Implementation, Location};
use topofs::cells::{CellOptions, Cells};
use topofs::control::Control;
use topofs::error::{Error, Kind};
use topofs::mirror::MirrorOptions;
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Form, Kinds, Records};
use topofs::tree::{Caller, OpenMode, ROOT, SetAttr, Tree, TreeOptions};

/// Names of records, and of scratch files.
const RECORDS: &[&str] = &["a", "b"];
const SCRATCH: &[&str] = &[".x", ".y"];
const DIR: &str = "metadata";
const SERVER: &str = "m";

type Name = &'static str;
type Outcome<T> = Result<T, Kind>;

/// What another program does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Remote {
    Put(u8),
    Delete,
}

#[derive(Debug, Clone)]
enum Op {
    Read(Name),
    /// Opened, written to, closed; somebody else acts in between.
    Save {
        name: Name,
        append: bool,
        content: u8,
        length: usize,
        meanwhile: Option<Remote>,
    },
    /// O_EXCL.
    Make {
        name: Name,
        content: u8,
    },
    Truncate {
        name: Name,
        size: usize,
    },
    Unlink(Name),
    Rename(Name, Name),
    Remote(Name, Remote),
    /// The same, and the mirror hears of it only after the next operation, or before the kernel repeats that.
    Unheard(Name, Remote),
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![2 => prop::sample::select(RECORDS), 1 => prop::sample::select(SCRATCH)]
}

fn remote() -> impl Strategy<Value = Remote> {
    prop_oneof![3 => (0_u8..4).prop_map(Remote::Put), 1 => Just(Remote::Delete)]
}

fn op() -> impl Strategy<Value = Op> {
    let meanwhile = prop_oneof![3 => Just(None), 1 => remote().prop_map(Some)];
    prop_oneof![
        2 => name().prop_map(Op::Read),
        4 => (name(), any::<bool>(), 0_u8..4, 0_usize..3, meanwhile)
            .prop_map(|(name, append, content, length, meanwhile)| Op::Save { name, append, content, length, meanwhile }),
        1 => (name(), 0_u8..4).prop_map(|(name, content)| Op::Make { name, content }),
        1 => (name(), 0_usize..4).prop_map(|(name, size)| Op::Truncate { name, size }),
        2 => name().prop_map(Op::Unlink),
        4 => (name(), name()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => (prop::sample::select(RECORDS), remote()).prop_map(|(name, remote)| Op::Remote(name, remote)),
        2 => (prop::sample::select(RECORDS), remote()).prop_map(|(name, remote)| Op::Unheard(name, remote)),
    ]
}

fn bytes(content: u8, length: usize) -> Vec<u8> {
    vec![b'0' + content; length]
}

fn is_record(name: Name) -> bool {
    RECORDS.contains(&name)
}

/// The reference.
#[derive(Debug, Default)]
struct Model {
    revision: u64,
    /// Content, and the revision that wrote it.
    records: BTreeMap<Name, (Vec<u8>, u64)>,
    /// What the mirror still shows where it has not heard of a change.
    unheard: BTreeMap<Name, Option<(Vec<u8>, u64)>>,
    /// Content, and the revisions of the records that were shown when the file was made.
    scratch: BTreeMap<Name, (Vec<u8>, BTreeMap<Name, u64>)>,
    /// What our program has last read or written of each record.
    known: BTreeMap<Name, u64>,
    /// Those of them that it has read.
    has_read: BTreeSet<Name>,
    /// Records of which a save of our program was refused.
    unsaved: BTreeSet<Name>,
    /// Records that our program has renamed to a backup: the version.
    moved: BTreeMap<Name, u64>,
}

impl Model {
    /// A record as the mirror shows it.
    fn shown(&self, name: Name) -> Option<&(Vec<u8>, u64)> {
        self.unheard.get(name).map_or_else(|| self.records.get(name), Option::as_ref)
    }

    fn visible(&self, name: Name) -> Option<&Vec<u8>> {
        match is_record(name) {
            true if self.moved.contains_key(name) => None,
            true => self.shown(name).map(|(content, _)| content),
            false => self.scratch.get(name).map(|(content, _)| content),
        }
    }

    /// The service is asked for a record: what it says, the mirror shows.
    fn fetch(&mut self, name: Name) {
        self.unheard.remove(name);
    }

    /// Whether what the mirror shows of a record is what is stored: a change of what it shows is refused otherwise.
    fn is_outdated(&self, name: Name) -> bool {
        self.shown(name) != self.records.get(name)
    }

    /// What a program hears when it removes a name that is outdated: the kernel tries again, and then the mirror has caught up.
    fn refused(&self, name: Name) -> Kind {
        if self.records.contains_key(name) { Kind::Conflict } else { Kind::NotFound }
    }

    fn all_shown(&self) -> BTreeMap<Name, u64> {
        RECORDS.iter().filter_map(|name| Some((*name, self.shown(name)?.1))).collect()
    }

    fn store(&mut self, name: Name, content: Vec<u8>) {
        if self.records.get(name).is_none_or(|(old, _)| *old != content) {
            self.revision += 1;
            self.records.insert(name, (content, self.revision));
        }
    }

    fn stored_by_us(&mut self, name: Name, content: Vec<u8>) {
        self.store(name, content);
        self.known.insert(name, self.records[name].1);
        self.moved.remove(name);
        self.unsaved.remove(name);
    }

    /// Whether our program has read a record that was changed since, as far as the mirror shows. It hears so once.
    fn hears_of_change(&mut self, name: Name) -> bool {
        let written = self.shown(name).map(|(_, written)| written);
        let hears = self.has_read.contains(name) && written.is_some() && self.known.get(name) != written;
        if hears {
            self.forget(name);
        }
        hears
    }

    /// What our program has known of a record does not matter any more.
    fn forget(&mut self, name: Name) {
        self.known.remove(name);
        self.has_read.remove(name);
    }

    fn remote(&mut self, name: Name, remote: Remote) {
        match remote {
            Remote::Put(content) => {
                self.revision += 1;
                self.records.insert(name, (bytes(content, 2), self.revision));
            }
            Remote::Delete if self.records.remove(name).is_some() => self.revision += 1,
            Remote::Delete => {}
        }
    }

    fn read(&mut self, name: Name) -> Outcome<Vec<u8>> {
        let content = self.visible(name).cloned().ok_or(Kind::NotFound)?;
        if let Some((_, written)) = self.shown(name).filter(|_| is_record(name)) {
            self.known.insert(name, *written);
            self.has_read.insert(name);
        }
        Ok(content)
    }

    fn save(&mut self, name: Name, append: bool, added: Vec<u8>, meanwhile: Option<Remote>) -> Outcome<()> {
        if !is_record(name) {
            let shown = self.all_shown();
            let (content, then) = self.scratch.entry(name).or_insert((Vec::new(), shown.clone()));
            if !append {
                content.clear();
                *then = shown;
            }
            content.extend(added);
            return Ok(());
        }
        let was_shown = self.visible(name).is_some();
        self.fetch(name);
        if was_shown && !self.records.contains_key(name) {
            return Err(Kind::NotFound);
        }
        if let Some(version) = self.moved.get(name)
            && self.records.get(name).is_some_and(|(_, written)| written != version)
        {
            // It knows now.
            self.moved.insert(name, self.records[name].1);
            return Err(Kind::Conflict);
        }
        let base = self.records.get(name).map(|(_, written)| *written);
        let is_backed_up = self.moved.contains_key(name);
        if !is_backed_up && self.hears_of_change(name) {
            return Err(Kind::Conflict);
        }
        let mut content = match self.visible(name) {
            Some(old) if append => old.clone(),
            _ => Vec::new(),
        };
        // Opened for appending and closed without a write: nothing is done.
        let untouched = append && self.visible(name).is_some() && added.is_empty();
        // The name is an ordinary one again as soon as the file is open.
        self.moved.remove(name);
        content.extend(added);
        if let Some(remote) = meanwhile {
            self.remote(name, remote);
        }
        if untouched {
            return Ok(());
        }
        if self.records.get(name).map(|(_, written)| *written) != base {
            self.unsaved.insert(name);
            return Err(Kind::Conflict);
        }
        self.stored_by_us(name, content);
        Ok(())
    }

    fn unlink(&mut self, name: Name) -> Outcome<()> {
        self.visible(name).ok_or(Kind::NotFound)?;
        if self.unsaved.remove(name) {
            // It removes what its own refused save has left.
            return Ok(());
        }
        if is_record(name) && (self.hears_of_change(name) || self.is_outdated(name)) {
            return Err(self.refused(name));
        }
        if is_record(name) {
            self.revision += 1;
            self.records.remove(name);
            self.forget(name);
        } else {
            self.scratch.remove(name);
        }
        Ok(())
    }

    fn rename(&mut self, from: Name, to: Name) -> Outcome<()> {
        let content = self.visible(from).cloned().ok_or(Kind::NotFound)?;
        match (is_record(from), is_record(to)) {
            _ if from == to => {}
            (false, false) => drop(self.scratch.remove(from).map(|file| self.scratch.insert(to, file))),
            (false, true) => {
                self.fetch(to);
                let then = self.scratch[from].1.get(to);
                let written = self.records.get(to).map(|(_, written)| *written);
                let known = self.known.get(to).filter(|_| self.has_read.contains(to));
                let conflict = match (written, self.moved.get(to), known) {
                    (Some(written), Some(version), _) => written != *version,
                    (Some(written), None, Some(known)) => written != *known,
                    (Some(written), None, None) => then != Some(&written),
                    (None, Some(_), _) => false,
                    (None, None, known) => known.is_some(),
                };
                if conflict {
                    // It knows now.
                    self.forget(to);
                    if let (Some(version), Some(written)) = (self.moved.get_mut(to), written) {
                        *version = written;
                    }
                    return Err(Kind::Conflict);
                }
                self.scratch.remove(from);
                self.stored_by_us(to, content);
            }
            (true, true) if self.hears_of_change(to) => return Err(self.refused(from)),
            (true, true) if self.is_outdated(from) || self.is_outdated(to) => return Err(self.refused(from)),
            (true, true) => {
                self.revision += 1;
                let moved = (content, self.revision);
                // What does not differ makes no version.
                let old = self.records.get(to).filter(|(old, _)| *old == moved.0).cloned();
                let moved = old.unwrap_or(moved);
                self.records.remove(from);
                self.forget(from);
                self.unsaved.remove(to);
                self.known.insert(to, moved.1);
                self.records.insert(to, moved);
                self.moved.remove(to);
            }
            (true, false) if self.hears_of_change(from) => return Err(self.refused(from)),
            (true, false) => {
                self.moved.insert(from, self.shown(from).map_or(0, |(_, written)| *written));
                self.scratch.insert(to, (content, self.all_shown()));
            }
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Outcome<Vec<u8>> {
        let nothing = |outcome: Outcome<()>| outcome.map(|()| Vec::new());
        match *op {
            Op::Read(name) => self.read(name),
            Op::Save { name, append, content, length, meanwhile } => {
                nothing(self.save(name, append, bytes(content, length), meanwhile))
            }
            Op::Make { name, content } => match self.visible(name) {
                Some(_) => Err(Kind::Exists),
                None => {
                    self.fetch(name);
                    match self.visible(name) {
                        Some(_) if is_record(name) => Err(Kind::Exists),
                        _ => nothing(self.save(name, false, bytes(content, 2), None)),
                    }
                }
            },
            Op::Truncate { name, size } => {
                self.visible(name).ok_or(Kind::NotFound)?;
                self.fetch(name);
                let mut new = self.visible(name).cloned().ok_or(Kind::NotFound)?;
                if is_record(name) && self.hears_of_change(name) {
                    return Err(self.refused(name));
                }
                new.resize(size, 0);
                if is_record(name) {
                    self.stored_by_us(name, new);
                } else if let Some((content, _)) = self.scratch.get_mut(name) {
                    *content = new;
                }
                Ok(Vec::new())
            }
            Op::Unlink(name) => nothing(self.unlink(name)),
            Op::Rename(from, to) => nothing(self.rename(from, to)),
            Op::Remote(name, remote) => {
                self.remote(name, remote);
                Ok(Vec::new())
            }
            Op::Unheard(name, remote) => {
                let shown = self.shown(name).cloned();
                self.unheard.insert(name, shown);
                self.remote(name, remote);
                Ok(Vec::new())
            }
        }
    }

    fn listing(&self) -> BTreeMap<String, Vec<u8>> {
        let records = self.records.iter().map(|(name, (content, _))| (name, content));
        let scratch = self.scratch.iter().map(|(name, (content, _))| (name, content));
        records.chain(scratch).map(|(name, content)| ((*name).to_owned(), content.clone())).collect()
    }
}

/// The real thing, without a kernel.
struct Real {
    tree: Arc<Tree>,
    cells: Arc<Cells>,
    backend: Arc<dyn Backend>,
    servers: MemoryServers,
    /// Revisions that were made to see how far the mirror is.
    marks: AtomicU64,
    /// Names that an answer to a repetition waits for that has not come.
    unrepeated: std::sync::Mutex<BTreeSet<Name>>,
    dir: u64,
}

fn caller() -> Caller {
    // A real process: what a caller has read counts only if it happened in its lifetime.
    Caller::new(0, 0, std::process::id())
}

impl Real {
    async fn new() -> Self {
        let location =
            Location { implementation: Implementation::Memory, server: SERVER.to_owned(), root: "/g".to_owned() };
        let options = CellOptions {
            global: location.clone(),
            connect: connect_options(),
            servers: Default::default(),
            mirror: MirrorOptions {
                resync_interval: std::time::Duration::from_secs(3600),
                stale_after: std::time::Duration::from_secs(10),
                serve_stale: false,
            },
            only: None,
        };
        let servers = options.connect.memory.clone();
        let backend = topofs::backend::open(&CellName::global(), &location, &options.connect).unwrap();
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let cells = Cells::start(options, records.clone()).await.unwrap();
        let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
        let options = TreeOptions {
            read_only: false,
            no_delete: false,
            forms: Form::ALL.to_vec(),
            list: Form::ALL.to_vec(),
            uid: 0,
            gid: 0,
            umask: 0o077,
            scratch_quota: 1 << 20,
            respect_locks: topofs::tree::RespectLocks::Keyspace,
            request_timeout: None,
            allow_unseen_writers: false,
        };
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

    /// As the kernel does: what fails with ESTALE is tried once more, and must fail, too. `name` is what it is about.
    async fn repeating<T: std::fmt::Debug>(
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

    async fn lookup(&self, name: Name) -> Outcome<u64> {
        self.tree.lookup(&caller(), self.dir, OsStr::new(name)).await.map(|attr| attr.ino).map_err(|error| error.kind)
    }

    async fn store(&self, name: Name, remote: Remote) {
        let path = TopoPath::parse(&format!("{DIR}/{name}")).unwrap();
        let action = match remote {
            Remote::Put(content) => Action::Put(bytes(content, 2).into()),
            Remote::Delete => Action::Delete,
        };
        // There may be nothing to delete.
        let _ = self.backend.apply(&[Change { path, guard: Guard::Any, action }]).await;
    }

    async fn remote(&self, name: Name, remote: Remote) {
        self.store(name, remote).await;
        self.catch_up().await;
    }

    /// The mirror hears of everything that has happened.
    async fn catch_up(&self) {
        self.servers.let_go(SERVER);
        // Its revision does not tell, own writes are ahead of what is unheard. Watches tell in order, so what comes last does.
        let path = TopoPath::parse("mark").unwrap();
        let put = Change { path: path.clone(), guard: Guard::Any, action: Action::Put("m".into()) };
        let mark = self.backend.apply(&[put]).await.unwrap().versions[0].unwrap();
        self.marks.fetch_add(1, Ordering::Relaxed);
        let mirror = &self.cells.get(&CellName::global()).unwrap().mirror;
        while mirror.snapshot().records.get(&path).is_none_or(|record| record.version != mark) {
            tokio::task::yield_now().await;
        }
    }

    async fn read(&self, name: Name) -> Outcome<Vec<u8>> {
        let ino = self.lookup(name).await?;
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let opened = self.tree.open(&caller(), ino, mode).await.map_err(|error| error.kind)?;
        let content = self.tree.read(&caller(), opened.handle, 0, 1000).await;
        self.tree.close(opened.handle).await.unwrap();
        self.tree.forget(ino, 1);
        content.map(|content| content.to_vec()).map_err(|error| error.kind)
    }

    async fn save(&self, name: Name, mode: OpenMode, content: Vec<u8>, meanwhile: Option<Remote>) -> Outcome<()> {
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

    async fn apply(&self, op: &Op) -> Outcome<Vec<u8>> {
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
    async fn listing(&self) -> BTreeMap<String, Vec<u8>> {
        let listing = self.tree.listing(&caller(), self.dir, 0).await.unwrap();
        let mut all = BTreeMap::new();
        for entry in listing.entries().map(|(entry, _)| entry.clone()).filter(|entry| entry.name != "keep") {
            let path = TopoPath::parse(&format!("{DIR}/{}", entry.name)).unwrap();
            let content = match self.backend.get(&path).await.unwrap().node {
                Some(node) => node.value.to_vec(),
                None => self
                    .read(
                        SCRATCH
                            .iter()
                            .find(|name| **name == entry.name)
                            .unwrap_or_else(|| panic!("{entry:?} is not stored")),
                    )
                    .await
                    .unwrap(),
            };
            assert!(all.insert(entry.name, content).is_none(), "listed twice");
        }
        all
    }

    /// A number in `.topofs/status`.
    async fn count(&self, what: &str) -> u64 {
        let control = self.tree.lookup(&caller(), ROOT, OsStr::new(".topofs")).await.unwrap().ino;
        let status = self.tree.lookup(&caller(), control, OsStr::new("status")).await.unwrap().ino;
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let opened = self.tree.open(&caller(), status, mode).await.unwrap();
        let content = self.tree.read(&caller(), opened.handle, 0, 1 << 20).await.unwrap();
        self.tree.close(opened.handle).await.unwrap();
        self.tree.forget(status, 1);
        self.tree.forget(control, 1);
        serde_json::from_slice::<serde_json::Value>(&content).unwrap()[what].as_u64().unwrap()
    }
}

async fn agree(ops: &[Op]) -> Result<(), TestCaseError> {
    let real = Real::new().await;
    let mut model = Model { revision: 1, ..Model::default() };
    let (inodes, handles) = (real.count("inodes").await, real.count("handles").await);
    for (step, op) in ops.iter().enumerate() {
        let expected = model.apply(op);
        prop_assert_eq!(real.apply(op).await, expected, "step {}: {:?}", step, op);
        if matches!(op, Op::Unheard(..)) && step + 1 < ops.len() {
            continue;
        }
        model.unheard.clear();
        real.catch_up().await;
        prop_assert_eq!(real.listing().await, model.listing(), "after step {}: {:?}", step, op);
        let marks = real.marks.load(Ordering::Relaxed);
        let revision = real.cells.get(&CellName::global()).unwrap().mirror.revision().0 - marks;
        prop_assert_eq!(revision, model.revision, "versions made, step {}: {:?}", step, op);
    }
    prop_assert_eq!(real.count("handles").await, handles, "handles leak");
    prop_assert_eq!(real.count("inodes").await, inodes, "inodes leak");
    real.tree.forget(real.dir, 1);
    prop_assert_eq!(real.count("inodes").await, inodes - 1, "a directory that is forgotten is kept");
    real.cells.shutdown().await;
    Ok(())
}

/// A short run by default; PROPTEST_CASES for a long one.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_tree_agrees_with_the_reference(ops in prop::collection::vec(op(), 1..25)) {
        runtime().block_on(agree(&ops))?;
    }
}

/// Found by the test above, or worth keeping by name.
mod known {
    use super::*;

    fn check(ops: &[Op]) {
        runtime().block_on(agree(ops)).unwrap();
    }

    fn save(name: Name, content: u8) -> Op {
        Op::Save { name, append: false, content, length: 2, meanwhile: None }
    }

    #[test]
    fn a_program_does_not_conflict_with_its_own_save() {
        check(&[save("a", 1), Op::Read("a"), save("a", 2), save(".x", 3), Op::Rename(".x", "a")]);
    }

    #[test]
    fn a_program_does_not_conflict_with_its_own_removal() {
        check(&[save("a", 1), Op::Read("a"), Op::Unlink("a"), save(".x", 3), Op::Rename(".x", "a")]);
    }

    /// close(2) returns before the kernel says that the last descriptor is gone: what was open then is still in the table.
    #[test]
    fn a_program_sees_the_file_that_it_wrote_last() {
        runtime().block_on(async {
            let real = Real::new().await;
            let ino = real.lookup("keep").await.unwrap();
            let size = async || {
                let by_number = real.tree.getattr(&caller(), ino).await.unwrap().attr.size;
                let by_name = real.tree.lookup(&caller(), real.dir, OsStr::new("keep")).await.unwrap().attr.size;
                assert_eq!(by_number, by_name);
                by_name
            };
            let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
            let closed = real.tree.open(&caller(), ino, mode).await.unwrap().handle;
            real.tree.write(closed, 0, b"12345678").unwrap();
            real.tree.flush(&caller(), closed, 0).await.unwrap();
            let open = real.tree.open(&caller(), ino, mode).await.unwrap().handle;
            assert_eq!(size().await, 8);
            let set = SetAttr { size: Some(3), ..SetAttr::default() };
            assert_eq!(real.tree.setattr(&caller(), ino, Some(open), set).await.unwrap().attr.size, 3);
            assert_eq!(size().await, 3);
            real.tree.close(closed).await.unwrap();
            assert_eq!(size().await, 3);
            real.tree.close(open).await.unwrap();
            assert_eq!((size().await, real.read("keep").await.unwrap()), (3, b"123".to_vec()));
            real.cells.shutdown().await;
        });
    }

    #[test]
    fn a_save_after_a_backup_conflicts_with_a_change_between_them() {
        check(&[save("a", 1), Op::Rename("a", ".x"), Op::Remote("a", Remote::Put(3)), save("a", 2), Op::Read(".x")]);
    }
}
