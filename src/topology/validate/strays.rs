//! Keys that are no records, and records that cannot be decoded.

use prost::Message;

use super::facts::Facts;
use super::lost::Lost;
use super::problem::{Kind, Report};
use super::restore;
use super::shell::{remove, word};
use crate::backend::{Implementation, Location};
use crate::mirror::Snapshot;
use crate::name::{CellName, TopoPath};
use crate::record::is_editor_file;
use crate::record::layout::{self, Key};
use crate::record::messages::{topodata, vschema, workflow};

pub(super) fn check(facts: &Facts<'_>, lost: &Lost<'_>, report: &mut Report) {
    let global = CellName::global();
    let shared = facts.places.iter().find(|place| place.holds_global).map(|place| &place.cell);
    records((facts, lost), (&global, facts.global), shared, report);
    for place in facts.places.iter().filter(|place| !place.holds_global) {
        records((facts, lost), (&place.cell, place.records), None, report);
    }
    for (cell, count) in facts.sight.unnameable.iter().filter(|(_, count)| **count > 0) {
        report.add(Kind::UnnameableKeys, (cell, &TopoPath::root()), || {
            let keys = if *count == 1 { "key whose name" } else { "keys whose names" };
            let name = if *count == 1 { "be a file name" } else { "be file names" };
            let fault = format!(
                "when its records were last listed, the service had {count} {keys} cannot {name}: no mount shows them"
            );
            let list = facts.sight.locations.get(cell).and_then(list);
            let list = list.unwrap_or_else(|| "# list the keys with the tool of the service".to_owned());
            let again = format!("echo resync {} > .topofs/control", word(cell.as_str()));
            (fault, format!("{list}, remove those that no mount shows; then: {again}"))
        });
    }
}

/// Lists the keys of a service with its own tool.
fn list(location: &Location) -> Option<String> {
    let root = location.clean_root();
    // What is in front of an @ is a name and a password.
    let hidden = location.server.contains('@');
    let server = if hidden { "SERVERS".to_owned() } else { word(&location.server) };
    Some(match location.implementation {
        Implementation::Etcd2 => {
            format!("etcdctl --endpoints={server} get --prefix --keys-only {}  # with your TLS flags", word(&root))
        }
        Implementation::Zk2 => format!("zkCli.sh -server {server} ls -R {}  # all nodes", word(&root)),
        Implementation::Consul => {
            let root = word(root.trim_start_matches('/'));
            format!("consul kv get -http-addr={server} -keys -separator= {root}  # with your token")
        }
        Implementation::Memory => return None,
    })
}

/// Checks the records of one place. If a cell shares the place of the global topology, records of both may be there.
fn records(
    (facts, lost): (&Facts<'_>, &Lost<'_>),
    (cell, records): (&CellName, &Snapshot),
    shared: Option<&CellName>,
    report: &mut Report,
) {
    let kinds = &facts.sight.records.kinds;
    let inside = facts.sight.roots_inside.get(cell).map_or(&[][..], Vec::as_slice);
    for (path, record) in &records.records {
        let may_have_any_name = cell.is_global() && (layout::is_metadata(path) || layout::stands_among_records(path));
        let is_record = |cell: &CellName| kinds.is_record(cell, path);
        if may_have_any_name || is_record(cell) || shared.is_some_and(is_record) {
            let key = Key::of(cell, path).or_else(|| Key::of(shared?, path));
            if let Some(Err(flaw)) = key.map(|key| decodes(key, &record.value)) {
                undecodable((facts, lost), (cell, path), (key, &flaw), report);
            }
        } else if !inside.iter().any(|root| path.below(root).is_some()) {
            stray((cell, path), report);
        }
    }
}

fn stray((cell, path): (&CellName, &TopoPath), report: &mut Report) {
    report.add(Kind::StrayKey, (cell, path), || {
        let among = path.components().next().unwrap_or_default();
        let harm = match among {
            _ if Key::of(cell, path).is_some() => "Vitess does not accept the name of its directory",
            _ if stands_for_lock(path) => "it is where locks are, and nobody gets the lock of this directory",
            layout::TABLETS => "Vitess takes everything here for tablets, and fails",
            layout::KEYSPACES if path.components().count() == 2 => "Vitess takes it for a keyspace",
            layout::CELLS if path.components().count() <= 3 => "Vitess takes it for a cell",
            _ if is_editor_file(path.name()) => "an editor may have left it",
            _ => "no part of Vitess reads it, unless it was told to",
        };
        let fault = format!("the key is no record of Vitess: {harm}");
        let remove = remove(cell, path);
        // A record in a directory with a wrong name may be the only one of its kind.
        let mend = match Key::of(cell, path).is_some() {
            true => format!("# move it to a directory with a right name. If nobody needs it: {remove}"),
            false => format!("{remove}  # if nobody needs it; otherwise mount with --record"),
        };
        (fault, mend)
    });
}

/// Whether a service would keep a lock under this name.
fn stands_for_lock(path: &TopoPath) -> bool {
    let parent = path.parent();
    path.name() == layout::LOCK || parent.is_some_and(|parent| parent.name() == layout::LOCKS)
}

fn undecodable(
    sources: (&Facts<'_>, &Lost<'_>),
    (cell, path): (&CellName, &TopoPath),
    (key, flaw): (Option<Key<'_>>, &str),
    report: &mut Report,
) {
    report.add(Kind::Undecodable, (cell, path), || {
        let fault = format!("the bytes of the record are not its message: {flaw}");
        (fault, restore::undecodable(sources, (cell, path), key))
    });
}

fn decodes(key: Key<'_>, value: &[u8]) -> Result<(), String> {
    fn check<M: Message + Default>(value: &[u8]) -> Result<(), String> {
        M::decode(value).map(drop).map_err(|error| error.to_string())
    }
    match key {
        Key::CellInfo(_) => check::<topodata::CellInfo>(value),
        Key::CellsAlias(_) => check::<topodata::CellsAlias>(value),
        Key::Workflow(_) => check::<workflow::Workflow>(value),
        Key::Keyspace(_) => check::<topodata::Keyspace>(value),
        Key::VSchema(_) => check::<vschema::Keyspace>(value),
        Key::Shard(..) => check::<topodata::Shard>(value),
        Key::RoutingRules => check::<vschema::RoutingRules>(value),
        Key::ShardRoutingRules => check::<vschema::ShardRoutingRules>(value),
        Key::MirrorRules => check::<vschema::MirrorRules>(value),
        Key::KeyspaceRoutingRules => check::<vschema::KeyspaceRoutingRules>(value),
        Key::ExternalCluster(_) => check::<topodata::ExternalVitessCluster>(value),
        Key::Metadata(_) => Ok(()),
        Key::Tablet(_) => check::<topodata::Tablet>(value),
        Key::SrvKeyspace(_) => check::<topodata::SrvKeyspace>(value),
        Key::ShardReplication(..) => check::<topodata::ShardReplication>(value),
        Key::SrvVSchema => check::<vschema::SrvVSchema>(value),
    }
}
