//! Tries a configuration before it is mounted. Must change nothing, neither here nor at a service, and must end: every
//! step has its time, and all steps together have theirs. What could not be found out is never called good.

use std::time::Duration;

use tokio::time::Instant;

mod files;
pub(super) mod fstab;
mod host;
mod living;
mod reach;
mod records;
mod report;
mod rights;
mod topology;

pub(super) use files::files;
pub(super) use host::{kernel, mount_point, port, programs};
pub(super) use living::{There, flags_of, there};
pub(super) use report::{Finding, Outcome, Report};
pub(super) use topology::{Looking, look};

/// How many operation timeouts all steps together may take.
const ROUNDS: u32 = 4;
/// The least time for all of them.
const LEAST: Duration = Duration::from_secs(20);
/// The most time for all of them, whatever the flags say: somebody waits for the answer.
const MOST: Duration = Duration::from_secs(300);

/// When everything must be over, with this operation timeout.
pub(super) fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.saturating_mul(ROUNDS).clamp(LEAST, MOST)
}
