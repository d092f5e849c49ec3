//! The helper process of a mount, which raises inotify events.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Ended;
use crate::notify::helper;

/// Arguments of the hidden command.
#[derive(Debug, Args)]
pub(in crate::cli) struct NotifierArgs {
    /// Needed if stderr is not a clone of the mount
    #[arg(requires = "device")]
    mountpoint: Option<PathBuf>,
    device: Option<u64>,
}

impl NotifierArgs {
    /// Raises events until the mount ends.
    pub fn run(&self) -> Ended {
        helper::help(self.mountpoint.clone().zip(self.device))?;
        Ok(ExitCode::SUCCESS)
    }
}
