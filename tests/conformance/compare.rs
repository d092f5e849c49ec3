//! Comparisons with what is shown: whatever has happened since the last one is found, and nothing else.

use std::collections::BTreeMap;

use topofs::backend::{Compared, Listing, Mark, Node, Revision, Shown};

use super::*;
use crate::common::chance::Chance;

/// What somebody has who has no watch, and hears of nothing but by comparisons.
#[derive(Default)]
struct Reader {
    nodes: BTreeMap<TopoPath, Node>,
    at: Revision,
    mark: Mark,
}

impl Shown for Reader {
    fn version(&self, path: &TopoPath) -> Option<Version> {
        self.nodes.get(path).map(|node| node.version)
    }

    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn at(&self) -> Revision {
        self.at
    }

    fn each(&self, tell: &mut dyn FnMut(&TopoPath, Version)) {
        self.nodes.iter().for_each(|(path, node)| tell(path, node.version));
    }
}

fn by_path(listing: &Listing) -> BTreeMap<TopoPath, Node> {
    listing.nodes.iter().map(|node| (node.path.clone(), node.clone())).collect()
}

impl Reader {
    async fn of(cell: &dyn Backend) -> Self {
        let listing = cell.list(&TopoPath::root()).await.unwrap();
        Self { nodes: by_path(&listing), at: listing.at, mark: listing.mark }
    }

    /// Compares once. Returns the number of nodes that were brought or taken away, and whether everything was listed.
    async fn compare(&mut self, cell: &dyn Backend) -> (usize, bool) {
        let compared = cell.compare(&*self, &self.mark, std::time::Duration::ZERO).await.unwrap();
        assert!(compared.listing().at >= self.at);
        match compared {
            Compared::Whole(listing) => {
                let new = by_path(&listing);
                let count = new.iter().filter(|(path, node)| self.nodes.get(*path) != Some(node)).count();
                let count = count + self.nodes.keys().filter(|path| !new.contains_key(*path)).count();
                *self = Self { nodes: new, at: listing.at, mark: listing.mark };
                (count, true)
            }
            Compared::Differences { changed, gone } => {
                let count = changed.nodes.len() + gone.len();
                for path in gone {
                    assert!(self.nodes.remove(&path).is_some(), "{path} was not shown");
                }
                for (path, node) in by_path(&changed) {
                    assert_ne!(self.nodes.insert(path, node.clone()), Some(node), "nothing has changed");
                }
                (self.at, self.mark) = (changed.at, changed.mark);
                (count, false)
            }
        }
    }
}

async fn fill(cell: &dyn Backend, count: usize) {
    let all: Vec<usize> = (0..count).collect();
    for some in all.chunks(cell.limits().changes) {
        let changes: Vec<Change> =
            some.iter().map(|n| put(&format!("metadata/{}/n{n:04}", n % 7), Guard::Any, n.to_string())).collect();
        cell.apply(&changes).await.unwrap();
    }
}

conformance! {
    /// Without any watch, as if each of its messages were lost.
    async fn comparisons_find_whatever_has_happened(factory) {
        const KEYS: usize = 700;
        let cell = factory.fresh();
        fill(&*cell, KEYS).await;
        let (mut copy, mut chance, mut found) = (Reader::of(&*cell).await, Chance(7), 0);
        for round in 0..40 {
            // Nothing, single changes of each kind, bursts; now and then of the same node.
            let before = copy.nodes.clone();
            for _ in 0..[0, 1, 1, 5, 80][round % 5] {
                let number = chance.below(KEYS);
                let at = format!("metadata/{}/n{number:04}", number % 7);
                match chance.below(3) {
                    // It need not exist.
                    0 => drop(apply_one(&*cell, delete(&at, Guard::Any)).await),
                    1 => {
                        drop(apply_one(&*cell, delete(&at, Guard::Any)).await);
                        store(&*cell, &at, "anew").await;
                    }
                    _ => drop(store(&*cell, &at, &chance.below(1_000).to_string()).await),
                }
            }
            let (count, _) = copy.compare(&*cell).await;
            let stored = by_path(&cell.list(&TopoPath::root()).await.unwrap());
            assert!(copy.nodes == stored, "round {round}");
            let all: std::collections::BTreeSet<&TopoPath> = before.keys().chain(stored.keys()).collect();
            let differ = all.into_iter().filter(|path| before.get(*path) != stored.get(*path)).count();
            assert_eq!(count, differ, "round {round}");
            found += count;
        }
        assert!(found > 500, "{found}");
    }

    async fn locks_are_compared_as_records_are(factory) {
        let cell = factory.fresh();
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        let mut copy = Reader::of(&*cell).await;
        let place = cell.enter(&path("keyspaces/ks"), &"who".into()).await.unwrap();
        place.try_hold().await.unwrap().unwrap();
        copy.compare(&*cell).await;
        let locks = copy.nodes.values().filter(|node| node.role != topofs::backend::Role::Record).count();
        assert_eq!(locks, 1);
        place.leave().await.unwrap();
        copy.compare(&*cell).await;
        assert!(copy.nodes == by_path(&cell.list(&TopoPath::root()).await.unwrap()));
    }

    async fn a_mark_of_another_service_is_none(factory) {
        let cell = factory.fresh();
        fill(&*cell, 10).await;
        let mut copy = Reader { mark: Mark::new("another"), ..Reader::default() };
        assert_eq!(copy.compare(&*cell).await, (10, true));
    }
}

/// The differences alone: a whole list would pass all other tests.
#[tokio::test]
async fn a_service_that_can_tells_only_what_differs() {
    for factory in [Factory::etcd2(), Factory::zk2(), Factory::consul()] {
        let cell = factory.fresh();
        fill(&*cell, 300).await;
        let mut copy = Reader::of(&*cell).await;
        assert_eq!(copy.compare(&*cell).await, (0, false));
        store(&*cell, "metadata/0/n0000", "other").await;
        apply_one(&*cell, delete("metadata/1/n0001", Guard::Any)).await.unwrap();
        assert_eq!(copy.compare(&*cell).await, (2, false));
        assert_eq!(copy.compare(&*cell).await, (0, false));
    }
}
