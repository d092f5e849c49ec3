//! What is not in a list is not there, or may not be read: Consul leaves out what the token has no rights to, without a word.
//!
//! Newer servers say so (`X-Consul-Results-Filtered-By-Acls`), but not to everybody. For a single key every server says whether it may
//! be read, whether or not there is one. So a list is believed only if the places may be read where it could have left
//! something out, and a key that was known and is not listed is gone only if it may be read and is not there.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::client::{Client, has_dots};
use crate::backend::contract::{BackendError, Failure};
use crate::backend::keys::KeySpace;
use crate::record::layout;

/// Directories below a root, beside the root itself, where rules may begin that take rights away: the directories of Vitess's records.
const PLACES: [&str; 6] =
    [layout::CELLS, layout::CELLS_ALIASES, layout::KEYSPACES, layout::TABLETS, layout::ELECTIONS, layout::INTERNAL];
/// Questions under way at the same time.
const PIPELINE: usize = 4;

/// The rights of a token to the keys of a cell, as far as they have been seen.
#[derive(Debug)]
pub(super) struct Rights {
    client: Arc<Client>,
    keys: KeySpace,
    /// All keys that were listed and are not known to be gone.
    seen: Mutex<BTreeSet<String>>,
}

impl Rights {
    pub fn new(client: Arc<Client>, keys: KeySpace) -> Self {
        Self { client, keys, seen: Mutex::default() }
    }

    /// Fails with [`Failure::Denied`] if the root may not be read.
    pub async fn probe(&self) -> Result<(), BackendError> {
        match self.keys.prefix() {
            // No key has this name, so nobody can ask for it.
            "" => Ok(()),
            prefix => self.client.may_read_now(prefix).await.map_err(|error| named(error, prefix)),
        }
    }

    /// Fails with [`Failure::Denied`] if something may not be read that a list of the whole cell would have left out.
    pub async fn check(&self) -> Result<(), BackendError> {
        let root = self.keys.prefix();
        let below = PLACES.iter().map(|place| format!("{root}{place}/"));
        // No key has an empty name, so nobody can ask for it.
        let places: Vec<String> =
            Some(root.to_owned()).filter(|root| !root.is_empty()).into_iter().chain(below).collect();
        ask(places.into_iter().map(|key| may_read(self.client.clone(), key)).collect()).await
    }

    /// Takes over a list of all keys below a prefix, made not before an index. Fails with [`Failure::Denied`] if one is missing only
    /// because it may not be read.
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

    /// These keys were not among those that were listed at an index. Fails with [`Failure::Denied`] if one is missing only because
    /// it may not be read.
    pub async fn gone(&self, keys: &[String], index: u64) -> Result<(), BackendError> {
        let asked: Vec<String> = keys.iter().filter(|key| !has_dots(key)).cloned().collect();
        ask(asked.into_iter().map(|key| is_gone(self.client.clone(), key, index)).collect()).await?;
        let mut seen = self.seen.lock();
        for key in keys {
            seen.remove(key);
        }
        Ok(())
    }

    /// A key that was listed.
    pub fn there(&self, key: &str) {
        let mut seen = self.seen.lock();
        if !seen.contains(key) {
            seen.insert(key.to_owned());
        }
    }

    /// Whether a key at or below a directory stands for a directory itself, as Consul's user interface makes them.
    pub fn has_folders(&self, dir: &str) -> bool {
        let seen = self.seen.lock();
        let below = seen.range::<str, _>((Bound::Included(dir), Bound::Unbounded));
        below.take_while(|key| key.starts_with(dir)).any(|key| key.ends_with('/'))
    }
}

/// Asks all, some at a time.
async fn ask(questions: Vec<impl Future<Output = Result<(), BackendError>> + Send>) -> Result<(), BackendError> {
    let mut answers = futures::stream::iter(questions).buffer_unordered(PIPELINE);
    while answers.try_next().await?.is_some() {}
    Ok(())
}

async fn may_read(client: Arc<Client>, key: String) -> Result<(), BackendError> {
    client.may_read(&key).await.map_err(|error| named(error, &key))
}

/// Fails if a key that an answer of this index has left out was there.
async fn is_gone(client: Arc<Client>, key: String, index: u64) -> Result<(), BackendError> {
    let found = client.pair(&key).await.map_err(|error| named(error, &key))?.value;
    match found.filter(|pair| pair.create_index <= index) {
        None => Ok(()),
        // The rights have come back since.
        Some(_) => {
            let message = format!("{key}: Permission denied: it is there, and was left out of a list");
            Err(BackendError::new(Failure::Denied, message))
        }
    }
}

/// Says which key may not be read.
fn named(error: BackendError, key: &str) -> BackendError {
    match error.failure {
        Failure::Denied => {
            let message = format!("{}: the token may not read {key}", error.message);
            BackendError::new(Failure::Denied, message)
        }
        _ => error,
    }
}
