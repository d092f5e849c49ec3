//! A mount that a path is in, for commands that work through one: the daemon knows the services.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, major, minor};

use crate::control::ControlFile;
use crate::name::CONTROL_DIR;

/// The control directory of a mount. Anybody may make a directory that looks like one, so it is kept open, and no path
/// in it may lead anywhere else.
pub(super) struct Mount {
    /// Where it is.
    pub root: PathBuf,
    control: OwnedFd,
}

/// The kernel's number of the root of any FUSE file system.
const ROOT_INODE: u64 = 1;
/// What the kernel calls our mounts.
const FILE_SYSTEM: &[u8] = b"fuse.topofs";

impl Mount {
    /// The mount that a path is in.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        for dir in path.ancestors() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let Ok(root) = nix::fcntl::open(dir, flags, Mode::empty()) else { continue };
            let stat = fstat(&root)?;
            if stat.st_ino != ROOT_INODE || !is_ours(stat.st_dev)? {
                continue;
            }
            let control = openat(&root, CONTROL_DIR, flags, Mode::empty())?;
            if fstat(&control)?.st_dev != stat.st_dev {
                bail!("something else is mounted at {}", dir.join(CONTROL_DIR).display());
            }
            return Ok(Self { root: dir.to_owned(), control });
        }
        bail!("{} is not in a mount of topofs", path.display())
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
        self.open(file, OFlag::O_RDONLY)?.read_to_string(&mut text)?;
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

/// Whether a device is a file system of topofs. Mount points need not be text.
fn is_ours(device: u64) -> anyhow::Result<bool> {
    let mounts = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let number = format!("{}:{}", major(device), minor(device));
    Ok(mounts.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        // The optional fields end with a dash, then comes the type.
        fields.nth(2) == Some(number.as_bytes())
            && fields.skip_while(|field| *field != b"-").nth(1) == Some(FILE_SYSTEM)
    }))
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
