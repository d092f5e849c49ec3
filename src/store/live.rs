//! The records of a connected cell: its mirror and its service, with the locks that protect records from concurrent
//! changes.

use std::sync::Arc;

use async_trait::async_trait;

use super::commits::{Commits, heard_alone};
use super::contract::{RespectLocks, Store, Stores};
use super::moment::{Guarded, Moment, Part, unless_let_go, with_guards, without_guards};
use crate::backend::{Action, Applied, Change, Fetched, Guard, Limits};
use crate::cells::{Cell, Cells};
use crate::control::Control;
use crate::error::{Error, Kind, Result};
use crate::locks::Locks;
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::process::Actor;
use crate::record::layout::{self, Key};
use crate::topology::cells::{Parting, after, may_part, refuse_overlap, refuse_rootless};

/// How often to try a change while the locks that guard it are being released.
pub(super) const LOCK_CHANGES: usize = 16;

/// The rules of a mount about the records of cells.
#[derive(Debug, Clone)]
pub struct CellRules {
    /// The cells that the mount shows.
    pub cells: Arc<Cells>,
    /// Where warnings go.
    pub control: Arc<Control>,
    /// Whether the record of a cell in use may be removed.
    pub force_removal: bool,
}

impl CellRules {
    /// The record of a cell was removed that may have been in use.
    fn warn(&self, cell: &CellName, path: &TopoPath, actor: Actor, why: &str) {
        let reason = format!("it is unknown whether the cell had serving keyspaces: {why}");
        tracing::warn!(%cell, %path, uid = actor.uid, pid = actor.process, reason, "the record of a cell was removed");
        self.control.events.record(cell, path.as_str(), "warning", &[("reason", reason.into())]);
    }
}

/// A cell, and the locks of this mount.
#[derive(Debug, Clone)]
pub struct Live {
    pub(super) at: Guarded,
    rules: Option<CellRules>,
}

impl Live {
    /// The records of a cell.
    pub fn new(cell: Arc<Cell>, locks: Arc<Locks>, respected: RespectLocks) -> Self {
        Self { at: Guarded { cell, locks, respected }, rules: None }
    }

    /// The same, with rules about the records of cells.
    pub fn with_rules(self, rules: CellRules) -> Self {
        Self { rules: Some(rules), ..self }
    }

    /// Refuses changes that the rules about the records of cells forbid: what counts is what all changes together leave
    /// behind. `all` are those of all cells. Returns why a removal that is allowed may be a mistake.
    pub(super) async fn refuse_by_rules(
        &self,
        changes: &[Change],
        all: &[Part<'_>],
    ) -> Result<Vec<(TopoPath, String)>> {
        let Some(rules) = self.rules.as_ref().filter(|_| self.at.cell.holds_global()) else { return Ok(Vec::new()) };
        let (mut doubts, mut aliases) = (Vec::new(), None);
        for change in changes {
            match (Key::in_global(&change.path), &change.action) {
                (Some(Key::CellInfo(name)), Action::Delete) if !rules.force_removal => {
                    let all: Vec<(&Cell, &[Change])> = all.iter().map(|part| (&*part.at.cell, part.changes)).collect();
                    if let Parting::Unknown(why) = may_part(&rules.cells, name, &all).await? {
                        doubts.push((change.path.clone(), why));
                    }
                }
                (Some(Key::CellsAlias(alias)), Action::Put(value)) => {
                    if aliases.is_none() {
                        let now = self.at.cell.records_now(&TopoPath::parse(layout::CELLS_ALIASES)?).await?;
                        aliases = Some(after(now, changes));
                    }
                    aliases.iter().try_for_each(|aliases| refuse_overlap(aliases, alias, value))?;
                }
                (Some(Key::CellInfo(_)), Action::Put(value)) => refuse_rootless(&change.path, value)?,
                _ => {}
            }
        }
        Ok(doubts)
    }

    /// Records were removed although it was unknown whether they may be.
    pub(super) fn warn(&self, doubts: &[(TopoPath, String)], actor: Actor) {
        for (rules, (path, why)) in doubts.iter().flat_map(|doubt| self.rules.iter().map(move |rules| (rules, doubt))) {
            rules.warn(&self.at.cell.name, path, actor, why);
        }
    }

    async fn commit_with_locks(&self, actor: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Applied> {
        for _ in 0..LOCK_CHANGES {
            if let Some(applied) = self.commit_once(actor, changes, commits).await? {
                return Ok(applied);
            }
        }
        let first = changes.first().map_or("", |change| change.path.as_str());
        Err(Error::new(Kind::Busy, format!("the locks above {}/{first} change too often", self.at.cell.name)))
    }

    /// One attempt of a commit; `None` if a lock that guarded it was released meanwhile, and nothing has changed.
    async fn commit_once(&self, actor: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Option<Applied>> {
        let part = Part { at: &self.at, changes };
        let Some(moment) = Moment::begin(&[part], actor).await? else { return Ok(None) };
        let apply = async {
            let fences = moment.fences((0, &part), actor)?;
            let guarded = with_guards(&fences, changes);
            let applied = unless_let_go(self.at.cell.apply(&guarded).await, &fences)?;
            let applied = applied.map(|applied| without_guards(applied, &fences));
            if let Some(applied) = &applied {
                self.at.cell.mirror.made(changes, applied, &actor.into());
            }
            Ok(applied)
        };
        let outcome = heard_alone(&self.at.cell.name, changes, commits, apply).await;
        moment.end().await;
        outcome
    }
}

/// The cells of a mount, and its locks.
#[derive(Debug)]
pub struct LiveCells {
    locks: Arc<Locks>,
    respected: RespectLocks,
    rules: CellRules,
}

impl LiveCells {
    /// The records of all cells of a mount.
    pub fn new(locks: Arc<Locks>, respected: RespectLocks, rules: CellRules) -> Self {
        Self { locks, respected, rules }
    }

    /// The records of a cell.
    pub fn live(&self, cell: &CellName) -> Option<Live> {
        let cell = self.rules.cells.get(cell)?;
        Some(Live::new(cell, self.locks.clone(), self.respected).with_rules(self.rules.clone()))
    }
}

impl Stores for LiveCells {
    fn cells(&self) -> Vec<CellName> {
        self.rules.cells.all().iter().map(|cell| cell.name.clone()).collect()
    }

    fn get(&self, cell: &CellName) -> Option<Arc<dyn Store>> {
        Some(Arc::new(self.live(cell)?))
    }
}

#[async_trait]
impl Store for Live {
    fn cell(&self) -> &CellName {
        &self.at.cell.name
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        self.at.cell.snapshot().await
    }

    fn snapshot_now(&self) -> Result<Arc<Snapshot>> {
        self.at.cell.snapshot_now()
    }

    fn known(&self) -> Arc<Snapshot> {
        self.at.cell.mirror.snapshot()
    }

    fn was_record(&self, path: &TopoPath) -> bool {
        let mirror = &self.at.cell.mirror;
        mirror.snapshot().records.contains_key(path) || mirror.gone().contains_key(path)
    }

    fn connected(&self) -> Option<&Arc<Cell>> {
        Some(&self.at.cell)
    }

    async fn fetch(&self, path: &TopoPath) -> Result<Fetched> {
        self.at.cell.fetch(path).await
    }

    /// Commits with the locks that concern the changes: the locks that this mount holds on directories above guard the
    /// transaction, and the commit takes the locks that a save must have.
    async fn commit(&self, actor: Actor, changes: &[Change], commits: &dyn Commits) -> Result<Applied> {
        let doubts = self.refuse_by_rules(changes, &[Part { at: &self.at, changes }]).await?;
        let applied = self.commit_with_locks(actor, changes, commits).await?;
        self.warn(&doubts, actor);
        Ok(applied)
    }

    /// Checks the locks at open, because shells ignore the errors of close.
    async fn refuse_early(&self, actor: Actor, path: &TopoPath) -> Result<()> {
        self.at.locks.fences(&self.at.cell, path, actor, &[])?;
        match self.at.needed_lock(path) {
            Some(dir) => self.at.locks.refuse_if_foreign(&self.at.cell, &dir).await,
            None => Ok(()),
        }
    }

    async fn refuse_removal(&self, actor: Actor, path: &TopoPath) -> Result<()> {
        self.refuse_early(actor, path).await?;
        let removal = Change { path: path.clone(), guard: Guard::Any, action: Action::Delete };
        self.refuse_by_rules(&[removal], &[]).await?;
        match self.at.keyspace_of(path) {
            Some(dir) => self.at.locks.refuse_if_foreign(&self.at.cell, &dir).await,
            None => Ok(()),
        }
    }

    fn limits(&self) -> Limits {
        self.at.cell.limits()
    }

    fn attributes(&self) -> &'static [&'static str] {
        self.at.cell.attributes()
    }

    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>> {
        self.at.cell.attribute(path, name).await
    }

    fn is_fresh(&self) -> bool {
        self.at.cell.mirror.is_fresh()
    }
}
