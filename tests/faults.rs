//! Servers that die, stop, forget and lie: nothing blocks, nothing is lost, and the mount comes back by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use common::etcd::{Etcd, shared};
use common::mount::{Mount, TOPOFS};
use common::proxy::Proxy;
use common::server::{Server, free_port, fresh_root};
use common::world::{etcd_cell, load, runtime};
use common::{bash_in, eventually, text};
use topofs::name::TopoPath;
use topofs::sample::Cluster;

/// Short time-outs, so that the tests need not wait long: what they check does not depend on the length.
const SHORT: &[&str] = &["--remote-operation-timeout=2s", "--stale-after=3s"];
/// No command may take longer than the time-outs together, generously.
const PATIENCE: &str = "timeout 20";

const OWNER: &str = "global/metadata/owner";

/// The sample cluster in an etcd; the CellInfo records name it under the given address.
fn cluster(etcd: &Etcd, address: &str) -> Cluster {
    let cluster = Cluster { root: "/t".to_owned(), ..Cluster::demo(address) };
    load(&*etcd_cell(&etcd.endpoint(), "/t"), &cluster);
    cluster
}

fn state(mount: &Mount, cell: &str) -> String {
    mount.status()["cells"][cell]["state"].as_str().unwrap().to_owned()
}

fn wait_for_state(mount: &Mount, cell: &str, wanted: &str) {
    eventually(&format!("{cell} is {wanted}"), || (state(mount, cell) == wanted).then_some(()));
}

/// All records as the service has them, by path below the mount.
fn stored(etcd: &Etcd) -> BTreeMap<String, Vec<u8>> {
    let cell = etcd_cell(&etcd.endpoint(), "/t");
    let listing = runtime().block_on(cell.list(&TopoPath::root())).unwrap();
    listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value.to_vec())).collect()
}

/// All records as the mount shows them.
fn shown(mount: &Mount) -> BTreeMap<String, Vec<u8>> {
    // A cell that is not there yet is looked at again later.
    let output = mount.bash("find . -type f -not -name '*.txt' -not -name '*.json'");
    let files = String::from_utf8(output.stdout).unwrap();
    let paths = files.lines().map(|line| line.trim_start_matches("./").to_owned());
    paths.filter_map(|path| Some((path.clone(), std::fs::read(mount.path(&path)).ok()?))).collect()
}

fn wait_until_equal(mount: &Mount, etcd: &Etcd) {
    eventually("the tree equals the backend", || (shown(mount) == stored(etcd)).then_some(()));
}

/// Commands that look and change: each must end, with an error or not.
fn nothing_blocks(mount: &Mount) {
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

#[test]
fn a_paused_server_blocks_nobody() {
    let etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let mount = Mount::etcd(&etcd.endpoint(), "/t", SHORT);
    wait_until_equal(&mount, &etcd);
    etcd.pause();
    nothing_blocks(&mount);
    wait_for_state(&mount, "global", "down");
    let output = mount.bash(&format!("{PATIENCE} cat {OWNER}"));
    assert!(text(&output).contains("timed out"), "old data is not shown: {}", text(&output));
    assert_eq!(mount.errors().pop().unwrap()["errno"], "ETIMEDOUT");
    etcd.resume();
    wait_for_state(&mount, "global", "live");
    wait_until_equal(&mount, &etcd);
}

#[test]
fn a_killed_server_comes_back() {
    let mut etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    // Time-outs as they are by default: a cell that is known to be down fails at once.
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--stale-after=1s"]);
    wait_until_equal(&mount, &etcd);
    etcd.kill();
    wait_for_state(&mount, "global", "down");
    let script = "for i in $(seq 30); do cat global/metadata/owner; echo x > global/metadata/owner; ls global; done";
    let output = mount.bash(&format!("{PATIENCE} bash -c '{script}'"));
    assert_ne!(output.status.code(), Some(124), "90 readers and writers have not waited for a time-out each");
    assert!(text(&output).contains("timed out"), "{}", text(&output));
    etcd.restart();
    wait_for_state(&mount, "global", "live");
    etcd.put("/t/global/metadata/owner", b"after");
    eventually("the watch goes on", || (mount.read(OWNER) == "after").then_some(()));
    wait_until_equal(&mount, &etcd);
    assert!(mount.status()["cells"]["global"]["reconnects"].as_u64().unwrap() >= 1);
}

#[test]
fn what_was_acknowledged_is_there_after_a_crash() {
    let mut etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let mount = Mount::etcd(&etcd.endpoint(), "/t", SHORT);
    let program = r#"
import os, sys
acknowledged = 0
for number in range(100000):
    if os.path.exists(sys.argv[2]): break
    try:
        f = os.open("global/metadata/key%d" % (number % 50), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try: os.write(f, b"%d" % number)
        finally: os.close(f)
        print(number, flush=True)
    except OSError as e:
        print("failed", number, e.errno, file=sys.stderr)
"#;
    let stop = mount.outside().join("stop");
    let acknowledged = mount.outside().join("acknowledged");
    let mut writer = Command::new("timeout")
        .args(["55", "python3", "-c", program, "-"])
        .arg(&stop)
        .current_dir(mount.root())
        .stdout(std::fs::File::create(&acknowledged).unwrap())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let count = || std::fs::read_to_string(&acknowledged).unwrap().lines().count();
    for _ in 0..3 {
        let before = count();
        eventually("writes are acknowledged", || (count() > before + 20).then_some(()));
        etcd.kill();
        etcd.restart();
    }
    let before = count();
    eventually("writes are acknowledged again", || (count() > before).then_some(()));
    std::fs::write(&stop, "").unwrap();
    assert!(writer.wait().unwrap().success());
    // The newest acknowledged number of each key, or a later one whose acknowledgement was lost.
    let mut newest = BTreeMap::new();
    for line in std::fs::read_to_string(&acknowledged).unwrap().lines() {
        let number: u64 = line.parse().unwrap();
        newest.insert(number % 50, number);
    }
    let stored = stored(&etcd);
    for (key, number) in newest {
        let value = String::from_utf8(stored[&format!("global/metadata/key{key}")].clone()).unwrap();
        assert!(value.parse::<u64>().unwrap() >= number, "key{key} has {value}, acknowledged was {number}");
    }
    wait_until_equal(&mount, &etcd);
}

#[test]
fn compaction_during_an_absence_is_made_good() {
    let etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let proxy = Proxy::start(etcd.port);
    let mount = Mount::etcd(&proxy.endpoint(), "/t", &["--stale-after=1s"]);
    assert_eq!(mount.read(OWNER), "the shop team");
    proxy.cut(true);
    wait_for_state(&mount, "global", "down");
    for round in 0..20 {
        etcd.put("/t/global/metadata/owner", format!("round {round}").as_bytes());
    }
    etcd.ctl(&["del", "/t/global/RoutingRules"]);
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    proxy.cut(false);
    wait_for_state(&mount, "global", "live");
    assert_eq!(mount.read(OWNER), "round 19");
    assert!(!mount.path("global/RoutingRules").exists());
    assert_eq!(mount.status()["cells"]["global"]["caught_up"], 2);
    assert_eq!(mount.status()["cells"]["global"]["missed"], 0);
    // And while connected, compaction disturbs nobody.
    etcd.put("/t/global/metadata/owner", b"new");
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    eventually("the change is seen", || (mount.read(OWNER) == "new").then_some(()));
}

#[test]
fn a_lost_event_is_made_good_and_counted() {
    let etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let proxy = Proxy::start(etcd.port);
    let mount = Mount::etcd(&proxy.endpoint(), "/t", &[]);
    assert_eq!(mount.read(OWNER), "the shop team");
    proxy.drop_containing(Some("/metadata/owner"));
    etcd.put("/t/global/metadata/owner", b"lost");
    eventually("the event is lost", || (proxy.dropped() == 1).then_some(()));
    proxy.drop_containing(None);
    // Events after it arrive: nothing tells that one is missing.
    etcd.put("/t/global/metadata/other", b"seen");
    eventually("the next event", || mount.path("global/metadata/other").exists().then_some(()));
    assert_eq!(mount.read(OWNER), "the shop team");
    mount.sh("echo resync global > .topofs/control");
    eventually("the resync makes it good", || (mount.read(OWNER) == "lost").then_some(()));
    eventually("it is counted", || (mount.status()["cells"]["global"]["missed"] == 1).then_some(()));
    // By itself, too.
    let mount = Mount::etcd(&proxy.endpoint(), "/t", &["--resync-interval=1s"]);
    proxy.drop_containing(Some("/metadata/owner"));
    etcd.ctl(&["del", "/t/global/metadata/owner"]);
    eventually("the event is lost", || (proxy.dropped() >= 2).then_some(()));
    proxy.drop_containing(None);
    eventually("the resync makes it good", || (!mount.path(OWNER).exists()).then_some(()));
}

#[test]
fn a_restored_backup_is_believed() {
    let mut etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--stale-after=1s"]);
    wait_until_equal(&mount, &etcd);
    let backup = mount.outside().join("backup").display().to_string();
    etcd.ctl(&["snapshot", "save", &backup]);
    for round in 0..5 {
        etcd.put("/t/global/metadata/owner", format!("after the backup {round}").as_bytes());
    }
    etcd.put("/t/global/metadata/later", b"x");
    eventually("the changes are seen", || mount.path("global/metadata/later").exists().then_some(()));
    mount.sh("echo mine > global/metadata/mine");
    etcd.kill();
    let data = etcd.dir().join("data").display().to_string();
    std::fs::remove_dir_all(&data).unwrap();
    let member = [
        "--name=development",
        "--initial-cluster=development=http://localhost:2380",
        "--initial-advertise-peer-urls=http://localhost:2380",
    ];
    etcd.ctl(&[&["snapshot", "restore", &backup, "--data-dir", &data], &member[..]].concat());
    etcd.restart();
    eventually("the restored value is shown", || {
        (std::fs::read_to_string(mount.path(OWNER)).ok()? == "the shop team").then_some(())
    });
    wait_until_equal(&mount, &etcd);
    mount.sh("sed -i s/shop/new/ global/metadata/owner; dd if=global/metadata/owner iflag=direct status=none");
    assert_eq!(mount.read(OWNER), "the new team");
    assert!(mount.log().contains("gone back"), "{}", mount.log());
    // And made anew, with nothing in it.
    etcd.kill();
    std::fs::remove_dir_all(&data).unwrap();
    etcd.restart();
    eventually("nothing is left", || (mount.bash("ls global").stdout.is_empty()).then_some(()));
}

#[test]
fn a_silent_network_is_noticed() {
    let etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let proxy = Proxy::start(etcd.port);
    let mount = Mount::etcd(&proxy.endpoint(), "/t", SHORT);
    assert_eq!(mount.read(OWNER), "the shop team");
    proxy.silence(true);
    nothing_blocks(&mount);
    wait_for_state(&mount, "global", "down");
    assert!(text(&mount.bash(&format!("cat {OWNER}"))).contains("timed out"));
    proxy.cut(false);
    proxy.silence(false);
    wait_for_state(&mount, "global", "live");
    wait_until_equal(&mount, &etcd);
}

#[test]
fn stale_records_can_be_served_if_wanted() {
    let mut etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--stale-after=0s", "--serve-stale"]);
    assert_eq!(mount.read(OWNER), "the shop team");
    etcd.kill();
    wait_for_state(&mount, "global", "stale");
    assert_eq!(mount.read(OWNER), "the shop team");
    let output = mount.bash(&format!("echo x > {OWNER}"));
    assert!(text(&output).contains("timed out"), "{}", text(&output));
    eventually("the status says why", || {
        mount.status()["cells"]["global"]["error"].as_str().unwrap().contains("refused").then_some(())
    });
}

#[test]
fn a_dead_cell_disturbs_no_other() {
    let etcd = Etcd::start();
    let mut local = Etcd::start();
    // Both cells on a server of their own.
    cluster(&etcd, &local.endpoint());
    cluster(&local, &local.endpoint());
    let mount = Mount::etcd(&etcd.endpoint(), "/t", SHORT);
    let tablet = "zone1/tablets/zone1-0000000100/Tablet.txt";
    assert!(mount.read(tablet).contains("hostname"));
    local.kill();
    wait_for_state(&mount, "zone1", "down");
    assert_eq!(mount.sh("ls"), "global\nzone1\nzone2\n");
    assert_eq!(mount.read(OWNER), "the shop team");
    mount.sh("echo new > global/metadata/owner");
    // zone2 was never looked at: it fails, too, in time.
    for cell in ["zone1", "zone2"] {
        let output = mount.bash(&format!("{PATIENCE} ls {cell}"));
        assert!(text(&output).contains("timed out"), "{cell}: {}", text(&output));
    }
    assert_eq!(state(&mount, "global"), "live");
    let errors = mount.errors();
    let reason = errors.last().unwrap()["reason"].as_str().unwrap();
    for part in ["zone2", "etcd2", &local.endpoint(), "/t/zone2", "refused"] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    local.restart();
    wait_for_state(&mount, "zone1", "live");
    assert!(mount.read(tablet).contains("hostname"));
    wait_for_state(&mount, "zone2", "live");
}

#[test]
fn a_live_server_in_the_list_is_found() {
    let etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let dead = format!("127.0.0.1:{}", free_port());
    let silent = Proxy::start(etcd.port);
    silent.silence(true);
    for servers in [format!("{dead},{}", etcd.endpoint()), format!("{},{}", silent.endpoint(), etcd.endpoint())] {
        let mount = Mount::etcd(&servers, "/t", &["--remote-operation-timeout=8s"]);
        mount.sh("echo found > global/metadata/owner");
        assert_eq!(mount.read(OWNER), "found\n");
    }
    // And when the one in use dies, the next is used.
    let (first, second) = (Proxy::start(etcd.port), Proxy::start(etcd.port));
    let mount = Mount::etcd(&format!("{},{}", first.endpoint(), second.endpoint()), "/t", &[]);
    first.cut(true);
    mount.sh("echo first is gone > global/metadata/owner");
    etcd.put("/t/global/metadata/owner", b"remote");
    eventually("the watch goes on", || (mount.read(OWNER) == "remote").then_some(()));
}

#[test]
fn user_and_password_are_used_and_told_to_nobody() {
    let etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    etcd.ctl(&["user", "add", "root:s3cret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["user", "add", "reader:r3ader"]);
    etcd.ctl(&["role", "add", "read"]);
    etcd.ctl(&["role", "grant-permission", "read", "--prefix=true", "read", "/t"]);
    etcd.ctl(&["user", "grant-role", "reader", "read"]);
    etcd.ctl(&["auth", "enable"]);
    let file = |name: &str, content: &str| {
        let path = etcd.dir().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (right, wrong, reader) = (file("right", "s3cret\n"), file("wrong", "wr0ng"), file("reader", "r3ader"));
    let point = tempfile::tempdir().unwrap();
    for (user, password) in [(None, None), (Some("root"), Some(&wrong))] {
        let auth = match (user, password) {
            (Some(user), Some(password)) => format!("--topo-etcd-user {user} --topo-etcd-password-file {password}"),
            _ => String::new(),
        };
        let args =
            format!("mount --topo-global-server-address {} --topo-global-root /t/global {auth} .", etcd.endpoint());
        let output = bash_in(point.path(), &format!("{TOPOFS} {args}"));
        assert_eq!(output.status.code(), Some(32));
        let message = text(&output);
        assert!(message.contains("cell global") && message.contains("/t/global"), "{message}");
        assert!(message.contains("user name is empty") || message.contains("authentication failed"), "{message}");
        assert!(!message.contains("wr0ng"), "{message}");
    }
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--topo-etcd-user=root", "--topo-etcd-password-file", &right]);
    mount.sh("echo by root > global/metadata/owner");
    let everything = format!("{}{}{}", mount.read(".topofs/config"), mount.read(".topofs/status"), mount.log());
    assert!(everything.contains("root") && !everything.contains("s3cret"), "{everything}");
    let command_line = std::fs::read_to_string(format!("/proc/{}/cmdline", mount.pid())).unwrap();
    assert!(!command_line.contains("s3cret"));
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--topo-etcd-user=reader", "--topo-etcd-password-file", &reader]);
    assert_eq!(mount.read(OWNER), "by root\n");
    let output = mount.bash(&format!("cat /dev/null > x; echo x | tee {OWNER}"));
    assert!(text(&output).contains("Permission denied"), "{}", text(&output));
    assert!(mount.errors().pop().unwrap()["reason"].as_str().unwrap().contains("permission denied"));
}

#[test]
fn tls_with_client_certificates() {
    let certificates = tempfile::tempdir().unwrap();
    let dir = certificates.path();
    let make = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out req.pem
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > ext
        openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other-ca -keyout other.key -out other.pem
    "#;
    let output = bash_in(dir, &format!("set -e; {make}"));
    assert!(output.status.success(), "{}", text(&output));
    let file = |name: &str| dir.join(name).display().to_string();
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
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
    let (cert, key) =
        (format!("--topo-etcd-tls-cert={}", file("cert.pem")), format!("--topo-etcd-tls-key={}", file("key.pem")));
    let trusted = format!("--topo-etcd-tls-ca={}", file("ca.pem"));
    let mount = Mount::etcd(&url, "/t", &[&cert, &key, &trusted, "--retry=20s"]);
    mount.sh("mkdir global/metadata; echo secret > global/metadata/owner");
    drop(mount);
    // Vitess's address without a scheme means TLS, too, when certificates are given.
    let mount = Mount::etcd(&format!("localhost:{}", etcd.port), "/t", &[&cert, &key, &trusted]);
    assert_eq!(mount.read(OWNER), "secret\n");
    drop(mount);
    let point = tempfile::tempdir().unwrap();
    let other = format!("--topo-etcd-tls-ca={}", file("other.pem"));
    for (flags, cause) in [
        (format!("{cert} {key} {other}"), "ertificate"),
        (trusted, "TLS without a client certificate"),
        (format!("{cert} {key} --topo-etcd-tls-ca=/no/such/file"), "/no/such/file"),
    ] {
        let args = format!(
            "mount --topo-global-server-address {url} --topo-global-root /t/global --remote-operation-timeout 4s {flags} ."
        );
        let output = bash_in(point.path(), &format!("{TOPOFS} {args}"));
        assert_eq!(output.status.code(), Some(32), "{flags}");
        assert!(text(&output).contains(cause) && text(&output).contains("cell global"), "{flags}: {}", text(&output));
    }
}

#[test]
fn a_hundred_thousand_keys_load() {
    let root = fresh_root();
    let cell = etcd_cell(&shared().endpoint(), &format!("{root}/global"));
    runtime().block_on(async {
        let keys: Vec<usize> = (0..100_000).collect();
        for chunk in keys.chunks(cell.limits().changes) {
            let value = "v".repeat(200);
            let changes: Vec<_> =
                chunk.iter().map(|n| common::world::put(&format!("metadata/key{n:06}"), value.clone())).collect();
            cell.apply(&changes).await.unwrap();
        }
    });
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    assert_eq!(mount.status()["cells"]["global"]["records"], 100_000);
    assert_eq!(mount.sh("ls -U global/metadata | wc -l"), "100000\n");
    assert_eq!(mount.read("global/metadata/key099999").len(), 200);
}

#[test]
fn the_server_idles_in_peace() {
    // CPU stays near zero while the server is away.
    let mut etcd = Etcd::start();
    cluster(&etcd, &etcd.endpoint());
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &["--stale-after=1s"]);
    etcd.kill();
    wait_for_state(&mount, "global", "down");
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", mount.pid())).unwrap();
        let fields: Vec<u64> =
            stat.rsplit_once(')').unwrap().1.split(' ').filter_map(|field| field.parse().ok()).collect();
        // utime and stime, in hundredths of a second.
        fields[10] + fields[11]
    };
    let (before, begin) = (ticks(), std::time::Instant::now());
    eventually("some time has passed", || (begin.elapsed() > Duration::from_secs(5)).then_some(()));
    let share = (ticks() - before) as f64 / 100.0 / begin.elapsed().as_secs_f64();
    assert!(share < 0.05, "{share} of a core while there is nothing to do");
}
