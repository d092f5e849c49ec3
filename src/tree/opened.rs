//! The door for what is open: reading, writing, closing and locking. Must never know a kind of open file.

use bytes::Bytes;

use super::caller::Caller;
use super::file::FileId;
use super::namespace::{Part, Rest};
use super::{LockCall, NOTHING, Tree};
use crate::error::{Error, Kind, Result};
use crate::locks::Range;

impl Tree {
    /// Reads from an open file. If there are fewer bytes than asked for, the file ends there.
    pub async fn read(&self, caller: &Caller, handle: u64, offset: u64, size: u32) -> Result<Bytes> {
        let (at, file) = self.handles.get_at(handle)?;
        file.read(caller, at, part(offset, size)).await
    }

    /// Reads a file that the kernel has opened without asking.
    pub async fn read_unopened(
        &self,
        caller: &Caller,
        ino: u64,
        offset: u64,
        size: u32,
        direct: bool,
    ) -> Result<Bytes> {
        let inode = self.inode(ino)?;
        self.space(caller, &inode.file).read_unopened(caller, &inode, part(offset, size), direct).await
    }

    /// Writes to an open file. Returns the rest of the work, if some of it waits for a service.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<Rest> {
        let offset = usize::try_from(offset).map_err(|_| Error::new(Kind::TooLarge, "offset too large"))?;
        let (at, file) = self.handles.get_at(handle)?;
        file.write(at, offset, data)
    }

    /// A descriptor is closed: unlocks what the process `owner` has locked.
    pub async fn flush(&self, caller: &Caller, handle: u64, owner: u64) -> Result<()> {
        self.locks().closed(self.handles.inode(handle)?, owner).await;
        // Another open file may have replaced it meanwhile.
        let (at, file) = self.handles.get_at(handle)?;
        file.flush(caller, at).await
    }

    /// fsync(2): saves now.
    pub async fn fsync(&self, handle: u64) -> Result<()> {
        let (at, file) = self.handles.get_at(handle)?;
        file.sync(at).await
    }

    /// The last descriptor is gone: saves what was only truncated or made, and unlocks what was locked through it.
    pub async fn release(&self, handle: u64, owner: Option<u64>) -> Result<()> {
        if handle == NOTHING {
            return Ok(());
        }
        let ino = self.handles.inode(handle)?;
        let (saved, ()) = futures::join!(self.close(handle), self.locks().released(ino, handle, owner));
        saved
    }

    /// Forgets an open file.
    pub async fn close(&self, handle: u64) -> Result<()> {
        let outcome = self.handles.get(handle)?.release().await;
        // Another open file may have replaced it meanwhile.
        self.handles.remove(handle)?.closed().await;
        outcome
    }

    /// Whether a read of an open file returns something now. Only readers of `.topofs/events` wait.
    pub fn is_readable(&self, handle: u64) -> bool {
        self.handles.get(handle).map_or(true, |file| file.is_readable())
    }

    /// The same for a file that the kernel has opened without asking. `poller` is the kernel's number for the open
    /// file.
    pub fn is_readable_unopened(&self, ino: u64, poller: u64) -> bool {
        match self.kernel.inodes.file(ino) {
            Some(FileId::ControlFile(file)) => self.control.is_readable_unopened(file, poller),
            _ => true,
        }
    }

    /// Locks, or fails: ENOENT where nothing is stored, EROFS on a read-only mount, EBADF if the opener of the
    /// descriptor could not write, EWOULDBLOCK if the lock is held and the caller does not wait.
    pub async fn lock(&self, caller: &Caller, ino: u64, call: LockCall, exclusive: bool, wait: bool) -> Result<()> {
        self.records.lock(caller, &self.inode(ino)?, call, exclusive, wait).await
    }

    /// Unlocks a range. Nothing in it need be locked.
    pub async fn unlock(&self, caller: &Caller, ino: u64, call: LockCall) -> Result<()> {
        self.records.unlock(caller, ino, call).await
    }

    /// The lock that conflicts with an fcntl(2) lock, if there is one. Its process is 0 if it is not a lock of this
    /// mount.
    pub async fn conflict(&self, caller: &Caller, ino: u64, call: LockCall, exclusive: bool) -> Result<Option<Range>> {
        self.records.conflict(caller, &self.inode(ino)?, call, exclusive).await
    }
}

fn part(offset: u64, size: u32) -> Part {
    Part { offset: usize::try_from(offset).unwrap_or(usize::MAX), size: size as usize }
}
