//! Applying changes. A look at the nodes and their parents decides which operations make up the change; the multi that follows
//! fails if anything has moved since, and then it all begins again.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use tokio::time::timeout;
use zookeeper_client::{
    Acl, Acls, AuthId, Client, CreateMode, Error as ZkError, MultiReadResult, MultiWriteError, MultiWriteResult,
    Permission, Stat,
};

use super::session::{CallError, Sessions};
use super::view::version;
use super::{ancestors, parent, znode};
use crate::backend::{Action, Applied, BackendError, Change, Failure, Guard, KeySpace, Revision, Version};
use crate::name::TopoPath;

/// How often a change begins again because parents come and go beside it.
const ATTEMPTS: usize = 32;

/// Files are world:anyone without the right to create children, as Vitess makes them; so nothing can be put below a record.
pub(super) static FILE_ACL: LazyLock<[Acl; 1]> = LazyLock::new(|| {
    let permission = Permission::READ | Permission::WRITE | Permission::ADMIN;
    [Acl::new(permission, AuthId::anyone())]
});

/// Which session a request goes through.
pub(super) struct Access<'a> {
    sessions: &'a Sessions,
    /// The session that a lock lives with: what it is a guard of must not be done by any other.
    pinned: Option<Client>,
}

impl<'a> Access<'a> {
    pub fn any(sessions: &'a Sessions) -> Self {
        Self { sessions, pinned: None }
    }

    pub fn pinned(sessions: &'a Sessions, client: Client) -> Self {
        Self { sessions, pinned: Some(client) }
    }

    async fn try_call<T>(&self, operation: impl AsyncFnOnce(Client) -> Result<T, ZkError>) -> Result<T, CallError> {
        match &self.pinned {
            Some(client) => self.sessions.bounded(operation(client.clone())).await,
            None => self.sessions.try_call(operation).await,
        }
    }

    fn explain(&self, error: &CallError) -> BackendError {
        if self.pinned.as_ref().is_some_and(|client| client.state().is_terminated()) {
            return BackendError::new(Failure::LockLost, "the session that held the lock has ended");
        }
        self.sessions.explain(error)
    }
}

/// A node as it was looked at.
#[derive(Clone)]
pub(super) struct Found {
    pub data: Vec<u8>,
    pub stat: Stat,
}

/// What a look has shown, at one instant.
pub(super) struct Look {
    /// In the order of the paths.
    pub nodes: Vec<Option<Found>>,
    /// When this was true: the newest change that the first node shows; if it is missing, that its nearest directory shows.
    pub at: Revision,
    /// For each path: the same.
    ats: Vec<Revision>,
    /// All nodes and their ancestors that exist.
    exist: BTreeSet<String>,
}

/// Looks at nodes with all their ancestors, past what other servers may not have heard yet.
pub(super) async fn look(access: &Access<'_>, paths: &[String]) -> Result<Look, CallError> {
    let mut wanted: Vec<String> = paths.to_vec();
    let above: BTreeSet<String> =
        paths.iter().flat_map(|path| ancestors(path)).filter(|path| !paths.contains(path)).collect();
    wanted.extend(above);
    let first = paths.first().cloned().unwrap_or_else(|| "/".to_owned());
    let results = access
        .try_call(async |client| {
            // Both are on their way before the first answer.
            let synced = client.sync(&first);
            let mut reader = client.new_multi_reader();
            wanted.iter().try_for_each(|path| reader.add_get_data(path))?;
            let read = reader.commit();
            synced.await?;
            read.await
        })
        .await?;
    let mut found: HashMap<&str, Found> = HashMap::new();
    for (path, result) in wanted.iter().zip(results) {
        match result {
            MultiReadResult::Data { data, stat } => drop(found.insert(path, Found { data, stat })),
            MultiReadResult::Error { err: ZkError::NoNode } => {}
            MultiReadResult::Error { err } => return Err(CallError::Client(err)),
            other => return Err(CallError::Client(ZkError::UnexpectedError(format!("{other:?}")))),
        }
    }
    let at = |path: &String| match found.get(path.as_str()) {
        Some(node) => Revision(node.stat.mzxid.cast_unsigned()),
        None => {
            let left =
                ancestors(path).into_iter().find_map(|path| found.get(path.as_str()).map(|node| node.stat.pzxid));
            Revision(left.unwrap_or(0).cast_unsigned())
        }
    };
    let ats: Vec<Revision> = paths.iter().map(at).collect();
    Ok(Look {
        nodes: paths.iter().map(|path| found.get(path.as_str()).cloned()).collect(),
        at: ats.first().copied().unwrap_or_default(),
        ats,
        exist: found.keys().map(|path| (*path).to_owned()).collect(),
    })
}

/// One operation of a multi.
enum Step {
    Make(String),
    Create(usize),
    Set(usize, i32),
    Delete(usize, i32),
    Check(usize, i32),
    /// There is no check that a node is missing: it is made and removed again, in one transaction that nobody sees inside.
    Touch(usize),
}

pub(super) async fn apply(access: &Access<'_>, keys: &KeySpace, changes: &[Change]) -> Result<Applied, BackendError> {
    match timeout(access.sessions.timeout(), try_apply(access, keys, changes)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let mut error = access.explain(&CallError::NoAnswer);
            error.message.push_str(" (it may have been carried out)");
            Err(error)
        }
    }
}

async fn try_apply(access: &Access<'_>, keys: &KeySpace, changes: &[Change]) -> Result<Applied, BackendError> {
    let paths: Vec<String> = changes.iter().map(|change| znode(keys, &change.path)).collect();
    // A request whose answer was lost may have been carried out.
    let mut lost = false;
    for _ in 0..ATTEMPTS {
        let seen = look(access, &paths).await.map_err(|error| access.explain(&error))?;
        if lost && let Some(applied) = already(changes, &seen) {
            return Ok(applied);
        }
        check(changes, &seen)?;
        let steps = plan(changes, &paths, &seen);
        match commit(access, changes, &paths, &steps).await {
            Ok(results) => {
                let applied = outcome(access, changes, &paths, &steps, &results).await;
                collect_parents(access, keys, changes, &paths).await;
                return applied;
            }
            Err(Refusal::Moved) => {}
            Err(Refusal::Call(error)) if error.is_uncertain() => lost = true,
            Err(Refusal::Call(error)) => return Err(access.explain(&error)),
        }
    }
    Err(BackendError::new(Failure::Other, "the nodes change too fast for a transaction"))
}

fn check(changes: &[Change], seen: &Look) -> Result<(), BackendError> {
    for (change, node) in changes.iter().zip(&seen.nodes) {
        let found = node.as_ref().map(|node| version(&node.stat));
        let met = match change.guard {
            Guard::Any => change.action != Action::Delete || found.is_some(),
            Guard::Absent => found.is_none(),
            // Version numbers begin again with every creation: all of the version counts.
            Guard::Version(version) => found == Some(version),
            Guard::Held(holding) => found.is_some_and(|found| found.created == holding.version.created),
        };
        if !met {
            return Err(BackendError::unmet(change.guard, &change.path, found));
        }
    }
    Ok(())
}

fn plan(changes: &[Change], paths: &[String], seen: &Look) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut made: BTreeSet<String> = BTreeSet::new();
    for (index, ((change, path), node)) in changes.iter().zip(paths).zip(&seen.nodes).enumerate() {
        let guarded = |node: &Found| if change.guard == Guard::Any { -1 } else { node.stat.version };
        match (&change.action, node) {
            (Action::Put(_), Some(node)) => steps.push(Step::Set(index, guarded(node))),
            (Action::Put(_), None) => {
                let mut missing: Vec<String> = ancestors(path)
                    .into_iter()
                    .filter(|path| !seen.exist.contains(path) && !made.contains(path))
                    .collect();
                missing.reverse();
                made.extend(missing.iter().cloned());
                steps.extend(missing.into_iter().map(Step::Make));
                steps.push(Step::Create(index));
            }
            // Below a record that is also a directory others remain: it is only emptied.
            (Action::Delete, Some(node)) if node.stat.num_children > 0 => steps.push(Step::Set(index, guarded(node))),
            (Action::Delete, Some(node)) => steps.push(Step::Delete(index, guarded(node))),
            (Action::Check, Some(node)) if change.guard != Guard::Any => {
                steps.push(Step::Check(index, node.stat.version))
            }
            (Action::Check, None) if parent(path).is_some_and(|parent| seen.exist.contains(parent)) => {
                steps.push(Step::Touch(index));
            }
            (Action::Check | Action::Delete, _) => {}
        }
    }
    steps
}

enum Refusal {
    /// Something has changed since the look.
    Moved,
    Call(CallError),
}

async fn commit(
    access: &Access<'_>,
    changes: &[Change],
    paths: &[String],
    steps: &[Step],
) -> Result<Vec<MultiWriteResult>, Refusal> {
    let value = |index: usize| match changes.get(index).map(|change| &change.action) {
        Some(Action::Put(value)) => value.clone(),
        _ => bytes::Bytes::new(),
    };
    let path = |index: usize| paths.get(index).map_or("", String::as_str);
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

/// What a change has made. All operations of a multi have one zxid; servers before 3.9 do not tell it for a creation, and never for a
/// deletion: another look shows it.
async fn outcome(
    access: &Access<'_>,
    changes: &[Change],
    paths: &[String],
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
        (None, true) => Some(look(access, paths).await.map_err(|error| access.explain(&error))?),
    };
    let at = known.or_else(|| seen.as_ref().and_then(|seen| when(steps, seen))).unwrap_or_default();
    let versions = changes.iter().enumerate().map(|(index, change)| match (&change.action, set.get(&index)) {
        (Action::Put(_), Some(stat)) => Some(version(stat)),
        (Action::Put(_), None) => Some(Version { number: 0, written: at, created: at }),
        (Action::Delete | Action::Check, _) => None,
    });
    Ok(Applied { at, versions: versions.collect() })
}

/// The zxid of a multi that has set nothing.
fn when(steps: &[Step], seen: &Look) -> Option<Revision> {
    let node = |index: &usize| seen.nodes.get(*index).and_then(Option::as_ref);
    let created = steps.iter().find_map(|step| match step {
        Step::Create(index) => node(index).map(|node| Revision(node.stat.czxid.cast_unsigned())),
        _ => None,
    });
    let gone = steps.iter().find_map(|step| match step {
        Step::Create(index) | Step::Delete(index, _) => match node(index) {
            // Made again since: what we did was before.
            Some(node) => Some(Revision(node.stat.czxid.cast_unsigned().saturating_sub(1))),
            None => seen.ats.get(*index).copied(),
        },
        _ => None,
    });
    created.or(gone)
}

/// Whether a change whose answer was lost has been carried out, as far as that can be told. A creation is never assumed: it may
/// be somebody else's, and creation is exclusive.
fn already(changes: &[Change], seen: &Look) -> Option<Applied> {
    let holds = |(change, node): (&Change, &Option<Found>)| match (&change.action, change.guard, node) {
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

/// Removes directories that are left empty, as Vitess does, but never the cell's root, and never one that holds data.
async fn collect_parents(access: &Access<'_>, keys: &KeySpace, changes: &[Change], paths: &[String]) {
    let root = znode(keys, &TopoPath::root());
    for (_, path) in changes.iter().zip(paths).filter(|(change, _)| change.action == Action::Delete) {
        for dir in ancestors(path) {
            if dir == root || !dir.starts_with(&root) {
                break;
            }
            // Somebody needs it, or has removed it already.
            if remove_if_empty(access, &dir).await.is_err() {
                break;
            }
        }
    }
}

/// Removes a directory in which there is nothing; says whether there was one.
pub(super) async fn remove_empty(access: &Access<'_>, keys: &KeySpace, dir: &TopoPath) -> Result<bool, CallError> {
    match remove_if_empty(access, &znode(keys, dir)).await {
        Ok(()) => Ok(true),
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
