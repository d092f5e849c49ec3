//! The sample cluster on each backend, mounted.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use topofs::backend::{Action, Backend, Change, ConnectOptions, Guard, Implementation, Location};
use topofs::name::TopoPath;
use topofs::record::Codec;
use topofs::sample::Cluster;

use super::etcd::{fresh_root, shared};
use super::mount::Mount;

/// Runs a test once on each backend: `on_each_backend!(fn name(world: World) { ... })`.
#[macro_export]
macro_rules! on_each_backend {
    ($($(#[$meta:meta])* fn $name:ident($world:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn test($world: $crate::common::world::World) $body
            #[test]
            fn memory() { test($crate::common::world::World::memory()) }
            #[test]
            fn etcd2() { test($crate::common::world::World::etcd2()) }
        }
    )*};
}

/// A mount of the sample cluster.
pub struct World {
    pub mount: Mount,
    /// What the service has seen; `None` for memory, which nobody else can reach.
    pub etcd: Option<History>,
}

impl World {
    pub fn memory() -> Self {
        Self { mount: Mount::new(&["demo"]), etcd: None }
    }

    pub fn etcd2() -> Self {
        let root = fresh_root();
        load(&shared().endpoint(), &root, &Cluster { root: root.clone(), ..Cluster::demo(&shared().endpoint()) });
        Self { mount: Mount::etcd(&shared().endpoint(), &root, &[]), etcd: Some(History { root }) }
    }

    /// How many changes the service has seen in this world so far.
    pub fn changes(&self) -> u64 {
        match &self.etcd {
            Some(history) => history.events().len() as u64,
            None => self.mount.status()["cells"]["global"]["revision"].as_u64().unwrap(),
        }
    }
}

/// Everything that ever happened below a root in the shared etcd, as etcd itself tells it.
pub struct History {
    pub root: String,
}

impl History {
    /// All changes so far, in order: which key below the root, and its value (`None`: deleted).
    pub fn events(&self) -> Vec<(String, Option<Bytes>)> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // The watch has told everything when it tells of this one.
        let marker = format!("marker{}", NEXT.fetch_add(1, Ordering::Relaxed));
        shared().put(&format!("{}/{marker}", self.root), b".");
        runtime().block_on(async {
            let mut client = etcd_client::Client::connect([shared().endpoint()], None).await.unwrap();
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
                    if !key.starts_with("marker") {
                        all.push((key, put.then(|| Bytes::copy_from_slice(kv.value()))));
                    }
                }
            }
        })
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

pub fn connect_options() -> ConnectOptions {
    ConnectOptions { timeout: std::time::Duration::from_secs(15), etcd: Default::default(), memory: Default::default() }
}

/// A cell on an etcd, for looking at it without a mount.
pub fn etcd_cell(endpoint: &str, root: &str) -> std::sync::Arc<dyn Backend> {
    let location =
        Location { implementation: Implementation::Etcd2, server: endpoint.to_owned(), root: root.to_owned() };
    topofs::backend::open(&location, &connect_options()).unwrap()
}

/// Stores a cluster.
pub fn load(endpoint: &str, root: &str, cluster: &Cluster) {
    let all = etcd_cell(endpoint, root);
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
