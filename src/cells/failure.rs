//! Translates the failure of a service into the error for the user of a file.

use crate::backend::{BackendError, Failure};
use crate::error::{Error, Kind};

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        let kind = match error.failure {
            Failure::NoNode => Kind::NotFound,
            Failure::NodeExists => Kind::Exists,
            Failure::BadVersion => Kind::Conflict,
            Failure::Unreachable => Kind::Unreachable,
            Failure::Denied => Kind::Denied,
            Failure::TooLarge => Kind::TooLarge,
            Failure::TooMany => Kind::TooMany,
            Failure::NoSpace => Kind::NoSpace,
            Failure::LockLost => Kind::LockLost,
            Failure::Locked => Kind::Busy,
            Failure::Compacted | Failure::NotKept => Kind::NotKept,
            Failure::Other => Kind::Io,
        };
        Self::new(kind, error.to_string())
    }
}
