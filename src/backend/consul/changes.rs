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
use crate::name::TopoPath;

/// Up to so many keys are read with their values instead of searched further.
const FEW: usize = 16;
/// Number of queries of a search at the same time; the answer to the oldest lets the next one go.
const PIPELINE: usize = 8;
/// Maximum number of looks at prefixes in one search, plus two for each known key, so a search ends, whatever a server
/// answers. If it needs more, it ends the watch with [`Failure::Compacted`], and the mirror begins again with a list.
const LOOKS: usize = 10_000;
/// The part of the poll duration before which the end of a wait is not a timeout. Consul waits for longer, and nearly
/// all is for clocks.
const EARLY: f64 = 0.99;
/// Number of keys that can be read at one instant.
const TOGETHER: usize = 64;
/// How often to search again before reporting changes of keys that never rest as they were found.
const SEARCHES: usize = 16;
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
    /// What was found beyond the last report.
    ahead: Option<Found>,
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
        Self::knowing(client, rights, keys, told, known)
    }

    /// Goes on from keys with their ModifyIndex.
    pub fn knowing(
        client: Arc<Client>,
        rights: Arc<Rights>,
        keys: KeySpace,
        told: u64,
        known: BTreeMap<String, u64>,
    ) -> Self {
        Self { client, rights, keys, told, known, waited: 0, ahead: None, waiting: None }
    }

    /// What differs from the known keys by an index, or later. Not of one moment.
    pub async fn found(&mut self, index: u64) -> Result<Vec<WatchEvent>, BackendError> {
        Ok(self.search(index).await?.batch.events)
    }

    /// The keys as last found, with their ModifyIndex.
    pub fn into_known(mut self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.known)
    }

    /// The next changes, or a sign of life.
    pub async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        if let Some(found) = self.ahead.take() {
            return self.whole(found).await;
        }
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
            return Err(self.replaced(index));
        }
        if index == self.waited {
            // A wait that a restoration has ended says nothing of it: its answer is of the old store.
            let now = self.client.index_of(self.keys.prefix()).await?;
            if now < self.waited {
                return Err(self.replaced(now));
            }
        }
        self.waited = index;
        if index <= self.told {
            return Ok(WatchBatch::default());
        }
        let found = self.search(index).await?;
        self.whole(found).await
    }

    /// Consul was restored from a snapshot, for example: only a comparison helps.
    fn replaced(&self, index: u64) -> BackendError {
        let message = format!("Consul's store was replaced: its index was {} and is {index}", self.waited);
        BackendError::new(Failure::Compacted, message)
    }

    /// Completes what a search has found. Its keys were read one after the other: if something has changed meanwhile,
    /// they may show a part of a transaction. Then they are read again at one instant, together with whatever else has
    /// changed up to then.
    async fn whole(&mut self, mut found: Found) -> Result<WatchBatch, BackendError> {
        for _ in 0..SEARCHES {
            let (there, gone) = found.keys(&self.keys);
            if found.is_of_one_moment() || there.len() + gone.len() > TOGETHER {
                break;
            }
            // Too large for one answer, for example.
            let Ok(together) = self.client.together(&there, &gone).await else { break };
            let next = self.search(self.told).await?;
            let is_complete = next.batch.events.iter().all(|event| found.has(event));
            if let Some(pairs) = together.filter(|_| is_complete) {
                for pair in pairs {
                    if let Some(node) = node(&self.keys, &pair)? {
                        let at = node.version.written;
                        found.batch.events.push(WatchEvent { path: node.path.clone(), node: Some(node), at });
                    }
                }
                found.batch.at = found.batch.events.iter().map(|event| event.at).fold(found.batch.at, Revision::max);
                self.ahead = (!next.batch.events.is_empty()).then_some(next);
                break;
            }
            found.add(next);
        }
        Ok(found.batch)
    }

    /// Finds the changes up to at least the given index.
    async fn search(&mut self, index: u64) -> Result<Found, BackendError> {
        let mut batch = WatchBatch::default();
        let mut begun = None;
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
                // The first look is at everything.
                begun = begun.or(look.index());
                match look {
                    Look::Same => {}
                    Look::Many { prefix, mut keys, .. } => {
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
        Ok(Found { batch, begun: Revision(begun.unwrap_or(index)) })
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
    Many { prefix: String, keys: Vec<String>, index: u64 },
    /// All its keys.
    Few { scope: Scope, pairs: Vec<Pair>, index: u64 },
}

impl Look {
    fn index(&self) -> Option<u64> {
        match self {
            Look::Same => None,
            Look::Many { index, .. } | Look::Few { index, .. } => Some(*index),
        }
    }
}

/// What a search has found.
struct Found {
    batch: WatchBatch,
    /// The index of everything when the search began.
    begun: Revision,
}

impl Found {
    /// Whether nothing that was found has happened during the search.
    fn is_of_one_moment(&self) -> bool {
        self.batch.events.iter().all(|event| event.at <= self.begun)
    }

    fn has(&self, event: &WatchEvent) -> bool {
        self.batch.events.iter().any(|known| known.path == event.path)
    }

    /// The keys that exist, and those that do not, as they were found last.
    fn keys(&self, keys: &KeySpace) -> (Vec<String>, Vec<String>) {
        let last: BTreeMap<_, _> = self.batch.events.iter().map(|event| (&event.path, event.node.is_some())).collect();
        let (there, gone): (Vec<_>, Vec<_>) = last.into_iter().partition(|(_, is_there)| *is_there);
        let named = |paths: Vec<(&TopoPath, bool)>| paths.into_iter().map(|(path, _)| keys.key(path)).collect();
        (named(there), named(gone))
    }

    fn add(&mut self, next: Found) {
        self.batch.events.extend(next.batch.events);
        self.batch.skipped += next.batch.skipped;
        self.batch.at = self.batch.at.max(next.batch.at);
        self.begun = next.begun;
    }
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
        return Ok(Look::Many { prefix, keys: found.value, index: found.index });
    }
    let pairs = client.pairs(&prefix, MEDIUM).await?;
    Ok(Look::Few { scope: Scope::Below(prefix), pairs: pairs.value, index: pairs.index })
}
