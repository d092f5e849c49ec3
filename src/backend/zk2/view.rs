//! One look at a whole subtree, and the events that keep it current.
//!
//! ZooKeeper has no snapshots, but within one session events and answers come in order: if no event comes between two
//! answers, nothing has changed between them. So we read the tree under a watch, and then read changed nodes again, in
//! one request that shows one instant, until no event comes in between.

use std::collections::{BTreeSet, HashMap};

use futures::FutureExt;
use zookeeper_client::{AddWatchMode, EventType, PersistentWatcher};

use super::reader::{Known, Nodes, Reader};
use super::roles::is_shown;
use super::session::{CallError, Sessions};
use super::window::BATCH;
use super::znode::{Znode, ancestors, node, znode_path};
use crate::backend::contract::{Listing, Revision, WatchBatch, WatchEvent};
use crate::backend::keys::KeySpace;
use crate::backend::loading::Loading;
use crate::name::TopoPath;

/// Maximum number of changed paths to read again. A watch that is further behind ends with [`Failure::Compacted`], and
/// its mirror begins again with a list.
const PENDING: usize = 100_000;
/// How often to read changes again before showing a tree in which ever more nodes change as it is. Later changes arrive
/// as events anyway.
const SETTLE_ROUNDS: usize = 50;

/// A subtree, as one session sees it.
pub(super) struct View {
    /// Owns the session: the watch ends with it.
    reader: Reader,
    watcher: PersistentWatcher,
    pending: Pending,
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
        let reader = Reader::new((client, root), keys, before, loading);
        let mut view = Self { reader, watcher, pending: Pending::default() };
        let mut listing = view.reader.read_all(sessions, dir).await?;
        let changed = view.arrived()?;
        let batch = view.read_whole(sessions, changed).await?;
        merge(&mut listing, batch);
        Ok((listing, view))
    }

    /// Its memory, kept current.
    pub fn nodes(&self) -> Nodes {
        self.reader.nodes.clone()
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
        sessions.bounded(self.reader.client.check_stat(&self.reader.root)).await?;
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
            changed.into_iter().filter(|path| *path != self.reader.root).partition(|path| self.reader.may_show(path));
        batch.skipped = u64::try_from(skipped.len()).unwrap_or(u64::MAX);
        for part in changed.chunks(BATCH) {
            // A deletion shows in the nearest remaining ancestor.
            let mut paths: BTreeSet<String> = part.iter().cloned().collect();
            paths.extend(part.iter().flat_map(|path| ancestors(path)));
            let found: HashMap<String, Option<Znode>> =
                self.reader.read_at_once(sessions, paths.into_iter().collect()).await?.into_iter().collect();
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
        let known = self.reader.nodes.lock().get(path).map(|known| (known.written, known.role));
        let shown_before = known.is_some_and(|(_, role)| role.is_some());
        let shown = self.reader.keys.path(path.as_bytes());
        let role = match &znode {
            None => {
                self.reader.nodes.lock().remove(path);
                None
            }
            Some(znode) if known.is_some_and(|(written, _)| written == znode.stat.mzxid) => return Ok(()),
            Some(znode) => {
                let role = match known {
                    // An emptied record is still a record.
                    Some((_, role @ Some(_))) if znode.stat.num_children == 0 => role,
                    _ => self.reader.role(sessions, path, znode).await?,
                };
                self.reader.nodes.lock().insert(path.to_owned(), Known::of(&znode.stat, role));
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
