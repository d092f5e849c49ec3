//! The two seams inside the tree: namespaces (which names exist and what they do) and open files (what can be done with
//! them).
//!
//! A namespace must never give out inode numbers or handles: the door (`tree/mod.rs`) counts lookups, keeps what is
//! open, and lets `tree/kernel` decide what the kernel may keep. Every default refuses.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::caller::Caller;
use super::file::{Attr, Caching, DirEntry, FileId, OpenMode, SetAttr};
use crate::cells::Cell;
use crate::error::{Error, Kind, Result};
use crate::mirror::Record;

/// A file as the kernel knows it. The number is only a key to what is open, and to what the kernel was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// The inode number.
    pub ino: u64,
    /// What it stands for.
    pub file: FileId,
}

/// How long an answer about a file may be kept.
#[derive(Debug, Clone)]
pub enum Keep {
    /// Not at all: it is the answer for one caller, or nothing announces a change of it.
    Never,
    /// Until the mount ends: it does not change.
    Always,
    /// As long as the watch of this cell is delivering.
    WhileWatched(Arc<Cell>),
}

/// What a caller of [`Namespace::open`] gets.
#[derive(Debug)]
pub struct Open {
    /// The open file; `None` if nothing can be done with it.
    pub file: Option<Arc<dyn OpenFile>>,
    /// What the kernel does for it.
    pub caching: Caching,
}

/// A file that was made: what it is, how it looks, and the open file.
#[derive(Debug)]
pub struct Created {
    /// What it is.
    pub file: FileId,
    /// Its attributes.
    pub attr: Attr,
    /// The file, opened as the caller asked.
    pub open: Open,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// The directory.
    pub dir: &'a FileId,
    /// The name in it.
    pub name: &'a str,
}

/// Names, and what they do. An operation that waits for a backend ends within its time-out; every other is ready at
/// once.
#[async_trait]
pub trait Namespace: Send + Sync + std::fmt::Debug {
    /// What a name in a directory stands for, for a caller.
    async fn lookup(&self, caller: &Caller, dir: &FileId, name: &str) -> Result<FileId>;

    /// Whether the kernel may keep for a moment that there is no such name.
    fn absence_lasts(&self, _dir: &Inode, _name: &str) -> bool {
        false
    }

    /// The attributes of a file that the kernel knows.
    async fn attr(&self, caller: &Caller, inode: &Inode) -> Result<Attr>;

    /// The attributes of a file that has just been looked up.
    async fn attr_of_name(&self, caller: &Caller, inode: &Inode) -> Result<Attr> {
        self.attr(caller, inode).await
    }

    /// The attributes of a file that has just been listed, without waiting for anything.
    fn attr_of_entry(&self, file: &FileId) -> Result<Attr>;

    /// Changes attributes.
    async fn set_attr(
        &self,
        _caller: &Caller,
        _inode: &Inode,
        _open: Option<Arc<dyn OpenFile>>,
        _set: &SetAttr,
    ) -> Result<()> {
        Ok(())
    }

    /// How long the kernel may keep an answer about a file.
    fn keep(&self, file: &FileId) -> Keep;

    /// Whether an answer is the same for everybody, and nothing about the file is in flight. It is asked after
    /// [`Self::keep`], and after the last look at the cell's watch.
    fn is_settled(&self, _inode: &Inode, _attr: &Attr) -> bool {
        true
    }

    /// Whether a record is still in the state that an answer shows.
    fn is_current(&self, _file: &FileId, _record: &Record) -> bool {
        true
    }

    /// Where a symbolic link points.
    async fn read_link(&self, _caller: &Caller, _file: &FileId) -> Result<String> {
        Err(Error::new(Kind::Invalid, "not a symbolic link"))
    }

    /// The names in a directory.
    async fn list(&self, caller: &Caller, dir: &FileId) -> Result<Vec<DirEntry>>;

    /// Opens a file.
    async fn open(&self, caller: &Caller, inode: &Inode, mode: OpenMode) -> Result<Open>;

    /// Reads a file that the kernel has opened without asking.
    async fn read_unopened(&self, caller: &Caller, inode: &Inode, part: Part, direct: bool) -> Result<Bytes>;

    /// Makes a file and opens it.
    async fn create(&self, _caller: &Caller, _at: Name<'_>, _permissions: u32, _mode: OpenMode) -> Result<Created> {
        Err(refused())
    }

    /// Makes a directory.
    async fn mkdir(&self, _caller: &Caller, _at: Name<'_>) -> Result<(FileId, Attr)> {
        Err(refused())
    }

    /// Removes a directory.
    async fn rmdir(&self, _caller: &Caller, _at: Name<'_>) -> Result<()> {
        Err(refused())
    }

    /// Removes a file.
    async fn unlink(&self, _caller: &Caller, _at: Name<'_>) -> Result<()> {
        Err(refused())
    }

    /// Makes a symbolic link.
    async fn symlink(&self, _caller: &Caller, _at: Name<'_>) -> Result<(FileId, Attr)> {
        Err(refused())
    }

    /// Renames.
    async fn rename(&self, _caller: &Caller, _from: Name<'_>, _to: Name<'_>, _no_replace: bool) -> Result<()> {
        Err(refused())
    }

    /// One extended attribute; ENODATA if there is none of that name.
    async fn xattr(&self, _file: &FileId, _name: &str) -> Result<Vec<u8>> {
        Err(Error::new(Kind::NoAttribute, "no such attribute"))
    }

    /// The names of all extended attributes.
    async fn xattr_names(&self, _file: &FileId) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

fn refused() -> Error {
    Error::new(Kind::NotPermitted, "nothing can be made or removed here")
}

/// A part of a file.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The first byte.
    pub offset: usize,
    /// How many bytes.
    pub size: usize,
}

impl Part {
    /// This part of a content; fewer bytes mean that the content ends there.
    pub fn of(self, content: &Bytes) -> Bytes {
        let end = self.offset.saturating_add(self.size).min(content.len());
        content.slice(self.offset.min(end)..end)
    }

    /// The same part of borrowed bytes, as a copy.
    pub fn copied(self, content: &[u8]) -> Bytes {
        let end = self.offset.saturating_add(self.size).min(content.len());
        Bytes::copy_from_slice(content.get(self.offset..end).unwrap_or_default())
    }
}

/// Where something is open: its inode, and its handle.
#[derive(Debug, Clone, Copy)]
pub struct At {
    /// The inode number.
    pub ino: u64,
    /// The handle.
    pub handle: u64,
}

/// The rest of a write, which waits for a service.
pub type Rest = Option<BoxFuture<'static, Result<()>>>;

/// What can be done with something that is open.
#[async_trait]
pub trait OpenFile: Any + Send + Sync + std::fmt::Debug {
    /// Reads; fewer bytes than asked for mean that the file ends there.
    async fn read(&self, caller: &Caller, at: At, part: Part) -> Result<Bytes>;

    /// Writes. Must take the bytes without waiting for anything.
    fn write(&self, _at: At, _offset: usize, _data: &[u8]) -> Result<Rest> {
        Err(Error::new(Kind::BadDescriptor, "not open for writing"))
    }

    /// A descriptor is closed.
    async fn flush(&self, _caller: &Caller, _at: At) -> Result<()> {
        Ok(())
    }

    /// fsync(2).
    async fn sync(&self, _at: At) -> Result<()> {
        Ok(())
    }

    /// The last descriptor is gone, but the file is still in the table of what is open: saves what is left.
    async fn release(&self) -> Result<()> {
        Ok(())
    }

    /// The file is out of that table.
    async fn closed(&self) {}

    /// Whether a read returns something now.
    fn is_readable(&self) -> bool {
        true
    }

    /// Whether it holds unsaved content: such files are looked for whenever their inode is opened.
    fn is_draft(&self) -> bool {
        false
    }
}
