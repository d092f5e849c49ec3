//! Reads znodes in bulk: a whole subtree, some nodes of it, or nodes at one instant. Remembers what it has read.
//! Watches nothing.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::FuturesOrdered;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::time::Instant;
use zookeeper_client::{Client, Error as ZkError, MultiReadResult, Stat};

use super::roles::{Judged, by_acl, is_shown, judge};
use super::session::{CallError, Sessions};
use super::window::{BATCH, PIPELINE};
use super::znode::{Znode, ancestors, newest, node};
use crate::backend::contract::{Listing, Revision, Role};
use crate::backend::keys::KeySpace;
use crate::backend::loading::Loading;
use crate::name::TopoPath;

/// The znodes that a watch has read, by path.
pub(super) type Nodes = Arc<Mutex<HashMap<String, Known>>>;

/// What a watch remembers of a znode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub created: i64,
    pub written: i64,
    /// The version of its access rights.
    pub rights: i32,
    /// How it is shown; `None` for a plain directory.
    pub role: Option<Role>,
}

impl Known {
    pub fn of(stat: &Stat, role: Option<Role>) -> Self {
        Self { created: stat.czxid, written: stat.mzxid, rights: stat.aversion, role }
    }
}

/// Reads below one root, in one session.
pub(super) struct Reader {
    pub client: Client,
    pub keys: KeySpace,
    pub root: String,
    pub nodes: Nodes,
    /// What the previous watch has seen: a node that we may no longer read is not gone.
    before: Nodes,
    loading: Loading,
}

impl Reader {
    pub fn new((client, root): (Client, String), keys: &KeySpace, before: Nodes, loading: &Loading) -> Self {
        Self { client, root, keys: keys.clone(), nodes: Nodes::default(), before, loading: loading.clone() }
    }

    /// Everything below a directory, one node after the other.
    pub async fn read_all(&self, sessions: &Sessions, dir: &TopoPath) -> Result<Listing, CallError> {
        let mut listing = Listing::default();
        self.read_below(sessions, vec![self.root.clone()], dir, &mut listing).await?;
        // If the last node below the root goes, the change shows above it.
        let above = self.read_level(sessions, ancestors(&self.root)).await?;
        listing.at = above.iter().map(|(_, node)| newest(&node.stat)).fold(listing.at, Revision::max);
        Ok(listing)
    }

    /// These nodes, and everything below them.
    pub async fn read_below(
        &self,
        sessions: &Sessions,
        mut level: Vec<String>,
        dir: &TopoPath,
        listing: &mut Listing,
    ) -> Result<(), CallError> {
        while !level.is_empty() {
            let found = self.read_level(sessions, level).await?;
            let has_children = |(path, node): &&(String, Znode)| node.stat.num_children > 0 && self.may_show(path);
            let parents: Vec<String> = found.iter().filter(has_children).map(|(path, _)| path.clone()).collect();
            level = self.children(sessions, parents).await?;
            self.list(sessions, found, dir, listing).await?;
        }
        Ok(())
    }

    /// Adds nodes to a list, if they are shown.
    pub async fn list(
        &self,
        sessions: &Sessions,
        found: Vec<(String, Znode)>,
        dir: &TopoPath,
        listing: &mut Listing,
    ) -> Result<(), CallError> {
        for (path, znode) in found {
            listing.at = listing.at.max(newest(&znode.stat));
            if !self.may_show(&path) {
                // Once for everything that may be below it.
                listing.skipped += 1;
                continue;
            }
            let role = self.role(sessions, &path, &znode).await?;
            self.nodes.lock().insert(path.clone(), Known::of(&znode.stat, role));
            match (role, self.keys.path(path.as_bytes())) {
                (Some(role), Some(path)) if path != *dir && !is_shown(&path, role) => {
                    listing.skipped += 1;
                    listing.ephemeral += 1;
                }
                (Some(role), Some(path)) if path != *dir => listing.nodes.push(node(path, znode, role)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Those of these nodes that there are.
    pub async fn read_level(&self, sessions: &Sessions, level: Vec<String>) -> Result<Vec<(String, Znode)>, CallError> {
        let (mut left, mut requests, mut found) = (level.into_iter(), FuturesOrdered::new(), Vec::new());
        loop {
            while requests.len() < sessions.window.requests() {
                let batch: Vec<String> = left.by_ref().take(sessions.window.batch()).collect();
                if batch.is_empty() {
                    break;
                }
                requests.push_back(self.read_in_time(sessions, batch));
            }
            let Some(read) = requests.next().await else { return Ok(found) };
            found.extend(read?.into_iter().filter_map(|(path, node)| Some((path, node?))));
        }
    }

    /// Nodes at one instant, and what that says of how many to ask for next.
    async fn read_in_time(
        &self,
        sessions: &Sessions,
        paths: Vec<String>,
    ) -> Result<Vec<(String, Option<Znode>)>, CallError> {
        let begun = Instant::now();
        let read = self.read_at_once(sessions, paths).await;
        match read {
            Ok(_) => sessions.window.came(begun.elapsed()),
            Err(CallError::NoAnswer) => sessions.window.is_late(),
            Err(_) => {}
        }
        read
    }

    /// Nodes at one instant.
    pub async fn read_at_once(
        &self,
        sessions: &Sessions,
        paths: Vec<String>,
    ) -> Result<Vec<(String, Option<Znode>)>, CallError> {
        let request = async {
            let mut reader = self.client.new_multi_reader();
            paths.iter().try_for_each(|path| reader.add_get_data(path))?;
            reader.commit().await
        };
        let results = sessions.bounded(request).await?;
        let mut found = Vec::new();
        for (path, result) in paths.into_iter().zip(results) {
            let znode = match result {
                MultiReadResult::Data { data, stat } => Some(Znode { data, stat }),
                MultiReadResult::Error { err: ZkError::NoNode } => None,
                // If nothing may be read, that is an error. If a part may not be read, it is not shown, unless it was
                // shown before.
                MultiReadResult::Error { err: ZkError::NoAuth }
                    if path != self.root && !self.was_readable(sessions, &path).await? =>
                {
                    None
                }
                MultiReadResult::Error { err } => return Err(CallError::Client(err)),
                other => return Err(CallError::Client(ZkError::UnexpectedError(format!("{other:?}")))),
            };
            found.push((path, znode));
        }
        // What a znode is for is not known yet. Directories have no content.
        let has_content = |znode: &&Znode| !znode.data.is_empty();
        self.loading.answered(found.iter().filter_map(|(_, znode)| znode.as_ref()).filter(has_content).count());
        Ok(found)
    }

    /// Whether a znode that we may not read now was read before: nothing disappears because rights were removed.
    async fn was_readable(&self, sessions: &Sessions, path: &str) -> Result<bool, CallError> {
        let known = self.nodes.lock().get(path).or(self.before.lock().get(path)).copied();
        let Some(known) = known else { return Ok(false) };
        let stat = sessions.bounded(self.client.check_stat(path)).await?;
        Ok(stat.is_some_and(|stat| stat.czxid == known.created))
    }

    /// Whether the names in a path are valid file names. Other paths are not read further: they may have any depth.
    pub fn may_show(&self, path: &str) -> bool {
        path == self.root || self.keys.path(path.as_bytes()).is_some()
    }

    /// The znodes in these directories.
    pub async fn children(&self, sessions: &Sessions, parents: Vec<String>) -> Result<Vec<String>, CallError> {
        let batches: Vec<Vec<String>> = parents.chunks(BATCH).map(<[String]>::to_vec).collect();
        let found: Vec<Vec<String>> = futures::stream::iter(batches)
            .map(|batch| async move {
                let request = async {
                    let mut reader = self.client.new_multi_reader();
                    batch.iter().try_for_each(|path| reader.add_get_children(path))?;
                    reader.commit().await
                };
                let results = sessions.bounded(request).await?;
                self.loading.answered(0);
                let mut found = Vec::new();
                for (parent, result) in batch.iter().zip(results) {
                    match result {
                        MultiReadResult::Children { children } => {
                            let parent = parent.trim_end_matches('/');
                            found.extend(children.into_iter().map(|name| format!("{parent}/{name}")));
                        }
                        MultiReadResult::Error { err: ZkError::NoNode } => {}
                        MultiReadResult::Error { err } => return Err(CallError::Client(err)),
                        other => return Err(CallError::Client(ZkError::UnexpectedError(format!("{other:?}")))),
                    }
                }
                Ok::<_, CallError>(found)
            })
            .buffered(PIPELINE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// How a znode is shown; `None` for a plain directory.
    pub async fn role(&self, sessions: &Sessions, path: &str, znode: &Znode) -> Result<Option<Role>, CallError> {
        match judge(self.keys.path(path.as_bytes()).as_ref(), znode.data.is_empty(), &znode.stat) {
            Judged::Is(role) => Ok(role),
            Judged::Unclear => {
                let role = by_acl(sessions.bounded(self.client.get_acl(path)).await)?;
                self.loading.answered(0);
                Ok(role)
            }
        }
    }
}
