//! The mount point: a directory that descriptors hold from the start. Somebody who may rename things on the way to it
//! must never lead a mount, or the end of one, elsewhere. Symbolic links are followed once, when the command line is
//! read.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags, statx};

use super::table::{Entry, KIND, Table};
use crate::device::{Device, device_of, identity, is_dead};

/// How the types of all FUSE mounts begin.
const FUSE: &[u8] = b"fuse";

/// Nothing can be mounted there.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {}: {reason}", path.display())]
pub struct CannotMount {
    path: PathBuf,
    reason: String,
}

impl CannotMount {
    /// With the reason.
    pub fn new(path: &Path, reason: &io::Error) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// The directory that a topology is, or will be, mounted on.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    /// The directory that holds it. Nobody can rename a mount point, so together with the name this is the mount.
    dir: OwnedFd,
    name: OsString,
    /// What was there at the start; `None` once it is mounted on.
    place: Option<OwnedFd>,
}

impl MountPoint {
    /// Takes hold of a directory, or of a dead mount there.
    pub fn open(mountpoint: &Path) -> io::Result<Self> {
        let path = resolve(mountpoint)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the root directory cannot be a mount point"));
        };
        let dir = open_directory(parent)?;
        let place = Some(open_place(&dir, name)?);
        Ok(Self { dir, name: name.to_owned(), place, path })
    }

    /// Its path at the start, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that holds it, and its name there, for the helper.
    pub(super) fn dir_and_name(&self) -> (BorrowedFd<'_>, &OsStr) {
        (self.dir.as_fd(), &self.name)
    }

    /// Refuses a place that holds a mount which must stay: one of topofs that is not dead, or a dead one of another
    /// kind. Changes nothing.
    pub(super) fn look(&self) -> io::Result<()> {
        self.holds_dead_of_ours().map(drop)
    }

    /// Whether the place holds a dead mount of topofs. An error if it holds a mount that must stay.
    fn holds_dead_of_ours(&self) -> io::Result<bool> {
        // Only FUSE reports dead mounts. Nothing else is asked anything: a server may hang, and a place of automount(8)
        // or systemd may wait for us.
        let place = self.place()?;
        let Some(entry) = self.mounted(place)?.filter(|entry| entry.kind.as_bytes().starts_with(FUSE)) else {
            return Ok(false);
        };
        let is_ours = entry.kind == KIND;
        match (is_ours, ask(place)?) {
            (true, Answer::Dead) => Ok(true),
            (true, answer) => {
                let silent = if answer == Answer::Silent { ", and does not answer" } else { "" };
                let source = entry.source.display().to_string();
                let message = format!("topofs is mounted there already{silent} ({})", source.escape_debug());
                Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
            }
            (false, Answer::Dead) => {
                let kind = entry.kind.display().to_string();
                let message =
                    format!("it holds a dead mount of another kind ({}): unmount that first", kind.escape_debug());
                Err(io::Error::other(message))
            }
            (false, _) => Ok(false),
        }
    }

    /// The mount that a place is the root of.
    fn mounted(&self, place: BorrowedFd<'_>) -> io::Result<Option<Entry>> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let found = statx(place, "", flags, StatxFlags::empty())?;
        let device = (found.stx_dev_major, found.stx_dev_minor);
        let is_root = if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
            Some(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        } else {
            // Kernels before 5.8.
            None
        };
        let mut entries = Table::open()?.read()?.into_iter().filter(|entry| entry.device == device);
        Ok(entries.find(|entry| is_root.unwrap_or(entry.mountpoint == self.path)))
    }

    /// Prepares the mount point: removes a dead mount of topofs, so that a restart just works. Refuses a directory that
    /// is no longer the one of the start, and one that holds a mount of topofs that is not dead.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        // There may be one below another.
        while self.holds_dead_of_ours()?
            && let Some(place) = self.place.take()
        {
            tracing::warn!("the mount point holds a dead mount: it is replaced");
            detach(place.as_fd(), &self.path)?;
            self.place = Some(open_place(&self.dir, &self.name)?);
        }
        let now = open_place(&self.dir, &self.name)?;
        if let Some(place) = &self.place
            && identity(place.as_fd())? != identity(now.as_fd())?
        {
            return Err(io::Error::other("the mount point is not the directory any more that it was at the start"));
        }
        let what = statx(&now, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
        if FileType::from_raw_mode(what.stx_mode.into()) != FileType::Directory {
            return Err(io::Error::other("is not a directory"));
        }
        self.place = Some(now);
        Ok(())
    }

    /// The directory to mount on.
    pub(super) fn place(&self) -> io::Result<BorrowedFd<'_>> {
        self.place.as_ref().map(OwnedFd::as_fd).ok_or_else(|| io::Error::other("already mounted"))
    }

    /// Forgets what was there before, since it is mounted on. Fails if something else than the device is mounted there.
    pub(super) fn is_mounted(&mut self, device: Device) -> io::Result<()> {
        self.place = None;
        if self.device()? == device {
            return Ok(());
        }
        Err(io::Error::other("the mount point was moved away while it was mounted on"))
    }

    /// The device of what is mounted topmost. Asks no file system.
    pub(super) fn device(&self) -> io::Result<Device> {
        device_of(self.dir.as_fd(), &self.name)
    }

    /// Whether a device is mounted topmost, and nobody answers for it any more.
    pub(super) fn holds_dead(&self, device: Device) -> bool {
        let topmost = open_place(&self.dir, &self.name);
        topmost.is_ok_and(|root| {
            device_of(root.as_fd(), OsStr::new("")).is_ok_and(|of| of == device)
                && ask(root.as_fd()).is_ok_and(|answer| answer == Answer::Dead)
        })
    }

    /// The path, for calls that need one. It leads to the mount itself, not to what lies under it. The name at its end
    /// is no symbolic link.
    pub(super) fn by_descriptor(&self) -> PathBuf {
        by_descriptor(self.dir.as_fd()).join(&self.name)
    }

    /// Removes a mount, wherever it has been moved. A busy mount disappears from the tree at once.
    pub(super) fn unmount(&self, device: Device) -> io::Result<()> {
        // This needs no descriptor: there may be none left.
        if self.device().is_ok_and(|topmost| topmost == device) {
            unmount(&self.by_descriptor())?;
        }
        let mut table = Table::open()?;
        for entry in table.read()?.into_iter().filter(|entry| entry.device == device) {
            let (Some(parent), Some(name)) = (entry.mountpoint.parent(), entry.mountpoint.file_name()) else {
                continue;
            };
            let taken = open_directory(parent).and_then(|dir| {
                let topmost = device_of(dir.as_fd(), name)? == device;
                if topmost { unmount(&by_descriptor(dir.as_fd()).join(name)).map(|()| true) } else { Ok(false) }
            });
            match taken {
                Ok(true) => {}
                Ok(false) => {
                    let place = entry.mountpoint.display();
                    tracing::warn!(%place, "something else is mounted over the mount point: it is left alone");
                }
                // The copy may also be gone already, with another one.
                Err(error) => {
                    tracing::warn!(%error, place = %entry.mountpoint.display(), "a copy of the mount is left")
                }
            }
        }
        Ok(())
    }
}

fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        Err(nix::Error::EBUSY) => {
            tracing::warn!("the mount is busy: files that are still open will fail");
            Ok(umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
        }
        result => Ok(result?),
    }
}

/// Detaches the mount whose root a descriptor is.
fn detach(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        // The link of a descriptor leads to that very mount.
        return Ok(umount2(&by_descriptor(root), MntFlags::MNT_DETACH)?);
    }
    super::fusermount::unmount(&["-z"], path)
}

/// What a descriptor is open on, as a path.
pub(super) fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn open_place(dir: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens a directory of a path that has no symbolic links.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(nix::fcntl::AT_FDCWD, path, how) {
        // Kernels before 5.6.
        Err(nix::Error::ENOSYS) => Ok(open(path, flags | OFlag::O_NOFOLLOW, Mode::empty())?),
        result => Ok(result?),
    }
}

/// What comes back if a mount is asked something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Nobody answers any more.
    Dead,
    /// An answer, or an error of its own.
    Alive,
    /// Nothing in time: it is unknown.
    Silent,
}

/// Asks a mount whether it lives.
fn ask(place: BorrowedFd<'_>) -> io::Result<Answer> {
    /// A daemon answers this from memory.
    const PATIENCE: Duration = Duration::from_secs(2);
    let place = place.try_clone_to_owned()?;
    let (send, answer) = std::sync::mpsc::sync_channel(1);
    // The thread may wait as long as the daemon likes.
    std::thread::Builder::new().name("statfs".to_owned()).spawn(move || {
        // Attributes may still be in the kernel's cache; what statfs returns is not. It is no error if nobody waits any
        // more.
        let _ = send.send(nix::sys::statvfs::fstatvfs(place));
    })?;
    Ok(match answer.recv_timeout(PATIENCE) {
        Ok(Err(error)) if is_dead(error) => Answer::Dead,
        Ok(_) => Answer::Alive,
        Err(_) => Answer::Silent,
    })
}

/// The absolute path of a mount point. A dead mount there cannot be asked.
fn resolve(mountpoint: &Path) -> io::Result<PathBuf> {
    match mountpoint.canonicalize() {
        Err(error) if is_dead(Errno::from_raw(error.raw_os_error().unwrap_or(0))) => {
            let absolute = std::path::absolute(mountpoint)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(dir), Some(name)) => Ok(dir.canonicalize()?.join(name)),
                _ => Err(error),
            }
        }
        resolved => resolved,
    }
}
