use tokio::time::timeout;

use super::*;
use crate::backend::{Action, ConnectOptions, Implementation};
use crate::mirror::MirrorOptions;

#[test]
fn a_place_where_something_else_is_takes_nothing() {
    let at = |server: &str, root: &str| Location {
        implementation: Implementation::Etcd2,
        server: server.to_owned(),
        root: root.to_owned(),
    };
    let cell = |name: &str| CellName::new(name).unwrap();
    // What the secondary says of zone1; the primary is on a, the secondary on b.
    let refused = |place: &Location| {
        let mut places = TeePlaces::default();
        for (name, root) in [("global", "/t/global"), ("zone1", "/t/zone1"), ("zone2", "/t/zone2")] {
            places.first.add(&at("a:1", root), cell(name));
        }
        for (name, root) in [("global", "/t/global"), ("zone2", "/t/zone2")] {
            places.second.add(&at("b:1", root), cell(name));
        }
        places.second.add(place, cell("zone1"));
        places.refuse(&cell("zone1"), place).map(|place| place.to_string())
    };
    assert_eq!(refused(&at("b:1", "/t/zone1")), None);
    assert_eq!(refused(&at("c:1", "/t/zone2")), None);
    for (server, root, other) in [
        ("a:1", "/t/zone2", "zone2 of the primary"),
        ("a:1", "/t/global", "global of the primary"),
        ("a:1", "/t/global/keyspaces", "global of the primary"),
        ("a:1", "t/zone2/tablets/", "zone2 of the primary"),
        ("c:1,a:1", "/", "global of the primary"),
        ("b:1", "/t/zone2", "zone2 of the secondary"),
        ("b:1", "/t/global/cells", "global of the secondary"),
        ("b:1", "/t", "global of the secondary"),
    ] {
        let reason = refused(&at(server, root)).unwrap_or_else(|| panic!("{server} {root} is used"));
        assert!(reason.contains(other), "{server} {root}: {reason}");
    }
    let places = TeePlaces { global: Some(at("b:1", "/t/global")), ..TeePlaces::default() };
    assert!(places.hide(&at("b:1", "/t/global/keyspaces")).is_some());
    assert!(places.hide(&at("a:1", "/t/global")).is_none());
}

/// Its mirror follows nothing: what it would hear comes later than what happens.
#[tokio::test]
async fn a_lock_that_the_mirror_has_never_shown_is_missed() {
    let at = |server: &str| Location {
        implementation: Implementation::Memory,
        server: server.to_owned(),
        root: "/t/global".to_owned(),
    };
    let (name, dir, soon) = (CellName::global(), TopoPath::parse("keyspaces/ks").unwrap(), Duration::from_secs(10));
    let mirror = MirrorOptions { resync_interval: soon, stale_after: soon, serve_stale: false };
    let options = CellOptions::new(at("first"), ConnectOptions::default(), mirror);
    let open = |server: &str| crate::backend::open(&name, &at(server), &options.connect).unwrap();
    let (primary, secondary) = (open("first"), open("second"));
    let tee = TeeOptions { secondary: at("second"), reverse_lock_order: false };
    let second = Second::open(&name, SecondPlace::At(at("second")), (&primary, &at("first")), (&options, &tee));
    let path = dir.join("Keyspace").unwrap();
    let record = Change { path, guard: Guard::Any, action: Action::Put(Bytes::new()) };
    second.both().apply(&[record]).await.unwrap();
    let place = second.both().enter(&dir, &Bytes::new()).await.unwrap();
    let held = place.try_hold().await.unwrap().unwrap();
    let nodes = secondary.list(&dir).await.unwrap().nodes;
    let node = nodes.into_iter().find(|node| node.owner() != Owner::NOBODY).unwrap();
    secondary.break_lock(&node).await.unwrap();
    let error = timeout(soon, second.lock_gone(&held)).await.unwrap();
    assert_eq!(error.failure, Failure::LockLost);
    place.leave().await.unwrap();
}
