//! Locks that stay. Whether the program behind a lock still works cannot be known: the service vouches for a holder
//! that has a lease or a session. But nobody vouches for a lock without one, and Vitess's tools hold none for long.

use std::time::{Duration, SystemTime};

use super::facts::Facts;
use super::problem::{Kind, Report};
use super::shell::file;
use crate::backend::{Node, Owner};
use crate::cells::lock_text;
use crate::name::{CellName, TopoPath};
use crate::plain::short;
use crate::record::layout::is_election;

/// The longest-lived locks of Vitess's tools, those of names, last for a day; clocks may differ by an hour.
const OLD: Duration = Duration::from_secs(25 * 3600);
/// Longest description of a holder, in characters.
const LONGEST: usize = 300;

pub(super) fn check(facts: &Facts<'_>, now: SystemTime, report: &mut Report) {
    let global = CellName::global();
    // Cells with the same server and root have the same locks.
    let places = facts.places.iter().filter(|place| !place.holds_global).map(|place| &place.cell);
    for cell in std::iter::once(&global).chain(places) {
        for (dir, node) in facts.sight.locks.get(cell).into_iter().flatten() {
            lock((cell, dir), node, now, report);
        }
    }
}

fn lock((cell, dir): (&CellName, &TopoPath), node: &Node, now: SystemTime, report: &mut Report) {
    let holder = || short(&lock_text::in_words(&node.value), LONGEST);
    // After an election on Consul, the key stays with the name of the last leader.
    let (kind, why) = match node.owner() {
        Owner::NOBODY if is_election(dir) => return,
        Owner::NOBODY => (Kind::LockLeftOver, "nobody holds the lock, but its key is still there, with the words of"),
        Owner::UNBOUND => {
            (Kind::LockWithoutOwner, "no lease and no session keeps the lock, so it never ends. It has the words of")
        }
        _ if is_election(dir) => return,
        _ => {
            let Some(since) = lock_text::since(&node.value) else { return };
            let Some(old_at) = since.checked_add(OLD) else { return };
            if old_at > now {
                // The same records have one more problem from then on.
                report.until = Some(report.until.map_or(old_at, |until| until.min(old_at)));
                return;
            }
            (Kind::LockTooOld, "the lock is held for longer than those of Vitess's tools, by")
        }
    };
    report.add(kind, (cell, dir), || {
        let unlock = format!("topofs unlock --force {}", file(cell, dir, ""));
        // A lock that somebody may still hold is taken away from nobody without a question.
        let mend = if kind == Kind::LockTooOld { format!("{unlock}  # if its holder is gone") } else { unlock };
        (format!("{why} {}", holder()), mend)
    });
}
