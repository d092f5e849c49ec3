//! The one error of the file system: what the caller sees (an errno) and what a person needs to know (the reason).

use crate::name::NameError;

/// What went wrong, in the terms of design section 9. Each kind has one errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such record or directory.
    NotFound,
    /// A moment of the past that nobody keeps, or no longer.
    NotKept,
    /// Exists already.
    Exists,
    /// Someone else changed the record meanwhile.
    Conflict,
    /// Cannot be decoded or parsed.
    BadMessage,
    /// A lock that nobody would wait for is held.
    WouldBlock,
    /// Another holds the lock that the change needs.
    Busy,
    /// A lock that must be held has been lost.
    LockLost,
    /// Those who wait would wait for each other.
    Deadlock,
    /// A signal is pending for the waiting thread.
    Interrupted,
    /// Larger than the backend takes.
    TooLarge,
    /// Directory not empty.
    NotEmpty,
    /// The backend did not answer in time.
    Unreachable,
    /// The backend refused: authentication, access rights.
    Denied,
    /// Read-only mount.
    ReadOnly,
    /// A guard rail (`--no-delete`, names that must not be touched).
    NotPermitted,
    /// A directory where a file is needed.
    IsDirectory,
    /// A file where a directory is needed.
    NotDirectory,
    /// Not a valid name or argument.
    Invalid,
    /// A name of more than 255 bytes.
    NameTooLong,
    /// The rename would cross a border that only a copy can cross.
    CrossDevice,
    /// More records than one transaction of the backend takes.
    TooMany,
    /// The quota of scratch files, or the room of the service, is used up.
    NoSpace,
    /// More locks, or waiters for them, than one user or all of them may have.
    NoLocks,
    /// More open files than one user or all of them may have.
    TooManyOpen,
    /// No such extended attribute.
    NoAttribute,
    /// The operation does not exist here.
    Unsupported,
    /// The descriptor is not open in the needed mode.
    BadDescriptor,
    /// Anything else.
    Io,
}

impl Kind {
    /// All of them, in this order.
    pub const ALL: [Kind; 29] = [
        Kind::NotFound,
        Kind::NotKept,
        Kind::Exists,
        Kind::Conflict,
        Kind::BadMessage,
        Kind::WouldBlock,
        Kind::Busy,
        Kind::LockLost,
        Kind::Deadlock,
        Kind::Interrupted,
        Kind::TooLarge,
        Kind::NotEmpty,
        Kind::Unreachable,
        Kind::Denied,
        Kind::ReadOnly,
        Kind::NotPermitted,
        Kind::IsDirectory,
        Kind::NotDirectory,
        Kind::Invalid,
        Kind::NameTooLong,
        Kind::CrossDevice,
        Kind::TooMany,
        Kind::NoSpace,
        Kind::NoLocks,
        Kind::TooManyOpen,
        Kind::NoAttribute,
        Kind::Unsupported,
        Kind::BadDescriptor,
        Kind::Io,
    ];

    /// The errno that the caller gets.
    pub fn errno(self) -> i32 {
        match self {
            Kind::NotFound | Kind::NotKept => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::Conflict => libc::ESTALE,
            Kind::BadMessage => libc::EBADMSG,
            Kind::WouldBlock => libc::EWOULDBLOCK,
            Kind::Busy => libc::EBUSY,
            Kind::LockLost => libc::EIO,
            Kind::Deadlock => libc::EDEADLK,
            Kind::Interrupted => libc::EINTR,
            Kind::TooLarge => libc::EFBIG,
            Kind::NotEmpty => libc::ENOTEMPTY,
            Kind::Unreachable => libc::ETIMEDOUT,
            Kind::Denied => libc::EACCES,
            Kind::ReadOnly => libc::EROFS,
            Kind::NotPermitted => libc::EPERM,
            Kind::IsDirectory => libc::EISDIR,
            Kind::NotDirectory => libc::ENOTDIR,
            Kind::Invalid => libc::EINVAL,
            Kind::NameTooLong => libc::ENAMETOOLONG,
            Kind::CrossDevice => libc::EXDEV,
            Kind::TooMany => libc::E2BIG,
            Kind::NoSpace => libc::ENOSPC,
            Kind::NoLocks => libc::ENOLCK,
            Kind::TooManyOpen => libc::EMFILE,
            Kind::NoAttribute => libc::ENODATA,
            Kind::Unsupported => libc::EOPNOTSUPP,
            Kind::BadDescriptor => libc::EBADF,
            Kind::Io => libc::EIO,
        }
    }

    /// The symbolic name of [`Kind::errno`].
    pub fn errno_name(self) -> &'static str {
        match self {
            Kind::NotFound | Kind::NotKept => "ENOENT",
            Kind::Exists => "EEXIST",
            Kind::Conflict => "ESTALE",
            Kind::BadMessage => "EBADMSG",
            Kind::WouldBlock => "EWOULDBLOCK",
            Kind::Busy => "EBUSY",
            Kind::LockLost => "EIO",
            Kind::Deadlock => "EDEADLK",
            Kind::Interrupted => "EINTR",
            Kind::TooLarge => "EFBIG",
            Kind::NotEmpty => "ENOTEMPTY",
            Kind::Unreachable => "ETIMEDOUT",
            Kind::Denied => "EACCES",
            Kind::ReadOnly => "EROFS",
            Kind::NotPermitted => "EPERM",
            Kind::IsDirectory => "EISDIR",
            Kind::NotDirectory => "ENOTDIR",
            Kind::Invalid => "EINVAL",
            Kind::NameTooLong => "ENAMETOOLONG",
            Kind::CrossDevice => "EXDEV",
            Kind::TooMany => "E2BIG",
            Kind::NoSpace => "ENOSPC",
            Kind::NoLocks => "ENOLCK",
            Kind::TooManyOpen => "EMFILE",
            Kind::NoAttribute => "ENODATA",
            Kind::Unsupported => "EOPNOTSUPP",
            Kind::BadDescriptor => "EBADF",
            Kind::Io => "EIO",
        }
    }

    /// Whether a person will ask why: such errors go to `.topofs/errors` and the log. The others are the everyday
    /// answers of a file system (`ls` of a missing file). What the kernel itself finds wrong with a descriptor does not
    /// come here: an EBADF from here is a lock that a reader may not take.
    pub fn needs_explaining(self) -> bool {
        match self {
            Kind::NotKept
            | Kind::Conflict
            | Kind::BadMessage
            | Kind::Busy
            | Kind::LockLost
            | Kind::TooLarge
            | Kind::Unreachable
            | Kind::Denied
            | Kind::NotPermitted
            | Kind::TooMany
            | Kind::NoSpace
            | Kind::NoLocks
            | Kind::TooManyOpen
            | Kind::BadDescriptor
            | Kind::Io => true,
            Kind::NotFound
            | Kind::Exists
            | Kind::WouldBlock
            | Kind::Deadlock
            | Kind::Interrupted
            | Kind::NotEmpty
            | Kind::ReadOnly
            | Kind::IsDirectory
            | Kind::NotDirectory
            | Kind::Invalid
            | Kind::NameTooLong
            | Kind::CrossDevice
            | Kind::NoAttribute
            | Kind::Unsupported => false,
        }
    }
}

/// The end of a reason if no answer has told whether a change was carried out.
pub const UNCERTAIN: &str = " (it may have been carried out)";

/// A failed file operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Error {
    /// Decides the errno.
    pub kind: Kind,
    /// For people: what happened and why, without secrets.
    pub reason: String,
    /// Where in the written text, counted from 1, if the reason is a place in it.
    pub position: Option<Position>,
}

/// A place in a text: line and column, both counted from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Error {
    /// An error with its reason.
    pub fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), position: None }
    }

    /// Whether the change may have been carried out although it failed.
    pub fn is_uncertain(&self) -> bool {
        self.reason.ends_with(UNCERTAIN)
    }

    /// The everyday "no such file".
    pub fn not_found() -> Self {
        Self::new(Kind::NotFound, "no such record or directory")
    }

    /// Nothing can be changed here.
    pub fn read_only() -> Self {
        Self::new(Kind::ReadOnly, "the mount is read-only")
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        let kind = match error {
            NameError::Invalid => Kind::Invalid,
            NameError::TooLong | NameError::PathTooLong | NameError::TooDeep => Kind::NameTooLong,
        };
        Self::new(kind, error.to_string())
    }
}

/// Result of a file operation.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_place_among_all() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{kind:?}");
        }
        assert_eq!(Kind::ALL.last(), Some(&Kind::Io), "none is left out at the end");
    }

    #[test]
    fn what_people_ask_about_is_explained() {
        // Also those that only say that something is used up, or that a descriptor is of the wrong kind.
        for kind in [Kind::BadDescriptor, Kind::NoLocks, Kind::TooManyOpen, Kind::NoSpace, Kind::TooLarge, Kind::Denied]
        {
            assert!(kind.needs_explaining(), "{kind:?}");
        }
        for kind in [Kind::NotFound, Kind::Exists, Kind::WouldBlock, Kind::NoAttribute] {
            assert!(!kind.needs_explaining(), "{kind:?}");
        }
    }
}
