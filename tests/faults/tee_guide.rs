//! "Migrate with tee" of docs/migration.md, from beginning to end, on servers of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use topofs::backend::Implementation;
use topofs::sample::Cluster;

use super::rig::stored;
use crate::common::etcd::Etcd;
use crate::common::mount::TOPOFS;
use crate::common::world::{cell, load};
use crate::common::zookeeper::Zookeeper;
use crate::common::{bound_command, spawn_bound, text};

/// The page, with the servers and directories of a test.
struct Page {
    work: tempfile::TempDir,
    old: Etcd,
    new: Zookeeper,
}

impl Page {
    fn here(&self, script: &str) -> String {
        let script = script.replace("old.example:2379", &self.old.endpoint());
        let script = script.replace("new.example:2181", &self.new.endpoint());
        let script = script.replace("/mnt/", &format!("{}/", self.work.path().display()));
        // The daemon must end with this test, even if this test is killed: it stays this shell's job.
        assert!(!script.contains(".example"), "{script}");
        script
    }

    /// Runs all blocks of a name, and then a script.
    fn run(&self, name: &str, script: &str) -> String {
        let page = include_str!("../../docs/migration.md");
        let blocks = page.split("\n```sh ").skip(1).filter_map(|rest| rest.split_once('\n'));
        let named = blocks.filter(|(block, _)| *block == name).map(|(_, rest)| rest.split("\n```").next().unwrap());
        let blocks: Vec<&str> = named.collect();
        assert!(!blocks.is_empty(), "the page has no block {name}");
        let script = self.here(&format!("set -euo pipefail\n{}\n{script}", blocks.join("\n")));
        let path = format!("{}:{}", Path::new(TOPOFS).parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("timeout");
        let output =
            command.args(["60", "bash", "-c", &script]).env("PATH", path).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn stored(&self, implementation: Implementation) -> std::collections::BTreeMap<String, Vec<u8>> {
        let server = if implementation == Implementation::Etcd2 { self.old.endpoint() } else { self.new.endpoint() };
        let mut stored = stored(&*cell(implementation, &server, "/vitess"));
        stored.retain(|path, _| !path.ends_with("/CellInfo") && !path.contains("/locks/"));
        stored
    }

    /// Both services have the same, and this value.
    fn both_have(&self, value: &str) {
        let [old, new] = [Implementation::Etcd2, Implementation::Zk2].map(|implementation| self.stored(implementation));
        assert_eq!(old["global/metadata/owner"], value.as_bytes());
        assert!(old == new, "{:?}\n{:?}", old.keys(), new.keys());
    }
}

#[test]
fn each_step_leaves_both_services_equal_until_the_new_one_is_alone() {
    let work = tempfile::tempdir().unwrap();
    for dir in ["topo", "new"] {
        std::fs::create_dir(work.path().join(dir)).unwrap();
    }
    let page = Page { work, old: Etcd::start(), new: Zookeeper::start() };
    // Whatever happens to this test, its mounts go.
    let mut rest = bound_command("bash");
    let cleanup = page.here("trap 'umount -l /mnt/topo /mnt/new 2>/dev/null; exit' TERM EXIT; sleep infinity & wait");
    rest.args(["-c", &cleanup]);
    let mut rest = spawn_bound(rest);
    let end = scopeguard::guard((), |()| {
        crate::common::signal(rest.id(), nix::sys::signal::Signal::SIGTERM);
        let _ = rest.wait();
    });
    load(&*cell(Implementation::Etcd2, &page.old.endpoint(), "/vitess"), &Cluster::demo(&page.old.endpoint()));
    let save = |value: &str| {
        format!(
            "printf {value} > /mnt/topo/global/metadata/owner; flock /mnt/topo/global/keyspaces/archive/.lock \
             touch /mnt/topo/global/metadata/owner; printf 'keyspace_type: SNAPSHOT\n' > \
             /mnt/topo/global/keyspaces/archive/Keyspace.txt"
        )
    };
    page.run("tee-old", &save("first"));
    page.run("tee-cells", "");
    page.run("tee-both", "");
    page.run("tee-drift", &save("second"));
    page.both_have("second");
    page.run("tee-swap", "");
    page.run("tee-drift", &save("third"));
    page.both_have("third");
    page.run("tee-new", &save("fourth"));
    let [old, new] = [Implementation::Etcd2, Implementation::Zk2].map(|implementation| page.stored(implementation));
    assert_eq!((&old["global/metadata/owner"][..], &new["global/metadata/owner"][..]), (&b"third"[..], &b"fourth"[..]));
    page.run("tee-new", "ls /mnt/topo/zone1/tablets | grep zone1-");
    drop(end);
}
