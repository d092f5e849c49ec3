//! The files that flags name, as the services read them. No error may show what is in one.

use std::fmt::Display;
use std::path::Path;

use super::contract::{BackendError, Failure};
use crate::given;

/// The content of a file of certificates or keys.
pub(super) fn read_certificate(file: &Path) -> Result<Vec<u8>, BackendError> {
    given::read(file, given::CERTIFICATE).map_err(|error| wrong(file, error))
}

/// What is wrong with a file.
pub(super) fn wrong(file: &Path, what: impl Display) -> BackendError {
    BackendError::new(Failure::Other, format!("{}: {what}", file.display()))
}
