//! Extended attributes.

use std::ffi::OsStr;

use super::{FileId, Tree};
use crate::error::{Error, Kind, Result};
use crate::name::CellPath;

/// The kind of attributes that there are.
const USER: &str = "user.";
/// What all names begin with.
const PREFIX: &str = "user.topo.";
const VERSION: &str = "user.topo.version";
const TYPE: &str = "user.topo.type";
const PATH: &str = "user.topo.path";
const CELL: &str = "user.topo.cell";
const SCRATCH: &str = "user.topo.scratch";

impl Tree {
    /// One extended attribute; ENODATA if there is none of that name.
    pub async fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let missing = || Error::new(Kind::NoAttribute, "no such attribute");
        // Of other kinds (ACLs, labels, capabilities) there are none: `ls -l` asks for three of each file, unless it hears that.
        let unsupported = || Error::new(Kind::Unsupported, "there are only user attributes");
        let name = name.to_str().filter(|name| name.starts_with(USER)).ok_or_else(unsupported)?;
        if let FileId::Record(CellPath { cell, path }, _) = self.node(ino)? {
            let cell = self.cell(&cell)?;
            let known = name.strip_prefix(PREFIX).filter(|name| cell.attributes().contains(name));
            if let Some(name) = known {
                let found = match cell.attribute(&path, name).await {
                    // A name that only answers to whoever has removed it has none.
                    Err(error) if error.kind == Kind::NotFound => None,
                    found => found?,
                };
                return found.map(String::into_bytes).ok_or_else(missing);
            }
        }
        let attributes = self.xattrs(ino).await?;
        attributes
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.into_bytes())
            .ok_or_else(missing)
    }

    /// The names of all extended attributes, each followed by NUL.
    pub async fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        let attributes = self.xattrs(ino).await?;
        let mut names: Vec<u8> = attributes.iter().flat_map(|(name, _)| name.bytes().chain([0])).collect();
        if let FileId::Record(CellPath { cell, .. }, _) = self.node(ino)? {
            let more = self.cell(&cell)?.attributes();
            names.extend(more.iter().flat_map(|name| PREFIX.bytes().chain(name.bytes()).chain([0])));
        }
        Ok(names)
    }

    async fn xattrs(&self, ino: u64) -> Result<Vec<(&'static str, String)>> {
        Ok(match self.node(ino)? {
            FileId::Root | FileId::Control | FileId::ControlFile(_) => Vec::new(),
            FileId::Dir(CellPath { cell, path }) | FileId::Lock(CellPath { cell, path }) => {
                vec![(CELL, cell.to_string()), (PATH, path.to_string())]
            }
            FileId::Scratch(_) => vec![(SCRATCH, "1".to_owned())],
            FileId::Record(CellPath { cell, path }, _) => {
                let snapshot = self.cell(&cell)?.snapshot().await?;
                // Who reads the content after the version must not find an older one.
                self.kernel_keeps_up(&cell).await;
                let mut attributes = vec![(CELL, cell.to_string()), (PATH, path.to_string())];
                if let Some(record) = snapshot.records.get(&path) {
                    attributes.push((VERSION, record.version.number.to_string()));
                }
                if let Some(message) = self.records.message(&cell, &path) {
                    attributes.push((TYPE, message.to_owned()));
                }
                attributes
            }
        })
    }

    /// Attributes describe; they cannot be set or removed. Those that a backup brings back are passed over: what they describe is
    /// brought back by itself.
    pub fn setxattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        self.node(ino)?;
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            return Ok(());
        }
        Err(Error::new(Kind::Unsupported, "extended attributes cannot be set"))
    }
}
