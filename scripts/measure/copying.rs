//! Records a second of `topofs topo2topo`, beside Vitess's own topo2topo, and between the services.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use topofs::backend::{Action, Backend, Change, Guard, Implementation};
use topofs::name::TopoPath;
use topofs::record::Codec;
use topofs::sample::Cluster;

use crate::service::{Server, open_all, wait};
use crate::timed;

/// Vitess's program. scripts/bench builds it from the module that tests/interop uses.
const VITESS: &str = "target/interop/vitess-topo2topo";
/// Keyspaces of eight shards and ten tablets each: for the comparison, and for the round. Vitess would take minutes for
/// the large one.
const KEYSPACES: (usize, usize) = (100, 1_000);
/// All kinds that Vitess knows.
const KINDS: [&str; 5] =
    ["--do-keyspaces", "--do-shards", "--do-shard-replications", "--do-tablets", "--do-routing-rules"];

/// A topology somewhere.
struct Place<'a> {
    implementation: Implementation,
    server: &'a Server,
    root: &'a str,
}

pub fn measure() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let servers = [Server::start("etcd")?, Server::start("zookeeper")?, Server::start("consul")?];
    let [etcd, zookeeper, consul] = &servers;
    let place = |implementation, server, root| Place { implementation, server, root };
    let small = place(Implementation::Etcd2, etcd, "/small");
    let large = place(Implementation::Etcd2, etcd, "/large");
    small.load(KEYSPACES.0, &runtime)?;
    println!("## topo2topo: records a second\n\n| what | topofs | Vitess | ratio |\n|---|---|---|---|");
    let [ours, theirs] = ["/ours", "/theirs"].map(|root| place(Implementation::Etcd2, etcd, root));
    let (time, records) = small.copy_to(&ours, &KINDS, &runtime)?;
    let rate = records as f64 / time.as_secs_f64();
    match theirs.filled_by_vitess(&small, &runtime) {
        Ok((time, records)) => {
            let theirs = records as f64 / time.as_secs_f64();
            println!(
                "| etcd2 -> etcd2, {} keyspaces | {rate:.0} | {theirs:.0} | **{:.1}** |",
                KEYSPACES.0,
                rate / theirs
            );
        }
        Err(error) => println!("| etcd2 -> etcd2, {} keyspaces | {rate:.0} | {error:#} | |", KEYSPACES.0),
    }
    large.load(KEYSPACES.1, &runtime)?;
    let on_zookeeper = place(Implementation::Zk2, zookeeper, "/large");
    let on_consul = place(Implementation::Consul, consul, "large");
    let back = place(Implementation::Etcd2, etcd, "/back");
    for (from, to) in [(&large, &on_zookeeper), (&on_zookeeper, &on_consul), (&on_consul, &back)] {
        let (time, records) = from.copy_to(to, &[], &runtime)?;
        let rate = records as f64 / time.as_secs_f64();
        let seconds = time.as_secs_f64();
        println!(
            "| {} -> {}, {records} records in {seconds:.1} s | {rate:.0} | | |",
            from.implementation, to.implementation
        );
    }
    let (time, same) = large.run(&back, &["--compare"])?;
    println!("| compared, and the same: {same} | {:.1} s | | |\n", time.as_secs_f64());
    Ok(())
}

impl Place<'_> {
    fn all(&self) -> Result<std::sync::Arc<dyn Backend>> {
        open_all(self.implementation, &self.server.endpoint, self.root)
    }

    /// Stores so many keyspaces of eight shards, with ten tablets each.
    fn load(&self, keyspaces: usize, runtime: &tokio::runtime::Runtime) -> Result<()> {
        let endpoint = &self.server.endpoint;
        let cluster = Cluster::of_size(endpoint, self.root, 2, keyspaces, 8, 2);
        let mut records = cluster.records(&Codec::builtin()?)?;
        // The second tablet of each shard is in the second cell: of every fourth shard, it stays.
        let mut second = 0;
        records.retain(|(cell, path, _)| {
            let is_second = cell.as_str() == "zone2" && path.name() == "Tablet";
            second += usize::from(is_second);
            !is_second || second % 4 == 0
        });
        let _runtime = runtime.enter();
        let all = self.all()?;
        wait("the server", || runtime.block_on(all.get(&TopoPath::root())).ok())?;
        let changes = records.into_iter().map(|(cell, path, value)| {
            Ok(Change {
                path: TopoPath::parse(&format!("{cell}/{path}"))?,
                guard: Guard::Any,
                action: Action::Put(value),
            })
        });
        let changes = changes.collect::<Result<Vec<Change>>>()?;
        for chunk in changes.chunks(all.limits().changes) {
            runtime.block_on(all.apply(chunk))?;
        }
        Ok(())
    }

    fn count(&self, runtime: &tokio::runtime::Runtime) -> Result<usize> {
        let _runtime = runtime.enter();
        let all = self.all()?;
        Ok(runtime.block_on(all.list(&TopoPath::root()))?.nodes.len())
    }

    fn flags(&self, side: &str) -> [String; 3] {
        [
            format!("--{side}-implementation={}", self.implementation),
            format!("--{side}-server={}", self.server.endpoint),
            format!("--{side}-root={}/global", self.root),
        ]
    }

    /// Runs our program, and returns its time and its last line.
    fn run(&self, to: &Place<'_>, flags: &[&str]) -> Result<(Duration, String)> {
        let (time, output) = timed(|| {
            let mut command = Command::new("target/release/topofs");
            command.arg("topo2topo").args(self.flags("from")).args(to.flags("to")).args(flags);
            command.arg(format!("--map-server={}={}", self.server.endpoint, to.server.endpoint));
            command.arg(format!("--map-root={}={}", self.root, to.root));
            Ok(command.output()?)
        })?;
        ensure!(output.status.success(), "topo2topo: {}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((time, printed.lines().last().unwrap_or_default().to_owned()))
    }

    fn copy_to(&self, to: &Place<'_>, flags: &[&str], runtime: &tokio::runtime::Runtime) -> Result<(Duration, usize)> {
        let (time, _) = self.run(to, flags)?;
        Ok((time, to.count(runtime)?))
    }

    /// Vitess's program needs the cells at the target, and does not run as root.
    fn filled_by_vitess(&self, from: &Place<'_>, runtime: &tokio::runtime::Runtime) -> Result<(Duration, usize)> {
        let dir = tempfile::tempdir()?;
        let program = dir.path().join("topo2topo");
        std::fs::copy(VITESS, &program).context("not built")?;
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let cells = Cluster { keyspaces: Vec::new(), ..Cluster::of_size(&self.server.endpoint, self.root, 2, 0, 0, 0) };
        let infos = cells.records(&Codec::builtin()?)?.into_iter().filter(|(_, path, _)| path.name() == "CellInfo");
        let changes = infos.map(|(cell, path, value)| {
            Ok(Change {
                path: TopoPath::parse(&format!("{cell}/{path}"))?,
                guard: Guard::Any,
                action: Action::Put(value),
            })
        });
        {
            let _runtime = runtime.enter();
            runtime.block_on(self.all()?.apply(&changes.collect::<Result<Vec<Change>>>()?))?;
        }
        let (time, status) = timed(|| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(KINDS);
            command.args(from.flags("from")).args(self.flags("to")).current_dir(dir.path());
            Ok(command.stdout(Stdio::null()).stderr(std::fs::File::create(dir.path().join("log"))?).status()?)
        })?;
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let last = || log().lines().last().unwrap_or_default().to_owned();
        ensure!(status.success(), "Vitess's topo2topo has failed: {}", last());
        Ok((time, self.count(runtime)?))
    }
}
