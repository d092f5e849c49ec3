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

/// Exit status of a failed mount, as in mount(8).
const FAILURE: u8 = 32;

/// Flags of `topofs mount`.
#[derive(Debug, Args)]
pub(in crate::cli) struct MountArgs {
    #[command(flatten)]
    pub topo: TopoArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of every mount, also of `topofs demo`.
#[derive(Debug, Args)]
pub(in crate::cli) struct CommonArgs {
    #[command(flatten)]
    pub view: ViewArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Where to mount: a directory
    #[arg(value_name = "MOUNTPOINT", value_hint = clap::ValueHint::DirPath)]
    pub mountpoint: PathBuf,
}

impl MountArgs {
    /// Mounts, and serves until the end.
    pub fn run(&self) -> Ended {
        serve(&self.common.process, |log| self.settings(log))
    }
}

/// Serves the mount, in the background if the flags say so. Fails if the command line is wrong. A mount that fails,
/// here or in the child, has its own exit status.
pub(super) fn serve(args: &ProcessArgs, settings: impl FnOnce(SetLogLevel) -> anyhow::Result<Settings>) -> Ended {
    let inherited = confine::Inherited::note();
    confine::daemon().context("cannot keep passwords out of core dumps")?;
    // From here on, every panic in the daemon is recorded.
    alive::note_panics();
    // Opens all files here, because their names may be relative, and the daemon leaves the current directory.
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
