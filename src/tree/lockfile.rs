//! `.lock` files: how a directory's lock looks to those who open, read, write and lock it.

use bytes::Bytes;
use parking_lot::Mutex;

use super::handles::Handle;
use super::{Attr, Caller, FileId, OpenMode, Opened, Tree};
use crate::backend::lock::{ELECTIONS, NAMED_LOCKS, is_election, needs_no_records};
use crate::error::{Error, Kind, Result};
use crate::locks::{Range, Reason, Request, contents, host_name, user_name};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::process::{self, Locking};

/// Longest text that may say what a lock is for, in bytes.
const ACTION_LIMIT: usize = 4096;

/// A lock that is open.
#[derive(Debug)]
pub(super) struct LockFile {
    pub cell: CellName,
    pub dir: TopoPath,
    /// Whether its opener has, or could have, opened it for writing: a lock is written to the service.
    may_lock: bool,
    /// What its opener has written: what the lock is for, or the name of a candidate.
    action: Mutex<Option<String>>,
    shown: Mutex<Bytes>,
}

/// A lock as the kernel asks for it.
#[derive(Debug, Clone, Copy)]
pub struct LockCall {
    /// The open file.
    pub handle: u64,
    /// The kernel's word for who it is.
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

/// Directories that can be named although nothing is stored there: elections and named locks come to be by being locked.
pub(super) fn is_virtual(cell: &CellName, dir: &TopoPath) -> bool {
    let above =
        |path: &str| path.strip_prefix(dir.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    cell.is_global() && !dir.is_root() && (above(ELECTIONS) || above(NAMED_LOCKS) || needs_no_records(dir))
}

/// Whether a listing shows the lock of a directory: where Vitess takes locks.
pub(super) fn is_listed(cell: &CellName, snapshot: &Snapshot, dir: &TopoPath) -> bool {
    let names: Vec<&str> = dir.components().collect();
    cell.is_global()
        && match names.as_slice() {
            ["keyspaces", _] | ["keyspaces", _, "shards", _] => snapshot.has_children(dir),
            _ => is_election(dir),
        }
}

impl Tree {
    pub(super) fn lock_attr(&self, cell: &CellName, dir: &TopoPath) -> Result<Attr> {
        let connected = self.cell(cell)?;
        let snapshot = connected.snapshot_now()?;
        let holder = connected.holder(&snapshot, dir);
        let modified = holder.as_ref().and_then(|node| node.modified).unwrap_or(self.mounted);
        Ok(self.file_attr(holder.map_or(0, |node| with_newline(&node.value).len()), modified))
    }

    pub(super) async fn open_lock(
        &self,
        caller: &Caller,
        ino: u64,
        cell: &CellName,
        dir: &TopoPath,
        mode: OpenMode,
    ) -> Result<Opened> {
        self.locks.settled(&*self.cell(cell)?, dir, ino).await;
        // Read when it is read; a service that is away is noticed here.
        self.lock_content(cell, dir).await?;
        let file = LockFile {
            cell: cell.clone(),
            dir: dir.clone(),
            may_lock: mode.write
                || may_write(caller, (self.options.uid, self.options.gid, self.lock_attr(cell, dir)?.mode)),
            action: Mutex::default(),
            shown: Mutex::default(),
        };
        self.locks.follow(&self.cell(cell)?);
        let handle = self.handles.add(caller.uid, ino, Handle::Lock(std::sync::Arc::new(file)))?;
        Ok(Opened { handle, ..Opened::direct() })
    }

    /// A lock is there already. Only whoever has made the directory believes that it is empty (`cp -a`, `tar x`), and may bring
    /// a copy.
    pub(super) async fn create_lock(&self, caller: &Caller, place: CellPath, mode: OpenMode) -> Result<(Attr, Opened)> {
        let CellPath { cell, path: dir } = place;
        let node = FileId::Lock(CellPath::new(&cell, &dir));
        if self.recent.removal(caller, &node).is_none() && mode.exclusive {
            return Err(Error::new(Kind::Exists, ".lock is there as long as its directory"));
        }
        self.recent.settle(caller, &node);
        let ino = self.inodes.told(&node);
        let opened =
            self.open_lock(caller, ino, &cell, &dir, mode).await.inspect_err(|_| self.inodes.forget(ino, 1))?;
        Ok((Attr { ino, ..self.lock_attr(&cell, &dir)? }, opened))
    }

    /// What stands in a lock now; nothing if it is free.
    pub(super) async fn lock_content(&self, cell: &CellName, dir: &TopoPath) -> Result<Bytes> {
        let connected = self.cell(cell)?;
        let snapshot = connected.snapshot().await?;
        Ok(connected.holder(&snapshot, dir).map_or_else(Bytes::new, |node| with_newline(&node.value)))
    }

    /// The content as it is read: from the beginning, what there is now; further on, the rest of the same.
    pub(super) async fn read_lock(&self, file: &LockFile, offset: usize) -> Result<Bytes> {
        if offset == 0 {
            *file.shown.lock() = self.lock_content(&file.cell, &file.dir).await?;
        }
        Ok(file.shown.lock().clone())
    }

    /// Fails if the lock that was taken through an open file has been lost.
    pub(super) fn refuse_if_lost(&self, handle: u64) -> Result<()> {
        self.locks.refuse_if_lost(self.handles.inode(handle)?, handle)
    }

    /// Whether a text is what a lock shows: a copy of it need not be stored.
    pub(super) async fn is_lock_content(&self, cell: &CellName, dir: &TopoPath, text: &[u8]) -> Result<bool> {
        Ok(self.lock_content(cell, dir).await? == text)
    }

    /// Locks, or fails: ENOENT where nothing is stored, EROFS on a read-only mount, EBADF through a descriptor of somebody who
    /// could not write, EWOULDBLOCK if it is held and nobody waits.
    pub async fn lock(&self, caller: &Caller, ino: u64, call: LockCall, exclusive: bool, wait: bool) -> Result<()> {
        let node = self.node(ino)?;
        let range = call.range(caller, exclusive, process::locking(caller.thread));
        let request = Request { ino, range, thread: caller.thread, wait };
        // Nobody tells of a close where nobody asks to open: such a lock would never end.
        if self.opens_unasked() || matches!(node, FileId::Lock(..)) {
            self.refuse_if_read_only()?;
        }
        let FileId::Lock(CellPath { cell, path: dir }) = &node else { return self.locks.lock_file(&request).await };
        let Handle::Lock(file) = self.handles.get(call.handle)? else {
            return Err(Error::new(Kind::BadDescriptor, "not an open lock"));
        };
        if !file.may_lock {
            // As on NFS: flock(1) opens it for writing then.
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

    /// Unlocks a range. What is not locked need not be.
    pub async fn unlock(&self, caller: &Caller, ino: u64, call: LockCall) -> Result<()> {
        self.locks.unlock(ino, &call.range(caller, false, process::locking(caller.thread))).await
    }

    /// The lock that is in the way of another of fcntl(2), if there is one. Its process is 0 if it is none of this mount's.
    pub async fn conflict(&self, caller: &Caller, ino: u64, call: LockCall, exclusive: bool) -> Result<Option<Range>> {
        let node = self.node(ino)?;
        let wanted = call.range(caller, exclusive, Some(Locking::Fcntl));
        let FileId::Lock(CellPath { cell, path: dir }) = &node else { return Ok(self.locks.conflict(ino, &wanted)) };
        let connected = self.cell(cell)?;
        let all = Range { start: 0, end: i64::MAX.cast_unsigned(), exclusive: true, pid: 0, ..wanted };
        Ok(match self.locks.holder_here(&connected, dir, call.owner) {
            Some((true, _)) => None,
            Some((false, pid)) => Some(Range { pid, ..all }),
            None => connected.holder(&*connected.snapshot().await?, dir).map(|_| all),
        })
    }
}

fn may_write(caller: &Caller, file: (u32, u32, u32)) -> bool {
    /// As access(2) counts.
    const WRITE: u32 = 0o2;
    caller.may(WRITE, file)
}

impl LockFile {
    /// Takes what its opener writes: for the next lock that is taken through it.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        if data.len() > ACTION_LIMIT {
            return Err(Error::new(Kind::TooLarge, format!("a lock's reason is at most {ACTION_LIMIT} bytes")));
        }
        let text = String::from_utf8_lossy(data);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty());
        *self.action.lock() = line.map(ToOwned::to_owned);
        Ok(())
    }
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
