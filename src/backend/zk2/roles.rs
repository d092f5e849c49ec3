//! What a znode is: a record, a lock or a plain directory. Listing, watching, reading and writing all ask here.

use zookeeper_client::{Acl, Error as ZkError, Permission, Stat};

use super::session::CallError;
use super::znode::owner;
use crate::backend::contract::{Owner, Role};
use crate::name::TopoPath;
use crate::record::layout::{dir_of_queued, is_election, is_named_as_record, stands_among_records};

/// How a znode is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// `None` for a directory.
    Is(Option<Role>),
    /// An empty record, or a directory that nobody has removed: its access rights decide.
    Unclear,
}

/// The role of a znode, as far as its path, its size and its stat decide it.
pub(super) fn judge(path: Option<&TopoPath>, is_empty: bool, stat: &Stat) -> Judged {
    Judged::Is(match stat.ephemeral_owner {
        0 if path.and_then(locked_dir).is_some() => Some(Role::Lock(Owner::UNBOUND)),
        0 if !is_empty => Some(Role::Record),
        0 if stat.num_children > 0 => None,
        // Nobody writes to a directory, so this is a record that somebody has emptied.
        0 if stat.version > 0 => Some(Role::Record),
        0 => match path {
            Some(path) if is_named_as_record(path) || stands_among_records(path) => Some(Role::Record),
            _ => return Judged::Unclear,
        },
        session => Some(Role::Lock(owner(session))),
    })
}

/// The role of an unclear znode: Vitess creates records without the right to create children.
pub(super) fn by_acl<S>(answer: Result<(Vec<Acl>, S), CallError>) -> Result<Option<Role>, CallError> {
    match answer {
        Ok((acls, _)) => {
            let may_hold = acls.iter().any(|acl| acl.permission().has(Permission::CREATE));
            Ok(if may_hold { None } else { Some(Role::Record) })
        }
        Err(CallError::Client(ZkError::NoNode | ZkError::NoAuth)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a name is from ZooKeeper: only digits.
pub(super) fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The directory to whose lock a node belongs.
pub(super) fn locked_dir(node: &TopoPath) -> Option<TopoPath> {
    let parent = node.parent().filter(|_| is_number(node.name()))?;
    match is_election(&parent) {
        true => Some(parent),
        false => dir_of_queued(node),
    }
}

/// Whether a node with this role is shown. An ephemeral node that is not a lock is only counted.
pub(super) fn is_shown(path: &TopoPath, role: Role) -> bool {
    role == Role::Record || locked_dir(path).is_some()
}
