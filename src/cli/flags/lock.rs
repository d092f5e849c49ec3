//! How long a command waits for a lock of the topology.

use std::time::Duration;

use clap::Args;

use super::values::duration;

/// Waiting for locks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Locks")]
pub(in crate::cli) struct LockArgs {
    /// How long to wait for the lock of a keyspace
    #[arg(long, value_name = "DURATION", default_value = "45s", value_parser = duration, env = "TOPOFS_LOCK_TIMEOUT")]
    pub lock_timeout: Duration,
}
