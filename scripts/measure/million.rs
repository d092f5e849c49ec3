//! A million records: ready, memory, a comparison, one change to its event, beside ten and a hundred times less.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::service::{Topology, open_all};
use crate::{bash, median, row, timed};
use topofs::backend::{Action, Change, Guard, Implementation};
use topofs::name::TopoPath;

/// Tablets: each step has ten times as many.
const STEPS: [usize; 3] = [10_000, 100_000, 1_000_000];
/// Repetitions: each takes some seconds.
const REPEAT: usize = 3;
/// Changes whose events are waited for.
const CHANGES: usize = 50;

pub fn measure() -> Result<()> {
    let mut before: Option<(usize, Duration)> = None;
    println!("## Up to a million records\n");
    println!("| what | topofs | beside it | ratio |\n|---|---|---|---|");
    for step in STEPS {
        let topology = Topology::start(step)?;
        let get = topology.bulk_read();
        let (mut ready, mut bulk) = (Vec::new(), Vec::new());
        for _ in 0..REPEAT {
            bulk.push(timed(|| bash(&get))?.0);
            let begin = Instant::now();
            let mount = topology.mount(&[], None)?;
            mount.wait_until_loaded(&topology)?;
            ready.push(begin.elapsed());
        }
        let (ready, bulk) = (median(ready), median(bulk));
        row(&format!("{} records: ready / `etcdctl get --prefix`", topology.records), ready, bulk);
        if let Some((smaller, earlier)) = before.replace((topology.records, ready)) {
            row(&format!("the same, against {smaller} records"), ready, earlier);
        }
        let mount = topology.mount(&[], None)?;
        mount.wait_until_loaded(&topology)?;
        let each = mount.resident()? as f64 * 1024.0 / topology.records as f64;
        println!("| memory for a record of {} bytes | {each:.0} B | | |", topology.bytes / topology.records);
        mount.resync()?;
        let resync = timed(|| mount.resync())?.0;
        row("a comparison without news / `etcdctl get --prefix`", resync, bulk);
        let event = event(&topology, &mount)?;
        println!("| one change to its event, median of {CHANGES} | {} | | |", crate::text(event));
    }
    println!();
    Ok(())
}

fn event(topology: &Topology, mount: &crate::service::Mount) -> Result<Duration> {
    let all = {
        let _runtime = topology.runtime.enter();
        open_all(Implementation::Etcd2, &topology.endpoint, topology.root)?
    };
    let file = mount.join("global/metadata/owner");
    std::fs::read(&file)?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(&file, AddWatchFlags::IN_MODIFY)?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        while inotify.read_events().is_ok() {}
        let path = TopoPath::parse("global/metadata/owner")?;
        let change = Change { path, guard: Guard::Any, action: Action::Put(format!("change {number}").into()) };
        let begin = Instant::now();
        topology.runtime.block_on(all.apply(&[change]))?;
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut fds, PollTimeout::from(30_000_u16))? == 1, "no event came");
        times.push(begin.elapsed());
    }
    Ok(median(times))
}
