//! `topofs unlock`: shows who holds a lock, and takes it away. It does everything through a mount, because the daemon
//! knows the services.

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
    /// Take the lock away from its holder; without this flag, only show it
    #[arg(long, short)]
    force: bool,
    /// Do not ask for confirmation; needed without a terminal
    #[arg(long, short)]
    yes: bool,
    /// A directory in a mount, or its .lock
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// The key for a lock that nobody holds: the mount removes what may be left of one.
const NO_KEY: &str = "-";
/// The same, but something must be left, because the directory itself does not exist.
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
        let name = dir.to_str().filter(|name| !name.is_empty()).context("the path is not a directory of a cell")?;
        let locks = mount.read(ControlFile::Locks)?;
        let lock = find(&locks, &format!("{name}/.lock"));
        // A mistyped name must not look like a free lock. But a lock may be left where nothing else exists, even one
        // that blocks only Vitess (an empty directory in ZooKeeper).
        let is_there = mount.root.join(dir).is_dir();
        if dir.starts_with(CONTROL_DIR) || lock.is_none() && !is_there && !self.force {
            bail!("{name} is not a directory of a cell");
        }
        let key = match &lock {
            Some(lock) => {
                println!("{lock:#}");
                lock.get("key").and_then(Value::as_str).context("the mount does not show the key of the lock")?
            }
            None if is_there => {
                println!("{name} is not locked.");
                NO_KEY
            }
            None => NO_KEY_BUT_LEFT,
        };
        match (&lock, self.force) {
            (Some(_), false) => {
                println!("Nothing was changed. Use --force to take the lock away.");
                return Ok(false);
            }
            (None, false) => return Ok(true),
            (Some(_), true) if !self.yes && !confirmed()? => {
                println!("Nothing was changed.");
                return Ok(false);
            }
            _ => {}
        }
        match mount.order(name, key) {
            Err(error) if key == NO_KEY_BUT_LEFT && is_not_found(&error) => {
                bail!("{name} is not a directory of a cell, and no lock is left there")
            }
            ordered => ordered?,
        }
        if lock.is_some() || key == NO_KEY_BUT_LEFT {
            println!("The lock of {name} was taken away.");
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
        bail!("cannot ask for confirmation without a terminal: add --yes");
    }
    print!("The holder may still be working. Take the lock away? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The control directory of a mount. Anybody may make a directory that looks like one, so it is kept open, and no path
/// in it may lead anywhere else.
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
fn resolved(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match real.map(|(above, real)| (path.strip_prefix(above), real)) {
        Some((Ok(rest), real)) if !rest.as_os_str().is_empty() => real.join(rest),
        Some((_, real)) => real,
        None => path.to_owned(),
    }
}
