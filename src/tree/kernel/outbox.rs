//! The outbox: the calls to make through the mount, in line, so that the kernel raises events.
//!
//! It must never grow without bound. For a call that does not fit, no event is raised, but the kernel is made to forget
//! the whole cell: so an event may be lost, but an old name or content is never shown.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::name::{CellName, CellPath, TopoPath};
use crate::topology::links::Link;
use crate::tree::file::FileId;

/// How many calls may wait: several times what inotify keeps for one watcher (16,384 events). So only a watcher who has
/// lost events already can lose events here.
const ANNOUNCEMENTS: usize = 100_000;
/// How much memory they may take, in bytes: names may be long.
const BYTES: usize = 64 << 20;
/// How many calls may wait for directories that somebody holds.
const DEFERRED: usize = 10_000;
/// Memory that a call takes besides its names, in bytes.
const OVERHEAD: usize = 256;

/// What has happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Happened {
    /// A file has another content.
    Changed,
    /// There is a file now.
    Created,
    /// There is a symbolic link now.
    Linked,
    /// A file or a link is gone.
    Deleted,
    /// There is a directory now.
    DirMade,
    /// A directory is gone.
    DirRemoved,
    /// No event, but what the kernel keeps of the name, and of the directory, is old.
    InvalidateOnly,
}

/// A call to make through the mount.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// What has happened.
    pub happened: Happened,
    /// To which file.
    pub(crate) file: FileId,
    /// The directory of the name, or, for a computed link, that of its record; `None` is the root of the mount.
    pub(crate) dir: Option<CellPath>,
    pub(crate) name: String,
}

impl Announcement {
    /// What has happened to a directory, even if nothing is stored below it.
    pub(crate) fn of_dir(cell: &CellName, dir: &TopoPath, happened: Happened) -> Self {
        let file = FileId::Dir(CellPath::new(cell, dir));
        match dir.parent() {
            None => Self { happened, file, dir: None, name: cell.to_string() },
            Some(parent) => Self {
                happened,
                file,
                dir: Some(CellPath { cell: cell.clone(), path: parent }),
                name: dir.name().to_owned(),
            },
        }
    }

    /// What has happened to a computed link.
    pub(crate) fn of_link(link: Link, happened: Happened) -> Self {
        let (dir, name) = (Some(link.of.clone()), link.name().to_owned());
        Self { happened, file: FileId::Link(link), dir, name }
    }

    /// The same without an event.
    pub fn without_event(&self) -> Self {
        Self { happened: Happened::InvalidateOnly, ..self.clone() }
    }

    /// The directory that holds the name.
    pub(crate) fn parent(&self) -> FileId {
        match &self.file {
            FileId::Link(link) => FileId::dir_of_link(link),
            _ => self.dir.clone().map_or(FileId::Root, FileId::Dir),
        }
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the name stands for.
    pub(crate) fn file(&self) -> &FileId {
        &self.file
    }

    /// The path below the mount.
    pub fn path(&self) -> String {
        match (&self.file, &self.dir) {
            (link @ FileId::Link(_), _) => link.to_string(),
            (_, None) => self.name.clone(),
            (_, Some(dir)) => format!("{dir}/{}", self.name),
        }
    }

    /// Memory that it takes, roughly, in bytes.
    fn bytes(&self) -> usize {
        let path = self.dir.as_ref().map_or(0, |dir| dir.path.as_str().len());
        OVERHEAD + 2 * (path + self.name.len())
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Next {
    /// An announcement.
    Announcement(Announcement),
    /// So many calls about a cell have been lost: the kernel must forget the whole cell.
    Lost(CellName, u64),
    /// Nothing at the moment.
    Nothing,
    /// Nothing any more.
    End,
}

/// The outbox of a mount.
#[derive(Debug)]
pub(crate) struct Outbox {
    line: Mutex<Line>,
    more: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Announcement>,
    bytes: usize,
    /// Changes that wait to be announced: one event is enough for all changes before it.
    pending: HashSet<FileId>,
    /// Names that will appear or disappear for the kernel, with the number of calls that are left.
    coming: HashMap<FileId, usize>,
    /// Announcements that wait for a held directory, by its inode.
    deferred: HashMap<u64, Vec<Announcement>>,
    /// Cells about which calls have been lost.
    lost: BTreeMap<CellName, u64>,
    /// No calls are made any more.
    closed: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::of(ANNOUNCEMENTS)
    }
}

impl Line {
    fn lose(&mut self, announcement: &Announcement) {
        if let Some(cell) = announcement.file.cell() {
            *self.lost.entry(cell.clone()).or_default() += 1;
        }
    }

    fn took_out(&mut self, announcement: &Announcement) {
        self.bytes = self.bytes.saturating_sub(announcement.bytes());
        // Whatever happens from now on needs a new announcement.
        if announcement.happened == Happened::Changed {
            self.pending.remove(&announcement.file);
        }
    }

    fn no_longer_coming(&mut self, file: &FileId) {
        if let Some(count) = self.coming.get_mut(file) {
            *count -= 1;
            if *count == 0 {
                self.coming.remove(file);
            }
        }
    }
}

impl Outbox {
    fn of(limit: usize) -> Self {
        Self { line: Mutex::default(), more: Condvar::new(), limit }
    }

    /// Adds a call to make.
    pub fn push(&self, announcement: Announcement) {
        let mut line = self.line.lock();
        if line.closed || announcement.happened == Happened::Changed && line.pending.contains(&announcement.file) {
            return;
        }
        let bytes = line.bytes + announcement.bytes();
        if line.waiting.len() >= self.limit || bytes > BYTES {
            line.lose(&announcement);
        } else {
            match announcement.happened {
                Happened::Changed => drop(line.pending.insert(announcement.file.clone())),
                _ => *line.coming.entry(announcement.file.clone()).or_default() += 1,
            }
            line.bytes = bytes;
            line.waiting.push_back(announcement);
        }
        drop(line);
        self.more.notify_one();
    }

    /// What to do next. Waits for it no longer than `patience`. `is_held` says about which directories nothing can be
    /// announced now.
    pub fn next(&self, patience: Duration, is_held: impl Fn(u64) -> bool) -> Next {
        let end = Instant::now() + patience;
        let mut line = self.line.lock();
        loop {
            if line.closed {
                return Next::End;
            }
            if let Some((cell, count)) = line.lost.pop_first() {
                return Next::Lost(cell, count);
            }
            if !line.deferred.is_empty() {
                let free: Vec<u64> = line.deferred.keys().copied().filter(|dir| !is_held(*dir)).collect();
                // These come before everything that was added since.
                for announcement in free
                    .iter()
                    .filter_map(|dir| line.deferred.remove(dir))
                    .flatten()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                {
                    line.bytes += announcement.bytes();
                    line.waiting.push_front(announcement);
                }
            }
            if let Some(announcement) = line.waiting.pop_front() {
                line.took_out(&announcement);
                return Next::Announcement(announcement);
            }
            if self.more.wait_until(&mut line, end).timed_out() {
                return Next::Nothing;
            }
        }
    }

    /// A call has been made, or need not be made.
    pub fn end(&self, announcement: &Announcement) {
        if announcement.happened != Happened::Changed {
            self.line.lock().no_longer_coming(&announcement.file);
        }
    }

    /// A call cannot be made before its directory is free.
    pub fn defer(&self, dir: u64, announcement: Announcement) {
        let mut line = self.line.lock();
        if line.closed {
            return;
        }
        let count: usize = line.deferred.values().map(Vec::len).sum();
        if announcement.happened == Happened::Changed && !line.pending.insert(announcement.file.clone()) {
            return;
        }
        if count >= DEFERRED {
            line.lose(&announcement);
            match announcement.happened {
                Happened::Changed => drop(line.pending.remove(&announcement.file)),
                _ => line.no_longer_coming(&announcement.file),
            }
        } else {
            line.deferred.entry(dir).or_default().push(announcement);
        }
    }

    /// Whether a name will soon appear or disappear for the kernel: until then the kernel must ask.
    pub fn is_coming(&self, file: &FileId) -> bool {
        let line = self.line.lock();
        line.coming.contains_key(file) || file.cell().is_some_and(|cell| line.lost.contains_key(cell))
    }

    /// No calls are made any more.
    pub fn close(&self) {
        *self.line.lock() = Line { closed: true, ..Line::default() };
        self.more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Form;

    fn announcement(name: &str, happened: Happened) -> Announcement {
        let (cell, path) = (CellName::global(), TopoPath::parse(name).unwrap());
        let dir = path.parent().map(|dir| CellPath { cell: cell.clone(), path: dir });
        Announcement { happened, file: FileId::Record(CellPath { cell, path }, Form::Raw), dir, name: name.to_owned() }
    }

    fn next(outbox: &Outbox) -> Next {
        outbox.next(Duration::ZERO, |_| false)
    }

    fn next_announcement(outbox: &Outbox) -> Announcement {
        match next(outbox) {
            Next::Announcement(announcement) => announcement,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_changes_while_it_is_told_is_told_again() {
        let outbox = Outbox::default();
        outbox.push(announcement("a", Happened::Changed));
        outbox.push(announcement("a", Happened::Changed));
        let first = next_announcement(&outbox);
        assert!(matches!(next(&outbox), Next::Nothing), "one event is enough for all that happened before it");
        // The helper may have been answered with a state from before this change.
        outbox.push(announcement("a", Happened::Changed));
        outbox.end(&first);
        assert_eq!(next_announcement(&outbox).happened, Happened::Changed);
    }

    #[test]
    fn a_name_is_coming_until_the_last_call_is_made() {
        let outbox = Outbox::default();
        outbox.push(announcement("a", Happened::Created));
        outbox.push(announcement("a", Happened::Deleted));
        let file = announcement("a", Happened::Created).file;
        for _ in 0..2 {
            let first = next_announcement(&outbox);
            assert!(outbox.is_coming(&file));
            outbox.end(&first);
        }
        assert!(!outbox.is_coming(&file));
    }

    #[test]
    fn what_does_not_fit_makes_the_kernel_forget_the_cell() {
        let outbox = Outbox::of(10);
        for number in 0..1_000 {
            outbox.push(announcement(&format!("key{number}"), Happened::Created));
        }
        let file = announcement("not-announced", Happened::Created).file;
        assert!(outbox.is_coming(&file), "nothing of the cell is kept until then");
        assert!(matches!(next(&outbox), Next::Lost(cell, 990) if cell.is_global()));
        assert!(!outbox.is_coming(&file));
        for number in 0..10 {
            assert_eq!(next_announcement(&outbox).name, format!("key{number}"));
        }
        assert!(matches!(next(&outbox), Next::Nothing));
    }

    #[test]
    fn long_names_count_for_what_they_are() {
        let outbox = Outbox::default();
        let dir = vec!["n".repeat(255); 15].join("/");
        for number in 0..10_000 {
            outbox.push(announcement(&format!("{dir}/{number}"), Happened::DirMade));
        }
        assert!(outbox.line.lock().bytes <= BYTES);
        assert!(matches!(next(&outbox), Next::Lost(_, lost) if lost > 0));
    }

    #[test]
    fn a_directory_that_is_held_keeps_nobody_else_waiting() {
        let outbox = Outbox::default();
        outbox.push(announcement("held", Happened::Created));
        outbox.push(announcement("other", Happened::Created));
        let first = next_announcement(&outbox);
        let file = first.file.clone();
        outbox.defer(7, first);
        match outbox.next(Duration::ZERO, |dir| dir == 7) {
            Next::Announcement(announcement) => assert_eq!(announcement.name, "other"),
            next => panic!("{next:?}"),
        }
        assert!(matches!(outbox.next(Duration::ZERO, |dir| dir == 7), Next::Nothing));
        assert!(outbox.is_coming(&file));
        assert_eq!(next_announcement(&outbox).name, "held", "it is announced when the directory is free");
    }

    #[test]
    fn nothing_is_left_when_nobody_makes_calls_any_more() {
        let outbox = Outbox::default();
        outbox.push(announcement("a", Happened::Created));
        outbox.close();
        outbox.push(announcement("a", Happened::Created));
        assert!(!outbox.is_coming(&announcement("a", Happened::Created).file));
        assert!(matches!(next(&outbox), Next::End));
    }
}
