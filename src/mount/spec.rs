//! What a mount is asked for. Must never hold a secret: the mount table shows its source.

use std::path::PathBuf;
use std::time::Duration;

/// How to mount.
#[derive(Debug, Clone)]
pub(super) struct MountSpec {
    /// An absolute path.
    pub mountpoint: PathBuf,
    /// What /proc/mounts shows as the source: no secrets.
    pub source: String,
    pub allow_other: bool,
    pub read_only: bool,
    /// Each open file shows one state, so the kernel must ask before it opens one.
    pub direct_io: bool,
    /// How long session threads look for the next request before they sleep.
    pub spin: Duration,
    /// Session threads.
    pub threads: usize,
}
