//! Words of a copy for people: how far it is, what is wrong, and counts. Must never decide anything.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::place::{End, Place};

/// Most lines of one kind in an error.
const LINES: usize = 20;

/// A number with the right words: `counted(1, "record is", "records are")`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// How far a copy is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Records that are to be stored or deleted. Until there are some, nothing was changed.
    pub total: AtomicU64,
    /// Records that are.
    pub done: AtomicU64,
    phase: Mutex<Phase>,
}

/// What is being done.
#[derive(Debug, Default)]
enum Phase {
    /// Nothing is known yet.
    #[default]
    Beginning,
    /// Lists are read.
    Reading(Reading),
    /// What has to be done is found out.
    Planning,
    /// Records are stored.
    Storing,
}

#[derive(Debug)]
struct Reading {
    what: &'static str,
    /// Lists that have come, and all that were asked for. A cell is one list at each end.
    lists: (usize, usize),
    /// The records in them.
    records: usize,
}

impl Progress {
    /// Lists are asked for.
    pub(super) fn reading(&self, what: &'static str, more: usize) {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::Reading(reading) if reading.what == what => reading.lists.1 += more,
            _ => *phase = Phase::Reading(Reading { what, lists: (0, more), records: 0 }),
        }
    }

    /// A list has come.
    pub(super) fn read(&self, more: usize) {
        if let Phase::Reading(reading) = &mut *self.phase.lock() {
            reading.lists.0 += 1;
            reading.records += more;
        }
    }

    pub(super) fn planning(&self) {
        *self.phase.lock() = Phase::Planning;
    }

    pub(super) fn storing(&self, steps: usize) {
        self.total.fetch_add(steps as u64, Ordering::Relaxed);
        *self.phase.lock() = Phase::Storing;
    }

    /// Whether something may have been changed. If not, nothing will be after a stop.
    pub fn has_begun(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }

    /// What is being done; `None` while records are stored.
    pub fn words(&self) -> Option<String> {
        Some(match &*self.phase.lock() {
            Phase::Beginning => "connecting".to_owned(),
            Phase::Reading(Reading { what, lists: (come, all), records }) => {
                let records = counted(*records, "record", "records");
                format!("reading {what}: {come} of {}, {records} so far", counted(*all, "list", "lists"))
            }
            Phase::Planning => "comparing".to_owned(),
            Phase::Storing => return None,
        })
    }
}

/// Why a place is not copied whole.
pub(super) fn unnamed(place: &Place, end: End, keys: u64) -> String {
    format!(
        "{end}, {place}: {} (a part of the name is empty, too long, or no text)",
        counted(
            keys.try_into().unwrap_or(usize::MAX),
            "key cannot be the name of a record",
            "keys cannot be names of records"
        )
    )
}

/// The error of a copy that has not begun.
pub(super) fn not_begun(troubles: &[String]) -> String {
    let mut lines: Vec<&str> = troubles.iter().take(LINES).map(String::as_str).collect();
    let more = troubles.len().saturating_sub(LINES);
    let rest = format!("and {more} more");
    if more > 0 {
        lines.push(&rest);
    }
    lines.push("nothing was copied; --keep-going copies everything else");
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_while_nothing_is_stored_is_what_is_known() {
        let progress = Progress::default();
        assert_eq!(progress.words().unwrap(), "connecting");
        progress.reading("both", 1);
        progress.read(1);
        assert_eq!(progress.words().unwrap(), "reading both: 1 of 1 list, 1 record so far");
        progress.reading("both", 4);
        progress.read(200);
        assert_eq!(progress.words().unwrap(), "reading both: 2 of 5 lists, 201 records so far");
        assert!(!progress.has_begun());
        progress.storing(7);
        assert!(progress.words().is_none() && progress.has_begun());
        progress.reading("the source again", 3);
        assert_eq!(progress.words().unwrap(), "reading the source again: 0 of 3 lists, 0 records so far");
    }
}
