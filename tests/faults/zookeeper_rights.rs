//! Rights of ZooKeeper: what is forbidden is denied, makes nothing disappear, and is asked for again with new
//! credentials.

use topofs::backend::{Failure, Guard, Version};
use topofs::name::TopoPath;
use zookeeper_client::{Acl, AuthId, Permission};

use super::zookeeper::{at, certain, delete, get, guarded, names, path};
use crate::common::mount::Mount;
use crate::common::server::fresh_root;
use crate::common::text;
use crate::common::world::{put, runtime};
use crate::common::zookeeper::shared;

/// What everybody may do with a node; one user may do everything.
fn restrict_one(node: &str, rights: Permission) {
    restrict_all(node, rights, false);
}

/// The same, with all that is below it.
fn restrict(root: &str, rights: Permission) {
    restrict_all(root, rights, true);
}

fn restrict_all(root: &str, rights: Permission, recursive: bool) {
    runtime().block_on(async {
        let client = shared().client().await;
        client.auth("digest", b"boss:s3cret").await.unwrap();
        let all = Acl::new(Permission::ALL, AuthId::new("auth", ""));
        let acls = [all, Acl::new(rights, AuthId::anyone())];
        let mut nodes = vec![root.to_owned()];
        while let Some(node) = nodes.pop() {
            let below = client.list_children(&node).await.unwrap();
            nodes.extend(below.into_iter().filter(|_| recursive).map(|name| format!("{node}/{name}")));
            let acls = if rights == Permission::NONE { &acls[..1] } else { &acls[..] };
            client.set_acl(&node, acls, None).await.unwrap();
        }
    });
}

#[test]
fn what_is_forbidden_is_denied_in_every_operation() {
    let root = fresh_root();
    let cell = at(&shared().endpoint(), &root);
    let stored = [put("keyspaces/ks/Keyspace", "x"), put("metadata/owner", "team")];
    let versions = runtime().block_on(cell.apply(&stored)).unwrap().versions;
    let version = versions[1].unwrap();
    let writes = |version: Version| {
        vec![
            vec![guarded("metadata/owner", Guard::Version(version), "new")],
            vec![put("metadata/owner", "new")],
            vec![guarded("metadata/other", Guard::Absent, "new")],
            vec![guarded("one/two/three", Guard::Absent, "new")],
            vec![delete("metadata/owner", Guard::Version(version))],
            vec![delete("metadata/owner", Guard::Version(version)), guarded("metadata/moved", Guard::Absent, "team")],
        ]
    };
    restrict(&root, Permission::READ);
    runtime().block_on(async {
        for write in writes(version) {
            assert_eq!(certain(cell.apply(&write).await), Failure::Denied, "{write:?}");
        }
        assert_eq!(certain(cell.enter(&path("keyspaces/ks"), &"x".into()).await.map(drop)), Failure::Denied);
        assert_eq!(certain(cell.enter(&path("elections/e"), &"x".into()).await.map(drop)), Failure::Denied);
    });
    assert_eq!(get(&cell, "metadata/owner").as_deref(), Some("team"));
    assert_eq!(names(&cell), ["keyspaces/ks/Keyspace", "metadata/owner"]);
    restrict(&root, Permission::NONE);
    runtime().block_on(async {
        assert_eq!(certain(cell.get(&path("metadata/owner")).await), Failure::Denied);
        assert_eq!(certain(cell.attribute(&path("metadata/owner"), "acl").await), Failure::Denied);
        for write in writes(version) {
            assert_eq!(certain(cell.apply(&write).await), Failure::Denied, "{write:?}");
        }
        // A whole cell.
        for cell in [cell.clone(), at(&shared().endpoint(), &root)] {
            assert_eq!(certain(cell.list(&TopoPath::root()).await), Failure::Denied);
            assert_eq!(certain(cell.follow().await.map(drop)), Failure::Denied);
        }
    });
}

#[test]
fn rights_that_are_taken_away_make_nothing_disappear() {
    let root = fresh_root();
    let cell = at(&shared().endpoint(), &root);
    runtime().block_on(cell.apply(&[put("keyspaces/ks/Keyspace", "x"), put("metadata/owner", "team")])).unwrap();
    let (_, watch) = runtime().block_on(cell.follow()).unwrap();
    restrict(&format!("{root}/keyspaces"), Permission::NONE);
    assert_eq!(certain(runtime().block_on(cell.list(&TopoPath::root()))), Failure::Denied);
    drop(watch);
    assert_eq!(certain(runtime().block_on(cell.follow()).map(drop)), Failure::Denied);
    // Who may not look at what is above may use what he may use.
    let inner = at(&shared().endpoint(), &format!("{root}/metadata"));
    restrict_one(&root, Permission::CREATE);
    runtime().block_on(inner.apply(&[put("more", "x")])).unwrap();
    assert_eq!((get(&inner, "more").as_deref(), names(&inner).len()), (Some("x"), 2));
    restrict_one(&root, Permission::READ);
    runtime().block_on(inner.apply(&[delete("more", Guard::Any)])).unwrap();
    // Who never saw it, sees the rest.
    assert_eq!(names(&at(&shared().endpoint(), &root)), ["metadata/owner"]);
    restrict(&format!("{root}/keyspaces"), Permission::READ);
    assert_eq!(names(&cell), ["keyspaces/ks/Keyspace", "metadata/owner"]);
}

#[test]
fn credentials_are_read_again_when_they_are_refused() {
    let root = fresh_root();
    shared().create(&format!("{root}/global/keyspaces/ks/Keyspace"), "");
    shared().create(&format!("{root}/global/metadata/owner"), "team");
    restrict(&format!("{root}/global"), Permission::READ);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth");
    std::fs::write(&file, "digest:boss:old").unwrap();
    let mount = Mount::of("zk2", &shared().endpoint(), &root, &[&format!("--topo-zk-auth-file={}", file.display())]);
    mount.sh("echo new > ../new");
    assert!(text(&mount.bash("cp ../new global/metadata/owner")).contains("Permission denied"));
    let lock = "flock global/elections/nightly/.lock true";
    assert!(!mount.bash(lock).status.success());
    std::fs::write(&file, "digest:boss:s3cret\n").unwrap();
    mount.sh(&format!("cp ../new global/metadata/owner; {lock}"));
    assert_eq!(mount.read("global/metadata/owner"), "new\n");
    assert!(!mount.log().contains("s3cret"));
}
