//! `topofs rebuild-keyspace-graph`: SrvKeyspace records from Keyspace and Shard records.

use std::collections::BTreeSet;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use futures::StreamExt;

use super::{Ended, Report};
use crate::cli::flags::lock::LockArgs;
use crate::cli::flags::topo::TopologyArgs;
use crate::cli::interrupt;
use crate::cli::log::Heard;
use crate::topology::lock::Patience;
use crate::topology::rebuild::Rebuild;

/// Keyspaces to rebuild at once. Each has its own lock, so they do not wait for each other; more would only make the
/// service's queue longer.
const AT_ONCE: usize = 8;

/// Flags of `topofs rebuild-keyspace-graph`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RebuildKeyspaceGraphArgs {
    /// The keyspaces
    #[arg(value_name = "KEYSPACE", required = true)]
    keyspaces: Vec<String>,
    /// Write only these cells [default: all cells of the topology]
    #[arg(short, long, value_name = "CELL,...", value_delimiter = ',',
          value_parser = NonEmptyStringValueParser::new())]
    cells: Vec<String>,
    /// Let a keyspace of type SNAPSHOT serve with an incomplete set of shards
    #[arg(long)]
    allow_partial: bool,
    #[command(flatten)]
    lock: LockArgs,
    #[command(flatten)]
    topology: TopologyArgs,
}

impl RebuildKeyspaceGraphArgs {
    /// Rebuilds all keyspaces, also if one of them fails.
    pub fn run(&self) -> Ended {
        self.topology.with_cells(Heard::Warnings, async |cells, records| {
            let patience = Patience { timeout: self.lock.lock_timeout, stop: interrupt::on_signals()? };
            let rebuild = Rebuild::new(cells, &records.codec, &self.cells, patience.clone());
            let mut seen = BTreeSet::new();
            let keyspaces = self.keyspaces.iter().filter(|keyspace| seen.insert(keyspace.as_str()));
            let rebuilds = keyspaces.map(|keyspace| {
                let rebuild = &rebuild;
                async move { (keyspace, rebuild.keyspace(keyspace, self.allow_partial).await) }
            });
            // Reported in the order of the command line.
            let mut rebuilds = futures::stream::iter(rebuilds).buffered(AT_ONCE);
            let mut report = Report::default();
            while let Some((keyspace, outcome)) = rebuilds.next().await {
                report.add(&format!("keyspace {keyspace}"), keyspace, outcome);
            }
            Ok(report.end())
        })
    }
}
