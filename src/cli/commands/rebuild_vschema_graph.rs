//! `topofs rebuild-vschema-graph`: SrvVSchema records from VSchemas and rules.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::{Ended, Report};
use crate::cli::flags::topo::TopologyArgs;
use crate::cli::interrupt;
use crate::cli::log::Heard;
use crate::topology::lock::Patience;
use crate::topology::rebuild::Rebuild;

/// Flags of `topofs rebuild-vschema-graph`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RebuildVschemaGraphArgs {
    /// Write only these cells [default: all cells of the topology]
    #[arg(short, long, value_name = "CELL,...", value_delimiter = ',',
          value_parser = NonEmptyStringValueParser::new())]
    cells: Vec<String>,
    #[command(flatten)]
    topology: TopologyArgs,
}

impl RebuildVschemaGraphArgs {
    /// Rebuilds the SrvVSchema of all cells.
    pub fn run(&self) -> Ended {
        self.topology.with_cells(Heard::Warnings, async |cells, records| {
            // Vitess takes no lock for this.
            let patience = Patience { timeout: std::time::Duration::ZERO, stop: interrupt::on_signals()? };
            let rebuild = Rebuild::new(cells, &records.codec, &self.cells, patience);
            let mut report = Report::default();
            report.add("the SrvVSchema", "", rebuild.vschema().await);
            Ok(report.end())
        })
    }
}
