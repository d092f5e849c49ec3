//! One call to Consul: sent within its time limit, with the current token, and repeated while Consul certainly refuses
//! it only for the moment. Reads the answer up to a limit.

use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder;
use bytes::{Bytes, BytesMut};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::objects::Objects;
use super::token::Token;
use crate::backend::contract::{BackendError, Failure};
use crate::backend::loading::Loading;

/// The words for an answer that does not come, or does not go on.
const LATE: &str = "no answer in time";
/// Longest reason of the server to pass on, in bytes.
const REASON_LIMIT: usize = 500;
/// Largest answer to a read of one key, or to a change: a value of 512 KiB in base64, with room for servers that accept
/// more.
pub(super) const SMALL: usize = 8 << 20;
/// Largest answer to a read of a few keys with their values.
pub(super) const MEDIUM: usize = 32 << 20;
/// Largest list of a whole cell, unpacked. A server that sends more would use up the memory of all cells.
pub(super) const LARGE: usize = 256 << 20;
/// An answer that may take long goes on if so many bytes of it come within the time for one call.
const PROGRESS: usize = 4 << 10;
/// First and longest pause before repeating a call that was refused for the moment.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A request that may be sent more than once.
pub(super) struct Call {
    pub request: RequestBuilder,
    /// Time limit for all attempts together.
    pub time: Duration,
    /// Whether it changes anything.
    pub writes: bool,
    /// Largest answer.
    pub limit: usize,
    /// For an answer that may be so large that it takes longer than one call may: how far it has come. The time limit
    /// is then that of each pause in it.
    pub loading: Option<Loading>,
}

impl Call {
    pub fn query(mut self, query: &(impl serde::Serialize + ?Sized)) -> Self {
        self.request = self.request.query(query);
        self
    }

    pub fn json(mut self, body: &(impl serde::Serialize + ?Sized)) -> Self {
        self.request = self.request.json(body);
        self
    }

    pub fn body(mut self, body: Bytes) -> Self {
        self.request = self.request.body(body);
        self
    }
}

/// An answer: success, 404, or 409 if the store refused.
pub(super) struct Answer {
    pub status: StatusCode,
    pub index: Option<u64>,
    pub body: Bytes,
}

/// Why an attempt failed.
struct Refusal {
    error: BackendError,
    /// The server has certainly done nothing, and may accept the call a moment later.
    again: bool,
}

/// The answer to a refused transaction.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refused {
    #[serde(default)]
    errors: Option<Vec<What>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct What {
    what: String,
}

/// Sends calls: has the name of the server for errors, and the token.
pub(super) struct Caller {
    pub shown: String,
    pub token: Arc<Token>,
}

impl Caller {
    /// Sends a call. Any answer other than success, 404 and a conflict is an error.
    pub(super) async fn send(&self, call: Call) -> Result<Answer, BackendError> {
        let deadline = Instant::now() + call.time;
        let mut pauses = backon::ExponentialBuilder::new()
            .with_min_delay(PAUSES.0)
            .with_max_delay(PAUSES.1)
            .with_jitter()
            .without_max_times()
            .build();
        let mut token_read_again = false;
        loop {
            let token = self.token.current();
            let Refusal { error, again } = match self.attempt(&call, token.as_ref(), deadline).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            // The token may have been replaced. Read the file once for each call, so that a user without rights does
            // not cause more reads from disk than calls.
            if error.failure == Failure::Denied && !token_read_again {
                token_read_again = true;
                if self.token.differs_from(token.as_ref()).await {
                    continue;
                }
            }
            let pause = pauses.next().unwrap_or(PAUSES.1);
            if !again || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, call: &Call, token: Option<&String>, deadline: Instant) -> Result<Answer, Refusal> {
        let certain = |error| Refusal { error, again: false };
        let left = deadline.saturating_duration_since(Instant::now());
        let request = call.request.try_clone().ok_or_else(|| {
            certain(BackendError::new(Failure::Other, format!("{}: the request cannot be made", self.shown)))
        })?;
        let request = match token {
            Some(token) => {
                let mut value = reqwest::header::HeaderValue::from_str(token).map_err(|_| {
                    certain(BackendError::new(Failure::Denied, "the ACL token contains invalid characters"))
                })?;
                value.set_sensitive(true);
                request.header("X-Consul-Token", value)
            }
            None => request,
        };
        let lost = |error: &reqwest::Error| {
            certain(self.failed(error).uncertain_if(call.writes && !error.is_connect() && !error.is_builder()))
        };
        let late = || certain(self.late().uncertain_if(call.writes));
        // The time of an answer that goes on is that of each of its pauses.
        let request = if call.loading.is_some() { request } else { request.timeout(left) };
        let sent = timeout(left, request.send()).await.map_err(|_| late())?;
        let mut response = sent.map_err(|error| lost(&error))?;
        let status = response.status();
        let wanted = status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT);
        // The beginning of a refusal is enough.
        if !wanted {
            let reason = timeout(left, read(&mut response, REASON_LIMIT)).await;
            let body = reason.ok().and_then(Result::ok).map(|(body, _)| body).unwrap_or_default();
            return Err(self.refused(status, &body, call.writes));
        }
        let read = match &call.loading {
            None => read(&mut response, call.limit).await,
            Some(loading) => read_on(&mut response, call, loading).await.ok_or_else(late)?,
        };
        let (body, whole) = read.map_err(|error| lost(&error))?;
        if !whole {
            let message = format!("{}: the answer is larger than {} MiB", self.shown, call.limit >> 20);
            return Err(certain(BackendError::new(Failure::TooLarge, message).uncertain_if(call.writes)));
        }
        if let Some(reason) = (status == StatusCode::CONFLICT).then(|| denial(&body)).flatten() {
            return Err(certain(BackendError::new(Failure::Denied, format!("{}: {reason}", self.shown))));
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        // Since Consul 1.11, for tokens that it knows.
        let filtered =
            header("X-Consul-Results-Filtered-By-Acls").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if filtered && !call.writes {
            let message = format!("{}: Permission denied: the token may not read all of it", self.shown);
            return Err(certain(BackendError::new(Failure::Denied, message)));
        }
        let index = header("X-Consul-Index").and_then(|value| value.parse().ok());
        Ok(Answer { status, index, body })
    }

    fn refused(&self, status: StatusCode, body: &[u8], writes: bool) -> Refusal {
        let reason = String::from_utf8_lossy(body).trim().to_owned();
        let says = |words: &str| reason.to_ascii_lowercase().contains(words);
        let is_rate = status == StatusCode::TOO_MANY_REQUESTS || (status.is_server_error() && says("rate limit"));
        // The request did not reach a server that could have carried it out.
        let no_leader = status.is_server_error() && says("no cluster leader");
        let failure = match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Failure::Denied,
            // Consul answers 500 for an unknown token, and while it has no leader.
            _ if status.is_server_error() && (says("acl not found") || says("permission denied")) => Failure::Denied,
            StatusCode::PAYLOAD_TOO_LARGE if says("too many operations") => Failure::TooMany,
            StatusCode::PAYLOAD_TOO_LARGE => Failure::TooLarge,
            _ if is_rate || status.is_server_error() => Failure::Unreachable,
            _ => Failure::Other,
        };
        let mut message = format!("{}: {status}: {reason}", self.shown);
        if failure == Failure::Denied && says("anonymous token") {
            message.push_str(" (it asks for a token: --consul-auth-static-file)");
        }
        if status.is_redirection() {
            message.push_str(
                "the server redirects to another one, and topofs sends no credentials there: use the other address",
            );
        }
        let certain = failure != Failure::Unreachable || is_rate || no_leader || says("invalid session");
        let error = BackendError::new(failure, message).uncertain_if(writes && !certain);
        Refusal { error, again: is_rate || (no_leader && writes) }
    }

    fn late(&self) -> BackendError {
        BackendError::new(Failure::Unreachable, format!("{}: {LATE}", self.shown))
    }

    pub(super) fn failed(&self, error: &reqwest::Error) -> BackendError {
        let failure = if error.is_decode() || error.is_builder() { Failure::Other } else { Failure::Unreachable };
        BackendError::new(failure, format!("{}: {}", self.shown, causes(error)))
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, BackendError> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            // Only the place and the kind of the error: the text may contain a value.
            let (line, column) = (error.line(), error.column());
            let message = format!("{}: not a valid answer from Consul: line {line}, column {column}", self.shown);
            BackendError::new(Failure::Other, message)
        })
    }
}

/// The unpacked body up to a limit, and whether that is all of it.
async fn read(response: &mut Response, limit: usize) -> reqwest::Result<(Bytes, bool)> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if !take(&mut body, &chunk, limit) {
            return Ok((body.freeze(), false));
        }
    }
    Ok((body.freeze(), true))
}

/// The same for an answer that may take long. `None` if it does not go on: if hardly anything has come within the time
/// for a call.
async fn read_on(response: &mut Response, call: &Call, loading: &Loading) -> Option<reqwest::Result<(Bytes, bool)>> {
    let (mut body, mut objects) = (BytesMut::new(), Objects::default());
    let (mut deadline, mut lately) = (Instant::now() + call.time, 0);
    loop {
        let chunk = match timeout_at(deadline, response.chunk()).await.ok()? {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Some(Ok((body.freeze(), true))),
            Err(error) => return Some(Err(error)),
        };
        lately += chunk.len();
        if lately >= PROGRESS {
            (deadline, lately) = (Instant::now() + call.time, 0);
        }
        if !take(&mut body, &chunk, call.limit) {
            return Some(Ok((body.freeze(), false)));
        }
        loading.answered(objects.count(&chunk));
    }
}

/// Appends a part of a body as far as there is room. Whether it has fitted.
fn take(body: &mut BytesMut, chunk: &[u8], limit: usize) -> bool {
    let room = limit - body.len();
    body.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
    chunk.len() <= room
}

/// The reason if a transaction was refused for missing rights, and not because of stored values.
fn denial(body: &[u8]) -> Option<String> {
    let refused: Refused = serde_json::from_slice(body).ok()?;
    let denied = |what: &String| what.contains("Permission denied") || what.contains("ACL not found");
    refused.errors.unwrap_or_default().into_iter().map(|error| error.what).find(denied)
}

/// The whole chain of causes, without the address: it may contain a secret, and the message already names the server.
pub(super) fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return LATE.to_owned();
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
