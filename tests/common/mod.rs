//! What the tests share: servers, mounts, commands, waiting. Everything started here ends with the test, also when it
//! fails.

#![allow(dead_code)] // each test program uses its part

pub mod chance;
pub mod consul;
pub mod etcd;
pub mod http;
pub mod mount;
pub mod page;
pub mod proxy;
pub mod server;
pub mod world;
pub mod zookeeper;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Debian's Python: another one on the PATH need not be there for other users.
pub const PYTHON: &str = "/usr/bin/python3";

/// Longest time that something which must happen may take, on a machine that has ten times too much to do.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until there is a value.
pub fn eventually<T>(what: &str, poll: impl FnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, poll)
}

/// The same for what is a lot of work.
pub fn eventually_within<T>(deadline: Duration, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that ends when this test process ends, whatever happens to it.
pub fn bound_command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", program]).stdin(Stdio::null());
    command
}

/// Starts a program from a thread that lives as long as the process: the kernel's "parent death" is that of the thread.
pub fn spawn_bound(mut command: Command) -> std::process::Child {
    use std::sync::mpsc::{Sender, channel};
    static SPAWNER: std::sync::LazyLock<Sender<(Command, Sender<std::process::Child>)>> =
        std::sync::LazyLock::new(|| {
            let (jobs, todo) = channel::<(Command, Sender<std::process::Child>)>();
            std::thread::spawn(move || {
                for (mut command, done) in todo {
                    done.send(command.spawn().expect("the program starts")).unwrap();
                }
            });
            jobs
        });
    let (done, child) = channel();
    command.stdin(Stdio::null());
    SPAWNER.send((command, done)).unwrap();
    child.recv().unwrap()
}

/// Runs a script in bash and returns what came of it. No command of a test may take longer than a minute.
pub fn bash_in(dir: &std::path::Path, script: &str) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", "bash", "-c", script]).current_dir(dir).stdin(Stdio::null());
    command.output().expect("bash runs")
}

/// The same in a mount namespace of its own: what it mounts, nobody else sees, and it is gone with its processes.
pub fn bash_apart(dir: &std::path::Path, script: &str) -> Output {
    let mut command = Command::new("timeout");
    let apart = ["unshare", "-m", "--propagation", "private", "bash", "-c", script];
    command.args(["--kill-after=5", "60"]).args(apart).current_dir(dir).stdin(Stdio::null());
    command.output().expect("bash runs")
}

/// Standard output and standard error together, for messages of tests.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).expect("the process is there");
}

/// Whether a process has ended, or waits for its parent to notice.
pub fn process_has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}
