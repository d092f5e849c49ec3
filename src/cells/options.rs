//! How cells are connected.

use std::sync::Arc;

use crate::backend::{Backend, BackendError, CellServers, ConnectOptions, Errors, Location, Metered};
use crate::mirror::{HistoryLimits, MirrorOptions};
use crate::name::CellName;

/// How cells are connected.
#[derive(Clone)]
pub struct CellOptions {
    /// The global topology.
    pub global: Location,
    /// The options of all backends.
    pub connect: ConnectOptions,
    /// Which servers in CellInfo records topofs connects to.
    pub servers: CellServers,
    /// The options of all mirrors.
    pub mirror: MirrorOptions,
    /// If given, connect these cells at once and show no others.
    pub only: Option<Vec<CellName>>,
    /// What the mirrors of all cells remember of the past.
    pub history: HistoryLimits,
}

impl CellOptions {
    /// All cells, with the defaults for everything else.
    pub fn new(global: Location, connect: ConnectOptions, mirror: MirrorOptions) -> Self {
        let (servers, history) = (CellServers::default(), HistoryLimits::default());
        Self { global, connect, servers, mirror, only: None, history }
    }

    /// Prepares a connection to a place, if its servers are allowed: those of the topology that begins at the other
    /// place always are. Counts its calls.
    pub(super) fn open(
        &self,
        name: &CellName,
        (location, global): (&Location, &Location),
    ) -> Result<(Arc<dyn Backend>, Errors), BackendError> {
        self.servers.check(location, global, &self.connect)?;
        let (backend, errors) = (crate::backend::open(name, location, &self.connect)?, Errors::default());
        Ok((Metered::wrap(backend, self.connect.meter.clone(), errors.clone()), errors))
    }
}
