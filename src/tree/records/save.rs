//! Saving: one compare-and-swap per save, on the version that was there when the file was opened.

use std::time::Duration;

use bytes::Bytes;

use super::RecordFiles;
use super::draft::{Base, Draft, Occasion};
use super::flush::OpenDraft;
use super::memory::Reading;
use super::open::moved_on;
use crate::backend::{Action, Applied, Change, Guard, Version};
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::locks::{Fence, Temporary};
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{Actor, Process};
use crate::record::Form;
use crate::record::layout::{self, Key};
use crate::store::own::OwnCommit;
use crate::tree::caller::Caller;
use crate::tree::file::FileId;
use crate::tree::options::RespectLocks;

/// How often, and how many times, it is looked whether another thread of a program has just stored what one could not.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: usize = 10;

impl RecordFiles {
    /// Waits while a closed file is still being saved, or a record removed whose remover has ended.
    pub(crate) async fn wait_for_saves(&self, cell: &CellName, path: &TopoPath) {
        let place = CellPath::new(cell, path);
        self.saving.wait(&place).await;
        self.removals.settled(&place).await;
    }

    /// Saves a draft if the occasion asks for it.
    pub(crate) async fn save(&self, draft: &Draft, occasion: Occasion) -> Result<()> {
        let _turn = draft.turn.lock().await;
        let Some(job) = draft.begin(occasion)? else { return Ok(()) };
        let outcome = self.store(draft, &job.content, job.base.as_ref()).await;
        draft.finish(&job, &outcome);
        match &outcome {
            Ok(stored) => {
                self.memory.stored(draft.opener, &draft.cell, &draft.path, stored.version);
                if job.base.is_none() {
                    self.has_made(draft.opener, (&draft.cell, &draft.path, draft.form), stored.version);
                }
            }
            Err(_) => self.memory.not_saved(draft.opener, &draft.file()),
        }
        outcome.map(drop)
    }

    /// A record is there that was not, or not any more: its other names are ordinary ones again for whoever has made it.
    pub(crate) fn has_made(
        &self,
        process: Option<Process>,
        (cell, path, form): (&CellName, &TopoPath, Form),
        version: Version,
    ) {
        let Some(process) = process else { return };
        let others = self.forms(cell, path).filter(|other| *other != form);
        let others: Vec<FileId> = others.map(|other| FileId::Record(CellPath::new(cell, path), other)).collect();
        let replaces = others.iter().any(|other| self.memory.has_tombstone_for(process, other));
        self.memory.made(process, (cell, path), (form, version), replaces);
        others.iter().for_each(|other| self.memory.end_exception_for(Some(process), other));
    }

    /// Refuses what a save would be refused with, without saving: where more may be to come before the last descriptor is gone.
    pub(crate) async fn rehearse(&self, draft: &Draft) -> Result<()> {
        let _turn = draft.turn.lock().await;
        let Some(job) = draft.begin(Occasion::Flush)? else { return Ok(()) };
        let Draft { cell, path, form, .. } = draft;
        let outcome = async {
            self.codec.store(cell, path, *form, &job.content, job.base.as_ref().map(|base| &base.value))?;
            self.refuse_early(draft.saver(), cell, path).await?;
            let found = self.fetch_base(cell, path).await?.map(|base| base.version);
            match job.base.as_ref().map(|base| base.version) {
                base if base == found => Ok(()),
                base => {
                    let number = |version: Option<Version>| version.map_or(0, |version| version.number);
                    Err(moved_on(cell, path, number(base), number(found)))
                }
            }
        };
        outcome.await.inspect_err(|error| {
            draft.finish(&job, &Err(error.clone()));
            self.memory.not_saved(draft.opener, &draft.file());
        })
    }

    /// Saves what is left when the last descriptor is gone. Nobody hears an error any more but the log.
    pub(crate) async fn save_released(&self, draft: &Draft) -> Result<()> {
        let _in_flight = self.saving.begin(CellPath::new(&draft.cell, &draft.path));
        self.save(draft, Occasion::Release).await
    }

    /// A tool that removes a record and makes it anew (`mv` and `install` from another file system, `tar x`) must not leave
    /// nothing behind because the new content was refused or the tool was killed: the record comes back.
    pub(crate) async fn put_back(&self, draft: &Draft) {
        let Draft { cell, path, .. } = draft;
        if draft.has_made_nothing()
            && let Some(base) = self.put_back_deleted(draft.opener, draft.saver(), cell, path).await
        {
            draft.rebase(base);
        }
    }

    /// Stores a record again that a process has deleted just now.
    pub(crate) async fn put_back_deleted(
        &self,
        process: Option<Process>,
        saver: Actor,
        cell: &CellName,
        path: &TopoPath,
    ) -> Option<Base> {
        let value = self.memory.take_deleted(process, cell, path)?;
        let in_flight = self.saving.begin(CellPath::new(cell, path));
        let outcome = self.replace(saver, cell, path, Form::Raw, &value, None).await;
        drop(in_flight);
        match outcome {
            Ok(base) => {
                tracing::warn!(%cell, %path, "nothing took its place: the record that was removed is put back");
                Some(base)
            }
            Err(error) => {
                tracing::error!(%cell, %path, %error, "the record that was removed cannot be put back");
                None
            }
        }
    }

    async fn store(&self, draft: &Draft, content: &Bytes, base: Option<&Base>) -> Result<Base> {
        let Draft { cell, path, form, .. } = draft;
        let error = match self.replace(draft.saver(), cell, path, *form, content, base).await {
            Err(error) if error.kind == Kind::Conflict => error,
            outcome => return outcome,
        };
        // Another thread of the same program may have been faster: they make all forms of a record at once.
        let mut found = self.stored_by_self(draft, content, base).await;
        for _ in 0..LOOKS {
            if found.is_some() || !self.writes_other_forms(draft) {
                break;
            }
            // What it has stored is noted when the service has answered.
            tokio::time::sleep(LOOK).await;
            found = self.stored_by_self(draft, content, base).await;
        }
        match found {
            Some(found) => self.replace(draft.saver(), cell, path, *form, content, Some(&found)).await,
            None if draft.is_exclusive() && base.is_none() => Err(Error { kind: Kind::Exists, ..error }),
            None => Err(error),
        }
    }

    /// Whether the process that has opened a draft has another form of the record open for writing, too.
    fn writes_other_forms(&self, draft: &Draft) -> bool {
        let Draft { cell, path, form, opener, .. } = draft;
        self.forms(cell, path).filter(|other| other != form).any(|other| {
            let ino = self.kernel.inodes.number(&FileId::Record(CellPath::new(cell, path), other));
            opener.is_some()
                && self.handles.drafts::<OpenDraft>(ino).iter().any(|(_, open)| open.draft.opener == *opener)
        })
    }

    /// The record as it is now, if the same process has just made it under another name, or has stored what is to be stored. (Equal content
    /// alone says nothing: two programs may have counted one up.)
    async fn stored_by_self(&self, draft: &Draft, content: &Bytes, base: Option<&Base>) -> Option<Base> {
        let Draft { cell, path, form, opener, .. } = draft;
        let found = self.fetch_base(cell, path).await.ok()??;
        let made = self.memory.made_of((*opener)?, cell, path);
        if base.is_none() && made.is_some_and(|made| made.version == found.version && made.form != *form) {
            return Some(found);
        }
        let change = self.codec.store(cell, path, *form, content, Some(&found.value)).ok()?;
        (change.is_none() && self.memory.has_stored((*opener)?, cell, path, found.version)).then_some(found)
    }

    /// Replaces one form of a record, guarded by the version that it replaces (`None`: there is none yet). The same
    /// content as before makes no new version. Fails with ESTALE if somebody else was faster.
    pub(crate) async fn replace(
        &self,
        saver: Actor,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        content: &Bytes,
        base: Option<&Base>,
    ) -> Result<Base> {
        let value = self.codec.store(cell, path, form, content, base.map(|base| &base.value))?;
        let guard = base.map_or(Guard::Absent, |base| Guard::Version(base.version));
        let action = value.clone().map_or(Action::Check, Action::Put);
        let change = Change { path: path.clone(), guard, action };
        let applied = self.commit((saver, form), cell, &[change]).await.map_err(as_conflict)?;
        match (value, applied.versions.into_iter().flatten().next(), base) {
            (Some(value), Some(version), _) => Ok(Base { version, value }),
            (None, _, Some(base)) => Ok(base.clone()),
            _ => Err(Error::new(Kind::Io, format!("{cell}/{path}: the backend has told no version"))),
        }
    }

    /// Applies changes whole or not at all, with the locks that concern them: those that this mount holds on directories above
    /// are guards of the same transaction, and those that a save must have are taken for its moment. `form` is the one that the
    /// caller sees the change in.
    pub(crate) async fn commit(&self, who: (Actor, Form), cell: &CellName, changes: &[Change]) -> Result<Applied> {
        for _ in 0..LOCK_CHANGES {
            if let Some(applied) = self.commit_once(who, cell, changes).await? {
                return Ok(applied);
            }
        }
        Err(Error::new(Kind::Busy, format!("the locks above {cell}/{} change too often", first_path(changes))))
    }

    /// The same once; `None` if a lock that went along was given back meanwhile, and nothing was changed.
    async fn commit_once(
        &self,
        (saver, form): (Actor, Form),
        cell: &CellName,
        changes: &[Change],
    ) -> Result<Option<Applied>> {
        let connected = self.cell(cell)?;
        let mut needed: Vec<TopoPath> =
            changes.iter().filter_map(|change| self.needed_lock(cell, &change.path)).collect();
        // In one order, so that two saves cannot wait for each other.
        needed.sort();
        needed.dedup();
        let mut taken = Vec::new();
        // Whoever holds a keyspace's lock may be at work on anything below it: nothing of that is taken away.
        for change in changes.iter().filter(|change| change.action == Action::Delete) {
            if let Some(keyspace) = self.keyspace_of(cell, &change.path).filter(|dir| !needed.contains(dir)) {
                self.locks.refuse_if_foreign(&connected, &keyspace).await?;
            }
        }
        let mut outcome = Ok(());
        for dir in &needed {
            match self.locks.for_save(&connected, dir, saver).await {
                Ok(temporary) => taken.push(temporary),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let outcome = match outcome {
            Ok(()) => self.apply_noted(saver, form, &connected, changes, &taken).await,
            // Somebody has taken away what was taken for this moment only.
            Err(error) if error.kind == Kind::LockLost => Ok(None),
            Err(error) => Err(error),
        };
        for temporary in taken.into_iter().rev() {
            self.locks.end_save(temporary).await;
        }
        outcome
    }

    /// Applies changes, and notes which events the kernel has raised for them itself.
    async fn apply_noted(
        &self,
        saver: Actor,
        form: Form,
        cell: &Cell,
        changes: &[Change],
        taken: &[Temporary],
    ) -> Result<Option<Applied>> {
        let place = |change: &Change| CellPath::new(&cell.name, &change.path);
        let in_flight: Vec<_> = changes.iter().map(|change| self.committing.begin(place(change))).collect();
        let outcome = self.apply_fenced(saver, cell, changes, taken).await;
        // Whoever has saved reads what was saved, under every name.
        if let Some((files, dirs)) =
            self.invalidate(&cell.name, changes.iter().map(|change| (&change.path, relists(change))))
        {
            tokio::join!(files.done(), dirs.done());
        }
        for (index, (change, in_flight)) in changes.iter().zip(in_flight).enumerate() {
            let applied = outcome.as_ref().ok().and_then(Option::as_ref);
            let stored = applied.and_then(|applied| applied.versions.get(index).copied().flatten());
            let revision = match (&change.action, stored, change.guard) {
                (Action::Put(_), Some(version), _) | (Action::Delete, _, Guard::Version(version)) => {
                    Some(version.written)
                }
                _ => None,
            };
            if stored.is_some() && change.guard == Guard::Absent {
                // The directory is a stored one now, and goes with its last record.
                self.scratch.made_real(&cell.name, &change.path);
            }
            if let (Some(revision), Some(_)) = (revision, applied) {
                let command = crate::process::name(saver.process);
                self.own.note(&place(change), OwnCommit { revision, form, saver, command });
            }
            drop(in_flight);
        }
        outcome
    }

    async fn apply_fenced(
        &self,
        saver: Actor,
        cell: &Cell,
        changes: &[Change],
        taken: &[Temporary],
    ) -> Result<Option<Applied>> {
        let mut fences: Vec<Fence> = Vec::new();
        for change in changes {
            for fence in self.locks.fences(cell, &change.path, saver, taken)? {
                if fences.iter().all(|known| known.change != fence.change) {
                    fences.push(fence);
                }
            }
        }
        let guards = fences.iter().map(|fence| fence.change.clone());
        let all: Vec<Change> = guards.chain(changes.iter().cloned()).collect();
        match cell.apply(&all).await {
            Ok(mut applied) => {
                applied.versions.drain(..fences.len().min(applied.versions.len()));
                Ok(Some(applied))
            }
            Err(error) if error.kind == Kind::LockLost && fences.iter().any(Fence::was_let_go) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether saving a record would be refused because of a lock: what is known at open, since shells ignore what close says.
    pub(crate) async fn refuse_early(&self, saver: Actor, cell: &CellName, path: &TopoPath) -> Result<()> {
        let connected = self.cell(cell)?;
        self.locks.fences(&connected, path, saver, &[])?;
        match self.needed_lock(cell, path) {
            Some(dir) => self.locks.refuse_if_foreign(&connected, &dir).await,
            None => Ok(()),
        }
    }

    /// Whether removing a record would be refused because of a lock.
    pub(crate) async fn refuse_removal(&self, saver: Actor, cell: &CellName, path: &TopoPath) -> Result<()> {
        self.refuse_early(saver, cell, path).await?;
        match self.keyspace_of(cell, path) {
            Some(dir) => self.locks.refuse_if_foreign(&*self.cell(cell)?, &dir).await,
            None => Ok(()),
        }
    }

    /// The keyspace that a record of the global topology belongs to, if its lock is respected.
    fn keyspace_of(&self, cell: &CellName, path: &TopoPath) -> Option<TopoPath> {
        let respected = || self.holds_global(cell) && self.options.respect_locks != RespectLocks::None;
        layout::keyspace_dir(path).filter(|_| respected())
    }

    /// The directory whose lock a save of a record needs.
    fn needed_lock(&self, cell: &CellName, path: &TopoPath) -> Option<TopoPath> {
        let respected = self.options.respect_locks;
        let dir = match Key::in_global(path)? {
            Key::Keyspace(_) => path.parent(),
            Key::Shard(..) if respected == RespectLocks::All => path.parent(),
            // Vitess replaces them whatever their version: its lock is all that protects them.
            Key::KeyspaceRoutingRules => path.parent()?.parent(),
            _ => None,
        };
        dir.filter(|_| respected != RespectLocks::None && self.holds_global(cell))
    }

    /// Whether the records of the global topology are in a cell: another one may be the same place.
    fn holds_global(&self, cell: &CellName) -> bool {
        self.cells.get(cell).is_some_and(|cell| cell.holds_global())
    }

    /// The record as the backend has it now; a dead or refusing backend is noticed here, before anything is written.
    pub(crate) async fn fetch_base(&self, cell: &CellName, path: &TopoPath) -> Result<Option<Base>> {
        let fetched = self.cell(cell)?.fetch(path).await?;
        Ok(fetched.node.map(|node| Base { version: node.version, value: node.value }))
    }

    /// truncate(2): a save of its own.
    pub(crate) async fn truncate(
        &self,
        caller: &Caller,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        size: usize,
    ) -> Result<()> {
        let file = FileId::Record(CellPath::new(cell, path), form);
        if let Some(error) = self.memory.repeated(caller, &file) {
            return Err(error);
        }
        self.refuse_unseen(caller)?;
        let base = self.fetch_base(cell, path).await?.ok_or_else(Error::not_found)?;
        self.refuse_outdated(caller, &file, base.version, Reading::ToWrite)?;
        let mut content = match size {
            0 => Vec::new(),
            _ => self.codec.show(cell, path, &base.value, form)?.to_vec(),
        };
        let limit = self.cell(cell)?.limits().value;
        if size > limit {
            return Err(Error::new(Kind::TooLarge, format!("{size} bytes; at most {limit} can be stored")));
        }
        content.resize(size, 0);
        tracing::debug!(%cell, %path, size, uid = caller.uid, "truncate");
        let stored = self.replace(caller.into(), cell, path, form, &content.into(), Some(&base)).await?;
        self.memory.stored(caller.process(), cell, path, stored.version);
        Ok(())
    }
}

/// How often a change is tried while locks that go along with it are given back.
const LOCK_CHANGES: usize = 16;

fn first_path(changes: &[Change]) -> &str {
    changes.first().map_or("", |change| change.path.as_str())
}

/// Whether a change makes or removes names.
fn relists(change: &Change) -> bool {
    change.action == Action::Delete || change.guard == Guard::Absent
}

/// A guard that was not met is a conflict, whichever way the record differs.
pub(crate) fn as_conflict(error: Error) -> Error {
    match error.kind {
        Kind::NotFound | Kind::Exists | Kind::Conflict => {
            let reason = format!("someone else changed the record meanwhile: {}", error.reason);
            Error { kind: Kind::Conflict, reason, ..error }
        }
        _ => error,
    }
}
