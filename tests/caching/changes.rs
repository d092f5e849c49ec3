//! Many changes elsewhere at once.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::common::eventually;
use crate::common::world::{self, Service, put, runtime};

const RECORDS: usize = 10_000;

#[test]
fn a_burst_is_delivered_or_the_kernel_says_that_it_was_too_much() {
    let service = Service::etcd2();
    let cell = service.cell();
    let store = |value: &'static str| {
        let changes: Vec<_> =
            (0..RECORDS).map(|number| put(&format!("global/metadata/key{number:05}"), value)).collect();
        runtime().block_on(async {
            for chunk in changes.chunks(cell.limits().changes) {
                cell.apply(chunk).await.unwrap();
            }
        });
    };
    store("before");
    let mount = service.mount(&[]);
    mount.sh("grep -rq before global/metadata");
    let (seen, ready) = (mount.outside().join("seen"), mount.outside().join("ready"));
    let mut watcher = Command::new("inotifywait")
        .args(["-m", "-r", "--format", "%e %f", "-e", "close_write"])
        .arg(mount.path("global/metadata"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&seen).unwrap())
        .stderr(std::fs::File::create(&ready).unwrap())
        .spawn()
        .unwrap();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    eventually("it watches", || read(&ready).contains("established").then_some(()));
    store("after!");
    eventually("all of them, or the kernel's word that they were too many", || {
        let text = read(&seen);
        let names: BTreeSet<&str> =
            text.lines().filter_map(|line| line.split_once(' ')).map(|(_, name)| name).collect();
        (names.iter().filter(|name| name.starts_with("key")).count() == RECORDS || text.contains("Q_OVERFLOW"))
            .then_some(())
    });
    let _ = watcher.kill();
    let _ = watcher.wait();
    // Whatever came of the events: nothing old is left in the kernel.
    let count =
        |text: &str| mount.sh(&format!("grep -rl {text} global/metadata | wc -l")).trim().parse::<usize>().unwrap();
    eventually("everything is new", || (count("after!") == RECORDS).then_some(()));
    assert_eq!(count("before"), 0);
}

#[test]
fn who_is_woken_by_an_event_never_reads_older_bytes() {
    let service = Service::etcd2();
    for flags in [&[][..], &["--read-only"]] {
        let mount = service.mount(flags);
        service.put("global/metadata/owner", b"00000000");
        // Reads in the handler of the event, by a new descriptor and by one that is open all the time.
        let script = "import ctypes, os, struct, sys
path = b'global/metadata/owner'
open(path).read(); held = os.open(path, os.O_RDONLY)
libc = ctypes.CDLL(None); n = libc.inotify_init(); libc.inotify_add_watch(n, path, 0x8)
print('watching', flush=True)
last = 0
while last < int(sys.argv[1]):
    os.read(n, 65536)
    fresh, kept = int(open(path).read()), int(os.pread(held, 100, 0))
    assert fresh >= last and kept >= fresh, (last, fresh, kept)
    last = kept
print('done', flush=True)";
        let mut command = Command::new("python3");
        command.args(["-c", script, "2000"]).current_dir(mount.root()).stdin(Stdio::null());
        let reader = crate::common::mount::lines(command);
        assert_eq!(reader.next(), "watching");
        // The last change is told after it was made: what the reader sees then is that.
        let cell = service.cell();
        runtime().block_on(async {
            for number in 1..=2000 {
                let change = world::put("global/metadata/owner", format!("{number:08}"));
                cell.apply(&[change]).await.unwrap();
            }
        });
        assert_eq!(reader.next(), "done");
    }
}

/// Contents of many lengths: each consists of one digit only, and that says how long it is.
fn of_digit(digit: usize) -> String {
    digit.to_string().repeat(10 * digit)
}

#[test]
fn a_record_that_keeps_changing_its_size_is_never_read_in_part() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let service = Service::etcd2();
    let cell = service.cell();
    let store =
        |digit| runtime().block_on(cell.apply(&[put("global/metadata/owner", of_digit(digit))])).map(drop).unwrap();
    store(1);
    let mount = service.mount(&[]);
    let shows = |digit| {
        let text = std::fs::read_to_string(mount.path("global/metadata/owner")).ok()?;
        (text == of_digit(digit)).then_some(())
    };
    eventually("it is there", || shows(1));
    let script = "path = 'global/metadata/owner'
for _ in range(3000):
    text = open(path).read()
    assert text and text == text[0] * (10 * int(text[0])), text
print('whole', flush=True)";
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..).take_while(|_| !is_over.load(Ordering::Relaxed)).for_each(|round| store(1 + (round * 7) % 9))
        });
        // From the first change on: who has it open since before that, reads it through the kernel's cache.
        eventually("it changes", || shows(1).is_none().then_some(()));
        let over = scopeguard::guard((), |()| is_over.store(true, Ordering::Relaxed));
        let readers = [(); 3].map(|()| {
            let mut command = Command::new("python3");
            command.args(["-c", script]).current_dir(mount.root()).stdin(Stdio::null());
            crate::common::mount::lines(command)
        });
        readers.iter().for_each(|reader| assert_eq!(reader.next(), "whole"));
        drop(over);
    });
}
