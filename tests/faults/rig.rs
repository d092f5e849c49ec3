//! A mount over a server of its own, of each kind, and what the tests look at.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use topofs::backend::{Backend, Implementation};
use topofs::name::TopoPath;
use topofs::sample::Cluster;

use crate::common::consul::Consul;
use crate::common::etcd::Etcd;
use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::server::{Server, free_port};
use crate::common::world::{cell, load, runtime};
use crate::common::zookeeper::Zookeeper;

pub const OWNER: &str = "global/metadata/owner";
/// No command may take longer than the time-outs together, generously.
pub const PATIENCE: &str = "timeout 25";

/// A server of any kind.
pub enum Any {
    Etcd(Etcd),
    Zookeeper(Zookeeper),
    Consul(Consul),
}

impl std::ops::Deref for Any {
    type Target = Server;
    fn deref(&self) -> &Server {
        match self {
            Any::Etcd(server) => server,
            Any::Zookeeper(server) => server,
            Any::Consul(server) => server,
        }
    }
}

impl Any {
    pub fn start(implementation: Implementation) -> Self {
        match implementation {
            Implementation::Etcd2 => Any::Etcd(Etcd::start()),
            Implementation::Zk2 => Any::Zookeeper(Zookeeper::start()),
            Implementation::Consul => Any::Consul(Consul::start()),
            Implementation::Memory => panic!("memory has no server"),
        }
    }

    pub fn kill(&mut self) {
        match self {
            Any::Etcd(server) => server.kill(),
            Any::Zookeeper(server) => server.kill(),
            Any::Consul(server) => server.kill(),
        }
    }

    pub fn restart(&mut self) {
        match self {
            Any::Etcd(server) => server.restart(),
            Any::Zookeeper(server) => server.restart(),
            Any::Consul(server) => server.restart(),
        }
    }
}

/// An etcd that asks its clients for certificates (see `access::certificates`), and its URL.
pub fn etcd_with_certificates(files: &Path) -> (Server, String) {
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let file = |name: &str| files.join(name).display().to_string();
    let flags = vec![
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--cert-file={}", file("cert.pem")),
        format!("--key-file={}", file("key.pem")),
        format!("--trusted-ca-file={}", file("ca.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let mut etcd = Server::new("etcd", flags);
    etcd.port = port;
    etcd.launch();
    (etcd, url)
}

/// A service with the sample cluster below /t.
pub struct Rig {
    pub implementation: Implementation,
    pub server: Any,
}

impl Rig {
    pub fn new(implementation: Implementation) -> Self {
        let server = Any::start(implementation);
        let address = server.endpoint();
        let rig = Self { implementation, server };
        rig.load(&address);
        rig
    }

    /// Stores the sample cluster; its CellInfo records name the cells' server.
    pub fn load(&self, address: &str) {
        load(&*self.cell(), &Cluster { root: "/t".to_owned(), ..Cluster::demo(address) });
    }

    pub fn cell(&self) -> Arc<dyn Backend> {
        cell(self.implementation, &self.server.endpoint(), "/t")
    }

    pub fn mount(&self, flags: &[&str]) -> Mount {
        Mount::of(&self.implementation.to_string(), &self.server.endpoint(), "/t", flags)
    }

    /// All records as the service has them, by path below the mount.
    pub fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        stored(&*self.cell())
    }
}

pub fn stored(cell: &dyn Backend) -> BTreeMap<String, Vec<u8>> {
    let listing = runtime().block_on(cell.list(&TopoPath::root())).unwrap();
    listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value.to_vec())).collect()
}

/// All records as the mount shows them.
pub fn shown(mount: &Mount) -> BTreeMap<String, Vec<u8>> {
    // A cell that is not there yet is looked at again later. What sed could not finish is scratch.
    let output = mount.bash("find . -type f -not -name '*.txt' -not -name '*.json' -not -name 'sed*' -not -name .lock");
    let files = String::from_utf8(output.stdout).unwrap();
    let paths = files.lines().map(|line| line.trim_start_matches("./").to_owned());
    paths.filter_map(|path| Some((path.clone(), std::fs::read(mount.path(&path)).ok()?))).collect()
}

pub fn wait_until_equal(mount: &Mount, stored: impl Fn() -> BTreeMap<String, Vec<u8>>) {
    let end = std::time::Instant::now() + crate::common::DEADLINE;
    loop {
        let (shown, stored) = (shown(mount), stored());
        if shown == stored {
            return;
        }
        if std::time::Instant::now() > end {
            let differs = |key: &&String| shown.get(*key) != stored.get(*key);
            let keys: std::collections::BTreeSet<&String> = shown.keys().chain(stored.keys()).filter(differs).collect();
            let show = |map: &BTreeMap<String, Vec<u8>>, key| {
                map.get(key).map(|value| String::from_utf8_lossy(value).into_owned())
            };
            let differences: Vec<_> = keys.iter().map(|key| (key, show(&shown, *key), show(&stored, *key))).collect();
            panic!("the tree differs from the backend: {differences:?}\n{}", mount.status());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A number in the status of the global cell.
pub fn counter(mount: &Mount, name: &str) -> u64 {
    mount.status()["cells"]["global"][name].as_u64().unwrap()
}

/// Asks for a comparison of the global cell, and waits until it is over.
pub fn resync(mount: &Mount) {
    let before = counter(mount, "resyncs");
    mount.sh("echo resync global > .topofs/control");
    eventually("it is compared", || (counter(mount, "resyncs") > before).then_some(()));
}

pub fn state(mount: &Mount, cell: &str) -> String {
    mount.status()["cells"][cell]["state"].as_str().unwrap().to_owned()
}

pub fn wait_for_state(mount: &Mount, cell: &str, wanted: &str) {
    eventually(&format!("{cell} is {wanted}"), || (state(mount, cell) == wanted).then_some(()));
}

/// Commands that look and change: each must end, with an error or not.
pub fn nothing_blocks(mount: &Mount) {
    for script in [
        "ls",
        "ls global/keyspaces",
        "cat global/metadata/owner",
        "echo x > global/metadata/owner",
        "sed -i s/semi/none/ global/keyspaces/commerce/Keyspace.txt",
        "rm global/metadata/owner",
        "touch global/metadata/new",
        "mkdir global/metadata/dir",
        "getfattr -d global/metadata/owner",
        "df .",
    ] {
        let output = mount.bash(&format!("{PATIENCE} bash -c '{script}'"));
        assert_ne!(output.status.code(), Some(124), "{script} blocks");
        if script == "ls" {
            assert!(output.status.success(), "the root needs no backend");
        }
    }
}

/// Runs a test once over each server: `on_each_server!(fn name(rig: Rig) { ... })`.
#[macro_export]
macro_rules! on_each_server {
    ($($(#[$meta:meta])* fn $name:ident($rig:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn test(#[allow(unused_mut)] mut $rig: $crate::rig::Rig) $body
            #[test]
            fn etcd2() { test($crate::rig::Rig::new(topofs::backend::Implementation::Etcd2)) }
            #[test]
            fn zk2() { test($crate::rig::Rig::new(topofs::backend::Implementation::Zk2)) }
            #[test]
            fn consul() { test($crate::rig::Rig::new(topofs::backend::Implementation::Consul)) }
        }
    )*};
}
