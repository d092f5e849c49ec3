//! `topofs completions`: a script for a shell.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::Ended;

/// Arguments of `topofs completions`.
#[derive(Debug, Args)]
pub(in crate::cli) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

impl CompletionsArgs {
    /// Prints the script for a command line.
    pub fn run(&self, mut command: clap::Command) -> Ended {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "topofs", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
