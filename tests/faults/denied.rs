//! Services that refuse: what may not be read is EACCES and nothing is deleted by it, what was refused is not called
//! uncertain, and what they are to believe is read again.

use std::process::Command;

use crate::access::certificates;
use crate::common::consul::Consul;
use crate::common::etcd::Etcd;
use crate::common::mount::{Mount, lines};
use crate::common::proxy::Proxy;
use crate::common::world::{cell, etcd_cell, load, put, runtime};
use crate::common::zookeeper::Zookeeper;
use crate::common::{bash_in, eventually, signal, text};
use crate::rig::{OWNER, etcd_with_certificates, state, wait_for_state};
use topofs::backend::Implementation;
use topofs::sample::Cluster;

const TABLET: &str = "zone1/tablets/zone1-0000000100/Tablet";

/// An etcd with the sample cluster, root, and the user `topo` who may read and write the global topology, and zone1.
struct Guarded(Etcd);

impl Guarded {
    fn start() -> Self {
        Self::with(Vec::new())
    }

    /// With flags of its own.
    fn with(flags: Vec<String>) -> Self {
        let etcd = Etcd::with(flags);
        load(
            &*etcd_cell(&etcd.endpoint(), "/t"),
            &Cluster { root: "/t".to_owned(), ..Cluster::demo(&etcd.endpoint()) },
        );
        for args in [
            &["user", "add", "root:s3cret"][..],
            &["user", "grant-role", "root", "root"],
            &["user", "add", "topo:first"],
            &["role", "add", "topo"],
            &["role", "grant-permission", "topo", "--prefix=true", "readwrite", "/t/global"],
            &["role", "grant-permission", "topo", "--prefix=true", "read", "/t/zone1"],
            &["user", "grant-role", "topo", "topo"],
            &["auth", "enable"],
        ] {
            etcd.ctl(args);
        }
        Self(etcd)
    }

    /// etcdctl as root.
    fn ctl(&self, args: &[&str]) -> String {
        self.0.ctl(&[&["--user", "root:s3cret"], args].concat())
    }

    fn password(&self, password: &str) -> String {
        let path = self.0.dir().join("password");
        std::fs::write(&path, format!("{password}\n")).unwrap();
        path.display().to_string()
    }

    fn mount(&self, flags: &[&str]) -> Mount {
        let file = self.password("first");
        let user = ["--topo-etcd-user=topo", "--topo-etcd-password-file", &file];
        Mount::etcd(&self.0.endpoint(), "/t", &[&user[..], flags].concat())
    }
}

fn says(mount: &Mount, script: &str, words: &str) {
    let output = mount.bash(script);
    assert!(!output.status.success() && text(&output).contains(words), "{script}: {}\n{}", text(&output), mount.log());
}

/// The newest reason of a refused operation.
fn reason(mount: &Mount) -> String {
    mount.errors().pop().unwrap()["reason"].as_str().unwrap().to_owned()
}

#[test]
fn a_cell_of_etcd_that_may_not_be_read_is_eacces() {
    let etcd = Guarded::start();
    let mount = etcd.mount(&["--serve-stale"]);
    for script in ["ls zone2", "cat zone2/tablets/zone2-0000000200/Tablet", "echo x > zone2/x", "stat zone2/tablets"] {
        says(&mount, script, "Permission denied");
    }
    assert!(
        reason(&mount).contains("permission denied") && reason(&mount).contains("may not be read"),
        "{}",
        reason(&mount)
    );
    wait_for_state(&mount, "zone2", "denied");
    assert!(
        mount.status()["cells"]["zone2"]["error"].as_str().unwrap_or_default().contains("denied"),
        "{}",
        mount.status()
    );
    // The others go on, and the right that is given makes it come back.
    assert!(!mount.read(&format!("{TABLET}.txt")).is_empty());
    etcd.ctl(&["role", "grant-permission", "topo", "--prefix=true", "read", "/t/zone2"]);
    wait_for_state(&mount, "zone2", "live");
    mount.sh("ls zone2/tablets; cat zone2/tablets/*/Tablet.txt");
}

#[test]
fn rights_that_are_taken_away_delete_nothing() {
    let etcd = Guarded::start();
    let mount = etcd.mount(&["--serve-stale"]);
    mount.sh("ls -R zone1 > /dev/null");
    let mut command = Command::new("inotifywait");
    command
        .args(["-m", "-r", "-q", "--format", "%e %f", "-e", "delete", "-e", "modify", "-e", "create"])
        .arg(mount.root());
    let heard = lines(command);
    eventually("it hears", || {
        mount.sh("echo x >> global/metadata/owner");
        heard.try_next()
    });
    etcd.ctl(&["role", "revoke-permission", "topo", "--prefix=true", "/t/zone1"]);
    wait_for_state(&mount, "zone1", "denied");
    eventually("the kernel lets go", || (!mount.bash("ls zone1").status.success()).then_some(()));
    for script in [&format!("cat {TABLET}"), "ls zone1", "ls zone1/tablets", "cat zone1/SrvVSchema.txt"] {
        says(&mount, script, "Permission denied");
    }
    assert_eq!(mount.status()["cells"]["global"]["state"], "live");
    etcd.ctl(&["role", "grant-permission", "topo", "--prefix=true", "read", "/t/zone1"]);
    mount.sh("echo resync zone1 > .topofs/control");
    wait_for_state(&mount, "zone1", "live");
    assert!(!mount.read(&format!("{TABLET}.txt")).is_empty());
    // The whole mount, too.
    etcd.ctl(&["role", "revoke-permission", "topo", "--prefix=true", "/t/global"]);
    wait_for_state(&mount, "global", "denied");
    says(&mount, &format!("cat {OWNER}"), "Permission denied");
    etcd.ctl(&["role", "grant-permission", "topo", "--prefix=true", "readwrite", "/t/global"]);
    wait_for_state(&mount, "global", "live");
    mount.sh("echo last > global/metadata/last; cat global/metadata/last");
    let mut all = Vec::new();
    eventually("the last event comes", || {
        all.extend(std::iter::from_fn(|| heard.try_next()));
        all.iter().any(|line| line.ends_with(" last")).then_some(())
    });
    assert!(all.iter().all(|line| !line.contains("DELETE")), "{all:?}");
}

#[test]
fn what_etcd_has_refused_is_not_called_uncertain() {
    let etcd = Guarded::start();
    let mount = etcd.mount(&[]);
    // Written at once, without asking for the record first.
    let refused = mount.bash("echo 'routing_rules {}' > ../s.txt; cp ../s.txt zone1/SrvVSchema.txt");
    assert!(text(&refused).contains("Permission denied"), "{}", text(&refused));
    assert!(
        reason(&mount).contains("permission denied") && !reason(&mount).contains("carried out"),
        "{}",
        reason(&mount)
    );
    says(&mount, "flock -n zone1/tablets/zone1-0000000100/.lock true", "Permission denied");
    assert!(!reason(&mount).contains("carried out"), "{}", reason(&mount));
    says(&mount, "rm zone1/SrvVSchema", "Permission denied");
    assert!(!reason(&mount).contains("carried out"), "{}", reason(&mount));
    drop(mount);
    // A server that takes less than we think.
    let small = Etcd::with(vec!["--max-request-bytes=65536".to_owned()]);
    let mount = Mount::etcd(&small.endpoint(), "/t", &[]);
    mount.sh("mkdir global/metadata; echo x > global/metadata/small");
    says(&mount, "head -c 100000 /dev/zero > ../large; cp ../large global/metadata/large", "File too large");
    assert!(reason(&mount).contains("too large") && !reason(&mount).contains("carried out"), "{}", reason(&mount));
    // So large that its transport does not even take it.
    says(&mount, "head -c 1400000 /dev/zero > ../large; cp ../large global/metadata/large", "File too large");
    assert!(!reason(&mount).contains("carried out"), "{}", reason(&mount));
    assert_eq!(small.get("/t/global/metadata/large"), None);
}

#[test]
fn a_server_that_takes_more_is_given_more() {
    let etcd = Etcd::with(vec!["--max-request-bytes=10485760".to_owned()]);
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--topo-etcd-max-request-bytes=10485760"]);
    mount.sh("mkdir global/metadata; head -c 9000000 /dev/urandom > ../large; \
         cp ../large global/metadata/large; cmp ../large global/metadata/large");
    says(&mount, "head -c 11000000 /dev/zero > ../larger; cp ../larger global/metadata/large", "File too large");
    let other = Mount::etcd(&etcd.endpoint(), "/t", &[]);
    other.sh("test $(stat -c %s global/metadata/large) = 9000000");
    says(&other, "head -c 1600000 /dev/zero > ../larger; cp ../larger global/metadata/large", "File too large");
}

#[test]
fn an_etcd_without_space_says_so_and_lets_things_be_removed() {
    let etcd = Etcd::with(vec!["--quota-backend-bytes=2097152".to_owned()]);
    load(&*etcd_cell(&etcd.endpoint(), "/t"), &Cluster { root: "/t".to_owned(), ..Cluster::demo(&etcd.endpoint()) });
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &[]);
    let lock = "/t/global/keyspaces/customer/locks/1";
    etcd.put(lock, b"{\"Action\":\"copied\"}");
    let full =
        mount.bash("for i in $(seq 60); do head -c 100000 /dev/urandom > global/metadata/fill$i || exit 1; done");
    assert!(text(&full).contains("No space left on device"), "{}", text(&full));
    assert!(reason(&mount).contains("space exceeded") && !reason(&mount).contains("carried out"), "{}", reason(&mount));
    says(&mount, "sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt", "No space left on device");
    mount.sh("rm global/keyspaces/commerce/Keyspace; test ! -e global/keyspaces/commerce/Keyspace");
    assert_eq!(etcd.get("/t/global/keyspaces/commerce/Keyspace"), None);
    // But not while somebody holds the lock.
    says(&mount, "rm global/keyspaces/customer/Keyspace", "Device or resource busy");
    assert!(etcd.get("/t/global/keyspaces/customer/Keyspace").is_some());
    // As docs/troubleshooting.md says.
    mount.sh("rm global/metadata/fill*");
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    mount.sh("echo room > global/metadata/owner");
}

#[test]
fn what_has_used_up_the_room_is_not_taken_for_refused() {
    // etcd carries out the writes that pass its limit together, and answers that it has no room.
    let etcd = Etcd::with(vec!["--quota-backend-bytes=2097152".to_owned()]);
    let all = etcd_cell(&etcd.endpoint(), "/t");
    let value = vec![b'x'; 10_000];
    let outcomes: Vec<(String, Result<(), String>)> = runtime().block_on(async {
        let writers = (0..64).map(|writer| {
            let (all, value) = (all.clone(), value.clone());
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                // Until there is no room; it is counted several times a second.
                while outcomes.last().is_none_or(|(_, outcome): &(_, Result<(), String>)| outcome.is_ok()) {
                    let key = format!("k{writer}-{}", outcomes.len());
                    let guard = topofs::backend::Guard::Absent;
                    let outcome = all.apply(&[topofs::backend::Change { guard, ..put(&key, value.clone()) }]).await;
                    outcomes.push((key, outcome.map(drop).map_err(|error| error.message)));
                }
                outcomes
            })
        });
        let mut outcomes = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            outcomes.extend(writer.await.unwrap());
        }
        outcomes
    });
    let refused = outcomes.iter().filter(|(_, outcome)| outcome.is_err());
    let outcomes: Vec<_> = refused.cloned().chain(outcomes.iter().take(20).cloned()).collect();
    for (key, outcome) in outcomes {
        let is_stored = etcd.get(&format!("/t/{key}")).is_some();
        match outcome {
            Ok(()) => assert!(is_stored, "{key} is lost"),
            Err(error) => assert_eq!(is_stored, error.contains("may have been carried out"), "{key}: {error}"),
        }
    }
}

#[test]
fn a_password_that_has_changed_is_read_again() {
    let etcd = Guarded::start();
    let mount = etcd.mount(&["--stale-after=3s"]);
    let change = |password: &str| {
        bash_in(
            etcd.0.dir(),
            &format!(
                "ETCDCTL_API=3 etcdctl --endpoints {} --user root:s3cret \
                 user passwd topo --interactive=false <<< {password}",
                etcd.0.endpoint()
            ),
        )
    };
    // The file first, and nobody notices.
    etcd.password("sesame");
    assert!(change("sesame").status.success());
    eventually("it is read again", || {
        mount.sh("echo x >> global/metadata/owner");
        assert_ne!(state(&mount, "global"), "denied");
        mount.log().contains("the password has changed").then_some(())
    });
    wait_for_state(&mount, "global", "live");
    // The service first: refused, until the file has it.
    assert!(change("third").status.success());
    wait_for_state(&mount, "global", "denied");
    says(&mount, &format!("cat {OWNER}"), "Permission denied");
    etcd.password("third");
    signal(mount.pid(), nix::sys::signal::Signal::SIGHUP);
    wait_for_state(&mount, "global", "live");
    mount.sh("echo again > global/metadata/owner");
    let everything = format!("{}{}{}", mount.read(".topofs/config"), mount.read(".topofs/status"), mount.log());
    assert!(!["first", "sesame", "third"].iter().any(|secret| everything.contains(secret)), "{everything}");
}

#[test]
fn tokens_that_are_older_than_a_change_of_rights_are_replaced() {
    let keys = tempfile::tempdir().unwrap();
    let made = bash_in(keys.path(), "openssl genrsa -out key 2048 && openssl rsa -in key -pubout -out pub");
    assert!(made.status.success(), "{}", text(&made));
    let (key, public) = (keys.path().join("key"), keys.path().join("pub"));
    let tokens = format!("jwt,pub-key={},priv-key={},sign-method=RS256,ttl=10m", public.display(), key.display());
    let etcd = Guarded::with(vec![format!("--auth-token={tokens}")]);
    let mount = etcd.mount(&[]);
    for zone in ["zone2", "zone3"] {
        mount.sh("echo before > global/metadata/owner");
        etcd.ctl(&["role", "grant-permission", "topo", "--prefix=true", "read", &format!("/t/{zone}")]);
        mount.sh("echo after > global/metadata/owner; cat global/metadata/owner");
    }
    wait_for_state(&mount, "global", "live");
}

#[test]
fn certificates_that_have_changed_are_read_again() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name).display().to_string();
    certificates(files.path());
    let (mut etcd, url) = etcd_with_certificates(files.path());
    let tls = [
        format!("--topo-etcd-tls-cert={}", file("cert.pem")),
        format!("--topo-etcd-tls-key={}", file("key.pem")),
        format!("--topo-etcd-tls-ca={}", file("ca.pem")),
    ];
    let flags = [&tls.each_ref().map(String::as_str)[..], &["--retry=20s"]].concat();
    let mount = Mount::etcd(&url, "/t", &flags);
    mount.sh("mkdir global/metadata; echo before > global/metadata/owner");
    // Other authorities, for both sides.
    etcd.kill();
    std::fs::remove_file(file("trust.p12")).unwrap();
    certificates(files.path());
    etcd.launch();
    eventually("it is there again", || mount.bash("echo after > global/metadata/owner").status.success().then_some(()));
}

#[test]
fn a_lock_of_etcd_without_a_lease_is_shown_waited_for_and_broken() {
    let etcd = Etcd::start();
    load(&*etcd_cell(&etcd.endpoint(), "/t"), &Cluster { root: "/t".to_owned(), ..Cluster::demo(&etcd.endpoint()) });
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &[]);
    // As a copy of a topology has them, whatever they are called; and a candidate of an election.
    for (dir, name) in [
        ("global/keyspaces/commerce", "7587899169048611629"),
        ("global/keyspaces/customer/shards/-80", "left"),
        ("global/elections/vtctld", "7587899169048611630"),
    ] {
        etcd.put(&format!("/t/{dir}/locks/{name}"), br#"{"Action":"copied"}"#);
        eventually("it is shown", || mount.read(&format!("{dir}/.lock")).contains("copied").then_some(()));
        let reports = mount.read(".topofs/locks");
        assert!(reports.contains(&format!("{dir}/.lock")) && reports.contains("\"time_left\":null"), "{reports}");
        assert!(!mount.path(&format!("{dir}/locks")).exists(), "a lock is no record");
        assert_eq!(mount.bash(&format!("flock -n {dir}/.lock true")).status.code(), Some(1));
        let waiter = mount.path(&format!("{dir}/.lock"));
        let mut waiting = Command::new("timeout").arg("30").arg("flock").arg(&waiter).arg("true").spawn().unwrap();
        eventually("it is waited for", || {
            let lines = mount.read(".topofs/locks");
            let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            lines.into_iter().find(|line| line["queue"].as_array().is_some_and(|queue| queue.len() == 1))
        });
        let unlocked = mount.bash(&format!("{} unlock --force --yes {dir}", crate::common::mount::TOPOFS));
        assert!(unlocked.status.success(), "{}", text(&unlocked));
        assert!(waiting.wait().unwrap().success());
        assert_eq!(etcd.get(&format!("/t/{dir}/locks/{name}")), None);
    }
    // Saves that need the lock say who has it.
    etcd.put("/t/global/keyspaces/commerce/locks/1", br#"{"Action":"copied"}"#);
    eventually("it is shown", || mount.read("global/keyspaces/commerce/.lock").contains("copied").then_some(()));
    says(&mount, "sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt", "Device or resource busy");
    assert!(reason(&mount).contains("copied"), "{}", reason(&mount));
    // What only looks like one is a record.
    for key in ["global/keyspaces/locks/Keyspace", "global/metadata/locks/5"] {
        etcd.put(&format!("/t/{key}"), b"\x08\x01");
        eventually("it is a record", || mount.path(key).is_file().then_some(()));
    }
}

#[test]
fn an_equal_record_of_somebody_else_is_not_taken_for_ours() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(etcd.port);
    let ours = cell(Implementation::Etcd2, &format!("{},{}", proxy.endpoint(), etcd.endpoint()), "/t");
    runtime().block_on(ours.apply(&[put("before", "x")])).unwrap();
    // Nobody knows what has become of the first attempt; before the second, somebody else has made theirs.
    proxy.silence(true);
    let creating = {
        let ours = ours.clone();
        runtime().spawn(async move {
            let change = topofs::backend::Change { guard: topofs::backend::Guard::Absent, ..put("new", "equal") };
            ours.apply(&[change]).await
        })
    };
    etcd.put("/t/new", b"equal");
    let error = runtime().block_on(creating).unwrap().unwrap_err();
    assert_eq!(error.failure, topofs::backend::Failure::NodeExists);
    // Nobody can know.
    assert!(error.message.contains("may have been carried out"), "{error}");
}

#[test]
fn what_happened_during_an_absence_is_heard() {
    let etcd = Etcd::start();
    load(&*etcd_cell(&etcd.endpoint(), "/t"), &Cluster { root: "/t".to_owned(), ..Cluster::demo(&etcd.endpoint()) });
    etcd.put("/t/global/metadata/goes", b"x");
    let proxy = Proxy::start(etcd.port);
    let mount = Mount::etcd(&proxy.endpoint(), "/t", &["--stale-after=30s"]);
    let mut command = Command::new("inotifywait");
    let dir = mount.path("global/metadata");
    command.args(["-m", "-q", "--format", "%e %f", "-e", "delete", "-e", "modify", "-e", "create"]).arg(dir);
    let heard = lines(command);
    eventually("it hears", || {
        etcd.put("/t/global/metadata/first", b"x");
        heard.try_next()
    });
    proxy.cut(true);
    etcd.put("/t/global/metadata/owner", b"changed");
    etcd.put("/t/global/metadata/comes", b"x");
    etcd.ctl(&["del", "/t/global/metadata/goes"]);
    proxy.cut(false);
    let mut all = Vec::new();
    eventually("all of it is heard", || {
        all.extend(std::iter::from_fn(|| heard.try_next()));
        let has = |event: &str| all.iter().any(|line| *line == event);
        (has("MODIFY owner") && has("CREATE comes") && has("DELETE goes")).then_some(())
    });
}

#[test]
fn a_cell_of_zookeeper_that_may_not_be_read_is_eacces() {
    let server = Zookeeper::start();
    let dir = tempfile::tempdir().unwrap();
    load(
        &*cell(Implementation::Zk2, &server.endpoint(), "/t"),
        &Cluster { root: "/t".to_owned(), ..Cluster::demo(&server.endpoint()) },
    );
    let cli = |script: &str| {
        std::fs::write(dir.path().join("script"), format!("addauth digest vitess:s3cret\n{script}\nquit\n")).unwrap();
        bash_in(dir.path(), &format!("/usr/share/zookeeper/bin/zkCli.sh -server {} < script", server.endpoint()));
    };
    cli("setAcl /t/zone1 auth::cdrwa");
    let mount = Mount::of("zk2", &server.endpoint(), "/t", &[]);
    says(&mount, "ls zone1", "Permission denied");
    says(&mount, &format!("cat {TABLET}"), "Permission denied");
    wait_for_state(&mount, "zone1", "denied");
    mount.sh("ls zone2/tablets; cat global/metadata/owner");
    cli("setAcl /t/zone1 world:anyone:cdrwa");
    mount.sh("echo resync zone1 > .topofs/control");
    wait_for_state(&mount, "zone1", "live");
    assert!(!mount.read(&format!("{TABLET}.txt")).is_empty());
}

#[test]
fn a_cell_of_consul_that_may_not_be_read_is_eacces() {
    let config = r#"acl { enabled = true default_policy = "deny" tokens { master = "b1gs3cret" } }"#;
    let server = Consul::with(vec!["-hcl".to_owned(), config.to_owned()]);
    let tokens = |zone1: &str| {
        let path = server.dir().join("tokens");
        let file = format!(r#"{{"global": {{"acl_token": "b1gs3cret"}}, "zone1": {{"acl_token": "{zone1}"}}}}"#);
        std::fs::write(&path, file).unwrap();
        format!("--consul-auth-static-file={}", path.display())
    };
    eventually("ACLs are there", || {
        let header = ["-H", "X-Consul-Token: b1gs3cret", "-X", "PUT", "-d", "team"];
        server.curl(&header, "kv/t/global/metadata/owner").filter(|answer| answer.trim() == "true")
    });
    let mount = Mount::of("consul", &server.endpoint(), "/t", &[&tokens("n0ne")]);
    let record = format!("server_address: \"{}\" root: \"t/zone1\"", server.endpoint());
    mount.sh(&format!("mkdir -p global/cells/zone1; echo '{record}' > global/cells/zone1/CellInfo.txt"));
    says(&mount, "ls zone1", "Permission denied");
    says(&mount, "cat zone1/SrvVSchema", "Permission denied");
    wait_for_state(&mount, "zone1", "denied");
    mount.sh("cat global/metadata/owner");
}
