//! How a request is run and answered, and who is woken when there is more to read.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use fuser::{Errno, INodeNo, PollNotifier, Request};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::control::{Op, Refusal};
use crate::error::Result;
use crate::tree::{Caller, Tree};

/// Serves a tree to the kernel.
#[derive(Debug)]
pub struct Adapter {
    pub(super) tree: Arc<Tree>,
    runtime: tokio::runtime::Handle,
    under_way: TaskTracker,
    /// Who waits for more to read.
    pollers: Arc<Mutex<Vec<PollNotifier>>>,
}

/// One request, as the log of errors names it.
struct Call {
    op: Op,
    ino: u64,
    name: Option<OsString>,
    uid: u32,
    pid: u32,
}

impl Adapter {
    /// Over a tree; what waits runs in the given runtime.
    pub fn new(tree: Arc<Tree>, runtime: tokio::runtime::Handle) -> Self {
        let pollers: Arc<Mutex<Vec<PollNotifier>>> = Arc::default();
        runtime.spawn(wake(tree.control().events.growth(), Arc::downgrade(&pollers)));
        Self { tree, runtime, under_way: TaskTracker::new(), pollers }
    }

    /// The requests that wait for a backend: what is to be waited for after the last one.
    pub fn under_way(&self) -> TaskTracker {
        self.under_way.clone()
    }

    /// Whether reading gives something now; if not, `notifier` is told when it does.
    pub(super) fn is_readable(&self, handle: u64, notifier: Option<PollNotifier>) -> bool {
        if self.tree.is_readable(handle) {
            return true;
        }
        let Some(notifier) = notifier else { return false };
        self.pollers.lock().push(notifier);
        // It may have come before we were there to be told.
        self.tree.is_readable(handle)
    }

    /// Runs an operation and replies.
    pub(super) fn answer<T, F>(
        &self,
        (op, request, ino, name): (Op, &Request, INodeNo, Option<&OsStr>),
        operation: impl FnOnce(Arc<Tree>, Caller) -> F,
        reply: impl FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.tree.control().requests.count(op);
        let (uid, pid) = (request.uid(), request.pid());
        let call = Call { op, ino: ino.0, name: name.map(OsStr::to_owned), uid, pid };
        let caller = Caller::new(uid, request.gid(), pid);
        let operation = operation(self.tree.clone(), caller);
        let tree = self.tree.clone();
        let mut task = Box::pin(async move {
            reply(operation.await.map_err(|error| {
                if error.kind.needs_explaining() {
                    let path = tree.describe(call.ino, call.name.as_deref());
                    let Call { op, uid, pid, .. } = call;
                    tree.control().errors.record(&Refusal { op, path: &path, uid, pid, error: &error });
                }
                Errno::from_i32(error.kind.errno())
            }));
        });
        let _runtime = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        // A panic must not end the session thread; the unanswered request is answered with EIO when its reply is dropped.
        match std::panic::catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut context))) {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => drop(self.under_way.spawn_on(task, &self.runtime)),
            Err(_) => tracing::error!(%op, "a request has failed with a panic; please report this"),
        }
    }
}

/// Wakes up who waits for more events, for as long as there is an adapter.
async fn wake(mut growth: watch::Receiver<u64>, pollers: Weak<Mutex<Vec<PollNotifier>>>) {
    while growth.changed().await.is_ok() {
        let Some(pollers) = pollers.upgrade() else { return };
        let waiting = std::mem::take(&mut *pollers.lock());
        for notifier in waiting {
            // Who has closed the file meanwhile is not to be woken.
            let _ = notifier.notify();
        }
    }
}
