//! Telling the kernel of what happens elsewhere, so that it raises real inotify events.
//!
//! The kernel raises events only for calls that local processes make. So for every remote change one thread of this daemon
//! makes the matching call through the mount, and that thread's requests are answered here, from the change itself, without
//! touching anything. By the time of the call the new state is published: whoever wakes up reads it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::overlay::Place;
use super::{Attr, Caller, Node, Opened, Tree};
use crate::backend::Revision;
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::locks::Saver;
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
    /// Nothing that anybody is told of, but what the kernel keeps of the name, and of the directory, is old.
    Unnoticed,
}

/// A call that is to be made through the mount.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it tells.
    pub happened: Happened,
    /// Of what.
    pub(super) node: Node,
    /// The directory, as cell and path; `None` is the root of the mount.
    pub(super) dir: Option<Place>,
    pub(super) name: String,
}

impl Job {
    /// What has happened to a directory: also to one that nothing is stored below.
    pub(super) fn of_dir(cell: &CellName, dir: &TopoPath, happened: Happened) -> Self {
        let node = Node::Dir(cell.clone(), dir.clone());
        match dir.parent() {
            None => Self { happened, node, dir: None, name: cell.to_string() },
            Some(parent) => Self { happened, node, dir: Some((cell.clone(), parent)), name: dir.name().to_owned() },
        }
    }

    /// The same, without telling anybody.
    pub fn unnoticed(&self) -> Self {
        Self { happened: Happened::Unnoticed, ..self.clone() }
    }

    /// The directory that holds the name.
    pub(super) fn parent(&self) -> Node {
        self.dir.clone().map_or(Node::Root, |(cell, dir)| Node::Dir(cell, dir))
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the name stands for.
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

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
    own_told: Notify,
    /// Names that are about to come or go for the kernel, with how often.
    coming: Mutex<HashMap<Node, usize>>,
    /// The cells that are followed.
    pub(super) followed: Mutex<HashMap<CellName, Arc<Followed>>>,
}

/// A cell whose changes are told.
#[derive(Debug)]
pub(super) struct Followed {
    pub cell: Weak<Cell>,
    /// Answers that the kernel may keep until it is told otherwise.
    pub lasting: AtomicU64,
    /// The number of the last news that the kernel has been made to ask again about.
    let_go: watch::Sender<u64>,
    /// Records that have changed, and when.
    changed: quick_cache::sync::Cache<TopoPath, Instant>,
}

/// Changed records remembered of a cell.
const CHANGED: usize = 10_000;

impl Followed {
    /// Of a cell from now on, with the number of its last news.
    pub fn new(cell: &Arc<Cell>, published: u64) -> Self {
        Self {
            cell: Arc::downgrade(cell),
            lasting: AtomicU64::new(0),
            let_go: watch::Sender::new(published),
            changed: quick_cache::sync::Cache::new(CHANGED),
        }
    }

    /// A record has changed.
    pub fn note_change(&self, path: &TopoPath) {
        self.changed.insert(path.clone(), Instant::now());
    }

    /// Whether a record has changed a moment ago, and may be about to change again.
    pub fn is_changing(&self, path: &TopoPath) -> bool {
        const MOMENT: Duration = Duration::from_secs(1);
        !self.changed.is_empty() && self.changed.get(path).is_some_and(|when| when.elapsed() < MOMENT)
    }

    /// The kernel has been made to ask again about news and all before them.
    pub fn has_let_go_of(&self, news: u64) {
        self.let_go.send_if_modified(|known| std::mem::replace(known, news.max(*known)) < news);
    }

    /// Waits until what the kernel keeps is no older than news.
    pub async fn let_go_of(&self, news: u64) {
        /// Longer than the kernel ever takes; nobody is to hang for it.
        const LONGEST: Duration = Duration::from_secs(1);
        if *self.let_go.borrow() < news {
            let mut known = self.let_go.subscribe();
            let _ = tokio::time::timeout(LONGEST, known.wait_for(|known| *known >= news)).await;
        }
    }
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
            own_told: Notify::new(),
            coming: Mutex::default(),
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

    /// Waits until the commits of this mount's own so far stand among the events.
    pub async fn own_told(&self) {
        loop {
            let told = self.own_told.notified();
            if self.own.lock().is_empty() {
                return;
            }
            told.await;
        }
    }

    /// The commit of this mount's own that a change is, if it is one.
    pub(super) fn own(&self, place: &Place, revision: Revision) -> Option<OwnCommit> {
        self.own.lock().get(place)?.iter().find(|commit| commit.revision == revision).cloned()
    }

    /// A change stands among the events. What came before it will not be asked for any more.
    pub(super) fn told_own(&self, place: &Place, revision: Revision) {
        let mut own = self.own.lock();
        let Some(known) = own.get_mut(place) else { return };
        known.retain(|commit| commit.revision >= revision);
        // One of them only: a record's deletion has the revision of what was deleted.
        if let Some(index) = known.iter().position(|commit| commit.revision == revision) {
            known.remove(index);
        }
        if known.is_empty() {
            own.remove(place);
        }
        if own.is_empty() {
            self.own_told.notify_waiters();
        }
    }

    /// A cell, if its changes are told.
    pub fn followed(&self, cell: &Arc<Cell>) -> Option<Arc<Followed>> {
        let followed = self.followed.lock().get(&cell.name).cloned()?;
        (followed.cell.as_ptr() == Arc::as_ptr(cell)).then_some(followed)
    }

    /// Whether a name is about to come or go for the kernel: until then it must ask.
    pub fn is_coming(&self, node: &Node) -> bool {
        self.coming.lock().contains_key(node)
    }

    /// A call that is to be made.
    pub(super) fn push(&self, job: Job) {
        if job.happened == Happened::Changed {
            if !self.pending.lock().insert(job.node.clone()) {
                return;
            }
        } else {
            *self.coming.lock().entry(job.node.clone()).or_default() += 1;
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
        if self.inodes.known(&job.node).is_none() && self.inodes.known(&job.parent()).is_none() {
            return None;
        }
        let attr = match job.happened {
            Happened::DirMade | Happened::DirRemoved => self.dir_attr(),
            Happened::Unnoticed => return None,
            Happened::Deleted => self.file_attr(0, SystemTime::now()),
            // What has gone again meanwhile is told of by what comes next.
            Happened::Changed => self.attr(&job.node).await.ok()?,
            Happened::Created => self.attr(&job.node).await.unwrap_or_else(|_| self.file_attr(0, SystemTime::now())),
        };
        let size = attr.size;
        *self.echo.now.lock() = Some(Now { job: job.clone(), attr, done: false });
        Some(size)
    }

    /// The call is made, or need not be.
    pub fn end_echo(&self, job: &Job) {
        *self.echo.now.lock() = None;
        if job.happened == Happened::Changed {
            return;
        }
        let mut coming = self.echo.coming.lock();
        if let Some(count) = coming.get_mut(&job.node) {
            *count -= 1;
            if *count == 0 {
                coming.remove(&job.node);
            }
        }
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
        self.echoed(self.inodes.told(&now.job.node), now)
    }

    /// The kernel takes over what it hears as the answer to this call as well.
    fn echoed(&self, ino: u64, Now { job, attr, .. }: &Now) -> Attr {
        // A record may have changed once more since the call was prepared.
        let newer = attr.record.as_ref().and_then(|_| self.attr_now(&job.node).ok());
        let attr = newer.unwrap_or_else(|| attr.clone());
        self.inodes.tell(ino, attr.record.as_ref());
        Attr { ino, ..attr }
    }

    pub(super) fn echo_getattr(&self, ino: u64) -> Result<Attr> {
        let now = self.echo.now.lock();
        let node = self.node(ino)?;
        match now.as_ref() {
            Some(now) if now.job.node == node => Ok(self.echoed(ino, now)),
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
            Happened::Changed | Happened::Deleted | Happened::Unnoticed => Ok(now.attr.clone()),
        }
    }

    pub(super) fn echo_open(&self) -> Opened {
        Opened { handle: ECHO, cached: false, kept: true, flushed: false }
    }
}
