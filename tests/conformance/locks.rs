//! Locks and elections: one holder, an order, and nothing left behind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use topofs::backend::{Backend, Change, Failure, Guard, Implementation, Node, Role};
use topofs::backend::{Holding, Owner, SharedPlace};
use topofs::name::TopoPath;

use crate::{Factory, apply_one, check, common, delete, failure, names, path, put, store, value};

const DIR: &str = "keyspaces/ks";

async fn enter(cell: &dyn Backend, dir: &str, text: &str) -> SharedPlace {
    cell.enter(&path(dir), &Bytes::copy_from_slice(text.as_bytes())).await.unwrap()
}

/// Asks until it is this place's turn.
async fn hold(place: &SharedPlace) -> Node {
    tokio::time::timeout(common::DEADLINE, async {
        loop {
            if let Some(node) = place.try_hold().await.unwrap() {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the lock is held in time")
}

fn held(node: &Node) -> Change {
    let holding = Holding { version: node.version, owner: node.owner() };
    check(node.path.as_str(), Guard::Held(holding))
}

/// Without a queue nobody has a right to be next, but one at a time has it, everybody gets it, and nobody who has given
/// up does.
async fn everybody_has_it_once(cell: &dyn Backend, mut places: Vec<SharedPlace>) {
    let gone = places.remove(5);
    gone.leave().await.unwrap();
    let mut names: Vec<Bytes> = Vec::new();
    while !places.is_empty() {
        // Whoever asks first when it is free: the last, then the first, and so on.
        let chosen = if places.len().is_multiple_of(2) { 0 } else { places.len() - 1 };
        let first = places.remove(chosen);
        let node = hold(&first).await;
        for other in &places {
            assert!(other.try_hold().await.unwrap().is_none());
        }
        assert_eq!(lock_nodes(cell, DIR).await.len(), 1);
        assert_eq!(cell.get(&node.path).await.unwrap().node.unwrap().owner(), node.owner());
        names.push(node.value);
        first.leave().await.unwrap();
    }
    names.sort_by_key(|name| std::str::from_utf8(name).unwrap().parse::<u32>().unwrap());
    assert_eq!(names, ["0", "1", "2", "3", "4", "6", "7", "8", "9", "10", "11"]);
}

async fn lock_nodes(cell: &dyn Backend, dir: &str) -> Vec<Node> {
    let nodes = cell.list(&TopoPath::root()).await.unwrap().nodes;
    nodes.into_iter().filter(|node| cell.locked_dir(&node.path).as_ref() == Some(&path(dir))).collect()
}

/// Where Vitess looks for a lock (facts: go/vt/topo/*topo/lock.go and election.go).
fn is_where_vitess_looks(implementation: Implementation, dir: &str, node: &Node) -> bool {
    let name = node.path.name();
    let digits = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let parent = node.path.parent().unwrap();
    match implementation {
        Implementation::Etcd2 => {
            parent.as_str() == format!("{dir}/locks") && Ok(node.owner().0) == name.parse::<u128>()
        }
        Implementation::Zk2 if dir.starts_with("elections/") => {
            parent.as_str() == dir && digits(name) && name.len() == 10
        }
        Implementation::Zk2 => parent.as_str() == format!("{dir}/locks") && digits(name) && name.len() == 10,
        Implementation::Consul if dir.starts_with("elections/") => node.path.as_str() == dir,
        Implementation::Consul => node.path.as_str() == format!("{dir}/Lock"),
        Implementation::Memory => parent.as_str() == format!("{dir}/locks"),
    }
}

conformance! {
    async fn a_lock_has_one_holder(factory) {
        let cell = factory.fresh();
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        for dir in [DIR, "internal/named_locks/ks/workflow", "elections/vtctld"] {
            let first = enter(&*cell, dir, "first").await;
            let node = hold(&first).await;
            assert!(is_where_vitess_looks(factory.implementation, dir, &node), "{node:?}");
            assert_eq!(node.value, "first");
            assert_ne!(node.owner(), Owner::NOBODY);
            let fetched = cell.get(&node.path).await.unwrap().node.unwrap();
            assert_eq!((&fetched.value, fetched.role), (&node.value, Role::Lock(node.owner())));
            let second = enter(&*cell, dir, "second").await;
            assert!(second.try_hold().await.unwrap().is_none());
            assert!(first.try_hold().await.unwrap().is_some_and(|again| again.path == node.path) || !cell.has_queue());
            first.leave().await.unwrap();
            let node = hold(&second).await;
            assert_eq!(node.value, "second");
            second.leave().await.unwrap();
            second.leave().await.unwrap();
            assert!(lock_nodes(&*cell, dir).await.is_empty(), "nothing is left");
        }
        assert_eq!(names(&*cell, "").await, ["keyspaces/ks/Keyspace"]);
    }

    async fn a_lock_needs_something_to_lock(factory) {
        let cell = factory.fresh();
        let entered = cell.enter(&path(DIR), &Bytes::new()).await;
        assert_eq!(failure(entered.map(drop)), Failure::NoNode);
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        assert_eq!(failure(cell.enter(&path("keyspaces/other"), &Bytes::new()).await.map(drop)), Failure::NoNode);
        enter(&*cell, DIR, "").await.leave().await.unwrap();
    }

    async fn waiters_are_served_in_the_order_in_which_they_came(factory) {
        let cell = factory.fresh();
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        let mut places = Vec::new();
        for number in 0..12 {
            places.push(enter(&*cell, DIR, &number.to_string()).await);
        }
        if !cell.has_queue() {
            return everybody_has_it_once(&*cell, places).await;
        }
        let mut order: Vec<u64> = places.iter().map(|place| place.node().unwrap().version.written.0).collect();
        assert!(order.is_sorted(), "{order:?}");
        order.dedup();
        assert_eq!(order.len(), 12);
        // One who gives up in between.
        places.remove(5).leave().await.unwrap();
        while !places.is_empty() {
            let first = places.remove(0);
            for other in &places {
                assert!(other.try_hold().await.unwrap().is_none());
            }
            hold(&first).await;
            first.leave().await.unwrap();
        }
    }

    async fn no_two_hold_it_at_once(factory) {
        let cell = factory.fresh();
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let contenders = (0..16).map(|_| {
            let (cell, inside) = (cell.clone(), inside.clone());
            tokio::spawn(async move {
                let place = enter(&*cell, DIR, "").await;
                hold(&place).await;
                assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                place.leave().await.unwrap();
            })
        });
        for contender in contenders.collect::<Vec<_>>() {
            contender.await.unwrap();
        }
    }

    async fn a_change_can_need_a_lock(factory) {
        let cell = factory.fresh();
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        let place = enter(&*cell, DIR, "").await;
        let node = hold(&place).await;
        let fenced = |value: &'static str| [held(&node), put("keyspaces/ks/Keyspace", Guard::Any, value)];
        let applied = cell.apply(&fenced("1")).await.unwrap();
        assert_eq!((applied.versions[0], applied.versions[1].map(|version| version.written)), (None, Some(applied.at)));
        // Somebody takes it away.
        cell.break_lock(&node).await.unwrap();
        assert_eq!(failure(cell.apply(&fenced("2")).await), Failure::LockLost);
        let next = enter(&*cell, DIR, "").await;
        let other = hold(&next).await;
        assert_eq!(failure(cell.apply(&fenced("2")).await), Failure::LockLost);
        assert_eq!(value(&*cell, "keyspaces/ks/Keyspace").await.unwrap(), "1");
        cell.apply(&[held(&other), put("keyspaces/ks/Keyspace", Guard::Any, "3")]).await.unwrap();
        next.leave().await.unwrap();
        assert_eq!(failure(cell.apply(&[held(&other)]).await), Failure::LockLost);
        // The loser's place is gone, and leaving it does no harm.
        if cell.has_queue() {
            assert_eq!(failure(place.try_hold().await), Failure::LockLost);
        }
        place.leave().await.unwrap();
        assert_eq!(value(&*cell, "keyspaces/ks/Keyspace").await.unwrap(), "3");
    }

    async fn leaving_a_lock_that_was_broken_does_nothing_to_its_successor(factory) {
        // Names may come again: ZooKeeper's numbers begin anew with the directory of the locks.
        let (root, cell) = factory.fresh_root();
        store(&*cell, "keyspaces/ks/Keyspace", "x").await;
        // The successor is of another session, then of the same.
        for successors in [factory.cell(&root), cell.clone()] {
            for dir in [DIR, "elections/vtctld"] {
                let lost = enter(&*cell, dir, "lost").await;
                let node = hold(&lost).await;
                cell.break_lock(&node).await.unwrap();
                cell.sweep_locks(&path(dir)).await.unwrap();
                let next = enter(&*successors, dir, "next").await;
                let other = hold(&next).await;
                if cell.has_queue() {
                    assert_eq!(failure(lost.try_hold().await), Failure::LockLost);
                }
                assert_eq!(failure(cell.apply(&[held(&node)]).await), Failure::LockLost);
                // Whoever takes the lost one away by an old look at it hits nobody, either.
                assert!(cell.break_lock(&node).await.is_err() || factory.implementation == Implementation::Etcd2);
                lost.leave().await.unwrap();
                successors.apply(&[held(&other)]).await.unwrap();
                let there = cell.get(&other.path).await.unwrap().node.unwrap();
                assert_eq!((there.value, there.version), (other.value.clone(), other.version));
                next.leave().await.unwrap();
                assert!(lock_nodes(&*cell, dir).await.is_empty());
            }
        }
    }

    async fn locks_are_told_apart_from_records(factory) {
        let cell = factory.fresh();
        for record in ["keyspaces/ks/Keyspace", "keyspaces/ks/shards/0/Shard", "keyspaces/locks/Keyspace"] {
            store(&*cell, record, "x").await;
        }
        let outer = enter(&*cell, DIR, "").await;
        let inner = enter(&*cell, "keyspaces/ks/shards/0", "").await;
        let (outer_node, inner_node) = (hold(&outer).await, hold(&inner).await);
        assert_eq!(cell.locked_dir(&outer_node.path), Some(path(DIR)));
        assert_eq!(cell.locked_dir(&inner_node.path), Some(path("keyspaces/ks/shards/0")));
        let listing = cell.list(&TopoPath::root()).await.unwrap();
        let records = listing.nodes.iter().filter(|node| node.role == Role::Record).count();
        assert_eq!((records, listing.nodes.len()), (3, 5));
        // A record in a place like that of a lock is a record, unless everybody who wants the lock waits for it.
        let waited_for = ["keyspaces/ks/locks/note", "keyspaces/ks/locks/deep/er"];
        let records = ["keyspaces/locks/note", "keyspaces/ks/shards/locks/Shard", "metadata/locks/5"];
        for odd in [&waited_for[..], &records].concat() {
            if factory.implementation != Implementation::Zk2 {
                apply_one(&*cell, put(odd, Guard::Any, "x")).await.unwrap();
                let role = cell.get(&path(odd)).await.unwrap().node.unwrap().role;
                let is_waited_for = factory.implementation == Implementation::Etcd2 && waited_for.contains(&odd);
                assert_eq!(role, if is_waited_for { Role::Lock(Owner::UNBOUND) } else { Role::Record }, "{odd}");
            }
        }
        if factory.implementation == Implementation::Etcd2 {
            outer.leave().await.unwrap();
            let place = enter(&*cell, DIR, "").await;
            for odd in waited_for {
                assert!(place.try_hold().await.unwrap().is_none());
                let left = cell.get(&path(odd)).await.unwrap().node.unwrap();
                assert_eq!(cell.locked_dir(&left.path), Some(path(DIR)));
                cell.break_lock(&left).await.unwrap();
                // Gone is what it was to be; another one of the same name is not the same.
                cell.break_lock(&left).await.unwrap();
                let again = apply_one(&*cell, put(odd, Guard::Any, "x")).await.unwrap().versions[0].unwrap();
                assert_eq!(failure(cell.break_lock(&left).await), Failure::BadVersion);
                apply_one(&*cell, delete(odd, Guard::Version(again))).await.unwrap();
            }
            hold(&place).await;
            place.leave().await.unwrap();
        }
        outer.leave().await.unwrap();
        inner.leave().await.unwrap();
    }
}
