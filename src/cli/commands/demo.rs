//! `topofs demo`: a sample cluster on a directory.

use std::path::PathBuf;

use clap::Args;

use super::Ended;
use super::mount::{CommonArgs, serve};

/// Flags of `topofs demo`.
#[derive(Debug, Args)]
pub(in crate::cli) struct DemoArgs {
    /// Where to mount: a directory
    #[arg(value_name = "MOUNTPOINT", value_hint = clap::ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl DemoArgs {
    /// Mounts the sample cluster, and serves until the end.
    pub fn run(&self) -> Ended {
        serve(&self.common.process, |log| self.settings(log))
    }
}
