//! What an inode stands for.

use std::fmt;

use crate::control::ControlFile;
use crate::name::{CONTROL_DIR, CellPath, LOCK_FILE};
use crate::record::Form;

/// What an inode stands for. Equal nodes are the same file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FileId {
    /// The root of the mount: the cells.
    Root,
    /// `.topofs`.
    Control,
    /// A file in `.topofs`.
    ControlFile(ControlFile),
    /// A directory of a cell; the empty path is the cell itself.
    Dir(CellPath),
    /// One form of a record.
    Record(CellPath, Form),
    /// The lock of a directory.
    Lock(CellPath),
    /// A file that exists in this mount only.
    Scratch(ScratchId),
}

/// Names a scratch file wherever it is renamed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScratchId(pub u64);

impl fmt::Display for FileId {
    /// The path below the mount, as people see it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileId::Root => f.write_str("/"),
            FileId::Control => f.write_str(CONTROL_DIR),
            FileId::ControlFile(file) => write!(f, "{}/{}", CONTROL_DIR, file.name()),
            FileId::Dir(at) => at.fmt(f),
            FileId::Lock(dir) => write!(f, "{dir}/{LOCK_FILE}"),
            FileId::Record(at, form) => write!(f, "{at}{}", form.suffix()),
            FileId::Scratch(id) => write!(f, "scratch file {}", id.0),
        }
    }
}
