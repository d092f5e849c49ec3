//! What an inode stands for.

use std::fmt;

use crate::control::ControlFile;
use crate::name::{CONTROL_DIR, CellName, LOCK_FILE, TopoPath};
use crate::record::Form;

/// What an inode stands for. Equal nodes are the same file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// The root of the mount: the cells.
    Root,
    /// `.topofs`.
    Control,
    /// A file in `.topofs`.
    ControlFile(ControlFile),
    /// A directory of a cell; the empty path is the cell itself.
    Dir(CellName, TopoPath),
    /// One form of a record.
    Record(CellName, TopoPath, Form),
    /// The lock of a directory.
    Lock(CellName, TopoPath),
    /// A file that exists in this mount only.
    Scratch(ScratchId),
}

/// Names a scratch file wherever it is renamed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScratchId(pub u64);

impl fmt::Display for Node {
    /// The path below the mount, as people see it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Root => f.write_str("/"),
            Node::Control => f.write_str(CONTROL_DIR),
            Node::ControlFile(file) => write!(f, "{}/{}", CONTROL_DIR, file.name()),
            Node::Dir(cell, path) if path.is_root() => write!(f, "{cell}"),
            Node::Dir(cell, path) => write!(f, "{cell}/{path}"),
            Node::Lock(cell, dir) if dir.is_root() => write!(f, "{cell}/{LOCK_FILE}"),
            Node::Lock(cell, dir) => write!(f, "{cell}/{dir}/{LOCK_FILE}"),
            Node::Record(cell, path, form) => write!(f, "{cell}/{path}{}", form.suffix()),
            Node::Scratch(id) => write!(f, "scratch file {}", id.0),
        }
    }
}
