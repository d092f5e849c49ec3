//! Whose turn it is to try for a lock, if the service has no line.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::name::TopoPath;

/// The order in which the waiters of this mount try for a lock, if the service has no queue. Only one tries at a time,
/// so a mount with many waiters has no better chance than one with few. Each place of the mount has a ticket, and the
/// number of places is bounded (`locks/bounds.rs`).
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The tickets of the waiters, by directory, in the order in which they came.
    lines: Mutex<HashMap<TopoPath, Vec<u64>>>,
    /// Counts new tickets and tickets that were given up; the last number is also the last ticket.
    changes: watch::Sender<u64>,
}

impl Turns {
    /// A ticket at the end of a directory's line.
    pub fn take(&self, dir: &TopoPath) -> u64 {
        let mut ticket = 0;
        self.changes.send_modify(|last| {
            *last += 1;
            ticket = *last;
        });
        self.lines.lock().entry(dir.clone()).or_default().push(ticket);
        ticket
    }

    /// Whether the waiter with this ticket may try.
    pub fn is_next(&self, dir: &TopoPath, ticket: u64) -> bool {
        self.lines.lock().get(dir).is_none_or(|line| line.first() == Some(&ticket))
    }

    /// Takes a ticket out of the line, wherever it stands.
    pub fn give_up(&self, dir: &TopoPath, ticket: u64) {
        {
            let mut lines = self.lines.lock();
            if let Some(line) = lines.get_mut(dir) {
                line.retain(|other| *other != ticket);
                if line.is_empty() {
                    lines.remove(dir);
                }
            }
        }
        self.changes.send_modify(|last| *last += 1);
    }

    /// Changes when another waiter may be next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_is_next_and_nothing_is_left_of_a_line_that_has_ended() {
        let (turns, dir, other) = (Turns::default(), TopoPath::parse("a").unwrap(), TopoPath::parse("b").unwrap());
        let (first, second, third) = (turns.take(&dir), turns.take(&dir), turns.take(&dir));
        let next = || [first, second, third].map(|ticket| turns.is_next(&dir, ticket));
        assert_eq!(next(), [true, false, false]);
        let elsewhere = turns.take(&other);
        assert!(turns.is_next(&other, elsewhere), "each directory has its own line");
        let mut changes = turns.changes();
        turns.give_up(&dir, second);
        assert_eq!((next(), changes.has_changed().unwrap()), ([true, false, false], true));
        changes.mark_unchanged();
        turns.give_up(&dir, first);
        assert_eq!((next(), changes.has_changed().unwrap()), ([false, false, true], true));
        turns.give_up(&dir, third);
        turns.give_up(&dir, third);
        turns.give_up(&other, elsewhere);
        assert!(turns.lines.lock().is_empty());
    }
}
