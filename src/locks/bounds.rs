//! Limits for what one user can create: each piece is a waiting request, or a lease or session that topofs keeps alive.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};

/// A limit for the number of something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For one user.
    pub each: usize,
    /// In all.
    pub all: usize,
}

/// Waiting callers: topofs looks at each of them ten times a second, so one user costs at most a tenth of a core.
pub(super) const WAITERS: Limits = Limits { each: 512, all: 2_048 };
/// Places in the lines of the services: each is a key, and a lease or session to renew.
pub(super) const PLACES: Limits = Limits { each: 512, all: 2_048 };
/// Locks of files that concern only this mount: each is a row in a table that is searched.
pub(super) const LOCKS: Limits = Limits { each: 4_096, all: 16_384 };

/// Counts the existing ones.
#[derive(Debug)]
pub(super) struct Bound {
    what: &'static str,
    limits: Limits,
    taken: Mutex<HashMap<u32, usize>>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(super) struct Share(Arc<Bound>, u32);

impl Bound {
    pub fn new(what: &'static str, limits: Limits) -> Arc<Self> {
        Arc::new(Self { what, limits, taken: Mutex::default() })
    }

    /// Adds one for a user. Fails with ENOLCK if there are too many.
    pub fn take(self: &Arc<Self>, uid: u32) -> Result<Share> {
        let mut taken = self.taken.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or(0);
        let Limits { each, all: most } = self.limits;
        if own >= each || all >= most {
            let what = self.what;
            let reason = format!("too many {what}: user {uid} has {own} of {each}, all users have {all} of {most}");
            return Err(Error::new(Kind::NoLocks, reason));
        }
        taken.insert(uid, own + 1);
        Ok(Share(self.clone(), uid))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock();
        if let Some(count) = taken.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_bound_and_so_have_all() {
        let bound = Bound::new("waiters", Limits { each: 2, all: 3 });
        let first = bound.take(1).unwrap();
        let _second = bound.take(1).unwrap();
        assert_eq!(bound.take(1).unwrap_err().kind, Kind::NoLocks);
        let _other = bound.take(2).unwrap();
        assert_eq!(bound.take(3).unwrap_err().kind, Kind::NoLocks);
        drop(first);
        let _third = bound.take(3).unwrap();
        assert!(bound.take(1).is_err(), "all together");
    }
}
