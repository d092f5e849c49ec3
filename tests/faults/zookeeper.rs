//! What is ZooKeeper's own: locks without a session, empty nodes, limits that cannot be asked for, followers that lag.

use std::sync::Arc;
use std::time::Duration;

use topofs::backend::{Action, Backend, BackendError, Change, Failure, Guard, Holding, Implementation, Owner, Role};
use topofs::name::TopoPath;
use zookeeper_client::{Acls, CreateMode};

use crate::common::mount::{Mount, TOPOFS};
use crate::common::proxy::Proxy;
use crate::common::server::{Server, free_port, fresh_root};
use crate::common::world::{cell, load, put, runtime};
use crate::common::zookeeper::{Zookeeper, shared};
use crate::common::{eventually, text};
use topofs::sample::Cluster;

pub fn path(text: &str) -> TopoPath {
    TopoPath::parse(text).unwrap()
}

pub fn at(server: &str, root: &str) -> Arc<dyn Backend> {
    cell(Implementation::Zk2, server, root)
}

pub fn guarded(at: &str, guard: Guard, value: &str) -> Change {
    Change { guard, ..put(at, value.to_owned()) }
}

pub fn delete(at: &str, guard: Guard) -> Change {
    Change { path: path(at), guard, action: Action::Delete }
}

pub fn get(cell: &Arc<dyn Backend>, at: &str) -> Option<String> {
    let node = runtime().block_on(cell.get(&path(at))).unwrap().node?;
    Some(String::from_utf8(node.value.to_vec()).unwrap())
}

pub fn names(cell: &Arc<dyn Backend>) -> Vec<String> {
    let mut names: Vec<String> = runtime()
        .block_on(cell.list(&TopoPath::root()))
        .unwrap()
        .nodes
        .iter()
        .map(|node| node.path.to_string())
        .collect();
    names.sort();
    names
}

const UNCERTAIN: &str = "may have been carried out";

#[track_caller]
pub fn certain<T: std::fmt::Debug>(outcome: Result<T, BackendError>) -> Failure {
    let error = outcome.unwrap_err();
    assert!(!error.message.contains(UNCERTAIN), "{error}");
    error.failure
}

/// The sample cluster below a fresh root of the shared server.
fn sample() -> (String, Mount) {
    let (server, root) = (shared().endpoint(), fresh_root());
    load(&*at(&server, &root), &Cluster { root: root.clone(), ..Cluster::demo(&server) });
    let mount = Mount::of("zk2", &server, &root, &[]);
    (root, mount)
}

#[test]
fn a_lock_that_no_session_holds_is_a_lock() {
    let (root, mount) = sample();
    let dir = "global/keyspaces/commerce";
    // As a copier of nodes leaves it, without a session; also without contents.
    for contents in [r#"{"Action":"copied","HostName":"old"}"#, ""] {
        shared().create(&format!("{root}/{dir}/locks/0000000007"), contents);
        eventually("it is listed", || mount.read(".topofs/locks").contains("locks/0000000007").then_some(()));
        assert!(mount.read(&format!("{dir}/.lock")).contains("copied") || contents.is_empty());
        assert!(!mount.path(&format!("{dir}/locks")).exists(), "it is no record");
        assert!(!mount.bash(&format!("flock -n {dir}/.lock true")).status.success());
        // Vitess waits for it, and so do saves.
        let save = mount.bash(&format!("sed -i s/semi_sync/none/ {dir}/Keyspace.txt"));
        assert!(!save.status.success() && text(&save).contains("busy"), "{}", text(&save));
        let waiter = mount.bash(&format!("timeout 0.3 flock {dir}/.lock true"));
        assert_eq!(waiter.status.code(), Some(124));
        assert!(mount.sh(&format!("{TOPOFS} unlock --force --yes {dir}")).contains("taken away"));
        assert_eq!(shared().data(&format!("{root}/{dir}/locks")), None);
        eventually("it is free", || mount.bash(&format!("flock -n {dir}/.lock true")).status.success().then_some(()));
    }
    // Of an election, too.
    let cell = at(&shared().endpoint(), &format!("{root}/global"));
    shared().create(&format!("{root}/global/elections/nightly/0000000003"), "old:1");
    let node = runtime().block_on(cell.get(&path("elections/nightly/0000000003"))).unwrap().node.unwrap();
    assert_eq!(node.role, Role::Lock(Owner::UNBOUND));
    runtime().block_on(cell.break_lock(&node)).unwrap();
    assert_eq!(shared().data(&format!("{root}/global/elections")), None);
}

#[test]
fn an_empty_directory_of_locks_goes_with_the_keyspace_that_is_left_over_for_it() {
    let root = fresh_root();
    let cell = at(&shared().endpoint(), &root);
    runtime().block_on(cell.apply(&[put("keyspaces/there/Keyspace", "x")])).unwrap();
    shared().create(&format!("{root}/keyspaces/gone/locks"), "");
    let swept = runtime().block_on(cell.sweep_locks(&path("keyspaces/gone"))).unwrap();
    assert_eq!(swept.as_deref(), Some("keyspaces/gone/locks"));
    assert_eq!(shared().data(&format!("{root}/keyspaces/gone")), None);
    assert_eq!(runtime().block_on(cell.sweep_locks(&path("keyspaces/gone"))).unwrap(), None);
    assert_eq!(names(&cell), ["keyspaces/there/Keyspace"]);
}

#[test]
fn an_empty_node_with_the_name_of_a_record_is_a_record() {
    let root = fresh_root();
    let global = |path: &str| format!("{root}/global/{path}");
    for record in ["keyspaces/k/Keyspace", "keyspaces/k/VSchema", "keyspaces/k/shards/0/Shard", "metadata/note"] {
        shared().create(&global(record), "");
    }
    // A keyspace may have any name, and what is left of it is no record.
    shared().create(&global("keyspaces/VSchema"), "");
    let mount = Mount::of("zk2", &shared().endpoint(), &root, &[]);
    assert_eq!(
        mount.sh("ls global/keyspaces global/keyspaces/k/shards/0 global/metadata | grep -c ^VSchema$ || true"),
        "0\n"
    );
    let empty = "global/keyspaces/k/Keyspace global/keyspaces/k/shards/0/Shard global/metadata/note";
    assert_eq!(mount.sh(&format!("cat {empty}; ls global/keyspaces")), "k\n");
    // They are changed and removed like any other.
    mount.sh("echo 'durability_policy: \"none\"' > global/keyspaces/k/Keyspace.txt; rm global/keyspaces/k/VSchema");
    assert!(shared().data(&global("keyspaces/k/Keyspace")).is_some_and(|data| !data.is_empty()));
    assert_eq!(shared().data(&global("keyspaces/k/VSchema")), None);
    // What was emptied stays a record, whatever its name and its rights, also for a mount that comes later.
    shared().create(&global("odd/name"), "some");
    eventually("it is seen", || mount.path("global/odd/name").exists().then_some(()));
    mount.sh(": > global/keyspaces/k/Keyspace.txt; : > global/odd/name");
    // Nobody waits for the last close of an empty file.
    let is_empty = |key: &str| shared().data(&global(key)).is_some_and(|data| data.is_empty()).then_some(());
    eventually("both are empty", || is_empty("odd/name").and_then(|()| is_empty("keyspaces/k/Keyspace")));
    let later = Mount::of("zk2", &shared().endpoint(), &root, &[]);
    for mount in [&mount, &later] {
        assert_eq!(mount.sh("cat global/keyspaces/k/Keyspace global/odd/name; ls global/odd"), "name\n");
    }
    // An empty record that others have put a node below stays when that goes.
    let cell = at(&shared().endpoint(), &root);
    shared().create(&global("keyspaces/k/shards/0/Shard/below"), "x");
    runtime().block_on(cell.apply(&[delete("global/keyspaces/k/shards/0/Shard/below", Guard::Any)])).unwrap();
    assert_eq!(get(&cell, "global/keyspaces/k/shards/0/Shard").as_deref(), Some(""));
    // A directory is none: it is created over, and cannot be deleted.
    shared().create(&global("keyspaces/empty/x/y"), "");
    for dir in ["global/keyspaces/empty/x", "global/keyspaces/empty/x/y"] {
        assert_eq!(get(&cell, dir), None);
        assert_eq!(certain(runtime().block_on(cell.apply(&[delete(dir, Guard::Any)]))), Failure::NoNode);
        runtime().block_on(cell.apply(&[guarded(dir, Guard::Absent, "new")])).unwrap();
        assert_eq!(get(&cell, dir).as_deref(), Some("new"));
    }
}

#[test]
fn what_lives_with_a_session_and_is_no_lock_is_counted() {
    let root = fresh_root();
    let cell = at(&shared().endpoint(), &root);
    shared().create(&format!("{root}/metadata/owner"), "team");
    runtime().block_on(async {
        let client = shared().client().await;
        let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        client.create(&format!("{root}/metadata/passing"), b"x", &ephemeral).await.unwrap();
        let listing = cell.list(&TopoPath::root()).await.unwrap();
        assert_eq!((listing.nodes.len(), listing.skipped), (1, 1));
        assert!(cell.get(&path("metadata/passing")).await.unwrap().node.is_none());
        // It is in the way all the same.
        assert_eq!(certain(cell.apply(&[guarded("metadata/passing", Guard::Absent, "x")]).await), Failure::NodeExists);
    });
}

#[test]
fn what_is_larger_than_the_server_takes_is_efbig_and_disturbs_nobody() {
    let server = Zookeeper::with(vec!["jute.maxbuffer=131072".to_owned()]);
    load(&*at(&server.endpoint(), "/t"), &Cluster { root: "/t".to_owned(), ..Cluster::demo(&server.endpoint()) });
    let mount = Mount::of("zk2", &server.endpoint(), "/t", &[]);
    mount.sh("head -c 180000 /dev/zero | tr '\\0' x > ../large; head -c 100000 ../large > ../small");
    mount.sh("cp ../small global/metadata/small; cmp ../small global/metadata/small");
    for again in 0..2 {
        let refused = mount.bash("cp ../large global/metadata/large");
        assert!(!refused.status.success() && text(&refused).contains("File too large"), "{again}: {}", text(&refused));
    }
    let errors = mount.read(".topofs/errors");
    assert!(errors.contains("jute.maxbuffer") && !errors.contains(UNCERTAIN), "{errors}");
    // Several that are too large together, and one with a lock that is held.
    let cell = at(&server.endpoint(), "/t/global");
    runtime().block_on(async {
        let place = cell.enter(&path("keyspaces/commerce"), &"mine".into()).await.unwrap();
        let node = place.try_hold().await.unwrap().unwrap();
        let held = Holding { version: node.version, owner: node.owner() };
        let held = Change { path: node.path.clone(), guard: Guard::Held(held), action: Action::Check };
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let cell = cell.clone();
                tokio::spawn(async move {
                    for _ in 0..200 {
                        cell.get(&path("keyspaces/commerce/Keyspace")).await.unwrap().node.unwrap();
                    }
                })
            })
            .collect();
        let (half, whole) = ("x".repeat(80_000), "x".repeat(900_000));
        let both = [put("metadata/a", half.clone()), put("metadata/b", half.clone())];
        assert_eq!(certain(cell.apply(&both).await), Failure::TooLarge);
        assert_eq!(certain(cell.apply(&[held.clone(), put("metadata/a", whole.clone())]).await), Failure::TooLarge);
        assert_eq!(certain(cell.apply(&[guarded("metadata/a", Guard::Absent, &whole)]).await), Failure::TooLarge);
        // The lock is held still, and nobody was disturbed.
        cell.apply(&[held, put("metadata/a", half)]).await.unwrap();
        for reader in readers {
            reader.await.unwrap();
        }
        place.leave().await.unwrap();
    });
    // To the byte: what is refused would have been refused, and what would not, is not.
    let edge = "x".repeat(131_072 - 65 - "/t/global/metadata/edge".len());
    runtime().block_on(async {
        let file = CreateMode::Persistent.with_acls(Acls::anyone_all());
        for (more, fits) in [("", true), ("x", false)] {
            let value = format!("{edge}{more}");
            let client = server.client().await;
            let mut writer = client.new_multi_writer();
            writer.add_create("/t/global/metadata/edge", value.as_bytes(), &file).unwrap();
            assert_eq!(writer.commit().await.is_ok(), fits);
            if fits {
                client.delete("/t/global/metadata/edge", None).await.unwrap();
            }
            let stored = cell.apply(&[guarded("metadata/edge", Guard::Absent, &value)]).await;
            if !fits {
                assert_eq!(certain(stored), Failure::TooLarge);
                continue;
            }
            let version = stored.unwrap().versions[0].unwrap();
            cell.apply(&[delete("metadata/edge", Guard::Version(version))]).await.unwrap();
        }
    });
    let status = mount.status();
    assert_eq!(
        (&status["cells"]["global"]["state"], &status["cells"]["global"]["reconnects"]),
        (&"live".into(), &0.into())
    );
    // The default is a limit, too.
    let cell = at(&shared().endpoint(), &fresh_root());
    let large = "x".repeat(600_000);
    let both = [put("a", large.clone()), put("b", large.clone())];
    assert_eq!(certain(runtime().block_on(cell.apply(&both))), Failure::TooLarge);
    runtime().block_on(cell.apply(&[put("a", large)])).unwrap();
}

#[test]
fn a_lagging_server_is_waited_for() {
    let (quorum, election): ([u16; 2], [u16; 2]) = ([free_port(), free_port()], [free_port(), free_port()]);
    let link = Proxy::plain(quorum[0]);
    let start = |id: usize, leader: u16, more: &[&str]| {
        let members = [
            "standaloneEnabled=false".to_owned(),
            format!("server.1=127.0.0.1:{leader}:{}", election[0]),
            format!("server.2=127.0.0.1:{}:{}:observer", quorum[1], election[1]),
            format!("myid={id}"),
        ];
        let mut server = Zookeeper(Server::new(
            "zookeeper",
            [&members.map(String::from)[..], &more.iter().map(ToString::to_string).collect::<Vec<_>>()].concat(),
        ));
        server.launch();
        server
    };
    let (voter, observer) = (start(1, quorum[0], &[]), start(2, link.port, &["peerType=observer"]));
    voter.wait();
    observer.wait();
    let (ahead, behind) = (at(&voter.endpoint(), "/t"), at(&observer.endpoint(), "/t"));
    let line = "keyspaces/ks";
    runtime().block_on(ahead.apply(&[put("keyspaces/ks/Keyspace", "old")])).unwrap();
    let (first, second) = runtime().block_on(async {
        let first = ahead.enter(&path(line), &"first".into()).await.unwrap();
        (first, behind.enter(&path(line), &"second".into()).await.unwrap())
    });
    assert!(runtime().block_on(second.try_hold()).unwrap().is_none());
    assert_eq!(get(&behind, "keyspaces/ks/Keyspace").as_deref(), Some("old"));
    link.silence(true);
    runtime().block_on(ahead.apply(&[put("keyspaces/ks/Keyspace", "new")])).unwrap();
    runtime().block_on(first.leave()).unwrap();
    runtime().block_on(async {
        let (one, all, holds) = (behind.clone(), behind.clone(), second.clone());
        let mut asked = tokio::spawn(async move {
            let (one, root) = (path("keyspaces/ks/Keyspace"), TopoPath::root());
            tokio::join!(behind.get(&one), all.list(&root), holds.try_hold())
        });
        // What is answered before the link is back, is old.
        let early = tokio::time::timeout(Duration::from_millis(500), &mut asked).await;
        assert!(early.is_err(), "{early:?}");
        link.silence(false);
        let (got, listed, held) = asked.await.unwrap();
        assert_eq!(got.unwrap().node.unwrap().value, "new");
        assert!(listed.unwrap().nodes.iter().any(|node| node.value == "new"));
        assert!(held.unwrap().is_some());
        drop(one);
    });
}

#[test]
fn what_happens_while_a_connection_is_cut_is_told() {
    let (server, root) = (shared(), fresh_root());
    let direct = at(&server.endpoint(), &format!("{root}/global"));
    runtime().block_on(direct.apply(&[put("metadata/owner", "first"), put("metadata/gone", "x")])).unwrap();
    let proxy = Proxy::plain(server.port);
    let mount = Mount::of("zk2", &proxy.endpoint(), &root, &["--resync-interval=1h"]);
    for round in 0..3 {
        assert_eq!(mount.sh("ls global/metadata"), "gone\nowner\n");
        // Shorter than anything would take to notice, and longer than the session's client needs.
        proxy.cut(true);
        let value = format!("changed {round}");
        runtime()
            .block_on(direct.apply(&[put("metadata/owner", value.clone()), delete("metadata/gone", Guard::Any)]))
            .unwrap();
        proxy.cut(false);
        eventually("the changes are seen", || {
            let read = std::fs::read(mount.path("global/metadata/owner")).ok()?;
            (read == value.as_bytes() && mount.sh("ls global/metadata") == "owner\n").then_some(())
        });
        runtime().block_on(direct.apply(&[put("metadata/gone", "x")])).unwrap();
        eventually("so is what comes later", || mount.path("global/metadata/gone").exists().then_some(()));
    }
}

#[test]
fn after_a_lost_answer_it_is_known_whose_record_it_is_or_said_that_it_is_not() {
    let (server, root) = (shared(), fresh_root());
    let direct = at(&server.endpoint(), &root);
    let proxy = Proxy::plain(server.port);
    let through = at(&proxy.endpoint(), &root);
    runtime().block_on(through.apply(&[put("metadata/there", "x")])).unwrap();
    let apply = |change: Change| runtime().block_on(through.apply(&[change]));
    let store = |at: &'static str, value: &'static str| {
        let direct = direct.clone();
        move || drop(runtime().block_on(direct.apply(&[guarded(at, Guard::Absent, value)])).unwrap())
    };
    let seen = |at: &'static str, value: &'static str| {
        let direct = direct.clone();
        move || eventually("it has arrived", || (get(&direct, at).as_deref() == Some(value)).then_some(()))
    };
    // Ours never arrived, and somebody else has made an equal one meanwhile: only he has created it.
    proxy.lose_request("equal-value", false, store("metadata/one", "equal-value"));
    let error = apply(guarded("metadata/one", Guard::Absent, "equal-value")).unwrap_err();
    assert_eq!((error.failure, proxy.has_lost()), (Failure::NodeExists, true));
    // Ours did arrive: nobody can know, and that is said.
    proxy.lose_request("other-value", true, seen("metadata/two", "other-value"));
    let error = apply(guarded("metadata/two", Guard::Absent, "other-value")).unwrap_err();
    assert!(error.failure == Failure::NodeExists && error.message.contains(UNCERTAIN), "{error}");
    // A change of a version that is known is told from others'.
    let version = apply(put("metadata/three", "1")).unwrap().versions[0].unwrap();
    proxy.lose_request("second-value", true, seen("metadata/three", "second-value"));
    let version =
        apply(guarded("metadata/three", Guard::Version(version), "second-value")).unwrap().versions[0].unwrap();
    let now = runtime().block_on(direct.get(&path("metadata/three"))).unwrap().node.unwrap();
    assert_eq!(now.version, version);
    proxy.lose_request("third-value", false, || {});
    apply(guarded("metadata/three", Guard::Version(version), "third-value")).unwrap();
    assert_eq!(get(&direct, "metadata/three").as_deref(), Some("third-value"));
    // What was never sent has not been carried out.
    proxy.cut(true);
    assert_eq!(certain(apply(put("metadata/three", "4"))), Failure::Unreachable);
}

#[test]
fn a_place_whose_answer_was_lost_is_left_again_and_no_other() {
    let (server, root) = (shared(), fresh_root());
    let direct = at(&server.endpoint(), &root);
    let proxy = Proxy::plain(server.port);
    let through = at(&proxy.endpoint(), &root);
    let dir = path("keyspaces/ks");
    runtime().block_on(async {
        direct.apply(&[put("keyspaces/ks/Keyspace", "x")]).await.unwrap();
        // The second has the name of the first, which is left only then.
        let first = through.enter(&dir, &"first".into()).await.unwrap();
        direct.break_lock(&first.node().unwrap()).await.unwrap();
        let second = through.enter(&dir, &"second".into()).await.unwrap();
        assert_eq!(first.node().unwrap().path, second.node().unwrap().path);
        first.leave().await.unwrap();
        let waiting = direct.clone();
        let places = async move || {
            let nodes = waiting.list(&path("keyspaces/ks/locks")).await.unwrap().nodes;
            nodes.into_iter().map(|node| String::from_utf8(node.value.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        let arrived = direct.clone();
        proxy.lose_request("third", true, move || {
            let listed = || runtime().block_on(arrived.list(&path("keyspaces/ks/locks"))).unwrap().nodes.len();
            eventually("it has arrived", || (listed() == 2).then_some(()));
        });
        assert_eq!(through.enter(&dir, &"third".into()).await.map(drop).unwrap_err().failure, Failure::Unreachable);
        tokio::time::timeout(crate::common::DEADLINE, async {
            while places().await.len() != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the third place is left");
        assert_eq!(places().await, ["second"]);
        assert!(second.try_hold().await.unwrap().is_some());
        second.leave().await.unwrap();
    });
}
