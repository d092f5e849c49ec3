//! Renames, which is how editors, `sed -i`, `mv` and `rsync` save. Must never replace a record by a file that was made
//! from an older state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::RecordFiles;
use super::draft::{Base, Draft, Start};
use super::flush::OpenDraft;
use super::memory::{Exception, Reading};
use super::names::name_of;
use super::open::moved_on;
use super::reader::OpenReader;
use super::removal::deletion;
use super::save::as_conflict;
use super::scratch::{Local, Scratch, ScratchState};
use super::scratch_file::OpenScratch;
use crate::backend::{Action, Change, Guard};
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, LOCK_FILE, TopoPath};
use crate::process::{Life, Process};
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::FileId;
use crate::tree::kernel::outbox::{Announcement, Happened};
use crate::tree::namespace::{Name, OpenFile};

impl RecordFiles {
    /// Renames. A scratch file over a record is a save. A record to a scratch name is a copy (an editor's backup). A
    /// record to a record's name is moved in one transaction.
    pub(super) async fn rename(
        self: &Arc<Self>,
        caller: &Caller,
        from_name: Name<'_>,
        to_name: Name<'_>,
        no_replace: bool,
    ) -> Result<()> {
        let CellPath { cell, path: from_path } = self.writable_dir(from_name.dir)?;
        let CellPath { cell: to_cell, path: to_path } = self.writable_dir(to_name.dir)?;
        self.refuse_link_name(from_name.name)?;
        self.refuse_link_name(to_name.name)?;
        let source = self.find(caller, from_name.dir, from_name.name).await?;
        if cell != to_cell {
            return Err(Error::new(Kind::CrossDevice, "cells are different services: only a copy can cross"));
        }
        let snapshot = self.store(&cell)?.snapshot().await?;
        if to_name.name == LOCK_FILE {
            let lock = CellPath { cell, path: to_path };
            return self.rename_over_lock(caller, from_name, &source, lock).await;
        }
        if let Some(moved) = self.has_moved_along(caller, &source, &to_path.join(to_name.name)?, &snapshot) {
            return moved;
        }
        let target = match self.find(caller, to_name.dir, to_name.name).await {
            Ok(file) => Some(file),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        if target.is_some() && no_replace {
            return Err(Error::new(Kind::Exists, "exists already"));
        }
        let from = CellPath { cell: cell.clone(), path: from_path.join(from_name.name)? };
        let to = CellPath { cell: cell.clone(), path: to_path.join(to_name.name)? };
        let record = self.record_of_name(&cell, &snapshot, &to_path, to_name.name).ok();
        match (&source, target, record) {
            (FileId::Dir(..), target, _) => self.rename_dir(caller, &from, to, target.as_ref()).await,
            (_, Some(FileId::Dir(..)), _) => Err(Error::new(Kind::IsDirectory, "is a directory")),
            (FileId::Scratch(id), _, Some(record)) => {
                let file = self.scratch.file(*id).ok_or_else(Error::not_found)?;
                self.save_by_rename(caller, &from, &file, &record).await
            }
            (FileId::Scratch(_), _, None) => {
                self.refuse_hidden_form(&cell, &snapshot, &to_path, to_name.name)?;
                self.scratch.rename(&from, to);
                Ok(())
            }
            (FileId::Record(..), _, Some(record)) => self.move_record(caller, &source, &record).await,
            (FileId::Record(..), _, None) => {
                self.refuse_hidden_form(&cell, &snapshot, &to_path, to_name.name)?;
                self.back_up(caller, &source, to).await
            }
            _ => Err(Error::new(Kind::NotPermitted, "cannot be renamed")),
        }
    }

    /// Saves a scratch file's content as a record, unless the record is newer than what the file can have been made
    /// from.
    async fn save_by_rename(
        self: &Arc<Self>,
        caller: &Caller,
        from: &CellPath,
        file: &Arc<Scratch>,
        target: &FileId,
    ) -> Result<()> {
        let FileId::Record(CellPath { cell, path }, form) = target else { return Err(Error::not_found()) };
        if let Some(error) = self.memory.repeated(caller, target) {
            return Err(error);
        }
        self.refuse_unseen(caller)?;
        /// The bit for reading, as in access(2).
        const READ: u32 = 0o4;
        let ScratchState { uid, gid, mode, .. } = *file.state.lock();
        if !caller.may(READ, (uid, gid, mode)) {
            return Err(Error::new(
                Kind::Denied,
                "the file is another user's, who lets nobody read it: it is not stored for all",
            ));
        }
        self.wait_for_saves(cell, path).await;
        let base = self.fetch_base(cell, path).await?;
        let read = self.memory.last_read(caller, cell, path, Reading::ToWrite);
        let moved_away = match self.memory.exception(caller, target) {
            Some(Exception::MovedAway(_, version)) => Some(version),
            _ => None,
        };
        let then = file.version_then(path);
        let outdated = match (&base, moved_away, read) {
            (Some(base), Some(version), _) => base.version != version,
            (Some(base), None, Some(read)) => base.version != read,
            (Some(base), None, None) => then != Ok(Some(base.version)),
            (None, _, read) => read.is_some() && moved_away.is_none() && !self.memory.has_tombstone(caller, target),
        };
        let outcome = match (&base, outdated) {
            (found, true) => {
                // It knows now: at its next attempt, the age of the file decides.
                self.memory.forget_read(caller, cell, path);
                if let (Some(found), Some(_)) = (found, moved_away) {
                    self.memory.moved_away(caller, target, found.version);
                }
                Err(match found {
                    Some(found) => {
                        let known = moved_away.or(read).or(then.unwrap_or_default());
                        moved_on(cell, path, known.map_or(0, |version| version.number), found.version.number)
                    }
                    None => Error::new(Kind::Conflict, format!("{cell}/{path} was deleted meanwhile")),
                })
            }
            (_, false) => {
                let content = Bytes::copy_from_slice(&file.state.lock().content);
                let outcome = self.put(caller.into(), cell, path, *form, &content, base.as_ref()).await;
                outcome.map(|stored| (stored, content))
            }
        };
        match outcome {
            Ok((stored, content)) => {
                self.memory.stored(caller.process(), cell, path, stored.version);
                if base.is_none() {
                    self.has_made(caller.process(), (cell, path, *form), stored.version);
                }
                if self.memory.is_freed_for(caller, target) {
                    self.memory.made_again(caller, cell, path);
                }
                self.memory.end_exception(caller, target);
                let adopted = self.adopt(file, (cell, path, *form), stored, &content);
                self.scratch.unlink(from);
                self.kernel.renamed(&FileId::Scratch(file.id), target);
                adopted
            }
            Err(error) => {
                if error.kind == Kind::Conflict {
                    self.memory.refused(caller, target, &error);
                }
                Err(error)
            }
        }
    }

    /// Whoever has a scratch file open continues with the record that it has become. Later writes, and writes since its
    /// content was taken, are stored or refused like any edit of the record.
    fn adopt(
        self: &Arc<Self>,
        file: &Arc<Scratch>,
        (cell, path, form): (&CellName, &TopoPath, Form),
        stored: Base,
        saved: &Bytes,
    ) -> Result<()> {
        let ino = self.kernel.number(&FileId::Scratch(file.id));
        let value_limit = self.store(cell)?.limits().value;
        let is_of_file = |open: &OpenScratch| Arc::ptr_eq(&open.file, file);
        let all = || self.handles.of_inode::<OpenScratch>(ino).into_iter().filter(|(_, open)| is_of_file(open));
        let draft = match all().find(|(_, open)| open.writes) {
            None => None,
            Some((_, open)) => {
                let mut state = file.state.lock();
                let start = Start {
                    content: state.content.clone(),
                    dirty: state.content != *saved,
                    base: Some(stored),
                    append: open.append,
                    exclusive: None,
                    value_limit,
                    room: self.room.charge(open.opener.1),
                };
                let draft = Draft::new((cell.clone(), path.clone(), form), open.opener, start)?;
                let draft = Arc::new(draft);
                // Nothing is written to the scratch file itself any more.
                state.adopted = Some(draft.clone());
                Some(draft)
            }
        };
        for (number, open) in all() {
            let adopted: Arc<dyn OpenFile> = match draft.as_ref().filter(|_| open.writes) {
                Some(draft) => OpenDraft::new(self, draft.clone()),
                None => Arc::new(OpenReader::cached(self, &CellPath::new(cell, path), form, saved.clone())),
            };
            drop(self.handles.replace(number, adopted));
        }
        Ok(())
    }

    /// Tools that copy or move whole trees (`rsync`, `mv`) bring a lock's content along. That succeeds and does nothing
    /// if the content is the same, or if the tool has made the directory.
    async fn rename_over_lock(
        self: &Arc<Self>,
        caller: &Caller,
        from: Name<'_>,
        source: &FileId,
        dir: CellPath,
    ) -> Result<()> {
        let refused = || Error::new(Kind::NotPermitted, ".lock cannot be made: a lock needs a living holder");
        let lock = FileId::Lock(dir.clone());
        let is_expected = !self.has_locks || self.memory.exception(caller, &lock).is_some();
        match source {
            // The lock goes with its directory.
            FileId::Lock(..) if is_expected => {
                self.memory.end_exception(caller, &lock);
                Ok(())
            }
            FileId::Scratch(id) => {
                let file = self.scratch.file(*id).ok_or_else(Error::not_found)?;
                let content = Bytes::copy_from_slice(&file.state.lock().content);
                if !is_expected && !self.is_lock_content(&dir.cell, &dir.path, &content).await? {
                    return Err(refused());
                }
                self.memory.end_exception(caller, &lock);
                self.unlink(caller, from).await
            }
            _ => Err(refused()),
        }
    }

    /// An editor moves the record out of the way before it writes the record anew. The record is copied, and stays
    /// until the save.
    async fn back_up(&self, caller: &Caller, source: &FileId, to: CellPath) -> Result<()> {
        let FileId::Record(CellPath { cell, path }, form) = source else { return Err(Error::not_found()) };
        let snapshot = self.store(cell)?.snapshot().await?;
        let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
        if let Some(error) = self.memory.repeated(caller, source) {
            return Err(error);
        }
        // The editor makes its next save from what it has read.
        self.refuse_outdated(caller, source, record.version, Reading::ToWrite)?;
        if path.parent() != to.path.parent() {
            let reason =
                "a record is backed up beside itself; elsewhere the file would only be in this mount's memory: copy it";
            return Err(Error::new(Kind::NotPermitted, reason));
        }
        let shown = self.codec.show(cell, path, &record.value, *form)?;
        let mode = self.defaults.file(0, record.modified).mode;
        let copy = self.scratch.replace(to, snapshot.clone(), (self.options.uid, self.options.gid, mode))?;
        self.scratch.edit(&copy, |_| shown.len(), |content| *content = shown.to_vec())?;
        copy.state.lock().modified = record.modified;
        self.memory.moved_away(caller, source, record.version);
        self.kernel.renamed(source, &FileId::Scratch(copy.id));
        Ok(())
    }

    /// `mv` of a directory renames file after file: the first form has moved the record, and the other forms have moved
    /// with it.
    fn has_moved_along(
        &self,
        caller: &Caller,
        source: &FileId,
        to: &TopoPath,
        snapshot: &Snapshot,
    ) -> Option<Result<()>> {
        let FileId::Record(CellPath { cell, path: from }, form) = source else { return None };
        let Some(Exception::Moved(_, moved_to)) = self.memory.exception(caller, source) else { return None };
        if snapshot.records.contains_key(from) {
            // The record has been made again.
            return None;
        }
        let target = FileId::Record(CellPath { cell: cell.clone(), path: moved_to }, *form);
        let FileId::Record(CellPath { path: moved_to, .. }, _) = &target else { return None };
        let is_there = snapshot.records.get(moved_to).map(|record| record.version);
        let (_, name) = name_of(snapshot, moved_to, *form);
        let same_name = moved_to.parent().and_then(|dir| dir.join(&name).ok()).is_some_and(|place| place == *to);
        if !same_name || is_there.is_none() || is_there != self.memory.last_known(caller, cell, moved_to) {
            return Some(Err(Error::not_found()));
        }
        self.memory.end_exception(caller, source);
        self.kernel.renamed(source, &target);
        Some(Ok(()))
    }

    /// Moves a record to another record's name, in one transaction.
    async fn move_record(self: &Arc<Self>, caller: &Caller, source: &FileId, target: &FileId) -> Result<()> {
        let (FileId::Record(CellPath { cell, path: from }, form), FileId::Record(CellPath { path: to, .. }, to_form)) =
            (source, target)
        else {
            return Err(Error::not_found());
        };
        if from == to && form == to_form {
            return Ok(());
        }
        if form != to_form {
            return Err(Error::new(Kind::NotPermitted, "one form of a record cannot become another: copy it"));
        }
        if let Some(error) = self.memory.repeated(caller, target) {
            return Err(error);
        }
        self.refuse_delete()?;
        let snapshot = self.store(cell)?.snapshot().await?;
        let record = snapshot.records.get(from).ok_or_else(Error::not_found)?;
        self.refuse_wrong_message(cell, to, &record.value)?;
        let old = snapshot.records.get(to);
        if let Some(old) = old {
            self.refuse_outdated(caller, target, old.version, Reading::ToWrite)?;
        }
        let put = Action::Put(record.value.clone());
        let (guard, action) = match old {
            // An equal value makes no new version.
            Some(old) if old.value == record.value => (Guard::Version(old.version), Action::Check),
            Some(old) => (Guard::Version(old.version), put),
            None => (Guard::Absent, put),
        };
        let put = Change { path: to.clone(), guard, action };
        let changes = [put, deletion(from, record)];
        let outcome = self.commit((caller.into(), *form), cell, &changes).await.map_err(as_conflict);
        match &outcome {
            Ok(applied) => {
                self.memory.end_exception(caller, target);
                self.kernel.renamed(source, target);
                self.memory.forget_read(caller, cell, from);
                let stored = applied.versions.iter().flatten().next().copied();
                if let Some(version) = stored.or(old.map(|old| old.version)) {
                    self.memory.stored(caller.process(), cell, to, version);
                }
                for other in self.forms(cell, from).filter(|other| other != form) {
                    let other = FileId::Record(CellPath::new(cell, from), other);
                    self.memory.note_exception(caller.process(), other, Exception::Moved(Instant::now(), to.clone()));
                }
                self.leave_dirs(caller, cell, (from, to)).await?;
            }
            Err(error) if error.kind == Kind::Conflict => self.memory.refused(caller, target, error),
            Err(_) => {}
        }
        outcome.map(drop)
    }

    /// Directories that have lost their last record are gone at once. Only a process that moves a whole directory file
    /// by file still finds them, so that it can remove them.
    async fn leave_dirs(
        self: &Arc<Self>,
        caller: &Caller,
        cell: &CellName,
        (from, to): (&TopoPath, &TopoPath),
    ) -> Result<()> {
        let mut left = Vec::new();
        for dir in self.emptied_dirs(cell, from).await? {
            let place = CellPath { cell: cell.clone(), path: dir };
            self.scratch.end_linger(&place);
            self.scratch.linger_if_used(&place, caller.uid);
            if self.scratch.has_dir(&place) || self.is_virtual(cell, &place.path) {
                continue;
            }
            if self.is_moved_by_files(caller, cell, &place.path) {
                let file = FileId::Dir(CellPath::new(cell, &place.path));
                self.memory.note_exception(caller.process(), file, Exception::Tombstone(Instant::now()));
            }
            left.push(place.path);
        }
        self.forget_gone_dirs(cell, from, to.parent().as_ref()).await;
        if !left.is_empty() {
            self.background.tasks.spawn(self.clone().announce_when_left(caller.process(), cell.clone(), left));
        }
        Ok(())
    }

    fn is_moved_by_files(&self, caller: &Caller, cell: &CellName, dir: &TopoPath) -> bool {
        let mut dirs = std::iter::successors(Some(dir.clone()), TopoPath::parent);
        dirs.any(|dir| {
            let exception = self.memory.exception(caller, &FileId::Dir(CellPath { cell: cell.clone(), path: dir }));
            // The outermost one may be gone already.
            matches!(exception, Some(Exception::MovedByFiles(_) | Exception::Tombstone(_)))
        })
    }

    /// Raises the events of directories that are gone, as soon as the process that still finds them has removed them or
    /// has ended. The kernel takes a directory for dead then, and a process on its way through it would not find what
    /// it has moved.
    async fn announce_when_left(self: Arc<Self>, process: Option<Process>, cell: CellName, dirs: Vec<TopoPath>) {
        /// How often to look.
        const LOOK: Duration = Duration::from_millis(100);
        let file = |dir: &TopoPath| FileId::Dir(CellPath::new(&cell, dir));
        let is_used = || {
            process.is_some_and(|process| {
                process.life() != Life::Ended
                    && dirs.iter().any(|dir| self.memory.has_tombstone_for(process, &file(dir)))
            })
        };
        while is_used() {
            tokio::select! {
                () = self.background.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        for dir in &dirs {
            if self.require_dir(&cell, dir).await.is_err_and(|error| error.kind == Kind::NotFound) {
                self.kernel.announce(Announcement::of_dir(&cell, dir, Happened::DirRemoved));
            }
        }
    }

    fn refuse_wrong_message(&self, cell: &CellName, path: &TopoPath, value: &Bytes) -> Result<()> {
        self.codec.store(cell, path, Form::Raw, value, None).map(drop)
    }

    async fn rename_dir(&self, caller: &Caller, from: &CellPath, to: CellPath, target: Option<&FileId>) -> Result<()> {
        let CellPath { cell, path } = from;
        let snapshot = self.store(cell)?.snapshot().await?;
        if snapshot.has_children(path) {
            let file = FileId::Dir(CellPath::new(cell, path));
            self.memory.note_exception(caller.process(), file, Exception::MovedByFiles(Instant::now()));
            return Err(Error::new(Kind::CrossDevice, "a stored directory is many records: only a copy can move it"));
        }
        if to.path.below(path).is_some_and(|rest| !rest.is_empty()) {
            return Err(Error::new(Kind::Invalid, "a directory cannot move into itself"));
        }
        match target {
            Some(FileId::Dir(..)) if to == *from => return Ok(()),
            Some(FileId::Dir(..)) if snapshot.has_children(&to.path) || self.scratch.has_children(&to) => {
                return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
            }
            Some(FileId::Dir(..)) => drop(self.scratch.remove_dir(&to)),
            Some(_) => return Err(Error::new(Kind::NotDirectory, "not a directory")),
            None => {}
        }
        let has_tombstone = self.memory.has_tombstone(caller, &FileId::Dir(CellPath::new(cell, path)));
        if matches!(self.scratch.get(from), Some(Local::Dir { until: Some(_), .. })) || has_tombstone {
            // It only lingers: nothing in it could move.
            self.scratch.remove_dir(from);
            self.memory.end_exception(caller, &FileId::Dir(CellPath::new(cell, path)));
            return self.scratch.make_dir(to, caller.uid);
        }
        self.scratch.rename_dir(from, &to)
    }
}
