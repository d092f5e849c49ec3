//! The way of root to mount: it makes two mounts of one file system where nobody sees them. One is for the helper and
//! is never shown. The other gets its flags, read-only among them, and is then moved to its place. So no copy that the
//! kernel makes of it in other namespaces may ever be writable, and nothing may be seen before it answers.
//!
//! This needs Linux 5.13. Older kernels show the mount at once with mount(2), and a read-only mount becomes read-only
//! afterwards: copies in namespaces that receive mounts stay writable for the kernel, though not for the daemon.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::mount::MsFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::point::MountPoint;
use super::spec::MountSpec;
use super::table::KIND;
use crate::device::{Device, device_of};

/// Nothing in a topology is a device or a program.
const FLAGS: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);
/// The same, for the newer calls.
const ATTRIBUTES: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOSUID).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A file system that is attached to the kernel.
#[derive(Debug)]
pub(super) struct Attached {
    /// Where its requests come from.
    pub device: OwnedFd,
    /// What the mount table calls it.
    pub number: Device,
    /// A mount of it that nobody sees; not on kernels before 5.2.
    pub hidden: Option<OwnedFd>,
    /// The mount that must still be shown.
    pub unseen: Option<OwnedFd>,
}

impl Attached {
    /// Makes the mount. If the kernel is too old to hide it, it is shown already.
    pub fn new(spec: &MountSpec, point: &mut MountPoint) -> io::Result<Self> {
        use nix::errno::Errno;
        match Self::unseen(spec) {
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                // The errors of kernels that do not know the calls or options, and of filters of calls.
                Errno::ENOSYS | Errno::EINVAL | Errno::EPERM | Errno::EOPNOTSUPP => {
                    tracing::info!(%error, "the newer calls for mounting cannot be used");
                    Self::seen_at_once(spec, point)
                }
                _ => Err(error),
            },
            made => made,
        }
    }

    fn unseen(spec: &MountSpec) -> io::Result<Self> {
        let device = open_device()?;
        let hidden = make(spec, &device, ATTRIBUTES)?;
        let read_only = if spec.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let shown = make(spec, &device, ATTRIBUTES | read_only)?;
        let number = device_of(hidden.as_fd(), OsStr::new(""))?;
        Ok(Self { device, number, hidden: Some(hidden), unseen: Some(shown) })
    }

    /// Shows the mount that was made. Before that, nobody could reach it.
    pub fn show(unseen: &OwnedFd, number: Device, point: &mut MountPoint) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(unseen, "", point.place()?, "", flags)?;
        point.is_mounted(number).inspect_err(|_: &io::Error| {
            // It is somewhere where nobody would look for it.
            let _ = nix::mount::umount2(&super::point::by_descriptor(unseen.as_fd()), nix::mount::MntFlags::MNT_DETACH);
        })
    }

    fn seen_at_once(spec: &MountSpec, point: &mut MountPoint) -> io::Result<Self> {
        let device = open_device()?;
        let mut data = String::new();
        for (key, value) in options(&device) {
            data.push_str(&format!("{key}={value},"));
        }
        data.push_str("default_permissions");
        if spec.allow_other {
            data.push_str(",allow_other");
        }
        let place = super::point::by_descriptor(point.place()?);
        nix::mount::mount(Some(spec.source.as_str()), &place, Some(KIND), FLAGS, Some(data.as_str()))?;
        let before = device_of(point.place()?, OsStr::new(""))?;
        let mut attached = || {
            let number = point.device()?;
            if number == before {
                return Err(io::Error::other("the mount point was moved away while it was mounted on"));
            }
            point.is_mounted(number)?;
            let path = point.by_descriptor();
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let hidden = open_tree(rustix::fs::CWD, &path, clone | OpenTreeFlags::AT_SYMLINK_NOFOLLOW).ok();
            if spec.read_only {
                tracing::warn!("this kernel is too old to keep copies of the mount in other namespaces read-only");
                // Nobody has come further than the root, since nothing has been answered yet: nothing is open for
                // writing.
                let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | FLAGS;
                nix::mount::mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)?;
            }
            Ok((number, hidden))
        };
        let (number, hidden) = attached().inspect_err(|_: &io::Error| {
            // The link of a descriptor leads to what lies under the mount, so only the path is left.
            let flags = nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW;
            let _ = nix::mount::umount2(&spec.mountpoint, flags);
        })?;
        Ok(Self { device, number, hidden, unseen: None })
    }
}

fn open_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| {
        io::Error::new(error.kind(), format!("/dev/fuse: {error} (is the kernel module fuse loaded?)"))
    })?;
    Ok(device.into())
}

/// Options that the kernel insists on.
fn options(device: &OwnedFd) -> [(&'static str, String); 4] {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    [
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", uid.to_string()),
        ("group_id", gid.to_string()),
    ]
}

/// A mount that is nowhere yet. A second one with the same device is of the same file system.
fn make(spec: &MountSpec, device: &OwnedFd, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    /// The kernel takes strings of 255 bytes.
    const LONGEST: usize = 255;
    let (kind, subtype) = KIND.split_once('.').unwrap_or((KIND, ""));
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let end = (0..=LONGEST).rev().find(|end| spec.source.is_char_boundary(*end)).unwrap_or(0);
    fsconfig_set_string(&context, "source", spec.source.get(..end).unwrap_or(&spec.source))?;
    fsconfig_set_string(&context, "subtype", subtype)?;
    for (key, value) in options(device) {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_set_flag(&context, "default_permissions")?;
    if spec.allow_other {
        fsconfig_set_flag(&context, "allow_other")?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
