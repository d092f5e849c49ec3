//! The sessions of one ensemble. They start when needed, and are replaced after their end. Every call is bounded in
//! time and number.
//!
//! The client usually reconnects within its session by itself. A call without a connection starts a new session.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use zookeeper_client::{Client, Error as ZkError, SessionState, TlsOptions};

use super::size::Sizes;
use super::window::Window;
use crate::backend::contract::{BackendError, Failure};
use crate::backend::files::wrong;
use crate::given;

/// How long to trust a silent connection before trying another server.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(4);
/// How often to request a session again because the answer to the credentials may have come first.
const OVERTAKEN: u32 = 10;
/// Pause before that.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(20);
/// Time limit for asking a server about its state. We ask if no server could be connected, to find out why.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of ZooKeeper connections.
#[derive(Clone)]
pub struct ZkOptions {
    /// File with one line `SCHEME:AUTH` (`digest:user:password`).
    pub auth_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the client key.
    pub key: Option<PathBuf>,
    /// PEM file of the authorities to trust.
    pub ca: Option<PathBuf>,
    /// Maximum number of requests in flight, for each connection.
    pub max_concurrency: usize,
    /// Session timeout to request.
    pub base_timeout: Duration,
}

impl Default for ZkOptions {
    fn default() -> Self {
        // Vitess's defaults.
        let base_timeout = Duration::from_secs(30);
        Self { auth_file: None, cert: None, key: None, ca: None, max_concurrency: 64, base_timeout }
    }
}

impl std::fmt::Debug for ZkOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZkOptions")
            .field("auth_file", &self.auth_file)
            .field("cert", &self.cert)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Sessions {
    servers: String,
    timeout: Duration,
    base_timeout: Duration,
    /// The file with the credentials, and its last content.
    auth_file: Option<PathBuf>,
    auth: Mutex<Option<Auth>>,
    /// Counts changes of the credentials.
    user: AtomicU64,
    tls: Option<TlsOptions>,
    /// What is known about the size of requests.
    pub sizes: Sizes,
    /// How many nodes a bulk read asks for at once.
    pub window: Window,
    /// Permits for requests in flight. Others wait for their turn, each up to its own timeout.
    slots: Semaphore,
    client: Mutex<Option<Client>>,
    /// Whether to keep the session as long as it may live, connected or not, because locks live with it.
    lasting: bool,
    /// One call connects, and the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Clone, PartialEq, Eq)]
struct Auth {
    scheme: String,
    secret: Vec<u8>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Sessions for a comma-separated list of servers. Does not connect yet.
    pub fn new(servers: &str, timeout: Duration, options: &ZkOptions) -> Result<Arc<Self>, BackendError> {
        Self::with(servers, timeout, options, false)
    }

    /// The same, but keeps the session as long as it may live.
    pub fn lasting(servers: &str, timeout: Duration, options: &ZkOptions) -> Result<Arc<Self>, BackendError> {
        Self::with(servers, timeout, options, true)
    }

    fn with(servers: &str, timeout: Duration, options: &ZkOptions, lasting: bool) -> Result<Arc<Self>, BackendError> {
        let servers: Vec<&str> = servers.split(',').map(str::trim).filter(|server| !server.is_empty()).collect();
        if servers.is_empty() {
            return Err(BackendError::new(Failure::Other, "no ZooKeeper server address is given"));
        }
        Ok(Arc::new(Self {
            servers: servers.join(","),
            timeout,
            base_timeout: options.base_timeout,
            auth: Mutex::new(options.auth_file.as_ref().map(|path| read_auth(path)).transpose()?),
            auth_file: options.auth_file.clone(),
            user: AtomicU64::new(0),
            tls: tls(options)?,
            sizes: Sizes::default(),
            window: Window::within(timeout),
            slots: Semaphore::new(options.max_concurrency.max(1)),
            client: Mutex::new(None),
            lasting,
            connecting: tokio::sync::Mutex::new(()),
        }))
    }

    /// As whom requests are made. Equal numbers mean the same.
    pub fn user(&self) -> u64 {
        self.user.load(Ordering::Relaxed)
    }

    /// Longest time for one call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Calls once, within the operation timeout.
    pub async fn try_call<T>(&self, operation: impl AsyncFnOnce(Client) -> Result<T, ZkError>) -> Result<T, CallError> {
        let deadline = Instant::now() + self.timeout;
        let attempt = async {
            let client = self.client().await?;
            let outcome = self.bounded(operation(client)).await;
            if let Err(CallError::Client(ZkError::UnexpectedError(_))) = &outcome
                && !self.lasting
            {
                // The client is in a broken state: the next call makes a new one.
                *self.client.lock() = None;
            }
            outcome
        };
        timeout_at(deadline, attempt).await.unwrap_or(Err(CallError::NoAnswer))
    }

    /// A request on a given session, in its turn and within its time.
    pub async fn bounded<T>(&self, request: impl Future<Output = Result<T, ZkError>>) -> Result<T, CallError> {
        let attempt = async {
            let _slot = self.slots.acquire().await.map_err(|_| CallError::NoAnswer)?;
            request.await.map_err(CallError::Client)
        };
        timeout(self.timeout, attempt).await.unwrap_or(Err(CallError::NoAnswer))
    }

    /// A living session.
    pub async fn client(&self) -> Result<Client, CallError> {
        if let Some(client) = self.living() {
            return Ok(client);
        }
        let _turn = self.connecting.lock().await;
        if let Some(client) = self.living() {
            return Ok(client);
        }
        let client = self.open().await?;
        *self.client.lock() = Some(client.clone());
        Ok(client)
    }

    /// A separate session for a watch: its events and its answers come in order.
    pub async fn open(&self) -> Result<Client, CallError> {
        let deadline = Instant::now() + self.timeout;
        let mut overtaken = 0;
        loop {
            let begin = Instant::now();
            match timeout_at(deadline, self.connect()).await {
                Ok(Ok(client)) => return Ok(client),
                // The client sends its credentials right after the request for a session. A server on Netty may answer
                // them first, and the client confuses the two answers.
                Ok(Err(ZkError::NoHosts)) if self.auth_file.is_some() && overtaken < OVERTAKEN => {
                    overtaken += 1;
                    tokio::time::sleep(OVERTAKEN_PAUSE).await;
                }
                // A server under load may need longer for a session than the time limit for a silent one.
                Ok(Err(ZkError::NoHosts | ZkError::Timeout))
                    if begin.elapsed() >= SILENCE_LIMIT / 2 && Instant::now() < deadline => {}
                Ok(Err(error @ (ZkError::NoHosts | ZkError::Timeout))) => return Err(self.probe(error).await),
                Ok(Err(error)) => return Err(CallError::Client(error)),
                Err(_) => return Err(CallError::NoAnswer),
            }
        }
    }

    /// Reloads the credentials. Returns whether they have changed, so that it is worth repeating a refused call.
    pub async fn renew_auth(&self) -> bool {
        let Some(path) = self.auth_file.clone() else { return false };
        let read = tokio::task::spawn_blocking(move || read_auth(&path)).await;
        let new = match read {
            Ok(Ok(new)) => new,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot reload the credentials file");
                return false;
            }
            Err(_) => return false,
        };
        if self.auth.lock().as_ref() == Some(&new) {
            return false;
        }
        tracing::info!(servers = self.servers, "the credentials in the file have changed");
        *self.auth.lock() = Some(new.clone());
        self.user.fetch_add(1, Ordering::Relaxed);
        if !self.lasting {
            *self.client.lock() = None;
            return true;
        }
        // Locks live with the session, so the session gets the new credentials in addition to the old.
        match self.living() {
            Some(client) => self.bounded(client.auth(&new.scheme, &new.secret)).await.is_ok(),
            None => true,
        }
    }

    fn living(&self) -> Option<Client> {
        // A session that has lost its server may never find another one (a recreated server refuses clients that have
        // seen newer data than it has); a new session costs little.
        let client = self.client.lock().clone()?;
        let state = client.state();
        let lives = if self.lasting { !state.is_terminated() } else { state == SessionState::SyncConnected };
        lives.then_some(client)
    }

    async fn connect(&self) -> Result<Client, ZkError> {
        let mut connector = Client::connector()
            .with_session_timeout(self.base_timeout)
            .with_connection_timeout(SILENCE_LIMIT.min(self.base_timeout / 2))
            .with_fail_eagerly();
        let auth = self.auth.lock().clone();
        if let Some(Auth { scheme, secret }) = auth {
            connector = connector.with_auth(&scheme, &secret);
        }
        match &self.tls {
            Some(tls) => connector.with_tls(tls.clone()).secure_connect(&self.servers).await,
            None => connector.connect(&self.servers).await,
        }
    }

    /// The client only says that it could not connect: ask the servers why.
    async fn probe(&self, error: ZkError) -> CallError {
        let mut reasons = Vec::new();
        for server in self.servers.split(',') {
            let address = if server.contains(':') { server.to_owned() } else { format!("{server}:2181") };
            let reason = match timeout(PROBE_TIMEOUT, tokio::net::TcpStream::connect(&address)).await {
                Err(_) => format!("no answer within {} s", PROBE_TIMEOUT.as_secs()),
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(_)) if self.tls.is_some() => {
                    "reached, but the TLS handshake failed: check the certificates, and that this is the secure port"
                        .to_owned()
                }
                Ok(Ok(_)) => {
                    "reached, but it does not serve: it has stopped, has no quorum, expects TLS, or is not ZooKeeper"
                        .to_owned()
                }
            };
            reasons.push(format!("{server}: {reason}"));
        }
        CallError::Unreachable(format!("{error}: {}", reasons.join("; ")))
    }

    /// The error of a call in the terms of the contract.
    pub fn explain(&self, error: &CallError) -> BackendError {
        let (failure, message) = match error {
            CallError::NoAnswer => {
                let waited = humantime::format_duration(self.timeout);
                (Failure::Unreachable, format!("no answer within {waited}"))
            }
            CallError::Unreachable(message) => return BackendError::new(Failure::Unreachable, message),
            CallError::TooLarge(bytes) => {
                let message = format!("a request of {bytes} bytes is larger than the servers accept (jute.maxbuffer)");
                (Failure::TooLarge, message)
            }
            CallError::Client(error) => (classify(error), error.to_string()),
        };
        BackendError::new(failure, format!("{}: {message}", self.servers))
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// Time ran out.
    NoAnswer,
    /// No server could be connected.
    Unreachable(String),
    /// A request of so many bytes is larger than the servers accept.
    TooLarge(usize),
    /// The client's own error, which may be an answer.
    Client(ZkError),
}

impl CallError {
    /// Whether the request may have been carried out although no answer came.
    pub fn is_uncertain(&self) -> bool {
        match self {
            CallError::NoAnswer => true,
            CallError::Unreachable(_) | CallError::TooLarge(_) => false,
            // The server has turned it away, or it was never sent.
            CallError::Client(ZkError::Throttled | ZkError::NotReadOnly | ZkError::NoHosts) => false,
            CallError::Client(error) => classify(error) == Failure::Unreachable,
        }
    }
}

fn classify(error: &ZkError) -> Failure {
    match error {
        ZkError::NoNode => Failure::NoNode,
        ZkError::NodeExists => Failure::NodeExists,
        ZkError::BadVersion => Failure::BadVersion,
        ZkError::NoAuth | ZkError::AuthFailed | ZkError::InvalidAcl => Failure::Denied,
        ZkError::ConnectionLoss
        | ZkError::SessionExpired
        | ZkError::SessionMoved
        | ZkError::ClientClosed
        | ZkError::NoHosts
        | ZkError::Timeout
        | ZkError::NotReadOnly
        | ZkError::UnexpectedError(_)
        | ZkError::Throttled
        // The network's own errors.
        | ZkError::Custom(_) => Failure::Unreachable,
        ZkError::QuotaExceeded => Failure::NoSpace,
        _ => Failure::Other,
    }
}

fn read(path: &Path, most: u64) -> Result<String, BackendError> {
    given::read_text(path, most).map_err(|error| wrong(path, error))
}

fn read_auth(path: &Path) -> Result<Auth, BackendError> {
    let line = read(path, given::SECRET)?;
    match line.trim_end_matches(['\r', '\n']).split_once(':') {
        Some((scheme, secret)) => Ok(Auth { scheme: scheme.to_owned(), secret: secret.as_bytes().to_vec() }),
        None => Err(wrong(path, "not of the form SCHEME:AUTH")),
    }
}

fn tls(options: &ZkOptions) -> Result<Option<TlsOptions>, BackendError> {
    let wrong = |error: ZkError| BackendError::new(Failure::Other, format!("TLS files: {error}"));
    let (Some(cert), Some(key)) = (&options.cert, &options.key) else { return Ok(None) };
    let Some(ca) = &options.ca else {
        return Err(BackendError::new(Failure::Other, "--topo-zk-tls-cert needs --topo-zk-tls-ca"));
    };
    let tls = TlsOptions::new().with_pem_ca(&read(ca, given::CERTIFICATE)?).map_err(wrong)?;
    Ok(Some(tls.with_pem_identity(&read(cert, given::CERTIFICATE)?, &read(key, given::CERTIFICATE)?).map_err(wrong)?))
}
