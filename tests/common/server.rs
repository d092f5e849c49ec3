//! A server of any kind, started by one of scripts/.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{signal, spawn_bound};

pub struct Server {
    script: &'static str,
    dir: TempDir,
    child: Option<Child>,
    flags: Vec<String>,
    pub port: u16,
}

impl Server {
    /// Not started yet. The flags are those of the script.
    pub fn new(script: &'static str, flags: Vec<String>) -> Self {
        Self { script, dir: tempfile::tempdir().unwrap(), child: None, flags, port: free_port() }
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The directory of its data, for files that go with it.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Starts it on its data and its port, without waiting for it.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = Command::new(format!("{}/scripts/{}", env!("CARGO_MANIFEST_DIR"), self.script));
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        command.arg(self.dir.path()).arg(self.port.to_string()).args(&self.flags);
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        self.child = Some(spawn_bound(command));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn pause(&self) {
        signal(self.child.as_ref().unwrap().id(), Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        signal(self.child.as_ref().unwrap().id(), Signal::SIGCONT);
    }

    /// Starts it again if it has ended by itself.
    pub fn look_after(&mut self) {
        if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
            eprintln!("{} has ended and is started again: {}", self.script, self.log());
            self.child = None;
            self.launch();
        }
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that was free a moment ago, that no other test gets, and no outgoing connection (they begin at 32768).
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 10_000;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let number = u32::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
        // Another run on this machine begins elsewhere.
        let port = u16::try_from(FIRST + (std::process::id() * 200 + number) % PORTS).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A root that no other test uses.
pub fn fresh_root() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("/t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
