//! fuser's types and ours: what is translated without deciding anything.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr, TimeOrNow};

use super::{ABSENT, BLOCK, GENERATION, LASTING, ROOT_LASTING};
use crate::tree::{Attr, OpenMode, Opened, ROOT};

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    /// What st_blocks counts in, in bytes.
    const SECTOR: u64 = 512;
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(SECTOR),
        atime: attr.accessed,
        mtime: attr.modified,
        ctime: attr.changed,
        crtime: attr.changed,
        kind: kind(attr.is_dir),
        perm: u16::try_from(attr.mode).unwrap_or(0),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: u32::try_from(BLOCK).unwrap_or(0),
        flags: 0,
    }
}

pub(super) fn kind(is_dir: bool) -> FileType {
    if is_dir { FileType::Directory } else { FileType::RegularFile }
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

pub(super) fn open_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, !opened.cached);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.kept);
    flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.flushed);
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

pub(super) fn reply_entry(reply: ReplyEntry) -> impl FnOnce(std::result::Result<Attr, Errno>) + Send {
    |result| match result {
        Ok(attr) => reply.entry(&time_of(&attr), &file_attr(&attr), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// As for an entry; without one, the kernel may keep for a moment that there is none, which is said with inode number 0.
pub(super) fn reply_found(
    reply: ReplyEntry,
    none: Attr,
) -> impl FnOnce(std::result::Result<Option<Attr>, Errno>) + Send {
    move |result| match result {
        Ok(Some(attr)) => reply.entry(&time_of(&attr), &file_attr(&attr), GENERATION),
        Ok(None) => reply.entry(&ABSENT, &file_attr(&none), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// How long the kernel may keep what it is told of a file.
pub(super) fn time_of(attr: &Attr) -> Duration {
    match attr {
        Attr { lasting: false, .. } => Duration::ZERO,
        Attr { ino: ROOT, .. } => ROOT_LASTING,
        _ => LASTING,
    }
}

pub(super) fn reply_attr(reply: ReplyAttr) -> impl FnOnce(std::result::Result<Attr, Errno>) + Send {
    |result| match result {
        Ok(attr) => reply.attr(&time_of(&attr), &file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32) -> impl FnOnce(std::result::Result<Vec<u8>, Errno>) + Send {
    move |result| match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}
