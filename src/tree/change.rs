//! Making and removing names.

use std::ffi::OsStr;
use std::sync::Arc;

use super::caller::Removal;
use super::jobs::Happened;
use super::lockfile::is_virtual;
use super::{Caller, FileId, Tree, known_name, new_name};
use crate::error::{Error, Kind, Result};
use crate::name::CellPath;

impl Tree {
    /// Makes a directory that exists in this mount only, until a record is stored below it.
    pub async fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<super::Attr> {
        if self.echo.is_from(caller) {
            return self.echo_done(parent, new_name(name)?, Happened::DirMade);
        }
        let CellPath { cell, path: dir } = self.writable_dir(parent)?;
        let name = new_name(name)?;
        match self.find(caller, parent, name).await {
            Ok(_) => return Err(Error::new(Kind::Exists, "exists already")),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        let path = dir.join(name)?;
        self.refuse_hidden_form(&cell, &*self.cell(&cell)?.snapshot().await?, &dir, name)?;
        self.overlay.make_dir(CellPath::new(&cell, &path), caller.uid)?;
        self.recent.settle(caller, &FileId::Dir(CellPath::new(&cell, &path)));
        // Whoever copies a tree believes that what it has made is empty.
        let lock = FileId::Lock(CellPath::new(&cell, &path));
        self.recent.removed(caller.process(), lock, Removal::Appeared(std::time::Instant::now()));
        let node = FileId::Dir(CellPath { cell, path });
        Ok(super::Attr { ino: self.inodes.told(&node), ..self.dir_attr() })
    }

    /// Removes a directory of this mount. Stored ones go with their last record.
    pub async fn rmdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> Result<()> {
        if self.echo.is_from(caller) {
            return self.echo_done(parent, known_name(name)?, Happened::DirRemoved).map(drop);
        }
        self.writable_dir(parent)?;
        let name = known_name(name)?;
        let FileId::Dir(CellPath { cell, path }) = self.find(caller, parent, name).await? else {
            return Err(Error::new(Kind::NotDirectory, "not a directory"));
        };
        let place = CellPath::new(&cell, &path);
        if self.cell(&cell)?.snapshot().await?.has_children(&path) || self.overlay.has_children(&place) {
            return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
        }
        let node = FileId::Dir(CellPath { cell, path });
        if !self.overlay.remove_dir(&place) && !self.recent.is_ghost(caller, &node) {
            return Err(Error::not_found());
        }
        self.recent.settle(caller, &node);
        self.inodes.retire(&node);
        Ok(())
    }

    /// Removes a name. Any form's name removes the record.
    pub async fn unlink(self: &Arc<Self>, caller: &Caller, parent: u64, name: &OsStr) -> Result<()> {
        if self.echo.is_from(caller) {
            return self.echo_done(parent, known_name(name)?, Happened::Deleted).map(drop);
        }
        let CellPath { cell, path: dir } = self.writable_dir(parent)?;
        let name = known_name(name)?;
        let node = self.find(caller, parent, name).await?;
        match &node {
            FileId::Scratch(_) => {
                self.overlay.unlink(&CellPath { cell, path: dir.join(name)? });
                Ok(())
            }
            FileId::Lock(CellPath { cell, path: dir }) => {
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
            FileId::Record(CellPath { cell, path }, form) => {
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
}
