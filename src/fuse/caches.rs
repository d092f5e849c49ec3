//! The kernel's caches through fuser's notifications.

use std::ffi::OsStr;

use fuser::{INodeNo, Notifier};

use crate::tree::KernelCaches;

/// The caches of one session.
#[derive(Debug)]
pub struct Caches(Notifier);

impl Caches {
    /// Over a session's way of telling the kernel.
    pub fn new(notifier: Notifier) -> Self {
        Self(notifier)
    }
}

/// What the kernel does not have, it need not drop; a mount that is gone keeps nothing.
fn heard(what: &str, outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, what, "the kernel's cache");
    }
}

impl KernelCaches for Caches {
    fn drop_inode(&self, ino: u64) -> bool {
        let outcome = self.0.inval_inode(INodeNo(ino), 0, 0);
        let known = !matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::NotFound);
        heard("drop an inode", outcome);
        known
    }

    fn drop_name(&self, parent: u64, name: &str) {
        heard("drop a name", self.0.inval_entry(INodeNo(parent), OsStr::new(name)));
    }

    fn give(&self, ino: u64, content: &[u8]) {
        heard("give a content", self.0.store(INodeNo(ino), 0, content));
    }
}
