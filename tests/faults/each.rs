//! What must hold on every service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use topofs::backend::Implementation;

use crate::common::world::{put, runtime};
use crate::common::{eventually, text};
use crate::on_each_server;
use crate::rig::{OWNER, PATIENCE, Rig, nothing_blocks, state, wait_for_state, wait_until_equal};

/// Short time-outs, so that the tests need not wait long: what they check does not depend on the length.
const SHORT: &[&str] = &["--remote-operation-timeout=2s", "--stale-after=3s", "--topo-zk-base-timeout=6s"];

/// Somebody else who writes all the time, past the mount, and does not mind errors.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(rig: &Rig) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (cell, stopped, count) = (rig.cell(), stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                for number in 0_usize.. {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let change = put(&format!("global/metadata/w{}", number % 40), number.to_string());
                    match tokio::time::timeout(Duration::from_secs(2), cell.apply(&[change])).await {
                        Ok(Ok(_)) => drop(count.fetch_add(1, Ordering::Relaxed)),
                        _ => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            });
        });
        Self { stop, written, thread: Some(thread) }
    }

    fn goes_on(&self) {
        let before = self.written.load(Ordering::Relaxed);
        eventually("the writer goes on", || (self.written.load(Ordering::Relaxed) > before + 5).then_some(()));
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A writer past the mount, and a hundred programs through it, while something happens; then nothing must be lost.
fn under_load(mut rig: Rig, mut happen: impl FnMut(&mut Rig, &crate::common::mount::Mount, &Writer)) {
    let mount = rig.mount(SHORT);
    wait_until_equal(&mount, || rig.stored());
    let writer = Writer::start(&rig);
    let stop = Arc::new(AtomicBool::new(false));
    let programs = hundred(&mount, &stop);
    writer.goes_on();
    happen(&mut rig, &mount, &writer);
    writer.goes_on();
    wait_for_state(&mount, "global", "live");
    stop.store(true, Ordering::Relaxed);
    let slowest = programs.into_iter().map(|program| program.join().unwrap()).max().unwrap();
    // An operation is a few calls to the service, each within its time.
    assert!(slowest < Duration::from_secs(20), "an operation took {slowest:?}");
    writer.stop();
    wait_until_equal(&mount, || rig.stored());
    assert_eq!(mount.status()["cells"]["global"]["missed"], 0);
}

/// A hundred programs that read and write through the mount, each many times, until told to stop. Each returns how long
/// its slowest operation took.
fn hundred(mount: &crate::common::mount::Mount, stop: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<Duration>> {
    (0..100)
        .map(|number| {
            let (root, stop) = (mount.root(), stop.clone());
            std::thread::spawn(move || {
                let mut slowest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    if number % 2 == 0 {
                        let _ = std::fs::read(root.join(OWNER));
                        let _ = std::fs::read_dir(root.join("global/metadata")).map(|dir| dir.count());
                    } else {
                        let _ = std::fs::write(root.join(format!("global/metadata/m{number}")), "x");
                    }
                    slowest = slowest.max(begin.elapsed());
                    std::thread::sleep(Duration::from_millis(20));
                }
                slowest
            })
        })
        .collect()
}

#[test]
fn a_pause_of_forty_five_seconds_loses_nothing() {
    // Longer than every session and lease. All servers at once: most of this is waiting.
    std::thread::scope(|scope| {
        for implementation in [Implementation::Etcd2, Implementation::Zk2, Implementation::Consul] {
            scope.spawn(move || pause_under_load(Rig::new(implementation), Duration::from_secs(45)));
        }
    });
}

on_each_server! {
    fn a_paused_server_blocks_nobody(rig) {
        let mount = rig.mount(SHORT);
        wait_until_equal(&mount, || rig.stored());
        rig.server.pause();
        nothing_blocks(&mount);
        wait_for_state(&mount, "global", "down");
        let output = mount.bash(&format!("{PATIENCE} cat {OWNER}"));
        assert!(text(&output).contains("timed out"), "old data is not shown: {}", text(&output));
        assert_eq!(mount.errors().pop().unwrap()["errno"], "ETIMEDOUT");
        rig.server.resume();
        wait_for_state(&mount, "global", "live");
        wait_until_equal(&mount, || rig.stored());
    }

    fn a_killed_server_comes_back(rig) {
        // Time-outs as they are by default: a cell that is known to be down fails at once.
        let mount = rig.mount(&["--stale-after=1s"]);
        wait_until_equal(&mount, || rig.stored());
        rig.server.kill();
        wait_for_state(&mount, "global", "down");
        let script =
            "for i in $(seq 30); do cat global/metadata/owner; echo x > global/metadata/owner; ls global; done";
        let output = mount.bash(&format!("{PATIENCE} bash -c '{script}'"));
        assert_ne!(output.status.code(), Some(124), "90 readers and writers have not waited for a time-out each");
        assert!(text(&output).contains("timed out"), "{}", text(&output));
        rig.server.restart();
        wait_for_state(&mount, "global", "live");
        let after = rig.cell();
        runtime().block_on(after.apply(&[put(OWNER, "after")])).unwrap();
        eventually("the watch goes on", || (mount.read(OWNER) == "after").then_some(()));
        wait_until_equal(&mount, || rig.stored());
        assert!(mount.status()["cells"]["global"]["reconnects"].as_u64().unwrap() >= 1);
    }

    fn a_crash_under_load_loses_nothing(rig) {
        under_load(rig, |rig, mount, writer| {
            for _ in 0..2 {
                rig.server.kill();
                wait_for_state(mount, "global", "down");
                rig.server.restart();
                writer.goes_on();
                wait_for_state(mount, "global", "live");
            }
        });
    }

    fn a_pause_of_five_seconds_loses_nothing(rig) {
        pause_under_load(rig, Duration::from_secs(5));
    }

    fn a_dead_cell_disturbs_no_other(rig) {
        let mut local = Rig::new(rig.implementation);
        // Both cells on a server of their own.
        rig.load(&local.server.endpoint());
        let mount = rig.mount(SHORT);
        let tablet = "zone1/tablets/zone1-0000000100/Tablet.txt";
        assert!(mount.read(tablet).contains("hostname"));
        local.server.kill();
        wait_for_state(&mount, "zone1", "down");
        assert_eq!(mount.sh("ls"), "global\nzone1\nzone2\n");
        // What the others take does not depend on the dead one.
        let look = "find global -type f -exec cat {} + > /dev/null; ls -lR global > /dev/null";
        mount.sh(&format!("timeout 5 bash -c '{look}'"));
        mount.sh("echo new > global/metadata/owner");
        // zone2 was never looked at: it fails, too, in time.
        for cell in ["zone1", "zone2"] {
            let output = mount.bash(&format!("{PATIENCE} ls {cell}"));
            assert!(text(&output).contains("timed out"), "{cell}: {}", text(&output));
        }
        assert_eq!(state(&mount, "global"), "live");
        let errors = mount.errors();
        let reason = errors.last().unwrap()["reason"].as_str().unwrap();
        for part in ["zone2", &rig.implementation.to_string(), &local.server.endpoint(), "/t/zone2", "refused"] {
            assert!(reason.contains(part), "{part} in {reason}");
        }
        local.server.restart();
        wait_for_state(&mount, "zone1", "live");
        assert!(mount.read(tablet).contains("hostname"));
        wait_for_state(&mount, "zone2", "live");
    }

    fn an_absent_server_costs_nothing(rig) {
        let mount = rig.mount(&["--stale-after=1s"]);
        rig.server.kill();
        wait_for_state(&mount, "global", "down");
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", mount.pid())).unwrap();
            // utime and stime, in hundredths of a second; resident pages.
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            let cpu = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            let statm = std::fs::read_to_string(format!("/proc/{}/statm", mount.pid())).unwrap();
            (cpu, statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap())
        };
        let (before, begin) = (ticks(), Instant::now());
        eventually("some time has passed", || (begin.elapsed() > Duration::from_secs(5)).then_some(()));
        let after = ticks();
        let share = (after.0 - before.0) as f64 / 100.0 / begin.elapsed().as_secs_f64();
        assert!(share < 0.05, "{share} of a core while there is nothing to do");
        assert!(after.1 < before.1 + 2_000, "memory grows from {} to {} pages", before.1, after.1);
    }

    fn what_was_refused_while_the_service_was_away_stays_refused(rig) {
        let mut rig = rig;
        let mount = rig.mount(SHORT);
        assert_eq!(mount.read(OWNER), "the shop team");
        // The first by fsync, the second at a close, while a child keeps the file open: its end is the last close.
        let program = r#"
import errno, os, subprocess, sys, time
def ask(word): print(word, flush=True); sys.stdin.readline()
def refused(call):
    try: call(); print("not refused", flush=True); sys.exit(1)
    except OSError as e: assert e.errno == errno.ETIMEDOUT, e
for way in ("fsync", "close"):
    fd = os.open("global/metadata/owner", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"refused " + way.encode())
    if way == "fsync":
        ask("away"); refused(lambda: os.fsync(fd)); ask("back")
        refused(lambda: os.fsync(fd)); refused(lambda: os.close(fd))
    else:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[fd])
        ask("away"); refused(lambda: os.close(fd)); ask("back")
        child.kill(); child.wait()
print("done", flush=True); sys.stdin.readline()
"#;
        let file = mount.outside().join("program.py");
        std::fs::write(&file, program).unwrap();
        let mut command = std::process::Command::new("python3");
        command.arg(&file).current_dir(mount.root()).stdin(std::process::Stdio::piped());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut orders = child.stdin.take().unwrap();
        let mut said = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        loop {
            match said.next().expect("the program goes on").unwrap().as_str() {
                // Nothing that was asked of it is carried out later.
                "away" => rig.server.kill(),
                "back" => {
                    rig.server.restart();
                    wait_for_state(&mount, "global", "live");
                }
                "done" => break,
                other => panic!("{other}\n{}", mount.log()),
            }
            std::io::Write::write_all(&mut orders, b"\n").unwrap();
        }
        eventually("all files are closed", || (mount.status()["handles"] == 0).then_some(()));
        assert_eq!(mount.read(OWNER), "the shop team");
        assert_eq!(rig.stored()[OWNER], b"the shop team");
        drop(orders);
        assert!(child.wait().unwrap().success());
    }

    fn stale_records_can_be_served_if_wanted(rig) {
        let mount = rig.mount(&["--stale-after=0s", "--serve-stale"]);
        assert_eq!(mount.read(OWNER), "the shop team");
        rig.server.kill();
        wait_for_state(&mount, "global", "stale");
        assert_eq!(mount.read(OWNER), "the shop team");
        let output = mount.bash(&format!("echo x > {OWNER}"));
        assert!(text(&output).contains("timed out"), "{}", text(&output));
        eventually("the status says why", || {
            mount.status()["cells"]["global"]["error"].as_str().unwrap().contains("refused").then_some(())
        });
    }
}

fn pause_under_load(rig: Rig, length: Duration) {
    under_load(rig, |rig, _, _| {
        rig.server.pause();
        std::thread::sleep(length);
        rig.server.resume();
    });
}
