//! Which topology is mounted, and how its services are talked to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::values::{any_duration, duration, lock_delay, seconds, session_ttl};
use crate::backend::Implementation;
use crate::backend::etcd2::EtcdOptions;

/// Which topology, and how to talk to it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topology")]
pub(in crate::cli) struct TopoArgs {
    /// The kind of service
    #[arg(long, value_name = "NAME", default_value = "etcd2", env = "TOPOFS_TOPO_IMPLEMENTATION")]
    pub topo_implementation: Implementation,
    /// Servers of the global topology, separated by commas [default: localhost, port 2379, 2181 or 8500]
    #[arg(long, value_name = "SERVERS", env = "TOPOFS_TOPO_GLOBAL_SERVER_ADDRESS")]
    pub topo_global_server_address: Option<String>,
    /// The path that all keys of the global topology begin with
    #[arg(long, value_name = "PATH", default_value = "/vitess/global", env = "TOPOFS_TOPO_GLOBAL_ROOT")]
    pub topo_global_root: String,
    /// Connect these cells at once and show no others
    ///
    /// Without it, every cell that has a CellInfo record is shown and is connected when its directory is first used.
    #[arg(long, value_name = "CELL,...", value_delimiter = ',', env = "TOPOFS_CELLS")]
    pub cells: Option<Vec<String>>,
    /// Which servers that CellInfo records name are connected, and so get the credentials: any, verified, global, or
    /// HOST[:PORT],...
    ///
    /// `any`: all, as in Vitess. `verified`: all while no credentials are configured, else those of the global
    /// topology, and those that have a certificate of the configured authority (--topo-*-tls-ca). `global`: those of
    /// the global topology. A list: these and those of the global topology.
    #[arg(long, value_name = "SERVERS", default_value = "verified", env = "TOPOFS_CELL_SERVERS")]
    pub cell_servers: crate::backend::CellServers,
    /// Longest time for one call to a service
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration, env = "TOPOFS_REMOTE_OPERATION_TIMEOUT")]
    pub remote_operation_timeout: Duration,
    /// How often the mirror is compared with a bulk list of the service
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, env = "TOPOFS_RESYNC_INTERVAL")]
    pub resync_interval: Duration,
    /// How long a broken watch is tolerated before reads of the cell fail with ETIMEDOUT
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = any_duration, env = "TOPOFS_STALE_AFTER")]
    pub stale_after: Duration,
    /// Show the last known records of a cell that is down instead of failing; .topofs/status says so
    #[arg(long, env = "TOPOFS_SERVE_STALE", value_parser = BoolishValueParser::new())]
    pub serve_stale: bool,
    /// How long to keep trying when the global topology does not answer at the start
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = any_duration, env = "TOPOFS_RETRY")]
    pub retry: Duration,
    /// PEM file of the client certificate for etcd
    #[arg(long, value_name = "FILE", requires = "topo_etcd_tls_key", env = "TOPOFS_TOPO_ETCD_TLS_CERT")]
    pub topo_etcd_tls_cert: Option<PathBuf>,
    /// PEM file of the client key for etcd
    #[arg(long, value_name = "FILE", requires = "topo_etcd_tls_cert", env = "TOPOFS_TOPO_ETCD_TLS_KEY")]
    pub topo_etcd_tls_key: Option<PathBuf>,
    /// PEM file of the authorities that sign etcd's certificates
    #[arg(long, value_name = "FILE", env = "TOPOFS_TOPO_ETCD_TLS_CA")]
    pub topo_etcd_tls_ca: Option<PathBuf>,
    /// How long a lock on etcd outlives a holder that has died: a duration, or seconds as Vitess writes them
    ///
    /// While its holder lives, the lock is kept alive for as long as it is held.
    #[arg(
        long,
        visible_alias = "topo-etcd-lease-duration",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = seconds,
        env = "TOPOFS_TOPO_ETCD_LEASE_TTL"
    )]
    pub topo_etcd_lease_ttl: Duration,
    /// Largest request that the etcd servers take (their flag --max-request-bytes): decides how large a record can be
    #[arg(long, value_name = "BYTES", default_value_t = EtcdOptions::MAX_REQUEST_BYTES, env = "TOPOFS_TOPO_ETCD_MAX_REQUEST_BYTES")]
    pub topo_etcd_max_request_bytes: usize,
    /// User name for etcd
    #[arg(long, value_name = "NAME", requires = "topo_etcd_password_file", env = "TOPOFS_TOPO_ETCD_USER")]
    pub topo_etcd_user: Option<String>,
    /// File that holds the password for etcd, and nothing else
    #[arg(long, value_name = "FILE", requires = "topo_etcd_user", env = "TOPOFS_TOPO_ETCD_PASSWORD_FILE")]
    pub topo_etcd_password_file: Option<PathBuf>,
    /// File with one line SCHEME:AUTH (`digest:user:password`) for ZooKeeper
    #[arg(long, value_name = "FILE", env = "TOPOFS_TOPO_ZK_AUTH_FILE")]
    pub topo_zk_auth_file: Option<PathBuf>,
    /// PEM file of the client certificate for ZooKeeper; turns TLS on
    #[arg(long, value_name = "FILE", requires_all = ["topo_zk_tls_key", "topo_zk_tls_ca"], env = "TOPOFS_TOPO_ZK_TLS_CERT")]
    pub topo_zk_tls_cert: Option<PathBuf>,
    /// PEM file of the client key for ZooKeeper
    #[arg(long, value_name = "FILE", requires = "topo_zk_tls_cert", env = "TOPOFS_TOPO_ZK_TLS_KEY")]
    pub topo_zk_tls_key: Option<PathBuf>,
    /// PEM file of the authorities that sign ZooKeeper's certificates
    #[arg(long, value_name = "FILE", requires = "topo_zk_tls_cert", env = "TOPOFS_TOPO_ZK_TLS_CA")]
    pub topo_zk_tls_ca: Option<PathBuf>,
    /// Requests in flight to ZooKeeper at most, for each connection
    #[arg(long, value_name = "NUMBER", default_value_t = 64, env = "TOPOFS_TOPO_ZK_MAX_CONCURRENCY")]
    pub topo_zk_max_concurrency: usize,
    /// Session time-out that ZooKeeper is asked for
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration, env = "TOPOFS_TOPO_ZK_BASE_TIMEOUT")]
    pub topo_zk_base_timeout: Duration,
    /// JSON file with the ACL tokens for Consul: {"CELL": {"acl_token": "..."}}
    #[arg(long, value_name = "FILE", env = "TOPOFS_CONSUL_AUTH_STATIC_FILE")]
    pub consul_auth_static_file: Option<PathBuf>,
    /// PEM file of the client certificate for Consul
    #[arg(long, value_name = "FILE", requires = "topo_consul_tls_key", env = "TOPOFS_TOPO_CONSUL_TLS_CERT")]
    pub topo_consul_tls_cert: Option<PathBuf>,
    /// PEM file of the client key for Consul
    #[arg(long, value_name = "FILE", requires = "topo_consul_tls_cert", env = "TOPOFS_TOPO_CONSUL_TLS_KEY")]
    pub topo_consul_tls_key: Option<PathBuf>,
    /// PEM file of the authorities that sign Consul's certificates; turns TLS on
    #[arg(long, value_name = "FILE", env = "TOPOFS_TOPO_CONSUL_TLS_CA")]
    pub topo_consul_tls_ca: Option<PathBuf>,
    /// How long a lock on Consul outlives a holder that has died, at least: from 10s to 24h; Consul may take twice as
    /// long
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = session_ttl, env = "TOPOFS_TOPO_CONSUL_LOCK_SESSION_TTL")]
    pub topo_consul_lock_session_ttl: Duration,
    /// Health checks that locks on Consul depend on, instead of that of the server's own node (`serfHealth`)
    #[arg(long, value_name = "CHECK,...", value_delimiter = ',', env = "TOPOFS_TOPO_CONSUL_LOCK_SESSION_CHECKS")]
    pub topo_consul_lock_session_checks: Option<Vec<String>>,
    /// How long a lock on Consul that was lost cannot be taken: up to 60s
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = lock_delay, env = "TOPOFS_TOPO_CONSUL_LOCK_DELAY")]
    pub topo_consul_lock_delay: Duration,
    /// How long a query to Consul may wait for a change
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration, env = "TOPOFS_TOPO_CONSUL_WATCH_POLL_DURATION")]
    pub topo_consul_watch_poll_duration: Duration,
}
