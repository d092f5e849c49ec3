//! A mount over two services: the primary decides what callers see, and the secondary follows or is counted as drift.

use std::time::Duration;

use serde_json::Value;
use topofs::backend::{Implementation, Location};
use zookeeper_client::{Acl, AuthId, Permission};

use super::rig::OWNER;
use crate::common::mount::{Mount, write_knowingly};
use crate::common::proxy::Proxy;
use crate::common::world::{Service, runtime};
use crate::common::{etcd, eventually, signal, text, zookeeper};

/// Calls that end soon.
const QUICK: &str = "--remote-operation-timeout=2s";

/// A sample cluster on etcd and the same on ZooKeeper, both behind proxies.
pub struct Pair {
    pub primary: Service,
    pub secondary: Service,
    pub to_primary: Proxy,
    pub to_secondary: Proxy,
}

impl Pair {
    pub fn new() -> Self {
        let (etcd, zookeeper) = (etcd::shared(), zookeeper::shared());
        let (to_primary, to_secondary) = (Proxy::plain(etcd.port), Proxy::plain(zookeeper.port));
        let primary = Service::at(Implementation::Etcd2, etcd.endpoint(), &to_primary.endpoint());
        let secondary = Service::at(Implementation::Zk2, zookeeper.endpoint(), &to_secondary.endpoint());
        Self { primary, secondary, to_primary, to_secondary }
    }

    pub fn mount(&self, flags: &[&str]) -> Mount {
        let primary = self.primary.place(&self.to_primary.endpoint());
        let secondary = self.secondary.place(&self.to_secondary.endpoint());
        mount(&primary, &secondary, flags)
    }

    /// The values of a record at both.
    fn values(&self, key: &str) -> [Option<Vec<u8>>; 2] {
        [self.primary.get(key), self.secondary.get(key)]
    }

    /// Waits until a record has this value at both.
    fn both_have(&self, key: &str, value: &[u8]) {
        let wanted = Some(value.to_vec());
        eventually(&format!("{key} is the same at both"), || {
            (self.values(key) == [wanted.clone(), wanted.clone()]).then_some(())
        });
    }

    /// What differs, but for the records that differ on purpose.
    pub fn differing(&self) -> Vec<String> {
        let all: std::collections::BTreeSet<String> = self
            .primary
            .keys()
            .into_iter()
            .chain(self.secondary.keys())
            .filter(|key| !key.ends_with("/CellInfo"))
            .collect();
        all.into_iter()
            .filter(|key| {
                let [one, other] = self.values(key);
                one != other
            })
            .collect()
    }
}

pub fn mount(primary: &str, secondary: &str, flags: &[&str]) -> Mount {
    let places = ["mount", "--topo-implementation=tee", "--tee-primary", primary, "--tee-secondary", secondary];
    Mount::new(&[&places, flags].concat())
}

fn drift(mount: &Mount, cell: &str) -> Value {
    mount.status()["cells"][cell]["drift"].clone()
}

/// Waits until so many records are counted, and returns the status.
pub fn wait_for_drift(mount: &Mount, cell: &str, count: u64) -> Value {
    let mut last = Value::Null;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("the drift is counted", || {
            last = drift(mount, cell);
            (last["count"] == count && (count > 0 || last["complete"] == true)).then_some(())
        })
    }));
    assert!(found.is_ok(), "{cell}: {count} wanted, {last:#}\n{:#}", mount.status()["cells"][cell]["secondary"]);
    last
}

fn repair(mount: &Mount, cell: &str) {
    mount.sh(&format!("echo 'repair {cell}' > .topofs/control"));
    wait_for_drift(mount, if cell.is_empty() { "global" } else { cell }, 0);
}

/// Saves of all kinds: with and without a lock of the moment, in both cells, new records and removals.
const SAVES: [&str; 5] = [
    "echo new > global/metadata/owner",
    "echo more > global/metadata/more",
    "sed -i s/NORMAL/SNAPSHOT/ global/keyspaces/archive/Keyspace.txt; printf 'keyspace_type: SNAPSHOT\n' > \
     global/keyspaces/archive/Keyspace.txt",
    "rm global/keyspaces/customer/VSchema",
    "printf 'hostname: \"elsewhere\"\n' > zone1/tablets/zone1-0000000100/Tablet.txt",
];

fn save_all(mount: &Mount) {
    for script in SAVES {
        mount.sh(&format!("timeout 25 bash -c '{}'", script.replace('\'', "'\\''")));
    }
}

#[test]
fn all_that_is_saved_is_at_both_and_nothing_differs() {
    let pair = Pair::new();
    let mount = pair.mount(&[]);
    mount.sh("ls zone1/tablets");
    for cell in ["global", "zone1"] {
        let drift = wait_for_drift(&mount, cell, 0);
        assert_eq!((&drift["example"], &drift["failing_since"]), (&Value::Null, &Value::Null), "{drift}");
    }
    save_all(&mount);
    assert_eq!(pair.differing(), Vec::<String>::new());
    assert_eq!(pair.values(OWNER), [Some(b"new\n".to_vec()), Some(b"new\n".to_vec())]);
    assert_eq!(pair.values("global/keyspaces/customer/VSchema"), [None, None]);
    let elsewhere = pair.secondary.get("zone1/tablets/zone1-0000000100/Tablet").unwrap();
    assert!(String::from_utf8_lossy(&elsewhere).contains("elsewhere"));
    wait_for_drift(&mount, "zone1", 0);
    // Both are shown, wherever the mount says what it is.
    let status = mount.status()["cells"]["zone1"].clone();
    assert_eq!((&status["implementation"], &status["secondary"]["implementation"]), (&"etcd2".into(), &"zk2".into()));
    assert_eq!(status["secondary"]["root"], format!("{}/zone1", pair.secondary.root));
    let config: Value = serde_json::from_str(&mount.read(".topofs/config")).unwrap();
    let places = [&config["tee-primary"], &config["tee-secondary"]];
    let places = places.map(|place| place.as_str().unwrap().parse::<Location>().unwrap().implementation);
    assert_eq!(places, [Implementation::Etcd2, Implementation::Zk2]);
    assert_eq!(config["topo-implementation"], "tee");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(mount.root().to_str().unwrap())).unwrap();
    let source = format!(
        "tee:{};{} ",
        pair.primary.place(&pair.to_primary.endpoint()),
        pair.secondary.place(&pair.to_secondary.endpoint())
    );
    assert!(line.starts_with(&source), "{line}");
}

/// Callers see nothing of a secondary that fails; what it has not got is counted, and a repair brings it there.
fn fails_and_comes_back(fail: impl Fn(&Pair), come_back: impl Fn(&Pair)) {
    let pair = Pair::new();
    let mount = pair.mount(&[QUICK]);
    mount.sh("ls zone1/tablets");
    wait_for_drift(&mount, "zone1", 0);
    fail(&pair);
    save_all(&mount);
    assert_eq!(mount.read(OWNER), "new\n");
    assert_eq!(mount.errors(), Vec::<Value>::new(), "nobody was refused anything");
    assert_eq!(pair.primary.get(OWNER).unwrap(), b"new\n");
    assert_eq!(pair.secondary.get("global/metadata/more"), None);
    let found = wait_for_drift(&mount, "global", 4);
    assert!(found["example"].as_str().unwrap().contains("secondary"), "{found:#}");
    assert!(found["failing"].is_string() && found["since"].is_string(), "{found:#}");
    wait_for_drift(&mount, "zone1", 1);
    // A repair says what it cannot do.
    let refused = mount.bash("echo repair > .topofs/control");
    assert!(!refused.status.success());
    let reason = mount.errors().last().unwrap()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("secondary") && reason.contains("zk2"), "{reason}");
    come_back(&pair);
    eventually("the secondary answers", || {
        (mount.status()["cells"]["global"]["secondary"]["state"] == "live").then_some(())
    });
    wait_for_drift(&mount, "global", 4);
    repair(&mount, "");
    wait_for_drift(&mount, "zone1", 0);
    assert_eq!(pair.differing(), Vec::<String>::new());
    // The next save goes to both again.
    mount.sh("echo newer > global/metadata/owner");
    pair.both_have(OWNER, b"newer\n");
    eventually("it is well again", || drift(&mount, "global")["failing"].is_null().then_some(()));
}

#[test]
fn a_secondary_that_refuses_connections_stops_nobody() {
    fails_and_comes_back(|pair| pair.to_secondary.cut(true), |pair| pair.to_secondary.cut(false));
}

#[test]
fn a_silent_secondary_stops_nobody() {
    fails_and_comes_back(
        |pair| pair.to_secondary.silence(true),
        |pair| {
            // What was held back on the way never arrives.
            pair.to_secondary.cut(false);
            pair.to_secondary.silence(false);
        },
    );
}

#[test]
fn a_secondary_that_may_only_be_read_stops_nobody() {
    let pair = Pair::new();
    let mount = pair.mount(&[]);
    wait_for_drift(&mount, "global", 0);
    let allow = |rights: Permission| {
        runtime().block_on(async {
            let client = zookeeper::shared().client().await;
            client.auth("digest", b"boss:s3cret").await.unwrap();
            let acls = [Acl::new(Permission::ALL, AuthId::new("auth", "")), Acl::new(rights, AuthId::anyone())];
            for node in ["metadata", "metadata/owner"] {
                client.set_acl(&format!("{}/global/{node}", pair.secondary.root), &acls, None).await.unwrap();
            }
        });
    };
    allow(Permission::READ);
    mount.sh("echo new > global/metadata/owner; echo more > global/metadata/more");
    let found = wait_for_drift(&mount, "global", 2);
    assert!(found["example"].as_str().unwrap().to_lowercase().contains("auth"), "the cause is told: {found:#}");
    assert_eq!(mount.errors(), Vec::<Value>::new());
    assert!(!mount.bash("echo repair global > .topofs/control").status.success());
    allow(Permission::ALL);
    repair(&mount, "global");
    assert_eq!(pair.differing(), Vec::<String>::new());
}

#[test]
fn a_failing_primary_fails_and_nothing_reaches_the_secondary() {
    let pair = Pair::new();
    let mount = pair.mount(&[QUICK]);
    mount.sh("ls zone1/tablets");
    // A refusal is the primary's.
    let before = pair.secondary.get(OWNER);
    assert!(!mount.bash("set -C; echo x > global/metadata/owner").status.success());
    pair.to_primary.cut(true);
    for script in SAVES {
        assert!(
            !mount.bash(&format!("timeout 25 bash -c \"{}\"", script.replace('"', "\\\""))).status.success(),
            "{script}"
        );
    }
    assert!(
        mount.errors().iter().all(|error| error["reason"].as_str().unwrap().contains("etcd2:")),
        "{:?}",
        mount.errors()
    );
    assert_eq!(pair.secondary.get(OWNER), before);
    pair.to_primary.cut(false);
    eventually("the primary is back", || mount.bash("ls global/metadata").status.success().then_some(()));
    wait_for_drift(&mount, "global", 0);
    assert_eq!(pair.differing(), Vec::<String>::new());
}

#[test]
fn a_change_whose_answer_was_lost_reaches_the_secondary_if_it_was_carried_out() {
    for deliver in [true, false] {
        let pair = Pair::new();
        let mount = pair.mount(&[QUICK]);
        wait_for_drift(&mount, "global", 0);
        let value = format!("marked-{deliver}");
        pair.to_primary.lose_request(&value, deliver, || {});
        let _ = mount.bash(&format!("timeout 25 bash -c 'echo {value} > global/metadata/owner'"));
        eventually("the request was lost", || pair.to_primary.has_lost().then_some(()));
        eventually("both have the same", || pair.differing().is_empty().then_some(()));
        eventually("the mount knows", || (drift(&mount, "global")["count"] == 0).then_some(()));
    }
}

#[test]
fn a_daemon_that_was_killed_between_the_two_writes_leaves_drift_that_the_next_one_sees() {
    let pair = Pair::new();
    let first = pair.mount(&[]);
    wait_for_drift(&first, "global", 0);
    let pid = first.pid();
    pair.to_secondary.lose_request("half-way", false, move || signal(pid, nix::sys::signal::Signal::SIGKILL));
    let _ = first.bash("timeout 25 bash -c 'echo half-way > global/metadata/owner'");
    assert!(pair.to_secondary.has_lost());
    drop(first);
    assert_eq!(pair.differing(), [OWNER]);
    let second = pair.mount(&[]);
    let found = wait_for_drift(&second, "global", 1);
    assert_eq!((&found["different"], &found["failing"]), (&1.into(), &Value::Null));
    assert_eq!(found["example"], "metadata/owner: different at the secondary");
    repair(&second, "global");
    pair.both_have(OWNER, b"half-way\n");
}

#[test]
fn changes_by_others_are_drift_until_they_are_repaired() {
    let pair = Pair::new();
    let mount = pair.mount(&[]);
    wait_for_drift(&mount, "global", 0);
    pair.primary.put(OWNER, b"by somebody");
    pair.primary.put("global/metadata/only-here", b"x");
    pair.secondary.put("global/metadata/only-there", b"y");
    let found = wait_for_drift(&mount, "global", 3);
    assert_eq!([&found["missing"], &found["different"], &found["left_over"]], [1, 1, 1].map(Value::from).each_ref());
    assert!(found["example"].as_str().unwrap().starts_with("metadata/"), "{found:#}");
    // It is not carried over by itself, but a save of the same record is one.
    write_knowingly(mount.path(OWNER), "by us");
    pair.both_have(OWNER, b"by us");
    wait_for_drift(&mount, "global", 2);
    // Another tool may repair it, too.
    pair.secondary.delete("global/metadata/only-there");
    wait_for_drift(&mount, "global", 1);
    repair(&mount, "global");
    assert_eq!(pair.differing(), Vec::<String>::new());
}

#[test]
fn mounts_that_write_the_same_records_leave_the_same_at_both() {
    let pair = Pair::new();
    let mounts = [pair.mount(&[]), pair.mount(&[])];
    std::thread::scope(|scope| {
        for (number, mount) in mounts.iter().enumerate() {
            // A save may meet the other's, and is then refused.
            let script = format!(
                "for i in $(seq 15); do for f in owner other; do (cat global/metadata/$f; echo {number}-$i > \
                 global/metadata/$f) > /dev/null 2>&1 || true; done; rm -f global/metadata/other 2> /dev/null || true; \
                 done"
            );
            scope.spawn(move || mount.sh(&script));
        }
        // A repair at the same time does no harm.
        scope.spawn(|| {
            for _ in 0..3 {
                let _ = mounts[0].bash("echo repair global > .topofs/control");
            }
        });
    });
    eventually("both have the same", || pair.differing().is_empty().then_some(()));
    for mount in &mounts {
        wait_for_drift(mount, "global", 0);
    }
}

#[test]
fn a_secondary_that_is_away_at_the_start_is_used_when_it_comes() {
    let pair = Pair::new();
    pair.to_secondary.cut(true);
    let mount = pair.mount(&[QUICK]);
    mount.sh("ls zone1/tablets");
    save_all(&mount);
    assert_eq!(drift(&mount, "zone1")["complete"], false);
    assert!(drift(&mount, "zone1")["count"].as_u64().unwrap() >= 1);
    assert_eq!(mount.status()["cells"]["zone1"]["secondary"]["state"], "unknown");
    pair.to_secondary.cut(false);
    let is_live = || mount.status()["cells"]["zone1"]["secondary"]["state"] == "live";
    eventually("the secondary has said where the cell is", || is_live().then_some(()));
    wait_for_drift(&mount, "global", 4);
    wait_for_drift(&mount, "zone1", 1);
    repair(&mount, "");
    wait_for_drift(&mount, "zone1", 0);
    assert_eq!(pair.differing(), Vec::<String>::new());
}

#[test]
fn a_cell_has_two_places_when_both_records_say_so() {
    let pair = Pair::new();
    let mount = pair.mount(&[]);
    let (server, root) = (etcd::shared().endpoint(), &pair.primary.root);
    mount.sh(&format!(
        "mkdir -p global/cells/zone9; printf 'server_address: \"{server}\"\nroot: \"{root}/zone9\"\n' > \
         global/cells/zone9/CellInfo.txt"
    ));
    // A record that says where a cell is is not true elsewhere.
    assert_eq!(pair.secondary.get("global/cells/zone9/CellInfo"), None);
    let found = wait_for_drift(&mount, "global", 1);
    let example = found["example"].as_str().unwrap();
    assert!(example.starts_with("cells/zone9/CellInfo: missing at the secondary"), "{example}");
    assert!(!mount.bash("echo repair > .topofs/control").status.success());
    let reason = mount.errors().last().unwrap()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("add the cell there"), "{reason}");
    // All that is stored in the cell differs.
    mount.sh(
        "mkdir -p zone9/keyspaces/ks; printf '' > zone9/keyspaces/ks/SrvKeyspace; flock zone9/keyspaces/ks/.lock true",
    );
    let found = wait_for_drift(&mount, "zone9", 1);
    let status = mount.status()["cells"]["zone9"]["secondary"].clone();
    assert_eq!(status["state"], "missing", "{found:#}");
    assert!(status["error"].as_str().unwrap().contains("cells/zone9/CellInfo"), "{status}");
    // The cell is added at the secondary, too.
    let info = super::cells::cell_info(&zookeeper::shared().endpoint(), &format!("{}/zone9", pair.secondary.root));
    pair.secondary.put("global/cells/zone9/CellInfo", &info);
    // The first who sees it is a writer, whose session thread connects it.
    eventually("the repair finds it", || {
        mount.bash("stat -f . && echo repair global > .topofs/control").status.success().then_some(())
    });
    assert_eq!(mount.status()["panics"]["count"], 0, "{:#}", mount.status()["panics"]);
    wait_for_drift(&mount, "global", 0);
    let found = wait_for_drift(&mount, "zone9", 1);
    assert_eq!(found["missing"], 1);
    repair(&mount, "zone9");
    mount.sh("printf 'partitions: {}\n' > zone9/keyspaces/ks/SrvKeyspace.txt");
    assert_eq!(pair.differing(), Vec::<String>::new());
    assert!(pair.secondary.get("zone9/keyspaces/ks/SrvKeyspace").is_some_and(|value| !value.is_empty()));
    // And moves there.
    let info = super::cells::cell_info(&zookeeper::shared().endpoint(), &format!("{}/moved", pair.secondary.root));
    pair.secondary.put("global/cells/zone9/CellInfo", &info);
    wait_for_drift(&mount, "zone9", 1);
    repair(&mount, "zone9");
    assert!(pair.secondary.get("moved/keyspaces/ks/SrvKeyspace").is_some());
    // It goes at both.
    mount.sh("rm -r zone9/keyspaces; rm global/cells/zone9/CellInfo");
    let found = wait_for_drift(&mount, "global", 1);
    assert_eq!(found["left_over"], 1, "the record at the secondary is somebody else's decision");
    pair.secondary.delete("global/cells/zone9/CellInfo");
    wait_for_drift(&mount, "global", 0);
}

#[test]
fn a_mount_of_one_service_has_nothing_to_repair() {
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    for order in ["repair", "repair zone1"] {
        assert!(!mount.bash(&format!("echo {order} > .topofs/control")).status.success());
    }
    assert!(mount.status()["cells"]["global"]["drift"].is_null());
}

#[test]
fn wrong_places_are_refused_with_words() {
    let refused = |flags: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("timeout");
        command
            .args(["--kill-after=5", "30", crate::common::mount::TOPOFS, "mount"])
            .args(flags)
            .arg("--foreground")
            .arg(dir.path());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        text(&output)
    };
    let (one, other) = ("--tee-primary=etcd2:localhost:1/a", "--tee-secondary=zk2:localhost:1/b");
    let tee = "--topo-implementation=tee";
    for (flags, words) in [
        (&[tee][..], "needs --tee-primary and --tee-secondary"),
        (&[tee, one], "needs --tee-primary and --tee-secondary"),
        (&[tee, one, other, "--topo-global-root=/x"], "leave out --topo-global-server-address and --topo-global-root"),
        (&[tee, one, other, "--topo-global-server-address=a:1"], "leave out"),
        (&[tee, one, "--tee-secondary=etcd2:LOCALHOST:1//a/"], "are the same place"),
        (&[tee, one, "--tee-secondary=zk2:localhost:1"], "has no root"),
        (&[tee, one, "--tee-secondary=etcd:localhost:1/x"], "is not one of etcd2, zk2, consul, memory"),
        (&[one, other], "need --topo-implementation tee"),
        (&["--tee-reverse-lock-order"], "need --topo-implementation tee"),
    ] {
        let said = refused(flags);
        assert!(said.contains(words), "{flags:?}: {said}");
    }
}

/// How long a save may take that does not wait for the secondary.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn nobody_waits_for_a_secondary_that_is_known_to_be_silent() {
    let pair = Pair::new();
    let mount = pair.mount(&["--remote-operation-timeout=10s"]);
    wait_for_drift(&mount, "global", 0);
    pair.to_secondary.silence(true);
    mount.sh("echo first > global/metadata/owner");
    eventually("it is known", || drift(&mount, "global")["failing"].is_string().then_some(()));
    let begun = std::time::Instant::now();
    mount.sh("for i in $(seq 10); do echo $i > global/metadata/owner; done");
    // One that waited would take three seconds.
    assert!(begun.elapsed() < SOON * 10, "{:?}", begun.elapsed());
    pair.to_secondary.cut(true);
    pair.to_secondary.silence(false);
}
