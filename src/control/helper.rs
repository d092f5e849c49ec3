//! What the mount knows about its helper, the process that raises events.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde_json::json;

/// Counters of the helper.
#[derive(Debug, Default)]
pub struct Helper {
    /// Its process number; 0 while there is none.
    pub pid: AtomicU32,
    /// How often it has died while the mount was running.
    pub restarts: AtomicU64,
    /// How many events it has raised.
    pub raised: AtomicU64,
}

impl Helper {
    pub(super) fn status(&self) -> serde_json::Value {
        let pid = Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0);
        json!({
            "pid": pid,
            "restarts": self.restarts.load(Ordering::Relaxed),
        })
    }
}
