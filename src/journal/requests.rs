//! Kinds of kernel requests and their counters.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// How often each kind of request came: one counter for each kind.
#[derive(Debug)]
pub struct Requests(Vec<AtomicU64>);

impl Default for Requests {
    fn default() -> Self {
        Self(Op::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Requests {
    /// Counts a request.
    pub fn count(&self, op: Op) {
        if let Some(counter) = self.0.get(op as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The kinds that came at least once, with their counts.
    pub fn counts(&self) -> impl Iterator<Item = (Op, u64)> {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        Op::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }
}
