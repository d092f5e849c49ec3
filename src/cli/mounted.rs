//! A mount that a path is in, for commands that work through one: the daemon knows the services.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, major, minor};

use super::ask::MOST;
use crate::control::ControlFile;
use crate::device::Device;
use crate::mount::Table;
use crate::name::CONTROL_DIR;

/// The control directory of a mount. Anybody may make a directory that looks like one, so it is kept open, and no path
/// in it may lead anywhere else.
pub(super) struct Mount {
    /// Where it is.
    pub root: PathBuf,
    /// Which file system it is.
    pub device: Device,
    control: OwnedFd,
}

/// The kernel's number of the root of any FUSE file system.
const ROOT_INODE: u64 = 1;

impl Mount {
    /// The mount that a path is in.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        for dir in path.ancestors() {
            if let Some(mount) = Self::at(dir)? {
                return Ok(mount);
            }
        }
        bail!("{} is not in a mount of topofs", path.display())
    }

    /// The mount whose root a directory is, if it is one.
    pub fn at(dir: &Path) -> anyhow::Result<Option<Self>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(root) = nix::fcntl::open(dir, flags, Mode::empty()) else { return Ok(None) };
        let stat = fstat(&root)?;
        let device = number(stat.st_dev)?;
        if stat.st_ino != ROOT_INODE || !is_ours(device)? {
            return Ok(None);
        }
        let control = openat(&root, CONTROL_DIR, flags, Mode::empty())?;
        if fstat(&control)?.st_dev != stat.st_dev {
            bail!("something else is mounted at {}", dir.join(CONTROL_DIR).display());
        }
        Ok(Some(Self { root: dir.to_owned(), device, control }))
    }

    /// A file in it, for reading.
    pub fn file(&self, file: ControlFile) -> anyhow::Result<File> {
        self.open(file, OFlag::O_RDONLY)
    }

    fn open(&self, file: ControlFile, how: OFlag) -> anyhow::Result<File> {
        let opened = openat(&self.control, file.name(), how | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let opened = opened.with_context(|| self.path(file).display().to_string())?;
        if fstat(&opened)?.st_dev != fstat(&self.control)?.st_dev {
            bail!("something else is mounted at {}", self.path(file).display());
        }
        Ok(opened.into())
    }

    fn path(&self, file: ControlFile) -> PathBuf {
        self.root.join(CONTROL_DIR).join(file.name())
    }

    /// The content of a file in it.
    pub fn read(&self, file: ControlFile) -> anyhow::Result<String> {
        let mut text = String::new();
        self.open(file, OFlag::O_RDONLY)?.take(MOST as u64 + 1).read_to_string(&mut text)?;
        if text.len() > MOST {
            bail!("{} is longer than topofs makes it", self.path(file).display());
        }
        Ok(text)
    }

    /// Takes a lock away.
    pub fn order(&self, name: &str, key: &str) -> anyhow::Result<()> {
        // One write, so its answer is for the whole command.
        let order = format!("unlock {} {}\n", serde_json::Value::from(name), serde_json::Value::from(key));
        self.open(ControlFile::Control, OFlag::O_WRONLY)?.write_all(order.as_bytes()).with_context(|| {
            let errors = self.path(ControlFile::Errors);
            format!("cannot take the lock away; {} may say why", errors.display())
        })
    }
}

fn number(device: u64) -> anyhow::Result<Device> {
    Ok((major(device).try_into()?, minor(device).try_into()?))
}

/// Whether a device is a file system of topofs.
fn is_ours(device: Device) -> anyhow::Result<bool> {
    let mounts = Table::open()?.read().context("/proc/self/mountinfo")?;
    Ok(mounts.iter().any(|entry| entry.device == device && entry.is_ours()))
}

/// The path without symbolic links, as far as it exists: a lock may be left in a directory that no longer exists.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match real.map(|(above, real)| (path.strip_prefix(above), real)) {
        Some((Ok(rest), real)) if !rest.as_os_str().is_empty() => real.join(rest),
        Some((_, real)) => real,
        None => path.to_owned(),
    }
}
