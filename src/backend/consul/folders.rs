//! Keys for directories (`a/b/`), as Consul's user interface creates them. They are not file names, so nobody sees
//! them, but for Vitess their directories exist.

use std::sync::Arc;

use async_trait::async_trait;

use super::call::MEDIUM;
use super::client::{Client, KvOperation, Operation, has_dots};
use super::pair::Pair;
use super::rights::Rights;
use crate::backend::contract::{Action, Along, Applied, BackendError, Change};
use crate::backend::keys::KeySpace;
use crate::name::TopoPath;
use crate::record::layout::LOCK;

/// Removes directories after changes that another cell's connection makes.
pub(super) struct Sweep {
    pub client: Arc<Client>,
    pub keys: KeySpace,
    pub rights: Arc<Rights>,
    pub changes: Vec<Change>,
    pub most: usize,
}

#[async_trait]
impl Along for Sweep {
    async fn end(self: Box<Self>, outcome: Result<&Applied, &BackendError>) {
        if outcome.is_ok() {
            sweep_folders(&self.client, &self.keys, &self.rights, &self.changes, self.most).await;
        }
    }
}

/// Removes the directories of removed records if they contain only such keys. After a failure, the next removal tries
/// again. `most` is the number of keys that fit into one transaction.
pub(super) async fn sweep_folders(client: &Client, keys: &KeySpace, rights: &Rights, changes: &[Change], most: usize) {
    let removed = changes.iter().filter(|change| change.action == Action::Delete);
    let mut dirs: Vec<TopoPath> = removed.filter_map(|change| change.path.parent()).collect();
    dirs.dedup();
    for dir in dirs {
        if let Err(error) = sweep_above(client, keys, rights, dir, most).await {
            tracing::debug!(%error, "the keys of empty directories cannot be removed");
        }
    }
}

/// From the innermost directory up to the root of the cell, which stays.
async fn sweep_above(
    client: &Client,
    keys: &KeySpace,
    rights: &Rights,
    dir: TopoPath,
    most: usize,
) -> Result<(), BackendError> {
    let dirs = std::iter::successors(Some(dir), TopoPath::parent).take_while(|dir| !dir.is_root());
    for dir in dirs {
        let prefix = keys.dir_prefix(&dir);
        if !rights.has_folders(&prefix) || has_dots(&prefix) {
            continue;
        }
        let pairs = client.pairs(&prefix, MEDIUM).await?.value;
        // A momentary lock is not a reason to keep the directory.
        let counts = |pair: &&Pair| pair.key.rsplit('/').next() != Some(LOCK);
        let (folders, others): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().filter(counts).partition(|pair| is_folder(pair));
        if !others.is_empty() {
            break;
        }
        for folders in folders.chunks(most) {
            let operations: Vec<Operation> = folders.iter().map(|pair| removal(pair)).collect();
            client.transact(&operations).await?;
        }
    }
    Ok(())
}

/// A key with a value is a record.
fn is_folder(pair: &Pair) -> bool {
    pair.key.ends_with('/') && pair.session.is_none() && pair.value.as_deref().unwrap_or_default().is_empty()
}

fn removal(pair: &Pair) -> Operation {
    let (key, index) = (pair.key.clone(), Some(pair.modify_index));
    Operation { kv: KvOperation { verb: "delete-cas", key, value: None, index, session: None } }
}
