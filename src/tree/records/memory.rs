//! Owns what this mount remembers of processes (not of threads). An unseen process (one in another pid namespace, or
//! one that /proc does not show) must never share anything with others.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::Version;
use crate::cache::CacheCount;
use crate::error::Error;
use crate::mirror::Record;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Process;
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::FileId;

/// How many reads are remembered, over all callers.
const READS: usize = 50_000;
/// How many removed, moved or made names are remembered, over all callers.
const EXCEPTIONS: usize = 10_000;
/// How many deleted records are kept, over all callers: processes change their mind only about the last few.
const DELETED: usize = 64;
/// How long the names that vanish together with an unlinked one still answer to the process that unlinked it.
const EXCEPTION_TIME: Duration = Duration::from_secs(30);
/// How long a refused operation gets the same answer: after ESTALE the kernel repeats it at once.
const REPEAT_TIME: Duration = Duration::from_secs(1);
/// How many refused operations are remembered.
const REPEATS: usize = 256;

/// A record and a process.
type Concern = (Process, CellName, TopoPath);

/// What callers did lately.
#[derive(Debug)]
pub struct Memory {
    known: quick_cache::sync::Cache<Concern, Known>,
    exceptions: quick_cache::sync::Cache<(Process, FileId), Exception>,
    /// Names that some process sees differently from all others.
    disputed: quick_cache::sync::Cache<FileId, Instant>,
    made: quick_cache::sync::Cache<Concern, Made>,
    deleted: quick_cache::sync::Cache<Concern, Deleted>,
    /// Files whose last save was refused.
    unsaved: quick_cache::sync::Cache<(Process, FileId), Instant>,
    refusals: Mutex<Vec<Refusal>>,
}

/// What a process knows of a record.
#[derive(Debug, Clone, Copy)]
struct Known {
    version: Version,
    reading: Reading,
    /// It has stored this version itself.
    own: bool,
}

/// How a process has read a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    /// Not at all: the process has only stored it.
    Not,
    /// Through an open file that the process also writes through.
    ToWrite,
    /// Through another open file: what the process writes later may be made from that.
    Apart,
}

/// A record that a process has made.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// The version that it has stored.
    pub version: Version,
    /// The form under whose name it was made.
    pub form: Form,
    /// It replaces a record that the process has removed, or was made under several names: somebody replaces it form
    /// after form.
    pub replaces: bool,
    when: Instant,
}

/// A record that a process has deleted.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// What was stored.
    pub value: Bytes,
    /// When it was last changed.
    pub modified: SystemTime,
    when: Instant,
}

/// An operation that was refused with ESTALE. The caller is known by its thread, since the kernel repeats at once.
#[derive(Debug)]
struct Refusal {
    caller: (u32, u32),
    file: FileId,
    when: Instant,
    error: Error,
}

/// Why a name is not what the mirror says, for one process.
#[derive(Debug, Clone)]
pub enum Exception {
    /// The record is gone with another form's name, or the directory is gone with its last record. This name still
    /// answers until it is removed, too.
    Tombstone(Instant),
    /// The record was moved to this path under another form's name. This name still answers until it is moved, too.
    Moved(Instant, TopoPath),
    /// An editor has renamed the record to a backup. The name is free, and the save that follows replaces this version.
    MovedAway(Instant, Version),
    /// The process has made the record under another form's name, and has removed this name, probably to make it as
    /// well.
    Freed(Instant),
    /// A directory that cannot be renamed, so that the process moves it file by file (`mv`). It will remove the
    /// directory at the end.
    MovedByFiles(Instant),
    /// The lock of a directory that the process has made: the process expects the directory to be empty.
    NotYetMade(Instant),
}

impl Exception {
    fn is_fresh(&self) -> bool {
        self.when().elapsed() < EXCEPTION_TIME
    }

    fn when(&self) -> Instant {
        match self {
            Exception::Tombstone(when)
            | Exception::Freed(when)
            | Exception::NotYetMade(when)
            | Exception::MovedByFiles(when) => *when,
            Exception::Moved(when, _) | Exception::MovedAway(when, _) => *when,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            known: quick_cache::sync::Cache::new(READS),
            exceptions: quick_cache::sync::Cache::new(EXCEPTIONS),
            disputed: quick_cache::sync::Cache::new(EXCEPTIONS),
            made: quick_cache::sync::Cache::new(EXCEPTIONS),
            deleted: quick_cache::sync::Cache::new(DELETED),
            unsaved: quick_cache::sync::Cache::new(EXCEPTIONS),
            refusals: Mutex::default(),
        }
    }
}

fn concern(process: Process, cell: &CellName, path: &TopoPath) -> Concern {
    (process, cell.clone(), path.clone())
}

impl Memory {
    /// The figures of what processes have read.
    pub fn cache(&self) -> CacheCount {
        CacheCount::of(&self.known)
    }

    /// A process has read a version of a record.
    pub fn read(
        &self,
        process: Option<Process>,
        (cell, path): (&CellName, &TopoPath),
        version: Version,
        reading: Reading,
    ) {
        let Some(process) = process else { return };
        let key = concern(process, cell, path);
        let own = self.known.get(&key).is_some_and(|known| known.own && known.version == version);
        self.known.insert(key, Known { version, reading, own });
    }

    /// A process has stored a version of a record.
    pub fn stored(&self, process: Option<Process>, cell: &CellName, path: &TopoPath, version: Version) {
        let Some(process) = process else { return };
        let key = concern(process, cell, path);
        let reading = self.known.get(&key).map_or(Reading::Not, |known| known.reading);
        if !self.unsaved.is_empty() {
            let forms = Form::ALL.into_iter().map(|form| FileId::Record(CellPath::new(cell, path), form));
            forms.for_each(|file| drop(self.unsaved.remove(&(process, file))));
        }
        if let Some(made) = self.made.get(&key) {
            self.made.insert(key.clone(), Made { version, ..made });
        }
        self.known.insert(key, Known { version, reading, own: true });
    }

    /// The version that a process has read or stored last.
    pub fn last_known(&self, caller: &Caller, cell: &CellName, path: &TopoPath) -> Option<Version> {
        self.last_read(caller, cell, path, Reading::Not)
    }

    /// The version that a process has read or stored last, if it has read the record at least in this way.
    pub fn last_read(&self, caller: &Caller, cell: &CellName, path: &TopoPath, at_least: Reading) -> Option<Version> {
        let known = self.known.get(&concern(caller.process()?, cell, path))?;
        (known.reading >= at_least).then_some(known.version)
    }

    /// Whether a version of a record is one that a process has stored.
    pub fn has_stored(&self, process: Process, cell: &CellName, path: &TopoPath, version: Version) -> bool {
        self.known.get(&concern(process, cell, path)).is_some_and(|known| known.own && known.version == version)
    }

    /// What a process has read of a record no longer matters.
    pub fn forget_read(&self, caller: &Caller, cell: &CellName, path: &TopoPath) {
        if let Some(process) = caller.process() {
            self.known.remove(&concern(process, cell, path));
        }
    }

    /// A process has made a record that was not there (any more). `replaces` says that names of an older record still
    /// answer.
    pub fn made(&self, process: Process, (cell, path): (&CellName, &TopoPath), made: (Form, Version), replaces: bool) {
        let key = concern(process, cell, path);
        // What was deleted has been made again, so it will not be put back.
        self.deleted.remove(&key);
        let (form, version) = made;
        self.made.insert(key, Made { version, form, replaces, when: Instant::now() });
    }

    /// A process has made a name of a record again that it had removed.
    pub fn made_again(&self, caller: &Caller, cell: &CellName, path: &TopoPath) {
        if let Some(made) = self.made_by(caller, cell, path)
            && let Some(process) = caller.process()
        {
            self.made.insert(concern(process, cell, path), Made { replaces: true, when: Instant::now(), ..made });
        }
    }

    /// The record that a caller has made just now.
    pub fn made_by(&self, caller: &Caller, cell: &CellName, path: &TopoPath) -> Option<Made> {
        self.made_of(caller.process().filter(|_| !self.made.is_empty())?, cell, path)
    }

    /// The record that a process has made just now.
    pub fn made_of(&self, process: Process, cell: &CellName, path: &TopoPath) -> Option<Made> {
        let made = self.made.get(&concern(process, cell, path))?;
        (made.when.elapsed() < EXCEPTION_TIME).then_some(made)
    }

    /// A process has deleted a record, perhaps to make it anew, as `mv` and `install` from elsewhere do.
    pub fn deleted(&self, process: Option<Process>, cell: &CellName, path: &TopoPath, record: &Record) {
        let Some(process) = process else { return };
        let key = concern(process, cell, path);
        self.known.remove(&key);
        self.made.remove(&key);
        let Record { value, modified, .. } = record;
        let deleted = Deleted { value: value.clone(), modified: *modified, when: Instant::now() };
        self.deleted.insert(key, deleted);
    }

    /// What a process has deleted just now. It is returned only once.
    pub fn take_deleted(&self, process: Option<Process>, cell: &CellName, path: &TopoPath) -> Option<Bytes> {
        let (_, deleted) = self.deleted.remove(&concern(process?, cell, path))?;
        (deleted.when.elapsed() < EXCEPTION_TIME).then_some(deleted.value)
    }

    /// The deleted record behind a tombstone. The name still shows it to the process that has deleted it by another
    /// name: `mv` to elsewhere copies and removes form after form.
    pub fn behind_tombstone(&self, caller: &Caller, file: &FileId) -> Option<Deleted> {
        let FileId::Record(CellPath { cell, path }, _) = file else { return None };
        if !self.has_tombstone(caller, file) {
            return None;
        }
        self.deleted.get(&concern(caller.process()?, cell, path))
    }

    /// What a process has written to a file has been refused.
    pub fn not_saved(&self, process: Option<Process>, file: &FileId) {
        if let Some(process) = process {
            self.unsaved.insert((process, file.clone()), Instant::now());
        }
    }

    /// Whether what a process has written to a file was refused just now. True only once.
    pub fn take_unsaved(&self, caller: &Caller, file: &FileId) -> bool {
        let Some(process) = caller.process().filter(|_| !self.unsaved.is_empty()) else { return false };
        self.unsaved.remove(&(process, file.clone())).is_some_and(|(_, when)| when.elapsed() < EXCEPTION_TIME)
    }

    /// Notes an exception for one process.
    pub fn note_exception(&self, process: Option<Process>, file: FileId, exception: Exception) {
        let Some(process) = process else { return };
        self.disputed.insert(file.clone(), Instant::now());
        self.exceptions.insert((process, file), exception);
    }

    /// An editor has renamed a record to a backup: its next save replaces this version.
    pub fn moved_away(&self, caller: &Caller, file: &FileId, version: Version) {
        self.note_exception(caller.process(), file.clone(), Exception::MovedAway(Instant::now(), version));
    }

    /// The exception for a name, if there is one.
    pub fn exception(&self, caller: &Caller, file: &FileId) -> Option<Exception> {
        if self.exceptions.is_empty() {
            return None;
        }
        self.exceptions.get(&(caller.process()?, file.clone())).filter(Exception::is_fresh)
    }

    /// Whether a name has a tombstone: it is gone, but still answers to this caller, who has removed it.
    pub fn has_tombstone(&self, caller: &Caller, file: &FileId) -> bool {
        !self.exceptions.is_empty() && caller.process().is_some_and(|process| self.has_tombstone_for(process, file))
    }

    /// The same, for a process.
    pub fn has_tombstone_for(&self, process: Process, file: &FileId) -> bool {
        let exception = self.exceptions.get(&(process, file.clone())).filter(|exception| exception.is_fresh());
        matches!(exception, Some(Exception::Tombstone(_) | Exception::Moved(..)))
    }

    /// Whether a name may mean something else for one process than for all others.
    pub fn is_disputed(&self, file: &FileId) -> bool {
        !self.disputed.is_empty() && self.disputed.get(file).is_some_and(|when| when.elapsed() < EXCEPTION_TIME)
    }

    /// The name is an ordinary one again for a caller.
    pub fn end_exception(&self, caller: &Caller, file: &FileId) {
        self.end_exception_for(caller.process(), file);
    }

    /// The name is an ordinary one again for a process.
    pub fn end_exception_for(&self, process: Option<Process>, file: &FileId) {
        if let Some(process) = process.filter(|_| !self.exceptions.is_empty()) {
            self.exceptions.remove(&(process, file.clone()));
        }
    }

    /// As [`Self::is_freed`], for a caller.
    pub fn is_freed_for(&self, caller: &Caller, file: &FileId) -> bool {
        !self.exceptions.is_empty() && caller.process().is_some_and(|process| self.is_freed(process, file))
    }

    /// Whether a process has removed a name of a record that it has made, and has not made that name yet.
    pub fn is_freed(&self, process: Process, file: &FileId) -> bool {
        let exception = self.exceptions.get(&(process, file.clone())).filter(Exception::is_fresh);
        matches!(exception, Some(Exception::Freed(_)))
    }

    /// An operation was refused with ESTALE: the kernel will repeat it once.
    pub fn refused(&self, caller: &Caller, file: &FileId, error: &Error) {
        let mut refusals = self.refusals.lock();
        refusals.retain(|refusal| refusal.when.elapsed() < REPEAT_TIME);
        if refusals.len() >= REPEATS {
            refusals.remove(0);
        }
        let caller = (caller.thread, caller.uid);
        refusals.retain(|refusal| refusal.caller != caller || refusal.file != *file);
        refusals.push(Refusal { caller, file: file.clone(), when: Instant::now(), error: error.clone() });
    }

    /// The answer to a repetition.
    pub fn repeated(&self, caller: &Caller, file: &FileId) -> Option<Error> {
        let mut refusals = self.refusals.lock();
        refusals.retain(|refusal| refusal.when.elapsed() < REPEAT_TIME);
        let caller = (caller.thread, caller.uid);
        let index = refusals.iter().position(|refusal| refusal.caller == caller && refusal.file == *file)?;
        Some(refusals.remove(index).error)
    }
}

#[cfg(test)]
mod tests;
