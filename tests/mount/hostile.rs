//! What a caller supplies, or a service stores, stands for nothing that it should not.

use crate::common::etcd::shared;
use crate::common::mount::Mount;
use crate::common::server::fresh_root;
use crate::common::{PYTHON, eventually, text};

#[test]
fn an_offset_of_one_directory_is_none_of_another() {
    let mount = Mount::new(&["demo", "--allow-other", "--umask=022"]);
    // The kernel's own copy of the listing is dropped, so that each read asks with the caller's offset.
    let program = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def entries(directory, offset):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(fd, offset, os.SEEK_SET)
    buffer, found = ctypes.create_string_buffer(65536), []
    while (size := libc.syscall(217, fd, buffer, 65536)) > 0:
        at = 0
        while at < size:
            length = int.from_bytes(buffer.raw[at + 16:at + 18], "little")
            name = buffer.raw[at + 19:at + length].split(b"\0")[0].decode()
            found.append((name, int.from_bytes(buffer.raw[at + 8:at + 16], "little")))
            at += length
    os.close(fd)
    return found
a, b = "global/keyspaces/commerce", "global/keyspaces/customer/shards"
own = {name for name, _ in entries(a, 0)}
offsets = [offset for _, offset in entries(b, 0)]
newest = max(offsets) >> 24
for offset in offsets + [(newest + step) << 24 | index for step in range(1, 50) for index in (0, 1, 2)]:
    for name, _ in entries(a, offset):
        assert name in own, (offset, name)
# What was planted under numbers to come is nobody's.
known = ("SrvVSchema", "SrvVSchema.json", "SrvVSchema.txt", "keyspaces", "tablets", ".", "..")
for name, _ in entries("zone1", 0): assert name in known, name
"#;
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let output =
        mount.bash(&format!("setpriv --reuid=65534 --regid=65534 --clear-groups {PYTHON} - < {}", file.display()));
    assert!(output.status.success(), "{}", text(&output));
    let before = mount.read("global/keyspaces/customer/Keyspace.txt");
    mount.sh("echo 'durability_policy: \"MEANT_FOR_COMMERCE\"' > global/keyspaces/commerce/Keyspace.txt");
    assert_eq!(mount.read("global/keyspaces/customer/Keyspace.txt"), before);
}

#[test]
fn a_stored_name_of_the_mounts_own_gives_way_everywhere() {
    let root = fresh_root();
    let put = |key: &str, value: &[u8]| shared().put(&format!("{root}/global/keyspaces/k/{key}"), value);
    put("Keyspace", b"\x42\x04none");
    put(".lock", b"x");
    put(".data", b"y");
    put("shards/0/Shard", b"\x38\x00");
    put("shards/0/Shard/locks/123", b"lock");
    put("shards/0/Shard/.data", b"z");
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    mount.sh("ls -la global/keyspaces/k > /dev/null");
    let held = mount.sh(&format!(
        "flock global/keyspaces/k/.lock etcdctl --endpoints {} \
         get --prefix --keys-only {root}/global/keyspaces/k/locks",
        shared().endpoint()
    ));
    assert!(held.contains("/locks/"), "the lock is the topology's: {held:?}");
    assert_ne!(mount.status()["cells"]["global"]["skipped_keys"], 0);
    // Every listed name is found as the same file.
    for dir in mount.sh("find . -type d").lines() {
        let same = mount.sh(&format!(
            "cd {dir}; ls -ia1p | grep -v '\\./$' | while read -r ino name; do echo $ino $(stat -c %i \"$name\"); done"
        ));
        for line in same.lines() {
            let (listed, found) = line.split_once(' ').unwrap();
            assert_eq!(listed, found, "{dir}: {same}");
        }
    }
    // A record whose key is a directory: its forms are refused by their other names rather than kept aside.
    for script in [
        "echo 'is_primary_serving: false' > global/keyspaces/k/shards/0/Shard.txt",
        "echo '{}' > global/keyspaces/k/shards/0/t; \
         mv global/keyspaces/k/shards/0/t global/keyspaces/k/shards/0/Shard.json",
        "mkdir global/keyspaces/k/shards/0/Shard.txt",
    ] {
        let output = mount.bash(script);
        assert!(text(&output).contains("Is a directory"), "{script}: {}", text(&output));
    }
    mount.sh("echo 'is_primary_serving: true' > global/keyspaces/k/shards/0/Shard/.data.txt");
    assert_eq!(shared().get(&format!("{root}/global/keyspaces/k/shards/0/Shard")).as_deref(), Some(&b"\x38\x01"[..]));
    // A keyspace with a slash in its name.
    shared().put(&format!("{root}/global/keyspaces/abc/def/Keyspace"), b"\x42\x04none");
    eventually("it is there", || mount.path("global/keyspaces/abc/def/Keyspace.txt").exists().then_some(()));
    mount.sh("rm -r global/keyspaces/abc");
    assert_eq!(shared().get(&format!("{root}/global/keyspaces/abc/def/Keyspace")), None);
}

#[test]
fn nobody_uses_up_the_memory_of_the_mount() {
    let mount = Mount::new(&["demo", "--allow-other", "--umask=000", "--scratch-quota=1MiB"]);
    // Drafts: a text may be large, many of them may not.
    let program = r#"
import errno, os
files, block = [], bytes([35]) + b"x" * ((1 << 20) - 2) + b"\n"
try:
    for number in range(8):
        files.append(os.open("global/keyspaces/commerce/VSchema.txt", os.O_WRONLY | os.O_TRUNC))
        for _ in range(31): os.write(files[-1], block)
    assert False, "no bound"
except OSError as e: assert e.errno == errno.ENOSPC, e
print(len(files))
"#;
    let file = mount.outside().join("program.py");
    std::fs::write(&file, program).unwrap();
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let output = mount.bash(&format!("{user} {PYTHON} - < {}", file.display()));
    assert!(output.status.success(), "{}", text(&output));
    // One user leaves room for scratch files to the others.
    let output = mount.bash(&format!(
        "{user} head -c 2000000 /dev/zero > global/full; {user} bash -c 'head -c 2000000 /dev/zero > global/full2'"
    ));
    assert!(text(&output).contains("No space left"), "{}", text(&output));
    mount.sh("rm -f global/full");
    mount.sh("head -c 50000 /dev/zero > global/others");
}
