//! The program behind scripts/bench: everything is measured in one run, side by side, and told as ratios of medians.

mod consulfs;
mod copying;
mod costs;
mod latency;
mod million;
mod reading;
mod service;
mod snapshot;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use service::{Mount, Topology};

/// Repetitions of what is short.
const REPEAT: usize = 5;

fn main() -> Result<()> {
    let only = match std::env::args().nth(1).as_deref() {
        Some("topo2topo") => Some(copying::measure as fn() -> Result<()>),
        Some("snapshot") => Some(snapshot::measure as fn() -> Result<()>),
        Some("service") => Some(costs::measure as fn() -> Result<()>),
        Some("million") => Some(million::measure as fn() -> Result<()>),
        Some("requests") => Some(requests as fn() -> Result<()>),
        _ => None,
    };
    if let Some(measure) = only {
        println!("{}\n", machine()?);
        return measure();
    }
    let sizes: Vec<usize> =
        std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>().context("bench TABLETS...")?;
    println!("{}\n", machine()?);
    let mut first = None;
    for (index, size) in sizes.iter().enumerate() {
        let topology = Topology::start(*size)?;
        println!(
            "## {size} tablets ({} records, {} bytes each in the mean)\n",
            topology.records,
            topology.bytes / topology.records
        );
        println!("| what | topofs | beside it | ratio |\n|---|---|---|---|");
        let ready = start(&topology)?;
        if let Some((smaller, earlier)) = first {
            row(&format!("ready, against {smaller} tablets"), ready, earlier);
        }
        first.get_or_insert((*size, ready));
        memory(&topology)?;
        if index == 0 {
            latency::measure(&topology)?;
            reading::measure(&topology)?;
        }
        println!();
    }
    costs::measure()?;
    snapshot::measure()?;
    consulfs::measure()?;
    copying::measure()
}

/// Prints one comparison.
fn row(what: &str, ours: Duration, theirs: Duration) {
    println!("| {what} | {} | {} | **{:.2}** |", text(ours), text(theirs), ours.as_secs_f64() / theirs.as_secs_f64());
}

fn text(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.001 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{:.0} us", seconds * 1e6),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let begin = Instant::now();
    let value = work()?;
    Ok((begin.elapsed(), value))
}

fn bash(script: &str) -> Result<String> {
    let output = Command::new("bash").args(["-c", script]).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Until a mount shows all of its tablets, against one bulk read by etcd's own tool.
fn start(topology: &Topology) -> Result<Duration> {
    let (mut ready, mut bulk) = (Vec::new(), Vec::new());
    for _ in 0..REPEAT {
        let (time, mount) = timed(|| {
            let mount = topology.mount(&[], None)?;
            mount.wait_until_loaded(topology)?;
            Ok(mount)
        })?;
        ready.push(time);
        drop(mount);
        let get = topology.bulk_read();
        bulk.push(timed(|| bash(&get))?.0);
    }
    let (ready, bulk) = (median(ready), median(bulk));
    row("ready (all cells loaded) / one bulk read", ready, bulk);
    let loop_of_gets = topology.loop_of_gets()?;
    row("the same / `etcdctl get` for each record", ready, loop_of_gets);
    Ok(ready)
}

/// What one change and warm reading cost.
fn requests() -> Result<()> {
    /// Tablets.
    const TABLETS: usize = 10_000;
    let topology = Topology::start(TABLETS)?;
    println!("| what | topofs | beside it | ratio |\n|---|---|---|---|");
    latency::measure(&topology)?;
    reading::measure(&topology)
}

/// Resident memory of the daemon.
fn memory(topology: &Topology) -> Result<()> {
    let mount = topology.mount(&[], None)?;
    mount.wait_until_loaded(topology)?;
    let per_record = |kilobytes: u64| kilobytes as f64 * 1024.0 / topology.records as f64;
    let loaded = mount.resident()?;
    bash(&format!("grep -r no-such-text {} || true", mount.path().display()))?;
    let read = mount.resident()?;
    println!(
        "| memory, nothing read / after `grep -r` of everything, for a record | {:.0} B | {:.0} B | **{:.2}** |",
        per_record(loaded),
        per_record(read),
        read as f64 / loaded as f64
    );
    Ok(())
}

fn machine() -> Result<String> {
    let processor = "$(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)";
    let etcd = "$(etcd --version | sed -n 's/etcd Version: //p')";
    bash(&format!("echo \"{processor}, Linux $(uname -r), etcd {etcd}\"")).map(|text| text.trim().to_owned())
}

/// Where a mount is, for those who need only that.
fn dir_of(mount: &Mount) -> String {
    mount.path().display().to_string()
}
