//! Consul.
//!
//! `client` speaks the HTTP API, `changes` finds out what has changed, `compare` what a watch
//! has lost. This file translates the contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;

use super::contract::{
    Action, Along, Applied, Backend, BackendError, Change, Compared, Failure, Fetched, Guard, Limits, Listing, Node,
    Part, Revision, SharedPlace, Shown, Version, WatchStream, check_limits, check_most, check_values, too_large,
};
use super::keys::KeySpace;
use super::loading::Loading;
use super::location::Location;
use super::lock::removal;
use super::mark::Mark;
use super::together::{Keyed, all_keyed, by_part, keyed};
use crate::name::{CellName, TopoPath};
use crate::record::layout::{LOCK, Lockable, is_election, needs_no_records};

mod call;
mod changes;
mod client;
mod compare;
mod folders;
mod inspect;
mod lock;
mod objects;
mod pair;
mod rights;
mod token;

use changes::Changes;
pub use client::ConsulOptions;
use client::{Client, KvOperation, Operation, Transacted};
use folders::{Sweep, sweep_folders};
use pair::{Pair, bytes, node, owner, session_id, version};
use rights::Rights;

/// Consul refuses transactions of more operations.
const OPERATIONS: usize = 64;
/// Consul refuses values of more than 512 KiB. A change may need two operations.
const LIMITS: Limits = Limits { value: 512 * 1024, changes: OPERATIONS / 2 };
/// Consul refuses requests with a transaction of more bytes (txn_max_req_len).
const REQUEST_BYTES: usize = 512 * 1024;
/// Values of so many bytes certainly fit into such a request, in base64.
const TRANSACTION_BYTES: usize = 350 * 1024;

/// One cell on Consul.
#[derive(Debug)]
pub struct Consul {
    client: Arc<Client>,
    keys: KeySpace,
    terms: Arc<lock::Terms>,
    rights: Arc<Rights>,
    loading: Loading,
}

impl Consul {
    /// Prepares the client, but sends nothing yet.
    pub fn new(
        cell: &CellName,
        location: &Location,
        timeout: Duration,
        options: &ConsulOptions,
    ) -> Result<Self, BackendError> {
        // Consul refuses locks on keys that begin with a slash.
        let keys = KeySpace::relative(&location.root);
        if client::has_dots(keys.prefix()) {
            return Err(BackendError::new(
                Failure::Other,
                format!("{:?} cannot be the root of a topology", location.root),
            ));
        }
        let client = Arc::new(Client::new(&location.server, cell, timeout, options)?);
        let terms = Arc::new(lock::Terms::new(options));
        let rights = Arc::new(Rights::new(client.clone(), keys.clone()));
        Ok(Self { client, keys, terms, rights, loading: Loading::default() })
    }

    /// All keys with a prefix. The index of a prefix can be lower than that of a deletion below it; the index of the
    /// whole store, read before the list, cannot.
    async fn list_prefix(
        &self,
        prefix: &str,
        at: u64,
        loading: &Loading,
    ) -> Result<(Listing, Vec<Pair>), BackendError> {
        // If rights go during the list, they are missing before or after it.
        self.rights.check().await?;
        loading.answered(0);
        let pairs = self.client.all_pairs(prefix, loading).await?.value;
        self.rights.check().await?;
        loading.answered(0);
        self.rights.listed(prefix, pairs.iter().map(|pair| pair.key.clone()).collect(), at).await?;
        let mut listing = Listing { at: Revision(at), ..Listing::default() };
        for pair in &pairs {
            match node(&self.keys, pair)? {
                Some(node) => listing.nodes.push(node),
                None => listing.skipped += 1,
            }
        }
        Ok((listing, pairs))
    }

    async fn transact(&self, changes: &[Keyed<'_>]) -> Result<Applied, BackendError> {
        let operations: Vec<Operation> = changes.iter().flat_map(operations).collect();
        if operations.is_empty() {
            return Ok(Applied { at: Revision(self.client.newest().await?), versions: vec![None; changes.len()] });
        }
        match self.client.transact(&operations).await? {
            Transacted::Refused(words) => Err(self.unmet(changes, &words).await),
            Transacted::Done(pairs) => {
                // Only stored keys come back changed; the index of a deletion is that of the whole store.
                let mut stored = pairs.iter().filter(|pair| changes.iter().any(|change| change.key == pair.key));
                let versions: Vec<Option<Version>> = changes
                    .iter()
                    .map(|Keyed { key, change }| match change.action {
                        Action::Put(_) => stored.find(|pair| pair.key == *key).map(version),
                        Action::Delete | Action::Check => None,
                    })
                    .collect();
                let at = match versions.iter().flatten().next() {
                    Some(version) => version.written,
                    None => Revision(self.gone_at(changes).await?),
                };
                Ok(Applied { at, versions })
            }
        }
    }

    /// The error of the guard that was not met, in the terms of the contract.
    async fn unmet(&self, changes: &[Keyed<'_>], words: &str) -> BackendError {
        for Keyed { key, change } in changes {
            let pair = match self.client.pair(key).await {
                Ok(found) => found.value,
                Err(error) => return error,
            };
            let found = pair.as_ref().map(version);
            let met = match change.guard {
                Guard::Any => change.action != Action::Delete || found.is_some(),
                Guard::Absent => found.is_none(),
                Guard::Version(version) => found == Some(version),
                Guard::Held(holding) => pair.is_some_and(|pair| owner(&pair) == holding.owner),
            };
            if !met {
                return BackendError::unmet(change.guard, &change.path, found);
            }
        }
        BackendError::new(Failure::BadVersion, format!("bad node version: {words}"))
    }

    /// One value that is too large for a transaction.
    async fn put_large(&self, change: &Change, value: &Bytes) -> Result<Applied, BackendError> {
        let key = self.keys.key(&change.path);
        let cas = match change.guard {
            Guard::Any => None,
            Guard::Absent => Some(0),
            Guard::Version(version) => Some(version.number),
            Guard::Held(_) => return Err(BackendError::unmet(change.guard, &change.path, None)),
        };
        if !self.client.put(&key, value.clone(), cas).await? {
            return Err(self.unmet(&[Keyed { key, change }], "the value was not stored").await);
        }
        // The answer does not contain the version.
        let found = self.client.pair(&key).await?;
        let stored = found.value.filter(|pair| bytes(pair).is_ok_and(|stored| stored == *value));
        let version = match stored {
            Some(pair) => version(&pair),
            // Already overtaken: it is older than the current version, which the watch will report.
            None => Version { number: 0, written: Revision(found.index.saturating_sub(1)), created: Revision(0) },
        };
        Ok(Applied { at: version.written, versions: vec![Some(version)] })
    }
}

#[async_trait]
impl Backend for Consul {
    fn limits(&self) -> Limits {
        LIMITS
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        if dir.is_root() {
            return Ok(self.list_root(&Loading::default()).await?.0);
        }
        let at = self.client.newest().await?;
        Ok(self.list_prefix(&self.keys.dir_prefix(dir), at, &Loading::default()).await?.0)
    }

    async fn compare(&self, shown: &dyn Shown, mark: &Mark, _: Duration) -> Result<Compared, BackendError> {
        self.compare_with(shown, mark).await
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        let found = self.client.pair(&self.keys.key(path)).await?;
        let node = found.value.as_ref().map(|pair| node(&self.keys, pair)).transpose()?.flatten();
        Ok(Fetched { node, at: Revision(found.index) })
    }

    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        check_limits(changes, LIMITS)?;
        if changes.iter().map(Change::value_len).sum::<usize>() > TRANSACTION_BYTES {
            return match changes {
                [change @ Change { action: Action::Put(value), .. }] => self.put_large(change, value).await,
                _ => {
                    let message = "more bytes than Consul accepts in one transaction (a held lock is part of it)";
                    Err(BackendError::new(Failure::TooMany, message))
                }
            };
        }
        let applied = self.transact(&keyed(&self.keys, changes)).await?;
        sweep_folders(&self.client, &self.keys, &self.rights, changes, LIMITS.changes).await;
        Ok(applied)
    }

    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        let operations: Vec<Operation> = all_keyed(parts, KeySpace::relative).iter().flat_map(operations).collect();
        check_most("operations", operations.len(), OPERATIONS)?;
        parts.iter().try_for_each(|part| check_values(part.changes, LIMITS))?;
        let body =
            serde_json::to_vec(&operations).map_err(|error| BackendError::new(Failure::Other, error.to_string()));
        check_most("bytes in base64", body?.len(), REQUEST_BYTES)
    }

    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.refuse_parts(parts)?;
        let applied = self.transact(&all_keyed(parts, KeySpace::relative)).await?;
        Ok(by_part(&applied, parts))
    }

    fn along(&self, changes: &[Change]) -> Option<Box<dyn Along>> {
        let (client, keys, rights) = (self.client.clone(), self.keys.clone(), self.rights.clone());
        Some(Box::new(Sweep { client, keys, rights, changes: changes.to_vec(), most: LIMITS.changes }))
    }

    fn identity(&self) -> Option<u64> {
        self.client.identity()
    }

    fn loading(&self) -> Loading {
        self.loading.clone()
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let (listing, pairs) = self.list_root(&self.loading).await?;
        let changes = Changes::new(self.client.clone(), self.rights.clone(), self.keys.clone(), listing.at.0, &pairs);
        let stream = futures::stream::unfold(Some(changes), |changes| async move {
            let mut changes = changes?;
            let next = changes.next().await;
            let state = next.is_ok().then_some(changes);
            Some((next, state))
        });
        Ok((listing, stream.boxed()))
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        match node.name() {
            LOCK => node.parent(),
            _ if is_election(node) => Some(node.clone()),
            _ => None,
        }
    }

    fn cannot_hold(&self, path: &TopoPath, value: &[u8], _: bool) -> Option<String> {
        let dir = self.locked_dir(path).filter(|dir| Lockable::of(dir).is_some());
        let is_lock = || dir.map(|dir| format!("Vitess would use this key as the lock of {dir}"));
        too_large(value.len(), LIMITS).or_else(is_lock)
    }

    fn has_queue(&self) -> bool {
        false
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        let prefix = self.keys.dir_prefix(dir);
        if !needs_no_records(dir) && self.client.keys(&prefix).await?.value.is_empty() {
            // Unless it only looks like it.
            self.client.may_read(&prefix).await?;
            return Err(BackendError::unmet(Guard::Any, dir, None));
        }
        let path = match is_election(dir) {
            true => dir.clone(),
            false => dir.join(LOCK).map_err(|error| BackendError::new(Failure::Other, error.to_string()))?,
        };
        Ok(Arc::new(lock::Waiting::new(&self.client, &self.keys, &self.terms, path, contents.clone())))
    }

    async fn reread_secrets(&self) {
        self.client.reread_token().await;
    }

    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        // The session of the holder stays: it may hold other locks.
        self.apply(&[removal(node)]).await.map(drop)
    }
}

impl Consul {
    /// The index of a transaction without stored values: at least this index of one of its keys.
    async fn gone_at(&self, changes: &[Keyed<'_>]) -> Result<u64, BackendError> {
        let Some(deletion) = changes.iter().find(|keyed| keyed.change.action == Action::Delete) else {
            return self.client.newest().await;
        };
        let found = self.client.pair(&deletion.key).await?;
        Ok(match found.value {
            // The key was recreated since; our change was before that.
            Some(pair) => pair.create_index.saturating_sub(1),
            None => found.index,
        })
    }
}

/// The operations of a change.
fn operations(Keyed { key, change }: &Keyed<'_>) -> Vec<Operation> {
    let operation = |verb, value: Option<&Bytes>, index| {
        let value = value.map(|value| STANDARD.encode(value));
        Operation { kv: KvOperation { verb, key: key.clone(), value, index, session: None } }
    };
    match (&change.action, change.guard) {
        (Action::Put(value), Guard::Any) => vec![operation("set", Some(value), None)],
        (Action::Put(value), Guard::Absent) => vec![operation("cas", Some(value), Some(0))],
        (Action::Put(value), Guard::Version(version)) => vec![operation("cas", Some(value), Some(version.number))],
        (Action::Delete, Guard::Any) => vec![operation("get", None, None), operation("delete", None, None)],
        (Action::Delete, Guard::Version(version)) => {
            vec![operation("get", None, None), operation("delete-cas", None, Some(version.number))]
        }
        (_, Guard::Held(holding)) => {
            let session = Some(session_id(holding.owner));
            let verb = "check-session";
            vec![Operation { kv: KvOperation { verb, key: key.clone(), value: None, index: None, session } }]
        }
        (Action::Check, Guard::Version(version)) => vec![operation("check-index", None, Some(version.number))],
        (Action::Check | Action::Delete, Guard::Absent) => vec![operation("check-not-exists", None, None)],
        (Action::Check, Guard::Any) => Vec::new(),
    }
}
