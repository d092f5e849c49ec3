//! What this mount remembers of callers: of processes, not threads. A process that cannot be seen (it is in another
//! pid namespace, or /proc does not tell) shares nothing with anybody.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::Version;
use crate::error::Error;
use crate::mirror::Record;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::Process;
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::FileId;

/// Reads remembered, over all callers.
const READS: usize = 50_000;
/// Removed, moved or made names remembered, over all callers.
const REMOVALS: usize = 10_000;
/// Deleted records kept, over all callers: only of the last few does anybody change their mind.
const DELETED: usize = 64;
/// How long the names that vanish together with an unlinked one still answer to the process that unlinked it.
const REMOVAL_TIME: Duration = Duration::from_secs(30);
/// How long a refused operation is answered the same way: the kernel repeats it at once on ESTALE.
const REPEAT_TIME: Duration = Duration::from_secs(1);
/// Refused operations remembered.
const REPEATS: usize = 256;

/// A record and a process.
type Concern = (Process, CellName, TopoPath);

/// What callers did lately.
#[derive(Debug)]
pub struct Memory {
    known: quick_cache::sync::Cache<Concern, Known>,
    removals: quick_cache::sync::Cache<(Process, FileId), Removal>,
    /// Names that some process sees otherwise than the rest.
    disputed: quick_cache::sync::Cache<FileId, Instant>,
    made: quick_cache::sync::Cache<Concern, Made>,
    deleted: quick_cache::sync::Cache<Concern, Deleted>,
    /// Files of which a save was refused.
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
    /// Not at all: it has stored it only.
    Not,
    /// Through an open file that it writes through, too.
    ToWrite,
    /// Through another one: what it writes later may be made of that.
    Apart,
}

/// A record that a process has made.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// The version that it has stored.
    pub version: Version,
    /// The form under whose name it was made.
    pub form: Form,
    /// It takes the place of one that the process has removed, or was made under several names: somebody replaces it form after form.
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

/// An operation that was refused with ESTALE. The caller is known by its thread: the kernel repeats at once.
#[derive(Debug)]
struct Refusal {
    caller: (u32, u32),
    file: FileId,
    when: Instant,
    error: Error,
}

/// Why a name is not what the mirror says, for one process.
#[derive(Debug, Clone)]
pub enum Removal {
    /// The record went with another form's name, or the directory with its last record; this name still answers until it is removed
    /// too.
    Ghost(Instant),
    /// The record was moved there under another form's name; this name still answers until it is moved too.
    Moved(Instant, TopoPath),
    /// An editor has renamed the record to a backup; the name is free, and the save that follows replaces this version.
    MovedAway(Instant, Version),
    /// The process has made the record under another form's name, and has removed this name, probably to make it, too.
    Freed(Instant),
    /// A directory that cannot be renamed, and that the process goes on to move file by file (`mv`): it will remove it at the end.
    MovedByFiles(Instant),
    /// The lock of a directory that the process has made: it expects that to be empty.
    Appeared(Instant),
}

impl Removal {
    fn is_fresh(&self) -> bool {
        self.when().elapsed() < REMOVAL_TIME
    }

    fn when(&self) -> Instant {
        match self {
            Removal::Ghost(when) | Removal::Freed(when) | Removal::Appeared(when) | Removal::MovedByFiles(when) => {
                *when
            }
            Removal::Moved(when, _) | Removal::MovedAway(when, _) => *when,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            known: quick_cache::sync::Cache::new(READS),
            removals: quick_cache::sync::Cache::new(REMOVALS),
            disputed: quick_cache::sync::Cache::new(REMOVALS),
            made: quick_cache::sync::Cache::new(REMOVALS),
            deleted: quick_cache::sync::Cache::new(DELETED),
            unsaved: quick_cache::sync::Cache::new(REMOVALS),
            refusals: Mutex::default(),
        }
    }
}

fn concern(process: Process, cell: &CellName, path: &TopoPath) -> Concern {
    (process, cell.clone(), path.clone())
}

impl Memory {
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

    /// The version that a process has read or stored last, if it has read the record at least so.
    pub fn last_read(&self, caller: &Caller, cell: &CellName, path: &TopoPath, at_least: Reading) -> Option<Version> {
        let known = self.known.get(&concern(caller.process()?, cell, path))?;
        (known.reading >= at_least).then_some(known.version)
    }

    /// Whether a version of a record is one that a process has stored.
    pub fn has_stored(&self, process: Process, cell: &CellName, path: &TopoPath, version: Version) -> bool {
        self.known.get(&concern(process, cell, path)).is_some_and(|known| known.own && known.version == version)
    }

    /// What a process has read of a record does not matter any more.
    pub fn forget_read(&self, caller: &Caller, cell: &CellName, path: &TopoPath) {
        if let Some(process) = caller.process() {
            self.known.remove(&concern(process, cell, path));
        }
    }

    /// A process has made a record that was not there (any more). It replaces one if names of that are still to be removed.
    pub fn made(&self, process: Process, (cell, path): (&CellName, &TopoPath), made: (Form, Version), replaces: bool) {
        let key = concern(process, cell, path);
        // What was deleted has been made again: it is not put back any more.
        self.deleted.remove(&key);
        let (form, version) = made;
        self.made.insert(key, Made { version, form, replaces, when: Instant::now() });
    }

    /// A process has made a name of a record that it had removed.
    pub fn made_again(&self, caller: &Caller, cell: &CellName, path: &TopoPath) {
        if let Some(made) = self.made_by(caller, cell, path)
            && let Some(process) = caller.process()
        {
            self.made.insert(concern(process, cell, path), Made { replaces: true, when: Instant::now(), ..made });
        }
    }

    /// The record as a caller has made it just now.
    pub fn made_by(&self, caller: &Caller, cell: &CellName, path: &TopoPath) -> Option<Made> {
        self.made_of(caller.process().filter(|_| !self.made.is_empty())?, cell, path)
    }

    /// The record as a process has made it just now.
    pub fn made_of(&self, process: Process, cell: &CellName, path: &TopoPath) -> Option<Made> {
        let made = self.made.get(&concern(process, cell, path))?;
        (made.when.elapsed() < REMOVAL_TIME).then_some(made)
    }

    /// A process has deleted a record, perhaps to make it anew: `mv` and `install` from elsewhere do so.
    pub fn deleted(&self, process: Option<Process>, cell: &CellName, path: &TopoPath, record: &Record) {
        let Some(process) = process else { return };
        let key = concern(process, cell, path);
        self.known.remove(&key);
        self.made.remove(&key);
        let Record { value, modified, .. } = record;
        let deleted = Deleted { value: value.clone(), modified: *modified, when: Instant::now() };
        self.deleted.insert(key, deleted);
    }

    /// What a process has deleted just now, once.
    pub fn take_deleted(&self, process: Option<Process>, cell: &CellName, path: &TopoPath) -> Option<Bytes> {
        let (_, deleted) = self.deleted.remove(&concern(process?, cell, path))?;
        (deleted.when.elapsed() < REMOVAL_TIME).then_some(deleted.value)
    }

    /// What a name shows that goes on answering to whoever has deleted the record by another one: `mv` to elsewhere copies and removes
    /// form after form.
    pub fn ghost_of(&self, caller: &Caller, file: &FileId) -> Option<Deleted> {
        let FileId::Record(CellPath { cell, path }, _) = file else { return None };
        if !self.is_ghost(caller, file) {
            return None;
        }
        self.deleted.get(&concern(caller.process()?, cell, path))
    }

    /// What a process has written to a file was refused.
    pub fn not_saved(&self, process: Option<Process>, file: &FileId) {
        if let Some(process) = process {
            self.unsaved.insert((process, file.clone()), Instant::now());
        }
    }

    /// Whether what a process has written to a file was refused just now; asked once.
    pub fn take_unsaved(&self, caller: &Caller, file: &FileId) -> bool {
        let Some(process) = caller.process().filter(|_| !self.unsaved.is_empty()) else { return false };
        self.unsaved.remove(&(process, file.clone())).is_some_and(|(_, when)| when.elapsed() < REMOVAL_TIME)
    }

    /// A name is gone or free for one process.
    pub fn removed(&self, process: Option<Process>, file: FileId, removal: Removal) {
        let Some(process) = process else { return };
        self.disputed.insert(file.clone(), Instant::now());
        self.removals.insert((process, file), removal);
    }

    /// An editor has renamed a record to a backup: what it saves next replaces this version.
    pub fn moved_away(&self, caller: &Caller, file: &FileId, version: Version) {
        self.removed(caller.process(), file.clone(), Removal::MovedAway(Instant::now(), version));
    }

    /// What is known of a name.
    pub fn removal(&self, caller: &Caller, file: &FileId) -> Option<Removal> {
        if self.removals.is_empty() {
            return None;
        }
        self.removals.get(&(caller.process()?, file.clone())).filter(Removal::is_fresh)
    }

    /// Whether a name only goes on answering to the process that has removed it.
    pub fn is_ghost(&self, caller: &Caller, file: &FileId) -> bool {
        !self.removals.is_empty() && caller.process().is_some_and(|process| self.is_ghost_for(process, file))
    }

    /// The same, for a process.
    pub fn is_ghost_for(&self, process: Process, file: &FileId) -> bool {
        let removal = self.removals.get(&(process, file.clone())).filter(|removal| removal.is_fresh());
        matches!(removal, Some(Removal::Ghost(_) | Removal::Moved(..)))
    }

    /// Whether a name may be another for one process than for the rest.
    pub fn is_disputed(&self, file: &FileId) -> bool {
        !self.disputed.is_empty() && self.disputed.get(file).is_some_and(|when| when.elapsed() < REMOVAL_TIME)
    }

    /// The name is an ordinary one again for a caller.
    pub fn settle(&self, caller: &Caller, file: &FileId) {
        self.settle_for(caller.process(), file);
    }

    /// The name is an ordinary one again for a process.
    pub fn settle_for(&self, process: Option<Process>, file: &FileId) {
        if let Some(process) = process.filter(|_| !self.removals.is_empty()) {
            self.removals.remove(&(process, file.clone()));
        }
    }

    /// The same for a caller.
    pub fn is_freed_for(&self, caller: &Caller, file: &FileId) -> bool {
        !self.removals.is_empty() && caller.process().is_some_and(|process| self.is_freed(process, file))
    }

    /// Whether a process has removed a name of a record that it has made, and has not made that name, too.
    pub fn is_freed(&self, process: Process, file: &FileId) -> bool {
        let removal = self.removals.get(&(process, file.clone())).filter(Removal::is_fresh);
        matches!(removal, Some(Removal::Freed(_)))
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
