//! Saves that need a lock: they wait for each other, on this mount and on another, and nobody takes them for somebody's
//! lock.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use topofs::backend::Implementation;

use crate::common::mount::Mount;
use crate::common::{eventually, process_has_ended, signal};
use crate::on_each_service;
use crate::{DIR, LOCK, events, is_free, py};

/// Counts in a record, `times` times, and prints what else than ESTALE went wrong.
const COUNTER: &str = r#"import collections, errno, os, re, sys
path, times, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen, done = collections.Counter(), 0
while done < times:
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR)
        value = int(re.search(rb"(\d+)", os.read(fd, 99)).group(1)) + 1
        os.ftruncate(fd, 0); os.pwrite(fd, b'durability_policy: "%d"\n' % value, 0)
        if how == "fsync": os.fsync(fd)
        closing, fd = fd, -1
        os.close(closing)
        done += 1
    except OSError as e:
        seen[errno.errorcode[e.errno]] += 1
        if fd >= 0:
            try: os.close(fd)
            except OSError: pass
seen.pop("ESTALE", None)
print(dict(seen))"#;

fn keyspace() -> String {
    format!("{DIR}/Keyspace.txt")
}

fn counting(mount: &Mount, times: usize, how: &str) -> Child {
    let path = mount.path(&keyspace());
    let mut command = Command::new("timeout");
    command.args(["55", "python3", "-c", COUNTER, path.to_str().unwrap(), &times.to_string(), how]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Something that goes on until it is dropped, also when a test fails.
struct Meanwhile(Child);

impl Drop for Meanwhile {
    fn drop(&mut self) {
        // `timeout` passes it on.
        signal(self.0.id(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Two who count at the same time lose nothing and are in nobody's way.
fn two_count(one: &Mount, two: &Mount) {
    const TIMES: usize = 25;
    for how in ["close", "fsync"] {
        one.sh(&format!("echo 'durability_policy: \"0\"' > {}", keyspace()));
        eventually("seen", || two.read(&keyspace()).contains("\"0\"").then_some(()));
        let both = [one, two].map(|mount| counting(mount, TIMES, how));
        for counted in both {
            let output = counted.wait_with_output().unwrap();
            assert!(output.status.success(), "{how}: {}\n{}\n{}", crate::common::text(&output), one.log(), two.log());
            assert_eq!(String::from_utf8_lossy(&output.stdout), "{}\n", "{how}: {}", one.log());
        }
        assert_eq!(one.read(&keyspace()), format!("durability_policy: \"{}\"\n", 2 * TIMES), "{how}");
    }
}

on_each_service! {
    fn two_savers_of_one_mount_wait_for_each_other(service) {
        let mount = service.mount(&[]);
        two_count(&mount, &mount);
    }

    fn two_savers_of_two_mounts_wait_for_each_other(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        two_count(&one, &two);
        for mount in [&one, &two] {
            assert!(events(mount, "lock-lost").is_empty());
            eventually("nothing is left", || crate::report(mount, LOCK).is_empty().then_some(()));
        }
    }

    fn a_save_right_after_a_lock_of_another_mount_has_ended_succeeds(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        let file = one.path(&keyspace());
        let script = format!(
            "for i in $(seq 50); do flock {LOCK} true; \
             echo \"durability_policy: \\\"$i\\\"\" > {0} || exit 1; \
             grep -q \"\\\"$i\\\"\" {0} || exit 2; done",
            file.display()
        );
        two.sh(&script);
        // Removing what is below a keyspace asks for its lock, too.
        two.sh(&format!("flock {LOCK} true; rm {}", one.path(&format!("{DIR}/shards/0/Shard")).display()));
    }

    fn a_save_is_nobodys_lock(service) {
        let (one, two) = (service.mount(&[]), service.mount(&[]));
        one.sh(&format!("echo 'durability_policy: \"0\"' > {}", keyspace()));
        let saver = Meanwhile(counting(&one, 1_000, "close"));
        eventually("it saves", || (!one.read(&keyspace()).contains("\"0\"")).then_some(()));
        for mount in [&one, &two] {
            // Whoever had it last through the other mount may be on its way out.
            eventually("free", || is_free(mount, LOCK).then_some(()));
            // Each at another point of a save; nobody else wants it.
            // (Consul has no line: who does not wait may find one save after the other.)
            let how = if service.implementation == Implementation::Consul { "-w 20" } else { "-n" };
            mount.sh(&format!(
                "for i in $(seq 12); do flock {how} {LOCK} true || exit 1; \
                 sleep 0.02; flock -w 20 {LOCK} true || exit 1; done"
            ));
        }
        drop(saver);
        eventually("free", || (is_free(&one, LOCK) && is_free(&two, LOCK)).then_some(()));
    }
}

#[test]
fn two_savers_of_the_embedded_service_wait_for_each_other() {
    let mount = Mount::new(&["demo"]);
    two_count(&mount, &mount);
}

/// A record beside it, whose save takes no lock, carries no lock of somebody else's save along.
#[test]
fn a_save_does_not_depend_on_the_lock_of_another_save() {
    let mount = crate::etcd_service().mount(&[]);
    mount.sh(&format!("echo 'durability_policy: \"0\"' > {}", keyspace()));
    let saver = Meanwhile(counting(&mount, 1_000, "close"));
    mount.sh(&format!(
        "for i in $(seq 60); do printf '{{\"tables\": {{\"t%d\": {{}}}}}}' $i > {0}/v; \
         cp {0}/v {DIR}/VSchema.json || exit 1; done",
        mount.outside().display()
    ));
    drop(saver);
}

/// The same beside short locks of this mount, which are guards of every save while they are held.
#[test]
fn a_lock_that_is_given_back_during_a_save_is_no_loss() {
    let mount = crate::etcd_service().mount(&[]);
    let locker = "while :; do flock global/keyspaces/commerce/.lock true; done";
    let mut command = Command::new("timeout");
    command.args(["55", "bash", "-c", locker]).current_dir(mount.root()).stdout(Stdio::null()).stderr(Stdio::null());
    let locker = Meanwhile(command.spawn().unwrap());
    mount.sh(&format!("echo 'durability_policy: \"0\"' > {}", keyspace()));
    let output = counting(&mount, 30, "close").wait_with_output().unwrap();
    mount.sh(&format!(
        "for i in $(seq 40); do printf '{{\"tables\": {{\"t%d\": {{}}}}}}' $i > {0}/v; \
         cp {0}/v {DIR}/VSchema.json || exit 1; done",
        mount.outside().display()
    ));
    drop(locker);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{}\n", "{}", mount.log());
}

#[test]
fn who_calls_a_lock_a_save_is_waited_for_and_not_passed_over() {
    let service = crate::etcd_service();
    let (one, two) = (service.mount(&["--respect-locks=all"]), service.mount(&[]));
    let program = "import fcntl, os, subprocess, sys
lock, keyspace, shard = sys.argv[1:4]
f = os.open(lock, os.O_RDWR)
os.write(f, b'topofs: save below global/keyspaces/commerce')
fcntl.flock(f, fcntl.LOCK_EX)
saves = [subprocess.Popen(['bash', '-c', script], stderr=subprocess.PIPE) for script in
    (f'echo > {keyspace}', f'rm {shard}', f'flock -n {os.path.dirname(keyspace)}/.lock true')]
for save in saves: print(save.wait(), 'busy' in save.communicate()[1].decode())";
    let (keyspace, shard) = (one.path(&keyspace()), one.path(&format!("{DIR}/shards/0/Shard.json")));
    let printed = py(&two, program, &[LOCK, keyspace.to_str().unwrap(), shard.to_str().unwrap()]);
    assert_eq!(printed, "1 True\n1 True\n1 False\n");
    assert!(
        two.read(&format!("{DIR}/Keyspace.txt")).contains("semi_sync")
            && two.path(&format!("{DIR}/shards/0/Shard")).exists()
    );
}

/// A directory that is being changed keeps its names, and the kernel can be told of none that is gone.
#[test]
fn a_name_that_is_kept_for_too_long_can_be_made_anew() {
    let service = crate::etcd_service();
    let mount = service.mount(&[]);
    mount.sh(&format!("echo '{{}}' > {DIR}/VSchema.json; cat {DIR}/VSchema.txt"));
    // A save of another mount, which does not end.
    let lock = format!("{DIR}/locks/1");
    service.put(&lock, br#"{"Action": "topofs: save below global/keyspaces/commerce"}"#);
    eventually("it is shown", || mount.read(LOCK).contains("save below").then_some(()));
    let mut removal = Command::new("rm").arg(mount.path(&format!("{DIR}/Keyspace"))).spawn().unwrap();
    eventually("it waits for the save", || {
        mount.read(".topofs/metrics").contains("topofs_requests_waiting 1").then_some(())
    });
    service.delete(&format!("{DIR}/VSchema"));
    eventually("the deletion is known", || {
        let is_it = |event: &serde_json::Value| event["path"] == "keyspaces/commerce/VSchema";
        events(&mount, "deleted").iter().any(is_it).then_some(())
    });
    let script = format!("echo > {DIR}/VSchema.txt");
    let mut maker = Command::new("bash").args(["-c", &script]).current_dir(mount.root()).spawn().unwrap();
    eventually("it waits for the removal, or was told that there is nothing", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", maker.id())).unwrap();
        stat.contains(") D ").then_some(()).or_else(|| process_has_ended(maker.id()).then_some(()))
    });
    service.delete(&lock);
    assert!(maker.wait().unwrap().success());
    removal.wait().unwrap();
}
