//! Kinds of kernel requests, and what becomes of them. Must never take a lock: every session thread counts here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::Histogram;

use super::metrics::REQUEST_DURATION;
use crate::error::Kind;

macro_rules! operations {
    ($($variant:ident $name:literal,)*) => {
        /// A kind of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // named after the FUSE requests
        pub enum Op { $($variant,)* }

        impl Op {
            const ALL: &[Op] = &[$(Op::$variant,)*];

            /// The name of the FUSE request, in lower case.
            pub fn name(self) -> &'static str {
                match self { $(Op::$variant => $name,)* }
            }

            /// Whether it may change what is stored.
            pub fn changes(self) -> bool {
                use Op::*;
                matches!(
                    self,
                    Setattr | Mknod | Mkdir | Symlink | Unlink | Rmdir | Rename | Open | Create | Write | Flush
                        | Fsync | Release | Setxattr | Removexattr
                )
            }

            /// Whether nothing comes of it when nobody waits for the answer: it only asks, or it opens a file, which
            /// changes nothing before the close.
            pub fn may_be_given_up(self) -> bool {
                use Op::*;
                matches!(
                    self,
                    Lookup | Getattr | Readlink | Open | Create | Read | Getlk | Opendir | Readdir | Readdirplus
                        | Getxattr | Listxattr
                )
            }

            /// The name of the request's task.
            pub fn task(self) -> &'static str {
                match self { $(Op::$variant => concat!("request ", $name),)* }
            }
        }
    };
}

operations! {
    Lookup "lookup",
    Forget "forget",
    Getattr "getattr",
    Setattr "setattr",
    Mknod "mknod",
    Mkdir "mkdir",
    Symlink "symlink",
    Readlink "readlink",
    Unlink "unlink",
    Rmdir "rmdir",
    Rename "rename",
    Open "open",
    Create "create",
    Read "read",
    Write "write",
    Flush "flush",
    Fsync "fsync",
    Release "release",
    Getlk "getlk",
    Setlk "setlk",
    Poll "poll",
    Opendir "opendir",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Releasedir "releasedir",
    Statfs "statfs",
    Getxattr "getxattr",
    Listxattr "listxattr",
    Setxattr "setxattr",
    Removexattr "removexattr",
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What becomes of the requests of one kind.
#[derive(Debug)]
struct Counts {
    came: AtomicU64,
    failed: [AtomicU64; Kind::ALL.len()],
    duration: Option<Histogram>,
}

impl Counts {
    fn of(op: Op) -> Self {
        let duration = REQUEST_DURATION.histogram(&[("operation", op.name())]);
        Self { came: AtomicU64::new(0), failed: [const { AtomicU64::new(0) }; Kind::ALL.len()], duration }
    }
}

/// How often each kind of request came, and what became of it. Session threads share nothing here but single numbers:
/// no lock.
#[derive(Debug)]
pub struct Requests {
    kinds: Vec<Counts>,
    waiting: Arc<AtomicU64>,
    /// How often a session thread has looked for the next request before it slept.
    spins: AtomicU64,
    /// How often one came.
    hits: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            kinds: Op::ALL.iter().map(|op| Counts::of(*op)).collect(),
            waiting: Arc::default(),
            spins: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        }
    }
}

impl Requests {
    /// Counts a request.
    pub fn count(&self, op: Op) {
        if let Some(counts) = self.kinds.get(op as usize) {
            counts.came.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request was answered after so long, perhaps with an error.
    pub fn answered(&self, op: Op, took: Duration, error: Option<Kind>) {
        if let Some(duration) = self.kinds.get(op as usize).and_then(|counts| counts.duration.as_ref()) {
            duration.observe(took.as_secs_f64());
        }
        if let Some(kind) = error {
            self.failed(op, kind);
        }
    }

    /// The kernel was told of an error.
    pub fn failed(&self, op: Op, kind: Kind) {
        if let Some(failed) = self.kinds.get(op as usize).and_then(|counts| counts.failed.get(kind as usize)) {
            failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request waits for a service or a lock, until the return value is dropped.
    pub fn wait(&self) -> impl Drop + Send + use<> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        scopeguard::guard(self.waiting.clone(), |waiting| {
            waiting.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// How many requests wait now.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A session thread has looked for the next request before it slept, and perhaps seen it.
    pub fn spun(&self, hit: bool) {
        self.spins.fetch_add(1, Ordering::Relaxed);
        self.hits.fetch_add(u64::from(hit), Ordering::Relaxed);
    }

    /// How often that was, and how often a request came.
    pub fn spins(&self) -> (u64, u64) {
        (self.spins.load(Ordering::Relaxed), self.hits.load(Ordering::Relaxed))
    }

    /// The kinds that came at least once, with their counts.
    pub fn counts(&self) -> impl Iterator<Item = (Op, u64)> {
        let counts = self.kinds.iter().map(|counts| counts.came.load(Ordering::Relaxed));
        Op::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }

    /// The errors that the kernel was told of, by errno.
    pub fn errors(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut errors = BTreeMap::new();
        for (op, counts) in Op::ALL.iter().zip(&self.kinds) {
            for (kind, failed) in Kind::ALL.iter().zip(&counts.failed) {
                let count = failed.load(Ordering::Relaxed);
                if count > 0 {
                    *errors.entry((op.name(), kind.errno_name())).or_default() += count;
                }
            }
        }
        errors
    }

    /// How long those took that were answered.
    pub fn durations(&self) -> impl Iterator<Item = &Histogram> {
        let durations = self.kinds.iter().filter_map(|counts| counts.duration.as_ref());
        durations.filter(|duration| duration.get_sample_count() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_requests_is_counted_by_kind_and_errno() {
        let requests = Requests::default();
        let millisecond = Duration::from_millis(1);
        requests.count(Op::Read);
        requests.answered(Op::Read, millisecond, None);
        requests.answered(Op::Lookup, millisecond, Some(Kind::NotFound));
        // The same errno for another reason.
        requests.answered(Op::Lookup, millisecond, Some(Kind::NotKept));
        requests.failed(Op::Poll, Kind::NoSpace);
        assert_eq!(requests.counts().collect::<Vec<_>>(), [(Op::Read, 1)]);
        let errors: Vec<_> = requests.errors().into_iter().collect();
        assert_eq!(errors, [(("lookup", "ENOENT"), 2), (("poll", "ENOSPC"), 1)]);
        assert_eq!(requests.durations().map(Histogram::get_sample_count).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_request_waits_until_its_guard_is_gone() {
        let requests = Requests::default();
        let (first, second) = (requests.wait(), requests.wait());
        assert_eq!(requests.waiting(), 2);
        drop(first);
        assert_eq!(requests.waiting(), 1);
        drop(second);
        assert_eq!(requests.waiting(), 0);
    }
}
