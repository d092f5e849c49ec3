//! What all cells of a stage have in common: whether it may still be changed, and who is charged with it. Must never
//! let a stage keep anything that nobody is charged with.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Kind, Result};
use crate::store::quota::Quota;

/// How far a stage has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It can be changed.
    Open,
    /// It is being committed: what is saved now would not be part of that.
    Committing,
    /// It is committed, and does not change any more.
    Committed,
}

impl Phase {
    /// Fails if nothing can be saved now.
    pub fn refuse_save(self) -> Result<()> {
        match self {
            Phase::Open => Ok(()),
            Phase::Committing => Err(Error::new(Kind::Busy, "the stage is being committed")),
            Phase::Committed => Err(Self::read_only()),
        }
    }

    /// The error of whoever wants to change a committed stage.
    pub fn read_only() -> Error {
        Error::new(Kind::ReadOnly, "the stage is committed: it can only be read")
    }
}

/// The common part of a stage.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Read for as long as something is saved.
    pub phase: RwLock<Phase>,
    quota: Quota,
    uid: u32,
    charged: Mutex<u64>,
    /// Counts what has changed in the stage.
    generation: AtomicU64,
    /// Counts saves and removals.
    saves: AtomicU64,
}

impl Ledger {
    /// A stage that is charged to a user.
    pub fn new(quota: Quota, uid: u32) -> Self {
        let (generation, saves) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { phase: RwLock::new(Phase::Open), quota, uid, charged: Mutex::new(0), generation, saves }
    }

    /// A part of the stage has another size now. Fails with ENOSPC if there is no room for it.
    pub fn resize(&self, from: u64, to: u64) -> Result<()> {
        let mut charged = self.charged.lock();
        match to.checked_sub(from) {
            Some(more) => self.quota.charge(self.uid, more)?,
            None => self.quota.refund(self.uid, from - to),
        }
        *charged = (*charged + to).saturating_sub(from);
        Ok(())
    }

    /// Something has changed in the stage.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Something was saved or removed, so many times.
    pub fn saved(&self, saves: u64) {
        self.saves.fetch_add(saves, Ordering::AcqRel);
        self.changed();
    }

    /// How often the stage has changed, and how many saves and removals there were.
    pub fn counts(&self) -> (u64, u64) {
        (self.generation.load(Ordering::Acquire), self.saves.load(Ordering::Acquire))
    }

    /// Everything that is charged, in bytes.
    pub fn charged(&self) -> u64 {
        *self.charged.lock()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.quota.refund(self.uid, *self.charged.get_mut());
    }
}
