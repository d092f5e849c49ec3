//! Making and removing names.

use std::ffi::OsStr;
use std::sync::Arc;

use super::caller::Removal;
use super::jobs::Happened;
use super::lockfile::is_virtual;
use super::overlay::{LINGER, Place};
use super::{Caller, Node, Tree, known_name, new_name};
use crate::backend::{Action, Change, Guard};
use crate::error::{Error, Kind, Result};
use crate::mirror::Record;
use crate::name::{CellName, TopoPath};
use crate::record::Form;

impl Tree {
    /// Makes a directory that exists in this mount only, until a record is stored below it.
    pub async fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<super::Attr> {
        if self.echo.is_from(caller) {
            return self.echo_done(parent, new_name(name)?, Happened::DirMade);
        }
        let (cell, dir) = self.writable_dir(parent)?;
        let name = new_name(name)?;
        match self.find(caller, parent, name).await {
            Ok(_) => return Err(Error::new(Kind::Exists, "exists already")),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        let path = dir.join(name)?;
        self.overlay.make_dir((cell.clone(), path.clone()))?;
        // Whoever copies a tree believes that what it has made is empty.
        let lock = Node::Lock(cell.clone(), path.clone());
        self.recent.removed(caller, lock, Removal::Appeared(std::time::Instant::now()));
        let node = Node::Dir(cell, path);
        Ok(super::Attr { ino: self.inodes.told(&node), ..self.dir_attr() })
    }

    /// Removes a directory of this mount. Stored ones go with their last record.
    pub async fn rmdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<()> {
        if self.echo.is_from(caller) {
            return self.echo_done(parent, known_name(name)?, Happened::DirRemoved).map(drop);
        }
        self.writable_dir(parent)?;
        let name = known_name(name)?;
        let Node::Dir(cell, path) = self.find(caller, parent, name).await? else {
            return Err(Error::new(Kind::NotDirectory, "not a directory"));
        };
        let place = (cell.clone(), path.clone());
        if self.cell(&cell)?.snapshot().await?.has_children(&path) || self.overlay.has_children(&place) {
            return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
        }
        if !self.overlay.remove_dir(&place) {
            return Err(Error::not_found());
        }
        self.inodes.retire(&Node::Dir(cell, path));
        Ok(())
    }

    /// Removes a name. Any form's name removes the record.
    pub async fn unlink(self: &Arc<Self>, caller: &Caller, parent: u64, name: &OsStr) -> Result<()> {
        if self.echo.is_from(caller) {
            return self.echo_done(parent, known_name(name)?, Happened::Deleted).map(drop);
        }
        let (cell, dir) = self.writable_dir(parent)?;
        let name = known_name(name)?;
        let node = self.find(caller, parent, name).await?;
        match &node {
            Node::Scratch(_) => {
                self.overlay.unlink(&(cell, dir.join(name)?));
                Ok(())
            }
            Node::Lock(cell, dir) => {
                let snapshot = self.cell(cell)?.snapshot().await?;
                match snapshot.has_children(dir) || is_virtual(cell, dir) {
                    true => Err(Error::new(
                        Kind::NotPermitted,
                        ".lock cannot be removed: it is there as long as its directory",
                    )),
                    // It goes with the directory: for `rm -r`.
                    false => Ok(()),
                }
            }
            Node::Record(cell, path, form) => {
                if let Some(error) = self.recent.repeated(caller, &node) {
                    return Err(error);
                }
                self.save_under_way(cell, path).await;
                let outcome = self.delete(caller, cell, path, *form).await;
                if let Err(error) = &outcome
                    && error.kind == Kind::Conflict
                {
                    self.recent.refused(caller, &node, error);
                }
                outcome
            }
            _ => Err(Error::new(Kind::IsDirectory, "is a directory")),
        }
    }

    async fn delete(self: &Arc<Self>, caller: &Caller, cell: &CellName, path: &TopoPath, form: Form) -> Result<()> {
        let node = Node::Record(cell.clone(), path.clone(), form);
        let connected = self.cell(cell)?;
        let Some(record) = connected.snapshot().await?.records.get(path).cloned() else {
            // It went with another form's name, or was never saved.
            self.recent.settle(caller, &node);
            drop(self.recent.take_deleted(caller.process(), cell, path));
            self.handles.drafts(self.inodes.number(&node)).iter().for_each(|draft| draft.abandon());
            return Ok(());
        };
        self.refuse_delete()?;
        self.commit((caller.into(), form), cell, &[deletion(path, &record)]).await?;
        self.recent.deleted(caller, cell, path, record.value.clone());
        self.deleted(caller, cell, path, form).await
    }

    pub(super) fn refuse_delete(&self) -> Result<()> {
        if self.options.no_delete {
            return Err(Error::new(Kind::NotPermitted, "the mount was made with --no-delete"));
        }
        Ok(())
    }

    /// Keeps up appearances for `rm -r`: the record's other names answer until they are removed too, and so do the
    /// directories that have gone with it.
    async fn deleted(self: &Arc<Self>, caller: &Caller, cell: &CellName, path: &TopoPath, form: Form) -> Result<()> {
        for other in self.forms(cell, path).filter(|other| *other != form) {
            let ghost = Removal::Ghost(std::time::Instant::now());
            self.recent.removed(caller, Node::Record(cell.clone(), path.clone(), other), ghost);
        }
        let snapshot = self.cell(cell)?.snapshot().await?;
        let mut dir = path.parent();
        while let Some(gone) = dir.filter(|dir| !dir.is_root() && !snapshot.has_children(dir)) {
            dir = gone.parent();
            let place: Place = (cell.clone(), gone);
            self.overlay.linger(place.clone());
            self.forget_dir_after(place, LINGER);
        }
        self.forget_gone_dirs(cell, path, None).await;
        Ok(())
    }
}

/// The removal of a record as it was seen.
pub(super) fn deletion(path: &TopoPath, record: &Record) -> Change {
    Change { path: path.clone(), guard: Guard::Version(record.version), action: Action::Delete }
}
