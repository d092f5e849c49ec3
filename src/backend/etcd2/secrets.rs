//! Settings of etcd connections, and the files that they name: read again for each new connection, and when etcd
//! refuses what they said before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use parking_lot::Mutex;

use crate::backend::contract::{BackendError, Failure};

/// How long a connection attempt may take, so that the next server gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a request may be silent before the connection is checked. etcd punishes clients that check more often than
/// every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Settings of etcd connections.
#[derive(Clone)]
pub struct EtcdOptions {
    /// PEM file of the client certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the client key.
    pub key: Option<PathBuf>,
    /// PEM file of the authorities to trust.
    pub ca: Option<PathBuf>,
    /// User name and password.
    pub user: Option<(String, String)>,
    /// The file with the password: it may change while we are connected.
    pub password_file: Option<PathBuf>,
    /// How long a lock outlives its holder, in whole seconds.
    pub lease_ttl: Duration,
    /// The largest request that the servers take.
    pub max_request_bytes: usize,
}

impl EtcdOptions {
    /// etcd's own default of `--max-request-bytes`.
    pub const MAX_REQUEST_BYTES: usize = 1_572_864;
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            cert: None,
            key: None,
            ca: None,
            user: None,
            password_file: None,
            // Vitess's default.
            lease_ttl: Duration::from_secs(30),
            max_request_bytes: Self::MAX_REQUEST_BYTES,
        }
    }
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        f.debug_struct("EtcdOptions").field("cert", &self.cert).field("ca", &self.ca).field("user", &user).finish()
    }
}

/// The password that a file holds, and nothing else.
pub fn read_password(file: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(file)?.trim_end_matches(['\r', '\n']).to_owned())
}

/// The secrets of a connection.
pub(super) struct Secrets {
    options: EtcdOptions,
    password: Mutex<Option<String>>,
    /// Counts the passwords that were found.
    generation: AtomicU64,
    /// As the files were when they could last be read: we may read them while they are being replaced.
    last_good: Mutex<ConnectOptions>,
}

impl Secrets {
    /// Fails if the files cannot be read.
    pub fn new(options: &EtcdOptions) -> Result<Arc<Self>, BackendError> {
        let password = options.user.as_ref().map(|(_, password)| password.clone());
        let last_good = connect_options(options, password.as_deref())?;
        Ok(Arc::new(Self {
            options: options.clone(),
            password: Mutex::new(password),
            generation: AtomicU64::new(0),
            last_good: Mutex::new(last_good),
        }))
    }

    /// Whether we have no client certificate that the server could ask for.
    pub fn are_anonymous_tls(&self) -> bool {
        self.options.ca.is_some() && self.options.cert.is_none()
    }

    /// A number that changes with the password.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// For a new connection: certificates as their files hold them now.
    pub async fn connect_options(self: &Arc<Self>) -> ConnectOptions {
        let secrets = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let password = secrets.password.lock().clone();
            connect_options(&secrets.options, password.as_deref())
        });
        match read.await {
            Ok(Ok(options)) => *self.last_good.lock() = options,
            Ok(Err(error)) => tracing::warn!(%error, "what was read before is used on"),
            // The runtime is ending.
            Err(_) => {}
        }
        self.last_good.lock().clone()
    }

    /// Reads the password again. Says whether it is another one than that of the given generation.
    pub async fn have_changed_since(self: &Arc<Self>, generation: u64) -> bool {
        let secrets = self.clone();
        // Only the end of the runtime keeps it from being read.
        let _ = tokio::task::spawn_blocking(move || secrets.read_again()).await;
        self.generation() != generation
    }

    fn read_again(&self) {
        let Some(file) = &self.options.password_file else { return };
        match read_password(file) {
            Ok(new) => {
                let mut password = self.password.lock();
                if password.as_ref().is_some_and(|old| *old != new) {
                    tracing::info!(file = %file.display(), "the password has changed");
                    *password = Some(new);
                    self.generation.fetch_add(1, Ordering::AcqRel);
                }
            }
            Err(error) => tracing::warn!(file = %file.display(), %error, "the password cannot be read again"),
        }
    }
}

fn connect_options(options: &EtcdOptions, password: Option<&str>) -> Result<ConnectOptions, BackendError> {
    let connect = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE, CONNECT_TIMEOUT)
        .with_auto_token_refresh(true)
        // A member that is cut off from the others must say so and not answer with old data.
        .with_require_leader(true);
    let connect = match tls(options)? {
        Some(tls) => connect.with_tls(tls),
        None => connect,
    };
    Ok(match (&options.user, password) {
        (Some((name, _)), Some(password)) => connect.with_user(name, password),
        _ => connect,
    })
}

fn tls(options: &EtcdOptions) -> Result<Option<TlsOptions>, BackendError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|e| BackendError::new(Failure::Other, format!("{}: {e}", path.display())))
    };
    let mut tls = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => TlsOptions::new().identity(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) if options.ca.is_some() => TlsOptions::new(),
        (None, None) => return Ok(None),
        _ => {
            let message = "--topo-etcd-tls-cert and --topo-etcd-tls-key need each other";
            return Err(BackendError::new(Failure::Other, message));
        }
    };
    if let Some(ca) = &options.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    Ok(Some(tls))
}
