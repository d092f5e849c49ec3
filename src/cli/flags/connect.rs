//! How to talk to the services of a topology: time limits, credentials, locks.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{duration, lock_delay, seconds, session_ttl};
use crate::backend::etcd2::EtcdOptions;

/// How to talk to services: the same for all cells.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Services")]
pub(in crate::cli) struct ConnectArgs {
    /// The servers in CellInfo records that topofs connects to and sends credentials to: any, verified, global, or
    /// HOST[:PORT],...
    ///
    /// `any`: all servers, as in Vitess. `verified`: all servers if no credentials are configured; otherwise the
    /// servers of the global topology, and servers with a certificate from the configured authority (--topo-*-tls-ca).
    /// `global`: the servers of the global topology. A list: these servers, and the servers of the global topology.
    #[arg(long, value_name = "SERVERS", default_value = "verified", env = "TOPOFS_CELL_SERVERS")]
    pub cell_servers: crate::backend::CellServers,
    /// Time limit for one call to a service
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "15s",
        value_parser = duration,
        env = "TOPOFS_REMOTE_OPERATION_TIMEOUT"
    )]
    pub remote_operation_timeout: Duration,
    /// PEM file with the client certificate for etcd
    #[arg(long, value_name = "FILE", requires = "topo_etcd_tls_key", env = "TOPOFS_TOPO_ETCD_TLS_CERT")]
    pub topo_etcd_tls_cert: Option<PathBuf>,
    /// PEM file with the client key for etcd
    #[arg(long, value_name = "FILE", requires = "topo_etcd_tls_cert", env = "TOPOFS_TOPO_ETCD_TLS_KEY")]
    pub topo_etcd_tls_key: Option<PathBuf>,
    /// PEM file with the authorities that sign the certificates of etcd
    #[arg(long, value_name = "FILE", env = "TOPOFS_TOPO_ETCD_TLS_CA")]
    pub topo_etcd_tls_ca: Option<PathBuf>,
    /// How long a lock on etcd stays after its holder has died: a duration, or a number of seconds as in Vitess
    ///
    /// While the holder lives, it keeps the lock alive.
    #[arg(
        long,
        visible_alias = "topo-etcd-lease-duration",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = seconds,
        env = "TOPOFS_TOPO_ETCD_LEASE_TTL"
    )]
    pub topo_etcd_lease_ttl: Duration,
    /// Largest request that the etcd servers accept (their flag --max-request-bytes); limits the size of a record
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = EtcdOptions::MAX_REQUEST_BYTES,
        env = "TOPOFS_TOPO_ETCD_MAX_REQUEST_BYTES"
    )]
    pub topo_etcd_max_request_bytes: usize,
    /// User name for etcd
    #[arg(long, value_name = "NAME", requires = "topo_etcd_password_file", env = "TOPOFS_TOPO_ETCD_USER")]
    pub topo_etcd_user: Option<String>,
    /// File that contains only the password for etcd
    #[arg(long, value_name = "FILE", requires = "topo_etcd_user", env = "TOPOFS_TOPO_ETCD_PASSWORD_FILE")]
    pub topo_etcd_password_file: Option<PathBuf>,
    /// File with one line SCHEME:AUTH (`digest:user:password`) for ZooKeeper
    #[arg(long, value_name = "FILE", env = "TOPOFS_TOPO_ZK_AUTH_FILE")]
    pub topo_zk_auth_file: Option<PathBuf>,
    /// PEM file with the client certificate for ZooKeeper; enables TLS
    #[arg(
        long,
        value_name = "FILE",
        requires_all = ["topo_zk_tls_key", "topo_zk_tls_ca"],
        env = "TOPOFS_TOPO_ZK_TLS_CERT"
    )]
    pub topo_zk_tls_cert: Option<PathBuf>,
    /// PEM file with the client key for ZooKeeper
    #[arg(long, value_name = "FILE", requires = "topo_zk_tls_cert", env = "TOPOFS_TOPO_ZK_TLS_KEY")]
    pub topo_zk_tls_key: Option<PathBuf>,
    /// PEM file with the authorities that sign the certificates of ZooKeeper
    #[arg(long, value_name = "FILE", requires = "topo_zk_tls_cert", env = "TOPOFS_TOPO_ZK_TLS_CA")]
    pub topo_zk_tls_ca: Option<PathBuf>,
    /// Maximum number of requests in flight on each connection to ZooKeeper
    #[arg(long, value_name = "NUMBER", default_value_t = 64, env = "TOPOFS_TOPO_ZK_MAX_CONCURRENCY")]
    pub topo_zk_max_concurrency: usize,
    /// Session timeout to request from ZooKeeper
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = duration,
        env = "TOPOFS_TOPO_ZK_BASE_TIMEOUT"
    )]
    pub topo_zk_base_timeout: Duration,
    /// JSON file with the ACL tokens for Consul: {"CELL": {"acl_token": "..."}}
    #[arg(long, value_name = "FILE", env = "TOPOFS_CONSUL_AUTH_STATIC_FILE")]
    pub consul_auth_static_file: Option<PathBuf>,
    /// PEM file with the client certificate for Consul
    #[arg(long, value_name = "FILE", requires = "topo_consul_tls_key", env = "TOPOFS_TOPO_CONSUL_TLS_CERT")]
    pub topo_consul_tls_cert: Option<PathBuf>,
    /// PEM file with the client key for Consul
    #[arg(long, value_name = "FILE", requires = "topo_consul_tls_cert", env = "TOPOFS_TOPO_CONSUL_TLS_KEY")]
    pub topo_consul_tls_key: Option<PathBuf>,
    /// PEM file with the authorities that sign the certificates of Consul; enables TLS
    #[arg(long, value_name = "FILE", env = "TOPOFS_TOPO_CONSUL_TLS_CA")]
    pub topo_consul_tls_ca: Option<PathBuf>,
    /// Minimum time that a lock on Consul stays after its holder has died: 10s to 24h; Consul may take twice as long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "15s",
        value_parser = session_ttl,
        env = "TOPOFS_TOPO_CONSUL_LOCK_SESSION_TTL"
    )]
    pub topo_consul_lock_session_ttl: Duration,
    /// Health checks that locks on Consul depend on, instead of `serfHealth`, the check of the server's own node
    #[arg(long, value_name = "CHECK,...", value_delimiter = ',', env = "TOPOFS_TOPO_CONSUL_LOCK_SESSION_CHECKS")]
    pub topo_consul_lock_session_checks: Option<Vec<String>>,
    /// How long nobody can take a lost lock on Consul: at most 60s
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "15s",
        value_parser = lock_delay,
        env = "TOPOFS_TOPO_CONSUL_LOCK_DELAY"
    )]
    pub topo_consul_lock_delay: Duration,
    /// How long a query to Consul may wait for a change
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = duration,
        env = "TOPOFS_TOPO_CONSUL_WATCH_POLL_DURATION"
    )]
    pub topo_consul_watch_poll_duration: Duration,
}
