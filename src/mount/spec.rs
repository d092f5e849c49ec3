//! What a mount is asked for. Must never hold a secret: the mount table shows its source.

use std::path::PathBuf;

/// How to mount.
#[derive(Debug, Clone)]
pub(super) struct MountSpec {
    /// An absolute path.
    pub mountpoint: PathBuf,
    /// What /proc/mounts shows as the source: no secrets.
    pub source: String,
    pub allow_other: bool,
    pub read_only: bool,
    /// Session threads.
    pub threads: usize,
}
