//! Translates between fuser's types and ours. Must never decide anything.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr, TimeOrNow};

use super::{ABSENT, BLOCK, GENERATION, LASTING, ROOT_LASTING};
use crate::tree::{Attr, Caching, Entry, FileKind, OpenMode, ROOT};

pub(super) fn file_attr(ino: u64, attr: &Attr) -> FileAttr {
    /// What st_blocks counts in, in bytes.
    const SECTOR: u64 = 512;
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: attr.size.div_ceil(SECTOR),
        atime: attr.accessed,
        mtime: attr.modified,
        ctime: attr.changed,
        crtime: attr.changed,
        kind: kind(attr.kind),
        perm: u16::try_from(attr.mode).unwrap_or(0),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: u32::try_from(BLOCK).unwrap_or(0),
        flags: 0,
    }
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
    }
}

pub(super) fn open_mode(flags: i32) -> OpenMode {
    let access = flags & libc::O_ACCMODE;
    OpenMode {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        direct: flags & libc::O_DIRECT != 0,
    }
}

pub(super) fn open_flags(caching: Caching) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, !caching.cached);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, caching.kept);
    flags.set(FopenFlags::FOPEN_NOFLUSH, !caching.flushed);
    flags
}

pub(super) fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty) -> impl FnOnce(std::result::Result<(), Errno>) + Send {
    |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn reply_entry(reply: ReplyEntry) -> impl FnOnce(std::result::Result<Entry, Errno>) + Send {
    |result| match result {
        Ok(entry) => reply.entry(&time_of(&entry), &file_attr(entry.ino, &entry.attr), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// Replies with an entry. Without one, the kernel may keep for a moment that there is none: inode number 0 says so.
pub(super) fn reply_found(
    reply: ReplyEntry,
    none: Attr,
) -> impl FnOnce(std::result::Result<Option<Entry>, Errno>) + Send {
    move |result| match result {
        Ok(Some(entry)) => reply.entry(&time_of(&entry), &file_attr(entry.ino, &entry.attr), GENERATION),
        Ok(None) => reply.entry(&ABSENT, &file_attr(0, &none), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// How long the kernel may keep a reply about a file.
pub(super) fn time_of(entry: &Entry) -> Duration {
    match entry {
        Entry { lasting: false, .. } => Duration::ZERO,
        Entry { ino: ROOT, .. } => ROOT_LASTING,
        _ => LASTING,
    }
}

pub(super) fn reply_attr(reply: ReplyAttr) -> impl FnOnce(std::result::Result<Entry, Errno>) + Send {
    |result| match result {
        Ok(entry) => reply.attr(&time_of(&entry), &file_attr(entry.ino, &entry.attr)),
        Err(errno) => reply.error(errno),
    }
}

/// What a call hears that names an inode which is gone. The kernel had kept a name that leads there; it looks the name
/// up again after ESTALE, as it does for NFS: who may make the file makes it, who finds another file there gets that,
/// and everybody else is told ENOENT.
pub(super) fn looked_up_again(errno: Errno) -> Errno {
    if errno.code() == libc::ENOENT { Errno::ESTALE } else { errno }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32) -> impl FnOnce(std::result::Result<Vec<u8>, Errno>) + Send {
    move |result| match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}
