//! Owns what the kernel was shown of one inode: the attributes of the last reply, and the state whose pages it may
//! hold. A late reply must never take back a newer one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::time::SystemTime;

use bytes::Bytes;

use crate::mirror::Record;

/// Identifies one state of a record, in few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(NonZeroU64);

impl Fingerprint {
    /// The state of a record. Versions may repeat when a service is restored; times do not.
    pub fn of(record: &Record) -> Self {
        let mut hasher = DefaultHasher::new();
        (record.version.number, record.version.written.0, record.version.created.0).hash(&mut hasher);
        record.modified.hash(&mut hasher);
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }
}

/// A record whose attributes the kernel was shown; each file that the kernel knows has one.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    state: Fingerprint,
    /// A later state of the record has a later time.
    modified: SystemTime,
    /// The stored bytes.
    pub value: Bytes,
    /// The kernel has been made to ask again since, or is about to be.
    pub invalidated: bool,
}

/// The attributes of the last reply, if they were those of a record.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The attributes of a record that it was replied last.
    reply: Option<Reply>,
    /// The kernel did not know the inode when it was last asked to forget it: a reply may be on its way.
    unknown: bool,
    /// The state whose pages the kernel may hold. It may hold no others.
    pages: Option<Fingerprint>,
}

impl Shown {
    /// Notes the attributes of a record that the kernel is replied; `None` if they are not those of a stored record. A
    /// late reply has attributes that the kernel will ignore, or must forget in a moment. It does not take back a newer
    /// one: while `is_current` is asked, all other replies wait.
    pub fn note_reply(&mut self, record: Option<&Record>, is_current: impl FnOnce(&Record) -> bool) {
        let is_late = match (&self.reply, record) {
            (Some(known), Some(record)) => known.modified > record.modified && !is_current(record),
            _ => false,
        };
        if !is_late {
            self.reply = record.map(|record| Reply {
                state: Fingerprint::of(record),
                modified: record.modified,
                value: record.value.clone(),
                invalidated: false,
            });
        }
    }

    /// The last reply.
    pub fn reply(&self) -> Option<&Reply> {
        self.reply.as_ref()
    }

    /// A file is opened in a state: whether the pages that the kernel may hold are of that state. If not, the kernel
    /// must drop them; then it reads that state.
    pub fn open_pages(&mut self, state: Fingerprint) -> bool {
        self.pages.replace(state) == Some(state)
    }

    /// The pages of a state are about to be stored in the kernel. False if they need not or must not be: the kernel has
    /// pages, or was replied the attributes of another state.
    pub fn begin_storing(&mut self, state: Fingerprint) -> bool {
        let fits = self.reply.as_ref().is_some_and(|reply| !reply.invalidated && reply.state == state);
        if self.pages.is_some() || !fits {
            return false;
        }
        self.pages = Some(state);
        true
    }

    /// The kernel is about to forget what it was replied.
    pub fn invalidating(&mut self) {
        if let Some(reply) = &mut self.reply {
            reply.invalidated = true;
        }
    }

    /// The kernel has forgotten that, and the pages, if it knew the inode.
    pub fn invalidated(&mut self, known: bool) {
        self.unknown = !known;
        self.pages = None;
    }

    /// Whether the kernel did not know the inode when it was last asked to forget it.
    pub fn was_unknown(&self) -> bool {
        self.unknown
    }
}
