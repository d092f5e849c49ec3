//! Makes the kernel invalidate inodes. Must never wait for the kernel for ever.
//!
//! The kernel holds a directory, and the page of its listing, while it copies names to a reader. If the reader does not
//! take them (its buffer is a mapping of a file whose own file system has stopped), every notification about the
//! directory hangs for as long as the reader likes, in a system call that nothing can interrupt. So each directory is
//! invalidated in a thread of its own. The number of these threads is bounded, and nobody waits for one longer than
//! [`LONGEST`]. As long as the kernel has not invalidated an inode, no reply about it lasts. Files cannot be held in
//! this way: their pages are locked only while this daemon answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore};

use super::KernelCaches;
use super::inodes::Inodes;
use crate::alive;

/// Longer than the kernel ever takes, unless somebody holds the inode: nobody may hang because of that.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);
/// The same for files, which nobody can hold: only a machine that is very busy takes so long. Until it is done, readers
/// may still have the old pages.
const LONGEST_FOR_FILES: Duration = Duration::from_secs(5);
/// How often an invalidation that panics is tried.
const ATTEMPTS: usize = 3;
/// Threads that may hang in directories. If more directories are held, they wait for each other.
const DIRS: usize = 64;
/// Files that are invalidated without another thread: all forms of one record. More of them take longer than to wake
/// one.
const FILES_HERE: usize = 3;
/// Threads that invalidate files at the same time.
const FILES: usize = 4;

/// The invalidations that the kernel has been asked for and has not finished.
#[derive(Debug)]
pub(crate) struct Invalidations {
    kernel: Arc<dyn KernelCaches>,
    inodes: Arc<Inodes>,
    state: Mutex<State>,
    /// How many are pending, so that a look costs nothing if none is.
    count: AtomicUsize,
    done: Notify,
    dirs: Semaphore,
    files: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    pending: HashMap<u64, Pending>,
}

#[derive(Debug)]
struct Pending {
    since: Instant,
    /// The number of the last request, and of the last one that is done.
    asked: u64,
    done: u64,
    /// A thread works on it.
    has_worker: bool,
    /// Calls that hang in the directory, besides that thread.
    hanging: usize,
    /// Names in the directory that the kernel must forget as well.
    names: Names,
}

/// Names that the kernel must forget.
#[derive(Debug, Default)]
enum Names {
    #[default]
    None,
    Some(Vec<String>),
    All,
}

impl Names {
    /// If there are more, all names are forgotten.
    const MOST: usize = 100;

    fn add(&mut self, name: String) {
        match self {
            Names::None => *self = Names::Some(vec![name]),
            Names::Some(names) if names.contains(&name) => {}
            Names::Some(names) if names.len() < Self::MOST => names.push(name),
            Names::Some(_) | Names::All => *self = Names::All,
        }
    }
}

impl Invalidations {
    pub fn new(kernel: Arc<dyn KernelCaches>, inodes: Arc<Inodes>) -> Arc<Self> {
        Arc::new(Self {
            kernel,
            inodes,
            state: Mutex::default(),
            count: AtomicUsize::new(0),
            done: Notify::new(),
            dirs: Semaphore::new(DIRS),
            files: Semaphore::new(FILES),
        })
    }

    /// Whether the kernel has not invalidated an inode yet.
    pub fn is_pending(&self, ino: u64) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.state.lock().pending.contains_key(&ino)
    }

    /// Whether somebody holds an inode.
    pub fn is_held(&self, ino: u64) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self
                .state
                .lock()
                .pending
                .get(&ino)
                .is_some_and(|pending| pending.hanging > 0 || pending.since.elapsed() > LONGEST)
    }

    /// Whether any inode is pending. If none is, none is held.
    pub fn any_pending(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Asks the kernel to invalidate inodes. Returns what to wait for: first the files, then the directories. The wait
    /// ends after [`LONGEST_FOR_FILES`] and [`LONGEST`], and does not include inodes that somebody holds.
    pub fn invalidate(self: &Arc<Self>, files: Vec<u64>, dirs: Vec<u64>, names: bool) -> (Asked, Asked) {
        let (files, new) = self.ask(files, LONGEST_FOR_FILES, |_| {});
        if !new.is_empty() && !self.work_here(&new) {
            let all = self.clone();
            tokio::spawn(async move {
                // The semaphore is never closed.
                let _turn = all.files.acquire().await;
                let worker = all.clone();
                let _ = tokio::task::spawn_blocking(move || new.iter().for_each(|ino| worker.work(*ino))).await;
            });
        }
        let (dirs, new) = self.ask(dirs, LONGEST, |known| {
            if names {
                *known = Names::All
            }
        });
        self.start_dirs(new);
        (files, dirs)
    }

    /// Invalidates a few files in this thread, if it may wait: waking two others costs a save more than the work does.
    fn work_here(&self, files: &[u64]) -> bool {
        // A session thread polls a request once, outside of any task. It must not wait for the kernel.
        let may_wait = tokio::task::try_id().is_some()
            && Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        if files.len() > FILES_HERE || !may_wait {
            return false;
        }
        let Ok(_turn) = self.files.try_acquire() else { return false };
        tokio::task::block_in_place(|| files.iter().for_each(|ino| self.work(*ino)));
        true
    }

    fn start_dirs(self: &Arc<Self>, new: Vec<u64>) {
        if new.is_empty() {
            return;
        }
        let all = self.clone();
        tokio::spawn(futures::stream::iter(new).for_each_concurrent(DIRS, move |ino| {
            let all = all.clone();
            async move {
                let _turn = all.dirs.acquire().await;
                let worker = all.clone();
                let _ = tokio::task::spawn_blocking(move || worker.work(ino)).await;
            }
        }));
    }

    /// Asks the kernel to forget a name in a directory, and the listing.
    pub fn forget_name(self: &Arc<Self>, dir: u64, name: &str) -> Asked {
        let (asked, new) = self.ask(vec![dir], LONGEST, |names| names.add(name.to_owned()));
        self.start_dirs(new);
        asked
    }

    /// Invalidates a directory in this thread. If another thread works on it already, that thread does this, too.
    pub fn invalidate_dir_here(self: &Arc<Self>, ino: u64) {
        let (_, new) = self.ask(vec![ino], LONGEST, |_| {});
        new.iter().for_each(|ino| self.work(*ino));
    }

    fn ask(self: &Arc<Self>, numbers: Vec<u64>, longest: Duration, names: impl Fn(&mut Names)) -> (Asked, Vec<u64>) {
        let mut state = self.state.lock();
        let mut asked = Asked { all: self.clone(), waited: Vec::new(), longest };
        let mut new = Vec::new();
        for ino in numbers {
            state.last += 1;
            let last = state.last;
            let pending = state.pending.entry(ino).or_insert_with(|| Pending::new(last));
            pending.asked = last;
            names(&mut pending.names);
            if pending.hanging == 0 && pending.since.elapsed() < longest {
                asked.waited.push((ino, last));
            }
            if !std::mem::replace(&mut pending.has_worker, true) {
                new.push(ino);
            }
        }
        self.count.store(state.pending.len(), Ordering::Release);
        (asked, new)
    }

    /// Makes the kernel invalidate an inode, as often as that is asked for.
    fn work(&self, ino: u64) {
        loop {
            let Some((round, names)) = self.begin(ino) else { return };
            let invalidate = || {
                invalidate_inode(&self.inodes, &*self.kernel, ino);
                let names = match &names {
                    Names::None => Vec::new(),
                    Names::Some(names) => names.clone(),
                    Names::All => self.inodes.names_in(ino),
                };
                names.iter().for_each(|name| self.kernel.forget_name(ino, name));
            };
            if !(0..ATTEMPTS).any(|_| alive::run("an invalidation", invalidate).is_ok()) {
                return self.give_up(ino);
            }
            if self.end(ino, round) {
                return;
            }
        }
    }

    /// After a panic the inode stays pending: no reply about it lasts, and the next request tries again.
    fn give_up(&self, ino: u64) {
        if let Some(pending) = self.state.lock().pending.get_mut(&ino) {
            pending.has_worker = false;
            pending.names = Names::All;
        }
    }

    fn begin(&self, ino: u64) -> Option<(u64, Names)> {
        let mut state = self.state.lock();
        let pending = state.pending.get_mut(&ino)?;
        Some((pending.asked, std::mem::take(&mut pending.names)))
    }

    /// One round is done. Returns whether it was the last.
    fn end(&self, ino: u64, round: u64) -> bool {
        let mut state = self.state.lock();
        let Some(pending) = state.pending.get_mut(&ino) else { return true };
        pending.done = round;
        let last = pending.asked == round;
        if last {
            pending.has_worker = false;
            if pending.hanging == 0 {
                state.pending.remove(&ino);
            }
            self.count.store(state.pending.len(), Ordering::Release);
        }
        drop(state);
        self.done.notify_waiters();
        last
    }

    /// A call about a directory hangs.
    pub fn hangs(&self, ino: u64) {
        let mut state = self.state.lock();
        state.last += 1;
        let last = state.last;
        let pending = state.pending.entry(ino).or_insert_with(|| Pending::new(last));
        pending.hanging += 1;
        self.count.store(state.pending.len(), Ordering::Release);
    }

    /// The call has returned.
    pub fn hangs_no_more(&self, ino: u64) {
        let mut state = self.state.lock();
        let Some(pending) = state.pending.get_mut(&ino) else { return };
        pending.hanging = pending.hanging.saturating_sub(1);
        if pending.hanging == 0 && !pending.has_worker {
            state.pending.remove(&ino);
        }
        self.count.store(state.pending.len(), Ordering::Release);
    }
}

impl Pending {
    fn new(asked: u64) -> Self {
        Self { since: Instant::now(), asked, done: 0, has_worker: false, hanging: 0, names: Names::None }
    }
}

/// Inodes that the kernel has been asked to invalidate.
#[derive(Debug)]
pub(crate) struct Asked {
    all: Arc<Invalidations>,
    /// Each inode, with the round to wait for.
    waited: Vec<(u64, u64)>,
    longest: Duration,
}

impl Asked {
    /// Waits until they are invalidated, but not for ever.
    pub async fn done(mut self) {
        let (all, longest) = (self.all.clone(), self.longest);
        let wait = async {
            loop {
                let done = all.done.notified();
                tokio::pin!(done);
                // Enabled before the look: otherwise an end in between would be missed.
                done.as_mut().enable();
                if self.is_done() {
                    return;
                }
                done.await;
            }
        };
        // What takes longer stays pending.
        let _ = tokio::time::timeout(longest, wait).await;
    }

    fn is_done(&mut self) -> bool {
        let state = self.all.state.lock();
        let is_done = |(ino, round): &(u64, u64)| {
            state.pending.get(ino).is_none_or(|pending| pending.done >= *round || pending.hanging > 0)
        };
        while self.waited.last().is_some_and(is_done) {
            self.waited.pop();
        }
        self.waited.is_empty()
    }
}

/// Invalidates one inode. May hang.
pub(crate) fn invalidate_inode(inodes: &Inodes, kernel: &dyn KernelCaches, ino: u64) {
    inodes.invalidating(ino);
    let known = kernel.invalidate(ino);
    inodes.invalidated(ino, known);
    // A content that was being stored has arrived after the first invalidation.
    if inodes.wait_until_stored(ino) {
        let known = kernel.invalidate(ino);
        inodes.invalidated(ino, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that does not invalidate one directory while it is held.
    #[derive(Debug, Default)]
    struct Holding {
        held: Mutex<Option<u64>>,
        free: parking_lot::Condvar,
        dropped: Mutex<Vec<u64>>,
    }

    impl KernelCaches for Holding {
        fn invalidate(&self, ino: u64) -> bool {
            let mut held = self.held.lock();
            while *held == Some(ino) {
                self.free.wait(&mut held);
            }
            self.dropped.lock().push(ino);
            true
        }
        fn forget_name(&self, _: u64, _: &str) {}
        fn store_pages(&self, _: u64, _: &[u8]) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_is_held_keeps_nobody_waiting_and_comes_in_its_time() {
        let kernel = Arc::new(Holding { held: Mutex::new(Some(7)), ..Holding::default() });
        let invalidations = Invalidations::new(kernel.clone(), Arc::default());
        let count = |ino| kernel.dropped.lock().iter().filter(|known| **known == ino).count();
        let (files, dirs) = invalidations.invalidate(vec![1, 2], vec![7, 8], false);
        files.done().await;
        assert_eq!((count(1), count(2), count(7)), (1, 1, 0));
        // This waits, but not for ever.
        dirs.done().await;
        assert_eq!(count(8), 1);
        assert!(invalidations.is_held(7) && !invalidations.is_pending(8));
        // From now on nobody waits for it at all.
        let begin = Instant::now();
        for _ in 0..100 {
            invalidations.invalidate(Vec::new(), vec![7], false).1.done().await;
        }
        assert!(begin.elapsed() < LONGEST, "{:?}", begin.elapsed());
        *kernel.held.lock() = None;
        kernel.free.notify_all();
        let end = Instant::now() + Duration::from_secs(30);
        while invalidations.is_pending(7) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(count(7), 2, "what was asked for meanwhile is done once");
        assert!(!invalidations.is_held(7));
    }

    /// A kernel that notes which threads call it.
    #[derive(Debug, Default)]
    struct Calling(Mutex<Vec<std::thread::ThreadId>>);

    impl KernelCaches for Calling {
        fn invalidate(&self, _: u64) -> bool {
            self.0.lock().push(std::thread::current().id());
            true
        }
        fn forget_name(&self, _: u64, _: &str) {}
        fn store_pages(&self, _: u64, _: &[u8]) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_save_wakes_no_thread_for_its_own_files_and_a_session_thread_never_waits() {
        let kernel = Arc::new(Calling::default());
        let invalidations = Invalidations::new(kernel.clone(), Arc::default());
        let all = invalidations.clone();
        let called = || std::mem::take(&mut *kernel.0.lock());
        // As the rest of a request that has waited for a service: nothing is left to wait for.
        let here = tokio::spawn(async move {
            let (files, _) = all.invalidate(vec![1, 2, 3], Vec::new(), false);
            let here = std::thread::current().id();
            files.done().await;
            here
        });
        let here = here.await.unwrap();
        assert_eq!(called(), [here; 3]);
        // As a request that is answered from memory.
        invalidations.invalidate(vec![1], Vec::new(), false).0.done().await;
        let threads = called();
        assert!(threads.len() == 1 && threads[0] != std::thread::current().id());
        // Many of them.
        let all = invalidations.clone();
        let many = async move {
            all.invalidate((1..=10).collect(), Vec::new(), false).0.done().await;
        };
        tokio::spawn(many).await.unwrap();
        assert_eq!(called().len(), 10);
    }

    /// A kernel whose first calls panic.
    #[derive(Debug, Default)]
    struct Panicking {
        panics: AtomicUsize,
        invalidated: AtomicUsize,
    }

    impl KernelCaches for Panicking {
        fn invalidate(&self, _: u64) -> bool {
            let left = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            assert!(left.is_err(), "in the kernel's caches");
            self.invalidated.fetch_add(1, Ordering::SeqCst);
            true
        }
        fn forget_name(&self, _: u64, _: &str) {}
        fn store_pages(&self, _: u64, _: &[u8]) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_leaves_nothing_old_that_lasts() {
        let kernel = Arc::new(Panicking::default());
        let invalidations = Invalidations::new(kernel.clone(), Arc::default());
        let done = || kernel.invalidated.load(Ordering::SeqCst);
        // After one panic the next attempt succeeds.
        kernel.panics.store(1, Ordering::SeqCst);
        invalidations.invalidate(vec![1], Vec::new(), false).0.done().await;
        assert!(done() == 1 && !invalidations.is_pending(1));
        // If all attempts panic, the inode stays pending, and the next request invalidates it.
        kernel.panics.store(ATTEMPTS, Ordering::SeqCst);
        invalidations.invalidate(vec![1], Vec::new(), false).0.done().await;
        assert!(done() == 1 && invalidations.is_pending(1));
        drop(invalidations.invalidate(vec![1], Vec::new(), false));
        // Nobody waits for what has taken so long: it comes in its time.
        let end = Instant::now() + Duration::from_secs(30);
        while invalidations.is_pending(1) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(done() == 2 && !invalidations.is_pending(1));
    }
}
