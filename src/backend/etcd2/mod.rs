//! etcd, through its version 3 protocol.
//!
//! `connection` owns the clients (one for each server, because the crate has no fail-over), `secrets` their
//! credentials, `errors` the meaning of failures, `watch` the watch stream, `past` the past of a record, `pages` long
//! lists, `compare` differences, `lineage` whether this is still the same history. This file translates the contract
//! into range reads and transactions.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};

use imbl::OrdMap;

use super::contract::{
    Action, Applied, Backend, BackendError, Change, Compared, Earlier, Failure, Fetched, Guard, Limits, Listing, Node,
    Owner, Part, Revision, SharedPlace, Shown, Take, Version, WatchStream, check_limits, check_most, check_values,
    too_large,
};
use super::keys::KeySpace;
use super::loading::Loading;
use super::location::Location;
use super::lock::removal;
use super::mark::Mark;
use super::together::{Keyed, all_keyed, by_part, keyed};
use crate::name::TopoPath;
use crate::record::layout::needs_no_records;

mod compare;
mod connection;
mod errors;
mod inspect;
mod key;
mod lineage;
mod lock;
mod pages;
mod past;
mod secrets;
mod watch;

use compare::Equal;
use connection::Connection;
use key::{header_revision, locked_dir, node, version};
pub use secrets::{EtcdOptions, read_password};

/// Room in a request for everything besides the value.
const BESIDE_VALUE: usize = 72_864;
/// etcd refuses transactions with more conditions, or more operations, by default (--max-txn-ops).
const OPERATIONS: usize = 128;
/// A put without a condition needs an additional read.
const CHANGE_LIMIT: usize = OPERATIONS / 2;
/// Room in a request for a condition and its operations, besides keys and values.
const BESIDE_KEYS: usize = 64;
/// How often a listing starts again if its revision is compacted meanwhile.
const LIST_ATTEMPTS: u32 = 3;

/// One cell on etcd.
#[derive(Debug)]
pub struct Etcd {
    connection: Arc<Connection>,
    keys: KeySpace,
    lease_ttl: Duration,
    limits: Limits,
    deletions: Arc<past::Deletions>,
    loading: Loading,
    /// Largest request.
    request_bytes: usize,
}

impl Etcd {
    /// Prepares the connection, but sends nothing yet.
    pub fn new(location: &Location, timeout: Duration, options: &EtcdOptions) -> Result<Self, BackendError> {
        let connection = Connection::new(&location.server, timeout, options)?;
        let lease_ttl = options.lease_ttl;
        let value = options.max_request_bytes.saturating_sub(BESIDE_VALUE);
        let limits = Limits { value, changes: CHANGE_LIMIT };
        let (connection, request_bytes) = (Arc::new(connection), options.max_request_bytes);
        let keys = KeySpace::new(&location.root);
        let (deletions, loading) = (Arc::default(), Loading::default());
        Ok(Self { connection, keys, lease_ttl, limits, deletions, loading, request_bytes })
    }

    async fn list_dir(&self, dir: &TopoPath, loading: &Loading) -> Result<Listing, BackendError> {
        let prefix = self.keys.dir_prefix(dir);
        let mut attempt = 1;
        loop {
            match self.list_once(&prefix, loading).await {
                Err(error) if error.failure == Failure::Compacted && attempt < LIST_ATTEMPTS => attempt += 1,
                result => return result,
            }
            loading.begin();
        }
    }

    async fn list_once(&self, prefix: &str, loading: &Loading) -> Result<Listing, BackendError> {
        let (mut nodes, mut skipped) = (Vec::new(), 0);
        let mut take = |kv| {
            match node(&self.keys, kv) {
                Some(node) => nodes.push(node),
                None => skipped += 1,
            }
            Ok(())
        };
        let at = self.pages(prefix, None, loading, &mut take).await?;
        Ok(Listing { nodes, at, skipped, ..Listing::default() })
    }

    /// Everything, with the mark for a comparison.
    async fn list_root(&self, loading: &Loading) -> Result<Listing, BackendError> {
        // Before the list: if the history is replaced meanwhile, the next comparison sees it.
        let lineage = self.lineage().await;
        let mut listing = self.list_dir(&TopoPath::root(), loading).await?;
        if let Some(lineage) = lineage {
            listing.mark = Mark::new(Equal { at: listing.at, skipped: listing.skipped, lineage });
        }
        Ok(listing)
    }

    async fn watch_after(&self, at: Revision) -> Result<WatchStream, BackendError> {
        let told = past::Told::new(&self.deletions, at);
        watch::start(self.connection.clone(), self.keys.clone(), (at, told)).await
    }

    async fn apply_keyed(&self, changes: &[Keyed<'_>]) -> Result<Applied, BackendError> {
        let txn = transaction(changes);
        let answer = self
            .connection
            .write(|client| {
                let txn = txn.clone();
                async move { connection::kv(&client).txn(txn).await }
            })
            .await;
        match answer {
            Ok((response, repeated)) => outcome(changes, &response, repeated),
            // etcd applies the change that uses up the last space, but answers as if it had refused it.
            Err(error) if error.failure == Failure::NoSpace => self.found_after(changes, error).await,
            Err(error) => Err(error),
        }
    }

    /// Finds out whether changes were applied although etcd says that it refused them.
    async fn found_after(&self, changes: &[Keyed<'_>], refusal: BackendError) -> Result<Applied, BackendError> {
        let keys = changes.iter().map(|change| change.key.clone());
        let gets: Vec<TxnOp> = keys.clone().map(|key| TxnOp::get(key, None)).collect();
        // Never true, to get the other branch.
        let never: Vec<Compare> = keys.map(|key| Compare::create_revision(key, CompareOp::Less, 0)).collect();
        let txn = Txn::new().when(never).or_else(gets);
        let look = self.connection.read(|client| {
            let txn = txn.clone();
            async move { connection::kv(&client).txn(txn).await }
        });
        match look.await.and_then(|response| outcome(changes, &response, true)) {
            Ok(applied) => Ok(applied),
            Err(error) => Err(refusal.uncertain_if(error.is_uncertain())),
        }
    }
}

/// How many operations etcd counts: the most of conditions, of what is done, and of what is read instead.
fn operations(changes: &[Keyed<'_>]) -> usize {
    let done: usize = changes
        .iter()
        .map(|Keyed { change, .. }| match change.action {
            Action::Put(_) if change.guard == Guard::Any => 2,
            Action::Put(_) | Action::Delete => 1,
            Action::Check => 0,
        })
        .sum();
    done.max(changes.len())
}

/// The size of a request, or a little more.
fn request_bytes(changes: &[Keyed<'_>]) -> usize {
    // In the condition, in what is done, and in what is read instead.
    let one = |change: &Keyed<'_>| 3 * change.key.len() + change.change.value_len() + BESIDE_KEYS;
    changes.iter().map(one).sum()
}

fn transaction(changes: &[Keyed<'_>]) -> Txn {
    let mut compares = Vec::new();
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for Keyed { key, change } in changes {
        match change.guard {
            Guard::Absent => compares.push(Compare::create_revision(key.clone(), CompareOp::Equal, 0)),
            Guard::Version(version) => {
                let wanted = version.written.0.cast_signed();
                compares.push(Compare::mod_revision(key.clone(), CompareOp::Equal, wanted));
            }
            Guard::Held(holding) => {
                let wanted = holding.version.created.0.cast_signed();
                compares.push(Compare::create_revision(key.clone(), CompareOp::Equal, wanted));
            }
            Guard::Any if change.action == Action::Delete => {
                compares.push(Compare::create_revision(key.clone(), CompareOp::Greater, 0));
            }
            Guard::Any => {}
        }
        refused.push(TxnOp::get(key.clone(), None));
        match &change.action {
            Action::Put(value) => {
                done.push(TxnOp::put(key.clone(), value.to_vec(), None));
                if change.guard == Guard::Any {
                    // Reads the creation revision of the new version.
                    done.push(TxnOp::get(key.clone(), Some(GetOptions::new().with_keys_only())));
                }
            }
            Action::Delete => done.push(TxnOp::delete(key.clone(), None)),
            Action::Check => {}
        }
    }
    Txn::new().when(compares).and_then(done).or_else(refused)
}

/// The version of a record that a transaction has put.
fn put_version(guard: Guard, at: Revision, found: impl FnOnce() -> Option<Version>) -> Option<Version> {
    let written = |created| Some(Version { number: at.0, written: at, created });
    match guard {
        Guard::Absent => written(at),
        Guard::Version(old) => written(old.created),
        Guard::Any | Guard::Held(_) => found(),
    }
}

fn outcome(changes: &[Keyed<'_>], response: &TxnResponse, repeated: bool) -> Result<Applied, BackendError> {
    let at = header_revision(response.header())?;
    let found: Vec<Option<KeyValue>> = response
        .op_responses()
        .into_iter()
        .filter_map(|op| match op {
            TxnOpResponse::Get(mut get) => Some(get.take_kvs().into_iter().next()),
            _ => None,
        })
        .collect();
    if response.succeeded() {
        let mut read = found.iter();
        let versions = changes
            .iter()
            .map(|Keyed { change, .. }| match change.action {
                Action::Put(_) => put_version(change.guard, at, || read.next()?.as_ref().map(version)),
                Action::Delete | Action::Check => None,
            })
            .collect();
        return Ok(Applied { at, versions });
    }
    let pairs = || changes.iter().map(|keyed| keyed.change).zip(&found);
    if repeated && pairs().all(|(change, kv)| holds(change, kv.as_ref())) {
        // The first attempt was applied, but its answer was lost.
        let versions = pairs().map(|(_, kv)| kv.as_ref().map(version)).collect();
        return Ok(Applied { at, versions });
    }
    for (change, kv) in pairs() {
        let found = kv.as_ref().map(version);
        let met = match change.guard {
            Guard::Any => change.action != Action::Delete || found.is_some(),
            Guard::Absent => found.is_none(),
            Guard::Version(version) => found.is_some_and(|f| f.written == version.written),
            Guard::Held(holding) => found.is_some_and(|f| f.created == holding.version.created),
        };
        if !met {
            let error = BackendError::unmet(change.guard, &change.path, found);
            // The first attempt may have done it, or another process. Creation is exclusive, so we do not assume that
            // it is ours.
            let is_done = match &change.action {
                Action::Put(value) => kv.as_ref().is_some_and(|kv| kv.value() == value),
                Action::Delete => kv.is_none(),
                Action::Check => false,
            };
            let perhaps_ours = repeated && is_done;
            return Err(error.uncertain_if(perhaps_ours));
        }
    }
    Err(BackendError::new(Failure::Other, "etcd refused the transaction without a reason"))
}

/// Whether the store is already in the wanted state, probably because of our own earlier attempt, whose answer was
/// lost. This never assumes that a creation is ours: creation is exclusive, and another process may have made the key.
fn holds(change: &Change, kv: Option<&KeyValue>) -> bool {
    match (&change.action, change.guard, kv) {
        (Action::Put(value), Guard::Version(old), Some(kv)) => {
            kv.value() == &value[..] && kv.mod_revision().cast_unsigned() > old.written.0
        }
        (Action::Delete, Guard::Version(_), None) | (Action::Check, Guard::Held(_), _) => true,
        _ => false,
    }
}

#[async_trait]
impl Backend for Etcd {
    fn limits(&self) -> Limits {
        self.limits
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        if dir.is_root() {
            return self.list_root(&Loading::default()).await;
        }
        self.list_dir(dir, &Loading::default()).await
    }

    async fn compare(&self, shown: &dyn Shown, mark: &Mark, _: Duration) -> Result<Compared, BackendError> {
        self.compare_with(shown, mark).await
    }

    async fn list_at(&self, dir: &TopoPath, at: Revision, take: &mut Take<'_>) -> Result<(), BackendError> {
        let mut take = |kv| node(&self.keys, kv).map_or(Ok(()), &mut *take);
        self.pages(&self.keys.dir_prefix(dir), Some(at), &Loading::default(), &mut take).await.map(drop)
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        let mut response = self.connection.range(self.keys.key(path).into_bytes(), GetOptions::new()).await?;
        let at = header_revision(response.header())?;
        let node = response.take_kvs().into_iter().next().and_then(|kv| node(&self.keys, kv));
        Ok(Fetched { node, at })
    }

    async fn earlier(&self, path: &TopoPath) -> Result<Option<Earlier>, BackendError> {
        self.earlier_states(path).await.map(Some)
    }

    async fn deleted(&self) -> Result<Option<OrdMap<TopoPath, Vec<Revision>>>, BackendError> {
        self.deletions().await.map(Some)
    }

    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        check_limits(changes, self.limits())?;
        self.apply_keyed(&keyed(&self.keys, changes)).await
    }

    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        let changes = all_keyed(parts, KeySpace::new);
        check_most("operations", operations(&changes), OPERATIONS)?;
        parts.iter().try_for_each(|part| check_values(part.changes, self.limits))?;
        check_most("bytes", request_bytes(&changes), self.request_bytes)
    }

    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.refuse_parts(parts)?;
        let applied = self.apply_keyed(&all_keyed(parts, KeySpace::new)).await?;
        Ok(by_part(&applied, parts))
    }

    fn cannot_hold(&self, path: &TopoPath, value: &[u8], _: bool) -> Option<String> {
        let is_lock = || key::blocks_as_copied(path).then(|| "it would be taken for a lock".to_owned());
        too_large(value.len(), self.limits).or_else(is_lock)
    }

    fn loading(&self) -> Loading {
        self.loading.clone()
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let listing = self.list_root(&self.loading).await?;
        let stream = self.watch_after(listing.at).await?;
        Ok((listing, stream))
    }

    async fn follow_again(&self, shown: &dyn Shown, mark: &Mark) -> Result<(Compared, WatchStream), BackendError> {
        let compared = self.differences_or_list(shown, mark).await?;
        let stream = self.watch_after(compared.listing().at).await?;
        Ok((compared, stream))
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        locked_dir(node)
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        if !needs_no_records(dir) {
            let below = GetOptions::new().with_prefix().with_keys_only().with_limit(1);
            let found = self.connection.range(self.keys.dir_prefix(dir).into_bytes(), below).await?;
            if found.kvs().is_empty() {
                return Err(BackendError::unmet(Guard::Any, dir, None));
            }
        }
        Ok(Arc::new(lock::enter(&self.connection, &self.keys, dir, contents, self.lease_ttl).await?))
    }

    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        if node.owner() != Owner::UNBOUND {
            return lock::break_lease(&self.connection, node.owner()).await;
        }
        match self.apply(&[removal(node)]).await {
            // The change removes a lock, and the lock is gone.
            Err(error) if error.failure == Failure::NoNode => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn time_left(&self, owner: Owner) -> Result<Option<Duration>, BackendError> {
        if owner == Owner::UNBOUND {
            return Ok(None);
        }
        lock::time_left(&self.connection, owner).await
    }

    async fn reread_secrets(&self) {
        self.connection.secrets_have_changed_since(self.connection.generation()).await;
    }
}
