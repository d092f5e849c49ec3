//! If a list does not contain a key, the key does not exist, or we may not read it: Consul silently leaves out keys
//! without rights for the token.
//!
//! Newer servers say so (`X-Consul-Results-Filtered-By-Acls`), but not for every token. For a single key, every server
//! says whether we may read it, even if the key does not exist. So we believe a list only if we may read the places
//! where it could have left something out. And a known key that is not in a list is gone only if we may read it and it
//! does not exist.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::client::{Client, has_dots};
use crate::backend::contract::{BackendError, Failure};
use crate::backend::keys::KeySpace;
use crate::record::layout;

/// The directories below a root where rules may remove rights, besides the root itself: the directories of Vitess's
/// records.
const PLACES: [&str; 6] =
    [layout::CELLS, layout::CELLS_ALIASES, layout::KEYSPACES, layout::TABLETS, layout::ELECTIONS, layout::INTERNAL];
/// Number of questions at the same time; each answer lets the next question go.
const PIPELINE: usize = 4;

/// The known rights of a token for the keys of a cell.
#[derive(Debug)]
pub(super) struct Rights {
    client: Arc<Client>,
    keys: KeySpace,
    /// All listed keys that are not known to be gone.
    seen: Mutex<BTreeSet<String>>,
}

impl Rights {
    pub fn new(client: Arc<Client>, keys: KeySpace) -> Self {
        Self { client, keys, seen: Mutex::default() }
    }

    /// Fails with [`Failure::Denied`] if the root may not be read.
    pub async fn probe(&self) -> Result<(), BackendError> {
        match self.keys.prefix() {
            // No key has this name, so it cannot be asked for.
            "" => Ok(()),
            prefix => self.client.may_read_now(prefix).await.map_err(|error| named(error, prefix)),
        }
    }

    /// Fails with [`Failure::Denied`] if a list of the whole cell would leave out something because it may not be read.
    pub async fn check(&self) -> Result<(), BackendError> {
        let root = self.keys.prefix();
        let below = PLACES.iter().map(|place| format!("{root}{place}/"));
        // No key has an empty name, so it cannot be asked for.
        let places: Vec<String> =
            Some(root.to_owned()).filter(|root| !root.is_empty()).into_iter().chain(below).collect();
        ask(places.into_iter().map(|key| may_read(self.client.clone(), key)).collect()).await
    }

    /// Takes a list of all keys below a prefix, from an index or later. Fails with [`Failure::Denied`] if a key is
    /// missing only because it may not be read.
    pub async fn listed(&self, prefix: &str, keys: Vec<String>, index: u64) -> Result<(), BackendError> {
        let gone = {
            let listed: HashSet<&str> = keys.iter().map(String::as_str).collect();
            let seen = self.seen.lock();
            let below = seen.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
            let below = below.take_while(|key| key.starts_with(prefix));
            below.filter(|key| !listed.contains(key.as_str())).cloned().collect::<Vec<_>>()
        };
        self.gone(&gone, index).await?;
        self.seen.lock().extend(keys);
        Ok(())
    }

    /// Checks keys that were missing in a list at an index. Fails with [`Failure::Denied`] if a key is missing only
    /// because it may not be read.
    pub async fn gone(&self, keys: &[String], index: u64) -> Result<(), BackendError> {
        let asked: Vec<String> = keys.iter().filter(|key| !has_dots(key)).cloned().collect();
        ask(asked.into_iter().map(|key| is_gone(self.client.clone(), key, index)).collect()).await?;
        let mut seen = self.seen.lock();
        for key in keys {
            seen.remove(key);
        }
        Ok(())
    }

    /// Notes a listed key.
    pub fn there(&self, key: &str) {
        let mut seen = self.seen.lock();
        if !seen.contains(key) {
            seen.insert(key.to_owned());
        }
    }

    /// Whether a key at or below a directory is itself a directory, as Consul's user interface creates them.
    pub fn has_folders(&self, dir: &str) -> bool {
        let seen = self.seen.lock();
        let below = seen.range::<str, _>((Bound::Included(dir), Bound::Unbounded));
        below.take_while(|key| key.starts_with(dir)).any(|key| key.ends_with('/'))
    }
}

/// Asks all questions, some at a time.
async fn ask(questions: Vec<impl Future<Output = Result<(), BackendError>> + Send>) -> Result<(), BackendError> {
    let mut answers = futures::stream::iter(questions).buffer_unordered(PIPELINE);
    while answers.try_next().await?.is_some() {}
    Ok(())
}

async fn may_read(client: Arc<Client>, key: String) -> Result<(), BackendError> {
    client.may_read(&key).await.map_err(|error| named(error, &key))
}

/// Fails if an answer of this index has left out an existing key.
async fn is_gone(client: Arc<Client>, key: String, index: u64) -> Result<(), BackendError> {
    let found = client.pair(&key).await.map_err(|error| named(error, &key))?.value;
    match found.filter(|pair| pair.create_index <= index) {
        None => Ok(()),
        // The rights have come back meanwhile.
        Some(_) => {
            let message = format!("{key}: Permission denied: the key exists, but a list left it out");
            Err(BackendError::new(Failure::Denied, message))
        }
    }
}

/// Adds the key to the error.
fn named(error: BackendError, key: &str) -> BackendError {
    match error.failure {
        Failure::Denied => {
            let message = format!("{}: the token may not read {key}", error.message);
            BackendError::new(Failure::Denied, message)
        }
        _ => error,
    }
}
