//! The line of calls that are to be made through the mount, so that the kernel raises events.
//!
//! It is bounded. What does not fit is not told, but the kernel is made to forget the whole cell: an event may be lost, an old
//! name or content never shown.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::FileId;
use crate::name::{CellName, CellPath, TopoPath};

/// Calls that wait at most: several times what inotify keeps for one watcher (16,384 events), so that nobody but a watcher
/// who has lost events already is concerned.
const JOBS: usize = 100_000;
/// What they may take of memory, in bytes: names may be long.
const BYTES: usize = 64 << 20;
/// Calls at most that wait for directories which somebody does not let go of.
const DEFERRED: usize = 10_000;
/// What a call takes beside its names, in bytes.
const OVERHEAD: usize = 256;

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
    pub(super) node: FileId,
    /// The directory, as cell and path; `None` is the root of the mount.
    pub(super) dir: Option<CellPath>,
    pub(super) name: String,
}

impl Job {
    /// What has happened to a directory: also to one that nothing is stored below.
    pub(super) fn of_dir(cell: &CellName, dir: &TopoPath, happened: Happened) -> Self {
        let node = FileId::Dir(CellPath::new(cell, dir));
        match dir.parent() {
            None => Self { happened, node, dir: None, name: cell.to_string() },
            Some(parent) => Self {
                happened,
                node,
                dir: Some(CellPath { cell: cell.clone(), path: parent }),
                name: dir.name().to_owned(),
            },
        }
    }

    /// The same, without telling anybody.
    pub fn unnoticed(&self) -> Self {
        Self { happened: Happened::Unnoticed, ..self.clone() }
    }

    /// The directory that holds the name.
    pub(super) fn parent(&self) -> FileId {
        self.dir.clone().map_or(FileId::Root, FileId::Dir)
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the name stands for.
    pub(super) fn node(&self) -> &FileId {
        &self.node
    }

    /// The path below the mount.
    pub fn path(&self) -> String {
        match &self.dir {
            None => self.name.clone(),
            Some(dir) => format!("{dir}/{}", self.name),
        }
    }

    /// What it takes of memory, about.
    fn bytes(&self) -> usize {
        let path = self.dir.as_ref().map_or(0, |dir| dir.path.as_str().len());
        OVERHEAD + 2 * (path + self.name.len())
    }
}

/// The cell that a node is part of.
fn cell_of(node: &FileId) -> Option<&CellName> {
    match node {
        FileId::Dir(CellPath { cell, .. })
        | FileId::Record(CellPath { cell, .. }, _)
        | FileId::Lock(CellPath { cell, .. }) => Some(cell),
        FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => None,
    }
}

/// What is to be done next.
#[derive(Debug)]
pub enum Work {
    /// A call.
    Job(Job),
    /// So many calls of a cell have been lost: the kernel must forget all of it.
    Lost(CellName, u64),
    /// Nothing for the time being.
    Nothing,
    /// There will be nothing any more.
    End,
}

/// The line.
#[derive(Debug)]
pub(super) struct Jobs {
    line: Mutex<Line>,
    more: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct Line {
    jobs: VecDeque<Job>,
    bytes: usize,
    /// Changes that wait to be told: one telling is enough for all that happened before it.
    pending: HashSet<FileId>,
    /// Names that are about to come or go for the kernel, with how often.
    coming: HashMap<FileId, usize>,
    /// What waits for a directory that is held, by its inode.
    deferred: HashMap<u64, Vec<Job>>,
    /// Cells of which calls have been lost.
    lost: BTreeMap<CellName, u64>,
    /// Nobody makes calls any more.
    closed: bool,
}

impl Default for Jobs {
    fn default() -> Self {
        Self::of(JOBS)
    }
}

impl Line {
    fn lose(&mut self, job: &Job) {
        if let Some(cell) = cell_of(&job.node) {
            *self.lost.entry(cell.clone()).or_default() += 1;
        }
    }

    fn took_out(&mut self, job: &Job) {
        self.bytes = self.bytes.saturating_sub(job.bytes());
        // Whatever happens from now on is to be told anew.
        if job.happened == Happened::Changed {
            self.pending.remove(&job.node);
        }
    }

    fn no_longer_coming(&mut self, node: &FileId) {
        if let Some(count) = self.coming.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                self.coming.remove(node);
            }
        }
    }
}

impl Jobs {
    fn of(limit: usize) -> Self {
        Self { line: Mutex::default(), more: Condvar::new(), limit }
    }

    /// A call that is to be made.
    pub fn push(&self, job: Job) {
        let mut line = self.line.lock();
        if line.closed || job.happened == Happened::Changed && line.pending.contains(&job.node) {
            return;
        }
        let bytes = line.bytes + job.bytes();
        if line.jobs.len() >= self.limit || bytes > BYTES {
            line.lose(&job);
        } else {
            match job.happened {
                Happened::Changed => drop(line.pending.insert(job.node.clone())),
                _ => *line.coming.entry(job.node.clone()).or_default() += 1,
            }
            line.bytes = bytes;
            line.jobs.push_back(job);
        }
        drop(line);
        self.more.notify_one();
    }

    /// What is to be done next, waited for no longer than for a time. `is_held` says of which directories nothing can be told now.
    pub fn next(&self, patience: Duration, is_held: impl Fn(u64) -> bool) -> Work {
        let end = Instant::now() + patience;
        let mut line = self.line.lock();
        loop {
            if line.closed {
                return Work::End;
            }
            if let Some((cell, count)) = line.lost.pop_first() {
                return Work::Lost(cell, count);
            }
            if !line.deferred.is_empty() {
                let free: Vec<u64> = line.deferred.keys().copied().filter(|dir| !is_held(*dir)).collect();
                // Before all that has come since.
                for job in free
                    .iter()
                    .filter_map(|dir| line.deferred.remove(dir))
                    .flatten()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                {
                    line.bytes += job.bytes();
                    line.jobs.push_front(job);
                }
            }
            if let Some(job) = line.jobs.pop_front() {
                line.took_out(&job);
                return Work::Job(job);
            }
            if self.more.wait_until(&mut line, end).timed_out() {
                return Work::Nothing;
            }
        }
    }

    /// A call is made, or need not be.
    pub fn end(&self, job: &Job) {
        if job.happened != Happened::Changed {
            self.line.lock().no_longer_coming(&job.node);
        }
    }

    /// A call cannot be made before somebody lets go of the directory.
    pub fn defer(&self, dir: u64, job: Job) {
        let mut line = self.line.lock();
        if line.closed {
            return;
        }
        let count: usize = line.deferred.values().map(Vec::len).sum();
        if job.happened == Happened::Changed && !line.pending.insert(job.node.clone()) {
            return;
        }
        if count >= DEFERRED {
            line.lose(&job);
            match job.happened {
                Happened::Changed => drop(line.pending.remove(&job.node)),
                _ => line.no_longer_coming(&job.node),
            }
        } else {
            line.deferred.entry(dir).or_default().push(job);
        }
    }

    /// Whether a name is about to come or go for the kernel: until then it must ask.
    pub fn is_coming(&self, node: &FileId) -> bool {
        let line = self.line.lock();
        line.coming.contains_key(node) || cell_of(node).is_some_and(|cell| line.lost.contains_key(cell))
    }

    /// Nobody makes calls any more.
    pub fn close(&self) {
        *self.line.lock() = Line { closed: true, ..Line::default() };
        self.more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Form;

    fn job(name: &str, happened: Happened) -> Job {
        let (cell, path) = (CellName::global(), TopoPath::parse(name).unwrap());
        let dir = path.parent().map(|dir| CellPath { cell: cell.clone(), path: dir });
        Job { happened, node: FileId::Record(CellPath { cell, path }, Form::Raw), dir, name: name.to_owned() }
    }

    fn next(jobs: &Jobs) -> Work {
        jobs.next(Duration::ZERO, |_| false)
    }

    fn next_job(jobs: &Jobs) -> Job {
        match next(jobs) {
            Work::Job(job) => job,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_changes_while_it_is_told_is_told_again() {
        let jobs = Jobs::default();
        jobs.push(job("a", Happened::Changed));
        jobs.push(job("a", Happened::Changed));
        let told = next_job(&jobs);
        assert!(matches!(next(&jobs), Work::Nothing), "one telling is enough for all that happened before it");
        // What the kernel is told may have been looked up before this.
        jobs.push(job("a", Happened::Changed));
        jobs.end(&told);
        assert_eq!(next_job(&jobs).happened, Happened::Changed);
    }

    #[test]
    fn a_name_is_coming_until_the_last_call_is_made() {
        let jobs = Jobs::default();
        jobs.push(job("a", Happened::Created));
        jobs.push(job("a", Happened::Deleted));
        let node = job("a", Happened::Created).node;
        for _ in 0..2 {
            let told = next_job(&jobs);
            assert!(jobs.is_coming(&node));
            jobs.end(&told);
        }
        assert!(!jobs.is_coming(&node));
    }

    #[test]
    fn what_does_not_fit_makes_the_kernel_forget_the_cell() {
        let jobs = Jobs::of(10);
        for number in 0..1_000 {
            jobs.push(job(&format!("key{number}"), Happened::Created));
        }
        let node = job("not-told", Happened::Created).node;
        assert!(jobs.is_coming(&node), "nothing of the cell is kept until then");
        assert!(matches!(next(&jobs), Work::Lost(cell, 990) if cell.is_global()));
        assert!(!jobs.is_coming(&node));
        for number in 0..10 {
            assert_eq!(next_job(&jobs).name, format!("key{number}"));
        }
        assert!(matches!(next(&jobs), Work::Nothing));
    }

    #[test]
    fn long_names_count_for_what_they_are() {
        let jobs = Jobs::default();
        let dir = vec!["n".repeat(255); 15].join("/");
        for number in 0..10_000 {
            jobs.push(job(&format!("{dir}/{number}"), Happened::DirMade));
        }
        assert!(jobs.line.lock().bytes <= BYTES);
        assert!(matches!(next(&jobs), Work::Lost(_, lost) if lost > 0));
    }

    #[test]
    fn a_directory_that_is_held_keeps_nobody_else_waiting() {
        let jobs = Jobs::default();
        jobs.push(job("held", Happened::Created));
        jobs.push(job("other", Happened::Created));
        let first = next_job(&jobs);
        let node = first.node.clone();
        jobs.defer(7, first);
        assert!(matches!(jobs.next(Duration::ZERO, |dir| dir == 7), Work::Job(job) if job.name == "other"));
        assert!(matches!(jobs.next(Duration::ZERO, |dir| dir == 7), Work::Nothing));
        assert!(jobs.is_coming(&node));
        assert_eq!(next_job(&jobs).name, "held", "it is told when the directory is free");
    }

    #[test]
    fn nothing_is_left_when_nobody_makes_calls_any_more() {
        let jobs = Jobs::default();
        jobs.push(job("a", Happened::Created));
        jobs.close();
        jobs.push(job("a", Happened::Created));
        assert!(!jobs.is_coming(&job("a", Happened::Created).node));
        assert!(matches!(next(&jobs), Work::End));
    }
}
