//! One change at a time: how long a save takes, and when others hear of it.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::service::Topology;
use crate::{median, row, timed};

/// Changes made for each figure.
const CHANGES: usize = 300;
const RECORD: &str = "global/metadata/owner";

pub fn measure(topology: &Topology) -> Result<()> {
    commits(topology)?;
    events(topology)
}

fn commits(topology: &Topology) -> Result<()> {
    let mount = topology.mount(&[], None)?;
    let mut client = topology.runtime.block_on(Client::connect([&topology.endpoint], None))?;
    let (key, file) = (format!("{}/{RECORD}", topology.root), mount.join(RECORD));
    let (mut ours, mut swaps, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..CHANGES {
        ours.push(timed(|| Ok(std::fs::write(&file, format!("ours {number}"))?))?.0);
        let (all, swap) = topology.runtime.block_on(async {
            let begin = Instant::now();
            let read = client.get(key.as_str(), None).await?;
            let revision = read.kvs().first().context("the record")?.mod_revision();
            let swap = Instant::now();
            let guard = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
            let put = TxnOp::put(key.as_str(), format!("raw {number}"), None);
            ensure!(client.txn(Txn::new().when([guard]).and_then([put])).await?.succeeded());
            anyhow::Ok((begin.elapsed(), swap.elapsed()))
        })?;
        rounds.push(all);
        swaps.push(swap);
    }
    let ours = median(ours);
    row("one edit (open, write, close) / compare-and-swap alone", ours, median(swaps));
    row("one edit (open, write, close) / read and compare-and-swap", ours, median(rounds));
    Ok(())
}

/// The moments at which a change was heard of, by etcdctl and by inotify, after it was made.
fn events(topology: &Topology) -> Result<()> {
    let mount = topology.mount(&[], None)?;
    let file = mount.join(RECORD);
    std::fs::read(&file)?;
    let key = format!("{}/{RECORD}", topology.root);
    let mut watch = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &topology.endpoint, "watch", &key])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("a pipe")?).lines();
    let (heard, by_etcdctl) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Three lines a change: PUT, the key, the value.
        for line in lines.map_while(Result::ok).filter(|line| line.starts_with("change ")) {
            let _ = heard.send((line, Instant::now()));
        }
    });
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(&file, AddWatchFlags::IN_MODIFY)?;
    let mut client = topology.runtime.block_on(Client::connect([&topology.endpoint], None))?;
    // Until the watch is there.
    while by_etcdctl.recv_timeout(Duration::from_millis(200)).is_err() {
        topology.runtime.block_on(client.put(key.as_str(), "change first", None))?;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        // Both are quiet.
        while by_etcdctl.recv_timeout(Duration::from_millis(5)).is_ok() {}
        while inotify.read_events().is_ok() {}
        let value = format!("change {number}");
        let begin = Instant::now();
        topology.runtime.block_on(client.put(key.as_str(), value.as_str(), None))?;
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut fds, PollTimeout::from(5_000_u16))? == 1, "no event came");
        ours.push(begin.elapsed());
        let (_, when) = by_etcdctl.recv_timeout(Duration::from_secs(5))?;
        theirs.push(when - begin);
    }
    watch.kill()?;
    watch.wait()?;
    let percentile = |times: &mut Vec<Duration>| {
        times.sort();
        times.get(times.len() * 99 / 100).copied().unwrap_or_default()
    };
    row("change elsewhere to inotify event / to `etcdctl watch`, median", median(ours.clone()), median(theirs.clone()));
    row("the same, 99th percentile", percentile(&mut ours), percentile(&mut theirs));
    Ok(())
}
