//! Settings of etcd connections, and their files. The files are read again for each new connection, and when etcd
//! refuses the old secrets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use parking_lot::Mutex;

use crate::backend::contract::{BackendError, Failure};
use crate::backend::files::read_certificate;
use crate::given;

/// How long a connection attempt may take, so that the next server gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a request may be silent before we check the connection. etcd punishes clients that check more often than
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
    /// The file with the password. It may change while we are connected.
    pub password_file: Option<PathBuf>,
    /// How long a lock stays after its holder has died, in whole seconds.
    pub lease_ttl: Duration,
    /// The largest request that the servers accept.
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

/// The password in a file that contains nothing else.
pub fn read_password(file: &Path) -> std::io::Result<String> {
    Ok(given::read_text(file, given::SECRET)?.trim_end_matches(['\r', '\n']).to_owned())
}

/// The secrets of a connection.
pub(super) struct Secrets {
    options: EtcdOptions,
    password: Mutex<Option<String>>,
    /// Counts the passwords read so far.
    generation: AtomicU64,
    /// The last readable content of the files: we may read them while somebody replaces them.
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

    /// Whether we lack a client certificate that the server could ask for.
    pub fn are_anonymous_tls(&self) -> bool {
        self.options.ca.is_some() && self.options.cert.is_none()
    }

    /// A number that changes with the password.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The options of a new connection, with the current certificates from their files.
    pub async fn connect_options(self: &Arc<Self>) -> ConnectOptions {
        let secrets = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let password = secrets.password.lock().clone();
            connect_options(&secrets.options, password.as_deref())
        });
        match read.await {
            Ok(Ok(options)) => *self.last_good.lock() = options,
            Ok(Err(error)) => tracing::warn!(%error, "topofs goes on with what it has read before"),
            // The runtime is ending.
            Err(_) => {}
        }
        self.last_good.lock().clone()
    }

    /// Reloads the password. Returns whether it differs from that of the given generation.
    pub async fn have_changed_since(self: &Arc<Self>, generation: u64) -> bool {
        let secrets = self.clone();
        // This fails only when the runtime ends.
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
            Err(error) => tracing::warn!(file = %file.display(), %error, "cannot reload the password"),
        }
    }
}

fn connect_options(options: &EtcdOptions, password: Option<&str>) -> Result<ConnectOptions, BackendError> {
    let connect = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE, CONNECT_TIMEOUT)
        .with_auto_token_refresh(true)
        // A member without a connection to the others must say so, and not answer with old data.
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
    let mut tls = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            TlsOptions::new().identity(Identity::from_pem(read_certificate(cert)?, read_certificate(key)?))
        }
        (None, None) if options.ca.is_some() => TlsOptions::new(),
        (None, None) => return Ok(None),
        _ => {
            let message = "--topo-etcd-tls-cert and --topo-etcd-tls-key must be given together";
            return Err(BackendError::new(Failure::Other, message));
        }
    };
    if let Some(ca) = &options.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read_certificate(ca)?));
    }
    Ok(Some(tls))
}
