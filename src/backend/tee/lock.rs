//! A lock at both services. It is held when both are held, and lost when one is lost. Must never stand in the second
//! line before the first lock is held: two who take them in the same order then never wait for each other.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{PATIENCE, Tee, TeeSettings};
use crate::alive;
use crate::backend::contract::{Backend, BackendError, Failure, Node, Owner, Place, Revision, Role, SharedPlace};
use crate::name::TopoPath;

/// How long a save waits for a lock that somebody holds at the secondary only.
const SAVE_WAITS: Duration = Duration::from_secs(3);
/// How long a release waits for the secondary before it goes on by itself.
const LEAVE_WAITS: Duration = Duration::from_secs(2);
/// Attempts to release a lock at the secondary, and the pause between them. After these, only the end of its lease or
/// session releases it.
const LEAVES: (usize, Duration) = (30, Duration::from_secs(1));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Primary,
    Secondary,
}

/// A place at one service.
#[derive(Debug, Clone, Default)]
enum Slot {
    /// Not in line yet.
    #[default]
    Out,
    Entering,
    In(SharedPlace),
    /// There is nothing to lock at the secondary, or it is not needed there.
    Without,
    Failed(BackendError),
}

#[derive(Debug, Default)]
struct Slots {
    primary: Slot,
    secondary: Slot,
    left: bool,
    /// The node at the primary, while the lock is held at both.
    held: Option<Node>,
    /// Since when only the secondary is waited for.
    waiting: Option<Instant>,
}

impl Slots {
    fn of(&mut self, side: Side) -> &mut Slot {
        match side {
            Side::Primary => &mut self.primary,
            Side::Secondary => &mut self.secondary,
        }
    }
}

/// A place in both lines.
#[derive(Debug)]
struct TeePlace {
    tee: Tee,
    dir: TopoPath,
    contents: Bytes,
    for_save: bool,
    slots: Mutex<Slots>,
    /// Counts changes of the slots.
    changes: watch::Sender<u64>,
}

/// Stands in the first line.
pub(super) async fn enter(tee: &Tee, dir: &TopoPath, contents: &Bytes) -> Result<SharedPlace, BackendError> {
    let place = Arc::new(TeePlace {
        tee: tee.clone(),
        dir: dir.clone(),
        contents: contents.clone(),
        for_save: (tee.0.settings.is_for_save)(contents),
        slots: Mutex::default(),
        changes: watch::Sender::new(0),
    });
    // If the caller gives up, this goes on, and leaves the place.
    let abandoned = scopeguard::guard(place.clone(), |place| {
        tokio::spawn(async move { place.leave().await });
    });
    let [first, _] = place.order();
    place.entered(first).await?;
    scopeguard::ScopeGuard::into_inner(abandoned);
    Ok(Arc::new(Shared(place)))
}

/// The trait's functions need no `Arc`, but a place that is being entered does.
#[derive(Debug)]
struct Shared(Arc<TeePlace>);

impl TeePlace {
    fn order(&self) -> [Side; 2] {
        if self.tee.0.settings.reverse_lock_order {
            [Side::Secondary, Side::Primary]
        } else {
            [Side::Primary, Side::Secondary]
        }
    }

    fn backend(&self, side: Side) -> &Arc<dyn Backend> {
        match side {
            Side::Primary => &self.tee.0.primary,
            Side::Secondary => &self.tee.0.secondary,
        }
    }

    fn set(&self, side: Side, slot: Slot) {
        *self.slots.lock().of(side) = slot;
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// What became of standing in a line. False if nobody waits for that any more.
    fn fill(&self, side: Side, slot: Slot) -> bool {
        let mut slots = self.slots.lock();
        let is_wanted = !slots.left && matches!(slots.of(side), Slot::Entering);
        if is_wanted {
            *slots.of(side) = slot;
        }
        drop(slots);
        self.changes.send_modify(|changes| *changes += 1);
        is_wanted
    }

    /// A save waits for the secondary only for so long.
    fn patience(&self) -> Option<Duration> {
        self.for_save.then_some(PATIENCE)
    }

    /// Stands in the line of one service, once. Returns its place; `None` if none is needed.
    async fn entered(self: &Arc<Self>, side: Side) -> Result<Option<SharedPlace>, BackendError> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let slot = {
                let mut slots = self.slots.lock();
                if slots.left {
                    return Err(BackendError::new(Failure::LockLost, format!("the place for {} was left", self.dir)));
                }
                let slot = slots.of(side);
                let before = slot.clone();
                if matches!(before, Slot::Out) {
                    *slot = Slot::Entering;
                }
                before
            };
            match slot {
                Slot::In(place) => return Ok(Some(place)),
                Slot::Without => return Ok(None),
                Slot::Failed(error) => return Err(error),
                Slot::Out => drop(tokio::spawn(self.clone().enter_side(side))),
                // The sender lives as long as self.
                Slot::Entering if side == Side::Primary => drop(changes.changed().await),
                Slot::Entering => {
                    if let Err(error) = self.tee.while_it_answers(changes.changed(), self.patience()).await {
                        self.fill(side, self.without(side, error));
                    }
                }
            }
        }
    }

    /// In a task of its own: a caller that gives up must not leave a place behind that nobody knows.
    async fn enter_side(self: Arc<Self>, side: Side) {
        if side == Side::Secondary && self.for_save && self.tee.0.notes.is_away() {
            // The save would wait in vain. Whether the secondary is back, its update shows.
            self.fill(side, Slot::Without);
            return;
        }
        if let Some(error) = self.tee.known_away().filter(|_| side == Side::Secondary) {
            self.fill(side, self.without(side, error));
            return;
        }
        let entering = self.backend(side).enter(&self.dir, &self.contents);
        let entered = alive::guarded("standing in a line of a tee", entering).await;
        let entered = entered.unwrap_or_else(|panic| Err(BackendError::new(Failure::Other, panic.to_string())));
        match entered {
            Ok(place) => {
                if !self.fill(side, Slot::In(place.clone())) {
                    leave_in_the_end(&place).await;
                }
            }
            Err(error) => drop(self.fill(side, self.without(side, error))),
        }
    }

    /// What a failure at one side means.
    fn without(&self, side: Side, error: BackendError) -> Slot {
        if side == Side::Primary {
            return Slot::Failed(error);
        }
        match error.failure {
            // Nothing is stored there, so nobody can lock it.
            Failure::NoNode => Slot::Without,
            Failure::LockLost => Slot::Failed(self.tee.explain(error)),
            _ if self.for_save => {
                tracing::warn!(%error, dir = %self.dir, "a save goes on without the lock at the secondary");
                Slot::Without
            }
            failure => {
                let message = format!("the lock cannot be taken at {}", self.tee.explain(error).message);
                // Whoever waits for a lock goes on waiting if a service cannot be reached; here, it holds the other
                // lock meanwhile.
                let failure = if failure == Failure::Unreachable { Failure::Other } else { failure };
                Slot::Failed(BackendError::new(failure, message))
            }
        }
    }

    /// Takes the lock at one service. `None`: somebody is before us. `Some(None)`: it is not needed there.
    async fn take(self: &Arc<Self>, side: Side) -> Result<Option<Option<Node>>, BackendError> {
        let Some(place) = self.entered(side).await? else { return Ok(Some(None)) };
        let held = match side {
            Side::Primary => place.try_hold().await,
            Side::Secondary => self.tee.while_it_answers(place.try_hold(), self.patience()).await.unwrap_or_else(Err),
        };
        match held {
            Ok(held) => Ok(held.map(Some)),
            // The service may come back while the place is alive.
            Err(error) if side == Side::Primary => Err(error),
            Err(error) => match self.without(side, error) {
                Slot::Failed(error) => Err(error),
                slot => {
                    self.set(side, slot);
                    tokio::spawn(async move { leave_in_the_end(&place).await });
                    Ok(Some(None))
                }
            },
        }
    }

    async fn try_both(self: &Arc<Self>) -> Result<Option<Node>, BackendError> {
        let (mut primary, mut secondary) = (None, None);
        let [first, _] = self.order();
        for side in self.order() {
            let taken = match self.take(side).await {
                Ok(taken) => taken,
                Err(error) if side == first && side == Side::Primary => return Err(error),
                Err(error) => {
                    // The other must not be held while this one fails.
                    let _ = self.leave().await;
                    return Err(error);
                }
            };
            let Some(node) = taken else { return self.waits(side).await };
            match side {
                Side::Primary => primary = node,
                Side::Secondary => secondary = node,
            }
        }
        let mut slots = self.slots.lock();
        slots.waiting = None;
        if let (Some(primary), Some(secondary), None) = (&primary, &secondary, &slots.held) {
            self.tee.note_held(primary, secondary);
            slots.held = Some(primary.clone());
        }
        Ok(primary)
    }

    /// A save does not wait for ever for a lock at the secondary: it holds up the primary.
    async fn waits(self: &Arc<Self>, side: Side) -> Result<Option<Node>, BackendError> {
        if side == Side::Primary || !self.for_save {
            return Ok(None);
        }
        let since = *self.slots.lock().waiting.get_or_insert_with(Instant::now);
        if since.elapsed() < SAVE_WAITS {
            return Ok(None);
        }
        let holder = self.tee.holder_at_secondary(&self.dir).await;
        let _ = self.leave().await;
        let TeeSettings { secondary: at, in_words, .. } = &self.tee.0.settings;
        let who = holder.map_or_else(|| "another".to_owned(), |node| in_words(&node.value));
        Err(BackendError::new(Failure::Locked, format!("{} is locked at the secondary ({at}) by {who}", self.dir)))
    }

    fn places(&self) -> [Option<SharedPlace>; 2] {
        let slots = self.slots.lock();
        [&slots.primary, &slots.secondary].map(|slot| match slot {
            Slot::In(place) => Some(place.clone()),
            _ => None,
        })
    }

    /// Releases the secondary, then the primary. The secondary's failures stop nobody.
    async fn leave(&self) -> Result<Revision, BackendError> {
        let held = {
            let mut slots = self.slots.lock();
            slots.left = true;
            slots.held.take()
        };
        self.changes.send_modify(|changes| *changes += 1);
        if let Some(node) = held {
            self.tee.note_left(&node);
        }
        let [primary, secondary] = self.places();
        if let Some(place) = secondary {
            let leaving = tokio::spawn(async move { leave_in_the_end(&place).await });
            // It goes on by itself.
            let _ = tokio::time::timeout(LEAVE_WAITS, leaving).await;
        }
        match primary {
            Some(place) => place.leave().await,
            None => Ok(Revision::default()),
        }
    }
}

/// Leaves a place at the secondary, however long that takes.
async fn leave_in_the_end(place: &SharedPlace) {
    for _ in 0..LEAVES.0 {
        match place.leave().await {
            Ok(_) => return,
            Err(error) if error.failure == Failure::LockLost => return,
            Err(error) => tracing::debug!(%error, "cannot release a lock at the secondary now"),
        }
        tokio::time::sleep(LEAVES.1).await;
    }
}

#[async_trait]
impl Place for Shared {
    /// The primary's: its mirror shows it.
    fn node(&self) -> Option<Node> {
        let [primary, _] = self.0.places();
        primary.and_then(|place| place.node())
    }

    async fn try_hold(&self) -> Result<Option<Node>, BackendError> {
        self.0.try_both().await
    }

    async fn lost(&self) -> BackendError {
        let mut changes = self.0.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let [primary, secondary] = self.0.places();
            tokio::select! {
                error = lost(primary) => return error,
                error = lost(secondary) => return self.0.tee.explain(error),
                _ = changes.changed() => {}
            }
        }
    }

    async fn leave(&self) -> Result<Revision, BackendError> {
        self.0.leave().await
    }
}

async fn lost(place: Option<SharedPlace>) -> BackendError {
    match place {
        Some(place) => place.lost().await,
        None => std::future::pending().await,
    }
}

impl Tee {
    /// The nodes of a lock at the secondary: first the holder.
    async fn line_at_secondary(&self, dir: &TopoPath) -> Result<Vec<Node>, BackendError> {
        let listing = self.0.secondary.list(dir).await.map_err(|error| self.explain(error))?;
        let belongs = |node: &Node| {
            let is_lock = matches!(node.role, Role::Lock(owner) if owner != Owner::NOBODY);
            is_lock && self.0.secondary.locked_dir(&node.path).as_ref() == Some(dir)
        };
        let mut line: Vec<Node> = listing.nodes.into_iter().filter(belongs).collect();
        line.sort_by_key(|node| node.version.written);
        Ok(line)
    }

    async fn holder_at_secondary(&self, dir: &TopoPath) -> Option<Node> {
        self.line_at_secondary(dir).await.ok()?.into_iter().next()
    }

    /// Takes away the lock at the secondary that was taken together with this one.
    pub(super) async fn break_at_secondary(&self, dir: &TopoPath, primary: &Node) -> Result<(), BackendError> {
        for node in self.line_at_secondary(dir).await?.into_iter().filter(|node| node.value == primary.value) {
            self.0.secondary.break_lock(&node).await.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }
}
