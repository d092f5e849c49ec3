//! What has to be done so that a target holds what the source holds. Pure: must never ask a service.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::sort::Sort;
use crate::backend::{Action, Change, Guard, Node};
use crate::name::{CellName, TopoPath};

/// The records of the source that are copied, as the target gets them.
pub(super) type Wanted = BTreeMap<TopoPath, Bytes>;
/// The records of the target.
pub(super) type Found<'a> = BTreeMap<&'a TopoPath, &'a Node>;

/// How a record differs. Records that are the same have no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference<'a> {
    OnlySource(&'a Bytes),
    OnlyTarget(&'a Node),
    Both(&'a Bytes, &'a Node),
}

/// All differences of a cell, sorted by path.
pub(super) fn differences<'a>(wanted: &'a Wanted, found: &Found<'a>) -> BTreeMap<&'a TopoPath, Difference<'a>> {
    let mut all = BTreeMap::new();
    for (path, value) in wanted {
        match found.get(path) {
            None => drop(all.insert(path, Difference::OnlySource(value))),
            Some(node) if node.value != *value => drop(all.insert(path, Difference::Both(value, node))),
            Some(_) => {}
        }
    }
    let only = found.iter().filter(|(path, _)| !wanted.contains_key(**path));
    all.extend(only.map(|(path, node)| (*path, Difference::OnlyTarget(node))));
    all
}

/// What an earlier pass of the same copy has read: only what has changed in the source since is copied, and only over
/// what the pass has left at the target.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// The records of the source.
    pub source: Wanted,
    /// What the target held after the pass.
    pub target: Wanted,
}

impl Earlier {
    /// The state after a pass that has seen these.
    pub fn after(wanted: Wanted, found: &Found<'_>) -> Self {
        let mut target: Wanted = found.iter().map(|(path, node)| ((*path).clone(), node.value.clone())).collect();
        target.extend(wanted.iter().map(|(path, value)| (path.clone(), value.clone())));
        Self { source: wanted, target }
    }
}

/// The changes for one cell.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What is stored and removed, with guards: nothing is overwritten that has changed since it was read.
    pub steps: Vec<Step>,
    /// Number of records that are the same already.
    pub same: usize,
    /// Number of records that only the target has, and that stay.
    pub only_target: usize,
    /// Records that somebody has changed at the target since the pass before.
    pub overtaken: Vec<TopoPath>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub sort: Sort,
    /// How many records of the same sort lie below it: they come first, see [`Stage`].
    pub height: usize,
    pub change: Change,
}

/// What may be stored at the same time. Stages follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    /// Records of a sort. Those that have others below them come after these: on ZooKeeper, nothing can be made below a
    /// record.
    Put(Sort, usize),
    /// Deletions in the other direction: nothing is left that refers to what is gone.
    Delete(std::cmp::Reverse<Sort>),
}

impl Step {
    pub fn stage(&self) -> Stage {
        match self.change.action {
            Action::Delete => Stage::Delete(std::cmp::Reverse(self.sort)),
            Action::Put(_) | Action::Check => Stage::Put(self.sort, self.height),
        }
    }

    /// In one word.
    pub fn verb(&self) -> &'static str {
        match (&self.change.action, self.change.guard) {
            (Action::Delete, _) => "delete",
            (_, Guard::Absent) => "create",
            _ => "update",
        }
    }
}

/// Plans the changes for one cell. With `delete`, what only the target has is removed, but never a cell.
pub(super) fn plan(
    cell: &CellName,
    wanted: &Wanted,
    found: &Found<'_>,
    earlier: Option<&Earlier>,
    delete: bool,
) -> Plan {
    let all = differences(wanted, found);
    let mut plan = Plan { same: wanted.len(), ..Plan::default() };
    for (path, difference) in all {
        let sort = Sort::of(cell, path);
        let (action, node) = match difference {
            Difference::OnlySource(value) => (Action::Put(value.clone()), None),
            Difference::Both(value, node) => (Action::Put(value.clone()), Some(node)),
            Difference::OnlyTarget(node) => (Action::Delete, Some(node)),
        };
        match action {
            Action::Delete if !delete || sort == Sort::CellInfo => {
                plan.only_target += 1;
                continue;
            }
            Action::Delete => {}
            _ => plan.same -= 1,
        }
        if let Some(earlier) = earlier {
            if earlier.source.get(path) == wanted.get(path) {
                // The source has not changed, so somebody else has changed the target since.
                continue;
            }
            if earlier.target.get(path) != node.map(|node| &node.value) {
                plan.overtaken.push(path.clone());
                continue;
            }
        }
        let guard = node.map_or(Guard::Absent, |node| Guard::Version(node.version));
        plan.steps.push(Step { sort, height: 0, change: Change { path: path.clone(), guard, action } });
    }
    put_parents_last(&mut plan.steps);
    plan
}

/// Records that have others below them come after these.
fn put_parents_last(steps: &mut [Step]) {
    let puts = steps.iter().enumerate().filter(|(_, step)| step.change.action != Action::Delete);
    let indexes: HashMap<TopoPath, usize> = puts.map(|(index, step)| (step.change.path.clone(), index)).collect();
    let mut deepest_first: Vec<(usize, TopoPath)> =
        indexes.keys().map(|path| (path.components().count(), path.clone())).collect();
    deepest_first.sort_by(|a, b| b.cmp(a));
    for (_, path) in deepest_first {
        let Some((sort, height)) =
            indexes.get(&path).and_then(|at| steps.get(*at)).map(|step| (step.sort, step.height))
        else {
            continue;
        };
        for above in std::iter::successors(path.parent(), TopoPath::parent) {
            if let Some(step) = indexes.get(&above).and_then(|at| steps.get_mut(*at)) {
                (step.sort, step.height) = (step.sort, step.height).max((sort, height + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Revision, Role, Version};

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    fn wanted(records: &[(&str, &'static str)]) -> Wanted {
        records.iter().map(|(at, value)| (path(at), Bytes::from_static(value.as_bytes()))).collect()
    }

    fn nodes(records: &[(&str, &'static str)]) -> Vec<Node> {
        let version = |at: usize| Revision(at as u64 + 1);
        let node = |(at, (name, value)): (usize, &(&str, &'static str))| Node {
            path: path(name),
            value: Bytes::from_static(value.as_bytes()),
            version: Version { number: 1, written: version(at), created: version(at) },
            role: Role::Record,
            modified: None,
        };
        records.iter().enumerate().map(node).collect()
    }

    fn found(nodes: &[Node]) -> Found<'_> {
        nodes.iter().map(|node| (&node.path, node)).collect()
    }

    fn shown(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(|step| format!("{} {}", step.verb(), step.change.path)).collect()
    }

    const SOURCE: &[(&str, &str)] = &[("a", "1"), ("b", "2"), ("c", "3")];
    const TARGET: &[(&str, &str)] = &[("b", "2"), ("c", "x"), ("cells/z/CellInfo", "z"), ("d", "4")];

    #[test]
    fn only_differences_are_stored_and_nothing_is_deleted_unasked() {
        let (global, target) = (CellName::global(), nodes(TARGET));
        let kept = plan(&global, &wanted(SOURCE), &found(&target), None, false);
        assert_eq!(shown(&kept), ["create a", "update c"]);
        assert_eq!((kept.same, kept.only_target), (1, 2));
        assert_eq!(kept.steps[1].change.guard, Guard::Version(target[1].version));
        let cleaned = plan(&global, &wanted(SOURCE), &found(&target), None, true);
        assert_eq!(shown(&cleaned), ["create a", "update c", "delete d"], "a cell is never deleted");
        assert_eq!(cleaned.steps[2].change.guard, Guard::Version(target[3].version));
    }

    #[test]
    fn a_later_pass_copies_what_has_changed_since_and_overwrites_nobody() {
        let global = CellName::global();
        let earlier = Earlier::after(wanted(SOURCE), &found(&nodes(TARGET)));
        // The source has changed a and b. Somebody has changed b and c at the target.
        let source = wanted(&[("a", "new"), ("b", "new"), ("c", "3"), ("e", "new")]);
        let target = nodes(&[("a", "1"), ("b", "theirs"), ("c", "theirs"), ("d", "4")]);
        let later = plan(&global, &source, &found(&target), Some(&earlier), false);
        assert_eq!(shown(&later), ["update a", "create e"]);
        assert_eq!(later.overtaken, [path("b")]);
    }

    #[test]
    fn what_lies_below_a_record_is_stored_before_it() {
        let global = CellName::global();
        let source =
            wanted(&[("x", "1"), ("x/y", "2"), ("x/y/z", "3"), ("keyspaces/ks/Keyspace", ""), ("keyspaces/ks", "4")]);
        let mut steps = plan(&global, &source, &Found::new(), None, false).steps;
        steps.sort_by_key(Step::stage);
        let order: Vec<&str> = steps.iter().map(|step| step.change.path.as_str()).collect();
        let at = |name: &str| order.iter().position(|path| *path == name).unwrap();
        assert!(at("x/y/z") < at("x/y") && at("x/y") < at("x"), "{order:?}");
        assert!(at("keyspaces/ks/Keyspace") < at("keyspaces/ks"), "{order:?}");
        let odd = wanted(&[("keyspaces/ks/Keyspace", "1"), ("keyspaces/ks/Keyspace/below", "2")]);
        let steps = plan(&global, &odd, &Found::new(), None, false).steps;
        assert!(steps[1].stage() < steps[0].stage());
    }
}
