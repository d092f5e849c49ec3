//! A znode: its path, its content, and its stat in the terms of the contract. Knows no session, and sends nothing.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use zookeeper_client::Stat;

use crate::backend::contract::{Node, Owner, Revision, Role, Version};
use crate::backend::keys::KeySpace;
use crate::name::TopoPath;

/// A znode as it was read.
pub(super) struct Znode {
    pub data: Vec<u8>,
    pub stat: Stat,
}

impl Znode {
    pub fn copy(other: &Znode) -> Self {
        Self { data: other.data.clone(), stat: other.stat }
    }
}

/// Where a node is: its znode, and its path below the root of its cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub znode: String,
    pub path: TopoPath,
}

impl Spot {
    /// The spot of a path.
    pub fn of(keys: &KeySpace, path: &TopoPath) -> Self {
        Self { znode: znode_path(keys, path), path: path.clone() }
    }
}

/// The znode of a path.
pub(super) fn znode_path(keys: &KeySpace, path: &TopoPath) -> String {
    let key = keys.key(path);
    match key.trim_end_matches('/') {
        "" => "/".to_owned(),
        key => key.to_owned(),
    }
}

/// Letters that ZooKeeper refuses in a path (its PathUtils): control characters, and what Java counts as half a letter
/// or as none.
pub(super) fn is_refused(letter: char) -> bool {
    matches!(letter, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..)
}

/// The znodes above, the nearest first, `/` last.
pub(super) fn ancestors(path: &str) -> Vec<String> {
    std::iter::successors(parent(path), |path| parent(path)).map(ToOwned::to_owned).collect()
}

/// The znode above; `None` for `/`.
pub(super) fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/')? {
        ("", "") => None,
        ("", _) => Some("/"),
        (parent, _) => Some(parent),
    }
}

/// The newest change of a node or its children.
pub(super) fn newest(stat: &Stat) -> Revision {
    Revision(stat.mzxid.max(stat.pzxid).cast_unsigned())
}

/// The node of a znode.
pub(super) fn node(path: TopoPath, znode: Znode, role: Role) -> Node {
    let millis = Duration::from_millis(u64::try_from(znode.stat.mtime).unwrap_or(0));
    Node {
        path,
        version: version(&znode.stat),
        value: Bytes::from(znode.data),
        role,
        modified: SystemTime::UNIX_EPOCH.checked_add(millis),
    }
}

/// The version of a node.
pub(super) fn version(stat: &Stat) -> Version {
    Version {
        number: u64::try_from(stat.version).unwrap_or(0),
        written: Revision(stat.mzxid.cast_unsigned()),
        created: Revision(stat.czxid.cast_unsigned()),
    }
}

/// The session of a lock.
pub(super) fn owner(session: i64) -> Owner {
    Owner(u128::from(session.cast_unsigned()))
}
