//! Unmounts a mount of topofs for somebody who is not its daemon. Must never unmount anything else, wherever names lead
//! by now.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::fusermount;
use super::point::{by_descriptor, open_directory};
use super::table::Entry;
use crate::device::device_of;

/// Why a mount stays.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Somebody uses it.
    Busy,
    /// Anything else.
    Other(io::Error),
}

/// Unmounts a mount, where the mount table names it. With `lazy`, a busy mount disappears at once, too, and ends with
/// its last user.
pub(crate) fn unmount(entry: &Entry, lazy: bool) -> Result<(), Refused> {
    let other = |message: &str| Refused::Other(io::Error::other(message.to_owned()));
    let (Some(parent), Some(name)) = (entry.mountpoint.parent(), entry.mountpoint.file_name()) else {
        return Err(other("the root directory stays"));
    };
    // The names of the mount table contain no symbolic links, and none is followed.
    let dir = open_directory(parent).map_err(Refused::Other)?;
    if device_of(dir.as_fd(), name).map_err(Refused::Other)? != entry.device {
        return Err(other("something else has come to its place, or is mounted over it"));
    }
    if !nix::unistd::geteuid().is_root() {
        let flags: &[&str] = if lazy { &["-z"] } else { &[] };
        return fusermount::unmount(flags, &entry.mountpoint).map_err(|error| {
            // The program says it in words only.
            let is_busy = error.to_string().contains(Errno::EBUSY.desc());
            if is_busy { Refused::Busy } else { Refused::Other(error) }
        });
    }
    let lazily = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(&by_descriptor(dir.as_fd()).join(name), MntFlags::UMOUNT_NOFOLLOW | lazily) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(Refused::Busy),
        Err(error) => Err(Refused::Other(error.into())),
    }
}
