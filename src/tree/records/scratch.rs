//! Owns what exists in this mount only: scratch files and local directories. Must never keep anything that nobody is
//! charged with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::draft::Draft;
use crate::backend::Version;
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, CellPath, TopoPath};
use crate::store::Quota;
use crate::tree::file::ScratchId;

/// How long a directory stays visible after its last record was removed through this mount: long enough for `rm -r` to
/// come back to it.
pub const LINGER: Duration = Duration::from_secs(600);
/// Scratch files that remember what the mirror showed when they were made: each holds a state of a cell in memory.
/// Older scratch files do not replace a record that their process has not read.
const SEEN: usize = 256;
/// What a scratch file or local directory costs besides its content, in bytes.
const OVERHEAD: u64 = 512;

/// A file that is never stored.
#[derive(Debug)]
pub struct Scratch {
    /// Its identity.
    pub id: ScratchId,
    /// Its cell. It can be renamed only within that.
    pub cell: CellName,
    /// The user who is charged with it.
    charged: u32,
    /// What the mirror showed when the file was made: a save by rename must not overwrite anything else.
    seen: Mutex<Option<Arc<Snapshot>>>,
    /// The rest.
    pub state: Mutex<ScratchState>,
}

/// The changing part of a scratch file.
#[derive(Debug)]
pub struct ScratchState {
    /// The bytes.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last read, as set by utimens.
    pub accessed: SystemTime,
    /// Last write.
    pub modified: SystemTime,
    /// Last change of anything.
    pub changed: SystemTime,
    /// It has no name any more.
    pub unlinked: bool,
    /// It was renamed over a record: later writes go to this draft.
    pub adopted: Option<Arc<Draft>>,
    /// Open handles.
    pub handles: usize,
}

/// Something local at a place.
#[derive(Debug, Clone)]
pub enum Local {
    /// A directory. If it only lingers, it has an end.
    Dir {
        /// `None`: it was made by mkdir, and stays until rmdir.
        until: Option<Instant>,
        /// The user who has made it.
        uid: u32,
    },
    /// A scratch file.
    Scratch(Arc<Scratch>),
}

/// All that exists in this mount only.
#[derive(Debug)]
pub struct ScratchSpace {
    state: Mutex<State>,
    quota: Quota,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeMap<CellPath, Local>,
    /// Scratch files with a name or an open handle.
    files: HashMap<ScratchId, Arc<Scratch>>,
    next: u64,
    /// What is charged to each user.
    used_by: HashMap<u32, u64>,
    /// The newest scratch files. Only these remember what the mirror showed when they were made.
    newest: VecDeque<Weak<Scratch>>,
}

impl Scratch {
    /// The file is written anew: what the mirror shows now counts.
    pub fn renew(&self, seen: Arc<Snapshot>) {
        *self.seen.lock() = Some(seen);
    }

    /// The version of a record when the file was made; `Err` if that is no longer known.
    pub fn version_then(&self, path: &TopoPath) -> std::result::Result<Option<Version>, ()> {
        let seen = self.seen.lock();
        Ok(seen.as_ref().ok_or(())?.records.get(path).map(|record| record.version))
    }
}

impl Local {
    fn alive(&self) -> bool {
        match self {
            Local::Dir { until, .. } => until.is_none_or(|until| Instant::now() < until),
            Local::Scratch(_) => true,
        }
    }
}

impl State {
    fn get(&self, place: &CellPath) -> Option<&Local> {
        self.places.get(place).filter(|local| local.alive())
    }

    fn below<'a>(&'a self, above: &'a CellPath) -> impl Iterator<Item = (&'a CellPath, &'a Local)> {
        self.places
            .range(above.clone()..)
            .take_while(move |(at, _)| at.cell == above.cell && at.path.below(&above.path).is_some())
            .filter(move |(at, local)| *at != above && local.alive())
    }

    /// Puts something at a place. What was there before loses its name.
    fn put(&mut self, quota: &Quota, place: CellPath, local: Local) {
        self.vacate(quota, &place);
        self.places.insert(place, local);
    }

    /// Removes what is at a place, and refunds its charge. The content of a scratch file goes with its last open
    /// handle.
    fn vacate(&mut self, quota: &Quota, place: &CellPath) {
        match self.places.remove(place) {
            Some(Local::Dir { until: None, uid }) => self.refund(quota, uid, OVERHEAD),
            Some(Local::Scratch(file)) => {
                let open = {
                    let mut inner = file.state.lock();
                    inner.unlinked = true;
                    inner.changed = SystemTime::now();
                    inner.handles > 0
                };
                if !open {
                    self.drop_file(quota, file.id);
                }
            }
            // A lingering directory costs nothing.
            Some(Local::Dir { until: Some(_), .. }) | None => {}
        }
    }

    /// Fails if a file is gone, since it has lost its name and its last handle: a charge for it would never be
    /// refunded.
    fn require(&self, id: ScratchId) -> Result<()> {
        if self.files.contains_key(&id) { Ok(()) } else { Err(Error::not_found()) }
    }

    fn drop_file(&mut self, quota: &Quota, id: ScratchId) {
        if let Some(file) = self.files.remove(&id) {
            let content = file.state.lock().content.len() as u64;
            self.refund(quota, file.charged, OVERHEAD + content);
        }
    }

    fn refund(&mut self, quota: &Quota, uid: u32, bytes: u64) {
        quota.refund(uid, bytes);
        match self.used_by.get_mut(&uid) {
            Some(used) if *used > bytes => *used -= bytes,
            _ => drop(self.used_by.remove(&uid)),
        }
    }
}

impl ScratchSpace {
    /// Scratch space that is charged to a quota.
    pub fn new(quota: Quota) -> Self {
        Self { state: Mutex::default(), quota }
    }

    /// What is local at a place.
    pub fn get(&self, place: &CellPath) -> Option<Local> {
        self.state.lock().get(place).cloned()
    }

    /// Whether a place is a local directory, or something local is below it.
    pub fn has_dir(&self, place: &CellPath) -> bool {
        let state = self.state.lock();
        matches!(state.get(place), Some(Local::Dir { .. })) || state.below(place).next().is_some()
    }

    /// Whether anything local is below a place.
    pub fn has_children(&self, place: &CellPath) -> bool {
        self.state.lock().below(place).next().is_some()
    }

    /// The local entries of a directory: name, and the scratch file unless it is a directory.
    pub fn entries(&self, place: &CellPath) -> Vec<(String, Option<ScratchId>)> {
        let state = self.state.lock();
        let mut entries: Vec<(String, Option<ScratchId>)> = Vec::new();
        for (CellPath { path, .. }, local) in state.below(place) {
            let Some(rest) = path.below(&place.path) else { continue };
            let (name, deeper) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
            if entries.last().is_some_and(|(last, _)| last == name) {
                continue;
            }
            let file = match local {
                Local::Scratch(file) if !deeper => Some(file.id),
                _ => None,
            };
            entries.push((name.to_owned(), file));
        }
        entries
    }

    /// Makes a directory that stays until rmdir. A directory that only lingers becomes one that stays.
    pub fn make_dir(&self, place: CellPath, uid: u32) -> Result<()> {
        let mut state = self.state.lock();
        match state.get(&place) {
            None | Some(Local::Dir { until: Some(_), .. }) => {}
            Some(Local::Dir { until: None, .. } | Local::Scratch(_)) => return Err(exists()),
        }
        self.charge(&mut state, uid, OVERHEAD)?;
        state.put(&self.quota, place, Local::Dir { until: None, uid });
        Ok(())
    }

    /// Keeps showing a directory in which nothing is stored any more, if something in it exists in this mount only:
    /// whoever removes that comes back to the directory.
    pub fn linger_if_used(&self, place: &CellPath, uid: u32) {
        if self.has_children(place) {
            self.linger(place.clone(), uid);
        }
    }

    /// Keeps showing a directory for a while.
    pub fn linger(&self, place: CellPath, uid: u32) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.places.retain(|_, local| !matches!(local, Local::Dir { until: Some(until), .. } if *until < now));
        state.places.entry(place).or_insert(Local::Dir { until: Some(now + LINGER), uid });
    }

    /// Ends the lingering of a directory. Returns whether it lingered.
    pub fn end_linger(&self, place: &CellPath) -> bool {
        let mut state = self.state.lock();
        let lingers = matches!(state.places.get(place), Some(Local::Dir { until: Some(_), .. }));
        if lingers {
            state.vacate(&self.quota, place);
        }
        lingers
    }

    /// A record is stored: the directories above it no longer exist in this mount only.
    pub fn made_real(&self, cell: &CellName, path: &TopoPath) {
        let mut state = self.state.lock();
        let mut dir = path.parent();
        while let Some(path) = dir {
            dir = path.parent();
            let place = CellPath { cell: cell.clone(), path };
            if matches!(state.places.get(&place), Some(Local::Dir { .. })) {
                state.vacate(&self.quota, &place);
            }
        }
    }

    /// Removes a directory. Returns whether there was one.
    pub fn remove_dir(&self, place: &CellPath) -> bool {
        let mut state = self.state.lock();
        let there = matches!(state.places.get(place), Some(Local::Dir { .. }));
        if there {
            state.vacate(&self.quota, place);
        }
        there
    }

    /// A scratch file to open: the one that exists, unless `exclusive` forbids that, or a new one.
    pub fn open_or_create(
        &self,
        place: CellPath,
        seen: Arc<Snapshot>,
        owner: (u32, u32, u32),
        exclusive: bool,
    ) -> Result<Arc<Scratch>> {
        let mut state = self.state.lock();
        match state.get(&place) {
            Some(Local::Scratch(file)) if !exclusive => Ok(file.clone()),
            Some(Local::Scratch(_)) => Err(exists()),
            Some(Local::Dir { .. }) => Err(Error::new(Kind::IsDirectory, "is a directory")),
            None => self.create(&mut state, place, seen, owner),
        }
    }

    /// A new scratch file in the place of whatever was there.
    pub fn replace(&self, place: CellPath, seen: Arc<Snapshot>, owner: (u32, u32, u32)) -> Result<Arc<Scratch>> {
        self.create(&mut self.state.lock(), place, seen, owner)
    }

    fn create(
        &self,
        state: &mut State,
        place: CellPath,
        seen: Arc<Snapshot>,
        (uid, gid, mode): (u32, u32, u32),
    ) -> Result<Arc<Scratch>> {
        let now = SystemTime::now();
        self.charge(state, uid, OVERHEAD)?;
        state.next += 1;
        let inner = ScratchState {
            content: Vec::new(),
            mode,
            uid,
            gid,
            accessed: now,
            modified: now,
            changed: now,
            unlinked: false,
            adopted: None,
            handles: 0,
        };
        let (id, seen) = (ScratchId(state.next), Mutex::new(Some(seen)));
        let cell = place.cell.clone();
        let file = Arc::new(Scratch { id, cell, charged: uid, seen, state: Mutex::new(inner) });
        state.newest.push_back(Arc::downgrade(&file));
        if state.newest.len() > SEEN
            && let Some(older) = state.newest.pop_front().and_then(|older| older.upgrade())
        {
            *older.seen.lock() = None;
        }
        state.files.insert(file.id, file.clone());
        state.put(&self.quota, place, Local::Scratch(file.clone()));
        Ok(file)
    }

    /// A scratch file by its identity, also one that has lost its name but is still open.
    pub fn file(&self, id: ScratchId) -> Option<Arc<Scratch>> {
        self.state.lock().files.get(&id).cloned()
    }

    /// Where a scratch file is; `None` when it has lost its name.
    pub fn place(&self, id: ScratchId) -> Option<CellPath> {
        let state = self.state.lock();
        let found = state.places.iter().find(|(_, local)| matches!(local, Local::Scratch(file) if file.id == id));
        found.map(|(place, _)| place.clone())
    }

    /// Removes the name of a scratch file. Its content goes with the last open handle.
    pub fn unlink(&self, place: &CellPath) {
        let mut state = self.state.lock();
        if matches!(state.places.get(place), Some(Local::Scratch(_))) {
            state.vacate(&self.quota, place);
        }
    }

    /// Moves a scratch file to another name. Whatever has that name loses it.
    pub fn rename(&self, from: &CellPath, to: CellPath) {
        if *from == to {
            return;
        }
        let mut state = self.state.lock();
        if let Some(local) = state.places.remove(from) {
            state.put(&self.quota, to, local);
        }
    }

    /// Moves a local directory with all that is local below it.
    pub fn rename_dir(&self, from: &CellPath, to: &CellPath) -> Result<()> {
        let mut state = self.state.lock();
        let mut moved = vec![from.path.clone()];
        moved.extend(state.below(from).map(|(at, _)| at.path.clone()));
        let target = |path: TopoPath| match path.below(&from.path) {
            Some("") | None => Ok((path, to.path.clone())),
            Some(rest) => TopoPath::parse(&format!("{}/{rest}", to.path)).map(|target| (path, target)),
        };
        // All of it or nothing: a new name may be too long.
        let moved: Vec<_> = moved.into_iter().map(target).collect::<std::result::Result<_, _>>()?;
        for (path, target) in moved {
            if let Some(local) = state.places.remove(&CellPath { cell: from.cell.clone(), path }) {
                state.put(&self.quota, CellPath { cell: to.cell.clone(), path: target }, local);
            }
        }
        Ok(())
    }

    /// Changes the content. The new length is charged against the quota before the change is made. If the file has
    /// become a record, nothing is changed here, and the draft to change instead is returned.
    pub fn edit(
        &self,
        file: &Scratch,
        length: impl FnOnce(usize) -> usize,
        edit: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Option<Arc<Draft>>> {
        let mut state = self.state.lock();
        let mut inner = file.state.lock();
        if let Some(draft) = &inner.adopted {
            return Ok(Some(draft.clone()));
        }
        state.require(file.id)?;
        let (before, after) = (inner.content.len(), length(inner.content.len()));
        if after > before {
            self.charge(&mut state, file.charged, (after - before) as u64)?;
        } else {
            state.refund(&self.quota, file.charged, (before - after) as u64);
        }
        edit(&mut inner.content);
        debug_assert_eq!(inner.content.len(), after);
        inner.modified = SystemTime::now();
        inner.changed = inner.modified;
        Ok(None)
    }

    /// Counts an open handle. Fails if the file has lost its name meanwhile, so that nobody is charged with it any
    /// more.
    pub fn opened(&self, file: &Scratch) -> Result<()> {
        let state = self.state.lock();
        state.require(file.id)?;
        file.state.lock().handles += 1;
        Ok(())
    }

    /// Ends an open handle.
    pub fn closed(&self, file: &Scratch) {
        let mut state = self.state.lock();
        let gone = {
            let mut inner = file.state.lock();
            inner.handles = inner.handles.saturating_sub(1);
            inner.unlinked && inner.handles == 0
        };
        if gone {
            state.drop_file(&self.quota, file.id);
        }
    }

    fn charge(&self, state: &mut State, uid: u32, bytes: u64) -> Result<()> {
        self.quota.charge(uid, bytes)?;
        *state.used_by.entry(uid).or_default() += bytes;
        Ok(())
    }

    /// Bytes that may be used, and bytes used.
    pub fn usage(&self) -> (u64, u64) {
        self.quota.usage()
    }

    /// All scratch files with their places, and the number of local directories.
    pub fn survey(&self) -> (Vec<CellPath>, usize) {
        let state = self.state.lock();
        let alive = || state.places.iter().filter(|(_, local)| local.alive());
        let files = alive().filter(|(_, local)| matches!(local, Local::Scratch(_))).map(|(place, _)| place.clone());
        (files.collect(), alive().filter(|(_, local)| matches!(local, Local::Dir { .. })).count())
    }
}

/// What is left is charged to nobody any more.
impl Drop for ScratchSpace {
    fn drop(&mut self) {
        self.state.get_mut().used_by.drain().for_each(|(uid, bytes)| self.quota.refund(uid, bytes));
    }
}

fn exists() -> Error {
    Error::new(Kind::Exists, "exists already")
}

#[cfg(test)]
mod tests;
