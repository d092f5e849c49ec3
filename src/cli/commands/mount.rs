//! `topofs mount`: a topology on a directory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::{Ended, complain};
use crate::alive;
use crate::cli::flags::process::ProcessArgs;
use crate::cli::flags::topo::TopoArgs;
use crate::cli::flags::view::ViewArgs;
use crate::cli::log;
use crate::confine;
use crate::control::SetLogLevel;
use crate::mount::{self, Readiness, Settings, Side};

/// Exit status of a mount that failed, as mount(8) has it.
const FAILURE: u8 = 32;

/// Flags of `topofs mount`.
#[derive(Debug, Args)]
pub(in crate::cli) struct MountArgs {
    #[command(flatten)]
    pub topo: TopoArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of every mount; those of `topofs demo`.
#[derive(Debug, Args)]
pub(in crate::cli) struct CommonArgs {
    #[command(flatten)]
    pub view: ViewArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Where to mount: a directory
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

impl MountArgs {
    /// Mounts, and serves until the end.
    pub fn run(&self) -> Ended {
        serve(&self.common.process, |log| self.settings(log))
    }
}

/// Goes to the background if wanted, and serves there. Fails if the command line is wrong; a mount that fails, here or
/// in the child, has an exit status of its own.
pub(super) fn serve(args: &ProcessArgs, settings: impl FnOnce(SetLogLevel) -> anyhow::Result<Settings>) -> Ended {
    let inherited = confine::Inherited::note();
    confine::daemon().context("cannot keep passwords out of core dumps")?;
    // Whatever panics in the daemon is noted from here on.
    alive::note_panics();
    // All files are opened here: their names are relative to a directory that the daemon leaves.
    let settings = settings(log::start(args)?)?;
    inherited.close();
    let ready = if args.stays() {
        Readiness::nobody_waits()
    } else {
        match mount::detach(FAILURE).context("cannot go to the background")? {
            Side::Parent(Ok(())) => return Ok(ExitCode::SUCCESS),
            Side::Parent(Err(failed)) => return Ok(failed.into()),
            Side::Child(ready) => ready,
        }
    };
    let Err(error) = mount::serve(settings, ready) else { return Ok(ExitCode::SUCCESS) };
    tracing::error!("{error}");
    complain(&error.to_string());
    Ok(FAILURE.into())
}
