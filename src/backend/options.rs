//! How to talk to all services. Each service has its own settings; this file puts them together.

use std::sync::Arc;
use std::time::Duration;

use super::contract::Backend;
use super::location::Location;
use super::metered::Meter;
use super::{consul::ConsulOptions, etcd2::EtcdOptions, memory::MemoryServers, zk2::ZkOptions};
use crate::name::CellName;

/// Vitess's default of --remote_operation_timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// How to talk to services: the same for all cells, as in Vitess.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Time limit for one call.
    pub timeout: Duration,
    /// Settings of etcd.
    pub etcd: EtcdOptions,
    /// Settings of ZooKeeper.
    pub zk: ZkOptions,
    /// Settings of Consul.
    pub consul: ConsulOptions,
    /// The services in this process.
    pub memory: MemoryServers,
    /// A wrapper for each backend.
    pub wrap: Wrap,
    /// Times the calls of all connections.
    pub meter: Arc<Meter>,
    /// The second service, if every update goes to two.
    pub tee: Option<TeeOptions>,
}

/// The second service of a topology whose updates go to two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeeOptions {
    /// The global topology at the second service. Its CellInfo records say where the cells are there.
    pub secondary: Location,
    /// Take locks at the second service first.
    pub reverse_lock_order: bool,
}

/// A wrapper for a new backend, such as [`super::faulty::Faulty`]; none by default.
#[derive(Clone, Default)]
pub struct Wrap(Option<Arc<Wrapper>>);

type Wrapper = dyn Fn(&CellName, Arc<dyn Backend>) -> Arc<dyn Backend> + Send + Sync;

impl Wrap {
    /// A wrapper from a function of the cell's name and its backend.
    pub fn new(wrapper: impl Fn(&CellName, Arc<dyn Backend>) -> Arc<dyn Backend> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(wrapper)))
    }

    pub(super) fn put_around(&self, cell: &CellName, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        match &self.0 {
            Some(wrapper) => wrapper(cell, backend),
            None => backend,
        }
    }
}

impl std::fmt::Debug for Wrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Wrap(..)" } else { "Wrap(None)" })
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            etcd: EtcdOptions::default(),
            zk: ZkOptions::default(),
            consul: ConsulOptions::default(),
            memory: MemoryServers::default(),
            wrap: Wrap::default(),
            meter: Arc::default(),
            tee: None,
        }
    }
}
