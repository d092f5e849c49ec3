//! The watch of a cell. etcd says nothing on a watch where nothing happens, so a dead server would look like a quiet
//! one, and a member that is cut off from the others goes on as if nothing happened. So we ask the member that the
//! watch is on for two things: to read what only a member with a leader can read, which also tells whether we still
//! may; and then for a message on the watch. The stream ends when they do not come.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream as EtcdStream};
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{self, Connection, watch_client};
use super::errors::classify;
use super::key::node;
use crate::backend::contract::{BackendError, Failure, Revision, SIGN_OF_LIFE, WatchBatch, WatchEvent, WatchStream};
use crate::backend::keys::KeySpace;

/// How long there may be no sign of life.
const SILENCE_LIMIT: Duration = Duration::from_secs(6);

struct Watch {
    connection: Arc<Connection>,
    /// Of the member that the watch is on.
    client: Client,
    generation: u64,
    stream: EtcdStream,
    keys: KeySpace,
    /// The last sign of life: when it was asked for.
    last_heard: Instant,
    /// The next read of the member, or the one under way. Yields when it was begun.
    read: BoxFuture<'static, Result<Instant, etcd_client::Error>>,
    /// A read that was answered, while a message on the watch is still to come.
    answered: Option<Instant>,
    /// Servers before 3.4 do not answer on the watch; there the read alone tells that they live.
    answers_probes: bool,
    ended: bool,
}

pub(super) async fn start(
    connection: Arc<Connection>,
    keys: KeySpace,
    after: Revision,
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
                // The first message says that the watch exists.
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

/// Reads, at a time to come, what stands for the root of the cell: nothing, but only who may read the cell may know.
fn read_at(client: Client, keys: &KeySpace, at: Instant) -> BoxFuture<'static, Result<Instant, etcd_client::Error>> {
    // The empty key stands for nothing; all keys begin at NUL.
    let key = if keys.prefix().is_empty() { vec![0] } else { keys.prefix().as_bytes().to_vec() };
    Box::pin(async move {
        sleep_until(at).await;
        let begun = Instant::now();
        connection::kv(&client).get(key, Some(GetOptions::new().with_keys_only())).await.map(|_| begun)
    })
}

impl Watch {
    /// May be given up at any moment: nothing is lost.
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            // Without an answer on the watch not much time is lost.
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
                    // A full queue of requests means that the connection does not take them: also a silence.
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
                        let message = format!("etcd has given no sign of life for {} s", SILENCE_LIMIT.as_secs());
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
        // While many events come, nobody looks at the clock.
        self.last_heard = Instant::now();
        self.batch(response).map(Some)
    }

    /// A call that was refused with an old password may be tried again.
    async fn refused(&mut self, error: BackendError) -> BackendError {
        if error.failure == Failure::Denied && self.connection.secrets_have_changed_since(self.generation).await {
            return BackendError::new(
                Failure::Unreachable,
                format!("{} (there is another password now)", error.message),
            );
        }
        error
    }

    /// The revision in the header of a message is not used: a watch that is catching up has not delivered everything up
    /// to it.
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
            batch.events.push(WatchEvent { path, node, at });
        }
        Ok(batch)
    }
}

fn cancelled(response: &WatchResponse) -> BackendError {
    if response.compact_revision() > 0 {
        let message = format!("history before revision {} is compacted", response.compact_revision());
        return BackendError::new(Failure::Compacted, message);
    }
    let failure = if response.cancel_reason().contains("permission") { Failure::Denied } else { Failure::Other };
    BackendError::new(failure, format!("etcd cancelled the watch: {}", response.cancel_reason()))
}
