//! One transaction over several cells of one service, through the connection of one of them. Must never be asked for
//! cells of different services: only their locations say which services they are.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::contract::{Along, Applied, Backend, BackendError, Change, Failure, Part};
use super::keys::KeySpace;

/// A change with the key that it concerns.
#[derive(Debug, Clone)]
pub(super) struct Keyed<'a> {
    /// As the service spells it.
    pub key: String,
    pub change: &'a Change,
}

/// Changes with their keys.
pub(super) fn keyed<'a>(keys: &KeySpace, changes: &'a [Change]) -> Vec<Keyed<'a>> {
    changes.iter().map(|change| Keyed { key: keys.key(&change.path), change }).collect()
}

/// The changes of all parts with their keys. `space`: how the service spells the keys below a root.
pub(super) fn all_keyed<'a>(parts: &[Part<'a>], space: impl Fn(&str) -> KeySpace) -> Vec<Keyed<'a>> {
    parts.iter().flat_map(|part| keyed(&space(part.root), part.changes)).collect()
}

/// What was applied to each part.
pub(super) fn by_part(applied: &Applied, parts: &[Part<'_>]) -> Vec<Applied> {
    let mut versions = applied.versions.iter().copied();
    let one =
        |part: &Part<'_>| Applied { at: applied.at, versions: versions.by_ref().take(part.changes.len()).collect() };
    parts.iter().map(one).collect()
}

/// Applies the changes of all parts or none. `carrier` is the cell whose connection makes them.
pub async fn apply_together(carrier: &dyn Backend, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
    // One change is not a transaction: some services then take more.
    if let [Part { cell, changes: changes @ [_], .. }] = parts {
        return Ok(vec![cell.apply(changes).await?]);
    }
    refuse_twice(parts)?;
    carrier.refuse_parts(parts)?;
    let alongs: Vec<Option<Box<dyn Along>>> = parts.iter().map(|part| part.cell.along(part.changes)).collect();
    let outcome = carrier.apply_parts(parts).await;
    let ends = alongs.into_iter().enumerate().filter_map(|(index, along)| {
        let outcome = match &outcome {
            Ok(applied) => Ok(applied.get(index)?),
            Err(error) => Err(error),
        };
        Some(along?.end(outcome))
    });
    join_all(ends).await;
    outcome
}

/// Services differ in what they make of two changes of one key.
fn refuse_twice(parts: &[Part<'_>]) -> Result<(), BackendError> {
    let mut seen = BTreeSet::new();
    for Keyed { key, change } in all_keyed(parts, |root| KeySpace::new(&format!("/{root}"))) {
        if !seen.insert(key.clone()) {
            let message = format!("one transaction cannot change {key} twice, also by another name ({})", change.path);
            return Err(BackendError::new(Failure::Other, message));
        }
    }
    Ok(())
}
