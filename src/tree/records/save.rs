//! Saving: one compare-and-swap per save, on the version that was there when the file was opened.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::RecordFiles;
use super::draft::{Base, Draft, Occasion};
use super::flush::OpenDraft;
use super::memory::Reading;
use super::open::moved_on;
use crate::backend::{Action, Applied, Change, Guard, Version};
use crate::error::{Error, Kind, Result};
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{Actor, Process};
use crate::record::Form;
use crate::store::own::OwnCommit;
use crate::store::{Commits, Made, Mark};
use crate::tree::caller::Caller;
use crate::tree::file::FileId;
use crate::tree::kernel::wait_for_all;

/// How often, and how many times, to look whether another thread of the same program has just stored the record.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: usize = 10;

impl RecordFiles {
    /// Waits for the save of a closed file, and for the removal of a record by a process that has ended.
    pub(crate) async fn wait_for_saves(&self, cell: &CellName, path: &TopoPath) {
        let place = CellPath::new(cell, path);
        self.saving.wait(&place).await;
        self.removals.settled(&place).await;
    }

    /// Saves a draft if the occasion asks for it.
    pub(crate) async fn save(&self, draft: &Draft, occasion: Occasion) -> Result<()> {
        let _turn = draft.turn.lock().await;
        let Some(job) = draft.begin(occasion)? else { return Ok(()) };
        let outcome = self.put_draft(draft, &job.content, job.base.as_ref()).await;
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

    /// A process has made a record that was not there. For that process the record's other names are ordinary ones
    /// again.
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

    /// Fails as a save would fail, without saving: more may be written before the last descriptor is closed.
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

    /// Saves what is left when the last descriptor is closed. An error can only be logged.
    pub(crate) async fn save_released(&self, draft: &Draft) -> Result<()> {
        let _in_flight = self.saving.begin(CellPath::new(&draft.cell, &draft.path));
        self.save(draft, Occasion::Release).await
    }

    /// Some tools remove a record and make it anew (`mv` and `install` from another file system, `tar x`). They must
    /// not lose the record if the new content is refused or the tool is killed: the old record is put back.
    pub(crate) async fn put_back(&self, draft: &Draft) {
        let Draft { cell, path, .. } = draft;
        if draft.has_made_nothing()
            && let Some(base) = self.put_back_deleted(draft.opener, draft.saver(), cell, path).await
        {
            draft.rebase(base);
        }
    }

    /// Stores a record again that a process has just deleted.
    pub(crate) async fn put_back_deleted(
        &self,
        process: Option<Process>,
        saver: Actor,
        cell: &CellName,
        path: &TopoPath,
    ) -> Option<Base> {
        let value = self.memory.take_deleted(process, cell, path)?;
        let in_flight = self.saving.begin(CellPath::new(cell, path));
        let outcome = self.put(saver, cell, path, Form::Raw, &value, None).await;
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

    async fn put_draft(&self, draft: &Draft, content: &Bytes, base: Option<&Base>) -> Result<Base> {
        let Draft { cell, path, form, .. } = draft;
        let error = match self.put(draft.saver(), cell, path, *form, content, base).await {
            Err(error) if error.kind == Kind::Conflict => error,
            outcome => return outcome,
        };
        // Another thread of the same program may have been faster: some programs make all forms at once.
        let mut found = self.stored_by_self(draft, content, base).await;
        for _ in 0..LOOKS {
            if found.is_some() || !self.writes_other_forms(draft) {
                break;
            }
            // Its save is noted only when the service has answered.
            tokio::time::sleep(LOOK).await;
            found = self.stored_by_self(draft, content, base).await;
        }
        match found {
            Some(found) => self.put(draft.saver(), cell, path, *form, content, Some(&found)).await,
            None if draft.is_exclusive() && base.is_none() => Err(Error { kind: Kind::Exists, ..error }),
            None => Err(error),
        }
    }

    /// Whether the process that opened a draft also writes to another form of the record.
    fn writes_other_forms(&self, draft: &Draft) -> bool {
        let Draft { cell, path, form, opener, .. } = draft;
        self.forms(cell, path).filter(|other| other != form).any(|other| {
            let ino = self.kernel.number(&FileId::Record(CellPath::new(cell, path), other));
            opener.is_some()
                && self.handles.drafts::<OpenDraft>(ino).iter().any(|(_, open)| open.draft.opener == *opener)
        })
    }

    /// The record as it is now, if the same process has just made it under another name or has already stored this
    /// content. (Equal content alone proves nothing: two programs may both have counted up by one.)
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

    /// Puts the content of one form of a record, guarded by the version that it replaces (`None`: there is none yet).
    /// Unchanged content makes no new version. Fails with ESTALE if somebody else was faster.
    pub(crate) async fn put(
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

    /// Makes all changes or none, with the locks that concern them. `form` is the form through which the caller makes
    /// them.
    pub(crate) async fn commit(
        &self,
        (saver, form): (Actor, Form),
        cell: &CellName,
        changes: &[Change],
    ) -> Result<Applied> {
        self.store(cell)?
            .commit(
                saver,
                changes,
                &Heard { files: self, saver, form: Some(form), set: None, command: OnceLock::new() },
            )
            .await
    }

    /// Whether saving a record would be refused because of a lock.
    pub(crate) async fn refuse_early(&self, saver: Actor, cell: &CellName, path: &TopoPath) -> Result<()> {
        self.store(cell)?.refuse_early(saver, path).await
    }

    /// Whether removing a record would be refused because of a lock.
    pub(crate) async fn refuse_removal(&self, saver: Actor, cell: &CellName, path: &TopoPath) -> Result<()> {
        self.store(cell)?.refuse_removal(saver, path).await
    }

    /// The record as the service has it now. If the service is away or refuses, that is noticed here, before anything
    /// is written.
    pub(crate) async fn fetch_base(&self, cell: &CellName, path: &TopoPath) -> Result<Option<Base>> {
        let fetched = self.store(cell)?.fetch(path).await?;
        Ok(fetched.node.map(|node| Base { version: node.version, value: node.value }))
    }

    /// truncate(2): a save by itself.
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
        let limit = self.store(cell)?.limits().value;
        if size > limit {
            return Err(Error::new(Kind::TooLarge, format!("{size} bytes; at most {limit} can be stored")));
        }
        content.resize(size, 0);
        tracing::debug!(%cell, %path, size, uid = caller.uid, "truncate");
        let stored = self.put(caller.into(), cell, path, form, &content.into(), Some(&base)).await?;
        self.memory.stored(caller.process(), cell, path, stored.version);
        Ok(())
    }
}

/// Listens to a commit for the files of a mount. Knows who makes it, and how.
pub(super) struct Heard<'a> {
    pub files: &'a RecordFiles,
    pub saver: Actor,
    /// The form that it goes through, if it is the save of a file.
    pub form: Option<Form>,
    /// The change set that it makes.
    pub set: Option<Arc<str>>,
    /// The program, once it is looked up: a set has many records.
    pub command: OnceLock<Option<String>>,
}

#[async_trait]
impl Commits for Heard<'_> {
    fn begin(&self, at: &CellPath) -> Mark {
        Box::new(self.files.committing.begin(at.clone()))
    }

    async fn answered(&self, cell: &CellName, changes: &[Change]) {
        // After its save, a program reads what it saved, under every name.
        let concerned = changes.iter().map(|change| (&change.path, relists(change)));
        wait_for_all(self.files.invalidate(cell, concerned)).await;
    }

    fn made(&self, at: &CellPath, Made { revision, is_new }: Made) {
        if is_new {
            // The directory is a stored one now: it goes with its last record.
            self.files.scratch.made_real(&at.cell, &at.path);
        }
        let command = self.command.get_or_init(|| crate::process::name(self.saver.process)).clone();
        let (form, set, saver) = (self.form, self.set.clone(), self.saver);
        self.files.own.note(at, OwnCommit { revision, form, set, saver, command });
    }
}

/// Whether a change makes or removes names.
fn relists(change: &Change) -> bool {
    change.action == Action::Delete || change.guard == Guard::Absent
}

/// An unmet guard is a conflict, however the record differs.
pub(crate) fn as_conflict(error: Error) -> Error {
    match error.kind {
        Kind::NotFound | Kind::Exists | Kind::Conflict => {
            let reason = format!("someone else changed the record meanwhile: {}", error.reason);
            Error { kind: Kind::Conflict, reason, ..error }
        }
        _ => error,
    }
}
