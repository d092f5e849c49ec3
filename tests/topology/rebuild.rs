//! Rebuilding SrvKeyspace and SrvVSchema, and removing a keyspace from a cell: under the lock, past dead cells, by many
//! at once, and interrupted in the middle.

use nix::sys::signal::Signal;

use crate::common::server::free_port;
use crate::common::world::Service;
use crate::common::{eventually, signal};
use crate::on_each_service;
use crate::rig::{SHORT, command, decoded, encoded, locks, move_cell, proxy, run, said, start};

const SRV: &str = "zone1/keyspaces/customer/SrvKeyspace";
const OTHER: &str = "zone2/keyspaces/customer/SrvKeyspace";
const REBUILD: &str = "rebuild-keyspace-graph";

/// A shard that no longer serves, so that a rebuild has something to do: nothing serves then.
fn stop_serving(service: &Service) {
    for shard in ["-80", "80-"] {
        service.put(&format!("global/keyspaces/customer/shards/{shard}/Shard"), b"");
    }
}

/// The arguments of a command, with short time-outs.
fn short<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &SHORT[..]].concat()
}

on_each_service! {
    fn a_rebuild_writes_what_has_changed_and_nothing_else(service) {
        service.delete(SRV);
        let created = format!("{SRV} created\n{OTHER} unchanged\n");
        assert_eq!(said(&run(&service, &[REBUILD, "customer"])), (created, String::new(), 0));
        let stored = decoded(&service, SRV, "topodata.SrvKeyspace");
        assert_eq!(stored, decoded(&service, OTHER, "topodata.SrvKeyspace"));
        stop_serving(&service);
        let updated = format!("{SRV} updated\n{OTHER} updated\n");
        assert_eq!(said(&run(&service, &[REBUILD, "customer"])), (updated, String::new(), 0));
        assert_eq!(service.get(SRV), Some(Vec::new()), "a keyspace that serves nothing has an empty record");
        let unchanged = "zone2/SrvVSchema unchanged\n".to_owned();
        service.put("global/keyspaces/new/VSchema", &encoded("vschema.Keyspace", "sharded: true"));
        assert_eq!(run(&service, &["rebuild-vschema-graph"]).status.code(), Some(0));
        assert_eq!(said(&run(&service, &["rebuild-vschema-graph", "--cells", "zone2"])).0, unchanged);
        let stored = decoded(&service, "zone1/SrvVSchema", "vschema.SrvVSchema");
        assert!(stored.contains("key: \"new\"") && stored.contains("mirror_rules {"), "{stored}");
        assert_eq!(locks(&service), [], "the locks are given back");
    }

    fn a_held_lock_is_waited_for_and_its_holder_is_named(service) {
        let mount = service.mount(&SHORT);
        stop_serving(&service);
        let before = service.get(SRV);
        let script = "exec 9> global/keyspaces/customer/.lock; echo maintenance >&9; flock 9; echo held; read";
        let mut holder = std::process::Command::new("bash");
        holder.args(["-c", script]).current_dir(mount.root());
        holder.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "held\n");
        let args = short(&[REBUILD, "customer", "--lock_timeout", "300ms"]);
        let (_, complaint, status) = said(&run(&service, &args));
        assert!(complaint.contains("global/keyspaces/customer is locked by ") && complaint.contains("(maintenance"));
        assert!(complaint.contains("(--lock-timeout)") && status == 1, "{complaint}");
        assert_eq!(service.get(SRV), before, "nothing was written");
        // With the default it waits.
        let waiting = start(&service, &short(&[REBUILD, "customer"]));
        if service.implementation != topofs::backend::Implementation::Consul {
            let waits = || locks(&service).iter().any(|(_, text)| text.contains("\"Action\": \"RebuildKeyspace\""));
            eventually("it stands in line", || waits().then_some(()));
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
        let (done, complaint, status) = said(&waiting.wait_with_output().unwrap());
        assert_eq!((done, status), (format!("{SRV} updated\n{OTHER} updated\n"), 0), "{complaint}");
    }

    fn ctrl_c_gives_the_lock_back(service) {
        let silent = proxy(&service);
        move_cell(&service, "zone2", &silent.endpoint());
        silent.silence(true);
        // It holds the lock and waits for zone2.
        let rebuild = start(&service, &short(&[REBUILD, "customer"]));
        eventually("it holds the lock", || (locks(&service).len() == 1).then_some(()));
        signal(rebuild.id(), Signal::SIGINT);
        let (done, complaint, status) = said(&rebuild.wait_with_output().unwrap());
        assert_eq!((done.as_str(), status), ("", 1));
        assert!(complaint.contains("keyspace customer: interrupted"), "{complaint}");
        assert_eq!(locks(&service), [], "at once, not when a lease ends");
    }

    fn a_rebuild_that_has_lost_its_lock_writes_nothing_in_the_same_service(service) {
        let silent = proxy(&service);
        stop_serving(&service);
        let before = service.get(SRV);
        move_cell(&service, "zone2", &silent.endpoint());
        silent.silence(true);
        let rebuild = start(&service, &short(&[REBUILD, "customer"]));
        let held = eventually("it holds the lock", || locks(&service).pop());
        // Somebody has taken it away, and its lease or session lives on: only the service knows.
        service.delete(&held.0);
        silent.silence(false);
        let (_, complaint, status) = said(&rebuild.wait_with_output().unwrap());
        assert_eq!(status, 1);
        assert!(complaint.contains("keyspaces/customer/") && complaint.contains("no longer held"), "{complaint}");
        assert_eq!(service.get(SRV), before);
    }

    fn a_cell_that_does_not_answer_is_named(service) {
        stop_serving(&service);
        let before = service.get(SRV);
        move_cell(&service, "zone2", &format!("127.0.0.1:{}", free_port()));
        let limit = "--remote-operation-timeout=2s";
        // Nobody knows whether traffic is being moved there: nothing is written, as by Vitess.
        let (done, complaint, status) = said(&run(&service, &short(&[REBUILD, "customer", limit])));
        assert_eq!((done.as_str(), status), ("", 1));
        assert!(complaint.contains("cell zone2 (") && complaint.contains("--cells zone1"), "{complaint}");
        assert_eq!(service.get(SRV), before);
        let (done, complaint, status) = said(&run(&service, &short(&[REBUILD, "customer", "-c", "zone1", limit])));
        assert_eq!((done, complaint.as_str(), status), (format!("{SRV} updated\n"), "", 0));
        // A SrvVSchema depends on no other cell's.
        service.delete("zone1/SrvVSchema");
        let (done, complaint, status) = said(&run(&service, &short(&["rebuild-vschema-graph", limit])));
        assert_eq!((done.as_str(), status), ("zone1/SrvVSchema created\n", 1));
        assert!(complaint.contains("zone2/SrvVSchema: cell zone2 ("), "{complaint}");
    }

    fn a_keyspace_is_removed_from_a_cell_if_nothing_forbids_it(service) {
        let remove = |args: &[&str]| said(&run(&service, &[&["remove-keyspace-cell"], args].concat()));
        let before = service.keys();
        for (args, expected) in [
            (&["commerce", "zone1", "-r"][..], "its primary zone1-0000000100 is in cell zone1"),
            (&["commerce", "zone2"], "ShardReplication still has 2 tablets"),
            (&["commerce", "nowhere"], "global/cells/nowhere/CellInfo does not exist"),
            (&["gone", "zone2"], "global/keyspaces/gone/Keyspace does not exist"),
        ] {
            let (done, complaint, status) = remove(args);
            assert!(done.is_empty() && status == 1 && complaint.contains(expected), "{args:?}: {complaint}");
        }
        assert_eq!(service.keys().len(), before.len(), "nothing was removed");
        let (done, complaint, status) = remove(&["commerce", "zone2", "--recursive"]);
        assert_eq!((complaint.as_str(), status), ("", 0));
        let removed: Vec<String> =
            done.lines().map(|line| line.strip_suffix(" removed").unwrap().to_owned()).collect();
        let mut expected = before.clone();
        expected.retain(|key| !removed.contains(key));
        let mut now = service.keys();
        expected.sort();
        now.sort();
        assert_eq!(now, expected);
        assert!(removed.contains(&"zone2/keyspaces/commerce/SrvKeyspace".to_owned()), "{removed:?}");
        assert_eq!(removed.iter().filter(|key| key.ends_with("/Tablet")).count(), 2, "{removed:?}");
        let (_, complaint, status) = remove(&["commerce", "zone2"]);
        assert!(status == 1 && complaint.contains("is not served in cell zone2, but in cell zone1"), "{complaint}");
    }
}

/// A tablet that has moved to another keyspace, but still stands in the old list.
#[test]
fn a_tablet_of_another_keyspace_is_not_removed() {
    let service = Service::etcd2();
    let list = "zone2/keyspaces/commerce/shards/0/ShardReplication";
    let other = service.keys().into_iter().find(|key| {
        key.starts_with("zone2/tablets/")
            && decoded(&service, key, "topodata.Tablet").contains("keyspace: \"customer\"")
    });
    let other = other.unwrap();
    let uid = other.split(['-', '/']).nth(3).unwrap().trim_start_matches('0');
    let nodes = format!("nodes {{ tablet_alias {{ cell: \"zone2\" uid: {uid} }} }}");
    service.put(list, &encoded("topodata.ShardReplication", &nodes));
    let output = run(&service, &["remove-keyspace-cell", "-r", "commerce", "zone2"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(service.get(list).is_none() && service.get(&other).is_some());
}

#[test]
fn a_dead_cell_can_be_left_behind() {
    let service = Service::etcd2();
    move_cell(&service, "zone2", &format!("127.0.0.1:{}", free_port()));
    let args = ["remove-keyspace-cell", "commerce", "zone2", "--remote-operation-timeout=1s"];
    let (_, complaint, status) = said(&run(&service, &args));
    assert!(status == 1 && complaint.contains("cell zone2 (") && complaint.ends_with(": --force\n"), "{complaint}");
    let (done, _, status) = said(&run(&service, &[&args[..], &["--force"]].concat()));
    assert_eq!((done.as_str(), status), ("zone2/keyspaces/commerce/SrvKeyspace left: the cell does not answer\n", 0));
}

/// A list that Vitess keeps for each cell names tablets of another: both cells are in one place, by two addresses.
#[test]
fn a_list_of_another_cells_tablets_stays() {
    let service = Service::etcd2();
    let list = "zone2/keyspaces/commerce/shards/0/ShardReplication";
    let nodes = "nodes { tablet_alias { cell: \"zone1\" uid: 100 } }";
    service.put(list, &encoded("topodata.ShardReplication", nodes));
    let before = service.keys();
    let args = ["remove-keyspace-cell", "--recursive", "--force", "commerce", "zone2"];
    let (_, complaint, status) = said(&run(&service, &args));
    assert!(status == 1 && complaint.contains("names tablet zone1-0000000100"), "{complaint}");
    assert_eq!(service.keys(), before);
}

#[test]
fn a_name_that_is_no_cell_is_told_and_the_others_are_written() {
    let service = Service::etcd2();
    service.put("global/keyspaces/new/VSchema", &encoded("vschema.Keyspace", "sharded: true"));
    let missing = "cell nope: global/cells/nope/CellInfo does not exist";
    let vschema = |cells: &str| said(&run(&service, &["rebuild-vschema-graph", "--cells", cells]));
    let complaint = format!("topofs: nope/SrvVSchema: {missing}\n");
    assert_eq!(vschema("nope,zone1"), ("zone1/SrvVSchema updated\n".to_owned(), complaint.clone(), 1));
    assert_eq!(vschema("nope"), (String::new(), complaint, 1));
    for args in [&["rebuild-vschema-graph", "--cells="][..], &[REBUILD, "customer", "--cells", "zone1,"]] {
        let (done, complaint, status) = said(&run(&service, args));
        assert!(done.is_empty() && complaint.contains("a value is required") && status == 1, "{complaint}");
    }
    // The same fault of many keyspaces is not told for each.
    let many: Vec<String> = (0..30).map(|number| format!("gone{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (_, complaint, status) = said(&run(&service, &[&[REBUILD][..], &many].concat()));
    assert_eq!((complaint.lines().count(), status), (11, 1), "{complaint}");
    assert!(many.iter().all(|keyspace| complaint.contains(&format!("keyspace {keyspace}"))), "{complaint}");
}

#[test]
fn many_rebuilds_at_once_leave_what_the_last_change_says() {
    const ROUNDS: usize = 4;
    const AT_ONCE: usize = 6;
    let service = Service::etcd2();
    for round in 0..ROUNDS {
        let vschema =
            |number: usize| encoded("vschema.Keyspace", &format!("tables {{ key: \"t{number}\" value {{}} }}"));
        let mut rebuilds = Vec::new();
        for number in 0..AT_ONCE {
            service.put("global/keyspaces/commerce/VSchema", &vschema(round * AT_ONCE + number));
            rebuilds.push(start(&service, &["rebuild-vschema-graph"]));
            rebuilds.push(start(&service, &[REBUILD, "customer", "commerce", "archive"]));
        }
        for rebuild in rebuilds {
            let (_, complaint, status) = said(&rebuild.wait_with_output().unwrap());
            assert_eq!((complaint.as_str(), status), ("", 0));
        }
        // The last began after the last change, and no earlier one may have overwritten it.
        for cell in ["zone1", "zone2"] {
            let stored = decoded(&service, &format!("{cell}/SrvVSchema"), "vschema.SrvVSchema");
            assert!(stored.contains(&format!("key: \"t{}\"", round * AT_ONCE + AT_ONCE - 1)), "{cell}: {stored}");
        }
    }
    assert_eq!(locks(&service), []);
}

/// On Consul, a lock of the dead takes longer to go than a test may.
fn killed_and_run_again(service: &Service) {
    let silent = proxy(service);
    stop_serving(service);
    move_cell(service, "zone2", &silent.endpoint());
    silent.silence(true);
    let mut rebuild = start(service, &short(&[REBUILD, "customer"]));
    eventually("it holds the lock", || (locks(service).len() == 1).then_some(()));
    signal(rebuild.id(), Signal::SIGKILL);
    rebuild.wait().unwrap();
    assert_eq!(locks(service).len(), 1, "the lock outlives it for a moment");
    silent.silence(false);
    let (done, complaint, status) = said(&command(service, &short(&[REBUILD, "customer"])).output().unwrap());
    assert_eq!((done, status), (format!("{SRV} updated\n{OTHER} updated\n"), 0), "{complaint}");
    assert_eq!(locks(service), []);
}

#[test]
fn a_killed_rebuild_is_run_again_etcd2() {
    killed_and_run_again(&Service::etcd2());
}

#[test]
fn a_killed_rebuild_is_run_again_zk2() {
    killed_and_run_again(&Service::zk2());
}
