//! Saving: one compare-and-swap per save, on the version that was there when the file was opened.

use bytes::Bytes;

use super::draft::{Base, Draft, Occasion};
use super::echo::OwnCommit;
use super::{Caller, RespectLocks, Tree};
use crate::backend::{Action, Applied, Change, Guard};
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::locks::{Reason, Saver, user_name};
use crate::name::{CellName, TopoPath};
use crate::record::Form;

impl Tree {
    /// Waits while a closed file is still being saved.
    pub(super) async fn save_under_way(&self, cell: &CellName, path: &TopoPath) {
        self.saving.wait(&(cell.clone(), path.clone())).await;
    }

    /// Saves a draft if the occasion asks for it.
    pub(super) async fn save(&self, draft: &Draft, occasion: Occasion) -> Result<()> {
        let _turn = draft.turn.lock().await;
        let Some(job) = draft.begin(occasion)? else { return Ok(()) };
        let outcome = self.store(draft, &job.content, job.base.as_ref()).await;
        draft.finish(&job, &outcome);
        if let Ok(stored) = &outcome {
            self.recent.read(draft.thread, &draft.cell, &draft.path, stored.version);
        }
        outcome.map(drop)
    }

    /// Saves what is left when the last descriptor is gone. Nobody hears an error any more but the log.
    pub(super) async fn save_released(&self, draft: &Draft) -> Result<()> {
        let place = (draft.cell.clone(), draft.path.clone());
        self.saving.begin(place.clone());
        let outcome = self.save(draft, Occasion::Release).await;
        self.saving.end(&place);
        outcome
    }

    /// A tool that removes a record and makes it anew (`mv` and `install` from another file system, `tar x`) must not leave
    /// nothing behind because the new content was refused or the tool was killed: the record comes back.
    pub(super) async fn put_back(&self, draft: &Draft) {
        let Draft { cell, path, .. } = draft;
        if !draft.has_made_nothing() {
            return;
        }
        let Some(value) = self.recent.take_deleted(draft.opener, cell, path) else { return };
        let place = (cell.clone(), path.clone());
        self.saving.begin(place.clone());
        match self.replace(draft.saver(), cell, path, Form::Raw, &value, None).await {
            Ok(base) => {
                tracing::warn!(%cell, %path, "nothing took its place: the record that was removed is put back");
                draft.rebase(base);
            }
            Err(error) => tracing::error!(%cell, %path, %error, "the record that was removed cannot be put back"),
        }
        self.saving.end(&place);
    }

    async fn store(&self, draft: &Draft, content: &Bytes, base: Option<&Base>) -> Result<Base> {
        let Draft { cell, path, form, .. } = draft;
        self.replace(draft.saver(), cell, path, *form, content, base).await.map_err(|error| match error.kind {
            Kind::Conflict if draft.is_exclusive() && base.is_none() => Error { kind: Kind::Exists, ..error },
            _ => error,
        })
    }

    /// Replaces one form of a record, guarded by the version that it replaces (`None`: there is none yet). The same
    /// content as before makes no new version. Fails with ESTALE if somebody else was faster.
    pub(super) async fn replace(
        &self,
        saver: Saver,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        content: &Bytes,
        base: Option<&Base>,
    ) -> Result<Base> {
        let value = self.records.store(cell, path, form, content, base.map(|base| &base.value))?;
        let guard = base.map_or(Guard::Absent, |base| Guard::Version(base.version));
        let action = value.clone().map_or(Action::Check, Action::Put);
        let change = Change { path: path.clone(), guard, action };
        let applied = self.commit((saver, form), cell, &[change]).await.map_err(as_conflict)?;
        match (value, applied.versions.into_iter().flatten().next(), base) {
            (Some(value), Some(version), base) => {
                if base.is_none() {
                    self.overlay.made_real(cell, path);
                }
                Ok(Base { version, value })
            }
            (None, _, Some(base)) => Ok(base.clone()),
            _ => Err(Error::new(Kind::Io, format!("{cell}/{path}: the backend has told no version"))),
        }
    }

    /// Applies changes whole or not at all, with the locks that concern them: those that this mount holds on directories above
    /// are guards of the same transaction, and those that a save must have are taken for its moment. `form` is the one that the
    /// caller sees the change in.
    pub(super) async fn commit(
        &self,
        (saver, form): (Saver, Form),
        cell: &CellName,
        changes: &[Change],
    ) -> Result<Applied> {
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
            let reason = Reason { action: format!("topofs: save below {cell}/{dir}"), user: user_name(saver.uid) };
            match self.locks.for_save(&connected, dir, &reason, saver).await {
                Ok(temporary) => taken.push(temporary),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let outcome = match outcome {
            Ok(()) => self.apply_noted(saver, form, &connected, changes).await,
            Err(error) => Err(error),
        };
        for temporary in taken.into_iter().rev() {
            self.locks.end_save(temporary).await;
        }
        outcome
    }

    /// Applies changes, and notes which events the kernel has raised for them itself.
    async fn apply_noted(&self, saver: Saver, form: Form, cell: &Cell, changes: &[Change]) -> Result<Applied> {
        let place = |change: &Change| (cell.name.clone(), change.path.clone());
        changes.iter().for_each(|change| self.committing.begin(place(change)));
        let outcome = self.apply_fenced(saver, cell, changes).await;
        // Whoever has saved reads what was saved, under every name.
        if let Some((files, dirs)) =
            self.let_go_of(&cell.name, changes.iter().map(|change| (&change.path, relists(change))))
        {
            tokio::join!(files.done(), dirs.done());
        }
        for (index, change) in changes.iter().enumerate() {
            let stored = outcome.as_ref().ok().and_then(|applied| applied.versions.get(index).copied().flatten());
            let revision = match (&change.action, stored, change.guard) {
                (Action::Put(_), Some(version), _) | (Action::Delete, _, Guard::Version(version)) => {
                    Some(version.written)
                }
                _ => None,
            };
            if let (Some(revision), true) = (revision, outcome.is_ok()) {
                let command = crate::process::name(saver.process);
                self.echo.note_own(&place(change), OwnCommit { revision, form, saver, command });
            }
            self.committing.end(&place(change));
        }
        outcome
    }

    async fn apply_fenced(&self, saver: Saver, cell: &Cell, changes: &[Change]) -> Result<Applied> {
        let mut all: Vec<Change> = Vec::new();
        for change in changes {
            for fence in self.locks.fences(cell, &change.path, saver)? {
                if !all.contains(&fence) {
                    all.push(fence);
                }
            }
        }
        let fences = all.len();
        all.extend_from_slice(changes);
        let mut applied = cell.apply(&all).await?;
        applied.versions.drain(..fences.min(applied.versions.len()));
        Ok(applied)
    }

    /// Whether saving a record would be refused because of a lock: what is known at open, since shells ignore what close says.
    pub(super) async fn refuse_early(&self, caller: &Caller, cell: &CellName, path: &TopoPath) -> Result<()> {
        let connected = self.cell(cell)?;
        self.locks.fences(&connected, path, caller.into())?;
        match self.needed_lock(cell, path) {
            Some(dir) => self.locks.refuse_if_foreign(&connected, &dir).await,
            None => Ok(()),
        }
    }

    /// The keyspace that a record of the global topology belongs to, if its lock is respected.
    fn keyspace_of(&self, cell: &CellName, path: &TopoPath) -> Option<TopoPath> {
        let mut names = path.components();
        let (Some("keyspaces"), Some(name), Some(_)) = (names.next(), names.next(), names.next()) else { return None };
        let respected = cell.is_global() && self.options.respect_locks != RespectLocks::None;
        TopoPath::parse(&format!("keyspaces/{name}")).ok().filter(|_| respected)
    }

    /// The directory whose lock a save of a record needs.
    fn needed_lock(&self, cell: &CellName, path: &TopoPath) -> Option<TopoPath> {
        let names: Vec<&str> = path.components().collect();
        let respected = self.options.respect_locks;
        let dir = match names.as_slice() {
            ["keyspaces", _, "Keyspace"] => path.parent(),
            ["keyspaces", _, "shards", _, "Shard"] if respected == RespectLocks::All => path.parent(),
            // Vitess replaces them whatever their version: its lock is all that protects them.
            ["routing_rules", "keyspace", "Rules"] => path.parent()?.parent(),
            _ => None,
        };
        dir.filter(|_| respected != RespectLocks::None && cell.is_global())
    }

    /// The record as the backend has it now; a dead or refusing backend is noticed here, before anything is written.
    pub(super) async fn fetch_base(&self, cell: &CellName, path: &TopoPath) -> Result<Option<Base>> {
        let fetched = self.cell(cell)?.fetch(path).await?;
        Ok(fetched.node.map(|node| Base { version: node.version, value: node.value }))
    }

    /// truncate(2): a save of its own.
    pub(super) async fn truncate(
        &self,
        caller: &Caller,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
        size: usize,
    ) -> Result<()> {
        let base = self.fetch_base(cell, path).await?.ok_or_else(Error::not_found)?;
        let mut content = match size {
            0 => Vec::new(),
            _ => self.records.show(cell, path, &base.value, form)?.to_vec(),
        };
        let limit = self.cell(cell)?.limits().value;
        if size > limit {
            return Err(Error::new(Kind::TooLarge, format!("{size} bytes; at most {limit} can be stored")));
        }
        content.resize(size, 0);
        tracing::debug!(%cell, %path, size, uid = caller.uid, "truncate");
        let stored = self.replace(caller.into(), cell, path, form, &content.into(), Some(&base)).await?;
        self.recent.read(caller.thread, cell, path, stored.version);
        Ok(())
    }
}

/// Whether a change makes or removes names.
fn relists(change: &Change) -> bool {
    change.action == Action::Delete || change.guard == Guard::Absent
}

/// A guard that was not met is a conflict, whichever way the record differs.
pub(super) fn as_conflict(error: Error) -> Error {
    match error.kind {
        Kind::NotFound | Kind::Exists | Kind::Conflict => {
            let reason = format!("someone else changed the record meanwhile: {}", error.reason);
            Error { kind: Kind::Conflict, reason, ..error }
        }
        _ => error,
    }
}
