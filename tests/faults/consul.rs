//! What is Consul's own: rights that take records out of lists, refusals that are certain, limits of rate, keys of its
//! user interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use topofs::backend::{Action, Change, Failure, Guard, Implementation};
use topofs::name::TopoPath;

use crate::access::refused;
use crate::common::consul::{EVERYTHING, Guarded, READING, shared};
use crate::common::http::{Http, Reply};
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::server::fresh_root;
use crate::common::world::{Service, cell, put, runtime};
use crate::common::{eventually, text};
use crate::rig::{state, wait_for_state};

/// Larger than what Consul takes in a transaction.
const LARGE: usize = 400 * 1024;

fn events(mount: &Mount, kind: &str) -> usize {
    mount.read(".topofs/events").lines().filter(|line| line.contains(&format!("\"kind\":\"{kind}\""))).count()
}

fn path(text: &str) -> TopoPath {
    TopoPath::parse(text).unwrap()
}

#[test]
fn a_token_without_rights_shows_no_empty_topology() {
    let guarded = Guarded::start();
    let server = guarded.server.endpoint();
    let none = guarded.auth("none", &guarded.rules(1, ""));
    let elsewhere = guarded.auth("elsewhere", &guarded.rules(2, r#"key_prefix "other/" { policy = "write" }"#));
    // Whoever may read a part is shown no part: what is missing would look as if it were not there.
    let part = r#"key_prefix "t/" { policy = "read" } key_prefix "t/global/keyspaces/" { policy = "deny" }"#;
    let part = guarded.auth("part", &guarded.rules(3, part));
    for flags in ["", &none, &elsewhere, &part] {
        let message = refused("consul", &server, flags);
        assert!(message.contains("Permission denied") && message.contains("t/global/"), "{message}");
    }
    let right = guarded.auth("right", &guarded.rules(4, READING));
    assert_eq!(Mount::of("consul", &server, "/t", &[&right]).read("global/metadata/owner"), "team");
}

#[test]
fn a_newer_server_says_what_it_has_left_out() {
    // From 1.11 on, where our own questions would not find it: rules for single keys.
    let root = fresh_root();
    let service = shared();
    runtime()
        .block_on(cell(Implementation::Consul, &service.endpoint(), &root).apply(&[put("global/metadata/a", "x")]))
        .unwrap();
    let filtered = Arc::new(AtomicBool::new(false));
    let says = filtered.clone();
    let http = Http::before(service.port, move |request| {
        match says.load(Ordering::SeqCst) && request.line.contains("recurse=") {
            true => Reply::PassWith("X-Consul-Results-Filtered-By-Acls: true"),
            false => Reply::PassWith("X-Consul-Results-Filtered-By-Acls: false"),
        }
    });
    let cell = cell(Implementation::Consul, &http.endpoint(), &format!("{root}/global"));
    assert_eq!(runtime().block_on(cell.list(&TopoPath::root())).unwrap().nodes.len(), 1);
    filtered.store(true, Ordering::SeqCst);
    assert_eq!(runtime().block_on(cell.list(&TopoPath::root())).unwrap_err().failure, Failure::Denied);
}

#[test]
fn rights_that_are_taken_away_delete_nothing() {
    let guarded = Guarded::start();
    for key in ["keyspaces/ks/VSchema", "keyspaces/ks/Keyspace", "metadata/secret/one", "metadata/other"] {
        guarded.put(&format!("kv/t/global/{key}"), "x");
    }
    let auth = guarded.auth("token", &guarded.rules(1, READING));
    let mount = Mount::of("consul", &guarded.server.endpoint(), "/t", &[&auth]);
    let records = || mount.status()["cells"]["global"]["records"].as_u64().unwrap();
    assert_eq!(records(), 5);
    let denied = |rules: &str, key: &str| {
        guarded.rules(1, rules);
        // Something happens: the mount looks at what has changed, and finds less.
        guarded.put("kv/t/global/metadata/other", key);
        eventually("the reason is known", || {
            let error = mount.status()["cells"]["global"]["error"].as_str()?.to_owned();
            (error.contains("Permission denied") && error.contains(key)).then_some(())
        });
        assert_eq!(records(), 5, "nothing is gone");
        let output = mount.bash("cat global/metadata/secret/one global/keyspaces/ks/VSchema");
        assert!(text(&output).contains("Permission denied"), "{}", text(&output));
        guarded.rules(1, READING);
        wait_for_state(&mount, "global", "live");
        assert_eq!(mount.read("global/metadata/secret/one"), "x");
        assert_eq!(events(&mount, "deleted"), 0, "{}", mount.read(".topofs/events"));
    };
    // Nothing happens, and nobody looks: a query that waits does not end when the rights do.
    guarded.rules(1, "");
    eventually("it is noticed", || {
        mount.status()["cells"]["global"]["error"].as_str()?.contains("may not read t/global/").then_some(())
    });
    guarded.rules(1, READING);
    wait_for_state(&mount, "global", "live");
    denied("", "t/global/");
    // A part, below a directory that no rule of Vitess's would name.
    denied(
        r#"key_prefix "t/" { policy = "read" } key_prefix "t/global/metadata/secret/" { policy = "deny" }"#,
        "secret/one",
    );
    denied(
        r#"key_prefix "t/" { policy = "read" } key "t/global/keyspaces/ks/VSchema" { policy = "deny" }"#,
        "ks/VSchema",
    );
    // What is deleted is deleted.
    guarded.delete("kv/t/global/metadata/other");
    eventually("the deletion is told", || (events(&mount, "deleted") == 1).then_some(()));
    assert_eq!(records(), 4);
}

#[test]
fn what_consul_forbids_is_eacces() {
    let guarded = Guarded::start();
    let server = guarded.server.endpoint();
    let info = format!("server_address: \"{server}\" root: \"/t/zone1\"");
    let all = guarded.auth("all", &guarded.rules(1, EVERYTHING));
    let mount = Mount::of("consul", &server, "/t", &[&all]);
    mount.sh(&format!(
        "cd global; mkdir -p keyspaces/ks cells/zone1 metadata/dir; echo 'cells: \"a\"' > RoutingRules.txt || true; \
         echo 'durability_policy: \"none\"' > keyspaces/ks/Keyspace.txt; \
         echo 'sharded: true' > keyspaces/ks/VSchema.txt; \
         echo '{info}' > cells/zone1/CellInfo.txt; echo x > metadata/x"
    ));
    drop(mount);
    let reader = guarded.auth("reader", &guarded.rules(2, READING));
    let mount = Mount::of("consul", &server, "/t", &[&reader]);
    std::fs::write(mount.outside().join("large"), vec![b'x'; LARGE]).unwrap();
    let large = mount.outside().join("large").display().to_string();
    for script in [
        "sed -i s/true/false/ keyspaces/ks/VSchema.txt",
        "sed -i s/none/semi_sync/ keyspaces/ks/Keyspace.txt",
        "rm keyspaces/ks/VSchema",
        "mv metadata/x metadata/y",
        "cp metadata/x metadata/z",
        &format!("cp {large} metadata/x"),
        &format!("cp {large} metadata/large"),
        "timeout 20 flock keyspaces/ks/.lock true",
        "flock -n keyspaces/ks/.lock true",
    ] {
        let output = mount.bash(&format!("cd global; {script}"));
        assert!(!output.status.success(), "{script}");
        assert!(text(&output).contains("Permission denied"), "{script}: {}", text(&output));
    }
    let reasons: Vec<String> =
        mount.errors().iter().map(|error| error["reason"].as_str().unwrap().to_owned()).collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| !reason.contains("may have been")), "{reasons:#?}");
    assert!(mount.errors().iter().all(|error| error["errno"] == "EACCES"), "{:#?}", mount.errors());
    assert!(!mount.log().contains("cannot release a lock"), "what was never taken is not held on to");
    // The keys may be written, but no session be made for a lock.
    let no_session = guarded.auth("no-session", &guarded.rules(3, r#"key_prefix "t/" { policy = "write" }"#));
    let locker = Mount::of("consul", &server, "/t", &[&no_session]);
    for script in ["flock keyspaces/ks/.lock true", "sed -i s/none/semi_sync/ keyspaces/ks/Keyspace.txt"] {
        let output = locker.bash(&format!("cd global; {script}"));
        assert!(!output.status.success() && text(&output).contains("Permission denied"), "{script}: {}", text(&output));
    }
    // A cell of which the file has no token.
    let output = mount.bash("ls zone1");
    assert!(text(&output).contains("Permission denied"), "{}", text(&output));
}

#[test]
fn a_token_that_is_replaced_is_read_again() {
    let guarded = Guarded::start();
    let (old, new) = (guarded.rules(1, EVERYTHING), guarded.rules(2, EVERYTHING));
    let auth = guarded.auth("token", &old);
    let mount = Mount::of("consul", &guarded.server.endpoint(), "/t", &[&auth]);
    guarded.auth("token", &new);
    let accessor: serde_json::Value = {
        let header = format!("X-Consul-Token: {old}");
        serde_json::from_str(&guarded.server.curl(&["-H", &header], "acl/token/self").unwrap()).unwrap()
    };
    guarded.delete(&format!("acl/token/{}", accessor["AccessorID"].as_str().unwrap()));
    mount.sh("echo new > global/metadata/owner");
    assert_eq!(mount.read("global/metadata/owner"), "new\n");
    // The watch goes on, too.
    guarded.put("kv/t/global/metadata/owner", "newer");
    eventually("the change is seen", || (mount.read("global/metadata/owner") == "newer").then_some(()));
    assert!(mount.errors().is_empty(), "{:#?}", mount.errors());
    assert!(!mount.log().contains(&new) && !mount.log().contains(&old));
}

#[test]
fn a_token_is_read_again_at_sighup() {
    // One that is not refused yet: the old one is to be taken away after all have changed.
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let http = Http::before(shared().port, |_| Reply::Pass);
    let file = tempfile::NamedTempFile::new().unwrap();
    let write =
        |token: &str| std::fs::write(file.path(), format!(r#"{{"global": {{"acl_token": "{token}"}}}}"#)).unwrap();
    write("first");
    let auth = format!("--consul-auth-static-file={}", file.path().display());
    let mount = Mount::of("consul", &http.endpoint(), &service.root, &[&auth]);
    assert!(http.requests().iter().all(|request| request.contains("x-consul-token: first")), "{:?}", http.requests());
    write("second");
    crate::common::signal(mount.pid(), nix::sys::signal::Signal::SIGHUP);
    eventually("the new one is used", || {
        http.requests().last().is_some_and(|request| request.contains("x-consul-token: second")).then_some(())
    });
    // A file that is being written, or is gone, changes nothing.
    write("\"third");
    crate::common::signal(mount.pid(), nix::sys::signal::Signal::SIGHUP);
    eventually("it is told", || mount.log().contains("cannot reload the ACL token").then_some(()));
    assert!(!mount.log().contains("third"));
    mount.sh("echo new > global/metadata/owner");
    assert!(http.requests().last().unwrap().contains("x-consul-token: second"));
}

/// Refuses each change with an answer as often as it is told.
fn refusing(times: Arc<AtomicUsize>, status: &'static str, body: &'static str) -> Http {
    Http::before(shared().port, move |request| {
        let refuse = request.line.starts_with("PUT") && !request.line.contains("/session/renew");
        match refuse && times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            true => Reply::Answer(status, String::new(), body.into()),
            false => Reply::Pass,
        }
    })
}

#[test]
fn what_is_refused_for_the_moment_is_repeated() {
    let service = Service::new(Implementation::Consul, shared().endpoint());
    for (status, body) in [
        ("429 Too Many Requests", "RPC rate limit exceeded"),
        ("500 Internal Server Error", "rpc error making call: rate limit exceeded, try again later"),
        ("503 Service Unavailable", "rate limit exceeded for operation that can only be performed by the leader"),
        ("500 Internal Server Error", "No cluster leader"),
    ] {
        let times = Arc::new(AtomicUsize::new(0));
        let http = refusing(times.clone(), status, body);
        let mount = Mount::of("consul", &http.endpoint(), &service.root, &["--remote-operation-timeout=1500ms"]);
        times.store(3, Ordering::SeqCst);
        mount.sh("echo saved > global/metadata/owner");
        assert_eq!(
            (times.load(Ordering::SeqCst), service.get("global/metadata/owner").unwrap()),
            (0, b"saved\n".to_vec())
        );
        assert_eq!(mount.status()["cells"]["global"]["reconnects"], 0);
        if status.starts_with("503") {
            // One of the kind is enough for what takes longer.
            continue;
        }
        // For longer than a call may take: refused, and that for certain.
        times.store(usize::MAX, Ordering::SeqCst);
        let output = mount.bash("set -o pipefail; echo lost | tee global/metadata/owner");
        assert!(text(&output).contains("timed out"), "{}", text(&output));
        let reason = mount.errors().pop().unwrap()["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(body) && !reason.contains("may have been"), "{reason}");
    }
}

#[test]
fn what_nobody_knows_is_said_to_be_unknown() {
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let times = Arc::new(AtomicUsize::new(0));
    let http = refusing(times.clone(), "500 Internal Server Error", "leadership lost while committing log");
    let mount = Mount::of("consul", &http.endpoint(), &service.root, &[]);
    times.store(1, Ordering::SeqCst);
    assert!(!mount.bash("set -o pipefail; echo lost | tee global/metadata/owner").status.success());
    let reason = mount.errors().pop().unwrap()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("it may have been carried out"), "{reason}");
    // Once: what may have been done is not done again without being asked for.
    assert_eq!(service.get("global/metadata/owner").unwrap(), b"the shop team");
}

#[test]
fn an_answer_without_end_is_given_up() {
    let bomb = {
        let output = crate::common::bash_in(
            std::path::Path::new("/"),
            "(printf '['; head -c 400000000 /dev/zero | tr '\\0' ' ') | gzip -1",
        );
        assert!(output.status.success());
        output.stdout
    };
    let packed = bomb.len();
    let http = Http::alone(move |_| {
        let headers = "Content-Encoding: gzip\r\nX-Consul-Index: 5\r\nContent-Type: application/json\r\n";
        Reply::Answer("200 OK", headers.to_owned(), bomb.clone())
    });
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let mount = service.mount(&[]);
    let info = format!("server_address: \"{}\" root: \"/x\"", http.endpoint());
    mount.sh(&format!("mkdir global/cells/bomb; echo '{info}' > global/cells/bomb/CellInfo.txt"));
    assert!(!mount.bash("ls bomb").status.success());
    let error = mount.status()["cells"]["bomb"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("the answer is larger than"), "{error}");
    let peak = std::fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap();
    let peak: u64 =
        peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap();
    assert!(peak < 300_000, "{packed} bytes made {peak} kB");
    assert_eq!(state(&mount, "global"), "live");
}

#[test]
fn large_values_are_guarded_as_all_others() {
    let cell = cell(Implementation::Consul, &shared().endpoint(), &fresh_root());
    let change = |guard, byte: u8| Change {
        path: path("keyspaces/ks/VSchema"),
        guard,
        action: Action::Put(Bytes::from(vec![byte; LARGE])),
    };
    let apply = |change| runtime().block_on(cell.apply(&[change]));
    let value = || runtime().block_on(cell.get(&path("keyspaces/ks/VSchema"))).unwrap().node.map(|node| node.value[0]);
    let first = apply(change(Guard::Absent, b'1')).unwrap().versions[0].unwrap();
    assert_eq!(apply(change(Guard::Absent, b'x')).unwrap_err().failure, Failure::NodeExists);
    let second = apply(change(Guard::Version(first), b'2')).unwrap().versions[0].unwrap();
    assert!(second.written > first.written && second.created == first.created);
    assert_eq!(apply(change(Guard::Version(first), b'x')).unwrap_err().failure, Failure::BadVersion);
    assert_eq!(value(), Some(b'2'));
    let deletion = Change { action: Action::Delete, ..change(Guard::Version(second), 0) };
    apply(deletion).unwrap();
    assert_eq!(apply(change(Guard::Version(second), b'x')).unwrap_err().failure, Failure::NoNode);
    assert_eq!(value(), None);
}

#[test]
fn a_large_record_that_somebody_else_has_changed_is_estale() {
    let service = Service::new(Implementation::Consul, shared().endpoint());
    service.put("global/metadata/large", &vec![b'1'; LARGE]);
    let mount = service.mount(&[]);
    std::fs::write(mount.outside().join("new"), vec![b'2'; LARGE]).unwrap();
    let new = mount.outside().join("new").display().to_string();
    let (root, server) = (service.root.clone(), service.server.clone());
    // Between the open and the close.
    let other = format!(
        "head -c {LARGE} /dev/zero | tr '\\0' 3 \
         | curl -sf -X PUT --data-binary @- http://{server}/v1/kv{root}/global/metadata/large"
    );
    let output = mount.bash(&format!(
        "exec 3<> global/metadata/large; cat {new} >&3; {other}; sync -d global/metadata/large <&3; exec 3>&-"
    ));
    drop(output);
    assert_eq!(service.get("global/metadata/large").unwrap()[0], b'3');
    let errors = mount.errors();
    assert_eq!(errors.last().unwrap()["errno"], "ESTALE", "{errors:#?}");
}

#[test]
fn a_key_that_is_no_lock_is_not_taken_for_one() {
    let service = Service::new(Implementation::Consul, shared().endpoint());
    // By any other program: without the flags of Consul's own locks.
    service.put("global/keyspaces/commerce/Lock", b"somebody's value");
    let mount = service.mount(&[]);
    for script in
        ["flock -n global/keyspaces/commerce/.lock true", "timeout 10 flock global/keyspaces/commerce/.lock true"]
    {
        let output = mount.bash(script);
        assert!(!output.status.success(), "{script}");
        assert_ne!(output.status.code(), Some(124), "{script}");
    }
    let reason = mount.errors().pop().unwrap()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("does not match lock use"), "{reason}");
    assert_eq!(service.get("global/keyspaces/commerce/Lock").unwrap(), b"somebody's value");
}

#[test]
fn breaking_a_lock_leaves_its_successor_alone() {
    let cell = cell(Implementation::Consul, &shared().endpoint(), &fresh_root());
    runtime().block_on(async {
        cell.apply(&[put("keyspaces/ks/Keyspace", "x")]).await.unwrap();
        let dir = path("keyspaces/ks");
        let first = cell.enter(&dir, &Bytes::from("first")).await.unwrap();
        let node = first.try_hold().await.unwrap().unwrap();
        first.leave().await.unwrap();
        let second = cell.enter(&dir, &Bytes::from("second")).await.unwrap();
        let successor = second.try_hold().await.unwrap().unwrap();
        assert_eq!(node.path, successor.path);
        assert!(cell.break_lock(&node).await.is_err());
        let there = cell.get(&node.path).await.unwrap().node.unwrap();
        assert_eq!((there.owner(), &there.value[..]), (successor.owner(), &b"second"[..]));
        // Leaving a place that is somebody else's by now takes nothing away, either.
        first.leave().await.unwrap();
        assert_eq!(cell.get(&node.path).await.unwrap().node.unwrap().owner(), successor.owner());
        second.leave().await.unwrap();
    });
}

#[test]
fn a_free_lock_of_a_slow_service_is_not_reported_as_somebodys() {
    /// Of each answer. Taking a lock takes four.
    const DELAY: Duration = Duration::from_millis(400);
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let proxy = Proxy::plain(shared().port);
    let mount = Mount::of("consul", &proxy.endpoint(), &service.root, &[]);
    proxy.delay(DELAY);
    mount.sh("flock -n global/keyspaces/commerce/.lock true");
}

#[test]
fn one_waiter_of_a_mount_tries_at_a_time() {
    const WAITERS: isize = 20;
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let key = format!("GET /v1/kv/{}/global/keyspaces/commerce/Lock", service.root.trim_start_matches('/'));
    let proxy = Proxy::counting(shared().port, &[(&key, 1)]);
    let mount = Mount::of("consul", &proxy.endpoint(), &service.root, &[]);
    let lock = "global/keyspaces/commerce/.lock";
    let script = format!(
        "exec 3> {lock}; flock 3; for i in $(seq {WAITERS}); do flock {lock} true 3>&- & done; \
         until [ $(jq .locks.waiting .topofs/status) = {WAITERS} ]; do :; done; flock -u 3; wait"
    );
    let output = mount.bash(&format!("timeout 50 bash -c '{script}'"));
    assert!(output.status.success(), "{}", text(&output));
    // Each looks whether it is free, has it, and gives it back. If all looked each time that it comes free, it would be
    // a square.
    let looks = proxy.count();
    println!("{looks} looks by {WAITERS} waiters");
    assert!(looks < WAITERS * 8, "{looks} looks by {WAITERS} waiters");
}

#[test]
fn folders_of_consuls_user_interface_go_with_their_directory() {
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let root = service.root.trim_start_matches('/').to_owned();
    for folder in ["keyspaces/commerce/", "keyspaces/commerce/shards/", "keyspaces/commerce/empty/", "metadata/dir/"] {
        shared().curl(&["-f", "-X", "PUT"], &format!("kv/{root}/global/{folder}")).unwrap();
    }
    service.put("global/metadata/dir/a", b"a");
    service.put("global/metadata/dir/b", b"b");
    let mount = service.mount(&[]);
    let keys = |dir: &str| {
        let keys = shared().curl(&[], &format!("kv/{root}/global/{dir}?keys")).unwrap();
        serde_json::from_str::<Vec<String>>(&keys).unwrap_or_default()
    };
    mount.sh("rm -r global/keyspaces/commerce");
    eventually("nothing is left", || keys("keyspaces/commerce").is_empty().then_some(()));
    // One that is not empty stays.
    mount.sh("rm global/metadata/dir/a");
    assert_eq!(keys("metadata/dir/").len(), 2);
}

#[test]
fn an_index_that_makes_no_sense_silences_no_watch() {
    let service = Service::new(Implementation::Consul, shared().endpoint());
    let lies: Arc<std::sync::Mutex<Option<&str>>> = Arc::default();
    let told = lies.clone();
    let http = Http::before(shared().port, move |request| match *told.lock().unwrap() {
        Some(index) if request.line.contains("&wait=") => {
            Reply::Answer("200 OK", format!("X-Consul-Index: {index}\r\n"), b"[]".to_vec())
        }
        _ => Reply::Pass,
    });
    let mount = Mount::of("consul", &http.endpoint(), &service.root, &[]);
    let is_seen = |value: &str| {
        let path = mount.path("global/metadata/owner");
        eventually(value, || (std::fs::read(&path).ok()? == value.as_bytes()).then_some(()));
    };
    for index in ["18446744073709551615", "0"] {
        let before = mount.status()["cells"]["global"]["reconnects"].as_u64().unwrap();
        *lies.lock().unwrap() = Some(index);
        // It ends the query that waits.
        service.put("global/metadata/owner", b"something");
        eventually("the lie is told", || {
            (mount.status()["cells"]["global"]["reconnects"].as_u64()? > before).then_some(())
        });
        *lies.lock().unwrap() = None;
        service.put("global/metadata/owner", index.as_bytes());
        is_seen(index);
        wait_for_state(&mount, "global", "live");
        service.put("global/metadata/owner", b"later");
        is_seen("later");
    }
}
