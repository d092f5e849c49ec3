//! Commands over two services, and whoever waits for a secondary that is known to be away.

use std::time::Duration;

use super::tee::{Pair, wait_for_drift};
use crate::common::mount::TOPOFS;
use crate::common::{bound_command, eventually, text};

/// A command on both services.
fn run(pair: &Pair, args: &[&str]) -> std::process::Output {
    let places =
        [&pair.primary.place(&pair.to_primary.endpoint()), &pair.secondary.place(&pair.to_secondary.endpoint())];
    let mut command = bound_command(TOPOFS);
    command.args(args).args(["--topo-implementation=tee", "--tee-primary", places[0], "--tee-secondary", places[1]]);
    command.output().unwrap()
}

#[test]
fn what_commands_rebuild_and_remove_is_at_both() {
    let pair = Pair::new();
    for service in [&pair.primary, &pair.secondary] {
        service.delete("zone1/keyspaces/customer/SrvKeyspace");
        service.delete("zone1/SrvVSchema");
    }
    for args in [
        &["rebuild-keyspace-graph", "customer"][..],
        &["rebuild-vschema-graph"],
        &["remove-keyspace-cell", "--recursive", "customer", "zone2"],
    ] {
        let before = pair.primary.keys().into_iter().map(|key| pair.primary.get(&key)).collect::<Vec<_>>();
        let output = run(&pair, args);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        let after = pair.primary.keys().into_iter().map(|key| pair.primary.get(&key)).collect::<Vec<_>>();
        assert_ne!(before, after, "{args:?} changes something");
        assert_eq!(pair.differing(), Vec::<String>::new(), "{args:?}");
    }
}

#[test]
fn a_secondary_that_is_known_to_be_away_is_not_waited_for() {
    let pair = Pair::new();
    let mount = pair.mount(&["--remote-operation-timeout=60s"]);
    mount.sh("ls zone1/tablets zone2/tablets");
    for cell in ["global", "zone1", "zone2"] {
        wait_for_drift(&mount, cell, 0);
    }
    pair.to_secondary.silence(true);
    for cell in ["global", "zone1", "zone2"] {
        let state = || mount.status()["cells"][cell]["secondary"]["state"].clone();
        eventually("it is known", || (state() == "down").then_some(()));
    }
    let begun = std::time::Instant::now();
    let refused = mount.bash("echo repair > .topofs/control");
    assert!(!refused.status.success());
    let locked = mount.bash("flock global/keyspaces/customer/.lock true");
    assert!(!locked.status.success());
    // One call to it takes a minute.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let reasons: Vec<String> = mount.errors().iter().map(|error| error["reason"].to_string()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("cannot be taken at the secondary")), "{reasons:?}");
    // A command finds it out for itself.
    let output = run(&pair, &["rebuild-keyspace-graph", "customer", "--remote-operation-timeout=60s"]);
    assert!(!output.status.success() && text(&output).contains("at the secondary"), "{}", text(&output));
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    pair.to_secondary.cut(true);
    pair.to_secondary.silence(false);
}
