//! Readers of a record that is rewritten all the time, while there is more to do than the processors can: with
//! `--direct-io`, each open file shows one state, whatever it reads first.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::mount::{Lines, Mount, lines};
use crate::common::world::{Service, put, runtime};
use crate::common::{PYTHON, eventually, text};

/// How often the record is read, in all; and the flags of the mount, for looking at other ways of reading.
const READINGS: &str = "TOPOFS_TEST_READINGS";
const READINGS_FLAGS: &str = "TOPOFS_TEST_READINGS_FLAGS";
/// By default: enough to find what happens once in a thousand readings.
const DEFAULT_READINGS: usize = 3_000;
const READERS: usize = 4;
/// Programs that take processors from everybody else, but not so much that other tests are late.
const BUSY: usize = 2;
const RECORD: &str = "global/metadata/owner";

/// Contents below and above a page: each consists of one digit only, and that says how long it is.
fn of_digit(digit: usize) -> String {
    digit.to_string().repeat(800 * digit)
}

/// Opens the record again and again. Reads all of it, in pieces of any size, sometimes the middle first; nothing may
/// contradict what was read before.
const READER: &str = "import os, random, sys
torn = 0
for number in range(int(sys.argv[1])):
    fd = os.open(sys.argv[2], os.O_RDONLY)
    middle = os.pread(fd, 50, random.randrange(800)) if number % 2 else b''
    text = b''
    while piece := os.read(fd, random.choice([100, 1000, 4096, 100000])):
        text += piece
    again = os.pread(fd, 100000, 0) if number % 3 == 0 else text
    os.close(fd)
    digit = text[:1]
    whole = digit and text == digit * (800 * int(digit)) and again == text and set(middle) <= set(digit)
    if not whole:
        torn += 1
        print('torn', len(text), len(again), set(text), set(again), set(middle), file=sys.stderr)
print('torn', torn, flush=True)";

fn reader(mount: &Mount, readings: usize) -> Lines {
    let mut command = Command::new(PYTHON);
    command.args(["-c", READER, &readings.to_string(), RECORD]).current_dir(mount.root()).stdin(Stdio::null());
    lines(command)
}

fn busy() -> scopeguard::ScopeGuard<Child, impl FnOnce(Child)> {
    let child = crate::common::spawn_bound({
        let mut command = Command::new("nice");
        command.args(["-n", "10", "bash", "-c", "while :; do :; done"]);
        command
    });
    scopeguard::guard(child, |mut child| {
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// How many of so many readings are torn.
fn torn(flags: &[&str], readings: usize) -> usize {
    let service = Service::etcd2();
    let cell = service.cell();
    let store = |digit| runtime().block_on(cell.apply(&[put(RECORD, of_digit(digit))])).map(drop).unwrap();
    store(1);
    let mount = service.mount(flags);
    let writes = !flags.contains(&"--read-only");
    eventually("it is there", || (mount.read(RECORD) == of_digit(1)).then_some(()));
    let is_over = AtomicBool::new(false);
    let digits = || (0..).take_while(|_| !is_over.load(Ordering::Relaxed)).map(|round: usize| 1 + (round * 7) % 9);
    std::thread::scope(|scope| {
        let over = scopeguard::guard((), |()| is_over.store(true, Ordering::Relaxed));
        scope.spawn(|| digits().for_each(store));
        if writes {
            // Beside the saves from elsewhere, so most of them are refused.
            scope.spawn(|| digits().for_each(|digit| drop(std::fs::write(mount.path(RECORD), of_digit(digit)))));
        }
        let _busy = [(); BUSY].map(|()| busy());
        let readers = [(); READERS].map(|()| reader(&mount, readings.div_ceil(READERS)));
        // However many there are to be: each program says when it has done its part.
        let counts = readers.iter().map(|reader| {
            loop {
                match reader.try_next() {
                    Some(line) => break line.trim_start_matches("torn ").parse::<usize>().unwrap(),
                    None => std::thread::sleep(std::time::Duration::from_millis(50)),
                }
            }
        });
        let torn = counts.sum();
        drop(over);
        torn
    })
}

#[test]
fn with_direct_io_no_reading_is_torn() {
    let readings = std::env::var(READINGS).map_or(DEFAULT_READINGS, |number| number.parse().unwrap());
    match std::env::var(READINGS_FLAGS) {
        Ok(flags) => {
            let flags: Vec<&str> = flags.split_whitespace().collect();
            let torn = torn(&flags, readings);
            eprintln!("{flags:?}: {torn} of {readings} readings are torn");
            assert_eq!(torn, 0, "{flags:?}");
        }
        Err(_) => {
            for flags in [&["--direct-io"][..], &["--direct-io", "--read-only"]] {
                assert_eq!(torn(flags, readings / 2), 0, "{flags:?}");
            }
        }
    }
}

#[test]
fn with_direct_io_an_open_file_goes_on_showing_its_state() {
    let service = Service::etcd2();
    for flags in [&["-o", "direct_io"][..], &["-o", "direct_io,ro"]] {
        service.put(RECORD, b"first");
        let mount = service.mount(flags);
        eventually("it is there", || (mount.read(RECORD) == "first").then_some(()));
        let script = "import os, sys
held = os.open(sys.argv[1], os.O_RDONLY)
print(os.read(held, 2), flush=True)
sys.stdin.readline()
print(os.read(held, 100), os.read(held, 100), os.pread(held, 100, 0), flush=True)";
        let (read, write) = std::io::pipe().unwrap();
        let mut command = Command::new(PYTHON);
        command.args(["-c", script, RECORD]).current_dir(mount.root()).stdin(read);
        let held = lines(command);
        assert_eq!(held.next(), "b'fi'");
        service.put(RECORD, b"second, which is longer");
        eventually("others see the change", || (mount.read(RECORD) == "second, which is longer").then_some(()));
        std::io::Write::write_all(&mut &write, b"go\n").unwrap();
        assert_eq!(held.next(), "b'rst' b'' b'first'", "{flags:?}");
        drop(mount);
    }
}

#[test]
fn nobody_who_holds_states_keeps_others_from_opening() {
    /// Of a record, in bytes. One user may hold 128 MiB.
    const SIZE: usize = 1 << 20;
    let service = Service::etcd2();
    service.put(RECORD, &vec![b'x'; SIZE]);
    let mount = service.mount(&["--direct-io", "--allow-other", "--umask=022"]);
    let holds = format!(
        "import errno, os\nheld = []\ntry:\n    while len(held) < 200: held.append(os.open('{RECORD}', os.O_RDONLY))\n\
         except OSError as error: print(len(held), errno.errorcode[error.errno], flush=True)\n\
         import time; time.sleep(100)"
    );
    let as_user = |uid: u32| format!("setpriv --reuid {uid} --regid {uid} --clear-groups");
    let mut command = Command::new("bash");
    let script = format!("exec {} {PYTHON} -c \"{holds}\"", as_user(65_534));
    command.args(["-c", &script]).current_dir(mount.root()).stdin(Stdio::null());
    let holder = lines(command);
    assert_eq!(holder.next(), "128 ENOSPC");
    for who in [String::new(), as_user(65_533)] {
        let output = mount.bash(&format!("{who} cat {RECORD} | wc -c"));
        assert_eq!(text(&output).trim(), SIZE.to_string(), "{who}");
    }
    // What is closed is given back.
    drop(holder);
    eventually("there is room again", || {
        let output = mount.bash(&format!("{} cat {RECORD} | wc -c", as_user(65_534)));
        (text(&output).trim() == SIZE.to_string()).then_some(())
    });
}
