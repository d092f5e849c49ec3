//! The flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::backend::Implementation;
use crate::backend::etcd2::EtcdOptions;
use crate::record::Form;
use crate::tree::RespectLocks;

/// Flags of `topofs mount`.
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    #[command(flatten)]
    pub topo: TopoArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of every mount; those of `topofs demo`.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    #[command(flatten)]
    pub view: ViewArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Where to mount: a directory
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Which topology, and how to talk to it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topology")]
pub(super) struct TopoArgs {
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
    /// Which servers that CellInfo records name are connected, and so get the credentials: any, verified, global, or HOST[:PORT],...
    ///
    /// `any`: all, as in Vitess. `verified`: all while no credentials are configured, else those of the global topology, and those that
    /// have a certificate of the configured authority (--topo-*-tls-ca). `global`: those of the global topology. A list: these and
    /// those of the global topology.
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
    /// How long a lock on Consul outlives a holder that has died, at least: from 10s to 24h; Consul may take twice as long
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

/// How the tree looks, and what may be done to it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(super) struct ViewArgs {
    /// Refuse every change
    #[arg(long, short = 'r', visible_alias = "ro", env = "TOPOFS_READ_ONLY", value_parser = BoolishValueParser::new())]
    pub read_only: bool,
    /// Refuse to delete stored records
    #[arg(long, env = "TOPOFS_NO_DELETE", value_parser = BoolishValueParser::new())]
    pub no_delete: bool,
    /// The forms in which records exist
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', default_value = "raw,txt,json", env = "TOPOFS_FORMS")]
    pub forms: Vec<Form>,
    /// The forms that directory listings show; the others still open by name [default: those of --forms]
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', env = "TOPOFS_LIST")]
    pub list: Option<Vec<Form>>,
    /// Store new files of these names, too, written as CELL/PATH; `*` stays within a name, `**` crosses directories
    ///
    /// Other names than those of Vitess's records are kept in memory and never stored. May be given more than once.
    #[arg(long, value_name = "GLOB", env = "TOPOFS_RECORD", value_delimiter = ' ')]
    pub record: Vec<String>,
    /// Messages of another Vitess version: a file made by `protoc --include_imports --descriptor_set_out`
    #[arg(long, value_name = "FILE", env = "TOPOFS_DESCRIPTOR_SET")]
    pub descriptor_set: Option<PathBuf>,
    /// Owner of all files [default: the mounting user]
    #[arg(long, value_name = "ID", env = "TOPOFS_UID")]
    pub uid: Option<u32>,
    /// Group of all files [default: the mounting user's]
    #[arg(long, value_name = "ID", env = "TOPOFS_GID")]
    pub gid: Option<u32>,
    /// Permission bits that are taken away, in octal
    #[arg(long, value_name = "MODE", default_value = "077", value_parser = octal, env = "TOPOFS_UMASK")]
    pub umask: u32,
    /// Let other users in; the kernel checks owner and mode
    #[arg(long, env = "TOPOFS_ALLOW_OTHER", value_parser = BoolishValueParser::new())]
    pub allow_other: bool,
    /// Whose records are not saved while somebody else holds the lock of their directory
    ///
    /// Vitess insists on the lock for Keyspace records, and has nothing else to protect the routing rules of keyspaces. If the lock is free, it is
    /// taken for the moment of the save.
    #[arg(long, value_name = "RECORDS", default_value = "keyspace", env = "TOPOFS_RESPECT_LOCKS")]
    pub respect_locks: RespectLocks,
    /// Let processes write records that cannot be seen from the mount, as from a container with process numbers of its own
    ///
    /// What such a process writes is stored when its last descriptor is closed: nobody hears what it is refused with then but
    /// .topofs/errors, and half of what a killed program wanted to write is stored. Without this, it cannot open records for writing
    /// (EPERM).
    #[arg(long, env = "TOPOFS_ALLOW_UNSEEN_WRITERS")]
    pub allow_unseen_writers: bool,
    /// Room for files that are no records, such as editors' temporary files
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size, env = "TOPOFS_SCRATCH_QUOTA")]
    pub scratch_quota: u64,
}

/// How the daemon runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub(super) struct ProcessArgs {
    /// Stay in the foreground
    #[arg(long, short)]
    pub foreground: bool,
    /// Stay in the foreground and log everything
    #[arg(long, short)]
    pub debug: bool,
    /// What is logged: error, warn, info, debug, trace, or a filter as RUST_LOG takes it
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "TOPOFS_LOG_LEVEL")]
    pub log_level: String,
    /// Append the log to this file [default: standard error in the foreground, syslog in the background]
    #[arg(long, value_name = "FILE", env = "TOPOFS_LOG_FILE")]
    pub log_file: Option<PathBuf>,
    /// Mount options as mount(8) takes them
    ///
    /// Every long flag is an option, too (`-o ro,allow_other,retry=2m`), with `_` or `-`; a comma in a value is written `\,`.
    /// Options that concern mount(8) alone are ignored: auto, noauto, user, nouser, _netdev, nofail, defaults, dev, suid, exec, the
    /// atime family, and x-*.
    #[arg(short, value_name = "OPTION,...", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
}

impl ProcessArgs {
    /// Whether the process stays in the foreground.
    pub fn stays(&self) -> bool {
        self.foreground || self.debug
    }
}

fn any_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// A time that something needs: zero would mean that nothing ever works.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// A duration of whole seconds, also as a mere number.
fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => duration(text)?,
    };
    if parsed.as_secs() == 0 { Err("must be a second at least".to_owned()) } else { Ok(parsed) }
}

fn session_ttl(text: &str) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<u64> = 10..=86_400;
    let parsed = seconds(text)?;
    if RANGE.contains(&parsed.as_secs()) { Ok(parsed) } else { Err("Consul takes from 10s to 24h".to_owned()) }
}

fn lock_delay(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(60);
    match humantime::parse_duration(text) {
        Ok(delay) if delay <= LONGEST => Ok(delay),
        Ok(_) => Err("Consul takes up to 60s".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("not an octal number up to 777".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>().map(|size| size.as_u64())
}
