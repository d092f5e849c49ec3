//! Brings everything at the secondary to what the primary has, while writers go on. Must never replace anything newer:
//! each record is brought as an update is (see `bring`).

use std::collections::BTreeMap;

use futures::StreamExt;

use super::{Tee, is_mirrored, record};
use crate::backend::contract::{BackendError, Failure, Node};
use crate::name::TopoPath;

/// Number of records that are brought at the same time.
const AT_ONCE: usize = 16;
/// Number of records that an error names.
const NAMED: usize = 3;

/// So many records at a secondary that has nothing else cannot be what a few failed updates have left.
const STRANGE: usize = 5;

/// What a repair has done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Records that are now what the primary has.
    pub brought: usize,
}

impl Tee {
    /// Compares both services, and brings every record that differs to the secondary. Fails if the services cannot be
    /// compared, if a record cannot be brought, or if a CellInfo record is missing on one side: only a person knows
    /// what it should say.
    pub async fn repair(&self) -> Result<Repaired, BackendError> {
        let Ok(_turn) = self.0.repairing.try_acquire() else {
            return Err(BackendError::new(Failure::Locked, "a repair is already under way"));
        };
        if let Some(error) = self.known_away() {
            return Err(self.explain(error));
        }
        let root = TopoPath::root();
        // The secondary first: what the primary has is then newer.
        let there = self.while_it_answers(self.0.secondary.list(&root), None).await.unwrap_or_else(Err);
        let there = there.map_err(|error| self.explain(error))?;
        let listed = self.0.notes.now();
        let here = self.0.primary.list(&root).await?;
        let records = |nodes: Vec<Node>| nodes.into_iter().filter_map(|node| record(Some(node)));
        let mut there: BTreeMap<TopoPath, Node> = records(there.nodes).map(|node| (node.path.clone(), node)).collect();
        let (mut differing, mut same) = (Vec::new(), 0);
        for node in records(here.nodes) {
            match there.remove(&node.path) {
                Some(there) if there.value == node.value || !is_mirrored(&node.path) => {
                    same += usize::from(is_mirrored(&node.path));
                    self.0.notes.forget(std::slice::from_ref(&node.path), listed);
                }
                _ => differing.push((node.path.clone(), Some(node))),
            }
        }
        self.refuse_stranger(same, there.keys())?;
        differing.extend(there.into_keys().map(|path| (path, None)));
        let (mirrored, places): (Vec<_>, Vec<_>) = differing.into_iter().partition(|(path, _)| is_mirrored(path));
        let brought = mirrored.len();
        let failed = self.bring_all(mirrored).await;
        self.0.notes.compared();
        let places: Vec<String> = places.into_iter().map(|(path, here)| unpaired(&path, here.is_some())).collect();
        match failed.into_iter().chain(places).collect::<Vec<_>>().as_slice() {
            [] => Ok(Repaired { brought }),
            all => {
                let named = all.get(..NAMED).unwrap_or(all).join("; ");
                let more = all.len().saturating_sub(NAMED);
                let more = if more > 0 { format!("; and {more} more") } else { String::new() };
                Err(BackendError::new(Failure::Other, format!("the secondary still differs: {named}{more}")))
            }
        }
    }

    /// Fails if the secondary has records of its own, and none that the primary has, too: it may be another cell or
    /// another cluster, and a repair would remove it.
    fn refuse_stranger<'a>(
        &self,
        same: usize,
        left_over: impl Iterator<Item = &'a TopoPath>,
    ) -> Result<(), BackendError> {
        let known = self.failures().known;
        let strange: Vec<&TopoPath> =
            left_over.filter(|path| is_mirrored(path) && !known.contains_key(*path)).collect();
        let Some(first) = strange.first().filter(|_| same == 0 && strange.len() >= STRANGE) else { return Ok(()) };
        Err(BackendError::new(
            Failure::Other,
            format!(
                "nothing at the secondary is as the primary has it, and {} records are only there (such as {first}): \
                 is it the right place? If so, remove them there first",
                strange.len()
            ),
        ))
    }

    /// Returns what went wrong, by record.
    async fn bring_all(&self, records: Vec<(TopoPath, Option<Node>)>) -> Vec<String> {
        let bring = |(path, here): (TopoPath, Option<Node>)| async move {
            let paths = [path];
            let _under_way = self.0.notes.begin(&paths);
            let outcome = self.bring(&paths, Some(vec![here]), &[]).await;
            let [path] = &paths;
            match outcome {
                Ok(at) => {
                    self.0.notes.forget(&paths, at);
                    self.0.notes.back();
                    None
                }
                Err(error) => {
                    self.0.notes.failed(&paths, &error);
                    Some(format!("{path}: {error}"))
                }
            }
        };
        futures::stream::iter(records)
            .map(bring)
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await
    }
}

/// A CellInfo record that only one side has, in words.
pub(super) fn unpaired(path: &TopoPath, at_primary: bool) -> String {
    if at_primary {
        format!("{path} is missing at the secondary: add the cell there, with its own address")
    } else {
        format!("{path} is left over at the secondary: if the cell is gone, remove it there")
    }
}
