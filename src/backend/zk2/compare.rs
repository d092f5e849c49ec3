//! How a cell differs from what is shown of it, by stats alone: values are read only of what differs.
//!
//! A change shows in the stat of its node. A creation or a deletion shows in its directory: if all nodes that are shown
//! below a directory are there, and it has no more children than these, its names are the same. So nothing has to be
//! remembered but what is shown.
//!
//! The stats are not of one instant. That takes nothing away: what happens meanwhile is told by the watch, and the
//! answer claims only what was so at the point that was shown before.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep_until};
use zookeeper_client::Stat;

use super::reader::{Known, Nodes, Reader};
use super::session::{CallError, Sessions};
use super::znode::{ancestors, newest, parent, version, znode_path};
use crate::backend::contract::{Listing, Revision, Shown, Version};
use crate::backend::keys::KeySpace;
use crate::backend::loading::Loading;
use crate::name::TopoPath;

/// That somebody had all that a list showed, and as whom it was read: another user may be allowed less, which no stat
/// shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Equal {
    pub user: u64,
}

/// Stats that are asked for at the same time: half of what a connection may have under way by default.
const STATS: usize = 32;
/// Stats between two pauses, if there is time. A server answers so many within some ten milliseconds.
const SLICE: usize = 256;

/// How a cell differs from what is shown.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// What is not shown, or has another version, or may have another meaning. If the cell's history has gone back, its
    /// point is before that of what is shown.
    pub changed: Listing,
    /// What is shown and no longer there.
    pub gone: Vec<TopoPath>,
}

/// A znode that must be there.
#[derive(Default)]
struct Expected {
    shown: Option<(TopoPath, Version)>,
    /// How many of the expected znodes in it are there.
    there: i32,
    /// How many it has, shown or not; `None` while it is not known to be there itself.
    found: Option<i32>,
}

impl Expected {
    /// Everything that is shown, and the directories above it.
    fn of(keys: &KeySpace, root: &str, shown: &dyn Shown) -> BTreeMap<String, Self> {
        let mut expected: BTreeMap<String, Self> = BTreeMap::from([(root.to_owned(), Self::default())]);
        shown.each(&mut |path, version| {
            let znode = znode_path(keys, path);
            let mut below = znode.as_str();
            while let Some(above) = parent(below).filter(|above| !expected.contains_key(*above)) {
                expected.insert(above.to_owned(), Self::default());
                below = above;
            }
            expected.entry(znode).or_default().shown = Some((path.clone(), version));
        });
        expected
    }
}

/// Compares a cell with what is shown of it, within about the given time; with none, as quickly as the service answers.
pub(super) async fn differences(
    sessions: &Sessions,
    (keys, seen): (&KeySpace, &Nodes),
    shown: &dyn Shown,
    time: Duration,
) -> Result<Differences, CallError> {
    let root = znode_path(keys, &TopoPath::root());
    let mut pass = Pass { expected: Expected::of(keys, &root, shown), ..Pass::default() };
    pass.ask(sessions, (&root, seen), time).await?;
    let client = sessions.client().await?;
    let reader = Reader::new((client, root), keys, seen.clone(), &Loading::default());
    pass.read(sessions, &reader).await?;
    let mut found = pass.found;
    found.changed.at = found.changed.at.min(shown.at());
    remember(&reader.nodes, seen);
    Ok(found)
}

/// One comparison.
#[derive(Default)]
struct Pass {
    expected: BTreeMap<String, Expected>,
    /// What has to be read.
    again: Vec<String>,
    found: Differences,
}

impl Pass {
    /// Asks for all stats, in slices.
    async fn ask(
        &mut self,
        sessions: &Sessions,
        (root, seen): (&str, &Nodes),
        time: Duration,
    ) -> Result<(), CallError> {
        let begun = Instant::now();
        let paths: Vec<String> = self.expected.keys().cloned().collect();
        // If the last node below the root goes, the change shows above it.
        self.note_newest(stats(sessions, root, &ancestors(root)).await?.iter().flatten());
        let mut done = 0;
        for slice in paths.chunks(SLICE) {
            let stats = stats(sessions, root, slice).await?;
            self.note_newest(stats.iter().flatten());
            for (path, stat) in slice.iter().zip(stats) {
                self.note(path, stat, seen);
            }
            done += slice.len();
            if done < paths.len() {
                sleep_until(begun + time.mul_f64(done as f64 / paths.len() as f64)).await;
            }
        }
        Ok(())
    }

    fn note_newest<'a>(&mut self, stats: impl Iterator<Item = &'a Stat>) {
        let at = &mut self.found.changed.at;
        *at = stats.map(newest).fold(*at, Revision::max);
    }

    fn note(&mut self, path: &str, stat: Option<Stat>, seen: &Nodes) {
        let Some(expected) = self.expected.get_mut(path) else { return };
        let Some(stat) = stat else {
            self.found.gone.extend(expected.shown.as_ref().map(|(path, _)| path.clone()));
            return;
        };
        expected.found = Some(stat.num_children);
        // The rights of a node are not part of its version: what may not be read any more must be noticed. Those of a
        // new node have the version 0.
        let rights = seen.lock().get(path).map_or(0, |known| known.rights);
        let is_same = match &expected.shown {
            Some((_, shown)) => *shown == version(&stat) && stat.data_length > 0 && rights == stat.aversion,
            None => stat.data_length == 0 && stat.num_children > 0 && stat.ephemeral_owner == 0,
        };
        if !is_same {
            self.again.push(path.to_owned());
        }
        if let Some(above) = parent(path).and_then(|above| self.expected.get_mut(above)) {
            above.there += 1;
        }
    }

    /// Reads what differs.
    async fn read(&mut self, sessions: &Sessions, reader: &Reader) -> Result<(), CallError> {
        let dir = TopoPath::root();
        let again = std::mem::take(&mut self.again);
        let found = reader.read_level(sessions, again.clone()).await?;
        reader.list(sessions, found, &dir, &mut self.found.changed).await?;
        let listed: HashSet<&TopoPath> = self.found.changed.nodes.iter().map(|node| &node.path).collect();
        let shown = again.iter().filter_map(|path| self.expected.get(path)?.shown.as_ref());
        let gone: Vec<TopoPath> = shown.map(|(path, _)| path).filter(|path| !listed.contains(path)).cloned().collect();
        self.found.gone.extend(gone);
        // What was read for another reason than its version.
        let is_other = |path: &TopoPath, found| {
            let shown = self.expected.get(&znode_path(&reader.keys, path)).and_then(|expected| expected.shown.as_ref());
            shown.is_none_or(|(_, shown)| *shown != found)
        };
        self.found.changed.nodes.retain(|node| is_other(&node.path, node.version));
        let has_others = |expected: &Expected| expected.found.is_some_and(|found| found != expected.there);
        let parents = self.expected.iter().filter(|(_, expected)| has_others(expected)).map(|(path, _)| path.clone());
        let mut new = reader.children(sessions, parents.collect()).await?;
        new.retain(|path| !self.expected.contains_key(path));
        reader.read_below(sessions, new, &dir, &mut self.found.changed).await
    }
}

/// The stats of znodes, as the leader has them.
async fn stats(sessions: &Sessions, root: &str, paths: &[String]) -> Result<Vec<Option<Stat>>, CallError> {
    // The session of the slice before may be gone.
    let client = sessions.client().await?;
    sessions.bounded(client.sync(root)).await?;
    let stats = paths.iter().map(|path| sessions.bounded(async { client.check_stat(path).await }));
    futures::stream::iter(stats.collect::<Vec<_>>()).buffered(STATS).try_collect().await
}

/// Tells the watch what it has missed. If such a node goes, it knows that it was there; if its creation is still told,
/// that counts.
pub(super) fn remember(read: &Nodes, seen: &Nodes) {
    /// No transaction has this number.
    const NOT_TOLD: i64 = 0;
    let read = std::mem::take(&mut *read.lock());
    let mut seen = seen.lock();
    for (path, known) in read {
        seen.entry(path).and_modify(|seen| seen.rights = known.rights).or_insert(Known { written: NOT_TOLD, ..known });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::zk2::key_space;

    /// These paths are shown.
    struct Paths(Vec<TopoPath>);

    impl Shown for Paths {
        fn version(&self, _: &TopoPath) -> Option<Version> {
            None
        }
        fn count(&self) -> usize {
            self.0.len()
        }
        fn each(&self, tell: &mut dyn FnMut(&TopoPath, Version)) {
            let version = Version { number: 1, written: Revision(1), created: Revision(1) };
            self.0.iter().for_each(|path| tell(path, version));
        }
    }

    #[test]
    fn what_is_expected_is_what_is_shown_and_its_directories() {
        let shown = Paths(["a/b/c", "a/b/d", "a/b", "e"].map(|path| TopoPath::parse(path).unwrap()).to_vec());
        for (root, above) in [("/t", "/t"), ("/", "")] {
            let expected = Expected::of(&key_space(root), root, &shown);
            let expected: Vec<_> =
                expected.into_iter().map(|(path, expected)| (path, expected.shown.is_some())).collect();
            let below = [("/a", false), ("/a/b", true), ("/a/b/c", true), ("/a/b/d", true), ("/e", true)];
            let below = below.map(|(path, is_shown)| (format!("{above}{path}"), is_shown));
            assert_eq!(expected, [&[(root.to_owned(), false)], &below[..]].concat());
        }
    }
}
