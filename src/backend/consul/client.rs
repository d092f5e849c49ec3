//! The parts of Consul's HTTP API that topofs needs. Each call is bounded, and each answer has its index.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Identity, StatusCode};
use serde::{Deserialize, Serialize};

use super::call::{Call, Caller, LARGE, MEDIUM, SMALL, causes};
use super::pair::Pair;
use super::token::{Token, fingerprint};
use crate::backend::contract::{BackendError, Failure};
use crate::backend::files::read_certificate;
use crate::backend::loading::Loading;
use crate::name::CellName;

/// Number of idle connections of a cell. An agent accepts 200 from one address (limits.http_max_conns_per_client), for
/// all cells and mounts of a host together.
const IDLE: usize = 2;
/// Highest index to believe: a thousand changes a microsecond would need 292 years for more.
const MOST_INDEX: u64 = u64::MAX / 2;
/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of Consul connections.
#[derive(Clone)]
pub struct ConsulOptions {
    /// JSON file: cell name -> `{"acl_token": "..."}`.
    pub auth_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the client key.
    pub key: Option<PathBuf>,
    /// PEM file of the authorities to trust; enables TLS.
    pub ca: Option<PathBuf>,
    /// How long a blocking query waits for a change.
    pub poll_duration: Duration,
    /// Minimum time that a lock stays after its holder has died; Consul may take up to twice as long.
    pub lock_session_ttl: Duration,
    /// Health checks that the session of a lock depends on; `None` is Consul's default.
    pub lock_session_checks: Option<Vec<String>>,
    /// How long nobody can take a lost lock.
    pub lock_delay: Duration,
}

impl Default for ConsulOptions {
    fn default() -> Self {
        // Vitess's defaults.
        Self {
            auth_file: None,
            cert: None,
            key: None,
            ca: None,
            poll_duration: Duration::from_secs(30),
            lock_session_ttl: Duration::from_secs(15),
            lock_session_checks: None,
            lock_delay: Duration::from_secs(15),
        }
    }
}

impl std::fmt::Debug for ConsulOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsulOptions")
            .field("auth_file", &self.auth_file)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

/// One Consul server, or agent, with the token of one cell.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    caller: Caller,
    timeout: Duration,
    pub poll_duration: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

/// One operation of a transaction.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Operation {
    #[serde(rename = "KV")]
    pub kv: KvOperation,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct KvOperation {
    pub verb: &'static str,
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// The outcome of a transaction.
pub(super) enum Transacted {
    /// The pairs of the operations with a result, in their order.
    Done(Vec<Pair>),
    /// The reasons of a refusal.
    Refused(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TransactionAnswer {
    #[serde(default)]
    results: Option<Vec<TransactionResult>>,
    #[serde(default)]
    errors: Option<Vec<TransactionError>>,
}

#[derive(Deserialize)]
struct TransactionResult {
    #[serde(rename = "KV")]
    kv: Pair,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TransactionError {
    what: String,
}

/// An answer with the index at which it was true.
pub(super) struct Indexed<T> {
    pub value: T,
    pub index: u64,
}

impl Client {
    pub fn new(
        server: &str,
        cell: &CellName,
        timeout: Duration,
        options: &ConsulOptions,
    ) -> Result<Self, BackendError> {
        let server = server.trim().trim_end_matches('/');
        if server.is_empty() || server.contains(',') {
            return Err(BackendError::new(
                Failure::Other,
                format!("{server:?} is not the address of one Consul server"),
            ));
        }
        let secure = options.ca.is_some() || options.cert.is_some();
        let base = match server.contains("://") {
            true => server.to_owned(),
            false if secure => format!("https://{server}"),
            false => format!("http://{server}"),
        };
        // Follow no redirect: it would send the token along.
        let redirect = reqwest::redirect::Policy::none();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE)
            .tcp_nodelay(true)
            .no_proxy()
            .redirect(redirect)
            .https_only(secure);
        if let Some(ca) = &options.ca {
            let ca = Certificate::from_pem(&read_certificate(ca)?).map_err(|error| wrong(&error))?;
            builder = builder.tls_certs_only([ca]);
        }
        if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
            let both = [read_certificate(cert)?, read_certificate(key)?].concat();
            builder = builder.identity(Identity::from_pem(&both).map_err(|error| wrong(&error))?);
        }
        let http = builder.build().map_err(|error| wrong(&error))?;
        let token = Arc::new(Token::new(options.auth_file.as_ref(), cell)?);
        // Consul accepts only whole seconds.
        let poll_duration = Duration::from_secs(options.poll_duration.as_secs().max(1));
        let caller = Caller { shown: base.clone(), token };
        Ok(Self { http, base, caller, timeout, poll_duration })
    }

    /// Reloads the token for the next call.
    pub async fn reread_token(&self) {
        self.caller.token.differs_from(None).await;
    }

    /// Equal for equal tokens.
    pub fn identity(&self) -> Option<u64> {
        self.caller.token.current().map(|token| fingerprint(&token))
    }

    fn call(&self, method: reqwest::Method, path: &str) -> Call {
        let writes = method != reqwest::Method::GET;
        let request = self.http.request(method, format!("{}/v1/{path}", self.base));
        Call { request, time: self.timeout, writes, limit: SMALL, loading: None }
    }

    fn get(&self, path: &str) -> Call {
        self.call(reqwest::Method::GET, path)
    }

    fn put_to(&self, path: &str) -> Call {
        self.call(reqwest::Method::PUT, path)
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, call: Call) -> Result<T, BackendError> {
        let answer = self.caller.send(call).await?;
        self.caller.parse(&answer)
    }

    async fn indexed<T: serde::de::DeserializeOwned + Default>(&self, call: Call) -> Result<Indexed<T>, BackendError> {
        let answer = self.caller.send(call).await?;
        let index = answer.index.ok_or_else(|| {
            BackendError::new(Failure::Other, format!("{}: the answer has no X-Consul-Index", self.caller.shown))
        })?;
        // Nothing that happens would ever come after it.
        if index > MOST_INDEX {
            let message = format!("{}: {index} is not an index of Consul", self.caller.shown);
            return Err(BackendError::new(Failure::Other, message));
        }
        let found = answer.status != StatusCode::NOT_FOUND;
        Ok(Indexed { value: if found { self.caller.parse(&answer)? } else { T::default() }, index })
    }

    /// A read of all keys with a prefix, from a leader that is sure of being the leader. A new leader may not have read
    /// its whole log yet, and would show only a part of the stored keys.
    fn sure(&self, key: &str, query: &[(&str, &str)]) -> Call {
        self.get(&kv(key)).query(query).query(&[("consistent", "")])
    }

    /// One key, as the leader has it.
    pub async fn pair(&self, key: &str) -> Result<Indexed<Option<Pair>>, BackendError> {
        if has_dots(key) {
            let found = self.by_transaction("get", key).await?;
            return Ok(Indexed { index: found.index, value: found.value.into_iter().next() });
        }
        let pairs = self.indexed::<Vec<Pair>>(self.sure(key, &[])).await?;
        Ok(Indexed { index: pairs.index, value: pairs.value.into_iter().next() })
    }

    /// All keys of a cell or a directory, with their values. That may take longer than one call may, as long as the
    /// answer goes on.
    pub async fn all_pairs(&self, prefix: &str, loading: &Loading) -> Result<Indexed<Vec<Pair>>, BackendError> {
        if has_dots(prefix) {
            return self.by_transaction("get-tree", prefix).await;
        }
        let loading = Some(loading.clone());
        self.indexed(Call { limit: LARGE, loading, ..self.sure(prefix, &[("recurse", "")]) }).await
    }

    /// All keys that begin with a prefix, with their values.
    pub async fn pairs(&self, prefix: &str, limit: usize) -> Result<Indexed<Vec<Pair>>, BackendError> {
        if has_dots(prefix) {
            return self.by_transaction("get-tree", prefix).await;
        }
        self.indexed(Call { limit, ..self.sure(prefix, &[("recurse", "")]) }).await
    }

    /// The names of all keys that begin with a prefix.
    pub async fn keys(&self, prefix: &str) -> Result<Indexed<Vec<String>>, BackendError> {
        if has_dots(prefix) {
            let found = self.by_transaction("get-tree", prefix).await?;
            return Ok(Indexed { index: found.index, value: found.value.into_iter().map(|pair| pair.key).collect() });
        }
        self.indexed(Call { limit: MEDIUM, ..self.sure(prefix, &[("keys", "")]) }).await
    }

    /// Whether this token may read a key, even if the key does not exist. Consul reports missing rights only for a
    /// single key, never for a list.
    pub async fn may_read(&self, key: &str) -> Result<(), BackendError> {
        self.caller.send(self.sure(key, &[])).await.map(drop)
    }

    /// The same, but the leader does not ask the others. That costs less; a refusal counts, a success proves nothing.
    pub async fn may_read_now(&self, key: &str) -> Result<(), BackendError> {
        self.caller.send(self.get(&kv(key))).await.map(drop)
    }

    /// Reads keys that cannot be part of an address. The index is that of the whole store, so it may be newer than the
    /// keys. It dates a missing key, which is read again if in doubt.
    async fn by_transaction(&self, verb: &'static str, key: &str) -> Result<Indexed<Vec<Pair>>, BackendError> {
        let index = self.newest().await?;
        let operation =
            Operation { kv: KvOperation { verb, key: key.to_owned(), value: None, index: None, session: None } };
        let value = match self.transact_with(&[operation], false).await? {
            Transacted::Done(pairs) => pairs,
            Transacted::Refused(_) => Vec::new(),
        };
        Ok(Indexed { value, index })
    }

    /// The index of the whole store.
    pub async fn newest(&self) -> Result<u64, BackendError> {
        self.index_of("").await
    }

    /// The index of all keys with a prefix; that of the whole store if there are none.
    pub async fn index_of(&self, prefix: &str) -> Result<u64, BackendError> {
        let call = self.sure(prefix, &[("keys", ""), ("separator", "/")]);
        Ok(self.indexed::<Vec<String>>(call).await?.index)
    }

    /// Waits until something below a prefix changes after an index, or until the poll duration is over. Transfers very
    /// little. An early answer without a change means that the store was replaced.
    pub async fn wait(&self, prefix: &str, after: u64) -> Result<u64, BackendError> {
        /// The server adds up to a sixteenth of the time, and the answer also takes time.
        const MARGIN: Duration = Duration::from_secs(5);
        let wait = format!("{}s", self.poll_duration.as_secs());
        let after = after.to_string();
        let call = self.get(&kv(prefix)).query(&[("keys", ""), ("separator", "/"), ("index", &after), ("wait", &wait)]);
        let time = self.poll_duration.mul_f64(17.0 / 16.0) + MARGIN;
        Ok(self.indexed::<Vec<String>>(Call { time, ..call }).await?.index)
    }

    /// Fails if the server does not answer or has no leader.
    pub async fn probe(&self) -> Result<(), BackendError> {
        self.leader().await.map(drop)
    }

    /// The address of the leader.
    pub async fn leader(&self) -> Result<String, BackendError> {
        let leader: String = self.json(self.get("status/leader")).await?;
        match leader.as_str() {
            "" => Err(BackendError::new(Failure::Unreachable, format!("{}: Consul has no leader", self.caller.shown))),
            _ => Ok(leader),
        }
    }

    /// Keys at one instant. `None` if one that must not exist does, or the other way round.
    pub async fn together(&self, there: &[String], gone: &[String]) -> Result<Option<Vec<Pair>>, BackendError> {
        let operation = |verb: &'static str, key: &String| Operation {
            kv: KvOperation { verb, key: key.clone(), value: None, index: None, session: None },
        };
        let gets = there.iter().map(|key| operation("get", key));
        let checks = gone.iter().map(|key| operation("check-not-exists", key));
        match self.transact_with(&gets.chain(checks).collect::<Vec<_>>(), false).await? {
            Transacted::Done(mut pairs) => {
                pairs.retain(|pair| there.contains(&pair.key));
                Ok(Some(pairs))
            }
            Transacted::Refused(_) => Ok(None),
        }
    }

    pub async fn transact(&self, operations: &[Operation]) -> Result<Transacted, BackendError> {
        self.transact_with(operations, true).await
    }

    async fn transact_with(&self, operations: &[Operation], writes: bool) -> Result<Transacted, BackendError> {
        let limit = if writes { SMALL } else { MEDIUM };
        let call = Call { writes, limit, ..self.put_to("txn") }.json(operations);
        let answer: TransactionAnswer = self.json(call).await?;
        match answer.errors.unwrap_or_default().into_iter().next() {
            Some(error) => Ok(Transacted::Refused(error.what)),
            None => {
                Ok(Transacted::Done(answer.results.unwrap_or_default().into_iter().map(|result| result.kv).collect()))
            }
        }
    }

    /// Stores a value that is too large for a transaction. `cas` 0 creates the key. Returns whether it was stored.
    pub async fn put(&self, key: &str, value: bytes::Bytes, cas: Option<u64>) -> Result<bool, BackendError> {
        let call = self.put_to(&kv(key)).body(value);
        let cas = cas.map(|cas| ("cas", cas.to_string()));
        self.json(call.query(&cas.into_iter().collect::<Vec<_>>())).await
    }
}

/// A request for a session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SessionRequest<'a> {
    pub name: &'a str,
    #[serde(rename = "TTL")]
    pub ttl: String,
    pub lock_delay: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checks: Option<&'a [String]>,
}

#[derive(Deserialize)]
struct SessionAnswer {
    #[serde(rename = "ID")]
    id: String,
}

impl Client {
    /// Creates a session. Returns its id.
    pub async fn create_session(&self, session: &SessionRequest<'_>) -> Result<String, BackendError> {
        Ok(self.json::<SessionAnswer>(self.put_to("session/create").json(session)).await?.id)
    }

    /// Keeps a session alive; `false` if there is no session with that id.
    pub async fn renew_session(&self, id: &str) -> Result<bool, BackendError> {
        let answer = self.caller.send(self.put_to(&format!("session/renew/{id}"))).await?;
        Ok(answer.status != StatusCode::NOT_FOUND)
    }

    /// Ends a session. It is not an error if the session has already ended.
    pub async fn destroy_session(&self, id: &str) -> Result<(), BackendError> {
        self.caller.send(self.put_to(&format!("session/destroy/{id}"))).await.map(drop)
    }

    /// Acquires a key for a session, with a value. Returns whether the key was free.
    pub async fn acquire(
        &self,
        key: &str,
        value: bytes::Bytes,
        session: &str,
        flags: u64,
    ) -> Result<bool, BackendError> {
        let call = self.put_to(&kv(key)).body(value);
        self.json(call.query(&[("acquire", session.to_owned()), ("flags", flags.to_string())])).await
    }
}

/// Whether a part of a key would mean "here" or "above" in an address, in any encoding.
pub(super) fn has_dots(key: &str) -> bool {
    key.split('/').any(|part| matches!(part, "." | ".."))
}

/// The path of a key: each part percent-encoded.
fn kv(key: &str) -> String {
    use std::fmt::Write;
    let mut path = String::from("kv/");
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => path.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(path, "%{byte:02X}")),
        }
    }
    path
}

fn wrong(error: &reqwest::Error) -> BackendError {
    BackendError::new(Failure::Other, format!("TLS files: {}", causes(error)))
}
