//! Moments of the past that were asked for by name: reads them, shares what was read, and keeps a few. Must never keep
//! more than its bounds, nor read the same moment twice at the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::alive;
use crate::cells::{Cells, Earlier};
use crate::error::{Error, Kind, Result};

mod cells;
mod name;
mod shelf;

pub use cells::MomentCells;
pub use name::{Moment, Named};
use shelf::Shelf;

/// How long a read may take in all. Each of its calls has the time limit of a call; a million records take seconds.
const LONGEST_READ: Duration = Duration::from_secs(300);
/// How many moments may be being read at the same time for one user, and for all.
const READS: (usize, usize) = (2, 6);

/// Moments that somebody looks at.
#[derive(Debug)]
pub struct Moments {
    cells: Arc<Cells>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    shelf: Shelf<Point, Arc<Earlier>>,
    reads: HashMap<Point, Read>,
}

/// What was asked for: a revision means something else after a restoration of the service.
type Point = (Moment, u64);

/// A read under way.
#[derive(Debug)]
struct Read {
    uid: u32,
    outcome: Outcome,
}

type Outcome = watch::Receiver<Option<Result<Arc<Earlier>>>>;

impl Moments {
    /// The moments of a mount.
    pub fn new(cells: Arc<Cells>) -> Arc<Self> {
        Arc::new(Self { cells, known: Mutex::default() })
    }

    /// A moment that is kept.
    pub fn get_now(&self, moment: Moment) -> Option<Arc<Earlier>> {
        self.known.lock().shelf.get(&self.point(moment))
    }

    /// A moment, for a user. If it is not kept, it is read; a read that takes longer than a call goes on, but this
    /// caller stops waiting.
    pub async fn get(self: &Arc<Self>, moment: Moment, uid: u32) -> Result<Arc<Earlier>> {
        let mut outcome = match self.begin(moment, uid)? {
            Begun::Kept(earlier) => return Ok(earlier),
            Begun::Reading(outcome) => outcome,
        };
        let patience = self.cells.timeout();
        match tokio::time::timeout(patience, outcome.wait_for(Option::is_some)).await {
            // A panic in the read drops the sender.
            Ok(found) => found
                .ok()
                .and_then(|found| found.clone())
                .unwrap_or_else(|| Err(Error::new(Kind::Io, format!("{moment}: the read has ended")))),
            Err(_) => {
                let waited = humantime::format_duration(patience);
                Err(Error::new(Kind::Unreachable, format!("{moment}: not read within {waited}; the read goes on")))
            }
        }
    }

    /// How often revisions have come to mean something else.
    pub fn restorations(&self) -> u64 {
        self.cells.restorations()
    }

    fn point(&self, moment: Moment) -> Point {
        (moment, self.restorations())
    }

    /// Takes what is kept, joins a read, or begins one.
    fn begin(self: &Arc<Self>, moment: Moment, uid: u32) -> Result<Begun> {
        let point = self.point(moment);
        let mut known = self.known.lock();
        if let Some(earlier) = known.shelf.get(&point) {
            return Ok(Begun::Kept(earlier));
        }
        if let Some(read) = known.reads.get(&point) {
            return Ok(Begun::Reading(read.outcome.clone()));
        }
        let own = known.reads.values().filter(|read| read.uid == uid).count();
        if own >= READS.0 || known.reads.len() >= READS.1 {
            let whose = if own >= READS.0 { "this user" } else { "all users" };
            return Err(Error::new(Kind::Busy, format!("{moment}: {whose} may not have more moments read at a time")));
        }
        let (found, outcome) = watch::channel(None);
        known.reads.insert(point, Read { uid, outcome: outcome.clone() });
        let moments = self.clone();
        tokio::spawn(async move {
            let read = alive::guarded(format!("a read of {moment}"), moments.read(moment)).await;
            let read = read.unwrap_or_else(|panic| Err(panic.into()));
            moments.end(point, uid, &read);
            found.send_replace(Some(read));
        });
        Ok(Begun::Reading(outcome))
    }

    /// What was read is kept before the read counts as ended, so that nobody reads it once more.
    fn end(&self, point: Point, uid: u32, read: &Result<Arc<Earlier>>) {
        let mut known = self.known.lock();
        if let Ok(earlier) = read {
            known.shelf.put(point, uid, earlier.bytes, earlier.clone());
        }
        known.reads.remove(&point);
    }

    async fn read(&self, moment: Moment) -> Result<Arc<Earlier>> {
        let read = async {
            match moment {
                Moment::Revision(revision) => self.cells.at_revision(revision, shelf::PER_USER).await,
                Moment::Time(time) => self.cells.at_time(time, shelf::PER_USER).await,
            }
        };
        match tokio::time::timeout(LONGEST_READ, read).await {
            Ok(read) => read.map(Arc::new),
            Err(_) => {
                let longest = humantime::format_duration(LONGEST_READ);
                Err(Error::new(Kind::Unreachable, format!("{moment}: not read within {longest}")))
            }
        }
    }
}

enum Begun {
    Kept(Arc<Earlier>),
    Reading(Outcome),
}
