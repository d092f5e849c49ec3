//! Records and guarded changes, wherever they are kept. Must never know files.

pub(crate) mod own;
