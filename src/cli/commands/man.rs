//! `topofs man`: the pages of the manual.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::Ended;
use crate::cli::manual::Name;

/// Arguments of `topofs man`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ManArgs {
    /// Which page
    #[arg(value_name = "PAGE", default_value = "topofs.1")]
    page: Name,
    /// Write all pages into this directory, each into a file with its name
    #[arg(long, value_name = "DIR", conflicts_with = "page", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

impl ManArgs {
    /// Prints one page, or writes all.
    pub fn run(&self, command: clap::Command) -> Ended {
        let Some(dir) = &self.dir else {
            std::io::stdout().write_all(self.page.render(command).as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for page in Name::ALL {
            let path = dir.join(page.file());
            std::fs::write(&path, page.render(command.clone()))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
