//! Telling the kernel of what happens elsewhere, so that it raises real inotify events.
//!
//! The kernel raises events only for calls that local processes make. So for every remote change one thread of this daemon
//! makes the matching call through the mount, and that thread's requests are answered here, from the change itself, without
//! touching anything. By the time of the call the new state is published: whoever wakes up reads it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::lockfile::{LOCK, is_virtual};
use super::node::DATA;
use super::overlay::Place;
use super::{Attr, Caller, Node, Opened, Tree};
use crate::backend::Revision;
use crate::cells::{Cell, HolderChange, Holders};
use crate::error::{Error, Kind, Result};
use crate::locks::Saver;
use crate::mirror::{Record, Snapshot, Update};
use crate::name::{CellName, TopoPath};
use crate::record::Form;

/// Own writes remembered for each record until the mirror has told of them.
const OWN: usize = 64;

/// What has happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Happened {
    /// A file has another content.
    Changed,
    /// There is a file now.
    Created,
    /// A file is gone.
    Deleted,
    /// There is a directory now.
    DirMade,
    /// A directory is gone.
    DirRemoved,
}

/// A call that is to be made through the mount.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it tells.
    pub happened: Happened,
    /// Of what.
    node: Node,
    /// The directory, as cell and path; `None` is the root of the mount.
    dir: Option<Place>,
    name: String,
}

impl Job {
    /// The path below the mount.
    pub fn path(&self) -> String {
        match &self.dir {
            None => self.name.clone(),
            Some((cell, dir)) if dir.is_root() => format!("{cell}/{}", self.name),
            Some((cell, dir)) => format!("{cell}/{dir}/{}", self.name),
        }
    }
}

/// A commit of this mount's own.
#[derive(Debug, Clone)]
pub(super) struct OwnCommit {
    /// What was stored; for a deletion, what was deleted.
    pub revision: Revision,
    /// The form that it went through.
    pub form: Form,
    /// Who it was.
    pub saver: Saver,
    /// The name of the program.
    pub command: Option<String>,
}

/// The call that is being made, and what is to come.
#[derive(Debug)]
pub(super) struct Echo {
    /// The thread that makes the calls.
    thread: AtomicU32,
    now: Mutex<Option<Now>>,
    waiting: tokio::sync::mpsc::UnboundedSender<Job>,
    jobs: Mutex<Option<tokio::sync::mpsc::UnboundedReceiver<Job>>>,
    /// Changes that wait to be told: one telling is enough for all that happened before it.
    pending: Mutex<HashSet<Node>>,
    /// Which form this mount's own commits went through: of that one the kernel has told already.
    own: Mutex<HashMap<Place, VecDeque<OwnCommit>>>,
    followed: Mutex<HashSet<CellName>>,
}

#[derive(Debug)]
struct Now {
    job: Job,
    attr: Attr,
    /// What is created is there, what is deleted is gone.
    done: bool,
}

impl Default for Echo {
    fn default() -> Self {
        let (waiting, jobs) = tokio::sync::mpsc::unbounded_channel();
        Self {
            thread: AtomicU32::new(0),
            now: Mutex::default(),
            waiting,
            jobs: Mutex::new(Some(jobs)),
            pending: Mutex::default(),
            own: Mutex::default(),
            followed: Mutex::default(),
        }
    }
}

impl Echo {
    /// Whether a request comes from the process that makes the calls.
    pub fn is_from(&self, caller: &Caller) -> bool {
        caller.thread != 0 && caller.thread == self.thread.load(Ordering::Relaxed)
    }

    /// Notes a commit of this mount's own.
    pub fn note_own(&self, place: &Place, commit: OwnCommit) {
        let mut own = self.own.lock();
        let known = own.entry(place.clone()).or_default();
        if known.len() >= OWN {
            known.pop_front();
        }
        known.push_back(commit);
    }

    fn take_own(&self, place: &Place, revision: Revision) -> Option<OwnCommit> {
        let mut own = self.own.lock();
        let known = own.get_mut(place)?;
        let index = known.iter().position(|commit| commit.revision == revision)?;
        // What came before will not be asked for any more.
        let commit = known.drain(..=index).next_back();
        if known.is_empty() {
            own.remove(place);
        }
        commit
    }

    fn push(&self, job: Job) {
        if job.happened == Happened::Changed && !self.pending.lock().insert(job.node.clone()) {
            return;
        }
        // Nobody makes calls where there is no mount (in tests).
        let _ = self.waiting.send(job);
    }

    fn parent_matches(job: &Job, parent: &Node) -> bool {
        match (&job.dir, parent) {
            (None, Node::Root) => true,
            (Some((cell, dir)), Node::Dir(other, path)) => cell == other && dir == path,
            _ => false,
        }
    }
}

/// The handle of a file that is open to tell of a change. Nothing can be done with it.
pub(super) const ECHO: u64 = u64::MAX;

impl Tree {
    /// The calls that are to be made, in their order. There is one who makes them.
    pub fn jobs(&self) -> Option<tokio::sync::mpsc::UnboundedReceiver<Job>> {
        self.echo.jobs.lock().take()
    }

    /// The thread that makes the calls from now on: the calling one.
    pub fn echo_from(&self, thread: u32) {
        self.echo.thread.store(thread, Ordering::Relaxed);
    }

    /// Prepares the answers for one call. Returns the size of the file; `None` if nobody could notice the call.
    pub async fn begin_echo(&self, job: &Job) -> Option<u64> {
        self.echo.pending.lock().remove(&job.node);
        let parent = match &job.dir {
            None => Node::Root,
            Some((cell, dir)) => Node::Dir(cell.clone(), dir.clone()),
        };
        if !self.inodes.is_known(&job.node) && !self.inodes.is_known(&parent) {
            return None;
        }
        let attr = match job.happened {
            Happened::DirMade | Happened::DirRemoved => self.dir_attr(),
            Happened::Deleted => self.file_attr(0, SystemTime::now()),
            // What has gone again meanwhile is told of by what comes next.
            Happened::Changed => self.attr(&job.node).await.ok()?,
            Happened::Created => self.attr(&job.node).await.unwrap_or_else(|_| self.file_attr(0, SystemTime::now())),
        };
        let size = attr.size;
        *self.echo.now.lock() = Some(Now { job: job.clone(), attr, done: false });
        Some(size)
    }

    /// The call is made.
    pub fn end_echo(&self) {
        *self.echo.now.lock() = None;
    }

    pub(super) fn echo_lookup(&self, parent: u64, name: &str) -> Result<Attr> {
        let now = self.echo.now.lock();
        let now = now.as_ref().ok_or_else(Error::not_found)?;
        let parent = self.node(parent)?;
        if Echo::parent_matches(&now.job, &parent) && now.job.name == name {
            let creates = matches!(now.job.happened, Happened::Created | Happened::DirMade);
            return if creates == now.done { Ok(self.echo_attr(now)) } else { Err(Error::not_found()) };
        }
        // A directory on the way, whether or not it is still there.
        let node = match (&parent, &now.job.dir) {
            (Node::Root, Some((cell, _))) if cell.as_str() == name => Node::Dir(cell.clone(), TopoPath::root()),
            (Node::Dir(cell, dir), Some((_, goal))) => {
                let child = dir.join(name)?;
                if goal.below(&child).is_none() {
                    return Err(Error::not_found());
                }
                Node::Dir(cell.clone(), child)
            }
            _ => return Err(Error::not_found()),
        };
        Ok(Attr { ino: self.inodes.told(&node), ..self.dir_attr() })
    }

    fn echo_attr(&self, now: &Now) -> Attr {
        Attr { ino: self.inodes.told(&now.job.node), ..now.attr.clone() }
    }

    pub(super) fn echo_getattr(&self, ino: u64) -> Result<Attr> {
        let now = self.echo.now.lock();
        let node = self.node(ino)?;
        match now.as_ref() {
            Some(now) if now.job.node == node => Ok(Attr { ino, ..now.attr.clone() }),
            _ if node.is_dir() => Ok(Attr { ino, ..self.dir_attr() }),
            _ => Err(Error::not_found()),
        }
    }

    /// A name is created or removed.
    pub(super) fn echo_done(&self, parent: u64, name: &str, happened: Happened) -> Result<Attr> {
        let mut now = self.echo.now.lock();
        let now = now.as_mut().ok_or_else(Error::not_found)?;
        if now.job.happened != happened || now.job.name != name || !Echo::parent_matches(&now.job, &self.node(parent)?)
        {
            return Err(Error::new(Kind::NotPermitted, "this is not what is to be told"));
        }
        now.done = true;
        match happened {
            Happened::Created | Happened::DirMade => Ok(self.echo_attr(now)),
            Happened::DirRemoved => {
                self.inodes.retire(&now.job.node);
                Ok(now.attr.clone())
            }
            Happened::Changed | Happened::Deleted => Ok(now.attr.clone()),
        }
    }

    pub(super) fn echo_open(&self) -> Opened {
        Opened { handle: ECHO, cached: false, flushed: false }
    }

    /// Tells of what happens in a cell from now on.
    pub(super) fn follow(self: &Arc<Self>, cell: &Arc<Cell>) {
        if self.echo.followed.lock().insert(cell.name.clone()) {
            self.tasks.spawn(self.clone().tell_of(cell.clone()));
            self.tasks.spawn(self.clone().tell_of_locks(cell.clone()));
        }
    }

    async fn tell_of(self: Arc<Self>, cell: Arc<Cell>) {
        let mut updates = cell.mirror.subscribe();
        if !self.is_loaded(&cell).await {
            return;
        }
        // What has come in between is in it already, and is passed over.
        let mut told = Snapshot::clone(&cell.mirror.snapshot());
        loop {
            let news = tokio::select! {
                () = self.stop.cancelled() => return,
                news = updates.recv() => news,
            };
            match news {
                Ok(news) => {
                    for update in news.iter() {
                        self.tell(&cell, update, &mut told).await;
                    }
                }
                // Too much at once: what is different now is what has happened, each record once.
                Err(RecvError::Lagged(_)) => {
                    updates = updates.resubscribe();
                    let now = cell.mirror.snapshot();
                    for update in differences(&told, &now) {
                        self.tell(&cell, &update, &mut told).await;
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Waits until somebody has connected a cell; not if the mount ends before.
    async fn is_loaded(&self, cell: &Cell) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = cell.mirror.loaded() => true,
        }
    }

    async fn tell(&self, cell: &Cell, update: &Update, told: &mut Snapshot) {
        let Update { path, new, .. } = update;
        let old = match new {
            Some(record) => told.records.get(path).cloned().filter(|old| old.version.created == record.version.created),
            None => told.records.get(path).cloned(),
        };
        let place = (cell.name.clone(), path.clone());
        // Whether it was our own commit is known when that has come back.
        self.committing.wait(&place).await;
        let revision = new.as_ref().or(old.as_ref()).map(|record| record.version.written);
        let own = revision.and_then(|revision| self.echo.take_own(&place, revision));
        self.record(cell, path, (old.as_ref(), new.as_ref()), own.as_ref());
        let own = own.map(|commit| commit.form);
        let before = told.clone();
        match new {
            Some(record) => drop(told.records.insert(path.clone(), record.clone())),
            None => drop(told.records.remove(path)),
        }
        match (&old, new) {
            (Some(old), Some(new)) if old.version == new.version => {}
            (Some(_), Some(_)) => self.tell_forms(cell, told, path, own, Happened::Changed),
            (None, Some(_)) => {
                if own.is_none() {
                    let new_dirs = ancestors(path).filter(|dir| !before.has_children(dir));
                    for dir in new_dirs.collect::<Vec<_>>().into_iter().rev() {
                        self.tell_dir(cell, &dir, Happened::DirMade);
                    }
                }
                self.tell_forms(cell, told, path, own, Happened::Created);
                self.tell_cell(cell, path, Happened::DirMade);
            }
            (Some(_), None) => {
                self.tell_forms(cell, &before, path, own, Happened::Deleted);
                if own.is_none() {
                    for dir in ancestors(path).filter(|dir| !told.has_children(dir)) {
                        self.tell_dir(cell, &dir, Happened::DirRemoved);
                    }
                }
                self.tell_cell(cell, path, Happened::DirRemoved);
            }
            (None, None) => {}
        }
    }

    /// Adds a line to `.topofs/events`.
    fn record(
        &self,
        cell: &Cell,
        path: &TopoPath,
        (old, new): (Option<&Record>, Option<&Record>),
        own: Option<&OwnCommit>,
    ) {
        let kind = match (old, new) {
            (Some(old), Some(new)) if old.version == new.version => return,
            (None, None) => return,
            (None, Some(_)) => "created",
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "deleted",
        };
        let number = |record: Option<&Record>| json!(record.map(|record| record.version.number));
        let by = own.map_or_else(
            || json!("remote"),
            |own| json!({ "uid": own.saver.uid, "pid": own.saver.process, "command": own.command }),
        );
        let more = [("version", number(new)), ("old_version", number(old)), ("by", by)];
        self.control.events.record(&cell.name, path.as_str(), kind, &more);
    }

    fn tell_forms(&self, cell: &Cell, shown: &Snapshot, path: &TopoPath, own: Option<Form>, happened: Happened) {
        for form in self.forms(&cell.name, path).filter(|form| Some(*form) != own) {
            let (dir, name) = match shown.has_children(path) {
                true => (Some(path.clone()), format!("{DATA}{}", form.suffix())),
                false => (path.parent(), format!("{}{}", path.name(), form.suffix())),
            };
            let node = Node::Record(cell.name.clone(), path.clone(), form);
            let dir = dir.map(|dir| (cell.name.clone(), dir));
            self.echo.push(Job { happened, node, dir, name });
        }
    }

    fn tell_dir(&self, cell: &Cell, dir: &TopoPath, happened: Happened) {
        let place = (cell.name.clone(), dir.clone());
        // One that this mount has anyway neither comes nor goes.
        if is_virtual(&cell.name, dir) || self.overlay.has_dir(&place) {
            return;
        }
        let node = Node::Dir(cell.name.clone(), dir.clone());
        let parent = dir.parent().map(|parent| (cell.name.clone(), parent));
        self.echo.push(Job { happened, node, dir: parent, name: dir.name().to_owned() });
    }

    /// A cell comes and goes with its CellInfo record.
    fn tell_cell(&self, cell: &Cell, path: &TopoPath, happened: Happened) {
        let names: Vec<&str> = path.components().collect();
        let (true, ["cells", name, "CellInfo"]) = (cell.name.is_global(), names.as_slice()) else { return };
        if let Ok(name) = CellName::new(name)
            && !name.is_global()
            && self.cells.get(&name).is_some() == (happened == Happened::DirMade)
        {
            let node = Node::Dir(name.clone(), TopoPath::root());
            self.echo.push(Job { happened, node, dir: None, name: name.to_string() });
        }
    }

    async fn tell_of_locks(self: Arc<Self>, cell: Arc<Cell>) {
        let follow = async {
            let mut holders = Holders::of(cell.clone()).await;
            loop {
                for HolderChange { dir, .. } in holders.changed().await {
                    let node = Node::Lock(cell.name.clone(), dir.clone());
                    let parent = Some((cell.name.clone(), dir));
                    self.echo.push(Job { happened: Happened::Changed, node, dir: parent, name: LOCK.to_owned() });
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = follow => {}
        }
    }
}

/// The directories above a path, the nearest first, without the cell's root.
fn ancestors(path: &TopoPath) -> impl Iterator<Item = TopoPath> {
    std::iter::successors(path.parent(), TopoPath::parent).take_while(|dir| !dir.is_root())
}

/// What is different, deletions first, then in the order in which it was written.
fn differences(old: &Snapshot, new: &Snapshot) -> Vec<Update> {
    use imbl::ordmap::DiffItem;
    let mut updates: Vec<Update> = old
        .records
        .diff(&new.records)
        .map(|item| match item {
            DiffItem::Add(path, record) => Update { path: path.clone(), old: None, new: Some(record.clone()) },
            DiffItem::Update { old: (path, old), new: (_, new) } => {
                Update { path: path.clone(), old: Some(old.clone()), new: Some(new.clone()) }
            }
            DiffItem::Remove(path, record) => Update { path: path.clone(), old: Some(record.clone()), new: None },
        })
        .collect();
    updates.sort_by_key(|update| update.new.as_ref().map(|record| record.version.written));
    updates
}
