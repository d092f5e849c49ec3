//! Looks at ZooKeeper from outside. A right to write is tried by a change of a version that no node has, or together
//! with such a change: ZooKeeper checks the rights first.

use std::collections::VecDeque;

use async_trait::async_trait;
use zookeeper_client::{Acls, CreateMode, Error as ZkError, MultiWriteError};

use super::znode::znode_path;
use super::{CallError, Zk};
use crate::backend::contract::{BackendError, Failure};
use crate::backend::inspect::{FoundRoot, Inspect, May, NEVER_MADE, WritePlace};
use crate::name::TopoPath;
use crate::record::layout::CELLS;

/// A version that no node ever has.
const NEVER: i32 = i32::MAX;
/// Most nodes to look at in search of topologies, and how deep.
const SEARCHED: (usize, usize) = (300, 6);
/// ZooKeeper's own nodes.
const OWN: &str = "/zookeeper";

#[async_trait]
impl Inspect for Zk {
    async fn about(&self) -> Result<String, BackendError> {
        let asked = self.voters.try_call(async |client| {
            // Since ZooKeeper 3.7; the session itself is the proof that the servers serve.
            let users = client.list_auth_users().await.unwrap_or_default();
            let users = users.iter().filter(|user| user.scheme() != "ip");
            Ok(users.map(|user| format!("{}:{}", user.scheme(), user.user())).collect::<Vec<_>>())
        });
        let users = asked.await.map_err(|error| self.voters.explain(&error))?;
        Ok(match users.as_slice() {
            [] => "ZooKeeper serves; it knows us as nobody".to_owned(),
            users => format!("ZooKeeper serves; it knows us as {}", users.join(", ")),
        })
    }

    async fn may_write(&self, place: &WritePlace) -> May {
        let outcome = match place {
            WritePlace::At(path) => {
                let node = znode_path(&self.keys, path);
                let set = self.voters.try_call(async |client| client.set_data(&node, b"", Some(NEVER)).await.map(drop));
                set.await.map_err(|error| self.voters.explain(&error))
            }
            WritePlace::Below(dir) => self.refused_creation(dir).await,
        };
        May::of_refused(outcome, &[Failure::BadVersion, Failure::NodeExists])
    }

    async fn roots(&self) -> Result<Vec<FoundRoot>, BackendError> {
        let (mut left, mut found) = (VecDeque::from([("/".to_owned(), 0)]), Vec::new());
        for _ in 0..SEARCHED.0 {
            let Some((node, depth)) = left.pop_front() else { break };
            let children = match self.voters.try_call(async |client| client.list_children(&node).await).await {
                // What may not be read is not found.
                Err(CallError::Client(ZkError::NoAuth | ZkError::NoNode)) => continue,
                children => children.map_err(|error| self.voters.explain(&error))?,
            };
            if children.iter().any(|child| child == CELLS) {
                let count = self.voters.try_call(async |client| client.count_descendants_number(&node).await);
                found.push((node.clone(), count.await.unwrap_or(0) as u64));
                continue;
            }
            let above = node.trim_end_matches('/');
            let below = children.iter().map(|child| (format!("{above}/{child}"), depth + 1));
            left.extend(below.filter(|(child, depth)| child != OWN && *depth < SEARCHED.1));
        }
        Ok(found)
    }
}

impl Zk {
    /// Creates a node together with a change that fails: in the directory, or where it would have to be made.
    async fn refused_creation(&self, dir: &TopoPath) -> Result<(), BackendError> {
        let mut place = znode_path(&self.keys, dir);
        loop {
            let there = self.voters.try_call(async |client| client.check_stat(&place).await).await;
            if there.map_err(|error| self.voters.explain(&error))?.is_some() || place == "/" {
                break;
            }
            let above = place.rsplit_once('/').map(|(above, _)| above.to_owned()).unwrap_or_default();
            place = if above.is_empty() { "/".to_owned() } else { above };
        }
        let node = format!("{}/{NEVER_MADE}", place.trim_end_matches('/'));
        let created = self.voters.try_call(async |client| {
            let mut writer = client.new_multi_writer();
            writer.add_create(&node, b"", &CreateMode::Persistent.with_acls(Acls::anyone_all()))?;
            writer.add_check_version(&place, NEVER)?;
            match writer.commit().await {
                Ok(_) => Ok(()),
                Err(MultiWriteError::RequestFailed { source } | MultiWriteError::OperationFailed { source, .. }) => {
                    Err(source)
                }
            }
        });
        created.await.map_err(|error| self.voters.explain(&error))
    }
}
