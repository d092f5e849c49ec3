//! Decides what becomes of a staged record if others may have changed it meanwhile. Must never lose what either side
//! has written: what cannot be merged for sure is a clash.

use bytes::Bytes;

use crate::mirror::Record;
use crate::name::CellPath;
use crate::record::Records;

/// A staged record meets what others have made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meeting {
    /// Nobody else has changed it.
    Alone,
    /// Others have made the same change: nothing is left to do.
    Same,
    /// Both changes can be kept: this is what remains to be stored; `None`: the record is to be deleted.
    Merged(Option<Bytes>),
    /// Only a person can decide. The fields that both have changed differently, if they are known.
    Clash(Vec<String>),
}

/// What becomes of a record. `base` is what it was when it was staged, `ours` what is staged, `theirs` what it is now.
pub(super) fn meet(
    records: &Records,
    at: &CellPath,
    base: Option<&Record>,
    ours: Option<&Bytes>,
    theirs: Option<&Record>,
) -> Meeting {
    let is_same = |one: &Bytes, other: &Bytes| records.is_same(&at.cell, &at.path, one, other);
    match (base, ours, theirs) {
        (None, _, None) => Meeting::Alone,
        (Some(base), _, Some(theirs)) if base.version == theirs.version && base.value == theirs.value => Meeting::Alone,
        (_, None, None) => Meeting::Same,
        (_, Some(ours), Some(theirs)) if is_same(ours, &theirs.value) => Meeting::Same,
        // It was stored again as it was.
        (Some(base), ours, Some(theirs)) if is_same(&base.value, &theirs.value) => Meeting::Merged(ours.cloned()),
        (Some(base), Some(ours), Some(theirs)) => {
            match records.merge(&at.cell, &at.path, &base.value, (ours, &theirs.value)) {
                Ok(merged) => Meeting::Merged(Some(merged)),
                Err(fields) => Meeting::Clash(fields),
            }
        }
        // Created by both, or deleted by one and changed by the other.
        _ => Meeting::Clash(Vec::new()),
    }
}
