//! `topofs events`: what happens in a mounted topology, for people.

use clap::Args;

use super::Ended;
use crate::cli::listen::{ListenArgs, Told};
use crate::cli::told::{event, place_of_event};
use crate::control::ControlFile;

/// Flags of `topofs events`.
#[derive(Debug, Args)]
pub(in crate::cli) struct EventsArgs {
    #[command(flatten)]
    listen: ListenArgs,
}

impl EventsArgs {
    /// Prints the events.
    pub fn run(&self) -> Ended {
        self.listen.run(&Told { file: ControlFile::Events, place: place_of_event, line: event })
    }
}
