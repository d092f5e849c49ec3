//! What only etcd does.

use std::collections::BTreeMap;
use std::process::Command;

use crate::access::certificates;
use crate::common::etcd::Etcd;
use crate::common::mount::{Mount, TOPOFS};
use crate::common::proxy::Proxy;
use crate::common::server::free_port;
use crate::common::world::{etcd_cell, load};
use crate::common::{bash_in, eventually, text};
use crate::rig::{OWNER, etcd_with_certificates, nothing_blocks, stored, wait_for_state, wait_until_equal};
use topofs::sample::Cluster;

/// Short time-outs, so that the tests need not wait long: what they check does not depend on the length.
const SHORT: &[&str] = &["--remote-operation-timeout=2s", "--stale-after=3s"];
/// The sample cluster in an etcd; the CellInfo records name it under the given address.
fn cluster(etcd: &Etcd, address: &str) -> Cluster {
    let cluster = Cluster { root: "/t".to_owned(), ..Cluster::demo(address) };
    load(&*etcd_cell(&etcd.endpoint(), "/t"), &cluster);
    cluster
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
    let kept = stored(&*etcd_cell(&etcd.endpoint(), "/t"));
    for (key, number) in newest {
        let value = String::from_utf8(kept[&format!("global/metadata/key{key}")].clone()).unwrap();
        assert!(value.parse::<u64>().unwrap() >= number, "key{key} has {value}, acknowledged was {number}");
    }
    wait_until_equal(&mount, || stored(&*etcd_cell(&etcd.endpoint(), "/t")));
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
    wait_until_equal(&mount, || stored(&*etcd_cell(&etcd.endpoint(), "/t")));
    let backup = etcd.back_up();
    for round in 0..5 {
        etcd.put("/t/global/metadata/owner", format!("after the backup {round}").as_bytes());
    }
    etcd.put("/t/global/metadata/later", b"x");
    eventually("the changes are seen", || mount.path("global/metadata/later").exists().then_some(()));
    mount.sh("echo mine > global/metadata/mine");
    etcd.restore(&backup);
    eventually("the restored value is shown", || {
        (std::fs::read_to_string(mount.path(OWNER)).ok()? == "the shop team").then_some(())
    });
    wait_until_equal(&mount, || stored(&*etcd_cell(&etcd.endpoint(), "/t")));
    mount.sh("sed -i s/shop/new/ global/metadata/owner; dd if=global/metadata/owner iflag=direct status=none");
    assert_eq!(mount.read(OWNER), "the new team");
    assert!(mount.log().contains("gone back"), "{}", mount.log());
    // And made anew, with nothing in it.
    etcd.kill();
    std::fs::remove_dir_all(etcd.dir().join("data")).unwrap();
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
    wait_until_equal(&mount, || stored(&*etcd_cell(&etcd.endpoint(), "/t")));
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
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    certificates(dir);
    let file = |name: &str| dir.join(name).display().to_string();
    let (etcd, url) = etcd_with_certificates(dir);
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
            "mount --topo-global-server-address {url} --topo-global-root /t/global \
             --remote-operation-timeout 4s {flags} ."
        );
        let output = bash_in(point.path(), &format!("{TOPOFS} {args}"));
        assert_eq!(output.status.code(), Some(32), "{flags}");
        assert!(text(&output).contains(cause) && text(&output).contains("cell global"), "{flags}: {}", text(&output));
    }
}
