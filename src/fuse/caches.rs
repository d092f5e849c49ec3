//! The kernel's caches, by fuser's notifications. An error must never matter: the kernel need not forget what it does
//! not have.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use fuser::{INodeNo, Notifier};

use crate::tree::KernelCaches;

/// The caches of one session.
#[derive(Debug)]
pub struct Caches {
    notifier: Notifier,
    /// The device, if we have opened it ourselves.
    device: Option<OwnedFd>,
}

impl Caches {
    /// The caches of a session. fuser does not say whether the kernel knows an inode; a write to the device does.
    pub fn new(notifier: Notifier, device: Option<OwnedFd>) -> Self {
        Self { notifier, device }
    }
}

/// Logs an error. The kernel need not forget what it does not have, and a mount that is gone keeps nothing.
fn log_error(what: &str, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, what, "the kernel's cache");
    }
}

/// FUSE_NOTIFY_INVAL_INODE for attributes and all pages, as linux/fuse.h defines it: `fuse_out_header` (length, code,
/// 0), and `fuse_notify_inval_inode_out` (inode, first byte, length).
fn inval_inode(ino: u64) -> Vec<u8> {
    const LENGTH: u32 = 16 + 24;
    const CODE: i32 = 2;
    let header = [&LENGTH.to_ne_bytes()[..], &CODE.to_ne_bytes(), &0_u64.to_ne_bytes()];
    [&header.concat()[..], &ino.to_ne_bytes(), &0_i64.to_ne_bytes(), &0_i64.to_ne_bytes()].concat()
}

impl KernelCaches for Caches {
    fn invalidate(&self, ino: u64) -> bool {
        let outcome = match &self.device {
            Some(device) => nix::unistd::write(device, &inval_inode(ino)).map(drop).map_err(io::Error::from),
            None => self.notifier.inval_inode(INodeNo(ino), 0, 0),
        };
        let known = !matches!(&outcome, Err(error) if error.kind() == ErrorKind::NotFound);
        log_error("invalidate an inode", outcome);
        known
    }

    fn forget_name(&self, parent: u64, name: &str) {
        log_error("forget a name", self.notifier.inval_entry(INodeNo(parent), OsStr::new(name)));
    }

    fn store_pages(&self, ino: u64, content: &[u8]) {
        log_error("store pages", self.notifier.store(INodeNo(ino), 0, content));
    }
}
