//! Reading again asks nothing: the requests of the kernel are counted.

use std::collections::BTreeMap;

use crate::common::mount::{Mount, write_knowingly};
use crate::common::server::fresh_root;
use crate::common::world::{self, Service};
use crate::common::{self, etcd, eventually};
use topofs::sample::Cluster;

type Requests = BTreeMap<String, i64>;

/// The counts of now: where nothing is opened, the status is the same for a moment.
fn requests(mount: &Mount) -> Requests {
    let begin = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    eventually("a status of now", || {
        let status = mount.status();
        let counts = serde_json::from_value(status["requests"].clone()).unwrap();
        (status["time"].as_str().unwrap() >= begin.as_str()).then_some(counts)
    })
}

fn difference(before: &Requests, after: &Requests) -> Requests {
    let changed = after.iter().map(|(op, count)| (op.clone(), count - before.get(op).unwrap_or(&0)));
    changed.filter(|(_, count)| *count != 0).collect()
}

/// How often the watches of a mount's cells were silent, as they are on a machine that is too busy: the kernel keeps
/// nothing then.
fn silences(mount: &Mount) -> i64 {
    mount.status()["cells"].as_object().unwrap().values().map(|cell| cell["silences"].as_i64().unwrap()).sum()
}

/// The requests of a script that is run after another one. Where memory is taken from the kernel's caches meanwhile
/// (some hosts page out what has not been used for a while), it asks once more for single pages and listings: what is
/// not right is tried again.
fn asked(mount: &Mount, first: &str, script: &str, right: impl Fn(&Requests) -> bool) -> Requests {
    const TRIES: usize = 5;
    let mut tries = (0..TRIES).map(|_| asked_once(mount, first, script));
    let first = tries.next().unwrap();
    if right(&first) { first } else { tries.find(|asked| right(asked)).unwrap_or(first) }
}

fn assert_asked(mount: &Mount, first: &str, script: &str, expected: &[(&str, i64)]) {
    let expected = only(expected);
    assert_eq!(asked(mount, first, script, |asked| *asked == expected), expected, "{script}");
}

/// The same, once. Forgotten inodes are the kernel's own business.
fn asked_once(mount: &Mount, first: &str, script: &str) -> Requests {
    let silent = silences(mount);
    mount.sh(first);
    let (begin, before) = (std::time::Instant::now(), requests(mount));
    mount.sh(script);
    let mut asked = difference(&before, &requests(mount));
    if silences(mount) != silent {
        return asked_once(mount, first, script);
    }
    asked.remove("forget");
    // Once a second, the root is asked for: so a daemon that has died is noticed.
    let root = i64::try_from(begin.elapsed().as_secs()).unwrap() + 1;
    if asked.get("getattr").is_some_and(|count| *count <= root) {
        asked.remove("getattr");
    }
    asked
}

fn only(expected: &[(&str, i64)]) -> Requests {
    expected.iter().map(|(op, count)| ((*op).to_owned(), *count)).collect()
}

/// A cluster of 120 tablets in two cells, none of whose records is larger than a page.
fn cluster(flags: &[&str]) -> Mount {
    let root = fresh_root();
    let endpoint = etcd::shared().endpoint();
    world::load(&*world::etcd_cell(&endpoint, &root), &Cluster::of_size(&endpoint, &root, 2, 3, 4, 10));
    Mount::etcd(&endpoint, &root, flags)
}

const TABLETS: &str = "zone1/tablets zone2/tablets";
/// Programs that read every file.
const READERS: [&str; 4] =
    ["grep -r xyz D || true", "find D -type f -exec cat {} +", "tar c D | cat", "find D -type f -exec md5sum {} +"];
/// Programs that look at every name.
const LOOKERS: [&str; 4] = ["find D", "find D -newer /etc/passwd", "du -a D", "ls -R D"];

#[test]
fn looking_again_asks_nothing() {
    const FIRST: &str = "ls -lR . > /dev/null; find . > /dev/null; du -a . > /dev/null";
    for flags in [&[][..], &["--read-only"]] {
        let mount = cluster(flags);
        for looker in LOOKERS {
            let script = looker.replace('D', ".") + " > /dev/null";
            assert_asked(&mount, FIRST, &script, &[]);
        }
        // ls asks once for each kind of attribute that there is not.
        assert_asked(&mount, FIRST, "ls -lR . > /dev/null", &[("getxattr", 2)]);
    }
}

#[test]
fn reading_again_asks_to_open_and_no_more() {
    let mount = cluster(&[]);
    let files: i64 = mount.sh(&format!("find {TABLETS} -type f | wc -l")).trim().parse().unwrap();
    assert_eq!(files, 120 * 3);
    let first = format!("cat $(find {TABLETS} -type f) > /dev/null");
    for reader in READERS {
        let script = reader.replace('D', TABLETS) + " > /dev/null";
        assert_asked(&mount, &first, &script, &[("open", files), ("release", files)]);
    }
    // Locks are asked for their content and told of each close; what is larger than a page is read from one state of
    // it.
    let count = |script: &str| -> i64 { mount.sh(script).trim().parse().unwrap() };
    let (all, locks) = (count("find . -type f | wc -l"), count("find . -name .lock | wc -l"));
    let past_cache = locks + count("find . -type f -size +4096c | wc -l");
    let (first, again) = ("cat $(find . -type f) > /dev/null", "grep -r xyz . > /dev/null || true");
    let known = |asked: &Requests| {
        asked.keys().all(|op| ["open", "release", "flush", "read", "getattr"].contains(&op.as_str()))
    };
    let asked = asked(&mount, first, again, |asked| known(asked) && asked["read"] <= 2 * past_cache);
    assert_eq!((asked["open"], asked["release"], asked["flush"]), (all, all, locks));
    assert!(known(&asked) && asked["read"] <= 2 * past_cache, "{asked:?}");
}

#[test]
fn reading_again_asks_nothing_where_nobody_writes() {
    let mount = cluster(&["--read-only"]);
    for reader in READERS {
        let script = reader.replace('D', ".") + " > /dev/null";
        let first = "cat $(find . -type f) > /dev/null; cat $(find . -type f) > /dev/null";
        assert_asked(&mount, first, &script, &[]);
    }
}

#[test]
fn the_first_time_nothing_is_read() {
    let mount = cluster(&[]);
    let all = asked_once(&mount, "true", &format!("grep -r xyz {TABLETS} > /dev/null || true"));
    // Two directories of tablets, and one for each.
    let (dirs, files) = (2 + 120, 120 * 3);
    assert_eq!((all["open"], all["release"]), (files, files));
    assert!(!all.contains_key("read"), "{all:?}");
    assert!(all["readdirplus"] <= 3 * dirs, "{all:?}");
    // The names of the directories given, and whatever the kernel asks about directories that it has listed.
    assert!(all["lookup"] <= 4 && all.get("getattr").is_none_or(|count| *count <= 2 * dirs), "{all:?}");
    let known = ["open", "release", "readdirplus", "lookup", "getattr", "opendir"];
    assert!(all.keys().all(|op| known.contains(&op.as_str())), "{all:?}");
}

/// All forms of one record as the mount shows them.
fn shown(mount: &Mount, path: &str) -> Vec<Option<String>> {
    ["", ".txt", ".json"]
        .iter()
        .map(|form| std::fs::read_to_string(mount.path(&format!("{path}{form}"))).ok())
        .collect()
}

#[test]
fn what_was_written_under_one_name_is_read_under_all() {
    let mount = cluster(&[]);
    let path = "global/keyspaces/ks0000/VSchema";
    for round in 0..200 {
        // Kept by the kernel, in all forms.
        let before = shown(&mount, path);
        assert_eq!(before, shown(&mount, path));
        let text = format!("tables {{\n  key: \"t{}\"\n  value {{\n  }}\n}}\n", "x".repeat(round % 50));
        std::fs::write(mount.path(&format!("{path}.txt")), &text).unwrap();
        // Looked at before anything is opened: opening lets the kernel catch up.
        let sizes =
            ["", ".txt", ".json"].map(|form| std::fs::metadata(mount.path(&format!("{path}{form}"))).unwrap().len());
        let after = shown(&mount, path);
        assert_eq!(
            sizes.map(Some).to_vec(),
            after.iter().map(|text| Some(text.as_ref()?.len() as u64)).collect::<Vec<_>>()
        );
        assert_eq!(after[1].as_deref(), Some(text.as_str()), "round {round}");
        assert!(after[2].as_ref().unwrap().contains(&format!("\"t{}\"", "x".repeat(round % 50))), "round {round}");
        for (index, form) in ["", ".txt", ".json"].iter().enumerate() {
            let size = std::fs::metadata(mount.path(&format!("{path}{form}"))).unwrap().len();
            assert_eq!(Some(size), after[index].as_ref().map(|text| text.len() as u64), "round {round}: {form}");
        }
    }
}

#[test]
fn what_was_saved_is_seen_under_all_names_however_much_else_happens() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let service = Service::etcd2();
    let cell = service.cell();
    let others = |round: usize| {
        let put = |number: usize| world::put(&format!("global/metadata/key{number}"), format!("{round}"));
        world::runtime().block_on(cell.apply(&(0..60).map(put).collect::<Vec<_>>())).map(drop).unwrap();
    };
    others(0);
    let mount = service.mount(&[]);
    mount.sh("cat global/metadata/* > /dev/null");
    let path = "global/keyspaces/commerce/VSchema";
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The watch has so much to tell that it is behind what this mount has stored itself.
        scope.spawn(|| {
            for round in (1..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                others(round);
                // So that it is behind, and not without hope.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        let over = scopeguard::guard((), |()| is_over.store(true, Ordering::Relaxed));
        for round in 0..6 {
            shown(&mount, path);
            let text = format!("tables {{\n  key: \"t{}\"\n  value {{\n  }}\n}}\n", "x".repeat(1 + round % 50));
            std::fs::write(mount.path(&format!("{path}.txt")), &text).unwrap();
            // Looked at before anything is opened: opening lets the kernel catch up.
            let sizes =
                ["", ".json"].map(|form| std::fs::metadata(mount.path(&format!("{path}{form}"))).unwrap().len());
            let after = shown(&mount, path);
            let wanted = [0, 2].map(|form: usize| after[form].as_ref().unwrap().len() as u64);
            assert_eq!(sizes, wanted, "round {round}");
        }
        drop(over);
    });
}

#[test]
fn what_was_removed_is_gone_under_all_names_and_what_is_new_is_there() {
    let mount = cluster(&[]);
    let dir = "global/keyspaces/ks0001";
    let names = || mount.sh(&format!("ls {dir}"));
    for round in 0..50 {
        mount.sh(&format!("ls -l {dir} > /dev/null"));
        std::fs::remove_file(mount.path(&format!("{dir}/Keyspace.json"))).unwrap();
        for form in ["", ".txt"] {
            // A process of its own: the one that has removed the record may remove its other names, too.
            let there = mount.bash(&format!("stat {dir}/Keyspace{form}"));
            assert!(!there.status.success(), "round {round}: {form} is still there");
        }
        assert!(!names().contains("Keyspace"), "round {round}");
        mount.sh(&format!("echo 'durability_policy: \"none\"' > {dir}/Keyspace.txt"));
        assert_eq!(names().matches("Keyspace").count(), 3, "round {round}");
        mount.sh(&format!("grep -q none {dir}/Keyspace.json {dir}/Keyspace.txt {dir}/Keyspace"));
    }
}

#[test]
fn a_name_leads_to_what_was_renamed_to_it() {
    let mount = cluster(&[]);
    mount.sh("mkdir -p global/metadata; cd global/metadata; echo one > a; cat a > /dev/null");
    for round in 0..50 {
        // In one process each: no time passes between the calls.
        mount.sh(&format!(
            "cd global/metadata; python3 -c '
import os
assert open(\"a\").read() == \"one\\n\"
os.rename(\"a\", \"b\")
assert open(\"b\").read() == \"one\\n\", {round}
assert not os.path.exists(\"a\")
# An editor: a backup, then the file anew.
os.rename(\"b\", \"b~\")
assert open(\"b~\").read() == \"one\\n\"
open(\"b\", \"x\").write(\"two\\n\")
assert (open(\"b\").read(), open(\"b~\").read()) == (\"two\\n\", \"one\\n\")
# The backup back in its place.
os.rename(\"b~\", \"b\")
assert open(\"b\").read() == \"one\\n\", open(\"b\").read()
# A new file over it.
open(\".new\", \"w\").write(\"three\\n\")
os.rename(\".new\", \"b\")
assert (open(\"b\").read(), os.stat(\"b\").st_size) == (\"three\\n\", 6)
os.rename(\"b\", \"a\")
open(\"a\", \"w\").write(\"one\\n\")
'"
        ));
    }
}

#[test]
fn a_name_that_is_free_for_one_program_is_there_for_all_others() {
    let mount = cluster(&[]);
    // An editor moves the record out of its way. The record is there until it is saved, but not for the editor, whoever
    // else looks.
    mount.sh("mkdir -p global/metadata; cd global/metadata; echo one > a; python3 -c '
import os, subprocess
for round in range(20):
    os.stat(\"a\")
    os.rename(\"a\", \"a~\")
    assert not os.path.exists(\"a\"), round
    assert subprocess.check_output([\"cat\", \"a\"]) == b\"one\\n\", round
    assert subprocess.call([\"stat\", \"a\"], stdout=subprocess.DEVNULL) == 0, round
    assert not os.path.exists(\"a\"), (\"seen by somebody else\", round)
    with open(\"a\", \"x\") as f: f.write(\"one\\n\")
    os.remove(\"a~\")
'");
}

#[test]
fn a_cell_that_moves_is_another_cell() {
    let (root, endpoint) = (fresh_root(), etcd::shared().endpoint());
    let all = world::etcd_cell(&endpoint, &root);
    world::load(&*all, &Cluster::of_size(&endpoint, &root, 1, 1, 1, 2));
    for flags in [&[][..], &["--read-only"]] {
        let mount = Mount::etcd(&endpoint, &root, flags);
        let writer = Mount::etcd(&endpoint, &root, &[]);
        mount.sh("ls -lR zone1 > /dev/null; cat zone1/tablets/*/Tablet.txt > /dev/null");
        let elsewhere = format!("{root}-elsewhere-{}", flags.len());
        etcd::shared().put(&format!("{elsewhere}/custom/file"), b"hello");
        let info = writer.read("global/cells/zone1/CellInfo.txt");
        writer.sh(&format!("sed -i 's|root:.*|root: \"{elsewhere}\"|' global/cells/zone1/CellInfo.txt"));
        eventually("it shows the other place", || {
            (std::fs::read_to_string(mount.path("zone1/custom/file")).ok()? == "hello").then_some(())
        });
        assert_eq!(mount.sh("ls zone1").trim(), "custom");
        assert!(!mount.path("zone1/tablets").exists());
        // Its events are told, too.
        mount.sh("cat zone1/custom/file > /dev/null");
        etcd::shared().put(&format!("{elsewhere}/custom/file"), b"again");
        eventually("the change is seen", || {
            (std::fs::read_to_string(mount.path("zone1/custom/file")).ok()? == "again").then_some(())
        });
        write_knowingly(writer.path("global/cells/zone1/CellInfo.txt"), info);
        eventually("it is back", || mount.path("zone1/tablets").exists().then_some(()));
    }
}

#[test]
fn an_open_file_goes_on_with_the_last_state_of_its_record() {
    use std::os::unix::fs::FileExt;
    let service = Service::etcd2();
    service.put("global/metadata/owner", b"first");
    let mount = service.mount(&[]);
    let path = mount.path("global/metadata/owner");
    let shown = |file: &std::fs::File| {
        let mut bytes = [0; 100];
        let count = file.read_at(&mut bytes, 0).unwrap();
        (String::from_utf8_lossy(&bytes[..count]).into_owned(), file.metadata().unwrap().len())
    };
    let file = std::fs::File::open(&path).unwrap();
    assert_eq!(shown(&file), ("first".to_owned(), 5));
    service.put("global/metadata/owner", b"the second");
    eventually("the change", || (std::fs::read(&path).unwrap() == b"the second").then_some(()));
    service.delete("global/metadata/owner");
    eventually("it is gone", || (!path.exists()).then_some(()));
    assert_eq!(shown(&file), ("the second".to_owned(), 10));
}

#[test]
fn small_records_can_be_mapped() {
    let mount = cluster(&[]);
    mount.sh("python3 -c '
import mmap
f = open(\"global/keyspaces/ks0000/Keyspace.txt\", \"rb\")
m = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
assert m[:] == f.read()
'");
}

/// A mount whose caches are full, of a server of its own that falls silent.
fn silent_server(flags: &[&str]) {
    let server = etcd::Etcd::start();
    world::load(&*world::etcd_cell(&server.endpoint(), "/v"), &Cluster::of_size(&server.endpoint(), "/v", 1, 1, 1, 3));
    let flags = [flags, &["--stale-after=5s", "--remote-operation-timeout=2s"]].concat();
    let mount = Mount::etcd(&server.endpoint(), "/v", &flags);
    let all = "ls -lR . > /dev/null; cat $(find . -type f) > /dev/null";
    mount.sh(&format!("{all}; {all}"));
    let tablet = mount.sh("ls -d zone1/tablets/* | head -n 1").trim().to_owned();
    server.pause();
    eventually("it is known", || (mount.status()["cells"]["zone1"]["state"] == "down").then_some(()));
    for script in [
        &format!("cat {tablet}/Tablet.txt"),
        "cat global/keyspaces/ks0000/Keyspace",
        &format!("stat {tablet}/Tablet.json"),
        "ls zone1/tablets",
        "find global/keyspaces -newer /etc/passwd",
        "stat zone1/no-such-name",
    ] {
        let text = common::text(&mount.bash(script));
        assert!(text.contains("timed out"), "{script}: {text}");
    }
    // A look at the mount itself works on.
    assert_eq!(mount.sh("ls"), "global\nzone1\n");
    server.resume();
    eventually("it is back", || mount.bash(all).status.success().then_some(()));
}

#[test]
fn nothing_old_is_kept_of_a_cell_that_is_down() {
    silent_server(&[]);
}

#[test]
fn nothing_old_is_kept_of_a_cell_that_is_down_read_only() {
    silent_server(&["--read-only"]);
}

#[test]
fn control_files_are_current_where_nothing_is_opened() {
    let service = Service::etcd2();
    let (here, there) = (service.mount(&["--read-only"]), service.mount(&[]));
    let time = || here.sh("jq .time .topofs/status");
    let before = time();
    eventually("it is made anew", || (time() > before).then_some(()));
    // Whoever waits for events is woken by each, and tail follows.
    let waiting = "import json, os, select
f = os.open('.topofs/events', os.O_RDONLY)
while os.read(f, 65536): pass
p = select.poll(); p.register(f, select.POLLIN)
while p.poll(200): os.read(f, 65536)
print('waiting', flush=True)
for _ in range(3):
    assert p.poll(20000), 'nothing came'
    for line in os.read(f, 65536).splitlines(): print(json.loads(line)['kind'], flush=True)";
    let mut command = std::process::Command::new("python3");
    command.args(["-c", waiting]).current_dir(here.root());
    let poller = common::mount::lines(command);
    assert_eq!(poller.next(), "waiting");
    for (script, kind) in [
        ("echo x > global/metadata/new", "created"),
        ("echo y > global/metadata/new", "changed"),
        ("rm global/metadata/new", "deleted"),
    ] {
        there.sh(script);
        assert_eq!(poller.next(), kind);
    }
    assert_eq!(here.sh("jq -r .kind .topofs/events | tail -n 3"), "created\nchanged\ndeleted\n");
    // Locks are refused, and those of others shown.
    assert!(common::text(&here.bash("flock -n global/keyspaces/commerce/.lock true")).contains("Read-only"));
    there.sh(&format!(
        "flock global/keyspaces/commerce/.lock timeout 20 \
         bash -c 'until grep -q flock {0}/global/keyspaces/commerce/.lock \
         && grep -q commerce {0}/.topofs/locks; do sleep 0.1; done'",
        here.root().display()
    ));
    eventually("it is free", || here.read("global/keyspaces/commerce/.lock").is_empty().then_some(()));
}

#[test]
fn a_directory_goes_with_its_last_record_for_every_call() {
    use std::os::unix::fs::OpenOptionsExt;
    let mount = cluster(&[]);
    let there = |path: &str| {
        let by_name = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(mount.path(path)).is_ok();
        let looked_at = mount.path(path).exists();
        (by_name, looked_at)
    };
    let dir = "global/keyspaces";
    mount.sh(&format!("mkdir {dir}/one {dir}/two; echo 'durability_policy: \"none\"' > {dir}/one/Keyspace.txt"));
    for round in 0..50 {
        let (from, to) = if round % 2 == 0 { ("one", "two") } else { ("two", "one") };
        mount.sh(&format!("ls -lR {dir} > /dev/null; mkdir -p {dir}/{to}"));
        assert_eq!(there(&format!("{dir}/{from}")), (true, true));
        let name = |of: &str| mount.path(&format!("{dir}/{of}/Keyspace.txt"));
        std::fs::rename(name(from), name(to)).unwrap();
        assert_eq!(there(&format!("{dir}/{from}")), (false, false), "round {round}");
    }
    let output = mount.bash(&format!("rm -rf {dir}/two && cp -r {dir}/one {dir}/two && ls {dir}/two"));
    assert!(output.status.success(), "{}", common::text(&output));
}

#[test]
fn a_directory_whose_last_record_is_removed_elsewhere_is_gone_for_every_call() {
    use std::os::unix::fs::OpenOptionsExt;
    let service = Service::etcd2();
    let mount = service.mount(&[]);
    for round in 0..20 {
        service.put("global/keyspaces/gone/Keyspace", b"");
        eventually("it is there", || mount.path("global/keyspaces/gone/Keyspace").exists().then_some(()));
        mount.sh("ls -lR global/keyspaces > /dev/null");
        service.delete("global/keyspaces/gone/Keyspace");
        // As `cd` and `rm -rf` do, which do not look at attributes first.
        let opens = || {
            let mut how = std::fs::OpenOptions::new();
            how.read(true).custom_flags(libc::O_PATH).open(mount.path("global/keyspaces/gone")).is_ok()
        };
        eventually("it is gone", || (!opens()).then_some(()));
        assert!(!mount.path("global/keyspaces/gone").exists(), "round {round}");
        let output = mount.bash("rm -rf global/keyspaces/gone");
        assert!(output.status.success(), "round {round}: {}", common::text(&output));
    }
}
