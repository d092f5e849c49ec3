//! `topofs remove-keyspace-cell`: a keyspace is no longer served in a cell.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::{Ended, Report};
use crate::cli::flags::lock::LockArgs;
use crate::cli::flags::topo::TopologyArgs;
use crate::cli::interrupt;
use crate::cli::log::Heard;
use crate::topology::lock::Patience;
use crate::topology::remove::Removal;

/// Flags of `topofs remove-keyspace-cell`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveKeyspaceCellArgs {
    /// The keyspace
    #[arg(value_name = "KEYSPACE")]
    keyspace: String,
    /// The cell
    #[arg(value_name = "CELL", value_parser = NonEmptyStringValueParser::new())]
    cell: String,
    /// If the cell does not answer, because you have taken down all of it, leave its records and exit with 0
    #[arg(short, long)]
    force: bool,
    /// Also remove the tablets of the keyspace in the cell
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    lock: LockArgs,
    #[command(flatten)]
    topology: TopologyArgs,
}

impl RemoveKeyspaceCellArgs {
    /// Removes the keyspace from the cell.
    pub fn run(&self) -> Ended {
        self.topology.with_cells(Heard::Warnings, async |cells, _| {
            let patience = Patience { timeout: self.lock.lock_timeout, stop: interrupt::on_signals()? };
            let Self { keyspace, cell, force, recursive, .. } = self;
            let removal = Removal { cells, keyspace, cell, force: *force, recursive: *recursive };
            let mut report = Report::default();
            report.add(&format!("keyspace {keyspace} in cell {cell}"), keyspace, removal.run(&patience).await);
            Ok(report.end())
        })
    }
}
