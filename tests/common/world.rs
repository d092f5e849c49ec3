//! The sample cluster on each backend, mounted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use topofs::backend::{Action, Backend, Change, ConnectOptions, Guard, Implementation, Location};
use topofs::name::{CellName, TopoPath};
use topofs::record::{Codec, Form, Kinds};
use topofs::sample::Cluster;
use topofs::tree::{RespectLocks, TreeOptions, Views};

use super::mount::Mount;
use super::proxy::Proxy;
use super::server::fresh_root;
use super::{consul, etcd, eventually, zookeeper};

/// A tree with all forms, for tests without a mount.
pub fn tree_options() -> TreeOptions {
    TreeOptions {
        read_only: false,
        no_delete: false,
        force_cell_removal: false,
        forms: Form::ALL.to_vec(),
        list: Form::ALL.to_vec(),
        views: Views::On,
        uid: 0,
        gid: 0,
        umask: 0o077,
        scratch_quota: 1 << 20,
        respect_locks: RespectLocks::Keyspace,
        request_timeout: None,
        direct_io: false,
        allow_unseen_writers: false,
    }
}

/// Runs a test once on each backend: `on_each_backend!(fn name(world: World) { ... })`.
#[macro_export]
macro_rules! on_each_backend {
    ($($(#[$meta:meta])* fn $name:ident($world:ident) $body:block)*) => {$(
        $crate::in_worlds! { [memory etcd2 zk2 consul] $(#[$meta])* fn $name($world) $body }
    )*};
}

/// Runs a test once on each backend, and in a stage.
#[macro_export]
macro_rules! in_every_tree {
    ($($(#[$meta:meta])* fn $name:ident($world:ident) $body:block)*) => {$(
        $crate::in_worlds! { [memory etcd2 zk2 consul stage] $(#[$meta])* fn $name($world) $body }
    )*};
}

/// Runs a test once in each of these worlds.
#[macro_export]
macro_rules! in_worlds {
    ([$($of:ident)*] $(#[$meta:meta])* fn $name:ident($world:ident) $body:block) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn test($world: $crate::common::world::World) $body
            $(
                #[test]
                fn $of() { test($crate::common::world::World::$of()) }
            )*
        }
    };
}

/// Runs a test once on each service that several mounts can share: `on_each_service!(fn name(service) { ... })`.
#[macro_export]
macro_rules! on_each_service {
    ($($(#[$meta:meta])* fn $name:ident($service:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn test($service: $crate::common::world::Service) $body
            #[test]
            fn etcd2() { test($crate::common::world::Service::etcd2()) }
            #[test]
            fn zk2() { test($crate::common::world::Service::zk2()) }
            #[test]
            fn consul() { test($crate::common::world::Service::consul()) }
        }
    )*};
}

/// A mount of the sample cluster.
pub struct World {
    pub mount: Mount,
    /// `None` for memory, which nobody else can reach.
    pub service: Option<Service>,
    counter: Counter,
}

/// Where a world is stored.
pub struct Service {
    pub implementation: Implementation,
    pub server: String,
    pub root: String,
}

/// How the changes of a world are counted, by the service itself.
enum Counter {
    Revision,
    History(History),
    Events(Arc<AtomicUsize>),
    Requests(Proxy),
    /// The saves in a stage. The service keeps the history that it had.
    Stage(History, usize),
}

impl World {
    pub fn memory() -> Self {
        Self { mount: Mount::new(&["demo", "--respect-locks=none"]), service: None, counter: Counter::Revision }
    }

    pub fn etcd2() -> Self {
        let service = Service::etcd2();
        let counter = Counter::History(History { root: service.root.clone() });
        Self { mount: service.mount(&[]), service: Some(service), counter }
    }

    pub fn zk2() -> Self {
        let service = Service::zk2();
        let counter = Counter::Events(count_events(&service));
        Self { mount: service.mount(&[]), service: Some(service), counter }
    }

    pub fn consul() -> Self {
        // Consul keeps no history: what the mount asks for is counted on the way.
        let changes = [
            // A mount deletes records by version only, and locks without.
            ("\"Verb\":\"set\"", 1),
            ("\"Verb\":\"cas\"", 1),
            ("\"Verb\":\"delete-cas\"", 1),
            ("PUT /v1/kv/", 1),
            // Locks that are taken for a save.
            ("?acquire=", -1),
            // Refused.
            ("index is stale", -1),
        ];
        let proxy = Proxy::counting(consul::shared().port, &changes);
        let service = Service::at(Implementation::Consul, consul::shared().endpoint(), &proxy.endpoint());
        let mount = Mount::of("consul", &proxy.endpoint(), &service.root, &[]);
        Self { mount, service: Some(service), counter: Counter::Requests(proxy) }
    }

    /// A stage of a mount: nobody else can reach it, and it reaches nothing.
    pub fn stage() -> Self {
        let service = Service::etcd2();
        let history = History { root: service.root.clone() };
        let begin = history.events().len();
        Self { mount: service.mount(&[]).staged(), service: None, counter: Counter::Stage(history, begin) }
    }

    pub fn is_stage(&self) -> bool {
        matches!(self.counter, Counter::Stage(..))
    }

    /// How many changes of records the service has seen in this world so far.
    pub fn changes(&self) -> u64 {
        match &self.counter {
            Counter::Revision => self.mount.status()["cells"]["global"]["revision"].as_u64().unwrap(),
            Counter::History(history) => history.events().len() as u64,
            Counter::Stage(history, begin) => {
                assert_eq!(history.events().len(), *begin, "something has reached the service");
                self.mount.status()["stages"][0]["saves"].as_u64().unwrap()
            }
            Counter::Requests(proxy) => u64::try_from(proxy.count()).unwrap(),
            Counter::Events(count) => {
                // The watch has told everything when it tells of this one.
                let before = count.load(Ordering::SeqCst);
                let service = self.service.as_ref().unwrap();
                service.put("global/metadata/marker", b"x");
                eventually("the marker is counted", || {
                    (count.load(Ordering::SeqCst) > before && !service.is_behind(count)).then_some(())
                });
                (count.load(Ordering::SeqCst) / MARKER_UNIT) as u64
            }
        }
    }

    /// Every change with its value, where the service keeps them.
    pub fn history(&self) -> Option<Vec<(String, Option<Bytes>)>> {
        match &self.counter {
            Counter::History(history) => Some(history.events()),
            _ => None,
        }
    }
}

/// Changes are counted in units, markers in ones.
const MARKER_UNIT: usize = 1 << 20;

impl Service {
    /// A fresh root of the shared etcd.
    pub fn etcd2() -> Self {
        Self::new(Implementation::Etcd2, etcd::shared().endpoint())
    }

    /// The same of ZooKeeper.
    pub fn zk2() -> Self {
        Self::new(Implementation::Zk2, zookeeper::shared().endpoint())
    }

    /// The same of Consul.
    pub fn consul() -> Self {
        Self::new(Implementation::Consul, consul::shared().endpoint())
    }

    /// A fresh root with the sample cluster.
    pub fn new(implementation: Implementation, server: String) -> Self {
        let address = server.clone();
        Self::at(implementation, server, &address)
    }

    /// The same, where the CellInfo records name another address of the server.
    pub fn at(implementation: Implementation, server: String, address: &str) -> Self {
        let root = fresh_root();
        let service = Self { implementation, server, root: root.clone() };
        load(&*service.cell(), &Cluster { root, ..Cluster::demo(address) });
        service
    }

    /// Everything below the root, for looking at it without a mount.
    pub fn cell(&self) -> Arc<dyn Backend> {
        cell(self.implementation, &self.server, &self.root)
    }

    /// Its global topology, for the flags of a tee; perhaps by another address.
    pub fn place(&self, address: &str) -> String {
        format!("{}:{address}{}/global", self.implementation, self.root)
    }

    /// Another mount of it.
    pub fn mount(&self, flags: &[&str]) -> Mount {
        let implementation = self.implementation.to_string();
        Mount::of(&implementation, &self.server, &self.root, flags)
    }

    /// The stored bytes.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let fetched = runtime().block_on(self.cell().get(&TopoPath::parse(key).unwrap())).unwrap();
        fetched.node.map(|node| node.value.to_vec())
    }

    pub fn delete(&self, key: &str) {
        let change = Change { path: TopoPath::parse(key).unwrap(), guard: Guard::Any, action: Action::Delete };
        runtime().block_on(self.cell().apply(&[change])).unwrap();
    }

    pub fn put(&self, key: &str, value: &[u8]) {
        runtime().block_on(self.cell().apply(&[put(key, value.to_vec())])).unwrap();
    }

    /// All stored keys.
    pub fn keys(&self) -> Vec<String> {
        let listing = runtime().block_on(self.cell().list(&TopoPath::root())).unwrap();
        listing.nodes.into_iter().map(|node| node.path.to_string()).collect()
    }

    fn is_behind(&self, count: &AtomicUsize) -> bool {
        let version = runtime().block_on(self.cell().get(&TopoPath::parse("global/metadata/marker").unwrap())).unwrap();
        let markers = version.node.unwrap().version.number as usize + 1;
        count.load(Ordering::SeqCst) % MARKER_UNIT < markers
    }
}

/// Counts the events of a persistent watch.
fn count_events(service: &Service) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (counter, server, root) = (count.clone(), service.server.clone(), service.root.clone());
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let client = zookeeper_client::Client::connect(&server).await.unwrap();
            let mode = zookeeper_client::AddWatchMode::PersistentRecursive;
            let mut watcher = client.watch(&root, mode).await.unwrap();
            ready.send(()).unwrap();
            let kinds = Kinds::default();
            loop {
                let event = watcher.changed().await;
                let Some((cell, path)) = event.path.trim_start_matches(&root).trim_start_matches('/').split_once('/')
                else {
                    continue;
                };
                let (cell, path) = (CellName::new(cell).unwrap(), TopoPath::parse(path).unwrap());
                if path.as_str() == "metadata/marker" {
                    counter.fetch_add(1, Ordering::SeqCst);
                } else if kinds.is_record(&cell, &path) {
                    counter.fetch_add(MARKER_UNIT, Ordering::SeqCst);
                }
            }
        });
    });
    started.recv().unwrap();
    count
}

/// Everything that ever happened below a root in the shared etcd, as etcd itself tells it.
struct History {
    root: String,
}

impl History {
    /// All changes so far, in order: which key below the root, and its value (`None`: deleted).
    fn events(&self) -> Vec<(String, Option<Bytes>)> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // The watch has told everything when it tells of this one.
        let marker = format!("marker{}", NEXT.fetch_add(1, Ordering::Relaxed));
        etcd::shared().put(&format!("{}/{marker}", self.root), b".");
        runtime().block_on(async {
            let mut client = etcd_client::Client::connect([etcd::shared().endpoint()], None).await.unwrap();
            let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(1);
            let mut watch = client.watch(format!("{}/", self.root), Some(options)).await.unwrap();
            let mut all = Vec::new();
            loop {
                for event in watch.message().await.unwrap().unwrap().events() {
                    let kv = event.kv().unwrap();
                    let key = kv.key_str().unwrap().trim_start_matches(&format!("{}/", self.root)).to_owned();
                    if key == marker {
                        return all;
                    }
                    let put = event.event_type() == etcd_client::EventType::Put;
                    if !key.starts_with("marker") && !key.contains("/locks/") {
                        all.push((key, put.then(|| Bytes::copy_from_slice(kv.value()))));
                    }
                }
            }
        })
    }
}

/// One for all: a client must not outlive the runtime that it was made in.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> = std::sync::LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    &RUNTIME
}

pub fn connect_options() -> ConnectOptions {
    ConnectOptions::default()
}

/// A cell of a service, for looking at it without a mount.
pub fn cell(implementation: Implementation, server: &str, root: &str) -> Arc<dyn Backend> {
    let location = Location { implementation, server: server.to_owned(), root: root.to_owned() };
    topofs::backend::open(&CellName::global(), &location, &connect_options()).unwrap()
}

/// A cell on an etcd.
pub fn etcd_cell(endpoint: &str, root: &str) -> Arc<dyn Backend> {
    cell(Implementation::Etcd2, endpoint, root)
}

/// Stores a cluster.
pub fn load(all: &dyn Backend, cluster: &Cluster) {
    let records = cluster.records(&Codec::builtin().unwrap()).unwrap();
    let changes: Vec<Change> =
        records.into_iter().map(|(cell, path, value)| put(&format!("{cell}/{path}"), value)).collect();
    runtime().block_on(async {
        for chunk in changes.chunks(all.limits().changes) {
            all.apply(chunk).await.unwrap();
        }
    });
}

pub fn put(path: &str, value: impl Into<Bytes>) -> Change {
    Change { path: TopoPath::parse(path).unwrap(), guard: Guard::Any, action: Action::Put(value.into()) }
}
