//! A panic is never shown as a live cell.

use super::*;

/// Waits until the mirror has noticed that its follower has ended.
async fn noticed(mirror: &Mirror) {
    let mut link = mirror.link.subscribe();
    let broken = link.wait_for(|link| matches!(link, Link::Broken { .. }));
    tokio::time::timeout(Duration::from_secs(60), broken).await.expect("it is noticed").unwrap();
}

fn assert_down(mirror: &Mirror) {
    assert_eq!(mirror.health(), Health::Down);
    assert!(!mirror.is_fresh(), "the kernel may keep nothing of it");
}

fn cause(mirror: &Mirror) -> String {
    mirror.trouble().expect("it is in trouble").0
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_watch_takes_the_cell_down_until_there_is_a_fresh_list() {
    let (mirror, service, watch) = loaded(listing(1, &[("a", "1", 1)])).await;
    watch.send(Err(BackendError::new(Failure::Other, PANIC))).unwrap();
    noticed(&mirror).await;
    // Not after `stale_after`: at once.
    assert_down(&mirror);
    assert!(cause(&mirror).contains("a task of topofs panicked: the watch panics (the mirror"), "{}", cause(&mirror));
    assert!(mirror.is_loaded(), "what was shown last may be shown as stale");
    assert_eq!(shown(&mirror), records(&[("a", "1")]));
    // A service that cannot be reached then is no better.
    service.call().await.send(Err(broken())).map_err(drop).unwrap();
    let call = service.call().await;
    assert_down(&mirror);
    assert_eq!(cause(&mirror), "cut");
    let watch = begin(call, listing(3, &[("a", "2", 2), ("b", "1", 3)]));
    mirror.loaded().await;
    assert_eq!((mirror.health(), shown(&mirror)), (Health::Live, records(&[("a", "2"), ("b", "1")])));
    watch.send(Ok(event("b", None, 4))).unwrap();
    let mut updates = mirror.subscribe();
    updates.recv().await.unwrap();
    assert_eq!(shown(&mirror), records(&[("a", "2")]));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_first_list_is_an_answer_to_whoever_waits() {
    let service = Arc::new(Scripted::default());
    let mirror = Mirror::new(service.clone(), OPTIONS);
    tokio::spawn(mirror.clone().run("the mirror", CancellationToken::new()));
    // If the test service gets no answer for a call, the call panics.
    let ((), ()) = tokio::join!(async { drop(service.call().await) }, mirror.load());
    assert_down(&mirror);
    assert!(cause(&mirror).contains("a task of topofs panicked"), "{}", cause(&mirror));
    let _watch = service.begin(listing(1, &[("a", "1", 1)])).await;
    mirror.loaded().await;
    assert_eq!(mirror.health(), Health::Live);
}

#[tokio::test(start_paused = true)]
async fn half_of_a_change_is_never_shown_as_current() {
    let (mirror, service, _watch) = loaded(listing(1, &[("a", "1", 1), ("b", "1", 1)])).await;
    let mut updates = mirror.subscribe();
    let changing = mirror.clone();
    let request = std::thread::spawn(move || {
        let mut state = changing.state.lock();
        state.delete(&path("a"), Revision(9)).unwrap();
        state.delete(&path("b"), Revision(9)).unwrap();
        panic!("half way");
    });
    assert!(request.join().is_err());
    // Nothing waits for the task of the mirror to notice.
    assert_down(&mirror);
    assert_eq!(cause(&mirror), DOUBTED);
    let _watch = service.begin(listing(5, &[("a", "1", 1), ("b", "2", 5)])).await;
    mirror.loaded().await;
    assert_eq!((mirror.health(), shown(&mirror)), (Health::Live, records(&[("a", "1"), ("b", "2")])));
    // Listeners hear of the difference to what was shown, not to the half change.
    let batch = updates.recv().await.unwrap();
    let published: Vec<&str> = batch.updates.iter().map(|update| update.path.as_str()).collect();
    assert_eq!(published, ["b"]);
    assert!(updates.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_panics_after_the_list_was_asked_for_is_not_settled_by_it() {
    let (mirror, service, watch) = loaded(listing(1, &[])).await;
    watch.send(Err(broken())).unwrap();
    let call = service.call().await;
    mirror.state.doubt();
    let _lost = begin(call, listing(2, &[]));
    let call = service.call().await;
    assert_down(&mirror);
    let _watch = begin(call, listing(3, &[]));
    mirror.loaded().await;
    assert_eq!(mirror.health(), Health::Live);
}
