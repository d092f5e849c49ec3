//! Back to an earlier moment: which changes must be undone, and whether all of them are known. Must never guess: a
//! moment at which the watch was broken is unknown.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::Kept;
use crate::backend::Revision;
use crate::mirror::state::Record;
use crate::name::TopoPath;

/// Number of breaks of a watch to remember. One more, and everything before the oldest is unknown.
const BREAKS: usize = 1_000;

/// Why an earlier moment of a cell is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(pub String);

impl Unknown {
    pub(super) fn nothing_is_kept() -> Self {
        Self("this mount keeps no history (--history 0)".to_owned())
    }
}

/// The moments at which the mirror knew its cell.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// Since when all changes are kept, and the revision of then; `None` before the first list.
    since: Option<(SystemTime, Revision)>,
    /// The changes before that were forgotten; otherwise nobody followed the cell.
    forgotten: bool,
    /// From the last sign of life of a watch to the next list; `None` if there is none yet.
    breaks: VecDeque<(SystemTime, Option<SystemTime>)>,
    /// When a list last showed that the watch had told of everything.
    certain: Option<SystemTime>,
}

impl Sight {
    /// The cell is followed from now on.
    pub fn begins(&mut self, seen: Revision, now: SystemTime) {
        self.certain = Some(now);
        match self.since {
            None => self.since = Some((now, seen)),
            Some(_) => {
                if let Some((_, end @ None)) = self.breaks.back_mut() {
                    *end = Some(now);
                }
            }
        }
    }

    /// The watch told everything until then, and is broken.
    pub fn breaks(&mut self, since: SystemTime) {
        if self.since.is_some() && !matches!(self.breaks.back(), Some((_, None))) {
            self.add((since, None));
        }
    }

    /// A comparison with a list that was begun at a time. If it shows that changes were missed, nothing is certain
    /// since the one before.
    pub fn compared(&mut self, missed: bool, begun: SystemTime, now: SystemTime) {
        if let Some(certain) = self.certain.replace(begun).filter(|_| missed) {
            self.add((certain, Some(now)));
        }
    }

    fn add(&mut self, broken: (SystemTime, Option<SystemTime>)) {
        if self.breaks.len() >= BREAKS
            && let Some((_, Some(end))) = self.breaks.pop_front()
            && let Some((since, seen)) = self.since
        {
            self.since = Some((since.max(end), seen));
            self.forgotten = true;
        }
        self.breaks.push_back(broken);
    }

    /// Changes up to a moment are not kept.
    pub fn forget(&mut self, until: SystemTime, seen: Revision) {
        if let Some((since, _)) = self.since.filter(|(since, _)| *since <= until) {
            self.since = Some((until.max(since), seen));
            self.forgotten = true;
        }
    }

    /// The beginning of what is known, and the revision of then. Fails if a moment is unknown.
    fn check(&self, time: SystemTime, now: SystemTime) -> Result<(SystemTime, Revision), Unknown> {
        let shown = humantime::format_rfc3339_millis;
        if time > now {
            return Err(Unknown(format!("{} has not come yet", shown(time))));
        }
        let Some((since, seen)) = self.since else {
            return Err(Unknown("this mount has not loaded the cell yet".to_owned()));
        };
        if time < since {
            return Err(Unknown(match self.forgotten {
                true => {
                    format!("this mount keeps the changes since {} only (--history, --history-memory)", shown(since))
                }
                false => format!("this mount has known the cell since {} only", shown(since)),
            }));
        }
        let in_break =
            |(begin, end): &&(SystemTime, Option<SystemTime>)| *begin < time && end.is_none_or(|end| time < end);
        match self.breaks.iter().find(in_break) {
            None => Ok((since, seen)),
            Some((begin, end)) => {
                let end = end.map_or_else(|| "now".to_owned(), |end| shown(end).to_string());
                Err(Unknown(format!("what happened between {} and {end} was not seen in time", shown(*begin))))
            }
        }
    }
}

/// Records to put back, in this order.
type Undone = Vec<(TopoPath, Option<Record>)>;

impl Kept {
    /// What must be undone to come back to a moment, and the revision of the cell then.
    ///
    /// A call of this mount may have overtaken the watch: then the mirror has shown a change before an older one. The
    /// older one belongs to that moment, too, so it stays.
    pub(super) fn since(&self, cell: u64, time: SystemTime, now: SystemTime) -> Result<(Undone, Revision), Unknown> {
        let past = self.cells.get(&cell).ok_or_else(|| Unknown("the cell is no longer shown".to_owned()))?;
        let (since, mut seen) = past.sight.check(time, now)?;
        let mut later = Vec::new();
        for (number, (_, path)) in self.order.iter().rev().filter(|(_, (of, _))| *of == cell) {
            let changes = past.lines.get(path).map(|line| &line.changes);
            let change = changes.and_then(|all| all.get(all.partition_point(|change| change.number < *number)));
            let Some(change) = change else { continue };
            if change.when <= time {
                // What was before the beginning may be of another count.
                seen = if change.when < since { seen } else { seen.max(change.seen) };
                break;
            }
            later.push((path, change));
        }
        let undone = later.into_iter().filter(|(_, change)| change.at > seen);
        Ok((undone.map(|(path, change)| (path.clone(), change.old.clone())).collect(), seen))
    }
}
