//! `topofs topo2topo`: what it copies, what it refuses, and what happens when something comes in between.

mod during;
mod refused;
mod whole;

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use topofs::backend::{Guard, Implementation};
use topofs::name::TopoPath;
use topofs::record::{Codec, Form};
use topofs::sample::Cluster;

use crate::common::mount::TOPOFS;
use crate::common::server::fresh_root;
use crate::common::world::{cell, load, put, runtime};
use crate::common::{consul, etcd, text, zookeeper};

/// A topology below a root of its own: `ROOT/global`, `ROOT/zone1` and so on.
pub struct Place {
    pub implementation: Implementation,
    pub server: String,
    pub root: String,
}

impl Place {
    /// Below a fresh root of a shared server; nothing is there.
    pub fn empty(implementation: Implementation) -> Self {
        let (server, root) = match implementation {
            Implementation::Etcd2 => (etcd::shared().endpoint(), fresh_root()),
            Implementation::Zk2 => (zookeeper::shared().endpoint(), fresh_root()),
            // Vitess's keys begin without a slash there.
            Implementation::Consul => (consul::shared().endpoint(), fresh_root().trim_start_matches('/').to_owned()),
            Implementation::Memory => panic!("other processes cannot see it"),
        };
        Self { implementation, server, root }
    }

    pub fn etcd() -> Self {
        Self::empty(Implementation::Etcd2)
    }

    /// With the cluster of `topofs demo`.
    pub fn demo() -> Self {
        let place = Self::etcd();
        place.load(&Cluster::demo(&place.server));
        place
    }

    pub fn load(&self, cluster: &Cluster) {
        let cluster = Cluster { root: self.root.clone(), server: self.server.clone(), ..cluster.clone() };
        load(&*cell(self.implementation, &self.server, &self.root), &cluster);
    }

    /// Stores `CELL/PATH`.
    pub fn put(&self, path: &str, value: impl Into<Bytes>) {
        let all = cell(self.implementation, &self.server, &self.root);
        runtime().block_on(all.apply(&[put(path, value)])).unwrap();
    }

    /// Stores a message in its text form.
    pub fn put_text(&self, path: &str, message: &str, text: &str) {
        let codec = Codec::builtin().unwrap();
        let text = Bytes::copy_from_slice(text.as_bytes());
        self.put(path, codec.store(message, Form::Text, &text, None).unwrap().unwrap_or_default());
    }

    pub fn delete(&self, path: &str) {
        let all = cell(self.implementation, &self.server, &self.root);
        let path = TopoPath::parse(path).unwrap();
        let change = topofs::backend::Change { path, guard: Guard::Any, action: topofs::backend::Action::Delete };
        runtime().block_on(all.apply(&[change])).unwrap();
    }

    /// Everything that is stored, also locks.
    pub fn records(&self) -> BTreeMap<String, Bytes> {
        let all = cell(self.implementation, &self.server, &self.root);
        let listing = runtime().block_on(all.list(&TopoPath::root())).unwrap();
        listing.nodes.into_iter().map(|node| (node.path.to_string(), node.value)).collect()
    }

    /// The flags for this side.
    pub fn flags(&self, side: &str) -> [String; 3] {
        [
            format!("--{side}-implementation={}", self.implementation),
            format!("--{side}-server={}", self.server),
            format!("--{side}-root={}/global", self.root),
        ]
    }

    /// The flags that move all cells to another place.
    pub fn moved_to(&self, to: &Place) -> [String; 2] {
        [format!("--map-server={}={}", self.server, to.server), format!("--map-root={}={}", self.root, to.root)]
    }
}

/// What one side holds, without what differs because the cells are elsewhere.
pub fn without_places(records: BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    records.into_iter().filter(|(path, _)| !path.ends_with("/CellInfo")).collect()
}

pub fn command(from: &Place, to: &Place, flags: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", TOPOFS, "topo2topo"]).args(from.flags("from")).args(to.flags("to"));
    command.args(flags).stdin(Stdio::null());
    command
}

/// Runs it, and returns the exit status and everything that it has printed.
pub fn run(from: &Place, to: &Place, flags: &[&str]) -> (i32, String) {
    ended(&command(from, to, flags).output().unwrap())
}

/// Copies with all cells moved.
pub fn copy(from: &Place, to: &Place, flags: &[&str]) -> (i32, String) {
    let moved = from.moved_to(to);
    let moved: Vec<&str> = moved.iter().map(String::as_str).collect();
    run(from, to, &[&moved, flags].concat())
}

pub fn ended(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), text(output))
}

#[track_caller]
pub fn copied(from: &Place, to: &Place, flags: &[&str]) -> String {
    let (status, said) = copy(from, to, flags);
    assert_eq!(status, 0, "{said}");
    said
}
