//! `topofs unlock`: shows who holds a lock, and takes it away. All of it through a mount: the daemon knows the
//! services.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, major, minor};
use serde_json::Value;

use super::{Ended, USAGE};
use crate::control::ControlFile;
use crate::name::{CONTROL_DIR, LOCK_FILE};

/// Flags of `topofs unlock`.
#[derive(Debug, Args)]
pub(in crate::cli) struct UnlockArgs {
    /// Take the lock away from its holder; without this, only show it
    #[arg(long, short)]
    force: bool,
    /// Do not ask; without a terminal nobody can be asked
    #[arg(long, short)]
    yes: bool,
    /// A directory in a mount, or its .lock
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// What stands for a lock that nobody holds: what may be left of one is removed.
const NO_KEY: &str = "-";
/// The same, which must be there: nothing else is.
const NO_KEY_BUT_LEFT: &str = "--";

impl UnlockArgs {
    /// Shows, asks, breaks. Succeeds if the lock is free now.
    pub fn run(&self) -> Ended {
        Ok(if self.frees()? { ExitCode::SUCCESS } else { USAGE.into() })
    }

    fn frees(&self) -> anyhow::Result<bool> {
        let path = resolved(&std::path::absolute(&self.path)?);
        let mount = Mount::of(&path)?;
        let dir = path.strip_prefix(&mount.root)?;
        let dir = if dir.ends_with(LOCK_FILE) { dir.parent().unwrap_or(dir) } else { dir };
        let name = dir.to_str().filter(|name| !name.is_empty()).context("names no directory of a cell")?;
        let locks = mount.read(ControlFile::Locks)?;
        let lock = find(&locks, &format!("{name}/.lock"));
        // A name that is mistyped must not look like a lock that is free; but a lock may be left where nothing else is,
        // also one that holds nobody up but Vitess (an empty directory of ZooKeeper's).
        let is_there = mount.root.join(dir).is_dir();
        if dir.starts_with(CONTROL_DIR) || lock.is_none() && !is_there && !self.force {
            bail!("{name} is no directory of a cell");
        }
        let key = match &lock {
            Some(lock) => {
                println!("{lock:#}");
                lock.get("key").and_then(Value::as_str).context("the mount tells no key")?
            }
            None if is_there => {
                println!("{name} is not locked.");
                NO_KEY
            }
            None => NO_KEY_BUT_LEFT,
        };
        match (&lock, self.force) {
            (Some(_), false) => {
                println!("Nothing is changed without --force.");
                return Ok(false);
            }
            (None, false) => return Ok(true),
            (Some(_), true) if !self.yes && !confirmed()? => {
                println!("Nothing is changed.");
                return Ok(false);
            }
            _ => {}
        }
        match mount.order(name, key) {
            Err(error) if key == NO_KEY_BUT_LEFT && is_not_found(&error) => {
                bail!("{name} is no directory of a cell, and no lock is left there")
            }
            ordered => ordered?,
        }
        if lock.is_some() || key == NO_KEY_BUT_LEFT {
            println!("The lock of {name} is taken away.");
        }
        Ok(true)
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn find(locks: &str, path: &str) -> Option<Value> {
    let lines = locks.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|lock| lock.get("path").and_then(Value::as_str) == Some(path) && lock.get("key").is_some())
}

fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is nobody to ask: add --yes");
    }
    print!("Its holder may still be at work. Take the lock away? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The control directory of a mount. A directory that looks like one may be anybody's, so it is held, and nothing in it
/// is followed anywhere else.
struct Mount {
    root: PathBuf,
    control: OwnedFd,
}

/// The kernel's number of the root of any FUSE file system.
const ROOT_INODE: u64 = 1;
/// What the kernel calls our mounts.
const FILE_SYSTEM: &[u8] = b"fuse.topofs";

impl Mount {
    /// The mount that a path is in.
    fn of(path: &Path) -> anyhow::Result<Self> {
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

    fn read(&self, file: ControlFile) -> anyhow::Result<String> {
        let mut text = String::new();
        self.open(file, OFlag::O_RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn order(&self, name: &str, key: &str) -> anyhow::Result<()> {
        // One write: the answer is that of the whole order.
        let order = format!("unlock {} {}\n", serde_json::Value::from(name), serde_json::Value::from(key));
        self.open(ControlFile::Control, OFlag::O_WRONLY)?.write_all(order.as_bytes()).with_context(|| {
            let errors = self.path(ControlFile::Errors);
            format!("the lock cannot be taken away; {} may say why", errors.display())
        })
    }
}

/// Whether a device is a file system of topofs. Mount points need not be text.
fn is_ours(device: u64) -> anyhow::Result<bool> {
    let mounts = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let number = format!("{}:{}", major(device), minor(device));
    Ok(mounts.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        // Optional fields end with a dash; the type follows.
        fields.nth(2) == Some(number.as_bytes())
            && fields.skip_while(|field| *field != b"-").nth(1) == Some(FILE_SYSTEM)
    }))
}

/// A path without symbolic links, as far as it leads: a lock may be left in a directory that is not there any more.
fn resolved(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match real.map(|(above, real)| (path.strip_prefix(above), real)) {
        Some((Ok(rest), real)) if !rest.as_os_str().is_empty() => real.join(rest),
        Some((_, real)) => real,
        None => path.to_owned(),
    }
}
