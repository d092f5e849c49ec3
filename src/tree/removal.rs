//! Removing a record, and one of its names of several.
//!
//! A tool that replaces all forms of a record (`install`, `git`, `unzip`, `cp --remove-destination`) removes and makes one name after
//! the other. The first removal removes the record, and the first file that is made makes it. After that, removing another name by the
//! same process is taken for the beginning of making that name, too: the name is free for that process, and the record stays. If
//! the process does not make it, it has meant to remove the record, and that is done a moment later; not where it is about to
//! replace the record, which must not be away if the tool is killed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::caller::{Reading, Removal};
use super::jobs::{Happened, Job};
use super::news::ancestors;
use super::overlay::LINGER;
use super::{Caller, FileId, Tree};
use crate::backend::{Action, Change, Guard};
use crate::control::{Op, Refusal};
use crate::error::{Error, Kind, Result};
use crate::mirror::Record;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{Actor, Life, Process};
use crate::record::Form;
use crate::under_way::UnderWay;

/// How long a process has to make a name that it has removed: tools do so with their next call.
const MOMENT: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Records that will be removed unless their names are made again.
#[derive(Debug, Default)]
pub(super) struct Removals {
    by_place: Mutex<HashMap<CellPath, Process>>,
    under_way: UnderWay<CellPath>,
}

impl Removals {
    /// Waits for the removal of a record by a process that has ended: it will not make it again.
    pub async fn settled(&self, place: &CellPath) {
        let process = self.by_place.lock().get(place).copied();
        if process.is_some_and(|process| process.life() == Life::Ended) {
            self.under_way.wait(place).await;
        }
    }

    /// The same for all records of a directory.
    pub async fn settled_below(&self, dir: &CellPath) {
        let below = |at: &&CellPath| at.cell == dir.cell && at.path.below(&dir.path).is_some();
        let places: Vec<CellPath> = self.by_place.lock().keys().filter(below).cloned().collect();
        for place in places {
            self.settled(&place).await;
        }
    }
}

impl Tree {
    /// Removes a record by one of its names.
    pub(super) async fn delete(
        self: &Arc<Self>,
        caller: &Caller,
        cell: &CellName,
        path: &TopoPath,
        form: Form,
    ) -> Result<()> {
        let node = FileId::Record(CellPath::new(cell, path), form);
        let record = self.cell(cell)?.snapshot().await?.records.get(path).cloned();
        let own = self.own_drafts(caller, &node);
        if self.recent.take_unsaved(caller, &node) || own.iter().any(|draft| draft.is_refused()) {
            // It removes what its own refused save has left, not what is stored.
            own.iter().for_each(|draft| draft.abandon());
            self.recent.settle(caller, &node);
            let saver = Actor::from(caller);
            if record.is_some() || self.put_back_deleted(caller.process(), saver, cell, path).await.is_some() {
                self.is_still_there(&node);
            }
            return Ok(());
        }
        let Some(record) = record else {
            // It went with another form's name, or was never saved.
            self.recent.settle(caller, &node);
            if !own.is_empty() {
                // It has changed its mind about making it anew.
                drop(self.recent.take_deleted(caller.process(), cell, path));
            }
            own.iter().for_each(|draft| draft.abandon());
            return Ok(());
        };
        self.refuse_delete()?;
        // What somebody else has made of it since is not removed unseen.
        self.refuse_outdated(caller, &node, record.version, Reading::ToWrite)?;
        let made = self.recent.made_by(caller, cell, path);
        if let (Some(made), Some(process)) = (made, caller.process())
            && made.version == record.version
            && made.form != form
        {
            self.refuse_removal(caller.into(), cell, path).await?;
            self.recent.removed(Some(process), node, Removal::Freed(Instant::now()));
            if !made.replaces {
                self.remove_unless_made(process, caller.into(), (cell, path, form));
            }
            return Ok(());
        }
        self.remove((caller.process(), caller.into()), (cell, path, form), &record).await?;
        // What is still written to the name that is gone goes nowhere.
        own.iter().for_each(|draft| draft.abandon());
        Ok(())
    }

    async fn remove(
        self: &Arc<Self>,
        (process, saver): (Option<Process>, Actor),
        (cell, path, form): (&CellName, &TopoPath, Form),
        record: &Record,
    ) -> Result<()> {
        self.commit((saver, form), cell, &[deletion(path, record)]).await?;
        self.recent.deleted(process, cell, path, record);
        self.keep_up_appearances(process, saver, (cell, path, form)).await
    }

    /// For `rm -r`: the record's other names answer until they are removed too, and so do the directories that have gone with it.
    async fn keep_up_appearances(
        self: &Arc<Self>,
        process: Option<Process>,
        saver: Actor,
        (cell, path, form): (&CellName, &TopoPath, Form),
    ) -> Result<()> {
        for other in self.forms(cell, path).filter(|other| *other != form) {
            let node = FileId::Record(CellPath::new(cell, path), other);
            // One that it has removed before is gone.
            match process.is_some_and(|process| self.recent.is_freed(process, &node)) {
                true => self.recent.settle_for(process, &node),
                false => self.recent.removed(process, node, Removal::Ghost(Instant::now())),
            }
        }
        for dir in self.emptied_dirs(cell, path).await? {
            let place = CellPath { cell: cell.clone(), path: dir };
            self.overlay.linger(place.clone(), saver.uid);
            self.forget_dir_after(place, LINGER);
        }
        self.forget_gone_dirs(cell, path, None).await;
        Ok(())
    }

    /// The directories above a path that nothing is stored in, the nearest first.
    pub(super) async fn emptied_dirs(&self, cell: &CellName, path: &TopoPath) -> Result<Vec<TopoPath>> {
        let snapshot = self.cell(cell)?.snapshot().await?;
        Ok(ancestors(path).take_while(|dir| !snapshot.has_children(dir)).collect())
    }

    /// Removes a record in a moment, unless the process that has removed one of its names makes that again.
    fn remove_unless_made(
        self: &Arc<Self>,
        process: Process,
        saver: Actor,
        (cell, path, form): (&CellName, &TopoPath, Form),
    ) {
        let place = CellPath::new(cell, path);
        if self.removals.by_place.lock().insert(place.clone(), process).is_some() {
            // It is being waited for already.
            return;
        }
        self.removals.under_way.begin(place.clone());
        let (tree, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let CellPath { cell, path } = &place;
            let node = |form| FileId::Record(CellPath::new(cell, path), form);
            let is_freed = || tree.forms(cell, path).any(|form| tree.recent.is_freed(process, &node(form)));
            let deadline = Instant::now() + MOMENT;
            while is_freed() && Instant::now() < deadline && process.life() != Life::Ended && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
            let made = tree.recent.made_of(process, cell, path);
            if is_freed()
                && let Some(made) = made.filter(|made| !made.replaces)
            {
                tree.forms(cell, path).for_each(|form| tree.recent.settle_for(Some(process), &node(form)));
                let snapshot = tree.cell(cell).map(|cell| cell.mirror.snapshot());
                let record = snapshot.ok().and_then(|snapshot| snapshot.records.get(path).cloned());
                // What somebody else has made of it stays.
                if let Some(record) = record.filter(|record| record.version == made.version)
                    && let Err(error) = tree.remove((Some(process), saver), (cell, path, form), &record).await
                {
                    let path = node(form).to_string();
                    let refusal = Refusal {
                        op: Op::Unlink,
                        handle: None,
                        path: &path,
                        uid: saver.uid,
                        pid: saver.process,
                        error: &error,
                    };
                    tree.control.errors.record(&refusal);
                }
            }
            tree.removals.by_place.lock().remove(&place);
            tree.removals.under_way.end(&place);
        });
    }

    pub(super) fn refuse_delete(&self) -> Result<()> {
        if self.options.no_delete {
            return Err(Error::new(Kind::NotPermitted, "the mount was made with --no-delete"));
        }
        Ok(())
    }

    /// The kernel takes a name for gone that is still there, and has told so.
    fn is_still_there(&self, node: &FileId) {
        let FileId::Record(CellPath { cell, path }, form) = node else { return };
        let Ok(connected) = self.cell(cell) else { return };
        let (dir, name) = super::view::name_of(&connected.mirror.snapshot(), path, *form);
        let dir = dir.map(|dir| CellPath { cell: cell.clone(), path: dir });
        self.echo.push(Job { happened: Happened::Created, node: node.clone(), dir, name });
    }
}

/// The removal of a record as it was seen.
pub(super) fn deletion(path: &TopoPath, record: &Record) -> Change {
    Change { path: path.clone(), guard: Guard::Version(record.version), action: Action::Delete }
}
