//! Owns the room for what exists in this mount's memory only: scratch files, local directories, staged changes. Charges
//! it to users, so that one user cannot use up everything.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};

/// The quota has so many parts. One user leaves one of them to the others.
const PARTS: u64 = 8;

/// The room of a mount. Clones are the same room.
#[derive(Debug, Clone)]
pub struct Quota(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: u64,
    by: HashMap<u32, u64>,
}

impl Quota {
    /// Room for so many bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Shared { limit, used: Mutex::default() }))
    }

    /// What one user may use, in bytes.
    fn share(&self) -> u64 {
        self.0.limit / PARTS * (PARTS - 1)
    }

    /// Charges a user with more bytes. Fails with ENOSPC if there is no room for them.
    pub fn charge(&self, uid: u32, bytes: u64) -> Result<()> {
        let mut used = self.0.used.lock();
        let all = used.all.saturating_add(bytes);
        let own = used.by.get(&uid).copied().unwrap_or(0).saturating_add(bytes);
        if all > self.0.limit || own > self.share() {
            let reason = match all > self.0.limit {
                true => format!("the scratch quota of {} bytes is used up", self.0.limit),
                false => format!("the user has used up one user's share of the scratch quota, {} bytes", self.share()),
            };
            let reason = format!("{reason}; names that are no record, and what is staged, are kept in memory");
            return Err(Error::new(Kind::NoSpace, reason));
        }
        used.all = all;
        used.by.insert(uid, own);
        Ok(())
    }

    /// Returns bytes that a user was charged with.
    pub fn refund(&self, uid: u32, bytes: u64) {
        let mut used = self.0.used.lock();
        used.all = used.all.saturating_sub(bytes);
        match used.by.get_mut(&uid) {
            Some(own) if *own > bytes => *own -= bytes,
            _ => drop(used.by.remove(&uid)),
        }
    }

    /// Bytes that may be used, and bytes used.
    pub fn usage(&self) -> (u64, u64) {
        (self.0.limit, self.0.used.lock().all)
    }

    /// Bytes that a user uses.
    #[cfg(test)]
    pub fn used_by(&self, uid: u32) -> u64 {
        self.0.used.lock().by.get(&uid).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_returned_is_free_for_others_and_a_refusal_charges_nothing() {
        let quota = Quota::new(800);
        quota.charge(1, 700).unwrap();
        let error = quota.charge(1, 1).unwrap_err();
        assert!(error.kind == Kind::NoSpace && error.reason.contains("700 bytes"), "{error}");
        quota.charge(2, 100).unwrap();
        assert!(quota.charge(3, 1).unwrap_err().reason.contains("the scratch quota of 800 bytes is used up"));
        assert_eq!(quota.usage(), (800, 800));
        quota.refund(1, 700);
        quota.charge(3, 700).unwrap();
        quota.refund(2, 100);
        quota.refund(3, 700);
        assert!(quota.usage().1 == 0 && quota.0.used.lock().by.is_empty());
    }
}
