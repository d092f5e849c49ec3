//! What mounts cost the service: bytes and processor time of an etcd, as its own metrics tell them.

use std::time::Duration;

use anyhow::{Context, Result};
use topofs::backend::{Action, Change, Guard, Implementation};
use topofs::name::TopoPath;

use crate::bash;
use crate::service::{Mount, Topology, open_all, wait};

/// Tablets of the large topology.
const TABLETS: usize = 100_000;
/// Mounts of one host each, here all of one.
const MANY: usize = 40;
/// What is short is done so often, and counted once.
const REPEAT: u32 = 20;
/// The default of `--resync-interval`, and the mounts that a large installation has.
const INTERVAL: Duration = Duration::from_secs(300);
const THOUSAND: f64 = 1_000.0;

/// What an etcd has sent and received, and its processor time in seconds.
#[derive(Clone, Copy)]
struct Cost {
    bytes: f64,
    processor: f64,
}

impl Cost {
    fn until_now(topology: &Topology) -> Result<Self> {
        let page = bash(&format!("curl -sf http://{}/metrics", topology.endpoint))?;
        let sum = |name: &str| -> Result<f64> {
            let mut lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).peekable();
            lines.peek().with_context(|| format!("etcd tells no {name}"))?;
            lines.map(|value| Ok(value.trim().parse::<f64>()?)).sum()
        };
        let (sent, received) =
            (sum("etcd_network_client_grpc_sent_bytes_total")?, sum("etcd_network_client_grpc_received_bytes_total")?);
        Ok(Self { bytes: sent + received, processor: sum("process_cpu_seconds_total")? })
    }

    /// What some work costs, each time.
    fn of(topology: &Topology, times: u32, mut work: impl FnMut(u32) -> Result<()>) -> Result<Self> {
        let before = Self::until_now(topology)?;
        (0..times).try_for_each(&mut work)?;
        let after = Self::until_now(topology)?;
        let each = |after: f64, before: f64| (after - before) / f64::from(times);
        Ok(Self { bytes: each(after.bytes, before.bytes), processor: each(after.processor, before.processor) })
    }

    fn row(self, what: &str, bulk: Self) {
        let percent = |part: f64, all: f64| 100.0 * part / all;
        println!(
            "| {what} | {:.0} | {:.1} ms | **{:.3} %** | {:.1} % |",
            self.bytes,
            self.processor * 1e3,
            percent(self.bytes, bulk.bytes),
            percent(self.processor, bulk.processor)
        );
    }
}

pub fn measure() -> Result<()> {
    let topology = Topology::start(TABLETS)?;
    println!("## What mounts of {} records cost their etcd\n", topology.records);
    println!("| what | bytes | its CPU | bytes / a bulk read | CPU / a bulk read |\n|---|---|---|---|---|");
    let get = topology.bulk_read();
    let bulk = Cost::of(&topology, 3, |_| bash(&get).map(drop))?;
    bulk.row("a bulk read, by etcdctl", bulk);
    let mut mounts = vec![loaded(&topology)?];
    let resync = all(&topology, &mounts, bulk)?;
    while mounts.len() < MANY {
        mounts.push(loaded(&topology)?);
    }
    all(&topology, &mounts, bulk)?;
    let cores = resync.processor * THOUSAND / INTERVAL.as_secs_f64();
    println!(
        "\nA thousand mounts that compare every {} s: {THOUSAND} x {:.2} ms / {} s = {cores:.3} cores.\n",
        INTERVAL.as_secs(),
        resync.processor * 1e3,
        INTERVAL.as_secs()
    );
    Ok(())
}

fn loaded(topology: &Topology) -> Result<Mount> {
    let mount = topology.mount(&[], None)?;
    mount.wait_until_loaded(topology)?;
    Ok(mount)
}

/// Prints what some mounts cost. Returns what a resync of one of them does.
fn all(topology: &Topology, mounts: &[Mount], bulk: Cost) -> Result<Cost> {
    let of = format!("{} mount{}", mounts.len(), if mounts.len() == 1 { "" } else { "s" });
    let first = mounts.first().context("a mount")?;
    // What was not compared before is not news.
    first.resync()?;
    let resync = Cost::of(topology, REPEAT, |_| first.resync())?;
    resync.row(&format!("{of}: a resync without news, of one"), bulk);
    let writer = {
        let _runtime = topology.runtime.enter();
        open_all(Implementation::Etcd2, &topology.endpoint, topology.root)?
    };
    let change = |number: u32, len: usize| {
        let value = format!("{len}-{number:0300}");
        let path = TopoPath::parse("zone1/metadata/changed")?;
        let change = Change { path, guard: Guard::Any, action: Action::Put(value.clone().into()) };
        topology.runtime.block_on(writer.apply(&[change]))?;
        mounts.iter().try_for_each(|mount| {
            let file = mount.join("zone1/metadata/changed");
            wait("a change", || (std::fs::read_to_string(&file).ok()? == value).then_some(()))
        })
    };
    Cost::of(topology, REPEAT, |number| change(number, mounts.len()))?
        .row(&format!("{of}: a change of 300 bytes"), bulk);
    Cost::of(topology, REPEAT, |number| {
        change(number + REPEAT, mounts.len())?;
        first.resync()
    })?
    .row(&format!("{of}: a change, and a resync of one"), bulk);
    let minute = || {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    Cost::of(topology, 1, |_| minute())?.row(&format!("{of}: a minute in which nothing happens"), bulk);
    Ok(resync)
}
