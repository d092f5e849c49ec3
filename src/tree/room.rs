//! Owns the room for what open files hold, written or shown. Charges each content to its user and to all users; a
//! smaller content must never be refused.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};

/// What the open files of all users but root may hold, in bytes: several times the largest text of the largest record
/// that any service takes. root has room of its own: whoever has many users can fill this, and root must still be able
/// to look.
const IN_ALL: usize = 384 << 20;
/// What the open files of one user may hold, in bytes. A user but root gets no more than half of what the others leave,
/// so there is something for the next one.
pub(super) const PER_USER: usize = 128 << 20;
/// The number of root.
const ROOT: u32 = 0;

/// The room of a mount.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<Mutex<Used>>);

#[derive(Debug, Default)]
struct Used {
    /// By all but root.
    in_all: usize,
    by_user: HashMap<u32, usize>,
}

/// What one open file is charged with. To drop it is to return the room.
#[derive(Debug)]
pub(crate) struct Charge {
    room: Room,
    uid: u32,
    bytes: usize,
}

impl Room {
    /// The charge of a file of a user, which has no size yet.
    pub fn charge(&self, uid: u32) -> Charge {
        Charge { room: self.clone(), uid, bytes: 0 }
    }
}

impl Charge {
    /// Charges the file with another size from now on, in bytes. Fails with ENOSPC if there is no room for it.
    pub fn resize(&mut self, bytes: usize) -> Result<()> {
        let mut used = self.room.0.lock();
        let held = used.by_user.get(&self.uid).copied().unwrap_or(0);
        let own = held - self.bytes + bytes;
        let (in_all, limit) = match self.uid {
            ROOT => (used.in_all, PER_USER),
            _ => (used.in_all - self.bytes + bytes, PER_USER.min((IN_ALL - (used.in_all - held)) / 2)),
        };
        // A smaller size always fits, also if others have come since.
        if own > limit && bytes > self.bytes {
            let reason = match limit {
                PER_USER => format!("the open files of this user hold {held} bytes in memory: no more is taken"),
                _ => format!("the open files of all users hold {} bytes in memory: no more is taken", used.in_all),
            };
            return Err(Error::new(Kind::NoSpace, reason));
        }
        used.in_all = in_all;
        match own {
            0 => drop(used.by_user.remove(&self.uid)),
            own => drop(used.by_user.insert(self.uid, own)),
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // A smaller size always succeeds.
        let _ = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_user_cannot_use_up_the_room_of_the_others() {
        let room = Room::default();
        let mut greedy: Vec<Charge> = (0..5).map(|_| room.charge(1)).collect();
        let taken = greedy.iter_mut().map(|charge| charge.resize(PER_USER / 4)).filter(Result::is_ok).count();
        assert_eq!(taken, 4);
        let mut other = room.charge(2);
        other.resize(PER_USER).unwrap();
        assert_eq!(other.resize(PER_USER + 1).unwrap_err().kind, Kind::NoSpace);
        greedy.truncate(1);
        room.charge(1).resize(PER_USER / 4).unwrap();
        drop((greedy, other));
        assert!(room.0.lock().in_all == 0 && room.0.lock().by_user.is_empty(), "all of it is given back");
    }

    #[test]
    fn all_users_together_have_a_bound_and_each_newcomer_gets_something() {
        let room = Room::default();
        let mut charges: Vec<Charge> = Vec::new();
        for uid in 1..20 {
            let left = IN_ALL - room.0.lock().in_all;
            let mut charge = room.charge(uid);
            charge.resize(PER_USER.min(left / 2)).unwrap();
            assert!(charge.bytes > 0);
            let refused = charge.resize(charge.bytes + 1).unwrap_err();
            assert_eq!(refused.kind, Kind::NoSpace);
            assert_eq!(refused.to_string().contains("of this user"), charge.bytes == PER_USER, "{refused}");
            charges.push(charge);
        }
        assert!(room.0.lock().in_all <= IN_ALL);
        // What others have taken since takes nothing away.
        let held = charges[0].bytes;
        assert!(charges[0].resize(held + 1).is_err());
        charges[0].resize(held).unwrap();
        charges[0].resize(held - 1).unwrap();
    }

    #[test]
    fn nobody_keeps_root_from_looking_and_root_nobody_else() {
        let room = Room::default();
        let mut charges: Vec<Charge> = (1..=2).map(|uid| room.charge(uid)).collect();
        charges.iter_mut().for_each(|charge| charge.resize(PER_USER).unwrap());
        let mut root = room.charge(ROOT);
        root.resize(PER_USER).unwrap();
        assert_eq!(root.resize(PER_USER + 1).unwrap_err().kind, Kind::NoSpace);
        charges[0].resize(0).unwrap();
        charges[0].resize(PER_USER).unwrap();
        drop((charges, root));
        assert!(room.0.lock().in_all == 0 && room.0.lock().by_user.is_empty(), "all of it is given back");
    }

    proptest! {
        #[test]
        fn what_is_used_is_the_sum_of_all_charges(sizes in prop::collection::vec((0..6usize, 0..PER_USER + 1), 0..60)) {
            let room = Room::default();
            // Two files for each user.
            let mut charges: Vec<Charge> = (0..6).map(|file| room.charge(file / 2)).collect();
            for (file, size) in sizes {
                let before = charges[file].bytes;
                let taken = charges[file].resize(size).is_ok();
                prop_assert_eq!(charges[file].bytes, if taken { size } else { before });
                prop_assert!(taken || size > before);
                let used = room.0.lock();
                let others = charges.iter().filter(|charge| charge.uid != ROOT);
                prop_assert_eq!(used.in_all, others.map(|charge| charge.bytes).sum::<usize>());
                for uid in 0..3 {
                    let own: usize = charges.iter().filter(|charge| charge.uid == uid).map(|charge| charge.bytes).sum();
                    prop_assert!(own <= PER_USER);
                    prop_assert_eq!(used.by_user.get(&uid).copied(), Some(own).filter(|own| *own > 0));
                }
            }
        }
    }
}
