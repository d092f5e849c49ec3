//! A page of docs/ whose blocks of shell are run, with the servers and directories of a test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use topofs::name::TopoPath;
use topofs::record::{Codec, Form};
use topofs::sample::Cluster;

use crate::common::etcd::Etcd;
use crate::common::mount::TOPOFS;
use crate::common::text;
use crate::common::world::{etcd_cell, put, runtime};

/// All blocks of a page that are called so, as one text: the language and a name.
pub fn blocks(page: &str, wanted: &str) -> String {
    let blocks = page.split("\n```").skip(1).filter_map(|rest| rest.split_once('\n'));
    let named = blocks.filter(|(name, _)| *name == wanted).map(|(_, rest)| rest.split("\n```").next().unwrap());
    let text = named.collect::<Vec<_>>().join("\n");
    assert!(!text.is_empty(), "the page has no block {wanted}");
    text
}

/// The scripts of the page, with the servers and directories of a test.
pub struct Page {
    content: &'static str,
    pub work: TempDir,
    pub servers: BTreeMap<&'static str, Etcd>,
}

impl Page {
    /// `global.example:2379` of the page is the server `global`.
    pub fn of(content: &'static str, servers: &[&'static str]) -> Self {
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir(work.path().join("topo")).unwrap();
        Self { content, work, servers: servers.iter().map(|name| (*name, Etcd::start())).collect() }
    }

    pub fn mounted(&self) -> PathBuf {
        self.work.path().join("topo")
    }

    /// All blocks of shell of one name, as one script.
    pub fn block(&self, wanted: &str) -> String {
        self.here(&blocks(self.content, &format!("sh {wanted}")))
    }

    pub fn here(&self, script: &str) -> String {
        let mut script = script.replace("/mnt/topo", self.mounted().to_str().unwrap());
        script = script.replace("/mnt/other", self.work.path().join("other").to_str().unwrap());
        script = script.replace("/backup/", &format!("{}/", self.work.path().display()));
        for (name, server) in &self.servers {
            script = script.replace(&format!("{name}.example:2379"), &server.endpoint());
        }
        assert!(!script.contains(".example:"), "{script}");
        script
    }

    /// Runs scripts in one shell, as a reader does. Returns what they print.
    pub fn run(&self, scripts: &[&str]) -> String {
        let path = format!("{}:{}", Path::new(TOPOFS).parent().unwrap().display(), std::env::var("PATH").unwrap());
        let script = format!("set -euo pipefail\n{}", scripts.join("\n"));
        let mut command = Command::new("timeout");
        command.args(["120", "bash", "-c", &script]).env("PATH", path).stdin(Stdio::null());
        let output = command.output().unwrap();
        let status = || std::fs::read_to_string(self.mounted().join(".topofs/errors")).unwrap_or_default();
        assert!(output.status.success(), "{script}\n{}\n{}", text(&output), status());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The variables of the page, for a shell that needs no mount.
    pub fn variables(&self) -> String {
        let setup = self.block("setup");
        setup.lines().filter(|line| line.starts_with("export")).collect::<Vec<_>>().join("\n")
    }

    /// Stores the sample: each cell on the server of its name, or on the global one.
    pub fn load(&self, cells: &[&str]) {
        let codec = Codec::builtin().unwrap();
        let cluster =
            Cluster { cells: cells.iter().map(ToString::to_string).collect(), ..Cluster::demo("global.example:2379") };
        for (cell, path, value) in cluster.records(&codec).unwrap() {
            let value = match path.as_str().strip_prefix("cells/").and_then(|rest| rest.strip_suffix("/CellInfo")) {
                Some(named) => {
                    let text = format!("server_address: \"{}\" root: \"/vitess/{named}\"", self.server(named));
                    codec.store("topodata.CellInfo", Form::Text, &text.into(), None).unwrap().unwrap()
                }
                None => value,
            };
            let backend = etcd_cell(&self.server(cell.as_str()), &format!("/vitess/{cell}"));
            runtime().block_on(backend.apply(&[put(path.as_str(), value)])).unwrap();
        }
    }

    pub fn server(&self, cell: &str) -> String {
        self.servers.get(cell).unwrap_or_else(|| &self.servers["global"]).endpoint()
    }

    /// All records of a cell on a server.
    pub fn stored(&self, server: &str, cell: &str) -> BTreeMap<String, Vec<u8>> {
        let backend = etcd_cell(&self.servers[server].endpoint(), &format!("/vitess/{cell}"));
        let listing = runtime().block_on(backend.list(&TopoPath::root())).unwrap();
        listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value.to_vec())).collect()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Its daemon ends with it.
        for dir in [self.mounted(), self.work.path().join("other")] {
            let _ = nix::mount::umount2(&dir, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
