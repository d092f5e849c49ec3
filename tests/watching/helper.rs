//! The process that raises events: what it may do, and that there always is one.

use std::process::Command;

use crate::common::mount::{Mount, TOPOFS, is_mounted};
use crate::common::world::Service;
use crate::common::{bash_apart, bash_in, eventually, signal, text};
use crate::watcher::{CLOSED, Watcher};
use nix::sys::signal::Signal;

const OWNER: &str = "global/metadata/owner";

fn service() -> Service {
    Service::etcd2()
}

/// Of a mount of the service.
fn flags(service: &Service) -> String {
    let Service { implementation, server, root } = service;
    format!(
        "--topo-implementation {implementation} --topo-global-server-address {server} --topo-global-root {root}/global"
    )
}

fn helper_of(mount: &Mount) -> u32 {
    eventually("there is a helper", || mount.status()["helper"]["pid"].as_u64()).try_into().unwrap()
}

/// Answers to system calls with ENOSYS, as kernels do that do not have them; then becomes another program.
const OLD_KERNEL: &str = "import ctypes, os, struct, sys
step = lambda code, k, jt=0, jf=0: struct.pack('HBBI', code, jt, jf, k)
program = step(0x20, 0)
for number in map(int, filter(None, sys.argv[1].split(','))):
    program += step(0x15, number, 0, 1) + step(0x06, 0x00050000 | 38)
program += step(0x06, 0x7fff0000)
steps = ctypes.create_string_buffer(program, len(program))
class Filter(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('steps', ctypes.c_void_p)]
PR_SET_SECCOMP, FILTER = 22, 2
rules = Filter(len(program) // 8, ctypes.addressof(steps))
assert ctypes.CDLL(None).prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(rules), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])";
const OPEN_TREE: &str = "428";
const FSOPEN: &str = "430";
const OPENAT2: &str = "437";

fn on_old_kernel(service: &Service, missing: &[&str], flags: &[&str]) -> Mount {
    let missing = missing.join(",");
    let program = ["python3", "-c", OLD_KERNEL, &missing, TOPOFS];
    Mount::of_under(&program, &service.implementation.to_string(), &service.server, &service.root, flags)
}

#[test]
fn a_helper_that_dies_is_followed_by_another() {
    let service = service();
    for missing in [&[][..], &[OPEN_TREE, FSOPEN]] {
        let mount = on_old_kernel(&service, missing, &[]);
        let watcher = Watcher::new(&mount, "global");
        for round in 1..=3 {
            let before = helper_of(&mount);
            signal(before, Signal::SIGKILL);
            // It is noticed without anything to do for it.
            eventually("another one", || {
                (mount.status()["helper"]["restarts"] == round && helper_of(&mount) != before).then_some(())
            });
            let name = format!("round{round}");
            service.put(&format!("global/metadata/{name}"), b"x");
            watcher.until(&format!("metadata/{name}"), CLOSED);
            service.put(&format!("global/metadata/{name}"), b"y");
        }
        assert!(mount.log().contains("the helper that raises events has died"), "{}", mount.log());
        service.delete("global/metadata/round1");
        assert_eq!(watcher.until("metadata/round1", "DELETE").last().unwrap(), "DELETE");
        mount.stop();
        (2..=3).for_each(|round| service.delete(&format!("global/metadata/round{round}")));
    }
}

#[test]
fn a_helper_that_dies_at_work_removes_and_makes_nothing() {
    let service = service();
    let mount = service.mount(&[]);
    let _watcher = Watcher::new(&mount, "global");
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            for number in 0..400 {
                service.put(&format!("global/metadata/key{}", number % 7), number.to_string().as_bytes());
                if number % 5 == 0 {
                    service.delete(&format!("global/metadata/key{}", number % 7));
                }
            }
        });
        for round in 1..=5 {
            let helper = helper_of(&mount);
            signal(helper, Signal::SIGKILL);
            eventually("it has been noticed", || (mount.status()["helper"]["restarts"] == round).then_some(()));
        }
        storm.join().unwrap();
    });
    // What this mount shows is what is stored, and it has stored nothing.
    let stored = |number: u64| service.get(&format!("global/metadata/key{number}"));
    for number in 0..7 {
        let last = (0..400).rev().find(|put| put % 7 == number).unwrap();
        let expected = (last % 5 != 0).then(|| last.to_string().into_bytes());
        assert_eq!(stored(number), expected, "key{number}");
        eventually("the mount shows it", || {
            (std::fs::read(mount.path(&format!("global/metadata/key{number}"))).ok() == expected).then_some(())
        });
    }
    let saved = r#".kind == "created" or .kind == "changed" or .kind == "deleted""#;
    let events = mount.sh(&format!("jq -c 'select(.by != \"remote\" and ({saved}))' .topofs/events"));
    assert_eq!(events, "");
}

#[test]
fn the_helper_has_what_it_needs_and_nothing_else() {
    let service = service();
    // Other owners' files are raised events of with the one capability that is left.
    let script = "exec 5</etc/hostname 11>/dev/null; SECRET=1 exec \"$@\"";
    let mount = Mount::of_under(
        &["bash", "-c", script, "bash", TOPOFS],
        "etcd2",
        &service.server,
        &service.root,
        &["--uid", "65534", "--gid", "65534"],
    );
    let watcher = Watcher::new(&mount, "global/metadata");
    service.put(OWNER, b"x");
    watcher.until("owner", CLOSED);
    let pid = helper_of(&mount);
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let status = proc("status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    const DAC_OVERRIDE: &str = "0000000000000002";
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(set), DAC_OVERRIDE, "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(proc("environ"), "");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), std::path::Path::new("/"));
    let mut open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    // Nor does the daemon keep what somebody has left open.
    let daemon = std::fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap();
    let kept = daemon.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    assert!(kept.into_iter().all(|file| file != std::path::Path::new("/etc/hostname")));
}

#[test]
fn a_mount_point_of_any_bytes_is_in_nobodys_way() {
    let (service, dir) = (service(), tempfile::tempdir().unwrap());
    let flags = flags(&service);
    // Others do not see what this does to the table of mounts.
    let script = format!(
        r#"set -e
        mkdir m $'bad\xff'; {TOPOFS} mount {flags} "$PWD/m"
        pid=$(jq .pid m/.topofs/status); helper=$(jq .helper.pid m/.topofs/status)
        mount -t tmpfs none $'bad\xff'
        inotifywait -q -t 30 -e close_write m/global/metadata > seen 2> watching & watch=$!
        ls m/global/metadata > /dev/null; echo ready > ready
        wait $watch
        test $helper = $(jq .helper.pid m/.topofs/status)
        # New ones come up, also at such a place.
        mkdir $'bad\xff/\xfe'; {TOPOFS} demo $'bad\xff/\xfe'; ls $'bad\xff/\xfe/global'; umount $'bad\xff/\xfe'
        kill $pid
        while [ -e /proc/$pid/exe ]; do sleep 0.01; done
        ! grep -a "$PWD/m " /proc/self/mounts"#
    );
    let output = while_it_changes(&service, dir.path(), &script);
    assert!(output.status.success(), "{}", text(&output));
}

/// Runs a script apart, and changes a record again and again when it says that it is ready.
fn while_it_changes(service: &Service, dir: &std::path::Path, script: &str) -> std::process::Output {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| bash_apart(dir, script));
        // When it watches, it does not say.
        let mut number = 0;
        eventually("it has ended", || {
            if dir.join("ready").exists() {
                number += 1;
                service.put(OWNER, number.to_string().as_bytes());
            }
            run.is_finished().then_some(())
        });
        run.join().unwrap()
    })
}

#[test]
fn a_daemon_without_descriptors_keeps_its_helper_and_leaves_no_mount() {
    let service = service();
    let mount = service.mount(&[]);
    let watcher = Watcher::new(&mount, "global/metadata");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let open_files: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(open_files[3], open_files[4], "as many as it may have");
    let (before, pid) = (helper_of(&mount), mount.pid().to_string());
    let none = Command::new("prlimit").args(["--pid", &pid, "--nofile=1:"]).status().unwrap();
    assert!(none.success());
    // The table of mounts changes, so it is looked at.
    bash_in(mount.outside(), "mkdir x; mount -t tmpfs none x; umount x");
    service.put(OWNER, b"x");
    watcher.until("owner", CLOSED);
    assert_eq!(helper_of(&mount), before);
    signal(mount.pid(), Signal::SIGTERM);
    eventually("nothing is left", || (!is_mounted(&mount.root())).then_some(()));
    eventually("the daemon has ended", || crate::common::process_has_ended(mount.pid()).then_some(()));
}

/// What is mounted on a directory or a file inside the mount does not get the calls that are meant for what lies under
/// it.
fn spares_what_is_mounted_inside(missing: &[&str]) {
    let service = service();
    for key in ["gone", "kept"] {
        service.put(&format!("global/metadata/{key}"), b"x");
    }
    let mount = on_old_kernel(&service, missing, &[]);
    let watcher = Watcher::new(&mount, "global");
    mount.sh("mount -t tmpfs none global/metadata; cd global/metadata; echo mine > gone; mkdir sub");
    mount.sh("mount --bind /etc/hostname global/routing_rules 2> /dev/null || :");
    service.delete("global/metadata/gone");
    service.put("global/metadata/kept", b"y");
    service.put("global/metadata/new", b"z");
    service.put("global/metadata/dir/new", b"z");
    service.put("global/cells/marker/CellInfo", b"");
    watcher.until("cells/marker", "CREATE,ISDIR");
    assert_eq!(mount.sh("cd global/metadata; ls; cat gone"), "gone\nsub\nmine\n");
    mount.sh("umount global/metadata");
    eventually("under it is what is stored", || {
        (mount.sh("ls global/metadata") == "dir\nkept\nnew\nowner\n").then_some(())
    });
}

#[test]
fn what_is_mounted_inside_the_mount_is_spared() {
    spares_what_is_mounted_inside(&[OPEN_TREE, FSOPEN]);
}

#[test]
fn what_is_mounted_inside_the_mount_is_spared_on_the_oldest_kernels() {
    spares_what_is_mounted_inside(&[OPEN_TREE, FSOPEN, OPENAT2]);
}

#[test]
fn a_read_only_mount_is_read_only_wherever_it_is_seen() {
    let service = service();
    let dir = tempfile::tempdir().unwrap();
    let flags = flags(&service);
    // In a namespace of its own, where what is mounted is passed on: to a peer, to a slave, to another namespace. A
    // program there may have a file open for writing as soon as there is one.
    let script = format!(
        r#"set -e
        mkdir base peer slave; mount -t tmpfs none base; mount --make-shared base; mkdir base/m
        mount --bind base peer; mount --bind base slave; mount --make-slave slave
        unshare -m --propagation slave sleep 60 & other=$!
        until [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.01; done
        until nsenter -t $other -m grep -q base /proc/self/mountinfo; do sleep 0.01; done
        {TOPOFS} mount {flags} --read-only -o noatime "$PWD/base/m"
        trap 'umount -l base/m; kill $other' EXIT
        for place in base peer slave; do
            grep " $PWD/$place/m ro,nosuid,nodev,noexec," /proc/self/mountinfo > /dev/null
        done
        nsenter -t $other -m grep " $PWD/base/m ro,nosuid,nodev,noexec," /proc/self/mountinfo > /dev/null
        cat > writes.py <<'END'
import errno, os, sys
try: os.open(sys.argv[1] + '/m/{OWNER}', os.O_RDWR)
except OSError as error: assert error.errno == errno.EROFS, error
else: sys.exit('opened')
END
        for place in base peer slave; do python3 writes.py $place; done
        nsenter -t $other -m --wdns="$PWD" python3 writes.py base
        nsenter -t $other -m --wdns="$PWD" \
            inotifywait -q -t 30 -e close_write base/m/global/metadata > seen 2> watching & watch=$!
        ls base/m/global/metadata > /dev/null
        echo ready > ready
        wait $watch"#
    );
    let output = while_it_changes(&service, dir.path(), &script);
    assert!(output.status.success(), "{}", text(&output));
    let seen = std::fs::read_to_string(dir.path().join("seen")).unwrap();
    assert!(seen.contains("CLOSE_WRITE"), "{seen}");
}
