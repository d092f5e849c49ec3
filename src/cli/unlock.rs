//! `topofs unlock`: shows who holds a lock, and takes it away. All of it through a mount: the daemon knows the services.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::control::{ControlFile, DIR_NAME};

/// Flags of `topofs unlock`.
#[derive(Debug, Args)]
pub(super) struct UnlockArgs {
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

impl UnlockArgs {
    /// Shows, asks, breaks. Says whether the lock is free now.
    pub fn run(&self) -> anyhow::Result<bool> {
        let path = std::path::absolute(&self.path)?;
        let path = path.canonicalize().unwrap_or(path);
        let mount = path.ancestors().find(|dir| dir.join(DIR_NAME).join(ControlFile::Locks.name()).is_file());
        let mount = mount.with_context(|| format!("{} is not in a mount of topofs", path.display()))?;
        let dir = path.strip_prefix(mount)?;
        let dir = if dir.ends_with(".lock") { dir.parent().unwrap_or(dir) } else { dir };
        let name = dir.to_str().filter(|name| !name.is_empty()).context("names no directory of a cell")?;
        // A name that is mistyped must not look like a lock that is free.
        if !mount.join(dir).is_dir() || dir.starts_with(DIR_NAME) {
            bail!("{name} is no directory of a cell");
        }
        let locks = std::fs::read_to_string(mount.join(DIR_NAME).join(ControlFile::Locks.name()))?;
        let lock = find(&locks, &format!("{name}/.lock"));
        let key = match &lock {
            Some(lock) => {
                println!("{lock:#}");
                lock.get("key").and_then(Value::as_str).context("the mount tells no key")?
            }
            None => {
                println!("{name} is not locked.");
                NO_KEY
            }
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
        order(mount, name, key)?;
        if lock.is_some() {
            println!("The lock of {name} is taken away.");
        }
        Ok(true)
    }
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

fn order(mount: &Path, name: &str, key: &str) -> anyhow::Result<()> {
    let control = mount.join(DIR_NAME).join(ControlFile::Control.name());
    let mut file = std::fs::OpenOptions::new().write(true).open(&control)?;
    // One write: the answer is that of the whole order.
    file.write_all(format!("unlock {name} {key}\n").as_bytes()).with_context(|| {
        let errors = mount.join(DIR_NAME).join(ControlFile::Errors.name());
        format!("the lock cannot be taken away; {} may say why", errors.display())
    })
}
