//! One look at a whole subtree, and how it is kept current.
//!
//! ZooKeeper has no snapshots, but within one session events and answers come in order: when no event came between two answers,
//! nothing has changed between them. So the tree is read under a watch, and what changed meanwhile is read again, in one
//! request that shows one instant, until no event comes in between.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use zookeeper_client::{
    AddWatchMode, Client, Error as ZkError, EventType, MultiReadResult, Permission, PersistentWatcher, Stat,
};

use super::session::{CallError, Sessions};
use super::{ancestors, znode};
use crate::backend::{KeySpace, Listing, Node, Revision, Role, Version, WatchBatch, WatchEvent};
use crate::name::TopoPath;

/// Nodes read in one request.
const BATCH: usize = 64;
/// Requests of a bulk read under way at the same time.
const PIPELINE: usize = 8;
/// How often what has changed is read again before a tree that never rests is shown as it is. What is still to come arrives as
/// events all the same.
const SETTLE_ROUNDS: usize = 50;

/// A subtree as one session sees it.
pub(super) struct View {
    /// Owns the session: the watch ends with it.
    client: Client,
    watcher: PersistentWatcher,
    keys: KeySpace,
    root: String,
    nodes: HashMap<String, Known>,
}

/// What is remembered of a znode.
struct Known {
    written: i64,
    /// What it is shown as; `None` for a mere directory.
    role: Option<Role>,
}

/// A znode as it was read.
struct Znode {
    data: Vec<u8>,
    stat: Stat,
}

/// Why a view ends.
pub(super) enum Ended {
    /// A request failed.
    Call(CallError),
    /// The session was disturbed: events may be lost.
    Session(String),
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl View {
    /// Everything below a directory at one instant, and the view that goes on from there.
    pub async fn open(sessions: &Sessions, keys: &KeySpace, dir: &TopoPath) -> Result<(Listing, Self), Ended> {
        let client = sessions.open().await?;
        let root = znode(keys, dir);
        let watching = client.clone();
        let watcher = sessions.bounded(watching.watch(&root, AddWatchMode::PersistentRecursive)).await?;
        // A follower, or an observer, may not have heard of what this mount has just written.
        sessions.bounded(client.sync(&root)).await?;
        let mut view = Self { client, watcher, keys: keys.clone(), root, nodes: HashMap::new() };
        let mut listing = view.read_all(sessions, dir).await?;
        for _ in 0..SETTLE_ROUNDS {
            let changed = view.arrived()?;
            if changed.is_empty() {
                break;
            }
            let batch = view.read_again(sessions, changed).await?;
            merge(&mut listing, batch);
        }
        Ok((listing, view))
    }

    /// Waits for changes. May be given up at any moment: nothing is lost.
    pub async fn changed(&mut self) -> Result<BTreeSet<String>, Ended> {
        let mut changed = BTreeSet::new();
        note(&mut changed, self.watcher.changed().await)?;
        changed.append(&mut self.arrived()?);
        Ok(changed)
    }

    /// Asks for a sign of life.
    pub async fn probe(&self, sessions: &Sessions) -> Result<WatchBatch, Ended> {
        sessions.bounded(self.client.check_stat(&self.root)).await?;
        Ok(WatchBatch::default())
    }

    /// The paths of all events that have arrived by now.
    fn arrived(&mut self) -> Result<BTreeSet<String>, Ended> {
        let mut changed = BTreeSet::new();
        while let Some(event) = self.watcher.changed().now_or_never() {
            note(&mut changed, event)?;
        }
        Ok(changed)
    }

    async fn read_all(&mut self, sessions: &Sessions, dir: &TopoPath) -> Result<Listing, Ended> {
        let mut listing = Listing::default();
        let mut level = vec![self.root.clone()];
        while !level.is_empty() {
            let found = self.read_level(sessions, level).await?;
            // Below what cannot be shown, nothing can: a deep tree of such would cost its depth squared.
            let (parents, hidden): (Vec<String>, Vec<String>) = found
                .iter()
                .filter(|(_, node)| node.stat.num_children > 0)
                .map(|(path, _)| path.clone())
                .partition(|path| *path == self.root || self.keys.path(path.as_bytes()).is_some());
            listing.skipped += hidden.len() as u64;
            level = self.children(sessions, parents).await?;
            for (path, znode) in found {
                listing.at = listing.at.max(newest(&znode.stat));
                let role = self.role(sessions, &path, &znode).await?;
                self.nodes.insert(path.clone(), Known { written: znode.stat.mzxid, role });
                match (role, self.keys.path(path.as_bytes())) {
                    (Some(role), Some(path)) if path != *dir => listing.nodes.push(node(path, znode, role)),
                    (Some(_), None) if path != self.root => listing.skipped += 1,
                    _ => {}
                }
            }
        }
        // When the last node below the root goes, the change is seen above it.
        let above = self.read_level(sessions, ancestors(&self.root)).await?;
        listing.at = above.iter().map(|(_, node)| newest(&node.stat)).fold(listing.at, Revision::max);
        Ok(listing)
    }

    async fn read_level(&self, sessions: &Sessions, level: Vec<String>) -> Result<Vec<(String, Znode)>, Ended> {
        let batches: Vec<Vec<String>> = level.chunks(BATCH).map(<[String]>::to_vec).collect();
        let found: Vec<Vec<(String, Option<Znode>)>> = futures::stream::iter(batches)
            .map(|batch| self.read_at_once(sessions, batch))
            .buffered(PIPELINE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().filter_map(|(path, node)| Some((path, node?))).collect())
    }

    /// Nodes as they are at one instant.
    async fn read_at_once(
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
        paths
            .into_iter()
            .zip(results)
            .map(|(path, result)| match result {
                MultiReadResult::Data { data, stat } => Ok((path, Some(Znode { data, stat }))),
                // Nothing at all is an error to tell; a part that must not be read is not shown.
                MultiReadResult::Error { err: err @ ZkError::NoAuth } if path == self.root => {
                    Err(CallError::Client(err))
                }
                MultiReadResult::Error { err: ZkError::NoNode | ZkError::NoAuth } => Ok((path, None)),
                MultiReadResult::Error { err } => Err(CallError::Client(err)),
                other => Err(CallError::Client(ZkError::UnexpectedError(format!("{other:?}")))),
            })
            .collect()
    }

    async fn children(&self, sessions: &Sessions, parents: Vec<String>) -> Result<Vec<String>, Ended> {
        let batches: Vec<Vec<String>> = parents.chunks(BATCH).map(<[String]>::to_vec).collect();
        let found: Vec<Vec<String>> = futures::stream::iter(batches)
            .map(|batch| async move {
                let request = async {
                    let mut reader = self.client.new_multi_reader();
                    batch.iter().try_for_each(|path| reader.add_get_children(path))?;
                    reader.commit().await
                };
                let results = sessions.bounded(request).await?;
                let children = batch.iter().zip(results).flat_map(|(parent, result)| match result {
                    MultiReadResult::Children { children } => {
                        let parent = parent.trim_end_matches('/').to_owned();
                        children.into_iter().map(|name| format!("{parent}/{name}")).collect()
                    }
                    _ => Vec::new(),
                });
                Ok::<_, CallError>(children.collect())
            })
            .buffered(PIPELINE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Reads what has changed, at one instant as far as one request goes, and tells what is different.
    pub async fn read_again(&mut self, sessions: &Sessions, changed: BTreeSet<String>) -> Result<WatchBatch, Ended> {
        let mut batch = WatchBatch::default();
        // What cannot be shown need not be read.
        let (changed, hidden): (Vec<String>, Vec<String>) = changed
            .into_iter()
            .filter(|path| *path != self.root)
            .partition(|path| self.keys.path(path.as_bytes()).is_some());
        batch.skipped += hidden.len() as u64;
        for part in changed.chunks(BATCH) {
            // A deletion shows in the nearest ancestor that is left.
            let mut paths: BTreeSet<String> = part.iter().cloned().collect();
            paths.extend(part.iter().flat_map(|path| ancestors(path)));
            let found: HashMap<String, Option<Znode>> =
                self.read_at_once(sessions, paths.into_iter().collect()).await?.into_iter().collect();
            let gone_at: HashMap<&String, Revision> = part
                .iter()
                .filter_map(|path| {
                    let above = ancestors(path);
                    let left = above.iter().find_map(|path| found.get(path)?.as_ref())?;
                    Some((path, Revision(left.stat.pzxid.cast_unsigned())))
                })
                .collect();
            let mut found: HashMap<String, Znode> =
                part.iter().filter_map(|path| Some((path.clone(), Znode::copy(found.get(path)?.as_ref()?)))).collect();
            for path in part {
                let at = gone_at.get(path).copied().unwrap_or_default();
                let znode = found.remove(path);
                self.tell(sessions, path, znode, at, &mut batch).await?;
            }
        }
        batch.events.sort_by_key(|event| event.at);
        batch.at = batch.events.last().map_or(Revision::default(), |event| event.at);
        Ok(batch)
    }

    async fn tell(
        &mut self,
        sessions: &Sessions,
        path: &str,
        znode: Option<Znode>,
        gone_at: Revision,
        batch: &mut WatchBatch,
    ) -> Result<(), Ended> {
        let known = self.nodes.get(path).map(|known| (known.written, known.role));
        let shown_before = known.is_some_and(|(_, role)| role.is_some());
        let shown = self.keys.path(path.as_bytes());
        let role = match &znode {
            None => {
                self.nodes.remove(path);
                None
            }
            Some(znode) if known.is_some_and(|(written, _)| written == znode.stat.mzxid) => return Ok(()),
            Some(znode) => {
                let role = match known {
                    // An emptied record is a record still.
                    Some((_, role @ Some(_))) if znode.stat.num_children == 0 => role,
                    _ => self.role(sessions, path, znode).await?,
                };
                self.nodes.insert(path.to_owned(), Known { written: znode.stat.mzxid, role });
                role
            }
        };
        match (shown, znode, role) {
            (None, ..) => batch.skipped += 1,
            (Some(path), Some(znode), Some(role)) => {
                let at = Revision(znode.stat.mzxid.cast_unsigned());
                batch.events.push(WatchEvent { path: path.clone(), node: Some(node(path, znode, role)), at });
            }
            (Some(path), znode, None) if shown_before => {
                let at = znode.map_or(gone_at, |znode| Revision(znode.stat.mzxid.cast_unsigned()));
                batch.events.push(WatchEvent { path, node: None, at });
            }
            (Some(_), ..) => {}
        }
        Ok(())
    }

    /// What a znode is shown as. An empty one without children can be a record or a directory that nobody has collected; Vitess
    /// makes records without the right to create children.
    async fn role(&self, sessions: &Sessions, path: &str, znode: &Znode) -> Result<Option<Role>, CallError> {
        if znode.stat.ephemeral_owner != 0 {
            return Ok(Some(Role::Lock(super::lock::owner(znode.stat.ephemeral_owner))));
        }
        if !znode.data.is_empty() {
            return Ok(Some(Role::Record));
        }
        if znode.stat.num_children > 0 {
            return Ok(None);
        }
        match sessions.bounded(self.client.get_acl(path)).await {
            Ok((acls, _)) => {
                let may_hold = acls.iter().any(|acl| acl.permission().has(Permission::CREATE));
                Ok(if may_hold { None } else { Some(Role::Record) })
            }
            Err(CallError::Client(ZkError::NoNode | ZkError::NoAuth)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Znode {
    fn copy(other: &Znode) -> Self {
        Self { data: other.data.clone(), stat: other.stat }
    }
}

/// Notes the path of an event; anything that happens to the session ends the view.
fn note(changed: &mut BTreeSet<String>, event: zookeeper_client::WatchedEvent) -> Result<(), Ended> {
    if event.event_type == EventType::Session {
        return Err(Ended::Session(format!("the session is {:?}", event.session_state)));
    }
    changed.insert(event.path);
    Ok(())
}

/// Takes what a re-read has found into a listing.
fn merge(listing: &mut Listing, batch: WatchBatch) {
    let changed: HashMap<&TopoPath, &WatchEvent> = batch.events.iter().map(|event| (&event.path, event)).collect();
    listing.nodes.retain(|node| !changed.contains_key(&node.path));
    listing.at = listing.at.max(batch.at);
    listing.skipped += batch.skipped;
    listing.nodes.extend(batch.events.into_iter().filter_map(|event| event.node));
}

/// The newest change that a node shows: of itself, or of its children.
fn newest(stat: &Stat) -> Revision {
    Revision(stat.mzxid.max(stat.pzxid).cast_unsigned())
}

fn node(path: TopoPath, znode: Znode, role: Role) -> Node {
    let millis = Duration::from_millis(u64::try_from(znode.stat.mtime).unwrap_or(0));
    Node {
        path,
        version: version(&znode.stat),
        value: Bytes::from(znode.data),
        role,
        modified: SystemTime::UNIX_EPOCH.checked_add(millis),
    }
}

/// The version of a node.
pub(super) fn version(stat: &Stat) -> Version {
    Version {
        number: u64::try_from(stat.version).unwrap_or(0),
        written: Revision(stat.mzxid.cast_unsigned()),
        created: Revision(stat.czxid.cast_unsigned()),
    }
}
