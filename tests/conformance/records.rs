//! Records: creating, changing, deleting, listing, watching.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use topofs::backend::{BackendError, Change, Failure, Guard, Implementation, Node, Revision, WatchEvent, WatchStream};
use topofs::name::TopoPath;

use crate::{Factory, apply_one, check, common, delete, failure, names, path, put, store, value};

/// The next events, until one concerns the path.
async fn events_until(watch: &mut WatchStream, last: &str) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    loop {
        let batch =
            tokio::time::timeout(common::DEADLINE, watch.next()).await.expect("an event comes").unwrap().unwrap();
        events.extend(batch.events);
        if events.last().is_some_and(|event| event.path.as_str() == last) {
            return events;
        }
    }
}

conformance! {
    async fn create_is_exclusive(factory) {
        let cell = factory.fresh();
        let applied = apply_one(&*cell, put("a/b", Guard::Absent, "1")).await.unwrap();
        let fetched = cell.get(&path("a/b")).await.unwrap();
        let found = fetched.node.as_ref().map(|node| (&node.value[..], Some(node.version)));
        assert_eq!(found, Some((&b"1"[..], applied.versions[0])));
        assert!(fetched.at >= applied.at);
        assert_eq!(failure(apply_one(&*cell, put("a/b", Guard::Absent, "2")).await), Failure::NodeExists);
        assert_eq!(value(&*cell, "a/b").await.unwrap(), "1");
    }

    async fn update_compares_the_version(factory) {
        let cell = factory.fresh();
        let first = store(&*cell, "f", "1").await;
        let second = apply_one(&*cell, put("f", Guard::Version(first), "2")).await.unwrap().versions[0].unwrap();
        assert_ne!(first.number, second.number);
        assert!(second.written > first.written);
        assert_eq!(second.created, first.created);
        let error = apply_one(&*cell, put("f", Guard::Version(first), "3")).await.unwrap_err();
        assert_eq!(error.failure, Failure::BadVersion);
        assert!(error.message.contains('f'), "{error}");
        assert_eq!(value(&*cell, "f").await.unwrap(), "2");
        assert_eq!(failure(apply_one(&*cell, put("missing", Guard::Version(first), "x")).await), Failure::NoNode);
    }

    async fn unconditional_update_creates_and_replaces(factory) {
        let cell = factory.fresh();
        let first = store(&*cell, "f", "1").await;
        let second = store(&*cell, "f", "2").await;
        assert!(second.written > first.written);
        assert_eq!(second.created, first.created);
        // An empty value is a value.
        store(&*cell, "f", "").await;
        assert_eq!(value(&*cell, "f").await.unwrap(), "");
    }

    async fn delete_compares_the_version(factory) {
        let cell = factory.fresh();
        let first = store(&*cell, "f", "1").await;
        let second = store(&*cell, "f", "2").await;
        assert_eq!(failure(apply_one(&*cell, delete("f", Guard::Version(first))).await), Failure::BadVersion);
        let applied = apply_one(&*cell, delete("f", Guard::Version(second))).await.unwrap();
        assert_eq!(applied.versions, [None]);
        assert!(applied.at > second.written);
        assert_eq!(value(&*cell, "f").await, None);
        assert_eq!(failure(apply_one(&*cell, delete("f", Guard::Version(second))).await), Failure::NoNode);
        assert_eq!(failure(apply_one(&*cell, delete("f", Guard::Any)).await), Failure::NoNode);
        store(&*cell, "f", "3").await;
        apply_one(&*cell, delete("f", Guard::Any)).await.unwrap();
        assert_eq!(value(&*cell, "f").await, None);
    }

    async fn an_earlier_point_is_shown_as_it_was_or_not_at_all(factory) {
        let cell = factory.fresh();
        // More than one page of any service.
        let many: Vec<Change> = (0..600).map(|n| put(&format!("many/{n}"), Guard::Any, "x")).collect();
        for changes in many.chunks(cell.limits().changes) {
            cell.apply(changes).await.unwrap();
        }
        store(&*cell, "a", "1").await;
        store(&*cell, "b", "1").await;
        let then = cell.list(&TopoPath::root()).await.unwrap();
        store(&*cell, "a", "2").await;
        store(&*cell, "c", "1").await;
        apply_one(&*cell, delete("b", Guard::Any)).await.unwrap();
        let at = async |dir: &str, at: Revision| {
            let mut shown = Vec::new();
            let mut take = |node: Node| {
                shown.push((node.path.to_string(), node.value, node.version));
                Ok(())
            };
            cell.list_at(&path(dir), at, &mut take).await?;
            shown.sort_by(|one, other| one.0.cmp(&other.0));
            Ok::<_, BackendError>(shown)
        };
        for none in [Revision(0), Revision(u64::MAX), Revision(then.at.0 + 1_000_000_000)] {
            assert_eq!(failure(at("", none).await), Failure::NotKept, "{none:?}");
        }
        let shown = match at("", then.at).await {
            Err(error) if factory.implementation != Implementation::Etcd2 => {
                assert_eq!(error.failure, Failure::NotKept);
                return;
            }
            shown => shown.unwrap(),
        };
        let mut expected: Vec<_> =
            then.nodes.into_iter().map(|node| (node.path.to_string(), node.value, node.version)).collect();
        expected.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(shown, expected);
        assert_eq!(at("many", then.at).await.unwrap().len(), 600);
        // Who has enough ends it.
        let enough = BackendError::new(Failure::TooLarge, "enough");
        let mut taken = 0;
        let mut take = |_| {
            taken += 1;
            if taken < 300 { Ok(()) } else { Err(enough.clone()) }
        };
        assert_eq!(failure(cell.list_at(&TopoPath::root(), then.at, &mut take).await), Failure::TooLarge);
        assert_eq!(taken, 300);
    }

    async fn a_record_outlives_what_is_stored_below_it(factory) {
        // ZooKeeper's parents are removed with their last child, but only where they are mere directories.
        let cell = factory.fresh();
        for (at, text) in [("dir/full", "kept"), ("keyspaces/ks/Keyspace", "")] {
            let below = format!("{at}/below/it");
            store(&*cell, &below, "x").await;
            // A directory is no record that is in the way.
            apply_one(&*cell, put(at, Guard::Absent, text)).await.unwrap();
            // (An empty one, with others below it, cannot be told from a directory on ZooKeeper.)
            if !text.is_empty() {
                assert_eq!(failure(apply_one(&*cell, put(at, Guard::Absent, text)).await), Failure::NodeExists);
            }
            apply_one(&*cell, delete(&below, Guard::Any)).await.unwrap();
            assert_eq!(value(&*cell, at).await.as_deref(), Some(text.as_bytes()), "{at}");
        }
        assert_eq!(names(&*cell, "").await, ["dir/full", "keyspaces/ks/Keyspace"]);
    }

    async fn a_record_is_not_its_successor(factory) {
        // ZooKeeper's version numbers begin again: the creation tells.
        let cell = factory.fresh();
        let first = apply_one(&*cell, put("f", Guard::Absent, "1")).await.unwrap().versions[0].unwrap();
        apply_one(&*cell, delete("f", Guard::Version(first))).await.unwrap();
        let again = apply_one(&*cell, put("f", Guard::Absent, "1")).await.unwrap().versions[0].unwrap();
        assert_ne!(first, again);
        assert_ne!(first.created, again.created);
        assert_eq!(failure(apply_one(&*cell, put("f", Guard::Version(first), "2")).await), Failure::BadVersion);
    }

    async fn changes_apply_whole_or_not_at_all(factory) {
        let cell = factory.fresh();
        let a = store(&*cell, "a", "1").await;
        let b = store(&*cell, "b", "1").await;
        let outcome = cell
            .apply(&[put("a", Guard::Version(a), "2"), put("c", Guard::Absent, "2"), delete("b", Guard::Version(a))])
            .await;
        assert_eq!(failure(outcome), Failure::BadVersion);
        assert_eq!((value(&*cell, "a").await.unwrap(), value(&*cell, "c").await), (Bytes::from("1"), None));
        let applied = cell
            .apply(&[put("a", Guard::Version(a), "2"), check("b", Guard::Version(b)), put("c", Guard::Absent, "2")])
            .await
            .unwrap();
        let versions: Vec<_> = applied.versions.iter().map(|version| version.map(|v| v.written)).collect();
        assert_eq!(versions, [Some(applied.at), None, Some(applied.at)]);
        assert_eq!(value(&*cell, "b").await.unwrap(), "1", "a check changes nothing");
        assert_eq!(failure(cell.apply(&[check("b", Guard::Absent)]).await), Failure::NodeExists);
        assert_eq!(failure(cell.apply(&[check("none", Guard::Version(b))]).await), Failure::NoNode);
        cell.apply(&[check("none", Guard::Absent)]).await.unwrap();
    }

    async fn limits_are_checked_before_sending(factory) {
        let cell = factory.fresh();
        let limits = cell.limits();
        let large = vec![b'x'; limits.value];
        apply_one(&*cell, put("large", Guard::Any, large.clone())).await.unwrap();
        assert_eq!(value(&*cell, "large").await.unwrap(), large);
        let larger = vec![b'x'; limits.value + 1];
        assert_eq!(failure(apply_one(&*cell, put("large", Guard::Any, larger)).await), Failure::TooLarge);
        let many: Vec<Change> = (0..limits.changes).map(|n| put(&format!("n{n}"), Guard::Any, "x")).collect();
        cell.apply(&many).await.unwrap();
        let more = [many, vec![put("one-more", Guard::Any, "x")]].concat();
        assert_eq!(failure(cell.apply(&more).await), Failure::TooMany);
        assert_eq!(value(&*cell, "one-more").await, None);
    }

    async fn values_are_bytes(factory) {
        let cell = factory.fresh();
        let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        apply_one(&*cell, put("bytes", Guard::Any, all.clone())).await.unwrap();
        assert_eq!(value(&*cell, "bytes").await.unwrap(), all);
    }

    async fn a_list_shows_the_subtree(factory) {
        let cell = factory.fresh();
        assert!(names(&*cell, "").await.is_empty(), "an empty cell is no error");
        assert!(names(&*cell, "nowhere").await.is_empty());
        for at in ["foo/Keyspace", "foo/shards/0/Shard", "foo-bar/Keyspace", "foo.x", "other/y", "ü/ñ"] {
            store(&*cell, at, at).await;
        }
        assert_eq!(names(&*cell, "foo").await, ["foo/Keyspace", "foo/shards/0/Shard"], "not foo-bar, not foo.x");
        assert_eq!(names(&*cell, "foo/shards").await, ["foo/shards/0/Shard"]);
        assert_eq!(names(&*cell, "").await.len(), 6);
        let listing = cell.list(&path("other")).await.unwrap();
        assert_eq!(listing.nodes[0].value, "other/y");
        assert!(listing.at >= listing.nodes[0].version.written);
        assert_eq!(listing.nodes[0].version, cell.get(&path("other/y")).await.unwrap().node.unwrap().version);
    }

    async fn a_list_is_one_point_of_a_busy_service(factory) {
        // A writer moves a token from place to place in one transaction: every list shows exactly one. There are so
        // many keys that no service shows them in one answer, and the token goes from before them to behind them and
        // back.
        let cell = factory.fresh();
        let filler: Vec<Change> = (0..700).map(|n| put(&format!("filler/m{n}"), Guard::Any, vec![b'x'; 200])).collect();
        for chunk in filler.chunks(cell.limits().changes) {
            cell.apply(chunk).await.unwrap();
        }
        store(&*cell, "filler/a-token", "t").await;
        let (writer, stop) = (cell.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let stopped = stop.clone();
        let moving = tokio::spawn(async move {
            let (mut at, mut next) = ("filler/a-token", "filler/z-token");
            while !stopped.load(Ordering::Relaxed) {
                writer.apply(&[delete(at, Guard::Any), put(next, Guard::Absent, "t")]).await.unwrap();
                (at, next) = (next, at);
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..30 {
            let names = names(&*cell, "filler").await;
            assert_eq!(names.iter().filter(|name| name.contains("token")).count(), 1);
            assert_eq!(names.len(), 701);
        }
        stop.store(true, Ordering::Relaxed);
        moving.await.unwrap();
    }

    async fn roots_do_not_see_each_other(factory) {
        let (one, two) = (factory.cell("/conformance/roots/one"), factory.cell("/conformance/roots/one-more"));
        store(&*one, "x", "1").await;
        store(&*two, "y", "2").await;
        assert_eq!(names(&*one, "").await, ["x"]);
        assert_eq!(names(&*two, "").await, ["y"]);
        // Slashes around a root make no difference, as in Vitess.
        assert_eq!(names(&*factory.cell("/conformance//roots/one/"), "").await, ["x"]);
    }

    async fn keys_that_cannot_be_names_are_counted(factory) {
        let inner = factory.cell("/conformance/names");
        let (_, mut watch) = inner.follow().await.unwrap();
        // No file name is that long, and no path of this trait; a root can be.
        let odd = factory.cell(&format!("/conformance/names/odd{}", "x".repeat(300)));
        store(&*odd, "z", "skipped").await;
        store(&*inner, "last", "1").await;
        let listing = inner.list(&TopoPath::root()).await.unwrap();
        let all = listing.nodes.iter().map(|node| node.path.to_string());
        let shown: Vec<_> = all.filter(|name| name.contains("odd")).collect();
        assert_eq!((listing.skipped, shown), (1, Vec::<String>::new()));
        let events = events_until(&mut watch, "last").await;
        assert!(events.iter().all(|event| !event.path.as_str().contains("odd")));
    }

    async fn following_tells_everything_after_its_list(factory) {
        let cell = factory.fresh();
        let before = store(&*cell, "a", "before").await;
        let (listing, mut watch) = cell.follow().await.unwrap();
        assert_eq!((listing.nodes.len(), listing.nodes[0].version), (1, before));
        assert!(listing.at >= before.written);
        let changed = store(&*cell, "a", "changed").await;
        store(&*cell, "b/c", "1").await;
        let deleted = apply_one(&*cell, delete("a", Guard::Any)).await.unwrap();
        store(&*cell, "last", "1").await;
        let events = events_until(&mut watch, "last").await;
        let seen: Vec<_> =
            events.iter().map(|e| (e.path.as_str(), e.node.as_ref().map(|node| &node.value[..]))).collect();
        // A value that was replaced before anybody looked may be left out; the order stays.
        let last: Vec<_> = seen.iter().filter(|event| **event != ("a", Some(&b"changed"[..]))).copied().collect();
        assert_eq!(last, [("b/c", Some(&b"1"[..])), ("a", None), ("last", Some(b"1"))]);
        let of_a = events.iter().filter(|event| event.path.as_str() == "a");
        assert!(of_a.filter_map(|event| event.node.as_ref()).all(|node| node.version == changed));
        // A deletion may be dated later than it was, but not after a later creation of the same node.
        let deletion = events.iter().find(|event| event.node.is_none()).unwrap();
        assert!(deletion.at > changed.written && deletion.at >= deleted.at);
        assert!(events.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let again = store(&*cell, "a", "again").await;
        assert!(again.written > deletion.at);
    }

    async fn nothing_is_lost_between_list_and_watch(factory) {
        let cell = factory.fresh();
        for round in 0..20 {
            let writer = cell.clone();
            let writing = tokio::spawn(async move {
                for n in 0..20 {
                    store(&*writer, &format!("f{n}"), &round.to_string()).await;
                }
                store(&*writer, "last", &round.to_string()).await;
            });
            let (listing, mut watch) = cell.follow().await.unwrap();
            let mut known: std::collections::HashMap<_, _> =
                listing.nodes.into_iter().map(|node| (node.path, node.value)).collect();
            while known.get(&path("last")).is_none_or(|value| *value != round.to_string()) {
                let batch = tokio::time::timeout(common::DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
                known.extend(batch.events.into_iter().filter_map(|event| Some((event.path, event.node?.value))));
            }
            writing.await.unwrap();
            assert!(known.values().all(|value| *value == round.to_string()), "{known:?}");
        }
    }

    async fn a_watch_leaves_nothing_out_while_a_writer_does_not_pause(factory) {
        let cell = factory.fresh();
        let (_, mut watch) = cell.follow().await.unwrap();
        let names: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
        let mut missing: BTreeSet<TopoPath> = names.iter().map(|name| path(name)).collect();
        let writer = cell.clone();
        let writing = tokio::spawn(async move {
            for name in names {
                store(&*writer, &name, "1").await;
            }
        });
        while !missing.is_empty() {
            let batch = tokio::time::timeout(common::DEADLINE, watch.next()).await;
            let batch = batch.unwrap_or_else(|_| panic!("never told of: {missing:?}")).unwrap().unwrap();
            missing.retain(|path| batch.events.iter().all(|event| event.path != *path));
        }
        writing.await.unwrap();
    }

    async fn a_watch_tells_of_its_root_only(factory) {
        let (root, cell) = factory.fresh_root();
        let other = factory.cell(&format!("{root}-not"));
        let (_, mut watch) = cell.follow().await.unwrap();
        store(&*other, "x", "1").await;
        store(&*cell, "last", "1").await;
        assert_eq!(events_until(&mut watch, "last").await.len(), 1);
    }

    async fn a_transaction_has_one_revision(factory) {
        let cell = factory.fresh();
        let (_, mut watch) = cell.follow().await.unwrap();
        let applied = cell.apply(&[put("a", Guard::Absent, "1"), put("b", Guard::Absent, "1")]).await.unwrap();
        let mut events = events_until(&mut watch, "b").await;
        if events.len() < 2 {
            events.extend(events_until(&mut watch, "a").await);
        }
        assert!(events.len() == 2 && events.iter().all(|event| event.at == applied.at), "{events:?} {applied:?}");
    }

    async fn ten_thousand_changes_end_right(factory) {
        // What is overtaken before it is looked at may be left out; what is told never goes backwards, and the end is
        // right.
        let cell = factory.fresh();
        let (_, mut watch) = cell.follow().await.unwrap();
        let writer = cell.clone();
        let writing = tokio::spawn(async move {
            for round in 0..250 {
                let change = |n| put(&format!("d{n}/f"), Guard::Any, format!("{round}"));
                let changes: Vec<_> = (0..40).map(change).collect();
                writer.apply(&changes[..20]).await.unwrap();
                writer.apply(&changes[20..]).await.unwrap();
            }
            store(&*writer, "last", "1").await;
        });
        let events = events_until(&mut watch, "last").await;
        writing.await.unwrap();
        let mut rounds: std::collections::HashMap<_, usize> = std::collections::HashMap::new();
        for event in events.iter().filter(|event| event.path.as_str() != "last") {
            let round = std::str::from_utf8(&event.node.as_ref().unwrap().value).unwrap().parse().unwrap();
            let before = rounds.insert(event.path.clone(), round);
            assert!(before.is_none_or(|before| before <= round), "{}: {before:?}, then {round}", event.path);
        }
        assert_eq!(rounds.len(), 40);
        assert!(rounds.values().all(|round| *round == 249), "{rounds:?}");
    }

    async fn concurrent_updates_lose_nothing(factory) {
        let cell = factory.fresh();
        store(&*cell, "counter", "0").await;
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let cell = cell.clone();
                tokio::spawn(async move {
                    let mut done = 0;
                    while done < 25 {
                        let node = cell.get(&path("counter")).await.unwrap().node.unwrap();
                        let count: u32 = std::str::from_utf8(&node.value).unwrap().parse().unwrap();
                        let next = put("counter", Guard::Version(node.version), (count + 1).to_string());
                        match apply_one(&*cell, next).await {
                            Ok(_) => done += 1,
                            Err(error) => assert_eq!(error.failure, Failure::BadVersion),
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        assert_eq!(value(&*cell, "counter").await.unwrap(), "200");
    }

    async fn siblings_come_and_go_beside_each_other(factory) {
        // ZooKeeper's parents are collected when they are empty: a create beside a delete must not fail.
        let cell = factory.fresh();
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let cell = cell.clone();
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let at = format!("deep/dir/{worker}/f");
                        let made = apply_one(&*cell, put(&at, Guard::Absent, "x")).await.unwrap();
                        let version = made.versions[0].unwrap();
                        apply_one(&*cell, delete(&at, Guard::Version(version))).await.unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        assert!(names(&*cell, "").await.is_empty());
    }
}
