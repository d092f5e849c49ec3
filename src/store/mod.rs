//! Records and guarded changes, wherever they are kept. Knows no files.

pub(crate) mod own;
