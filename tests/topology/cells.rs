//! Rules about the records of cells and of their aliases, in a mount: add, change and remove cells by hand.

use crate::common::mount::Mount;
use crate::common::server::free_port;
use crate::common::{eventually, text};
use crate::on_each_service;
use crate::rig::{encoded, move_cell, run, said};

/// A script that must fail, saying that something is busy; the reason in `.topofs/errors`.
fn refused(mount: &Mount, script: &str) -> String {
    let output = mount.bash(script);
    assert!(!output.status.success() && text(&output).contains("Device or resource busy"), "{script}: {output:?}");
    let last = mount.errors().pop().unwrap();
    assert_eq!(last["errno"], "EBUSY", "{last}");
    last["reason"].as_str().unwrap().to_owned()
}

on_each_service! {
    fn cells_come_change_and_go_by_hand(service) {
        let mount = service.mount(&[]);
        let root = &service.root;
        let (server, info) = (&service.server, "global/cells/zone3/CellInfo");
        // AddCellInfo.
        mount.sh(&format!(
            "mkdir global/cells/zone3
             printf 'server_address: \"{server}\"\\nroot: \"{root}/zone3\"\\n' > {info}.txt
             mkdir -p zone3/keyspaces/commerce; echo 'partitions {{}}' > zone3/keyspaces/commerce/SrvKeyspace.txt"
        ));
        mount.sh(&format!("! sed -i /^root/d {info}.txt; grep -q ^root {info}.txt"));
        let refused_save = mount.errors().pop().unwrap();
        assert_eq!(refused_save["reason"], format!("{info}: root must not be empty"));
        assert_eq!(refused_save["errno"], "EBADMSG");
        // UpdateCellInfo, by an editor that makes a new file and puts it in the place of the old one.
        mount.sh(&format!("sed -i s,/zone3,/elsewhere, {info}.txt; test \"$(ls -A zone3)\" = ''"));
        mount.sh(&format!("sed -i s,/elsewhere,/zone3, {info}.json; ls zone3/keyspaces/commerce"));
        // RemoveCellInfo.
        let reason = refused(&mount, "rm -r global/cells/zone3");
        assert!(reason.starts_with(&format!("global/{}", info.trim_start_matches("global/"))), "{reason}");
        assert!(reason.contains("the cell has serving keyspaces: zone3/keyspaces/commerce/SrvKeyspace"), "{reason}");
        mount.sh("ls zone3/keyspaces/commerce/SrvKeyspace");
        mount.sh("rm -r zone3/keyspaces global/cells/zone3; ! ls zone3");
        assert_eq!(service.get(info), None);
        assert!(service.get("zone1/SrvVSchema").is_some());
    }

    fn no_way_removes_the_record_of_a_cell_in_use(service) {
        let mount = service.mount(&["--cells=zone1"]);
        let (before, info) = (service.get("global/cells/zone1/CellInfo"), "global/cells/zone1/CellInfo");
        for script in [
            &format!("rm {info}")[..],
            &format!("rm {info}.txt"),
            &format!("rm {info}.json"),
            "rm -r global/cells/zone1",
            &format!("mkdir -p global/cells/new; mv {info} global/cells/new/CellInfo"),
        ] {
            let reason = refused(&mount, script);
            assert!(reason.contains("zone1/keyspaces/archive/SrvKeyspace"), "{script}: {reason}");
            assert_eq!(service.get(info), before, "{script}");
        }
        // A cell that this mount does not show may hold anything.
        assert!(refused(&mount, "rm global/cells/zone2/CellInfo").contains("--cells does not name it"));
        let forced = service.mount(&["--force-cell-removal"]);
        forced.sh("rm -r global/cells/zone1 global/cells/zone2; ! ls zone1");
        assert_eq!(service.get(info), None);
    }

    fn the_record_of_a_dead_cell_can_be_removed_with_a_warning(service) {
        move_cell(&service, "zone2", &format!("127.0.0.1:{}", free_port()));
        let mount = service.mount(&["--remote-operation-timeout=2s"]);
        mount.sh("rm -r global/cells/zone2; ! ls zone2");
        let warned = eventually("a warning", || {
            let events = mount.read(".topofs/events");
            events.lines().find(|line| line.contains("\"kind\":\"warning\"")).map(ToOwned::to_owned)
        });
        assert!(warned.contains("cells/zone2/CellInfo") && warned.contains("serving keyspaces"), "{warned}");
        assert!(mount.log().contains("the record of a cell was removed"), "{}", mount.log());
    }

    fn an_alias_that_overlaps_another_is_refused(service) {
        let mount = service.mount(&[]);
        let other = "global/cells_aliases/other/CellsAlias";
        mount.sh("mkdir global/cells_aliases/other");
        let reason = refused(&mount, &format!("echo 'cells: \"zone9\" cells: \"zone2\"' > {other}.txt"));
        let region = "global/cells_aliases/region1/CellsAlias";
        assert_eq!(reason, format!("{other}: cell zone2 is in {region} already"));
        refused(&mount, &format!("echo '{{\"cells\": [\"zone1\"]}}' > {other}.json"));
        assert_eq!(service.get(other), None);
        // Through an editor's rename, too, and while an alias is changed.
        refused(&mount, &format!("echo 'cells: \"zone1\"' > global/new; mv global/new {other}.txt"));
        mount.sh(&format!("echo 'cells: \"zone9\"' > {other}.txt"));
        refused(&mount, &format!("echo 'cells: \"zone1\"' > {other}.txt"));
        // An alias does not overlap itself, and a cell may move from one to another.
        mount.sh(&format!("echo 'cells: \"zone1\"' > {region}.txt"));
        mount.sh(&format!("echo 'cells: \"zone9\" cells: \"zone2\"' > {other}.txt"));
        mount.sh(&format!("mkdir global/cells_aliases/new; mv {other} global/cells_aliases/new/CellsAlias"));
        assert!(service.get(other).is_none() && service.get("global/cells_aliases/new/CellsAlias").is_some());
    }

    fn a_cell_in_the_place_of_another_goes_without_anything_of_the_other(service) {
        let add = |cell: &str, root: &str| {
            let info = format!("server_address: \"{}\" root: \"{}/{root}\"", service.server, service.root);
            service.put(&format!("global/cells/{cell}/CellInfo"), &encoded("topodata.CellInfo", &info));
        };
        let before = service.keys();
        add("zone3", "zone1");
        add("all", "global");
        let args = ["remove-keyspace-cell", "--recursive", "--force", "archive", "zone3"];
        let (done, complaint, status) = said(&run(&service, &args));
        let expected = "cell zone3 has the server and root of zone1: ";
        assert!(done.is_empty() && status == 1 && complaint.contains(expected), "{done}{complaint}");
        let warning = "topofs: warning: two cells have the same location: they show the same records ";
        assert_eq!(complaint.lines().filter(|line| line.starts_with(warning)).count(), 2, "{complaint}");
        // Here it is a problem, and not a warning beside it.
        let (problems, complaint, _) = said(&run(&service, &["validate"]));
        assert!(problems.contains("cell-shares-place") && complaint.is_empty(), "{problems}{complaint}");
        let mount = service.mount(&[]);
        // Of the two, the one with tablets is in use.
        let reason = refused(&mount, "rm -r global/cells/zone1");
        assert!(reason.contains("the cell has tablets: zone1/tablets/zone1-"), "{reason}");
        assert!(reason.contains("Cell zone3 has the same server and root") && !reason.contains("Remove them"));
        // A move copies first, so there are three for a moment.
        mount.sh("mv global/cells/zone3 global/cells/zone4; rm -r global/cells/zone4; ! ls zone3 zone4");
        // The global topology's records of keyspaces are not those of a cell in its place.
        mount.sh("rm -r global/cells/all");
        assert_eq!(service.keys(), before);
    }
}
