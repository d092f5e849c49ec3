//! Refusals: the errno, the reason in `.topofs/errors`, and the stored record untouched.

use std::process::Command;

use crate::common::mount::{Mount, TOPOFS};
use crate::on_each_backend;

const SHARD: &str = "global/keyspaces/commerce/shards/0/Shard";

fn last_error(mount: &Mount) -> serde_json::Value {
    mount.errors().pop().expect("there is an error")
}

on_each_backend! {
    fn invalid_input_changes_nothing(world) {
        let mount = &world.mount;
        let before = (world.changes(), mount.read(&format!("{SHARD}.txt")));
        // What no further bytes could repair fails visibly in a shell, at the write.
        for (script, reason, position) in [
            (format!("echo 'bogus: 1' > {SHARD}.txt"), "field 'bogus' not found", (1, 1)),
            (format!("printf 'is_primary_serving: true\\nkey_range: 7\\n' > {SHARD}.txt"), "", (2, 12)),
            (format!("printf '{{\"bogus\": 1}}\\n' > {SHARD}.json"), "bogus", (1, 8)),
            (format!("printf 'is_primary_serving: maybe\\n' > {SHARD}.txt"), "", (1, 21)),
            (format!("printf '{{\"key_range\": {{}},\\n\"keyRange\": {{}}}}\\n' > {SHARD}.json"), "twice", (2, 10)),
            (
                format!("printf 'is_primary_serving: false\\nis_primary_serving: true\\n' > {SHARD}.txt"),
                "comments",
                (2, 1),
            ),
        ] {
            let output = mount.bash(&script);
            assert_eq!(output.status.code(), Some(1), "{script}");
            assert!(crate::common::text(&output).contains("Bad message"), "{script}");
            let error = last_error(mount);
            assert_eq!((&error["errno"], &error["path"].as_str().unwrap()[..SHARD.len()]), (&"EBADMSG".into(), SHARD));
            assert!(error["reason"].as_str().unwrap().contains(reason), "{script}: {error}");
            let found = (error["line"].as_u64(), error["column"].as_u64());
            assert_eq!(found, (Some(position.0), Some(position.1)), "{script}: {error}");
        }
        // So does what no Vitess would read as the raw form: bash does not look at what its close says.
        for (script, reason) in [
            (format!("printf '\\x0f\\x0f' > {SHARD}"), "wire type"),
            (format!("printf '\\x0a\\x03abc' > {SHARD}"), "decoded"),
            (format!("cat zone1/tablets/zone1-0000000100/Tablet > {SHARD}"), "decoded"),
            ("printf '\\x20\\x00' > zone1/tablets/zone1-0000000100/Tablet".to_owned(), "port_map"),
        ] {
            let output = mount.bash(&script);
            assert_eq!(output.status.code(), Some(1), "{script}: {}", crate::common::text(&output));
            assert!(crate::common::text(&output).contains("Bad message"), "{script}");
            let error = last_error(mount);
            assert_eq!(error["errno"], "EBADMSG", "{script}");
            assert!(error["reason"].as_str().unwrap().contains(reason), "{script}: {error}");
        }
        // What is only incomplete fails at the close, for all who look at it.
        for (script, reason) in [
            (format!("printf 'key_range {{' | tee {SHARD}.txt"), "end"),
            (format!("printf '{{' | tee {SHARD}.json"), "EOF"),
            (format!("printf '{{}} x' | tee {SHARD}.json"), ""),
            (format!("head -c 300 /dev/urandom | tee {SHARD} > /dev/null"), "decoded"),
            (format!("cp zone1/tablets/zone1-0000000100/Tablet {SHARD}"), "decoded"),
            (format!("cp zone1/tablets/zone1-0000000100/Tablet.txt {SHARD}.txt"), "alias"),
            (format!("cp zone1/tablets/zone1-0000000100/Tablet.json {SHARD}.json"), "alias"),
            (format!("sed -i s/true/maybe/ {SHARD}.txt"), "true"),
        ] {
            let output = mount.bash(&script);
            let pipe_failed = mount.bash(&format!("set -o pipefail; {script}"));
            assert!(!pipe_failed.status.success(), "{script}");
            assert!(crate::common::text(&output).contains("Bad message"), "{script}: {}", crate::common::text(&output));
            let error = last_error(mount);
            assert_eq!(error["errno"], "EBADMSG", "{script}");
            assert!(error["reason"].as_str().unwrap().contains(reason), "{script}: {error}");
        }
        assert_eq!((world.changes(), mount.read(&format!("{SHARD}.txt"))), before);
    }

    fn too_large_is_refused_before_sending(world) {
        let mount = &world.mount;
        let before = world.changes();
        for script in [
            "head -c 2097152 /dev/zero | tr '\\0' x > global/metadata/big",
            "head -c 2097152 /dev/zero | tr '\\0' x | dd of=global/metadata/big bs=1M status=none",
            "truncate -s 2M global/metadata/owner",
            "(printf 'base_keyspace: \"'; head -c 2097152 /dev/zero | tr '\\0' x; printf '\"') \
             | dd of=global/keyspaces/commerce/Keyspace.txt bs=64k status=none",
        ] {
            let output = mount.bash(&format!("set -o pipefail; {script}"));
            let message = crate::common::text(&output);
            assert!(message.contains("File too large"), "{script}: {message}");
            assert!(!output.status.success(), "{script}");
            assert_eq!(last_error(mount)["errno"], "EFBIG", "{script}");
        }
        assert_eq!(world.changes(), before);
        assert!(!mount.path("global/metadata/big").exists());
    }

    fn names_that_cannot_be_are_refused(world) {
        let mount = &world.mount;
        let too_long = "n".repeat(256);
        let output = mount.bash(&format!("touch global/metadata/{too_long}"));
        assert!(crate::common::text(&output).contains("File name too long"));
        assert!(crate::common::text(&mount.bash("mkdir newcell")).contains("Operation not permitted"));
        assert!(crate::common::text(&mount.bash("touch .topofs/x")).contains("Operation not permitted"));
        for script in [
            "rm global/keyspaces/commerce/.lock",
            "mv global/keyspaces/commerce/.lock global/x",
            "mv -f global/keyspaces/commerce/VSchema global/.lock",
        ] {
            assert!(crate::common::text(&mount.bash(script)).contains("Operation not permitted"), "{script}");
        }
        for script in ["set -C; > global/.lock", "mkdir global/.lock"] {
            assert!(crate::common::text(&mount.bash(script)).contains("exist"), "{script}");
        }
        assert!(crate::common::text(&mount.bash("ln -s a global/metadata/link")).contains("not"));
        assert!(crate::common::text(&mount.bash("mkfifo global/metadata/pipe")).contains("Operation not permitted"));
        assert!(crate::common::text(&mount.bash("rmdir global/keyspaces/commerce")).contains("Directory not empty"));
        assert!(crate::common::text(&mount.bash("cat global/keyspaces/none/Keyspace")).contains("No such file"));
    }

    fn a_conflict_is_seen_and_stores_nothing(world) {
        // One descriptor reads, the record changes elsewhere, then the descriptor writes.
        let mount = &world.mount;
        let script = r#"
            exec 3<> global/keyspaces/commerce/Keyspace.txt
            cat <&3 > /dev/null
            sed -i s/semi_sync/none/ global/keyspaces/commerce/Keyspace.txt
            echo '# mine' >&3
            exec 3>&- 2> close-error
        "#;
        mount.bash(script);
        assert_eq!(last_error(mount)["errno"], "ESTALE");
        assert!(mount.read("global/keyspaces/commerce/Keyspace.txt").starts_with("durability_policy: \"none\"\n"));
    }
}

#[test]
fn a_refused_save_is_one_line_in_errors_and_log() {
    let mount = Mount::new(&["demo"]);
    let python = |content: &str, calls: &str| {
        format!(
            "python3 -c 'import os
fd = os.open(\"{SHARD}.txt\", os.O_WRONLY | os.O_TRUNC)
def tried(call, *args):
    try: call(*args)
    except OSError as e: print(e.errno, end=\" \")
tried(os.write, fd, b\"{content}\\n\")
{calls}
tried(os.close, fd)'"
        )
    };
    for (script, refused) in [
        (format!("echo 'bogus: 1' > {SHARD}.txt"), None),
        (format!("printf 'key_range {{' > {SHARD}.txt"), None),
        (format!("printf '\\x0f' > {SHARD}"), None),
        (format!("echo 'bogus: 1' | tee {SHARD}.txt"), None),
        (format!("cp zone1/tablets/zone1-0000000100/Tablet.txt {SHARD}.txt"), None),
        (python("bogus: 1", ""), Some(2)),
        (python("bogus: 1", "tried(os.write, fd, b\"x\"); tried(os.fsync, fd); tried(os.fsync, fd)"), Some(5)),
        (python("key_range {", "tried(os.fsync, fd); tried(os.close, os.dup(fd))"), None),
        // The kernel does not repeat these.
        (format!("echo bogus > global/x && mv global/x {SHARD}.txt; rm -f global/x"), None),
        (format!("truncate -s 1 {SHARD}.json"), None),
    ] {
        let log = |mount: &Mount| mount.log().lines().filter(|line| line.contains("EBADMSG")).count();
        let before = (mount.errors().len(), log(&mount));
        let output = mount.bash(&script);
        if let Some(refused) = refused {
            assert_eq!(String::from_utf8_lossy(&output.stdout).split_whitespace().count(), refused, "{script}");
        }
        assert_eq!((mount.errors().len(), log(&mount)), (before.0 + 1, before.1 + 1), "{script}: {:?}", mount.errors());
        // The same mistake again is another one.
        mount.bash(&script);
        assert_eq!((mount.errors().len(), log(&mount)), (before.0 + 2, before.1 + 2), "{script}: {:?}", mount.errors());
    }
    // Who gives two reasons is told both.
    let before = mount.errors().len();
    let other = "tried(os.ftruncate, fd, 0); tried(os.pwrite, fd, b\"other: 1\\n\", 0)";
    mount.bash(&python("bogus: 1", other));
    assert_eq!(mount.errors().len(), before + 2, "{:?}", mount.errors());
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    for flags in [["--read-only"], ["-oro"]] {
        let mount = Mount::new(&[&["demo"], &flags[..]].concat());
        for script in [
            "echo x > global/metadata/owner",
            "rm global/metadata/owner",
            "touch global/metadata/new",
            "mkdir global/metadata/dir",
            "mv global/metadata/owner global/metadata/other",
            "truncate -s 0 global/metadata/owner",
        ] {
            let output = mount.bash(script);
            assert!(
                crate::common::text(&output).contains("Read-only file system"),
                "{script}: {}",
                crate::common::text(&output)
            );
        }
        assert_eq!(mount.read("global/metadata/owner"), "the shop team");
    }
}

#[test]
fn a_read_only_mount_comes_up_while_somebody_tries_to_write() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    for file in ["global/keyspaces/commerce/.lock", "global/metadata/owner", ".topofs/control"] {
        for round in 0..3 {
            let point = dir.path().join(format!("{}{round}", file.replace('/', "-")));
            std::fs::create_dir(&point).unwrap();
            let (tried, end) = (point.join(file), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let writers = [(); 2].map(|()| {
                    scope.spawn(|| {
                        while !end.load(Ordering::Relaxed) {
                            assert!(std::fs::File::options().write(true).open(&tried).is_err(), "{file} was opened");
                        }
                    })
                });
                let output = Command::new(TOPOFS).args(["demo", "--read-only"]).arg(&point).output().unwrap();
                end.store(true, Ordering::Relaxed);
                let unmounted = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
                writers.into_iter().for_each(|writer| writer.join().unwrap());
                assert!(output.status.success(), "{file}: {}", crate::common::text(&output));
                unmounted.unwrap();
            });
        }
    }
}

#[test]
fn no_delete_keeps_stored_records() {
    let mount = Mount::new(&["demo", "--no-delete"]);
    for script in [
        "rm -f global/metadata/owner",
        "rm -r global/keyspaces/archive",
        "mv global/metadata/owner global/metadata/new",
    ] {
        assert!(crate::common::text(&mount.bash(script)).contains("Operation not permitted"), "{script}");
    }
    mount.sh("echo changed > global/metadata/owner");
    mount.sh("touch global/notes; rm global/notes; mkdir global/dir; rmdir global/dir");
    assert_eq!(mount.read("global/metadata/owner"), "changed\n");
    assert!(mount.path("global/keyspaces/archive/Keyspace").exists());
}

#[test]
fn nesting_without_end_is_a_bad_message() {
    let mount = Mount::new(&["demo"]);
    for (name, open) in [
        ("Keyspace.txt", "throttler_config {"),
        ("Keyspace.txt", "["),
        ("Keyspace.json", "{\"throttler_config\":"),
        ("Keyspace.json", "["),
    ] {
        let file = mount.outside().join("deep");
        std::fs::write(&file, open.repeat(100_000)).unwrap();
        let output = mount.bash(&format!("cp {} global/keyspaces/commerce/{name}", file.display()));
        assert!(
            crate::common::text(&output).contains("Bad message"),
            "{name} {open}: {}",
            crate::common::text(&output)
        );
    }
    // Nested in the wire format: a group in a group in a group.
    let mut raw = Vec::new();
    for _ in 0..100_000 {
        prost::encoding::encode_key(100, prost::encoding::WireType::StartGroup, &mut raw);
    }
    std::fs::write(mount.outside().join("deep"), raw).unwrap();
    let output =
        mount.bash(&format!("cp {} global/keyspaces/commerce/Keyspace", mount.outside().join("deep").display()));
    assert!(crate::common::text(&output).contains("Bad message"));
    assert_eq!(mount.sh("jq -r .durability_policy global/keyspaces/commerce/Keyspace.json"), "semi_sync\n");
}
