//! The program behind scripts/load-topology.

use anyhow::Context;
use topofs::backend::{Action, Change, ConnectOptions, Guard, Implementation, Location, open};
use topofs::name::{CellName, TopoPath};
use topofs::record::Codec;
use topofs::sample::Cluster;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "load-topology ENDPOINT ROOT KEYSPACES SHARDS TABLETS [CELLS]";
    let [server, root, numbers @ ..] = args.as_slice() else { anyhow::bail!(usage) };
    let numbers = numbers.iter().map(|n| n.parse()).collect::<Result<Vec<usize>, _>>().context(usage)?;
    let (keyspaces, shards, tablets, cells) = match *numbers.as_slice() {
        [keyspaces, shards, tablets] => (keyspaces, shards, tablets, 2),
        [keyspaces, shards, tablets, cells] => (keyspaces, shards, tablets, cells),
        _ => anyhow::bail!(usage),
    };
    let location = Location { implementation: Implementation::Etcd2, server: server.clone(), root: root.clone() };
    let options = ConnectOptions { timeout: std::time::Duration::from_secs(15), ..ConnectOptions::default() };
    let all = open(&CellName::global(), &location, &options)?;
    let records = Cluster::of_size(server, root, cells, keyspaces, shards, tablets).records(&Codec::builtin()?)?;
    let count = records.len();
    let changes: Vec<Change> = records
        .into_iter()
        .map(|(cell, path, value)| {
            let path = TopoPath::parse(&format!("{cell}/{path}"))?;
            Ok(Change { path, guard: Guard::Any, action: Action::Put(value) })
        })
        .collect::<anyhow::Result<_>>()?;
    for chunk in changes.chunks(all.limits().changes) {
        all.apply(chunk).await?;
    }
    println!("{count} records stored below {root}");
    Ok(())
}
