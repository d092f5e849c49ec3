//! Finds out what has changed, without asking for everything.
//!
//! A blocking query says that something below the root has changed, but not what. But each prefix has its own index: if
//! that has not moved, nothing below it has changed. So this searches the keys as a tree of prefixes, only where the
//! index has moved, until few keys are left, and reads those.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout};

use super::call::MEDIUM;
use super::client::Client;
use super::pair::{Pair, node};
use super::rights::Rights;
use crate::backend::contract::{BackendError, Failure, Revision, SIGN_OF_LIFE, WatchBatch, WatchEvent};
use crate::backend::keys::KeySpace;

/// Up to so many keys are read with their values instead of searched further.
const FEW: usize = 16;
/// Number of queries of a search at the same time; the answer to the oldest lets the next one go.
const PIPELINE: usize = 8;
/// Maximum number of looks at prefixes in one search, plus two for each known key, so a search ends, whatever a server
/// answers. If it needs more, it ends the watch with [`Failure::Compacted`], and the mirror begins again with a list.
const LOOKS: usize = 10_000;
/// The part of the poll duration before which the end of a wait is not a timeout.
const EARLY: f64 = 0.9;
/// How long to trust a silent server.
const SILENCE_LIMIT: std::time::Duration = std::time::Duration::from_secs(6);

/// The keys of a cell as last reported, and where to go on.
pub(super) struct Changes {
    client: Arc<Client>,
    rights: Arc<Rights>,
    keys: KeySpace,
    /// Everything up to this index has been reported.
    told: u64,
    /// ModifyIndex of each stored key.
    known: BTreeMap<String, u64>,
    /// The root's own index at the last wait; lower than the index of everything.
    waited: u64,
    /// The blocking query, and its start time. It goes on during a probe.
    waiting: Option<(tokio::task::JoinHandle<Result<u64, BackendError>>, Instant)>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some((waiting, _)) = &self.waiting {
            waiting.abort();
        }
    }
}

impl Changes {
    pub fn new(client: Arc<Client>, rights: Arc<Rights>, keys: KeySpace, told: u64, pairs: &[Pair]) -> Self {
        let known = pairs.iter().map(|pair| (pair.key.clone(), pair.modify_index)).collect();
        Self { client, rights, keys, told, known, waited: 0, waiting: None }
    }

    /// The next changes, or a sign of life.
    pub async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        let (mut waiting, since) = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                let (client, prefix, waited) = (self.client.clone(), self.keys.prefix().to_owned(), self.waited);
                (tokio::spawn(async move { client.wait(&prefix, waited).await }), Instant::now())
            }
        };
        let Ok(woken) = timeout(SIGN_OF_LIFE, &mut waiting).await else {
            self.waiting = Some((waiting, since));
            // A blocking query does not end when the rights end.
            let probe = async {
                self.client.probe().await?;
                self.rights.probe().await
            };
            return match timeout(SILENCE_LIMIT, probe).await {
                Ok(probed) => probed.map(|()| WatchBatch::default()),
                Err(_) => Err(BackendError::new(Failure::Unreachable, "Consul has been silent for too long")),
            };
        };
        let index = woken.map_err(|_| BackendError::new(Failure::Other, "the blocking query failed"))??;
        let early = since.elapsed() < self.client.poll_duration.mul_f64(EARLY);
        if index < self.waited || (index == self.waited && early) {
            // Consul was restored from a snapshot, for example: only a comparison helps.
            let message = format!("Consul's store was replaced: its index was {} and is {index}", self.waited);
            return Err(BackendError::new(Failure::Compacted, message));
        }
        self.waited = index;
        if index <= self.told {
            return Ok(WatchBatch::default());
        }
        self.search(index).await
    }

    /// Finds the changes up to at least the given index.
    async fn search(&mut self, index: u64) -> Result<WatchBatch, BackendError> {
        let mut batch = WatchBatch::default();
        let mut level = vec![Scope::Below(self.keys.prefix().to_owned())];
        let mut looked = 0;
        while !level.is_empty() {
            looked += level.len();
            if looked > LOOKS + 2 * self.known.len() {
                return Err(BackendError::new(Failure::Compacted, "too many changes to search for"));
            }
            let looks = std::mem::take(&mut level).into_iter().map(|scope| {
                let known: Vec<String> = self.in_scope(&scope).take(FEW + 1).cloned().collect();
                look(self.client.clone(), scope, known.len() > FEW, self.told)
            });
            let looks: Vec<Look> = futures::stream::iter(looks).buffered(PIPELINE).try_collect().await?;
            for look in looks {
                match look {
                    Look::Same => {}
                    Look::Many { prefix, mut keys } => {
                        keys.retain(|key| key.starts_with(&prefix));
                        level.extend(self.branches(&prefix, keys));
                    }
                    Look::Few { scope, pairs, index } => self.tell(&scope, pairs, index, &mut batch).await?,
                }
            }
        }
        self.told = index;
        batch.events.sort_by_key(|event| event.at);
        batch.at = Revision(index);
        Ok(batch)
    }

    fn in_scope(&self, scope: &Scope) -> impl Iterator<Item = &String> + use<'_> {
        let scope = scope.clone();
        let from = match &scope {
            Scope::Below(prefix) | Scope::Key(prefix) => (Bound::Included(prefix.clone()), Bound::Unbounded),
        };
        self.known.range::<String, _>(from).map(|(key, _)| key).take_while(move |key| match &scope {
            Scope::Below(prefix) => key.starts_with(prefix),
            Scope::Key(name) => *key == name,
        })
    }

    /// The scopes that together contain all present and past keys of a prefix: one for each character that follows the
    /// common part, as long as its keys agree, and the prefix itself if it is a key.
    fn branches(&self, prefix: &str, mut keys: Vec<String>) -> Vec<Scope> {
        keys.extend(self.in_scope(&Scope::Below(prefix.to_owned())).cloned());
        keys.sort();
        keys.dedup();
        let next = |key: &String| key.strip_prefix(prefix).and_then(|rest| rest.chars().next());
        keys.chunk_by(|a, b| next(a) == next(b))
            .filter_map(|group| match group {
                [name] => Some(Scope::Key(name.clone())),
                [first, .., last] => {
                    let shared = first.chars().zip(last.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c).collect();
                    Some(Scope::Below(shared))
                }
                [] => None,
            })
            .collect()
    }

    /// Compares the read keys with the known ones.
    async fn tell(
        &mut self,
        scope: &Scope,
        pairs: Vec<Pair>,
        index: u64,
        batch: &mut WatchBatch,
    ) -> Result<(), BackendError> {
        let there: std::collections::HashSet<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
        let gone: Vec<String> = self.in_scope(scope).filter(|key| !there.contains(key.as_str())).cloned().collect();
        self.rights.gone(&gone, index).await?;
        for key in gone {
            self.known.remove(&key);
            match self.keys.path(key.as_bytes()) {
                Some(path) => batch.events.push(WatchEvent { path, node: None, at: Revision(index) }),
                None => batch.skipped += 1,
            }
        }
        for pair in pairs {
            self.rights.there(&pair.key);
            if self.known.insert(pair.key.clone(), pair.modify_index) == Some(pair.modify_index) {
                continue;
            }
            match node(&self.keys, &pair)? {
                Some(node) => {
                    let (path, at) = (node.path.clone(), node.version.written);
                    batch.events.push(WatchEvent { path, node: Some(node), at });
                }
                None => batch.skipped += 1,
            }
        }
        Ok(())
    }
}

/// A part of the keys.
#[derive(Debug, Clone)]
enum Scope {
    /// All that begin with this.
    Below(String),
    /// This one.
    Key(String),
}

/// The result of a look at a scope.
enum Look {
    /// Nothing has changed since.
    Same,
    /// Too much to read.
    Many { prefix: String, keys: Vec<String> },
    /// All its keys.
    Few { scope: Scope, pairs: Vec<Pair>, index: u64 },
}

async fn look(client: Arc<Client>, scope: Scope, known_to_be_many: bool, told: u64) -> Result<Look, BackendError> {
    let prefix = match scope {
        Scope::Key(key) => {
            let found = client.pair(&key).await?;
            return Ok(Look::Few {
                scope: Scope::Key(key),
                pairs: found.value.into_iter().collect(),
                index: found.index,
            });
        }
        Scope::Below(prefix) => prefix,
    };
    // Names are cheap to read, and tell whether the values are, too.
    let found = client.keys(&prefix).await?;
    if found.index <= told {
        return Ok(Look::Same);
    }
    if known_to_be_many || found.value.len() > FEW {
        return Ok(Look::Many { prefix, keys: found.value });
    }
    let pairs = client.pairs(&prefix, MEDIUM).await?;
    Ok(Look::Few { scope: Scope::Below(prefix), pairs: pairs.value, index: pairs.index })
}
