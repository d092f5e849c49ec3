//! Snapshots of a large topology while somebody writes to it, beside copies of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use topofs::backend::{Action, Change, Guard, Implementation};
use topofs::name::TopoPath;

use crate::service::{Topology, open_all};
use crate::{REPEAT, bash, dir_of, median, row, timed};

/// Tablets; with what belongs to them, somewhat more records.
const TABLETS: usize = 100_000;
/// Records that change after the snapshot.
const LATER: usize = 1_000;
/// Snapshots that are measured.
const SNAPSHOTS: usize = 100;

pub fn measure() -> Result<()> {
    let topology = Topology::start(TABLETS)?;
    println!("## Snapshots of {} records, while a writer changes one record after the other\n", topology.records);
    println!("| what | topofs | beside it | ratio |\n|---|---|---|---|");
    let mount = topology.mount(&["--list=raw"], None)?;
    mount.wait_until_loaded(&topology)?;
    let all = {
        let _runtime = topology.runtime.enter();
        open_all(Implementation::Etcd2, &topology.endpoint, topology.root)?
    };
    let write = |number: usize| {
        let path = TopoPath::parse(&format!("zone1/rules/record{}", number % LATER))?;
        let change = Change { path, guard: Guard::Any, action: Action::Put(format!("{number:0150}").into()) };
        topology.runtime.block_on(all.apply(&[change])).map(|applied| applied.at.0).context("a write")
    };
    let last = (0..LATER).map(write).last().context("no writes")??;
    let stop = AtomicBool::new(false);
    let (mut made, mut resident) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..).take_while(|_| !stop.load(Ordering::Relaxed)).try_for_each(|number| write(number).map(drop))
        });
        for number in 0..SNAPSHOTS {
            made.push(timed(|| Ok(std::fs::create_dir(mount.join(&format!(".topofs/at/s{number}")))?))?.0);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer has panicked"))?
    })?;
    made.sort();
    let longest = made.last().copied().unwrap_or_default();
    let get = topology.bulk_read();
    let bulk = median((0..REPEAT).map(|_| Ok(timed(|| bash(&get))?.0)).collect::<Result<_>>()?);
    row(&format!("mkdir of a snapshot, median of {SNAPSHOTS} / one bulk read"), median(made), bulk);
    row("the longest of them / one bulk read", longest, bulk);
    for number in 1..SNAPSHOTS {
        std::fs::remove_dir(mount.join(&format!(".topofs/at/s{number}")))?;
    }
    resident.push(mount.resident()?);
    (0..LATER).try_for_each(|number| write(number).map(drop))?;
    // All of it has come.
    crate::service::wait("the last change", || {
        let shown = std::fs::read_to_string(mount.join(&format!("zone1/rules/record{}", LATER - 1))).ok()?;
        (shown == format!("{:0150}", LATER - 1)).then_some(())
    })?;
    resident.push(mount.resident()?);
    if let [before, after] = resident[..] {
        let grown = after.saturating_sub(before) * 1024;
        let changed = LATER as u64 * 150;
        println!(
            "| memory after {LATER} changes of 150 bytes / those bytes | {grown} B | {changed} B | **{:.1}** |",
            grown as f64 / changed as f64
        );
    }
    let read = |what: &str| timed(|| bash(&format!("find {}/.topofs/at/{what} -name Tablet | wc -l", dir_of(&mount))));
    let first = read(&last.to_string())?.0;
    let again = read(&last.to_string())?.0;
    row("`find` in a revision, the first time / again", first, again);
    let copy = tempfile::tempdir_in("/dev/shm")?;
    let cp = timed(|| bash(&format!("cp -r {}/zone1/keyspaces {}", dir_of(&mount), copy.path().display())))?.0;
    let of_snapshot =
        timed(|| bash(&format!("cp -r {}/.topofs/at/s0/zone1/keyspaces {}/s", dir_of(&mount), copy.path().display())))?
            .0;
    row("`cp -r` of a part of a snapshot / of the live tree", of_snapshot, cp.max(Duration::from_micros(1)));
    println!();
    Ok(())
}
