//! One tree beside the live one, as the whole mount sees it: its files are wrapped in [`FileId::Inside`]. Must never
//! let a change through to a snapshot, nor anybody but its owner into a stage.

use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::about::{self, Tells};
use crate::control::SpaceCount;
use crate::error::{Error, Kind, Result};
use crate::mirror::Record;
use crate::name::{CellName, CellPath, TopoPath};
use crate::tree::caller::Caller;
use crate::tree::file::{About, Attr, DirEntry, FileId, OpenMode, SetAttr, SpaceId, SpaceKind};
use crate::tree::namespace::{Created, Inode, Keep, Name, Namespace, Open, OpenFile, Part};
use crate::tree::records::RecordFiles;

/// A tree beside the live one.
#[derive(Debug)]
pub(crate) struct Inside {
    pub id: SpaceId,
    /// The user who has made it.
    pub owner: u32,
    files: Arc<RecordFiles>,
    tells: Arc<dyn Tells>,
}

impl Inside {
    /// A tree of records, and what tells of it.
    pub fn new((id, owner): (SpaceId, u32), files: Arc<RecordFiles>, tells: Arc<dyn Tells>) -> Self {
        Self { id, owner, files, tells }
    }

    /// Its root, as the mount knows it.
    pub fn root(&self) -> FileId {
        self.id.file(FileId::Root)
    }

    /// It has been removed.
    pub fn removed(&self) {
        self.tells.removed();
    }

    /// What the status shows of it.
    pub fn count(&self) -> SpaceCount {
        SpaceCount {
            kind: self.id.kind.name(),
            name: self.id.name.to_string(),
            uid: self.owner,
            made: self.files.defaults.mounted,
            changes: self.tells.changes(),
            saves: self.tells.saves(),
        }
    }

    /// How many changes are lost if it goes now.
    pub fn uncommitted(&self) -> usize {
        if self.tells.refuse_change().is_err() { 0 } else { self.tells.changes() }
    }

    /// Paths of its scratch files.
    pub fn scratch_files(&self) -> Vec<String> {
        let below = self.root();
        self.files.scratch.survey().0.into_iter().map(|at| format!("{below}/{at}")).collect()
    }

    /// The path of a file below the mount, as people see it.
    pub fn describe(&self, file: &FileId) -> String {
        match file {
            FileId::Inside(_, file) if matches!(**file, FileId::Scratch(_)) => {
                format!("{}/{}", self.root(), self.files.describe(file))
            }
            file => file.to_string(),
        }
    }

    fn wrap(&self, file: FileId) -> FileId {
        self.id.file(file)
    }

    /// A stage is nobody's business but its owner's.
    fn admit(&self, caller: &Caller) -> Result<()> {
        match self.id.kind == SpaceKind::At || [0, self.owner].contains(&caller.uid) {
            true => Ok(()),
            false => Err(Error::new(Kind::Denied, format!("the stage belongs to the user {}", self.owner))),
        }
    }

    /// Fails unless the tree can be changed.
    fn admit_change(&self, caller: &Caller) -> Result<()> {
        self.admit(caller)?;
        match self.id.kind {
            SpaceKind::At => Err(Error::read_only()),
            SpaceKind::Stage => self.tells.refuse_change(),
        }
    }
}

/// A file as its own tree knows it.
fn inner(file: &FileId) -> &FileId {
    match file {
        FileId::Inside(_, file) => file,
        file => file,
    }
}

fn inner_inode(inode: &Inode) -> Inode {
    Inode { ino: inode.ino, file: inner(&inode.file).clone() }
}

fn inner_name(at: Name<'_>) -> Name<'_> {
    Name { dir: inner(at.dir), name: at.name }
}

#[async_trait]
impl Namespace for Inside {
    async fn lookup(&self, caller: &Caller, dir: &FileId, name: &str) -> Result<FileId> {
        self.admit(caller)?;
        let told = || self.tells.files().iter().find(|file| file.name() == name);
        let found = match inner(dir) {
            FileId::About(_) => return Err(Error::new(Kind::NotDirectory, "not a directory")),
            FileId::Root if told().is_some() => told().map(|file| FileId::About(*file)).ok_or_else(Error::not_found)?,
            dir => self.files.lookup(caller, dir, name).await?,
        };
        Ok(self.wrap(found))
    }

    async fn attr(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        match inner(&inode.file) {
            // Also for others, who may know that there is a stage.
            FileId::Root => self.files.attr_of_entry(&FileId::Root),
            FileId::About(file) => {
                self.admit(caller)?;
                about::attr(&self.files.defaults, &*self.tells, *file).await
            }
            _ => {
                self.admit(caller)?;
                self.files.attr(caller, &inner_inode(inode)).await
            }
        }
    }

    async fn attr_of_name(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        match inner(&inode.file) {
            FileId::Root | FileId::About(_) => Namespace::attr(self, caller, inode).await,
            _ => {
                self.admit(caller)?;
                self.files.attr_of_name(caller, &inner_inode(inode)).await
            }
        }
    }

    fn attr_of_entry(&self, file: &FileId) -> Result<Attr> {
        match inner(file) {
            FileId::About(file) => {
                let content = self.tells.listed(*file).ok_or_else(Error::not_found)?;
                Ok(self.files.defaults.read_only_file(content.len(), self.files.defaults.mounted))
            }
            file => self.files.attr_of_entry(file),
        }
    }

    async fn set_attr(
        &self,
        caller: &Caller,
        inode: &Inode,
        open: Option<Arc<dyn OpenFile>>,
        set: &SetAttr,
    ) -> Result<()> {
        match inner(&inode.file) {
            // `echo commit > .control` truncates.
            FileId::About(About::Control) => self.admit(caller),
            FileId::About(_) => Err(Error::read_only()),
            _ => {
                self.admit_change(caller)?;
                self.files.set_attr(caller, &inner_inode(inode), open, set).await
            }
        }
    }

    fn keep(&self, file: &FileId) -> Keep {
        match inner(file) {
            // Another tree may have the name of its root later.
            FileId::Root | FileId::About(_) => Keep::Never,
            file => self.files.keep(file),
        }
    }

    fn is_settled(&self, inode: &Inode, attr: &Attr) -> bool {
        self.files.is_settled(&inner_inode(inode), attr)
    }

    fn is_current(&self, file: &FileId, record: &Record) -> bool {
        self.files.is_current(inner(file), record)
    }

    async fn read_link(&self, caller: &Caller, file: &FileId) -> Result<String> {
        self.admit(caller)?;
        self.files.read_link(caller, inner(file)).await
    }

    async fn list(&self, caller: &Caller, dir: &FileId) -> Result<Vec<DirEntry>> {
        self.admit(caller)?;
        let mut entries = self.files.list(caller, inner(dir)).await?;
        if *inner(dir) == FileId::Root {
            let told = self.tells.files().iter().filter(|file| self.tells.listed(**file).is_some());
            entries.extend(told.map(|file| DirEntry { name: file.name().to_owned(), file: FileId::About(*file) }));
        }
        let entries = entries.into_iter();
        Ok(entries.map(|entry| DirEntry { file: self.wrap(entry.file), ..entry }).collect())
    }

    async fn open(&self, caller: &Caller, inode: &Inode, mode: OpenMode) -> Result<Open> {
        self.admit(caller)?;
        if let FileId::About(file) = inner(&inode.file) {
            return about::open(&self.files.room, &self.tells, *file, caller, mode).await;
        }
        if mode.write {
            self.admit_change(caller)?;
        }
        self.files.open(caller, &inner_inode(inode), mode).await
    }

    async fn read_unopened(&self, caller: &Caller, inode: &Inode, part: Part, direct: bool) -> Result<Bytes> {
        self.admit(caller)?;
        match inner(&inode.file) {
            FileId::About(file) => Ok(part.of(&self.tells.content(*file).await?)),
            _ => self.files.read_unopened(caller, &inner_inode(inode), part, direct).await,
        }
    }

    async fn create(&self, caller: &Caller, at: Name<'_>, permissions: u32, mode: OpenMode) -> Result<Created> {
        self.admit_change(caller)?;
        let created = self.files.create(caller, inner_name(at), permissions, mode).await?;
        Ok(Created { file: self.wrap(created.file), ..created })
    }

    async fn mkdir(&self, caller: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        self.admit_change(caller)?;
        if *inner(at.dir) == FileId::Root {
            // Tools that bring the records of a new cell make its directory, and some do not say if they cannot.
            let cell = CellName::new(at.name)?;
            if at.name.starts_with('.') {
                let reason = "the root holds the cells, and programs keep other things under such a name";
                return Err(Error::new(Kind::NotPermitted, reason));
            }
            self.tells.make_cell(cell.clone())?;
            let dir = FileId::Dir(CellPath { cell, path: TopoPath::root() });
            let attr = self.files.attr_of_entry(&dir)?;
            return Ok((self.wrap(dir), attr));
        }
        let (file, attr) = self.files.mkdir(caller, inner_name(at)).await?;
        Ok((self.wrap(file), attr))
    }

    async fn rmdir(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        self.admit_change(caller)?;
        if *inner(at.dir) == FileId::Root {
            return self.tells.remove_cell(&CellName::new(at.name).map_err(|_| Error::not_found())?);
        }
        self.files.rmdir(caller, inner_name(at)).await
    }

    async fn unlink(&self, caller: &Caller, at: Name<'_>) -> Result<()> {
        self.admit_change(caller)?;
        self.files.unlink(caller, inner_name(at)).await
    }

    async fn symlink(&self, caller: &Caller, at: Name<'_>) -> Result<(FileId, Attr)> {
        self.admit_change(caller)?;
        self.files.symlink(caller, inner_name(at)).await
    }

    async fn rename(&self, caller: &Caller, from: Name<'_>, to: Name<'_>, no_replace: bool) -> Result<()> {
        self.admit_change(caller)?;
        self.files.rename(caller, inner_name(from), inner_name(to), no_replace).await
    }

    async fn xattr(&self, file: &FileId, name: &str) -> Result<Vec<u8>> {
        self.files.xattr(inner(file), name).await
    }

    async fn xattr_names(&self, file: &FileId) -> Result<Vec<String>> {
        self.files.xattr_names(inner(file)).await
    }
}

/// A namespace that the door asks.
pub(crate) enum Space<'a> {
    /// One of those that last as long as the mount.
    Lasting(&'a dyn Namespace),
    /// A tree beside the live one.
    Inside(Arc<Inside>),
    /// A tree that has been removed.
    Gone,
}

impl<'a> Deref for Space<'a> {
    type Target = dyn Namespace + 'a;

    fn deref(&self) -> &Self::Target {
        match self {
            Space::Lasting(space) => *space,
            Space::Inside(space) => &**space,
            Space::Gone => &Gone,
        }
    }
}

/// What is left of a tree that has been removed. Files of it that are open go on.
#[derive(Debug)]
struct Gone;

#[async_trait]
impl Namespace for Gone {
    async fn lookup(&self, _: &Caller, _: &FileId, _: &str) -> Result<FileId> {
        Err(Error::not_found())
    }

    async fn attr(&self, _: &Caller, _: &Inode) -> Result<Attr> {
        Err(Error::not_found())
    }

    fn attr_of_entry(&self, _: &FileId) -> Result<Attr> {
        Err(Error::not_found())
    }

    fn keep(&self, _: &FileId) -> Keep {
        Keep::Never
    }

    async fn list(&self, _: &Caller, _: &FileId) -> Result<Vec<DirEntry>> {
        Err(Error::not_found())
    }

    async fn open(&self, _: &Caller, _: &Inode, _: OpenMode) -> Result<Open> {
        Err(Error::not_found())
    }

    async fn read_unopened(&self, _: &Caller, _: &Inode, _: Part, _: bool) -> Result<Bytes> {
        Err(Error::not_found())
    }
}
