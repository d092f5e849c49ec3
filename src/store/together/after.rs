//! What a commit that has failed has left behind, by looking: which records have changed since, and whether it has
//! failed at all.

use futures::{StreamExt, TryStreamExt};

use super::plan::Plan;
use super::{FindLive, cell_of};
use crate::backend::{Applied, Fetched, Node, Revision, Version};
use crate::error::{Error, Kind, Result, UNCERTAIN};
use crate::name::{CellName, CellPath};
use crate::process::Actor;
use crate::record::Records;
use crate::store::change_set::{ChangeSet, Staged};

/// How many records an error names.
const NAMED: usize = 20;
/// How many records are read at the same time.
const AT_ONCE: usize = 16;

/// What is stored of a change set, long after its commit has ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// No record is as it was to be.
    Nothing,
    /// These are, and others are not.
    Part(Vec<CellPath>),
    /// Every record is what it was to be: the commit was carried out. Its maker is noted.
    All,
}

/// Looks for what a commit has made of which nobody has heard the outcome. Sends nothing but questions; fails if they
/// are not answered. `actor` is who has made the commit.
pub async fn find_out(live: FindLive<'_>, records: &Records, set: &ChangeSet, actor: Actor) -> Result<Stored> {
    // The records of a cell that goes with the set cannot be looked at any more once it has gone.
    let goes = |cell: &CellName| {
        set.changes.iter().any(|staged| staged.now.is_none() && cell_of(staged) == Some(cell.as_str()))
    };
    let can_look = |staged: &&Staged| live(&staged.at.cell).is_some() || !goes(&staged.at.cell);
    let left = ChangeSet { changes: set.changes.iter().filter(can_look).cloned().collect(), ..set.clone() };
    let plan = Plan::new(live, records, &left)?;
    let found = plan.look().await?;
    let is_found = |(staged, found): &(&Staged, &Fetched)| is_staged(staged, found.node.as_ref());
    let stored: Vec<CellPath> = plan.pairs(&found).filter(is_found).map(|(staged, _)| staged.at.clone()).collect();
    if stored.is_empty() {
        return Ok(Stored::Nothing);
    }
    if stored.len() < plan.pairs(&found).count() {
        return Ok(Stored::Part(stored));
    }
    let applied: Vec<Applied> = found.iter().map(|cell| versions(cell, Revision(0))).collect();
    plan.note(&applied, actor);
    Ok(Stored::All)
}

impl Plan<'_> {
    /// What is staged, and what was found.
    fn pairs<'s>(&'s self, found: &'s [Vec<Fetched>]) -> impl Iterator<Item = (&'s Staged, &'s Fetched)> {
        self.staged.iter().flatten().copied().zip(found.iter().flatten())
    }

    /// Fails if it is known here that records have changed. The service alone would not notice all of it: if it was
    /// replaced by another, a record may have the same version there and be another one.
    pub async fn refuse_overtaken(&self) -> Result<()> {
        let is_overtaken = self.lives.iter().zip(&self.staged).any(|(live, staged)| {
            let shown = live.at.cell.mirror.snapshot();
            staged.iter().any(|staged| {
                let (base, now) = (staged.base.as_ref(), shown.records.get(&staged.at.path));
                base.map(|base| (base.version, &base.value)) != now.map(|now| (now.version, &now.value))
            })
        });
        if !is_overtaken {
            return Ok(());
        }
        // To name all of them, and to be sure.
        let found = self.look().await?;
        match self.pairs(&found).any(|(staged, found)| difference(staged, found.node.as_ref()).is_some()) {
            true => Err(self.conflict(Error::new(Kind::Conflict, "records have changed"), &found)),
            false => Ok(()),
        }
    }

    /// The error of a commit, with all records that were in its way; or what it has made, if only its answer was lost.
    pub async fn after(&self, error: Error) -> Result<Vec<Applied>> {
        let is_conflict = matches!(error.kind, Kind::NotFound | Kind::Exists | Kind::Conflict);
        if !is_conflict && !error.is_uncertain() {
            return Err(error);
        }
        // Without a look, nobody can name the records.
        let Ok(found) = self.look().await else {
            return Err(if is_conflict { Error { kind: Kind::Conflict, ..error } } else { error });
        };
        if error.is_uncertain()
            && let Some(applied) = self.made(&found)
        {
            tracing::warn!(error = error.reason, "the answer to a commit was lost, but it was carried out");
            return Ok(applied);
        }
        Err(if is_conflict { self.conflict(error, &found) } else { error })
    }

    /// The records as the service has them now, by cell.
    async fn look(&self) -> Result<Vec<Vec<Fetched>>> {
        let mut all = Vec::new();
        for (live, staged) in self.lives.iter().zip(&self.staged) {
            let fetch = |staged: &&Staged| {
                let (cell, path) = (live.at.cell.clone(), staged.at.path.clone());
                async move { cell.fetch(&path).await }
            };
            let fetches: Vec<_> = staged.iter().map(fetch).collect();
            all.push(futures::stream::iter(fetches).buffered(AT_ONCE).try_collect().await?);
        }
        Ok(all)
    }

    /// What was made, if every record is what it was to be, and all were written at one moment. Others may write the
    /// same, but hardly the same set at once. A record alone that was to be created is not taken for ours: creating is
    /// exclusive.
    fn made(&self, found: &[Vec<Fetched>]) -> Option<Vec<Applied>> {
        let pairs: Vec<(&Staged, &Fetched)> = self.pairs(found).collect();
        if !pairs.iter().all(|(staged, found)| is_staged(staged, found.node.as_ref())) {
            return None;
        }
        let written: Vec<Revision> =
            pairs.iter().filter_map(|(_, found)| found.node.as_ref()).map(|node| node.version.written).collect();
        let at_once = written.windows(2).all(|pair| pair.first() == pair.last());
        let is_one_creation = matches!(pairs.as_slice(), [(Staged { base: None, .. }, _)]);
        if !at_once || is_one_creation {
            return None;
        }
        let at = written.first().copied().or_else(|| pairs.iter().map(|(_, found)| found.at).max())?;
        Some(found.iter().map(|cell| versions(cell, at)).collect())
    }

    fn conflict(&self, error: Error, found: &[Vec<Fetched>]) -> Error {
        let all = self.pairs(found).count();
        let changed: Vec<String> =
            self.pairs(found).filter_map(|(staged, found)| difference(staged, found.node.as_ref())).collect();
        if changed.is_empty() {
            return Error { kind: Kind::Conflict, ..error };
        }
        let named = changed.get(..NAMED).unwrap_or(&changed).join(", ");
        let more = match changed.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let (stored, end) = match error.is_uncertain() {
            true => ("", UNCERTAIN),
            false => (", and nothing is stored", ""),
        };
        let counts = format!("{} of {all} records have changed since they were staged", changed.len());
        Error::new(Kind::Conflict, format!("{counts}{stored}: {named}{more}{end}"))
    }
}

/// What was found in a cell, as what a transaction has made at some moment.
fn versions(cell: &[Fetched], at: Revision) -> Applied {
    Applied { at, versions: cell.iter().map(|found| found.node.as_ref().map(|node| node.version)).collect() }
}

/// Whether a record is what it was to be, and has been written since.
fn is_staged(staged: &Staged, found: Option<&Node>) -> bool {
    match (&staged.now, found) {
        (Some(value), Some(node)) => {
            node.value == *value && staged.base.as_ref().is_none_or(|base| base.version != node.version)
        }
        (None, None) => true,
        _ => false,
    }
}

/// How a record differs from what it was when it was staged.
fn difference(staged: &Staged, found: Option<&Node>) -> Option<String> {
    let at = &staged.at;
    let (base, version): (Option<Version>, _) =
        (staged.base.as_ref().map(|base| base.version), found.map(|node| node.version));
    match (base, version) {
        (None, None) => None,
        (None, _) => Some(format!("{at} (created)")),
        (Some(_), None) => Some(format!("{at} (deleted)")),
        (Some(base), Some(found)) if base.created != found.created => Some(format!("{at} (deleted and created)")),
        (Some(base), Some(found)) if base != found => {
            Some(format!("{at} (version {}, was {})", found.number, base.number))
        }
        (Some(base), _) => {
            let is_same = staged.base.as_ref().map(|base| &base.value) == found.map(|node| &node.value);
            let why = || format!("{at} (another value of the same version {}: its service was replaced)", base.number);
            (!is_same).then(why)
        }
    }
}
