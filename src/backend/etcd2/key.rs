//! A stored key in the terms of the contract: its version, its node, and whether it is a lock. Sends nothing.

use bytes::Bytes;
use etcd_client::KeyValue;

use crate::backend::contract::{BackendError, Failure, Node, Owner, Revision, Role, Version};
use crate::backend::keys::KeySpace;
use crate::name::TopoPath;
use crate::record::layout::{LOCKS, Lockable, dir_of_queued, is_metadata};

/// The revision of an answer.
pub(super) fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Result<Revision, BackendError> {
    let header = header.ok_or_else(|| BackendError::new(Failure::Other, "etcd's answer has no header"))?;
    Ok(Revision(header.revision().cast_unsigned()))
}

/// The first possible key below a prefix. There is no such key, but only a client with the right to read the cell gets
/// an answer.
pub(super) fn first_key(prefix: &str) -> Vec<u8> {
    // An empty key is not allowed; NUL is the first possible key.
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
}

/// The version of a key.
pub(super) fn version(kv: &KeyValue) -> Version {
    Version {
        number: kv.mod_revision().cast_unsigned(),
        written: Revision(kv.mod_revision().cast_unsigned()),
        created: Revision(kv.create_revision().cast_unsigned()),
    }
}

/// The node of a key; `None` for keys that cannot be file names.
pub(super) fn node(keys: &KeySpace, kv: KeyValue) -> Option<Node> {
    let path = keys.path(kv.key())?;
    let role = role(&path, kv.lease());
    let version = version(&kv);
    let (_, value) = kv.into_key_value();
    Some(Node { path, value: Bytes::from(value), version, role, modified: None })
}

/// The directory for whose lock a key stands: a waiter waits for every key below `DIR/locks/`, at any depth.
pub(super) fn locked_dir(path: &TopoPath) -> Option<TopoPath> {
    // Most keys are not locks, and lists are long.
    path.as_str().contains(LOCKS).then_some(())?;
    let above = std::iter::successors(path.parent(), TopoPath::parent);
    let lines = above.filter(|above| above.name() == LOCKS).filter_map(|line| line.parent());
    dir_of_queued(path).or_else(|| lines.filter(|dir| Lockable::of(dir).is_some()).last())
}

/// Vitess binds locks and candidates to a lease, and names them `DIR/locks/<lease id>`. It waits for every key there: a
/// copy of a topology has the keys without the leases.
fn role(path: &TopoPath, lease: i64) -> Role {
    let Some(dir) = locked_dir(path) else { return Role::Record };
    let is_number = path.name().bytes().all(|byte| byte.is_ascii_digit());
    let named_like_one = is_number && !is_metadata(&dir);
    match lease {
        0 if named_like_one || Lockable::of(&dir).is_some() => Role::Lock(Owner::UNBOUND),
        0 => Role::Record,
        lease => Role::Lock(owner(lease)),
    }
}

/// Whether a key without a lease counts as a lock at this path.
pub(super) fn blocks_as_copied(path: &TopoPath) -> bool {
    role(path, 0) != Role::Record
}

/// The lease of a lock.
pub(super) fn owner(lease: i64) -> Owner {
    Owner(u128::from(lease.cast_unsigned()))
}

/// The number of that lease.
pub(super) fn lease_of(owner: Owner) -> i64 {
    u64::try_from(owner.0).unwrap_or(0).cast_signed()
}
