//! Making and removing names.

use std::ffi::OsStr;
use std::sync::Arc;

use super::caller::Removal;
use super::jobs::Happened;
use super::lockfile::is_virtual;
use super::{Caller, Node, Tree, known_name, new_name};
use crate::error::{Error, Kind, Result};

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
        self.refuse_hidden_form(&cell, &*self.cell(&cell)?.snapshot().await?, &dir, name)?;
        self.overlay.make_dir((cell.clone(), path.clone()), caller.uid)?;
        self.recent.settle(caller, &Node::Dir(cell.clone(), path.clone()));
        // Whoever copies a tree believes that what it has made is empty.
        let lock = Node::Lock(cell.clone(), path.clone());
        self.recent.removed(caller.process(), lock, Removal::Appeared(std::time::Instant::now()));
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
        let node = Node::Dir(cell, path);
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
}
