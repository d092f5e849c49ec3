//! What etcd still has of the past of one record: every version that is not compacted, and every deletion. Reads on
//! demand and keeps no version; must never take more than its bounds, whatever the server sends.
//!
//! etcd answers how a key was at any revision, so the versions of one life are found from the newest back: each says at
//! which revision it was written, and one revision earlier is the version before. But nothing says when a key that is
//! gone was deleted, except the watch. So [`Deletions`] asks a watch once for all deletions since the last compaction,
//! and from then on the mirror's own watch tells of each.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions, WatchStream as EtcdStream};
use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::Etcd;
use super::connection::{Connection, watch_client};
use super::errors::{cancelled, classify};
use super::key::{blocks_as_copied, header_revision, locked_dir, node};
use crate::backend::contract::{BackendError, Earlier, EarlierState, Failure, Revision, Role};
use crate::backend::keys::KeySpace;
use crate::name::TopoPath;

/// Most states of one record.
const STATES: usize = 1_000;
/// Most bytes of them: several versions of the largest record that any server takes.
const BYTES: usize = 32 << 20;
/// Number of deletions to know of one cell. One more, and the older half is forgotten.
const DELETIONS: usize = 100_000;
/// etcd before 3.4.25 and 3.5.8 says that a watch has told everything when it has not begun. It looks at new watches
/// ten times a second: one that is silent for so long has told everything.
const QUIET: Duration = Duration::from_millis(500);
/// How often to ask whether a watch has told everything. Newer servers answer only when it has.
const ASK: Duration = Duration::from_millis(50);

/// The deletions in one cell, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    known: Mutex<Known>,
    /// Held while deletions are asked for, no longer than one operation may take.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    deleted: OrdMap<TopoPath, Vec<Revision>>,
    count: usize,
    /// All deletions up to here are known, as far as etcd had them.
    covered: Revision,
    /// The watch that tells of all deletions after a revision.
    live: Option<(u64, Revision)>,
    /// How far it has told.
    told: Revision,
    watches: u64,
}

impl Known {
    fn is_complete(&self) -> bool {
        self.live.is_some_and(|(_, after)| self.covered >= after)
    }

    fn add(&mut self, path: TopoPath, at: Revision) {
        let all = self.deleted.entry(path).or_default();
        if let Err(index) = all.binary_search(&at) {
            all.insert(index, at);
            self.count += 1;
        }
        if self.count > DELETIONS {
            self.forget_half();
        }
    }

    fn forget_half(&mut self) {
        let mut all: Vec<Revision> = self.deleted.values().flatten().copied().collect();
        all.sort_unstable();
        let Some(middle) = all.get(all.len() / 2).copied() else { return };
        let kept = self.deleted.iter().map(|(path, all)| {
            let later: Vec<Revision> = all.iter().copied().filter(|at| *at > middle).collect();
            (path.clone(), later)
        });
        self.deleted = kept.filter(|(_, later)| !later.is_empty()).collect();
        self.count = self.deleted.values().map(Vec::len).sum();
    }
}

/// A watch that tells of deletions until it is dropped.
#[derive(Debug)]
pub(super) struct Told {
    deletions: Arc<Deletions>,
    watch: u64,
}

impl Told {
    /// The watch of a cell tells of everything after a revision.
    pub fn new(deletions: &Arc<Deletions>, after: Revision) -> Self {
        let mut known = deletions.known.lock();
        if after < known.covered.max(known.told) {
            // The service was restored: the revisions mean something else now.
            *known = Known { watches: known.watches, ..Known::default() };
        }
        known.watches += 1;
        known.live = Some((known.watches, after));
        Self { deletions: deletions.clone(), watch: known.watches }
    }

    /// The watch has told everything up to a revision, with these deletions.
    pub fn tells(&self, deleted: impl Iterator<Item = TopoPath>, at: Revision) {
        let mut known = self.deletions.known.lock();
        if known.live.is_some_and(|(watch, _)| watch == self.watch) {
            deleted.filter(is_record).for_each(|path| known.add(path, at));
            known.told = known.told.max(at);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut known = self.deletions.known.lock();
        if known.live.is_some_and(|(watch, _)| watch == self.watch) {
            if known.is_complete() {
                known.covered = known.covered.max(known.told);
            }
            known.live = None;
        }
    }
}

/// Locks come and go all the time, and are no records.
fn is_record(path: &TopoPath) -> bool {
    !blocks_as_copied(path) && locked_dir(path).is_none()
}

impl Deletions {
    /// All deletions, asked for if they are not known. Bounded by the time for one operation.
    async fn all(
        &self,
        connection: &Connection,
        keys: &KeySpace,
    ) -> Result<OrdMap<TopoPath, Vec<Revision>>, BackendError> {
        let all = async {
            let _turn = self.asking.lock().await;
            if !self.known.lock().is_complete() {
                self.ask(connection, keys).await?;
            }
            Ok(self.known.lock().deleted.clone())
        };
        timeout(connection.timeout(), all).await.unwrap_or_else(|_| {
            let waited = humantime::format_duration(connection.timeout());
            Err(BackendError::new(Failure::Unreachable, format!("etcd has not told all deletions within {waited}")))
        })
    }

    /// Asks a watch of its own for all deletions that are not known. What it has told counts also if the time is up.
    async fn ask(&self, connection: &Connection, keys: &KeySpace) -> Result<(), BackendError> {
        let until = connection.newest(keys.prefix()).await?;
        let mut from = Revision(self.known.lock().covered.0 + 1);
        while from <= until {
            match self.ask_from(connection, keys, from, until).await? {
                None => break,
                Some(compacted) => from = compacted.max(Revision(from.0 + 1)),
            }
        }
        let mut known = self.known.lock();
        known.covered = known.covered.max(until);
        Ok(())
    }

    /// Asks from a revision on. If that is compacted, returns where to begin instead.
    async fn ask_from(
        &self,
        connection: &Connection,
        keys: &KeySpace,
        from: Revision,
        until: Revision,
    ) -> Result<Option<Revision>, BackendError> {
        let mut stream = connection
            .read(|client| {
                let options = WatchOptions::new().with_prefix().with_start_revision(from.0.cast_signed());
                let prefix = keys.prefix().to_owned();
                async move { watch_client(&client).watch(prefix, Some(options)).await }
            })
            .await?;
        let (mut heard, mut is_said) = (Instant::now(), false);
        let mut ask = Instant::now();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let message = message.map_err(|error| classify(&error))?;
                    let Some(message) = message else {
                        return Err(BackendError::new(Failure::Unreachable, "etcd closed the watch"));
                    };
                    if message.canceled() {
                        let compacted = Revision(message.compact_revision().cast_unsigned());
                        let error = || cancelled(&message);
                        return if compacted >= from { Ok(Some(compacted)) } else { Err(error()) };
                    }
                    if !message.events().is_empty() {
                        heard = Instant::now();
                        self.hear(keys, message.events(), until);
                    } else if !message.created() {
                        is_said |= header_revision(message.header())? >= until;
                    }
                }
                () = sleep_until(ask) => {
                    if is_said && heard.elapsed() >= QUIET {
                        return Ok(None);
                    }
                    ask_again(&mut stream, is_said).await?;
                    ask = Instant::now() + ASK;
                }
            }
        }
    }

    fn hear(&self, keys: &KeySpace, events: &[etcd_client::Event], until: Revision) {
        let mut known = self.known.lock();
        for event in events {
            let Some(kv) = event.kv() else { continue };
            let at = Revision(kv.mod_revision().cast_unsigned());
            let path = keys.path(kv.key()).filter(|_| event.event_type() == EventType::Delete);
            path.filter(is_record).into_iter().for_each(|path| known.add(path, at));
            // More of the same revision may come.
            known.covered = known.covered.max(Revision(at.0.saturating_sub(1)).min(until));
        }
    }
}

async fn ask_again(stream: &mut EtcdStream, is_said: bool) -> Result<(), BackendError> {
    match timeout(ASK, stream.request_progress()).await {
        Ok(Err(error)) if !is_said => Err(classify(&error)),
        _ => Ok(()),
    }
}

/// The states of one record that were found, the newest first.
struct Found {
    states: Vec<EarlierState>,
    bytes: usize,
    /// After this, no further state is read.
    until: Instant,
    is_whole: bool,
}

impl Found {
    /// Takes one more state. False if there is no room, or no time, for another one.
    fn push(&mut self, state: EarlierState) -> bool {
        self.bytes += state.node.as_ref().map_or(0, |node| node.value.len());
        self.states.push(state);
        let goes_on = self.states.len() < STATES && self.bytes < BYTES && Instant::now() < self.until;
        self.is_whole &= goes_on;
        goes_on
    }
}

/// Where a way back ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The record was made at this revision.
    Made(Revision),
    /// Everything before is compacted, or there is no room for it.
    Before,
}

impl Etcd {
    pub(super) async fn deletions(&self) -> Result<OrdMap<TopoPath, Vec<Revision>>, BackendError> {
        self.deletions.all(&self.connection, &self.keys).await
    }

    /// All states of a record, from the newest back to the last compaction.
    pub(super) async fn earlier_states(&self, path: &TopoPath) -> Result<Earlier, BackendError> {
        // A slow server has shown part of it by then, and a dead one fails the call that it does not answer.
        let until = Instant::now() + self.connection.timeout().mul_f64(0.6);
        let mut found = Found { states: Vec::new(), bytes: 0, until, is_whole: true };
        let present = self.at_revision(path, None).await?;
        let mut end = match present {
            Some(kv) => self.life(path, kv, &mut found).await?,
            None => End::Made(Revision(u64::MAX)),
        };
        if let End::Made(made) = end
            && (made.0 == u64::MAX || self.is_readable(path, Revision(made.0 - 1)).await?)
        {
            let deleted = match self.deletions().await {
                Err(error) if found.states.is_empty() || error.failure == Failure::Denied => return Err(error),
                Err(_) => {
                    found.is_whole = false;
                    Vec::new()
                }
                Ok(all) => all.get(path).cloned().unwrap_or_default(),
            };
            for at in deleted.into_iter().rev() {
                let End::Made(made) = end else { break };
                if at >= made {
                    continue;
                }
                end = self.before_deletion(path, at, &mut found).await?;
            }
        }
        found.states.reverse();
        Ok(Earlier { states: found.states, is_whole: found.is_whole })
    }

    /// A deletion, and the life that it ended.
    async fn before_deletion(&self, path: &TopoPath, at: Revision, found: &mut Found) -> Result<End, BackendError> {
        if !found.push(EarlierState { at, node: None }) {
            return Ok(End::Before);
        }
        match self.at_revision(path, Some(Revision(at.0.saturating_sub(1)))).await {
            Ok(Some(kv)) => self.life(path, kv, found).await,
            Ok(None) => Ok(End::Made(at)),
            Err(error) if error.failure == Failure::Compacted => Ok(End::Before),
            Err(error) => Err(error),
        }
    }

    /// One life of a record, from a version back to the first.
    async fn life(&self, path: &TopoPath, newest: KeyValue, found: &mut Found) -> Result<End, BackendError> {
        let mut next = newest;
        loop {
            let (written, made) = (next.mod_revision().cast_unsigned(), next.create_revision().cast_unsigned());
            let node = node(&self.keys, next).filter(|node| node.role == Role::Record);
            let goes_on = node.is_none_or(|node| found.push(EarlierState { at: Revision(written), node: Some(node) }));
            if written <= made || !goes_on {
                return Ok(if goes_on { End::Made(Revision(made)) } else { End::Before });
            }
            next = match self.at_revision(path, Some(Revision(written - 1))).await {
                // A server that does not go back would be asked for ever.
                Ok(Some(kv)) if kv.mod_revision().cast_unsigned() < written => kv,
                Ok(_) => return Ok(End::Made(Revision(written))),
                Err(error) if error.failure == Failure::Compacted => return Ok(End::Before),
                Err(error) => return Err(error),
            };
        }
    }

    /// Whether a revision is not compacted.
    async fn is_readable(&self, path: &TopoPath, at: Revision) -> Result<bool, BackendError> {
        match self.at_revision(path, Some(at)).await {
            Ok(_) => Ok(true),
            Err(error) if error.failure == Failure::Compacted => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A key as it was at a revision, or as it is.
    async fn at_revision(&self, path: &TopoPath, at: Option<Revision>) -> Result<Option<KeyValue>, BackendError> {
        let options = GetOptions::new();
        let options = match at {
            // 0 would be the present.
            Some(Revision(0)) => return Ok(None),
            Some(at) => options.with_revision(at.0.cast_signed()),
            None => options,
        };
        let mut answer = self.connection.range(self.keys.key(path).into_bytes(), options).await?;
        Ok(answer.take_kvs().into_iter().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> TopoPath {
        TopoPath::parse(name).unwrap()
    }

    fn tells(told: &Told, name: &str, at: u64) {
        told.tells(std::iter::once(path(name)), Revision(at));
    }

    #[test]
    fn what_the_watch_tells_need_not_be_asked_for_again() {
        let deletions = Arc::new(Deletions::default());
        let told = Told::new(&deletions, Revision(10));
        assert!(!deletions.known.lock().is_complete(), "nobody knows what was before the watch");
        deletions.known.lock().covered = Revision(12);
        assert!(deletions.known.lock().is_complete());
        tells(&told, "a", 15);
        drop(told);
        assert!(!deletions.known.lock().is_complete());
        // Only what is between two watches is asked for.
        assert_eq!(deletions.known.lock().covered, Revision(15));
        let next = Told::new(&deletions, Revision(15));
        assert!(deletions.known.lock().is_complete());
        // A watch that has been replaced says nothing any more.
        let newer = Told::new(&deletions, Revision(20));
        tells(&next, "b", 21);
        drop(next);
        assert!(deletions.known.lock().live.is_some() && !deletions.known.lock().deleted.contains_key(&path("b")));
        drop(newer);
        // The service was restored from a backup.
        let _restored = Told::new(&deletions, Revision(3));
        assert!(deletions.known.lock().deleted.is_empty() && !deletions.known.lock().is_complete());
    }

    #[test]
    fn deletions_have_a_bound_and_locks_do_not_count() {
        let deletions = Arc::new(Deletions::default());
        let told = Told::new(&deletions, Revision(0));
        for at in 1..=150_000 {
            tells(&told, &format!("record{}", at % 7_000), at);
            tells(&told, "keyspaces/ks/locks/7587869134567", at);
        }
        let known = deletions.known.lock();
        assert!((DELETIONS / 2..=DELETIONS).contains(&known.count), "{}", known.count);
        assert_eq!(known.count, known.deleted.values().map(Vec::len).sum::<usize>());
        assert!(known.deleted.get(&path("record2999")).unwrap().contains(&Revision(149_999)), "the newest are kept");
        assert!(known.deleted.keys().all(|path| path.as_str().starts_with("record")));
    }
}
