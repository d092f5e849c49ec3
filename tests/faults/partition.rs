//! etcd whose members do not reach each other while clients reach them all: a mount shows what the majority has, or
//! says that it does not know. And members that cannot serve at all.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::mount::{Lines, Mount, lines};
use crate::common::proxy::Proxy;
use crate::common::server::{Server, free_port};
use crate::common::world::{etcd_cell, load};
use crate::common::{eventually, text};
use crate::rig::{OWNER, state, stored, wait_for_state, wait_until_equal};
use topofs::sample::Cluster;

const SHORT: &[&str] = &["--remote-operation-timeout=6s", "--stale-after=3s"];

/// The links between the members. Each member says who it is when it connects to another, so one can be cut off in both
/// directions.
#[derive(Default)]
struct Network(Mutex<Option<(usize, String)>>);

impl Network {
    /// Cuts a member off from the others, by its number and its id.
    fn cut(&self, member: (usize, String)) {
        *self.0.lock().unwrap() = Some(member);
    }

    fn heal(&self) {
        *self.0.lock().unwrap() = None;
    }

    /// Whether a link works. If not, it says so only when it does again: what was on its way is lost, and the link with
    /// it. (A write that comes late, after its writer has given it up and repeated it, would be carried out after what
    /// came later.)
    fn works(&self, from: Option<&str>, to: usize) -> bool {
        let is_cut = || matches!(&*self.0.lock().unwrap(), Some((number, id)) if *number == to || Some(&**id) == from);
        let works = !is_cut();
        while is_cut() {
            std::thread::sleep(Duration::from_millis(10));
        }
        works
    }

    /// A link to the peer port of a member. Returns where the others reach it.
    fn link_to(self: &Arc<Self>, to: usize, port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reached_at = listener.local_addr().unwrap().port();
        let network = self.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let network = network.clone();
                std::thread::spawn(move || network.pass(client, to, port));
            }
        });
        reached_at
    }

    fn pass(self: Arc<Self>, mut client: TcpStream, to: usize, port: u16) -> Option<()> {
        let mut head = Vec::new();
        let mut buffer = [0; 1 << 14];
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let count = client.read(&mut buffer).ok().filter(|count| *count > 0)?;
            head.extend_from_slice(&buffer[..count]);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let from = text.lines().find_map(|line| line.strip_prefix("X-Server-From: ")).map(ToOwned::to_owned);
        if !self.works(from.as_deref(), to) {
            return None;
        }
        let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
        server.write_all(&head).ok()?;
        let (back, answers) = (client.try_clone().ok()?, server.try_clone().ok()?);
        let (network, sender) = (self.clone(), from.clone());
        std::thread::spawn(move || network.copy(answers, back, sender.as_deref(), to));
        self.copy(client, server, from.as_deref(), to);
        Some(())
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, sender: Option<&str>, member: usize) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if !self.works(sender, member) || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(std::net::Shutdown::Both);
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}

/// Three members of one etcd.
struct Ensemble {
    network: Arc<Network>,
    servers: Vec<Server>,
}

impl Ensemble {
    /// With the sample cluster below /t.
    fn start() -> Self {
        let network = Arc::new(Network::default());
        let peers: [u16; 3] = std::array::from_fn(|_| free_port());
        let links: [u16; 3] = std::array::from_fn(|n| network.link_to(n, peers[n]));
        let cluster: Vec<String> = (0..3).map(|n| format!("m{n}=http://127.0.0.1:{}", links[n])).collect();
        let launch = |n: usize| {
            let flags = vec![
                format!("--name=m{n}"),
                format!("--initial-cluster={}", cluster.join(",")),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", links[n]),
                format!("--listen-peer-urls=http://127.0.0.1:{}", peers[n]),
            ];
            let mut server = Server::new("etcd", flags);
            server.launch();
            server
        };
        let ensemble = Self { network, servers: (0..3).map(launch).collect() };
        eventually("all serve", || (0..3).all(|n| ctl(&ensemble.servers[n], &["get", "x"]).is_some()).then_some(()));
        let all = etcd_cell(&ensemble.servers[0].endpoint(), "/t");
        load(&*all, &Cluster { root: "/t".to_owned(), ..Cluster::demo(&ensemble.endpoints()) });
        ensemble
    }

    fn endpoints(&self) -> String {
        self.servers.iter().map(Server::endpoint).collect::<Vec<_>>().join(",")
    }

    /// The number and the id of a member.
    fn member(&self, number: usize) -> (usize, String) {
        let answer = ctl(&self.servers[number], &["endpoint", "status", "-w", "json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&answer).unwrap();
        (number, format!("{:x}", status[0]["Status"]["header"]["member_id"].as_u64().unwrap()))
    }

    /// Stores what a mount is to see, through a member; tries again until it has a leader.
    fn put(&self, number: usize, key: &str, value: &str) {
        eventually("it is stored", || ctl(&self.servers[number], &["put", key, value]));
    }
}

/// What etcdctl says of one server; `None` if it fails.
fn ctl(server: &Server, args: &[&str]) -> Option<String> {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", &server.endpoint(), "--command-timeout", "2s"]).args(args);
    let output = command.stderr(Stdio::null()).output().expect("etcdctl runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Who watches a directory hears of changes.
fn watcher(mount: &Mount) -> Lines {
    let mut command = Command::new("inotifywait");
    command.args(["-m", "-q", "-e", "modify", "--format", "%f"]).arg(mount.path("global/metadata"));
    lines(command)
}

#[test]
fn a_member_that_is_cut_off_is_not_taken_for_live() {
    let ensemble = Ensemble::start();
    let first = ensemble.servers[0].endpoint();
    let all = Mount::etcd(&ensemble.endpoints(), "/t", SHORT);
    let alone = Mount::etcd(&first, "/t", SHORT);
    let heard = watcher(&all);
    for mount in [&all, &alone] {
        assert_eq!(mount.read(OWNER), "the shop team");
    }
    // Both watches are on the first member. Which of them leads does not matter: it stops leading.
    let (number, id) = ensemble.member(0);
    ensemble.network.cut((number, id));
    ensemble.put(1, "/t/global/metadata/owner", "the majority");
    eventually("another endpoint is used", || (mount_says(&all, OWNER)? == "the majority").then_some(()));
    eventually("it is heard", || (heard.next() == "owner").then_some(()));
    wait_for_state(&all, "global", "live");
    wait_for_state(&alone, "global", "down");
    assert!(text(&alone.bash(&format!("cat {OWNER}"))).contains("timed out"));
    // What comes later is heard, too, and written where it counts.
    ensemble.put(2, "/t/global/metadata/owner", "later");
    eventually("the watch goes on", || (mount_says(&all, OWNER)? == "later").then_some(()));
    all.sh("echo by the mount > global/metadata/owner");
    assert_eq!(
        ctl(&ensemble.servers[2], &["get", "--print-value-only", "/t/global/metadata/owner"]).unwrap().trim(),
        "by the mount"
    );
    assert_eq!(state(&alone, "global"), "down");
    ensemble.network.heal();
    wait_for_state(&alone, "global", "live");
    assert_eq!(alone.read(OWNER), "by the mount\n");
}

fn mount_says(mount: &Mount, path: &str) -> Option<String> {
    std::fs::read_to_string(mount.path(path)).ok()
}

#[test]
fn without_a_quorum_nothing_is_live() {
    let ensemble = Ensemble::start();
    let mount = Mount::etcd(&ensemble.endpoints(), "/t", SHORT);
    assert_eq!(mount.read(OWNER), "the shop team");
    ensemble.servers[1].pause();
    ensemble.servers[2].pause();
    wait_for_state(&mount, "global", "down");
    // And it stays so, as long as it lasts: nothing was heard from more than one of three.
    for _ in 0..30 {
        assert_eq!(state(&mount, "global"), "down");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(text(&mount.bash(&format!("cat {OWNER}"))).contains("timed out"));
    ensemble.servers[1].resume();
    ensemble.servers[2].resume();
    wait_for_state(&mount, "global", "live");
    assert_eq!(mount.read(OWNER), "the shop team");
}

#[test]
fn a_learner_in_the_list_is_passed_over() {
    let (peer, learners_peer) = (free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let flags = |name: &str, port: u16, more: &[String]| {
        let own = [
            format!("--name={name}"),
            format!("--initial-advertise-peer-urls={}", url(port)),
            format!("--listen-peer-urls={}", url(port)),
        ];
        [&own[..], more].concat()
    };
    let mut voter = Server::new("etcd", flags("voter", peer, &[format!("--initial-cluster=voter={}", url(peer))]));
    voter.launch();
    eventually("it serves", || ctl(&voter, &["get", "x"]));
    ctl(&voter, &["member", "add", "learner", "--learner", &format!("--peer-urls={}", url(learners_peer))]).unwrap();
    let cluster = format!("--initial-cluster=voter={},learner={}", url(peer), url(learners_peer));
    let joining = [cluster, "--initial-cluster-state=existing".to_owned()];
    let mut learner = Server::new("etcd", flags("learner", learners_peer, &joining));
    learner.launch();
    eventually("the learner answers", || ctl(&learner, &["endpoint", "status"]));
    // A voter that can be cut off from the mount.
    let proxy = Proxy::start(voter.port);
    let list = format!("{},{}", learner.endpoint(), proxy.endpoint());
    load(&*etcd_cell(&voter.endpoint(), "/t"), &Cluster { root: "/t".to_owned(), ..Cluster::demo(&list) });
    let mount = Mount::etcd(&list, "/t", SHORT);
    assert_eq!(mount.read(OWNER), "the shop team");
    mount.sh("echo new > global/metadata/owner; ls zone1 > /dev/null");
    proxy.cut(false);
    ctl(&voter, &["put", "/t/global/metadata/owner", "after the cut"]).unwrap();
    eventually("it is connected again", || (mount_says(&mount, OWNER)? == "after the cut").then_some(()));
    wait_until_equal(&mount, || stored(&*etcd_cell(&voter.endpoint(), "/t")));
}
