//! `topofs unlock`: shows who holds a lock, and takes it away. It does everything through a mount, because the daemon
//! knows the services.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::{Ended, USAGE};
use crate::cli::host::Host;
use crate::cli::mounted::{Mount, resolved};
use crate::cli::out::Out;
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
    ///
    /// In the only mount of this host, a path may also be written as Vitess does: global/keyspaces/commerce.
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    path: PathBuf,
}

/// The key for a lock that nobody holds: the mount removes what may be left of one.
const NO_KEY: &str = "-";
/// The same, but something must be left, because the directory itself does not exist.
const NO_KEY_BUT_LEFT: &str = "--";

impl UnlockArgs {
    /// Shows, asks, breaks. Succeeds if the lock is free now.
    pub fn run(&self) -> Ended {
        let mut out = Out::default();
        let well = if self.frees(&mut out)? { ExitCode::SUCCESS } else { USAGE.into() };
        Ok(out.end_command(well, USAGE))
    }

    /// The path as Vitess writes it, in the only mount of this host.
    fn in_only_mount(&self) -> Option<PathBuf> {
        let host = Host::read().ok().filter(|_| self.path.is_relative())?;
        let mounts = host.mounts();
        let [(mount, _)] = mounts.as_slice() else { return None };
        self.path.symlink_metadata().is_err().then(|| mount.mountpoint.join(&self.path))
    }

    fn frees(&self, out: &mut Out) -> anyhow::Result<bool> {
        let path = resolved(&std::path::absolute(&self.path)?);
        let (path, mount) = match (Mount::of(&path), self.in_only_mount()) {
            (Ok(mount), _) => (path, mount),
            (Err(_), Some(path)) => (path.clone(), Mount::of(&path)?),
            (Err(error), None) => return Err(error),
        };
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
                out.print(&format!("{lock:#}\n"));
                lock.get("key").and_then(Value::as_str).context("the mount does not show the key of the lock")?
            }
            None if is_there => {
                out.print(&format!("{name} is not locked.\n"));
                NO_KEY
            }
            None => NO_KEY_BUT_LEFT,
        };
        match (&lock, self.force) {
            (Some(_), false) => {
                out.print("Nothing was changed. Use --force to take the lock away.\n");
                return Ok(false);
            }
            (None, false) => return Ok(true),
            (Some(_), true) if !self.yes && !confirmed(out)? => {
                out.print("Nothing was changed.\n");
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
            out.print(&format!("The lock of {name} was taken away.\n"));
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

fn confirmed(out: &mut Out) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("cannot ask for confirmation without a terminal: add --yes");
    }
    out.print("The holder may still be working. Take the lock away? [y/N] ");
    // Nobody agrees to what nobody has seen.
    if !out.flush() {
        return Ok(false);
    }
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
