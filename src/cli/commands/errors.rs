//! `topofs errors`: which operations a mount has refused, for people.

use clap::Args;

use super::Ended;
use crate::cli::listen::{ListenArgs, Told};
use crate::cli::told::{place_of_refusal, refusal};
use crate::control::ControlFile;

/// Flags of `topofs errors`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ErrorsArgs {
    #[command(flatten)]
    listen: ListenArgs,
}

impl ErrorsArgs {
    /// Prints the refusals.
    pub fn run(&self) -> Ended {
        self.listen.run(&Told { file: ControlFile::Errors, place: place_of_refusal, line: refusal })
    }
}
