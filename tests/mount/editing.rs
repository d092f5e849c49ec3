//! Saving with the tools that people have: each save is one version, never an empty or partial record in between.

use crate::common::etcd::shared;
use crate::common::mount::Mount;
use crate::common::server::fresh_root;
use crate::common::world::World;
use crate::common::{eventually, text};
use crate::in_every_tree;

/// How tools save: a script with $F the file, $NEW a file outside with the new content, $DIR the file's directory,
/// $OLD and $TAG the words that differ; and how many changes that makes.
const TOOLS: &[(&str, &str, u64)] = &[
    ("bash", "printf '%s\\n' \"$(cat $NEW)\" > $F", 1),
    ("dash", "dash -c 'printf \"%s\\n\" \"$(cat $NEW)\" > $F'", 1),
    ("dash echo", "dash -c 'echo \"$(cat $NEW)\" > $F'", 1),
    ("cat", "cat $NEW > $F", 1),
    ("noclobber override", "set -C; cat $NEW >| $F", 1),
    ("read and write", "cat $NEW 1<> $F; truncate -s $(stat -c %s $NEW) $F", 1),
    ("tee", "tee $F < $NEW > /dev/null", 1),
    ("cp", "cp $NEW $F", 1),
    ("cp -a", "cp -a $NEW $F", 1),
    ("cp --remove-destination", "cp --remove-destination $NEW $F", 2),
    ("mv", "cp $NEW $DIR/some-file.tmp; mv $DIR/some-file.tmp $F", 1),
    ("mv from elsewhere", "cp $NEW $NEW.2; mv $NEW.2 $F", 2),
    ("mktemp and mv", "t=$(mktemp -p $DIR); cat $NEW > $t; chmod 600 $t; sync $t; mv -f $t $F", 1),
    ("sed -i", "sed -i s/$OLD/$TAG/ $F", 1),
    ("sed -i.bak", "sed -i.bak s/$OLD/$TAG/ $F; rm $F.bak", 1),
    ("perl -i", "perl -pi -e s/$OLD/$TAG/ $F", 1),
    ("rewrite with a filter", "sed s/$OLD/$TAG/ $F > $DIR/some-file.tmp && mv $DIR/some-file.tmp $F", 1),
    ("vim", "vim -es -u NONE -c %s/$OLD/$TAG/ -c wq $F", 1),
    ("vim with defaults", "vim -es -u /usr/share/vim/vim90/defaults.vim -c %s/$OLD/$TAG/ -c wq $F", 1),
    ("vim backup", "vim -es -u NONE --cmd 'set backup writebackup' -c %s/$OLD/$TAG/ -c wq $F; rm -f $F~", 1),
    ("vim backupcopy=no", "vim -es -u NONE --cmd 'set backup backupcopy=no' -c %s/$OLD/$TAG/ -c wq $F; rm -f $F~", 1),
    ("vim backupcopy=yes", "vim -es -u NONE --cmd 'set backup backupcopy=yes' -c %s/$OLD/$TAG/ -c wq $F; rm -f $F~", 1),
    ("vim nowritebackup", "vim -es -u NONE --cmd 'set nowritebackup noswapfile' -c %s/$OLD/$TAG/ -c wq $F", 1),
    ("python", "python3 -c 'import os; open(os.environ[\"F\"], \"w\").write(open(os.environ[\"NEW\"]).read())'", 1),
    (
        "python r+",
        "python3 -c 'import os; f = open(os.environ[\"F\"], \"r+\"); f.read(); f.seek(0); f.truncate(); \
         f.write(open(os.environ[\"NEW\"]).read()); f.flush(); os.fsync(f.fileno())'",
        1,
    ),
    (
        "python replace",
        "python3 -c 'import os; t = os.environ[\"DIR\"] + \"/some-file.tmp\"; f = open(t, \"x\"); \
         f.write(open(os.environ[\"NEW\"]).read()); f.close(); os.replace(t, os.environ[\"F\"])'",
        1,
    ),
    ("dd", "dd if=$NEW of=$F status=none", 1),
    ("dd conv=fsync", "dd if=$NEW of=$F conv=fsync bs=7 status=none", 1),
    ("install", "install -m 600 $NEW $F", 2),
    ("rsync", "rsync -I $NEW $F", 1),
    ("rsync -a", "rsync -aI $NEW $F", 1),
    ("rsync --inplace", "rsync -I --inplace $NEW $F", 1),
    ("sort -o", "cat $NEW > $DIR/some-file.tmp; sort -o $F $DIR/some-file.tmp; rm $DIR/some-file.tmp", 1),
];

/// What a tool saves: which file, its key, and its content for a word.
struct Target {
    file: &'static str,
    key: &'static str,
    content: fn(&str) -> String,
    sorted: bool,
}

const TARGETS: &[Target] = &[
    Target {
        file: "global/keyspaces/commerce/Keyspace.txt",
        key: "global/keyspaces/commerce/Keyspace",
        content: |tag| format!("base_keyspace: \"{tag}\"\ndurability_policy: \"none\"\n"),
        sorted: true,
    },
    Target {
        file: "global/keyspaces/commerce/Keyspace.json",
        key: "global/keyspaces/commerce/Keyspace",
        content: |tag| format!("{{\n  \"base_keyspace\": \"{tag}\",\n  \"durability_policy\": \"none\"\n}}\n"),
        sorted: false,
    },
    Target {
        file: "global/metadata/owner",
        key: "global/metadata/owner",
        content: |tag| format!("team {tag}\n"),
        sorted: true,
    },
];

fn script(world: &World, target: &Target, old: &str, tag: &str, script: &str) -> std::process::Output {
    let new = world.mount.outside().join("new");
    std::fs::write(&new, (target.content)(tag)).unwrap();
    let dir = std::path::Path::new(target.file).parent().unwrap().display().to_string();
    let Target { file, .. } = target;
    let new = new.display();
    world.mount.bash(&format!("set -e; export F={file} DIR={dir} NEW={new} OLD={old} TAG={tag}; {script}"))
}

in_every_tree! {
    fn every_tool_saves_one_version(world) {
        for target in TARGETS {
            let mut old = "before".to_owned();
            assert!(script(&world, target, "", &old, "cat $NEW > $F").status.success());
            for (index, (name, tool, versions)) in TOOLS.iter().enumerate() {
                if !target.sorted && *name == "sort -o" {
                    continue;
                }
                let before = world.changes();
                let tag = format!("word{index}");
                let output = script(&world, target, &old, &tag, tool);
                assert!(output.status.success(), "{name} {}: {}\n{}", target.file, text(&output), world.mount.log());
                let expected = (target.content)(&tag);
                assert_eq!(world.mount.read(target.file), expected, "{name} {}", target.file);
                // A save of a file that was closed without anybody waiting is waited for by the read above.
                let made = world.changes() - before;
                assert_eq!(made, *versions, "{name} {}: versions", target.file);
                let stored = world.service.as_ref().and_then(|service| service.get(target.key));
                if let Some(events) = world.history() {
                    for (key, value) in &events[events.len() - usize::try_from(made).unwrap()..] {
                        assert_eq!(key, target.key, "{name}");
                        let whole = value.is_none() && *versions == 2 || value.as_deref() == stored.as_deref();
                        assert!(whole, "{name} {}: a record in between: {value:?}", target.file);
                    }
                }
                old = tag;
            }
            let left = world.mount.status()["scratch"]["names"].clone();
            assert_eq!(left, serde_json::json!([]), "{}: nothing is left behind", target.file);
        }
    }

    fn appending_and_truncating_save_once_each(world) {
        let mount = &world.mount;
        let file = "global/keyspaces/archive/Keyspace.txt";
        let before = world.changes();
        mount.sh(&format!("echo 'base_keyspace: \"b\"' >> {file}"));
        let expected = "base_keyspace: \"b\"\ndurability_policy: \"semi_sync\"\nsidecar_db_name: \"_vt\"\n";
        assert_eq!(mount.read(file), expected);
        assert_eq!(world.changes(), before + 1);
        // Emptied on purpose: an empty message is a record.
        mount.sh(&format!(": > {file}"));
        assert_eq!(mount.read(file), "");
        assert_eq!(world.changes(), before + 2);
        mount.sh(&format!("cat /dev/null > {file}; cp /dev/null {file}; truncate -s 0 {file}"));
        assert_eq!(world.changes(), before + 2, "equal content makes no version");
        mount.sh("truncate -s 4 global/metadata/owner");
        assert_eq!(mount.read("global/metadata/owner"), "the ");
        mount.sh("perl -e 'truncate(\"global/metadata/owner\", 3) or die $!'");
        assert_eq!(mount.read("global/metadata/owner"), "the");
        assert_eq!(world.changes(), before + 4);
        mount.sh("printf X | dd of=global/metadata/owner bs=1 seek=1 conv=notrunc status=none");
        assert_eq!(mount.read("global/metadata/owner"), "tXe");
        assert_eq!(world.changes(), before + 5);
    }

    fn equal_content_makes_no_version(world) {
        let mount = &world.mount;
        let before = world.changes();
        for file in ["Keyspace", "Keyspace.txt", "Keyspace.json", "VSchema", "VSchema.txt", "VSchema.json"] {
            let path = format!("global/keyspaces/customer/{file}");
            let copy = mount.outside().join("copy").display().to_string();
            mount.sh(&format!(
                "cp {path} {copy}; cp {copy} {path}; cat {copy} > {path}; \
                 sed -i s/a/a/ {path}; touch {path}; chmod 644 {path}"
            ));
        }
        // Another spelling of the same.
        let same = r#"{"sidecarDbName": "_vt", "durabilityPolicy": "semi_sync"}"#;
        mount.sh(&format!("echo '{same}' > global/keyspaces/commerce/Keyspace.json"));
        assert_eq!(world.changes(), before);
    }

    fn records_are_made_and_removed_by_any_form(world) {
        let mount = &world.mount;
        let before = world.changes();
        mount.sh(
            "mkdir -p global/keyspaces/new/shards/-80; \
             echo 'durability_policy: \"none\"' > global/keyspaces/new/Keyspace.txt",
        );
        mount.sh("jq -n '{is_primary_serving: true}' > global/keyspaces/new/shards/-80/Shard.json");
        assert_eq!(mount.sh("ls global/keyspaces/new/shards/-80"), "Shard\nShard.json\nShard.txt\n");
        assert_eq!(world.changes(), before + 2);
        mount.sh("rm global/keyspaces/new/Keyspace.json");
        assert!(!mount.path("global/keyspaces/new/Keyspace.txt").exists());
        assert_eq!(world.changes(), before + 3);
        mount.sh("rm -r global/keyspaces/new");
        assert!(!mount.path("global/keyspaces/new").exists());
        assert_eq!(world.changes(), before + 4);
        // A whole subtree, each record once.
        let records = mount.sh("find global/keyspaces/customer -type f -not -name '*.*' | wc -l");
        let records = records.trim().parse::<u64>().unwrap();
        assert_eq!(records, 4);
        mount.sh("rm -r global/keyspaces/customer");
        assert_eq!(world.changes(), before + 4 + records);
        assert_eq!(mount.sh("ls global/keyspaces"), "archive\ncommerce\n");
        mount.sh("rm -rf zone1/tablets zone1/keyspaces");
        assert_eq!(mount.sh("ls zone1"), "SrvVSchema\nSrvVSchema.json\nSrvVSchema.txt\n");
    }

    fn a_block_that_redirects_within_is_one_save(world) {
        // The shell duplicates and closes descriptors of the file while the block goes on.
        let mount = &world.mount;
        for (shell, block) in [
            ("bash", "{ echo 'durability_policy: \"a\"'; echo log >&2; echo 'sidecar_db_name: \"b\"'; } > F"),
            ("dash", "{ echo 'durability_policy: \"c\"'; /bin/echo log >&2; echo 'sidecar_db_name: \"d\"'; } > F"),
            (
                "bash",
                "exec 3>F; echo 'durability_policy: \"e\"' >&3; ls > /dev/null; \
                 echo 'sidecar_db_name: \"f\"' >&3; exec 3>&-",
            ),
            (
                "bash",
                "f() { echo 'durability_policy: \"g\"'; echo x > /dev/null; echo 'sidecar_db_name: \"h\"'; }; f > F",
            ),
        ] {
            let before = world.changes();
            let block = block.replace('F', "global/keyspaces/commerce/Keyspace.txt");
            std::fs::write(mount.outside().join("script"), &block).unwrap();
            mount.sh(&format!("{shell} {}", mount.outside().join("script").display()));
            assert_eq!(mount.read("global/keyspaces/commerce/Keyspace.txt").lines().count(), 2, "{block}");
            assert_eq!(world.changes(), before + 1, "{shell}: {block}");
        }
    }

    fn what_was_refused_is_refused_to_the_end(world) {
        let mount = &world.mount;
        let before = (world.changes(), mount.read("global/keyspaces/commerce/Keyspace.json"));
        let bad = mount.outside().join("bad.json");
        std::fs::write(&bad, "{\"bogus\": 1}\n").unwrap();
        let target = "global/keyspaces/commerce/Keyspace.json";
        for python in [
            format!("import shutil; shutil.copyfile('{}', '{target}')", bad.display()),
            format!("import shutil; shutil.move('{}', '{target}')", bad.display()),
        ] {
            let output = mount.bash(&format!("python3 -c \"{python}\""));
            assert!(!output.status.success() && text(&output).contains("Bad message"), "{python}: {}", text(&output));
            assert!(bad.exists(), "the only copy must not go");
        }
        let output = mount.bash(
            "(echo 'bogus: 1'; echo 'durability_policy: \"none\"') > global/keyspaces/commerce/Keyspace.txt",
        );
        assert!(!output.status.success(), "{}", text(&output));
        assert_eq!((world.changes(), mount.read(target)), before);
    }

    fn a_tool_that_removes_first_loses_nothing(world) {
        let mount = &world.mount;
        let target = "global/keyspaces/commerce/Keyspace.json";
        let before = mount.read(target);
        for tool in ["mv", "install", "cp --remove-destination"] {
            let bad = mount.outside().join("bad");
            std::fs::write(&bad, "{\"bogus\": 1}\n").unwrap();
            let output = mount.bash(&format!("{tool} {} {target}", bad.display()));
            assert!(text(&output).contains("Bad message"), "{tool}: {}", text(&output));
            assert_eq!(mount.read(target), before, "{tool}");
        }
        // A record that was removed on purpose stays away.
        mount.sh(&format!("rm {target}"));
        assert!(!mount.path(target).exists());
    }

    fn exclusive_creation_is_exclusive(world) {
        let mount = &world.mount;
        let output = mount.bash("set -C; echo x > global/metadata/owner");
        assert!(text(&output).contains("cannot overwrite"), "{}", text(&output));
        mount.sh("set -C; echo x > global/metadata/fresh");
        let create =
            "import os; os.open('global/keyspaces/commerce/Keyspace.txt', os.O_CREAT | os.O_EXCL | os.O_WRONLY)";
        assert!(text(&mount.bash(&format!("python3 -c \"{create}\""))).contains("FileExistsError"));
        // Of many that try at once, one wins.
        let winners = mount.sh(
            "for i in $(seq 8); do (set -C; echo $i > global/metadata/race) 2>/dev/null && echo won & done; wait",
        );
        assert_eq!(winners, "won\n");
    }

    fn a_program_finds_at_once_what_it_has_made(world) {
        // Although `cp -a` and `tar x`, which do the same, must find the other names free.
        let program = r#"
import fcntl, json, os, sys
for number in range(20):
    keyspace = f"global/keyspaces/new{number}"
    os.makedirs(keyspace)
    open(keyspace + "/Keyspace.txt", "x").write('sidecar_db_name: "x"')
    assert json.load(open(keyspace + "/Keyspace.json")) == {"sidecar_db_name": "x"}
    assert os.path.exists(keyspace + "/Keyspace")
    if len(sys.argv) == 1:
        # A stage has neither locks nor new cells.
        continue
    with open(keyspace + "/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    # A cell, whose name was looked for before.
    cell = f"cell{number}"
    assert not os.path.exists(cell)
    os.makedirs("global/cells/" + cell)
    file = open(f"global/cells/{cell}/CellInfo.json", "x")
    json.dump({"server_address": sys.argv[1], "root": "/" + cell}, file)
    file.flush()
    os.fsync(file.fileno())
    assert os.path.exists(cell), cell
"#;
        let file = world.mount.outside().join("program.py");
        std::fs::write(&file, program).unwrap();
        let server = world.mount.status()["cells"]["zone1"]["server"].as_str().unwrap().to_owned();
        let server = if world.is_stage() { String::new() } else { server };
        world.mount.sh(&format!("python3 {} {server}", file.display()));
    }

    fn two_mounts_count_to_four_hundred(world) {
        // The memory service is in the mount's own process: there two programs share one mount.
        let second = world.service.as_ref().map(|service| service.mount(&[]));
        let roots = [world.mount.root(), second.as_ref().map_or(world.mount.root(), Mount::root)];
        world.mount.sh("echo 0 > global/metadata/counter");
        if let Some(second) = &second {
            eventually("the counter is seen", || second.path("global/metadata/counter").exists().then_some(()));
        }
        let increment = r#"
import errno, os, sys
path, done, conflicts = sys.argv[1] + "/global/metadata/counter", 0, 0
while done < 200:
    f = os.open(path, os.O_RDWR)
    try:
        value = int(os.read(f, 100))
        os.ftruncate(f, 0)
        os.lseek(f, 0, 0)
        os.write(f, b"%d\n" % (value + 1))
        os.fsync(f)
        done += 1
    except OSError as e:
        assert e.errno == errno.ESTALE, e
        conflicts += 1
    finally:
        try: os.close(f)
        except OSError as e: assert e.errno == errno.ESTALE, e
print(conflicts)
"#;
        let program = world.mount.outside().join("increment.py");
        std::fs::write(&program, increment).unwrap();
        let run = |root: std::path::PathBuf| {
            let mut command = std::process::Command::new("timeout");
            command.args(["120", "python3"]).arg(&program).arg(root);
            std::thread::spawn(move || command.output().unwrap())
        };
        let outputs = roots.map(run).map(|thread| thread.join().unwrap());
        for output in &outputs {
            assert!(output.status.success(), "{}", text(output));
        }
        eventually("both have counted", || (world.mount.read("global/metadata/counter") == "400\n").then_some(()));
    }

    fn a_killed_writer_stores_nothing(world) {
        let mount = &world.mount;
        let before = (world.changes(), mount.read("global/metadata/owner"));
        let program = "import sys, time; f = open(sys.argv[1], 'w'); f.write('half'); f.flush(); \
                       print('written', flush=True); time.sleep(60)";
        let mut child = std::process::Command::new("python3")
            .args(["-c", program])
            .arg(mount.path("global/metadata/owner"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the file is closed", || (mount.status()["handles"] == 0).then_some(()));
        assert_eq!((world.changes(), mount.read("global/metadata/owner")), before);
    }

    fn scratch_files_work_and_are_never_stored(world) {
        let mount = &world.mount;
        let before = world.changes();
        mount.sh(
            "echo a > zone1/tablets/notes; echo b >> zone1/tablets/notes; \
             mkdir zone1/tablets/dir; cp zone1/tablets/notes zone1/tablets/dir/copy",
        );
        assert_eq!(mount.sh("cat zone1/tablets/dir/copy"), "a\nb\n");
        mount.sh("mv zone1/tablets/dir zone1/tablets/moved; ln zone1/tablets/notes x 2>/dev/null || true");
        assert_eq!(mount.sh("ls zone1/tablets/moved"), "copy\n");
        assert_eq!(mount.status()["scratch"]["files"], 2);
        // Everybody else still sees a healthy directory of tablets.
        if let Some(service) = &world.service {
            assert!(service.keys().iter().all(|key| !key.contains("notes") && !key.contains("copy")));
        }
        mount.sh("rm -r zone1/tablets/moved zone1/tablets/notes");
        let scratch = mount.status()["scratch"].clone();
        assert_eq!((&scratch["files"], &scratch["bytes"]), (&0.into(), &0.into()));
        assert_eq!(world.changes(), before);
    }
}

#[test]
fn scratch_has_a_quota() {
    let mount = Mount::new(&["demo", "--scratch-quota", "100KiB"]);
    let output = mount.bash("head -c 1000000 /dev/zero > global/big");
    assert!(text(&output).contains("No space left"), "{}", text(&output));
    mount.sh("rm global/big; head -c 50000 /dev/zero > global/small");
}

#[test]
fn record_globs_store_more_names() {
    let root = fresh_root();
    let mount =
        Mount::etcd(&shared().endpoint(), &root, &["--record", "global/rules/*", "--record", "global/**/notes"]);
    mount.sh("mkdir global/rules; echo '[]' > global/rules/throttle; \
         mkdir -p global/a/b; echo n > global/a/b/notes; echo s > global/a/other");
    assert_eq!(shared().get(&format!("{root}/global/rules/throttle")).as_deref(), Some(&b"[]\n"[..]));
    assert_eq!(shared().get(&format!("{root}/global/a/b/notes")).as_deref(), Some(&b"n\n"[..]));
    assert_eq!(shared().get(&format!("{root}/global/a/other")), None);
    // Temporary files are no records, wherever they are made.
    mount.sh("sed -i s/n/m/ global/a/b/notes; cd global/rules; sed -i 's/]/{}]/' throttle; \
         vim -es -u NONE -c 's/{/[/' -c 's/}/]/' -c wq throttle; cat throttle");
    let keys = shared().ctl(&["get", "--prefix", "--keys-only", &format!("{root}/")]);
    assert_eq!(
        keys.split_whitespace().collect::<Vec<_>>(),
        [format!("{root}/global/a/b/notes"), format!("{root}/global/rules/throttle")]
    );
}

#[test]
fn fields_of_a_newer_schema_survive_an_edit() {
    let root = fresh_root();
    let key = format!("{root}/global/keyspaces/k/Keyspace");
    // durability_policy = 8; field 77 (a string) is unknown, at the top and inside of throttler_config (9).
    let mut unknown = Vec::new();
    prost::encoding::string::encode(77, &"new".to_owned(), &mut unknown);
    let record = |policy: &str| {
        let mut raw = Vec::new();
        prost::encoding::string::encode(8, &policy.to_owned(), &mut raw);
        let mut nested = vec![0x08, 0x01];
        nested.extend(&unknown);
        prost::encoding::bytes::encode(9, &nested, &mut raw);
        raw.extend(&unknown);
        raw
    };
    shared().put(&key, &record("semi_sync"));
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    for (policy, script) in [
        ("none", "sed -i s/semi_sync/none/ global/keyspaces/k/Keyspace.txt"),
        ("cross_cell", "sed -i s/none/cross_cell/ global/keyspaces/k/Keyspace.json"),
        (
            "again",
            "jq '.durability_policy = \"again\"' global/keyspaces/k/Keyspace.json > global/keyspaces/k/t \
             && mv global/keyspaces/k/t global/keyspaces/k/Keyspace.json",
        ),
    ] {
        mount.sh(script);
        assert_eq!(shared().get(&key).unwrap(), record(policy), "{script}");
    }
}

#[test]
fn remote_changes_are_read() {
    let root = fresh_root();
    let mount = Mount::etcd(&shared().endpoint(), &root, &[]);
    for round in 0..20 {
        shared().put(&format!("{root}/global/metadata/key"), format!("value {round}").as_bytes());
        eventually("the change is seen", || {
            let shown = std::fs::read_to_string(mount.path("global/metadata/key")).ok()?;
            (shown == format!("value {round}")).then_some(())
        });
    }
    // An open descriptor reads on in the state it began with, and a new read from the start sees the new one.
    shared().put(&format!("{root}/global/metadata/big"), "a".repeat(1_000_000).as_bytes());
    eventually("big is there", || mount.path("global/metadata/big").exists().then_some(()));
    let file = std::fs::File::open(mount.path("global/metadata/big")).unwrap();
    let mut first = vec![0; 1000];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0).unwrap();
    shared().put(&format!("{root}/global/metadata/big"), "b".repeat(1_000_000).as_bytes());
    eventually("the change is seen", || {
        std::fs::read(mount.path("global/metadata/big")).unwrap().starts_with(b"b").then_some(())
    });
    let mut rest = vec![0; 1000];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut rest, 500_000).unwrap();
    assert_eq!(rest, vec![b'a'; 1000], "one read of a file shows one state");
    shared().ctl(&["del", &format!("{root}/global/metadata/big")]);
    eventually("the deletion is seen", || (!mount.path("global/metadata/big").exists()).then_some(()));
}
