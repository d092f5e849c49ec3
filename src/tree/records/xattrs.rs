//! Extended attributes. Must never show a version before its content can be read.

use super::RecordFiles;
use crate::error::{Error, Kind, Result};
use crate::name::CellPath;
use crate::tree::file::FileId;

/// What all names begin with.
pub(crate) const PREFIX: &str = "user.topo.";
const VERSION: &str = "user.topo.version";
const TYPE: &str = "user.topo.type";
const PATH: &str = "user.topo.path";
const CELL: &str = "user.topo.cell";
const SCRATCH: &str = "user.topo.scratch";

impl RecordFiles {
    /// One extended attribute; ENODATA if there is none of that name.
    pub(super) async fn xattr(&self, file: &FileId, name: &str) -> Result<Vec<u8>> {
        let missing = || Error::new(Kind::NoAttribute, "no such attribute");
        if let FileId::Record(CellPath { cell, path }, _) = file {
            let store = self.store(cell)?;
            let known = name.strip_prefix(PREFIX).filter(|name| store.attributes().contains(name));
            if let Some(name) = known {
                let found = match store.attribute(path, name).await {
                    // A name that still answers only to the process that has removed it has none.
                    Err(error) if error.kind == Kind::NotFound => None,
                    found => found?,
                };
                return found.map(String::into_bytes).ok_or_else(missing);
            }
        }
        let found = self.xattrs(file).await?.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.into_bytes()).ok_or_else(missing)
    }

    /// The names of all extended attributes.
    pub(super) async fn xattr_names(&self, file: &FileId) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.xattrs(file).await?.into_iter().map(|(name, _)| name.to_owned()).collect();
        if let FileId::Record(CellPath { cell, .. }, _) = file {
            names.extend(self.store(cell)?.attributes().iter().map(|name| format!("{PREFIX}{name}")));
        }
        Ok(names)
    }

    async fn xattrs(&self, file: &FileId) -> Result<Vec<(&'static str, String)>> {
        Ok(match file {
            FileId::Root | FileId::Control | FileId::ControlFile(_) | FileId::Links(..) | FileId::Link(_) => Vec::new(),
            FileId::Spaces(_) | FileId::Inside(..) | FileId::About(_) | FileId::Past(_) => Vec::new(),
            FileId::Dir(CellPath { cell, path }) | FileId::Lock(CellPath { cell, path }) => {
                vec![(CELL, cell.to_string()), (PATH, path.to_string())]
            }
            FileId::Scratch(_) => vec![(SCRATCH, "1".to_owned())],
            FileId::Record(CellPath { cell, path }, _) => {
                let store = self.store(cell)?;
                let snapshot = store.snapshot().await?;
                // Whoever reads the content after the version must not find an older content.
                if let Some(connected) = store.connected() {
                    self.kernel.keeps_up(connected).await;
                }
                let mut attributes = vec![(CELL, cell.to_string()), (PATH, path.to_string())];
                if let Some(record) = snapshot.records.get(path) {
                    attributes.push((VERSION, record.version.number.to_string()));
                }
                if let Some(message) = self.codec.message(cell, path) {
                    attributes.push((TYPE, message.to_owned()));
                }
                attributes
            }
        })
    }
}
