//! Names: cells, and paths inside a cell. Values of these types must never be anything but valid file names, so nothing
//! above has to check again.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Longest file name that the kernel passes on (NAME_MAX of Linux), in bytes.
pub const NAME_MAX: usize = 255;
/// Longest path in a cell, in bytes: what a program can name in one call. PATH_MAX of Linux counts the NUL at the end,
/// too.
pub const PATH_MAX: usize = 4096 - 1;
/// Most components of a path. A change of a record concerns each directory above it, so a single deep key would cost
/// its length squared. Vitess has less than ten.
pub const DEPTH_MAX: usize = 64;

// The names that the tree keeps for itself.

/// The name of the control directory in the root of a mount. It can be opened by name, but is not listed, so that
/// `grep -r`, `tar` and `cp -a` of a mount see only the topology.
pub const CONTROL_DIR: &str = ".topofs";
/// The name of the directory with the past of records, in the control directory.
pub const HISTORY_DIR: &str = "history";
/// The name of a directory's lock. A key of this name is not shown.
pub const LOCK_FILE: &str = ".lock";
/// The name that a record has inside the directory of the same name (ZooKeeper nodes with data and children).
pub const DATA_FILE: &str = ".data";
/// The directory with links to the tablets of a shard. Like [`LOCK_FILE`], the names of links stand for something else
/// than a key wherever they are: keys of these names are not shown, and nothing of these names can be made.
pub const TABLETS_LINKS: &str = ".tablets";
/// The link to the primary of a shard.
pub const PRIMARY_LINK: &str = ".primary";
/// The directory with links into the cells of a keyspace or of a cell alias.
pub const CELLS_LINKS: &str = ".cells";
/// All names of links.
pub const LINKS: [&str; 3] = [TABLETS_LINKS, PRIMARY_LINK, CELLS_LINKS];

/// The names of the files that tell of a snapshot or of a stage, in its root: no cell has such a name.
pub const ABOUT_FILES: [&str; 6] = [".missing", ".diff", ".conflicts", ".check", ".control", ".undo"];

/// Why a name cannot be shown as a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with `/`, NUL or bytes that are not UTF-8.
    #[error("not a valid file name")]
    Invalid,
    /// Longer than [`NAME_MAX`].
    #[error("longer than {NAME_MAX} bytes")]
    TooLong,
    /// As a path, longer than [`PATH_MAX`].
    #[error("a path of more than {PATH_MAX} bytes")]
    PathTooLong,
    /// More components than [`DEPTH_MAX`].
    #[error("a path of more than {DEPTH_MAX} names")]
    TooDeep,
}

/// Checks one path component.
pub fn check_component(name: &str) -> Result<(), NameError> {
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong);
    }
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(NameError::Invalid);
    }
    Ok(())
}

/// The name of a cell: the first level of the tree.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellName(Arc<str>);

impl CellName {
    /// The cell that holds the global topology.
    pub const GLOBAL: &'static str = "global";

    /// Checks a name. Names that collide with the tree's own (`.topofs`, [`ABOUT_FILES`]) are refused.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check_component(name)?;
        if name == CONTROL_DIR || ABOUT_FILES.contains(&name) {
            return Err(NameError::Invalid);
        }
        Ok(Self(name.into()))
    }

    /// The name of the global topology.
    pub fn global() -> Self {
        Self(Self::GLOBAL.into())
    }

    /// Whether this is the global topology.
    pub fn is_global(&self) -> bool {
        &*self.0 == Self::GLOBAL
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A path inside a cell, relative to the cell's root, without slashes at either end. The empty path is the root.
///
/// The order is that of a depth-first walk with sorted names: everything below `a` comes directly after `a` and before
/// `a-b`. Plain byte order does not do that.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TopoPath(Arc<str>);

impl TopoPath {
    /// The root of a cell.
    pub fn root() -> Self {
        Self("".into())
    }

    /// Checks a path as a backend stores it. Every component must be a valid file name, but not `.lock`, which stands
    /// for something else in every directory, nor a name of links. The whole must be short enough to be named.
    pub fn parse(path: &str) -> Result<Self, NameError> {
        if path.len() > PATH_MAX {
            return Err(NameError::PathTooLong);
        }
        for (index, name) in path.split('/').enumerate().filter(|_| !path.is_empty()) {
            if index == DEPTH_MAX {
                return Err(NameError::TooDeep);
            }
            if name == LOCK_FILE || LINKS.contains(&name) {
                return Err(NameError::Invalid);
            }
            check_component(name)?;
        }
        Ok(Self(path.into()))
    }

    /// The path of the entry `name` of this directory.
    pub fn join(&self, name: &str) -> Result<Self, NameError> {
        check_component(name)?;
        if self.is_root() {
            return Ok(Self(name.into()));
        }
        if self.0.len() + 1 + name.len() > PATH_MAX {
            return Err(NameError::PathTooLong);
        }
        if self.components().count() >= DEPTH_MAX {
            return Err(NameError::TooDeep);
        }
        Ok(Self(format!("{}/{name}", self.0).into()))
    }

    /// Whether this is the cell's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.rsplit_once('/') {
            Some((dir, _)) => Self(dir.into()),
            None => Self::root(),
        })
    }

    /// The components from the top.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|c| !c.is_empty())
    }

    /// The rest of this path below `dir`; `None` if it is not below it, and empty if it is `dir` itself.
    pub fn below<'a>(&'a self, dir: &TopoPath) -> Option<&'a str> {
        if dir.is_root() {
            return Some(&self.0);
        }
        let rest = self.0.strip_prefix(dir.as_str())?;
        if rest.is_empty() {
            return Some(rest);
        }
        rest.strip_prefix('/')
    }

    /// The smallest path that sorts after everything below this one. It is a search key, not a valid name.
    pub(crate) fn after_subtree(&self) -> Self {
        Self(format!("{}\u{1}", self.0).into())
    }

    fn sort_key(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|b| if b == b'/' { 0 } else { b })
    }
}

impl Ord for TopoPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sort_key().cmp(other.sort_key())
    }
}

impl PartialOrd for TopoPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TopoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A path in a cell, which identifies a record, a directory or a lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellPath {
    /// The cell.
    pub cell: CellName,
    /// The path in it; the empty one is the cell itself.
    pub path: TopoPath,
}

impl CellPath {
    /// Puts the two together.
    pub fn new(cell: &CellName, path: &TopoPath) -> Self {
        Self { cell: cell.clone(), path: path.clone() }
    }

    /// The path of the entry `name` of this directory.
    pub fn join(&self, name: &str) -> Result<Self, NameError> {
        Ok(Self { cell: self.cell.clone(), path: self.path.join(name)? })
    }

    /// The directory that holds it; `None` for the cell itself.
    pub fn parent(&self) -> Option<Self> {
        Some(Self { cell: self.cell.clone(), path: self.path.parent()? })
    }
}

impl fmt::Display for CellPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_root() {
            true => fmt::Display::fmt(&self.cell, f),
            false => write!(f, "{}/{}", self.cell, self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    #[test]
    fn subtrees_are_contiguous() {
        let mut paths = [path("foo-bar/Keyspace"), path("foo/Keyspace"), path("foo"), path("foo/a/b"), path("foo.x")];
        paths.sort();
        assert_eq!(paths.map(|p| p.to_string()), ["foo", "foo/Keyspace", "foo/a/b", "foo-bar/Keyspace", "foo.x"]);
        assert!(path("foo/zzz/zzz") < path("foo").after_subtree());
        assert!(path("foo").after_subtree() < path("foo-bar"));
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["a//b", "/a", "a/", "a/../b", ".", "a\0b", "a/.lock", ".tablets/b", "a/.primary", "a/.cells/b"] {
            assert!(TopoPath::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(TopoPath::parse(&"x".repeat(256)), Err(NameError::TooLong));
        assert!(TopoPath::parse(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn what_nobody_can_name_is_no_path() {
        let deepest = ["a"; DEPTH_MAX].join("/");
        assert!(path(&deepest).join("a").is_err(), "neither found nor made");
        assert_eq!(TopoPath::parse(&format!("{deepest}/a")), Err(NameError::TooDeep));
        assert_eq!(path(&deepest).parent().unwrap().join("b").unwrap().components().count(), DEPTH_MAX);
        let name = "n".repeat(NAME_MAX);
        let longest = [name.as_str(); 16].join("/");
        assert_eq!(longest.len(), PATH_MAX);
        assert_eq!(path(&longest).join("n"), Err(NameError::PathTooLong));
        assert_eq!(TopoPath::parse(&format!("{longest}/n")), Err(NameError::PathTooLong));
        // As etcd stores it: the length is checked first.
        assert_eq!(TopoPath::parse(&["a"; 60_000].join("/")), Err(NameError::PathTooLong));
    }

    #[test]
    fn below_respects_component_borders() {
        assert_eq!(path("a/b/c").below(&path("a")), Some("b/c"));
        assert_eq!(path("ab").below(&path("a")), None);
        assert_eq!(path("a").below(&path("a")), Some(""));
        assert_eq!(path("a").below(&TopoPath::root()), Some("a"));
    }
}
