//! How cells are connected.

use crate::backend::{CellServers, ConnectOptions, Location};
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
}
