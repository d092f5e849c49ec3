//! The requests that wait for a service. Knows what they are, for the day when the mount ends before they do.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::journal::Op;
use crate::tree::Tree;

/// One request, as logs describe it.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub op: Op,
    pub ino: u64,
    pub name: Option<OsString>,
    pub handle: Option<u64>,
    pub uid: u32,
    pub pid: u32,
    /// When it came; `None` if it does not count.
    pub came: Option<Instant>,
}

/// The requests that wait for a service. There are no more of them than requests of the kernel, which bounds those.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    tasks: TaskTracker,
    calls: Mutex<HashMap<u64, Arc<Call>>>,
    last: AtomicU64,
    /// How many of them may change what is stored.
    changing: watch::Sender<usize>,
}

impl Waiting {
    /// Runs the rest of a request.
    pub(super) fn spawn(
        &self,
        call: Arc<Call>,
        task: impl Future<Output = ()> + Send + 'static,
        runtime: &tokio::runtime::Handle,
    ) {
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let changing = usize::from(call.op.changes());
        self.0.calls.lock().insert(number, call);
        self.0.changing.send_modify(|count| *count += changing);
        let inner = self.0.clone();
        let ended = scopeguard::guard((), move |()| {
            inner.calls.lock().remove(&number);
            inner.changing.send_modify(|count| *count -= changing);
        });
        let task = async move {
            let _ended = ended;
            task.await;
        };
        drop(self.0.tasks.spawn_on(task, runtime));
    }

    /// Waits until no request waits any more. Those that change nothing have `grace` when no other is left.
    pub async fn ended(&self, grace: Duration) {
        self.0.tasks.close();
        let mut changing = self.0.changing.subscribe();
        let changed = async {
            // The sender lives as long as self, so waiting cannot fail.
            let _ = changing.wait_for(|count| *count == 0).await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            () = self.0.tasks.wait() => {}
            () = changed => {}
        }
    }

    /// The mount ends now: names the changes that have no answer.
    pub fn name_unanswered(&self, tree: &Tree) {
        let calls: Vec<Arc<Call>> = self.0.calls.lock().values().filter(|call| call.op.changes()).cloned().collect();
        for call in calls {
            let Call { op, ino, name, uid, pid, .. } = &*call;
            let path = tree.describe(*ino, name.as_deref());
            tracing::error!(%op, path, uid, pid, "the mount ends before the answer: it may have been carried out");
        }
    }
}
