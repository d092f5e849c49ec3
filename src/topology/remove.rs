//! Removes a keyspace from a cell: what vtctldclient calls RemoveKeyspaceCell. Must never remove anything before it
//! knows that all of it may be removed, nor a tablet of another keyspace.

use std::sync::Arc;

use futures::future::join_all;
use prost::Message;

use super::cells::refuse_others;
use super::lock::{Patience, under_lock};
use super::rebuild::{Done, Outcome, connected};
use super::{graph, picture};
use crate::backend::{Action, Change, Guard};
use crate::cells::{Cell, Cells};
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::layout::{self, Key};
use crate::record::messages::topodata;

/// The action in the text of the lock.
const ACTION: &str = "RemoveKeyspaceCell";

/// A keyspace to remove from a cell.
#[derive(Debug)]
pub struct Removal<'a> {
    /// The topology.
    pub cells: &'a Arc<Cells>,
    /// The keyspace.
    pub keyspace: &'a str,
    /// The cell.
    pub cell: &'a str,
    /// Whether to go on if the cell does not answer, or others that may serve the keyspace.
    pub force: bool,
    /// Whether to remove its tablets, too.
    pub recursive: bool,
}

impl Removal<'_> {
    /// Removes the tablets (if told to), the ShardReplication records and the SrvKeyspace of the keyspace in the cell,
    /// under the lock of the keyspace. An error of the whole means that nothing was removed, unless it says so.
    pub async fn run(&self, patience: &Patience) -> Result<Vec<Outcome>> {
        graph::refuse_name(self.keyspace)?;
        let dir = layout::keyspace(self.keyspace)?;
        let global = self.cells.get(&CellName::global()).ok_or_else(Error::not_found)?;
        let locked = under_lock(&global, &dir, ACTION, patience, async |_| {
            let records = global.records_now(&dir).await?;
            picture::read::<topodata::Keyspace>(&records, Key::Keyspace(self.keyspace))
                .ok_or_else(|| graph::is_missing(Key::Keyspace(self.keyspace)))??;
            match self.doomed(&records, &dir).await {
                Ok((cell, doomed)) => remove(&cell, doomed).await,
                // The whole cell is gone, and nothing of it stands in the global topology.
                Err(error) if self.force && error.kind == Kind::Unreachable => {
                    let (cell, path) = (self.cell.to_owned(), Key::SrvKeyspace(self.keyspace).path()?);
                    Ok(vec![Outcome { cell, path, done: Ok(Done::Left) }])
                }
                Err(error) if error.kind == Kind::Unreachable => {
                    let hint = ". Nothing was removed. If the whole cell is gone for good: --force";
                    Err(Error::new(error.kind, format!("{}{hint}", error.reason)))
                }
                Err(error) => Err(error),
            }
        });
        match locked.await {
            // There is nothing that could be locked.
            Err(error) if error.kind == Kind::NotFound && !global.mirror.snapshot().has_children(&dir) => {
                Err(graph::is_missing(Key::Keyspace(self.keyspace)))
            }
            locked => locked,
        }
    }

    /// What to remove, in this order. Fails, in words, if something forbids it.
    async fn doomed(&self, global: &Snapshot, dir: &TopoPath) -> Result<(Arc<Cell>, Vec<Change>)> {
        let cell = connected(self.cells, self.cell)?;
        let refuse_others = |doomed: &[Change]| refuse_others(self.cells, &cell, doomed).map_err(nothing_removed);
        // Known without asking the cell.
        refuse_others(&[])?;
        let there = cell.records_now(dir).await?;
        let srv_key = Key::SrvKeyspace(self.keyspace);
        let srv_keyspace = picture::read::<topodata::SrvKeyspace>(&there, srv_key).transpose()?;
        let mut doomed: Vec<Change> = Vec::new();
        for entry in global.entries(&layout::shards_dir(self.keyspace)?) {
            let key = Key::Shard(self.keyspace, &entry.name);
            let Some(shard) = picture::read::<topodata::Shard>(global, key).transpose()? else { continue };
            if let Some(primary) = shard.primary_alias.filter(|alias| alias.cell == self.cell) {
                let alias = layout::tablet_alias(&primary.cell, primary.uid);
                return Err(refused(format!("global/{key}: its primary {alias} is in cell {}", self.cell)));
            }
            if !srv_keyspace.as_ref().is_some_and(|served| serves(served, &entry.name)) {
                self.refuse_if_served_elsewhere(&entry.name).await?;
            }
            doomed.extend(self.doomed_of_shard(&cell, &there, &entry.name).await?);
        }
        doomed.extend(removal(&there, srv_key)?);
        if doomed.is_empty() {
            let path = format!("{}/{srv_key}", self.cell);
            return Err(Error::new(
                Kind::Invalid,
                format!("{path} does not exist: the cell does not serve the keyspace"),
            ));
        }
        refuse_others(&doomed)?;
        Ok((cell, doomed))
    }

    async fn doomed_of_shard(&self, cell: &Arc<Cell>, there: &Snapshot, shard: &str) -> Result<Vec<Change>> {
        let key = Key::ShardReplication(self.keyspace, shard);
        let Some(replication) = picture::read::<topodata::ShardReplication>(there, key) else { return Ok(Vec::new()) };
        let nodes = match replication {
            Ok(replication) => replication.nodes,
            Err(_) if self.force => Vec::new(),
            Err(error) => return Err(Error::new(error.kind, format!("{}/{}", self.cell, error.reason))),
        };
        if !nodes.is_empty() && !self.recursive {
            let tablets = match nodes.len() {
                1 => "1 tablet".to_owned(),
                number => format!("{number} tablets"),
            };
            return Err(refused(format!(
                "{}/{key} still has {tablets}: remove them first, or use --recursive",
                self.cell
            )));
        }
        let (own, others): (Vec<_>, Vec<_>) =
            nodes.into_iter().filter_map(|node| node.tablet_alias).partition(|alias| alias.cell == self.cell);
        self.refuse_list_of_others(key, &others)?;
        // A tablet of another cell may be in use there.
        let tablets = own.into_iter();
        let tablets = join_all(tablets.map(|alias| self.doomed_tablet(cell, alias, shard))).await;
        let mut doomed: Vec<Change> = Vec::new();
        for tablet in tablets {
            doomed.extend(tablet?);
        }
        doomed.extend(removal(there, key)?);
        Ok(doomed)
    }

    /// A list with tablets of another cell is that cell's list, under another spelling of its address.
    fn refuse_list_of_others(&self, key: Key<'_>, others: &[topodata::TabletAlias]) -> Result<()> {
        let places = self.cells.places();
        let is_known = |alias: &&topodata::TabletAlias| places.iter().any(|(cell, _)| cell.as_str() == alias.cell);
        let Some(alias) = others.iter().find(is_known) else { return Ok(()) };
        let (list, tablet) = (format!("{}/{key}", self.cell), layout::tablet_alias(&alias.cell, alias.uid));
        Err(refused(format!(
            "{list} names tablet {tablet}: cell {} may have the place of {}. If not, correct the list first",
            self.cell, alias.cell
        )))
    }

    /// The removal of a tablet, if it exists and belongs to the shard.
    async fn doomed_tablet(&self, cell: &Cell, alias: topodata::TabletAlias, shard: &str) -> Result<Option<Change>> {
        let path = Key::Tablet(&layout::tablet_alias(&alias.cell, alias.uid)).path()?;
        let Some(node) = cell.fetch(&path).await?.node else { return Ok(None) };
        // A record that cannot be decoded is not known to be another shard's, and its list of tablets goes.
        let is_other = topodata::Tablet::decode(node.value.clone())
            .is_ok_and(|tablet| (tablet.keyspace.as_str(), tablet.shard.as_str()) != (self.keyspace, shard));
        Ok((!is_other).then(|| Change { path, guard: Guard::Version(node.version), action: Action::Delete }))
    }

    /// As in Vitess: a shard that other cells serve, but not this one, is a mistake.
    async fn refuse_if_served_elsewhere(&self, shard: &str) -> Result<()> {
        let path = Key::SrvKeyspace(self.keyspace).path()?;
        let others =
            self.cells.all().into_iter().filter(|other| !other.name.is_global() && other.name.as_str() != self.cell);
        let found = join_all(others.map(|other| {
            let path = path.clone();
            async move { (other.name.clone(), other.fetch(&path).await) }
        }));
        for (other, found) in found.await {
            let node = match found {
                Ok(fetched) => fetched.node,
                Err(_) if self.force => None,
                Err(error) => return Err(error),
            };
            let served = node.and_then(|node| topodata::SrvKeyspace::decode(node.value).ok());
            if served.is_some_and(|served| serves(&served, shard)) {
                let shard = format!("shard {}/{shard}", self.keyspace);
                return Err(refused(format!("{shard} is not served in cell {}, but in cell {other}", self.cell)));
            }
        }
        Ok(())
    }
}

/// Removes records, as many in each transaction as the service takes.
async fn remove(cell: &Cell, doomed: Vec<Change>) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for changes in doomed.chunks(cell.limits().changes.max(1)) {
        let removed = cell.apply(changes).await;
        let is_over = removed.is_err();
        outcomes.extend(changes.iter().map(|change| Outcome {
            cell: cell.name.to_string(),
            path: change.path.clone(),
            done: removed.as_ref().map(|_| Done::Removed).map_err(Clone::clone),
        }));
        if is_over {
            break;
        }
    }
    Ok(outcomes)
}

/// The removal of a record in the state in which it was seen.
fn removal(there: &Snapshot, key: Key<'_>) -> Result<Option<Change>> {
    let path = key.path()?;
    let version = there.records.get(&path).map(|record| record.version);
    Ok(version.map(|version| Change { path, guard: Guard::Version(version), action: Action::Delete }))
}

fn serves(srv_keyspace: &topodata::SrvKeyspace, shard: &str) -> bool {
    let mut references = srv_keyspace.partitions.iter().flat_map(|partition| &partition.shard_references);
    references.any(|reference| reference.name == shard)
}

fn refused(reason: String) -> Error {
    nothing_removed(Error::new(Kind::Busy, reason))
}

fn nothing_removed(error: Error) -> Error {
    Error::new(error.kind, format!("{}. Nothing was removed", error.reason))
}
