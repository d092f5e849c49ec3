//! Who on this mount holds which bytes of which file. Decides conflicts, and never waits.
//!
//! The kernel sends flock(2) and fcntl(2) locks in the same form, so one table has both: a range, shared or exclusive,
//! and an owner that only the kernel can interpret. As on a local file, the two kinds do not see each other.

use std::collections::HashMap;

use super::bounds::LOCKS;
use crate::error::{Error, Kind, Result};
use crate::process::Locking;

/// A lock as the kernel asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The owner, in the kernel's terms.
    pub owner: u64,
    /// The open file that it was taken through.
    pub handle: u64,
    /// The process, for reports; 0 if unseen.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// The call; an unknown one conflicts with both.
    pub by: Option<Locking>,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Whether it is exclusive.
    pub exclusive: bool,
}

impl Range {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }

    /// The same for the whole range of a file.
    pub(super) fn whole(&self) -> Self {
        Range { start: 0, end: u64::MAX, exclusive: true, ..self.clone() }
    }
}

/// Whether two calls see each other's locks.
fn meet(one: Option<Locking>, other: Option<Locking>) -> bool {
    one.is_none() || other.is_none() || one == other
}

/// All locked ranges, by inode.
#[derive(Debug, Default)]
pub struct Table {
    files: HashMap<u64, Vec<Range>>,
    /// Who waits for whom.
    waits: HashMap<u64, u64>,
}

impl Table {
    /// A lock of somebody else that is in the way.
    pub fn conflict(&self, ino: u64, wanted: &Range) -> Option<&Range> {
        self.files.get(&ino)?.iter().find(|range| {
            range.owner != wanted.owner
                && meet(range.by, wanted.by)
                && range.overlaps(wanted.start, wanted.end)
                && (range.exclusive || wanted.exclusive)
        })
    }

    /// Puts a lock in place of what its owner has there by the same call. Fails with ENOLCK if there are too many.
    pub fn set(&mut self, ino: u64, range: Range) -> Result<()> {
        let known = self.own(ino, range.owner, range.by).any(|own| (own.start, own.end) == (range.start, range.end));
        if !known {
            self.refuse_more(range.uid)?;
        }
        self.take_out(ino, range.owner, range.by, (range.start, range.end));
        self.files.entry(ino).or_default().push(range);
        Ok(())
    }

    /// Removes what an owner has in a range by a call. Fails with ENOLCK if a lock would become two and there are too
    /// many.
    pub fn unset(&mut self, ino: u64, owner: u64, by: Option<Locking>, start: u64, end: u64) -> Result<()> {
        let splits = self.own(ino, owner, by).find(|range| range.start < start && end < range.end);
        if let Some(uid) = splits.map(|range| range.uid) {
            self.refuse_more(uid)?;
        }
        self.take_out(ino, owner, by, (start, end));
        Ok(())
    }

    /// Removes everything that an owner has.
    pub fn clear(&mut self, ino: u64, owner: u64) {
        self.take_out(ino, owner, None, (0, u64::MAX));
    }

    fn own(&self, ino: u64, owner: u64, by: Option<Locking>) -> impl Iterator<Item = &Range> {
        let ranges = self.files.get(&ino).into_iter().flatten();
        ranges.filter(move |range| range.owner == owner && meet(range.by, by))
    }

    fn refuse_more(&self, uid: u32) -> Result<()> {
        let all = self.files.values().map(Vec::len).sum::<usize>();
        let own = || self.files.values().flatten().filter(|range| range.uid == uid).count();
        // A lock that is replaced in the middle becomes two, beside the new one.
        if all + 2 > LOCKS.all || own() + 2 > LOCKS.each {
            return Err(Error::new(Kind::NoLocks, format!("too many file locks: user {uid}, or all users together")));
        }
        Ok(())
    }

    fn take_out(&mut self, ino: u64, owner: u64, by: Option<Locking>, (start, end): (u64, u64)) {
        let Some(ranges) = self.files.get_mut(&ino) else { return };
        let mut kept = Vec::with_capacity(ranges.len());
        for range in ranges.drain(..) {
            if range.owner != owner || !meet(range.by, by) || !range.overlaps(start, end) {
                kept.push(range);
                continue;
            }
            if range.start < start {
                kept.push(Range { end: start - 1, ..range.clone() });
            }
            if range.end > end {
                kept.push(Range { start: end + 1, ..range });
            }
        }
        *ranges = kept;
        self.tidy(ino);
    }

    /// Removes the locks that were taken through an open file. Returns their owners.
    pub fn drop_handle(&mut self, ino: u64, handle: u64) -> Vec<u64> {
        let Some(ranges) = self.files.get_mut(&ino) else { return Vec::new() };
        let mut owners: Vec<u64> =
            ranges.extract_if(.., |range| range.handle == handle).map(|range| range.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        self.tidy(ino);
        owners
    }

    /// Whether an owner has any lock on a file.
    pub fn holds(&self, ino: u64, owner: u64) -> bool {
        self.files.get(&ino).is_some_and(|ranges| ranges.iter().any(|range| range.owner == owner))
    }

    /// Whether an owner has a lock on a file that was taken through this open file.
    pub fn holds_through(&self, ino: u64, owner: u64, handle: u64) -> bool {
        let through = |range: &Range| range.owner == owner && range.handle == handle;
        self.files.get(&ino).is_some_and(|ranges| ranges.iter().any(through))
    }

    /// What is locked of a file.
    pub fn ranges(&self, ino: u64) -> &[Range] {
        self.files.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Notes that an owner waits for another one; refuses if the wait would never end.
    pub fn wait_for(&mut self, waiter: u64, holder: u64) -> bool {
        let mut next = Some(holder);
        // A chain is no longer than there are waiters.
        for _ in 0..=self.waits.len() {
            match next {
                Some(owner) if owner == waiter => return false,
                Some(owner) => next = self.waits.get(&owner).copied(),
                None => break,
            }
        }
        self.waits.insert(waiter, holder);
        true
    }

    /// Notes that an owner no longer waits.
    pub fn stop_waiting(&mut self, waiter: u64) {
        self.waits.remove(&waiter);
    }

    fn tidy(&mut self, ino: u64) {
        if self.files.get(&ino).is_some_and(Vec::is_empty) {
            self.files.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 12;

    #[derive(Debug, Clone)]
    enum Step {
        Set(Range),
        Unset(u64, u64, u64),
        DropHandle(u64),
    }

    fn range() -> impl Strategy<Value = Range> {
        (0..3u64, 0..4u64, 0..BYTES, 0..BYTES, any::<bool>()).prop_map(|(owner, handle, a, b, exclusive)| Range {
            owner,
            handle,
            pid: 0,
            uid: 0,
            by: Some(Locking::Fcntl),
            start: a.min(b),
            end: a.max(b),
            exclusive,
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => range().prop_map(Step::Set),
            1 => range().prop_map(|range| Step::Unset(range.owner, range.start, range.end)),
            1 => (0..4u64).prop_map(Step::DropHandle),
        ]
    }

    proptest! {
        /// The reference: what each owner has of each single byte.
        #[test]
        fn ranges_are_sets_of_bytes(steps in prop::collection::vec(step(), 0..40)) {
            let mut table = Table::default();
            let mut bytes: HashMap<(u64, u64), (bool, u64)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Set(range) => {
                        let in_the_way = (range.start..=range.end).any(|byte| (0..3).any(|other| {
                            other != range.owner
                                && bytes.get(&(other, byte)).is_some_and(|(exclusive, _)| *exclusive || range.exclusive)
                        }));
                        prop_assert_eq!(table.conflict(1, &range).is_some(), in_the_way);
                        if !in_the_way {
                            for byte in range.start..=range.end {
                                bytes.insert((range.owner, byte), (range.exclusive, range.handle));
                            }
                            table.set(1, range).unwrap();
                        }
                    }
                    Step::Unset(owner, start, end) => {
                        bytes.retain(|(known, byte), _| *known != owner || !(start..=end).contains(byte));
                        table.unset(1, owner, Some(Locking::Fcntl), start, end).unwrap();
                    }
                    Step::DropHandle(handle) => {
                        bytes.retain(|_, (_, through)| *through != handle);
                        table.drop_handle(1, handle);
                    }
                }
                for owner in 0..3 {
                    prop_assert_eq!(table.holds(1, owner), bytes.keys().any(|(known, _)| *known == owner));
                }
                prop_assert_eq!(table.is_empty(), bytes.is_empty());
            }
        }
    }

    fn whole(owner: u64, by: Option<Locking>) -> Range {
        Range { owner, handle: owner, pid: 0, uid: 0, by, start: 0, end: u64::MAX, exclusive: true }
    }

    #[test]
    fn two_calls_do_not_see_each_other_unless_nobody_knows_which_it_is() {
        let (flock, fcntl) = (Some(Locking::Flock), Some(Locking::Fcntl));
        for (held, wanted, in_the_way) in [
            (flock, flock, true),
            (fcntl, fcntl, true),
            (flock, fcntl, false),
            (fcntl, flock, false),
            (None, flock, true),
            (fcntl, None, true),
        ] {
            let mut table = Table::default();
            table.set(1, whole(1, held)).unwrap();
            assert_eq!(table.conflict(1, &whole(2, wanted)).is_some(), in_the_way, "{held:?} {wanted:?}");
        }
        // One open file, locked by both calls: each call releases its own lock.
        let mut table = Table::default();
        table.set(1, whole(1, flock)).unwrap();
        table.set(1, whole(1, fcntl)).unwrap();
        table.unset(1, 1, fcntl, 0, u64::MAX).unwrap();
        assert!(table.conflict(1, &whole(2, flock)).is_some() && table.conflict(1, &whole(2, fcntl)).is_none());
        table.unset(1, 1, None, 0, u64::MAX).unwrap();
        assert!(table.is_empty());
    }

    fn byte(owner: u64, at: u64) -> Range {
        Range { start: at, end: at, ..whole(owner, Some(Locking::Fcntl)) }
    }

    fn ends(table: &Table, ino: u64) -> Vec<(u64, u64)> {
        let mut ends: Vec<_> = table.ranges(ino).iter().map(|range| (range.start, range.end)).collect();
        ends.sort_unstable();
        ends
    }

    #[test]
    fn the_whole_of_a_range_is_all_bytes_for_its_owner_alone() {
        let part = Range { exclusive: false, pid: 5, uid: 6, ..byte(1, 7) };
        assert_eq!(part.whole(), Range { start: 0, end: u64::MAX, exclusive: true, ..part });
    }

    #[test]
    fn ranges_meet_at_a_common_byte_and_not_beside_it() {
        let mut table = Table::default();
        table.set(1, Range { start: 10, end: 20, ..whole(1, None) }).unwrap();
        for (start, end, in_the_way) in [(0, 9, false), (0, 10, true), (20, 30, true), (21, 30, false), (15, 15, true)]
        {
            let wanted = Range { start, end, ..whole(2, None) };
            assert_eq!(table.conflict(1, &wanted).is_some(), in_the_way, "{start}-{end}");
            assert!(table.conflict(1, &Range { owner: 1, ..wanted.clone() }).is_none(), "its own");
            assert!(table.conflict(2, &wanted).is_none(), "another file");
        }
        // Two shared locks do not conflict; one exclusive lock is enough.
        let shared = |owner| Range { exclusive: false, ..whole(owner, None) };
        let mut table = Table::default();
        table.set(1, shared(1)).unwrap();
        assert!(table.conflict(1, &shared(2)).is_none() && table.conflict(1, &whole(2, None)).is_some());
        let mut table = Table::default();
        table.set(1, whole(1, None)).unwrap();
        assert!(table.conflict(1, &shared(2)).is_some());
    }

    #[test]
    fn what_is_unlocked_in_the_middle_leaves_both_sides() {
        let mut table = Table::default();
        table.set(1, Range { start: 10, end: 20, ..whole(1, None) }).unwrap();
        table.unset(1, 1, None, 14, 16).unwrap();
        assert_eq!(ends(&table, 1), [(10, 13), (17, 20)]);
        table.unset(1, 1, None, 0, 10).unwrap();
        table.unset(1, 1, None, 20, 20).unwrap();
        assert_eq!(ends(&table, 1), [(11, 13), (17, 19)]);
        table.set(1, Range { start: 13, end: 17, exclusive: false, ..whole(1, None) }).unwrap();
        assert_eq!(ends(&table, 1), [(11, 12), (13, 17), (18, 19)]);
        table.unset(1, 2, None, 0, u64::MAX).unwrap();
        assert_eq!(ends(&table, 1).len(), 3, "another's");
        table.clear(1, 1);
        assert!(table.is_empty() && table.ranges(1).is_empty());
    }

    #[test]
    fn a_lock_belongs_to_its_owner_and_to_the_open_file_that_it_was_taken_through() {
        let mut table = Table::default();
        for (owner, handle, at) in [(3, 7, 0), (1, 7, 2), (3, 7, 4), (2, 8, 6)] {
            table.set(1, Range { handle, ..byte(owner, at) }).unwrap();
        }
        table.set(2, Range { handle: 7, ..byte(9, 0) }).unwrap();
        assert!(table.holds(1, 3) && !table.holds(1, 4) && !table.holds(2, 3));
        assert!(table.holds_through(1, 3, 7) && !table.holds_through(1, 3, 8) && !table.holds_through(1, 2, 7));
        assert!(!table.holds_through(2, 3, 7));
        assert_eq!(table.drop_handle(1, 7), [1, 3], "each owner once");
        assert!(!table.holds(1, 3) && !table.holds(1, 1) && table.holds(1, 2) && table.holds(2, 9));
        assert!(table.drop_handle(1, 7).is_empty() && table.drop_handle(3, 7).is_empty());
        assert_eq!(table.drop_handle(1, 8), [2]);
        assert_eq!(table.drop_handle(2, 7), [9]);
        assert!(table.is_empty());
    }

    /// A table with so many locks of each user, each of one byte.
    fn full(users: &[(u32, usize)]) -> Table {
        let mut table = Table::default();
        for (uid, count) in users {
            let ranges = (0..*count as u64).map(|at| Range { uid: *uid, ..byte(u64::from(*uid), 10 * at) });
            table.files.insert(u64::from(*uid), ranges.collect());
        }
        table
    }

    #[test]
    fn the_last_lock_leaves_room_for_one_that_is_split() {
        let bounds: [&[(u32, usize)]; 2] = [
            &[(1, LOCKS.each - 2)],
            &[(1, 2), (2, LOCKS.each - 1), (3, LOCKS.each - 1), (4, LOCKS.each - 1), (5, LOCKS.each - 1)],
        ];
        for users in bounds {
            let mut table = full(users);
            let count = |table: &Table| table.files.values().map(Vec::len).sum::<usize>();
            let at = 1_000_000;
            if users.len() > 1 {
                assert_eq!(count(&table), LOCKS.all - 2);
            }
            table.set(1, Range { uid: 1, start: at, end: at + 9, ..byte(1, 0) }).unwrap();
            assert_eq!(table.set(1, Range { uid: 1, ..byte(1, at + 20) }).unwrap_err().kind, Kind::NoLocks);
            // An existing lock may be taken again, in the other mode.
            let known = Range { uid: 1, start: at, end: at + 9, exclusive: false, ..byte(1, 0) };
            table.set(1, known.clone()).unwrap();
            assert!(table.ranges(1).contains(&known));
            for more in [Range { owner: 77, ..known.clone() }, Range { by: Some(Locking::Flock), ..known.clone() }] {
                assert_eq!(table.set(1, more).unwrap_err().kind, Kind::NoLocks, "another's, or by another call");
            }
            table.unset(1, 77, None, at + 4, at + 4).unwrap();
            // A hole would split a lock in two; a cut at its end adds none.
            assert_eq!(table.unset(1, 1, None, at + 4, at + 4).unwrap_err().kind, Kind::NoLocks);
            assert!(table.ranges(1).contains(&known), "nothing is unlocked");
            table.unset(1, 1, None, at, at).unwrap();
            table.unset(1, 1, None, at + 9, at + 9).unwrap();
            table.unset(1, 1, None, at, at + 9).unwrap();
            table.set(1, Range { uid: 1, ..byte(1, at + 20) }).unwrap();
        }
    }

    #[test]
    fn the_locks_of_a_user_are_bounded_and_others_are_not_concerned() {
        let mut table = Table::default();
        let byte = |number: u64, uid: u32| Range {
            uid,
            start: 2 * number,
            end: 2 * number,
            ..whole(u64::from(uid), Some(Locking::Fcntl))
        };
        let refused = (0..).find(|number| table.set(1, byte(*number, 7)).is_err()).unwrap();
        assert!(refused > 1_000 && refused <= LOCKS.each as u64);
        assert_eq!(table.set(1, byte(refused, 7)).unwrap_err().kind, Kind::NoLocks);
        // An existing lock may be taken again; a hole in a lock adds one.
        table.set(1, byte(0, 7)).unwrap();
        table.set(1, byte(refused, 8)).unwrap();
        table.set(2, Range { uid: 8, ..whole(8, None) }).unwrap();
        table.unset(2, 8, None, 5, 5).unwrap();
        table.unset(1, 7, None, 0, u64::MAX).unwrap();
        table.set(1, byte(refused + 1, 7)).unwrap();
    }

    #[test]
    fn a_circle_of_waiters_is_noticed() {
        let mut table = Table::default();
        assert!(table.wait_for(1, 2));
        assert!(table.wait_for(2, 3));
        assert!(!table.wait_for(3, 1));
        table.stop_waiting(1);
        assert!(table.wait_for(3, 1));
        assert!(!table.wait_for(1, 2), "a circle of three, closed from the other side");
        assert!(!table.wait_for(7, 7), "nobody waits for itself");
        // A chain of any length is not a circle.
        assert!((10..100).all(|waiter| table.wait_for(waiter, waiter + 1)));
        assert!(!table.wait_for(100, 10));
    }
}
