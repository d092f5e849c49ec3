//! Applies changes. A look at the nodes and their parents decides which operations the change needs. The multi after it
//! fails if anything has changed since, and then everything begins again.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use zookeeper_client::{
    Acl, Acls, AuthId, CreateMode, Error as ZkError, MultiWriteError, MultiWriteResult, Permission, Stat,
};

use super::look::{Access, Found, Look, look};
use super::session::CallError;
use super::znode::{Spot, ancestors, parent, version, znode_path};
use crate::backend::contract::{Action, Applied, BackendError, Change, Failure, Guard, Revision, Role, Version};
use crate::backend::keys::KeySpace;
use crate::name::TopoPath;
use crate::record::layout::is_named_as_record;

/// How often a change starts over because other processes create and remove its parents.
const ATTEMPTS: usize = 32;
/// Maximum age of a look: an older one means that this process was frozen, or that a step was slow.
const FRESH: Duration = Duration::from_millis(500);
/// Pause before retrying a change that a busy server has turned away.
const THROTTLED_PAUSE: Duration = Duration::from_millis(50);

/// Files are world:anyone without the right to create children, as in Vitess, so nobody can create anything below a
/// record.
pub(super) static FILE_ACL: LazyLock<[Acl; 1]> = LazyLock::new(|| {
    let permission = Permission::READ | Permission::WRITE | Permission::ADMIN;
    [Acl::new(permission, AuthId::anyone())]
});

/// One operation of a multi.
enum Step {
    Make(String),
    Create(usize),
    Set(usize, i32),
    Delete(usize, i32),
    Check(usize, i32),
    /// ZooKeeper cannot check that a node does not exist. So one transaction creates and removes it, and nobody sees
    /// it.
    Touch(usize),
}

/// Changes of one cell.
pub(super) struct CellChanges<'a> {
    /// How its paths are spelt.
    pub keys: KeySpace,
    pub changes: &'a [Change],
}

/// Applies the changes of all cells or none.
pub(super) async fn apply(access: &Access<'_>, cells: &[CellChanges<'_>]) -> Result<Applied, BackendError> {
    let changes: Vec<&Change> = cells.iter().flat_map(|cell| cell.changes).collect();
    let spots = cells.iter().flat_map(|cell| cell.changes.iter().map(|change| Spot::of(&cell.keys, &change.path)));
    let spots: Vec<Spot> = spots.collect();
    // Whether a request was sent and not answered, so it may have been carried out.
    let open = AtomicBool::new(false);
    let deadline = Instant::now() + access.sessions.timeout();
    let outcome = timeout_at(deadline, try_apply(access, &changes, &spots, &open)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(access.explain(&CallError::NoAnswer)));
    if outcome.is_ok() {
        let collected = async {
            for CellChanges { keys, changes } in cells {
                collect_parents(access, keys, changes).await;
            }
        };
        // An empty directory that stays behind is shown nowhere.
        let _ = timeout_at(deadline, collected).await;
    }
    outcome.map_err(|error| {
        let certain =
            matches!(error.failure, Failure::Denied | Failure::TooLarge | Failure::NoSpace | Failure::LockLost);
        error.uncertain_if(open.load(Ordering::Relaxed) && !certain)
    })
}

async fn try_apply(
    access: &Access<'_>,
    changes: &[&Change],
    spots: &[Spot],
    open: &AtomicBool,
) -> Result<Applied, BackendError> {
    // A request whose answer was lost may have been carried out.
    let mut lost = None;
    for _ in 0..ATTEMPTS {
        let seen = look(access, spots).await.map_err(|error| access.explain(&error))?;
        let looked = Instant::now();
        if lost.is_some()
            && let Some(applied) = already(changes, &seen)
        {
            return Ok(applied);
        }
        check(changes, &seen)?;
        let steps = plan(changes, spots, &seen);
        let bytes = request_bytes(changes, spots, &steps);
        access.sessions.admit(bytes, lost.is_some()).await.map_err(|error| access.explain(&error))?;
        if looked.elapsed() > FRESH {
            continue;
        }
        open.store(true, Ordering::Relaxed);
        match commit(access, changes, spots, &steps).await {
            Ok(results) => {
                let applied = outcome(access, changes, spots, &steps, &results).await?;
                open.store(false, Ordering::Relaxed);
                return Ok(applied);
            }
            Err(Refusal::Call(error)) if error.is_uncertain() => {
                lost = Some(error);
                continue;
            }
            Err(refusal) => {
                open.store(lost.is_some(), Ordering::Relaxed);
                match refusal {
                    Refusal::Moved => {}
                    Refusal::Call(CallError::Client(ZkError::Throttled)) => sleep(THROTTLED_PAUSE).await,
                    Refusal::Call(error) => return Err(access.explain(&error)),
                }
            }
        }
    }
    match lost {
        Some(error) => Err(access.explain(&error)),
        None => Err(BackendError::new(Failure::Other, "the nodes change too often for a transaction")),
    }
}

/// Whether a node is more than a directory.
fn shown(node: Option<&Found>) -> Option<&Found> {
    node.filter(|node| node.role.is_some())
}

fn check(changes: &[&Change], seen: &Look) -> Result<(), BackendError> {
    for (change, node) in changes.iter().zip(&seen.nodes) {
        let node = shown(node.as_ref());
        let found = node.map(|node| version(&node.stat));
        let met = match change.guard {
            Guard::Any => change.action != Action::Delete || found.is_some(),
            Guard::Absent => found.is_none(),
            // Version numbers begin again with every creation, so the whole version counts.
            Guard::Version(version) => found == Some(version),
            Guard::Held(holding) => found.is_some_and(|found| found.created == holding.version.created),
        };
        if !met {
            return Err(BackendError::unmet(change.guard, &change.path, found));
        }
        let is_lock = node.is_some_and(|node| matches!(node.role, Some(Role::Lock(_))) && node.stat.num_children > 0);
        if change.action == Action::Delete && is_lock {
            let message = format!("{}: delete the nodes below it first", change.path);
            return Err(BackendError::new(Failure::Other, message));
        }
    }
    Ok(())
}

fn plan(changes: &[&Change], spots: &[Spot], seen: &Look) -> Vec<Step> {
    let mut steps = Vec::new();
    // After the steps so far.
    let mut exist = seen.exist.clone();
    for (index, ((change, Spot { znode, .. }), node)) in changes.iter().zip(spots).zip(&seen.nodes).enumerate() {
        let guarded = |node: &Found| if change.guard == Guard::Any { -1 } else { node.stat.version };
        match (&change.action, node) {
            (Action::Put(_), Some(node)) => steps.push(Step::Set(index, guarded(node))),
            (Action::Put(_), None) => {
                let mut missing = ancestors(znode);
                missing.retain(|path| !exist.contains(path));
                missing.reverse();
                exist.extend(missing.iter().cloned());
                steps.extend(missing.into_iter().map(Step::Make));
                steps.push(Step::Create(index));
            }
            // A record that is also a directory still has nodes below it: it is only emptied.
            (Action::Delete, Some(node)) if node.stat.num_children > 0 => steps.push(Step::Set(index, guarded(node))),
            (Action::Delete, Some(node)) => {
                exist.remove(znode);
                steps.push(Step::Delete(index, guarded(node)));
            }
            (Action::Check, Some(node)) if change.guard != Guard::Any => {
                steps.push(Step::Check(index, node.stat.version))
            }
            (Action::Check, None) if parent(znode).is_some_and(|parent| exist.contains(parent)) => {
                steps.push(Step::Touch(index));
            }
            (Action::Check | Action::Delete, _) => {}
        }
    }
    steps
}

/// The size of the request for these steps, without the four bytes of its length.
fn request_bytes(changes: &[&Change], spots: &[Spot], steps: &[Step]) -> usize {
    /// xid and operation; the header that ends a multi.
    const WHOLE: usize = 8 + 9;
    /// The header of an operation, and the lengths of its path and its data, or its version.
    const STEP: usize = 9 + 8;
    /// One access right for everybody, and flags.
    const RIGHTS: usize = 4 + 4 + 4 + "world".len() + 4 + "anyone".len() + 4;
    let path = |index: &usize| spots.get(*index).map_or(0, |spot| spot.znode.len());
    let value = |index: &usize| changes.get(*index).map_or(0, |change| change.value_len());
    let step = |step: &Step| match step {
        Step::Make(path) => STEP + path.len() + RIGHTS,
        Step::Create(index) => STEP + path(index) + value(index) + RIGHTS,
        Step::Set(index, _) => STEP + path(index) + value(index) + 4,
        Step::Delete(index, _) | Step::Check(index, _) => STEP + path(index),
        Step::Touch(index) => 2 * (STEP + path(index)) + RIGHTS,
    };
    WHOLE + steps.iter().map(step).sum::<usize>()
}

enum Refusal {
    /// Something has changed since the look.
    Moved,
    Call(CallError),
}

async fn commit(
    access: &Access<'_>,
    changes: &[&Change],
    spots: &[Spot],
    steps: &[Step],
) -> Result<Vec<MultiWriteResult>, Refusal> {
    let value = |index: usize| match changes.get(index).map(|change| &change.action) {
        Some(Action::Put(value)) => value.clone(),
        _ => bytes::Bytes::new(),
    };
    let path = |index: usize| spots.get(index).map_or("", |spot| spot.znode.as_str());
    let directory = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let file = CreateMode::Persistent.with_acls(Acls::new(&*FILE_ACL));
    let answer = access
        .try_call(async |client| {
            let mut writer = client.new_multi_writer();
            for step in steps {
                match step {
                    Step::Make(path) => writer.add_create(path, &[], &directory)?,
                    Step::Create(index) => writer.add_create(path(*index), &value(*index), &file)?,
                    Step::Set(index, version) => {
                        writer.add_set_data(path(*index), &value(*index), Some(*version).filter(|v| *v >= 0))?;
                    }
                    Step::Delete(index, version) => {
                        writer.add_delete(path(*index), Some(*version).filter(|v| *v >= 0))?
                    }
                    Step::Check(index, version) => writer.add_check_version(path(*index), *version)?,
                    Step::Touch(index) => {
                        writer.add_create(path(*index), &[], &file)?;
                        writer.add_delete(path(*index), Some(0))?;
                    }
                }
            }
            Ok(writer.commit().await)
        })
        .await
        .map_err(Refusal::Call)?;
    answer.map_err(|error| match error {
        MultiWriteError::OperationFailed {
            source: ZkError::NoNode | ZkError::NodeExists | ZkError::BadVersion | ZkError::NotEmpty,
            ..
        } => Refusal::Moved,
        MultiWriteError::OperationFailed { source, .. } | MultiWriteError::RequestFailed { source } => {
            Refusal::Call(CallError::Client(source))
        }
    })
}

/// The results of a change. All operations of a multi have one zxid. Servers before 3.9 do not return it for a
/// creation, and no server does for a deletion: another look shows it.
async fn outcome(
    access: &Access<'_>,
    changes: &[&Change],
    spots: &[Spot],
    steps: &[Step],
    results: &[MultiWriteResult],
) -> Result<Applied, BackendError> {
    let mut set: HashMap<usize, Stat> = HashMap::new();
    // A touch is two operations.
    let mut results = results.iter();
    for step in steps {
        let result = results.next();
        match (step, result) {
            (Step::Set(index, _), Some(MultiWriteResult::SetData { stat })) => drop(set.insert(*index, *stat)),
            (Step::Touch(_), _) => drop(results.next()),
            _ => {}
        }
    }
    let known = set.values().next().map(|stat| Revision(stat.mzxid.cast_unsigned()));
    let changed = steps.iter().any(|step| !matches!(step, Step::Check(..) | Step::Touch(_)));
    let seen = match (known, changed) {
        (Some(_), _) | (None, false) => None,
        (None, true) => Some(look(access, spots).await.map_err(|error| access.explain(&error))?),
    };
    let at = known.or_else(|| seen.as_ref().and_then(|seen| when(steps, seen))).unwrap_or_default();
    let versions = changes.iter().enumerate().map(|(index, change)| match (&change.action, set.get(&index)) {
        (Action::Put(_), Some(stat)) => Some(version(stat)),
        (Action::Put(_), None) => Some(Version { number: 0, written: at, created: at }),
        (Action::Delete | Action::Check, _) => None,
    });
    Ok(Applied { at, versions: versions.collect() })
}

/// The zxid of a multi that has set no data.
fn when(steps: &[Step], seen: &Look) -> Option<Revision> {
    let node = |index: &usize| seen.nodes.get(*index).and_then(Option::as_ref);
    let created = steps.iter().find_map(|step| match step {
        Step::Create(index) => node(index).map(|node| Revision(node.stat.czxid.cast_unsigned())),
        _ => None,
    });
    let gone = steps.iter().find_map(|step| match step {
        Step::Create(index) | Step::Delete(index, _) => match node(index) {
            // The node was recreated since; our change was before that.
            Some(node) => Some(Revision(node.stat.czxid.cast_unsigned().saturating_sub(1))),
            None => seen.ats.get(*index).copied(),
        },
        _ => None,
    });
    created.or(gone)
}

/// Whether a change was carried out although its answer was lost, as far as we can tell. This never assumes that a
/// creation is ours: creation is exclusive, and another process may have made the node.
fn already(changes: &[&Change], seen: &Look) -> Option<Applied> {
    let holds = |(change, node): (&&Change, &Option<Found>)| match (&change.action, change.guard, shown(node.as_ref()))
    {
        (Action::Put(value), Guard::Version(old), Some(node)) => {
            node.data == value[..]
                && version(&node.stat).created == old.created
                && version(&node.stat).written > old.written
        }
        (Action::Delete, Guard::Version(_), None) | (Action::Check, Guard::Held(_), _) => true,
        _ => false,
    };
    if changes.is_empty() || !changes.iter().zip(&seen.nodes).all(holds) {
        return None;
    }
    let versions = seen.nodes.iter().map(|node| node.as_ref().map(|node| version(&node.stat))).collect();
    Some(Applied { at: seen.ats.iter().copied().max().unwrap_or_default(), versions })
}

/// Removes empty directories, as Vitess does, but never the root of the cell, and never a record.
async fn collect_parents(access: &Access<'_>, keys: &KeySpace, changes: &[Change]) {
    for change in changes.iter().filter(|change| change.action == Action::Delete) {
        collect_above(access, keys, &znode_path(keys, &change.path)).await;
    }
}

async fn collect_above(access: &Access<'_>, keys: &KeySpace, path: &str) {
    let root = znode_path(keys, &TopoPath::root());
    for dir in ancestors(path) {
        // An empty node with such a name may be a record with others below it.
        let is_record = keys.path(dir.as_bytes()).is_some_and(|path| is_named_as_record(&path));
        if dir == root || !dir.starts_with(&root) || is_record {
            break;
        }
        // Somebody needs it, or has already removed it.
        if remove_if_empty(access, &dir).await.is_err() {
            break;
        }
    }
}

/// Removes an empty directory, and those above it that are then empty. Returns whether there was one.
pub(super) async fn remove_empty(access: &Access<'_>, keys: &KeySpace, dir: &TopoPath) -> Result<bool, CallError> {
    let dir = znode_path(keys, dir);
    match remove_if_empty(access, &dir).await {
        Ok(()) => {
            collect_above(access, keys, &dir).await;
            Ok(true)
        }
        Err(CallError::Client(ZkError::NoNode | ZkError::NotEmpty | ZkError::BadVersion)) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn remove_if_empty(access: &Access<'_>, dir: &str) -> Result<(), CallError> {
    access
        .try_call(async |client| {
            let (data, stat) = client.get_data(dir).await?;
            if !data.is_empty() || stat.num_children > 0 || stat.ephemeral_owner != 0 {
                return Err(ZkError::NotEmpty);
            }
            client.delete(dir, Some(stat.version)).await
        })
        .await
}
