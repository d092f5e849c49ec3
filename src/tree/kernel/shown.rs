//! What the kernel was shown of each inode: the attributes that it was replied last, and the state whose pages it may hold.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::time::SystemTime;

use bytes::Bytes;

use super::inodes::Inodes;
use crate::mirror::Record;

/// A record whose attributes the kernel was shown: there is one for every file that it knows.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    state: Fingerprint,
    /// A later state of the record has a later time.
    modified: SystemTime,
    /// The stored bytes.
    pub value: Bytes,
    /// The kernel has been made to ask again since, or is about to be.
    pub invalidated: bool,
}

/// Names one state of a record, in few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(NonZeroU64);

impl Fingerprint {
    /// The state of a record. Versions may come again when a service is restored; times do not.
    pub fn of(record: &Record) -> Self {
        let mut hasher = DefaultHasher::new();
        (record.version.number, record.version.written.0, record.version.created.0).hash(&mut hasher);
        record.modified.hash(&mut hasher);
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }
}

impl Inodes {
    /// The kernel is shown the attributes of a record; `None` if they are those of no stored one. Whether they are those of now is looked
    /// at in turn with all others who tell: who is late (with attributes that the kernel will not take over, or must let go of in a moment)
    /// does not take back what is newer.
    pub fn note_reply(&self, number: u64, record: Option<&Record>, is_current: impl FnOnce(&Record) -> bool) {
        let mut table = self.table.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return };
        let shown = record.map(|record| Shown {
            state: Fingerprint::of(record),
            modified: record.modified,
            value: record.value.clone(),
            invalidated: false,
        });
        let is_late = match (&slot.shown, record) {
            (Some(known), Some(record)) => known.modified > record.modified && !is_current(record),
            _ => false,
        };
        if !is_late {
            slot.shown = shown;
        }
    }

    /// What the kernel was shown the attributes of last.
    pub fn shown(&self, number: u64) -> Option<Shown> {
        self.table.lock().by_number.get(&number)?.shown.clone()
    }

    /// A file of a state is opened: whether the pages that the kernel may hold are of that state. If not, the kernel must drop
    /// them; it reads that state then.
    pub fn open_pages(&self, number: u64, state: Fingerprint) -> bool {
        let mut table = self.table.lock();
        let Some(slot) = table.by_number.get_mut(&number) else { return false };
        let same = slot.pages == Some(state);
        slot.pages = Some(state);
        same
    }

    /// The content of a state is about to be given to the kernel. False if that need not or must not be: the kernel has
    /// its pages, was shown the attributes of another state, or too many are under way.
    pub fn begin_storing(&self, number: u64, state: Fingerprint, at_once: usize) -> bool {
        let mut table = self.table.lock();
        if table.storing.len() >= at_once || table.storing.contains(&number) {
            return false;
        }
        let Some(slot) = table.by_number.get_mut(&number) else { return false };
        if slot.pages.is_some() || !slot.shown.as_ref().is_some_and(|shown| !shown.invalidated && shown.state == state)
        {
            return false;
        }
        slot.pages = Some(state);
        table.storing.push(number);
        true
    }

    /// It has been given.
    pub fn end_storing(&self, number: u64) {
        self.table.lock().storing.retain(|other| *other != number);
        self.stored.notify_all();
    }

    /// Waits while the content of a file is being given to the kernel: what is dropped in the meantime would come back.
    pub fn wait_until_stored(&self, number: u64) -> bool {
        let mut table = self.table.lock();
        let waits = table.storing.contains(&number);
        while table.storing.contains(&number) {
            self.stored.wait(&mut table);
        }
        waits
    }

    /// The kernel is about to drop what it has been shown of a file.
    pub fn invalidating(&self, number: u64) {
        let mut table = self.table.lock();
        if let Some(shown) = table.by_number.get_mut(&number).and_then(|slot| slot.shown.as_mut()) {
            shown.invalidated = true;
        }
    }

    /// It has dropped that, and the pages, if it knew it.
    pub fn invalidated(&self, number: u64, known: bool) {
        if let Some(slot) = self.table.lock().by_number.get_mut(&number) {
            slot.unknown = !known;
            slot.pages = None;
        }
    }

    /// Whether the kernel knew nothing of an inode when it was to drop it last.
    pub fn was_unknown(&self, number: u64) -> bool {
        self.table.lock().by_number.get(&number).is_some_and(|slot| slot.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Revision, Version};
    use crate::tree::ScratchId;
    use crate::tree::file::FileId;

    #[test]
    fn a_content_is_given_once_and_dropped_after_it_has_arrived() {
        let record = |number| {
            let version = Version { number, written: Revision(number), created: Revision(1) };
            Record { value: Bytes::new(), version, modified: SystemTime::UNIX_EPOCH }
        };
        let state = |number| Fingerprint::of(&record(number));
        let inodes = Inodes::default();
        let file = inodes.count_lookup(&FileId::Scratch(ScratchId(1)));
        assert!(!inodes.begin_storing(file, state(1), 1), "its size is not known to the kernel");
        inodes.note_reply(file, Some(&record(1)), |_| true);
        assert!(inodes.begin_storing(file, state(1), 1));
        assert!(!inodes.begin_storing(file, state(1), 9), "it is under way");
        inodes.end_storing(file);
        assert!(!inodes.begin_storing(file, state(1), 1), "it is there");
        assert!(inodes.open_pages(file, state(1)));
        assert!(!inodes.open_pages(file, state(2)), "that is another state");
        inodes.invalidating(file);
        assert!(
            inodes.shown(file).is_some_and(|shown| shown.invalidated && shown.state == state(1)),
            "its size is still that"
        );
        inodes.invalidated(file, true);
        assert!(!inodes.begin_storing(file, state(1), 1), "the kernel must ask first");
        inodes.note_reply(file, Some(&record(2)), |_| true);
        assert!(inodes.begin_storing(file, state(2), 1) && !inodes.was_unknown(file));
    }

    #[test]
    fn an_answer_that_is_late_does_not_take_back_a_newer_one() {
        let record = |number: u64| {
            let version = Version { number, written: Revision(number), created: Revision(1) };
            let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number);
            Record { value: number.to_string().into(), version, modified }
        };
        let inodes = Inodes::default();
        let file = inodes.count_lookup(&FileId::Scratch(ScratchId(1)));
        let shown = || inodes.shown(file).map(|shown| shown.value);
        inodes.note_reply(file, Some(&record(1)), |_| true);
        inodes.invalidating(file);
        inodes.invalidated(file, true);
        inodes.note_reply(file, Some(&record(2)), |_| true);
        // Looked up before the change, noted after it: the kernel does not take it over, and reads on with what is newer.
        inodes.note_reply(file, Some(&record(1)), |_| false);
        assert_eq!(shown().as_deref(), Some(&b"2"[..]));
        // A service that was restored, or a clock that goes back.
        inodes.note_reply(file, Some(&record(1)), |_| true);
        assert_eq!(shown().as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn who_drops_a_content_waits_until_it_has_been_stored() {
        let inodes = Inodes::default();
        inodes.table.lock().storing.extend([7, 8]);
        assert!(!inodes.wait_until_stored(9));
        let (about_to, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                about_to.send(()).unwrap();
                inodes.wait_until_stored(7);
                !inodes.table.lock().storing.contains(&7)
            });
            waits.recv().unwrap();
            inodes.end_storing(8);
            inodes.end_storing(7);
            assert!(waiter.join().unwrap());
        });
        assert!(inodes.table.lock().storing.is_empty() && !inodes.wait_until_stored(7));
    }
}
