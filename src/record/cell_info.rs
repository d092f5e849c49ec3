//! The record that says where a cell is.

use super::Records;

/// The location of a cell in its CellInfo record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellInfo {
    /// Its servers.
    pub server: String,
    /// The path at the beginning of all its keys.
    pub root: String,
}

impl Records {
    /// Reads a CellInfo record; `None` if it cannot be decoded.
    pub fn cell_info(&self, value: &[u8]) -> Option<CellInfo> {
        let info = self.codec.decode("topodata.CellInfo", value).ok()?;
        let field = |name: &str| Some(info.get_field_by_name(name)?.as_str()?.to_owned());
        Some(CellInfo { server: field("server_address")?, root: field("root")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Codec, Kinds};

    #[test]
    fn a_cell_is_where_its_record_says() {
        let records = Records::new(Codec::builtin().unwrap(), Kinds::default());
        let said = records.cell_info(b"\x0a\x03a:1\x12\x02/b");
        assert_eq!(said, Some(CellInfo { server: "a:1".to_owned(), root: "/b".to_owned() }));
        let empty = records.cell_info(b"").unwrap();
        assert!(empty.server.is_empty() && empty.root.is_empty(), "what a record does not say is empty");
        assert_eq!(records.cell_info(b"\x0a\x09a"), None, "it ends too early");
    }
}
