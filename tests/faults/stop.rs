//! The end of a mount: a dead service does not delay it, and a slow one is waited for.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use topofs::backend::Implementation;
use topofs::sample::Cluster;

use crate::common::etcd::Etcd;
use crate::common::mount::{Lines, Mount, lines};
use crate::common::proxy::Proxy;
use crate::common::world::{cell, load};
use crate::common::{PYTHON, bash_in, eventually, process_has_ended, signal, text};
use crate::on_each_server;
use crate::rig::OWNER;
use nix::sys::signal::Signal;

const LOCK: &str = "global/keyspaces/commerce/.lock";
/// The aim is two seconds. A call of a service may take 15.
const IN_A_MOMENT: Duration = Duration::from_secs(6);

/// A program that has written a record, saves it when told to, and says what came of it.
struct Saver(Lines, std::io::PipeWriter);

impl Saver {
    fn new(mount: &Mount, path: &str) -> Self {
        let script = "import os, sys\n\
                      fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)\n\
                      os.write(fd, b'new\\n')\n\
                      print('ready', flush=True)\n\
                      sys.stdin.readline()\n\
                      try:\n    os.close(fd)\n    print('stored', flush=True)\n\
                      except OSError as error:\n    print(error.strerror, flush=True)\n";
        let mut command = Command::new(PYTHON);
        command.args(["-c", script]).arg(mount.path(path));
        let (program, stdin) = told(command);
        assert_eq!(program.next(), "ready");
        Self(program, stdin)
    }

    /// It saves, and the save does not come back.
    fn save(&mut self, mount: &Mount) {
        let flushes = || mount.status()["requests"]["flush"].as_u64().unwrap_or(0);
        let before = flushes();
        std::io::Write::write_all(&mut self.1, b"go\n").unwrap();
        eventually("the save is under way", || (flushes() > before).then_some(()));
    }
}

/// A program that prints lines and reads what it is told.
fn told(mut command: Command) -> (Lines, std::io::PipeWriter) {
    let (read, write) = std::io::pipe().unwrap();
    (
        lines({
            command.stdin(read);
            command
        }),
        write,
    )
}

/// A program that holds a lock, and one that waits for it.
fn held_and_waited_for(mount: &Mount) -> [Lines; 2] {
    let flock = |script: String| {
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(mount.root()).stdin(Stdio::null());
        lines(command)
    };
    let holder = flock(format!("exec 9> {LOCK}; flock 9; echo held; exec sleep 100"));
    assert_eq!(holder.next(), "held");
    let waiter = flock(format!("exec 9> {LOCK}; flock 9 || echo refused; exec sleep 100"));
    eventually("somebody waits", || (mount.status()["locks"]["waiting"] == 1).then_some(()));
    [holder, waiter]
}

on_each_server! {
    fn a_dead_service_does_not_delay_the_end(rig) {
        // A signal: a save is in flight, a lock is held, somebody waits for it.
        let mount = rig.mount(&[]);
        let mut saver = Saver::new(&mount, OWNER);
        let [_holder, waiter] = held_and_waited_for(&mount);
        rig.server.pause();
        saver.save(&mount);
        let begun = Instant::now();
        let log = mount.stop();
        let took = begun.elapsed();
        eprintln!("{}: a signal: {took:?}", rig.implementation);
        assert!(took < IN_A_MOMENT, "{took:?}: {log}");
        assert_eq!(waiter.next(), "refused");
        // Nobody was told that it is stored, and the log says which record it was.
        assert_ne!(saver.0.next(), "stored");
        let named = log.lines().find(|line| line.contains(OWNER) && line.contains("it may have been carried out"));
        assert!(named.is_some(), "{log}");
        assert!(log.contains("lease or session"), "{log}");
        rig.server.resume();
        // Both ways of unmounting, while a lock is on its way back.
        for (how, keyspace) in [("umount", "customer"), ("fusermount3 -u", "commerce/shards/0")] {
            let lock = format!("global/keyspaces/{keyspace}/.lock");
            let mount = rig.mount(&[]);
            let mut command = Command::new("bash");
            command.args(["-c", &format!("exec 9> {lock}; flock 9; echo held; read go")]).current_dir(mount.root());
            let (holder, go) = told(command);
            assert_eq!(holder.next(), "held");
            rig.server.pause();
            // It ends, and so does its lock.
            drop(go);
            let begun = Instant::now();
            eventually("it is unmounted", || {
                let output = bash_in(mount.outside(), &format!("{how} {}", mount.root().display()));
                let said = text(&output);
                assert!(output.status.success() || said.contains("busy"), "{how}: {said}");
                output.status.success().then_some(())
            });
            eventually("the daemon ends", || process_has_ended(mount.pid()).then_some(()));
            let took = begun.elapsed();
            eprintln!("{}: {how}: {took:?}", rig.implementation);
            assert!(took < IN_A_MOMENT, "{how}: {took:?}: {}", mount.log());
            rig.server.resume();
        }
    }
}

#[test]
fn a_slow_service_is_waited_for() {
    /// Each answer comes so late: a call takes once or twice as long.
    const DELAY: Duration = Duration::from_millis(900);
    let etcd = Etcd::start();
    let proxy = Proxy::plain(etcd.port);
    let address = proxy.endpoint();
    let direct = cell(Implementation::Etcd2, &etcd.endpoint(), "/t");
    load(&*direct, &Cluster { root: "/t".to_owned(), ..Cluster::demo(&address) });
    let mount = Mount::etcd(&address, "/t", &[]);
    proxy.delay(DELAY);
    let mut saver = Saver::new(&mount, OWNER);
    saver.save(&mount);
    signal(mount.pid(), Signal::SIGTERM);
    assert_eq!(saver.0.next(), "stored");
    let log = mount.ended();
    proxy.delay(Duration::ZERO);
    assert_eq!(etcd.get("/t/global/metadata/owner").as_deref(), Some(&b"new\n"[..]));
    assert!(!log.contains("may have been carried out") && !log.contains("sign of life"), "{log}");
}
