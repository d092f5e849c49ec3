//! The words of the tree: what an inode stands for, its attributes, and how it is opened. Decides nothing.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::control::ControlFile;
use crate::mirror::Record;
use crate::name::{CONTROL_DIR, CellName, CellPath, HISTORY_DIR, LOCK_FILE};
use crate::record::Form;
use crate::topology::links::{Link, View};

/// What an inode stands for. Equal values are the same file.
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
    /// A directory of computed links, of the directory with the record.
    Links(CellPath, View),
    /// A computed link.
    Link(Link),
    /// A file that exists in this mount only.
    Scratch(ScratchId),
    /// A file of `.topofs/history`.
    Past(PastFile),
    /// A directory of trees beside the live one.
    Spaces(SpaceKind),
    /// A file of such a tree.
    Inside(SpaceId, Arc<FileId>),
    /// A file in the root of such a tree that tells of the tree.
    About(About),
}

/// A file of `.topofs/history`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PastFile {
    /// The directory itself: the cells.
    Top,
    /// What was at a path, and below it.
    Dir(CellPath),
    /// One form of a state of a record, which has a name.
    State(CellPath, Arc<str>, Form),
    /// A deletion of a record; its name.
    Deleted(CellPath, Arc<str>),
    /// What happened to a record.
    Log(CellPath),
}

impl fmt::Display for PastFile {
    /// The path below the mount.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CONTROL_DIR}/{HISTORY_DIR}")?;
        match self {
            PastFile::Top => Ok(()),
            PastFile::Dir(at) => write!(f, "/{at}"),
            PastFile::State(at, name, form) => write!(f, "/{at}/{name}{}", form.suffix()),
            PastFile::Deleted(at, name) => write!(f, "/{at}/{name}"),
            PastFile::Log(at) => write!(f, "/{at}/.log"),
        }
    }
}

/// What kind of tree stands beside the live one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceKind {
    /// A snapshot: everything as it was at one moment.
    At,
    /// A stage: changes that nobody else sees before they are committed together.
    Stage,
}

impl SpaceKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::At, Self::Stage];

    /// The name of their directory in `.topofs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::At => "at",
            Self::Stage => "stage",
        }
    }
}

/// Identifies a tree beside the live one. A tree that is made anew under an old name is another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpaceId {
    /// What kind of tree it is.
    pub kind: SpaceKind,
    /// Its name.
    pub name: Arc<str>,
    /// Which of all trees of this mount.
    pub serial: u64,
}

impl SpaceId {
    /// A file of this tree.
    pub fn file(&self, file: FileId) -> FileId {
        FileId::Inside(self.clone(), Arc::new(file))
    }
}

/// Files in the root of a tree beside the live one. They open by name and are not listed, so that tools that walk meet
/// records only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum About {
    /// The cells that a snapshot lacks, and why.
    Missing,
    /// The changes of a stage, as a patch.
    Diff,
    /// Which records of a stage somebody else has changed.
    Conflicts,
    /// What is wrong with the topology of a stage.
    Check,
    /// Takes commands for a stage.
    Control,
    /// The patch that takes a committed change set back.
    Undo,
}

impl About {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Missing, Self::Diff, Self::Conflicts, Self::Check, Self::Control, Self::Undo];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => ".missing",
            Self::Diff => ".diff",
            Self::Conflicts => ".conflicts",
            Self::Check => ".check",
            Self::Control => ".control",
            Self::Undo => ".undo",
        }
    }
}

/// Identifies a scratch file, also after it is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScratchId(pub u64);

impl FileId {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        match self {
            FileId::Root | FileId::Control | FileId::Dir(..) | FileId::Links(..) | FileId::Spaces(_) => true,
            FileId::Inside(_, file) => file.is_dir(),
            FileId::Past(file) => matches!(file, PastFile::Top | PastFile::Dir(_)),
            _ => false,
        }
    }

    /// What kind of file it is.
    pub fn kind(&self) -> FileKind {
        match self {
            FileId::Link(_) => FileKind::Symlink,
            FileId::Inside(_, file) => file.kind(),
            file if file.is_dir() => FileKind::Directory,
            _ => FileKind::Regular,
        }
    }

    /// The directory that a computed link is in.
    pub(crate) fn dir_of_link(link: &Link) -> Self {
        match link.view {
            View::Primary => FileId::Dir(link.of.clone()),
            view => FileId::Links(link.of.clone(), view),
        }
    }

    /// The directories of computed links in a directory: they go with it.
    pub(crate) fn link_dirs(&self) -> impl Iterator<Item = Self> {
        let dir = if let FileId::Dir(at) = self { Some(at) } else { None };
        let views = dir.into_iter().flat_map(|at| View::of(at).iter().map(move |view| (at, *view)));
        views.filter(|(_, view)| *view != View::Primary).map(|(at, view)| FileId::Links(at.clone(), view))
    }

    /// The cell that it is part of, if it is the live one.
    pub(crate) fn cell(&self) -> Option<&CellName> {
        match self {
            FileId::Dir(at) | FileId::Record(at, _) | FileId::Lock(at) | FileId::Links(at, _) => Some(&at.cell),
            FileId::Link(link) => Some(&link.of.cell),
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Scratch(_) => None,
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => None,
        }
    }
}

impl fmt::Display for FileId {
    /// The path below the mount, as people see it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileId::Root => f.write_str("/"),
            FileId::Control => f.write_str(CONTROL_DIR),
            FileId::ControlFile(file) => write!(f, "{CONTROL_DIR}/{}", file.name()),
            FileId::Dir(at) => at.fmt(f),
            FileId::Lock(dir) => write!(f, "{dir}/{LOCK_FILE}"),
            FileId::Links(of, view) => write!(f, "{of}/{}", view.name()),
            FileId::Link(link) => write!(f, "{}/{}", FileId::dir_of_link(link), link.name()),
            FileId::Record(at, form) => write!(f, "{at}{}", form.suffix()),
            FileId::Scratch(id) => write!(f, "scratch file {}", id.0),
            FileId::Spaces(kind) => write!(f, "{CONTROL_DIR}/{}", kind.name()),
            FileId::Inside(space, file) => {
                write!(f, "{CONTROL_DIR}/{}/{}", space.kind.name(), space.name)?;
                match &**file {
                    FileId::Root => Ok(()),
                    file => write!(f, "/{file}"),
                }
            }
            FileId::About(file) => f.write_str(file.name()),
            FileId::Past(file) => file.fmt(f),
        }
    }
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub file: FileId,
}

/// What kind of file something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
}

/// Attributes of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// A directory, a regular file, or a link.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links: 0 for a file that has lost its name.
    pub links: u32,
    /// Time of the last read, as far as it is kept.
    pub accessed: SystemTime,
    /// Time of the last write.
    pub modified: SystemTime,
    /// Time of the last change.
    pub changed: SystemTime,
    /// The record whose attributes these are, if they are a record's.
    pub(crate) record: Option<Record>,
}

/// A file as the kernel is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Inode number.
    pub ino: u64,
    /// Attributes.
    pub attr: Attr,
    /// Whether the kernel may keep name and attributes until they are invalidated.
    pub lasting: bool,
}

/// Attributes to set.
#[derive(Debug, Default)]
pub struct SetAttr {
    /// New size.
    pub size: Option<u64>,
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New time of the last read.
    pub accessed: Option<SystemTime>,
    /// New time of the last write.
    pub modified: Option<SystemTime>,
}

/// Permission bits of files and directories before the umask.
const FILE_MODE: u32 = 0o666;
const DIR_MODE: u32 = 0o777;
/// The permission bits of a link. Nobody looks at them.
const LINK_MODE: u32 = 0o777;
/// The permission bits for reading.
const READ_MODE: u32 = 0o444;

/// What all files of a mount have in common, unless they have something of their own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits that are taken away.
    pub umask: u32,
    /// When the mount was made.
    pub mounted: SystemTime,
}

impl Defaults {
    /// The attributes of a directory.
    pub fn dir(&self) -> Attr {
        Attr { kind: FileKind::Directory, mode: DIR_MODE & !self.umask, ..self.file(0, self.mounted) }
    }

    /// The attributes of a file.
    pub fn file(&self, size: usize, modified: SystemTime) -> Attr {
        Attr {
            kind: FileKind::Regular,
            size: size as u64,
            mode: FILE_MODE & !self.umask,
            uid: self.uid,
            gid: self.gid,
            links: 1,
            accessed: modified,
            modified,
            changed: modified,
            record: None,
        }
    }

    /// The attributes of a symbolic link with a target of so many bytes.
    pub fn link(&self, size: usize) -> Attr {
        Attr { kind: FileKind::Symlink, mode: LINK_MODE, ..self.file(size, self.mounted) }
    }

    /// The attributes of a file that nobody can write.
    pub fn read_only_file(&self, size: usize, modified: SystemTime) -> Attr {
        Attr { mode: READ_MODE & !self.umask, ..self.file(size, modified) }
    }
}

/// How to open a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenMode {
    /// O_RDONLY or O_RDWR.
    pub read: bool,
    /// O_WRONLY or O_RDWR.
    pub write: bool,
    /// O_APPEND.
    pub append: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_EXCL.
    pub exclusive: bool,
    /// O_DIRECT: read from the backend.
    pub direct: bool,
}

/// What the kernel does for an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caching {
    /// It reads through its page cache.
    pub cached: bool,
    /// It may keep using the pages that it has.
    pub kept: bool,
    /// It must send FLUSH when a descriptor is closed.
    pub flushed: bool,
}

impl Caching {
    /// Reads and writes past the page cache.
    pub(crate) const DIRECT: Self = Self { cached: false, kept: false, flushed: true };

    /// Only reads, through the page cache.
    pub(crate) fn reading(kept: bool) -> Self {
        Self { cached: true, kept, flushed: false }
    }
}

/// An open file.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// What the kernel does for it.
    pub caching: Caching,
}
