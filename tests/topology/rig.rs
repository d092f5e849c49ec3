//! Commands on a topology, and cells that are somewhere else or nowhere.

use std::process::{Child, Command, Output, Stdio};

use bytes::Bytes;
use topofs::backend::{Implementation, Owner, Role};
use topofs::name::TopoPath;
use topofs::record::{Codec, Form};

use crate::common::mount::TOPOFS;
use crate::common::proxy::Proxy;
use crate::common::world::{Service, runtime};
use crate::common::{bound_command, consul, etcd, spawn_bound, zookeeper};

/// Locks of the dead end soon, and nobody waits long for a cell that does not answer.
pub const SHORT: [&str; 4] = [
    "--topo-etcd-lease-ttl=2s",
    "--topo-zk-base-timeout=4s",
    "--topo-consul-lock-session-ttl=10s",
    "--topo-consul-lock-delay=0s",
];

/// A command on a topology.
pub fn command(service: &Service, args: &[&str]) -> Command {
    let mut command = bound_command(TOPOFS);
    let global = format!("{}/global", service.root);
    command.args(args).args(["--topo-implementation", service.implementation.name()]);
    command.args(["--topo-global-server-address", &service.server, "--topo-global-root", &global]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it.
pub fn run(service: &Service, args: &[&str]) -> Output {
    command(service, args).output().unwrap()
}

/// Starts it.
pub fn start(service: &Service, args: &[&str]) -> Child {
    spawn_bound(command(service, args))
}

/// What it has printed, or complained about, and its exit status.
pub fn said(output: &Output) -> (String, String, i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

/// The bytes of a message in text form.
pub fn encoded(message: &str, text: &str) -> Bytes {
    Codec::builtin()
        .unwrap()
        .store(message, Form::Text, &Bytes::copy_from_slice(text.as_bytes()), None)
        .unwrap()
        .unwrap()
}

/// The text of a stored record.
pub fn decoded(service: &Service, key: &str, message: &str) -> String {
    let stored = service.get(key).unwrap_or_else(|| panic!("{key} does not exist")).into();
    String::from_utf8(Codec::builtin().unwrap().show(message, Form::Text, &stored).unwrap().to_vec()).unwrap()
}

/// Lets the CellInfo record of a cell name another address.
pub fn move_cell(service: &Service, cell: &str, server: &str) {
    let info = format!("server_address: \"{server}\" root: \"{}/{cell}\"", service.root);
    service.put(&format!("global/cells/{cell}/CellInfo"), &encoded("topodata.CellInfo", &info));
}

/// An address in front of the service that can be silenced.
pub fn proxy(service: &Service) -> Proxy {
    match service.implementation {
        Implementation::Etcd2 => Proxy::start(etcd::shared().port),
        Implementation::Zk2 => Proxy::plain(zookeeper::shared().port),
        Implementation::Consul => Proxy::plain(consul::shared().port),
        Implementation::Memory => panic!("memory has no address"),
    }
}

/// The locks that are held or waited for, each with its key and its text.
pub fn locks(service: &Service) -> Vec<(String, String)> {
    let listing = runtime().block_on(service.cell().list(&TopoPath::root())).unwrap();
    let locks = listing.nodes.into_iter().filter(|node| node.role != Role::Record && node.owner() != Owner::NOBODY);
    locks.map(|node| (node.path.to_string(), String::from_utf8_lossy(&node.value).into_owned())).collect()
}
