//! Renaming: how editors, `sed -i`, `mv` and `rsync` save.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::caller::Removal;
use super::change::deletion;
use super::files::moved_on;
use super::lockfile::LOCK;
use super::overlay::{Local, Place, Scratch};
use super::save::as_conflict;
use super::{Caller, Node, Tree, known_name, new_name};
use crate::backend::{Action, Change, Guard};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::record::Form;

impl Tree {
    /// Renames. A scratch file over a record is a save; a record to a scratch name is a copy (an editor's backup); a
    /// record to a record's name moves it in one transaction.
    pub async fn rename(
        self: &Arc<Self>,
        caller: &Caller,
        (from_dir, from_name): (u64, &OsStr),
        (to_dir, to_name): (u64, &OsStr),
        no_replace: bool,
    ) -> Result<()> {
        let (cell, from_path) = self.writable_dir(from_dir)?;
        let (to_cell, to_path) = self.writable_dir(to_dir)?;
        let (from_name, to_name) = (known_name(from_name)?, new_name(to_name)?);
        let source = self.find(caller, from_dir, from_name).await?;
        if cell != to_cell {
            return Err(Error::new(Kind::CrossDevice, "cells are different services: only a copy can cross"));
        }
        let connected = self.cell(&cell)?;
        let snapshot = connected.snapshot().await?;
        if to_name == LOCK {
            return self.rename_over_lock(caller, (from_dir, from_name), &source, Node::Lock(cell, to_path)).await;
        }
        let target = match self.find(caller, to_dir, to_name).await {
            Ok(node) => Some(node),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        if target.is_some() && no_replace {
            return Err(Error::new(Kind::Exists, "exists already"));
        }
        let from = (cell.clone(), from_path.join(from_name)?);
        let to = (cell.clone(), to_path.join(to_name)?);
        let record = self.record_of_name(&cell, &snapshot, &to_path, to_name).ok();
        match (&source, target, record) {
            (Node::Dir(..), target, _) => self.rename_dir(&from, to, target.as_ref()).await,
            (_, Some(Node::Dir(..)), _) => Err(Error::new(Kind::IsDirectory, "is a directory")),
            (Node::Scratch(id), _, Some(record)) => {
                let file = self.overlay.file(*id).ok_or_else(Error::not_found)?;
                self.save_by_rename(caller, &from, &file, &record).await
            }
            (Node::Scratch(_), _, None) => {
                self.overlay.rename(&from, to);
                Ok(())
            }
            (Node::Record(..), _, Some(record)) => self.move_record(caller, &source, &record).await,
            (Node::Record(..), _, None) => self.back_up(caller, &source, to).await,
            _ => Err(Error::new(Kind::NotPermitted, "cannot be renamed")),
        }
    }

    /// Saves a scratch file's content as a record, unless the record is newer than what the file can have been made from.
    async fn save_by_rename(&self, caller: &Caller, from: &Place, file: &Scratch, target: &Node) -> Result<()> {
        let Node::Record(cell, path, form) = target else { return Err(Error::not_found()) };
        if let Some(error) = self.recent.repeated(caller, target) {
            return Err(error);
        }
        self.save_under_way(cell, path).await;
        let base = self.fetch_base(cell, path).await?;
        let read = self.recent.last_read(caller, cell, path);
        let moved_away = match self.recent.removal(caller, target) {
            Some(Removal::MovedAway(_, version)) => Some(version),
            _ => None,
        };
        let then = file.seen.records.get(path).map(|record| record.version);
        let outdated = match (&base, moved_away, read) {
            (Some(base), Some(version), _) => base.version != version,
            (Some(base), None, Some(read)) => base.version != read,
            (Some(base), None, None) => then != Some(base.version),
            (None, _, read) => read.is_some() && moved_away.is_none() && !self.is_ghost(caller, target),
        };
        let outcome = match (&base, outdated) {
            (Some(base), true) => {
                let known = moved_away.or(read).or(then).map_or(0, |version| version.number);
                Err(moved_on(cell, path, known, base.version.number))
            }
            (None, true) => Err(Error::new(Kind::Conflict, format!("{cell}/{path} was deleted meanwhile"))),
            (_, false) => {
                let content = Bytes::copy_from_slice(&file.state.lock().content);
                self.replace(caller.into(), cell, path, *form, &content, base.as_ref()).await
            }
        };
        match outcome {
            Ok(stored) => {
                self.recent.read(caller.thread, cell, path, stored.version);
                self.recent.settle(caller, target);
                self.overlay.unlink(from);
                self.inodes.renamed(&Node::Scratch(file.id), target);
                Ok(())
            }
            Err(error) => {
                if error.kind == Kind::Conflict {
                    self.recent.refused(caller, target, &error);
                }
                Err(error)
            }
        }
    }

    /// Tools that copy whole trees (`rsync`) bring a lock's content along: the same need not be brought, nor any into a
    /// directory that they have made.
    async fn rename_over_lock(
        self: &Arc<Self>,
        caller: &Caller,
        (from_dir, from_name): (u64, &str),
        source: &Node,
        lock: Node,
    ) -> Result<()> {
        let refused = || Error::new(Kind::NotPermitted, ".lock cannot be made: a lock needs a living holder");
        let (Node::Scratch(id), Node::Lock(cell, dir)) = (source, &lock) else { return Err(refused()) };
        let file = self.overlay.file(*id).ok_or_else(Error::not_found)?;
        let content = Bytes::copy_from_slice(&file.state.lock().content);
        if self.recent.removal(caller, &lock).is_none() && !self.is_lock_content(cell, dir, &content).await? {
            return Err(refused());
        }
        self.recent.settle(caller, &lock);
        self.unlink(caller, from_dir, OsStr::new(from_name)).await
    }

    fn is_ghost(&self, caller: &Caller, node: &Node) -> bool {
        matches!(self.recent.removal(caller, node), Some(Removal::Ghost(_)))
    }

    /// An editor moves the record out of the way before it writes it anew. It is copied; the record stays until the save.
    async fn back_up(&self, caller: &Caller, source: &Node, to: Place) -> Result<()> {
        let Node::Record(cell, path, form) = source else { return Err(Error::not_found()) };
        let connected = self.cell(cell)?;
        let snapshot = connected.snapshot().await?;
        let record = snapshot.records.get(path).ok_or_else(Error::not_found)?;
        let shown = self.records.show(cell, path, &record.value, *form)?;
        let mode = self.file_attr(0, record.modified).mode;
        let copy = self.overlay.replace(to, snapshot.clone(), (self.options.uid, self.options.gid, mode))?;
        self.overlay.edit(&copy, |_| shown.len(), |content| *content = shown.to_vec())?;
        copy.state.lock().modified = record.modified;
        self.recent.removed(caller, source.clone(), Removal::MovedAway(Instant::now(), record.version));
        self.inodes.renamed(source, &Node::Scratch(copy.id));
        Ok(())
    }

    /// Moves a record to another record's name, in one transaction.
    async fn move_record(&self, caller: &Caller, source: &Node, target: &Node) -> Result<()> {
        let (Node::Record(cell, from, form), Node::Record(_, to, to_form)) = (source, target) else {
            return Err(Error::not_found());
        };
        if from == to && form == to_form {
            return Ok(());
        }
        if form != to_form {
            return Err(Error::new(Kind::NotPermitted, "one form of a record cannot become another: copy it"));
        }
        if let Some(error) = self.recent.repeated(caller, target) {
            return Err(error);
        }
        self.refuse_delete()?;
        let connected = self.cell(cell)?;
        let snapshot = connected.snapshot().await?;
        let record = snapshot.records.get(from).ok_or_else(Error::not_found)?;
        self.refuse_wrong_message(cell, to, &record.value)?;
        let guard = snapshot.records.get(to).map_or(Guard::Absent, |old| Guard::Version(old.version));
        let put = Change { path: to.clone(), guard, action: Action::Put(record.value.clone()) };
        let changes = [put, deletion(from, record)];
        let outcome = self.commit((caller.into(), *form), cell, &changes).await.map_err(as_conflict);
        match &outcome {
            Ok(applied) => {
                self.recent.settle(caller, target);
                self.inodes.renamed(source, target);
                self.recent.forget_read(caller, cell, from);
                // The directory is a stored one now, and goes with its last record.
                self.overlay.made_real(cell, to);
                self.forget_gone_dirs(cell, from, to.parent().as_ref()).await;
                if let Some(version) = applied.versions.iter().flatten().next() {
                    self.recent.read(caller.thread, cell, to, *version);
                }
            }
            Err(error) if error.kind == Kind::Conflict => self.recent.refused(caller, target, error),
            Err(_) => {}
        }
        outcome.map(drop)
    }

    fn refuse_wrong_message(&self, cell: &CellName, path: &TopoPath, value: &Bytes) -> Result<()> {
        self.records.store(cell, path, Form::Raw, value, None).map(drop)
    }

    async fn rename_dir(&self, from: &Place, to: Place, target: Option<&Node>) -> Result<()> {
        let (cell, path) = from;
        let snapshot = self.cell(cell)?.snapshot().await?;
        if snapshot.has_children(path) {
            return Err(Error::new(Kind::CrossDevice, "a stored directory is many records: only a copy can move it"));
        }
        if to.1.below(path).is_some_and(|rest| !rest.is_empty()) {
            return Err(Error::new(Kind::Invalid, "a directory cannot move into itself"));
        }
        match target {
            Some(Node::Dir(..)) if to == *from => return Ok(()),
            Some(Node::Dir(..)) if snapshot.has_children(&to.1) || self.overlay.has_children(&to) => {
                return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
            }
            Some(Node::Dir(..)) => drop(self.overlay.remove_dir(&to)),
            Some(_) => return Err(Error::new(Kind::NotDirectory, "not a directory")),
            None => {}
        }
        if let Some(Local::Dir { until: Some(_) }) = self.overlay.get(from) {
            // It only lingers: nothing is there that could move.
            self.overlay.remove_dir(from);
            return self.overlay.make_dir(to);
        }
        self.overlay.rename_dir(from, &to)
    }
}
