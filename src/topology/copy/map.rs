//! Where the cells of the source are at the target: `--map-server` and `--map-root`. Pure: must never ask a service.

use std::str::FromStr;

use bytes::Bytes;
use prost::Message;
use prost_reflect::Value;

use crate::backend::Location;
use crate::error::Result;
use crate::record::{CellInfo, Codec};

/// One rule: what is replaced by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the CellInfo records of the source say.
    pub old: String,
    /// What the CellInfo records of the target say instead.
    pub new: String,
}

impl Rule {
    /// A rule of `--map-server`.
    pub fn of_servers(text: &str) -> std::result::Result<Self, String> {
        let rule: Self = text.parse()?;
        if rule.new.is_empty() { Err("NEW is empty: name the servers".to_owned()) } else { Ok(rule) }
    }

    /// A rule of `--map-root`. Without an old root, it would be a rule for all of them.
    pub fn of_roots(text: &str) -> std::result::Result<Self, String> {
        let rule: Self = text.parse()?;
        if rule.old.is_empty() { Err("OLD is empty: / stands for every root".to_owned()) } else { Ok(rule) }
    }
}

impl FromStr for Rule {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (old, new) = text.split_once('=').ok_or("must have the form OLD=NEW")?;
        Ok(Self { old: old.trim().to_owned(), new: new.trim().to_owned() })
    }
}

/// The rules for the CellInfo records of cells that move.
#[derive(Debug, Clone, Default)]
pub struct Mapping {
    /// For whole server addresses.
    pub servers: Vec<Rule>,
    /// For roots, and for directories above them; the longest one counts.
    pub roots: Vec<Rule>,
}

/// Where a cell goes, and by which rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub info: CellInfo,
    /// The rule for its server.
    pub server: Option<usize>,
    /// The rule for its root.
    pub root: Option<usize>,
}

impl Mapping {
    /// Where a cell of the source goes.
    pub(super) fn apply(&self, cell: &Location) -> Mapped {
        let server = self.servers.iter().position(|rule| {
            let old = Location { server: rule.old.clone(), ..cell.clone() };
            rule.old == cell.server.trim() || (old.is_served_by(cell) && cell.is_served_by(&old))
        });
        let rests = self.roots.iter().enumerate().filter_map(|(index, rule)| {
            let old = Location { root: rule.old.clone(), ..cell.clone() }.clean_root();
            Some((old.len(), index, cell.clean_root().strip_prefix(&old)?.trim_end_matches('/').to_owned()))
        });
        let root = rests.max_by_key(|(length, ..)| *length);
        let rule = |rules: &[Rule], index: Option<usize>| index.and_then(|index| rules.get(index)).cloned();
        let info = CellInfo {
            server: rule(&self.servers, server).map_or_else(|| cell.server.clone(), |rule| rule.new),
            root: match (rule(&self.roots, root.as_ref().map(|(_, index, _)| *index)), &root) {
                (Some(rule), Some((.., rest))) => below(&rule.new, rest),
                _ => cell.root.clone(),
            },
        };
        Mapped { info, server, root: root.map(|(_, index, _)| index) }
    }

    /// The flags of the rules that are not among those used: most likely misspelt.
    pub(super) fn unused(&self, used: &[Mapped]) -> Vec<String> {
        let flag = |name: &str, rule: &Rule| format!("--map-{name} {}={}", rule.old, rule.new);
        let servers =
            self.servers.iter().enumerate().filter(|(index, _)| used.iter().all(|u| u.server != Some(*index)));
        let roots = self.roots.iter().enumerate().filter(|(index, _)| used.iter().all(|u| u.root != Some(*index)));
        let servers = servers.map(|(_, rule)| flag("server", rule));
        servers.chain(roots.map(|(_, rule)| flag("root", rule))).collect()
    }
}

/// The path of `rest` in a new directory.
fn below(new: &str, rest: &str) -> String {
    match (new, rest) {
        (new, "") => new.to_owned(),
        ("", rest) => rest.to_owned(),
        (new, rest) => format!("{}/{rest}", new.trim_end_matches('/')),
    }
}

/// A CellInfo record that says another place, with everything else that it holds.
pub(super) fn moved(codec: &Codec, value: &Bytes, from: &CellInfo, to: &CellInfo) -> Result<Bytes> {
    if from == to {
        return Ok(value.clone());
    }
    let mut message = codec.decode("topodata.CellInfo", value)?;
    message.set_field_by_name("server_address", Value::String(to.server.clone()));
    message.set_field_by_name("root", Value::String(to.root.clone()));
    Ok(message.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Implementation;

    fn cell(server: &str, root: &str) -> Location {
        Location { implementation: Implementation::Etcd2, server: server.to_owned(), root: root.to_owned() }
    }

    fn mapping(servers: &[&str], roots: &[&str]) -> Mapping {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Mapping { servers: rules(servers), roots: rules(roots) }
    }

    fn apply(mapping: &Mapping, server: &str, root: &str) -> (String, String) {
        let mapped = mapping.apply(&cell(server, root));
        (mapped.info.server, mapped.info.root)
    }

    fn pair(server: &str, root: &str) -> (String, String) {
        (server.to_owned(), root.to_owned())
    }

    #[test]
    fn servers_are_mapped_as_a_whole_and_roots_by_their_directories() {
        let rules = mapping(&["a:1,b:2=new:1", "=told:1"], &["/vitess=v", "/vitess/zone2=/other", "/=/rest/"]);
        assert_eq!(apply(&rules, "a:1,b:2", "/vitess/zone1"), pair("new:1", "v/zone1"));
        assert_eq!(apply(&rules, "http://B:2,a:1", "/vitess/zone2"), pair("new:1", "/other"));
        assert_eq!(apply(&rules, "", "vitess2/zone1"), pair("told:1", "/rest/vitess2/zone1"));
        assert_eq!(apply(&rules, "a:1", "/vitess"), pair("a:1", "v"), "one of two servers is another address");
        assert_eq!(apply(&mapping(&[], &["/vitess="]), "a:1", "/vitess/zone1"), pair("a:1", "zone1"));
    }

    #[test]
    fn a_rule_that_no_cell_needs_is_told() {
        let rules = mapping(&["a:1=b:1", "typo:1=b:1"], &["/x=/y"]);
        let used = [rules.apply(&cell("a:1", "/vitess/zone1"))];
        assert_eq!(rules.unused(&used), ["--map-server typo:1=b:1", "--map-root /x=/y"]);
        assert!("no rule".parse::<Rule>().is_err());
        assert!(Rule::of_roots("=x").is_err() && Rule::of_roots(" = x").is_err() && Rule::of_roots("/vitess=").is_ok());
        assert!(Rule::of_servers("a:1=").is_err() && Rule::of_servers("a:1=b:1").is_ok());
    }

    #[test]
    fn a_moved_record_keeps_the_fields_of_a_newer_vitess() {
        let codec = Codec::builtin().unwrap();
        // Field 9 is unknown.
        let value = Bytes::from_static(b"\x0a\x03a:1\x12\x02/b\x4a\x03new");
        let info = |server: &str, root: &str| CellInfo { server: server.to_owned(), root: root.to_owned() };
        let to = moved(&codec, &value, &info("a:1", "/b"), &info("c:2", "/d")).unwrap();
        assert_eq!(to, Bytes::from_static(b"\x0a\x03c:2\x12\x02/d\x4a\x03new"));
        assert_eq!(moved(&codec, &value, &info("a:1", "/b"), &info("a:1", "/b")).unwrap(), value);
    }
}
