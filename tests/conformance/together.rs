//! One transaction over cells of one service, each below a root of its own.

use std::sync::Arc;

use futures::StreamExt;
use topofs::backend::{
    Applied, Backend, BackendError, Change, Failure, Guard, Holding, Part, Revision, WatchStream, apply_together,
};

use crate::{Factory, check, common, delete, failure, names, path, put, store, value};

/// A cell with its root.
type Rooted = (String, Arc<dyn Backend>);

/// Two cells, one root of which is no neighbour of the other.
fn two(factory: &Factory) -> [Rooted; 2] {
    let (root, _) = factory.fresh_root();
    [format!("{root}/global"), format!("{root}-elsewhere/a/b/zone1")].map(|root| {
        let cell = factory.cell(&root);
        (root, cell)
    })
}

async fn together(cells: &[Rooted; 2], changes: [&[Change]; 2]) -> Result<Vec<Applied>, BackendError> {
    let parts = cells.iter().zip(changes).map(|((root, cell), changes)| Part { cell: &**cell, root, changes });
    let parts: Vec<Part<'_>> = parts.collect();
    apply_together(&*cells[0].1, &parts).await
}

/// When a record was written, as a watch tells. (ZooKeeper dates a deletion by what is left of the directory.)
async fn written_at(watch: &mut WatchStream, at: &str) -> Revision {
    loop {
        let batch = tokio::time::timeout(common::DEADLINE, watch.next()).await.expect("an event comes").unwrap();
        let found = batch.unwrap().events.into_iter().find(|event| event.path.as_str() == at && event.node.is_some());
        if let Some(event) = found {
            return event.at;
        }
    }
}

conformance! {
    async fn cells_of_one_service_change_together_or_not_at_all(factory) {
        let cells = two(&factory);
        let [(_, one), (_, other)] = &cells;
        let a = store(&**other, "a", "1").await;
        let b = store(&**other, "dir/b", "1").await;
        let (_, mut watch) = one.follow().await.unwrap();
        let (_, mut other_watch) = other.follow().await.unwrap();
        let applied = together(&cells, [
            &[put("new/f", Guard::Absent, "1"), check("none", Guard::Absent)],
            &[put("a", Guard::Version(a), "2"), delete("dir/b", Guard::Version(b))],
        ]).await.unwrap();
        let [first, second] = &applied[..] else { panic!("{applied:?}") };
        let at = first.at;
        assert!(at > b.written && second.at == at, "{applied:?}");
        let written = |applied: &Applied| -> Vec<Option<Revision>> {
            applied.versions.iter().map(|version| version.map(|version| version.written)).collect()
        };
        assert_eq!((written(first), written(second)), (vec![Some(at), None], vec![Some(at), None]));
        // The versions are those that reads show, and the watches of both cells tell of one moment.
        let stored = |fetched: topofs::backend::Fetched| fetched.node.map(|node| node.version);
        assert_eq!(stored(one.get(&path("new/f")).await.unwrap()), first.versions[0]);
        assert_eq!(stored(other.get(&path("a")).await.unwrap()), second.versions[0]);
        assert_eq!(second.versions[0].unwrap().created, a.created);
        assert_eq!(written_at(&mut watch, "new/f").await, at);
        assert_eq!(written_at(&mut other_watch, "a").await, at);
        assert_eq!(names(&**one, "").await, ["new/f"]);
        assert_eq!(names(&**other, "").await, ["a"]);

        // Whichever cell has the unmet guard.
        let made = first.versions[0].unwrap();
        for (here, there, kind) in [
            (put("x", Guard::Absent, "1"), put("a", Guard::Version(a), "3"), Failure::BadVersion),
            (put("x", Guard::Absent, "1"), put("a", Guard::Absent, "3"), Failure::NodeExists),
            (put("new/f", Guard::Version(a), "3"), put("y", Guard::Absent, "3"), Failure::BadVersion),
            (delete("gone", Guard::Version(made)), put("y", Guard::Absent, "3"), Failure::NoNode),
        ] {
            assert_eq!(failure(together(&cells, [&[here], &[there]]).await), kind);
        }
        assert_eq!(value(&**one, "new/f").await.unwrap(), "1");
        assert_eq!(value(&**other, "a").await.unwrap(), "2");
        assert_eq!((value(&**one, "x").await, value(&**other, "y").await), (None, None));
        // A path in one cell is not that path in the other.
        together(&cells, [&[put("a", Guard::Absent, "one")], &[put("new/f", Guard::Absent, "other")]]).await.unwrap();
        assert_eq!(value(&**one, "a").await.unwrap(), "one");
        assert_eq!(value(&**other, "a").await.unwrap(), "2");
    }

    async fn a_lock_of_any_cell_guards_a_change_of_all(factory) {
        let cells = two(&factory);
        for (number, (_, cell)) in cells.iter().enumerate() {
            store(&**cell, "dir/f", "1").await;
            let place = cell.enter(&path("dir"), &"x".into()).await.unwrap();
            let node = place.try_hold().await.unwrap().expect("it is free");
            let held = Guard::Held(Holding { version: node.version, owner: node.owner() });
            let guarded = |text: &'static str| {
                let mut all = [vec![put("f", Guard::Any, text)], vec![put("f", Guard::Any, text)]];
                all[number].insert(0, check(node.path.as_str(), held));
                all
            };
            let [here, there] = guarded("held");
            together(&cells, [&here, &there]).await.unwrap();
            place.leave().await.unwrap();
            let [here, there] = guarded("lost");
            assert_eq!(failure(together(&cells, [&here, &there]).await), Failure::LockLost);
            for (_, cell) in &cells {
                assert_eq!(value(&**cell, "f").await.unwrap(), "held");
            }
        }
    }

    async fn sixty_changes_of_two_cells_are_one_transaction_and_more_are_refused_before_they_are_sent(factory) {
        let cells = two(&factory);
        let many = |count: usize| -> Vec<Change> {
            (0..count).map(|n| put(&format!("dirs/{n}/f"), Guard::Absent, "x")).collect()
        };
        let applied = together(&cells, [&many(30), &many(30)]).await.unwrap();
        let mut versions = applied.iter().flat_map(|applied| &applied.versions);
        assert!(versions.all(|version| version.unwrap().written == applied[0].at), "{applied:?}");
        let removed = |number: usize, applied: &Applied| -> Vec<Change> {
            let at = |n: usize| format!("dirs/{n}/f");
            (0..number).map(|n| delete(&at(n), Guard::Version(applied.versions[n].unwrap()))).collect()
        };
        together(&cells, [&removed(15, &applied[0]), &removed(15, &applied[1])]).await.unwrap();
        assert_eq!(names(&*cells[1].1, "").await.len(), 15);
        for changes in [
            [many(1_000), many(1)],
            // Together they are too many bytes; each could be stored.
            [1, 2].map(|_| (0..4).map(|n| put(&format!("large{n}"), Guard::Absent, vec![b'x'; 250_000])).collect()),
        ] {
            let error = together(&cells, [&changes[0], &changes[1]]).await.unwrap_err();
            assert!(matches!(error.failure, Failure::TooMany | Failure::TooLarge), "{error}");
            assert!(error.message.chars().any(|letter| letter.is_ascii_digit()), "it has the figure: {error}");
        }
        assert_eq!(names(&*cells[0].1, "").await.len(), 15);
        let [(root, one), _] = &cells;
        let inside = (format!("{root}/dirs"), factory.cell(&format!("{root}/dirs")));
        let twice = [(root.clone(), one.clone()), inside];
        let both = together(&twice, [&[put("dirs/x", Guard::Any, "1")], &[put("x", Guard::Any, "2")]]).await;
        let error = both.unwrap_err();
        assert!(error.message.contains("twice"), "{error}");
        assert_eq!(value(&**one, "dirs/x").await, None);
        // A root inside of another cell's is another cell.
        together(&twice, [&[put("dirs/x", Guard::Any, "1")], &[put("y", Guard::Any, "2")]]).await.unwrap();
        assert_eq!(value(&**one, "dirs/y").await.unwrap(), "2");
    }

    async fn transactions_over_cells_go_on_beside_others_that_make_and_remove_their_directories(factory) {
        // ZooKeeper's parents come and go with their children: no change may fail because of another's parents.
        let cells = Arc::new(two(&factory));
        let workers = (0..4).map(|worker| {
            let cells = cells.clone();
            tokio::spawn(async move {
                for round in 0..15 {
                    let at = [format!("deep/{}/{worker}/f", round % 3), format!("deep/{worker}")];
                    let all = |n: usize| vec![put(&at[n], Guard::Absent, "x")];
                    let applied = together(&cells, [&all(0), &all(1)]).await.unwrap();
                    let gone = |n: usize| vec![delete(&at[n], Guard::Version(applied[n].versions[0].unwrap()))];
                    together(&cells, [&gone(0), &gone(1)]).await.unwrap();
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        for (_, cell) in &*cells {
            assert!(names(&**cell, "").await.is_empty());
        }
    }
}
