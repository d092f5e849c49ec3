//! The clients of one etcd cluster: one per server, each call bounded, the next server tried when one does not answer.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, Identity, KvClient, TlsOptions};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::KEEP_ALIVE;
use crate::backend::{BackendError, Failure};

/// Largest answer that we accept: a page of values at the request limit of any sane server fits.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// How long a connection attempt may take, so that the next server gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a server without an answer keeps a call from trying the next one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause before a read goes round the servers again.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// How often a read goes round the servers.
const READ_ROUNDS: usize = 2;

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
    /// How long a lock outlives its holder, in whole seconds.
    pub lease_ttl: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        // Vitess's default.
        Self { cert: None, key: None, ca: None, user: None, lease_ttl: Duration::from_secs(30) }
    }
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        f.debug_struct("EtcdOptions").field("cert", &self.cert).field("ca", &self.ca).field("user", &user).finish()
    }
}

pub(super) struct Connection {
    servers: Vec<Server>,
    /// Index of the server that answered last.
    preferred: AtomicUsize,
    timeout: Duration,
    anonymous_tls: bool,
    options: etcd_client::ConnectOptions,
}

struct Server {
    address: String,
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.servers.iter().map(|s| &s.address)).finish()
    }
}

/// A failed attempt: on which server, and whether the next one may be tried.
struct Attempt {
    error: BackendError,
    /// The request may have been carried out all the same.
    uncertain: bool,
}

impl Connection {
    /// `servers` is a comma list as Vitess takes it, with or without a scheme.
    pub fn new(servers: &str, timeout: Duration, options: &EtcdOptions) -> Result<Self, BackendError> {
        let servers: Vec<Server> = servers
            .split(',')
            .map(str::trim)
            .filter(|address| !address.is_empty())
            .map(|address| Server { address: address.to_owned(), client: Mutex::new(None) })
            .collect();
        if servers.is_empty() {
            return Err(BackendError::new(Failure::Other, "no etcd server address is given"));
        }
        let connect = etcd_client::ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, CONNECT_TIMEOUT)
            .with_auto_token_refresh(true);
        let connect = match tls(options)? {
            Some(tls) => connect.with_tls(tls),
            None => connect,
        };
        let connect = match &options.user {
            Some((name, password)) => connect.with_user(name, password),
            None => connect,
        };
        let anonymous_tls = options.ca.is_some() && options.cert.is_none();
        Ok(Self { servers, preferred: AtomicUsize::new(0), timeout, anonymous_tls, options: connect })
    }

    /// Calls until a server answers; goes round the servers more than once, because reading twice does no harm.
    pub async fn read<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut round = 1;
        loop {
            match self.round(&call, deadline).await {
                Err(attempt) if attempt.error.failure == Failure::Unreachable && round < READ_ROUNDS => round += 1,
                result => return result.map(|(value, _)| value).map_err(|attempt| attempt.error),
            }
            if deadline.saturating_duration_since(Instant::now()) > ROUND_PAUSE {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    /// Calls each server at most once. The flag in the result says that an earlier attempt may have been carried out.
    pub async fn write<T, F>(&self, call: impl Fn(Client) -> F) -> Result<(T, bool), BackendError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.round(&call, Instant::now() + self.timeout).await.map_err(|attempt| {
            let mut error = attempt.error;
            if attempt.uncertain {
                error.message.push_str(" (it may have been carried out)");
            }
            error
        })
    }

    async fn round<T, F>(&self, call: &impl Fn(Client) -> F, deadline: Instant) -> Result<(T, bool), Attempt>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut uncertain = false;
        let mut last = None;
        for step in 0..self.servers.len() {
            let index = (first + step) % self.servers.len();
            let Some(server) = self.servers.get(index) else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            let others_left = step + 1 < self.servers.len();
            let slice = if others_left { left.min(ATTEMPT_TIMEOUT) } else { left };
            match self.attempt(server, call, slice).await {
                Ok(value) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((value, uncertain));
                }
                Err(attempt) => {
                    uncertain |= attempt.uncertain;
                    let next = attempt.error.failure == Failure::Unreachable;
                    last = Some(attempt.error);
                    if !next {
                        break;
                    }
                }
            }
        }
        let error = last.unwrap_or_else(|| BackendError::new(Failure::Unreachable, "no etcd server"));
        Err(Attempt { error, uncertain })
    }

    async fn attempt<T, F>(&self, server: &Server, call: &impl Fn(Client) -> F, slice: Duration) -> Result<T, Attempt>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let started = Instant::now();
        let client = match timeout(slice, self.client(server)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(Attempt { error: self.failure(server, &error), uncertain: false }),
            Err(_) => return Err(Attempt { error: no_answer(server, self.timeout), uncertain: false }),
        };
        let left = slice.saturating_sub(started.elapsed());
        match timeout(left, call(client)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let uncertain = !never_sent(&error);
                let error = self.failure(server, &error);
                if error.failure == Failure::Unreachable {
                    *server.client.lock() = None;
                }
                Err(Attempt { error, uncertain })
            }
            Err(_) => {
                // The connection may be dead without knowing it; the next call makes a new one.
                *server.client.lock() = None;
                Err(Attempt { error: no_answer(server, self.timeout), uncertain: true })
            }
        }
    }

    fn failure(&self, server: &Server, error: &etcd_client::Error) -> BackendError {
        let mut error = classify(error);
        error.message = format!("{}: {}", server.address, error.message);
        // A server that wants a certificate may close the connection before its reason has been read.
        if self.anonymous_tls && error.failure == Failure::Unreachable {
            error.message.push_str(" (TLS without a client certificate)");
        }
        error
    }

    async fn client(&self, server: &Server) -> Result<Client, etcd_client::Error> {
        if let Some(client) = server.client.lock().clone() {
            return Ok(client);
        }
        let client = Client::connect([&server.address], Some(self.options.clone())).await?;
        *server.client.lock() = Some(client.clone());
        Ok(client)
    }
}

/// The key-value client, with room for large pages.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER)
}

/// The watch client, with room for large events.
pub(super) fn watch_client(client: &Client) -> etcd_client::WatchClient {
    client.watch_client().max_decoding_message_size(MAX_ANSWER)
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

fn no_answer(server: &Server, waited: Duration) -> BackendError {
    let waited =
        humantime::format_duration(Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)));
    BackendError::new(Failure::Unreachable, format!("{}: no answer within {waited}", server.address))
}

/// gRPC codes as etcd uses them.
pub(super) fn classify(error: &etcd_client::Error) -> BackendError {
    // tonic's numbers: https://grpc.io/docs/guides/status-codes
    const NOT_FOUND: i32 = 5;
    const INVALID_ARGUMENT: i32 = 3;
    const DEADLINE_EXCEEDED: i32 = 4;
    const PERMISSION_DENIED: i32 = 7;
    const FAILED_PRECONDITION: i32 = 9;
    const OUT_OF_RANGE: i32 = 11;
    const UNAVAILABLE: i32 = 14;
    const UNAUTHENTICATED: i32 = 16;
    const UNKNOWN: i32 = 2;
    const CANCELLED: i32 = 1;
    let etcd_client::Error::GRpcStatus(status) = error else {
        let failure = match error {
            etcd_client::Error::IoError(_)
            | etcd_client::Error::TransportError(_)
            | etcd_client::Error::WatchError(_) => Failure::Unreachable,
            _ => Failure::Other,
        };
        return BackendError::new(failure, with_sources(error));
    };
    let message = status.message();
    let failure = match status.code() as i32 {
        UNAVAILABLE | DEADLINE_EXCEEDED | CANCELLED => Failure::Unreachable,
        // The server's own words; without them it is the transport that broke.
        UNKNOWN if !message.starts_with("etcdserver") => Failure::Unreachable,
        PERMISSION_DENIED | UNAUTHENTICATED => Failure::Denied,
        NOT_FOUND => Failure::NoNode,
        INVALID_ARGUMENT if message.contains("too large") => Failure::TooLarge,
        INVALID_ARGUMENT if message.contains("too many operations") => Failure::TooMany,
        INVALID_ARGUMENT if message.contains("authentication") || message.contains("user name") => Failure::Denied,
        FAILED_PRECONDITION if message.contains("authentication") => Failure::Denied,
        OUT_OF_RANGE if message.contains("compacted") => Failure::Compacted,
        _ => Failure::Other,
    };
    BackendError::new(failure, with_sources(status))
}

/// The whole chain of causes: the reason for a failed connection is at its end.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<etcd_client::Error>() {
        None => String::new(),
        Some(error) => error.to_string(),
    };
    if text.is_empty() {
        text = status_text(error);
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A gRPC status prints its whole metadata; its message alone is what people can read.
fn status_text(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    match text.split_once("message: \"") {
        Some((_, rest)) => rest.split_once('"').map_or(text.clone(), |(message, _)| message.to_owned()),
        None => text,
    }
}

/// Whether the request certainly did not reach the server.
fn never_sent(error: &etcd_client::Error) -> bool {
    let text = with_sources(error);
    text.contains("Connection refused") || text.contains("dns error") || text.contains("connect error")
}
