//! A fresh look at nodes and all their ancestors, at one instant.

use std::collections::{BTreeSet, HashMap};

use zookeeper_client::{Client, Error as ZkError, MultiReadResult, Stat};

use super::roles::{Judged, by_acl, judge};
use super::session::{CallError, Sessions};
use super::znode::{Spot, ancestors};
use crate::backend::contract::{BackendError, Failure, Revision, Role};

/// The session that a request uses.
pub(super) struct Access<'a> {
    pub sessions: &'a Sessions,
    /// The session of a lock: only this session may make a change with this lock as guard.
    pinned: Option<Client>,
}

impl<'a> Access<'a> {
    pub fn any(sessions: &'a Sessions) -> Self {
        Self { sessions, pinned: None }
    }

    pub fn pinned(sessions: &'a Sessions, client: Client) -> Self {
        Self { sessions, pinned: Some(client) }
    }

    pub async fn try_call<T>(&self, operation: impl AsyncFnOnce(Client) -> Result<T, ZkError>) -> Result<T, CallError> {
        match &self.pinned {
            Some(client) => self.sessions.bounded(operation(client.clone())).await,
            None => self.sessions.try_call(operation).await,
        }
    }

    pub fn explain(&self, error: &CallError) -> BackendError {
        if self.pinned.as_ref().is_some_and(|client| client.state().is_terminated()) {
            return BackendError::new(Failure::LockLost, "the session that held the lock has ended");
        }
        self.sessions.explain(error)
    }
}

/// A node at the time of the look.
#[derive(Clone)]
pub(super) struct Found {
    pub data: Vec<u8>,
    pub stat: Stat,
    /// How it is shown; `None` for a plain directory.
    pub role: Option<Role>,
}

/// The result of a look, at one instant.
pub(super) struct Look {
    /// In the order of the paths.
    pub nodes: Vec<Option<Found>>,
    /// When this was true: the newest change of the first node, or, if it does not exist, of its nearest directory.
    pub at: Revision,
    /// For each path: the same.
    pub ats: Vec<Revision>,
    /// All nodes and their ancestors that exist.
    pub exist: BTreeSet<String>,
}

/// Looks at nodes and all their ancestors, as the leader has them.
pub(super) async fn look(access: &Access<'_>, spots: &[Spot]) -> Result<Look, CallError> {
    let mut wanted: Vec<String> = spots.iter().map(|spot| spot.znode.clone()).collect();
    let paths: BTreeSet<&String> = spots.iter().map(|spot| &spot.znode).collect();
    let above = spots.iter().flat_map(|spot| ancestors(&spot.znode)).filter(|path| !paths.contains(path));
    wanted.extend(above.collect::<BTreeSet<String>>());
    let first = spots.first().map_or_else(|| "/".to_owned(), |spot| spot.znode.clone());
    let results = access
        .try_call(async |client| {
            // Both are sent before the first answer comes.
            let synced = client.sync(&first);
            let mut reader = client.new_multi_reader();
            wanted.iter().try_for_each(|path| reader.add_get_data(path))?;
            let read = reader.commit();
            synced.await?;
            read.await
        })
        .await?;
    let mut found: HashMap<&str, (Vec<u8>, Stat)> = HashMap::new();
    let mut exist = BTreeSet::new();
    for (index, (path, result)) in wanted.iter().zip(results).enumerate() {
        match result {
            MultiReadResult::Data { data, stat } => drop(found.insert(path, (data, stat))),
            MultiReadResult::Error { err: ZkError::NoNode } => continue,
            // A user without the right to read a directory may still have the right to use nodes in it.
            MultiReadResult::Error { err: ZkError::NoAuth } if index >= spots.len() => {}
            MultiReadResult::Error { err } => return Err(CallError::Client(err)),
            other => return Err(CallError::Client(ZkError::UnexpectedError(format!("{other:?}")))),
        }
        exist.insert(path.clone());
    }
    let at = |spot: &Spot| match found.get(spot.znode.as_str()) {
        Some((_, stat)) => Revision(stat.mzxid.cast_unsigned()),
        None => {
            let left = ancestors(&spot.znode)
                .into_iter()
                .find_map(|path| found.get(path.as_str()).map(|(_, stat)| stat.pzxid));
            Revision(left.unwrap_or(0).cast_unsigned())
        }
    };
    let ats: Vec<Revision> = spots.iter().map(at).collect();
    let mut nodes = Vec::new();
    for spot in spots {
        nodes.push(match found.get(spot.znode.as_str()) {
            None => None,
            Some((data, stat)) => {
                let role = role(access, spot, data.is_empty(), stat).await?;
                Some(Found { data: data.clone(), stat: *stat, role })
            }
        });
    }
    Ok(Look { nodes, at: ats.first().copied().unwrap_or_default(), ats, exist })
}

async fn role(access: &Access<'_>, spot: &Spot, is_empty: bool, stat: &Stat) -> Result<Option<Role>, CallError> {
    match judge(Some(&spot.path).filter(|path| !path.is_root()), is_empty, stat) {
        Judged::Is(role) => Ok(role),
        Judged::Unclear => by_acl(access.try_call(async |client| client.get_acl(&spot.znode).await).await),
    }
}
