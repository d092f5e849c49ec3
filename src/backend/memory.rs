//! A topology service in this process, for trials and tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::contract::{
    Action, Applied, Backend, BackendError, Change, Failure, Fetched, Guard, Limits, Listing, Node, Owner, Part, Place,
    Revision, Role, SharedPlace, Version, WatchBatch, WatchEvent, WatchStream, check_limits, check_most, check_values,
};
use super::keys::KeySpace;
use super::location::Location;
use super::lock;
use super::together::{Keyed, all_keyed, by_part, keyed};
use crate::name::TopoPath;
use crate::record::layout;

/// How many transactions a watch may be behind, and how many may be held back. A watch that is further behind ends with
/// [`Failure::Compacted`], and its mirror begins again with a list.
const WATCH_QUEUE: usize = 4_096;
/// The same limits as the defaults of etcd, so that what works here works there.
const LIMITS: Limits = Limits { value: 1_500_000, changes: 128 };
/// The same of a whole transaction.
const TRANSACTION_BYTES: usize = 1_572_864;

/// All memory services of this process, by server address.
#[derive(Clone, Debug, Default)]
pub struct MemoryServers(Arc<Mutex<HashMap<String, Arc<Server>>>>);

impl MemoryServers {
    /// The cell at a location; the first use of a server creates it.
    pub fn open(&self, location: &Location) -> Result<Memory, BackendError> {
        let server = self.0.lock().entry(location.server.clone()).or_default().clone();
        Ok(Memory { server, keys: KeySpace::new(&location.root) })
    }

    /// Stores a value before anybody connects: for the sample cluster.
    pub fn put(&self, location: &Location, path: &TopoPath, value: Bytes) -> Result<(), BackendError> {
        let change = Change { path: path.clone(), guard: Guard::Any, action: Action::Put(value) };
        self.open(location)?.apply_now(&[change]).map(drop)
    }

    /// Holds back the events of a server from now on, until [`MemoryServers::let_go`] is called.
    pub fn hold_back(&self, server: &str) {
        if let Some(server) = self.0.lock().get(server) {
            server.state.lock().held.get_or_insert(Held::Events(Vec::new()));
        }
    }

    /// Sends the held-back events to the watches, and later events at once.
    pub fn let_go(&self, server: &str) {
        let Some(server) = self.0.lock().get(server).cloned() else { return };
        let mut state = server.state.lock();
        let held = match state.held.take() {
            Some(Held::Events(events)) => events.into_iter().map(Some).collect(),
            Some(Held::TooMany) => vec![None],
            None => Vec::new(),
        };
        // It is not an error if nobody listens.
        held.into_iter().for_each(|events| drop(server.news.send(events)));
    }
}

#[derive(Debug)]
struct Server {
    state: Mutex<State>,
    /// The events of each transaction; `None` stands for held-back transactions that were too many.
    news: broadcast::Sender<Option<Arc<Vec<KeyEvent>>>>,
}

/// Transactions that the watches have not received yet.
#[derive(Debug)]
enum Held {
    Events(Vec<Arc<Vec<KeyEvent>>>),
    /// They were more than [`WATCH_QUEUE`], and are forgotten.
    TooMany,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    keys: BTreeMap<String, Stored>,
    held: Option<Held>,
}

#[derive(Debug, Clone)]
struct Stored {
    value: Bytes,
    version: Version,
    role: Role,
}

#[derive(Debug, Clone)]
struct KeyEvent {
    key: String,
    stored: Option<Stored>,
    at: Revision,
}

impl Default for Server {
    fn default() -> Self {
        Self { state: Mutex::default(), news: broadcast::channel(WATCH_QUEUE).0 }
    }
}

/// One cell of a memory service.
#[derive(Debug, Clone)]
pub struct Memory {
    server: Arc<Server>,
    keys: KeySpace,
}

fn node(path: TopoPath, stored: &Stored) -> Node {
    Node { path, value: stored.value.clone(), version: stored.version, role: stored.role, modified: None }
}

impl State {
    fn check(&self, Keyed { key, change }: &Keyed<'_>) -> Result<(), BackendError> {
        let found = self.keys.get(key).map(|s| s.version);
        change.require(found, found)
    }

    fn change(&mut self, key: String, action: &Action, role: Role, at: Revision) -> Option<KeyEvent> {
        let stored = match action {
            Action::Check => return None,
            Action::Delete => {
                self.keys.remove(&key);
                None
            }
            Action::Put(value) => {
                let created = self.keys.get(&key).map_or(at, |old| old.version.created);
                let version = Version { number: at.0, written: at, created };
                let stored = Stored { value: value.clone(), version, role };
                self.keys.insert(key.clone(), stored.clone());
                Some(stored)
            }
        };
        Some(KeyEvent { key, stored, at })
    }
}

impl Memory {
    fn list_now(&self, state: &State, dir: &TopoPath) -> Listing {
        let prefix = self.keys.dir_prefix(dir);
        let mut listing = Listing { at: Revision(state.revision), ..Listing::default() };
        for (key, stored) in state.keys.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            match self.keys.path(key.as_bytes()) {
                Some(path) => listing.nodes.push(node(path, stored)),
                None => listing.skipped += 1,
            }
        }
        listing
    }

    fn apply_now(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        check_limits(changes, LIMITS)?;
        self.apply_to(&mut self.server.state.lock(), keyed(&self.keys, changes), Role::Record)
    }

    fn apply_to(&self, state: &mut State, changes: Vec<Keyed<'_>>, role: Role) -> Result<Applied, BackendError> {
        for change in &changes {
            state.check(change)?;
        }
        let at = Revision(state.revision + 1);
        let mut events = Vec::new();
        let mut versions = Vec::new();
        for Keyed { key, change } in changes {
            let event = state.change(key, &change.action, role, at);
            versions.push(event.as_ref().and_then(|e| e.stored.as_ref()).map(|stored| stored.version));
            events.extend(event);
        }
        if !events.is_empty() {
            state.revision = at.0;
            let events = Arc::new(events);
            match &mut state.held {
                Some(Held::Events(held)) if held.len() < WATCH_QUEUE => held.push(events),
                Some(held) => *held = Held::TooMany,
                // Sends under the lock, because watches must get revisions in order. It is not an error if nobody
                // listens.
                None => drop(self.server.news.send(Some(events))),
            }
        }
        Ok(Applied { at: Revision(state.revision), versions })
    }

    fn batch(keys: &KeySpace, events: &[KeyEvent]) -> WatchBatch {
        let mut batch = WatchBatch { events: Vec::new(), at: Revision::default(), skipped: 0 };
        for event in events {
            batch.at = event.at;
            if !event.key.starts_with(keys.prefix()) {
                continue;
            }
            match keys.path(event.key.as_bytes()) {
                Some(path) => {
                    let node = event.stored.as_ref().map(|stored| node(path.clone(), stored));
                    batch.events.push(WatchEvent { path, node, at: event.at });
                }
                None => batch.skipped += 1,
            }
        }
        batch
    }
}

#[async_trait]
impl Backend for Memory {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn gives_signs_of_life(&self) -> bool {
        false
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        Ok(self.list_now(&self.server.state.lock(), dir))
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        let state = self.server.state.lock();
        let stored = state.keys.get(&self.keys.key(path));
        Ok(Fetched { node: stored.map(|stored| node(path.clone(), stored)), at: Revision(state.revision) })
    }

    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        self.apply_now(changes)
    }

    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        let changes = all_keyed(parts, KeySpace::new);
        check_most("changes", changes.len(), LIMITS.changes)?;
        parts.iter().try_for_each(|part| check_values(part.changes, LIMITS))?;
        let size = |change: &Keyed<'_>| change.key.len() + change.change.value_len();
        check_most("bytes", changes.iter().map(size).sum(), TRANSACTION_BYTES)
    }

    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.refuse_parts(parts)?;
        let changes = all_keyed(parts, KeySpace::new);
        let applied = self.apply_to(&mut self.server.state.lock(), changes, Role::Record)?;
        Ok(by_part(&applied, parts))
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let (listing, live) = {
            let state = self.server.state.lock();
            (self.list_now(&state, &TopoPath::root()), self.server.news.subscribe())
        };
        let keys = self.keys.clone();
        let live = futures::stream::unfold(Some(live), |live| async move {
            let mut live = live?;
            let behind = |much: &str| BackendError::new(Failure::Compacted, format!("the watch fell {much} behind"));
            let next = match live.recv().await {
                Ok(Some(events)) => Ok(events),
                Ok(None) => Err(behind("too far")),
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(n)) => Err(behind(&format!("{n} transactions"))),
            };
            let live = next.is_ok().then_some(live);
            Some((next, live))
        });
        Ok((listing, live.map(move |next| next.map(|events| Self::batch(&keys, &events))).boxed()))
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        layout::dir_of_queued(node)
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        let mut state = self.server.state.lock();
        let line = self.keys.dir_prefix(dir);
        let exists = state.keys.range(line.clone()..).next().is_some_and(|(key, _)| key.starts_with(&line));
        if !exists && !layout::needs_no_records(dir) {
            return Err(BackendError::unmet(Guard::Any, dir, None));
        }
        let number = state.revision + 1;
        let path = lock::queued_path(dir, number)?;
        let role = Role::Lock(Owner(u128::from(number)));
        let put = Change { path: path.clone(), guard: Guard::Absent, action: Action::Put(contents.clone()) };
        let applied = self.apply_to(&mut state, keyed(&self.keys, &[put]), role)?;
        let version = applied.versions.into_iter().flatten().next().unwrap_or(Version {
            number,
            written: applied.at,
            created: applied.at,
        });
        let node = Node { path, value: contents.clone(), version, role, modified: None };
        Ok(Arc::new(Waiting { memory: self.clone(), node }))
    }

    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        self.apply_now(&[lock::removal(node)]).map(drop)
    }
}

/// A place in the line. It lives as long as this process.
#[derive(Debug)]
struct Waiting {
    memory: Memory,
    node: Node,
}

#[async_trait]
impl Place for Waiting {
    fn node(&self) -> Option<Node> {
        Some(self.node.clone())
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        let Some(line) = self.node.path.parent() else { return Ok(None) };
        let mut listing = self.memory.list_now(&self.memory.server.state.lock(), &line);
        listing.nodes.sort_by_key(|node| node.version.written);
        if !listing.nodes.iter().any(|node| node.path == self.node.path) {
            return Err(lock::gone(&self.node.path));
        }
        Ok(listing.nodes.into_iter().next().filter(|first| first.path == self.node.path))
    }

    async fn lost(&self) -> BackendError {
        std::future::pending().await
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        match self.memory.apply_now(&[lock::removal(&self.node)]) {
            Ok(applied) => Ok(applied.at),
            // It is gone, or belongs to somebody else now.
            Err(error) if matches!(error.failure, Failure::NoNode | Failure::BadVersion) => Ok(Revision::default()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "test";

    fn memory() -> (MemoryServers, Memory) {
        let servers = MemoryServers::default();
        let location = Location {
            implementation: crate::backend::location::Implementation::Memory,
            server: SERVER.to_owned(),
            root: "/x".to_owned(),
        };
        let memory = servers.open(&location).unwrap();
        (servers, memory)
    }

    fn write(memory: &Memory, times: usize) {
        for time in 0..times {
            let value = Bytes::from(time.to_string());
            let path = TopoPath::parse("f").unwrap();
            memory.apply_now(&[Change { path, guard: Guard::Any, action: Action::Put(value) }]).unwrap();
        }
    }

    /// How many transactions a watch reports, and how it ends if it does.
    async fn told(mut watch: WatchStream) -> (usize, Option<Failure>) {
        let mut told = 0;
        while let Some(Some(next)) = futures::FutureExt::now_or_never(tokio::task::unconstrained(watch.next())) {
            match next {
                Ok(_) => told += 1,
                Err(error) => {
                    assert!(watch.next().await.is_none(), "it has ended");
                    return (told, Some(error.failure));
                }
            }
        }
        (told, None)
    }

    #[tokio::test]
    async fn a_watch_that_is_too_far_behind_ends() {
        for (behind, expected) in [(WATCH_QUEUE, (WATCH_QUEUE, None)), (WATCH_QUEUE + 1, (0, Some(Failure::Compacted)))]
        {
            let (_, memory) = memory();
            let (_, watch) = memory.follow().await.unwrap();
            write(&memory, behind);
            assert_eq!(told(watch).await, expected, "{behind}");
        }
    }

    #[tokio::test]
    async fn what_is_held_back_is_bounded() {
        for (held, expected) in [(WATCH_QUEUE, (WATCH_QUEUE, None)), (WATCH_QUEUE + 1, (0, Some(Failure::Compacted)))] {
            let (servers, memory) = memory();
            servers.hold_back(SERVER);
            let (_, watch) = memory.follow().await.unwrap();
            write(&memory, held);
            servers.let_go(SERVER);
            assert_eq!(told(watch).await, expected, "{held}");
            // A new watch reports everything.
            let (_, watch) = memory.follow().await.unwrap();
            write(&memory, 1);
            assert_eq!(told(watch).await, (1, None), "{held}");
        }
    }
}
