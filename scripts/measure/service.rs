//! An etcd with a topology, and mounts of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tempfile::TempDir;
use topofs::backend::{Action, Backend, Change, ConnectOptions, Guard, Implementation, Location, open};
use topofs::name::{CellName, TopoPath};
use topofs::record::Codec;
use topofs::sample::Cluster;

/// Longest time that anything may take to start.
const DEADLINE: Duration = Duration::from_secs(300);

/// A server started by one of scripts/.
pub struct Server {
    child: Child,
    pub endpoint: String,
    _dir: TempDir,
}

impl Server {
    pub fn start(script: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(format!("scripts/{script}"));
        command.arg(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        let endpoint = wait("the server", || {
            let text = std::fs::read_to_string(dir.path().join("endpoint")).ok()?.trim().to_owned();
            std::net::TcpStream::connect(&text).ok().map(|_| text)
        })?;
        Ok(Self { child, endpoint, _dir: dir })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = poll() {
            return Ok(value);
        }
        ensure!(Instant::now() < end, "{what} does not answer");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A topology in an etcd of its own.
pub struct Topology {
    _server: Server,
    pub endpoint: String,
    pub root: &'static str,
    pub records: usize,
    pub bytes: usize,
    keys: Vec<String>,
    tablets: Vec<String>,
    pub runtime: tokio::runtime::Runtime,
}

pub fn connect_options() -> ConnectOptions {
    ConnectOptions::default()
}

pub fn open_all(implementation: Implementation, server: &str, root: &str) -> Result<std::sync::Arc<dyn Backend>> {
    let location = Location { implementation, server: server.to_owned(), root: root.to_owned() };
    Ok(open(&CellName::global(), &location, &connect_options())?)
}

/// Stores a cluster of so many tablets. Returns the keys and the number of bytes.
pub fn load(
    all: &dyn Backend,
    server: &str,
    root: &str,
    tablets: usize,
    runtime: &tokio::runtime::Runtime,
) -> Result<(Vec<String>, usize)> {
    /// Tablets of a shard, and shards of a keyspace.
    const SHAPE: (usize, usize) = (25, 8);
    let keyspaces = tablets.div_ceil(SHAPE.0 * SHAPE.1);
    let cluster = Cluster::of_size(server, root, 2, keyspaces, SHAPE.1, SHAPE.0);
    let records = cluster.records(&Codec::builtin()?)?;
    let mut bytes = 0;
    let mut changes = Vec::new();
    for (cell, path, value) in records {
        let path = TopoPath::parse(&format!("{cell}/{path}"))?;
        let value = if path.name() == "Tablet" { of_usual_size(&value) } else { value };
        bytes += value.len();
        changes.push(Change { path, guard: Guard::Any, action: Action::Put(value) });
    }
    runtime.block_on(async {
        for chunk in changes.chunks(all.limits().changes) {
            all.apply(chunk).await?;
        }
        anyhow::Ok(())
    })?;
    Ok((changes.into_iter().map(|change| change.path.to_string()).collect(), bytes))
}

/// The message, with a field that it does not know, and that makes it as long as tablets are in a cluster that is used.
fn of_usual_size(value: &Bytes) -> Bytes {
    /// Bytes of a record.
    const USUAL: usize = 300;
    /// The number of the field, and that it is bytes, as protobuf stores them; and its length, which needs two bytes.
    const FIELD: [u8; 2] = [0xc2, 0x3e];
    let Some(missing) = USUAL.checked_sub(value.len() + FIELD.len() + 2) else {
        return value.clone();
    };
    let length = [(missing & 0x7f) as u8 | 0x80, (missing >> 7) as u8];
    [value, &FIELD[..], &length[..], &vec![b'x'; missing]].concat().into()
}

impl Topology {
    pub fn start(size: usize) -> Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let server = Server::start("etcd")?;
        let (endpoint, root) = (server.endpoint.clone(), "/vitess");
        let (keys, bytes) = {
            let _runtime = runtime.enter();
            let all = open_all(Implementation::Etcd2, &endpoint, root)?;
            load(&*all, &endpoint, root, size, &runtime)?
        };
        let tablets = ["zone1/", "zone2/"]
            .into_iter()
            .filter_map(|cell| keys.iter().find(|key| key.starts_with(cell) && key.ends_with("/Tablet")));
        let tablets = tablets.cloned().collect();
        Ok(Self { _server: server, endpoint, root, records: keys.len(), bytes, keys, tablets, runtime })
    }

    /// A mount by the release build, pinned to a CPU if one is given.
    pub fn mount(&self, flags: &[&str], cpu: Option<&str>) -> Result<Mount> {
        Mount::start("etcd2", &self.endpoint, &format!("{}/global", self.root), flags, cpu)
    }

    /// The script that reads everything by etcd's own tool.
    pub fn bulk_read(&self) -> String {
        format!("ETCDCTL_API=3 etcdctl --endpoints {} get --prefix {} > /dev/null", self.endpoint, self.root)
    }

    /// What `etcdctl get` takes for each record, from the first two hundred.
    pub fn loop_of_gets(&self) -> Result<Duration> {
        /// Records read, to count for all.
        const SAMPLE: usize = 200;
        let begin = Instant::now();
        for key in self.keys.iter().take(SAMPLE) {
            let key = format!("{}/{key}", self.root);
            let status = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.endpoint, "get", &key])
                .stdout(Stdio::null())
                .status()?;
            ensure!(status.success());
        }
        let share = self.records as f64 / SAMPLE.min(self.records) as f64;
        Ok(begin.elapsed().mul_f64(share))
    }
}

/// The program beside this one: of the same build.
fn topofs() -> String {
    let own = std::env::current_exe().ok();
    let built = own.as_deref().and_then(Path::parent).and_then(Path::parent).map(|dir| dir.join("topofs"));
    built.map_or_else(|| "target/release/topofs".to_owned(), |path| path.display().to_string())
}

/// A mount.
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    pub fn start(implementation: &str, server: &str, root: &str, flags: &[&str], cpu: Option<&str>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new("taskset");
        command.args(["-c", cpu.unwrap_or("0-63"), &topofs(), "mount"]);
        command.args(["--topo-implementation", implementation, "--topo-global-server-address", server]);
        command.args(["--topo-global-root", root, "--log-file", "/dev/null"]).args(flags).arg(dir.path());
        ensure!(command.status()?.success(), "topofs does not mount");
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Until each cell shows a tablet.
    pub fn wait_until_loaded(&self, topology: &Topology) -> Result<()> {
        topology
            .tablets
            .iter()
            .try_for_each(|tablet| std::fs::metadata(self.join(tablet)).map(drop).context("a tablet"))
    }

    /// A counter of all cells together, as `.topofs/status` has it.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status: serde_json::Value = serde_json::from_slice(&std::fs::read(self.join(".topofs/status"))?)?;
        let cells = status.get("cells").and_then(|cells| cells.as_object()).context("cells")?;
        Ok(cells.values().filter_map(|cell| cell.get(name)?.as_u64()).sum())
    }

    /// Compares all cells with the service, and waits until that is done.
    pub fn resync(&self) -> Result<()> {
        let status: serde_json::Value = serde_json::from_slice(&std::fs::read(self.join(".topofs/status"))?)?;
        let cells = status.get("cells").and_then(|cells| cells.as_object()).context("cells")?.len() as u64;
        let before = self.counter("resyncs")?;
        std::fs::write(self.join(".topofs/control"), "resync\n")?;
        wait("the resync", || (self.counter("resyncs").ok()? >= before + cells).then_some(()))
    }

    /// Memory of the daemon, in KiB.
    pub fn resident(&self) -> Result<u64> {
        let status: serde_json::Value = serde_json::from_slice(&std::fs::read(self.join(".topofs/status"))?)?;
        let text = std::fs::read_to_string(format!("/proc/{}/status", status.get("pid").context("pid")?))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
