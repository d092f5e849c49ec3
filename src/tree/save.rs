//! Saving: one compare-and-swap per save, on the version that was there when the file was opened.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::draft::{Base, Draft, Occasion};
use super::overlay::Place;
use super::{Caller, Tree};
use crate::backend::{Action, Change, Guard};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::record::Form;

/// Saves that nobody waits for (close(2) does not wait for the last descriptor's release): who asks for the record next
/// waits for them, so that this mount reads its own writes.
#[derive(Debug, Default)]
pub(super) struct Saving(Mutex<HashMap<Place, (usize, Arc<Notify>)>>);

impl Saving {
    fn begin(&self, place: Place) {
        self.0.lock().entry(place).or_default().0 += 1;
    }

    fn end(&self, place: &Place) {
        let mut saving = self.0.lock();
        if let Some((count, notify)) = saving.get_mut(place) {
            *count -= 1;
            if *count == 0 {
                notify.notify_waiters();
                saving.remove(place);
            }
        }
    }

    async fn wait(&self, place: &Place) {
        let Some(notify) = self.0.lock().get(place).map(|(_, notify)| notify.clone()) else { return };
        let notified = notify.notified();
        // It may have ended before we listened.
        if self.0.lock().get(place).is_some_and(|(_, known)| Arc::ptr_eq(known, &notify)) {
            notified.await;
        }
    }
}

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
        match self.replace(cell, path, Form::Raw, &value, None).await {
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
        self.replace(cell, path, *form, content, base).await.map_err(|error| match error.kind {
            Kind::Conflict if draft.is_exclusive() && base.is_none() => Error { kind: Kind::Exists, ..error },
            _ => error,
        })
    }

    /// Replaces one form of a record, guarded by the version that it replaces (`None`: there is none yet). The same
    /// content as before makes no new version. Fails with ESTALE if somebody else was faster.
    pub(super) async fn replace(
        &self,
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
        let applied = self.cell(cell)?.apply(&[change]).await.map_err(as_conflict)?;
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
        let stored = self.replace(cell, path, form, &content.into(), Some(&base)).await?;
        self.recent.read(caller.thread, cell, path, stored.version);
        Ok(())
    }
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
