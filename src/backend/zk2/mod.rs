//! ZooKeeper.
//!
//! `session` owns the connections, `reader` reads a subtree, as much at once as `window` says, `view` watches it,
//! `look` reads single nodes, `write` applies changes, `roles` tells what a node is.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use zookeeper_client::Permission;

use super::contract::{
    Applied, Backend, BackendError, Change, Compared, Failure, Fetched, Guard, Limits, Listing, Node, Part,
    SIGN_OF_LIFE, SharedPlace, Shown, WatchStream, check_limits, check_most, check_values, too_large,
};
use super::keys::KeySpace;
use super::loading::Loading;
use super::location::Location;
use super::lock::removal;
use super::mark::Mark;
use super::together::by_part;
use crate::name::TopoPath;
use crate::record::layout;

mod admit;
mod compare;
mod inspect;
mod lock;
mod look;
mod reader;
mod roles;
mod session;
mod size;
mod view;
mod window;
mod write;
mod znode;

use compare::{Differences, Equal};
use lock::Lines;
use look::{Access, look};
use reader::Nodes;
pub use session::ZkOptions;
use session::{CallError, Sessions};
use view::{Ended, View};
use write::CellChanges;
use znode::{Spot, version, znode_path};

/// ZooKeeper refuses packets of more than 1 MiB by default; the rest of the request needs room, too.
const LIMITS: Limits = Limits { value: 1_000_000, changes: 64 };
/// Most changes in a transaction over several cells. ZooKeeper itself counts bytes only; each change needs a look at
/// its directories, too.
const TOGETHER: usize = 1_000;

/// The transaction that created a node, in hexadecimal as ZooKeeper's tools show it.
const CZXID: &str = "czxid";
/// The access rights, as zkCli.sh writes them.
const ACL: &str = "acl";

/// One cell on ZooKeeper.
#[derive(Debug)]
pub struct Zk {
    /// For writes and fresh reads: the voters.
    voters: Arc<Sessions>,
    /// For bulk reads and watches: the observers, if there are any.
    readers: Arc<Sessions>,
    /// For locks: the voters, in a lasting session.
    lines: Arc<Lines>,
    keys: KeySpace,
    /// What the newest watch has seen.
    seen: Mutex<Nodes>,
    loading: Loading,
}

impl Zk {
    /// Prepares the connections, but sends nothing yet. The server address is a comma-separated list; servers after `|`
    /// are observers.
    pub fn new(location: &Location, timeout: Duration, options: &ZkOptions) -> Result<Self, BackendError> {
        let (voters, observers) = match location.server.split_once('|') {
            Some((voters, observers)) => (voters, Some(observers)),
            None => (location.server.as_str(), None),
        };
        let lasting = Sessions::lasting(voters, timeout, options)?;
        let voters = Sessions::new(voters, timeout, options)?;
        let readers = match observers {
            Some(servers) => Sessions::new(servers, timeout, options)?,
            None => voters.clone(),
        };
        let keys = key_space(&location.root);
        let lines = Lines::new(lasting, keys.clone());
        Ok(Self { voters, readers, lines, keys, seen: Mutex::default(), loading: Loading::default() })
    }

    /// Repeats a refused call if the credentials have changed.
    async fn with_credentials<T, F: Future<Output = Result<T, BackendError>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, BackendError> {
        let outcome = call().await;
        match &outcome {
            Err(error) if error.failure == Failure::Denied && self.renew_auth().await => call().await,
            _ => outcome,
        }
    }

    async fn renew_auth(&self) -> bool {
        let mut renewed = false;
        // Each has read the file itself.
        for sessions in [&*self.voters, &*self.readers, self.lines.sessions()] {
            renewed |= sessions.renew_auth().await;
        }
        renewed
    }

    async fn view(&self, dir: &TopoPath, loading: &Loading) -> Result<(Listing, View), BackendError> {
        let (before, equal) = (self.seen.lock().clone(), self.equal());
        let opened = View::open(&self.readers, &self.keys, dir, (before, loading)).await;
        let (listing, view) = opened.map_err(|ended| Self::ended(&self.readers, ended))?;
        Ok((Listing { mark: Mark::new(equal), ..listing }, view))
    }

    fn equal(&self) -> Equal {
        Equal { user: self.readers.user() }
    }

    async fn differences(&self, shown: &dyn Shown, time: Duration) -> Result<Compared, BackendError> {
        let (seen, equal) = (self.seen.lock().clone(), self.equal());
        let found = compare::differences(&self.readers, (&self.keys, &seen), shown, time).await;
        let Differences { changed, gone } = found.map_err(|error| self.readers.explain(&error))?;
        let changed = Listing { mark: Mark::new(equal), ..changed };
        Ok(Compared::Differences { changed, gone })
    }

    async fn look_at(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        let seen = look(&Access::any(&self.voters), &[Spot::of(&self.keys, path)]).await;
        let seen = seen.map_err(|error| self.voters.explain(&error))?;
        let node = seen.nodes.into_iter().next().flatten().and_then(|znode| {
            let role = znode.role.filter(|role| roles::is_shown(path, *role))?;
            let (version, value) = (version(&znode.stat), Bytes::from(znode.data));
            Some(Node { path: path.clone(), version, role, value, modified: None })
        });
        Ok(Fetched { node, at: seen.at })
    }

    /// The session of the locks of this cell that guard changes, if there are any: as long as it lives, so do they.
    async fn pinned(&self, changes: &[Change]) -> Result<Access<'_>, BackendError> {
        let held = changes.iter().find_map(|change| match change.guard {
            Guard::Held(holding) => Some((change, holding)),
            _ => None,
        });
        match held {
            None => Ok(Access::any(&self.voters)),
            Some((change, holding)) => match self.lines.session_of(holding.owner).await {
                Some(client) => Ok(Access::pinned(self.lines.sessions(), client)),
                None => Err(BackendError::unmet(change.guard, &change.path, None)),
            },
        }
    }

    async fn try_apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        let access = self.pinned(changes).await?;
        write::apply(&access, &[CellChanges { keys: self.keys.clone(), changes }]).await
    }

    async fn try_apply_parts(&self, parts: &[Part<'_>]) -> Result<Applied, BackendError> {
        // A request belongs to one session, so locks of other cells are only looked at.
        let own = parts.iter().find(|part| key_space(part.root).prefix() == self.keys.prefix());
        let access = self.pinned(own.map_or(&[], |own| own.changes)).await?;
        let cells = parts.iter().map(|part| CellChanges { keys: key_space(part.root), changes: part.changes });
        write::apply(&access, &cells.collect::<Vec<_>>()).await
    }

    async fn ask_for(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        let key = znode_path(&self.keys, path);
        let (acls, stat) = self
            .voters
            .try_call(async |client| client.get_acl(&key).await)
            .await
            .map_err(|error| self.voters.explain(&error))?;
        Ok(match name {
            CZXID => Some(format!("{:#x}", stat.czxid)),
            ACL => {
                let one = |acl: &zookeeper_client::Acl| {
                    format!("{}:{}:{}", acl.scheme(), acl.id(), letters(acl.permission()))
                };
                Some(acls.iter().map(one).collect::<Vec<_>>().join(","))
            }
            _ => None,
        })
    }

    async fn sweep(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        // For Vitess any directory with this name is a lock, even an empty one.
        let line = layout::line(dir).map_err(|error| BackendError::new(Failure::Other, error.to_string()))?;
        let removed = write::remove_empty(&Access::any(&self.voters), &self.keys, &line).await;
        Ok(removed.map_err(|error| self.voters.explain(&error))?.then(|| line.to_string()))
    }

    fn ended(sessions: &Sessions, ended: Ended) -> BackendError {
        match ended {
            Ended::Call(error) => sessions.explain(&error),
            Ended::Session(what) => BackendError::new(Failure::Unreachable, what),
            Ended::Behind => BackendError::new(Failure::Compacted, "the watch fell too far behind"),
        }
    }
}

/// Paths of ZooKeeper are absolute.
fn key_space(root: &str) -> KeySpace {
    KeySpace::new(&format!("/{root}"))
}

/// Rights as zkCli.sh writes them.
fn letters(permission: Permission) -> String {
    let all = [
        ('c', Permission::CREATE),
        ('d', Permission::DELETE),
        ('r', Permission::READ),
        ('w', Permission::WRITE),
        ('a', Permission::ADMIN),
    ];
    all.into_iter().filter(|(_, right)| permission.has(*right)).map(|(letter, _)| letter).collect()
}

#[async_trait]
impl Backend for Zk {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn keeps_times(&self) -> bool {
        true
    }

    async fn list(&self, dir: &TopoPath) -> Result<Listing, BackendError> {
        let (listing, view) = self.with_credentials(|| async { self.view(dir, &Loading::default()).await }).await?;
        if dir.is_root() {
            let seen = self.seen.lock().clone();
            compare::remember(&view.nodes(), &seen);
        }
        Ok(listing)
    }

    async fn compare(&self, shown: &dyn Shown, mark: &Mark, time: Duration) -> Result<Compared, BackendError> {
        if mark.get() != Some(&self.equal()) {
            return self.list(&TopoPath::root()).await.map(Compared::Whole);
        }
        self.with_credentials(|| self.differences(shown, time)).await
    }

    async fn get(&self, path: &TopoPath) -> Result<Fetched, BackendError> {
        self.with_credentials(|| self.look_at(path)).await
    }

    fn cannot_hold(&self, path: &TopoPath, value: &[u8], holds_others: bool) -> Option<String> {
        if let Some(reason) = too_large(value.len(), LIMITS) {
            return Some(reason);
        }
        if let Some(letter) = path.as_str().chars().find(|letter| znode::is_refused(*letter)) {
            return Some(format!("ZooKeeper accepts no {letter:?} in a name"));
        }
        if value.is_empty() && holds_others {
            return Some("it is empty and has other records below it: on ZooKeeper, that is a directory".to_owned());
        }
        roles::locked_dir(path).map(|dir| format!("it would be taken for a lock of {dir}"))
    }

    fn attributes(&self) -> &'static [&'static str] {
        &[CZXID, ACL]
    }

    async fn attribute(&self, path: &TopoPath, name: &str) -> Result<Option<String>, BackendError> {
        self.with_credentials(|| self.ask_for(path, name)).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Applied, BackendError> {
        check_limits(changes, LIMITS)?;
        self.with_credentials(|| self.try_apply(changes)).await
    }

    /// How large a request the servers take is asked before it is sent.
    fn refuse_parts(&self, parts: &[Part<'_>]) -> Result<(), BackendError> {
        check_most("changes", parts.iter().map(|part| part.changes.len()).sum(), TOGETHER)?;
        parts.iter().try_for_each(|part| check_values(part.changes, LIMITS))
    }

    async fn apply_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Applied>, BackendError> {
        self.refuse_parts(parts)?;
        let applied = self.with_credentials(|| self.try_apply_parts(parts)).await?;
        Ok(by_part(&applied, parts))
    }

    fn loading(&self) -> Loading {
        self.loading.clone()
    }

    async fn follow(&self) -> Result<(Listing, WatchStream), BackendError> {
        let sessions = self.readers.clone();
        let root = TopoPath::root();
        let (listing, view) = self.with_credentials(|| self.view(&root, &self.loading)).await?;
        *self.seen.lock() = view.nodes();
        let stream = futures::stream::unfold(Some((view, sessions)), |state| async move {
            let (mut view, sessions) = state?;
            let next = match tokio::time::timeout(SIGN_OF_LIFE, view.changed()).await {
                Err(_) => view.probe(&sessions).await,
                Ok(Ok(changed)) => view.read_whole(&sessions, changed).await,
                Ok(Err(ended)) => Err(ended),
            };
            let next = next.map_err(|ended| Self::ended(&sessions, ended));
            let state = next.is_ok().then_some((view, sessions));
            Some((next, state))
        });
        Ok((listing, stream.boxed()))
    }

    fn locked_dir(&self, node: &TopoPath) -> Option<TopoPath> {
        roles::locked_dir(node)
    }

    async fn enter(&self, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
        self.with_credentials(|| self.lines.enter(dir, contents)).await
    }

    async fn break_lock(&self, node: &Node) -> Result<(), BackendError> {
        self.apply(&[removal(node)]).await.map(drop)
    }

    async fn reread_secrets(&self) {
        self.renew_auth().await;
    }

    async fn sweep_locks(&self, dir: &TopoPath) -> Result<Option<String>, BackendError> {
        self.with_credentials(|| self.sweep(dir)).await
    }
}
