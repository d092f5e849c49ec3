//! Owns what is being written to a record, until it is saved as one versioned change. A content that was refused must
//! never be saved.

use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::exclusive::ExclusiveRight;
use crate::backend::Version;
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{Actor, Process};
use crate::record::Form;
use crate::tree::file::FileId;
use crate::tree::room::Charge;

/// Largest content of one open file, in bytes: the text of the largest record that any service takes.
const CONTENT_LIMIT: usize = 32 << 20;
/// Up to this size every write looks for mistakes. Beyond it, a write does so only when the content has doubled.
const CHECK_ALWAYS: usize = 64 << 10;

/// The record that a draft replaces.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub version: Version,
    pub value: Bytes,
}

/// What somebody writes to one form of a record.
#[derive(Debug)]
pub(crate) struct Draft {
    pub cell: CellName,
    pub path: TopoPath,
    pub form: Form,
    /// The process that has opened the file. Its flush saves; the flush of a child that inherited the descriptor does
    /// not. `None` if it is unseen.
    pub opener: Option<Process>,
    /// The user who has opened the file.
    pub uid: u32,
    /// Made with O_EXCL: if somebody else has made the record, the save fails with EEXIST.
    exclusive: Option<ExclusiveRight>,
    append: bool,
    /// Largest content, in bytes.
    limit: usize,
    /// One save at a time.
    pub turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    content: Vec<u8>,
    base: Option<Base>,
    /// Bytes were written since the last save.
    wrote: bool,
    /// Something has changed since the last save: written, truncated, or newly made.
    dirty: bool,
    /// The error of a refused write. The rest would be a record with a hole, so nothing is saved until the file is
    /// truncated.
    broken: Option<Error>,
    /// The error of the last save. No save is tried again until something is written anew.
    refused: Option<Error>,
    /// Nothing is saved any more.
    abandoned: bool,
    /// All writes so far appended, so the content is the beginning of the final content.
    sequential: bool,
    /// The next write looks for mistakes if the content has at least this size.
    check_at: usize,
    edits: u64,
    changed: SystemTime,
    room: Charge,
}

/// How a draft begins.
pub(crate) struct Start {
    pub content: Vec<u8>,
    pub base: Option<Base>,
    /// Truncated or newly made: a close without a write saves it, too.
    pub dirty: bool,
    pub append: bool,
    pub exclusive: Option<ExclusiveRight>,
    /// Largest value that the backend takes, in bytes.
    pub value_limit: usize,
    /// The content is charged to this.
    pub room: Charge,
}

/// Content to save.
pub(crate) struct SaveJob {
    pub content: Bytes,
    pub base: Option<Base>,
    edits: u64,
}

/// Why a save is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// A descriptor is closed.
    Flush,
    /// fsync(2).
    Sync,
    /// The last descriptor is gone.
    Release,
}

impl Draft {
    /// A new draft. Fails with ENOSPC if there is no room for its content.
    pub fn new(
        (cell, path, form): (CellName, TopoPath, Form),
        (opener, uid): (Option<Process>, u32),
        mut start: Start,
    ) -> Result<Self> {
        start.room.resize(start.content.len())?;
        let limit = if form == Form::Raw { start.value_limit } else { CONTENT_LIMIT };
        let state = State {
            content: start.content,
            base: start.base,
            wrote: false,
            dirty: start.dirty,
            broken: None,
            refused: None,
            abandoned: false,
            sequential: true,
            check_at: 0,
            edits: 0,
            changed: SystemTime::now(),
            room: start.room,
        };
        Ok(Self {
            cell,
            path,
            form,
            opener,
            uid,
            exclusive: start.exclusive,
            append: start.append,
            limit,
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        })
    }

    /// Who saves it.
    pub fn saver(&self) -> Actor {
        Actor { uid: self.uid, process: self.opener.map_or(0, |opener| opener.pid) }
    }

    /// The file that this is a draft of.
    pub fn file(&self) -> FileId {
        FileId::Record(CellPath::new(&self.cell, &self.path), self.form)
    }

    /// Whether bytes were written since the last save.
    pub fn wrote(&self) -> bool {
        self.state.lock().wrote
    }

    pub fn is_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }

    pub fn len(&self) -> usize {
        self.state.lock().content.len()
    }

    pub fn changed(&self) -> SystemTime {
        self.state.lock().changed
    }

    pub fn content(&self) -> Bytes {
        Bytes::copy_from_slice(&self.state.lock().content)
    }

    pub fn read(&self, offset: usize, size: usize) -> Bytes {
        let state = self.state.lock();
        let end = offset.saturating_add(size).min(state.content.len());
        Bytes::copy_from_slice(state.content.get(offset..end).unwrap_or_default())
    }

    /// Takes bytes. `check` refuses a beginning of a content that nothing can make valid any more.
    pub fn write(&self, offset: usize, data: &[u8], check: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(error) = &state.broken {
            // Some callers try again in another way, and would take the rest for the whole.
            return Err(error.clone());
        }
        // If it panics, half of it may have been taken: that stands until it has returned.
        state.broken = Some(Error::new(Kind::Io, "a write was broken off in the middle"));
        let outcome = state.write(if self.append { None } else { Some(offset) }, data, self.limit, check);
        state.broken = outcome.as_ref().err().cloned();
        outcome
    }

    pub fn truncate(&self, size: usize) -> Result<()> {
        let mut state = self.state.lock();
        if size > self.limit {
            return Err(too_large(size, self.limit));
        }
        state.room.resize(size)?;
        if size == 0 {
            state.sequential = true;
            state.check_at = 0;
        }
        state.content.resize(size, 0);
        state.broken = None;
        state.edited();
        Ok(())
    }

    /// What to save on an occasion. An error if what was written has been refused already.
    pub fn begin(&self, occasion: Occasion) -> Result<Option<SaveJob>> {
        let state = self.state.lock();
        let wanted = match occasion {
            // A shell redirection flushes before the first write: that must not store an empty record.
            Occasion::Flush => state.wrote,
            Occasion::Sync => state.dirty,
            Occasion::Release => state.dirty && state.broken.is_none() && state.refused.is_none(),
        };
        if !wanted || state.abandoned {
            return Ok(None);
        }
        // An error that a program got stays true until the program writes anew.
        match state.broken.as_ref().or(state.refused.as_ref()) {
            Some(error) => Err(error.clone()),
            None => Ok(Some(SaveJob {
                content: state.content.clone().into(),
                base: state.base.clone(),
                edits: state.edits,
            })),
        }
    }

    /// Whether anything that was written has been refused.
    pub fn is_refused(&self) -> bool {
        let state = self.state.lock();
        state.broken.is_some() || state.refused.is_some()
    }

    /// The version that this shows, if nothing was changed since it was stored.
    pub fn unchanged(&self) -> Option<Version> {
        let state = self.state.lock();
        state.base.as_ref().filter(|_| !state.dirty).map(|base| base.version)
    }

    /// The version that was read at the beginning, or was stored last.
    pub fn version(&self) -> Option<Version> {
        self.state.lock().base.as_ref().map(|base| base.version)
    }

    /// Whether this draft was to make a record, and has not made one.
    pub fn has_made_nothing(&self) -> bool {
        self.state.lock().base.is_none()
    }

    /// The record exists again: a later save replaces it.
    pub fn rebase(&self, base: Base) {
        self.state.lock().base = Some(base);
    }

    /// Notes the outcome of a save: the record as it is now, or the error.
    pub fn finish(&self, job: &SaveJob, outcome: &Result<Base>) {
        let mut state = self.state.lock();
        match outcome {
            Ok(base) => {
                state.base = Some(base.clone());
                state.refused = None;
                if state.edits == job.edits {
                    state.wrote = false;
                    state.dirty = false;
                }
            }
            // A content that was written meanwhile has not been tried.
            Err(error) if state.edits == job.edits => state.refused = Some(error.clone()),
            Err(_) => {}
        }
    }

    /// What was written cannot be stored, for this reason.
    pub fn refuse(&self, error: Error) {
        self.state.lock().refused = Some(error);
    }

    /// Nothing of this draft will ever be saved: its writer was killed, or has removed the name again.
    pub fn abandon(&self) {
        self.state.lock().abandoned = true;
    }

    pub fn is_abandoned(&self) -> bool {
        self.state.lock().abandoned
    }
}

impl State {
    fn write(
        &mut self,
        offset: Option<usize>,
        data: &[u8],
        limit: usize,
        check: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let offset = offset.unwrap_or(self.content.len());
        let end = offset.saturating_add(data.len());
        if end > limit {
            return Err(too_large(end, limit));
        }
        self.sequential &= offset == self.content.len();
        if self.content.len() < end {
            self.room.resize(end)?;
            self.content.resize(end, 0);
        }
        if let Some(place) = self.content.get_mut(offset..end) {
            place.copy_from_slice(data);
        }
        self.wrote = true;
        self.edited();
        if self.sequential && self.content.len() >= self.check_at {
            if self.content.len() > CHECK_ALWAYS {
                self.check_at = self.content.len() * 2;
            }
            check(&self.content)?;
        }
        Ok(())
    }

    fn edited(&mut self) {
        self.refused = None;
        self.dirty = true;
        self.edits += 1;
        self.changed = SystemTime::now();
    }
}

fn too_large(size: usize, limit: usize) -> Error {
    Error::new(Kind::TooLarge, format!("{size} bytes; at most {limit} can be stored"))
}

#[cfg(test)]
pub(super) mod tests;
