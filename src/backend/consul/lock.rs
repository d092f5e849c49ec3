//! Locks on Consul: one key for each lock. The first to ask takes a free lock. There is no queue, so nobody knows who
//! is next.
//!
//! The layout is that of Consul's own client library, which Vitess uses.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{Client, ConsulOptions, KvOperation, Operation, SessionRequest, Transacted};
use super::pair::{LOCK_FLAGS, Pair, owner, owner_of, version};
use crate::backend::contract::{BackendError, Failure, Node, Owner, Place, Revision, Role};
use crate::backend::keys::KeySpace;
use crate::backend::lock::{Keeper, gone};
use crate::name::TopoPath;

/// The name of the sessions of Consul's own locks.
const SESSION_NAME: &str = "Consul API Lock";

/// The terms of new sessions.
#[derive(Debug)]
pub(super) struct Terms {
    ttl: Duration,
    checks: Option<Vec<String>>,
    delay: Duration,
}

impl Terms {
    pub fn new(options: &ConsulOptions) -> Self {
        Self { ttl: options.lock_session_ttl, checks: options.lock_session_checks.clone(), delay: options.lock_delay }
    }
}

/// A process that wants the lock. Its first attempt creates its session.
#[derive(Debug)]
pub(super) struct Waiting {
    client: Arc<Client>,
    keys: KeySpace,
    terms: Arc<Terms>,
    path: TopoPath,
    contents: Bytes,
    session: tokio::sync::Mutex<Option<Session>>,
    node: parking_lot::Mutex<Option<Node>>,
    /// Set when there is a session that can be lost.
    keeper: watch::Sender<Option<Arc<Keeper>>>,
}

#[derive(Debug, Clone)]
struct Session {
    id: String,
    keeper: Arc<Keeper>,
}

impl Waiting {
    pub fn new(client: &Arc<Client>, keys: &KeySpace, terms: &Arc<Terms>, path: TopoPath, contents: Bytes) -> Self {
        Self {
            client: client.clone(),
            keys: keys.clone(),
            terms: terms.clone(),
            path,
            contents,
            session: tokio::sync::Mutex::default(),
            node: parking_lot::Mutex::default(),
            keeper: watch::Sender::new(None),
        }
    }

    fn key(&self) -> String {
        self.keys.key(&self.path)
    }

    async fn session(&self) -> Result<Session, BackendError> {
        let mut session = self.session.lock().await;
        if let Some(session) = &*session {
            return Ok(session.clone());
        }
        let begun = Instant::now();
        let Terms { ttl, checks, delay } = &*self.terms;
        let request = SessionRequest {
            name: SESSION_NAME,
            ttl: format!("{}s", ttl.as_secs().max(1)),
            lock_delay: format!("{}s", delay.as_secs()),
            checks: checks.as_deref(),
        };
        let id = self.client.create_session(&request).await?;
        let (client, renewed) = (self.client.clone(), id.clone());
        let keeper = Keeper::start(format!("the session of {}", self.path), *ttl, begun, move || {
            let (client, id) = (client.clone(), renewed.clone());
            async move { client.renew_session(&id).await }
        });
        let made = Session { id, keeper: Arc::new(keeper) };
        self.keeper.send_replace(Some(made.keeper.clone()));
        *session = Some(made.clone());
        Ok(made)
    }

    fn refuse_other_use(&self, pair: &Pair) -> Result<(), BackendError> {
        if pair.flags == LOCK_FLAGS {
            return Ok(());
        }
        Err(BackendError::new(
            Failure::Other,
            format!("{}: the existing key does not match lock use (its flags are {:#x})", self.path, pair.flags),
        ))
    }
}

#[async_trait]
impl Place for Waiting {
    fn node(&self) -> Option<Node> {
        self.node.lock().clone()
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        let key = self.key();
        if let Some(pair) = self.client.pair(&key).await?.value {
            self.refuse_other_use(&pair)?;
            if owner(&pair) != Owner::NOBODY {
                return Ok(None);
            }
        }
        let session = self.session().await?;
        let acquired = match self.client.acquire(&key, self.contents.clone(), &session.id, LOCK_FLAGS).await {
            Ok(acquired) => acquired,
            // The session has ended before its first use.
            Err(error) if error.message.contains("invalid session") => {
                return Err(gone(format!("the session of {}", self.path)));
            }
            Err(error) => return Err(error),
        };
        if !acquired {
            return Ok(None);
        }
        let holder = owner_of(&session.id);
        let pair = self.client.pair(&key).await?.value.filter(|pair| owner(pair) == holder);
        let pair = pair.ok_or_else(|| gone(&self.path))?;
        let node = Node {
            path: self.path.clone(),
            value: self.contents.clone(),
            version: version(&pair),
            role: Role::Lock(holder),
            modified: None,
        };
        *self.node.lock() = Some(node.clone());
        Ok(Some(node))
    }

    async fn lost(&self) -> BackendError {
        let mut keeper = self.keeper.subscribe();
        let known = match keeper.wait_for(Option::is_some).await {
            Ok(known) => known.clone(),
            Err(_) => None,
        };
        match known {
            Some(keeper) => keeper.lost().await,
            None => gone(&self.path),
        }
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        let session = self.session.lock().await;
        let Some(Session { id, keeper }) = &*session else { return Ok(Revision::default()) };
        keeper.stop();
        let key = self.key();
        // Release and remove the key in one step: a key that stayed behind would look locked to Vitess. Do so even if
        // we may not hold it: an answer may have been lost.
        let operation = |verb, session: Option<String>| Operation {
            kv: KvOperation { verb, key: key.clone(), value: None, index: None, session },
        };
        let operations = [operation("check-session", Some(id.clone())), operation("delete", None)];
        let at = match self.client.transact(&operations).await {
            // Without the rights, the lock was never taken, or the end of the session must release it.
            Err(error) if error.failure == Failure::Denied => Revision::default(),
            Err(error) => return Err(error),
            Ok(Transacted::Done(_)) => match self.client.pair(&key).await? {
                found if found.value.is_none() => Revision(found.index),
                found => Revision(found.value.map_or(0, |pair| pair.create_index.saturating_sub(1))),
            },
            Ok(Transacted::Refused(_)) => Revision::default(),
        };
        self.client.destroy_session(id).await?;
        Ok(at)
    }
}
