//! How all services are talked to. Each service has settings of its own, and this is where they come together.

use std::time::Duration;

use super::{consul::ConsulOptions, etcd2::EtcdOptions, memory::MemoryServers, zk2::ZkOptions};

/// Vitess's default of --remote_operation_timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// How to talk to services. One for all cells, as in Vitess.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Longest time for one call.
    pub timeout: Duration,
    /// Settings of etcd.
    pub etcd: EtcdOptions,
    /// Settings of ZooKeeper.
    pub zk: ZkOptions,
    /// Settings of Consul.
    pub consul: ConsulOptions,
    /// The services that live in this process.
    pub memory: MemoryServers,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            etcd: EtcdOptions::default(),
            zk: ZkOptions::default(),
            consul: ConsulOptions::default(),
            memory: MemoryServers::default(),
        }
    }
}
