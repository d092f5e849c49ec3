//! Telling the kernel of what happens elsewhere, so that it raises real inotify events.
//!
//! The kernel raises events only for calls that local processes make. So for every remote change a helper of this daemon
//! makes the matching call through the mount, and the helper's requests are answered here, from the change itself, without
//! touching anything. By the time of the call the new state is published: whoever wakes up reads it.
//!
//! A helper's call may hang in the kernel; then another helper goes on. What the first asks later, when its call is no longer the
//! one that is being made, finds nothing and changes nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::jobs::{Happened, Job, Jobs, Work};
use super::letting::LONGEST;
use super::{Attr, Caller, FileId, Opened, Tree};
use crate::backend::Revision;
use crate::cells::{Cell, KnownLocks};
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Actor;
use crate::record::Form;

/// Own writes remembered for each record until the mirror has told of them, and records with such.
const OWN: usize = 64;
const OWN_PLACES: usize = 10_000;
/// How long it may take until the mirror tells of an own write. After that it is not going to: somebody else was faster, or the
/// cell is another one.
const OWN_TIME: Duration = Duration::from_secs(10);
/// Processes at most that make calls: one at a time does, the others hang.
pub const HELPERS: usize = 4;

/// A commit of this mount's own.
#[derive(Debug, Clone)]
pub(super) struct OwnCommit {
    /// What was stored; for a deletion, what was deleted.
    pub revision: Revision,
    /// The form that it went through.
    pub form: Form,
    /// Who it was.
    pub saver: Actor,
    /// The name of the program.
    pub command: Option<String>,
}

/// The call that is being made, and what is to come.
#[derive(Debug)]
pub(super) struct Echo {
    /// The processes that make the calls; 0 is none.
    helpers: [AtomicU32; HELPERS],
    now: Mutex<Option<Now>>,
    calls: AtomicU64,
    pub(super) jobs: Jobs,
    /// Events that nobody has been told of.
    pub(super) lost: AtomicU64,
    /// Which form this mount's own commits went through: of that one the kernel has told already.
    own: Mutex<HashMap<CellPath, VecDeque<(Instant, OwnCommit)>>>,
    own_told: Notify,
    /// The cells that are followed.
    pub(super) followed: Mutex<BTreeMap<CellName, Arc<Followed>>>,
}

/// A cell whose changes are told.
#[derive(Debug)]
pub(super) struct Followed {
    pub cell: Weak<Cell>,
    /// Answers that the kernel may keep until it is told otherwise.
    pub lasting: AtomicU64,
    /// The number of the last news that the kernel has been made to ask again about.
    let_go: watch::Sender<u64>,
    /// What the watchers of a cell of this name have been told of last, wherever it was then; `None` if they have never been shown
    /// any of it. Whoever tells of the cell has it to itself.
    pub told: Told,
    /// The same of its locks.
    pub locked: KnownLocks,
    /// Records that have changed, and when.
    changed: quick_cache::sync::Cache<TopoPath, Instant>,
}

/// The records of a cell that its watchers have been told of. It outlives the cell.
pub(super) type Told = Arc<tokio::sync::Mutex<Option<Snapshot>>>;

/// Changed records remembered of a cell.
const CHANGED: usize = 10_000;

impl Followed {
    /// Of a cell from now on, with the number of its last news, and what was told of its name before.
    pub fn new(cell: &Arc<Cell>, published: u64, (told, locked): (Told, KnownLocks)) -> Self {
        Self {
            cell: Arc::downgrade(cell),
            lasting: AtomicU64::new(0),
            let_go: watch::Sender::new(published),
            told,
            locked,
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
        if *self.let_go.borrow() < news {
            let mut known = self.let_go.subscribe();
            let _ = tokio::time::timeout(LONGEST, known.wait_for(|known| *known >= news)).await;
        }
    }
}

#[derive(Debug)]
struct Now {
    number: u64,
    job: Job,
    attr: Attr,
    /// What is created is there, what is deleted is gone.
    done: bool,
}

impl Default for Echo {
    fn default() -> Self {
        Self {
            helpers: Default::default(),
            now: Mutex::default(),
            calls: AtomicU64::new(0),
            jobs: Jobs::default(),
            lost: AtomicU64::new(0),
            own: Mutex::default(),
            own_told: Notify::new(),
            followed: Mutex::default(),
        }
    }
}

impl Echo {
    /// Whether a request comes from a process that makes the calls.
    pub fn is_from(&self, caller: &Caller) -> bool {
        caller.thread != 0 && self.helpers.iter().any(|helper| helper.load(Ordering::Relaxed) == caller.thread)
    }

    /// Notes a commit of this mount's own.
    pub fn note_own(&self, place: &CellPath, commit: OwnCommit) {
        let mut own = self.own.lock();
        if own.len() >= OWN_PLACES {
            forget_old(&mut own);
        }
        if own.len() >= OWN_PLACES && !own.contains_key(place) {
            return;
        }
        let known = own.entry(place.clone()).or_default();
        if known.len() >= OWN {
            known.pop_front();
        }
        known.push_back((Instant::now(), commit));
    }

    /// Waits until the commits of this mount's own so far stand among the events, but for no longer than a time.
    pub async fn own_told(&self, longest: Duration) {
        let all = async {
            loop {
                let told = self.own_told.notified();
                {
                    let mut own = self.own.lock();
                    forget_old(&mut own);
                    if own.is_empty() {
                        return;
                    }
                }
                told.await;
            }
        };
        // The service may not tell of one, or of a newer one only.
        let _ = tokio::time::timeout(longest, all).await;
    }

    /// The commit of this mount's own that a change is, if it is one.
    pub(super) fn own(&self, place: &CellPath, revision: Revision) -> Option<OwnCommit> {
        let own = self.own.lock();
        own.get(place)?.iter().find(|(_, commit)| commit.revision == revision).map(|(_, commit)| commit.clone())
    }

    /// A change stands among the events. What came before it will not be asked for any more.
    pub(super) fn told_own(&self, place: &CellPath, revision: Revision) {
        let mut own = self.own.lock();
        let Some(known) = own.get_mut(place) else { return };
        known.retain(|(_, commit)| commit.revision >= revision);
        // One of them only: a record's deletion has the revision of what was deleted.
        if let Some(index) = known.iter().position(|(_, commit)| commit.revision == revision) {
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
    pub fn is_coming(&self, node: &FileId) -> bool {
        self.jobs.is_coming(node)
    }

    /// A call that is to be made.
    pub(super) fn push(&self, job: Job) {
        self.jobs.push(job);
    }

    fn parent_matches(job: &Job, parent: &FileId) -> bool {
        match (&job.dir, parent) {
            (None, FileId::Root) => true,
            (Some(dir), FileId::Dir(parent)) => dir == parent,
            _ => false,
        }
    }
}

/// The handle of a file that is open to tell of a change. Nothing can be done with it.
pub(super) const ECHO: u64 = u64::MAX;

impl Tree {
    /// What is to be done next, in its order. Waits no longer than for a time.
    pub fn next_work(&self, patience: Duration) -> Work {
        self.echo.jobs.next(patience, |dir| self.is_held(dir))
    }

    /// A process that makes calls. False if there are as many as can be.
    pub fn echo_from(&self, process: u32) -> bool {
        let free =
            |helper: &&AtomicU32| helper.compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        self.echo.helpers.iter().find(free).is_some()
    }

    /// A process that made calls is gone, but its number not free yet: what has that number next is somebody else.
    pub fn echo_no_more_from(&self, process: u32) {
        for helper in &self.echo.helpers {
            let _ = helper.compare_exchange(process, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Nobody makes calls any more.
    pub fn echo_ends(&self) {
        self.echo.jobs.close();
    }

    /// An event that nobody is told of.
    pub fn lose_event(&self) {
        self.echo.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Prepares the answers for one call. Returns the number of the call, and the size of the file; `None` if nobody could notice the
    /// call.
    pub fn begin_echo(&self, job: &Job) -> Option<(u64, u64)> {
        if self.inodes.known(&job.node).is_none() && self.inodes.known(&job.parent()).is_none() {
            return None;
        }
        // Of what is loaded: nothing is waited for here.
        let attr = match job.happened {
            // One that has come again meanwhile is not taken for dead: who is on the way through it would not arrive.
            Happened::DirRemoved if self.is_dir_now(&job.node) => return None,
            Happened::DirMade | Happened::DirRemoved => self.dir_attr(),
            Happened::Unnoticed => return None,
            Happened::Deleted => self.file_attr(0, SystemTime::now()),
            // What has gone again meanwhile is told of by what comes next.
            Happened::Changed => self.attr_now(&job.node).ok()?,
            Happened::Created => self.attr_now(&job.node).unwrap_or_else(|_| self.file_attr(0, SystemTime::now())),
        };
        let (size, number) = (attr.size, self.echo.calls.fetch_add(1, Ordering::Relaxed));
        *self.echo.now.lock() = Some(Now { number, job: job.clone(), attr, done: false });
        Some((number, size))
    }

    fn is_dir_now(&self, node: &FileId) -> bool {
        let FileId::Dir(CellPath { cell, path }) = node else { return false };
        let Some(connected) = self.cells.get(cell) else { return false };
        path.is_root()
            || connected.mirror.snapshot().has_children(path)
            || self.overlay.has_dir(&CellPath::new(cell, path))
    }

    /// A call is made, or has failed.
    pub fn end_echo(&self, number: u64) {
        // Another may have begun while this one hung.
        self.echo.now.lock().take_if(|now| now.number == number);
    }

    /// Whatever was to be done for a job is done.
    pub fn end_job(&self, job: &Job) {
        self.echo.jobs.end(job);
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
            (FileId::Root, Some(CellPath { cell, .. })) if cell.as_str() == name => {
                FileId::Dir(CellPath { cell: cell.clone(), path: TopoPath::root() })
            }
            (FileId::Dir(CellPath { cell, path: dir }), Some(CellPath { path: goal, .. })) => {
                let child = dir.join(name)?;
                if goal.below(&child).is_none() {
                    return Err(Error::not_found());
                }
                FileId::Dir(CellPath { cell: cell.clone(), path: child })
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
        self.note_told(&job.node, ino, &attr);
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

/// What the mirror has not told of by now, it is not going to.
fn forget_old(own: &mut HashMap<CellPath, VecDeque<(Instant, OwnCommit)>>) {
    own.retain(|_, commits| {
        commits.retain(|(when, _)| when.elapsed() < OWN_TIME);
        !commits.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> CellPath {
        CellPath { cell: CellName::global(), path: TopoPath::parse(name).unwrap() }
    }

    fn commit(revision: u64) -> OwnCommit {
        let saver = Actor { uid: 0, process: 1 };
        OwnCommit { revision: Revision(revision), form: Form::Raw, saver, command: None }
    }

    #[tokio::test]
    async fn an_own_change_that_is_never_told_keeps_nobody_waiting() {
        let echo = Echo::default();
        echo.note_own(&place("a"), commit(1));
        echo.own_told(Duration::from_millis(10)).await;
        // The mirror has heard of a newer one only.
        echo.told_own(&place("a"), Revision(2));
        let begin = Instant::now();
        echo.own_told(Duration::from_secs(60)).await;
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is left to wait for");
    }

    #[test]
    fn own_changes_that_are_never_told_do_not_add_up() {
        let echo = Echo::default();
        for number in 0..3 * OWN_PLACES {
            echo.note_own(&place(&format!("key{number}")), commit(1));
        }
        assert!(echo.own.lock().len() <= OWN_PLACES);
    }

    #[test]
    fn a_process_is_a_helper_until_it_is_gone() {
        let echo = Echo::default();
        let is_helper = |thread| echo.is_from(&Caller::new(0, 0, thread));
        assert!(!is_helper(0), "a caller that cannot be seen is nobody");
        echo.helpers[1].store(7, Ordering::Relaxed);
        assert!(is_helper(7) && !is_helper(0) && !is_helper(8));
    }
}
