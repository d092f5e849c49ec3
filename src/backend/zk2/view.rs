//! One look at a whole subtree, and the events that keep it current.
//!
//! ZooKeeper has no snapshots, but within one session events and answers come in order: if no event comes between two
//! answers, nothing has changed between them. So we read the tree under a watch, and then read changed nodes again, in
//! one request that shows one instant, until no event comes in between.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use zookeeper_client::{AddWatchMode, Client, Error as ZkError, EventType, MultiReadResult, PersistentWatcher, Stat};

use super::roles::{Judged, by_acl, is_shown, judge};
use super::session::{CallError, Sessions};
use super::znode::{Znode, ancestors, newest, node, znode_path};
use crate::backend::contract::{Listing, Revision, Role, WatchBatch, WatchEvent};
use crate::backend::keys::KeySpace;
use crate::backend::loading::Loading;
use crate::name::TopoPath;

/// Nodes read in one request.
const BATCH: usize = 64;
/// Number of requests of a bulk read at the same time; the answer to the oldest lets the next one go.
const PIPELINE: usize = 8;
/// Maximum number of changed paths to read again. A watch that is further behind ends with [`Failure::Compacted`], and
/// its mirror begins again with a list.
const PENDING: usize = 100_000;
/// How often to read changes again before showing a tree in which ever more nodes change as it is. Later changes arrive
/// as events anyway.
const SETTLE_ROUNDS: usize = 50;

/// A subtree, as one session sees it.
pub(super) struct View {
    /// Owns the session: the watch ends with it.
    client: Client,
    watcher: PersistentWatcher,
    keys: KeySpace,
    root: String,
    nodes: Nodes,
    pending: Pending,
    /// What the previous watch has seen: a node that we may no longer read is not gone.
    before: Nodes,
    loading: Loading,
}

/// The znodes that a watch has read, by path.
pub(super) type Nodes = Arc<Mutex<HashMap<String, Known>>>;

/// What a watch remembers of a znode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    created: i64,
    written: i64,
    /// How it is shown; `None` for a plain directory.
    role: Option<Role>,
}

/// The paths of arrived events that have not been read again yet.
#[derive(Default)]
struct Pending(BTreeSet<String>);

/// Why a view ends.
#[derive(Debug)]
pub(super) enum Ended {
    /// A request failed.
    Call(CallError),
    /// The session was disturbed, so events may be lost.
    Session(String),
    /// Too much has changed to read it again one by one.
    Behind,
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl View {
    /// Everything below a directory at one instant, and the view that continues from there.
    pub async fn open(
        sessions: &Sessions,
        keys: &KeySpace,
        dir: &TopoPath,
        (before, loading): (Nodes, &Loading),
    ) -> Result<(Listing, Self), Ended> {
        let client = sessions.open().await?;
        loading.answered(0);
        let root = znode_path(keys, dir);
        let watching = client.clone();
        let watcher = sessions.bounded(watching.watch(&root, AddWatchMode::PersistentRecursive)).await?;
        // A follower or an observer may not yet have the last writes of this mount.
        sessions.bounded(client.sync(&root)).await?;
        loading.answered(0);
        let mut view = Self {
            client,
            watcher,
            keys: keys.clone(),
            root,
            nodes: Nodes::default(),
            pending: Pending::default(),
            before,
            loading: loading.clone(),
        };
        let mut listing = view.read_all(sessions, dir).await?;
        let changed = view.arrived()?;
        let batch = view.read_whole(sessions, changed).await?;
        merge(&mut listing, batch);
        Ok((listing, view))
    }

    /// Its memory, kept current.
    pub fn nodes(&self) -> Nodes {
        self.nodes.clone()
    }

    /// Waits for changes. The caller may give up at any moment: nothing is lost.
    pub async fn changed(&mut self) -> Result<BTreeSet<String>, Ended> {
        if self.pending.0.is_empty() {
            let event = self.watcher.changed().await;
            self.pending.note(event)?;
        }
        self.arrived()
    }

    /// Asks for a sign of life.
    pub async fn probe(&self, sessions: &Sessions) -> Result<WatchBatch, Ended> {
        sessions.bounded(self.client.check_stat(&self.root)).await?;
        Ok(WatchBatch::default())
    }

    /// The paths of all events that have arrived by now.
    fn arrived(&mut self) -> Result<BTreeSet<String>, Ended> {
        self.collect()?;
        Ok(std::mem::take(&mut self.pending.0))
    }

    /// Takes the arrived events out of the client's own queue, which has no bound.
    fn collect(&mut self) -> Result<(), Ended> {
        while let Some(event) = self.watcher.changed().now_or_never() {
            self.pending.note(event)?;
        }
        Ok(())
    }

    async fn read_all(&mut self, sessions: &Sessions, dir: &TopoPath) -> Result<Listing, Ended> {
        let mut listing = Listing::default();
        let mut level = vec![self.root.clone()];
        while !level.is_empty() {
            let found = self.read_level(sessions, level).await?;
            let has_children = |(path, node): &&(String, Znode)| node.stat.num_children > 0 && self.may_show(path);
            let parents: Vec<String> = found.iter().filter(has_children).map(|(path, _)| path.clone()).collect();
            level = self.children(sessions, parents).await?;
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
        }
        // If the last node below the root goes, the change shows above it.
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

    /// Nodes at one instant.
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
    fn may_show(&self, path: &str) -> bool {
        path == self.root || self.keys.path(path.as_bytes()).is_some()
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

    /// Reads the changed nodes, and whatever has changed meanwhile, until all of it was read at one instant: then no
    /// transaction is shown in part. The events of later changes stay for later.
    pub async fn read_whole(
        &mut self,
        sessions: &Sessions,
        mut changed: BTreeSet<String>,
    ) -> Result<WatchBatch, Ended> {
        let mut all = WatchBatch::default();
        if changed.is_empty() {
            return Ok(all);
        }
        for round in 1.. {
            let batch = self.read_again(sessions, changed.clone()).await?;
            all.events.extend(batch.events);
            all.skipped += batch.skipped;
            all.at = all.at.max(batch.at);
            self.collect()?;
            if !self.pending.join(&mut changed, round) {
                break;
            }
        }
        Ok(all)
    }

    /// Reads the changed nodes, at one instant if one request is enough, and returns the differences.
    async fn read_again(&mut self, sessions: &Sessions, changed: BTreeSet<String>) -> Result<WatchBatch, Ended> {
        let mut batch = WatchBatch::default();
        let (changed, skipped): (Vec<String>, Vec<String>) =
            changed.into_iter().filter(|path| *path != self.root).partition(|path| self.may_show(path));
        batch.skipped = u64::try_from(skipped.len()).unwrap_or(u64::MAX);
        for part in changed.chunks(BATCH) {
            // A deletion shows in the nearest remaining ancestor.
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
            self.collect()?;
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
        let known = self.nodes.lock().get(path).map(|known| (known.written, known.role));
        let shown_before = known.is_some_and(|(_, role)| role.is_some());
        let shown = self.keys.path(path.as_bytes());
        let role = match &znode {
            None => {
                self.nodes.lock().remove(path);
                None
            }
            Some(znode) if known.is_some_and(|(written, _)| written == znode.stat.mzxid) => return Ok(()),
            Some(znode) => {
                let role = match known {
                    // An emptied record is still a record.
                    Some((_, role @ Some(_))) if znode.stat.num_children == 0 => role,
                    _ => self.role(sessions, path, znode).await?,
                };
                self.nodes.lock().insert(path.to_owned(), Known::of(&znode.stat, role));
                role
            }
        };
        match (shown, znode, role) {
            (None, ..) => batch.skipped += 1,
            (Some(path), Some(_), Some(role)) if !is_shown(&path, role) => batch.skipped += 1,
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

    async fn role(&self, sessions: &Sessions, path: &str, znode: &Znode) -> Result<Option<Role>, CallError> {
        match judge(self.keys.path(path.as_bytes()).as_ref(), znode.data.is_empty(), &znode.stat) {
            Judged::Is(role) => Ok(role),
            Judged::Unclear => by_acl(sessions.bounded(self.client.get_acl(path)).await),
        }
    }
}

impl Known {
    fn of(stat: &Stat, role: Option<Role>) -> Self {
        Self { created: stat.czxid, written: stat.mzxid, role }
    }
}

impl Pending {
    /// Notes the path of an event. Any event of the session ends the view.
    fn note(&mut self, event: zookeeper_client::WatchedEvent) -> Result<(), Ended> {
        if event.event_type == EventType::Session {
            return Err(Ended::Session(format!("the session is {:?}", event.session_state)));
        }
        self.add(event.path)
    }

    fn add(&mut self, path: String) -> Result<(), Ended> {
        if self.0.len() >= PENDING && !self.0.contains(&path) {
            return Err(Ended::Behind);
        }
        self.0.insert(path);
        Ok(())
    }

    /// What has arrived while the changed nodes were read for the `round`th time joins them, if all of it is to be read
    /// once more. If not, it stays for the next call.
    fn join(&mut self, changed: &mut BTreeSet<String>, round: usize) -> bool {
        // Events of changes up to the instant of the answer came before the answer.
        let is_one_instant = changed.len() <= BATCH && self.0.is_subset(changed);
        if self.0.is_empty() || is_one_instant || round >= SETTLE_ROUNDS {
            return false;
        }
        changed.append(&mut self.0);
        true
    }
}

/// Adds the result of a re-read to a listing.
fn merge(listing: &mut Listing, batch: WatchBatch) {
    let changed: HashMap<&TopoPath, &WatchEvent> = batch.events.iter().map(|event| (&event.path, event)).collect();
    listing.nodes.retain(|node| !changed.contains_key(&node.path));
    listing.at = listing.at.max(batch.at);
    listing.skipped += batch.skipped;
    listing.nodes.extend(batch.events.into_iter().filter_map(|event| event.node));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_is_too_far_behind_ends() {
        let mut pending = Pending::default();
        for number in 0..PENDING {
            pending.add(format!("/f{number}")).unwrap();
        }
        pending.add("/f0".to_owned()).expect("a path that is noted already takes no room");
        assert!(matches!(pending.add("/one/more".to_owned()), Err(Ended::Behind)));
        assert_eq!(pending.0.len(), PENDING);
    }

    #[test]
    fn what_is_not_read_in_this_call_stays_for_the_next() {
        let paths = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let (mut pending, mut changed) = (Pending(paths(&["/b"])), paths(&["/a"]));
        assert!(pending.join(&mut changed, 1));
        assert!(pending.0.is_empty() && changed == paths(&["/a", "/b"]));
        assert!(!pending.join(&mut changed, 2), "nothing more has come");
        pending.0 = paths(&["/a"]);
        assert!(!pending.join(&mut changed, 2), "one instant was shown; this change came later");
        assert_eq!(pending.0, paths(&["/a"]));
        pending.0 = paths(&["/c"]);
        assert!(!pending.join(&mut changed, SETTLE_ROUNDS), "writers do not pause");
        assert_eq!((pending.0, changed), (paths(&["/c"]), paths(&["/a", "/b"])));
    }
}
