//! Which paths may be new records, and which message each contains: the paths of `layout` and of `--record`.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::layout::{self, Key};
use crate::name::{CellName, TopoPath};

/// Longest keyspace or shard name that Vitess accepts, in bytes.
const NAME_LIMIT: usize = 64;

/// Knows Vitess's paths, and those that `--record` adds.
#[derive(Debug, Default)]
pub struct Kinds {
    extra: GlobSet,
}

impl Kinds {
    /// With globs of further record paths, written as `cell/path` (`global/custom/*`). `*` does not cross a slash, `**`
    /// does.
    pub fn new(globs: &[String]) -> Result<Self, globset::Error> {
        let mut extra = GlobSetBuilder::new();
        for glob in globs {
            let glob = glob.trim_start_matches('/');
            extra.add(GlobBuilder::new(glob).literal_separator(true).build()?);
        }
        Ok(Self { extra: extra.build()? })
    }

    /// The message in a stored record; `None` for plain bytes and unknown records.
    pub fn message(&self, cell: &CellName, path: &TopoPath) -> Option<&'static str> {
        layout::message(cell, path)
    }

    /// Whether to store a new file of this name. Any other new file is a scratch file: a stray key can break a cell.
    pub fn is_record(&self, cell: &CellName, path: &TopoPath) -> bool {
        is_vitess_record(cell, path) || (!is_editor_file(path.name()) && self.extra.is_match(format!("{cell}/{path}")))
    }
}

/// Whether Vitess stores a record at this path, and accepts the names of its directories.
fn is_vitess_record(cell: &CellName, path: &TopoPath) -> bool {
    match Key::of(cell, path) {
        Some(Key::Keyspace(keyspace) | Key::VSchema(keyspace) | Key::SrvKeyspace(keyspace)) => is_vitess_name(keyspace),
        Some(Key::Shard(keyspace, shard) | Key::ShardReplication(keyspace, shard)) => {
            is_vitess_name(keyspace) && is_vitess_name(shard)
        }
        Some(Key::Tablet(alias)) => is_tablet_alias(alias),
        Some(Key::ExternalCluster(name) | Key::Metadata(name)) => !is_editor_file(name),
        Some(Key::CellInfo(_) | Key::CellsAlias(_) | Key::Workflow(_) | Key::SrvVSchema) => true,
        Some(Key::RoutingRules | Key::ShardRoutingRules | Key::MirrorRules | Key::KeyspaceRoutingRules) => true,
        None => false,
    }
}

/// Whether Vitess accepts a name for a keyspace or a shard.
pub fn is_vitess_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LIMIT
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn is_tablet_alias(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(cell, uid)| {
        !cell.is_empty()
            && cell.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && uid.bytes().all(|b| b.is_ascii_digit())
            && uid.parse::<u32>().is_ok()
    })
}

/// Names that editors, stream editors and mktemp give to temporary and backup files.
pub fn is_editor_file(name: &str) -> bool {
    let random =
        |length: usize| move |rest: &str| rest.len() == length && rest.bytes().all(|b| b.is_ascii_alphanumeric());
    name.starts_with('.')
        || name.ends_with('~')
        || name == "4913"
        || (name.starts_with('#') && name.ends_with('#'))
        || [".tmp", ".bak", ".orig", ".rej", ".new", ".swp", ".swo", ".swx"].iter().any(|end| name.ends_with(end))
        || name.strip_prefix("sed").is_some_and(random(6))
        || name.strip_prefix("XX").is_some_and(random(6))
        || name.strip_prefix("tmp.").is_some_and(random(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global() -> CellName {
        CellName::global()
    }

    fn zone1() -> CellName {
        CellName::new("zone1").unwrap()
    }

    fn path(text: &str) -> TopoPath {
        TopoPath::parse(text).unwrap()
    }

    #[test]
    fn known_paths_are_stored() {
        let kinds = Kinds::default();
        for known in [
            "cells/zone1/CellInfo",
            "cells_aliases/all/CellsAlias",
            "keyspaces/commerce/Keyspace",
            "keyspaces/commerce/VSchema",
            "keyspaces/commerce/shards/-80/Shard",
            "RoutingRules",
            "ShardRoutingRules",
            "MirrorRules",
            "routing_rules/keyspace/Rules",
            "ExternalClusters/vitess/other",
            "metadata/some_key",
        ] {
            assert!(kinds.is_record(&global(), &path(known)), "{known}");
        }
        for known in [
            "tablets/zone1-0000000100/Tablet",
            "keyspaces/commerce/SrvKeyspace",
            "keyspaces/commerce/shards/0/ShardReplication",
            "SrvVSchema",
        ] {
            assert!(kinds.is_record(&zone1(), &path(known)), "{known}");
            assert!(kinds.message(&zone1(), &path(known)).is_some(), "{known}");
        }
    }

    #[test]
    fn everything_else_is_scratch() {
        let kinds = Kinds::default();
        for other in [
            "tablets/notes.txt",
            "keyspaces/commerce/sedAbC123",
            "keyspaces/commerce/.Keyspace.swp",
            "keyspaces/com merce/Keyspace",
            "keyspaces/commerce/shards/0/Shard~",
            "metadata/.key.swp",
            "metadata/sedq1W2e3",
            "metadata/key~",
            "metadata/tmp.a1B2c3D4e5",
            "SrvVSchema",
        ] {
            assert!(!kinds.is_record(&global(), &path(other)), "{other}");
        }
        for other in ["tablets/zone1-x/Tablet", "tablets/zone1-99999999999/Tablet", "tablets/Tablet", "RoutingRules"] {
            assert!(!kinds.is_record(&zone1(), &path(other)), "{other}");
        }
    }

    #[test]
    fn globs_add_records() {
        let kinds = Kinds::new(&["global/custom/*".to_owned(), "zone1/rules/**".to_owned()]).unwrap();
        assert!(kinds.is_record(&global(), &path("custom/a")));
        assert!(!kinds.is_record(&global(), &path("custom/a/b")));
        assert!(kinds.is_record(&zone1(), &path("rules/a/b")));
        assert!(!kinds.is_record(&zone1(), &path("custom/a")));
        for temporary in ["custom/.a.swp", "custom/seda1b2c3", "custom/a.bak", "custom/a~"] {
            assert!(!kinds.is_record(&global(), &path(temporary)), "{temporary}");
        }
    }

    #[test]
    fn rules_need_their_directory() {
        let kinds = Kinds::default();
        assert_eq!(
            kinds.message(&global(), &path("routing_rules/keyspace/Rules")),
            Some("vschema.KeyspaceRoutingRules")
        );
        assert_eq!(kinds.message(&global(), &path("routing_rules/other/Rules")), None);
        assert_eq!(kinds.message(&global(), &path("metadata/Keyspace")), None, "metadata is plain text");
    }
}
