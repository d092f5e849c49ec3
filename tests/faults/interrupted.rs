//! Programs that wait for a silent service end when they are interrupted, not when its time is over.

use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;

use crate::common::mount::Mount;
use crate::common::{PYTHON, eventually, signal};
use crate::on_each_server;
use crate::rig::OWNER;

/// Nobody would wait for so long: who ends within the deadline of a test has been interrupted.
const PATIENT: &[&str] = &["--remote-operation-timeout=10m", "--stale-after=10m", "--topo-zk-base-timeout=10m"];

/// A program that waits for the service. Returns when it does.
fn waiting(mount: &Mount, program: &[&str]) -> Child {
    let waits = || {
        let metrics = mount.control("metrics");
        let count = metrics.lines().find_map(|line| line.strip_prefix("topofs_requests_waiting ")).unwrap();
        count.parse::<u64>().unwrap()
    };
    eventually("nobody else waits", || (waits() == 0).then_some(()));
    let child = Command::new(program[0])
        .args(&program[1..])
        .current_dir(mount.root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it waits", || (waits() > 0).then_some(()));
    child
}

fn ended(mut child: Child) -> ExitStatus {
    eventually("it ends", || child.try_wait().unwrap())
}

on_each_server! {
    fn who_waits_for_a_silent_service_ends_when_it_is_interrupted(rig) {
        let mount = rig.mount(PATIENT);
        mount.sh(&format!("cat {OWNER} > /dev/null"));
        rig.server.pause();
        let opens = format!("import os; os.open('{OWNER}', os.O_WRONLY)");
        let reads = format!("import os; os.open('{OWNER}', os.O_RDONLY | os.O_DIRECT)");
        let handles = format!(
            "import os, signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: os._exit(7))\n\
             os.open('{OWNER}', os.O_WRONLY)"
        );
        let python = |script: &str| vec![PYTHON.to_owned(), "-c".to_owned(), script.to_owned()];
        // A cell that nobody has looked into yet; a record that is opened; one that is read past the mirror.
        let programs = [vec!["ls".to_owned(), "zone2".to_owned()], python(&opens), python(&reads)];
        for program in &programs {
            let program: Vec<&str> = program.iter().map(String::as_str).collect();
            for how in [Signal::SIGKILL, Signal::SIGTERM] {
                let child = waiting(&mount, &program);
                signal(child.id(), how);
                assert!(!ended(child).success(), "{program:?}: {how}");
            }
        }
        // A signal that is handled; Ctrl-C in Python is one.
        let child = waiting(&mount, &[PYTHON, "-c", &handles]);
        signal(child.id(), Signal::SIGUSR1);
        assert_eq!(ended(child).code(), Some(7));
        // Nothing is left of them, and the mount goes on when the service does.
        rig.server.resume();
        eventually("it can be saved again", || {
            mount.bash(&format!("cat {OWNER}; echo new > {OWNER}")).status.success().then_some(())
        });
        assert_eq!(mount.read(OWNER), "new\n");
    }
}
