//! From flags to connections. Commands that need no mount use a topology directly.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::flags::connect::ConnectArgs;
use super::flags::topo::{GlobalArgs, TopologyArgs};
use super::flags::values::Service;
use super::log::{Heard, start_for_command};
use super::source::{DEFAULT_ROOT, Source, refuse_credentials};
use crate::backend::consul::ConsulOptions;
use crate::backend::etcd2::{EtcdOptions, read_password};
use crate::backend::zk2::ZkOptions;
use crate::backend::{ConnectOptions, Location, TeeOptions};
use crate::cells::{CellOptions, Cells};
use crate::mirror::{HistoryLimits, MirrorOptions};
use crate::record::{Codec, Kinds, Records};

/// A command ends long before this.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// How long the watch of a cell may be broken before a command counts the cell as down.
const STALE_AFTER: Duration = Duration::from_secs(10);

impl GlobalArgs {
    /// Where the global topology is, and the second service if there are two.
    pub fn places(&self) -> anyhow::Result<(Location, Option<TeeOptions>)> {
        let (global, tee) = self.named()?;
        refuse_credentials([&global].into_iter().chain(tee.as_ref().map(|tee| &tee.secondary)))?;
        Ok((global, tee))
    }

    /// The place that a source names, with what the flags say about it.
    pub fn places_of(&self, source: Source) -> anyhow::Result<(Location, Option<TeeOptions>)> {
        match source {
            Source::One(location) => Ok((location.with_default_port(), None)),
            Source::Tee(primary, secondary) => self.both(primary, secondary),
            Source::Demo => bail!("the sample cluster has no place"),
        }
    }

    fn named(&self) -> anyhow::Result<(Location, Option<TeeOptions>)> {
        match self.topo_implementation {
            Service::One(implementation) => {
                if self.tee_primary.is_some() || self.tee_secondary.is_some() || self.tee_reverse_lock_order {
                    bail!("--tee-primary, --tee-secondary and --tee-reverse-lock-order need --topo-implementation tee");
                }
                let server = self.topo_global_server_address.as_deref();
                let location = Location {
                    implementation,
                    server: server.unwrap_or(implementation.default_server()).to_owned(),
                    root: self.topo_global_root.as_deref().unwrap_or(DEFAULT_ROOT).to_owned(),
                };
                Ok((location.with_default_port(), None))
            }
            Service::Tee => self.tee(),
        }
    }

    fn tee(&self) -> anyhow::Result<(Location, Option<TeeOptions>)> {
        if self.topo_global_server_address.is_some() || self.topo_global_root.is_some() {
            bail!(
                "--topo-implementation tee takes its places from --tee-primary and --tee-secondary: leave out \
                 --topo-global-server-address and --topo-global-root (and their environment variables)"
            );
        }
        let (Some(primary), Some(secondary)) = (&self.tee_primary, &self.tee_secondary) else {
            bail!(
                "--topo-implementation tee needs --tee-primary and --tee-secondary, both as \
                 IMPLEMENTATION:SERVERS/ROOT: etcd2:localhost:2379{DEFAULT_ROOT}"
            );
        };
        self.both(primary.clone(), secondary.clone())
    }

    fn both(&self, primary: Location, secondary: Location) -> anyhow::Result<(Location, Option<TeeOptions>)> {
        let (primary, secondary) = (primary.with_default_port(), secondary.with_default_port());
        if primary.is_same_place(&secondary) {
            bail!("--tee-primary {primary} and --tee-secondary {secondary} are the same place");
        }
        Ok((primary, Some(TeeOptions { secondary, reverse_lock_order: self.tee_reverse_lock_order })))
    }
}

impl TopologyArgs {
    /// Connects the topology, does the work of a command, and closes the connections. Fails if the global topology does
    /// not answer. What goes wrong on the way, and is not the result, is told on standard error.
    pub fn with_cells<T>(
        &self,
        heard: Heard,
        work: impl AsyncFnOnce(&Arc<Cells>, &Arc<Records>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        start_for_command(heard)?;
        let (global, tee) = self.global.places()?;
        let mut options = self.connect.cells_of(global)?;
        options.connect.tee = tee;
        let records = Records::new(Codec::builtin()?, Kinds::default());
        runtime()?.block_on(async {
            let cells = Cells::start(options, records.clone()).await?;
            let outcome = work(&cells, &records).await;
            cells.shutdown().await;
            outcome
        })
    }
}

/// Runs what a command waits for.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

impl ConnectArgs {
    /// How a command connects the cells of a topology.
    pub fn cells_of(&self, global: Location) -> anyhow::Result<CellOptions> {
        let mirror = MirrorOptions { resync_interval: NEVER, stale_after: STALE_AFTER, serve_stale: false };
        let (connect, servers) = (self.options()?, self.cell_servers.clone());
        Ok(CellOptions { global, connect, servers, mirror, only: None, history: HistoryLimits::NOTHING })
    }

    /// The options of all connections.
    pub fn options(&self) -> anyhow::Result<ConnectOptions> {
        Ok(ConnectOptions {
            timeout: self.remote_operation_timeout,
            etcd: self.etcd_options()?,
            zk: self.zk_options()?,
            consul: self.consul_options()?,
            ..ConnectOptions::default()
        })
    }

    fn consul_options(&self) -> anyhow::Result<ConsulOptions> {
        Ok(ConsulOptions {
            auth_file: absolute(&self.consul_auth_static_file)?,
            cert: absolute(&self.topo_consul_tls_cert)?,
            key: absolute(&self.topo_consul_tls_key)?,
            ca: absolute(&self.topo_consul_tls_ca)?,
            poll_duration: self.topo_consul_watch_poll_duration,
            lock_session_ttl: self.topo_consul_lock_session_ttl,
            lock_session_checks: self.topo_consul_lock_session_checks.clone(),
            lock_delay: self.topo_consul_lock_delay,
        })
    }

    fn zk_options(&self) -> anyhow::Result<ZkOptions> {
        Ok(ZkOptions {
            auth_file: absolute(&self.topo_zk_auth_file)?,
            cert: absolute(&self.topo_zk_tls_cert)?,
            key: absolute(&self.topo_zk_tls_key)?,
            ca: absolute(&self.topo_zk_tls_ca)?,
            max_concurrency: self.topo_zk_max_concurrency,
            base_timeout: self.topo_zk_base_timeout,
        })
    }

    fn etcd_options(&self) -> anyhow::Result<EtcdOptions> {
        let user = match (&self.topo_etcd_user, &self.topo_etcd_password_file) {
            (Some(name), Some(file)) => {
                let password =
                    read_password(file).with_context(|| format!("cannot read the password file {}", file.display()))?;
                Some((name.clone(), password))
            }
            _ => None,
        };
        Ok(EtcdOptions {
            cert: absolute(&self.topo_etcd_tls_cert)?,
            key: absolute(&self.topo_etcd_tls_key)?,
            ca: absolute(&self.topo_etcd_tls_ca)?,
            user,
            password_file: absolute(&self.topo_etcd_password_file)?,
            lease_ttl: self.topo_etcd_lease_ttl,
            max_request_bytes: self.topo_etcd_max_request_bytes,
        })
    }
}

/// A daemon leaves the working directory before it reads files.
fn absolute(path: &Option<PathBuf>) -> std::io::Result<Option<PathBuf>> {
    path.as_ref().map(std::path::absolute).transpose()
}
