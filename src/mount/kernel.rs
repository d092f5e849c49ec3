//! The mount itself: attaching to the kernel and letting go.
//!
//! root mounts with mount(2), because fuser's own way leaves the type `fuse` and cannot say `fuse.topofs`; everybody else
//! through fusermount3.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use nix::mount::{MntFlags, MsFlags};
use tokio::sync::watch;

use super::notifier::{self, Helpers, Way};
use super::teller;
use crate::fuse::{Adapter, Caches};
use crate::tree::Tree;

/// What /proc/mounts shows as the type, after `fuse.`.
const SUBTYPE: &str = "topofs";
/// Nothing in a topology is a device or a program of somebody else's.
const FLAGS: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID);

/// How to mount.
#[derive(Debug, Clone)]
pub(super) struct MountSpec {
    /// An absolute path.
    pub mountpoint: PathBuf,
    /// What /proc/mounts shows as the source: no secrets.
    pub source: String,
    pub allow_other: bool,
    pub read_only: bool,
    /// Session threads.
    pub threads: usize,
}

/// A mount that answers.
#[derive(Debug)]
pub(super) struct KernelMount {
    mountpoint: PathBuf,
    handle: Handle,
    ended: watch::Receiver<bool>,
}

#[derive(Debug)]
enum Handle {
    /// Made by mount(2), with the kernel's number of the mount.
    Own(i32),
    /// Made by fusermount3.
    Helper(SessionUnmounter),
}

impl KernelMount {
    /// Mounts and starts answering.
    pub fn start(adapter: Adapter, spec: &MountSpec, tree: &Arc<Tree>) -> io::Result<Self> {
        clear_dead_mount(&spec.mountpoint)?;
        let mut config = Config::default();
        config.acl = if spec.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(spec.threads);
        config.clone_fd = true;
        let (session, handle, clone, own) = if nix::unistd::geteuid().is_root() {
            let device = mount_as_root(spec)?;
            let own = device.try_clone()?;
            let attach = || {
                let id = mount_id(&spec.mountpoint)?;
                // Kernels before 5.2 have no clones.
                let clone = notifier::clone_of(&spec.mountpoint).ok();
                if spec.read_only {
                    // Nobody has come further than the root yet, since nothing has been answered: nothing is open for writing.
                    make_read_only(&spec.mountpoint)?;
                    tree.open_unasked();
                }
                Ok((Session::from_fd(adapter, device, config.acl, config)?, Handle::Own(id), clone, Some(own)))
            };
            attach().inspect_err(|_: &io::Error| {
                // The device is closed: what is left is a dead mount, and the first error is the one to tell.
                let _ = nix::mount::umount2(&spec.mountpoint, MntFlags::MNT_DETACH);
            })?
        } else {
            config.mount_options = vec![
                // fusermount3 takes a list: a comma in a name would begin another option.
                MountOption::FSName(spec.source.replace('\\', "\\\\").replace(',', "\\,")),
                MountOption::Subtype(SUBTYPE.to_owned()),
                MountOption::DefaultPermissions,
            ];
            let mut session = Session::new(adapter, &spec.mountpoint, &config).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    io::Error::new(error.kind(), format!("{error} (may you open /dev/fuse, and is fusermount3 there?)"))
                }
                _ => error,
            })?;
            let unmounter = session.unmount_callable();
            (session, Handle::Helper(unmounter), None, None)
        };
        tree.use_caches(Arc::new(Caches::new(session.notifier(), own)), spec.threads);
        let (end, ended) = watch::channel(false);
        std::thread::Builder::new().name("session".to_owned()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the session has ended with an error");
            }
            // Nobody listening is not an error.
            let _ = end.send(true);
        })?;
        let mut mount = Self { mountpoint: spec.mountpoint.clone(), handle, ended };
        if let Err(error) = mount.start_notifier(tree, clone) {
            // Nobody would ever unmount it.
            mount.unmount()?;
            return Err(error);
        }
        Ok(mount)
    }

    /// Starts telling of what happens elsewhere, through a clone of the mount where there is one.
    fn start_notifier(&self, tree: &Arc<Tree>, clone: Option<OwnedFd>) -> io::Result<()> {
        let way = match clone {
            Some(clone) => Way::Clone(clone),
            None => Way::Path(self.mountpoint.clone(), notifier::device_of(&self.mountpoint)?),
        };
        let helpers = Helpers::new(way);
        if let Handle::Own(id) = self.handle {
            notifier::end_with_mount(helpers.clone(), move || is_attached(id))?;
        }
        teller::serve(helpers, tree.clone(), tokio::runtime::Handle::current())
    }

    /// Waits until the mount is gone.
    pub async fn ended(&mut self) {
        // An error means that the session thread is gone, which is the same.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Unmounts; a busy mount disappears from the tree at once, and its open files end with this process.
    pub fn unmount(&mut self) -> io::Result<()> {
        match &mut self.handle {
            Handle::Helper(unmounter) => unmounter.unmount(),
            Handle::Own(id) => {
                if mount_id(&self.mountpoint).ok() != Some(*id) {
                    tracing::warn!("something else is mounted over the mount point: it is left alone");
                    return Ok(());
                }
                match nix::mount::umount2(&self.mountpoint, MntFlags::UMOUNT_NOFOLLOW) {
                    Err(nix::Error::EBUSY) => {
                        tracing::warn!("the mount is busy: files that are still open will fail");
                        Ok(nix::mount::umount2(&self.mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
                    }
                    result => Ok(result?),
                }
            }
        }
    }
}

/// Whether a mount is still in the tree.
fn is_attached(id: i32) -> bool {
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo());
    mounts.is_ok_and(|mounts| mounts.0.iter().any(|mount| mount.mnt_id == id))
}

fn mount_as_root(spec: &MountSpec) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| {
        io::Error::new(error.kind(), format!("/dev/fuse: {error} (is the kernel module fuse loaded?)"))
    })?;
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if spec.allow_other {
        data.push_str(",allow_other");
    }
    let kind = format!("fuse.{SUBTYPE}");
    nix::mount::mount(Some(spec.source.as_str()), &spec.mountpoint, Some(kind.as_str()), FLAGS, Some(data.as_str()))?;
    Ok(device.into())
}

/// Makes the visible mount read-only, not its clone. Fails while somebody has something open for writing.
fn make_read_only(mountpoint: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | FLAGS;
    Ok(nix::mount::mount(None::<&str>, mountpoint, None::<&str>, flags, None::<&str>)?)
}

/// The kernel's number of the topmost mount at a path.
fn mount_id(mountpoint: &Path) -> io::Result<i32> {
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo()).map_err(io::Error::other)?;
    let topmost = mounts.0.iter().rfind(|mount| unescape(&mount.mount_point) == mountpoint);
    topmost.map(|mount| mount.mnt_id).ok_or_else(|| io::Error::other("not mounted"))
}

/// The path that mountinfo means: white space and backslashes are three octal digits there.
fn unescape(path: &Path) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    let mut rest = path.as_os_str().as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let code = others.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = others.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// A mount whose daemon has died answers every call with ENOTCONN: it is taken away, so that a restart just works.
fn clear_dead_mount(mountpoint: &Path) -> io::Result<()> {
    // Attributes may still be in the kernel's cache; this is not.
    let alive = nix::sys::statvfs::statvfs(mountpoint).map_err(io::Error::from);
    match alive.and_then(|_| std::fs::metadata(mountpoint)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            tracing::warn!("the mount point holds a dead mount: it is replaced");
            detach(mountpoint)?;
            std::fs::metadata(mountpoint)?
        }
        metadata => metadata?,
    }
    .is_dir()
    .then_some(())
    .ok_or_else(|| io::Error::other("is not a directory"))
}

fn detach(mountpoint: &Path) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(nix::mount::umount2(mountpoint, MntFlags::MNT_DETACH)?);
    }
    let status = std::process::Command::new("fusermount3").arg("-uzq").arg("--").arg(mountpoint).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("fusermount3 cannot unmount it")) }
}
