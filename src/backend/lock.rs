//! Locks and elections: the parts that all services need. `record/layout` says where they are.
//!
//! To lock a directory, a process stands in line: [`super::contract::Backend::enter`] returns a place, and the first
//! place in the line holds the lock. A place lives as long as its lease or session. This file keeps them alive until
//! the place is left. A lost place is never taken again automatically.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::contract::{Action, Backend, BackendError, Change, Failure, Guard, Holding, Node, Owner, Role};
use crate::alive;
use crate::name::{NameError, TopoPath};
use crate::record::layout;

/// The path of a place in line, on services with a queue.
pub(crate) fn queued_path(dir: &TopoPath, id: impl std::fmt::Display) -> Result<TopoPath, BackendError> {
    let path = layout::line(dir).and_then(|line| line.join(&id.to_string()));
    path.map_err(|error| BackendError::new(Failure::Other, error.to_string()))
}

/// The error of a place that is gone.
pub(crate) fn gone(what: impl std::fmt::Display) -> BackendError {
    BackendError::new(Failure::LockLost, format!("{what} is gone"))
}

/// Keeps a lease or session alive in its own task, and tells when it is lost.
#[derive(Debug)]
pub(crate) struct Keeper {
    task: tokio::task::JoinHandle<()>,
    lost: watch::Receiver<Option<BackendError>>,
}

/// The part of the time to live after which to renew it.
const RENEWALS: u32 = 3;
/// Pause after a failed renewal.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

impl Keeper {
    /// Renews until the renewal says that there is nothing left to renew (`Ok(false)`), or none was confirmed for the
    /// time to live. `begun` is when the last confirmed request was sent.
    pub fn start<F>(
        what: String,
        time_to_live: Duration,
        begun: Instant,
        renew: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<bool, BackendError>> + Send,
    {
        let (tell, lost) = watch::channel(None);
        let task = tokio::spawn(async move {
            // Without renewal it does not last long: after a panic it counts as lost at once.
            let kept = alive::guarded("the keeper of a lock", keep(&what, time_to_live, begun, renew)).await;
            let error = kept.unwrap_or_else(|panic| BackendError::new(Failure::LockLost, panic.to_string()));
            // It is not an error if nobody listens.
            let _ = tell.send(Some(error));
        });
        Self { task, lost }
    }

    /// Stops the renewal. It then counts as lost when its time is over.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// Waits until it is lost.
    pub async fn lost(&self) -> BackendError {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or_else(|| gone("the lock")),
            Err(_) => gone("the lock"),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep<F>(
    what: &str,
    time_to_live: Duration,
    begun: Instant,
    renew: impl Fn() -> F + Send + Sync,
) -> BackendError
where
    F: Future<Output = Result<bool, BackendError>> + Send,
{
    let mut deadline = begun + time_to_live;
    let mut pause = time_to_live / RENEWALS;
    loop {
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        let sent = Instant::now();
        match tokio::time::timeout_at(deadline, renew()).await {
            Ok(Ok(true)) => {
                deadline = sent + time_to_live;
                pause = time_to_live / RENEWALS;
            }
            Ok(Ok(false)) => return gone(what),
            Ok(Err(error)) if Instant::now() < deadline => {
                tracing::warn!(%error, "{what} cannot be renewed now");
                pause = RETRY_PAUSE;
            }
            Ok(Err(_)) | Err(_) => {
                let waited = humantime::format_duration(time_to_live);
                return BackendError::new(Failure::LockLost, format!("{what} could not be renewed for {waited}"));
            }
        }
    }
}

/// Who holds the lock of a directory, as the service has it now. Reads no records, so it costs little where many are.
pub async fn holder(backend: &dyn Backend, dir: &TopoPath) -> Result<Option<Node>, BackendError> {
    let invalid = |error: NameError| BackendError::new(Failure::Other, error.to_string());
    let nodes = match backend.has_queue() {
        true => backend.list(&layout::line(dir).map_err(invalid)?).await?.nodes,
        false => backend.get(&dir.join(layout::LOCK).map_err(invalid)?).await?.node.into_iter().collect(),
    };
    Ok(first(backend, dir, nodes))
}

/// Who holds the lock of a directory, among some nodes.
pub fn first(backend: &dyn Backend, dir: &TopoPath, nodes: Vec<Node>) -> Option<Node> {
    let holds = |node: &Node| {
        node.role != Role::Record
            && node.owner() != Owner::NOBODY
            && backend.locked_dir(&node.path).as_ref() == Some(dir)
    };
    nodes.into_iter().filter(holds).min_by_key(|node| node.version.written)
}

/// The removal of a lock node, if it is still the same node.
pub(crate) fn removal(node: &Node) -> Change {
    Change { path: node.path.clone(), guard: Guard::Version(node.version), action: Action::Delete }
}

/// The guard of a change that needs a held lock.
pub(crate) fn guard(node: &Node) -> Guard {
    Guard::Held(Holding { version: node.version, owner: node.owner() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const TTL: Duration = Duration::from_secs(30);
    /// The clock of the tests counts whole milliseconds.
    const TICK: Duration = Duration::from_millis(2);

    /// Answers of a service, one for each renewal; the last is repeated.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Renewed,
        /// Renewed, and it took as long.
        Late(Duration),
        Gone,
        Refused,
        Panics,
        Never,
    }

    fn keeper(answers: &'static [Answer]) -> (Keeper, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let keeper = Keeper::start("the lease".to_owned(), TTL, Instant::now(), move || {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let answer = answers.get(number).or(answers.last()).copied();
            async move {
                match answer {
                    Some(Answer::Renewed) => Ok(true),
                    Some(Answer::Late(time)) => {
                        tokio::time::sleep(time).await;
                        Ok(true)
                    }
                    Some(Answer::Gone) => Ok(false),
                    Some(Answer::Refused) => Err(BackendError::new(Failure::Unreachable, "no connection")),
                    Some(Answer::Panics) => panic!("the renewal"),
                    Some(Answer::Never) | None => std::future::pending().await,
                }
            }
        });
        (keeper, asked)
    }

    /// When it is lost, and why.
    async fn lost(keeper: &Keeper) -> (Duration, BackendError) {
        let begun = Instant::now();
        let error = tokio::time::timeout(TTL * 10, keeper.lost()).await.expect("it is lost");
        (begun.elapsed(), error)
    }

    fn about(time: Duration, wanted: Duration) -> bool {
        time >= wanted && time <= wanted + TICK
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_panics_keeps_nothing() {
        let (keeper, asked) = keeper(&[Answer::Renewed, Answer::Panics]);
        let (after, error) = lost(&keeper).await;
        assert_eq!(error.failure, Failure::LockLost);
        assert!(error.message.contains("a task of topofs panicked: the renewal (the keeper of a lock"), "{error}");
        assert!(about(after, TTL / RENEWALS * 2), "{after:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_gone_is_lost_as_soon_as_that_is_said() {
        let (keeper, asked) = keeper(&[Answer::Renewed, Answer::Gone, Answer::Renewed]);
        let (after, error) = lost(&keeper).await;
        assert_eq!((error.failure, error.message.as_str()), (Failure::LockLost, "the lease is gone"));
        assert!(about(after, TTL / RENEWALS * 2), "{after:?}");
        tokio::time::sleep(TTL * 3).await;
        assert_eq!(asked.load(Ordering::SeqCst), 2, "what is lost is not asked for again");
        assert_eq!(keeper.lost().await.failure, Failure::LockLost, "and stays lost for everybody");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_renewed_is_lost_when_its_time_is_over() {
        for answers in [&[Answer::Refused][..], &[Answer::Never]] {
            let (keeper, asked) = keeper(Box::leak(answers.to_vec().into_boxed_slice()));
            let (after, error) = lost(&keeper).await;
            assert!(error.failure == Failure::LockLost && error.message.contains("could not be renewed"), "{error}");
            assert!(about(after, TTL), "{after:?}");
            let tries = asked.load(Ordering::SeqCst);
            // The keeper tries again while there is time.
            let most =
                usize::try_from((TTL.as_millis() - (TTL / RENEWALS).as_millis()) / RETRY_PAUSE.as_millis()).unwrap();
            assert!(tries == 1 || tries.abs_diff(most) <= 1, "{tries} of {most}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn its_time_counts_from_when_the_renewal_was_sent() {
        let late = TTL / 2;
        let (keeper, _) = keeper(Box::leak(Box::new([Answer::Late(late), Answer::Never])));
        let (after, _) = lost(&keeper).await;
        assert!(about(after, TTL / RENEWALS + TTL), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_lives_as_long_as_it_is_renewed_and_kept() {
        let (keeper, asked) = keeper(&[Answer::Renewed, Answer::Refused, Answer::Renewed]);
        let waited = tokio::time::timeout(TTL * 10, keeper.lost()).await;
        assert!(waited.is_err(), "it is lost: {waited:?}");
        let before = asked.load(Ordering::SeqCst);
        assert!(before >= 29, "{before}");
        drop(keeper);
        tokio::time::sleep(TTL).await;
        assert_eq!(asked.load(Ordering::SeqCst), before, "nobody renews what nobody keeps");
    }
}
