//! `.lock` files: how a directory's lock looks to programs that open, read, write and lock it. Must never let a user
//! lock who could not write.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::RecordFiles;
use crate::error::{Error, Kind, Result};
use crate::locks::{Range, Reason, Request, contents, host_name, user_name};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{self, Locking};
use crate::record::layout::{self, Lockable, is_election};
use crate::tree::caller::Caller;
use crate::tree::file::{Attr, Caching, FileId, OpenMode};
use crate::tree::handles::as_kind;
use crate::tree::namespace::{At, Created, Inode, Open, OpenFile, Part, Rest};

/// Longest text that may say what a lock is for, in bytes.
const ACTION_LIMIT: usize = 4096;

/// A lock that is open.
#[derive(Debug)]
pub(crate) struct LockFile {
    files: Arc<RecordFiles>,
    dir: CellPath,
    /// Whether its opener has opened it for writing, or could have: a lock is written to the service.
    may_lock: bool,
    /// What its opener has written: the reason of the lock, or the name of a candidate.
    action: Mutex<Option<String>>,
    shown: Mutex<Bytes>,
}

#[async_trait]
impl OpenFile for LockFile {
    /// A read from the beginning shows what there is now; a read further on shows the rest of the same.
    async fn read(&self, _: &Caller, at: At, part: Part) -> Result<Bytes> {
        self.refuse_if_lost(at)?;
        if part.offset == 0 {
            *self.shown.lock() = self.files.lock_content(&self.dir.cell, &self.dir.path).await?;
        }
        Ok(part.of(&self.shown.lock()))
    }

    /// Takes what its opener writes, for the next lock that is taken through this file.
    fn write(&self, at: At, _: usize, data: &[u8]) -> Result<Rest> {
        self.refuse_if_lost(at)?;
        if data.len() > ACTION_LIMIT {
            return Err(Error::new(Kind::TooLarge, format!("a lock's reason is at most {ACTION_LIMIT} bytes")));
        }
        let text = String::from_utf8_lossy(data);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty());
        *self.action.lock() = line.map(ToOwned::to_owned);
        Ok(None)
    }

    async fn sync(&self, at: At) -> Result<()> {
        self.refuse_if_lost(at)
    }
}

impl LockFile {
    /// Fails if the lock that was taken through it has been lost.
    fn refuse_if_lost(&self, at: At) -> Result<()> {
        self.files.locks.refuse_if_lost(at.ino, at.handle)
    }
}

/// A lock as the kernel asks for it.
#[derive(Debug, Clone, Copy)]
pub struct LockCall {
    /// The open file.
    pub handle: u64,
    /// Who locks, as the kernel identifies it.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// The process.
    pub pid: u32,
}

impl LockCall {
    fn range(&self, caller: &Caller, exclusive: bool, by: Option<Locking>) -> Range {
        let LockCall { handle, owner, start, end, pid } = *self;
        Range { owner, handle, pid, uid: caller.uid, by, start, end, exclusive }
    }
}

/// Directories that can be named although nothing is stored there: elections and named locks exist once they are
/// locked.
pub(crate) fn is_virtual(cell: &CellName, dir: &TopoPath) -> bool {
    cell.is_global() && layout::is_virtual(dir)
}

/// Whether a listing shows the lock of a directory: where Vitess takes locks.
pub(crate) fn is_listed(cell: &CellName, snapshot: &Snapshot, dir: &TopoPath) -> bool {
    cell.is_global()
        && match Lockable::of(dir) {
            Some(Lockable::Keyspace(_) | Lockable::Shard(..)) => snapshot.has_children(dir),
            Some(Lockable::Election(_)) => true,
            Some(Lockable::RoutingRules | Lockable::Named) | None => false,
        }
}

impl RecordFiles {
    pub(crate) fn lock_attr(&self, cell: &CellName, dir: &TopoPath) -> Result<Attr> {
        if !self.has_locks {
            return Ok(self.defaults.file(0, self.defaults.mounted));
        }
        let connected = self.cell(cell)?;
        let snapshot = connected.snapshot_now()?;
        let holder = connected.holder(&snapshot, dir);
        let modified = holder.as_ref().and_then(|lock| lock.modified).unwrap_or(self.defaults.mounted);
        Ok(self.defaults.file(holder.map_or(0, |lock| with_newline(&lock.value).len()), modified))
    }

    pub(super) async fn open_lock(
        self: &Arc<Self>,
        caller: &Caller,
        ino: u64,
        cell: &CellName,
        dir: &TopoPath,
        mode: OpenMode,
    ) -> Result<Open> {
        self.locks.settled(&*self.cell(cell)?, dir, ino).await;
        // The content is read later, at each read. A service that is away is noticed here.
        self.lock_content(cell, dir).await?;
        let file = LockFile {
            files: self.clone(),
            dir: CellPath::new(cell, dir),
            may_lock: mode.write
                || may_write(caller, (self.options.uid, self.options.gid, self.lock_attr(cell, dir)?.mode)),
            action: Mutex::default(),
            shown: Mutex::default(),
        };
        self.locks.follow(&self.cell(cell)?);
        Ok(Open { file: Some(Arc::new(file)), caching: Caching::DIRECT })
    }

    /// The lock exists already. Only a process that has made the directory believes that it is empty (`cp -a`,
    /// `tar x`), and may bring a copy.
    pub(super) async fn create_lock(
        self: &Arc<Self>,
        caller: &Caller,
        dir: CellPath,
        mode: OpenMode,
    ) -> Result<Created> {
        let file = FileId::Lock(dir.clone());
        if !self.has_locks {
            // A tool that copies a tree brings what the locks there have shown. Nothing is locked here.
            let open = Open { file: Some(Arc::new(Ignored)), caching: Caching::DIRECT };
            return Ok(Created { attr: self.lock_attr(&dir.cell, &dir.path)?, file, open });
        }
        if self.memory.exception(caller, &file).is_none() && mode.exclusive {
            return Err(Error::new(Kind::Exists, ".lock is there as long as its directory"));
        }
        self.memory.end_exception(caller, &file);
        let ino = self.kernel.number(&file);
        let open = self.open_lock(caller, ino, &dir.cell, &dir.path, mode).await?;
        Ok(Created { attr: self.lock_attr(&dir.cell, &dir.path)?, file, open })
    }

    /// The content of a lock now; empty if the lock is free.
    pub(crate) async fn lock_content(&self, cell: &CellName, dir: &TopoPath) -> Result<Bytes> {
        let connected = self.cell(cell)?;
        let snapshot = connected.snapshot().await?;
        Ok(connected.holder(&snapshot, dir).map_or_else(Bytes::new, |lock| with_newline(&lock.value)))
    }

    /// Whether a text is what a lock shows. A copy of that need not be stored.
    pub(crate) async fn is_lock_content(&self, cell: &CellName, dir: &TopoPath, text: &[u8]) -> Result<bool> {
        Ok(self.lock_content(cell, dir).await? == text)
    }

    /// Locks, or fails: ENOENT where nothing is stored, EROFS on a read-only mount, EBADF if the opener of the
    /// descriptor could not write, EWOULDBLOCK if the lock is held and the caller does not wait.
    pub async fn lock(
        &self,
        caller: &Caller,
        inode: &Inode,
        call: LockCall,
        exclusive: bool,
        wait: bool,
    ) -> Result<()> {
        let range = call.range(caller, exclusive, process::locking(caller.thread));
        let request = Request { ino: inode.ino, range, thread: caller.thread, wait };
        // A kernel that opens files without asking does not report their close either: such a lock would never end.
        let is_dir_lock = matches!(inode.file, FileId::Lock(..));
        if self.options.read_only && (self.kernel.opens_unasked() || is_dir_lock) {
            return Err(Error::read_only());
        }
        let FileId::Lock(CellPath { cell, path: dir }) = &inode.file else {
            return self.locks.lock_file(&request).await;
        };
        let Some(file) = as_kind::<LockFile>(self.handles.get(call.handle)?) else {
            return Err(Error::new(Kind::BadDescriptor, "not an open lock"));
        };
        if !file.may_lock {
            // As on NFS. flock(1) then opens the file for writing.
            return Err(Error::new(Kind::BadDescriptor, "a lock of the topology needs a descriptor that can write"));
        }
        let action = file.action.lock().clone();
        let text = if is_election(dir) {
            action.unwrap_or_else(|| format!("{}:{}", host_name(), call.pid)).into()
        } else {
            let action = action.unwrap_or_else(|| {
                format!("{} (pid {})", process::name(call.pid).unwrap_or_else(|| "topofs".to_owned()), call.pid)
            });
            contents(&Reason { action, user: user_name(caller.uid).await })
        };
        self.locks.lock_dir(&self.cell(cell)?, dir, &request, text).await
    }

    /// Unlocks a range. Nothing in it need be locked.
    pub async fn unlock(&self, caller: &Caller, ino: u64, call: LockCall) -> Result<()> {
        self.locks.unlock(ino, &call.range(caller, false, process::locking(caller.thread))).await
    }

    /// The lock that conflicts with an fcntl(2) lock, if there is one. Its process is 0 if it is not a lock of this
    /// mount.
    pub async fn conflict(
        &self,
        caller: &Caller,
        inode: &Inode,
        call: LockCall,
        exclusive: bool,
    ) -> Result<Option<Range>> {
        let wanted = call.range(caller, exclusive, Some(Locking::Fcntl));
        let FileId::Lock(CellPath { cell, path: dir }) = &inode.file else {
            return Ok(self.locks.conflict(inode.ino, &wanted));
        };
        let connected = self.cell(cell)?;
        let all = Range { start: 0, end: i64::MAX.cast_unsigned(), exclusive: true, pid: 0, ..wanted };
        Ok(match self.locks.holder_here(&connected, dir, call.owner) {
            Some((true, _)) => None,
            Some((false, pid)) => Some(Range { pid, ..all }),
            None => connected.holder(&*connected.snapshot().await?, dir).map(|_| all),
        })
    }
}

/// A file that takes everything and keeps nothing.
#[derive(Debug)]
struct Ignored;

#[async_trait]
impl OpenFile for Ignored {
    async fn read(&self, _: &Caller, _: At, _: Part) -> Result<Bytes> {
        Ok(Bytes::new())
    }

    fn write(&self, _: At, _: usize, _: &[u8]) -> Result<Rest> {
        Ok(None)
    }
}

fn may_write(caller: &Caller, file: (u32, u32, u32)) -> bool {
    /// The bit for writing, as in access(2).
    const WRITE: u32 = 0o2;
    caller.may(WRITE, file)
}

fn with_newline(value: &Bytes) -> Bytes {
    match value.last() {
        None | Some(b'\n') => value.clone(),
        Some(_) => [value, &b"\n"[..]].concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_write_may_lock_and_who_may_be_kept_out_by_a_group_may_not() {
        let may = |uid, gid, mode| may_write(&Caller::new(uid, gid, 0), (10, 20, mode));
        assert!(may(0, 0, 0o444), "root always");
        assert!(may(10, 99, 0o644) && !may(10, 20, 0o466), "the owner by the owner's bit alone");
        assert!(may(99, 20, 0o464) && !may(99, 20, 0o646), "the group by the group's");
        assert!(may(99, 99, 0o666) && !may(99, 99, 0o664), "all others");
        // Nobody knows whether one of their groups keeps them out.
        assert!(!may(99, 99, 0o646));
    }
}
