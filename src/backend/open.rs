//! Chooses the backend for a location. No other place chooses between services.

use std::sync::Arc;

use super::consul::Consul;
use super::contract::{Backend, BackendError};
use super::etcd2::Etcd;
use super::inspect::Inspect;
use super::location::{Implementation, Location};
use super::options::ConnectOptions;
use super::zk2::Zk;
use crate::name::CellName;

/// Prepares a backend, but does not connect yet. Fails if the address or the options are wrong.
pub fn open(cell: &CellName, location: &Location, options: &ConnectOptions) -> Result<Arc<dyn Backend>, BackendError> {
    options.refuse_clear(location)?;
    let location = &location.with_lower_schemes();
    let backend: Arc<dyn Backend> = match location.implementation {
        Implementation::Etcd2 => Arc::new(Etcd::new(location, options.timeout, &options.etcd)?),
        Implementation::Consul => Arc::new(Consul::new(cell, location, options.timeout, &options.consul)?),
        Implementation::Zk2 => Arc::new(Zk::new(location, options.timeout, &options.zk)?),
        Implementation::Memory => Arc::new(options.memory.open(location)?),
    };
    Ok(options.wrap.put_around(cell, backend))
}

/// Prepares to look at a cell from outside, in the same way; `None` if the service is in this process.
pub fn inspect(
    cell: &CellName,
    location: &Location,
    options: &ConnectOptions,
) -> Result<Option<Box<dyn Inspect>>, BackendError> {
    options.refuse_clear(location)?;
    let location = &location.with_lower_schemes();
    Ok(match location.implementation {
        Implementation::Etcd2 => Some(Box::new(Etcd::new(location, options.timeout, &options.etcd)?)),
        Implementation::Consul => Some(Box::new(Consul::new(cell, location, options.timeout, &options.consul)?)),
        Implementation::Zk2 => Some(Box::new(Zk::new(location, options.timeout, &options.zk)?)),
        Implementation::Memory => None,
    })
}
