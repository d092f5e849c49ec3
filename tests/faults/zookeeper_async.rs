//! Why zookeeper-async is not the client (docs/decisions.md): the core of the evidence, to be looked at again when it
//! changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use topofs::backend::Implementation;

use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::world::{cell, put, runtime};
use crate::common::{eventually, zookeeper};

#[test]
fn its_watch_does_not_survive_a_cut_connection_and_ours_does() {
    let server = zookeeper::shared();
    let direct = cell(Implementation::Zk2, &server.endpoint(), "/cut/global");
    let runtime_of_writer = runtime();
    let store =
        |value: &str| runtime_of_writer.block_on(direct.apply(&[put("metadata/owner", value.to_owned())])).unwrap();
    store("first");
    let proxy = Proxy::plain(server.port);
    let mount = Mount::of("zk2", &proxy.endpoint(), "/cut", &[]);
    assert_eq!(mount.read("global/metadata/owner"), "first");
    let events = Arc::new(AtomicUsize::new(0));
    let runtime_of_client = runtime();
    let client = runtime_of_client.block_on(async {
        let (client, counter) = (
            zookeeper_async::ZooKeeper::connect(&proxy.endpoint(), Duration::from_secs(10), |_| {}).await.unwrap(),
            events.clone(),
        );
        let node = |event: zookeeper_async::WatchedEvent| {
            matches!(event.event_type, zookeeper_async::WatchedEventType::NodeDataChanged)
        };
        client
            .get_data_w("/cut/global/metadata/owner", move |event| {
                counter.fetch_add(usize::from(node(event)), Ordering::SeqCst);
            })
            .await
            .unwrap();
        client
    });
    proxy.cut(false);
    // It is connected again, in the same session.
    eventually("its reads work again", || {
        runtime_of_client.block_on(async { client.get_data("/cut/global/metadata/owner", false).await.ok() })
    });
    store("second");
    eventually("our watch tells", || {
        (std::fs::read(mount.path("global/metadata/owner")).ok()? == b"second").then_some(())
    });
    store("third");
    eventually("our watch goes on", || {
        (std::fs::read(mount.path("global/metadata/owner")).ok()? == b"third").then_some(())
    });
    assert_eq!(
        events.load(Ordering::SeqCst),
        0,
        "zookeeper-async restores its watches now: docs/decisions.md is out of date"
    );
}

#[test]
fn an_independent_client_sees_what_we_write() {
    let server = zookeeper::shared();
    let mount = Mount::of("zk2", &server.endpoint(), "/independent", &[]);
    mount.sh("mkdir global/metadata; echo ours > global/metadata/owner");
    runtime().block_on(async {
        let client =
            zookeeper_async::ZooKeeper::connect(&server.endpoint(), Duration::from_secs(10), |_| {}).await.unwrap();
        let (data, stat) = client.get_data("/independent/global/metadata/owner", false).await.unwrap();
        assert_eq!((&data[..], stat.version), (&b"ours\n"[..], 0));
        // Vitess's access rights: no right to create below a file.
        let (acl, _) = client.get_acl("/independent/global/metadata/owner").await.unwrap();
        assert_eq!(acl.len(), 1);
        assert!(!acl[0].perms.can(zookeeper_async::Permission::CREATE));
        client.set_data("/independent/global/metadata/owner", b"theirs".to_vec(), Some(0)).await.unwrap();
        eventually("theirs is seen", || (mount.read("global/metadata/owner") == "theirs").then_some(()));
        assert_eq!(mount.xattr("global/metadata/owner", "user.topo.version").as_deref(), Some("1"));
        assert_eq!(mount.xattr("global/metadata/owner", "user.topo.acl").as_deref(), Some("world:anyone:rwa"));
        assert_eq!(mount.xattr("global/metadata/owner", "user.topo.czxid"), Some(format!("{:#x}", stat.czxid)));
        client.close().await.unwrap();
    });
}
