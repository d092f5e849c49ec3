//! ZooKeeper and Consul that were restored from a backup, or made anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::http::{Http, Reply};
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::world::{put, runtime};
use crate::common::{bash_in, eventually, text};
use crate::rig::{Any, OWNER, Rig, wait_until_equal};
use topofs::backend::Implementation;

#[test]
fn consul_from_a_snapshot() {
    let rig = Rig::new(Implementation::Consul);
    let mount = rig.mount(&[]);
    wait_until_equal(&mount, || rig.stored());
    let consul = format!("PATH=$PATH:{}/target/tools/consul/usr/bin consul", env!("CARGO_MANIFEST_DIR"));
    let snapshot = |what: &str| {
        let script = format!("CONSUL_HTTP_ADDR={} {consul} snapshot {what} backup", rig.server.endpoint());
        assert!(
            bash_in(
                rig.server.dir(),
                &script.replace("CONSUL_HTTP_ADDR", "export CONSUL_HTTP_ADDR").replace(" PATH=", "; PATH=")
            )
            .status
            .success()
        );
    };
    snapshot("save");
    let runtime = runtime();
    for round in 0..3 {
        let changes = [put(OWNER, format!("after {round}")), put(&format!("global/metadata/new{round}"), "x")];
        runtime.block_on(rig.cell().apply(&changes)).unwrap();
    }
    eventually("the changes are seen", || mount.path("global/metadata/new2").exists().then_some(()));
    snapshot("restore");
    // Writes that push the index past what it was hide the restore from those who look at the index only.
    for round in 0..30 {
        runtime.block_on(rig.cell().apply(&[put("global/metadata/later", round.to_string())])).unwrap();
    }
    eventually("the restored value is shown", || {
        (std::fs::read(mount.path(OWNER)).ok()? == b"the shop team").then_some(())
    });
    wait_until_equal(&mount, || rig.stored());
}

/// A wait that a restoration ends is answered from the store that was, like one whose time is over.
#[test]
fn consul_from_a_snapshot_when_a_wait_is_over() {
    const POLL: Duration = Duration::from_secs(1);
    /// Asks Consul's HTTP API.
    fn consul(server: &str, args: &str, path: &str) -> String {
        let output = bash_in(Path::new("/"), &format!("curl -sSf -m 10 {args} http://{server}/v1/{path}"));
        assert!(output.status.success(), "{path}: {}", text(&output));
        text(&output)
    }
    fn put_key(server: &str, name: &str, value: &str) {
        consul(server, &format!("-X PUT -d {value}"), &format!("kv/t/global/metadata/{name}"));
    }
    let rig = Rig::new(Implementation::Consul);
    let (server, port) = (rig.server.endpoint(), rig.server.port);
    let backup = rig.server.dir().join("backup").display().to_string();
    ["a", "b", "c"].iter().for_each(|name| put_key(&server, name, "old"));
    consul(&server, &format!("-o {backup}"), "snapshot");
    // What happens at the next wait: 0 nothing, 1 a restoration, 2 a change, which hides it.
    let step = Arc::new(AtomicUsize::new(0));
    let (steps, address) = (step.clone(), server.clone());
    let http = Http::before(port, move |request| {
        let Some((_, index)) = request.line.split_once("&index=").filter(|_| request.line.contains("t/global/")) else {
            return Reply::Pass;
        };
        let index = index.split(['&', ' ']).next().unwrap().to_owned();
        match steps.load(Ordering::SeqCst) {
            1 if index != "0" => {
                consul(&address, &format!("-X PUT --data-binary @{backup}"), "snapshot");
                std::thread::sleep(POLL.mul_f64(1.1));
                steps.store(2, Ordering::SeqCst);
                Reply::Answer("200 OK", format!("X-Consul-Index: {index}\r\n"), b"[]".to_vec())
            }
            2 => {
                put_key(&address, "later", "x");
                steps.store(3, Ordering::SeqCst);
                Reply::Pass
            }
            _ => Reply::Pass,
        }
    });
    let flags = ["--topo-consul-watch-poll-duration=1s", "--resync-interval=1h"];
    let mount = Mount::of("consul", &http.endpoint(), "/t", &flags);
    mount.sh("ls global/metadata");
    put_key(&server, "a", "new");
    consul(&server, "-X DELETE", "kv/t/global/metadata/b");
    put_key(&server, "d", "new");
    wait_until_equal(&mount, || rig.stored());
    step.store(1, Ordering::SeqCst);
    eventually("it is restored, and written to", || (step.load(Ordering::SeqCst) == 3).then_some(()));
    wait_until_equal(&mount, || rig.stored());
    assert_eq!(mount.sh("cd global/metadata; grep . a b c later"), "a:old\nb:old\nc:old\nlater:x\n");
}

#[test]
fn consul_is_asked_for_what_is_sure() {
    // A server that has come back answers before it has gone through its log, with a part of what is stored, unless it
    // is asked so. That lasts for some milliseconds only: what is looked at is the questions. Waiting shows nothing,
    // nor does the sign of life.
    let questions = [("GET /v1/kv/", 1), ("consistent=", -1), ("&wait=", -1), ("GET /v1/kv/t/global/ HTTP", -1)];
    let rig = Rig::new(Implementation::Consul);
    let proxy = Proxy::counting(rig.server.port, &questions);
    let mount = Mount::of("consul", &proxy.endpoint(), "/t", &[]);
    wait_until_equal(&mount, || rig.stored());
    let runtime = runtime();
    for round in 0..3 {
        let changes: Vec<_> = (0..30).map(|n| put(&format!("global/metadata/n{n}"), format!("{round}"))).collect();
        runtime.block_on(rig.cell().apply(&changes)).unwrap();
        wait_until_equal(&mount, || rig.stored());
    }
    mount
        .sh("echo new > global/metadata/owner; rm global/metadata/n1; flock global/keyspaces/commerce/.lock ls global");
    eventually("all questions were of that kind", || (proxy.count() == 0).then_some(()));
}

#[test]
fn zookeeper_made_anew() {
    let mut rig = Rig::new(Implementation::Zk2);
    let mount = rig.mount(&["--stale-after=1s", "--topo-zk-base-timeout=60s"]);
    wait_until_equal(&mount, || rig.stored());
    mount.sh("echo mine > global/metadata/mine");
    rig.server.kill();
    std::fs::remove_dir_all(rig.server.dir().join("data")).unwrap();
    let Any::Zookeeper(server) = &mut rig.server else { unreachable!() };
    server.restart();
    eventually("nothing is left", || {
        // Until the cell is stale, what was there is listed; then it is an error.
        let listed = mount.bash("ls global");
        (listed.status.success() && listed.stdout.is_empty()).then_some(())
    });
    // The sessions of before, which have seen more than the new server has, are not waited for.
    mount.sh("timeout 10 bash -c 'mkdir global/metadata; echo new > global/metadata/owner; cat global/metadata/owner'");
    wait_until_equal(&mount, || rig.stored());
}

#[test]
fn consul_keys_with_dots() {
    // No address can name them: `/v1/kv/a/./b` is `/v1/kv/a/b`.
    let rig = Rig::new(Implementation::Consul);
    let Any::Consul(server) = &rig.server else { unreachable!() };
    let names: Vec<String> =
        ('a'..='q').map(String::from).chain([".x", ".y", "..z", "...", "%2e", "a b#c?d"].map(String::from)).collect();
    let runtime = runtime();
    for name in &names {
        runtime.block_on(rig.cell().apply(&[put(&format!("global/metadata/{name}"), "v")])).unwrap();
    }
    // And such as cannot be file names at all, made by a transaction.
    let operation =
        |key: &str| format!(r#"{{"KV": {{"Verb": "set", "Key": "t/global/metadata/{key}", "Value": "dg=="}}}}"#);
    let body = format!("[{}, {}, {}]", operation("."), operation("../up"), operation("./here"));
    assert!(server.curl(&["-f", "-X", "PUT", "-d", &body], "txn").is_some());
    let mount = rig.mount(&[]);
    for round in 0..3 {
        for name in [".x", "..z", "p"] {
            runtime.block_on(rig.cell().apply(&[put(&format!("global/metadata/{name}"), format!("{round}"))])).unwrap();
            let path = mount.path(&format!("global/metadata/{name}"));
            eventually("the change is seen", || {
                (std::fs::read_to_string(&path).ok()? == round.to_string()).then_some(())
            });
        }
    }
    assert_eq!(mount.status()["cells"]["global"]["reconnects"], 0);
    assert_eq!(mount.status()["cells"]["global"]["skipped_keys"], 3);
}

#[test]
fn a_quiet_cell_of_consul_stays_quiet() {
    // The end of a poll is no sign of anything, although others write elsewhere in the same Consul.
    let rig = Rig::new(Implementation::Consul);
    let mount = rig.mount(&["--topo-consul-watch-poll-duration=1s"]);
    mount.sh("ls zone1");
    let runtime = runtime();
    for round in 0..40 {
        runtime.block_on(rig.cell().apply(&[put(OWNER, round.to_string())])).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    eventually("the last change is seen", || (mount.read(OWNER) == "39").then_some(()));
    for cell in ["global", "zone1"] {
        assert_eq!(mount.status()["cells"][cell]["reconnects"], 0, "{cell}: {}", mount.log());
    }
}
