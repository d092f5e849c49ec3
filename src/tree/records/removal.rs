//! Removes a record by one of its names. Must never remove a change that the caller has not seen.
//!
//! A tool that replaces all forms of a record (`install`, `git`, `unzip`, `cp --remove-destination`) removes and makes
//! one name after the other. The first removal removes the record, and the first new file makes it again. If the same
//! process then removes another name, that is taken for the beginning of making that name, too: the name is free for
//! that process, and the record stays. If the process does not make the name, it meant to remove the record, and that
//! is done a moment later. That is not done if the process is replacing the record: the record must not be away if the
//! tool is killed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::RecordFiles;
use super::memory::{Exception, Reading};
use super::names::{ancestors, name_of};
use super::scratch::LINGER;
use crate::backend::{Action, Change, Guard};
use crate::error::{Error, Kind, Result};
use crate::in_flight::InFlight;
use crate::journal::{Op, Refusal};
use crate::mirror::Record;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{Actor, Life, Process};
use crate::record::Form;
use crate::tree::caller::Caller;
use crate::tree::file::FileId;
use crate::tree::kernel::outbox::{Announcement, Happened};

/// How long a process has to make a name again that it has removed: tools do that with their next call.
const MOMENT: Duration = Duration::from_secs(1);
/// How often to look meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Records that will be removed unless their names are made again.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    by_place: Mutex<HashMap<CellPath, Process>>,
    in_flight: InFlight<CellPath>,
}

impl Removals {
    /// Waits for the removal of a record by a process that has ended: it will not make the record again.
    pub async fn settled(&self, place: &CellPath) {
        let process = self.by_place.lock().get(place).copied();
        if process.is_some_and(|process| process.life() == Life::Ended) {
            self.in_flight.wait(place).await;
        }
    }

    /// The same for all records below a directory.
    pub async fn settled_below(&self, dir: &CellPath) {
        let below = |at: &&CellPath| at.cell == dir.cell && at.path.below(&dir.path).is_some();
        let places: Vec<CellPath> = self.by_place.lock().keys().filter(below).cloned().collect();
        for place in places {
            self.settled(&place).await;
        }
    }
}

impl RecordFiles {
    /// Removes a record by one of its names.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        caller: &Caller,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
    ) -> Result<()> {
        let file = FileId::Record(CellPath::new(cell, path), form);
        let record = self.store(cell)?.snapshot().await?.records.get(path).cloned();
        let own = self.own_drafts(caller, &file);
        if self.memory.take_unsaved(caller, &file) || own.iter().any(|draft| draft.is_refused()) {
            // It removes what its refused save has left, not what is stored.
            own.iter().for_each(|draft| draft.abandon());
            self.memory.end_exception(caller, &file);
            let saver = Actor::from(caller);
            if record.is_some() || self.put_back_deleted(caller.process(), saver, cell, path).await.is_some() {
                self.is_still_there(&file);
            }
            return Ok(());
        }
        let Some(record) = record else {
            // The record is gone with another form's name, or was never saved.
            self.memory.end_exception(caller, &file);
            if !own.is_empty() {
                // The process no longer wants to make it anew.
                drop(self.memory.take_deleted(caller.process(), cell, path));
            }
            own.iter().for_each(|draft| draft.abandon());
            return Ok(());
        };
        self.refuse_delete()?;
        // A change by somebody else is not removed unseen.
        self.refuse_outdated(caller, &file, record.version, Reading::ToWrite)?;
        let made = self.memory.made_by(caller, cell, path);
        if let (Some(made), Some(process)) = (made, caller.process())
            && made.version == record.version
            && made.form != form
        {
            self.refuse_removal(caller.into(), cell, path).await?;
            self.memory.note_exception(Some(process), file, Exception::Freed(Instant::now()));
            if !made.replaces {
                self.remove_unless_made(process, caller.into(), (cell, path, form));
            }
            return Ok(());
        }
        self.remove((caller.process(), caller.into()), (cell, path, form), &record).await?;
        // Later writes to the removed name go nowhere.
        own.iter().for_each(|draft| draft.abandon());
        Ok(())
    }

    async fn remove(
        self: &Arc<Self>,
        (process, saver): (Option<Process>, Actor),
        (cell, path, form): (&CellName, &TopoPath, Form),
        record: &Record,
    ) -> Result<()> {
        let primary = self.goes_with(cell, path, &*self.store(cell)?.snapshot().await?);
        self.commit((saver, form), cell, &[deletion(path, record)]).await?;
        if let Some(primary) = primary.filter(|_| self.relists_views(cell, path)) {
            self.memory.note_exception(process, primary, Exception::Tombstone(Instant::now()));
        }
        self.memory.deleted(process, cell, path, record);
        self.leave_tombstones(process, saver, (cell, path, form)).await
    }

    /// For `rm -r`: the record's other names still answer until they are removed, too. So do the directories that are
    /// gone with it.
    async fn leave_tombstones(
        self: &Arc<Self>,
        process: Option<Process>,
        saver: Actor,
        (cell, path, form): (&CellName, &TopoPath, Form),
    ) -> Result<()> {
        for other in self.forms(cell, path).filter(|other| *other != form) {
            let file = FileId::Record(CellPath::new(cell, path), other);
            // A name that the process has removed before is gone.
            match process.is_some_and(|process| self.memory.is_freed(process, &file)) {
                true => self.memory.end_exception_for(process, &file),
                false => self.memory.note_exception(process, file, Exception::Tombstone(Instant::now())),
            }
        }
        for dir in self.emptied_dirs(cell, path).await? {
            let place = CellPath { cell: cell.clone(), path: dir };
            self.scratch.linger(place.clone(), saver.uid);
            self.forget_dir_after(place, LINGER);
        }
        self.forget_gone_dirs(cell, path, None).await;
        Ok(())
    }

    /// The directories above a path in which nothing is stored, the nearest first.
    pub(crate) async fn emptied_dirs(&self, cell: &CellName, path: &TopoPath) -> Result<Vec<TopoPath>> {
        // What was removed is removed, also if the cell is out of reach by now.
        let snapshot = self.store(cell)?.known();
        Ok(ancestors(path).take_while(|dir| !snapshot.has_children(dir)).collect())
    }

    /// Removes a record in a moment, unless the process that has removed one of its names makes that name again.
    fn remove_unless_made(
        self: &Arc<Self>,
        process: Process,
        saver: Actor,
        (cell, path, form): (&CellName, &TopoPath, Form),
    ) {
        let place = CellPath::new(cell, path);
        if self.removals.by_place.lock().insert(place.clone(), process).is_some() {
            // A task waits for that already.
            return;
        }
        let in_flight = self.removals.in_flight.begin(place.clone());
        let (files, stop) = (self.clone(), self.background.stop.clone());
        self.background.tasks.spawn(async move {
            // Also after a panic: nobody waits for ever, and the next removal begins a task of its own.
            let _ended = scopeguard::guard((files.clone(), place.clone(), in_flight), |(files, place, in_flight)| {
                files.removals.by_place.lock().remove(&place);
                drop(in_flight);
            });
            let CellPath { cell, path } = &place;
            let file = |form| FileId::Record(CellPath::new(cell, path), form);
            let is_freed = || files.forms(cell, path).any(|form| files.memory.is_freed(process, &file(form)));
            let deadline = Instant::now() + MOMENT;
            while is_freed() && Instant::now() < deadline && process.life() != Life::Ended && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
            let made = files.memory.made_of(process, cell, path);
            if is_freed()
                && let Some(made) = made.filter(|made| !made.replaces)
            {
                files.forms(cell, path).for_each(|form| files.memory.end_exception_for(Some(process), &file(form)));
                let snapshot = files.store(cell).map(|store| store.known());
                let record = snapshot.ok().and_then(|snapshot| snapshot.records.get(path).cloned());
                // A change by somebody else stays.
                if let Some(record) = record.filter(|record| record.version == made.version)
                    && let Err(error) = files.remove((Some(process), saver), (cell, path, form), &record).await
                {
                    let path = file(form).to_string();
                    let refusal = Refusal {
                        op: Op::Unlink,
                        handle: None,
                        path: &path,
                        uid: saver.uid,
                        pid: saver.process,
                        error: &error,
                    };
                    files.control.errors.record(&refusal);
                }
            }
        });
    }

    pub(crate) fn refuse_delete(&self) -> Result<()> {
        if self.options.no_delete {
            return Err(Error::new(Kind::NotPermitted, "the mount was made with --no-delete"));
        }
        Ok(())
    }

    /// The kernel takes a name for gone, and has raised the event, but the name still exists.
    fn is_still_there(&self, file: &FileId) {
        let FileId::Record(CellPath { cell, path }, form) = file else { return };
        let Ok(store) = self.store(cell) else { return };
        let (dir, name) = name_of(&store.known(), path, *form);
        let dir = dir.map(|dir| CellPath { cell: cell.clone(), path: dir });
        self.kernel.announce(Announcement { happened: Happened::Created, file: file.clone(), dir, name });
    }
}

/// The change that removes a record in the state in which it was seen.
pub(crate) fn deletion(path: &TopoPath, record: &Record) -> Change {
    Change { path: path.clone(), guard: Guard::Version(record.version), action: Action::Delete }
}
