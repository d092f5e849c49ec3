//! The end of a mount: what is in flight is finished, locks are given back, and what is lost is named. Must never wait
//! for a service that gives no sign of life, and must never cut off one that does.

use std::sync::Arc;
use std::time::Duration;

use crate::cells::Cells;
use crate::fuse::Waiting;
use crate::tree::Tree;

/// How long requests that change nothing are waited for once no other is in flight.
const READERS_GRACE: Duration = Duration::from_millis(500);
/// How long our own tasks may take to end. They wait for no service, but they may be many.
const TASKS_GRACE: Duration = Duration::from_secs(5);

/// The mount is going away. Whoever waits for a lock does not get it any more; saves in flight may still take one.
/// Calls to a service that is silent from now on are given up.
pub(super) fn begin(tree: &Tree, cells: &Cells) {
    tree.locks().close();
    cells.give_up_if_silent();
}

/// The mount is gone: no request comes any more. Each call of a service that answers may take as long as ever.
pub(super) async fn finish(tree: &Arc<Tree>, cells: &Cells, waiting: &Waiting, timeout: Duration) {
    if tokio::time::timeout(timeout, waiting.ended(READERS_GRACE)).await.is_err() {
        tracing::error!("the service has not answered in time: changes in flight may be lost");
    }
    waiting.name_unanswered(tree);
    for path in tree.scratch_files() {
        tracing::warn!(path, "a scratch file is gone with the mount; it was never stored");
    }
    for (stage, changes) in tree.uncommitted() {
        tracing::warn!(?stage, changes, "a stage is gone with the mount; its changes were not committed");
    }
    let tasks = async {
        tree.shutdown().await;
        tree.locks().shutdown(timeout).await;
        cells.shutdown().await;
    };
    // Each of them has bounds of its own.
    if tokio::time::timeout(timeout * 2 + TASKS_GRACE, tasks).await.is_err() {
        tracing::warn!("tasks of the mount have not ended in time");
    }
}
