//! The watch of a cell. etcd says nothing on a watch where nothing happens, so a dead server would look like a quiet one:
//! we ask for a sign of life and end the stream when none comes.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream as EtcdStream};
use futures::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Connection, classify, watch_client};
use super::node;
use crate::backend::{BackendError, Failure, KeySpace, Revision, SIGN_OF_LIFE, WatchBatch, WatchEvent, WatchStream};

/// How long the server may stay silent after that.
const SILENCE_LIMIT: Duration = Duration::from_secs(6);

struct Watch {
    connection: Arc<Connection>,
    stream: EtcdStream,
    keys: KeySpace,
    last_heard: Instant,
    /// Servers before 3.4 do not answer; there another request tells that they live.
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
    let stream = connection
        .read(|client| {
            let options = WatchOptions::new().with_prefix().with_start_revision(first);
            let prefix = prefix.clone();
            async move {
                let mut stream = watch_client(&client).watch(prefix, Some(options)).await?;
                // The first message says that the watch exists.
                match stream.message().await? {
                    Some(_) => Ok(stream),
                    None => Err(etcd_client::Error::WatchError("the watch was closed".to_owned())),
                }
            }
        })
        .await?;
    let watch = Watch { connection, stream, keys, last_heard: Instant::now(), answers_probes: false, ended: false };
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

impl Watch {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        let mut asked = false;
        loop {
            let patience = match (asked, self.answers_probes) {
                (false, _) => SIGN_OF_LIFE,
                (true, true) => SILENCE_LIMIT,
                // It may be a server that does not answer: not much time is lost by asking in another way.
                (true, false) => SIGN_OF_LIFE.mul_f64(1.5),
            };
            match timeout_at(self.last_heard + patience, self.stream.message()).await {
                Ok(Ok(Some(response))) => {
                    self.answers_probes |= asked;
                    self.last_heard = Instant::now();
                    return self.batch(&response);
                }
                Ok(Ok(None)) => return Err(BackendError::new(Failure::Unreachable, "etcd closed the watch")),
                Ok(Err(error)) => return Err(classify(&error)),
                Err(_) if !asked => {
                    // A full queue of requests means that the connection does not take them: also a silence.
                    if let Ok(Err(error)) = timeout(SIGN_OF_LIFE, self.stream.request_progress()).await {
                        return Err(classify(&error));
                    }
                    asked = true;
                }
                Err(_) if self.answers_probes => {
                    let message = format!("etcd has been silent for {} s", SILENCE_LIMIT.as_secs());
                    return Err(BackendError::new(Failure::Unreachable, message));
                }
                Err(_) => {
                    self.connection.read(|client| async move { client.kv_client().get("/", None).await }).await?;
                    self.last_heard = Instant::now();
                    return Ok(WatchBatch::default());
                }
            }
        }
    }

    /// A message without events is a sign of life. The revision in the header of a message is not used: a watch that is catching
    /// up has not delivered everything up to it.
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
