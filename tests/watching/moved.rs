//! Cells that move, go, and come back: whoever watches them is told.

use std::process::{Command, Stdio};

use crate::common::eventually;
use crate::common::mount::{Mount, lines};
use crate::common::world::Service;
use crate::watcher::{CLOSED, Watcher};

const TABLET: &str = "tablets/zone1-0000000001/Tablet";

/// The events of zone1 so far: kind and path.
fn told(mount: &Mount) -> Vec<String> {
    mount
        .sh("jq -r 'select(.cell == \"zone1\") | .kind + \" \" + .path' .topofs/events")
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A service whose zone1 has one tablet more than the sample, and another place with some that are the same, some that
/// are not.
struct Places {
    service: Service,
    info: Vec<u8>,
}

impl Places {
    fn new() -> Self {
        let service = Service::etcd2();
        for (place, name, port) in [
            ("zone1", "zone1-0000000001", 1),
            ("zone1", "zone1-0000000002", 2),
            ("zone1", "zone1-0000000003", 3),
            ("zone1new", "zone1-0000000001", 9),
            ("zone1new", "zone1-0000000002", 2),
            ("zone1new", "zone1-0000000004", 4),
        ] {
            service.put(&format!("{place}/tablets/{name}/Tablet"), &tablet(port));
        }
        let info = service.get("global/cells/zone1/CellInfo").unwrap();
        Self { service, info }
    }

    fn move_away(&self) {
        self.mount().sh(&format!(
            "sed -i 's|root:.*|root: \"{}/zone1new\"|' global/cells/zone1/CellInfo.txt",
            self.service.root
        ));
    }

    fn mount(&self) -> Mount {
        self.service.mount(&[])
    }
}

/// A Tablet record with a host name of its own.
fn tablet(number: u8) -> [u8; 4] {
    [0x12, 2, b'h', b'0' + number]
}

#[test]
fn who_watches_a_cell_that_moves_hears_of_what_is_different_and_of_all_that_follows() {
    let places = Places::new();
    let mount = places.mount();
    mount.sh(&format!("cat zone1/{TABLET}.txt > /dev/null; ls -R zone1 > /dev/null"));
    let watcher = Watcher::new(&mount, "zone1");
    // One file only, as `inotifywait -m FILE` does.
    let mut command = Command::new("inotifywait");
    command.args(["-q", "-m", "-e", "modify", "--format", "%e"]).arg(mount.path(&format!("zone1/{TABLET}.txt")));
    let file = lines({
        command.stdin(Stdio::null());
        command
    });
    places.move_away();
    for form in ["", ".txt", ".json"] {
        assert_eq!(watcher.until(&format!("{TABLET}{form}"), CLOSED), ["MODIFY", CLOSED]);
    }
    assert!(mount.read(&format!("zone1/{TABLET}.txt")).contains("h9"));
    assert_eq!(watcher.until("tablets/zone1-0000000003", "DELETE,ISDIR").len(), 1);
    watcher.until("tablets/zone1-0000000004", "CREATE,ISDIR");
    // Whichever came first: the file's own watch sees a change once it is there.
    places.service.put(&format!("zone1new/{TABLET}"), &tablet(8));
    assert_eq!(file.next(), "MODIFY");
    let wanted = [
        "changed tablets/zone1-0000000001/Tablet",
        "deleted tablets/zone1-0000000003/Tablet",
        "created tablets/zone1-0000000004/Tablet",
    ];
    eventually("it stands among the events", || {
        let told = told(&mount);
        (wanted.iter().all(|line| told.iter().any(|known| known == line))
            && told.iter().filter(|known| **known == wanted[0]).count() == 2)
            .then_some(())
    });
    assert!(
        !told(&mount).iter().any(|line| line.contains("zone1-0000000002")),
        "that one is the same: {:?}",
        told(&mount)
    );
    // Locks, too.
    let there = places.mount();
    there.sh("flock zone1/tablets/zone1-0000000001/.lock true");
    let kinds = ["locked tablets/zone1-0000000001/.lock", "unlocked tablets/zone1-0000000001/.lock"];
    eventually("locks are told", || {
        kinds.iter().all(|line| told(&mount).iter().any(|known| known == line)).then_some(())
    });
    // And back, with nobody looking in between.
    places.service.put("global/cells/zone1/CellInfo", &places.info);
    eventually("it is told", || (told(&mount).iter().filter(|known| **known == wanted[0]).count() == 3).then_some(()));
    places.service.put(&format!("zone1/{TABLET}"), &tablet(7));
    eventually("and what follows", || {
        (told(&mount).iter().filter(|known| **known == wanted[0]).count() == 4).then_some(())
    });
    assert!(mount.read(&format!("zone1/{TABLET}.txt")).contains("h7"));
}

#[test]
fn who_watches_a_cell_that_goes_and_comes_back_is_told() {
    let places = Places::new();
    let mount = places.mount();
    mount.sh("ls -lR zone1 > /dev/null");
    let watcher = Watcher::new(&mount, "");
    places.service.delete("global/cells/zone1/CellInfo");
    eventually("it is gone", || {
        watcher.seen().iter().any(|(event, path)| event == "DELETE,ISDIR" && path.ends_with("/m/zone1")).then_some(())
    });
    let count = |line: &str| told(&mount).iter().filter(|known| *known == line).count();
    eventually("what was in it is gone", || (count(&format!("deleted {TABLET}")) == 1).then_some(()));
    assert!(!mount.path("zone1").exists());
    places.service.put(&format!("zone1/{TABLET}"), &tablet(6));
    places.service.put("global/cells/zone1/CellInfo", &places.info);
    eventually("it is there again", || (count(&format!("created {TABLET}")) == 1).then_some(()));
    // Nobody has looked into it since.
    places.service.put(&format!("zone1/{TABLET}"), &tablet(5));
    eventually("and what follows", || (count(&format!("changed {TABLET}")) == 1).then_some(()));
    assert!(mount.read(&format!("zone1/{TABLET}.txt")).contains("h5"));
}
