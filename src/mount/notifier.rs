//! Makes the calls that let the kernel raise inotify events for what happens elsewhere: on a thread of its own, through a clone
//! of the mount that nobody sees (root), or by path (others). Never from a request's thread: the kernel would wait for us.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;

use crate::tree::{Happened, Job, Tree};

/// How calls get into the mount.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// A clone of the mount, not attached anywhere. It keeps the mount alive, so it is let go when the visible one is gone.
    Clone(Arc<Mutex<Option<OwnedFd>>>),
    /// The mount point, and the device that must be mounted there.
    Path(PathBuf, u64),
}

/// A clone of the mount at a path. Needs CAP_SYS_ADMIN.
#[allow(unsafe_code)]
pub(super) fn clone_of(mountpoint: &Path) -> io::Result<OwnedFd> {
    /// linux/mount.h
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC.cast_unsigned();
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a string that ends with NUL and lives across the call; libc has no function for it.
    let number = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    match i32::try_from(number) {
        // SAFETY: the kernel has just given us this descriptor.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts making calls.
pub(super) fn start(tree: Arc<Tree>, way: Way, runtime: tokio::runtime::Handle) -> io::Result<()> {
    let Some(mut jobs) = tree.jobs() else { return Ok(()) };
    std::thread::Builder::new().name("notifier".to_owned()).spawn(move || {
        tree.echo_from(nix::unistd::gettid().as_raw().cast_unsigned());
        while let Some(job) = jobs.blocking_recv() {
            let Some(size) = runtime.block_on(tree.begin_echo(&job)) else { continue };
            if let Err(error) = tell(&way, &job, size) {
                tracing::debug!(path = job.path(), happened = ?job.happened, %error, "an event could not be raised");
            }
            tree.end_echo();
        }
    })?;
    Ok(())
}

fn tell(way: &Way, job: &Job, size: u64) -> io::Result<()> {
    match way {
        Way::Clone(clone) => {
            // A descriptor of our own: the clone may be let go meanwhile.
            let root = clone.lock().as_ref().map(OwnedFd::try_clone).transpose()?;
            root.map_or(Ok(()), |root| call(root.as_fd(), job, size))
        }
        Way::Path(mountpoint, device) => {
            let root = nix::fcntl::open(mountpoint, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            // Where the mount is gone, this is somebody else's directory.
            if fstat(&root)?.st_dev != *device {
                return Ok(());
            }
            call(root.as_fd(), job, size)
        }
    }
}

fn call(root: BorrowedFd<'_>, job: &Job, size: u64) -> io::Result<()> {
    let path = job.path();
    let path = path.as_str();
    let write = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match job.happened {
        Happened::Changed => {
            let file = openat(root, path, write, Mode::empty())?;
            nix::unistd::ftruncate(&file, size.cast_signed())?;
        }
        Happened::Created => drop(openat(root, path, write | OFlag::O_CREAT | OFlag::O_EXCL, Mode::S_IRUSR)?),
        Happened::Deleted => unlinkat(root, path, UnlinkatFlags::NoRemoveDir)?,
        Happened::DirMade => nix::sys::stat::mkdirat(root, path, Mode::S_IRWXU)?,
        Happened::DirRemoved => unlinkat(root, path, UnlinkatFlags::RemoveDir)?,
    }
    Ok(())
}

/// The device of what is mounted at a path.
pub(super) fn device_of(mountpoint: &Path) -> io::Result<u64> {
    Ok(nix::sys::stat::fstatat(nix::fcntl::AT_FDCWD, mountpoint, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_dev)
}

/// Lets go of a clone as soon as the visible mount has gone.
pub(super) fn let_go_with(clone: Arc<Mutex<Option<OwnedFd>>>, is_mounted: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let table = std::fs::File::open("/proc/self/mountinfo")?;
    std::thread::Builder::new().name("mountinfo".to_owned()).spawn(move || {
        while is_mounted() {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            // The kernel says so when any mount comes or goes.
            let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
            let _ = poll(&mut fds, PollTimeout::from(1_000_u16));
        }
        tracing::debug!(fd = table.as_raw_fd(), "the mount is gone from the tree");
        drop(clone.lock().take());
    })?;
    Ok(())
}
