//! Reads the changes of one cell, as its mirror publishes them. Must never leave out a changed record.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::cells::Cell;
use crate::mirror::{Batch, Snapshot, Update};

pub(super) type Updates = broadcast::Receiver<Arc<Batch>>;

/// The next changes of a cell. If there were too many at once, these are the present differences, each record once.
pub(super) async fn next(cell: &Cell, updates: &mut Updates, known: &Snapshot) -> Option<Arc<Batch>> {
    match updates.recv().await {
        Ok(batch) => Some(batch),
        Err(RecvError::Lagged(_)) => {
            *updates = updates.resubscribe();
            let number = cell.mirror.published();
            Some(Arc::new(Batch { number, updates: differences(known, &cell.mirror.snapshot()) }))
        }
        Err(RecvError::Closed) => None,
    }
}

/// The differences: deletions first, then the others in the order in which they were written.
pub(super) fn differences(old: &Snapshot, new: &Snapshot) -> Vec<Update> {
    let mut updates = old.differences(new);
    updates.sort_by_key(|update| update.new.as_ref().map(|record| record.version.written));
    updates
}
