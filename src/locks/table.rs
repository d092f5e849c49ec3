//! Who of this mount holds which bytes of which file. Decides conflicts; waits for nothing.
//!
//! flock(2) and fcntl(2) locks come from the kernel in one shape, so there is one table for both: a range, shared or exclusive,
//! of an owner that only the kernel can interpret.

use std::collections::HashMap;

/// A lock as the kernel asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The kernel's word for who it is.
    pub owner: u64,
    /// The open file that it was taken through.
    pub handle: u64,
    /// The process, for those who ask.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Nobody else may have any.
    pub exclusive: bool,
}

impl Range {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }
}

/// All ranges that are locked, by inode.
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
                && range.overlaps(wanted.start, wanted.end)
                && (range.exclusive || wanted.exclusive)
        })
    }

    /// Puts a lock in place of what its owner has there.
    pub fn set(&mut self, ino: u64, range: Range) {
        self.unset(ino, range.owner, range.start, range.end);
        self.files.entry(ino).or_default().push(range);
    }

    /// Takes away what an owner has in a range.
    pub fn unset(&mut self, ino: u64, owner: u64, start: u64, end: u64) {
        let Some(ranges) = self.files.get_mut(&ino) else { return };
        let mut kept = Vec::with_capacity(ranges.len());
        for range in ranges.drain(..) {
            if range.owner != owner || !range.overlaps(start, end) {
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

    /// Takes away what was taken through an open file. Returns the owners.
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

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Notes that somebody waits for somebody else; refuses if that would never end.
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

    /// Notes that somebody does not wait any more.
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
                            table.set(1, range);
                        }
                    }
                    Step::Unset(owner, start, end) => {
                        bytes.retain(|(known, byte), _| *known != owner || !(start..=end).contains(byte));
                        table.unset(1, owner, start, end);
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

    #[test]
    fn a_circle_of_waiters_is_noticed() {
        let mut table = Table::default();
        assert!(table.wait_for(1, 2));
        assert!(table.wait_for(2, 3));
        assert!(!table.wait_for(3, 1));
        table.stop_waiting(1);
        assert!(table.wait_for(3, 1));
    }
}
