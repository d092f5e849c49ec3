//! What cannot be copied is refused, by name, before anything is written.

use topofs::backend::Implementation;

use super::{Place, copy, run, without_places};
use crate::common::etcd;

#[track_caller]
fn refused(ended: (i32, String), words: &[&str]) {
    let (status, said) = ended;
    assert_eq!(status, 2, "{said}");
    for words in words {
        assert!(said.contains(words), "{words:?} in {said}");
    }
}

/// A CellInfo record of the source that names another place.
fn cell_info(place: &Place, cell: &str, server: &str, root: &str) {
    let text = format!("server_address: \"{server}\" root: \"{root}\"");
    place.put_text(&format!("global/cells/{cell}/CellInfo"), "topodata.CellInfo", &text);
}

#[test]
fn a_cell_needs_a_place_of_its_own() {
    let (from, to) = (Place::demo(), Place::etcd());
    let server = from.server.clone();
    let zk = Place::empty(Implementation::Zk2);
    refused(
        run(&from, &zk, &[]),
        &["cell zone1 is on etcd2", "cell zone2 is on", &format!("--map-server {server}=SERVER")],
    );
    let consul = Place::empty(Implementation::Consul);
    let map_server = format!("--map-server={server}={}", consul.server);
    refused(run(&from, &consul, &[&map_server]), &["cell zone1: the root", "begins with a slash", "--map-root"]);
    let slash = Place { root: format!("/{}", consul.root), ..Place::empty(Implementation::Consul) };
    refused(copy(&from, &slash, &["--do-keyspaces"]), &[&format!("give --to-root {}/global", consul.root)]);
    refused(run(&from, &from, &[]), &["the global topology would be copied to", "where it is"]);
    let maps = |map: &str| format!("--map-root={}/{map}", from.root);
    let both = [maps("zone1=/t/one"), maps("zone2=/t/one")];
    refused(run(&from, &to, &[&both[0], &both[1]]), &["cell zone2 and cell zone1 would both be copied to"]);
    let over = maps(&format!("zone1={}/zone2", from.root));
    refused(run(&from, &to, &[&over]), &["cell zone1 would be copied to", "where cell zone2 of the source is"]);
    let own = maps(&format!("zone1={}/global", to.root));
    refused(run(&from, &to, &[&own]), &["cell zone1 and the global topology would both be copied"]);
    refused(run(&from, &to, &["--map-server=typo:1=x:1"]), &["--map-server typo:1=x:1: no CellInfo record"]);
    refused(run(&from, &to, &["--cells=zone7"]), &["--cells: the source has no cell zone7"]);
    let usage = "Usage: topofs topo2topo [OPTIONS] --from-implementation <NAME> --to-implementation <NAME>\n";
    refused(run(&from, &to, &["--do-tablet"]), &["--do-tablet", usage]);
    refused(run(&from, &to, &["--map-root==x"]), &["OLD is empty"]);
    // A cell that only the target has.
    cell_info(&to, "theirs", &server, "/t/theirs");
    refused(run(&from, &to, &[&maps("zone1=/t/theirs")]), &["where cell theirs of the target is"]);
    assert_eq!(to.records().len(), 1, "nothing was written");
}

#[test]
fn cells_that_both_topologies_use_stay_where_they_are() {
    let (from, to) = (Place::demo(), Place::etcd());
    let before = from.records();
    let (status, said) = run(&from, &to, &[]);
    assert!(status == 0 && said.contains("zone1: stays where it is"), "{said}");
    let copied = to.records();
    assert!(copied.keys().all(|path| path.starts_with("global/")), "{copied:?}");
    assert!(copied.iter().all(|(path, value)| before.get(path) == Some(value)), "also the CellInfo records");
    assert_eq!(from.records(), before);
}

#[test]
fn the_target_says_where_its_cells_are_and_others_can_be_left_out() {
    let (from, to) = (Place::demo(), Place::empty(Implementation::Zk2));
    cell_info(&to, "zone1", &to.server, &format!("{}/its own", to.root));
    let map = [format!("--map-server={}={}", from.server, to.server), format!("--map-root={}={}", from.root, to.root)];
    let (status, said) = run(&from, &to, &["--cells=zone1"]);
    assert_eq!(status, 0, "{said}");
    let records = to.records();
    assert!(records.contains_key("its own/SrvVSchema") && !records.contains_key("zone1/SrvVSchema"), "{records:?}");
    assert!(!records.contains_key("global/cells/zone2/CellInfo"), "{records:?}");
    let (status, said) = run(&from, &to, &["--cells=zone1", "--compare"]);
    assert_eq!(status, 0, "{said}");
    let (status, said) = run(&from, &to, &[&map[0], &map[1]]);
    assert_eq!(status, 0, "{said}");
    assert!(to.records().contains_key("zone2/SrvVSchema"));
    // A root inside of another one: each cell has its records, and the outer one does not have them, too.
    let (outer, copy) = (Place::etcd(), Place::etcd());
    outer.put("global/metadata/owner", "outer");
    outer.put("global/zone1/SrvVSchema", "");
    cell_info(&outer, "zone1", &outer.server, &format!("{}/global/zone1", outer.root));
    let elsewhere = format!("--map-root={}/global={}/cells", outer.root, copy.root);
    let (status, said) = run(&outer, &copy, &[&elsewhere]);
    assert_eq!(status, 0, "{said}");
    let keys = ["cells/zone1/SrvVSchema", "global/cells/zone1/CellInfo", "global/metadata/owner"];
    assert_eq!(copy.records().into_keys().collect::<Vec<_>>(), keys);
}

#[test]
fn what_a_service_cannot_hold_is_named_and_everything_else_can_be_copied() {
    let from = Place::demo();
    from.put("global/metadata/huge", "x".repeat(600_000));
    from.put("global/metadata/bell\u{7}", "a name");
    from.put("global/keyspaces/commerce/Lock", "no lock");
    let long = "n".repeat(300);
    etcd::shared().ctl(&["put", &format!("{}/global/metadata/{long}", from.root), "x"]);
    for (implementation, words, left_out) in [
        (Implementation::Consul, &["metadata/huge: ", "524288", "Lock: ", "the lock of keyspaces/commerce"][..], 2),
        (Implementation::Zk2, &["metadata/bell", "in a name"], 1),
    ] {
        let to = Place::empty(implementation);
        let all = [words, &["global (etcd2:", "1 key cannot be the name of a record", "--keep-going"]].concat();
        refused(copy(&from, &to, &[]), &all);
        assert!(to.records().is_empty());
        let (status, said) = copy(&from, &to, &["--keep-going"]);
        assert!(status == 1 && said.contains(words[0]), "{status}: {said}");
        assert_eq!(to.records().len() + left_out, from.records().len());
        let (status, said) = copy(&from, &to, &["--compare"]);
        assert!(status == 2 && said.contains("only in source: global/metadata/"), "{status}: {said}");
    }
}

#[test]
fn cells_that_nobody_can_use_are_told_and_do_no_harm() {
    let from = Place::demo();
    from.put("global/cells/broken/CellInfo", vec![10, 9, b'x']);
    cell_info(&from, "a/b", &from.server, "/t/ab");
    cell_info(&from, "global", &from.server, "/t/global");
    let dead = "127.0.0.1:1";
    cell_info(&from, "dead", dead, "/t/dead");
    let to = Place::etcd();
    let map = [format!("--map-root={}={}", from.root, to.root), "--remote-operation-timeout=1s".to_owned()];
    let flags = [map[0].as_str(), &map[1], "--map-server=127.0.0.1:1=127.0.0.1:2"];
    let words = [
        "global/cells/a/b/CellInfo: this name is not valid for a directory",
        "global/cells/broken/CellInfo: the record cannot be decoded",
        "global/cells/global/CellInfo: this name belongs to the global topology",
        "cell dead (etcd2:127.0.0.1:",
    ];
    refused(run(&from, &to, &flags), &words);
    assert!(to.records().is_empty());
    let (status, said) = run(&from, &to, &[&flags[..], &["--keep-going"]].concat());
    assert!(status == 1 && words.iter().all(|words| said.contains(words)), "{status}: {said}");
    assert_eq!(without_places(to.records()), without_places(from.records()));
    assert_eq!(to.records()["global/cells/broken/CellInfo"], from.records()["global/cells/broken/CellInfo"]);
    // Nobody asks for the dead cell then.
    let (status, said) = run(&from, &to, &[&map[0], "--do-keyspaces", "--do-shards"]);
    assert_eq!(status, 0, "{said}");
}

#[test]
fn a_source_that_moves_a_cell_to_the_target_cannot_fill_it_with_itself() {
    let to = Place::demo();
    let from = Place::etcd();
    from.put("global/metadata/owner", "evil");
    // Its cell would be read from the target's global topology, or from another cell of the target.
    for root in ["global", "zone2"] {
        cell_info(&from, "zone1", &to.server, &format!("{}/{root}", to.root));
        let before = to.records();
        let (status, said) = run(&from, &to, &[]);
        assert!(status == 2 && said.contains("of the target is"), "{status}: {said}");
        assert_eq!(to.records(), before);
    }
    // It names the very place that the cell has at the target: there is nothing to copy.
    cell_info(&from, "zone1", &to.server, &format!("{}/zone1", to.root));
    let before = to.records();
    let (status, said) = run(&from, &to, &[]);
    assert!(status == 0 && said.contains("zone1: stays where it is"), "{status}: {said}");
    let changed: Vec<_> = to.records().into_iter().filter(|(path, value)| before.get(path) != Some(value)).collect();
    assert_eq!(changed, [("global/metadata/owner".to_owned(), "evil".into())]);
    // A server that is not allowed is not connected.
    cell_info(&from, "zone3", "localhost:1", "/t/x");
    let flags = ["--from-options=cell-servers=global", "--map-root=/t/x=/t/y"];
    refused(run(&from, &Place::etcd(), &flags), &["source, cell zone3", "does not use"]);
}
