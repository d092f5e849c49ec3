//! The kernel side: translates fuser's callbacks to the tree and back. Must never decide anything.
//!
//! A callback polls its future once, in the session thread. If memory can answer, the callback answers there. If the
//! future has to wait for a backend, it continues in the runtime: a session thread must never wait.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use crate::error::Kind;
use crate::journal::Op;
use crate::locks::Range;
use crate::tree::{LockCall, OpenMode, SetAttr};

mod adapter;
mod caches;
mod convert;
mod interrupted;
mod pollers;
mod spin;
mod waiting;

pub use adapter::Adapter;
pub use caches::Caches;
pub use waiting::Waiting;

use convert::{
    file_attr, kind, looked_up_again, open_flags, open_mode, reply_attr, reply_empty, reply_entry, reply_found,
    reply_xattr, time, time_of,
};

/// How long the kernel may keep a lasting reply. It is invalidated earlier, unless the daemon has died.
const LASTING: Duration = Duration::from_secs(60);
/// The same for the root of the mount, through which everybody comes from outside: so they notice soon that the daemon
/// has died.
const ROOT_LASTING: Duration = Duration::from_secs(1);
/// How long the kernel may keep that there is no such name. Nobody invalidates that when the cell becomes unreachable.
const ABSENT: Duration = Duration::from_secs(1);
/// The handle of a file that the kernel has opened without asking.
const UNOPENED: u64 = 0;
/// Inode numbers are not used again for something else.
const GENERATION: Generation = Generation(0);
/// Largest write in one request, in bytes: most records come in one piece.
const MAX_WRITE: u32 = 1 << 20;
/// Unit of sizes in statfs, in bytes.
const BLOCK: u64 = 4096;

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_FLOCK_LOCKS;
        // The others are for speed. Without the first of these, `> file` would be two changes; without the other two, a
        // lock would be known on this machine only.
        let needed = InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS;
        let missing = needed - config.capabilities();
        if !missing.is_empty() {
            return Err(std::io::Error::other(format!("this kernel has no {missing:?}")));
        }
        let known = wanted & config.capabilities();
        config.add_capabilities(known).map_err(|flags| std::io::Error::other(format!("not granted: {flags:?}")))?;
        // A kernel that takes less says so, and gets as much as it takes.
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let wanted = name.to_owned();
        let none = self.tree.dir_attr();
        self.answer(
            (Op::Lookup, request, parent, Some(name)),
            |tree, caller| async move {
                let found = tree.lookup_or_absent(&caller, parent.0, &wanted).await?;
                if found.is_none() {
                    // No error here, but one for the caller.
                    tree.control().requests.failed(Op::Lookup, Kind::NotFound);
                }
                Ok(found)
            },
            reply_found(reply, none),
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.count(Op::Forget, ino, None);
        // A panic must not end a session thread. If the kernel has forgotten an inode and we have not, we only keep it
        // for longer.
        let _ = self.at_once(Op::Forget, || self.tree.forget(ino.0, lookups));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            (Op::Getattr, request, ino, None),
            |tree, caller| async move { tree.getattr(&caller, ino.0).await },
            |result| reply_attr(reply)(result.map_err(looked_up_again)),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { size, mode, uid, gid, accessed: atime.map(time), modified: mtime.map(time) };
        self.answer(
            (Op::Setattr, request, ino, None),
            |tree, caller| async move { tree.setattr(&caller, ino.0, handle.map(|handle| handle.0), set).await },
            reply_attr(reply),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EPERM);
        }
        let wanted = name.to_owned();
        self.answer(
            (Op::Mknod, request, parent, Some(name)),
            |tree, caller| async move {
                let how = OpenMode { write: true, exclusive: true, ..OpenMode::default() };
                let (entry, opened) = tree.create(&caller, parent.0, &wanted, mode & !umask & 0o7777, how).await?;
                tree.close(opened.handle).await.inspect_err(|_| tree.forget(entry.ino, 1))?;
                Ok(entry)
            },
            reply_entry(reply),
        );
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Mkdir, request, parent, Some(name)),
            |tree, caller| async move { tree.mkdir(&caller, parent.0, &wanted).await },
            reply_entry(reply),
        );
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, _target: &Path, reply: ReplyEntry) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Symlink, request, parent, Some(name)),
            |tree, caller| async move { tree.symlink(&caller, parent.0, &wanted).await },
            reply_entry(reply),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            (Op::Readlink, request, ino, None),
            |tree, caller| async move { tree.read_link(&caller, ino.0).await },
            |result| match result {
                Ok(target) => reply.data(target.as_bytes()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Unlink, request, parent, Some(name)),
            |tree, caller| async move { tree.unlink(&caller, parent.0, &wanted).await },
            reply_empty(reply),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Rmdir, request, parent, Some(name)),
            |tree, caller| async move { tree.rmdir(&caller, parent.0, &wanted).await },
            reply_empty(reply),
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = (name.to_owned(), new_name.to_owned());
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        self.answer(
            // A refused save is about the target.
            (Op::Rename, request, new_parent, Some(new_name)),
            |tree, caller| async move {
                tree.rename(&caller, (parent.0, &from), (new_parent.0, &to), no_replace).await
            },
            reply_empty(reply),
        );
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.tree.opens_unasked() {
            self.count(Op::Open, ino, None);
            return reply.error(Errno::ENOSYS);
        }
        self.answer(
            (Op::Open, request, ino, None),
            |tree, caller| async move { tree.open(&caller, ino.0, open_mode(flags.0)).await },
            |result| match result {
                Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(opened.caching)),
                Err(errno) => reply.error(looked_up_again(errno)),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Create, request, parent, Some(name)),
            |tree, caller| async move {
                tree.create(&caller, parent.0, &wanted, mode & !umask & 0o7777, open_mode(flags)).await
            },
            |result| match result {
                Ok((entry, opened)) => {
                    let handle = FileHandle(opened.handle);
                    let (time, attr) = (time_of(&entry), file_attr(entry.ino, &entry.attr));
                    reply.created(&time, &attr, GENERATION, handle, open_flags(opened.caching));
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let direct = open_mode(flags.0).direct;
        self.answer_file(
            (Op::Read, request, ino, handle),
            |tree, caller| async move {
                match handle.0 {
                    UNOPENED => tree.read_unopened(&caller, ino.0, offset, size, direct).await,
                    handle => tree.read(&caller, handle, offset, size).await,
                }
            },
            |result| match result {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        // Taking bytes waits for nothing. If it is done here, the data need not be copied for a task.
        let outcome = self.at_once(Op::Write, || self.tree.write(handle.0, offset, data));
        self.answer_file(
            (Op::Write, request, ino, handle),
            |_, _| async move {
                match outcome?? {
                    Some(rest) => rest.await,
                    None => Ok(()),
                }
            },
            move |result| match result {
                Ok(()) => reply.written(size),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn flush(&self, request: &Request, ino: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        if self.tree.opens_unasked() {
            self.count(Op::Flush, ino, None);
            return reply.error(Errno::ENOSYS);
        }
        self.answer_file(
            (Op::Flush, request, ino, handle),
            |tree, caller| async move { tree.flush(&caller, handle.0, owner.0).await },
            reply_empty(reply),
        );
    }

    fn fsync(&self, request: &Request, ino: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.answer_file(
            (Op::Fsync, request, ino, handle),
            |tree, _| async move { tree.fsync(handle.0).await },
            reply_empty(reply),
        );
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let owner = lock_owner.map(|owner| owner.0);
        self.stops_polling(handle.0);
        self.answer_file(
            (Op::Release, request, ino, handle),
            |tree, _| async move { tree.release(handle.0, owner).await },
            reply_empty(reply),
        );
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let call = LockCall { handle: handle.0, owner: owner.0, start, end, pid };
        self.answer_file(
            (Op::Getlk, request, ino, handle),
            |tree, caller| async move { tree.conflict(&caller, ino.0, call, kind == libc::F_WRLCK).await },
            move |result| match result {
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Ok(Some(Range { start, end, exclusive, pid, .. })) => {
                    reply.locked(start, end, if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }, pid);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let call = LockCall { handle: handle.0, owner: owner.0, start, end, pid };
        self.answer_file(
            (Op::Setlk, request, ino, handle),
            |tree, caller| async move {
                match kind {
                    libc::F_UNLCK => tree.unlock(&caller, ino.0, call).await,
                    _ => tree.lock(&caller, ino.0, call, kind == libc::F_WRLCK, wait).await,
                }
            },
            reply_empty(reply),
        );
    }

    fn poll(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Op::Poll, ino, None);
        let ready = PollEvents::POLLIN | PollEvents::POLLRDNORM | PollEvents::POLLOUT | PollEvents::POLLWRNORM;
        let waiter = notifier.handle().0;
        let notifier = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY).then_some(notifier);
        let file = (request.uid(), ino.0, handle.0);
        let looked = self.at_once(Op::Poll, || self.is_readable(file, waiter, notifier));
        match looked.unwrap_or(Err(Errno::EIO)) {
            Ok(readable) => reply.poll(if readable { events & ready } else { PollEvents::empty() }),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Op::Opendir, ino, None);
        // The kernel need not ask: it keeps listings until they are invalidated.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let numbers = self.tree.clone();
        self.answer(
            (Op::Readdir, request, ino, None),
            |tree, caller| async move { tree.listing(&caller, ino.0, offset).await },
            move |result| match result {
                Ok(listing) => {
                    for (name, next) in listing.dots() {
                        let _ = reply.add(ino, next, FileType::Directory, name);
                    }
                    for (entry, next) in listing.entries() {
                        let number = INodeNo(numbers.number(entry));
                        if reply.add(number, next, kind(entry.file.kind()), &entry.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let tree = self.tree.clone();
        self.answer(
            (Op::Readdirplus, request, ino, None),
            |tree, caller| async move { tree.listing(&caller, ino.0, offset).await },
            move |result| match result {
                Ok(listing) => {
                    let own = file_attr(ino.0, &tree.dir_attr());
                    for (name, next) in listing.dots() {
                        // The kernel takes only the number from these.
                        let _ = reply.add(ino, next, name, &Duration::ZERO, &own, GENERATION);
                    }
                    for (entry, next) in listing.entries() {
                        // Skips what has gone meanwhile.
                        let Some(listed) = tree.listed(entry) else { continue };
                        let (number, time) = (INodeNo(listed.ino), time_of(&listed));
                        let attr = file_attr(listed.ino, &listed.attr);
                        if reply.add(number, next, &entry.name, &time, &attr, GENERATION) {
                            // It did not fit, so the kernel does not know of it.
                            tree.forget(listed.ino, 1);
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn fsyncdir(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Op::Statfs, ino, None);
        let Ok(usage) = self.at_once(Op::Statfs, || self.tree.usage()) else { return reply.error(Errno::EIO) };
        let (total, free) = (usage.quota / BLOCK, usage.quota.saturating_sub(usage.used) / BLOCK);
        let block = u32::try_from(BLOCK).unwrap_or(0);
        let name_max = u32::try_from(crate::name::NAME_MAX).unwrap_or(0);
        // The space is that of scratch files, since nobody knows how much a topology service has left. So there is
        // always room for as many more records as nobody will ever make, and the free files are never more than all
        // files.
        let free_files = u64::from(u32::MAX);
        reply.statfs(total, free, free, usage.records + free_files, free_files, block, name_max, block);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Getxattr, request, ino, None),
            |tree, _| async move { tree.getxattr(ino.0, &wanted).await },
            reply_xattr(reply, size),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            (Op::Listxattr, request, ino, None),
            |tree, _| async move { tree.listxattr(ino.0).await },
            reply_xattr(reply, size),
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Setxattr, request, ino, None),
            |tree, _| async move { tree.setxattr(ino.0, &wanted) },
            reply_empty(reply),
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let wanted = name.to_owned();
        self.answer(
            (Op::Removexattr, request, ino, None),
            |tree, _| async move { tree.setxattr(ino.0, &wanted) },
            reply_empty(reply),
        );
    }
}
