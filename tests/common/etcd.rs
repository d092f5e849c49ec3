//! A real etcd, started by scripts/etcd.

use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{eventually, signal, spawn_bound, text};

pub struct Etcd {
    dir: TempDir,
    child: Option<Child>,
    pub port: u16,
}

/// The etcd that the tests of one program share, each below a root of its own. It is never stopped nor compacted.
pub fn shared() -> &'static Etcd {
    static SHARED: LazyLock<Etcd> = LazyLock::new(Etcd::start);
    &SHARED
}

/// A root that no other test uses.
pub fn fresh_root() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("/t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Etcd {
    pub fn start() -> Self {
        let mut etcd = Self::new();
        etcd.restart();
        etcd
    }

    /// Not started yet.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), child: None, port: free_port() }
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it again on its data and its port.
    pub fn restart(&mut self) {
        self.launch(&[]);
        eventually("etcd answers", || self.try_ctl(&["get", "x"]).then_some(()));
    }

    /// Starts it without waiting for it, with flags of its own.
    pub fn launch(&mut self, flags: &[String]) {
        assert!(self.child.is_none(), "etcd runs already");
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/etcd"));
        command.arg(self.dir.path()).arg(self.port.to_string()).args(flags).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(spawn_bound(command));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("etcd runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn pause(&self) {
        signal(self.child.as_ref().unwrap().id(), Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        signal(self.child.as_ref().unwrap().id(), Signal::SIGCONT);
    }

    /// The directory of its data, for files that go with it.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint(), "--command-timeout", "10s"]).args(args);
        command
    }

    fn try_ctl(&self, args: &[&str]) -> bool {
        self.command(args).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
    }

    /// Runs etcdctl.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("etcdctl runs");
        assert!(output.status.success(), "etcdctl {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Stores exactly these bytes.
    pub fn put(&self, key: &str, value: &[u8]) {
        use std::io::Write;
        let mut child = self.command(&["put", key]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(value).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// The stored bytes; `None` if there is no such key.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        use base64::Engine;
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&["get", key, "-w", "json"])).unwrap();
        let kv = answer["kvs"].get(0)?;
        let value = kv["value"].as_str().unwrap_or_default();
        Some(base64::engine::general_purpose::STANDARD.decode(value).unwrap())
    }

    /// The revision of the whole store.
    pub fn revision(&self) -> u64 {
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&["get", "x", "-w", "json"])).unwrap();
        answer["header"]["revision"].as_u64().unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
