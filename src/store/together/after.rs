//! What a commit that has failed has left behind, by looking: which records have changed since, and whether it has
//! failed at all.

use futures::{StreamExt, TryStreamExt};

use super::plan::Plan;
use crate::backend::{Applied, Fetched, Node, Revision, Version};
use crate::error::{Error, Kind, Result, UNCERTAIN};
use crate::store::change_set::Staged;

/// How many records an error names.
const NAMED: usize = 20;
/// How many records are read at the same time.
const AT_ONCE: usize = 16;

impl Plan<'_> {
    /// The error of a commit, with all records that were in its way; or what it has made, if only its answer was lost.
    pub async fn after(&self, error: Error) -> Result<Vec<Applied>> {
        let is_conflict = matches!(error.kind, Kind::NotFound | Kind::Exists | Kind::Conflict);
        if !is_conflict && !error.is_uncertain() {
            return Err(error);
        }
        // Without a look, the first error is what is known.
        let Ok(found) = self.look().await else { return Err(error) };
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
                let (cell, path) = (live.cell.clone(), staged.at.path.clone());
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
        let pairs: Vec<(&Staged, &Fetched)> =
            self.staged.iter().flatten().copied().zip(found.iter().flatten()).collect();
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
        let versions = |cell: &Vec<Fetched>| cell.iter().map(|found| version(found)).collect();
        Some(found.iter().map(|cell| Applied { at, versions: versions(cell) }).collect())
    }

    fn conflict(&self, error: Error, found: &[Vec<Fetched>]) -> Error {
        let all: Vec<(&Staged, &Fetched)> = self.staged.iter().flatten().copied().zip(found.iter().flatten()).collect();
        let changed: Vec<String> =
            all.iter().filter_map(|(staged, found)| difference(staged, version(found))).collect();
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
        let counts = format!("{} of {} records have changed since they were staged", changed.len(), all.len());
        Error::new(Kind::Conflict, format!("{counts}{stored}: {named}{more}{end}"))
    }
}

fn version(found: &Fetched) -> Option<Version> {
    found.node.as_ref().map(|node| node.version)
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
fn difference(staged: &Staged, found: Option<Version>) -> Option<String> {
    let at = &staged.at;
    match (staged.base.as_ref().map(|base| base.version), found) {
        (base, found) if base == found => None,
        (None, _) => Some(format!("{at} (created)")),
        (Some(_), None) => Some(format!("{at} (deleted)")),
        (Some(base), Some(found)) if base.created != found.created => Some(format!("{at} (deleted and created)")),
        (Some(base), Some(found)) => Some(format!("{at} (version {}, was {})", found.number, base.number)),
    }
}
