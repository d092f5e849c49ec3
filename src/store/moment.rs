//! The locks of a commit: those that it must have are taken for its moment, in one order for everybody, and those of this
//! mount guard the transaction. Must never keep a lock for longer than the commit, also if the caller gives up.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::live::Live;
use crate::alive;
use crate::backend::{Action, Applied, Change};
use crate::error::{Error, Kind, Result};
use crate::locks::{Fence, Locks, Temporary};
use crate::name::TopoPath;
use crate::process::Actor;

/// The changes of a commit to one cell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub live: &'a Live,
    pub changes: &'a [Change],
}

/// The locks that a commit has taken. They are given back at the end.
#[derive(Debug)]
pub(super) struct Moment {
    locks: Option<Arc<Locks>>,
    /// Each with the number of its part.
    taken: Vec<(usize, Temporary)>,
}

impl Moment {
    /// Takes the locks that the changes need. Fails with EBUSY if somebody else has one of them; `None` if somebody has
    /// broken a lock that was only for this commit.
    pub async fn begin(parts: &[Part<'_>], actor: Actor) -> Result<Option<Self>> {
        let mut needed: Vec<(String, TopoPath, usize)> = Vec::new();
        for (number, Part { live, changes }) in parts.iter().enumerate() {
            let root = live.cell.location.clean_root();
            let dirs = changes.iter().filter_map(|change| live.needed_lock(&change.path));
            needed.extend(dirs.map(|dir| (root.clone(), dir, number)));
        }
        // In one fixed order, so that two commits cannot wait for each other. Cells with one place have one lock.
        needed.sort();
        needed.dedup_by(|one, other| (&one.0, &one.1) == (&other.0, &other.1));
        // The holder of a keyspace's lock may be working on anything below it, so nothing below it may be removed.
        for Part { live, changes } in parts {
            let root = live.cell.location.clean_root();
            for change in changes.iter().filter(|change| change.action == Action::Delete) {
                let is_taken = |dir: &TopoPath| needed.iter().any(|(at, needed, _)| *at == root && needed == dir);
                if let Some(keyspace) = live.keyspace_of(&change.path).filter(|dir| !is_taken(dir)) {
                    live.locks.refuse_if_foreign(&live.cell, &keyspace).await?;
                }
            }
        }
        let mut moment = Self { locks: parts.first().map(|part| part.live.locks.clone()), taken: Vec::new() };
        for (_, dir, number) in needed {
            let Some(Part { live, .. }) = parts.get(number) else { continue };
            match take(live, dir, actor).await {
                Ok(temporary) => moment.taken.push((number, temporary)),
                Err(error) => {
                    moment.end().await;
                    return if error.kind == Kind::LockLost { Ok(None) } else { Err(error) };
                }
            }
        }
        Ok(Some(moment))
    }

    /// The guards of the changes of one part: the same transaction checks that this mount still has the locks above
    /// them.
    pub fn fences(&self, (number, part): (usize, &Part<'_>), actor: Actor) -> Result<Vec<Fence>> {
        let taken = self.taken.iter().filter(|(of, _)| *of == number).map(|(_, temporary)| temporary);
        let taken: Vec<&Temporary> = taken.collect();
        let Part { live, changes } = part;
        let mut fences: Vec<Fence> = Vec::new();
        for change in *changes {
            for fence in live.locks.fences(&live.cell, &change.path, actor, &taken)? {
                if fences.iter().all(|known| known.change != fence.change) {
                    fences.push(fence);
                }
            }
        }
        Ok(fences)
    }

    /// Gives the locks back, and waits for that.
    pub async fn end(mut self) {
        let Some(locks) = self.locks.clone() else { return };
        while let Some((_, temporary)) = self.taken.pop() {
            locks.end_save(temporary).await;
        }
    }
}

/// Changes with the guards before them.
pub(super) fn with_guards(fences: &[Fence], changes: &[Change]) -> Vec<Change> {
    fences.iter().map(|fence| fence.change.clone()).chain(changes.iter().cloned()).collect()
}

/// What was applied to the changes alone.
pub(super) fn without_guards(mut applied: Applied, fences: &[Fence]) -> Applied {
    applied.versions.drain(..fences.len().min(applied.versions.len()));
    applied
}

/// `None` if a lock that guarded the changes was given back meanwhile: they may be tried again without it.
pub(super) fn unless_let_go<T>(outcome: Result<T>, fences: &[Fence]) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.kind == Kind::LockLost && fences.iter().any(Fence::was_let_go) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Takes one lock. If the caller gives up, it is given back.
async fn take(live: &Live, dir: TopoPath, actor: Actor) -> Result<Temporary> {
    let (tell, told) = oneshot::channel();
    let (locks, cell) = (live.locks.clone(), live.cell.clone());
    tokio::spawn(async move {
        let taken = alive::guarded("taking a lock for a commit", locks.for_save(&cell, &dir, actor)).await;
        if let Err(Ok(unwanted)) = tell.send(taken.unwrap_or_else(|panic| Err(panic.into()))) {
            locks.end_save(unwanted).await;
        }
    });
    told.await.map_err(|_| Error::new(Kind::Io, "the mount is ending"))?
}

impl Drop for Moment {
    fn drop(&mut self) {
        let (Some(locks), taken) = (self.locks.take(), std::mem::take(&mut self.taken)) else { return };
        if taken.is_empty() {
            return;
        }
        // The caller has given up, or the commit has panicked.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for (_, temporary) in taken.into_iter().rev() {
                    locks.end_save(temporary).await;
                }
            });
        }
    }
}
