//! `.topofs/metrics`: its form, and that its numbers move when things happen.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::process::Stdio;
use std::time::Instant;

use topofs::journal::metrics::ALL;
use topofs::sample::Cluster;

use crate::common::etcd::Etcd;
use crate::common::mount::Mount;
use crate::common::proxy::Proxy;
use crate::common::world::{Service, etcd_cell, load};
use crate::common::{DEADLINE, PYTHON, bash_in, etcd, eventually, spawn_bound};

/// The metrics of a mount at one moment: samples by name and labels as they stand there.
pub struct Metrics {
    pub text: String,
    samples: BTreeMap<String, f64>,
    families: BTreeMap<String, String>,
}

impl Metrics {
    pub fn of(mount: &Mount) -> Self {
        Self::read(mount.control("metrics"))
    }

    /// Reads the format strictly: HELP, TYPE, then the samples of that name, each once.
    pub fn read(text: String) -> Self {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::<String, String>::new());
        let (mut helped, mut family) = (String::new(), (String::new(), String::new()));
        assert!(text.ends_with('\n'), "{text}");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split_once(' ').expect("a help").0.to_owned();
                continue;
            }
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(helped, name, "the help stands before the type");
                assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is there twice");
                family = (name.to_owned(), kind.to_owned());
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let name = sample.split('{').next().unwrap();
            let of_family = match (family.1.as_str(), name.strip_prefix(family.0.as_str())) {
                ("histogram", Some(part)) => ["_bucket", "_sum", "_count"].contains(&part),
                (_, part) => part == Some(""),
            };
            assert!(of_family, "{line} is not of {family:?}");
            assert!(!sample.contains(char::is_control), "{sample:?}");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(samples.insert(sample.to_owned(), value).is_none(), "{sample} is there twice");
        }
        Self { text, samples, families }
    }

    /// A sample as it stands there; 0 if there is none.
    pub fn get(&self, sample: &str) -> f64 {
        self.samples.get(sample).copied().unwrap_or(0.0)
    }

    pub fn has(&self, sample: &str) -> bool {
        self.samples.contains_key(sample)
    }

    /// What of it does not depend on time: a reader that looks twice sees the same.
    fn requests(&self) -> Vec<(&String, &f64)> {
        self.samples.iter().filter(|(name, _)| name.starts_with("topofs_request")).collect()
    }
}

/// Waits until a sample has a value.
pub fn until(mount: &Mount, sample: &str, value: f64) -> Metrics {
    eventually(&format!("{sample} is {value}"), || {
        let metrics = Metrics::of(mount);
        (metrics.get(sample) == value).then_some(metrics)
    })
}

/// What Prometheus's own library for Python reads from a page: each sample, as `name{...} value`.
fn judged(text: &str) -> usize {
    let script = "import sys\nfrom prometheus_client.parser import text_string_to_metric_families as read\n\
                  families = list(read(sys.stdin.read()))\n\
                  assert all(f.type != 'unknown' and f.documentation for f in families), families\n\
                  print(sum(len(f.samples) for f in families))";
    let mut command = std::process::Command::new("timeout");
    command.args(["60", PYTHON, "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn the_numbers_move_when_things_happen_and_not_when_somebody_looks() {
    let mount = Mount::new(&["demo"]);
    let record = "global/keyspaces/commerce/Keyspace.txt";
    mount.read(record);
    let before = Metrics::of(&mount);
    assert_eq!(judged(&before.text), before.samples.len(), "{}", before.text);
    let file = |name: &str| mount.control(name);
    // On the way there the kernel may ask for the root, now and then.
    let again = eventually("a look counts nothing", || {
        let before = Metrics::of(&mount);
        file("status");
        std::fs::metadata(mount.path(".topofs/metrics")).unwrap();
        let again = Metrics::of(&mount);
        (again.requests() == before.requests()).then_some(again)
    });
    assert_eq!(again.get("topofs_requests_waiting"), 0.0);

    mount.read(record);
    let read = Metrics::of(&mount);
    let grown = |later: &Metrics, before: &Metrics, sample: &str| later.get(sample) - before.get(sample);
    assert_eq!(grown(&read, &before, "topofs_requests_total{operation=\"open\"}"), 1.0, "{}", read.text);
    assert_eq!(grown(&read, &before, "topofs_request_duration_seconds_count{operation=\"open\"}"), 1.0);
    assert!(read.get("topofs_request_duration_seconds_sum{operation=\"open\"}") > 0.0);

    // What the kernel was told, by the name that programs know.
    let output = mount.bash(&format!("cat global/nothing; echo 'bogus: 1' > {record}"));
    assert!(!output.status.success());
    let refused = Metrics::of(&mount);
    let errors = |page: &Metrics, operation: &str, errno: &str| {
        page.get(&format!("topofs_request_errors_total{{errno=\"{errno}\",operation=\"{operation}\"}}"))
    };
    let bad =
        |page: &Metrics| ["write", "flush"].map(|operation| errors(page, operation, "EBADMSG")).iter().sum::<f64>();
    assert_eq!((bad(&read), errors(&read, "lookup", "ENOENT")), (0.0, 0.0));
    assert!(bad(&refused) >= 1.0 && errors(&refused, "lookup", "ENOENT") >= 1.0, "{}", refused.text);

    // A stored record is counted by the service, by the mirror, and among the events.
    let applied = "topofs_backend_request_duration_seconds_count{operation=\"apply\",outcome=\"ok\"}";
    let records = "topofs_cell_records{cell=\"global\"}";
    mount.sh("echo 1234567890 > global/metadata/new");
    let stored = Metrics::of(&mount);
    assert_eq!(grown(&stored, &refused, applied), 1.0, "{}", stored.text);
    assert_eq!(grown(&stored, &refused, records), 1.0);
    let bytes = "topofs_cell_record_bytes{cell=\"global\"}";
    assert_eq!(grown(&stored, &refused, bytes), ("metadata/new".len() + 11) as f64);
    mount.sh("rm global/metadata/new");
    let removed = Metrics::of(&mount);
    assert_eq!((removed.get(records), removed.get(bytes)), (refused.get(records), refused.get(bytes)));
    let status = mount.status();
    assert_eq!(removed.get(records), status["cells"]["global"]["records"].as_f64().unwrap(), "the same figures");
    assert_eq!(removed.get("topofs_inodes"), status["inodes"].as_f64().unwrap());
    until(&mount, "topofs_events_total", file("events").lines().count() as f64);

    mount.sh("echo x > global/scratch; mkdir .topofs/stage/s .topofs/at/a; echo y > .topofs/stage/s/global/metadata/z");
    let more = Metrics::of(&mount);
    for (sample, value) in [
        ("topofs_scratch_files", 1.0),
        ("topofs_stages", 1.0),
        ("topofs_snapshots", 1.0),
        ("topofs_staged_changes", 1.0),
        ("topofs_panics_total", 0.0),
        ("topofs_helper_running", 1.0),
        ("topofs_build_info{version=\"0.1.0\"}", 1.0),
    ] {
        let sample = sample.replace("0.1.0", env!("CARGO_PKG_VERSION"));
        assert!(more.has(&sample) && more.get(&sample) == value, "{sample}: {}", more.text);
    }
    for space in ["at/a", "stage/s"] {
        assert!(!mount.path(&format!(".topofs/{space}/metrics")).exists(), "the metrics are those of the whole mount");
    }
    assert!(mount.sh("ls .topofs").lines().any(|name| name == "metrics"));
    let refused = mount.bash("echo 1 > .topofs/metrics");
    assert!(!refused.status.success(), "nobody writes it");
}

#[test]
fn an_open_page_shows_one_state() {
    let mount = Mount::new(&["demo"]);
    let mut file = std::fs::File::open(mount.path(".topofs/metrics")).unwrap();
    let mut half = vec![0; 1_000];
    file.read_exact(&mut half).unwrap();
    mount.sh("echo 1 > global/metadata/new; find . > /dev/null");
    let mut text = String::from_utf8(half).unwrap();
    file.read_to_string(&mut text).unwrap();
    let page = Metrics::read(text.clone());
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut again = String::new();
    file.read_to_string(&mut again).unwrap();
    assert_eq!(again, text);
    let now = Metrics::of(&mount);
    let records = "topofs_cell_records{cell=\"global\"}";
    assert_eq!(now.get(records), page.get(records) + 1.0);
    // Its size is that of the last read.
    assert_eq!(std::fs::metadata(mount.path(".topofs/metrics")).unwrap().len(), now.text.len() as u64);
}

#[test]
fn locks_that_are_held_and_waited_for_are_counted() {
    let mount = Mount::new(&["demo"]);
    let lock = mount.path("global/keyspaces/commerce/.lock");
    let holder = || {
        let mut command = std::process::Command::new("flock");
        command.arg(&lock).args(["sleep", "60"]).stdout(Stdio::null()).stderr(Stdio::null());
        spawn_bound(command)
    };
    let mut first = holder();
    let held = until(&mount, "topofs_locks_held", 1.0);
    assert_eq!(held.get("topofs_locks_waiting"), 0.0);
    let age = |page: &Metrics| page.get("topofs_locks_longest_held_seconds");
    assert!(age(&Metrics::of(&mount)) > age(&held), "it grows older");
    let mut second = holder();
    until(&mount, "topofs_locks_waiting", 1.0);
    let waiting = until(&mount, "topofs_requests_waiting", 1.0);
    assert_eq!(waiting.get("topofs_locks_held"), 1.0, "{}", waiting.text);
    for child in [&mut second, &mut first] {
        // flock(1) has started a sleep that has the descriptor, too.
        bash_in(mount.outside(), &format!("kill $(cat /proc/{0}/task/{0}/children) {0}", child.id()));
        child.wait().unwrap();
    }
    let none = until(&mount, "topofs_locks_held", 0.0);
    assert_eq!((age(&none), until(&mount, "topofs_requests_waiting", 0.0).get("topofs_locks_waiting")), (0.0, 0.0));
}

#[test]
fn a_cell_is_on_the_page_as_long_as_it_exists_whatever_its_name_is() {
    let mount = Mount::new(&["demo"]);
    // The name holds what has a meaning in the format, and a command for a terminal.
    let name = "$'we\\\"ird\\\\ \\x1b[2J\\n{x}'";
    mount.sh(&format!(
        "mkdir global/cells/{name}; \
         sed s,zone1,other, global/cells/zone1/CellInfo.txt > global/cells/{name}/CellInfo.txt"
    ));
    let label = r#"we\"ird\\\\ \\u{1b}[2J\\n{x}"#;
    let records = format!("topofs_cell_records{{cell=\"{label}\"}}");
    let page = eventually("the cell is on the page", || {
        let page = Metrics::of(&mount);
        page.has(&records).then_some(page)
    });
    assert_eq!(judged(&page.text), page.samples.len(), "{}", page.text);
    let info = format!("topofs_cell_info{{cell=\"{label}\",implementation=\"memory\"}}");
    assert_eq!(page.get(&info), 1.0, "{}", page.text);
    mount.sh(&format!("rm global/cells/{name}/CellInfo"));
    eventually("the cell is gone from the page", || (!Metrics::of(&mount).text.contains("ird")).then_some(()));
}

#[test]
fn a_service_that_dies_is_seen_while_it_is_away() {
    let mut etcd = Etcd::start();
    load(&*etcd_cell(&etcd.endpoint(), "/t"), &Cluster { root: "/t".to_owned(), ..Cluster::demo(&etcd.endpoint()) });
    let flags = ["--stale-after=4s", "--remote-operation-timeout=2s", "--metrics-address=0"];
    let mount = Mount::etcd(&etcd.endpoint(), "/t", &flags);
    let state = |name: &str| format!("topofs_cell_state{{cell=\"global\",state=\"{name}\"}}");
    let page = Metrics::of(&mount);
    assert_eq!((page.get(&state("live")), page.get(&state("down"))), (1.0, 0.0), "{}", page.text);
    let (lag, unreachable) = (
        "topofs_cell_lag_seconds{cell=\"global\"}",
        "topofs_backend_errors_total{cell=\"global\",failure=\"unreachable\"}",
    );
    assert!(page.has(lag) && page.get(lag) < 4.0 && page.get(unreachable) == 0.0, "{}", page.text);
    etcd.kill();
    let page = until(&mount, &state("down"), 1.0);
    assert_eq!(page.get(&state("live")), 0.0);
    assert!(page.get(lag) > 2.0 && page.get(unreachable) > 0.0, "{}", page.text);
    assert!(page.text.contains("outcome=\"failed\""), "{}", page.text);
    // Also over HTTP.
    let answer = super::scrape::get(super::scrape::port(&mount), "/metrics");
    assert_eq!(Metrics::read(answer.1).get(&state("down")), 1.0);
    etcd.restart();
    let page = until(&mount, &state("live"), 1.0);
    assert!(page.get("topofs_cell_reconnects_total{cell=\"global\"}") >= 1.0, "{}", page.text);
}

/// Name, type, labels and meaning of each row of the tables in docs/metrics.md.
fn documented() -> Vec<(String, String, BTreeSet<String>, String)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `topofs_") || line.starts_with("| `process_"));
    rows.map(|row| {
        let [_, name, kind, labels, help, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (name.trim_matches('`').to_owned(), kind.to_owned(), labels, help.to_owned())
    })
    .collect()
}

#[test]
fn every_metric_of_the_page_is_shown_and_no_other() {
    let documented = documented();
    let defined: Vec<_> = ALL
        .iter()
        .map(|metric| {
            let labels: BTreeSet<String> = metric.labels.iter().map(ToString::to_string).collect();
            (metric.name.to_owned(), metric.kind.to_string(), labels, metric.help.to_owned())
        })
        .collect();
    let (mut one, mut other) = (documented.clone(), defined);
    one.sort();
    other.sort();
    assert_eq!(one, other, "docs/metrics.md and what topofs defines");

    // Two services, with a record that differs, and each has refused or failed something.
    let (primary, secondary) = (Service::etcd2(), Service::etcd2());
    let to_secondary = Proxy::plain(etcd::shared().port);
    let (here, there) = (primary.place(&primary.server), secondary.place(&to_secondary.endpoint()));
    let places = [&format!("--tee-primary={here}")[..], &format!("--tee-secondary={there}")];
    let mount = Mount::new(&[&["mount", "--topo-implementation=tee"], &places[..]].concat());
    secondary.put("global/metadata/only-here", b"x");
    mount.sh("cat global/keyspaces/commerce/Keyspace; ls zone1 zone2");
    mount.bash("ls .topofs/at/99999999; cat global/nothing");
    until(&mount, "topofs_tee_drift_records{cell=\"global\",kind=\"left_over\"}", 1.0);
    to_secondary.cut(true);
    let mut shown = BTreeMap::new();
    let names: BTreeSet<&String> = documented.iter().map(|(name, ..)| name).collect();
    let end = Instant::now() + DEADLINE;
    while names.iter().any(|name| !shown.contains_key(*name)) {
        let missing: Vec<_> = names.iter().filter(|name| !shown.contains_key(**name)).collect();
        assert!(Instant::now() < end, "{missing:?} are not on the page");
        let page = Metrics::of(&mount);
        assert_eq!(judged(&page.text), page.samples.len(), "{}", page.text);
        shown.extend(page.families);
    }
    let known: BTreeMap<&str, String> = ALL.iter().map(|metric| (metric.name, metric.kind.to_string())).collect();
    for (name, kind) in &shown {
        assert_eq!(known.get(name.as_str()), Some(kind), "{name} is documented");
    }
}

/// The rules on the page speak of metrics and labels that there are.
#[test]
fn the_alerts_of_the_page_are_about_metrics_that_there_are() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rules =
        page.split("```yaml\n").find(|block| block.starts_with("groups:")).unwrap().split("```").next().unwrap();
    let words = |text: &str| -> Vec<String> {
        let is_letter = |c: char| c.is_ascii_lowercase() || c == '_';
        text.split(|c| !is_letter(c)).map(str::to_owned).collect()
    };
    let alerts = rules.matches("- alert: ").count();
    assert!(alerts >= 6, "{rules}");
    let expressions: Vec<&str> = rules
        .split("expr: ")
        .skip(1)
        .map(|rest| rest.split("\n        for:").next().unwrap().split("\n        labels:").next().unwrap())
        .collect();
    assert_eq!(expressions.len(), alerts);
    for expression in expressions {
        // Prometheus's own: whether the page could be read.
        if expression.starts_with("up{") {
            continue;
        }
        let named: Vec<String> = words(expression).into_iter().filter(|word| word.starts_with("topofs_")).collect();
        assert!(!named.is_empty(), "{expression}");
        for name in named {
            assert!(ALL.iter().any(|metric| metric.name == name), "{name} in {expression}");
        }
    }
}
