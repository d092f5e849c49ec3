//! `.lock` files: how a directory's lock looks to those who open, read, write and lock it.

use bytes::Bytes;
use parking_lot::Mutex;

use super::handles::Handle;
use super::overlay::Place;
use super::{Attr, Caller, Node, OpenMode, Opened, Tree};
use crate::backend::lock::{ELECTIONS, NAMED_LOCKS, is_election, needs_no_records};
use crate::error::{Error, Kind, Result};
use crate::locks::{Range, Reason, Request, contents, host_name, user_name};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::process;

pub(super) use crate::name::LOCK_FILE as LOCK;
/// Longest text that may say what a lock is for, in bytes.
const ACTION_LIMIT: usize = 4096;

/// A lock that is open.
#[derive(Debug)]
pub(super) struct LockFile {
    pub cell: CellName,
    pub dir: TopoPath,
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
    fn range(&self, exclusive: bool) -> Range {
        let LockCall { handle, owner, start, end, pid } = *self;
        Range { owner, handle, pid, start, end, exclusive }
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

    pub(super) async fn open_lock(&self, caller: &Caller, ino: u64, cell: &CellName, dir: &TopoPath) -> Result<Opened> {
        self.locks.settled(&*self.cell(cell)?, dir, ino).await;
        // Read when it is read; a service that is away is noticed here.
        self.lock_content(cell, dir).await?;
        let file = LockFile { cell: cell.clone(), dir: dir.clone(), action: Mutex::default(), shown: Mutex::default() };
        self.locks.follow(&self.cell(cell)?);
        let handle = self.handles.add(caller.uid, ino, Handle::Lock(std::sync::Arc::new(file)))?;
        Ok(Opened { handle, ..Opened::direct() })
    }

    /// A lock is there already. Only whoever has made the directory believes that it is empty (`cp -a`, `tar x`), and may bring
    /// a copy.
    pub(super) async fn create_lock(&self, caller: &Caller, place: Place, mode: OpenMode) -> Result<(Attr, Opened)> {
        let (cell, dir) = place;
        let node = Node::Lock(cell.clone(), dir.clone());
        if self.recent.removal(caller, &node).is_none() && mode.exclusive {
            return Err(Error::new(Kind::Exists, ".lock is there as long as its directory"));
        }
        self.recent.settle(caller, &node);
        let ino = self.inodes.told(&node);
        let opened = self.open_lock(caller, ino, &cell, &dir).await.inspect_err(|_| self.inodes.forget(ino, 1))?;
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

    /// Locks, or fails: ENOENT where nothing is stored, EROFS on a read-only mount, EWOULDBLOCK if it is held and nobody waits.
    pub async fn lock(&self, caller: &Caller, ino: u64, call: LockCall, exclusive: bool, wait: bool) -> Result<()> {
        let node = self.node(ino)?;
        let request = Request { ino, range: call.range(exclusive), thread: caller.thread, wait };
        let Node::Lock(cell, dir) = &node else { return self.locks.lock_file(&request).await };
        self.refuse_if_read_only()?;
        let Handle::Lock(file) = self.handles.get(call.handle)? else {
            return Err(Error::new(Kind::BadDescriptor, "not an open lock"));
        };
        let action = file.action.lock().clone();
        let text = if is_election(dir) {
            action.unwrap_or_else(|| format!("{}:{}", host_name(), call.pid)).into()
        } else {
            let action = action.unwrap_or_else(|| {
                format!("{} (pid {})", process::name(call.pid).unwrap_or_else(|| "topofs".to_owned()), call.pid)
            });
            contents(&Reason { action, user: user_name(caller.uid) })
        };
        self.locks.lock_dir(&self.cell(cell)?, dir, &request, text).await
    }

    /// Unlocks a range. What is not locked need not be.
    pub async fn unlock(&self, ino: u64, call: LockCall) -> Result<()> {
        self.locks.unlock(ino, call.owner, call.start, call.end).await;
        Ok(())
    }

    /// The lock that is in the way of another, if there is one. Its process is 0 if it is none of this mount's.
    pub async fn conflict(&self, ino: u64, call: LockCall, exclusive: bool) -> Result<Option<Range>> {
        let node = self.node(ino)?;
        let Node::Lock(cell, dir) = &node else { return Ok(self.locks.conflict(ino, &call.range(exclusive))) };
        let connected = self.cell(cell)?;
        let all = Range { start: 0, end: i64::MAX.cast_unsigned(), exclusive: true, pid: 0, ..call.range(true) };
        Ok(match self.locks.holder_here(&connected, dir) {
            Some((owner, _)) if owner == call.owner => None,
            Some((owner, pid)) => Some(Range { owner, pid, ..all }),
            None => connected.holder(&*connected.snapshot().await?, dir).map(|_| all),
        })
    }
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
