//! Runs and answers requests, and wakes readers when there is more to read. Must never let a session thread wait.

use std::ffi::OsStr;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fuser::{Errno, FileHandle, INodeNo, PollNotifier, Request};
use tokio::sync::watch;

use super::UNOPENED;
use super::interrupted::unless_interrupted;
use super::pollers::{Poller, Pollers};
use super::spin::Spinner;
use super::waiting::{Call, Waiting};
use crate::alive;
use crate::error::{Error, Result};
use crate::journal::{Op, Refusal};
use crate::tree::{Caller, Tree};

/// Serves a tree to the kernel.
#[derive(Debug)]
pub struct Adapter {
    pub(super) tree: Arc<Tree>,
    runtime: tokio::runtime::Handle,
    waiting: Waiting,
    /// The open files that wait for more to read.
    pollers: Arc<Pollers>,
    /// Looks for the next request before a session thread sleeps.
    spinner: Option<Spinner>,
}

impl Adapter {
    /// Serves a tree. Operations that wait run in the given runtime.
    pub fn new(tree: Arc<Tree>, runtime: tokio::runtime::Handle) -> Self {
        let pollers: Arc<Pollers> = Arc::default();
        // After a panic it wakes nobody until it begins again; then everybody who still waits looks again.
        let (growth, waiting) = (tree.control().events.growth(), Arc::downgrade(&pollers));
        runtime.spawn(alive::restarted("the waking of readers", move || wake(growth.clone(), waiting.clone())));
        Self { tree, runtime, waiting: Waiting::default(), pollers, spinner: None }
    }

    /// After a reply, session threads look for the next request on this device of theirs, for at most so long.
    pub fn spin(&mut self, device: OwnedFd, longest: Duration) {
        self.spinner = Spinner::new(device, longest);
    }

    /// The requests that wait for a service. When the last request has come, wait for these.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// Counts a request, and returns when it came. Requests about `.topofs` itself do not count, so that a look at the
    /// counts does not change them.
    pub(super) fn count(&self, op: Op, ino: INodeNo, name: Option<&OsStr>) -> Option<Instant> {
        if self.tree.is_control(ino.0, name) {
            return None;
        }
        self.tree.control().requests.count(op);
        Some(Instant::now())
    }

    /// Whether a read returns something now. If not, the user's `notifier` is notified when it does. Fails if too many
    /// wait.
    pub(super) fn is_readable(
        &self,
        (uid, ino, handle): (u32, u64, u64),
        waiter: u64,
        notifier: Option<PollNotifier>,
    ) -> std::result::Result<bool, Errno> {
        let is_readable = || match handle {
            UNOPENED => self.tree.is_readable_unopened(ino, waiter),
            handle => self.tree.is_readable(handle),
        };
        if is_readable() {
            return Ok(true);
        }
        let Some(notifier) = notifier else { return Ok(false) };
        match self.pollers.add(waiter, Poller { uid, handle, notifier }) {
            None => return Err(Errno::ENOSPC),
            // Not in this thread: it is a session thread.
            Some(Some(other)) => drop(self.runtime.spawn_blocking(move || other.notify())),
            Some(None) => {}
        }
        // More may have come before the poller was added.
        Ok(is_readable())
    }

    /// An open file is closed: nobody waits in it any more.
    pub(super) fn stops_polling(&self, handle: u64) {
        self.pollers.closed(handle);
    }

    /// Runs an operation on a name or an inode and replies.
    pub(super) fn answer<T, F>(
        &self,
        (op, request, ino, name): (Op, &Request, INodeNo, Option<&OsStr>),
        operation: impl FnOnce(Arc<Tree>, Caller) -> F,
        reply: impl FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let came = self.count(op, ino, name);
        let (uid, pid) = (request.uid(), request.pid());
        let call = Call { op, ino: ino.0, name: name.map(OsStr::to_owned), handle: None, uid, pid, came };
        self.run(call, request, operation, reply);
    }

    /// Runs an operation on an open file and replies.
    pub(super) fn answer_file<T, F>(
        &self,
        (op, request, ino, handle): (Op, &Request, INodeNo, FileHandle),
        operation: impl FnOnce(Arc<Tree>, Caller) -> F,
        reply: impl FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let came = self.count(op, ino, None);
        let handle = Some(handle.0).filter(|handle| *handle != UNOPENED);
        let call = Call { op, ino: ino.0, name: None, handle, uid: request.uid(), pid: request.pid(), came };
        self.run(call, request, operation, reply);
    }

    /// Does what waits for nothing, in this thread. It may start tasks. A panic ends no session thread.
    pub(super) fn at_once<T>(&self, op: Op, work: impl FnOnce() -> T) -> std::result::Result<T, alive::Panic> {
        let _runtime = self.runtime.enter();
        alive::run(op.task(), work)
    }

    fn run<T, F>(
        &self,
        call: Call,
        request: &Request,
        operation: impl FnOnce(Arc<Tree>, Caller) -> F,
        reply: impl FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (op, uid, pid, came) = (call.op, call.uid, call.pid, call.came);
        // Requests about `.topofs` itself are no reason to spin: a look at the counts does not change them.
        let spinner = self.spinner.as_ref().zip(came).map(|(spinner, came)| {
            spinner.came(came);
            spinner
        });
        let call = Arc::new(call);
        let caller = Caller::new(uid, request.gid(), pid);
        let tree = self.tree.clone();
        // A panic in a request is answered with EIO, with a reason in `.topofs/errors`. It neither ends a session
        // thread nor leaves the caller waiting.
        let operation = self.at_once(op, || operation(tree.clone(), caller));
        let known = call.clone();
        let mut task = Box::pin(async move {
            let outcome = match operation {
                Ok(operation) if op.may_be_given_up() => {
                    let operation = unless_interrupted(tree.locks().patience(), pid, operation);
                    alive::guarded(op.task(), operation).await
                }
                Ok(operation) => alive::guarded(op.task(), operation).await,
                Err(panic) => Err(panic),
            };
            let outcome = outcome.unwrap_or_else(|panic| Err(panic.into()));
            if let Some(came) = came {
                let error = outcome.as_ref().err().map(|error: &Error| error.kind);
                tree.control().requests.answered(op, came.elapsed(), error);
            }
            reply(outcome.map_err(|error: Error| {
                if error.kind.needs_explaining() {
                    let path = tree.describe(call.ino, call.name.as_deref());
                    let handle = call.handle;
                    tree.control().errors.record(&Refusal { op, handle, path: &path, uid, pid, error: &error });
                }
                Errno::from_i32(error.kind.errno())
            }));
        });
        let mut context = Context::from_waker(Waker::noop());
        // If the reply itself panics, it is dropped, which answers EIO.
        match self.at_once(op, || task.as_mut().poll(&mut context)) {
            Ok(Poll::Ready(())) | Err(_) => {
                if let Some(spinner) = spinner {
                    spinner.replied(&self.tree.control().requests);
                }
            }
            Ok(Poll::Pending) => {
                let counted = came.map(|_| self.tree.control().requests.wait());
                let rest = async move {
                    task.await;
                    drop(counted);
                };
                self.waiting.spawn(known, rest, &self.runtime);
            }
        }
    }
}

/// Wakes everybody who waits for more events, for as long as the adapter exists.
async fn wake(mut growth: watch::Receiver<u64>, pollers: Weak<Pollers>) {
    while growth.changed().await.is_ok() {
        let Some(pollers) = pollers.upgrade() else { return };
        for notifier in pollers.take() {
            // It is no error if somebody has closed the file meanwhile.
            let _ = notifier.notify();
        }
    }
}
