//! A change set is stored whole or not at all, whatever happens to whoever commits it: two processes commit random sets
//! over two cells of one service, beside somebody who saves single records, and are killed in the middle, again and
//! again. What came of each set is told by the service, and by nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use topofs::backend::{Backend, CellServers, ConnectOptions, Implementation, Location, Revision};
use topofs::cells::{CellOptions, Cells};
use topofs::control::Control;
use topofs::error::Kind;
use topofs::locks::{Locks, Patience};
use topofs::mirror::MirrorOptions;
use topofs::name::{CellName, CellPath, TopoPath};
use topofs::record::{Codec, Form, Kinds, Records};
use topofs::store::{Actor, CellRules, ChangeSet, LiveCells, RespectLocks, Staged, Unheard, commit};

use crate::common::server::fresh_root;
use crate::common::world::{connect_options, put, runtime};
use crate::common::{DEADLINE, bound_command, consul, etcd, spawn_bound, zookeeper};

mod mounts;

/// How many sets are begun on each service.
const SETS: usize = 250;
/// Most records of a set.
const LARGEST: u64 = 60;
/// How many records of each cell all sets are about.
const RECORDS: u64 = 250;
/// What the processes are told.
const JOB: &str = "TOPOFS_TEST_COMMITS";

/// What was written and deleted, by revision.
type History = BTreeMap<u64, BTreeMap<String, Option<Bytes>>>;

/// What a process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    implementation: String,
    server: String,
    root: String,
    /// Whoever commits: a part of the names of its sets.
    who: String,
    log: PathBuf,
    seed: u64,
}

/// A line in the log of a process.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    /// It is about to commit a set.
    Begun(Set),
    /// The set was stored.
    Stored(String),
    /// The set was refused.
    Refused(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Set {
    id: String,
    /// A record that no other set is about.
    trace: String,
    puts: BTreeSet<String>,
    deletes: BTreeSet<String>,
}

/// A sequence of numbers from a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn record(&mut self) -> String {
        let cell = ["global", "zone1"][self.below(2) as usize];
        format!("{cell}/metadata/r{}", self.below(RECORDS))
    }
}

/// A mount without a kernel: connected cells, and locks.
struct Committer {
    cells: Arc<Cells>,
    live: LiveCells,
    numbers: Numbers,
    job: Job,
    sets: usize,
}

impl Committer {
    async fn new(job: Job, connect: ConnectOptions) -> Self {
        let global = Location {
            implementation: job.implementation.parse().unwrap(),
            server: job.server.clone(),
            root: format!("{}/global", job.root),
        };
        let hour = Duration::from_secs(3600);
        let mirror = MirrorOptions { resync_interval: hour, stale_after: Duration::from_secs(10), serve_stale: false };
        let history = Default::default();
        let options = CellOptions { global, connect, servers: CellServers::Any, mirror, only: None, history };
        let cells = Cells::start(options, Records::new(Codec::builtin().unwrap(), Kinds::default())).await.unwrap();
        let control = Arc::new(Control::new(serde_json::Value::Null, Box::new(|_| Ok(()))));
        let locks = Locks::new(control.clone(), Patience::new(None));
        let rules = CellRules { cells: cells.clone(), control, force_removal: false };
        let live = LiveCells::new(locks, RespectLocks::Keyspace, rules);
        Self { cells, live, numbers: Numbers(job.seed), job, sets: 0 }
    }

    /// A random set over what the records are now, as far as this mount knows.
    async fn next(&mut self) -> (Set, ChangeSet) {
        self.sets += 1;
        // The end is a part of the name: no name begins with another.
        let id = format!("-{}-{}-", self.job.who, self.sets);
        let trace = format!("zone1/metadata/trace{id}");
        let puts = BTreeSet::from([trace.clone()]);
        let mut set = Set { id: id.clone(), trace, puts, deletes: BTreeSet::new() };
        if self.numbers.below(8) == 0 {
            // Its lock is taken for the commit. Whoever is killed leaves it behind, so each has a keyspace of its own.
            set.puts.insert(format!("global/keyspaces/{}/Keyspace", self.job.who));
        }
        let mut changes = Vec::new();
        let size = 1 + self.numbers.below(LARGEST);
        let others: BTreeSet<String> = (1..size).map(|_| self.numbers.record()).collect();
        for place in set.puts.clone().into_iter().chain(others) {
            let (cell, path) = place.split_once('/').unwrap();
            let at = CellPath::new(&CellName::new(cell).unwrap(), &TopoPath::parse(path).unwrap());
            let records = self.cells.get(&at.cell).unwrap().snapshot().await.unwrap();
            let base = records.records.get(&at.path).cloned();
            let now = match base.is_some() && !set.puts.contains(&place) && self.numbers.below(4) == 0 {
                true => {
                    set.deletes.insert(place);
                    None
                }
                false => {
                    let is_keyspace = path.ends_with("Keyspace");
                    set.puts.insert(place);
                    Some(if is_keyspace { keyspace(&id) } else { Bytes::from(id.clone()) })
                }
            };
            changes.push(Staged { at, base, now });
        }
        (set, ChangeSet { name: id.into(), changes })
    }

    /// Commits one set.
    async fn once(&mut self, log: &mut impl FnMut(Line)) {
        let (set, changes) = self.next().await;
        let id = set.id.clone();
        log(Line::Begun(set));
        let (live, actor) = (&self.live, Actor { uid: 0, process: 0 });
        match commit(&|cell| live.live(cell), self.cells.records(), &changes, actor, &Unheard).await {
            Ok(_) => log(Line::Stored(id)),
            Err(error) if !error.is_uncertain() => {
                let expected = matches!(error.kind, Kind::Conflict | Kind::TooMany | Kind::Unreachable);
                assert!(expected, "{:?}: {error}", error.kind);
                log(Line::Refused(id));
            }
            Err(_) => {}
        }
    }
}

/// A record that must decode.
fn keyspace(id: &str) -> Bytes {
    let text = Bytes::from(format!("base_keyspace: \"{id}\"\n"));
    Codec::builtin().unwrap().store("topodata.Keyspace", Form::Text, &text, None).unwrap().unwrap()
}

/// What the tests below start: a process of this very program. Without a job it is a test that does nothing.
#[test]
fn a_process_that_commits_until_it_is_killed() {
    let Ok(job) = std::env::var(JOB) else { return };
    let job: Job = serde_json::from_str(&job).unwrap();
    let mut file = std::fs::File::options().create(true).append(true).open(&job.log).unwrap();
    runtime().block_on(async {
        let mut mount = Committer::new(job, connect_options()).await;
        loop {
            // One write for each line: whoever is killed has written it or not.
            mount
                .once(&mut |line| {
                    file.write_all(format!("{}\n", serde_json::to_string(&line).unwrap()).as_bytes()).unwrap()
                })
                .await;
        }
    });
}

fn start(job: &Job) -> Child {
    let mut command = bound_command(std::env::current_exe().unwrap().to_str().unwrap());
    command.args(["--exact", "commits::a_process_that_commits_until_it_is_killed", "--nocapture"]);
    command.env(JOB, serde_json::to_string(job).unwrap()).stdout(std::process::Stdio::null());
    spawn_bound(command)
}

fn lines(log: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn begun(log: &Path) -> usize {
    lines(log).iter().filter(|line| matches!(line, Line::Begun(_))).count()
}

/// Stores the record of the second cell, and returns everything below the root.
fn prepare(implementation: Implementation, server: &str, root: &str, connect: &ConnectOptions) -> Arc<dyn Backend> {
    let location = Location { implementation, server: server.to_owned(), root: root.to_owned() };
    let all = topofs::backend::open(&CellName::global(), &location, connect).unwrap();
    let info = Bytes::from(format!("server_address: \"{server}\" root: \"{root}/zone1\""));
    let info = Codec::builtin().unwrap().store("topodata.CellInfo", Form::Text, &info, None).unwrap().unwrap();
    runtime().block_on(all.apply(&[put("global/cells/zone1/CellInfo", info)])).unwrap();
    all
}

/// Somebody who saves single records, until told to end.
fn writer(all: Arc<dyn Backend>, ended: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    runtime().spawn(async move {
        let mut numbers = Numbers(7);
        while !ended.load(Ordering::SeqCst) {
            all.apply(&[put(&numbers.record(), "somebody else")]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Two processes commit, and are killed while they do.
fn killed(implementation: Implementation, server: String) -> (Arc<dyn Backend>, String, Vec<Line>) {
    let root = fresh_root();
    let all = prepare(implementation, &server, &root, &connect_options());
    let dir = tempfile::tempdir().unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let writing = writer(all.clone(), ended.clone());
    let mut numbers = Numbers(42);
    let log_of = |number: u64| dir.path().join(format!("log{number}"));
    let next = |number: u64| {
        let (who, log) = (format!("p{number}"), log_of(number));
        let (implementation, server, root) = (implementation.to_string(), server.clone(), root.clone());
        (start(&Job { implementation, server, root, who, log: log.clone(), seed: number }), log)
    };
    let mut running = [next(0), next(1)];
    let mut started = 2;
    while (0..started).map(|number| begun(&log_of(number))).sum::<usize>() < SETS {
        // One of the two is killed after some sets, wherever it is then.
        let (child, log) = &mut running[(started % 2) as usize];
        let until = 10 + numbers.below(30) as usize;
        crate::common::eventually("sets are begun", || (begun(log) >= until).then_some(()));
        std::thread::sleep(Duration::from_micros(numbers.below(20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        running[(started % 2) as usize] = next(started);
        started += 1;
    }
    for (child, _) in &mut running {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ended.store(true, Ordering::SeqCst);
    runtime().block_on(writing).unwrap();
    let lines = (0..started).flat_map(|number| lines(&log_of(number))).collect();
    (all, root, lines)
}

/// The sets that were begun, and what their processes were told.
struct Told {
    sets: Vec<Set>,
    stored: BTreeSet<String>,
    refused: BTreeSet<String>,
}

impl Told {
    fn new(lines: Vec<Line>) -> Self {
        let mut told = Self { sets: Vec::new(), stored: BTreeSet::new(), refused: BTreeSet::new() };
        for line in lines {
            match line {
                Line::Begun(set) => told.sets.push(set),
                Line::Stored(id) => drop(told.stored.insert(id)),
                Line::Refused(id) => drop(told.refused.insert(id)),
            }
        }
        let (sets, stored) = (told.sets.len(), told.stored.len());
        println!("{sets} sets, {stored} of them stored, {} refused", told.refused.len());
        assert!(stored > sets / 4, "{stored} of {sets}: hardly any");
        told
    }

    fn check(&self, set: &Set, is_stored: bool) {
        assert!(is_stored || !self.stored.contains(&set.id), "{}: the process was told that it is stored", set.id);
        assert!(!is_stored || !self.refused.contains(&set.id), "{}: the process was told that it is not", set.id);
    }

    /// By what is stored at the end: a set that left its trace has written all its records at that moment, and nobody
    /// has an older state; one without a trace has written nothing.
    fn check_end(&self, all: &dyn Backend) {
        let nodes = runtime().block_on(all.list(&TopoPath::root())).unwrap().nodes;
        let nodes: BTreeMap<String, _> = nodes.into_iter().map(|node| (node.path.to_string(), node)).collect();
        let traced = |set: &Set| nodes.get(&set.trace).map(|node| node.version.written);
        // The last deletion of each record by a set that is stored.
        let mut deleted: BTreeMap<&String, Revision> = BTreeMap::new();
        for (set, at) in self.sets.iter().filter_map(|set| Some((set, traced(set)?))) {
            set.deletes.iter().for_each(|place| {
                let last = deleted.entry(place).or_insert(at);
                *last = at.max(*last);
            });
        }
        let of = |value: &[u8], id: &str| value.windows(id.len()).any(|part| part == id.as_bytes());
        for set in &self.sets {
            let at = traced(set);
            self.check(set, at.is_some());
            for place in &set.puts {
                let Some(node) = nodes.get(place) else {
                    let later = at.is_none() || deleted.get(place) > at.as_ref();
                    assert!(later, "{}: {place} is missing, and nobody has deleted it since", set.id);
                    continue;
                };
                let is_own = of(&node.value, &set.id);
                assert!(
                    !is_own || Some(node.version.written) == at,
                    "{}: {place} was written at another moment",
                    set.id
                );
                assert!(at.is_none_or(|at| node.version.written >= at), "{}: {place} was not written", set.id);
            }
            for node in set.deletes.iter().filter_map(|place| nodes.get(place)) {
                assert!(at.is_none_or(|at| node.version.created > at), "{}: {} was not deleted", set.id, node.path);
            }
        }
    }

    /// By everything that has ever happened: each set is all that happened at one moment, or nowhere.
    fn check_history(&self, history: &History) {
        let by_trace: BTreeMap<String, &Set> = self.sets.iter().map(|set| (set.trace.clone(), set)).collect();
        let mut stored = BTreeSet::new();
        for (revision, changes) in history {
            let trace = changes.keys().find_map(|key| by_trace.get(key));
            let Some(set) = trace else {
                assert!(changes.len() == 1, "{revision}: {changes:?} is no set, and no save");
                let texts = changes.values().flatten().map(|value| String::from_utf8_lossy(value));
                texts.for_each(|text| assert!(!text.contains("-p"), "{revision}: a part of a set alone: {text}"));
                continue;
            };
            assert!(stored.insert(set.id.clone()), "{}: stored twice", set.id);
            let puts: BTreeSet<String> = changes.iter().filter(|(_, v)| v.is_some()).map(|(k, _)| k.clone()).collect();
            let deletes: BTreeSet<String> =
                changes.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| k.clone()).collect();
            assert_eq!((&puts, &deletes), (&set.puts, &set.deletes), "{}", set.id);
        }
        self.sets.iter().for_each(|set| self.check(set, stored.contains(&set.id)));
    }
}

/// Everything that has happened below a root of the shared etcd since a revision.
fn history(all: &dyn Backend, root: &str, since: u64) -> History {
    runtime().block_on(async {
        all.apply(&[put("end", "")]).await.unwrap();
        let mut client = etcd_client::Client::connect([etcd::shared().endpoint()], None).await.unwrap();
        let since = i64::try_from(since + 1).unwrap();
        let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(since);
        let mut watch = client.watch(format!("{root}/"), Some(options)).await.unwrap();
        let mut history = History::new();
        loop {
            for event in watch.message().await.unwrap().unwrap().events() {
                let kv = event.kv().unwrap();
                let key = kv.key_str().unwrap().trim_start_matches(&format!("{root}/")).to_owned();
                if key == "end" {
                    return history;
                }
                let put = event.event_type() == etcd_client::EventType::Put;
                if !key.contains("/locks/") {
                    let value = put.then(|| Bytes::copy_from_slice(kv.value()));
                    history.entry(kv.mod_revision().unsigned_abs()).or_default().insert(key, value);
                }
            }
        }
    })
}

#[test]
fn sets_are_whole_on_etcd_whoever_is_killed() {
    let (all, root, lines) = killed(Implementation::Etcd2, etcd::shared().endpoint());
    let told = Told::new(lines);
    told.check_end(&*all);
    told.check_history(&history(&*all, &root, 0));
}

#[test]
fn sets_are_whole_on_zookeeper_whoever_is_killed() {
    let (all, _, lines) = killed(Implementation::Zk2, zookeeper::shared().endpoint());
    Told::new(lines).check_end(&*all);
}

#[test]
fn sets_are_whole_on_consul_whoever_is_killed() {
    let (all, _, lines) = killed(Implementation::Consul, consul::shared().endpoint());
    Told::new(lines).check_end(&*all);
}

/// Nobody else can reach a memory service, so whoever commits gives up in the middle instead.
#[test]
fn sets_are_whole_in_memory_whoever_gives_up() {
    let (connect, root) = (connect_options(), fresh_root());
    let all = prepare(Implementation::Memory, "commits", &root, &connect);
    let (_, mut watch) = runtime().block_on(all.follow()).unwrap();
    let service = all.clone();
    let history = runtime().spawn(async move {
        let mut history = History::new();
        loop {
            let batch = tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
            for event in batch.events {
                if event.path.as_str() == "end" {
                    return history;
                }
                if service.locked_dir(&event.path).is_none() {
                    let value = event.node.map(|node| node.value);
                    history.entry(event.at.0).or_default().insert(event.path.to_string(), value);
                }
            }
        }
    });
    let ended = Arc::new(AtomicBool::new(false));
    let writing = writer(all.clone(), ended.clone());
    let committing = [0, 1].map(|number| {
        let connect = connect.clone();
        let (implementation, server, root) = ("memory".to_owned(), "commits".to_owned(), root.clone());
        let job = Job { implementation, server, root, who: format!("p{number}"), log: PathBuf::new(), seed: number };
        runtime().spawn(async move {
            let mut lines = Vec::new();
            let mut mount = Committer::new(job, connect).await;
            while lines.iter().filter(|line| matches!(line, Line::Begun(_))).count() < SETS / 2 {
                let patience = Duration::from_micros(match mount.numbers.below(4) {
                    0 => mount.numbers.below(5_000),
                    _ => 10_000_000,
                });
                let _ = tokio::time::timeout(patience, mount.once(&mut |line| lines.push(line))).await;
            }
            mount.cells.shutdown().await;
            lines
        })
    });
    let lines = committing.into_iter().flat_map(|committing| runtime().block_on(committing).unwrap()).collect();
    ended.store(true, Ordering::SeqCst);
    runtime().block_on(async {
        writing.await.unwrap();
        all.apply(&[put("end", "")]).await.unwrap();
    });
    let history = runtime().block_on(history).unwrap();
    let told = Told::new(lines);
    told.check_end(&*all);
    told.check_history(&history);
}
