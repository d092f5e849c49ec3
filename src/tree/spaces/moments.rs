//! Earlier moments in `.topofs/at`, by their names: nobody makes or removes them. Owns which of them have files that
//! the kernel may know. Must never keep records: `store::moments` does, and reads them again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::WRITE_MODE;
use super::about::{Missing, OfSnapshot};
use super::inside::Inside;
use crate::cells::Cells;
use crate::error::{Error, Kind, Result};
use crate::store::moments::{Moment, MomentCells, Moments, Named};
use crate::tree::caller::Caller;
use crate::tree::file::{Defaults, SpaceId, SpaceKind};
use crate::tree::records::RecordFiles;

/// How many moments have files at the same time. A further one takes the place of one that was not looked up for
/// longest; who is inside of that has to come again by its path.
const MOST: usize = 256;

/// The moments whose files may be known to the kernel.
#[derive(Debug)]
pub(super) struct MomentSpaces {
    moments: Arc<Moments>,
    known: parking_lot::Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    spaces: HashMap<Arc<str>, (Arc<Inside>, u64)>,
    /// Counts lookups.
    lookups: u64,
}

impl MomentSpaces {
    pub fn new(cells: Arc<Cells>) -> Self {
        Self { moments: Moments::new(cells), known: parking_lot::Mutex::default() }
    }

    /// The tree of a file.
    pub fn get(&self, id: &SpaceId) -> Option<Arc<Inside>> {
        let known = self.known.lock();
        known.spaces.get(&id.name).map(|(space, _)| space).filter(|space| space.id == *id).cloned()
    }

    /// The tree of a moment, by its name; `None` if the name says nothing of the kind. It has been read when this
    /// returns.
    pub async fn find(&self, caller: &Caller, name: &str, records: &RecordFiles) -> Result<Option<Arc<Inside>>> {
        let moment = match Moment::of_name(name) {
            Named::Moment(moment) => moment,
            Named::Claim(reason) => return Err(Error::new(Kind::NotKept, reason)),
            Named::Free => return Ok(None),
        };
        let read = self.moments.get(moment, caller.uid).await?;
        // The same moment has the same files, also if it is made anew. After a restoration, the number of a revision
        // means another one.
        let id = SpaceId { kind: SpaceKind::At, name: name.into(), serial: self.moments.restorations() };
        let mut known = self.known.lock();
        known.lookups += 1;
        let lookups = known.lookups;
        if let Some((space, last)) = known.spaces.get_mut(name).filter(|(space, _)| space.id == id) {
            *last = lookups;
            return Ok(Some(space.clone()));
        }
        let cells = Arc::new(MomentCells::new(self.moments.clone(), moment, caller.uid, &read));
        let mounted = match moment {
            Moment::Time(time) => time,
            Moment::Revision(_) => SystemTime::UNIX_EPOCH,
        };
        let defaults = Defaults { umask: records.defaults.umask | WRITE_MODE, mounted, ..records.defaults };
        let missing =
            read.missing.iter().map(|(cell, why)| Missing { cell: cell.clone(), since: None, why: why.clone() });
        let tells = Arc::new(OfSnapshot::new(missing.collect()));
        let space = Inside::new((id.clone(), caller.uid), records.beside(id, cells, defaults), tells);
        let space = Arc::new(space);
        if known.spaces.len() >= MOST {
            let oldest = known.spaces.iter().min_by_key(|(_, (_, last))| *last).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| known.spaces.remove(&oldest));
        }
        known.spaces.insert(name.into(), (space.clone(), lookups));
        Ok(Some(space))
    }
}

/// Refuses a name for something that is made, if it says another moment than the one at which it is made.
pub(super) fn refuse_claim(name: &str) -> Result<()> {
    let reason = match Moment::of_name(name) {
        Named::Free => return Ok(()),
        Named::Moment(moment) => {
            format!("{name} stands for {moment}, which is not made: give the snapshot another name")
        }
        Named::Claim(reason) => format!("{name} looks like a moment; {reason}: give the snapshot another name"),
    };
    Err(Error::new(Kind::Invalid, reason))
}
