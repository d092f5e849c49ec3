//! No task dies unseen. A panic goes to the log with its place, is counted, and appears in `.topofs/status`; and the
//! work of the task fails where people see it. Each place that starts a task says what that means.
//!
//! A lock of parking_lot does not notice that its holder has panicked, so half of a change may stay behind it. So data
//! that is shown as current is either replaced before it is shown again (a mirror takes a fresh list), or changes by
//! one assignment.

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use backon::BackoffBuilder;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Kind};

/// Number of panics to remember. The first ones tell most: a panic that repeats must not push out its cause.
const KEPT: usize = 20;
/// Longest message to keep, in bytes: it may quote what somebody has written.
const MESSAGE: usize = 1_000;
/// First and longest pause before a task starts again after a panic.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After so much time without a panic, the next pause is the first one again.
const STEADY: Duration = Duration::from_secs(600);

/// The name of a task, for people.
pub type TaskName = Cow<'static, str>;

/// The panic of a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task of topofs panicked: {message} ({task}, at {at}); please report this")]
pub struct Panic {
    /// The task.
    pub task: String,
    /// File, line and column of the source.
    pub at: String,
    /// The message.
    pub message: String,
    /// When.
    pub time: SystemTime,
}

impl From<Panic> for Error {
    fn from(panic: Panic) -> Self {
        Error::new(Kind::Io, panic.to_string())
    }
}

impl Panic {
    fn new(task: String, payload: &dyn Any, at: Option<&Location<'_>>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)");
        let fits = |(at, character): &(usize, char)| at + character.len_utf8() <= MESSAGE;
        let message = text.char_indices().take_while(fits).map(|(_, character)| character).collect();
        let at = at.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        Self { task, at, message, time: SystemTime::now() }
    }
}

/// The panics of this process: the hook belongs to the process, so its data does, too.
#[derive(Debug, Clone, Default)]
pub struct Panics {
    /// How many there were in all.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Panic>,
    /// The last of them.
    pub last: VecDeque<Panic>,
}

impl Panics {
    const fn none() -> Self {
        Self { count: 0, first: Vec::new(), last: VecDeque::new() }
    }

    fn add(&mut self, panic: Panic) {
        self.count += 1;
        if self.first.len() < KEPT / 2 {
            return self.first.push(panic);
        }
        if self.last.len() >= KEPT / 2 {
            self.last.pop_front();
        }
        self.last.push_back(panic);
    }

    /// The remembered panics, the oldest first.
    pub fn known(&self) -> impl Iterator<Item = &Panic> {
        self.first.iter().chain(&self.last)
    }
}

static PANICS: Mutex<Panics> = Mutex::new(Panics::none());

thread_local! {
    /// The task that this thread is running.
    static TASK: RefCell<Option<TaskName>> = const { RefCell::new(None) };
    /// A panic that the hook has recorded and nobody has caught yet.
    static CAUGHT: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// The panics of this process so far.
pub fn panics() -> Panics {
    PANICS.lock().clone()
}

/// From now on, every panic of this process goes to the log with its place, and is counted. While there is no log yet,
/// it goes to standard error.
pub fn note_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let panic = Panic::new(current_task(), info.payload(), info.location());
            if tracing::dispatcher::has_been_set() {
                log(&panic)
            } else {
                usual(info)
            }
            PANICS.lock().add(panic.clone());
            // A thread that is ending cannot store it any more, and catches nothing.
            let _ = CAUGHT.try_with(|caught| caught.try_borrow_mut().map(|mut caught| *caught = Some(panic)));
        }));
    });
}

fn log(Panic { task, at, message, .. }: &Panic) {
    // Captures it only if RUST_BACKTRACE is set.
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        tracing::error!(task, at, %backtrace, "a task has panicked; please report this: {message}");
    } else {
        tracing::error!(task, at, "a task has panicked; please report this: {message}");
    }
}

/// The name of this thread's task, or of the thread.
fn current_task() -> String {
    let task = TASK.try_with(|task| task.try_borrow().ok().and_then(|task| task.as_deref().map(str::to_owned)));
    task.ok()
        .flatten()
        .unwrap_or_else(|| format!("thread {}", std::thread::current().name().unwrap_or("without a name")))
}

/// Runs work. Returns a panic as an error.
pub fn run<T>(task: impl Into<TaskName>, work: impl FnOnce() -> T) -> Result<T, Panic> {
    let task = task.into();
    let outer = TASK.replace(Some(task.clone()));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    TASK.set(outer);
    outcome.map_err(|payload| {
        CAUGHT.take().unwrap_or_else(|| {
            // There is no hook, because this is not a daemon.
            let panic = Panic::new(task.into_owned(), &*payload, None);
            PANICS.lock().add(panic.clone());
            panic
        })
    })
}

/// Runs a future. Returns a panic as an error.
pub async fn guarded<F: Future>(task: impl Into<TaskName>, future: F) -> Result<F::Output, Panic> {
    let task = task.into();
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match run(task.clone(), || future.as_mut().poll(context)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Runs work on a thread that nobody else waits for. It goes on if the caller gives up.
pub async fn blocking<T: Send + 'static>(
    task: impl Into<TaskName>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let task = task.into();
    let done = tokio::task::spawn_blocking(move || run(task, work)).await;
    Ok(done.map_err(|error| Error::new(Kind::Io, error.to_string()))??)
}

/// Runs a task that lasts as long as the mount. After a panic, the task starts again after a pause.
pub async fn restarted<F: Future<Output = ()>>(task: impl Into<TaskName>, mut begin: impl FnMut() -> F) {
    let task = task.into();
    let mut pauses = Pauses::default();
    while guarded(task.clone(), begin()).await.is_err() {
        tokio::time::sleep(pauses.pause()).await;
    }
}

/// How long a task waits after a panic before it starts again.
#[derive(Debug)]
pub struct Pauses {
    backoff: backon::ExponentialBackoff,
    last: Option<Instant>,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { backoff: backoff(), last: None }
    }
}

impl Pauses {
    /// The task has panicked.
    pub fn pause(&mut self) -> Duration {
        if self.last.replace(Instant::now()).is_some_and(|last| last.elapsed() > STEADY) {
            self.backoff = backoff();
        }
        self.backoff.next().unwrap_or(PAUSE.1)
    }
}

fn backoff() -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new().with_min_delay(PAUSE.0).with_max_delay(PAUSE.1).without_max_times().build()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn of_task(task: &str) -> Vec<Panic> {
        panics().known().filter(|panic| panic.task == task).cloned().collect()
    }

    #[tokio::test]
    async fn a_panic_is_an_outcome_with_its_place_and_is_remembered() {
        note_panics();
        let line = line!() + 2;
        let failed = guarded("first test", async {
            panic!("the {} was wrong", "answer");
        });
        let failed: Panic = failed.await.unwrap_err();
        assert_eq!((failed.task.as_str(), failed.message.as_str()), ("first test", "the answer was wrong"));
        assert!(failed.at.starts_with(&format!("{}:{line}:", file!())), "{}", failed.at);
        assert_eq!(of_task("first test"), std::slice::from_ref(&failed));
        let error = Error::from(failed);
        assert_eq!(error.kind, Kind::Io);
        assert!(error.reason.contains("a task of topofs panicked: the answer was wrong (first test, at "), "{error}");
    }

    #[tokio::test]
    async fn each_panic_is_that_of_its_own_task() {
        note_panics();
        let outer = guarded("outer", async {
            let inner: Result<(), Panic> = guarded("inner", async {
                tokio::task::yield_now().await;
                panic!("in")
            })
            .await;
            assert_eq!(inner.unwrap_err().task, "inner");
            tokio::task::yield_now().await;
            panic!("out")
        });
        let failed: Panic = outer.await.unwrap_err();
        assert_eq!((failed.task.as_str(), failed.message.as_str()), ("outer", "out"));
        // Without a guard, the panic has the name of the thread.
        let thread = std::thread::Builder::new().name("unguarded".to_owned()).spawn(|| panic!("alone")).unwrap();
        assert!(thread.join().is_err());
        assert_eq!(of_task("thread unguarded").len(), 1);
    }

    #[test]
    fn what_does_not_panic_is_done() {
        assert_eq!(run("sum", || 1 + 1), Ok(2));
        assert!(of_task("sum").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_begun_again_with_growing_pauses() {
        let (begun, tries) = (Instant::now(), AtomicUsize::new(0));
        restarted("restarted", || async {
            if tries.fetch_add(1, Ordering::SeqCst) < 3 {
                panic!("again");
            }
        })
        .await;
        assert_eq!((tries.load(Ordering::SeqCst), of_task("restarted").len()), (4, 3));
        // 1, 2 and 4 seconds.
        assert_eq!(begun.elapsed().as_secs(), 7);
        let mut pauses = Pauses::default();
        let longest = (0..20).map(|_| pauses.pause()).last();
        assert_eq!(longest, Some(PAUSE.1));
        tokio::time::advance(STEADY * 2).await;
        assert_eq!(pauses.pause(), PAUSE.0);
    }

    #[test]
    fn first_and_last_panics_are_kept_and_no_more() {
        let mut panics = Panics::none();
        for number in 0..100 {
            let message = format!("{number}{}", "\u{e4}".repeat(MESSAGE));
            panics.add(Panic::new("many".to_owned(), &message, None));
        }
        let known: Vec<&Panic> = panics.known().collect();
        assert_eq!((panics.count, known.len()), (100, KEPT));
        assert!(known.iter().all(|panic| panic.message.len() <= MESSAGE));
        let numbers = |panic: &Panic| panic.message.trim_end_matches('\u{e4}').parse::<usize>().unwrap();
        let expected: Vec<usize> = (0..KEPT / 2).chain(100 - KEPT / 2..100).collect();
        assert_eq!(known.into_iter().map(numbers).collect::<Vec<_>>(), expected);
    }
}
