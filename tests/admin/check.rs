//! `topofs check`: what is wrong with a configuration is said before it is mounted, on each service, and nothing is
//! changed by that.

use serde_json::Value;
use topofs::backend::Implementation;
use topofs::sample::Cluster;
use zookeeper_client::{Acl, AuthId, Permission};

use crate::common::consul::{EVERYTHING, Guarded, READING};
use crate::common::etcd::{self, Etcd};
use crate::common::mount::{Mount, TOPOFS};
use crate::common::proxy::Proxy;
use crate::common::server::{Server, free_port};
use crate::common::world::{self, Service, cell, runtime};
use crate::common::{bash_in, eventually, zookeeper};
use crate::on_each_service;
use crate::shell::{Place, USER, alone, told};

/// `topofs check` of a place: its exit status, and the findings.
fn check(implementation: &str, server: &str, root: &str, flags: &str) -> (i32, Vec<Value>) {
    let args = format!(
        "check --json --topo-implementation {implementation} --topo-global-server-address {server} \
         --topo-global-root {root} --remote-operation-timeout 3s {flags}"
    );
    let (code, told) = Place::new().topofs(&args);
    let findings = told.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{told}"))).collect();
    (code, findings)
}

/// The findings of a step that contain some words.
fn found<'a>(findings: &'a [Value], outcome: &str, step: &str, words: &str) -> &'a Value {
    let is_it = |finding: &&Value| {
        let text = format!("{}: {}", finding["subject"].as_str().unwrap(), finding["text"].as_str().unwrap());
        finding["outcome"] == outcome && finding["step"] == step && text.contains(words)
    };
    let found = findings.iter().find(is_it);
    found.unwrap_or_else(|| panic!("no {outcome} {step} with {words:?} in {findings:#?}"))
}

fn of(service: &Service, flags: &str) -> (i32, Vec<Value>) {
    check(&service.implementation.to_string(), &service.server, &format!("{}/global", service.root), flags)
}

on_each_service! {
    fn a_good_configuration_is_good_and_nothing_is_changed(service) {
        let keys = || {
            let listing = runtime().block_on(service.cell().list(&topofs::name::TopoPath::root())).unwrap();
            let nodes = listing.nodes.into_iter();
            let mut keys: Vec<_> = nodes.map(|node| (node.path, node.version, node.value)).collect();
            keys.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
            keys
        };
        let before = keys();
        let (code, findings) = of(&service, "");
        assert_eq!(code, 0, "{findings:#?}");
        found(&findings, "ok", "reach", &service.server);
        found(&findings, "ok", "service", "global at ");
        found(&findings, "ok", "root", "2 cells");
        for subject in ["global", "cell zone1", "cell zone2"] {
            found(&findings, "ok", "rights", &format!("{subject}: may read; may write"));
        }
        assert_eq!(keys(), before);
        // One line each, for people.
        let args = format!(
            "check --topo-implementation {} --topo-global-server-address {} --topo-global-root {}/global --read-only",
            service.implementation, service.server, service.root
        );
        let (code, told) = Place::new().topofs(&args);
        assert_eq!(code, 0, "{told}");
        assert!(told.lines().last().unwrap().ends_with(" 0 warnings, 0 failed"), "{told}");
        assert!(told.contains("nothing will be written (--read-only)"), "{told}");
        assert!(told.lines().rev().skip(1).all(|line| line.starts_with("ok  ")), "{told}");
    }

    fn a_wrong_root_is_told_with_the_right_one(service) {
        let (code, findings) = check(&service.implementation.to_string(), &service.server, "/not/here", "");
        assert_eq!(code, 1);
        let finding = found(&findings, "failed", "root", "nothing is stored there");
        let text = format!("{} {}", finding["text"], finding["advice"]);
        // Other tests have topologies there, too.
        assert!(text.contains("/global has ") && text.contains("is it --topo-global-root "), "{text}");
        // One directory too high.
        let (code, findings) = check(&service.implementation.to_string(), &service.server, &service.root, "");
        assert_eq!(code, 1);
        let finding = found(&findings, "failed", "root", "no cells, 0 keyspaces, but ");
        let root = service.root.trim_start_matches('/').to_owned() + "/global";
        assert!(finding["advice"].as_str().unwrap().contains(&root), "{finding}");
    }

    fn a_server_that_is_down_or_silent_is_told_in_time(service) {
        let implementation = service.implementation.to_string();
        let (code, findings) = check(&implementation, &format!("127.0.0.1:{}", free_port()), "/t/global", "");
        assert_eq!(code, 1);
        found(&findings, "failed", "reach", "refused");
        let (code, findings) = check(&implementation, "no-such-host.invalid:1", "/t/global", "");
        assert_eq!(code, 1);
        found(&findings, "failed", "reach", "no-such-host.invalid:1: ");
        // It takes the connection, and is silent.
        let port = service.server.rsplit_once(':').unwrap().1.parse().unwrap();
        let proxy = Proxy::plain(port);
        proxy.silence(true);
        let (code, findings) = check(&implementation, &proxy.endpoint(), "/t/global", "");
        assert_eq!(code, 1);
        found(&findings, "ok", "reach", &proxy.endpoint());
        found(&findings, "failed", "service", "");
    }

    fn a_cell_is_looked_at_like_the_global_topology(service) {
        service.put("global/cells/gone/CellInfo", b"\x0a\x0b127.0.0.1:1\x12\x02/z");
        service.put("global/cells/odd/CellInfo", b"\x0a\x09x");
        service.put("global/keyspaces/commerce/Keyspace", b"\x0a\x09x");
        // Field 1000, which no Keyspace has.
        service.put("global/keyspaces/customer/Keyspace", b"\xc2\x3e\x01x");
        let (code, findings) = of(&service, "");
        assert_eq!(code, 1);
        found(&findings, "failed", "reach", "127.0.0.1:1");
        found(&findings, "failed", "cell", "cell odd: is not shown");
        found(&findings, "failed", "schema", "keyspaces/commerce/Keyspace");
        found(&findings, "warning", "schema", "keyspaces/customer/Keyspace");
        found(&findings, "ok", "schema", "cell zone1");
        let (_, findings) = of(&service, "--cells zone1,none");
        found(&findings, "failed", "cell", "cell none: has no CellInfo record");
        let is_of_zone2 = |finding: &Value| finding["subject"].as_str().unwrap().contains("zone2");
        assert!(!findings.iter().any(is_of_zone2), "{findings:#?}");
        let (_, findings) = of(&service, "--cell-servers global");
        found(&findings, "failed", "cell", "does not use");
    }
}

/// The sample cluster below /t.
fn load(implementation: Implementation, server: &str) {
    let all = cell(implementation, server, "/t");
    world::load(&*all, &Cluster { root: "/t".to_owned(), ..Cluster::demo(server) });
}

#[test]
fn etcd_is_tried_with_password_and_rights() {
    let etcd = Etcd::start();
    load(Implementation::Etcd2, &etcd.endpoint());
    for args in [
        &["user", "add", "root:s3cret"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "--prefix=true", "read", "/t"],
        &["role", "add", "some"],
        &["role", "grant-permission", "some", "--prefix=true", "read", "/t"],
        &["role", "grant-permission", "some", "--prefix=true", "readwrite", "/t/global/keyspaces/"],
        &["role", "add", "writer"],
        &["role", "grant-permission", "writer", "--prefix=true", "readwrite", "/t"],
        &["user", "add", "reader:pw"],
        &["user", "grant-role", "reader", "reader"],
        &["user", "add", "some:pw"],
        &["user", "grant-role", "some", "some"],
        &["user", "add", "writer:pw"],
        &["user", "grant-role", "writer", "writer"],
        &["user", "add", "stranger:pw"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args);
    }
    let revision = || etcd.ctl(&["--user", "root:s3cret", "get", "/t/global/x", "-w", "json"]);
    let revision_of = |text: String| serde_json::from_str::<Value>(&text).unwrap()["header"]["revision"].clone();
    let before = revision_of(revision());
    let tried = |user: &str, password: &str| {
        let file = etcd.dir().join("password");
        std::fs::write(&file, password).unwrap();
        let flags = format!("--topo-etcd-user {user} --topo-etcd-password-file {}", file.display());
        check("etcd2", &etcd.endpoint(), "/t/global", &flags)
    };
    let (code, findings) = check("etcd2", &etcd.endpoint(), "/t/global", "");
    assert_eq!(code, 1);
    let finding = found(&findings, "failed", "root", "user name is empty");
    assert!(finding["advice"].as_str().unwrap().contains("name one with --topo-etcd-user"), "{finding}");
    let missing = "--topo-etcd-user writer --topo-etcd-password-file /no/such/file";
    let (code, findings) = check("etcd2", &etcd.endpoint(), "/t/global", missing);
    assert_eq!(code, 1);
    assert_eq!(findings.iter().filter(|finding| finding["outcome"] == "failed").count(), 1, "{findings:#?}");
    let (code, findings) = tried("writer", "pw");
    assert_eq!(code, 0, "{findings:#?}");
    found(&findings, "warning", "file", "everybody on this host can use it");
    found(&findings, "ok", "rights", "global: may read; may write");
    let (code, findings) = tried("writer", "wr0ng-pw");
    assert_eq!(code, 1);
    found(&findings, "failed", "auth", "authentication failed");
    assert!(!format!("{findings:?}").contains("wr0ng-pw"));
    let (code, findings) = tried("reader", "pw");
    assert_eq!(code, 1);
    found(&findings, "failed", "rights", "global: may read; may write: no (");
    let (code, findings) = tried("some", "pw");
    assert_eq!(code, 1, "the cells may not be written at all");
    found(&findings, "warning", "rights", "may write keyspaces/");
    let (code, findings) = tried("stranger", "pw");
    assert_eq!(code, 1);
    found(&findings, "failed", "root", "permission denied");
    assert_eq!(revision_of(revision()), before, "nothing was changed");
}

#[test]
fn zookeeper_is_tried_with_credentials_and_rights() {
    let service = Service::zk2();
    let restrict = |rights: Permission, path: &str| {
        runtime().block_on(async {
            let client = zookeeper::shared().client().await;
            client.auth("digest", b"boss:s3cret").await.unwrap();
            let all = Acl::new(Permission::ALL, AuthId::authed());
            let mut nodes = vec![path.to_owned()];
            while let Some(node) = nodes.pop() {
                nodes.extend(client.list_children(&node).await.unwrap().iter().map(|name| format!("{node}/{name}")));
                let acls = [all.clone(), Acl::new(rights, AuthId::anyone())];
                let acls = if rights == Permission::NONE { &acls[..1] } else { &acls[..] };
                client.set_acl(&node, acls, None).await.unwrap();
            }
        });
    };
    let place = Place::new();
    place.sh("umask 077; echo digest:boss:s3cret > right; echo digest:boss:wr0ng > wrong; echo nonsense > bad");
    let with = |file: &str| of(&service, &format!("--topo-zk-auth-file {}", place.path(file).display()));
    restrict(Permission::READ, &service.root);
    let (code, findings) = with("right");
    assert_eq!(code, 0, "{findings:#?}");
    found(&findings, "ok", "service", "it knows us as digest:boss");
    for file in ["wrong", "right"] {
        let (code, findings) = with(file);
        assert_eq!(code, i32::from(file == "wrong"));
        assert!(!format!("{findings:?}").contains("s3cret") && !format!("{findings:?}").contains("wr0ng"));
    }
    found(&with("wrong").1, "failed", "rights", "global: may read; may write: no (");
    found(&with("bad").1, "failed", "flags", "SCHEME:AUTH");
    restrict(Permission::NONE, &service.root);
    let (code, findings) = of(&service, "");
    assert_eq!(code, 1);
    found(&findings, "failed", "root", "not authorized");
}

#[test]
fn consul_is_tried_with_token_and_rights() {
    let consul = Guarded::start();
    let tried = |name: &str, secret: &str| {
        let auth = consul.auth(name, secret);
        check("consul", &consul.server.endpoint(), "t/global", &auth)
    };
    consul.put("kv/t/global/keyspaces/ks/Keyspace", "");
    let (code, findings) = tried("all", &consul.rules(1, EVERYTHING));
    assert_eq!(code, 0, "{findings:#?}");
    found(&findings, "ok", "rights", "global: may read; may write");
    let (code, findings) = tried("reading", &consul.rules(2, READING));
    assert_eq!(code, 1);
    found(&findings, "failed", "rights", "global: may read; may write: no (");
    let (code, findings) = tried("wrong", "wr0ng");
    assert_eq!(code, 1);
    found(&findings, "failed", "root", "ACL not found");
    assert!(!format!("{findings:?}").contains("wr0ng"));
}

#[test]
fn a_certificate_of_another_authority_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let make = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out req.pem
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > ext
        openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other-ca -keyout other.key -out other.pem"#;
    assert!(bash_in(dir.path(), &format!("set -e; {make}")).status.success());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let mut server = Server::new("etcd", Vec::new());
    let url = format!("https://127.0.0.1:{}", free_port());
    let flags = ["listen-client-urls", "advertise-client-urls"].map(|flag| format!("--{flag}={url}"));
    let certificate = [format!("--cert-file={}", file("cert.pem")), format!("--key-file={}", file("key.pem"))];
    let port = url.rsplit_once(':').unwrap().1.parse().unwrap();
    server = {
        drop(server);
        Server::new("etcd", [flags, certificate].concat())
    };
    server.port = port;
    server.launch();
    let with = |ca: &str| check("etcd2", &url, "/t/global", &format!("--topo-etcd-tls-ca {}", file(ca)));
    // Nothing is stored there, but it answers.
    eventually("it answers", || {
        let (_, findings) = with("ca.pem");
        findings.iter().any(|finding| finding["step"] == "service" && finding["outcome"] == "ok").then_some(())
    });
    let (code, findings) = with("other.pem");
    assert_eq!(code, 1);
    found(&findings, "ok", "reach", "127.0.0.1");
    let finding = found(&findings, "failed", "service", "ertificate");
    assert!(finding["advice"].as_str().unwrap().contains("--topo-*-tls-ca"), "{finding}");
    let (code, findings) = with("none.pem");
    assert_eq!(code, 1);
    found(&findings, "failed", "file", "No such file");
    let (_, findings) = check("etcd2", &format!("127.0.0.1:{port}"), "/t/global", "");
    let finding = found(&findings, "failed", "service", "");
    assert!(finding["advice"].as_str().unwrap().contains("TLS"), "{finding}");
}

#[test]
fn a_living_mount_is_tried_again_from_outside() {
    let proxy = Proxy::start(etcd::shared().port);
    let service = Service::at(Implementation::Etcd2, etcd::shared().endpoint(), &proxy.endpoint());
    let flags = ["--stale-after=1s", "--remote-operation-timeout=2s", "--cell-servers=any", "--record=global/x/*"];
    let mount = Mount::of("etcd2", &proxy.endpoint(), &service.root, &flags);
    mount.sh("ls zone1");
    let point = mount.point().display().to_string();
    let place = Place::new();
    // The environment is not what the mount was made with.
    let script = format!("TOPOFS_TOPO_IMPLEMENTATION=zk2 TOPOFS_READ_ONLY=1 {TOPOFS} check {point}");
    let (code, told_of) = told(&bash_in(place.dir(), &script));
    assert_eq!(code, 0, "{told_of}");
    for part in ["says that all is well", &format!("{}/global", service.root), "may write (tried", "cell zone2"] {
        assert!(told_of.contains(part), "{part} in {told_of}");
    }
    proxy.cut(true);
    eventually("the mount notices", || {
        let (code, told) = place.topofs(&format!("check --json {point}"));
        assert_eq!(code, 1, "{told}");
        (told.contains(r#""step":"mount","subject""#) && told.contains("zone1 is down")).then_some(())
    });
    // With flags, it is a place where nothing else can be mounted.
    let (code, told) = place.topofs(&format!("check --topo-implementation memory {point}"));
    assert!(code == 1 && told.contains("is mounted there already"), "{told}");
}

#[test]
fn the_host_and_the_mount_point_are_looked_at() {
    let place = Place::for_users();
    place.sh("mkdir full; touch full/x file; mkdir locked; chmod 0700 locked");
    let memory = "check --topo-implementation memory";
    for (path, code, words) in [
        ("m", 0, "is an empty directory"),
        ("full", 0, "is not empty"),
        ("file", 1, "is not a directory"),
        ("none", 1, "does not exist"),
        ("/", 1, "cannot be a mount point"),
        ("/proc", 0, "would be hidden"),
    ] {
        let (found, told) = place.topofs(&format!("{memory} {path}"));
        assert!(found == code && told.contains(words), "{path}: {found} {told}");
    }
    let user = |args: &str| told(&bash_in(place.dir(), &format!("{USER} ./topofs {args}")));
    let (code, told) = user(&format!("{memory} m"));
    assert!(code == 0 && told.contains("mounts for ordinary users"), "{told}");
    let (code, told) = user(&format!("{memory} full"));
    assert!(code == 1 && told.contains("may not write there"), "{told}");
    let (code, told) = told_without_fusermount(&place);
    assert!(code == 1 && told.contains("install fuse3"), "{told}");
    // Wrong flags are no answer.
    for (args, words) in [("check --no-such-flag", "no-such-flag"), ("check --topo-implementation zk", "zk")] {
        let (code, told) = place.topofs(args);
        assert!(code == 2 && told.contains(words), "{args}: {code} {told}");
    }
    let (code, told) = place.topofs("check --topo-implementation tee");
    assert!(code == 1 && told.contains("--tee-primary"), "{told}");
}

#[test]
fn a_mount_point_is_checked_with_the_source_that_it_stands_for() {
    let place = Place::new();
    place.sh("mkdir m dead listed");
    let (code, told) = alone(
        place.dir(),
        "$T mount memory:here/vitess/global dead
         kill -9 $(jq .pid dead/.topofs/status); until ! stat dead 2> /dev/null; do sleep 0.1; done
         $T check dead; echo dead $?
         echo \"memory:listed/v/g $PWD/listed topofs _netdev,noauto,ro,x-systemd.automount 0 0\" > fstab
         mount --bind fstab /etc/fstab; $T check listed; echo listed $?
         $T check m > said; grep -c 'no SOURCE was named' said
         TOPOFS_TOPO_IMPLEMENTATION=memory $T check m; echo environment $?
         $T check demo; echo demo $?; mkdir demo; $T check demo | grep mountpoint
         umount -l dead",
    );
    assert_eq!(code, 0, "{told}");
    for part in [
        "its source in the mount table: memory:here/vitess/global",
        "dead 0\n",
        "/etc/fstab says what would be: memory:listed/v/g",
        "listed 0\n1\n",
        "environment 0\n",
        "demo 0\n",
        "demo: is an empty directory",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert_eq!(told.matches("no SOURCE was named").count(), 0, "{told}");
    // A port that somebody has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, told) = place.topofs(&format!("check memory --metrics-address {}", taken.local_addr().unwrap().port()));
    assert!(code == 1 && told.contains("in use"), "{told}");
}

#[test]
fn a_root_without_its_slash_is_told_with_the_right_one() {
    let service = Service::etcd2();
    let root = format!("{}/global", service.root);
    let (code, findings) = check("etcd2", &service.server, root.trim_start_matches('/'), "");
    assert_eq!(code, 1);
    let finding = found(&findings, "failed", "root", "without a slash at its beginning");
    assert!(finding["advice"].as_str().unwrap().contains(&format!("--topo-global-root {root}?")), "{finding}");
}

fn told_without_fusermount(place: &Place) -> (i32, String) {
    told(&bash_in(place.dir(), &format!("{USER} env PATH=/nowhere ./topofs check --topo-implementation memory m")))
}
