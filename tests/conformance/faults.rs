//! The wrapper that brings faults: each meets the call that the script names, and is what it is called.
//!
//! The clock stands still and goes on by itself when everybody waits, so a time-out of 15 s is over at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;
use topofs::backend::faulty::{Call, Fault, Faulty};
use topofs::backend::{Backend, BackendError, Failure, Guard};
use topofs::name::TopoPath;

use crate::{Factory, apply_one, failure, names, path, put, store, value};

const TIMEOUT: Duration = Duration::from_secs(15);

/// A memory service as it is, and with faults.
fn cell() -> (Arc<dyn Backend>, Faulty) {
    let plain = Factory::memory().fresh();
    (plain.clone(), Faulty::new(plain, TIMEOUT))
}

async fn write(faulty: &Faulty) -> Result<(), BackendError> {
    apply_one(faulty, put("f", Guard::Any, "new")).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_fault_meets_the_call_that_the_script_names() {
    let (plain, faulty) = cell();
    store(&*plain, "f", "old").await;
    let faulty = faulty
        .on(Call::Get, 2, Fault::Fail(Failure::Unreachable))
        .on(Call::Any, 5, Fault::Fail(Failure::Denied))
        .on(Call::List, 1, Fault::Fail(Failure::Compacted));
    let get = async || faulty.get(&path("f")).await;
    get().await.unwrap();
    assert_eq!(failure(get().await), Failure::Unreachable);
    assert_eq!(failure(faulty.list(&TopoPath::root()).await), Failure::Compacted);
    get().await.unwrap();
    assert_eq!(failure(write(&faulty).await), Failure::Denied, "the fifth of all");
    write(&faulty).await.unwrap();
    faulty.next(Call::Get, Fault::Fail(Failure::Other));
    assert_eq!(failure(get().await), Failure::Other);
    get().await.unwrap();
    let counts = [Call::Get, Call::List, Call::Apply, Call::Any].map(|call| faulty.count(call));
    assert_eq!(counts, [5, 1, 2, 8]);
}

#[tokio::test(start_paused = true)]
async fn each_fault_of_a_change_is_what_it_is_called() {
    // What happens, whether the service has done it, and after how long the answer comes.
    let soon = Duration::from_secs(1);
    let cases = [
        (Fault::Fail(Failure::NoSpace), Some(Failure::NoSpace), false, Duration::ZERO),
        (Fault::Hang, Some(Failure::Unreachable), false, TIMEOUT),
        (Fault::Lost, Some(Failure::Unreachable), true, TIMEOUT),
        (Fault::Late(soon), None, true, soon),
        (Fault::Late(TIMEOUT * 2), Some(Failure::Unreachable), true, TIMEOUT),
    ];
    for (fault, expected, done, after) in cases {
        let (plain, faulty) = cell();
        let begun = Instant::now();
        faulty.next(Call::Apply, fault);
        let answer = write(&faulty).await;
        assert_eq!(answer.as_ref().err().map(|error| error.failure), expected, "{fault:?}");
        // A caller without an answer cannot tell the two apart, and is told so.
        let uncertain = answer.as_ref().is_err_and(BackendError::is_uncertain);
        assert_eq!(uncertain, expected == Some(Failure::Unreachable), "{fault:?}: {answer:?}");
        assert_eq!(value(&*plain, "f").await.is_some(), done, "{fault:?}");
        assert!(begun.elapsed() >= after && begun.elapsed() < after + soon, "{fault:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_is_not_called_uncertain() {
    let (plain, faulty) = cell();
    store(&*plain, "f", "old").await;
    for fault in [Fault::Hang, Fault::Lost] {
        faulty.next(Call::Get, fault);
        let error = faulty.get(&path("f")).await.unwrap_err();
        assert_eq!((error.failure, error.is_uncertain()), (Failure::Unreachable, false), "{fault:?}");
        assert!(error.message.contains("no answer within 15s"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_the_callers_and_nobodys_else() {
    let (plain, faulty) = cell();
    faulty.next(Call::Apply, Fault::Panic);
    let writer = faulty.clone();
    assert!(tokio::spawn(async move { write(&writer).await }).await.unwrap_err().is_panic());
    assert_eq!(value(&*plain, "f").await, None, "the service never heard of it");
    write(&faulty).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_released_goes_on() {
    for fault in [Fault::Hang, Fault::Lost] {
        let (plain, faulty) = cell();
        faulty.next(Call::Apply, fault);
        let writer = faulty.clone();
        let begun = Instant::now();
        let writing = tokio::spawn(async move { write(&writer).await });
        faulty.begun(Call::Apply, 1).await;
        // Longer than it takes to begin, shorter than the time-out.
        tokio::time::sleep(TIMEOUT / 2).await;
        assert!(!writing.is_finished(), "{fault:?}");
        faulty.release();
        writing.await.unwrap().unwrap();
        assert!(begun.elapsed() < TIMEOUT, "{fault:?}");
        assert_eq!(value(&*plain, "f").await.unwrap(), "new", "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_whose_answer_is_lost_is_left_again() {
    let (plain, faulty) = cell();
    store(&*plain, "keyspaces/ks/Keyspace", "x").await;
    let dir = path("keyspaces/ks");
    let contents = Bytes::from_static(b"{}");
    faulty.next(Call::Enter, Fault::Lost);
    let error = faulty.enter(&dir, &contents).await.unwrap_err();
    assert!(error.failure == Failure::Unreachable && error.is_uncertain(), "{error}");
    faulty.next(Call::Enter, Fault::Lost);
    // Its caller gives up before the time-out.
    assert!(tokio::time::timeout(TIMEOUT / 2, faulty.enter(&dir, &contents)).await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(names(&*plain, "keyspaces/ks").await, ["keyspaces/ks/Keyspace"]);
    let place = faulty.enter(&dir, &contents).await.unwrap();
    assert!(place.try_hold().await.unwrap().is_some());
    faulty.next(Call::Keep, Fault::Fail(Failure::LockLost));
    assert_eq!(place.lost().await.failure, Failure::LockLost);
    faulty.next(Call::Leave, Fault::Fail(Failure::Unreachable));
    assert_eq!(failure(place.leave().await), Failure::Unreachable);
    place.leave().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_its_fault_or_leaves_a_batch_out() {
    for (fault, expected) in [
        (Fault::Fail(Failure::Compacted), Some(Failure::Compacted)),
        (Fault::Hang, Some(Failure::Unreachable)),
        (Fault::Lost, None),
        (Fault::Late(Duration::from_secs(1)), None),
    ] {
        let (plain, faulty) = cell();
        let (_, mut watch) = faulty.follow().await.unwrap();
        store(&*plain, "a", "1").await;
        store(&*plain, "b", "2").await;
        faulty.next(Call::Watch, fault);
        let first = watch.next().await.unwrap();
        if let Some(failure) = expected {
            assert_eq!(first.unwrap_err().failure, failure, "{fault:?}");
            assert!(watch.next().await.is_none(), "{fault:?}: it has ended");
            continue;
        }
        let first = first.unwrap().events[0].path.to_string();
        assert_eq!(first, if fault == Fault::Lost { "b" } else { "a" }, "{fault:?}");
    }
}
