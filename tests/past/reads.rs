//! Moments of the past as they are read, shared and kept, over a real etcd whose answers a script holds back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use topofs::backend::faulty::{Call, Fault, Faulty};
use topofs::backend::{Failure, Implementation, Location, Revision, Wrap};
use topofs::cells::{CellOptions, Cells, Earlier};
use topofs::error::Kind;
use topofs::mirror::MirrorOptions;
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Form, Kinds, Records};
use topofs::store::moments::{Moment, Moments};

use crate::common::world::{Service, connect_options, runtime};

const OWNER: &str = "metadata/owner";
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// The sample cluster, and the cells of a mount of it.
struct World {
    service: Service,
    cells: Arc<Cells>,
    moments: Arc<Moments>,
    faulty: Faulty,
    all_faulty: Arc<Mutex<HashMap<CellName, Faulty>>>,
}

impl World {
    /// `patience` is how long a caller waits.
    async fn new(patience: Duration) -> Self {
        let service = tokio::task::spawn_blocking(Service::etcd2).await.unwrap();
        let made: Arc<Mutex<HashMap<CellName, Faulty>>> = Arc::default();
        let (maker, mut connect) = (made.clone(), connect_options());
        connect.wrap = Wrap::new(move |cell, backend| {
            let faulty = Faulty::new(backend, LONG);
            Arc::new(maker.lock().entry(cell.clone()).or_insert(faulty).clone())
        });
        connect.timeout = patience;
        let global = Location {
            implementation: Implementation::Etcd2,
            server: service.server.clone(),
            root: format!("{}/global", service.root),
        };
        let mirror = MirrorOptions { resync_interval: LONG, stale_after: LONG, serve_stale: false };
        let options = CellOptions::new(global, connect, mirror);
        let cells = Cells::start(options, Records::new(Codec::builtin().unwrap(), Kinds::default())).await.unwrap();
        let faulty = made.lock()[&CellName::global()].clone();
        Self { service, moments: Moments::new(cells.clone()), cells, faulty, all_faulty: made }
    }

    async fn put(&self, key: &str, value: &[u8]) -> Moment {
        let change = crate::common::world::put(key, value.to_vec());
        Moment::Revision(self.service.cell().apply(&[change]).await.unwrap().at)
    }

    async fn delete(&self, key: &str) {
        let change = topofs::backend::Change {
            path: TopoPath::parse(key).unwrap(),
            guard: topofs::backend::Guard::Any,
            action: topofs::backend::Action::Delete,
        };
        self.service.cell().apply(&[change]).await.unwrap();
    }

    fn reads(&self) -> u64 {
        self.faulty.count(Call::ListAt)
    }
}

fn value(earlier: &Earlier, cell: &str, path: &str) -> Option<String> {
    let snapshot = earlier.cells.get(&CellName::new(cell).unwrap())?;
    let record = snapshot.records.get(&TopoPath::parse(path).unwrap())?;
    Some(String::from_utf8_lossy(&record.value).into_owned())
}

fn run(test: impl Future<Output = ()>) {
    runtime().block_on(async { tokio::time::timeout(LONG, test).await.expect("it ends in time") });
}

#[test]
fn all_who_ask_for_a_moment_share_one_read_of_it() {
    run(async {
        let world = World::new(LONG).await;
        let moment = world.put("global/metadata/owner", b"then").await;
        world.put("global/metadata/owner", b"now").await;
        world.faulty.next(Call::ListAt, Fault::Hang);
        let readers: Vec<_> = (0..20)
            .map(|uid| {
                let moments = world.moments.clone();
                tokio::spawn(async move { moments.get(moment, uid).await })
            })
            .collect();
        world.faulty.begun(Call::ListAt, 1).await;
        world.faulty.release();
        for reader in readers {
            assert_eq!(value(&reader.await.unwrap().unwrap(), "global", OWNER).as_deref(), Some("then"));
        }
        assert_eq!(world.reads(), 1);
        // And it is kept.
        let again = world.moments.get_now(moment).expect("it is kept");
        assert!(Arc::ptr_eq(&again, &world.moments.get(moment, 7).await.unwrap()));
        assert_eq!(world.reads(), 1);
    });
}

#[test]
fn a_reader_who_gives_up_does_not_end_the_read() {
    run(async {
        let world = World::new(Duration::from_millis(200)).await;
        let moment = world.put("global/metadata/owner", b"then").await;
        world.faulty.next(Call::ListAt, Fault::Hang);
        let error = world.moments.get(moment, 1).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable);
        assert!(error.reason.contains("the read goes on"), "{error}");
        world.faulty.release();
        let earlier = world.moments.get(moment, 1).await.unwrap();
        assert_eq!(value(&earlier, "global", OWNER).as_deref(), Some("then"));
        assert_eq!(world.reads(), 1);
    });
}

#[test]
fn one_user_does_not_have_so_much_read_that_others_have_to_wait() {
    run(async {
        let world = World::new(LONG).await;
        let Moment::Revision(Revision(first)) = world.put("global/metadata/owner", b"then").await else { panic!() };
        for number in 0..5 {
            world.put("global/metadata/owner", format!("{number}").as_bytes()).await;
        }
        let at = move |later: u64| Moment::Revision(Revision(first + later));
        for nth in 1..=2 {
            world.faulty.next(Call::ListAt, Fault::Hang);
            let moments = world.moments.clone();
            tokio::spawn(async move { moments.get(at(nth), 1).await });
            world.faulty.begun(Call::ListAt, nth).await;
        }
        let error = world.moments.get(at(3), 1).await.unwrap_err();
        assert_eq!(error.kind, Kind::Busy);
        assert!(error.reason.contains("this user"), "{error}");
        world.moments.get(at(3), 2).await.unwrap();
        world.faulty.release();
        world.moments.get(at(1), 1).await.unwrap();
        world.moments.get(at(4), 1).await.unwrap();
    });
}

#[test]
fn what_is_as_it_was_takes_no_memory() {
    run(async {
        let world = World::new(LONG).await;
        let zone = world.cells.get(&CellName::new("zone1").unwrap()).unwrap();
        zone.snapshot().await.unwrap();
        let big = vec![b'x'; 100_000];
        world.put("zone1/rules/big", &big).await;
        let moment = world.put("global/metadata/owner", b"then").await;
        world.put("global/metadata/owner", b"now").await;
        let path = TopoPath::parse("rules/big").unwrap();
        while !zone.mirror.snapshot().records.contains_key(&path) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let earlier = world.moments.get(moment, 1).await.unwrap();
        let then = &earlier.cells[&zone.name].records[&path].value;
        assert_eq!(then.as_ptr(), zone.mirror.snapshot().records[&path].value.as_ptr(), "it is the same memory");
        assert_eq!(value(&earlier, "global", OWNER).as_deref(), Some("then"));
        // Two other cells are not loaded, so all of them counts.
        assert!((500..60_000).contains(&earlier.bytes), "{}", earlier.bytes);
    });
}

#[test]
fn the_cells_of_a_moment_are_those_that_there_were() {
    run(async {
        let world = World::new(LONG).await;
        let codec = Codec::builtin().unwrap();
        let info = |server: &str| {
            let text = format!("server_address: \"{server}\" root: \"/elsewhere\"");
            codec.store("topodata.CellInfo", Form::Text, &text.into(), None).unwrap().unwrap()
        };
        world.put("global/cells/elsewhere/CellInfo", &info("127.0.0.1:1")).await;
        world.put("global/cells/broken/CellInfo", b"\xff\xff").await;
        let moment = world.put("zone2/metadata", b"then").await;
        world.delete("global/cells/zone2/CellInfo").await;
        world.delete("zone2/metadata").await;
        world.put("global/cells/later/CellInfo", &info(&world.service.server)).await;
        let earlier = world.moments.get(moment, 1).await.unwrap();
        let cells: Vec<&str> = earlier.cells.keys().map(CellName::as_str).collect();
        assert_eq!(cells, ["global", "zone1", "zone2"]);
        assert_eq!(value(&earlier, "zone2", "metadata").as_deref(), Some("then"));
        let missing: Vec<(&str, &str)> =
            earlier.missing.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect();
        assert_eq!(
            missing,
            [
                ("broken", "its CellInfo record cannot be decoded"),
                ("elsewhere", "kept by another service: etcd2:127.0.0.1:1/elsewhere"),
            ]
        );
    });
}

#[test]
fn a_part_of_a_moment_is_never_taken_for_the_whole() {
    run(async {
        let world = World::new(LONG).await;
        let moment = world.put("global/metadata/owner", b"then").await;
        for (failure, kind) in [
            (Failure::Unreachable, Kind::Unreachable),
            (Failure::Compacted, Kind::NotKept),
            (Failure::NotKept, Kind::NotKept),
            (Failure::Denied, Kind::Denied),
        ] {
            world.faulty.next(Call::ListAt, Fault::Fail(failure));
            let error = world.moments.get(moment, 1).await.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.reason.contains("revision") && error.reason.contains("cell global"), "{error}");
            assert!(world.moments.get_now(moment).is_none());
        }
        // The same for a cell that the service has beside the global topology.
        let zone = world.all_faulty.lock()[&CellName::new("zone1").unwrap()].clone();
        zone.next(Call::ListAt, Fault::Fail(Failure::Unreachable));
        let error = world.moments.get(moment, 1).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable, "{error}");
        assert!(error.reason.contains("cell zone1"), "{error}");
        // What may not be read is missing, for as long as that is so.
        zone.next(Call::ListAt, Fault::Fail(Failure::Denied));
        let earlier = world.moments.get(moment, 1).await.unwrap();
        assert_eq!(earlier.cells.keys().map(CellName::as_str).collect::<Vec<_>>(), ["global", "zone2"]);
        assert!(earlier.missing["zone1"].contains("Denied"), "{:?}", earlier.missing);
        let future = Moment::Revision(Revision(1 << 60));
        assert_eq!(world.moments.get(future, 1).await.unwrap_err().kind, Kind::NotKept);
    });
}
