//! Large cells: they load, and a change costs what a change costs.

use std::time::Duration;

use topofs::backend::{ConnectOptions, Implementation, Location};
use topofs::name::CellName;

use crate::common::chance::Chance;
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::server::fresh_root;
use crate::common::world::{cell, connect_options, put, runtime};
use crate::common::{consul, etcd, eventually, zookeeper};

/// A call may take as long as it takes: this is about whether large cells load, not about how busy the machine is.
const PATIENT: Duration = Duration::from_secs(600);
/// The same for a mount.
pub const PATIENTLY: &[&str] = &["--remote-operation-timeout=10m", "--stale-after=10m"];

/// Stores keys of 300 bytes each.
pub fn fill(implementation: Implementation, server: &str, root: &str, count: usize) {
    let location = Location { implementation, server: server.to_owned(), root: format!("{root}/global") };
    let options = ConnectOptions { timeout: PATIENT, ..connect_options() };
    runtime().block_on(async {
        let cell = topofs::backend::open(&CellName::global(), &location, &options).unwrap();
        let keys: Vec<usize> = (0..count).collect();
        for chunk in keys.chunks(cell.limits().changes) {
            let value = |n: &usize| Chance(*n as u64).bytes(300);
            let changes: Vec<_> = chunk.iter().map(|n| put(&format!("metadata/key{n:06}"), value(n))).collect();
            cell.apply(&changes).await.unwrap();
        }
    });
}

fn check(mount: &Mount, count: usize) {
    assert_eq!(mount.status()["cells"]["global"]["records"], count);
    assert_eq!(mount.sh("ls -U global/metadata | wc -l"), format!("{count}\n"));
    assert_eq!(std::fs::read(mount.path(&format!("global/metadata/key{:06}", count - 1))).unwrap().len(), 300);
}

#[test]
fn a_hundred_thousand_keys_of_etcd_load() {
    let root = fresh_root();
    let server = etcd::shared().endpoint();
    fill(Implementation::Etcd2, &server, &root, 100_000);
    check(&Mount::etcd(&server, &root, PATIENTLY), 100_000);
}

#[test]
fn ten_thousand_nodes_of_zookeeper_load() {
    let root = fresh_root();
    let server = zookeeper::shared().endpoint();
    fill(Implementation::Zk2, &server, &root, 10_000);
    check(&Mount::of("zk2", &server, &root, PATIENTLY), 10_000);
}

#[test]
fn a_change_among_ten_thousand_keys_of_consul_is_cheap() {
    let root = fresh_root();
    let server = consul::shared();
    fill(Implementation::Consul, &server.endpoint(), &root, 10_000);
    let proxy = Proxy::plain(server.port);
    let mount = Mount::of("consul", &proxy.endpoint(), &root, PATIENTLY);
    check(&mount, 10_000);
    let loading = proxy.bytes();
    let other = cell(Implementation::Consul, &server.endpoint(), &root);
    let runtime = runtime();
    for round in 0..5 {
        runtime
            .block_on(other.apply(&[put(&format!("global/metadata/key00{round}777"), format!("changed {round}"))]))
            .unwrap();
        let path = mount.path(&format!("global/metadata/key00{round}777"));
        eventually("the change is seen", || {
            (std::fs::read(&path).ok()? == format!("changed {round}").as_bytes()).then_some(())
        });
    }
    let changes = (proxy.bytes() - loading) / 5;
    println!("loading took {loading} bytes, a change {changes}");
    assert!(changes < loading / 10, "loading took {loading} bytes, a change {changes}");
    // A deletion and a new key are found in the same way.
    runtime.block_on(async {
        let path = topofs::name::TopoPath::parse("global/metadata/key005555").unwrap();
        let delete = topofs::backend::Change {
            path,
            guard: topofs::backend::Guard::Any,
            action: topofs::backend::Action::Delete,
        };
        other.apply(&[delete, put("global/metadata/key005555x", "new")]).await.unwrap();
    });
    eventually("both are seen", || {
        let gone = !mount.path("global/metadata/key005555").exists();
        (gone && mount.path("global/metadata/key005555x").exists()).then_some(())
    });
}
