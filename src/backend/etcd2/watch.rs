//! The watch of a cell. etcd sends nothing on a quiet watch, so a dead server would look like a quiet one, and a member
//! without a connection to the others goes on as if nothing had happened. So we ask the member of the watch for two
//! things: first a read that only a member with a leader can answer, which also shows whether we still have the right
//! to read; then a message on the watch. If they do not come, the stream ends.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream as EtcdStream};
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{self, Connection, watch_client};
use super::errors::{cancelled, classify};
use super::key::{first_key, node};
use super::past::Told;
use crate::backend::contract::{BackendError, Failure, Revision, SIGN_OF_LIFE, WatchBatch, WatchEvent, WatchStream};
use crate::backend::keys::KeySpace;

/// Longest time without a sign of life.
const SILENCE_LIMIT: Duration = Duration::from_secs(6);

struct Watch {
    connection: Arc<Connection>,
    /// The client of the member with the watch.
    client: Client,
    generation: u64,
    stream: EtcdStream,
    keys: KeySpace,
    /// When the last sign of life was requested.
    last_heard: Instant,
    /// The next or current read of the member. Returns its start time.
    read: BoxFuture<'static, Result<Instant, etcd_client::Error>>,
    /// An answered read, while the message on the watch has not come yet.
    answered: Option<Instant>,
    /// Servers before 3.4 do not answer on the watch; with them, the read alone is the sign of life.
    answers_probes: bool,
    ended: bool,
    told: Told,
}

pub(super) async fn start(
    connection: Arc<Connection>,
    keys: KeySpace,
    (after, told): (Revision, Told),
) -> Result<WatchStream, BackendError> {
    let prefix = keys.prefix().to_owned();
    let first = after.0.saturating_add(1).cast_signed();
    let generation = connection.generation();
    let (stream, client) = connection
        .read(|client| {
            let options = WatchOptions::new().with_prefix().with_start_revision(first);
            let prefix = prefix.clone();
            async move {
                let mut stream = watch_client(&client).watch(prefix, Some(options)).await?;
                // The first message confirms the watch.
                match stream.message().await? {
                    Some(_) => Ok((stream, client)),
                    None => Err(etcd_client::Error::WatchError("the watch was closed".to_owned())),
                }
            }
        })
        .await?;
    let read = read_at(client.clone(), &keys, Instant::now());
    let watch = Watch {
        connection,
        client,
        generation,
        stream,
        keys,
        last_heard: Instant::now(),
        read,
        answered: None,
        answers_probes: false,
        ended: false,
        told,
    };
    Ok(futures::stream::unfold(watch, |mut watch| async move {
        if watch.ended {
            return None;
        }
        let next = watch.next().await;
        watch.ended = next.is_err();
        Some((next, watch))
    })
    .boxed())
}

/// Reads the key of the cell's root at a later time.
fn read_at(client: Client, keys: &KeySpace, at: Instant) -> BoxFuture<'static, Result<Instant, etcd_client::Error>> {
    let key = first_key(keys.prefix());
    Box::pin(async move {
        sleep_until(at).await;
        let begun = Instant::now();
        connection::kv(&client).get(key, Some(GetOptions::new().with_keys_only())).await.map(|_| begun)
    })
}

impl Watch {
    /// The caller may give up at any moment: nothing is lost.
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            // Without an answer on the watch, little time is lost.
            let alone = self.answered.filter(|_| !self.answers_probes).map(|begun| begun + SIGN_OF_LIFE.mul_f64(0.5));
            tokio::select! {
                biased;
                outcome = &mut self.read => {
                    let begun = match outcome {
                        Ok(begun) => begun,
                        Err(error) => return Err(self.refused(classify(&error)).await),
                    };
                    self.read = read_at(self.client.clone(), &self.keys, Instant::now() + SIGN_OF_LIFE);
                    self.answered = Some(begun);
                    // A full queue of requests means that the connection does not accept them: this is also silence.
                    if let Ok(Err(error)) = timeout(SIGN_OF_LIFE, self.stream.request_progress()).await {
                        return Err(classify(&error));
                    }
                }
                message = self.stream.message() => match message {
                    Ok(Some(response)) => {
                        if let Some(batch) = self.heard(&response)? {
                            return Ok(batch);
                        }
                    }
                    Ok(None) => return Err(BackendError::new(Failure::Unreachable, "etcd closed the watch")),
                    Err(error) => return Err(classify(&error)),
                },
                () = sleep_until(alone.unwrap_or(self.last_heard + SILENCE_LIMIT)) => {
                    if alone.is_none() {
                        let limit = SILENCE_LIMIT.as_secs();
                        let message = format!("etcd has given no sign of life for more than {limit} s");
                        return Err(BackendError::new(Failure::Unreachable, message));
                    }
                    return Ok(self.lives());
                }
            }
        }
    }

    /// The member has a leader and the watch is there.
    fn lives(&mut self) -> WatchBatch {
        self.last_heard = self.answered.take().unwrap_or(self.last_heard);
        WatchBatch::default()
    }

    fn heard(&mut self, response: &WatchResponse) -> Result<Option<WatchBatch>, BackendError> {
        if !response.canceled() && response.events().is_empty() {
            self.answers_probes |= self.answered.is_some();
            return Ok(self.answered.is_some().then(|| self.lives()));
        }
        // While many events come, there is no need to look at the clock.
        self.last_heard = Instant::now();
        self.batch(response).map(Some)
    }

    /// After a refusal with an old password, the call may be tried again.
    async fn refused(&mut self, error: BackendError) -> BackendError {
        if error.failure == Failure::Denied && self.connection.secrets_have_changed_since(self.generation).await {
            return BackendError::new(Failure::Unreachable, format!("{} (the password has changed)", error.message));
        }
        error
    }

    /// Ignores the revision in the header of a message: a watch that is catching up has not delivered everything up to
    /// it.
    fn batch(&mut self, response: &WatchResponse) -> Result<WatchBatch, BackendError> {
        if response.canceled() {
            return Err(cancelled(response));
        }
        let mut batch = WatchBatch::default();
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let at = Revision(kv.mod_revision().cast_unsigned());
            batch.at = at;
            let Some(path) = self.keys.path(kv.key()) else {
                batch.skipped += 1;
                continue;
            };
            let node = match event.event_type() {
                EventType::Put => node(&self.keys, kv.clone()),
                EventType::Delete => None,
            };
            self.told.tells(node.is_none().then(|| path.clone()).into_iter(), at);
            batch.events.push(WatchEvent { path, node, at });
        }
        Ok(batch)
    }
}
