//! A sample cluster. `topofs demo` shows it, and tests and benchmarks load it in several sizes. Must never store a
//! record: it only builds them.

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::name::{CellName, TopoPath};
use crate::record::{Codec, Form, Kinds};

mod text;

/// A record of the sample.
pub type SampleRecord = (CellName, TopoPath, Bytes);

/// What the sample consists of.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Names of the cells.
    pub cells: Vec<String>,
    /// Server address that the CellInfo records name.
    pub server: String,
    /// Each cell has a root of its own below this one.
    pub root: String,
    /// The keyspaces.
    pub keyspaces: Vec<Keyspace>,
    /// Tablets of each shard, distributed over the cells in turn. The first is the primary.
    pub tablets: usize,
}

/// A keyspace of the sample.
#[derive(Debug, Clone)]
pub struct Keyspace {
    /// Its name.
    pub name: String,
    /// Names of its shards: key ranges, or one `0`.
    pub shards: Vec<String>,
    /// Its VSchema in protobuf text format.
    pub vschema: String,
}

impl Cluster {
    /// The cluster of `topofs demo`: a small shop, partly sharded.
    pub fn demo(server: &str) -> Self {
        let keyspace = |name: &str, shards: &[&str], vschema: &str| Keyspace {
            name: name.to_owned(),
            shards: shards.iter().map(ToString::to_string).collect(),
            vschema: vschema.to_owned(),
        };
        Self {
            cells: vec!["zone1".to_owned(), "zone2".to_owned()],
            server: server.to_owned(),
            root: "/vitess".to_owned(),
            keyspaces: vec![
                keyspace("commerce", &["0"], text::COMMERCE),
                keyspace("customer", &["-80", "80-"], text::CUSTOMER),
                keyspace("archive", &["0"], text::ARCHIVE),
            ],
            tablets: 5,
        }
    }

    /// A cluster of a given size.
    pub fn of_size(server: &str, root: &str, cells: usize, keyspaces: usize, shards: usize, tablets: usize) -> Self {
        let keyspaces = (0..keyspaces).map(|number| Keyspace {
            name: format!("ks{number:04}"),
            shards: text::key_ranges(shards),
            vschema: if shards > 1 { text::CUSTOMER } else { text::COMMERCE }.to_owned(),
        });
        Self {
            cells: (1..=cells).map(|number| format!("zone{number}")).collect(),
            server: server.to_owned(),
            root: root.to_owned(),
            keyspaces: keyspaces.collect(),
            tablets,
        }
    }

    /// All records, those of the global topology first.
    pub fn records(&self, codec: &Codec) -> Result<Vec<SampleRecord>> {
        let kinds = Kinds::default();
        self.texts()
            .into_iter()
            .map(|(cell, path, text)| {
                let cell = CellName::new(&cell)?;
                let path = TopoPath::parse(&path)?;
                let value = match kinds.message(&cell, &path) {
                    None => text.into(),
                    Some(message) => codec
                        .store(message, Form::Text, &text.into(), None)?
                        .ok_or_else(|| Error::new(Kind::Io, "nothing replaces nothing"))?,
                };
                Ok((cell, path, value))
            })
            .collect()
    }

    fn texts(&self) -> Vec<(String, String, String)> {
        let global = CellName::GLOBAL;
        let mut texts = Vec::new();
        let mut add = |cell: &str, path: String, text: String| texts.push((cell.to_owned(), path, text));
        for cell in &self.cells {
            let root = format!("{}/{cell}", self.root);
            add(global, format!("cells/{cell}/CellInfo"), text::cell_info(&self.server, &root));
        }
        add(global, "cells_aliases/region1/CellsAlias".to_owned(), text::cells_alias(&self.cells));
        add(global, "RoutingRules".to_owned(), text::routing_rules(&self.keyspaces));
        add(global, "routing_rules/keyspace/Rules".to_owned(), text::keyspace_routing_rules(&self.keyspaces));
        add(global, "metadata/owner".to_owned(), "the shop team".to_owned());
        let mut uid = 0;
        for keyspace in &self.keyspaces {
            let dir = format!("keyspaces/{}", keyspace.name);
            add(global, format!("{dir}/Keyspace"), text::KEYSPACE.to_owned());
            add(global, format!("{dir}/VSchema"), keyspace.vschema.clone());
            for cell in &self.cells {
                add(cell, format!("{dir}/SrvKeyspace"), text::srv_keyspace(&keyspace.shards));
            }
            for shard in &keyspace.shards {
                uid += 100;
                let tablets = self.tablets_of(&keyspace.name, shard, uid);
                uid += u32::try_from(self.tablets / 100 * 100).unwrap_or(0);
                add(global, format!("{dir}/shards/{shard}/Shard"), text::shard(shard, tablets.first()));
                for cell in &self.cells {
                    let there: Vec<_> = tablets.iter().filter(|tablet| tablet.cell == *cell).collect();
                    add(cell, format!("{dir}/shards/{shard}/ShardReplication"), text::shard_replication(&there));
                }
                for tablet in &tablets {
                    add(&tablet.cell, format!("tablets/{}/Tablet", tablet.alias()), tablet.text());
                }
            }
        }
        for cell in &self.cells {
            add(cell, "SrvVSchema".to_owned(), text::srv_vschema(&self.keyspaces));
        }
        texts
    }

    fn tablets_of(&self, keyspace: &str, shard: &str, first_uid: u32) -> Vec<text::Tablet> {
        let cells = self.cells.iter().cycle();
        (0_u32..)
            .zip(cells)
            .take(self.tablets)
            .map(|(number, cell)| text::Tablet {
                cell: cell.clone(),
                uid: first_uid + number,
                keyspace: keyspace.to_owned(),
                shard: shard.to_owned(),
                kind: match number {
                    0 => "PRIMARY",
                    number if number % 3 == 2 => "RDONLY",
                    _ => "REPLICA",
                },
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_valid_and_has_twenty_tablets() {
        let codec = Codec::builtin().unwrap();
        let records = Cluster::demo("memory").records(&codec).unwrap();
        let tablets = records.iter().filter(|(_, path, _)| path.name() == "Tablet").count();
        assert_eq!(tablets, 20);
        let kinds = Kinds::default();
        for (cell, path, value) in &records {
            assert!(kinds.is_record(cell, path), "{cell}/{path} would not be stored");
            if let Some(message) = kinds.message(cell, path) {
                codec.decode(message, value).unwrap();
            }
        }
        let paths: std::collections::HashSet<_> = records.iter().map(|(cell, path, _)| (cell, path)).collect();
        assert_eq!(paths.len(), records.len(), "every record has a path of its own");
    }

    #[test]
    fn large_clusters_have_distinct_paths() {
        let codec = Codec::builtin().unwrap();
        let records = Cluster::of_size("s", "/big", 2, 3, 4, 250).records(&codec).unwrap();
        let paths: std::collections::HashSet<_> = records.iter().map(|(cell, path, _)| (cell, path)).collect();
        assert_eq!(paths.len(), records.len());
    }
}
