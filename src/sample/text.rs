//! The records of the sample cluster, as protobuf text.

use std::fmt::Write;

use super::Keyspace;

pub(super) const KEYSPACE: &str = "durability_policy: \"semi_sync\"\nsidecar_db_name: \"_vt\"\n";

pub(super) const COMMERCE: &str = r#"
tables { key: "product" value {} }
tables { key: "customer_seq" value { type: "sequence" } }
tables { key: "order_seq" value { type: "sequence" } }
"#;

pub(super) const CUSTOMER: &str = r#"
sharded: true
vindexes { key: "hash" value { type: "hash" } }
vindexes { key: "xxhash" value { type: "xxhash" } }
tables {
  key: "customer"
  value {
    column_vindexes { column: "customer_id" name: "hash" }
    auto_increment { column: "customer_id" sequence: "customer_seq" }
    columns { name: "email" type: VARCHAR }
  }
}
tables {
  key: "corder"
  value {
    column_vindexes { column: "customer_id" name: "hash" }
    auto_increment { column: "order_id" sequence: "order_seq" }
  }
}
"#;

pub(super) const ARCHIVE: &str = r#"tables { key: "corder_2025" value {} }"#;

pub(super) struct Tablet {
    pub cell: String,
    pub uid: u32,
    pub keyspace: String,
    pub shard: String,
    pub kind: &'static str,
}

impl Tablet {
    pub fn alias(&self) -> String {
        format!("{}-{:010}", self.cell, self.uid)
    }

    pub fn text(&self) -> String {
        let Self { cell, uid, keyspace, shard, kind } = self;
        let host = format!("vttablet-{uid}.{cell}.example.com");
        let term = if *kind == "PRIMARY" { "primary_term_start_time { seconds: 1767225600 }" } else { "" };
        format!(
            r#"alias {{ cell: "{cell}" uid: {uid} }} hostname: "{host}" mysql_hostname: "{host}" mysql_port: 3306
            port_map {{ key: "vt" value: 15000 }} port_map {{ key: "grpc" value: 16000 }}
            keyspace: "{keyspace}" shard: "{shard}" {} type: {kind} default_conn_collation: 255 {term}
            tablet_start_time {{ seconds: 1767225000 }}"#,
            key_range(shard)
        )
    }
}

/// Names of key ranges that split the whole range evenly; at most 65,536.
pub(super) fn key_ranges(count: usize) -> Vec<String> {
    const KEYS: usize = 0x1_0000;
    let count = count.clamp(1, KEYS);
    if count == 1 {
        return vec!["0".to_owned()];
    }
    let border = |index: usize| match index {
        0 => String::new(),
        index if index == count => String::new(),
        index => format!("{:04x}", KEYS * index / count),
    };
    (0..count).map(|index| format!("{}-{}", border(index), border(index + 1))).collect()
}

/// The `key_range` field of a shard; empty for an unsharded one.
fn key_range(shard: &str) -> String {
    let Some((start, end)) = shard.split_once('-') else { return String::new() };
    let side = |name: &str, hex: &str| match hex {
        "" => String::new(),
        hex => format!("{name}: \"{}\"", hex_escapes(hex)),
    };
    format!("key_range {{ {} {} }}", side("start", start), side("end", end))
}

fn hex_escapes(hex: &str) -> String {
    let digits: Vec<char> = hex.chars().collect();
    digits.chunks(2).fold(String::new(), |mut text, pair| {
        // Writing to a String cannot fail.
        let _ = write!(text, "\\x{}", pair.iter().collect::<String>());
        text
    })
}

pub(super) fn cell_info(server: &str, root: &str) -> String {
    format!("server_address: \"{server}\" root: \"{root}\"")
}

pub(super) fn cells_alias(cells: &[String]) -> String {
    cells.iter().map(|cell| format!("cells: \"{cell}\" ")).collect()
}

pub(super) fn routing_rules(keyspaces: &[Keyspace]) -> String {
    let Some(keyspace) = keyspaces.get(1).or(keyspaces.first()) else { return String::new() };
    let target = &keyspace.name;
    ["customer", "corder"]
        .iter()
        .map(|table| format!("rules {{ from_table: \"{table}\" to_tables: \"{target}.{table}\" }}\n"))
        .collect()
}

pub(super) fn keyspace_routing_rules(keyspaces: &[Keyspace]) -> String {
    match keyspaces {
        [first, .., last] => {
            format!("rules {{ from_keyspace: \"{}_old\" to_keyspace: \"{}\" }}", first.name, last.name)
        }
        _ => String::new(),
    }
}

pub(super) fn shard(name: &str, primary: Option<&Tablet>) -> String {
    let primary = primary.map_or_else(String::new, |tablet| {
        let Tablet { cell, uid, .. } = tablet;
        format!("primary_alias {{ cell: \"{cell}\" uid: {uid} }} primary_term_start_time {{ seconds: 1767225600 }}")
    });
    format!("{primary} {} is_primary_serving: true", key_range(name))
}

pub(super) fn shard_replication(tablets: &[&Tablet]) -> String {
    tablets
        .iter()
        .map(|tablet| format!("nodes {{ tablet_alias {{ cell: \"{}\" uid: {} }} }}\n", tablet.cell, tablet.uid))
        .collect()
}

pub(super) fn srv_keyspace(shards: &[String]) -> String {
    let references: String =
        shards.iter().map(|shard| format!("shard_references {{ name: \"{shard}\" {} }}\n", key_range(shard))).collect();
    ["PRIMARY", "REPLICA", "RDONLY"]
        .iter()
        .map(|kind| format!("partitions {{ served_type: {kind} {references} }}\n"))
        .collect()
}

pub(super) fn srv_vschema(keyspaces: &[Keyspace]) -> String {
    let all: String = keyspaces
        .iter()
        .map(|keyspace| format!("keyspaces {{ key: \"{}\" value {{ {} }} }}\n", keyspace.name, keyspace.vschema))
        .collect();
    let (tables, rules) = (routing_rules(keyspaces), keyspace_routing_rules(keyspaces));
    format!(
        "{all} routing_rules {{ {tables} }} shard_routing_rules {{}} mirror_rules {{}} \
         keyspace_routing_rules {{ {rules} }}"
    )
}
