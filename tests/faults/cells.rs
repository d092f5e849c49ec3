//! Cells that move, go and come back, and records that name cells in odd ways.

use crate::common::mount::Mount;
use crate::common::server::{free_port, fresh_root};
use crate::common::world::{Service, World};
use crate::common::{consul, eventually, text};
use crate::on_each_backend;
use crate::rig::state;

pub fn cell_info(server: &str, root: &str) -> Vec<u8> {
    // server_address = 1, root = 2
    let field =
        |number: u8, text: &str| [&[number << 3 | 2, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [field(1, server), field(2, root)].concat()
}

/// The address that the CellInfo records of a mount name.
fn address(mount: &Mount) -> String {
    mount.status()["cells"]["zone1"]["server"].as_str().unwrap().to_owned()
}

on_each_backend! {
    fn a_cell_that_moves_is_connected_again_by_itself(world) {
        let mount = &world.mount;
        mount.sh("ls zone1");
        assert_eq!((state(mount, "zone1"), state(mount, "zone2")), ("live".to_owned(), "idle".to_owned()));
        // By somebody else, where there is somebody else.
        let info = cell_info(&address(mount), "/elsewhere");
        match &world.service {
            Some(service) => service.put("global/cells/zone1/CellInfo", &info),
            None => std::fs::write(mount.path("global/cells/zone1/CellInfo"), &info).unwrap(),
        }
        // Nobody looks into it.
        let place = |cell: &str| mount.status()["cells"][cell]["root"].as_str().unwrap().to_owned();
        let connected = || place("zone1") == "/elsewhere" && state(mount, "zone1") == "live";
        eventually("zone1 is connected there", || connected().then_some(()));
        let info = cell_info(&address(mount), "/elsewhere2");
        match &world.service {
            Some(service) => service.put("global/cells/zone2/CellInfo", &info),
            None => std::fs::write(mount.path("global/cells/zone2/CellInfo"), &info).unwrap(),
        }
        eventually("zone2 has moved", || (place("zone2") == "/elsewhere2").then_some(()));
        assert_eq!(state(mount, "zone2"), "idle", "nobody has ever looked into it");
        // It goes, and comes back.
        let back = cell_info(&address(mount), "/elsewhere");
        mount.sh("rm global/cells/zone1/CellInfo global/cells/zone2/CellInfo; ! ls zone1");
        mount.sh("mkdir -p global/cells/zone1 global/cells/zone2");
        for cell in ["zone1", "zone2"] {
            std::fs::write(mount.path(&format!("global/cells/{cell}/CellInfo")), &back).unwrap();
        }
        eventually("zone1 is connected again", || (state(mount, "zone1") == "live").then_some(()));
        assert_eq!(state(mount, "zone2"), "idle");
    }
}

#[test]
fn records_that_name_no_cell_are_told() {
    let world = World::etcd2();
    let service = world.service.as_ref().unwrap();
    for name in ["global", ".topofs", "a/b", "..x/y"] {
        service.put(&format!("global/cells/{name}/CellInfo"), &cell_info("localhost:1", "/x"));
    }
    service.put("global/cells/CellInfo", &cell_info("localhost:1", "/x"));
    let names = eventually("all are told", || {
        let hidden = world.mount.status()["cells_not_shown"].as_object().unwrap().clone();
        (hidden.len() == 5).then_some(hidden)
    });
    for name in ["global", ".topofs", "a/b", "..x/y", ""] {
        assert!(!names[name].as_str().unwrap().is_empty(), "{name:?}: {names:?}");
    }
    assert_eq!(world.mount.sh("ls"), "global\nzone1\nzone2\n");
}

#[test]
fn cells_of_one_place_are_told() {
    let service = Service::new(topofs::backend::Implementation::Consul, consul::shared().endpoint());
    let root = service.root.clone();
    service.put(
        "global/cells/twin/CellInfo",
        &cell_info(&format!("HTTP://{}/", service.server), &format!("{root}/x/../zone1/")),
    );
    service.put("global/cells/all/CellInfo", &cell_info(&service.server, &format!("{root}/global")));
    let mount = service.mount(&[]);
    // The scheme in capitals is understood, and the root is cleaned as Vitess does.
    mount.sh("ls twin/tablets; diff <(ls zone1/tablets) <(ls twin/tablets); ls all/keyspaces");
    let status = mount.status();
    let twins = |cell: &str| status["cells"][cell]["same_place_as"].clone();
    assert_eq!(twins("twin"), serde_json::json!(["zone1"]));
    assert_eq!(twins("zone1"), serde_json::json!(["twin"]));
    assert_eq!(twins("all"), serde_json::json!(["global"]));
    assert_eq!(twins("zone2"), serde_json::Value::Null);
    let log = mount.log();
    assert_eq!(log.lines().filter(|line| line.contains("two cells have the same location")).count(), 2, "{log}");
}

#[test]
fn an_address_without_a_port_gets_that_of_the_service() {
    let point = tempfile::tempdir().unwrap();
    for (implementation, port) in [("consul", "8500"), ("etcd2", "2379"), ("zk2", "2181")] {
        let script = format!(
            "{} mount --topo-implementation {implementation} --topo-global-server-address 127.0.0.77 \
             --topo-global-root /x {}",
            crate::common::mount::TOPOFS,
            point.path().display()
        );
        let message = text(&crate::common::bash_in(std::path::Path::new("/"), &script));
        assert!(message.contains(&format!("127.0.0.77:{port}")), "{message}");
    }
}

#[test]
fn an_unreachable_cell_is_never_shown_as_empty() {
    // Also where old records are shown: there are none.
    let service = Service::new(topofs::backend::Implementation::Consul, consul::shared().endpoint());
    let dead = format!("127.0.0.1:{}", free_port());
    service.put("global/cells/dead/CellInfo", &cell_info(&dead, &fresh_root()));
    let mount = service.mount(&["--serve-stale", "--stale-after=0s", "--remote-operation-timeout=2s"]);
    for _ in 0..2 {
        let output = mount.bash("ls dead");
        assert!(!output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("timed out"), "{}", text(&output));
    }
    assert_eq!(state(&mount, "dead"), "down");
}
