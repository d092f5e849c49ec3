//! Large cells behind slow lines: a reader waits for the first list as long as the service goes on answering, and not
//! longer.

use std::time::{Duration, Instant};

use topofs::backend::Implementation;

use crate::cells::cell_info;
use crate::common::chance::Chance;
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::world::{Service, put, runtime};
use crate::common::{consul, etcd, eventually, text, zookeeper};
use crate::on_each_service;
use crate::rig::{PATIENCE, state, wait_for_state};

/// Time for one call.
const CALL: Duration = Duration::from_secs(2);
const RECORDS: usize = 5_000;
const BYTES: usize = 1_000;
/// What passes in a second: all records take at least twice as long as a call may.
const PACE: usize = 1_000_000;

/// A large cell behind a proxy, and a mount that has not looked into it yet.
fn large_cell(service: &Service, records: usize, bytes: usize) -> (Proxy, Mount) {
    let proxy = match service.implementation {
        Implementation::Etcd2 => Proxy::start(etcd::shared().port),
        Implementation::Zk2 => Proxy::plain(zookeeper::shared().port),
        Implementation::Consul => Proxy::plain(consul::shared().port),
        Implementation::Memory => panic!("memory has no address"),
    };
    let cell = service.cell();
    runtime().block_on(async {
        let changes: Vec<_> = (0..records)
            .map(|number| put(&format!("zone1/bulk/r{number}"), Chance(number as u64).bytes(bytes)))
            .collect();
        // No service takes many large values in one transaction.
        for some in changes.chunks((300_000 / bytes).min(cell.limits().changes)) {
            cell.apply(some).await.unwrap();
        }
    });
    let info = cell_info(&proxy.endpoint(), &format!("{}/zone1", service.root));
    service.put("global/cells/zone1/CellInfo", &info);
    let mount = service.mount(&["--remote-operation-timeout=2s"]);
    assert_eq!(state(&mount, "zone1"), "idle");
    (proxy, mount)
}

/// How many records the first list of the cell has brought so far.
fn so_far(mount: &Mount) -> Option<u64> {
    mount.status()["cells"]["zone1"]["loaded_so_far"].as_u64()
}

on_each_service! {
    fn a_list_that_takes_longer_than_a_call_is_waited_for(service) {
        let (proxy, mount) = large_cell(&service, RECORDS, BYTES);
        proxy.slow_down(PACE);
        assert_eq!(so_far(&mount), None);
        let begun = Instant::now();
        let output = std::thread::scope(|scope| {
            let reader = scope.spawn(|| mount.bash("ls zone1/bulk | wc -l"));
            let part = |count: &u64| (1..RECORDS as u64).contains(count);
            eventually("a part is loaded", || {
                assert!(!reader.is_finished(), "the reader has not waited");
                so_far(&mount).filter(part)
            });
            assert_eq!(state(&mount, "zone1"), "loading");
            reader.join().unwrap()
        });
        assert_eq!(text(&output).trim(), RECORDS.to_string());
        assert!(begun.elapsed() > CALL * 2, "the line is slow enough for this test");
        assert_eq!((state(&mount, "zone1").as_str(), so_far(&mount)), ("live", None));
        // Nor does a comparison fail that takes so long.
        mount.sh("echo resync zone1 > .topofs/control");
        eventually("it is compared", || (mount.status()["cells"]["zone1"]["resyncs"] == 1).then_some(()));
        assert_eq!(mount.status()["cells"]["zone1"]["reconnects"], 0);
    }

    fn a_list_that_stops_is_not_waited_for(service) {
        let (proxy, mount) = large_cell(&service, RECORDS, BYTES);
        proxy.slow_down(PACE);
        proxy.silence_after(PACE);
        let output = mount.bash(&format!("{PATIENCE} ls zone1/bulk"));
        assert!(text(&output).contains("timed out"), "{}", text(&output));
        wait_for_state(&mount, "zone1", "down");
        // The next list is waited for as soon as it brings something.
        proxy.silence(false);
        eventually("a part has come", || so_far(&mount).filter(|count| *count > 0));
        assert_eq!(state(&mount, "zone1"), "down");
        assert_eq!(mount.sh("ls zone1/bulk | wc -l").trim(), RECORDS.to_string());
    }

    fn large_records_come_over_a_slow_line(service) {
        // No two of them come within the time for one call.
        let (count, bytes) = (20, 120_000);
        let (proxy, mount) = large_cell(&service, count, bytes);
        proxy.slow_down(bytes);
        let begun = Instant::now();
        mount.bash(&format!("{PATIENCE} ls zone1/bulk"));
        wait_for_state(&mount, "zone1", "live");
        assert!(begun.elapsed() > CALL * 5, "the line is slow enough for this test");
        assert_eq!(mount.sh("ls zone1/bulk | wc -l").trim(), count.to_string());
    }
}
