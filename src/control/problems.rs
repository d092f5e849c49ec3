//! `.topofs/problems`: what is wrong with the records that the mirrors have. Asks no service. Finding out costs time,
//! so it never happens on the thread that answers the kernel, and not twice for the same records.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::alive;
use crate::cells::Cells;
use crate::error::Result;
use crate::topology::validate::{self, Fingerprint, Sight, Within};

/// The problems of a mount.
#[derive(Debug, Default)]
pub struct Problems {
    /// Held while somebody finds out, even if the reader has left: one at a time, so that no number of readers takes
    /// more than one processor.
    found: Arc<Mutex<Option<Found>>>,
    /// The size of the problems in the content at the last read. Notes do not count: scripts ask with `test -s` whether
    /// there are problems.
    size: AtomicUsize,
}

/// What was found last.
#[derive(Debug)]
struct Found {
    content: Bytes,
    /// The part of its size that is problems.
    weight: usize,
    of: Fingerprint,
    /// When the records were looked at.
    looked: Instant,
    /// When the same records may have another problem.
    until: Option<SystemTime>,
}

impl Found {
    fn is_true_of(&self, of: &Fingerprint, now: SystemTime) -> bool {
        self.of == *of && self.until.is_none_or(|until| now < until)
    }
}

impl Problems {
    /// One JSON object a line, for all records that the mirrors have now. Idle cells are not connected for this: a note
    /// says that nothing is known about them.
    pub async fn content(&self, cells: &Cells) -> Result<Bytes> {
        self.content_of(|| Sight::at_hand(cells)).await
    }

    /// The same, for all records that somebody sees.
    pub async fn content_of(&self, look: impl FnOnce() -> Result<Sight>) -> Result<Bytes> {
        let asked = Instant::now();
        let mut found = self.found.clone().lock_owned().await;
        // Those who have waited share what was begun after they came: nobody waits for the readers before.
        if let Some(known) = found.as_ref().filter(|known| known.looked > asked) {
            return Ok(known.content.clone());
        }
        let looked = Instant::now();
        let sight = match look() {
            Ok(sight) => sight,
            Err(error) => {
                let report = validate::unreachable(&error);
                self.size.store(report.weight(), Ordering::Relaxed);
                return Ok(report.lines().into());
            }
        };
        let (of, now) = (sight.fingerprint(), SystemTime::now());
        if let Some(known) = found.as_mut().filter(|known| known.is_true_of(&of, now)) {
            known.looked = looked;
            self.size.store(known.weight, Ordering::Relaxed);
            return Ok(known.content.clone());
        }
        let (content, weight) = find(found, (sight, of), (looked, now)).await?;
        self.size.store(weight, Ordering::Relaxed);
        Ok(content)
    }

    /// The size of the problems at the last read. Anybody may ask for it at any rate.
    pub fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }
}

/// Finds out on a thread that nobody waits for but the readers of this file.
async fn find(
    mut found: OwnedMutexGuard<Option<Found>>,
    (sight, of): (Sight, Fingerprint),
    (looked, now): (Instant, SystemTime),
) -> Result<(Bytes, usize)> {
    // If it panics, nothing was found, which does not mean that there is nothing.
    alive::blocking("problems of the topology", move || {
        let report = validate::problems(&sight, Within::default(), now);
        let (content, weight) = (Bytes::from(report.lines()), report.weight());
        *found = Some(Found { content: content.clone(), weight, of, looked, until: report.until });
        (content, weight)
    })
    .await
}
