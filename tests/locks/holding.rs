//! Taking, showing, refusing and giving back.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::mount::Mount;
use crate::common::{eventually, signal, text};
use crate::on_each_service;
use crate::{DIR, Holder, LOCK, SHORT, events, is_free, py, report};

on_each_service! {
    fn a_lock_is_the_same_on_every_mount(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        assert_eq!(one.read(LOCK), "");
        let holder = Holder::new(&one, LOCK);
        assert!(!is_free(&one, LOCK) && !is_free(&two, LOCK));
        // Who it is, can be read.
        let expected = format!("flock (pid {})", holder.pid());
        for mount in [&one, &two] {
            let shown = eventually("the holder is shown", || {
                serde_json::from_str::<serde_json::Value>(&mount.read(LOCK)).ok()
            });
            assert_eq!(shown["Action"], expected.as_str());
            assert_eq!((&shown["UserName"], &shown["Status"]), (&"root".into(), &"Running".into()));
            let sizes = mount.sh(&format!("stat -c %s {LOCK}; cat {LOCK} | wc -c"));
            assert_eq!(sizes.lines().collect::<std::collections::HashSet<_>>().len(), 1);
        }
        let (here, there) = (report(&one, LOCK), report(&two, LOCK));
        assert_eq!((here.len(), &here[0]["pid"], &here[0]["queue"]), (1, &holder.pid().into(), &serde_json::json!([])));
        let (pid, action) = (&there[0]["pid"], &there[0]["holder"]["Action"]);
        assert_eq!((there.len(), pid, action), (1, &().into(), &expected.as_str().into()));
        // Others are not concerned.
        assert!(is_free(&two, "global/keyspaces/customer/.lock") && is_free(&two, &format!("{DIR}/shards/0/.lock")));
        holder.end();
        assert_eq!(one.read(LOCK), "");
        eventually("free for the other", || is_free(&two, LOCK).then_some(()));
        eventually("nothing is left", || report(&one, LOCK).is_empty().then_some(()));
        let kinds = |mount: &Mount| (events(mount, "locked").len(), events(mount, "unlocked").len());
        eventually("both have told of it", || (kinds(&one).0 >= 1 && kinds(&two).1 >= 1).then_some(()));
        let by = serde_json::json!({ "uid": 0, "pid": holder_pid(&expected), "command": "flock" });
        assert_eq!(events(&one, "locked")[0]["by"], by);
        let told = eventually("it is given back", || {
            let path = LOCK.strip_prefix("global/").unwrap();
            events(&one, "unlocked").into_iter().find(|told| told["path"] == path)
        });
        assert_eq!(told["by"], by);
        assert_eq!(events(&two, "locked")[0]["by"], "remote");
        // Nothing is left in the service.
        let keys = service.keys();
        assert!(keys.iter().all(|key| !key.contains("/locks/") && !key.ends_with("/Lock")), "{keys:?}");
    }

    fn a_reason_can_be_given(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let out = one.sh(&format!(
            "exec 9> {LOCK}; echo 'reshard & <move>' >&9; flock 9; \
             jq -r .Action {LOCK}; cat {LOCK} | grep Action; flock -u 9"
        ));
        assert_eq!(out, "reshard & <move>\n  \"Action\": \"reshard \\u0026 \\u003cmove\\u003e\",\n");
        assert!(is_free(&two, LOCK));
    }

    fn an_election_has_a_leader(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let lock = "global/elections/cron/.lock";
        assert_eq!(one.read(lock), "");
        let script = format!(
            "exec 9> {lock}; echo one:8080 >&9; flock 9; cat {lock}; cd {}; touch led; cat > /dev/null",
            one.outside().display()
        );
        let mut first = std::process::Command::new("bash");
        first.args(["-c", &script]).current_dir(one.root()).stdin(std::process::Stdio::piped());
        let mut first = first.spawn().unwrap();
        eventually("there is a leader", || one.outside().join("led").exists().then_some(()));
        eventually("the other sees it", || (two.read(lock) == "one:8080\n").then_some(()));
        assert_eq!(two.sh("ls global/elections; ls -A global/elections/cron"), "cron\n.lock\n");
        assert!(!is_free(&two, lock));
        drop(first.stdin.take());
        first.wait().unwrap();
        let own = two.sh(&format!("flock -w 10 {lock} cat {lock}"));
        let parts = own.trim_end().rsplit_once(':');
        assert!(parts.is_some_and(|(host, pid)| !host.is_empty() && pid.parse::<u32>().is_ok()), "{own}");
    }

    fn named_locks_need_nothing_stored(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let lock = "global/internal/named_locks/commerce/move/.lock";
        let holder = Holder::new(&one, lock);
        assert!(!is_free(&two, lock));
        assert_eq!(report(&two, lock).len(), 1);
        holder.end();
        assert!(is_free(&one, lock));
        eventually("free for the other", || is_free(&two, lock).then_some(()));
        // The last one to have it was the other.
        eventually("no name is left", || one.sh("ls global/internal/named_locks").is_empty().then_some(()));
    }

    fn what_cannot_be_locked_says_so(service) {
        let mount = service.mount(&[]);
        // A directory that nothing is stored in, of this mount only.
        let output = mount.bash("mkdir global/empty && flock global/empty/.lock true");
        assert!(text(&output).contains("No such file"), "{}", text(&output));
        let output = mount.bash("flock global/nowhere/.lock true");
        assert!(text(&output).contains("No such file"), "{}", text(&output));
        let read_only = service.mount(&["--read-only"]);
        // Opened before: it is the lock that is refused.
        for lock in ["flock -n 8", "flock 8", "flock -s 8"] {
            let output = read_only.bash(&format!("exec 8< {LOCK}; echo open; {lock}"));
            let said = text(&output);
            assert!(said.contains("open") && said.contains("Read-only file system"), "{said}");
        }
        assert_eq!(read_only.read(LOCK), "");
    }

    fn who_is_in_the_way_is_told(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let holder = Holder::new(&one, LOCK);
        let ask = "import fcntl, os, struct, sys
f = os.open(sys.argv[1], os.O_RDWR)
answer = fcntl.fcntl(f, fcntl.F_GETLK, struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0, 0, 0))
kind, _, _, _, pid = struct.unpack('hhqqi', answer)
print(kind, pid)";
        let locked = libc::F_WRLCK;
        assert_eq!(py(&one, ask, &[LOCK]), format!("{locked} {}\n", holder.pid()));
        eventually("the other knows", || (py(&two, ask, &[LOCK]) == format!("{locked} 0\n")).then_some(()));
        holder.end();
        eventually("nobody", || (py(&two, ask, &[LOCK]) == format!("{} 0\n", libc::F_UNLCK)).then_some(()));
    }

    fn a_mount_that_ends_gives_its_locks_back(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let _holder = Holder::new(&one, LOCK);
        let _waiter = Holder::waiting(&one, LOCK, "true");
        eventually("both are there", || {
            let waiting = report(&one, LOCK)[0]["queue"].as_array().unwrap().len();
            (waiting == usize::from(service.implementation != topofs::backend::Implementation::Consul)).then_some(())
        });
        one.stop();
        assert!(is_free(&two, LOCK), "{:?}", report(&two, LOCK));
    }

    fn a_daemon_that_dies_keeps_its_locks_for_a_while(service) {
        let (one, two) = (service.mount(SHORT), service.mount(SHORT));
        let _holder = Holder::new(&one, LOCK);
        eventually("the other knows", || (!two.read(LOCK).is_empty()).then_some(()));
        signal(one.pid(), Signal::SIGKILL);
        let begin = std::time::Instant::now();
        assert!(!is_free(&two, LOCK), "not before");
        two.sh(&format!("timeout 50 flock {LOCK} true"));
        // A lease of 3 s was renewed within the last second.
        assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
    }

    fn a_keyspace_is_saved_under_its_lock(service) {
        let (one, two) = (service.mount(&["--respect-locks=all"]), service.mount(&[]));
        let (keyspace, shard) = (format!("{DIR}/Keyspace.txt"), format!("{DIR}/shards/0/Shard.txt"));
        let holder = Holder::new(&two, LOCK);
        for script in [
            format!("sed -i s/semi_sync/none/ {keyspace}"),
            format!("printf 'durability_policy: \"none\"\\n' | tee {keyspace}"),
            format!("rm {keyspace}"),
            // Shells ignore what close says: it is said at open.
            format!("echo '{{}}' > {DIR}/Keyspace.json"),
            format!("rm {DIR}/VSchema"),
            format!("rm {DIR}/shards/0/Shard.json"),
        ] {
            let output = one.bash(&format!("set -o pipefail; {script}"));
            assert!(!output.status.success() && text(&output).contains("busy"), "{script}: {}", text(&output));
            let error = one.errors().pop().unwrap();
            assert_eq!(error["errno"], "EBUSY");
            let reason = error["reason"].as_str().unwrap();
            assert!(reason.contains("root@") && reason.contains("flock"), "{reason}");
        }
        // Not concerned: other records, other keyspaces, shards.
        one.sh(&format!(
            "sed -i s/foo/bar/ {DIR}/VSchema.txt; \
             sed -i s/semi_sync/none/ global/keyspaces/customer/Keyspace.txt"
        ));
        // The mount that has the lock goes on; so does one that does not ask.
        two.sh(&format!("sed -i s/semi_sync/cross_cell/ {keyspace}"));
        holder.end();
        eventually("the save is seen", || one.read(&keyspace).contains("cross_cell").then_some(()));
        one.sh(&format!("sed -i s/cross_cell/none/ {keyspace}"));
        assert!(one.read(&keyspace).contains("none"));
        let holder = Holder::new(&two, &format!("{DIR}/shards/0/.lock"));
        let output = one.bash(&format!("echo '# x' | tee -a {shard}; sed -i s/true/false/ {shard}"));
        assert!(text(&output).contains("busy"));
        two.sh(&format!("sed -i s/true/false/ {shard}"));
        holder.end();
        eventually("free", || is_free(&two, LOCK).then_some(()));
        let free = service.mount(&["--respect-locks=none"]);
        let _holder = Holder::new(&two, LOCK);
        free.sh(&format!("sed -i s/none/semi_sync/ {keyspace}"));
    }
}

on_each_service! {
    fn routing_rules_of_keyspaces_are_saved_under_their_lock(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let (dir, lock) = ("global/routing_rules/keyspace", "global/routing_rules/.lock");
        let rules = r#"{"rules": [{"from_keyspace": "a", "to_keyspace": "b"}]}"#;
        one.sh(&format!("mkdir -p {dir}; echo '{rules}' > {dir}/Rules.json"));
        eventually("the other sees it", || two.path(dir).join("Rules").exists().then_some(()));
        let holder = Holder::new(&two, lock);
        let edit = format!("sed -i 's/\"a\"/\"c\"/' {dir}/Rules.txt");
        for script in [edit.clone(), format!("rm {dir}/Rules")] {
            let output = one.bash(&script);
            assert!(!output.status.success() && text(&output).contains("busy"), "{script}: {}", text(&output));
        }
        // Who has the lock goes on.
        two.sh(&edit);
        holder.end();
        eventually("the save is seen", || one.read(&format!("{dir}/Rules.txt")).contains("\"c\"").then_some(()));
        eventually("the lock is free", || one.bash(&format!("rm {dir}/Rules")).status.success().then_some(()));
        assert!(service.get("global/routing_rules/keyspace/Rules").is_none());
    }
}

fn holder_pid(action: &str) -> u32 {
    action.trim_end_matches(')').rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn locks_of_the_embedded_service() {
    let mount = Mount::new(&["demo"]);
    let holder = Holder::new(&mount, LOCK);
    assert!(!is_free(&mount, LOCK));
    assert!(text(&mount.bash(&format!("flock -w 1 {LOCK} true; echo $?"))).contains('1'));
    mount.sh(&format!("sed -i s/semi_sync/none/ {DIR}/Keyspace.txt"));
    holder.end();
    assert!(is_free(&mount, LOCK));
    // Both forms of a shared lock are exclusive.
    mount.sh(&format!("flock -s {LOCK} bash -c '! flock -n -s {LOCK} true'"));
}

/// What is made anew while somebody has the old one's lock, or anything else below it, open.
#[test]
fn a_directory_can_be_made_anew_while_it_is_in_use() {
    let service = crate::etcd_service();
    let (one, two) = (service.mount(&[]), service.mount(&[]));
    let make = "mkdir -p global/keyspaces/again; echo '{}' > global/keyspaces/again/Keyspace.json";
    for (open, remaker) in [(".lock", &one), ("Keyspace.json", &one), (".lock", &two), ("Keyspace.json", &two)] {
        one.sh(make);
        eventually("seen", || two.path("global/keyspaces/again/Keyspace").exists().then_some(()));
        let file = std::fs::File::open(one.path(&format!("global/keyspaces/again/{open}"))).unwrap();
        remaker.sh("rm -r global/keyspaces/again");
        eventually("gone", || (!one.path("global/keyspaces/again").exists()).then_some(()));
        remaker.sh(make);
        eventually("there again", || {
            let list = one.sh("ls -A global/keyspaces/again 2> /dev/null || true");
            (list == ".lock\nKeyspace\nKeyspace.json\nKeyspace.txt\n").then_some(())
        });
        assert_eq!(one.read("global/keyspaces/again/Keyspace.json"), "{}\n");
        assert!(is_free(&one, "global/keyspaces/again/.lock"));
        one.sh("echo '{}' > global/keyspaces/again/VSchema.json");
        drop(file);
        one.sh("rm -r global/keyspaces/again");
        eventually("gone", || (!two.path("global/keyspaces/again").exists()).then_some(()));
    }
}

#[test]
fn a_busy_mount_that_is_told_to_end_gives_its_locks_back() {
    let service = crate::etcd_service();
    let (one, two) = (service.mount(&[]), service.mount(&[]));
    let _holder = Holder::new(&one, LOCK);
    let mut waiter = std::process::Command::new("flock")
        .args([LOCK, "true"])
        .current_dir(one.root())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it waits", || (report(&one, LOCK)[0]["queue"].as_array().unwrap().len() == 1).then_some(()));
    signal(one.pid(), Signal::SIGTERM);
    let status = eventually("the wait ends", || waiter.try_wait().unwrap());
    assert!(!status.success(), "it does not get the lock any more");
    eventually("free", || is_free(&two, LOCK).then_some(()));
}

#[test]
fn a_dead_service_cannot_be_locked() {
    let mut server = crate::common::etcd::Etcd::start();
    let service = crate::common::world::Service::new(topofs::backend::Implementation::Etcd2, server.endpoint());
    let mount = service.mount(&["--stale-after=1s", "--remote-operation-timeout=2s", "--topo-etcd-lease-ttl=3s"]);
    let mut waiter = {
        let _holder = Holder::new(&mount, LOCK);
        let waiter = std::process::Command::new("flock")
            .args([LOCK, "true"])
            .current_dir(mount.root())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it waits", || (report(&mount, LOCK)[0]["queue"].as_array().unwrap().len() == 1).then_some(()));
        server.kill();
        eventually("it is noticed", || (mount.status()["cells"]["global"]["state"] == "down").then_some(()));
        for script in [format!("flock {LOCK} true"), format!("flock -n {LOCK} true")] {
            let output = mount.bash(&script);
            assert!(text(&output).contains("timed out"), "{script}: {}", text(&output));
        }
        waiter
    };
    let status = eventually("a wait ends, too", || waiter.try_wait().unwrap());
    assert!(!status.success());
    server.restart();
    eventually("all is well again", || is_free(&mount, LOCK).then_some(()));
}
