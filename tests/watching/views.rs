//! Computed links follow the records of all cells, and whoever watches them is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use prost::Message;
use topofs::backend::{Action, Backend, Change, Guard};
use topofs::name::TopoPath;
use topofs::record::messages::topodata::shard_replication::Node;
use topofs::record::messages::topodata::{CellInfo, CellsAlias, Shard, ShardReplication, TabletAlias};

use crate::common::eventually;
use crate::common::mount::Mount;
use crate::common::world::{Service, put, runtime};
use crate::on_each_service;

/// The primary of commerce in the sample, and another tablet of it.
const PRIMARY: &str = "zone1-0000000100";
const OTHER: &str = "zone2-0000000101";

/// What programs hear of names in directories.
struct Watch {
    inotify: Inotify,
    dirs: Vec<(WatchDescriptor, String)>,
    heard: Vec<(String, String, String)>,
}

impl Watch {
    fn new(mount: &Mount, dirs: &[&str]) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        let add = |dir: &&str| (inotify.add_watch(&mount.path(dir), flags).unwrap(), (*dir).to_owned());
        let dirs = dirs.iter().map(add).collect();
        Self { inotify, dirs, heard: Vec::new() }
    }

    /// All events so far: what happened, the directory, and the name.
    fn heard(&mut self) -> &[(String, String, String)] {
        loop {
            let events = match self.inotify.read_events() {
                Err(Errno::EAGAIN) => return &self.heard,
                events => events.unwrap(),
            };
            for event in events {
                let created = event.mask.contains(AddWatchFlags::IN_CREATE);
                let dir = self.dirs.iter().find(|(watch, _)| *watch == event.wd);
                if let (Some((_, dir)), Some(name)) = (dir, event.name) {
                    let happened = if created { "CREATE" } else { "DELETE" };
                    self.heard.push((happened.to_owned(), dir.clone(), name.into_string().unwrap()));
                }
            }
        }
    }

    /// The events of one name, once there are so many.
    fn of(&mut self, dir: &str, name: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} events of {dir}/{name}, heard {:?}", self.heard().to_vec()), || {
            let of = self.heard().iter().filter(|(_, at, of)| at == dir && of == name);
            let events: Vec<String> = of.map(|(happened, ..)| happened.clone()).collect();
            (events.len() >= count).then_some(events)
        })
    }
}

fn alias(name: &str) -> TabletAlias {
    let (cell, uid) = name.rsplit_once('-').unwrap();
    TabletAlias { cell: cell.to_owned(), uid: uid.parse().unwrap() }
}

fn shard(primary: Option<&str>) -> Vec<u8> {
    Shard { primary_alias: primary.map(alias), ..Shard::default() }.encode_to_vec()
}

fn replication<'a>(tablets: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let nodes = tablets.into_iter().map(|tablet| Node { tablet_alias: Some(alias(tablet)) });
    ShardReplication { nodes: nodes.collect() }.encode_to_vec()
}

on_each_service! {
    fn a_link_that_comes_goes_or_points_elsewhere_is_told(service) {
        let mount = service.mount(&[]);
        let dir = "global/keyspaces/commerce/shards/0";
        let (tablets, cells, region) =
            (format!("{dir}/.tablets"), "global/keyspaces/commerce/.cells", "global/cells_aliases/region1/.cells");
        let mut watch = Watch::new(&mount, &[dir, &tablets, cells, region]);
        // By somebody elsewhere: in the global topology, and in a cell that nobody has looked into by its name.
        let replicas = "zone2/keyspaces/commerce/shards/0/ShardReplication";
        service.put(replicas, &replication([OTHER, "zone2-0000000777"]));
        assert_eq!(watch.of(&tablets, "zone2-0000000777", 1), ["CREATE"]);
        assert!(mount.path(&format!("{tablets}/zone2-0000000777")).symlink_metadata().unwrap().is_symlink());
        service.put(replicas, &replication([OTHER]));
        assert_eq!(watch.of(&tablets, "zone2-0000000777", 2), ["CREATE", "DELETE"]);
        service.put(&format!("{dir}/Shard"), &shard(Some(OTHER)));
        assert_eq!(watch.of(dir, ".primary", 2), ["DELETE", "CREATE"]);
        assert!(mount.path(dir).join(".primary").read_link().unwrap().ends_with(OTHER));
        let alias = CellsAlias { cells: vec!["zone1".into()] };
        service.put("global/cells_aliases/region1/CellsAlias", &alias.encode_to_vec());
        assert_eq!(watch.of(region, "zone2", 1), ["DELETE"]);
        for key in service.keys().iter().filter(|key| key.starts_with("zone1/keyspaces/commerce/")) {
            service.delete(key);
        }
        assert_eq!(watch.of(cells, "zone1", 1), ["DELETE"]);
        // The primary is known without the cell's record; the others of zone1 are gone with it.
        assert_eq!(watch.of(&tablets, PRIMARY, 1), ["DELETE"]);
        service.put("zone1/keyspaces/commerce/SrvKeyspace", b"");
        assert_eq!(watch.of(cells, "zone1", 2), ["DELETE", "CREATE"]);
        // By a save through this mount.
        let script = format!("jq '.primary_alias = {{cell: \"zone9\", uid: 9}}' {dir}/Shard.json");
        mount.sh(&format!("{script} > ../new; cat ../new > {dir}/Shard.json; readlink {dir}/.primary"));
        assert_eq!(watch.of(dir, ".primary", 4)[2..], ["DELETE", "CREATE"]);
        assert_eq!(watch.of(&tablets, "zone9-0000000009", 1), ["CREATE"]);
        assert!(mount.path(dir).join(".primary").read_link().unwrap().ends_with("zone9-0000000009"));
        // Nothing else was told of anything that stayed.
        let stayed = |(_, at, name): &(String, String, String)| (at, name.as_str()) == (&tablets, OTHER);
        assert!(!watch.heard().iter().any(stayed), "{:?}", watch.heard);
    }

    fn a_watcher_needs_not_look_into_the_cells(service) {
        let mount = service.mount(&[]);
        let state = || mount.status()["cells"]["zone2"]["state"].as_str().unwrap().to_owned();
        mount.sh("ls -la global/keyspaces/commerce/shards/0");
        assert_eq!(state(), "idle", "a listing of a shard asks no cell");
        let tablets = "global/keyspaces/commerce/shards/0/.tablets";
        let mut watch = Watch::new(&mount, &[tablets]);
        assert_ne!(state(), "idle");
        service.put("zone2/keyspaces/commerce/shards/0/ShardReplication", &replication(["zone2-0000000999"]));
        assert_eq!(watch.of(tablets, "zone2-0000000999", 1), ["CREATE"]);
        assert_eq!(watch.of(tablets, OTHER, 1), ["DELETE"]);
    }
}

#[test]
fn a_shard_that_goes_takes_its_links_along_and_one_that_comes_again_is_watched_again() {
    let service = Service::etcd2();
    let mount = service.mount(&["--views=list"]);
    let dir = "global/keyspaces/commerce/shards/0";
    let tablets = format!("{dir}/.tablets");
    let mut watch = Watch::new(&mount, &[dir, &tablets]);
    service.delete(&format!("{dir}/Shard"));
    assert_eq!(watch.of(dir, ".primary", 1), ["DELETE"]);
    assert_eq!(watch.of(&tablets, PRIMARY, 1), ["DELETE"]);
    assert_eq!(watch.of(dir, ".tablets", 1), ["DELETE"]);
    eventually("it is gone", || (!mount.path(dir).exists()).then_some(()));
    service.put(&format!("{dir}/Shard"), &shard(Some(OTHER)));
    eventually("it is there", || mount.path(&format!("{tablets}/{PRIMARY}")).exists().then_some(()));
    let mut watch = Watch::new(&mount, &[dir, &tablets]);
    service.put(&format!("{dir}/Shard"), &shard(Some("zone1-0000000555")));
    assert_eq!(watch.of(&tablets, "zone1-0000000555", 1), ["CREATE"]);
    // The event of its return may come only now.
    let elsewhere = ["DELETE", "CREATE"].map(str::to_owned);
    eventually("it is told that .primary points elsewhere", || {
        watch.of(dir, ".primary", 0).ends_with(&elsewhere).then_some(())
    });
}

#[test]
fn a_cell_that_comes_and_goes_brings_and_takes_its_links() {
    let service = Service::etcd2();
    let info = service.get("global/cells/zone2/CellInfo").unwrap();
    let mount = service.mount(&[]);
    let (tablets, cells) = ("global/keyspaces/commerce/shards/0/.tablets", "global/keyspaces/commerce/.cells");
    let mut watch = Watch::new(&mount, &[tablets, cells]);
    service.delete("global/cells/zone2/CellInfo");
    assert_eq!(watch.of(cells, "zone2", 1), ["DELETE"]);
    assert_eq!(watch.of(tablets, OTHER, 1), ["DELETE"]);
    service.put("global/cells/zone2/CellInfo", &info);
    assert_eq!(watch.of(cells, "zone2", 2), ["DELETE", "CREATE"]);
    assert_eq!(watch.of(tablets, OTHER, 2), ["DELETE", "CREATE"]);
}

#[test]
fn a_cell_that_answers_late_brings_its_links() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Service::etcd2();
    let info = |server_address, root| CellInfo { server_address, root }.encode_to_vec();
    let nowhere = info(silent.local_addr().unwrap().to_string(), "/silent".to_owned());
    service.put("global/cells/zone2/CellInfo", &nowhere);
    let mount = service.mount(&["--cell-servers=any"]);
    let (tablets, cells) = ("global/keyspaces/commerce/shards/0/.tablets", "global/keyspaces/commerce/.cells");
    let mut watch = Watch::new(&mount, &[tablets, cells]);
    assert!(mount.path(&format!("{tablets}/{OTHER}")).symlink_metadata().is_err());
    let answers = info(service.server.clone(), format!("{}/zone2", service.root));
    service.put("global/cells/zone2/CellInfo", &answers);
    assert_eq!(watch.of(cells, "zone2", 1), ["CREATE"]);
    assert_eq!(watch.of(tablets, OTHER, 1), ["CREATE"]);
}

/// A small topology that changes at random.
struct Random {
    state: u64,
    cell: Arc<dyn Backend>,
    stored: BTreeMap<String, Vec<u8>>,
}

const SHARDS: [&str; 2] = ["-80", "80-"];
const CELLS: [&str; 2] = ["zone1", "zone2"];
const KEYSPACE: &str = "global/keyspaces/ks";

impl Random {
    /// A number below another. Xorshift: the same numbers every time.
    fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % end
    }

    fn one_of(&mut self, names: &[&'static str]) -> &'static str {
        names[self.below(names.len() as u64) as usize]
    }

    fn tablet(&mut self) -> String {
        format!("{}-{:010}", self.one_of(&["zone1", "zone2", "zone7"]), self.below(6))
    }

    fn tablets(&mut self) -> Vec<String> {
        let count = self.below(4);
        (0..count).map(|_| self.tablet()).collect()
    }

    fn shard_key(&mut self) -> String {
        format!("{KEYSPACE}/shards/{}/Shard", self.one_of(&SHARDS))
    }

    /// A key, and its new value.
    fn change(&mut self) -> (String, Option<Vec<u8>>) {
        let gone = self.below(4) == 0;
        let kind = self.below(5);
        let cell = self.one_of(&CELLS);
        let (key, value) = match kind {
            0 => {
                let primary = Some(self.tablet()).filter(|_| !self.state.is_multiple_of(3));
                (self.shard_key(), shard(primary.as_deref()))
            }
            1 | 2 => {
                let key = format!("{cell}/keyspaces/ks/shards/{}/ShardReplication", self.one_of(&SHARDS));
                (key, replication(self.tablets().iter().map(String::as_str)))
            }
            3 => (format!("{cell}/tablets/{}/Tablet", self.tablet()), Vec::new()),
            _ if self.below(2) == 0 => (format!("{cell}/keyspaces/ks/SrvKeyspace"), Vec::new()),
            _ => {
                let cells = (0..self.below(3)).map(|_| self.one_of(&["zone1", "zone2", "zone8"]).to_owned()).collect();
                ("global/cells_aliases/near/CellsAlias".to_owned(), CellsAlias { cells }.encode_to_vec())
            }
        };
        (key, (!gone).then_some(value))
    }

    fn apply(&mut self, key: &str, value: Option<Vec<u8>>) {
        let change = match &value {
            Some(value) => put(key, value.clone()),
            None => Change { path: TopoPath::parse(key).unwrap(), guard: Guard::Any, action: Action::Delete },
        };
        match value {
            Some(value) => drop(self.stored.insert(key.to_owned(), value)),
            None if self.stored.remove(key).is_none() => return,
            None => {}
        }
        runtime().block_on(self.cell.apply(&[change])).unwrap();
    }

    fn stored<M: Message + Default>(&self, key: &str) -> Option<M> {
        self.stored.get(key).map(|value| M::decode(&value[..]).unwrap())
    }

    /// What each directory of links must hold: names with targets.
    fn expected(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let named = |TabletAlias { cell, uid }: &TabletAlias| (cell.clone(), format!("{cell}-{uid:010}"));
        let mut all = BTreeMap::new();
        for shard in SHARDS {
            let dir = format!("{KEYSPACE}/shards/{shard}");
            let record: Option<Shard> = self.stored(&format!("{dir}/Shard"));
            let primary = record.as_ref().and_then(|shard| shard.primary_alias.as_ref()).map(named);
            let mut tablets: BTreeSet<(String, String)> = primary.iter().cloned().collect();
            for cell in CELLS.iter().filter(|_| record.is_some()) {
                let key = format!("{cell}/keyspaces/ks/shards/{shard}/ShardReplication");
                let replication = self.stored::<ShardReplication>(&key).unwrap_or_default();
                tablets.extend(replication.nodes.iter().map(|node| named(node.tablet_alias.as_ref().unwrap())));
            }
            let to = |up: usize, (cell, name): &(String, String)| format!("{}{cell}/tablets/{name}", "../".repeat(up));
            let links = tablets.iter().map(|tablet| (tablet.1.clone(), to(6, tablet)));
            all.insert(format!("{dir}/.tablets"), links.collect());
            all.insert(dir, primary.iter().map(|tablet| (".primary".to_owned(), to(5, tablet))).collect());
        }
        let holds = |cell: &&&str| self.stored.keys().any(|key| key.starts_with(&format!("{cell}/keyspaces/ks/")));
        let cells =
            CELLS.iter().filter(holds).map(|cell| (cell.to_string(), format!("../../../../{cell}/keyspaces/ks")));
        all.insert(format!("{KEYSPACE}/.cells"), cells.collect());
        let near: CellsAlias = self.stored("global/cells_aliases/near/CellsAlias").unwrap_or_default();
        let near = near.cells.into_iter().map(|cell| (cell.clone(), format!("../../../../{cell}")));
        all.insert("global/cells_aliases/near/.cells".to_owned(), near.collect());
        all
    }

    /// Whether the mount shows that, and a link dangles exactly if its record is missing.
    fn is_shown(&self, mount: &Mount) -> bool {
        self.expected().iter().all(|(dir, links)| {
            let path = mount.path(dir);
            let shown: BTreeMap<String, String> = match dir.ends_with('s') {
                true => names(&path).into_iter().map(|name| (name.clone(), target(&path.join(name)))).collect(),
                false => [path.join(".primary")]
                    .iter()
                    .filter(|link| link.symlink_metadata().is_ok())
                    .map(|link| (".primary".to_owned(), target(link)))
                    .collect(),
            };
            let leads = |(name, to): (&String, &String)| {
                let key = format!("{}/Tablet", to.trim_start_matches("../"));
                !dir.ends_with(".tablets") || path.join(name).join("Tablet").exists() == self.stored.contains_key(&key)
            };
            shown == *links && links.iter().all(leads)
        })
    }
}

fn names(dir: &PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn target(link: &std::path::Path) -> String {
    link.read_link().map_or_else(|error| error.to_string(), |target| target.to_str().unwrap().to_owned())
}

#[test]
fn a_thousand_random_changes_are_shown_and_told() {
    const CHANGES: usize = 1_000;
    /// How many changes come between two quiet moments, at most.
    const AT_ONCE: u64 = 9;
    let service = Service::etcd2();
    let mut random = Random { state: 0x9e37_79b9_7f4a_7c15, cell: service.cell(), stored: BTreeMap::new() };
    // What keeps the directories there, whatever comes and goes.
    for shard in SHARDS {
        random.apply(&format!("{KEYSPACE}/shards/{shard}/note"), Some(b"x".to_vec()));
    }
    random.apply("global/cells_aliases/near/note", Some(b"x".to_vec()));
    let mount = service.mount(&[]);
    let before = random.expected();
    let dirs: Vec<&str> = before.keys().map(String::as_str).collect();
    let mut watch = Watch::new(&mount, &dirs);
    let named = |links: &BTreeMap<String, BTreeMap<String, String>>| -> BTreeMap<String, BTreeSet<String>> {
        links.iter().map(|(dir, links)| (dir.clone(), links.keys().cloned().collect())).collect()
    };
    let (mut told, mut seen, mut elsewhere, mut made) = (named(&before), 0, 0, 0);
    while made < CHANGES {
        let before = random.expected();
        for _ in 0..=random.below(AT_ONCE) {
            let (key, value) = random.change();
            random.apply(&key, value);
            made += 1;
        }
        let expected = random.expected();
        let names = named(&expected);
        // Whoever adds up what it has heard knows what there is.
        let primaries = |watch: &mut Watch, from: usize, dir: &str| {
            watch.heard()[from..].iter().filter(|(_, at, name)| at == dir && name == ".primary").count()
        };
        let begin = seen;
        eventually(&format!("{made} changes, expected {names:?}, told {told:?}"), || {
            let new: Vec<_> = watch.heard()[seen..].to_vec();
            seen += new.len();
            for (happened, dir, name) in new {
                let known = told.get_mut(&dir).unwrap();
                // The records of a shard come and go beside its link.
                if name != ".primary" && !dir.ends_with('s') {
                    continue;
                }
                let changed = if happened == "CREATE" { known.insert(name.clone()) } else { known.remove(&name) };
                assert!(changed, "{happened} {dir}/{name} twice");
            }
            let moved = |dir: &&String| {
                let (was, is) = (before[*dir].get(".primary"), expected[*dir].get(".primary"));
                was.is_some() && is.is_some() && was != is
            };
            let moved: Vec<&String> = expected.keys().filter(moved).collect();
            let all = moved.iter().all(|dir| primaries(&mut watch, begin, dir) >= 2);
            (told == names && all).then(|| elsewhere += moved.len())
        });
        eventually(&format!("{made} changes are shown: {expected:?}"), || random.is_shown(&mount).then_some(()));
    }
    assert!(seen > CHANGES / 2 && elsewhere > 10, "{seen} events, {elsewhere} links that point elsewhere");
}
