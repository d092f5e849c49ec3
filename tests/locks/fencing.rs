//! Losing a lock: whoever held it is told, and cannot store anything any more.

use nix::sys::signal::Signal;

use crate::common::mount::TOPOFS;
use crate::common::{eventually, signal, text};
use crate::on_each_service;
use crate::{DIR, Holder, LOCK, SHORT, events, is_free, is_free_for_each, py, report};

const VSCHEMA: &str = "global/keyspaces/commerce/VSchema.json";

on_each_service! {
    fn a_frozen_holder_cannot_overwrite_its_successor(service) {
        let (one, two) = (service.mount(SHORT), service.mount(SHORT));
        let holder = Holder::new(&one, LOCK);
        one.sh(&format!("jq '.tables.one = {{}}' {VSCHEMA} > /tmp/$$; cat /tmp/$$ > {VSCHEMA}; rm /tmp/$$"));
        signal(one.pid(), Signal::SIGSTOP);
        // As long as the service believes in the holder, everybody waits. The successor leaves the record alone: it is
        // not versions that decide.
        two.sh(&format!("timeout 55 flock {LOCK} sed -i s/semi_sync/none/ {DIR}/Keyspace.txt"));
        let theirs = two.read(VSCHEMA);
        assert!(theirs.contains("\"one\""));
        signal(one.pid(), Signal::SIGCONT);
        // At once, before anybody has noticed anything, and again and again.
        for _ in 0..5 {
            let error = eventually("the service is reached again", || {
                let output = one.bash(&format!("printf '{{}}' | tee {VSCHEMA}"));
                assert!(!output.stderr.is_empty(), "refused");
                one.errors().pop().filter(|error| error["errno"] != "ETIMEDOUT")
            });
            assert_eq!(error["errno"], "EIO", "{error}");
            assert!(error["reason"].as_str().unwrap().contains("lock"), "{error}");
        }
        assert_eq!(two.read(VSCHEMA), theirs);
        eventually("an event tells", || (events(&one, "lock-lost").len() == 1).then_some(()));
        assert_eq!(events(&one, "lock-lost")[0]["by"]["pid"], holder.pid());
        // Until whoever has lost it lets go.
        holder.end();
        let new = one.outside().join("v").display().to_string();
        let edit = format!("jq '.tables.three = {{}}' {VSCHEMA} > {new} && cat {new} > {VSCHEMA}");
        eventually("free again", || one.bash(&edit).status.success().then_some(()));
        eventually("stored", || one.read(VSCHEMA).contains("\"three\"").then_some(()));
    }

    fn a_lock_that_is_broken_is_lost(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let program = "import errno, fcntl, os, subprocess, sys
topofs, lock, there = sys.argv[1:4]
f = os.open(lock, os.O_RDWR)
fcntl.flock(f, fcntl.LOCK_EX)
other = os.open(lock, os.O_RDWR)
os.read(f, 10), os.write(f, b'x'), os.fsync(f)
while True:
    done = subprocess.run([topofs, 'unlock', '--force', '--yes', there], stdout=subprocess.PIPE)
    assert done.returncode == 0
    if b'taken away' in done.stdout: break
def fails(call):
    try: call()
    except OSError as error: return error.errno == errno.EIO
    return False
import time
end = time.time() + 30
while not fails(lambda: os.read(f, 10)): assert time.time() < end
assert fails(lambda: os.write(f, b'x')) and fails(lambda: os.fsync(f)) and fails(lambda: os.pread(f, 1, 0))
# Never silently taken again; another descriptor is not concerned.
assert fails(lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB))
os.pread(other, 1, 0)
# Who lets go, may take it again.
fcntl.flock(f, fcntl.LOCK_UN)
os.pread(f, 1, 0)
fcntl.flock(f, fcntl.LOCK_EX)
os.pread(f, 1, 0)
print('done')";
        let there = two.path(DIR);
        assert_eq!(py(&one, program, &[TOPOFS, LOCK, there.to_str().unwrap()]), "done\n");
        let broken = events(&two, "lock-broken");
        let by = &broken[0]["by"];
        assert_eq!((broken.len(), &by["uid"], &by["command"]), (1, &0.into(), &"topofs".into()));
        assert!(by["pid"].as_u64().unwrap() > 1, "{broken:?}");
        let told = two.log().lines().filter(|line| line.contains("broken by force")).count();
        assert!(told == 1 && two.log().contains("uid=0") && two.log().contains("command=\"topofs\""), "{}", two.log());
        assert_eq!(events(&one, "lock-lost").len(), 1);
        assert!(is_free_for_each(&[&one, &two], LOCK));
    }

    fn a_lock_outlives_its_lease_many_times(service) {
        let (one, two) = (service.mount(SHORT), service.mount(SHORT));
        let holder = Holder::new(&one, LOCK);
        let begin = std::time::Instant::now();
        eventually("four leases of etcd's have passed", || {
            assert!(!is_free(&two, LOCK));
            (begin.elapsed().as_secs() > 12).then_some(())
        });
        one.sh(&format!("sed -i s/semi_sync/none/ {DIR}/Keyspace.txt"));
        assert_eq!(report(&one, LOCK)[0]["pid"], holder.pid());
        assert!(events(&one, "lock-lost").is_empty());
        holder.end();
        eventually("free for the other", || is_free(&two, LOCK).then_some(()));
    }
}

#[test]
fn whoever_has_the_lock_now_may_save_beside_one_who_lost_it() {
    let mount = crate::etcd_service().mount(SHORT);
    let loser = Holder::new(&mount, LOCK);
    mount.sh(&format!("{TOPOFS} unlock --force --yes {LOCK}"));
    eventually("it is lost", || (events(&mount, "lock-lost").len() == 1).then_some(()));
    let output = mount.bash(&format!("printf '{{}}' | tee {VSCHEMA}"));
    assert!(text(&output).contains("Input/output error"), "{}", text(&output));
    // A descendant of the new holder.
    mount.sh(&format!("timeout 20 flock {LOCK} bash -c \"printf '{{}}' > {VSCHEMA}\""));
    assert_eq!(mount.read(VSCHEMA), "{}\n");
    loser.end();
}
