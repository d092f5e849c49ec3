//! The line for a lock on ZooKeeper: each waiter has an ephemeral sequential node, and all belong to one session. The
//! lowest number holds the lock.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use zookeeper_client::{Acls, Client, CreateMode, Error as ZkError, MultiReadResult, SessionState};

use super::look::Access;
use super::roles::is_number;
use super::session::{CallError, SILENCE_LIMIT, Sessions};
use super::write::{self, CellChanges, FILE_ACL};
use super::znode::{owner, version, znode_path};
use crate::backend::contract::{BackendError, Failure, Guard, Node, Owner, Place, Revision, Role};
use crate::backend::keys::KeySpace;
use crate::backend::lock::{self, removal};
use crate::name::TopoPath;
use crate::record::layout::{LOCKS, is_election, needs_no_records};

/// How often to try for a place while another process removes the empty directory.
const ATTEMPTS: usize = 32;
/// Pause between attempts to remove a place whose answer was lost.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The lines in which this process stands, all with one session.
#[derive(Debug)]
pub(super) struct Lines {
    sessions: Arc<Sessions>,
    keys: KeySpace,
    /// The znodes of our places. Locked while a request makes one: any other node of our session comes from a request
    /// whose answer was lost.
    ours: tokio::sync::Mutex<HashSet<Made>>,
}

/// A znode and the transaction that created it. A name alone may repeat: numbers start over in a new directory.
type Made = (String, i64);

/// A place in the line.
#[derive(Debug)]
struct Waiting {
    lines: Arc<Lines>,
    client: Client,
    /// The directory of all places.
    line: String,
    node: Node,
}

/// The znode with the places in a directory's line.
pub(super) fn line_of(keys: &KeySpace, dir: &TopoPath) -> String {
    let dir_node = znode_path(keys, dir);
    match is_election(dir) {
        true => dir_node,
        false => format!("{}/{LOCKS}", dir_node.trim_end_matches('/')),
    }
}

impl Lines {
    pub fn new(sessions: Arc<Sessions>, keys: KeySpace) -> Arc<Self> {
        Arc::new(Self { sessions, keys, ours: tokio::sync::Mutex::default() })
    }

    pub async fn enter(self: &Arc<Self>, dir: &TopoPath, contents: &Bytes) -> Result<Arc<dyn Place>, BackendError> {
        let explain = |error: CallError| self.sessions.explain(&error);
        let client = self.sessions.client().await.map_err(explain)?;
        if !needs_no_records(dir) {
            // ZooKeeper would create the directory.
            let children = self.sessions.bounded(client.list_children(&znode_path(&self.keys, dir))).await;
            match children {
                Ok(names) if names.iter().any(|name| name != LOCKS) => {}
                Ok(_) | Err(CallError::Client(ZkError::NoNode)) => {
                    return Err(BackendError::unmet(Guard::Any, dir, None));
                }
                Err(error) => return Err(self.sessions.explain(&error)),
            }
        }
        let line = line_of(&self.keys, dir);
        let mut ours = self.ours.lock().await;
        match self.create(&client, &line, contents).await {
            Ok((path, stat)) => {
                ours.insert((path.clone(), stat.czxid));
                let shown = self.keys.path(path.as_bytes());
                let path =
                    shown.ok_or_else(|| BackendError::new(Failure::Other, format!("not a valid path: {path}")))?;
                let role = Role::Lock(owner(client.session_id().0));
                let node = Node { path, value: contents.clone(), version: version(&stat), role, modified: None };
                Ok(Arc::new(Waiting { lines: self.clone(), client, line, node }))
            }
            Err(error) => {
                let explained = self.sessions.explain(&error);
                if error.is_uncertain() {
                    tokio::spawn(self.clone().sweep(client, line));
                }
                Err(explained)
            }
        }
    }

    async fn create(
        &self,
        client: &Client,
        line: &str,
        contents: &Bytes,
    ) -> Result<(String, zookeeper_client::Stat), CallError> {
        let place = format!("{line}/");
        let ephemeral = CreateMode::EphemeralSequential.with_acls(Acls::new(&*FILE_ACL));
        let directory = CreateMode::Persistent.with_acls(Acls::anyone_all());
        for _ in 0..ATTEMPTS {
            match self.sessions.bounded(client.create(&place, contents, &ephemeral)).await {
                Ok((stat, number)) => return Ok((format!("{place}{number}"), stat)),
                Err(CallError::Client(ZkError::NoNode)) => {
                    match self.sessions.bounded(client.mkdir(line, &directory)).await {
                        Ok(_) | Err(CallError::Client(ZkError::NoNode | ZkError::NodeExists)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(CallError::Client(ZkError::NoNode))
    }

    /// Removes a place that a request with a lost answer may have made: nobody else would ever leave it.
    async fn sweep(self: Arc<Self>, client: Client, line: String) {
        while !client.state().is_terminated() {
            let ours = self.ours.lock().await;
            if self.remove_strays(&client, &line, &ours).await.is_ok() {
                return;
            }
            drop(ours);
            sleep(SWEEP_PAUSE).await;
        }
    }

    async fn remove_strays(&self, client: &Client, line: &str, ours: &HashSet<Made>) -> Result<(), CallError> {
        let names = match self.sessions.bounded(client.list_children(line)).await {
            Err(CallError::Client(ZkError::NoNode)) => return Ok(()),
            names => names?,
        };
        for path in names.iter().map(|name| format!("{line}/{name}")) {
            let Some(stat) = self.sessions.bounded(client.check_stat(&path)).await? else { continue };
            if stat.ephemeral_owner != client.session_id().0 || ours.contains(&(path.clone(), stat.czxid)) {
                continue;
            }
            match self.sessions.bounded(client.delete(&path, Some(stat.version))).await {
                Ok(()) | Err(CallError::Client(ZkError::NoNode | ZkError::BadVersion)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The session, if it is still the session of the lock.
    pub async fn session_of(&self, holder: Owner) -> Option<Client> {
        let client = self.sessions.client().await.ok()?;
        (owner(client.session_id().0) == holder && !client.state().is_terminated()).then_some(client)
    }

    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
}

#[async_trait]
impl Place for Waiting {
    fn node(&self) -> Option<Node> {
        Some(self.node.clone())
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        let sessions = &self.lines.sessions;
        let names = match sessions.bounded(self.look()).await {
            Err(CallError::Client(ZkError::NoNode | ZkError::SessionExpired | ZkError::ClientClosed)) => {
                return Err(lock::gone(&self.node.path));
            }
            names => names.map_err(|error| sessions.explain(&error))?,
        };
        // All have ten digits, so the order of the texts is that of the numbers.
        let first = names.iter().filter(|name| is_number(name)).min();
        Ok((first.map(String::as_str) == Some(self.node.path.name())).then(|| self.node.clone()))
    }

    async fn lost(&self) -> BackendError {
        // The server counts from its last message from us, which was before we noticed the broken connection.
        let patience = self.client.session_timeout().saturating_sub(SILENCE_LIMIT);
        let mut states = self.client.state_watcher();
        let mut state = self.client.state();
        let mut alone_since = Instant::now();
        loop {
            let next = match state {
                SessionState::SyncConnected | SessionState::ConnectedReadOnly => states.changed().await,
                SessionState::Disconnected => match timeout_at(alone_since + patience, states.changed()).await {
                    Ok(next) => next,
                    Err(_) => return self.ended("was not renewed in time"),
                },
                SessionState::AuthFailed | SessionState::Expired | SessionState::Closed => {
                    return self.ended("has expired");
                }
            };
            if next == SessionState::Disconnected && state != SessionState::Disconnected {
                alone_since = Instant::now();
            }
            state = next;
        }
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        let access = Access::pinned(&self.lines.sessions, self.client.clone());
        let removal = CellChanges { keys: self.lines.keys.clone(), changes: &[removal(&self.node)] };
        let left = match write::apply(&access, &[removal]).await {
            Ok(applied) => Ok(applied.at),
            // It is gone, or its name now belongs to another process.
            Err(error) if matches!(error.failure, Failure::NoNode | Failure::BadVersion | Failure::LockLost) => {
                Ok(Revision::default())
            }
            Err(error) => Err(error),
        };
        if left.is_ok() {
            self.lines.ours.lock().await.remove(&self.made());
        }
        left
    }
}

impl Waiting {
    /// The names of all places, at an instant at which this place exists.
    async fn look(&self) -> Result<Vec<String>, ZkError> {
        let (path, created) = self.made();
        let synced = self.client.sync(&self.line);
        let mut reader = self.client.new_multi_reader();
        reader.add_get_data(&path)?;
        reader.add_get_children(&self.line)?;
        let read = reader.commit();
        synced.await?;
        let mut results = read.await?.into_iter();
        match (results.next(), results.next()) {
            (Some(MultiReadResult::Data { stat, .. }), Some(MultiReadResult::Children { children }))
                if stat.czxid == created =>
            {
                Ok(children)
            }
            // Another node has this name now.
            (Some(MultiReadResult::Data { .. }), Some(MultiReadResult::Children { .. })) => Err(ZkError::NoNode),
            (Some(MultiReadResult::Error { err }), _) | (_, Some(MultiReadResult::Error { err })) => Err(err),
            other => Err(ZkError::UnexpectedError(format!("{other:?}"))),
        }
    }

    fn made(&self) -> Made {
        (znode_path(&self.lines.keys, &self.node.path), self.node.version.created.0.cast_signed())
    }

    fn ended(&self, how: &str) -> BackendError {
        BackendError::new(Failure::LockLost, format!("the session of {} {how}", self.node.path))
    }
}
