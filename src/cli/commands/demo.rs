//! `topofs demo`: a sample cluster on a directory.

use super::Ended;
use super::mount::{CommonArgs, serve};

impl CommonArgs {
    /// Mounts the sample cluster, and serves until the end.
    pub fn run_demo(&self) -> Ended {
        serve(&self.process, |log| self.demo_settings(log))
    }
}
