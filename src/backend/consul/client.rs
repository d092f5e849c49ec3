//! Consul's HTTP API, as far as it is needed: each call bounded, each answer with its index.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, Identity, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::backend::{BackendError, Failure};
use crate::name::CellName;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest reason of the server that is passed on, in bytes.
const REASON_LIMIT: usize = 500;

/// Settings of Consul connections.
#[derive(Clone)]
pub struct ConsulOptions {
    /// JSON file: cell name -> `{"acl_token": "..."}`.
    pub auth_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the client key.
    pub key: Option<PathBuf>,
    /// PEM file of the authorities to trust; turns TLS on.
    pub ca: Option<PathBuf>,
    /// How long a query may wait for a change.
    pub poll_duration: Duration,
    /// How long a lock outlives its holder, at least; Consul may take up to twice as long.
    pub lock_session_ttl: Duration,
    /// Health checks that the session of a lock depends on; `None` is Consul's default.
    pub lock_session_checks: Option<Vec<String>>,
    /// How long a lock that was lost cannot be taken.
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
    token: Option<String>,
    timeout: Duration,
    pub poll_duration: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A stored key.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Pair {
    pub key: String,
    /// Base64; nothing for an empty value.
    #[serde(default)]
    pub value: Option<String>,
    #[serde(default)]
    pub flags: u64,
    #[serde(default)]
    pub session: Option<String>,
    pub create_index: u64,
    pub modify_index: u64,
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

/// What came of a transaction.
pub(super) enum Transacted {
    /// The pairs of the operations that have one, in their order.
    Done(Vec<Pair>),
    /// Why it was refused.
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
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).no_proxy();
        if let Some(ca) = &options.ca {
            let ca = Certificate::from_pem(&read(ca)?).map_err(|error| wrong(&error))?;
            builder = builder.tls_certs_only([ca]);
        }
        if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
            let both = [read(cert)?, read(key)?].concat();
            builder = builder.identity(Identity::from_pem(&both).map_err(|error| wrong(&error))?);
        }
        let http = builder.build().map_err(|error| wrong(&error))?;
        let token = options.auth_file.as_ref().map(|file| token(file, cell)).transpose()?.flatten();
        // Consul takes whole seconds.
        let poll_duration = Duration::from_secs(options.poll_duration.as_secs().max(1));
        Ok(Self { http, base, token, timeout, poll_duration })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/v1/{path}", self.base)).timeout(self.timeout);
        match &self.token {
            Some(token) => request.header("X-Consul-Token", token),
            None => request,
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(reqwest::Method::GET, path)
    }

    /// Sends; anything but success and 404 is an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, BackendError> {
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        match response.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND || status == StatusCode::CONFLICT => {
                Ok(response)
            }
            status => Err(self.refused(status, &response.text().await.unwrap_or_default())),
        }
    }

    fn refused(&self, status: StatusCode, body: &str) -> BackendError {
        let reason: String = body.trim().chars().take(REASON_LIMIT).collect();
        let failure = match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Failure::Denied,
            StatusCode::PAYLOAD_TOO_LARGE => Failure::TooLarge,
            // Consul says 500 for a token it does not know, and while it has no leader.
            StatusCode::INTERNAL_SERVER_ERROR
                if reason.contains("ACL not found") || reason.contains("Permission denied") =>
            {
                Failure::Denied
            }
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
                Failure::Unreachable
            }
            StatusCode::GATEWAY_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Failure::Unreachable,
            _ => Failure::Other,
        };
        BackendError::new(failure, format!("{}: {status}: {reason}", self.base))
    }

    fn failed(&self, error: &reqwest::Error) -> BackendError {
        let failure = if error.is_decode() || error.is_builder() { Failure::Other } else { Failure::Unreachable };
        BackendError::new(failure, format!("{}: {}", self.base, causes(error)))
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, BackendError> {
        response.json().await.map_err(|error| self.failed(&error))
    }

    fn index(&self, response: &Response) -> Result<u64, BackendError> {
        let header = response.headers().get("X-Consul-Index").and_then(|value| value.to_str().ok()?.parse().ok());
        header.ok_or_else(|| {
            BackendError::new(Failure::Other, format!("{}: the answer has no X-Consul-Index", self.base))
        })
    }

    async fn indexed<T: serde::de::DeserializeOwned + Default>(
        &self,
        request: RequestBuilder,
    ) -> Result<Indexed<T>, BackendError> {
        let response = self.send(request).await?;
        let index = self.index(&response)?;
        let found = response.status() != StatusCode::NOT_FOUND;
        Ok(Indexed { value: if found { self.json(response).await? } else { T::default() }, index })
    }

    /// A read of what begins with a key, as the leader has it once it is sure of being the leader. A server that has just become it may not have
    /// gone through its log yet, and would show a part of what is stored as all there is.
    fn sure(&self, key: &str, query: &[(&str, &str)]) -> RequestBuilder {
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

    /// All keys that begin with a prefix, with their values.
    pub async fn pairs(&self, prefix: &str) -> Result<Indexed<Vec<Pair>>, BackendError> {
        if has_dots(prefix) {
            return self.by_transaction("get-tree", prefix).await;
        }
        self.indexed(self.sure(prefix, &[("recurse", "")])).await
    }

    /// The names of all keys that begin with a prefix.
    pub async fn keys(&self, prefix: &str) -> Result<Indexed<Vec<String>>, BackendError> {
        if has_dots(prefix) {
            let found = self.by_transaction("get-tree", prefix).await?;
            return Ok(Indexed { index: found.index, value: found.value.into_iter().map(|pair| pair.key).collect() });
        }
        self.indexed(self.sure(prefix, &[("keys", "")])).await
    }

    /// Reads what no address can name. The index is that of everything: it may be newer than what was read is old, so what is
    /// missing is dated by it, and read again when in doubt.
    async fn by_transaction(&self, verb: &'static str, key: &str) -> Result<Indexed<Vec<Pair>>, BackendError> {
        let index = self.newest().await?;
        let operation =
            Operation { kv: KvOperation { verb, key: key.to_owned(), value: None, index: None, session: None } };
        let value = match self.transact(&[operation]).await? {
            Transacted::Done(pairs) => pairs,
            Transacted::Refused(_) => Vec::new(),
        };
        Ok(Indexed { value, index })
    }

    /// The index of everything that is stored.
    pub async fn newest(&self) -> Result<u64, BackendError> {
        Ok(self.indexed::<Vec<String>>(self.sure("", &[("keys", ""), ("separator", "/")])).await?.index)
    }

    /// Waits until something below a prefix changes after an index, or the poll duration is over. Transfers hardly anything. An
    /// answer that comes early all the same means that the store was replaced.
    pub async fn wait(&self, prefix: &str, after: u64) -> Result<u64, BackendError> {
        /// The server adds up to a sixteenth of the time, and the answer takes its own.
        const MARGIN: Duration = Duration::from_secs(5);
        let wait = format!("{}s", self.poll_duration.as_secs());
        let after = after.to_string();
        let request = self
            .get(&kv(prefix))
            .query(&[("keys", ""), ("separator", "/"), ("index", &after), ("wait", &wait)])
            .timeout(self.poll_duration.mul_f64(17.0 / 16.0) + MARGIN);
        Ok(self.indexed::<Vec<String>>(request).await?.index)
    }

    /// Whether the server is there and has a leader.
    pub async fn probe(&self) -> Result<(), BackendError> {
        let leader: String = self.json(self.send(self.get("status/leader")).await?).await?;
        match leader.as_str() {
            "" => Err(BackendError::new(Failure::Unreachable, format!("{}: Consul has no leader", self.base))),
            _ => Ok(()),
        }
    }

    pub async fn transact(&self, operations: &[Operation]) -> Result<Transacted, BackendError> {
        let request = self.request(reqwest::Method::PUT, "txn").json(operations);
        let answer: TransactionAnswer = self.json(self.send(request).await?).await?;
        match answer.errors.unwrap_or_default().into_iter().next() {
            Some(error) => Ok(Transacted::Refused(error.what)),
            None => {
                Ok(Transacted::Done(answer.results.unwrap_or_default().into_iter().map(|result| result.kv).collect()))
            }
        }
    }

    /// Stores a value that is too large for a transaction. `cas` 0 creates; says whether it was done.
    pub async fn put(&self, key: &str, value: bytes::Bytes, cas: Option<u64>) -> Result<bool, BackendError> {
        let mut request = self.request(reqwest::Method::PUT, &kv(key)).body(value);
        if let Some(cas) = cas {
            request = request.query(&[("cas", cas.to_string())]);
        }
        self.json(self.send(request).await?).await
    }
}

/// A session, as it is asked for.
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
    /// Makes a session. Returns its id.
    pub async fn create_session(&self, session: &SessionRequest<'_>) -> Result<String, BackendError> {
        let request = self.request(reqwest::Method::PUT, "session/create").json(session);
        Ok(self.json::<SessionAnswer>(self.send(request).await?).await?.id)
    }

    /// Keeps a session alive; `false` if there is none of that id.
    pub async fn renew_session(&self, id: &str) -> Result<bool, BackendError> {
        let response = self.send(self.request(reqwest::Method::PUT, &format!("session/renew/{id}"))).await?;
        Ok(response.status() != StatusCode::NOT_FOUND)
    }

    /// Ends a session. One that has ended already is no error.
    pub async fn destroy_session(&self, id: &str) -> Result<(), BackendError> {
        self.send(self.request(reqwest::Method::PUT, &format!("session/destroy/{id}"))).await.map(drop)
    }

    /// Takes a key for a session, with a value; says whether it was free.
    pub async fn acquire(
        &self,
        key: &str,
        value: bytes::Bytes,
        session: &str,
        flags: u64,
    ) -> Result<bool, BackendError> {
        let request = self.request(reqwest::Method::PUT, &kv(key)).body(value);
        let request = request.query(&[("acquire", session.to_owned()), ("flags", flags.to_string())]);
        self.json(self.send(request).await?).await
    }
}

/// Whether a part of a key would be taken for "here" or "above" in an address, in whatever encoding.
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

fn read(path: &PathBuf) -> Result<Vec<u8>, BackendError> {
    std::fs::read(path).map_err(|error| BackendError::new(Failure::Other, format!("{}: {error}", path.display())))
}

fn wrong(error: &reqwest::Error) -> BackendError {
    BackendError::new(Failure::Other, format!("TLS files: {}", causes(error)))
}

/// The whole chain of causes, without the address: that may hold a secret, and is said anyway.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut texts: Vec<String> = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    match texts.is_empty() {
        true => "the request failed".to_owned(),
        false => texts.join(": "),
    }
}

/// The token of a cell; `None` if the file does not name the cell.
fn token(file: &PathBuf, cell: &CellName) -> Result<Option<String>, BackendError> {
    #[derive(Deserialize)]
    struct Credentials {
        acl_token: String,
    }
    let all: HashMap<String, Credentials> = serde_json::from_slice(&read(file)?).map_err(|error| {
        // The error names a place, never the content.
        let message = format!(
            "{}: not a JSON object of {{\"CELL\": {{\"acl_token\": ...}}}}: line {}",
            file.display(),
            error.line()
        );
        BackendError::new(Failure::Other, message)
    })?;
    if all.is_empty() {
        return Err(BackendError::new(Failure::Other, format!("{}: names no cell", file.display())));
    }
    let found = all.get(cell.as_str()).map(|credentials| credentials.acl_token.clone());
    if found.is_none() {
        tracing::warn!(%cell, file = %file.display(), "no ACL token for this cell");
    }
    Ok(found)
}
