//! The clients of one etcd cluster: one for each server. Each call is bounded, and tries the next server if one does
//! not answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, GetOptions, GetResponse, KvClient};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::errors::{classify, is_of_old_token, is_refusal};
use super::key::{first_key, header_revision};
use super::secrets::{EtcdOptions, Secrets};
use crate::backend::contract::{BackendError, Failure, Revision};
use crate::backend::loading::Ceiling;

/// Largest answer to accept: a page of values at the request limit of any sane server fits.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Most keys of one page of a list.
pub(super) const LARGEST_PAGE: usize = 100_000;
/// How long a call waits for a server before it tries the next one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause before a read tries all servers again.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// How often a read tries all servers.
const READ_ROUNDS: usize = 2;

pub(super) struct Connection {
    servers: Vec<Server>,
    /// Index of the last server that answered.
    preferred: AtomicUsize,
    timeout: Duration,
    secrets: Arc<Secrets>,
    /// Most keys of a page of a list.
    pub page_keys: Ceiling,
}

struct Server {
    address: String,
    /// The client, with the generation of its secrets.
    client: Mutex<Option<(Client, u64)>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.servers.iter().map(|s| &s.address)).finish()
    }
}

/// A failed attempt: the server, and whether the next one may be tried.
struct Attempt {
    error: BackendError,
    /// Whether the request may still have been carried out.
    uncertain: bool,
}

impl Connection {
    /// `servers` is a comma-separated list as in Vitess, with or without a scheme.
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
        let secrets = Secrets::new(options)?;
        let page_keys = Ceiling::new(LARGEST_PAGE);
        Ok(Self { servers, preferred: AtomicUsize::new(0), timeout, secrets, page_keys })
    }

    /// The time for one operation.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Reloads the secrets. Returns whether they differ from those of the given generation.
    pub async fn secrets_have_changed_since(&self, generation: u64) -> bool {
        self.secrets.have_changed_since(generation).await
    }

    /// The generation of the current secrets.
    pub fn generation(&self) -> u64 {
        self.secrets.generation()
    }

    /// Calls until a server answers. Tries all servers more than once, because reading twice does no harm.
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

    /// Reads a range of keys.
    pub async fn range(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, BackendError> {
        self.read(|client| {
            let (key, options) = (key.clone(), options.clone());
            async move { kv(&client).get(key, Some(options)).await }
        })
        .await
    }

    /// The revision of the whole store, for a client with the right to read what is below a prefix.
    pub async fn newest(&self, prefix: &str) -> Result<Revision, BackendError> {
        header_revision(self.range(first_key(prefix), GetOptions::new().with_keys_only()).await?.header())
    }

    /// Calls each server at most once. The flag in the result says whether an earlier attempt may have been carried
    /// out.
    pub async fn write<T, F>(&self, call: impl Fn(Client) -> F) -> Result<(T, bool), BackendError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.round(&call, Instant::now() + self.timeout)
            .await
            .map_err(|attempt| attempt.error.uncertain_if(attempt.uncertain))
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
        let error = last.unwrap_or_else(|| BackendError::new(Failure::Unreachable, "there is no etcd server"));
        Err(Attempt { error, uncertain })
    }

    /// Calls one server, and repeats the call once if new secrets may help.
    async fn attempt<T, F>(&self, server: &Server, call: &impl Fn(Client) -> F, slice: Duration) -> Result<T, Attempt>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let started = Instant::now();
        let generation = self.generation();
        let attempt = match self.try_once(server, call, slice).await {
            Err(attempt) if !attempt.uncertain => attempt,
            outcome => return outcome,
        };
        let again = if is_of_old_token(&attempt.error) {
            *server.client.lock() = None;
            true
        } else {
            attempt.error.failure == Failure::Denied && self.secrets_have_changed_since(generation).await
        };
        if !again {
            return Err(attempt);
        }
        self.try_once(server, call, slice.saturating_sub(started.elapsed())).await
    }

    async fn try_once<T, F>(&self, server: &Server, call: &impl Fn(Client) -> F, slice: Duration) -> Result<T, Attempt>
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
                let uncertain = !is_refusal(&error);
                let error = self.failure(server, &error);
                if error.failure == Failure::Unreachable {
                    *server.client.lock() = None;
                }
                Err(Attempt { error, uncertain })
            }
            Err(_) => {
                // The connection may be dead without an error; the next call makes a new one.
                *server.client.lock() = None;
                Err(Attempt { error: no_answer(server, self.timeout), uncertain: true })
            }
        }
    }

    fn failure(&self, server: &Server, error: &etcd_client::Error) -> BackendError {
        let mut error = classify(error);
        error.message = format!("{}: {}", server.address, error.message);
        // A server that wants a certificate may close the connection before we have read its reason.
        if self.secrets.are_anonymous_tls() && error.failure == Failure::Unreachable {
            error.message.push_str(" (TLS without a client certificate)");
        }
        error
    }

    async fn client(&self, server: &Server) -> Result<Client, etcd_client::Error> {
        let generation = self.generation();
        if let Some((client, of)) = server.client.lock().clone()
            && of == generation
        {
            return Ok(client);
        }
        let client = Client::connect([&server.address], Some(self.secrets.connect_options().await)).await?;
        *server.client.lock() = Some((client.clone(), generation));
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

fn no_answer(server: &Server, waited: Duration) -> BackendError {
    let waited =
        humantime::format_duration(Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)));
    BackendError::new(Failure::Unreachable, format!("{}: no answer within {waited}", server.address))
}
