//! `topofs mount`: a topology on a directory.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
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
use crate::error::Kind;
use crate::mount::{self, Manager, Readiness, Settings, Side};

/// Exit status of a failed mount, as in mount(8).
pub(in crate::cli) const FAILURE: u8 = 32;

/// Whether a mount is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Fake {
    No,
    /// The command line is checked, and the files that it names.
    Yes,
}

/// Flags of `topofs mount`.
#[derive(Debug, Args)]
pub(in crate::cli) struct MountArgs {
    /// The topology, in place of the flags that say which: IMPLEMENTATION:SERVERS/ROOT, tee:PRIMARY;SECONDARY, or demo
    ///
    /// For example etcd2:http://host:2379/vitess/global. /proc/mounts shows it as it is written here.
    // A word without a source before it is the mount point.
    #[arg(value_name = "SOURCE", value_hint = clap::ValueHint::DirPath)]
    first: Option<OsString>,
    /// Where to mount: a directory
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "first", value_hint = clap::ValueHint::DirPath)]
    second: Option<PathBuf>,
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
}

impl MountArgs {
    /// Mounts, and serves until the end.
    pub fn run(&self, fake: Fake) -> Ended {
        match fake {
            Fake::No => serve(&self.common.process, |log| self.settings(log)),
            Fake::Yes => self.settings(Box::new(|_| Ok(()))).map(|_| ExitCode::SUCCESS),
        }
    }

    /// The topology, if it is not said by flags.
    pub fn source(&self) -> Option<&OsStr> {
        self.second.as_ref().and(self.first.as_deref())
    }

    /// Where to mount. A word alone is not a source.
    pub fn mountpoint(&self) -> &Path {
        let alone = self.first.as_deref().map(Path::new);
        self.second.as_deref().or(alone).unwrap_or(Path::new(""))
    }
}

/// Serves the mount, in the background if the flags say so. Fails if the command line is wrong. A mount that fails,
/// here or in the child, has its own exit status.
pub(super) fn serve(args: &ProcessArgs, settings: impl FnOnce(SetLogLevel) -> anyhow::Result<Settings>) -> Ended {
    if !args.options.is_empty() {
        anyhow::bail!("-o must be a word of its own, or be followed by its list at once");
    }
    let inherited = confine::Inherited::note();
    let manager = Manager::of_environment(args.stays());
    confine::enough_files()?;
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
            Side::Parent(Ok(daemon)) => {
                manager.handed_over(daemon.as_raw().cast_unsigned());
                return Ok(ExitCode::SUCCESS);
            }
            Side::Parent(Err(failed)) => {
                complain(&failed.reason);
                return Ok(failed.status.into());
            }
            Side::Child(ready) => ready,
        }
    };
    let Err(error) = mount::serve(settings, ready.clone(), &manager) else { return Ok(ExitCode::SUCCESS) };
    manager.say(&format!("failed: {error}"));
    match error.kind {
        // Somebody wanted it.
        Kind::Interrupted => tracing::info!("{error}"),
        _ => tracing::error!("{error}"),
    }
    // If somebody waits for the mount, they say why there is none.
    if !ready.fail(&error.to_string()) {
        complain(&error.to_string());
    }
    Ok(FAILURE.into())
}
