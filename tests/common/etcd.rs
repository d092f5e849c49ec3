//! A real etcd, started by scripts/etcd.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::server::Server;
use super::{eventually, text};

pub struct Etcd(Server);

impl std::ops::Deref for Etcd {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl std::ops::DerefMut for Etcd {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

/// The etcd that the tests of one program share, each below a root of its own. It is never stopped nor compacted.
pub fn shared() -> &'static Etcd {
    static SHARED: LazyLock<Etcd> = LazyLock::new(Etcd::start);
    &SHARED
}

impl Etcd {
    pub fn start() -> Self {
        Self::with(Vec::new())
    }

    /// With flags of its own.
    pub fn with(flags: Vec<String>) -> Self {
        let mut etcd = Self(Server::new("etcd", flags));
        etcd.restart();
        etcd
    }

    /// Starts it again on its data and its port.
    pub fn restart(&mut self) {
        self.0.launch();
        eventually("etcd answers", || {
            self.0.look_after();
            self.try_ctl(&["get", "x"]).then_some(())
        });
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

    /// Makes a backup.
    pub fn back_up(&self) -> PathBuf {
        let backup = self.dir().join("backup");
        self.ctl(&["snapshot", "save", &backup.display().to_string()]);
        backup
    }

    /// Restores a backup, at the same place and under the same name.
    pub fn restore(&mut self, backup: &Path) {
        self.kill();
        let data = self.dir().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let (backup, data) = (backup.display().to_string(), data.display().to_string());
        let member = [
            "--name=development",
            "--initial-cluster=development=http://localhost:2380",
            "--initial-advertise-peer-urls=http://localhost:2380",
        ];
        self.ctl(&[&["snapshot", "restore", &backup, "--data-dir", &data], &member[..]].concat());
        self.restart();
    }

    /// The revision of the whole store.
    pub fn revision(&self) -> u64 {
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&["get", "x", "-w", "json"])).unwrap();
        answer["header"]["revision"].as_u64().unwrap()
    }
}
