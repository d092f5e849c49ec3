//! The device of a file, by which a mount is known, and the errors by which a dead one is. Must never ask the file
//! system itself.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxFlags, statx};

/// The device of a mounted file system: major and minor number.
pub(crate) type Device = (u32, u32);

/// The device of what a name in a directory leads to, or of the descriptor itself if the name is empty. No file system
/// is asked.
pub(crate) fn device_of(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Device> {
    let empty = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC | empty;
    let found = statx(dir, name, flags, StatxFlags::empty())?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
}

/// Device and inode number of what a descriptor is open on. No file system is asked.
pub(crate) fn identity(file: BorrowedFd<'_>) -> io::Result<(Device, u64)> {
    let found = statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok(((found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
}

/// Whether this is the answer of a mount whose daemon is gone. Who asked while it went hears of an abortion.
pub(crate) fn is_dead(answer: Errno) -> bool {
    matches!(answer, Errno::ENOTCONN | Errno::ECONNABORTED)
}
