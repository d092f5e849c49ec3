//! `tar` of a mount that lists raw forms only, and back.

use std::collections::{BTreeMap, BTreeSet};

use topofs::name::TopoPath;

use crate::common::mount::Mount;
use crate::common::world::{Service, runtime};
use crate::on_each_service;

/// All stored keys with their bytes.
fn stored(service: &Service) -> BTreeMap<String, Vec<u8>> {
    let listing = runtime().block_on(service.cell().list(&TopoPath::root())).unwrap();
    listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value.to_vec())).collect()
}

/// The keys that two topologies do not have alike.
fn different(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

fn tar(mount: &Mount, how: &str, file: &std::path::Path) {
    mount.sh(&format!("tar {how} -f {}", file.display()));
}

on_each_service! {
    /// Also what Vitess does not know, and what is empty.
    fn a_topology_that_is_lost_comes_back_byte_for_byte(service) {
        service.put("global/routing_rules/keyspace/Rules", b"");
        service.put("global/metadata/a name, with 'quotes' and a \\", b"any \0 bytes");
        service.put("global/operator/notes/today.txt", b"a key that nobody knows");
        service.put("zone1/other", b"another");
        service.put("zone2/rules/custom", &vec![b'x'; 300_000]);
        let before = stored(&service);
        assert!(before.len() > 50, "{}", before.len());
        let flags = ["--list=raw", "--record=*/**"];
        let mount = service.mount(&flags);
        let file = tempfile::NamedTempFile::new().unwrap();
        tar(&mount, "-c .", file.path());
        mount.stop();
        for key in before.keys() {
            service.delete(key);
        }
        assert!(stored(&service).is_empty());
        let mount = service.mount(&flags);
        tar(&mount, "-x", file.path());
        assert_eq!(mount.errors(), [] as [serde_json::Value; 0]);
        // It was stored when tar closed the files; only empty ones are stored a moment later.
        mount.stop();
        assert_eq!(different(&stored(&service), &before), [] as [&str; 0]);
        // Once more, over itself: nothing is written.
        let versions = |service: &Service| {
            let listing = runtime().block_on(service.cell().list(&TopoPath::root())).unwrap();
            listing.nodes.into_iter().map(|node| (node.path, node.version.number)).collect::<BTreeMap<_, _>>()
        };
        let before = versions(&service);
        let mount = service.mount(&flags);
        tar(&mount, "-x --overwrite", file.path());
        mount.stop();
        assert_eq!(versions(&service), before);
    }
}
