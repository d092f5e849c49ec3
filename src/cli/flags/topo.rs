//! Which topology, and how a mount keeps up with it.

use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::connect::ConnectArgs;
use super::values::{Service, any_duration, duration};
use crate::backend::Location;

/// Which topology.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topology")]
pub(in crate::cli) struct GlobalArgs {
    /// The kind of service
    #[arg(long, value_name = "NAME", default_value = "etcd2", env = "TOPOFS_TOPO_IMPLEMENTATION")]
    pub topo_implementation: Service,
    /// Servers of the global topology, separated by commas [default: localhost, port 2379, 2181 or 8500]
    #[arg(long, value_name = "SERVERS", env = "TOPOFS_TOPO_GLOBAL_SERVER_ADDRESS")]
    pub topo_global_server_address: Option<String>,
    /// The path at the beginning of all keys of the global topology [default: /vitess/global]
    #[arg(long, value_name = "PATH", env = "TOPOFS_TOPO_GLOBAL_ROOT")]
    pub topo_global_root: Option<String>,
    /// With --topo-implementation tee: the service that decides, as IMPLEMENTATION:SERVERS/ROOT of its global topology
    ///
    /// All reads, errors and events are its own.
    #[arg(long, value_name = "PLACE", env = "TOPOFS_TEE_PRIMARY")]
    pub tee_primary: Option<Location>,
    /// With --topo-implementation tee: the service that is kept in sync, as IMPLEMENTATION:SERVERS/ROOT
    ///
    /// Its failures stop no reads and no saves; .topofs/status counts what differs there. A lock needs both services:
    /// while this one does not answer, flock(1) on a .lock fails, and so do the commands that take a lock.
    #[arg(long, value_name = "PLACE", env = "TOPOFS_TEE_SECONDARY")]
    pub tee_secondary: Option<Location>,
    /// With --topo-implementation tee: take locks at the secondary first
    ///
    /// For the time in which some mounts have the two services the other way round.
    #[arg(long, env = "TOPOFS_TEE_REVERSE_LOCK_ORDER", value_parser = BoolishValueParser::new())]
    pub tee_reverse_lock_order: bool,
}

/// A topology for a command that uses it directly.
#[derive(Debug, Args)]
pub(in crate::cli) struct TopologyArgs {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// A topology that is mounted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topology")]
pub(in crate::cli) struct TopoArgs {
    #[command(flatten)]
    pub global: GlobalArgs,
    /// Connect these cells at once and show no others
    ///
    /// Without this flag, topofs shows every cell that has a CellInfo record, and connects a cell when its directory is
    /// first used.
    #[arg(long, value_name = "CELL,...", value_delimiter = ',', env = "TOPOFS_CELLS")]
    pub cells: Option<Vec<String>>,
    /// How often to compare the mirror with the service
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, env = "TOPOFS_RESYNC_INTERVAL")]
    pub resync_interval: Duration,
    /// How long the watch of a cell may be broken before reads fail with ETIMEDOUT
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = any_duration,
        env = "TOPOFS_STALE_AFTER"
    )]
    pub stale_after: Duration,
    /// If a cell is down, show its last known records instead of failing; .topofs/status calls it stale
    #[arg(long, env = "TOPOFS_SERVE_STALE", value_parser = BoolishValueParser::new())]
    pub serve_stale: bool,
    /// How long to keep trying if the global topology does not answer at the start
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = any_duration, env = "TOPOFS_RETRY")]
    pub retry: Duration,
    #[command(flatten)]
    pub connect: ConnectArgs,
}
