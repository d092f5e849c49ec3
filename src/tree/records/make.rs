//! Makes and removes names. Must never store anything for a directory that is made: it exists in this mount only.

use std::sync::Arc;

use super::RecordFiles;
use super::memory::Exception;
use crate::error::{Error, Kind, Result};
use crate::name::CellPath;
use crate::tree::caller::Caller;
use crate::tree::file::{Attr, FileId};
use crate::tree::namespace::Name;

impl RecordFiles {
    /// Makes a directory that exists in this mount only, until a record is stored below it.
    pub(super) async fn mkdir(&self, caller: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        let CellPath { cell, path: dir } = self.writable_dir(at.dir)?;
        let name = at.name;
        match self.find(caller, at.dir, name).await {
            Ok(_) => return Err(Error::new(Kind::Exists, "exists already")),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        let path = dir.join(name)?;
        self.refuse_hidden_form(&cell, &*self.store(&cell)?.snapshot().await?, &dir, name)?;
        self.scratch.make_dir(CellPath::new(&cell, &path), caller.uid)?;
        self.memory.end_exception(caller, &FileId::Dir(CellPath::new(&cell, &path)));
        // A tool that copies a tree expects a directory that it has made to be empty.
        let lock = FileId::Lock(CellPath::new(&cell, &path));
        self.memory.note_exception(caller.process(), lock, Exception::NotYetMade(std::time::Instant::now()));
        let file = FileId::Dir(CellPath { cell, path });
        Ok((file, self.defaults.dir()))
    }

    /// Removes a directory of this mount. Stored directories go with their last record.
    pub(super) async fn rmdir(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        self.writable_dir(at.dir)?;
        let name = at.name;
        let (cell, path) = match self.find(caller, at.dir, name).await? {
            FileId::Dir(CellPath { cell, path }) => (cell, path),
            links @ FileId::Links(..) => return self.remove_view(caller, at, &links).await,
            _ => return Err(Error::new(Kind::NotDirectory, "not a directory")),
        };
        let place = CellPath::new(&cell, &path);
        if self.store(&cell)?.snapshot().await?.has_children(&path) || self.scratch.has_children(&place) {
            return Err(Error::new(Kind::NotEmpty, "the directory is not empty"));
        }
        let file = FileId::Dir(CellPath { cell, path });
        if !self.scratch.remove_dir(&place) && !self.memory.has_tombstone(caller, &file) {
            return Err(Error::not_found());
        }
        self.memory.end_exception(caller, &file);
        self.kernel.retire(&file);
        Ok(())
    }

    /// Removes a name. To remove any form is to remove the record.
    pub(super) async fn unlink(self: &Arc<Self>, caller: &Caller, at: Name<'_>) -> Result<()> {
        let name = at.name;
        if matches!(at.dir, FileId::Links(..)) {
            return self.remove_view(caller, at, &self.find(caller, at.dir, name).await?).await;
        }
        let CellPath { cell, path: dir } = self.writable_dir(at.dir)?;
        let file = self.find(caller, at.dir, name).await?;
        match &file {
            FileId::Link(_) => self.remove_view(caller, at, &file).await,
            FileId::Scratch(_) => {
                self.scratch.unlink(&CellPath { cell, path: dir.join(name)? });
                Ok(())
            }
            FileId::Lock(CellPath { cell, path: dir }) => {
                let snapshot = self.store(cell)?.snapshot().await?;
                match snapshot.has_children(dir) || self.is_virtual(cell, dir) {
                    true => Err(Error::new(
                        Kind::NotPermitted,
                        ".lock cannot be removed: it is there as long as its directory",
                    )),
                    // It goes with the directory, as `rm -r` needs.
                    false => Ok(()),
                }
            }
            FileId::Record(CellPath { cell, path }, form) => {
                if let Some(error) = self.memory.repeated(caller, &file) {
                    return Err(error);
                }
                self.wait_for_saves(cell, path).await;
                let outcome = self.delete(caller, cell, path, *form).await;
                if let Err(error) = &outcome
                    && error.kind == Kind::Conflict
                {
                    self.memory.refused(caller, &file, error);
                }
                outcome
            }
            _ => Err(Error::new(Kind::IsDirectory, "is a directory")),
        }
    }
}
