//! Ensembles of three: the leader dies, the mount goes on.

use std::process::Command;

use crate::common::consul::Consul;
use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::server::{Server, free_port};
use crate::common::world::{cell, load};
use crate::common::zookeeper::Zookeeper;
use crate::rig::{stored, wait_until_equal};
use topofs::backend::Implementation;
use topofs::sample::Cluster;

fn ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_port())
}

/// Stores, kills the leader, and checks that everything goes on and nothing is lost.
fn goes_on_without_its_leader(implementation: Implementation, servers: &str, kill_leader: impl FnOnce()) {
    let all = cell(implementation, servers, "/t");
    load(&*all, &Cluster { root: "/t".to_owned(), ..Cluster::demo(servers) });
    let mount = Mount::of(&implementation.to_string(), servers, "/t", &["--remote-operation-timeout=10s"]);
    wait_until_equal(&mount, || stored(&*all));
    mount.sh("echo before > global/metadata/owner");
    kill_leader();
    eventually("writes go on", || {
        mount.bash("timeout 30 bash -c 'echo after > global/metadata/owner'").status.success().then_some(())
    });
    assert_eq!(mount.read("global/metadata/owner"), "after\n");
    // Another mount finds its way, too, and both see the same.
    let other = Mount::of(&implementation.to_string(), servers, "/t", &[]);
    other.sh("echo by another > global/metadata/other");
    eventually("it is seen", || {
        (std::fs::read(mount.path("global/metadata/other")).ok()? == b"by another\n").then_some(())
    });
    wait_until_equal(&mount, || stored(&*all));
}

#[test]
fn zookeeper() {
    let quorum: [u16; 3] = ports();
    let election: [u16; 3] = ports();
    let members: Vec<String> =
        (0..3).map(|n| format!("server.{}=127.0.0.1:{}:{}", n + 1, quorum[n], election[n])).collect();
    let mut servers: Vec<Zookeeper> = (1..=3)
        .map(|id| {
            let mut server =
                Zookeeper(Server::new("zookeeper", [members.clone(), vec![format!("myid={id}")]].concat()));
            server.launch();
            server
        })
        .collect();
    servers.iter().for_each(Zookeeper::wait);
    let list: Vec<String> = servers.iter().map(|server| server.endpoint()).collect();
    goes_on_without_its_leader(Implementation::Zk2, &list.join(","), || {
        let leads = |server: &&mut Zookeeper| server.ask("srvr").is_some_and(|answer| answer.contains("Mode: leader"));
        servers.iter_mut().find(leads).expect("one leads").kill();
    });
}

#[test]
fn zookeeper_observers() {
    // Bulk reads and watches go to the observers behind `|`, writes to the voters.
    let quorum: [u16; 2] = ports();
    let election: [u16; 2] = ports();
    let members = vec![
        "standaloneEnabled=false".to_owned(),
        format!("server.1=127.0.0.1:{}:{}", quorum[0], election[0]),
        format!("server.2=127.0.0.1:{}:{}:observer", quorum[1], election[1]),
    ];
    let start = |id: usize, more: &[&str]| {
        let settings =
            [members.clone(), vec![format!("myid={id}")], more.iter().map(ToString::to_string).collect()].concat();
        let mut server = Zookeeper(Server::new("zookeeper", settings));
        server.launch();
        server
    };
    let (voter, observer) = (start(1, &[]), start(2, &["peerType=observer"]));
    voter.wait();
    observer.wait();
    let servers = format!("{}|{}", voter.endpoint(), observer.endpoint());
    let mount = Mount::of("zk2", &servers, "/t", &[]);
    mount.sh("mkdir global/metadata; echo kept > global/metadata/owner; cat global/metadata/owner");
    let watches = |server: &Zookeeper| server.ask("wchs").unwrap();
    assert!(watches(&observer).contains("Total watches:1"), "{}", watches(&observer));
    assert!(watches(&voter).contains("Total watches:0"), "{}", watches(&voter));
}

#[test]
fn etcd() {
    let peers: [u16; 3] = ports();
    let names = ["a", "b", "c"];
    let cluster: Vec<String> = (0..3).map(|n| format!("{}=http://127.0.0.1:{}", names[n], peers[n])).collect();
    let mut servers: Vec<Server> = (0..3)
        .map(|n| {
            let peer = format!("http://127.0.0.1:{}", peers[n]);
            let flags = vec![
                format!("--name={}", names[n]),
                format!("--initial-cluster={}", cluster.join(",")),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--listen-peer-urls={peer}"),
            ];
            let mut server = Server::new("etcd", flags);
            server.launch();
            server
        })
        .collect();
    let list: Vec<String> = servers.iter().map(Server::endpoint).collect();
    let leader = || {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &list.join(","), "endpoint", "status", "-w", "json"])
            .output()
            .unwrap();
        let statuses: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let statuses = statuses.as_array()?.clone();
        let leads = |status: &serde_json::Value| status["Status"]["leader"] == status["Status"]["header"]["member_id"];
        let endpoint = statuses.iter().find(|status| leads(status))?["Endpoint"].as_str()?.to_owned();
        (statuses.len() == 3).then_some(endpoint)
    };
    eventually("one leads", leader);
    goes_on_without_its_leader(Implementation::Etcd2, &list.join(","), || {
        let leader = leader().unwrap();
        servers.iter_mut().find(|server| server.endpoint() == leader).unwrap().kill();
    });
}

#[test]
fn consul() {
    // The mount talks to one server, as Vitess does: it is another one that leads and dies.
    let serf: [u16; 3] = ports();
    let rpc: [u16; 3] = ports();
    let mut servers: Vec<Consul> = (0..3)
        .map(|n| {
            let mut flags = vec![
                format!("-node=node{n}"),
                "-bootstrap-expect=3".to_owned(),
                format!("-serf-lan-port={}", serf[n]),
                format!("-server-port={}", rpc[n]),
            ];
            flags.extend(serf.iter().map(|port| format!("-retry-join=127.0.0.1:{port}")));
            let mut server = Consul(Server::new("consul", flags));
            server.launch();
            server
        })
        .collect();
    let leader = |servers: &[Consul]| {
        let answer = servers[0].curl(&["-f"], "status/leader")?;
        let port: u16 = answer.trim().trim_matches('"').rsplit_once(':')?.1.parse().ok()?;
        rpc.iter().position(|known| *known == port)
    };
    let index = eventually("one leads", || leader(&servers));
    let follower = servers[(index + 1) % 3].endpoint();
    eventually("the follower knows", || {
        servers[(index + 1) % 3]
            .curl(&["-f"], "kv/?keys&separator=/")
            .or_else(|| servers[(index + 1) % 3].curl(&["-X", "PUT", "-d", "x"], "kv/x"))
    });
    goes_on_without_its_leader(Implementation::Consul, &follower, || servers[index].kill());
}
