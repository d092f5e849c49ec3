//! A stored key in the terms of the contract: its version, its node, and its holder. Sends nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::backend::contract::{BackendError, Failure, Node, Owner, Revision, Role, Version};
use crate::backend::keys::KeySpace;

/// Marks the keys of Consul's own locks (github.com/hashicorp/consul/api, LockFlagValue).
pub(super) const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// A stored key.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Pair {
    pub key: String,
    /// Base64; `None` for an empty value.
    #[serde(default)]
    pub value: Option<String>,
    #[serde(default)]
    pub flags: u64,
    #[serde(default)]
    pub session: Option<String>,
    pub create_index: u64,
    pub modify_index: u64,
}

/// The version of a key.
pub(super) fn version(pair: &Pair) -> Version {
    Version { number: pair.modify_index, written: Revision(pair.modify_index), created: Revision(pair.create_index) }
}

/// The value of a key.
pub(super) fn bytes(pair: &Pair) -> Result<Bytes, BackendError> {
    let value = pair.value.as_deref().unwrap_or_default();
    let decoded =
        STANDARD.decode(value).map_err(|error| BackendError::new(Failure::Other, format!("{}: {error}", pair.key)))?;
    Ok(decoded.into())
}

/// The node of a key; `None` for keys that cannot be file names.
pub(super) fn node(keys: &KeySpace, pair: &Pair) -> Result<Option<Node>, BackendError> {
    let Some(path) = keys.path(pair.key.as_bytes()) else { return Ok(None) };
    let role = if pair.flags == LOCK_FLAGS || pair.session.is_some() { Role::Lock(owner(pair)) } else { Role::Record };
    Ok(Some(Node { path, value: bytes(pair)?, version: version(pair), role, modified: None }))
}

/// The session that holds a key.
pub(super) fn owner(pair: &Pair) -> Owner {
    pair.session.as_deref().map_or(Owner::NOBODY, owner_of)
}

/// The number of a session.
pub(super) fn owner_of(session: &str) -> Owner {
    let digits: String = session.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_or(Owner::NOBODY, Owner)
}

/// The id of a session: a UUID.
pub(super) fn session_id(owner: Owner) -> String {
    let digits = format!("{:032x}", owner.0);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| digits.get(range).unwrap_or_default());
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_told_apart_and_written_as_they_came() {
        let id = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        assert_eq!(session_id(owner_of(id)), id);
        assert_eq!(owner_of("nonsense"), Owner::NOBODY);
    }
}
