//! Stores what a rebuild computes, in all cells at once. Must never write a cell of which it does not know whether
//! traffic is being moved there, and never overwrite what it has not seen.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join_all;
use prost_reflect::DynamicMessage;

use super::graph::{self, SrvKeyspace};
use super::lock::{Patience, TopologyLock, interrupted, under_lock};
use super::vschema;
use crate::backend::{Action, Change, Fetched, Guard, Node};
use crate::cells::{Cell, Cells, Joints};
use crate::error::{Error, Kind, Result};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::Codec;
use crate::record::layout::{self, Key};

/// The action in the text of the lock, as Vitess writes it.
const ACTION: &str = "RebuildKeyspace";
/// How often to begin again because somebody else has changed the same records meanwhile.
const ATTEMPTS: usize = 16;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It did not exist.
    Created,
    /// It has a new value.
    Updated,
    /// It was the same already.
    Unchanged,
    /// It no longer exists.
    Removed,
    /// The cell does not answer, and need not.
    Left,
}

impl Done {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Done::Created => "created",
            Done::Updated => "updated",
            Done::Unchanged => "unchanged",
            Done::Removed => "removed",
            Done::Left => "left: the cell does not answer",
        }
    }
}

/// What became of the record of one cell.
#[derive(Debug)]
pub struct Outcome {
    /// The cell.
    pub cell: String,
    /// The record.
    pub path: TopoPath,
    /// What was done, or why nothing was.
    pub done: Result<Done>,
}

/// The rebuilds of one command.
#[derive(Debug)]
pub struct Rebuild<'a> {
    cells: &'a Arc<Cells>,
    codec: &'a Codec,
    /// The cells to write; all if empty.
    chosen: &'a [String],
    patience: Patience,
    joints: Joints,
}

/// A cell to write, or why it cannot be.
type Target = (String, Result<Arc<Cell>>);

impl<'a> Rebuild<'a> {
    /// Rebuilds for some cells, or for all that have a directory in `cells` if none are named.
    pub fn new(cells: &'a Arc<Cells>, codec: &'a Codec, chosen: &'a [String], patience: Patience) -> Self {
        Self { cells, codec, chosen, patience, joints: Joints::default() }
    }

    /// Rebuilds the SrvKeyspace of a keyspace, under the lock of the keyspace. An error of the whole means that nothing
    /// was written.
    pub async fn keyspace(&self, keyspace: &str, allow_partial: bool) -> Result<Vec<Outcome>> {
        graph::refuse_name(keyspace)?;
        let dir = layout::keyspace(keyspace)?;
        let global = self.global()?;
        let locked = under_lock(&global, &dir, ACTION, &self.patience, async |lock| {
            let records = global.records_now(&dir).await?;
            let rebuilt = graph::srv_keyspace(self.codec, &records, keyspace, allow_partial)?;
            self.write_keyspace(keyspace, &rebuilt, lock).await
        });
        match locked.await {
            // There is nothing that could be locked.
            Err(error) if error.kind == Kind::NotFound => Err(graph::is_missing(Key::Keyspace(keyspace))),
            locked => locked,
        }
    }

    async fn write_keyspace(
        &self,
        keyspace: &str,
        rebuilt: &SrvKeyspace,
        lock: &TopologyLock<'_>,
    ) -> Result<Vec<Outcome>> {
        let path = Key::SrvKeyspace(keyspace).path()?;
        let targets = self.targets()?;
        let stored = join_all(targets.iter().map(|(name, cell)| self.stored_keyspace(name, cell, &path))).await;
        // As in Vitess, one cell of which this is not known stops the whole. A cell that does not exist does not.
        let unknown = |found: &&Result<_>| found.as_ref().is_err_and(|error| error.kind != Kind::NotFound);
        if let Some(Err(error)) = stored.iter().find(unknown) {
            let known = targets.iter().zip(&stored).filter(|(_, found)| found.is_ok());
            let known: Vec<&str> = known.map(|((name, _), _)| name.as_str()).collect();
            return Err(nothing_written(error, &known));
        }
        let at = &path;
        let writes = targets.iter().zip(stored).map(|((name, cell), stored)| async move {
            let done = match (cell, stored) {
                (Ok(cell), Ok(stored)) => self.write_srv_keyspace(cell, at, rebuilt, stored, lock).await,
                (_, Err(error)) => Err(error),
                (Err(error), Ok(_)) => Err(error.clone()),
            };
            Outcome { cell: name.clone(), path: at.clone(), done }
        });
        Ok(join_all(writes).await)
    }

    /// The SrvKeyspace of a cell as it is stored now. Fails if traffic is being moved there.
    async fn stored_keyspace(&self, name: &str, cell: &Result<Arc<Cell>>, path: &TopoPath) -> Result<Option<Node>> {
        let cell = cell.as_ref().map_err(Clone::clone)?;
        let Fetched { node, .. } = cell.fetch(path).await?;
        if let Some(node) = &node {
            graph::refuse_migration(self.codec, &CellName::new(name)?, path, &node.value)?;
        }
        Ok(node)
    }

    async fn write_srv_keyspace(
        &self,
        cell: &Arc<Cell>,
        path: &TopoPath,
        rebuilt: &SrvKeyspace,
        mut stored: Option<Node>,
        lock: &TopologyLock<'_>,
    ) -> Result<Done> {
        let is_same = |node: &Node| rebuilt.is_stored_as(self.codec, &node.value);
        for _ in 0..ATTEMPTS {
            if stored.as_ref().is_some_and(is_same) {
                return Ok(Done::Unchanged);
            }
            let change = self.put(path, stored.as_ref(), &rebuilt.message);
            match self.joints.apply(self.cells, cell, &lock.guard()?, &[change]).await {
                Ok(_) => return Ok(done(stored.as_ref())),
                Err(error) if is_unseen(&error) => {}
                Err(error) => return Err(error),
            }
            stored = self.stored_keyspace(cell.name.as_str(), &Ok(cell.clone()), path).await?;
        }
        Err(changes_too_often(cell, path))
    }

    /// Rebuilds the SrvVSchema. Vitess takes no lock for this, so what is stored is compared and swapped: first the
    /// stored versions are read, then what they are computed from. So an older rebuild never replaces a newer one, and
    /// if anything has changed meanwhile, all begins again.
    pub async fn vschema(&self) -> Result<Vec<Outcome>> {
        let global = self.global()?;
        tokio::select! {
            biased;
            () = self.patience.stop.cancelled() => Err(interrupted()),
            outcome = self.write_vschema(async || self.rebuilt_vschema(&global).await) => outcome,
        }
    }

    /// The work of [`Rebuild::vschema`], given what computes the record from its sources as they are now.
    pub(super) async fn write_vschema(
        &self,
        rebuilt: impl AsyncFn() -> Result<DynamicMessage>,
    ) -> Result<Vec<Outcome>> {
        let path = Key::SrvVSchema.path()?;
        let targets = self.targets()?;
        if targets.is_empty() {
            return Err(Error::new(Kind::NotFound, "the topology has no cells: global/cells is empty"));
        }
        let (mut open, mut outcomes) = (Vec::new(), Vec::new());
        for (name, cell) in targets {
            match cell {
                Ok(cell) => open.push(cell),
                Err(error) => outcomes.push(Outcome { cell: name, path: path.clone(), done: Err(error) }),
            }
        }
        for _ in 0..ATTEMPTS {
            if open.is_empty() {
                return Ok(outcomes);
            }
            let stored = join_all(open.iter().map(|cell| cell.fetch(&path))).await;
            let message = rebuilt().await?;
            let (at, to_store) = (&path, &message);
            let writes = open.iter().zip(stored).map(|(cell, stored)| async move {
                let node = stored?.node;
                self.write_srv_vschema(cell, at, to_store, node.as_ref()).await
            });
            let written = join_all(writes).await;
            let (mut is_complete, mut kept) = (true, Vec::new());
            for (cell, written) in open.into_iter().zip(written) {
                is_complete &= !matches!(written, Ok(None));
                let note_done = |done| Outcome { cell: cell.name.to_string(), path: path.clone(), done };
                if let Some(done) = written.transpose() {
                    // A cell that has failed is not asked again: it may cost a whole time-out each time.
                    let is_over = done.is_err();
                    note(&mut outcomes, note_done(done));
                    if is_over {
                        continue;
                    }
                }
                kept.push(cell);
            }
            open = kept;
            if rebuilt().await? == message && is_complete {
                return Ok(outcomes);
            }
        }
        Err(Error::new(Kind::Conflict, "the VSchemas and rules change too often: run it again"))
    }

    pub(super) async fn rebuilt_vschema(&self, global: &Cell) -> Result<DynamicMessage> {
        vschema::srv_vschema(self.codec, &global.records_now(&TopoPath::root()).await?)
    }

    /// Stores the record in a cell; `None` if somebody else has stored one meanwhile.
    async fn write_srv_vschema(
        &self,
        cell: &Cell,
        path: &TopoPath,
        rebuilt: &DynamicMessage,
        stored: Option<&Node>,
    ) -> Result<Option<Done>> {
        if stored.is_some_and(|node| vschema::is_stored_as(self.codec, rebuilt, &node.value)) {
            return Ok(Some(Done::Unchanged));
        }
        match cell.apply(&[self.put(path, stored, rebuilt)]).await {
            Ok(_) => Ok(Some(done(stored))),
            Err(error) if is_unseen(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn put(&self, path: &TopoPath, stored: Option<&Node>, message: &DynamicMessage) -> Change {
        let guard = stored.map_or(Guard::Absent, |node| Guard::Version(node.version));
        Change { path: path.clone(), guard, action: Action::Put(self.codec.encode(message)) }
    }

    fn global(&self) -> Result<Arc<Cell>> {
        self.cells.get(&CellName::global()).ok_or_else(Error::not_found)
    }

    /// The cells to write.
    fn targets(&self) -> Result<Vec<Target>> {
        let names: Vec<String> = if self.chosen.is_empty() {
            names_of_cells(&self.global()?.mirror.snapshot())
        } else {
            // Once each, in the order in which they were named.
            let mut seen = BTreeSet::new();
            self.chosen.iter().filter(|name| seen.insert(name.as_str())).cloned().collect()
        };
        Ok(names.into_iter().map(|name| (name.clone(), connected(self.cells, &name))).collect())
    }
}

/// The names of all cells: of every directory where Vitess looks for cells, as Vitess does.
fn names_of_cells(global: &Snapshot) -> Vec<String> {
    super::picture::names_in(global, layout::CELLS)
}

/// A cell by name. Says why it cannot be connected: ENOENT if it does not exist.
pub(super) fn connected(cells: &Cells, name: &str) -> Result<Arc<Cell>> {
    if name == CellName::GLOBAL {
        return Err(Error::new(Kind::Invalid, "global is the global topology, not a cell"));
    }
    if let Some(cell) = CellName::new(name).ok().and_then(|name| cells.get(&name)) {
        return Ok(cell);
    }
    match cells.hidden().get(name) {
        Some(reason) => Err(Error::new(Kind::Invalid, format!("cell {name}: {reason}"))),
        None => Err(Error::new(Kind::NotFound, format!("cell {name}: global/{} does not exist", Key::CellInfo(name)))),
    }
}

fn done(stored: Option<&Node>) -> Done {
    if stored.is_some() { Done::Updated } else { Done::Created }
}

/// Whether somebody else has changed the record meanwhile.
fn is_unseen(error: &Error) -> bool {
    matches!(error.kind, Kind::Conflict | Kind::Exists | Kind::NotFound)
}

fn changes_too_often(cell: &Cell, path: &TopoPath) -> Error {
    Error::new(Kind::Conflict, format!("{}/{path} changes too often: run it again", cell.name))
}

fn nothing_written(error: &Error, known: &[&str]) -> Error {
    let hint = match (error.kind, known) {
        (Kind::Unreachable | Kind::Denied | Kind::Invalid, [_, ..]) => {
            format!(". To rebuild the other cells, name them: --cells {}", known.join(","))
        }
        _ => String::new(),
    };
    Error::new(error.kind, format!("{}. Nothing was written{hint}", error.reason))
}

/// A later outcome of a cell replaces an earlier one, unless nothing was left to do.
fn note(outcomes: &mut Vec<Outcome>, outcome: Outcome) {
    match outcomes.iter_mut().find(|known| known.cell == outcome.cell) {
        Some(known) if matches!((&known.done, &outcome.done), (Ok(_), Ok(Done::Unchanged))) => {}
        Some(known) if matches!((&known.done, &outcome.done), (Ok(Done::Created), Ok(_))) => {}
        Some(known) => *known = outcome,
        None => outcomes.push(outcome),
    }
}
