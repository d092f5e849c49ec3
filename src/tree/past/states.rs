//! The states of one record: those that this mount remembers and those that the service still has, as one list, and the
//! names of their files. Must never give one name to two states.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::{Earlier, Revision, Version};
use crate::cells::Cell;
use crate::error::Result;
use crate::mirror::{Maker, Past};
use crate::name::TopoPath;

/// The end of the name of a deletion.
pub(super) const DELETED: &str = ".deleted";

/// One state of a record.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// The name of its file, without the end for a form.
    pub name: Arc<str>,
    pub at: Revision,
    /// The stored bytes, and their version; `None` if the record was deleted.
    pub record: Option<(Bytes, Version)>,
    /// Later than that of the state before. If nobody knows the time, it is not far from 1970.
    pub time: SystemTime,
    /// The latest time at which it can have come to be, and whether that is the time.
    pub known: Option<(SystemTime, bool)>,
    /// Whether nothing was between it and the one before.
    pub follows: bool,
    pub by: Option<Maker>,
    /// Whether this mount would know if it had made the change.
    pub is_watched: bool,
}

/// All known states of a record, the oldest first.
#[derive(Debug, Default)]
pub(super) struct States {
    pub all: Vec<State>,
    /// False if the service may have more of them.
    pub is_whole: bool,
}

impl States {
    /// What the mount remembers, and what the service has. `children` are names that the directory needs for others.
    pub fn new(past: Vec<Past>, earlier: Option<&Earlier>, children: &[String]) -> Self {
        let mut all: Vec<State> = past.into_iter().map(remembered).collect();
        if let Some(earlier) = earlier {
            for (index, state) in earlier.states.iter().enumerate() {
                let is_same =
                    |known: &&mut State| known.at == state.at && known.record.is_none() == state.node.is_none();
                match all.iter_mut().find(is_same) {
                    Some(known) => known.follows |= index > 0,
                    None => all.push(State {
                        name: "".into(),
                        at: state.at,
                        record: state.node.as_ref().map(|node| (node.value.clone(), node.version)),
                        time: SystemTime::UNIX_EPOCH,
                        known: None,
                        follows: index > 0,
                        by: None,
                        is_watched: false,
                    }),
                }
            }
            all.sort_by_key(|state| state.at);
            // A list shows only that a record is gone by then; the service knows when it went.
            let mut was_deleted = false;
            all.retain(|state| {
                let again = was_deleted && state.record.is_none();
                was_deleted = state.record.is_none();
                !again
            });
        }
        set_times(&mut all);
        set_names(&mut all, children);
        Self { all, is_whole: earlier.is_none_or(|earlier| earlier.is_whole) }
    }

    /// The state of a name. The creation may always be said, too.
    pub fn find(&self, name: &str) -> Option<&State> {
        let whole = |state: &&State| state.record.as_ref().is_some_and(|(_, version)| with_creation(version) == name);
        self.all.iter().find(|state| *state.name == *name).or_else(|| self.all.iter().rev().find(whole))
    }
}

fn remembered(past: Past) -> State {
    let Past { at, record, time, is_exact, follows, by, is_watched } = past;
    let record = record.map(|record| (record.value, record.version));
    State { name: "".into(), at, record, time, known: Some((time, is_exact)), follows, by, is_watched }
}

/// Each has a later time than the one before; what is known of the time of one also bounds those before.
fn set_times(all: &mut [State]) {
    let mut last = SystemTime::UNIX_EPOCH;
    for state in all.iter_mut() {
        let wanted = state.known.map_or(last, |(time, _)| time);
        state.time = wanted.max(last + Duration::from_nanos(1));
        last = state.time;
    }
    let mut bound = None;
    for state in all.iter_mut().rev() {
        state.known = state.known.or(bound.map(|time| (time, false)));
        bound = state.known.map(|(time, _)| time);
    }
}

fn with_creation(version: &Version) -> String {
    format!("{}-{}", version.created.0, version.number)
}

/// A version is called by its number. On a service whose numbers begin again when a record is made again, those of a
/// later life have the creation before it: it is greater than all that were before, so names sort by age.
fn set_names(all: &mut [State], children: &[String]) {
    let mut taken: HashSet<String> = children.iter().cloned().collect();
    // The greatest number so far, the creation of the present life, and whether its numbers are taken already.
    let (mut greatest, mut life) = (None, (None, false));
    for state in all.iter_mut() {
        let wanted = match &state.record {
            None => format!("{}{DELETED}", state.at.0),
            Some((_, version)) => {
                if life.0 != Some(version.created) {
                    life = (Some(version.created), greatest.is_some_and(|greatest| version.number <= greatest));
                }
                greatest = greatest.max(Some(version.number));
                if life.1 { with_creation(version) } else { version.number.to_string() }
            }
        };
        let mut name = wanted.clone();
        let mut copies = 1;
        // A service that was restored, or a child of that name.
        while !taken.insert(name.clone()) {
            copies += 1;
            name = match wanted.strip_suffix(DELETED) {
                Some(number) => format!("{number}~{copies}{DELETED}"),
                None => format!("{wanted}~{copies}"),
            };
        }
        state.name = name.into();
    }
}

/// What services have told a moment ago: a program that lists a directory then asks for each file in it.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<Told>>);

#[derive(Debug)]
struct Told {
    cell: Arc<Cell>,
    path: TopoPath,
    present: Option<Version>,
    when: Instant,
    earlier: Option<Arc<Earlier>>,
}

impl Told {
    fn bytes(&self) -> usize {
        let states = self.earlier.iter().flat_map(|earlier| &earlier.states);
        states.map(|state| state.node.as_ref().map_or(0, |node| node.value.len())).sum()
    }
}

/// How long it counts. A compaction in between is seen as late as this.
const MOMENT: Duration = Duration::from_secs(1);
/// Number of records to keep it of.
const RECORDS: usize = 16;
/// Bytes to keep.
const BYTES: usize = 64 << 20;

impl Recent {
    /// The states that the service has, for a record that has this version now.
    pub async fn earlier(
        &self,
        cell: &Arc<Cell>,
        path: &TopoPath,
        present: Option<Version>,
    ) -> Result<Option<Arc<Earlier>>> {
        let is_it = |told: &&Told| Arc::ptr_eq(&told.cell, cell) && told.path == *path && told.present == present;
        {
            let mut all = self.0.lock();
            all.retain(|told| told.when.elapsed() < MOMENT);
            if let Some(told) = all.iter().find(is_it) {
                return Ok(told.earlier.clone());
            }
        }
        let when = Instant::now();
        let earlier = cell.earlier(path).await?.map(Arc::new);
        if earlier.is_some() {
            let told = Told { cell: cell.clone(), path: path.clone(), present, when, earlier: earlier.clone() };
            let mut all = self.0.lock();
            all.push_back(told);
            while all.len() > RECORDS || all.iter().map(Told::bytes).sum::<usize>() > BYTES {
                all.pop_front();
            }
        }
        Ok(earlier)
    }
}

#[cfg(test)]
mod tests;
